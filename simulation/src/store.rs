//! The store as one process sees it: slow and failing. Around the engine in memory.

use std::sync::Arc;

use async_trait::async_trait;
use schemas::room::{Member, RoomInfo};
use schemas::{CommandId, DeviceId, Event, Offset, Partition, RoomId, Seq, Timestamp, Topic, UserId};
use store::Error;
use store::accounts::{Account, Accounts, Profile, Taken};
use store::archive::{Acted, Archive, Batch, MessageReceipt, Watermarks};
use store::devices::{Device, Devices, RefreshToken, Revocation, RevocationReason, Rotation, TokenHash};
use store::keys::{Keys, SigningKey};
use store::memory::MemoryStore;
use store::rooms::{DirectorySort, Rooms};
use store::shut_outs::{ShutOut, ShutOuts, Subject};

use crate::surroundings::{Call, Fate, Surroundings};
use crate::tasks::ProcessId;

/// The store as one process sees it.
pub struct ProcessStore {
    inner: Arc<MemoryStore>,
    around: Arc<Surroundings>,
    process: ProcessId,
}

impl ProcessStore {
    /// This process's view.
    pub fn new(inner: Arc<MemoryStore>, around: Arc<Surroundings>, process: ProcessId) -> Self {
        Self { inner, around, process }
    }

    async fn call<T>(&self, call: Call, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let failed = || Error::Unavailable(format!("{call:?} as planned"));
        let fate = self.around.fate(self.process, call).await;
        if fate == Fate::NotDone {
            return Err(failed());
        }
        let done = work.await;
        self.around.delay().await;
        if fate == Fate::Unheard { done.and_then(|_| Err(failed())) } else { done }
    }
}

/// A trait of the store, each call passed on as what it is.
macro_rules! passed_on {
    ($trait:ident { $($call:ident fn $name:ident($($arg:ident: $type:ty),*) -> $out:ty;)* }) => {
        #[async_trait]
        impl $trait for ProcessStore {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$out, Error> {
                self.call(Call::$call, self.inner.$name($($arg),*)).await
            })*
        }
    };
}

passed_on!(Accounts {
    StoreWrite fn create_account(account: Account) -> Result<(), Taken>;
    StoreRead fn accounts(ids: &[UserId]) -> Vec<Account>;
    StoreRead fn account_by_username(username: &str) -> Option<Account>;
    StoreRead fn account_by_email(email: &str) -> Option<Account>;
    StoreWrite fn update_account(id: UserId, username: &str, profile: Profile) -> Result<(), Taken>;
    StoreWrite fn set_password_hash(id: UserId, hash: &str) -> ();
    StoreWrite fn touch_accounts(seen: &[(UserId, Timestamp)]) -> ();
    StoreRead fn find_accounts(prefix: &str, after: Option<&str>, limit: usize) -> Vec<Account>;
});

passed_on!(Devices {
    StoreWrite fn create_device(device: Device, token: RefreshToken) -> ();
    StoreRead fn device(id: DeviceId) -> Option<Device>;
    StoreRead fn devices_of(user: UserId) -> Vec<Device>;
    StoreWrite fn rotate(hash: TokenHash, next: TokenHash, expires_at: Timestamp, now: Timestamp) -> Rotation;
    StoreRead fn refresh_token(hash: TokenHash) -> Option<RefreshToken>;
    StoreWrite fn revoke_device(user: UserId, device: DeviceId, at: Timestamp, reason: RevocationReason) -> ();
    StoreRead fn revocations(after: u64) -> Vec<Revocation>;
    StoreWrite fn purge_tokens(before: Timestamp, limit: usize) -> usize;
    StoreWrite fn purge_revocations(before: Timestamp, limit: usize) -> usize;
});

passed_on!(Keys {
    StoreRead fn signing_keys() -> Vec<SigningKey>;
    StoreWrite fn add_signing_key(key: SigningKey, newest: Option<String>) -> Vec<SigningKey>;
    StoreWrite fn retire_signing_key(id: String, at: Timestamp) -> Vec<SigningKey>;
    StoreWrite fn remove_retired_keys(before: Timestamp) -> Vec<SigningKey>;
});

passed_on!(Rooms {
    StoreRead fn rooms(ids: &[RoomId]) -> Vec<RoomInfo>;
    StoreRead fn standings(user: UserId, rooms: &[RoomId]) -> Vec<(RoomId, Member)>;
    StoreRead fn members(room: RoomId) -> Vec<(UserId, Member)>;
    StoreRead fn members_page(room: RoomId, after: Option<UserId>, limit: usize) -> Vec<(UserId, Member)>;
    StoreRead fn rooms_of(user: UserId) -> Vec<RoomId>;
    StoreRead fn left_unseen(user: UserId, limit: usize) -> Vec<RoomId>;
    StoreRead fn directory(text: &str, sort: DirectorySort, skip: usize, limit: usize) -> Vec<RoomInfo>;
    StoreWrite fn claim_handle(handle: &str, room: RoomId, now: Timestamp, expires_at: Timestamp) -> bool;
    StoreRead fn room_by_handle(handle: &str) -> Option<RoomId>;
    StoreRead fn all_rooms(after: Option<RoomId>, limit: usize) -> Vec<RoomId>;
});

passed_on!(Archive {
    StoreWrite fn archive(batch: Batch) -> ();
    StoreRead fn progress(topic: Topic, partition: Partition) -> Offset;
    StoreRead fn events(room: RoomId, after: Seq, before: Seq, limit: usize, newest: bool) -> Vec<Event>;
    StoreRead fn acted(keys: &[(RoomId, UserId, CommandId)]) -> Vec<((RoomId, UserId, CommandId), Acted)>;
    StoreRead fn largest_command(room: RoomId) -> Option<CommandId>;
    StoreRead fn watermarks(user: UserId, rooms: &[RoomId]) -> Vec<(RoomId, Watermarks)>;
    StoreRead fn room_watermarks(room: RoomId, limit: usize) -> Vec<(UserId, Watermarks)>;
    StoreRead fn message_receipts(room: RoomId, seq: Seq, after: Option<UserId>, limit: usize) -> Vec<MessageReceipt>;
});

passed_on!(ShutOuts {
    StoreWrite fn shut_out(entries: Vec<ShutOut>) -> ();
    StoreWrite fn lift_shut_outs(subject: Option<Subject>, at: Timestamp) -> usize;
    StoreRead fn shut_outs(after: u64) -> Vec<ShutOut>;
    StoreWrite fn purge_shut_outs(before: Timestamp, limit: usize) -> usize;
});
