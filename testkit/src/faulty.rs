//! Ports that fail or lie when told to, around ones that don't.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::link::{Batch, EdgePort, FanoutPort, Lane, Registered, Unavailable};
use schemas::room::{Member, RoomInfo};
use schemas::{CommandId, DeviceId, EdgeId, Event, Offset, Partition, RoomId, Seq, Timestamp, Topic, UserId};
use store::Store;
use store::accounts::{Account, Accounts, Profile, Taken};
use store::archive::{Acted, Archive, Batch as Rows, MessageReceipt, Watermarks};
use store::devices::{Device, Devices, RefreshToken, Revocation, RevocationReason, Rotation, TokenHash};
use store::keys::{Keys, SigningKey};
use store::rooms::{DirectorySort, Rooms};
use store::shut_outs::{ShutOut, ShutOuts, Subject};
use stream::{Consumer, Error, Fetched, GroupMember, Log, Polled, Producer, Record, Transaction};

/// A kind of call that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// [`Log::append`].
    Append,
    /// [`Log::producer`].
    Producer,
    /// [`Producer::commit`].
    Commit,
    /// [`Log::consumer`].
    Consumer,
    /// [`Consumer::poll`].
    Poll,
    /// [`Consumer::commit`].
    CommitOffsets,
    /// [`Log::read`].
    Read,
    /// [`Log::end`].
    End,
    /// [`Log::committed`].
    Committed,
}

/// When a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Nothing was done.
    Before,
    /// It was done, and nobody hears of it.
    After,
}

/// Something that a record is before it is written, in place of what it was.
type Rewrite = Box<dyn Fn(Topic, Record) -> (Topic, Record) + Send + Sync>;

/// A log whose n-th call of a kind fails as planned.
pub struct FaultyLog {
    inner: Arc<dyn Log>,
    plan: Arc<Plan>,
}

#[derive(Default)]
struct Plan {
    made: Mutex<BTreeMap<Call, u64>>,
    faults: Mutex<BTreeMap<(Call, u64), (When, Error)>>,
    rewrite: Option<Rewrite>,
}

impl Plan {
    /// Counts a call and makes it, unless it is to fail.
    async fn run<T>(&self, call: Call, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let number = {
            let mut made = self.made.lock();
            let count = made.entry(call).or_default();
            *count += 1;
            *count
        };
        let fault = self.faults.lock().remove(&(call, number));
        match fault {
            None => work.await,
            Some((When::Before, error)) => Err(error),
            Some((When::After, error)) => work.await.and(Err(error)),
        }
    }

    fn rewritten(&self, topic: Topic, record: Record) -> (Topic, Record) {
        match &self.rewrite {
            Some(rewrite) => rewrite(topic, record),
            None => (topic, record),
        }
    }
}

impl FaultyLog {
    /// Around a log; nothing fails yet.
    pub fn new(inner: Arc<dyn Log>) -> Self {
        Self { inner, plan: Arc::default() }
    }

    /// Around a log, with each record that is written passed through `rewrite`. Its partition stays: all topics have
    /// the same keys.
    pub fn rewriting(
        inner: Arc<dyn Log>,
        rewrite: impl Fn(Topic, Record) -> (Topic, Record) + Send + Sync + 'static,
    ) -> Self {
        let plan = Plan { rewrite: Some(Box::new(rewrite)), ..Plan::default() };
        Self { inner, plan: Arc::new(plan) }
    }

    /// Makes the n-th call from now on fail, counted from 1.
    pub fn fail(&self, call: Call, nth: u64, when: When, error: Error) {
        let made = self.made(call);
        self.plan.faults.lock().insert((call, made + nth), (when, error));
    }

    /// How many calls there were.
    pub fn made(&self, call: Call) -> u64 {
        self.plan.made.lock().get(&call).copied().unwrap_or(0)
    }
}

#[async_trait]
impl Log for FaultyLog {
    async fn create(&self, partitions: u32) -> Result<(), Error> {
        self.inner.create(partitions).await
    }

    fn partitions(&self) -> u32 {
        self.inner.partitions()
    }

