//! A member of a group: a thread that polls the client without pause, for groups are kept by polling, and hands on what
//! arrived through a bounded buffer. What the port asks (to move, to commit) it leaves there for the thread.
//!
//! An assigned partition is read from where the port says, or else from the committed position once the port polls
//! again after it has heard of the partition: whoever takes over has fenced the former owner's transactions by then,
//! for whose end the committed position would wait.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use rdkafka::TopicPartitionList;
use rdkafka::bindings;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, RebalanceProtocol};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::types::RDKafkaRespErr;
use schemas::limits::BATCH_MAX_BYTES;
use schemas::{Offset, Partition, Topic};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::client::{self, Context, Notes, fault, is_fenced, is_final};
use super::transactions::list;
use super::{Inner, Protocol, from_raw, index};
use crate::broker::{LaneId, size_of_record};
use crate::{Consumer, Error, Fetched, GroupMember, Placed, Polled, Positions, Record};

/// How long the thread waits for records before it looks at what the port has asked.
const SLICE: Duration = Duration::from_millis(10);
/// How long a broker keeps a fetch when there is nothing: a partition that is taken over waits for the fetch of the others
/// from its broker, and idle members are not to be what brokers are busy with.
const FETCH_WAIT_MS: u32 = 200;
/// How long a question to the cluster may hold up the thread, which then asks again.
const QUESTION: Duration = Duration::from_secs(1);
/// How long partitions that are to be handed on wait for transactions under way. Whoever takes over fences those that
/// take longer.
const HAND_OVER: Duration = Duration::from_secs(3);
/// How long whoever asks for committed positions waits for commits of this process: some milliseconds are usual.
const COMMIT_PATIENCE: Duration = Duration::from_secs(2);

/// The client with what its thread and its port share.
pub(super) type Client = BaseConsumer<Context<Arc<Shared>>>;

/// What thread and port share.
pub(super) struct Shared {
    topics: Vec<Topic>,
    names: BTreeMap<String, Topic>,
    state: Mutex<State>,
    /// There is news for the port.
    news: Notify,
    /// No transaction of this member is under way any more.
    idle: Condvar,
}

#[derive(Default)]
struct State {
    lanes: BTreeMap<LaneId, Lane>,
    /// Partitions of which every topic is here, with the generation in which they came.
    owned: BTreeMap<Partition, u64>,
    /// What the port has to hear first.
    changes: VecDeque<Polled>,
    errors: VecDeque<Error>,
    buffered_bytes: usize,
    /// To be committed outside of transactions.
    commits: BTreeMap<LaneId, Offset>,
    /// Sent, and not answered yet.
    committing: usize,
    transactions: usize,
    is_closing: bool,
    /// Why the thread has ended.
    ended: Option<Error>,
}

/// A partition of a topic that this member reads.
struct Lane {
    stage: Stage,
    /// Where the buffer begins, and where reading goes on.
    from: Offset,
    at: Offset,
    records: Vec<Placed>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The port has not heard of it.
    Untold,
    /// The port has heard of it and not polled since.
    Told,
    /// To be read from the committed position.
    Resume,
    /// To be read from here.
    Seek(Offset),
    /// Nothing is read: the port has got an error.
    Failed,
    Reading,
}

impl Lane {
    fn new() -> Self {
        Self { stage: Stage::Untold, from: Offset(0), at: Offset(0), records: Vec::new() }
    }
}

impl State {
    fn restart(&mut self, id: LaneId, stage: Stage) {
        if let Some(lane) = self.lanes.get_mut(&id) {
            let records = std::mem::take(&mut lane.records);
            self.buffered_bytes -= records.iter().map(|placed| size_of_record(&placed.record)).sum::<usize>();
            lane.stage = stage;
            lane.from = lane.at;
        }
    }

    fn fail(&mut self, id: LaneId, error: Error) {
        self.restart(id, Stage::Failed);
        if self.errors.len() < self.lanes.len() {
            self.errors.push_back(error);
        }
    }

