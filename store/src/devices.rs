//! Devices, their refresh tokens (a device is a family), and revocations. Tokens are kept as hashes only.

use async_trait::async_trait;
use schemas::{DeviceId, Timestamp, UserId};

use crate::Error;

/// Most entries that one poll of the revocation table brings.
pub const REVOCATIONS_MAX: usize = 1_000;

/// SHA-256 of an opaque refresh token.
pub type TokenHash = [u8; 32];

/// One installation of a client, and the family of its refresh tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Which.
    pub id: DeviceId,
    /// Whose.
    pub user: UserId,
    /// What its owner calls it.
    pub name: String,
    /// When it signed in.
    pub created_at: Timestamp,
    /// When it last refreshed.
    pub last_seen: Timestamp,
    /// Signed out, or caught reusing a spent token.
    pub revoked: bool,
}

/// A refresh token's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefreshToken {
    /// Hash of the token.
    pub hash: TokenHash,
    /// Its family.
    pub device: DeviceId,
    /// Whose.
    pub user: UserId,
    /// Void afterwards.
    pub expires_at: Timestamp,
    /// When it was spent, and for which successor.
    pub spent: Option<(Timestamp, TokenHash)>,
}

/// What a rotation found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// It was live, is spent now, and `next` is live.
    Rotated {
        /// Whose.
        user: UserId,
        /// Of which device.
        device: DeviceId,
    },
    /// It was already spent: at this time, for this successor. Nothing was changed. Whether that is a lost answer or
    /// a theft is for the caller to say.
    Spent {
        /// Its row.
        token: RefreshToken,
    },
    /// It is past its time, or its device is revoked, whether spent or not. Nothing was changed.
    Dead,
    /// No such token.
    Unknown,
}

/// An entry in the revocation table, which every edge polls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    /// Its number: dense enough to poll "after".
    pub number: u64,
    /// Whose tokens are dead.
    pub user: UserId,
    /// Of which device; `None`: all of them.
    pub device: Option<DeviceId>,
    /// Tokens issued at or before this time are dead.
    pub at: Timestamp,
    /// Why, for the close code.
    pub reason: RevocationReason,
}

/// Why tokens were revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RevocationReason {
    /// Signed out.
    SignedOut,
    /// Banned.
    Banned,
    /// A spent refresh token was used again.
    Reused,
}

/// Devices, families and revocations.
#[async_trait]
pub trait Devices: Send + Sync + 'static {
    /// Creates a device with its first refresh token; repeating it changes nothing.
    async fn create_device(&self, device: Device, token: RefreshToken) -> Result<(), Error>;
    /// One device.
    async fn device(&self, id: DeviceId) -> Result<Option<Device>, Error>;
    /// A person's live devices, newest first.
    async fn devices_of(&self, user: UserId) -> Result<Vec<Device>, Error>;
    /// Spends `hash` for `next` if it is live at `now`, in one step. `next` lives until `expires_at`.
    async fn rotate(
        &self,
        hash: TokenHash,
        next: TokenHash,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<Rotation, Error>;
    /// A refresh token's row: whether a successor has been spent in its turn.
    async fn refresh_token(&self, hash: TokenHash) -> Result<Option<RefreshToken>, Error>;
    /// Revokes a device, its whole family with it, and enters that in the revocation table; idempotent. A device
    /// without a row here (of another issuer) is entered again where `at` is later; another person's is left alone.
    async fn revoke_device(
        &self,
        user: UserId,
        device: DeviceId,
        at: Timestamp,
        reason: RevocationReason,
    ) -> Result<(), Error>;
    /// Entries after `number`, in order, at most [`REVOCATIONS_MAX`].
    async fn revocations(&self, after: u64) -> Result<Vec<Revocation>, Error>;
    /// Forgets at most `limit` refresh tokens that have ended before `before`, spent or not, and with the last token of
    /// a family its device: nobody can refresh it any more. `Ok` brings how many tokens went; fewer than `limit`: that
    /// was all. A spent token that has not ended stays, so that its reuse is known for as long as it would count.
    async fn purge_tokens(&self, before: Timestamp, limit: usize) -> Result<usize, Error>;
    /// Forgets at most `limit` entries of single devices in the revocation table from before `before`, oldest first;
    /// those of whole persons stay. `Ok` brings how many went. Numbers are not given again.
    async fn purge_revocations(&self, before: Timestamp, limit: usize) -> Result<usize, Error>;
}
