//! The engine on a Kafka cluster, through librdkafka. The only place that names rdkafka in this crate. Calls that block
//! run on threads of the engine, never on those of the caller's runtime.
//!
//! How the laws hold here: order, durability and fencing are Kafka's own (idempotent producers with `acks=all`,
//! `min.insync.replicas`, epochs of transactional ids). A transaction is decided in one step, but its markers reach one
//! partition after the other: for a moment a reader may see it in one topic and not yet in another. `read` and `end` wait
//! for those of the transactions that this process was answered `Ok`; another process sees them a moment later. Every topic is durable and none is bounded but by its
//! retention, so nothing is ever refused as full.

mod appender;
mod client;
mod member;
mod reader;
mod topics;
mod transactions;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{Offset, Partition, Topic};
use tokio::time::{Instant, sleep};

use self::appender::Appender;
/// For who measures brokers beside this engine: its clients' own settings.
pub use self::client::{consumer_settings, producer_settings};
use self::member::{Admitted, Known, Member};
use self::reader::{Committed, Ends, Readers};
use self::topics::Admin;
pub use self::topics::TopicState;
use self::transactions::KafkaProducer;
use crate::broker::LaneId;
use crate::{Consumer, Error, Fetched, GroupMember, Log, Producer, Record};

/// A cluster that has not answered by then is not available: longer than a broker's failover.
const PATIENCE: Duration = Duration::from_secs(20);

/// How members of a group find out whose a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The broker decides and moves only what has to move (KIP-848). How soon it gives up a silent member is the
    /// broker's setting.
    Consumer,
    /// The members decide, and each change takes every partition from everyone for a moment.
    Classic,
}

/// Settings of the engine.
#[derive(Clone)]
pub struct Config {
    /// Where to begin: `host:port,…`.
    pub bootstrap: String,
    /// Before the name of each topic, group and transactional id: several deployments can share a cluster.
    pub prefix: String,
    /// Copies of each partition.
    pub replication: i32,
    /// Copies that must have a record before it counts.
    pub min_in_sync: u32,
    /// How long records are kept.
    pub kept: Duration,
    /// PEM file with who may have signed the brokers' certificates; without it there is no TLS.
    pub ca: Option<PathBuf>,
    /// PEM files of our own certificate and its key, where brokers want one.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Name and password for SCRAM-SHA-512.
    pub user: Option<(String, String)>,
    /// How groups are kept.
    pub protocol: Protocol,
    /// After this a transaction that its producer has left open is ended by the broker. Readers of its partitions wait
    /// for it.
    pub transaction_timeout: Duration,
    /// How long an append may take before its outcome is unknown.
    pub append_timeout: Duration,
    /// Transactional ids that one producer uses in turn.
    pub instances: usize,
    /// Clients for reading outside of groups.
    pub readers: usize,
}

impl Config {
    /// As shipped, for a cluster of three or more brokers.
    pub fn new(bootstrap: impl Into<String>) -> Self {
        Self {
            bootstrap: bootstrap.into(),
            prefix: String::new(),
            replication: 3,
            min_in_sync: 2,
            kept: Duration::from_secs(7 * 24 * 60 * 60),
            ca: None,
            certificate: None,
            user: None,
            protocol: Protocol::Consumer,
            transaction_timeout: Duration::from_secs(10),
            append_timeout: schemas::limits::COMMAND_DEADLINE,
            instances: 3,
            readers: 2,
        }
    }

    fn named(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn topic(&self, topic: Topic) -> String {
        self.named(topic.name())
    }
}

/// The engine.
pub struct KafkaLog {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    partitions: AtomicU32,
    admin: Admin,
    appender: Appender,
    readers: Arc<Readers>,
    ends: Arc<Ends>,
    committed: Mutex<HashMap<String, Arc<Committed>>>,
    members: Mutex<HashMap<u64, Known>>,
    members_so_far: AtomicU64,
    /// Positions after transactions that were answered `Ok`, by partition: law 6.
    promised: Mutex<HashMap<LaneId, Offset>>,
}

impl KafkaLog {
    /// Connects, and looks at the topics that are there: `partitions` says 0 until all of them are.
    ///
    /// # Errors
    /// `Unavailable` where no broker answers, `Broken` where settings are wrong, something is forbidden, or topics do
    /// not have the same number of partitions.
    pub async fn connect(config: Config) -> Result<Self, Error> {
        let inner = Arc::new(Inner {
            admin: Admin::new(&config)?,
            appender: Appender::new(&config)?,
            readers: Arc::new(Readers::new(&config)?),
            ends: Arc::new(Ends::new(&config)?),
            partitions: AtomicU32::new(0),
            committed: Mutex::default(),
            members: Mutex::default(),
            members_so_far: AtomicU64::new(0),
            promised: Mutex::default(),
            config,
        });
        let found = inner.readers.partitions().await?;
        inner.partitions.store(found.unwrap_or(0), Ordering::Release);
        Ok(Self { inner })
    }

