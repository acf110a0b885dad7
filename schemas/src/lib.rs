//! The shared words of Posthaste: one file per stored or sent form, the traits by which roles speak to one another,
//! and the bounds that more than one crate relies on. No I/O, no clock, no randomness of its own.

pub mod clock;
pub mod cluster;
pub mod codec;
pub mod command;
pub mod dead_letter;
pub mod event;
pub mod frame;
pub mod ids;
pub mod json;
pub mod limits;
pub mod link;
pub mod message;
pub mod outcome;
pub mod receipt;
pub mod room;
pub mod seq;
pub mod signal;
pub mod topic;
pub mod user_event;

pub use clock::{Clock, Entropy, Timestamp};
pub use codec::Record;
pub use command::{Action, Command, ReplyTo};
pub use event::{Event, EventKind};
pub use ids::{CommandId, DeviceId, EdgeId, EventId, InstanceId, RoomId, SessionId, UserId};
pub use seq::{Offset, Partition, Seq};
pub use topic::Topic;
