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

#[async_trait]
impl Accounts for ProcessStore {
    async fn create_account(&self, account: Account) -> Result<Result<(), Taken>, Error> {
        self.call(Call::StoreWrite, self.inner.create_account(account)).await
    }

    async fn accounts(&self, ids: &[UserId]) -> Result<Vec<Account>, Error> {
        self.call(Call::StoreRead, self.inner.accounts(ids)).await
    }

    async fn account_by_username(&self, username: &str) -> Result<Option<Account>, Error> {
        self.call(Call::StoreRead, self.inner.account_by_username(username)).await
    }

    async fn account_by_email(&self, email: &str) -> Result<Option<Account>, Error> {
        self.call(Call::StoreRead, self.inner.account_by_email(email)).await
    }

    async fn update_account(&self, id: UserId, username: &str, profile: Profile) -> Result<Result<(), Taken>, Error> {
        self.call(Call::StoreWrite, self.inner.update_account(id, username, profile)).await
    }

    async fn set_password_hash(&self, id: UserId, hash: &str) -> Result<(), Error> {
        self.call(Call::StoreWrite, self.inner.set_password_hash(id, hash)).await
    }

    async fn touch_accounts(&self, seen: &[(UserId, Timestamp)]) -> Result<(), Error> {
        self.call(Call::StoreWrite, self.inner.touch_accounts(seen)).await
    }

    async fn find_accounts(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Account>, Error> {
        self.call(Call::StoreRead, self.inner.find_accounts(prefix, after, limit)).await
    }
}

#[async_trait]
impl Devices for ProcessStore {
    async fn create_device(&self, device: Device, token: RefreshToken) -> Result<(), Error> {
        self.call(Call::StoreWrite, self.inner.create_device(device, token)).await
    }

    async fn device(&self, id: DeviceId) -> Result<Option<Device>, Error> {
        self.call(Call::StoreRead, self.inner.device(id)).await
    }

    async fn devices_of(&self, user: UserId) -> Result<Vec<Device>, Error> {
        self.call(Call::StoreRead, self.inner.devices_of(user)).await
    }

    async fn rotate(
        &self,
        hash: TokenHash,
        next: TokenHash,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<Rotation, Error> {
        self.call(Call::StoreWrite, self.inner.rotate(hash, next, expires_at, now)).await
    }

    async fn refresh_token(&self, hash: TokenHash) -> Result<Option<RefreshToken>, Error> {
        self.call(Call::StoreRead, self.inner.refresh_token(hash)).await
    }

    async fn revoke_device(
        &self,
        user: UserId,
        device: DeviceId,
        at: Timestamp,
        reason: RevocationReason,
    ) -> Result<(), Error> {
        self.call(Call::StoreWrite, self.inner.revoke_device(user, device, at, reason)).await
    }

    async fn revocations(&self, after: u64) -> Result<Vec<Revocation>, Error> {
        self.call(Call::StoreRead, self.inner.revocations(after)).await
    }

    async fn purge_tokens(&self, before: Timestamp, limit: usize) -> Result<usize, Error> {
        self.call(Call::StoreWrite, self.inner.purge_tokens(before, limit)).await
    }

    async fn purge_revocations(&self, before: Timestamp, limit: usize) -> Result<usize, Error> {
        self.call(Call::StoreWrite, self.inner.purge_revocations(before, limit)).await
    }
}

#[async_trait]
impl Keys for ProcessStore {
    async fn signing_keys(&self) -> Result<Vec<SigningKey>, Error> {
        self.call(Call::StoreRead, self.inner.signing_keys()).await
    }

    async fn add_signing_key(&self, key: SigningKey, newest: Option<String>) -> Result<Vec<SigningKey>, Error> {
        self.call(Call::StoreWrite, self.inner.add_signing_key(key, newest)).await
    }

    async fn retire_signing_key(&self, id: String, at: Timestamp) -> Result<Vec<SigningKey>, Error> {
        self.call(Call::StoreWrite, self.inner.retire_signing_key(id, at)).await
    }

    async fn remove_retired_keys(&self, before: Timestamp) -> Result<Vec<SigningKey>, Error> {
        self.call(Call::StoreWrite, self.inner.remove_retired_keys(before)).await
    }
}

#[async_trait]
impl Rooms for ProcessStore {
    async fn rooms(&self, ids: &[RoomId]) -> Result<Vec<RoomInfo>, Error> {
        self.call(Call::StoreRead, self.inner.rooms(ids)).await
    }

