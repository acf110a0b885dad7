//! The engine inside the process: durable topics in one SQLite database, committed in groups by one writer thread;
//! volatile topics in memory. What is new is handed to readers from memory; who is further behind reads the database
//! on threads of the engine. The only place that names rusqlite in this crate.
//!
//! What is promised needs a disk that keeps what it has synced; what a failing sync leaves is dealt with in `writer`.

mod database;
mod directory;
mod metrics;
mod queue;
mod reader;
mod writer;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use async_trait::async_trait;
use schemas::{Offset, Partition, Topic};
use tokio::sync::oneshot;

pub use self::directory::{DirLock, OpenError};
pub use self::metrics::Metrics;
use self::queue::{Closed, Queue};
use self::reader::ReadJob;
use self::writer::{Answer, Job, Work, Writer};
use crate::broker::{self, Broker, Depths, Fence, Lane, LaneId, Member, State, VOLATILE_MAX_BYTES, size_of_record};
use crate::{Consumer, Error, Fetched, Log, Positions, Producer, Record, Transaction};

/// Settings of the engine; the bounds are of memory and disk, not of what can be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What the volatile topics (commands, signals) hold together, bytes.
    pub volatile_max_bytes: usize,
    /// What memory keeps of the newest durable records, all partitions together, bytes.
    pub tail_max_bytes: usize,
    /// What waits for the writer, bytes; more waits with its caller. Also the most that one group commit writes.
    pub queue_max_bytes: usize,
    /// What the write-ahead log takes on disk, bytes; room for at least four full queues.
    pub wal_max_bytes: usize,
    /// Threads that read what memory no longer holds.
    pub readers: usize,
}

impl Default for Config {
    fn default() -> Self {
        const MIB: usize = 1024 * 1024;
        Self {
            volatile_max_bytes: VOLATILE_MAX_BYTES,
            tail_max_bytes: 64 * MIB,
            queue_max_bytes: 16 * MIB,
            wal_max_bytes: 64 * MIB,
            readers: 2,
        }
    }
}

/// Most partitions of a topic: the number is a part of a row's key.
pub const PARTITIONS_MAX: u32 = database::PARTITIONS_MAX;

/// From where to where every durable partition of the log in a directory reaches. Changes nothing, and may be asked beside the
/// process that holds the log.
///
/// # Errors
/// As [`EmbeddedLog::open`].
pub fn extents(dir: &Path) -> Result<HashMap<(Topic, Partition), Range<Offset>>, OpenError> {
    Ok(database::look(&dir.join("log.db"))?.into_iter().map(|(id, start, end)| (id, start..end)).collect())
}

/// The engine. Dropping it ends its threads; what still uses it then gets `Unavailable`.
pub struct EmbeddedLog {
    inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
    /// Let go of last.
    _lock: DirLock,
}

struct Inner {
    broker: Broker,
    work: Queue<Job>,
    reads: Queue<ReadJob>,
    config: Config,
}

