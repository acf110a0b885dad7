//! Lies between ingest and the log: notes when records first come and what is committed when, and where that is asked for,
//! makes of each transaction what one would do without: the same records by an idempotent producer with the same
//! `acks=all`, and when they are delivered the consumed positions as a plain commit of the group. What is lost by that is
//! what transactions are for; it is a measure and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use schemas::{Offset, Partition, Topic};
use stream::{Consumer, Error, Fetched, GroupMember, Log, Polled, Positions, Producer, Record, Transaction};
use tokio::sync::watch;
use tokio::time::Instant;

/// How what ingest decides gets into the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As it is.
    Transactions,
    /// Without them.
    Plain,
}

/// What has been seen to go by.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// When the first commands came.
    pub first: Option<Instant>,
    /// When the last commit was answered.
    pub last: Option<Instant>,
    /// Commits so far.
    pub commits: u64,
    /// Positions of commands that they covered.
    pub commands: u64,
}

/// The log as ingest has it here.
pub struct Between {
    log: Arc<dyn Log>,
    mode: Mode,
    shared: Arc<Shared>,
}

struct Shared {
    seen: watch::Sender<Seen>,
    /// Waits for the consumer, which alone can commit it.
    consumed: Mutex<Positions>,
    /// Where each partition's commands were committed to.
    at: Mutex<BTreeMap<Partition, Offset>>,
}

impl Between {
    /// A log, as ingest shall have it.
    pub fn new(log: Arc<dyn Log>, mode: Mode) -> Self {
        let shared = Shared { seen: watch::Sender::default(), consumed: Mutex::default(), at: Mutex::default() };
        Self { log, mode, shared: Arc::new(shared) }
    }

    /// What has been seen, as it changes.
    pub fn seen(&self) -> watch::Receiver<Seen> {
        self.shared.seen.subscribe()
    }
}

#[async_trait]
impl Log for Between {
    async fn create(&self, partitions: u32) -> Result<(), Error> {
        self.log.create(partitions).await
    }

    fn partitions(&self) -> u32 {
        self.log.partitions()
    }

    async fn append(&self, topic: Topic, partition: Partition, records: Vec<Record>) -> Result<Offset, Error> {
        self.log.append(topic, partition, records).await
    }

    async fn producer(&self, transactional_id: &str) -> Result<Box<dyn Producer>, Error> {
        let producer = match self.mode {
            Mode::Transactions => Some(self.log.producer(transactional_id).await?),
            Mode::Plain => None,
        };
        Ok(Box::new(Watched { producer, log: self.log.clone(), shared: self.shared.clone() }))
    }

    async fn consumer(&self, group: &str, topics: &[Topic]) -> Result<Box<dyn Consumer>, Error> {
        Ok(Box::new(Reading { consumer: self.log.consumer(group, topics).await?, shared: self.shared.clone() }))
    }

    async fn read(&self, topic: Topic, partition: Partition, from: Offset, max_bytes: usize) -> Result<Fetched, Error> {
        self.log.read(topic, partition, from, max_bytes).await
    }

    async fn start(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.log.start(topic, partition).await
    }

    async fn end(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.log.end(topic, partition).await
    }

    async fn committed(&self, group: &str, topic: Topic, partition: Partition) -> Result<Option<Offset>, Error> {
        self.log.committed(group, topic, partition).await
    }

    async fn trim(&self, topic: Topic, partition: Partition, before: Offset) -> Result<(), Error> {
        self.log.trim(topic, partition, before).await
    }
}

struct Watched {
    /// `None` without transactions.
    producer: Option<Box<dyn Producer>>,
    log: Arc<dyn Log>,
    shared: Arc<Shared>,
}

#[async_trait]
impl Producer for Watched {
    async fn commit(&mut self, transaction: Transaction) -> Result<Positions, Error> {
        let consumed = transaction.consumed.as_ref().map(|(_, positions)| positions.clone()).unwrap_or_default();
        let ends = match &mut self.producer {
            Some(producer) => producer.commit(transaction).await?,
            None => {
                let ends = append(self.log.as_ref(), transaction.records).await?;
                self.shared.consumed.lock().extend(consumed.iter().copied());
                ends
            }
        };
        let mut commands = 0;
        let mut at = self.shared.at.lock();
        for (_, partition, to) in consumed {
            let from = at.insert(partition, to).unwrap_or_default();
            commands += to.0.saturating_sub(from.0);
        }
        drop(at);
        self.shared.seen.send_modify(|seen| {
            seen.last = Some(Instant::now());
            seen.commits += 1;
            seen.commands += commands;
        });
        Ok(ends)
    }
}

/// Appends to all partitions side by side, as one producer does by itself.
async fn append(log: &dyn Log, records: Vec<(Topic, Partition, Record)>) -> Result<Positions, Error> {
    let mut lanes: BTreeMap<(Topic, Partition), Vec<Record>> = BTreeMap::new();
    for (topic, partition, record) in records {
        lanes.entry((topic, partition)).or_default().push(record);
    }
    let appends = lanes.into_iter().map(|((topic, partition), records)| async move {
        Ok((topic, partition, log.append(topic, partition, records).await?))
    });
    try_join_all(appends).await
}

struct Reading {
    consumer: Box<dyn Consumer>,
    shared: Arc<Shared>,
}

#[async_trait]
impl Consumer for Reading {
    async fn poll(&mut self) -> Result<Polled, Error> {
        let consumed = self.shared.consumed.lock().clone();
        if !consumed.is_empty() {
            let count = consumed.len();
            self.consumer.commit(consumed).await?;
            self.shared.consumed.lock().drain(..count);
        }
        let polled = self.consumer.poll().await?;
        if matches!(polled, Polled::Records(_)) {
            let is_first = |seen: &mut Seen| seen.first.is_none() && seen.first.replace(Instant::now()).is_none();
            self.shared.seen.send_if_modified(is_first);
        }
        Ok(polled)
    }

    fn member(&self) -> GroupMember {
        self.consumer.member()
    }

    fn seek(&mut self, topic: Topic, partition: Partition, to: Offset) {
        self.consumer.seek(topic, partition, to);
    }

    async fn commit(&mut self, positions: Positions) -> Result<(), Error> {
        self.consumer.commit(positions).await
    }
}
