//! Ingest: orders, deduplicates and checks commands, and writes what they make into the log. One writer per room (I2):
//! the worker owns partitions; everything else here is pure.

pub mod config;
pub mod decide;
pub mod dedup;
pub mod metrics;
pub mod rooms;
pub mod turn;
pub mod worker;

use std::sync::Arc;

use schemas::{Clock, Entropy};
use store::Store;
use stream::Log;

pub use config::Config;
pub use metrics::Metrics;
pub use worker::{GROUP, run, run_telling};

/// What the role needs from outside.
#[derive(Clone)]
pub struct Deps {
    /// Commands come from it, events go to it.
    pub log: Arc<dyn Log>,
    /// The archive, from which cold rooms are loaded (I3).
    pub store: Arc<dyn Store>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Randomness for salts and ids.
    pub entropy: Arc<dyn Entropy>,
}

/// What the role can't go on with. All else it mends by itself (I2).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log has a fault that no retry mends.
    #[error("ingest can't use the log")]
    Log(#[source] stream::Error),
    /// The log ends before what is archived of it: it is not the log that this store was made from.
    #[error(
        "partition {partition} of events ends at {end}, but {progress} is archived: log and store do not belong together"
    )]
    LogBehindArchive {
        /// Which partition.
        partition: schemas::Partition,
        /// Where the log ends.
        end: schemas::Offset,
        /// How far the archive has come.
        progress: schemas::Offset,
    },
}