impl EmbeddedLog {
    /// Opens or makes the log in a directory, which it holds for itself until dropped: no second process can use it,
    /// for whatever (the store beside it has its own file and needs no lock of its own).
    ///
    /// # Errors
    /// Each says what to do: a SQLite that loses commits, a network file system, a directory in use, a database
    /// newer than this program or damaged, no room.
    pub fn open(dir: &Path, config: Config, metrics: Metrics) -> Result<Self, OpenError> {
        directory::check_sqlite(rusqlite::version_number(), rusqlite::version())?;
        directory::prepare(dir)?;
        let lock = DirLock::take(dir)?;
        let file = dir.join("log.db");
        let (connection, found) = database::open(&file)?;

        let mut state = State::new(found.starts, config.volatile_max_bytes);
        let damaged = |error: Error| OpenError::Damaged { file: file.clone(), reason: error.to_string() };
        if found.partitions != 0 {
            state.create(found.partitions, tail_max_bytes(&config, found.partitions)).map_err(damaged)?;
        }
        for (id, start, end) in found.lanes {
            *state.lane_mut(id).map_err(damaged)? = Lane::beneath(start, end);
        }
        for (group, id, position) in found.committed {
            state.groups.entry(group).or_default().committed.insert(id, position);
        }

        let inner = Arc::new(Inner {
            broker: Broker::new(state),
            work: Queue::new(config.queue_max_bytes),
            reads: Queue::new(usize::MAX),
            config: config.clone(),
        });
        let mut this = Self { inner: Arc::clone(&inner), threads: Vec::new(), _lock: lock };
        let writer = Writer::new(Arc::clone(&inner), connection, metrics)
            .map_err(|source| OpenError::Sqlite { file: file.clone(), source })?;
        this.spawn("log-writer", move || writer.run())?;
        for _ in 0..config.readers.max(1) {
            let connection = database::open_reader(&file)?;
            let inner = Arc::clone(&inner);
            this.spawn("log-reader", move || reader::run(&inner.reads, &connection))?;
        }
        Ok(this)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), OpenError> {
        let ended = Ended(Arc::clone(&self.inner));
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _ended = ended;
            run();
        });
        self.threads.push(thread.map_err(|source| OpenError::Io { what: "start a thread".into(), source })?);
        Ok(())
    }
}

impl Drop for EmbeddedLog {
    fn drop(&mut self) {
        self.inner.stop(Error::Unavailable("the log is shutting down".into()));
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so, and closed the log.
            let _ = thread.join();
        }
    }
}

/// Closes the log when one of its threads ends, be it by a fault in it: nobody may wait for an answer for ever.
struct Ended(Arc<Inner>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.stop(Error::Broken("a thread of the log has ended".into()));
    }
}

/// Memory for each durable partition.
fn tail_max_bytes(config: &Config, partitions: u32) -> usize {
    let durable = Topic::ALL.iter().filter(|topic| topic.is_durable()).count();
    config.tail_max_bytes / (durable * partitions.max(1) as usize)
}

impl Inner {
    fn stop(&self, reason: Error) {
        self.broker.with(|state| state.close(reason));
        self.work.close();
        self.reads.close();
    }

    fn why_closed(&self) -> Error {
        let reason = self.broker.with(|state| state.opened());
        reason.err().unwrap_or_else(|| Error::Unavailable("the log is shutting down".into()))
    }

    /// Hands work to the writer and waits for the answer. Dropped while it waits, the work may be done or not.
    async fn ask(&self, work: Work) -> Result<Positions, Error> {
        let (reply, answer) = oneshot::channel();
        let bytes = work.bytes();
        self.work
            .push(bytes, |room| Job { work, answer: Answer { reply, _room: room } })
            .await
            .map_err(|Closed| self.why_closed())?;
        answer.await.map_err(|_| Error::Unknown("the log ended meanwhile".into()))?
    }
}

#[async_trait]
impl Depths for Inner {
    fn broker(&self) -> &Broker {
        &self.broker
    }

    async fn settle(&self) -> Result<(), Error> {
        self.ask(Work::Settle).await.map(drop)
    }

    async fn read_cold(&self, id: LaneId, from: Offset, until: Offset, max_bytes: usize) -> Result<Fetched, Error> {
        let (reply, answer) = oneshot::channel();
        self.reads
            .push(0, |_| ReadJob { id, from, until, max_bytes, reply })
            .await
            .map_err(|Closed| self.why_closed())?;
        let read = answer.await.map_err(|_| self.why_closed())?;
        // It may have been trimmed since it was asked for.
        self.broker.with(|state| state.lane(id)?.check(id, from))?;
        read
    }
}

#[async_trait]
impl Log for EmbeddedLog {
    async fn create(&self, partitions: u32) -> Result<(), Error> {
        if partitions > PARTITIONS_MAX {
            return Err(Error::Broken(format!("{partitions} partitions are too many: at most {PARTITIONS_MAX}")));
        }
        self.inner.ask(Work::Create(partitions)).await.map(drop)
    }

