//! What the engines share: the partitions' newest records in memory, groups, fencing, and waking whoever waits. All of
//! it stands under one lock, so that a transaction becomes visible in one step (law 3). It does no I/O: the memory
//! engine is this and nothing else; the embedded one puts a database beneath it.

mod group;
mod lane;
mod member;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{Offset, Partition, Topic};
use tokio::sync::Notify;

pub(crate) use self::group::Group;
pub(crate) use self::lane::{Batch, Lane, size_of_record};
pub(crate) use self::member::Member;
use crate::{Error, Fetched, GroupMember, Record, Transaction};

/// One partition of one topic.
pub(crate) type LaneId = (Topic, Partition);

/// Bound of the volatile topics together, bytes (I9).
pub(crate) const VOLATILE_MAX_BYTES: usize = 64 * 1024 * 1024;

/// What lies beneath the broker.
#[async_trait]
pub(crate) trait Depths: Send + Sync + 'static {
    /// The broker above.
    fn broker(&self) -> &Broker;
    /// Returns once every transaction handed in before this call is decided, and visible if it was committed.
    async fn settle(&self) -> Result<(), Error>;
    /// Reads what memory no longer holds: records of `from..until`, at least one.
    async fn read_cold(&self, lane: LaneId, from: Offset, until: Offset, max_bytes: usize) -> Result<Fetched, Error>;
}

/// `Log::read` for every engine.
pub(crate) async fn read(depths: &dyn Depths, id: LaneId, from: Offset, max_bytes: usize) -> Result<Fetched, Error> {
    // Everything may be ready at once: without this a reader's loop would starve a runtime of one thread.
    tokio::task::consume_budget().await;
    let (hot, until) = depths.broker().with(|state| {
        state.opened()?;
        let lane = state.lane(id)?;
        lane.check(id, from)?;
        Ok::<_, Error>((lane.fetch(id, from, max_bytes), lane.end))
    })?;
    match hot {
        Some(fetched) => Ok(fetched),
        None => depths.read_cold(id, from, until, max_bytes).await,
    }
}

/// A transaction's records by partition, in order within each.
pub(crate) fn by_lane(records: Vec<(Topic, Partition, Record)>) -> BTreeMap<LaneId, Vec<Record>> {
    let mut lanes: BTreeMap<LaneId, Vec<Record>> = BTreeMap::new();
    for (topic, partition, record) in records {
        lanes.entry((topic, partition)).or_default().push(record);
    }
    lanes
}

/// A producer's right to commit.
#[derive(Clone, Debug)]
pub(crate) struct Fence {
    /// Which id.
    pub transactional_id: Arc<str>,
    /// The newest epoch of an id alone may commit.
    pub epoch: u64,
}

/// The state that the engines share, and its lock.
pub(crate) struct Broker {
    state: Mutex<State>,
}

impl Broker {
    /// Around what an engine has found at its start.
    pub(crate) fn new(state: State) -> Self {
        Self { state: Mutex::new(state) }
    }

    /// Runs `work` under the lock, then wakes whom it gave news to: a wake-up can be neither forgotten nor cost time
    /// under the lock.
    pub(crate) fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let result = work(&mut state);
        let woken = std::mem::take(&mut state.woken);
        drop(state);
        for waiting in woken {
            waiting.notify_one();
        }
        result
    }
}

/// What stands under the broker's lock.
pub(crate) struct State {
    /// Partitions of each topic; 0 until created.
    pub(crate) partitions: u32,
    /// By topic, then partition.
    lanes: Vec<Lane>,
    /// By name; also those without members, for their offsets.
    pub(crate) groups: HashMap<String, Group>,
    /// Newest epoch by transactional id. In memory alone is enough: all producers live in this process, which holds
    /// the directory's lock, so none of them outlives it.
    producers: HashMap<Arc<str>, u64>,
    /// Times that this log has been started: the high half of every epoch, so that epochs rise over restarts.
    starts: u64,
    /// Members so far: they are named by it.
    members: u64,
    /// Bound of what is kept in memory of each durable partition, bytes.
    tail_max_bytes: usize,
    /// Bound of the volatile topics together, bytes.
    volatile_max_bytes: usize,
    /// Offsets of durable topics committed outside transactions since the engine last asked.
    pub(crate) unsaved: HashMap<(String, LaneId), Offset>,
    /// Why nothing works any more.
    closed: Option<Error>,
    /// Who has news, to be told once the lock is free.
    woken: Vec<Arc<Notify>>,
}

impl State {
    /// An empty log at its `starts`-th start.
    pub(crate) fn new(starts: u64, volatile_max_bytes: usize) -> Self {
        Self {
            partitions: 0,
            lanes: Vec::new(),
            groups: HashMap::new(),
            producers: HashMap::new(),
            starts,
            members: 0,
            tail_max_bytes: usize::MAX,
            volatile_max_bytes,
            unsaved: HashMap::new(),
            closed: None,
            woken: Vec::new(),
        }
    }