    fn assigned(&mut self, lanes: &[LaneId], topics: usize, epoch: u64) {
        for id in lanes {
            self.lanes.insert(*id, Lane::new());
        }
        let touched: BTreeSet<Partition> = lanes.iter().map(|(_, partition)| *partition).collect();
        // All topics of a partition, or it is not ours yet.
        let is_whole = |partition: &Partition| self.lanes.keys().filter(|(_, at)| at == partition).count() == topics;
        let partitions: Vec<Partition> = touched.into_iter().filter(is_whole).collect();
        if partitions.is_empty() {
            return;
        }
        self.owned.extend(partitions.iter().map(|partition| (*partition, epoch)));
        self.changes.push_back(Polled::Assigned { epoch, partitions });
    }

    fn revoked(&mut self, lanes: &[LaneId]) {
        let mut gone = BTreeSet::new();
        for id in lanes {
            self.restart(*id, Stage::Failed);
            self.lanes.remove(id);
            self.commits.remove(id);
            if self.owned.remove(&id.1).is_some() {
                gone.insert(id.1);
            }
        }
        // What the port has not heard of has never been there: so the changes are no more than the partitions.
        for change in &mut self.changes {
            if let Polled::Assigned { partitions, .. } = change {
                partitions.retain(|partition| !gone.remove(partition));
            }
        }
        self.changes.retain(|change| !matches!(change, Polled::Assigned { partitions, .. } if partitions.is_empty()));
        if !gone.is_empty() {
            self.changes.push_back(Polled::Revoked(gone.into_iter().collect()));
        }
    }

    /// Whether a member that knows of this generation may commit these positions.
    fn owns(&self, epoch: u64, positions: &[(Topic, Partition, Offset)]) -> bool {
        positions.iter().all(|(_, partition, _)| self.owned.get(partition).is_some_and(|since| *since <= epoch))
    }

    fn take_records(&mut self) -> Vec<Fetched> {
        self.buffered_bytes = 0;
        let lanes = self.lanes.iter_mut().filter(|(_, lane)| lane.stage == Stage::Reading && lane.at > lane.from);
        lanes
            .map(|((topic, partition), lane)| {
                let from = std::mem::replace(&mut lane.from, lane.at);
                let records = std::mem::take(&mut lane.records).into();
                Fetched { topic: *topic, partition: *partition, from, next: lane.at, records }
            })
            .collect()
    }
}

