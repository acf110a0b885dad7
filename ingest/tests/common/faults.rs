//! Ports that fail when told to, and an archiver small enough to be trusted.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::limits::BATCH_MAX_BYTES;
use schemas::room::{Member, RoomInfo, RoomState};
use schemas::{
    CommandId, DeviceId, Event, EventKind, Offset, Partition, Record as _, RoomId, Seq, Timestamp, Topic, UserId,
};
use store::accounts::{Account, Accounts, Profile, Taken};
use store::archive::{Acted, Archive, Batch, MessageReceipt, Watermarks};
use store::devices::{Device, Devices, RefreshToken, Revocation, RevocationReason, Rotation, TokenHash};
use store::keys::{Keys, SigningKey};
use store::memory::MemoryStore;
use store::rooms::{DirectorySort, Rooms};
use store::shut_outs::{ShutOut, ShutOuts, Subject};
use stream::memory::MemoryLog;
use stream::{Consumer, Error, Fetched, Log, Producer, Record, Transaction};

/// How a call fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A commit that is refused.
    Refused,
    /// A commit of which nobody knows, and which did not happen.
    Lost,
    /// A commit of which nobody knows, and which did happen.
    Unheard,
    /// A commit by someone who has been fenced.
    Fenced,
    /// A commit that hangs for a second and then happens.
    Slow,
    /// A read or an initialisation that fails.
    Unread,
}

/// A log whose next calls fail as planned.
pub struct FaultyLog {
    pub inner: MemoryLog,
    commits: Arc<Mutex<VecDeque<Fault>>>,
    reads: Mutex<usize>,
}

impl FaultyLog {
    pub fn new(inner: MemoryLog) -> Arc<Self> {
        Arc::new(Self { inner, commits: Arc::default(), reads: Mutex::default() })
    }

    pub fn plan(&self, fault: Fault) {
        match fault {
            Fault::Unread => *self.reads.lock() += 1,
            fault => self.commits.lock().push_back(fault),
        }
    }

    pub fn forget_plans(&self) {
        self.commits.lock().clear();
        *self.reads.lock() = 0;
    }

    fn read_fails(&self) -> Result<(), Error> {
        let mut left = self.reads.lock();
        if *left == 0 {
            return Ok(());
        }
        *left -= 1;
        Err(Error::Unavailable("planned".into()))
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
        self.inner.append(topic, partition, records).await
    }
    async fn producer(&self, id: &str) -> Result<Box<dyn Producer>, Error> {
        tokio::task::yield_now().await;
        self.read_fails()?;
        let inner = self.inner.producer(id).await?;
        Ok(Box::new(FaultyProducer { inner, commits: self.commits.clone() }))
    }
    async fn consumer(&self, group: &str, topics: &[Topic]) -> Result<Box<dyn Consumer>, Error> {
        self.inner.consumer(group, topics).await
    }
    async fn read(&self, topic: Topic, partition: Partition, from: Offset, max: usize) -> Result<Fetched, Error> {
        tokio::task::yield_now().await;
        self.read_fails()?;
        self.inner.read(topic, partition, from, max).await
    }
    async fn start(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.inner.start(topic, partition).await
    }
    async fn end(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.inner.end(topic, partition).await
    }
    async fn committed(&self, group: &str, topic: Topic, partition: Partition) -> Result<Option<Offset>, Error> {
        tokio::task::yield_now().await;
        self.inner.committed(group, topic, partition).await
    }
    async fn trim(&self, topic: Topic, partition: Partition, before: Offset) -> Result<(), Error> {
        self.inner.trim(topic, partition, before).await
    }
}

struct FaultyProducer {
    inner: Box<dyn Producer>,
    commits: Arc<Mutex<VecDeque<Fault>>>,
}

#[async_trait]
impl Producer for FaultyProducer {
    async fn commit(&mut self, transaction: Transaction) -> Result<Vec<(Topic, Partition, Offset)>, Error> {
        tokio::task::yield_now().await;
        let fault = self.commits.lock().pop_front();
        match fault {
            None | Some(Fault::Unread) => {}
            Some(Fault::Refused) => return Err(Error::Unavailable("planned".into())),
            Some(Fault::Lost) => return Err(Error::Unknown("planned".into())),
            Some(Fault::Fenced) => return Err(Error::Fenced),
            Some(Fault::Unheard) => {
                self.inner.commit(transaction).await?;
                return Err(Error::Unknown("planned".into()));
            }
            Some(Fault::Slow) => tokio::time::sleep(std::time::Duration::from_secs(1)).await,
        }
        let committed = self.inner.commit(transaction).await;
        tokio::task::yield_now().await; // Killed here, the worker never hears of it.
        committed
    }
}

/// A store whose calls can fail or hang by name, and which can come back with an older state.
pub struct FaultyStore {
    inner: Mutex<Arc<MemoryStore>>,
    fails: Mutex<HashMap<&'static str, usize>>,
    hangs: Mutex<HashSet<&'static str>>,
    calls: Mutex<HashMap<&'static str, usize>>,
}