    /// The topics that are there, with what they have and what our settings say. For whoever made them.
    ///
    /// # Errors
    /// `Unavailable` where the brokers don't answer, `Broken` where they forbid it.
    pub async fn topics(&self) -> Result<Vec<TopicState>, Error> {
        let until = Instant::now() + PATIENCE;
        let has_all = self.inner.partitions.load(Ordering::Acquire) > 0;
        loop {
            let shapes = self.inner.readers.metadata(topics::shapes).await?;
            // Of what was created just now not every broker has heard, nor has whoever is asked next.
            let described = if has_all && shapes.len() < Topic::ALL.len() {
                Err(Error::Unavailable("the topics were created and have not appeared".into()))
            } else {
                self.inner.admin.describe(&self.inner.config, shapes).await
            };
            match described {
                Err(Error::Unavailable(_)) if Instant::now() < until => sleep(Duration::from_millis(100)).await,
                described => return described,
            }
        }
    }
}

impl Inner {
    fn check(&self, topic: Topic, partition: Partition) -> Result<(), Error> {
        let partitions = self.partitions.load(Ordering::Acquire);
        if partition.0 < partitions {
            Ok(())
        } else {
            Err(Error::Broken(format!("there is no partition {partition} of {topic}, only {partitions}")))
        }
    }

    fn enter(&self, member: Known) -> u64 {
        let id = self.members_so_far.fetch_add(1, Ordering::AcqRel) + 1;
        self.members.lock().insert(id, member);
        id
    }

    fn leave(&self, member: u64) {
        self.members.lock().remove(&member);
    }

    fn admit(&self, member: &GroupMember, positions: &[(Topic, Partition, Offset)]) -> Result<Admitted, Error> {
        self.members.lock().get(&member.member).ok_or(Error::Fenced)?.admit(member, positions)
    }

    fn promised(&self, topic: Topic, partition: Partition) -> Offset {
        self.promised.lock().get(&(topic, partition)).copied().unwrap_or_default()
    }

    async fn wait_for_markers(&self, topic: Topic, at: Partition, to: Offset, until: Instant) -> Result<(), Error> {
        if Instant::now() >= until {
            return Err(Error::Unavailable(format!("{topic}/{at} is committed to {to} and not shown so far")));
        }
        sleep(Duration::from_millis(2)).await;
        Ok(())
    }