    async fn append(&self, topic: Topic, partition: Partition, records: Vec<Record>) -> Result<Offset, Error> {
        let work = async {
            let mut by_topic: BTreeMap<Topic, Vec<Record>> = BTreeMap::new();
            for (topic, record) in records.into_iter().map(|record| self.plan.rewritten(topic, record)) {
                by_topic.entry(topic).or_default().push(record);
            }
            let mut end = Offset(0);
            for (topic, records) in by_topic {
                end = self.inner.append(topic, partition, records).await?;
            }
            Ok(end)
        };
        self.plan.run(Call::Append, work).await
    }

    async fn producer(&self, transactional_id: &str) -> Result<Box<dyn Producer>, Error> {
        let inner = self.plan.run(Call::Producer, self.inner.producer(transactional_id)).await?;
        Ok(Box::new(FaultyProducer { inner, plan: Arc::clone(&self.plan) }))
    }

    async fn consumer(&self, group: &str, topics: &[Topic]) -> Result<Box<dyn Consumer>, Error> {
        let inner = self.plan.run(Call::Consumer, self.inner.consumer(group, topics)).await?;
        Ok(Box::new(FaultyConsumer { inner, plan: Arc::clone(&self.plan) }))
    }

    async fn read(&self, topic: Topic, partition: Partition, from: Offset, max_bytes: usize) -> Result<Fetched, Error> {
        self.plan.run(Call::Read, self.inner.read(topic, partition, from, max_bytes)).await
    }

    async fn start(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.inner.start(topic, partition).await
    }

    async fn end(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.plan.run(Call::End, self.inner.end(topic, partition)).await
    }

    async fn committed(&self, group: &str, topic: Topic, partition: Partition) -> Result<Option<Offset>, Error> {
        self.plan.run(Call::Committed, self.inner.committed(group, topic, partition)).await
    }

    async fn trim(&self, topic: Topic, partition: Partition, before: Offset) -> Result<(), Error> {
        self.inner.trim(topic, partition, before).await
    }
}

struct FaultyProducer {
    inner: Box<dyn Producer>,
    plan: Arc<Plan>,
}

#[async_trait]
impl Producer for FaultyProducer {
    async fn commit(&mut self, mut transaction: Transaction) -> Result<Vec<(Topic, Partition, Offset)>, Error> {
        let plan = Arc::clone(&self.plan);
        for entry in &mut transaction.records {
            (entry.0, entry.2) = plan.rewritten(entry.0, entry.2.clone());
        }
        plan.run(Call::Commit, self.inner.commit(transaction)).await
    }
}

struct FaultyConsumer {
    inner: Box<dyn Consumer>,
    plan: Arc<Plan>,
}

#[async_trait]
impl Consumer for FaultyConsumer {
    async fn poll(&mut self) -> Result<Polled, Error> {
        self.plan.run(Call::Poll, self.inner.poll()).await
    }

    fn member(&self) -> GroupMember {
        self.inner.member()
    }

    fn seek(&mut self, topic: Topic, partition: Partition, to: Offset) {
        self.inner.seek(topic, partition, to);
    }

    async fn commit(&mut self, positions: Vec<(Topic, Partition, Offset)>) -> Result<(), Error> {
        self.plan.run(Call::CommitOffsets, self.inner.commit(positions)).await
    }
}

/// Fanout whose batches are changed on their way to each edge.
pub struct FaultyFanout {
    inner: Arc<dyn FanoutPort>,
    change: Change,
}

type Change = Arc<dyn Fn(&mut Batch) + Send + Sync>;

impl FaultyFanout {
    /// Around fanout.
    pub fn new(inner: Arc<dyn FanoutPort>, change: impl Fn(&mut Batch) + Send + Sync + 'static) -> Self {
        Self { inner, change: Arc::new(change) }
    }
}

#[async_trait]
impl FanoutPort for FaultyFanout {
    async fn attach(&self, edge: Arc<dyn EdgePort>) -> Result<(), Unavailable> {
        self.inner.attach(Arc::new(FaultyEdge { inner: edge, change: Arc::clone(&self.change) })).await
    }

