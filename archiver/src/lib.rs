//! The archiver: writes what has happened to the store, and answers for a room's history. It owns the rows of events,
//! rooms, members, lists and receipts (I5) and the hot cache in front of them; it decides nothing and spawns nothing.
//!
//! [`new`] gives two ends of one shared state: the port that edges ask, and the worker whose future the binary drives.

use std::sync::Arc;

use schemas::link::HistoryPort;
use schemas::{Clock, Offset, Partition, Topic};
use store::Store;
use stream::Log;

pub mod audit;
mod config;
mod history;
mod metrics;
mod plan;
mod visible;
mod worker;

pub use config::Config;
pub use metrics::Metrics;
pub use plan::TOPICS;
pub use worker::Worker;

/// The group in which the archivers of a cluster share the partitions.
pub const GROUP: &str = "archiver";

/// Why the worker gave up. Nothing goes on silently after these: a person must look.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log no longer, or not yet, has the position that the archive stands at: going on would leave a hole.
    #[error("the archive of {topic}/{partition} stands at {progress}, outside of the log's {start}..={end}")]
    OutOfLog {
        /// Which topic.
        topic: Topic,
        /// Which partition.
        partition: Partition,
        /// Position up to which the store holds everything.
        progress: Offset,
        /// First position that the log has.
        start: Offset,
        /// Position after the log's last record.
        end: Offset,
    },
    /// A fault of the log that no retry mends.
    #[error("the log failed the archiver")]
    Log(#[source] stream::Error),
}

/// What the archiver stands on.
#[derive(Clone)]
pub struct Deps {
    /// The log; its topics exist already.
    pub log: Arc<dyn Log>,
    /// The store.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// The port without a worker: it owns nothing, so it answers from the store alone, as an archiver does for partitions of
/// others. It waits up to [`Config::wait_max_ms`] for the store to come as far as a question demands (I8).
pub fn reader(deps: Deps, config: Config, metrics: Metrics) -> Arc<dyn HistoryPort> {
    Arc::new(history::History::new(deps, config, metrics))
}

/// The port that edges ask, and the worker that keeps it knowing: drive [`Worker::run`].
pub fn new(deps: Deps, config: Config, metrics: Metrics) -> (Arc<dyn HistoryPort>, Worker) {
    let history = Arc::new(history::History::new(deps, config, metrics));
    (Arc::clone(&history) as Arc<dyn HistoryPort>, Worker::new(history))
}