    /// Whether there may be so many partitions.
    pub(crate) fn may_create(&self, partitions: u32) -> Result<(), Error> {
        self.opened()?;
        if partitions == 0 {
            return Err(Error::Broken("a topic needs at least one partition".into()));
        }
        if self.partitions != 0 && self.partitions != partitions {
            return Err(Error::Broken(format!(
                "this log has {} partitions and the settings say {partitions}: the count is fixed for ever, set it back",
                self.partitions
            )));
        }
        Ok(())
    }

    /// Creates the partitions, empty; `tail_max_bytes` bounds what memory keeps of each durable one.
    pub(crate) fn create(&mut self, partitions: u32, tail_max_bytes: usize) -> Result<(), Error> {
        self.may_create(partitions)?;
        if self.partitions == 0 {
            self.partitions = partitions;
            self.tail_max_bytes = tail_max_bytes;
            self.lanes.resize_with(Topic::ALL.len() * partitions as usize, Lane::default);
        }
        Ok(())
    }

    /// Fails once the log is closed.
    pub(crate) fn opened(&self) -> Result<(), Error> {
        self.closed.clone().map_or(Ok(()), Err)
    }

    /// From now on every call fails with `error`; whoever waits hears it at once. The first reason stays.
    pub(crate) fn close(&mut self, error: Error) {
        self.closed.get_or_insert(error);
        self.woken.extend(self.groups.values().flat_map(|group| group.members().cloned()));
    }

    fn index(&self, (topic, partition): LaneId) -> Result<usize, Error> {
        if partition.0 < self.partitions {
            Ok(topic as usize * self.partitions as usize + partition.0 as usize)
        } else {
            Err(Error::Broken(format!("there is no partition {partition} of {topic}, only {}", self.partitions)))
        }
    }

    /// One partition of a topic.
    pub(crate) fn lane(&self, id: LaneId) -> Result<&Lane, Error> {
        Ok(&self.lanes[self.index(id)?])
    }

    /// One partition of a topic, to change.
    pub(crate) fn lane_mut(&mut self, id: LaneId) -> Result<&mut Lane, Error> {
        let index = self.index(id)?;
        Ok(&mut self.lanes[index])
    }

    /// Fences whoever holds `transactional_id` and gives it to the caller.
    pub(crate) fn producer(&mut self, transactional_id: &str) -> Result<Fence, Error> {
        self.opened()?;
        let transactional_id: Arc<str> = transactional_id.into();
        let epoch = self.producers.entry(Arc::clone(&transactional_id)).or_insert(0);
        *epoch += 1;
        Ok(Fence { transactional_id, epoch: *epoch })
    }

    /// Whether a transaction may be committed now: by its producer, by its group, and by the room there is.
    pub(crate) fn admit(&self, fence: &Fence, transaction: &Transaction) -> Result<(), Error> {
        self.opened()?;
        if self.producers.get(&fence.transactional_id) != Some(&fence.epoch) {
            return Err(Error::Fenced);
        }
        let mut volatile_bytes = 0;
        for (topic, partition, record) in &transaction.records {
            self.index((*topic, *partition))?;
            if !topic.is_durable() {
                volatile_bytes += size_of_record(record);
            }
        }
        if volatile_bytes > 0 {
            self.has_room(volatile_bytes)?;
        }
        match &transaction.consumed {
            Some((member, positions)) => self.owns(member, positions),
            None => Ok(()),
        }
    }

    /// Whether the member owns the partitions of these positions, and has since it last heard of them.
    pub(crate) fn owns(&self, member: &GroupMember, positions: &[(Topic, Partition, Offset)]) -> Result<(), Error> {
        let group = self.groups.get(&member.group).ok_or(Error::Fenced)?;
        for (topic, partition, _) in positions {
            self.index((*topic, *partition))?;
            if !group.owns(member, *partition) {
                return Err(Error::Fenced);
            }
        }
        Ok(())
    }

    /// Makes records visible at the end of their partition; the position after the last one.
    pub(crate) fn append(&mut self, id: LaneId, records: Vec<Record>) -> Result<Offset, Error> {
        let end = self.lane(id)?.end;
        match Batch::new(end, records) {
            Some(batch) => self.publish(id, batch),
            None => Ok(end),
        }
    }

    /// Makes a batch visible whose place is known.
    pub(crate) fn publish(&mut self, id: LaneId, batch: Batch) -> Result<Offset, Error> {
        let tail_max_bytes = if id.0.is_durable() { self.tail_max_bytes } else { usize::MAX };
        let lane = self.lane_mut(id)?;
        lane.push(batch);
        lane.forget_beyond(tail_max_bytes);
        let end = lane.end;
        self.woken.extend(self.groups.values().filter_map(|group| group.owner_of(id).cloned()));
        Ok(end)
    }

    /// `Log::append` for a volatile topic: no durable step, so all of it happens here.
    pub(crate) fn append_volatile(&mut self, id: LaneId, records: Vec<Record>) -> Result<Offset, Error> {
        self.opened()?;
        self.index(id)?;
        let bytes: usize = records.iter().map(size_of_record).sum();
        self.has_room(bytes)?;
        self.shed_signals(bytes);
        self.append(id, records)
    }