    fn detach(&self, edge: EdgeId) {
        self.inner.detach(edge);
    }

    async fn register(
        &self,
        edge: EdgeId,
        lane: Lane,
        partition: Partition,
        keys: &[[u8; 16]],
    ) -> Result<Registered, Unavailable> {
        self.inner.register(edge, lane, partition, keys).await
    }

    fn unregister(&self, edge: EdgeId, lane: Lane, partition: Partition, keys: &[[u8; 16]]) {
        self.inner.unregister(edge, lane, partition, keys);
    }

    async fn changed(
        &self,
        partition: Partition,
        from: Offset,
        to: Offset,
    ) -> Result<Option<Vec<(RoomId, Seq)>>, Unavailable> {
        self.inner.changed(partition, from, to).await
    }

    async fn online(&self, users: &[UserId]) -> Result<Vec<UserId>, Unavailable> {
        self.inner.online(users).await
    }
}

struct FaultyEdge {
    inner: Arc<dyn EdgePort>,
    change: Change,
}

#[async_trait]
impl EdgePort for FaultyEdge {
    fn id(&self) -> EdgeId {
        self.inner.id()
    }

    async fn deliver(&self, mut batch: Batch) -> Result<(), Unavailable> {
        (self.change)(&mut batch);
        self.inner.deliver(batch).await
    }

    fn register_anew(&self, partitions: &[Partition]) {
        self.inner.register_anew(partitions);
    }
}

/// A store that one process can be cut off from.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    cut: AtomicBool,
}

impl FaultyStore {
    /// Around a store; nothing fails yet.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, cut: AtomicBool::new(false) }
    }

    /// From now on every call fails, or none any more.
    pub fn cut_off(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
    }
}

/// A trait of the store, each call passed on while the store can be reached.
macro_rules! passed_on {
    ($trait:ident { $(fn $name:ident($($arg:ident: $type:ty),*) -> $out:ty;)* }) => {
        #[async_trait]
        impl $trait for FaultyStore {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$out, store::Error> {
                if self.cut.load(Ordering::SeqCst) {
                    return Err(store::Error::Unavailable("cut off".into()));
                }
                self.inner.$name($($arg),*).await
            })*
        }
    };
}

passed_on!(Accounts {
    fn create_account(account: Account) -> Result<(), Taken>;
    fn accounts(ids: &[UserId]) -> Vec<Account>;
    fn account_by_username(username: &str) -> Option<Account>;
    fn account_by_email(email: &str) -> Option<Account>;
    fn update_account(id: UserId, username: &str, profile: Profile) -> Result<(), Taken>;
    fn set_password_hash(id: UserId, hash: &str) -> ();
    fn touch_accounts(seen: &[(UserId, Timestamp)]) -> ();
    fn find_accounts(prefix: &str, after: Option<&str>, limit: usize) -> Vec<Account>;
});

passed_on!(Devices {
    fn create_device(device: Device, token: RefreshToken) -> ();
    fn device(id: DeviceId) -> Option<Device>;
    fn devices_of(user: UserId) -> Vec<Device>;
    fn rotate(hash: TokenHash, next: TokenHash, expires_at: Timestamp, now: Timestamp) -> Rotation;
    fn refresh_token(hash: TokenHash) -> Option<RefreshToken>;
    fn revoke_device(user: UserId, device: DeviceId, at: Timestamp, reason: RevocationReason) -> ();
    fn revocations(after: u64) -> Vec<Revocation>;
    fn purge_tokens(before: Timestamp, limit: usize) -> usize;
    fn purge_revocations(before: Timestamp, limit: usize) -> usize;
});

passed_on!(Keys {
    fn signing_keys() -> Vec<SigningKey>;
    fn add_signing_key(key: SigningKey, newest: Option<String>) -> Vec<SigningKey>;
    fn retire_signing_key(id: String, at: Timestamp) -> Vec<SigningKey>;
    fn remove_retired_keys(before: Timestamp) -> Vec<SigningKey>;
});

