//! The log port: partitioned, ordered, durable topics; consumer groups; transactions. Its laws in prose, the traits,
//! and the engines behind them (memory, embedded, kafka). Everything above this crate is the same on every engine.
//!
//! # Laws (each is a test of the contract suite, run on every engine)
//!
//! 1. **Order.** Records of one append or transaction take rising offsets in a partition; a reader sees them in offset
//!    order, each exactly once. Offsets are not dense: positions may count control records.
//! 2. **Durability.** When `append` or `commit` returns `Ok`, records of durable topics survive a crash of the process
//!    and of the machine. Volatile topics ([`Topic::is_durable`]) and what was committed in them may be lost *as a
//!    whole* by a crash, and then start again at offset 0 without committed offsets.
//! 3. **Atomicity.** A transaction's records in all topics and its consumed offsets become visible together or never.
//!    Nothing of an uncommitted or failed transaction is ever visible. After `Error::Unknown` it may be either.
//!    On Kafka together means decided in one step: one topic may show it a moment before another.
//! 4. **Fencing.** `producer(id)` ends every open transaction of the same id; commits of an older producer of that
//!    id fail with `Error::Fenced` from then on and leave nothing.
//! 5. **Groups.** Each partition of a group has one owner at a time; a new member or one gone brings `Assigned` and
//!    `Revoked`. A commit by a member that no longer owns the partition fails with `Error::Fenced`.
//! 6. **Offsets.** A group goes on where it last committed; without a commit, at the start.
//!    `end` is the position after the last committed record: what was answered `Ok` before the call is below it.
//! 7. **Bounds.** A full disk or a full volatile topic fails the call with `Error::Unavailable`; nothing accepted is
//!    lost, and calls succeed again once there is room. On Kafka no topic is volatile and none is full: retention and the
//!    brokers' disks bound them.

mod broker;
pub mod embedded;
pub mod kafka;
pub mod memory;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use schemas::{Offset, Partition, Topic};

/// What can go wrong, as far as a caller acts on it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Nothing was done; try again later: full, or shutting down.
    #[error("the log is unavailable: {0}")]
    Unavailable(String),
    /// Someone newer owns this: build everything anew from committed state (I2).
    #[error("fenced by a newer owner")]
    Fenced,
    /// It may have happened or not: on a transaction, act as after `Fenced`.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// The position asked for is gone (retention) or never was; never reset silently.
    #[error("offset {asked} of {topic}/{partition} is out of range {start}..={end}")]
    OutOfRange {
        /// Topic asked.
        topic: Topic,
        /// Partition asked.
        partition: Partition,
        /// Offset asked.
        asked: Offset,
        /// First offset there is.
        start: Offset,
        /// Position after the last.
        end: Offset,
    },
    /// A fault that no retry mends; the reason is for people.
    #[error("the log is broken: {0}")]
    Broken(String),
}

/// A record to append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Room or user: what it is ordered by.
    pub key: [u8; 16],
    /// An Avro single object.
    pub value: Bytes,
}

/// A record where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its place.
    pub offset: Offset,
    /// The record.
    pub record: Record,
}

/// Committed records of one partition, in order.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Which topic.
    pub topic: Topic,
    /// Which partition.
    pub partition: Partition,
    /// Position before the first.
    pub from: Offset,
    /// Position after the last, control records counted: where to read on.
    pub next: Offset,
    /// The records; shared, so that consumers of one process don't copy them.
    pub records: Arc<[Placed]>,
}

/// What a poll brings.
#[derive(Clone, Debug)]
pub enum Polled {
    /// These partitions are this member's from now on, in all of its topics. Its position in each is the group's
    /// committed one.
    Assigned {
        /// Generation of the group: rises with each change, and so serves as an owner's epoch.
        epoch: u64,
        /// Which.
        partitions: Vec<Partition>,
    },
    /// These are no longer. Commit nothing for them.
    Revoked(Vec<Partition>),
    /// Records of assigned partitions: at least one, at most one `Fetched` for each topic and partition.
    Records(Vec<Fetched>),
}

/// Who consumes: goes into a transaction so that a member that lost its partitions can't commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupMember {
    /// Which group.
    pub group: String,
    /// Which member of it.
    pub member: u64,
    /// Generation that it knows of.
    pub epoch: u64,
}

/// Positions in partitions.
pub type Positions = Vec<(Topic, Partition, Offset)>;

/// One transaction: all of it or nothing.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// Records, in the order in which their partitions shall have them.
    pub records: Vec<(Topic, Partition, Record)>,
    /// The positions after what was consumed for them.
    pub consumed: Option<(GroupMember, Positions)>,
}

/// A log engine.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Creates what is missing. A partition count is fixed for ever: `Broken` where an existing one differs (I2).
    async fn create(&self, partitions: u32) -> Result<(), Error>;

    /// Partitions of every topic; 0 until `create` has made them, now or in an earlier life of the engine.
    fn partitions(&self) -> u32;

    /// Appends records to one partition, outside of transactions. `Ok` brings the position after the last one.
    async fn append(&self, topic: Topic, partition: Partition, records: Vec<Record>) -> Result<Offset, Error>;

    /// A transactional producer; older ones of the same id are fenced.
    async fn producer(&self, transactional_id: &str) -> Result<Box<dyn Producer>, Error>;

    /// Joins a group that consumes these topics together: partition n of each goes to one member.
    async fn consumer(&self, group: &str, topics: &[Topic]) -> Result<Box<dyn Consumer>, Error>;

    /// Committed records from `from` on, at most about `max_bytes` but at least one record where there is one. Empty
    /// at the end.
    async fn read(&self, topic: Topic, partition: Partition, from: Offset, max_bytes: usize) -> Result<Fetched, Error>;

    /// Position of the first record kept.
    async fn start(&self, topic: Topic, partition: Partition) -> Result<Offset, Error>;

    /// Position after the last committed record (Kafka: the last stable offset).
    async fn end(&self, topic: Topic, partition: Partition) -> Result<Offset, Error>;

    /// What a group last committed.
    async fn committed(&self, group: &str, topic: Topic, partition: Partition) -> Result<Option<Offset>, Error>;

    /// Forgets records below `before` (retention). What a reader still needs is the caller's matter.
    async fn trim(&self, topic: Topic, partition: Partition, before: Offset) -> Result<(), Error>;
}

/// A transactional producer.
#[async_trait]
pub trait Producer: Send {
    /// Commits a transaction and returns once it is durable: with the position after the last record of each
    /// partition touched. After any error drop the producer and everything decided since the last `Ok` (I2).
    async fn commit(&mut self, transaction: Transaction) -> Result<Vec<(Topic, Partition, Offset)>, Error>;
}

/// A member of a group. Dropping it leaves the group.
#[async_trait]
pub trait Consumer: Send {
    /// Waits for news: an assignment, or everything that has arrived since the last poll, at most about
    /// [`schemas::limits::BATCH_MAX_BYTES`]. Cancel safe.
    async fn poll(&mut self) -> Result<Polled, Error>;

    /// This member, for a transaction.
    fn member(&self) -> GroupMember;

    /// Moves the reading position of an assigned partition.
    fn seek(&mut self, topic: Topic, partition: Partition, to: Offset);

    /// Commits positions outside a transaction. May return before they are durable: they are a hint (I5).
    async fn commit(&mut self, positions: Vec<(Topic, Partition, Offset)>) -> Result<(), Error>;
}
