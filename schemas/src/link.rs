//! What edge and fanout say to each other (I6), and what edge and archiver do (I7, I8). Messages and the traits that
//! carry them; in one process they are calls, in a cluster a network link speaks for them.

use std::sync::Arc;

use async_trait::async_trait;

use crate::cluster::Used;
use crate::event::Event;
use crate::ids::{EdgeId, InstanceId, RoomId, UserId};
use crate::outcome::Outcome;
use crate::receipt::Receipt;
use crate::room::{Member, RoomInfo};
use crate::seq::{Offset, Partition, Seq};
use crate::signal::Signal;
use crate::topic::Topic;
use crate::user_event::UserEvent;

/// The other side can't answer now: what was asked has an unknown or no effect; try again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unavailable")]
pub struct Unavailable;

/// Which topic's positions a batch counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// `events`, keyed by room.
    Rooms,
    /// `user-events`, keyed by user.
    Users,
}

impl Lane {
    /// Every lane.
    pub const ALL: [Self; 2] = [Self::Rooms, Self::Users];

    /// The topic whose positions it counts.
    pub fn topic(self) -> Topic {
        match self {
            Self::Rooms => Topic::Events,
            Self::Users => Topic::UserEvents,
        }
    }
}

/// What has happened in (from, to] of a partition, less what this edge has no interest in. Receipts and signals ride
/// along in the rooms lane; they have no positions.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Epoch of the partition's owner: an edge listens to the highest that it has registered with. A higher one tells
    /// of a new owner, which knows nothing of this edge's interest: register again. Each new owner says so by an empty
    /// batch to every edge attached, and to each that is attached later.
    pub epoch: u64,
    /// Whose positions `from` and `to` are.
    pub lane: Lane,
    /// Which partition.
    pub partition: Partition,
    /// Where the edge must stand: anything else means that it has missed something.
    pub from: Offset,
    /// Where it stands afterwards. Equal to `from` in a batch of receipts and signals alone, and in one for an edge that
    /// has not registered in this lane of the partition.
    pub to: Offset,
    /// In the partition's order.
    pub items: Vec<Item>,
}

/// One thing that an edge passes on.
#[derive(Clone, Debug)]
pub enum Item {
    /// A durable event of a room.
    Event(Arc<Event>),
    /// What became of a command of this edge.
    Outcome(Arc<Outcome>),
    /// A person's list of rooms has changed.
    User(Arc<UserEvent>),
    /// Someone has got further.
    Receipt(Arc<Receipt>),
    /// Someone types, comes or goes.
    Signal(Arc<Signal>),
}

/// The answer to a registration: from here on the edge hears of every later event of what it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Of the partition's owner.
    pub epoch: u64,
    /// Everything before is history; everything from here on is sent.
    pub at: Offset,
}

/// An edge, as fanout sees it.
#[async_trait]
pub trait EdgePort: Send + Sync {
    /// Which edge.
    fn id(&self) -> EdgeId;
    /// Takes a batch. `Ok` means that it is taken, so that fanout may commit; `Err`, that the edge is gone.
    async fn deliver(&self, batch: Batch) -> Result<(), Unavailable>;
    /// Said on the edge's own side by what attaches it over a network, after each time: whatever was registered in these
    /// partitions through an earlier link is gone, so register all of it again. Partitions that are not named have an
    /// owner who is not at the other end of this link. In one process there is no link to lose.
    fn register_anew(&self, partitions: &[Partition]) {
        let _ = partitions;
    }
}

/// People's limits at an edge, as what goes between edges sees them. What one edge has counted the others count too, so that
/// a limit is one limit wherever a person goes.
pub trait UsagePort: Send + Sync {
    /// What was used since this was last asked and what is held now, at most [`USED_MAX`](crate::cluster::USED_MAX).
    fn take_used(&self) -> Vec<Used>;
    /// This other edge has counted this, and no more than this is held there now.
    fn used_elsewhere(&self, edge: InstanceId, used: &[Used]);
}