    async fn standings(&self, user: UserId, rooms: &[RoomId]) -> Result<Vec<(RoomId, Member)>, Error> {
        self.call(Call::StoreRead, self.inner.standings(user, rooms)).await
    }

    async fn members(&self, room: RoomId) -> Result<Vec<(UserId, Member)>, Error> {
        self.call(Call::StoreRead, self.inner.members(room)).await
    }

    async fn members_page(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<(UserId, Member)>, Error> {
        self.call(Call::StoreRead, self.inner.members_page(room, after, limit)).await
    }

    async fn rooms_of(&self, user: UserId) -> Result<Vec<RoomId>, Error> {
        self.call(Call::StoreRead, self.inner.rooms_of(user)).await
    }

    async fn left_unseen(&self, user: UserId, limit: usize) -> Result<Vec<RoomId>, Error> {
        self.call(Call::StoreRead, self.inner.left_unseen(user, limit)).await
    }

    async fn directory(
        &self,
        text: &str,
        sort: DirectorySort,
        skip: usize,
        limit: usize,
    ) -> Result<Vec<RoomInfo>, Error> {
        self.call(Call::StoreRead, self.inner.directory(text, sort, skip, limit)).await
    }

    async fn claim_handle(
        &self,
        handle: &str,
        room: RoomId,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<bool, Error> {
        self.call(Call::StoreWrite, self.inner.claim_handle(handle, room, now, expires_at)).await
    }

    async fn room_by_handle(&self, handle: &str) -> Result<Option<RoomId>, Error> {
        self.call(Call::StoreRead, self.inner.room_by_handle(handle)).await
    }
}

#[async_trait]
impl Archive for ProcessStore {
    async fn archive(&self, batch: Batch) -> Result<(), Error> {
        self.call(Call::StoreWrite, self.inner.archive(batch)).await
    }

    async fn progress(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.call(Call::StoreRead, self.inner.progress(topic, partition)).await
    }

    async fn events(
        &self,
        room: RoomId,
        after: Seq,
        before: Seq,
        limit: usize,
        newest: bool,
    ) -> Result<Vec<Event>, Error> {
        self.call(Call::StoreRead, self.inner.events(room, after, before, limit, newest)).await
    }

    async fn acted(
        &self,
        keys: &[(RoomId, UserId, CommandId)],
    ) -> Result<Vec<((RoomId, UserId, CommandId), Acted)>, Error> {
        self.call(Call::StoreRead, self.inner.acted(keys)).await
    }

    async fn largest_command(&self, room: RoomId) -> Result<Option<CommandId>, Error> {
        self.call(Call::StoreRead, self.inner.largest_command(room)).await
    }

    async fn watermarks(&self, user: UserId, rooms: &[RoomId]) -> Result<Vec<(RoomId, Watermarks)>, Error> {
        self.call(Call::StoreRead, self.inner.watermarks(user, rooms)).await
    }

    async fn room_watermarks(&self, room: RoomId, limit: usize) -> Result<Vec<(UserId, Watermarks)>, Error> {
        self.call(Call::StoreRead, self.inner.room_watermarks(room, limit)).await
    }

    async fn message_receipts(
        &self,
        room: RoomId,
        seq: Seq,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<MessageReceipt>, Error> {
        self.call(Call::StoreRead, self.inner.message_receipts(room, seq, after, limit)).await
    }
}

#[async_trait]
impl ShutOuts for ProcessStore {
    async fn shut_out(&self, entries: Vec<ShutOut>) -> Result<(), Error> {
        self.call(Call::StoreWrite, self.inner.shut_out(entries)).await
    }

    async fn lift_shut_outs(&self, subject: Option<Subject>, at: Timestamp) -> Result<usize, Error> {
        self.call(Call::StoreWrite, self.inner.lift_shut_outs(subject, at)).await
    }

    async fn shut_outs(&self, after: u64) -> Result<Vec<ShutOut>, Error> {
        self.call(Call::StoreRead, self.inner.shut_outs(after)).await
    }

    async fn purge_shut_outs(&self, before: Timestamp, limit: usize) -> Result<usize, Error> {
        self.call(Call::StoreWrite, self.inner.purge_shut_outs(before, limit)).await
    }
}