impl Shared {
    /// Waits until nothing is on its way that this member was asked to commit, for a bounded time: commits are a hint (I5).
    /// An answer that has not come by then may never come, as where its coordinator was lost; nobody waits for it again.
    pub(super) async fn settled(&self) {
        let until = Instant::now() + COMMIT_PATIENCE;
        loop {
            {
                let mut state = self.state.lock();
                if (state.commits.is_empty() && state.committing == 0) || state.ended.is_some() {
                    return;
                }
                if Instant::now() >= until {
                    state.committing = 0;
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// A member as the log knows it.
pub(super) struct Known {
    pub(super) group: String,
    pub(super) shared: Arc<Shared>,
    client: Weak<Client>,
}

/// The right to commit positions of a member in a transaction; its partitions are not handed on while this lives.
pub(super) struct Admitted {
    pub(super) consumer: Arc<Client>,
    shared: Arc<Shared>,
}

impl Known {
    /// Law 5: only who owns the partitions may commit in them, and has owned them since it last heard.
    pub(super) fn admit(
        &self,
        member: &GroupMember,
        positions: &[(Topic, Partition, Offset)],
    ) -> Result<Admitted, Error> {
        let consumer = self.client.upgrade().ok_or(Error::Fenced)?;
        let mut state = self.shared.state.lock();
        if self.group != member.group || !state.owns(member.epoch, positions) {
            return Err(Error::Fenced);
        }
        state.transactions += 1;
        drop(state);
        Ok(Admitted { consumer, shared: Arc::clone(&self.shared) })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.transactions -= 1;
        if state.transactions == 0 {
            self.shared.idle.notify_all();
        }
    }
}

impl ConsumerContext for Context<Arc<Shared>> {
    fn rebalance(&self, client: &BaseConsumer<Self>, what: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let shared = &self.own;
        let lanes: Vec<LaneId> = list
            .elements()
            .iter()
            .filter_map(|element| Some((*shared.names.get(element.topic())?, super::partition(element.partition())?)))
            .collect();
        let is_incremental = matches!(client.rebalance_protocol(), RebalanceProtocol::Cooperative);
        let answered = if what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            // They stand still until it is known where they go on.
            let answered = list.set_all_offsets(rdkafka::Offset::Beginning).and_then(|()| match is_incremental {
                true => client.incremental_assign(list),
                false => client.assign(list),
            });
            let answered = answered.and_then(|()| client.pause(list));
            shared.state.lock().assigned(&lanes, shared.topics.len(), generation(client));
            answered
        } else {
            let mut state = shared.state.lock();
            state.revoked(&lanes);
            // Lost already: whoever has them now has fenced what is under way.
            if !client.assignment_lost() {
                shared.idle.wait_while_for(&mut state, |state| state.transactions > 0, HAND_OVER);
            }
            drop(state);
            match is_incremental {
                true => client.incremental_unassign(list),
                false => client.unassign(),
            }
        };
        if let Err(error) = answered {
            tracing::warn!(%error, "a rebalance could not be answered");
        }
        shared.news.notify_one();
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            // A hint (I5): the next one says more.
            tracing::debug!(%error, "positions were not committed");
        }
        let mut state = self.own.state.lock();
        state.committing = state.committing.saturating_sub(1);
    }
}

/// Generation of the group that the client knows of: with the newer protocol the epoch of the member.
#[expect(unsafe_code, reason = "librdkafka tells, and rdkafka does not pass it on")]
fn generation(client: &Client) -> u64 {
    // SAFETY: the client lives; what it hands out is ours until we destroy it, which we do last.
    let generation = unsafe {
        let metadata = bindings::rd_kafka_consumer_group_metadata(client.client().native_ptr());
        if metadata.is_null() {
            return 0;
        }
        let generation = bindings::rd_kafka_consumer_group_metadata_generation_id(metadata);
        bindings::rd_kafka_consumer_group_metadata_destroy(metadata);
        generation
    };
    u64::try_from(generation).unwrap_or(0)
}

/// The port's side of a member.
pub(super) struct Member {
    shared: Arc<Shared>,
    inner: Arc<Inner>,
    this: GroupMember,
}

impl Member {
    pub(super) async fn join(inner: Arc<Inner>, group: &str, topics: &[Topic]) -> Result<Self, Error> {
        let mut topics = topics.to_vec();
        topics.sort_unstable();
        topics.dedup();
        let names = topics.iter().map(|topic| (inner.config.topic(*topic), *topic)).collect();
        let shared =
            Arc::new(Shared { topics, names, state: Mutex::default(), news: Notify::new(), idle: Condvar::new() });
        let mut settings = client::consumer_settings(&inner.config, &inner.config.named(group), FETCH_WAIT_MS);
        match inner.config.protocol {
            Protocol::Consumer => settings.set("group.protocol", "consumer").set("group.remote.assignor", "range"),
            Protocol::Classic => settings
                .set("partition.assignment.strategy", "range")
                .set("session.timeout.ms", "6000")
                .set("heartbeat.interval.ms", "500"),
        };
        let (ready, started) = oneshot::channel();
        let (of_thread, inner_of_thread) = (Arc::clone(&shared), Arc::clone(&inner));
        let work = move || {
            let context = Context { own: Arc::clone(&of_thread), notes: Notes::default() };
            let client = Client::from_config_and_context(&settings, context).and_then(|client| {
                client.subscribe(&of_thread.names.keys().map(String::as_str).collect::<Vec<_>>())?;
                Ok(client)
            });
            match client {
                Ok(client) => {
                    let client = Arc::new(client);
                    // Whoever joined may have gone.
                    drop(ready.send(Ok(Arc::downgrade(&client))));
                    Thread { inner: &inner_of_thread, client: &client, shared: &of_thread, is_held: false }.run();
                }
                Err(error) => drop(ready.send(Err(Error::Broken(error.to_string())))),
            }
        };
        thread::Builder::new()
            .name("member".into())
            .spawn(work)
            .map_err(|error| Error::Unavailable(error.to_string()))?;
        let client = started.await.map_err(|_| Error::Unavailable("a member's thread has ended".into()))??;
        let known = Known { group: group.to_owned(), shared: Arc::clone(&shared), client };
        let member = inner.enter(known);
        Ok(Self { shared, inner, this: GroupMember { group: group.to_owned(), member, epoch: 0 } })
    }

    fn news(&mut self) -> Result<Option<Polled>, Error> {
        let mut state = self.shared.state.lock();
        for lane in state.lanes.values_mut().filter(|lane| lane.stage == Stage::Told) {
            lane.stage = Stage::Resume;
        }
        if let Some(change) = state.changes.pop_front() {
            if let Polled::Assigned { epoch, partitions } = &change {
                self.this.epoch = *epoch;
                let told = state.lanes.iter_mut().filter(|((_, partition), _)| partitions.contains(partition));
                told.filter(|(_, lane)| lane.stage == Stage::Untold).for_each(|(_, lane)| lane.stage = Stage::Told);
            }
            return Ok(Some(change));
        }
        if let Some(error) = state.errors.pop_front() {
            return Err(error);
        }
        let records = state.take_records();
        if !records.is_empty() {
            return Ok(Some(Polled::Records(records)));
        }
        state.ended.clone().map_or(Ok(None), Err)
    }
}

#[async_trait]
impl Consumer for Member {
    async fn poll(&mut self) -> Result<Polled, Error> {
        loop {
            // Cancel safe: what is taken is returned without another await.
            tokio::task::consume_budget().await;
            if let Some(news) = self.news()? {
                return Ok(news);
            }
            self.shared.news.notified().await;
        }
    }

    fn member(&self) -> GroupMember {
        self.this.clone()
    }

    fn seek(&mut self, topic: Topic, partition: Partition, to: Offset) {
        self.shared.state.lock().restart((topic, partition), Stage::Seek(to));
    }

    async fn commit(&mut self, positions: Positions) -> Result<(), Error> {
        let mut state = self.shared.state.lock();
        if let Some(ended) = &state.ended {
            return Err(ended.clone());
        }
        if !state.owns(self.this.epoch, &positions) {
            return Err(Error::Fenced);
        }
        state.commits.extend(positions.into_iter().map(|(topic, partition, offset)| ((topic, partition), offset)));
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.inner.leave(self.this.member);
        self.shared.state.lock().is_closing = true;
    }
}

/// The thread's side of a member.
struct Thread<'a> {
    inner: &'a Inner,
    client: &'a Client,
    shared: &'a Shared,
    /// The buffer is full: nothing is fetched until the port has taken something.
    is_held: bool,
}

impl Thread<'_> {
    fn run(&mut self) {
        let ended = loop {
            if self.shared.state.lock().is_closing {
                self.commit(CommitMode::Sync);
                break Error::Unavailable("this member has left".into());
            }
            self.commit(CommitMode::Async);
            self.place();
            if let Err(error) = self.fetch() {
                break error;
            }
        };
        self.shared.state.lock().ended = Some(ended);
        self.shared.news.notify_one();
        // It leaves the group when the client goes, which is next.
    }

    fn commit(&self, mode: CommitMode) {
        let mut state = self.shared.state.lock();
        if state.commits.is_empty() {
            return;
        }
        let commits = std::mem::take(&mut state.commits);
        if matches!(mode, CommitMode::Async) {
            state.committing += 1; // until `commit_callback`
        }
        drop(state);
        let positions: Positions = commits.into_iter().map(|((topic, partition), at)| (topic, partition, at)).collect();
        let sent = list(&self.inner.config, &positions).and_then(|list| {
            let notes = &self.client.context().notes;
            self.client.commit(&list, mode).map_err(|error| fault("commit", &error, notes))
        });
        if let Err(error) = sent {
            tracing::debug!(%error, "positions were not committed");
            let mut state = self.shared.state.lock();
            state.committing = state.committing.saturating_sub(1);
        }
    }

    /// Moves partitions to where they go on.
    fn place(&self) {
        let mut resumed: Positions = Vec::new();
        let mut sought: Positions = Vec::new();
        for ((topic, partition), lane) in &self.shared.state.lock().lanes {
            match lane.stage {
                Stage::Resume => resumed.push((*topic, *partition, Offset(0))),
                Stage::Seek(to) => sought.push((*topic, *partition, to)),
                _ => {}
            }
        }
        if !resumed.is_empty()
            && let Err(error) = self.resume(&resumed)
        {
            tracing::debug!(%error, "committed positions could not be read yet");
        }
        for (topic, partition, to) in sought {
            if let Err(error) = self.seek((topic, partition), to) {
                tracing::debug!(%error, "a position could not be taken yet");
            }
        }
    }

    fn resume(&self, lanes: &Positions) -> Result<(), Error> {
        let failed = |error: KafkaError| fault("read positions", &error, &self.client.context().notes);
        let committed = self.client.committed_offsets(list(&self.inner.config, lanes)?, QUESTION).map_err(failed)?;
        for (topic, partition, _) in lanes {
            let id = (*topic, *partition);
            let found = committed.find_partition(&self.inner.config.topic(*topic), index(*partition));
            let to = match found {
                Some(found) => {
                    found.error().map_err(failed)?;
                    found.offset()
                }
                None => rdkafka::Offset::Invalid,
            };
            let to = match to {
                rdkafka::Offset::Offset(raw) => from_raw(raw),
                _ => self.extent(id)?.0,
            };
            let mut state = self.shared.state.lock();
            if state.lanes.get(&id).is_some_and(|lane| lane.stage == Stage::Resume) {
                state.restart(id, Stage::Seek(to));
            }
        }
        Ok(())
    }

    /// Start and end of a partition.
    fn extent(&self, (topic, partition): LaneId) -> Result<(Offset, Offset), Error> {
        let extent = client::extent(self.client, &self.inner.config.topic(topic), index(partition), QUESTION);
        let (start, end) = extent.map_err(|error| fault("read positions", &error, &self.client.context().notes))?;
        Ok((from_raw(start), from_raw(end)))
    }

    fn seek(&self, id: LaneId, asked: Offset) -> Result<(), Error> {
        let (topic, partition) = id;
        let (start, end) = self.extent(id)?;
        let to = if forgives(topic) { asked.max(start) } else { asked };
        if to < start || to > end {
            let mut state = self.shared.state.lock();
            if state.lanes.get(&id).is_some_and(|lane| lane.stage == Stage::Seek(asked)) {
                state.fail(id, Error::OutOfRange { topic, partition, asked, start, end });
                self.shared.news.notify_one();
            }
            return Ok(());
        }
        let failed = |error: KafkaError| fault("seek", &error, &self.client.context().notes);
        let list = list(&self.inner.config, &[(topic, partition, to)])?;
        let done = self.client.seek_partitions(list, QUESTION).map_err(failed)?;
        done.elements().iter().try_for_each(|element| element.error().map_err(failed))?;
        {
            let mut state = self.shared.state.lock();
            match state.lanes.get_mut(&id) {
                // Nobody has asked for another place meanwhile.
                Some(lane) if lane.stage == Stage::Seek(asked) => {
                    (lane.stage, lane.from, lane.at) = (Stage::Reading, to, to);
                }
                _ => return Ok(()),
            }
        }
        if self.is_held { Ok(()) } else { self.client.resume(&done).map_err(failed) }
    }

    /// Takes what has arrived, after waiting a little for it.
    fn fetch(&mut self) -> Result<(), Error> {
        let mut arrived: Vec<(LaneId, Placed)> = Vec::new();
        let mut bytes = 0;
        let mut polled = self.client.poll(SLICE);
        while let Some(news) = polled {
            match news {
                Ok(message) => {
                    if let Some((id, placed)) = self.placed(&message) {
                        bytes += size_of_record(&placed.record);
                        arrived.push((id, placed));
                    }
                }
                Err(error) => self.heard(&error)?,
            }
            if bytes >= BATCH_MAX_BYTES {
                break;
            }
            polled = self.client.poll(Duration::ZERO);
        }
        // Control records too move a position, and nothing else tells of them.
        let positions = self.client.position().ok();
        let mut state = self.shared.state.lock();
        let mut has_news = false;
        for (id, placed) in arrived {
            let Some(lane) = state.lanes.get_mut(&id) else { continue };
            if lane.stage == Stage::Reading && placed.offset >= lane.at {
                lane.at = Offset(placed.offset.0 + 1);
                let size = size_of_record(&placed.record);
                lane.records.push(placed);
                state.buffered_bytes += size;
                has_news = true;
            }
        }
        for element in positions.iter().flat_map(|positions| positions.elements()) {
            let id = (self.shared.names.get(element.topic()), super::partition(element.partition()));
            if let (Some(topic), Some(partition)) = id
                && let rdkafka::Offset::Offset(raw) = element.offset()
                && let Some(lane) = state.lanes.get_mut(&(*topic, partition))
                && lane.stage == Stage::Reading
                && from_raw(raw) > lane.at
            {
                lane.at = from_raw(raw);
                has_news = true;
            }
        }
        let (is_full, is_free) = (state.buffered_bytes >= BATCH_MAX_BYTES, state.buffered_bytes < BATCH_MAX_BYTES / 2);
        let read = state.lanes.iter().filter(|(_, lane)| lane.stage == Stage::Reading);
        let read: Positions = read.map(|((topic, partition), lane)| (*topic, *partition, lane.at)).collect();
        drop(state);
        if has_news {
            self.shared.news.notify_one();
        }
        if is_full && !self.is_held {
            self.is_held = self.client.pause(&list(&self.inner.config, &read)?).is_ok();
        } else if is_free && self.is_held {
            self.is_held = self.client.resume(&list(&self.inner.config, &read)?).is_err();
        }
        Ok(())
    }

    fn placed(&self, message: &BorrowedMessage<'_>) -> Option<(LaneId, Placed)> {
        let id = (*self.shared.names.get(message.topic())?, super::partition(message.partition())?);
        Some((id, placed(message)))
    }

    /// What an error of polling means: mostly nothing, for the client goes on by itself.
    fn heard(&self, error: &KafkaError) -> Result<(), Error> {
        let notes = &self.client.context().notes;
        match error {
            KafkaError::MessageConsumption(Code::AutoOffsetReset) => {
                self.find_lost();
                Ok(())
            }
            KafkaError::MessageConsumptionFatal(code) if is_fenced(*code) => Err(Error::Fenced),
            KafkaError::MessageConsumptionFatal(_) => Err(Error::Unavailable(format!("the member ended: {error}"))),
            KafkaError::MessageConsumption(code) if is_final(*code) => Err(fault("consume", error, notes)),
            _ => {
                tracing::debug!(%error, "while consuming");
                Ok(())
            }
        }
    }

    /// Finds the partitions whose position retention has passed.
    fn find_lost(&self) {
        let state = self.shared.state.lock();
        let read = state.lanes.iter().filter(|(_, lane)| lane.stage == Stage::Reading);
        let read: Vec<(LaneId, Offset)> = read.map(|(id, lane)| (*id, lane.at)).collect();
        drop(state);
        for (id, at) in read {
            let Ok((start, end)) = self.extent(id) else { continue };
            if at < start || at > end {
                // Finds the same, and says so or goes on.
                self.shared.state.lock().restart(id, Stage::Seek(at));
            }
        }
    }
}

/// Signals are shed by design: who is behind goes on at the oldest kept, and sees it by `from`.
fn forgives(topic: Topic) -> bool {
    topic == Topic::Signals
}

/// A message as the port has it. A foreign one may lack a key or a value, and is then not readable for anybody above.
pub(super) fn placed(message: &BorrowedMessage<'_>) -> Placed {
    let key = message.key().and_then(|key| key.try_into().ok()).unwrap_or_default();
    let value = Bytes::copy_from_slice(message.payload().unwrap_or_default());
    Placed { offset: from_raw(message.offset()), record: Record { key, value } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_commit_that_is_never_answered_is_waited_for_once() {
        let state = Mutex::new(State { committing: 1, ..State::default() });
        let (topics, names) = (Vec::new(), BTreeMap::new());
        let shared = Shared { topics, names, state, news: Notify::new(), idle: Condvar::new() };
        let begun = Instant::now();
        shared.settled().await;
        assert!(begun.elapsed() >= COMMIT_PATIENCE);
        let again = Instant::now();
        shared.settled().await;
        assert_eq!(again.elapsed(), Duration::ZERO);
    }
}