impl FaultyStore {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Arc::new(MemoryStore::new())),
            fails: Mutex::default(),
            hangs: Mutex::default(),
            calls: Mutex::default(),
        })
    }

    /// The next so many calls of this method fail.
    pub fn fail(&self, method: &'static str, times: usize) {
        self.fails.lock().insert(method, times);
    }

    /// Calls of this method never end, until `forget_plans`.
    pub fn hang(&self, method: &'static str) {
        self.hangs.lock().insert(method);
    }

    pub fn forget_plans(&self) {
        self.fails.lock().clear();
        self.hangs.lock().clear();
    }

    /// How often a method has been called.
    pub fn calls(&self, method: &'static str) -> usize {
        self.calls.lock().get(method).copied().unwrap_or(0)
    }

    /// Comes back as this other store.
    pub fn become_store(&self, other: MemoryStore) {
        *self.inner.lock() = Arc::new(other);
    }

    pub fn now(&self) -> Arc<MemoryStore> {
        self.inner.lock().clone()
    }

    async fn enter(&self, method: &'static str) -> Result<Arc<MemoryStore>, store::Error> {
        *self.calls.lock().entry(method).or_default() += 1;
        tokio::task::yield_now().await;
        let hangs = self.hangs.lock().contains(method);
        if hangs {
            std::future::pending::<()>().await;
        }
        if let Some(times) = self.fails.lock().get_mut(method)
            && *times > 0
        {
            *times -= 1;
            return Err(store::Error::Unavailable("planned".into()));
        }
        Ok(self.now())
    }
}

macro_rules! passed_on {
    ($trait:ident { $(fn $name:ident($($arg:ident: $type:ty),*) -> $result:ty;)* }) => {
        #[async_trait]
        impl $trait for FaultyStore {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$result, store::Error> {
                self.enter(stringify!($name)).await?.$name($($arg),*).await
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
    fn refresh_token(hash: TokenHash) -> Option<RefreshToken>;
    fn rotate(hash: TokenHash, next: TokenHash, expires_at: Timestamp, now: Timestamp) -> Rotation;
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

passed_on!(ShutOuts {
    fn shut_out(entries: Vec<ShutOut>) -> ();
    fn lift_shut_outs(subject: Option<Subject>, at: Timestamp) -> usize;
    fn shut_outs(after: u64) -> Vec<ShutOut>;
    fn purge_shut_outs(before: Timestamp, limit: usize) -> usize;
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
    fn archive(batch: Batch) -> ();
    fn progress(topic: Topic, partition: Partition) -> Offset;
    fn events(room: RoomId, after: Seq, before: Seq, limit: usize, newest: bool) -> Vec<Event>;
    fn acted(keys: &[(RoomId, UserId, CommandId)]) -> Vec<((RoomId, UserId, CommandId), Acted)>;
    fn largest_command(room: RoomId) -> Option<CommandId>;
    fn watermarks(user: UserId, rooms: &[RoomId]) -> Vec<(RoomId, Watermarks)>;
    fn room_watermarks(room: RoomId, limit: usize) -> Vec<(UserId, Watermarks)>;
    fn message_receipts(room: RoomId, seq: Seq, after: Option<UserId>, limit: usize) -> Vec<MessageReceipt>;
});

/// Moves at most `limit` records of a partition into the store; with `rows_only` without the progress, as an archiver
/// that died between the two.
pub async fn archive(log: &dyn Log, store: &MemoryStore, partition: Partition, limit: usize, rows_only: bool) {
    let progress = store.progress(Topic::Events, partition).await.unwrap();
    let fetched = log.read(Topic::Events, partition, progress, BATCH_MAX_BYTES).await.unwrap();
    let mut states: HashMap<RoomId, Option<RoomState>> = HashMap::new();
    let mut batch = Batch::default();
    let taken = &fetched.records[..limit.min(fetched.records.len())];
    for placed in taken {
        let Ok(event) = Event::decode(&placed.record.value) else { continue };
        if let Entry::Vacant(unread) = states.entry(event.room) {
            let members = store.members(event.room).await.unwrap().into_iter().collect();
            let info = store.rooms(&[event.room]).await.unwrap().pop();
            unread.insert(info.map(|info| RoomState { info, members }));
        }
        let state = states.get_mut(&event.room).unwrap();
        if state.as_ref().is_none_or(|state| event.seq > state.info.head_seq) {
            *state = Some(RoomState::fold(state.take(), &event).expect("the log is dense"));
        }
        if let EventKind::Member(change) = &event.kind {
            let member = state.as_ref().unwrap().members[&change.user].clone();
            batch.members.push((event.room, change.user, member));
        }
        batch.events.push(Arc::new(event));
    }
    batch.rooms = states.into_values().flatten().map(|state| state.info).collect();
    if !rows_only {
        let end = if taken.len() == fetched.records.len() {
            fetched.next
        } else {
            Offset(taken.last().map_or(progress.0, |last| last.offset.0 + 1))
        };
        batch.progress.push((Topic::Events, partition, end));
    }
    store.archive(batch).await.unwrap();
}