    fn promise(&self, ends: &[(Topic, Partition, Offset)]) {
        let mut promised = self.promised.lock();
        for (topic, partition, end) in ends {
            let known = promised.entry((*topic, *partition)).or_default();
            *known = (*known).max(*end);
        }
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn create(&self, partitions: u32) -> Result<(), Error> {
        if partitions == 0 {
            return Err(Error::Broken("a topic needs at least one partition".into()));
        }
        let until = Instant::now() + PATIENCE;
        let mut has_created = false;
        loop {
            match self.inner.readers.partitions().await? {
                Some(found) if found == partitions => {
                    self.inner.partitions.store(found, Ordering::Release);
                    return Ok(());
                }
                Some(found) if found != 0 => {
                    return Err(Error::Broken(format!(
                        "the topics have {found} partitions and the settings say {partitions}: the count is fixed for ever, \
                         set it back"
                    )));
                }
                // Some are there, or none: or the brokers have not all heard yet of what was created.
                _ if !has_created => {
                    self.inner.admin.create(&self.inner.config, partitions).await?;
                    has_created = true;
                }
                _ if Instant::now() >= until => {
                    return Err(Error::Unavailable("the topics were created and have not appeared".into()));
                }
                _ => sleep(Duration::from_millis(20)).await,
            }
        }
    }

    fn partitions(&self) -> u32 {
        self.inner.partitions.load(Ordering::Acquire)
    }

    async fn append(&self, topic: Topic, partition: Partition, records: Vec<Record>) -> Result<Offset, Error> {
        self.inner.check(topic, partition)?;
        if records.is_empty() {
            return self.end(topic, partition).await;
        }
        let end = self.inner.appender.append(&self.inner.config.topic(topic), partition, records).await?;
        self.inner.promise(&[(topic, partition, end)]);
        Ok(end)
    }

    async fn producer(&self, transactional_id: &str) -> Result<Box<dyn Producer>, Error> {
        Ok(Box::new(KafkaProducer::start(Arc::clone(&self.inner), transactional_id).await?))
    }

    async fn consumer(&self, group: &str, topics: &[Topic]) -> Result<Box<dyn Consumer>, Error> {
        Ok(Box::new(Member::join(Arc::clone(&self.inner), group, topics).await?))
    }

    async fn read(&self, topic: Topic, partition: Partition, from: Offset, max_bytes: usize) -> Result<Fetched, Error> {
        self.inner.check(topic, partition)?;
        let promised = self.inner.promised(topic, partition);
        let until = Instant::now() + PATIENCE;
        loop {
            let fetched = self.inner.readers.read((topic, partition), from, max_bytes).await?;
            if fetched.next > from || from >= promised {
                return Ok(fetched);
            }
            self.inner.wait_for_markers(topic, partition, promised, until).await?;
        }
    }

    async fn start(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.inner.check(topic, partition)?;
        Ok(self.inner.readers.extent((topic, partition)).await?.0)
    }

    async fn end(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.inner.check(topic, partition)?;
        let promised = self.inner.promised(topic, partition);
        let until = Instant::now() + PATIENCE;
        loop {
            let end = self.inner.ends.of((topic, partition)).await?;
            if end >= promised {
                return Ok(end);
            }
            self.inner.wait_for_markers(topic, partition, promised, until).await?;
        }
    }

    async fn committed(&self, group: &str, topic: Topic, partition: Partition) -> Result<Option<Offset>, Error> {
        self.inner.check(topic, partition)?;
        let members: Vec<_> = {
            let members = self.inner.members.lock();
            members.values().filter(|known| known.group == group).map(|known| Arc::clone(&known.shared)).collect()
        };
        for member in members {
            member.settled().await;
        }
        let asking = {
            let mut committed = self.inner.committed.lock();
            match committed.get(group) {
                Some(asking) => Arc::clone(asking),
                None => {
                    let asking = Arc::new(Committed::new(&self.inner.config, group)?);
                    committed.insert(group.to_owned(), Arc::clone(&asking));
                    asking
                }
            }
        };
        let inner = Arc::clone(&self.inner);
        let asked = tokio::task::spawn_blocking(move || asking.ask(&inner.config, topic, partition));
        asked.await.map_err(|_| Error::Unavailable("shutting down".into()))?
    }

    async fn trim(&self, topic: Topic, partition: Partition, before: Offset) -> Result<(), Error> {
        self.inner.check(topic, partition)?;
        let (start, end) = self.inner.readers.extent((topic, partition)).await?;
        let before = before.min(end);
        if before <= start {
            return Ok(());
        }
        self.inner.admin.trim(&self.inner.config.topic(topic), partition, before).await
    }
}

/// Kafka's numbers are signed; what is beyond them is beyond every log too.
fn to_raw(offset: Offset) -> i64 {
    i64::try_from(offset.0).unwrap_or(i64::MAX)
}

/// Below 0 are librdkafka's words for places that have no number, which are dealt with before.
fn from_raw(offset: i64) -> Offset {
    Offset(u64::try_from(offset).unwrap_or(0))
}

fn index(partition: Partition) -> i32 {
    i32::try_from(partition.0).unwrap_or(i32::MAX)
}

fn partition(index: i32) -> Option<Partition> {
    u32::try_from(index).ok().map(Partition)
}
