//! Who lives, and who owns which partition: what each process says of itself in the topic `cluster`
//! ([`schemas::cluster::Instance`]), read by everyone who wants to find others. Decides nothing about messages: whoever is
//! asked wrongly for a moment says so, and epochs part owners from those before them (I6).

mod announce;
mod directory;
mod view;

pub use announce::{Me, News, announce};
pub use directory::{Directory, Metrics};
pub use view::{LEASE, Living, Member, View};

use schemas::Partition;

/// All processes speak in one partition of the topic, so that one reading finds all.
pub const PARTITION: Partition = Partition(0);
