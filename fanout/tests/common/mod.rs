//! What both suites share: records by number, a clock that the test moves, and a worker on a log in memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use fanout::{Config, Deps, Handle, Metrics};
use schemas::message::{Content, Message};
use schemas::outcome::Outcome;
use schemas::{
    Clock, CommandId, EdgeId, Event, EventId, EventKind, Offset, Partition, Record, ReplyTo, RoomId, Seq, SessionId,
    Timestamp, Topic, UserId,
};
use stream::memory::MemoryLog;
use stream::{Consumer, Error, Fetched, GroupMember, Log, Polled, Producer};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

/// Time that stands still until it is moved.
#[derive(Default)]
pub struct StillClock(pub AtomicI64);

impl Clock for StillClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.micros() / 1_000)
    }
    fn micros(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
    fn elapsed(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.micros()).unwrap_or(0))
    }
}

/// A running worker.
pub struct Running {
    pub handle: Arc<Handle>,
    pub registry: prometheus::Registry,
    task: JoinHandle<Result<(), stream::Error>>,
    stop: watch::Sender<bool>,
}

impl Running {
    pub fn start(log: Arc<dyn Log>) -> Self {
        let registry = prometheus::Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        let deps = Deps { log, clock: Arc::new(StillClock::default()) };
        let (handle, worker) = fanout::new(deps, Config::default(), metrics);
        let (stop, stopped) = watch::channel(false);
        Self { handle, registry, task: tokio::spawn(worker.run(stopped)), stop }
    }

    /// In order, or as a crash would.
    pub async fn end(self, crash: bool) {
        if crash {
            self.task.abort();
            assert!(self.task.await.unwrap_err().is_cancelled());
        } else {
            self.stop.send(true).unwrap();
            self.task.await.unwrap().unwrap();
        }
    }

    /// A counter's value.
    pub fn count(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        family.get_metric()[0].get_counter().get_value()
    }
}

/// A log whose consumers get one record at a time, with others running in between: what lies between two records
/// then takes as long as it may in life.
pub struct Trickle(pub MemoryLog);

#[async_trait]
impl Log for Trickle {
    async fn create(&self, partitions: u32) -> Result<(), Error> {
        self.0.create(partitions).await
    }
    fn partitions(&self) -> u32 {
        self.0.partitions()
    }
    async fn append(&self, topic: Topic, partition: Partition, records: Vec<stream::Record>) -> Result<Offset, Error> {
        self.0.append(topic, partition, records).await
    }
    async fn producer(&self, transactional_id: &str) -> Result<Box<dyn Producer>, Error> {
        self.0.producer(transactional_id).await
    }
    async fn consumer(&self, group: &str, topics: &[Topic]) -> Result<Box<dyn Consumer>, Error> {
        Ok(Box::new(TrickleConsumer { inner: self.0.consumer(group, topics).await?, waiting: VecDeque::new() }))
    }
    async fn read(&self, topic: Topic, partition: Partition, from: Offset, max_bytes: usize) -> Result<Fetched, Error> {
        self.0.read(topic, partition, from, max_bytes).await
    }
    async fn start(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.0.start(topic, partition).await
    }
    async fn end(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.0.end(topic, partition).await
    }
    async fn committed(&self, group: &str, topic: Topic, partition: Partition) -> Result<Option<Offset>, Error> {
        self.0.committed(group, topic, partition).await
    }
    async fn trim(&self, topic: Topic, partition: Partition, before: Offset) -> Result<(), Error> {
        self.0.trim(topic, partition, before).await
    }
}

struct TrickleConsumer {
    inner: Box<dyn Consumer>,
    waiting: VecDeque<Fetched>,
}

#[async_trait]
impl Consumer for TrickleConsumer {
    async fn poll(&mut self) -> Result<Polled, Error> {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        while self.waiting.is_empty() {
            match self.inner.poll().await? {
                Polled::Records(fetched) => {
                    for Fetched { topic, partition, mut from, records, .. } in fetched {
                        for placed in records.iter() {
                            let next = Offset(placed.offset.0 + 1);
                            let records = Arc::from([placed.clone()]);
                            self.waiting.push_back(Fetched { topic, partition, from, next, records });
                            from = next;
                        }
                    }
                }
                Polled::Revoked(partitions) => {
                    self.waiting.retain(|fetched| !partitions.contains(&fetched.partition));
                    return Ok(Polled::Revoked(partitions));
                }
                assigned @ Polled::Assigned { .. } => return Ok(assigned),
            }
        }
        Ok(Polled::Records(self.waiting.pop_front().into_iter().collect()))
    }
    fn member(&self) -> GroupMember {
        self.inner.member()
    }
    fn seek(&mut self, topic: Topic, partition: Partition, to: Offset) {
        self.waiting.retain(|fetched| (fetched.topic, fetched.partition) != (topic, partition));
        self.inner.seek(topic, partition, to);
    }
    async fn commit(&mut self, positions: Vec<(Topic, Partition, Offset)>) -> Result<(), Error> {
        self.inner.commit(positions).await
    }
}

pub fn edge_id(n: usize) -> EdgeId {
    EdgeId(Uuid::from_u128(n as u128))
}

pub fn reply_to(edge: EdgeId) -> ReplyTo {
    ReplyTo { edge, session: SessionId::NIL }
}

pub fn event(room: RoomId, seq: u64, reply_to: Option<ReplyTo>) -> Event {
    Event {
        room,
        seq: Seq(seq),
        id: EventId(Uuid::from_u128(u128::from(seq))),
        at: Timestamp(0),
        by: UserId::NIL,
        command: CommandId(Uuid::from_u128(u128::from(seq))),
        reply_to,
        received_us: 0,
        decided_us: 0,
        salt: [0; 16],
        hash: [0; 32],
        kind: EventKind::Message(Message { content: Content::text("hello"), reply_to: None }),
    }
}

pub fn outcome(room: RoomId, n: u128, edge: EdgeId) -> Outcome {
    Outcome {
        room,
        user: UserId::NIL,
        command: CommandId(Uuid::from_u128(n)),
        reply_to: reply_to(edge),
        received_us: 0,
        done: None,
        rejected: None,
    }
}

/// Appends one record; the position after it.
pub async fn append(log: &dyn Log, topic: Topic, key: &[u8; 16], value: Bytes) -> Offset {
    let partition = Partition::of(key, log.partitions());
    log.append(topic, partition, vec![stream::Record { key: *key, value }]).await.unwrap()
}

pub async fn append_event(log: &dyn Log, event: &Event) -> Offset {
    append(log, Topic::Events, event.room.as_bytes(), event.encode()).await
}