passed_on!(Rooms {
    fn rooms(ids: &[RoomId]) -> Vec<RoomInfo>;
    fn standings(user: UserId, rooms: &[RoomId]) -> Vec<(RoomId, Member)>;
    fn members(room: RoomId) -> Vec<(UserId, Member)>;
    fn members_page(room: RoomId, after: Option<UserId>, limit: usize) -> Vec<(UserId, Member)>;
    fn rooms_of(user: UserId) -> Vec<RoomId>;
    fn left_unseen(user: UserId, limit: usize) -> Vec<RoomId>;
    fn directory(text: &str, sort: DirectorySort, skip: usize, limit: usize) -> Vec<RoomInfo>;
    fn claim_handle(handle: &str, room: RoomId, now: Timestamp, expires_at: Timestamp) -> bool;
    fn room_by_handle(handle: &str) -> Option<RoomId>;
    fn all_rooms(after: Option<RoomId>, limit: usize) -> Vec<RoomId>;
});

passed_on!(Archive {
    fn archive(batch: Rows) -> ();
    fn progress(topic: Topic, partition: Partition) -> Offset;
    fn events(room: RoomId, after: Seq, before: Seq, limit: usize, newest: bool) -> Vec<Event>;
    fn acted(keys: &[(RoomId, UserId, CommandId)]) -> Vec<((RoomId, UserId, CommandId), Acted)>;
    fn largest_command(room: RoomId) -> Option<CommandId>;
    fn watermarks(user: UserId, rooms: &[RoomId]) -> Vec<(RoomId, Watermarks)>;
    fn room_watermarks(room: RoomId, limit: usize) -> Vec<(UserId, Watermarks)>;
    fn message_receipts(room: RoomId, seq: Seq, after: Option<UserId>, limit: usize) -> Vec<MessageReceipt>;
});

passed_on!(ShutOuts {
    fn shut_out(entries: Vec<ShutOut>) -> ();
    fn lift_shut_outs(subject: Option<Subject>, at: Timestamp) -> usize;
    fn shut_outs(after: u64) -> Vec<ShutOut>;
    fn purge_shut_outs(before: Timestamp, limit: usize) -> usize;
});

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use stream::memory::MemoryLog;

    const PARTITION: Partition = Partition(0);

    fn record() -> Record {
        Record { key: [1; 16], value: Bytes::from_static(b"value") }
    }

    async fn log() -> FaultyLog {
        let log = FaultyLog::new(Arc::new(MemoryLog::new()));
        log.create(1).await.unwrap();
        log
    }

    #[tokio::test]
    async fn the_planned_call_fails_and_no_other() {
        let log = log().await;
        log.append(Topic::Events, PARTITION, vec![record()]).await.unwrap();
        log.fail(Call::Append, 2, When::Before, Error::Unavailable("planned".into()));
        let append = || log.append(Topic::Events, PARTITION, vec![record()]);
        assert!(append().await.is_ok());
        assert!(append().await.is_err());
        assert!(append().await.is_ok());
        assert_eq!(log.end(Topic::Events, PARTITION).await.unwrap(), Offset(3), "what failed was not done");
    }

    #[tokio::test]
    async fn a_commit_that_fails_afterwards_has_happened() {
        let log = log().await;
        let mut producer = log.producer("one").await.unwrap();
        log.fail(Call::Commit, 1, When::After, Error::Unknown("planned".into()));
        let records = vec![(Topic::Events, PARTITION, record())];
        assert!(producer.commit(Transaction { records, consumed: None }).await.is_err());
        assert_eq!(log.end(Topic::Events, PARTITION).await.unwrap(), Offset(1));
    }

    #[tokio::test]
    async fn a_rewritten_record_is_all_that_is_written() {
        let inner = Arc::new(MemoryLog::new());
        inner.create(1).await.unwrap();
        let log = FaultyLog::rewriting(Arc::clone(&inner) as _, |_, record| (Topic::Events, record));
        log.append(Topic::Commands, PARTITION, vec![record()]).await.unwrap();
        assert_eq!(inner.end(Topic::Commands, PARTITION).await.unwrap(), Offset(0));
        assert_eq!(inner.end(Topic::Events, PARTITION).await.unwrap(), Offset(1));
    }
}