    fn partitions(&self) -> u32 {
        self.inner.broker.with(|state| state.partitions)
    }

    async fn append(&self, topic: Topic, partition: Partition, records: Vec<Record>) -> Result<Offset, Error> {
        let id = (topic, partition);
        if !topic.is_durable() {
            tokio::task::consume_budget().await;
            return self.inner.broker.with(|state| state.append_volatile(id, records));
        }
        let ends = self.inner.ask(Work::Append(id, records)).await?;
        ends.first().map(|(_, _, end)| *end).ok_or_else(|| Error::Broken("an append without an answer".into()))
    }

    async fn producer(&self, transactional_id: &str) -> Result<Box<dyn Producer>, Error> {
        let fence = self.inner.broker.with(|state| state.producer(transactional_id))?;
        // What an older producer has under way was admitted before this or will not be: wait for the former.
        self.inner.settle().await?;
        Ok(Box::new(EmbeddedProducer { inner: Arc::clone(&self.inner), fence, under_way: false }))
    }

    async fn consumer(&self, group: &str, topics: &[Topic]) -> Result<Box<dyn Consumer>, Error> {
        let depths: Arc<dyn Depths> = Arc::clone(&self.inner) as _;
        Ok(Box::new(Member::join(depths, group, topics)?))
    }

    async fn read(&self, topic: Topic, partition: Partition, from: Offset, max_bytes: usize) -> Result<Fetched, Error> {
        broker::read(&*self.inner, (topic, partition), from, max_bytes).await
    }

    async fn start(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.inner.broker.with(|state| state.opened().and_then(|()| Ok(state.lane((topic, partition))?.start)))
    }

    async fn end(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.inner.broker.with(|state| state.opened().and_then(|()| Ok(state.lane((topic, partition))?.end)))
    }

    async fn committed(&self, group: &str, topic: Topic, partition: Partition) -> Result<Option<Offset>, Error> {
        self.inner.broker.with(|state| state.committed(group, (topic, partition)))
    }

    async fn trim(&self, topic: Topic, partition: Partition, before: Offset) -> Result<(), Error> {
        let id = (topic, partition);
        if topic.is_durable() {
            return self.inner.ask(Work::Trim(id, before)).await.map(drop);
        }
        self.inner.broker.with(|state| {
            state.opened()?;
            state.lane_mut(id)?.trim(before);
            Ok(())
        })
    }
}

struct EmbeddedProducer {
    inner: Arc<Inner>,
    fence: Fence,
    /// A commit was begun and its answer not heard.
    under_way: bool,
}

#[async_trait]
impl Producer for EmbeddedProducer {
    async fn commit(&mut self, transaction: Transaction) -> Result<Positions, Error> {
        if self.under_way {
            return Err(Error::Unknown("the commit before this one was abandoned".into()));
        }
        let volatile = transaction.records.iter().all(|(topic, ..)| !topic.is_durable())
            && transaction.consumed.iter().flat_map(|(_, positions)| positions).all(|(topic, ..)| !topic.is_durable());
        if volatile {
            // Nothing of it must survive a crash: all of it is done here, without the disk.
            tokio::task::consume_budget().await;
            return self.inner.broker.with(|state| {
                state.admit(&self.fence, &transaction)?;
                state.apply(transaction)
            });
        }
        self.under_way = true;
        let answer = self.inner.ask(Work::Commit(self.fence.clone(), transaction)).await;
        self.under_way = false;
        answer
    }
}

impl Work {
    /// What it takes of the queue's room.
    fn bytes(&self) -> usize {
        match self {
            Self::Append(_, records) => records.iter().map(size_of_record).sum(),
            Self::Commit(_, transaction) => {
                transaction.records.iter().map(|(_, _, record)| size_of_record(record)).sum()
            }
            Self::Create(_) | Self::Trim(..) | Self::Settle => 0,
        }
    }
}
