//! Events, command ids, receipts and the archive's progress: what the archiver writes, what history and ingest read.

use std::sync::Arc;

use async_trait::async_trait;
use schemas::receipt::Receipt;
use schemas::room::{Member, RoomInfo};
use schemas::{CommandId, Event, EventId, Offset, Partition, RoomId, Seq, Timestamp, Topic, UserId};

use crate::Error;
use crate::rooms::Listing;

/// One write of the archiver. Rows may repeat what is there (law 2); progress covers them (law 3).
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Events; their command ids are indexed with them.
    pub events: Vec<Arc<Event>>,
    /// Rooms after these events; the version is `head_seq`. Handles follow: the room's present handle is confirmed,
    /// the one that it had is free. Its claims of others may still be on their way, and end by time.
    pub rooms: Vec<RoomInfo>,
    /// Standings after these events; the version is in them.
    pub members: Vec<(RoomId, UserId, Member)>,
    /// Changes of people's lists.
    pub listings: Vec<Listing>,
    /// Steps of receipts. One that reaches no further than another of the same or an earlier time is not kept.
    pub receipts: Vec<Arc<Receipt>>,
    /// What the writer takes to be archived already: where the store's progress is below, the batch is refused as a whole
    /// ([`Error::Behind`]), for it would leave a hole behind it.
    pub since: Vec<(Topic, Partition, Offset)>,
    /// Everything of these partitions before these positions is in the store once this batch is.
    pub progress: Vec<(Topic, Partition, Offset)>,
}

/// The first outcome of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acted {
    /// The place of its first event.
    pub seq: Seq,
    /// That event's id.
    pub id: EventId,
    /// That event's time.
    pub at: Timestamp,
}

/// How far a person has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watermarks {
    /// All up to here has reached a device.
    pub delivered_seq: Seq,
    /// All up to here has been seen.
    pub read_seq: Seq,
    /// When the newest step was made.
    pub at: Timestamp,
}

/// A person's receipt of one message: the times of the first steps at or above its seq. Neither is inferred from the
/// other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MessageReceipt {
    /// Who.
    pub user: UserId,
    /// When it had reached a device.
    pub delivered_at: Option<Timestamp>,
    /// When it had been seen.
    pub read_at: Option<Timestamp>,
}

/// The archive.
#[async_trait]
pub trait Archive: Send + Sync + 'static {
    /// Writes a batch. `Ok`: all of it is durable. After an error some of it may be, progress only if all is; after
    /// `Behind` none of it.
    async fn archive(&self, batch: Batch) -> Result<(), Error>;
    /// How far the archive has come; 0 where it has not begun.
    async fn progress(&self, topic: Topic, partition: Partition) -> Result<Offset, Error>;
    /// Events with `after < seq < before`, ascending: the first `limit`, or with `newest` the last `limit`.
    async fn events(
        &self,
        room: RoomId,
        after: Seq,
        before: Seq,
        limit: usize,
        newest: bool,
    ) -> Result<Vec<Event>, Error>;
    /// Which of these commands have acted.
    async fn acted(
        &self,
        keys: &[(RoomId, UserId, CommandId)],
    ) -> Result<Vec<((RoomId, UserId, CommandId), Acted)>, Error>;
    /// The largest command id archived in a room: ingest's floor for a cold room (I4).
    async fn largest_command(&self, room: RoomId) -> Result<Option<CommandId>, Error>;
    /// One person's watermarks in several rooms; absent where there are none.
    async fn watermarks(&self, user: UserId, rooms: &[RoomId]) -> Result<Vec<(RoomId, Watermarks)>, Error>;
    /// Everyone's watermarks in a room, at most `limit`.
    async fn room_watermarks(&self, room: RoomId, limit: usize) -> Result<Vec<(UserId, Watermarks)>, Error>;
    /// Receipts of one message, by user id, after `after`. People without any step at or above `seq` are left out.
    async fn message_receipts(
        &self,
        room: RoomId,
        seq: Seq,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<MessageReceipt>, Error>;
}
