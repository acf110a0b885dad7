//! A store in memory that counts what it is asked and fails as it is told.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::room::{Member, RoomInfo};
use schemas::{CommandId, DeviceId, Event, Offset, Partition, RoomId, Seq, Timestamp, Topic, UserId};
use store::Error;
use store::accounts::{Account, Accounts, Profile, Taken};
use store::archive::{Acted, Archive, Batch, MessageReceipt, Watermarks};
use store::devices::{Device, Devices, RefreshToken, Revocation, RevocationReason, Rotation, TokenHash};
use store::keys::{Keys, SigningKey};
use store::memory::{Archived, MemoryStore};
use store::rooms::{DirectorySort, Rooms};
use store::shut_outs::{ShutOut, ShutOuts, Subject};
use tokio::sync::watch;

/// How one write goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Mishap {
    /// Nothing is written.
    Before,
    /// It is torn: so many kinds of rows are written whole, in the order events, members, rooms, lists, receipts, and
    /// so many rows of the next kind; no progress.
    Torn(usize, usize),
    /// Everything is written, but the writer does not hear of it.
    After,
}

/// The store, watched.
pub struct Watched {
    inner: MemoryStore,
    calls: Mutex<BTreeMap<&'static str, usize>>,
    /// For the next writes, one each.
    pub mishaps: Mutex<VecDeque<Mishap>>,
    /// While true, reads of events and writes hang.
    pub hangs: watch::Sender<bool>,
}

impl Watched {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryStore::new(),
            calls: Mutex::default(),
            mishaps: Mutex::default(),
            hangs: watch::Sender::new(false),
        })
    }

    /// Calls since the last time, all but those of the worker's start.
    pub fn take_calls(&self) -> BTreeMap<&'static str, usize> {
        let mut calls = std::mem::take(&mut *self.calls.lock());
        calls.remove("progress");
        calls
    }

    /// Counts a call, and lets others in between as a real store would.
    async fn called(&self, name: &'static str) {
        *self.calls.lock().entry(name).or_default() += 1;
        tokio::task::yield_now().await;
    }

    /// What is archived by now.
    pub fn archived(&self) -> Archived {
        self.inner.archived()
    }

    /// Forgets what was archived since.
    pub fn lose_since(&self, archived: Archived) {
        self.inner.lose_since(archived);
    }

    async fn hang(&self) {
        self.hangs.subscribe().wait_for(|hangs| !hangs).await.unwrap();
    }
}

macro_rules! pass {
    ($trait:ident { $(fn $name:ident($($arg:ident: $type:ty),*) -> $out:ty;)* }) => {
        #[async_trait]
        impl $trait for Watched {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$out, Error> {
                self.called(stringify!($name)).await;
                self.inner.$name($($arg),*).await
            })*
        }
    };
}

pass!(Accounts {
    fn create_account(account: Account) -> Result<(), Taken>;
    fn accounts(ids: &[UserId]) -> Vec<Account>;
    fn account_by_username(username: &str) -> Option<Account>;
    fn account_by_email(email: &str) -> Option<Account>;
    fn update_account(id: UserId, username: &str, profile: Profile) -> Result<(), Taken>;
    fn set_password_hash(id: UserId, hash: &str) -> ();
    fn touch_accounts(seen: &[(UserId, Timestamp)]) -> ();
    fn find_accounts(prefix: &str, after: Option<&str>, limit: usize) -> Vec<Account>;
});

pass!(Devices {
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

pass!(Keys {
    fn signing_keys() -> Vec<SigningKey>;
    fn add_signing_key(key: SigningKey, newest: Option<String>) -> Vec<SigningKey>;
    fn retire_signing_key(id: String, at: Timestamp) -> Vec<SigningKey>;
    fn remove_retired_keys(before: Timestamp) -> Vec<SigningKey>;
});

pass!(ShutOuts {
    fn shut_out(entries: Vec<ShutOut>) -> ();
    fn lift_shut_outs(subject: Option<Subject>, at: Timestamp) -> usize;
    fn shut_outs(after: u64) -> Vec<ShutOut>;
    fn purge_shut_outs(before: Timestamp, limit: usize) -> usize;
});

pass!(Rooms {
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

#[async_trait]
impl Archive for Watched {
    async fn archive(&self, mut batch: Batch) -> Result<(), Error> {
        self.called("archive").await;
        self.hang().await;
        let mishap = self.mishaps.lock().pop_front();
        let failed = Err(Error::Unavailable("as told".into()));
        match mishap {
            None => self.inner.archive(batch).await,
            Some(Mishap::Before) => failed,
            Some(Mishap::After) => {
                self.inner.archive(batch).await?;
                failed
            }
            Some(Mishap::Torn(kinds, rows)) => {
                let keep = |kind: usize, len: usize| match kind.cmp(&kinds) {
                    Ordering::Less => len,
                    Ordering::Equal => rows,
                    Ordering::Greater => 0,
                };
                batch.events.truncate(keep(0, batch.events.len()));
                batch.members.truncate(keep(1, batch.members.len()));
                batch.rooms.truncate(keep(2, batch.rooms.len()));
                batch.listings.truncate(keep(3, batch.listings.len()));
                batch.receipts.truncate(keep(4, batch.receipts.len()));
                batch.progress.clear();
                self.inner.archive(batch).await?;
                failed
            }
        }
    }

    async fn progress(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.called("progress").await;
        self.inner.progress(topic, partition).await
    }

    async fn events(
        &self,
        room: RoomId,
        after: Seq,
        before: Seq,
        limit: usize,
        newest: bool,
    ) -> Result<Vec<Event>, Error> {
        self.called("events").await;
        self.hang().await;
        self.inner.events(room, after, before, limit, newest).await
    }

    async fn acted(
        &self,
        keys: &[(RoomId, UserId, CommandId)],
    ) -> Result<Vec<((RoomId, UserId, CommandId), Acted)>, Error> {
        self.called("acted").await;
        self.inner.acted(keys).await
    }

    async fn largest_command(&self, room: RoomId) -> Result<Option<CommandId>, Error> {
        self.called("largest_command").await;
        self.inner.largest_command(room).await
    }

    async fn watermarks(&self, user: UserId, rooms: &[RoomId]) -> Result<Vec<(RoomId, Watermarks)>, Error> {
        self.called("watermarks").await;
        self.inner.watermarks(user, rooms).await
    }

    async fn room_watermarks(&self, room: RoomId, limit: usize) -> Result<Vec<(UserId, Watermarks)>, Error> {
        self.called("room_watermarks").await;
        self.inner.room_watermarks(room, limit).await
    }

    async fn message_receipts(
        &self,
        room: RoomId,
        seq: Seq,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<MessageReceipt>, Error> {
        self.called("message_receipts").await;
        self.inner.message_receipts(room, seq, after, limit).await
    }
}