/// Fanout, as an edge sees it.
#[async_trait]
pub trait FanoutPort: Send + Sync {
    /// Brings an edge in: outcomes of its commands reach it from now on.
    async fn attach(&self, edge: Arc<dyn EdgePort>) -> Result<(), Unavailable>;
    /// Takes it out, its interest with it.
    fn detach(&self, edge: EdgeId);
    /// Registers interest in rooms or users (their ids' bytes) of one partition. Before the answer, the edge has taken
    /// an empty batch that ends at `Registered::at`. The first registration in a partition after `attach`, or with a new
    /// owner, begins the count anew (`from` == `to` == `at`), which an edge with an older watermark sees as a miss. A
    /// key's own stream begins with the answer to *its* registration: an edge that comes back names all keys of a
    /// partition in one call, or asks [`FanoutPort::changed`] up to the last answer. No keys at all are fine: from the
    /// answer on the edge is kept up to date with the partition's positions.
    async fn register(
        &self,
        edge: EdgeId,
        lane: Lane,
        partition: Partition,
        keys: &[[u8; 16]],
    ) -> Result<Registered, Unavailable>;
    /// Takes interest back. What is under way may still come.
    fn unregister(&self, edge: EdgeId, lane: Lane, partition: Partition, keys: &[[u8; 16]]);
    /// The rooms of a partition that had events in (from, to], with the largest seq of each. `None`: the log no longer
    /// has all of it (retention), so that any room may have had some.
    async fn changed(
        &self,
        partition: Partition,
        from: Offset,
        to: Offset,
    ) -> Result<Option<Vec<(RoomId, Seq)>>, Unavailable>;
    /// Those of `users` in whom any edge has registered interest: they are online.
    async fn online(&self, users: &[UserId]) -> Result<Vec<UserId>, Unavailable>;
}

/// Where a page of history begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageFrom {
    /// The oldest events after this one.
    After(Seq),
    /// The newest events before this one.
    Before(Seq),
    /// The newest events.
    Newest,
}

/// A question for history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageQuery {
    /// Who asks: the answer holds only what they may see at the position of the data (I8).
    pub user: UserId,
    /// Where.
    pub room: RoomId,
    /// Which end.
    pub from: PageFrom,
    /// At most so many events.
    pub limit: usize,
    /// The answer must know everything of the room's partition before this offset.
    pub min_offset: Offset,
}

/// A page of a room's history as one person may see it.
#[derive(Clone, Debug)]
pub struct Page {
    /// By ascending seq; dense but for what the person may not see.
    pub events: Vec<Arc<Event>>,
    /// The first event that the person may see.
    pub first_seq: Seq,
    /// The last event that the person may see.
    pub visible_head: Seq,
    /// The room's newest event at the position of this answer, whoever asks.
    pub head_seq: Seq,
    /// The person's standing at that position.
    pub member: Member,
    /// The room at that position.
    pub info: Arc<RoomInfo>,
}

/// A room in a person's list.
#[derive(Clone, Debug)]
pub struct RoomOfUser {
    /// Which room, at the position of the answer.
    pub info: Arc<RoomInfo>,
    /// The person's standing in it.
    pub member: Member,
    /// The person's delivered watermark, or the seq before their way in: a client without a cursor goes on after it.
    pub delivered_seq: Seq,
    /// The person's read watermark, or the seq before they last came in.
    pub read_seq: Seq,
}

/// The archiver, as an edge sees it.
#[async_trait]
pub trait HistoryPort: Send + Sync {
    /// One page. `Ok(None)`: no such room, a deleted one, or the person was never in it.
    async fn page(&self, query: PageQuery) -> Result<Option<Page>, Unavailable>;
    /// The page of each question, in their order, as [`HistoryPort::page`] answers it. One call whatever the number of
    /// rooms; all of it or nothing.
    async fn pages(&self, queries: &[PageQuery]) -> Result<Vec<Option<Page>>, Unavailable>;
    /// Rooms by id as they are at or after each `min_offset`; absent where there is none or the person was never in. A
    /// deleted one says so.
    /// One call whatever the number of rooms.
    async fn rooms(&self, user: UserId, rooms: &[(RoomId, Offset)]) -> Result<Vec<RoomOfUser>, Unavailable>;
    /// Ids of the rooms in the person's list (in it now) once everything of their partition of `user-events` before
    /// `min_offset` is known.
    async fn rooms_of(&self, user: UserId, min_offset: Offset) -> Result<Vec<RoomId>, Unavailable>;
    /// Returns once the store holds everything of this lane's partition before `min_offset`: read it there then.
    async fn settle(&self, lane: Lane, partition: Partition, min_offset: Offset) -> Result<(), Unavailable>;
}