    fn bytes_in(&self, topic: Topic) -> usize {
        self.lanes_of(topic).map(|lane| lane.bytes).sum()
    }

    fn lanes_of(&self, topic: Topic) -> impl Iterator<Item = &Lane> {
        let count = self.partitions as usize;
        self.lanes.iter().skip(topic as usize * count).take(count)
    }

    /// Commands are kept until they are consumed; signals give way to anything newer.
    fn has_room(&self, bytes: usize) -> Result<(), Error> {
        if self.bytes_in(Topic::Commands) + bytes <= self.volatile_max_bytes {
            Ok(())
        } else {
            Err(Error::Unavailable("the volatile topics are full".into()))
        }
    }

    /// Drops the oldest signals of the fullest partition until `bytes` more fit: who signals most loses most.
    fn shed_signals(&mut self, bytes: usize) {
        let commands = self.bytes_in(Topic::Commands);
        let mut signals = self.bytes_in(Topic::Signals);
        while signals > 0 && commands + signals + bytes > self.volatile_max_bytes {
            let first = Topic::Signals as usize * self.partitions as usize;
            let Some(fullest) =
                self.lanes[first..first + self.partitions as usize].iter_mut().max_by_key(|lane| lane.bytes)
            else {
                return;
            };
            signals -= fullest.drop_oldest();
        }
    }

    /// Commits positions of a group; durable ones are the engine's to save.
    pub(crate) fn commit_offsets(&mut self, group: &str, positions: &[(Topic, Partition, Offset)]) {
        let Some(committed) = self.groups.get_mut(group) else { return };
        for (topic, partition, offset) in positions {
            committed.committed.insert((*topic, *partition), *offset);
        }
        for (topic, partition, _) in positions {
            if !topic.is_durable() {
                self.free((*topic, *partition));
            }
        }
    }

    /// What a group last committed.
    pub(crate) fn committed(&self, group: &str, id: LaneId) -> Result<Option<Offset>, Error> {
        self.opened()?;
        self.index(id)?;
        Ok(self.groups.get(group).and_then(|group| group.committed.get(&id)).copied())
    }

    /// Makes an admitted transaction visible, all of it here and now.
    pub(crate) fn apply(&mut self, transaction: Transaction) -> Result<Vec<(Topic, Partition, Offset)>, Error> {
        let mut ends = Vec::new();
        for (id, records) in by_lane(transaction.records) {
            if !id.0.is_durable() {
                self.shed_signals(records.iter().map(size_of_record).sum());
            }
            ends.push((id.0, id.1, self.append(id, records)?));
        }
        if let Some((member, positions)) = transaction.consumed {
            self.commit_offsets(&member.group, &positions);
        }
        Ok(ends)
    }

    /// Forgets what every group that consumes a volatile topic has committed past.
    fn free(&mut self, id: LaneId) {
        let consumed = self
            .groups
            .values()
            .filter(|group| group.consumes(id.0))
            .map(|group| group.committed.get(&id).copied().unwrap_or_default())
            .min();
        if let (Some(consumed), Ok(lane)) = (consumed, self.lane_mut(id)) {
            lane.trim(consumed);
        }
    }

    /// A new member of a group; its id and what wakes it.
    fn join(&mut self, name: &str, topics: &[Topic]) -> Result<(u64, Arc<Notify>), Error> {
        self.opened()?;
        if self.partitions == 0 {
            return Err(Error::Broken("the log has no partitions yet: create them first".into()));
        }
        self.members += 1;
        let base = self.starts << 32;
        let group = self.groups.entry(name.to_owned()).or_default();
        let waiting = group.join(self.members, topics, self.partitions, base)?;
        self.woken.extend(group.members().cloned());
        Ok((self.members, waiting))
    }

    /// A member is gone.
    pub(crate) fn leave(&mut self, name: &str, member: u64) {
        if let Some(group) = self.groups.get_mut(name) {
            self.woken.extend(group.leave(member));
            self.woken.extend(group.members().cloned());
        }
    }

    /// What a crash leaves: durable topics and what was committed in them. This state is closed.
    pub(crate) fn crash(&mut self) -> Self {
        let mut left = Self::new(self.starts + 1, self.volatile_max_bytes);
        left.partitions = self.partitions;
        left.lanes = std::mem::take(&mut self.lanes);
        self.partitions = 0;
        for topic in Topic::ALL.into_iter().filter(|topic| !topic.is_durable()) {
            let first = topic as usize * left.partitions as usize;
            left.lanes[first..first + left.partitions as usize].fill_with(Lane::default);
        }
        for (name, group) in &self.groups {
            let durable = group.committed.iter().filter(|((topic, _), _)| topic.is_durable());
            left.groups.entry(name.clone()).or_default().committed.extend(durable);
        }
        self.close(Error::Unavailable("the log has crashed".into()));
        left
    }
}
