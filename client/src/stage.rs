//! The life of a message as its sender and its receiver see it: Creation → Queuing → Sending → Annotation → Storage →
//! Monitoring → Retrieval → Collection → `on_receive`. Each step is told as it happens.

use schemas::outcome::RejectCode;
use schemas::{CommandId, EventId, RoomId, Seq, Timestamp, UserId};

/// A step that a message has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// In which room.
    pub room: RoomId,
    /// Which step.
    pub stage: Stage,
}

/// The steps. The first six are the sender's, the last three the receiver's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It has an id, the same for all tries.
    Created {
        /// The id.
        id: CommandId,
    },
    /// It is on this device's disk: neither a crash nor a power cut loses it from here on.
    Queued {
        /// The id.
        id: CommandId,
    },
    /// It was put on a socket.
    Sending {
        /// The id.
        id: CommandId,
        /// How often before.
        retries: u32,
    },
    /// The server has given it its place, id and time.
    Annotated {
        /// The id.
        id: CommandId,
        /// Its place in the room.
        seq: Seq,
        /// Its event's id.
        event: EventId,
        /// The server's time.
        sent_at: Timestamp,
    },
    /// It is durable on the server and has left the queue.
    Stored {
        /// The id.
        id: CommandId,
    },
    /// It was refused for good and has left the queue.
    Failed {
        /// The id.
        id: CommandId,
        /// Why.
        code: RejectCode,
    },
    /// Someone has got so far in the room: all messages up to these have arrived and have been read.
    Monitored {
        /// Who.
        user: UserId,
        /// All up to here has arrived.
        delivered: Seq,
        /// All up to here has been read.
        read: Seq,
    },
    /// It came from the server: live, in catching up, or as a page of history.
    Retrieved {
        /// Its place.
        seq: Seq,
    },
    /// It is the next of its room, and no repetition: it waits for the listener.
    Collected {
        /// Its place.
        seq: Seq,
    },
    /// The listener has returned; it will not come again, and the server is told.
    Received {
        /// Its place.
        seq: Seq,
    },
}
