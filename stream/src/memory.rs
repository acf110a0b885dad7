//! The engine in memory, for tests and simulation: every law but that it forgets all when dropped. What a crash of a
//! process would leave of a log on disk it leaves by [`MemoryLog::crash`]. Starts no thread and reads no clock.

use std::sync::Arc;

use async_trait::async_trait;
use schemas::{Offset, Partition, Topic};

use crate::broker::{self, Broker, Depths, Fence, LaneId, Member, State, VOLATILE_MAX_BYTES};
use crate::{Consumer, Error, Fetched, GroupMember, Log, Producer, Record, Transaction};

/// The engine in memory. A clone is another handle of the same log.
#[derive(Clone)]
pub struct MemoryLog {
    depths: Arc<Memory>,
}

struct Memory {
    broker: Broker,
}

impl Default for MemoryLog {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryLog {
    /// An empty log without partitions.
    pub fn new() -> Self {
        Self::bounded(VOLATILE_MAX_BYTES)
    }

    /// An empty log whose volatile topics hold at most `volatile_max_bytes` together.
    pub fn bounded(volatile_max_bytes: usize) -> Self {
        Self::around(State::new(1, volatile_max_bytes))
    }

    /// Ends this log as a crash would, for all its handles, producers and consumers, which get `Unavailable` from now
    /// on; the log that a new process would find.
    pub fn crash(&self) -> Self {
        Self::around(self.depths.broker.with(State::crash))
    }

    /// Ends a membership, as a group's coordinator does when a member has been silent for too long. The member hears of
    /// it when it polls next.
    pub fn expel(&self, member: &GroupMember) {
        self.depths.broker.with(|state| state.leave(&member.group, member.member));
    }

    fn around(state: State) -> Self {
        Self { depths: Arc::new(Memory { broker: Broker::new(state) }) }
    }
}

#[async_trait]
impl Depths for Memory {
    fn broker(&self) -> &Broker {
        &self.broker
    }

    async fn settle(&self) -> Result<(), Error> {
        Ok(()) // A commit is one step under the lock: none is ever on its way.
    }

    async fn read_cold(&self, lane: LaneId, from: Offset, _: Offset, _: usize) -> Result<Fetched, Error> {
        Err(Error::Broken(format!("offset {from} of {}/{} is not in memory", lane.0, lane.1)))
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn create(&self, partitions: u32) -> Result<(), Error> {
        self.depths.broker.with(|state| state.create(partitions, usize::MAX))
    }

    fn partitions(&self) -> u32 {
        self.depths.broker.with(|state| state.partitions)
    }

    async fn append(&self, topic: Topic, partition: Partition, records: Vec<Record>) -> Result<Offset, Error> {
        tokio::task::consume_budget().await;
        self.depths.broker.with(|state| {
            state.opened()?;
            if topic.is_durable() {
                state.append((topic, partition), records)
            } else {
                state.append_volatile((topic, partition), records)
            }
        })
    }

    async fn producer(&self, transactional_id: &str) -> Result<Box<dyn Producer>, Error> {
        let fence = self.depths.broker.with(|state| state.producer(transactional_id))?;
        Ok(Box::new(MemoryProducer { depths: Arc::clone(&self.depths), fence }))
    }

    async fn consumer(&self, group: &str, topics: &[Topic]) -> Result<Box<dyn Consumer>, Error> {
        let depths: Arc<dyn Depths> = Arc::clone(&self.depths) as _;
        Ok(Box::new(Member::join(depths, group, topics)?))
    }

    async fn read(&self, topic: Topic, partition: Partition, from: Offset, max_bytes: usize) -> Result<Fetched, Error> {
        broker::read(&*self.depths, (topic, partition), from, max_bytes).await
    }

    async fn start(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.depths.broker.with(|state| state.opened().and_then(|()| Ok(state.lane((topic, partition))?.start)))
    }

    async fn end(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.depths.broker.with(|state| state.opened().and_then(|()| Ok(state.lane((topic, partition))?.end)))
    }

    async fn committed(&self, group: &str, topic: Topic, partition: Partition) -> Result<Option<Offset>, Error> {
        self.depths.broker.with(|state| state.committed(group, (topic, partition)))
    }

    async fn trim(&self, topic: Topic, partition: Partition, before: Offset) -> Result<(), Error> {
        self.depths.broker.with(|state| {
            state.opened()?;
            state.lane_mut((topic, partition))?.trim(before);
            Ok(())
        })
    }
}

struct MemoryProducer {
    depths: Arc<Memory>,
    fence: Fence,
}

#[async_trait]
impl Producer for MemoryProducer {
    async fn commit(&mut self, transaction: Transaction) -> Result<Vec<(Topic, Partition, Offset)>, Error> {
        tokio::task::consume_budget().await;
        self.depths.broker.with(|state| {
            state.admit(&self.fence, &transaction)?;
            state.apply(transaction)
        })
    }
}
