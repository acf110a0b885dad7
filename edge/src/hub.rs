//! The hub: which local sockets want which rooms, what commands of this edge are in flight, and how far this edge has
//! heard of each partition (I6).

use std::sync::Arc;

use schemas::link::{Lane, Unavailable};
use schemas::outcome::Outcome;
use schemas::{Command, DeviceId, Event, Offset, Partition, UserId};

/// What became of a command.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Its first event.
    Event(Arc<Event>),
    /// A repeat, a thing that was so already, or a rejection.
    Outcome(Arc<Outcome>),
}

/// The hub of one edge.
pub struct Hub {}

impl Hub {
    /// Publishes a command of a REST call and waits for what becomes of it, at most until its deadline.
    pub async fn submit(&self, _command: Command) -> Result<Answer, Unavailable> {
        Err(Unavailable)
    }

    /// The position that a read must not be older than: the partition's end, asked at most once in a few
    /// milliseconds per partition (I8).
    pub async fn end(&self, _lane: Lane, _partition: Partition) -> Result<Offset, Unavailable> {
        Err(Unavailable)
    }

    /// Closes the sockets of a person (of one device, if given) with this code.
    pub fn close(&self, _user: UserId, _device: Option<DeviceId>, _code: u16) {}

    /// Closes all sockets with this code.
    pub fn close_all(&self, _code: u16, _retry_after_ms: Option<u32>) {}
}
