//! Signing keys of access tokens, and small facts about an installation.

use async_trait::async_trait;
use schemas::Timestamp;

use crate::Error;

/// A signing key.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey {
    /// Its `kid`.
    pub id: String,
    /// Ed25519 seed.
    pub seed: [u8; 32],
    /// When it was made.
    pub created_at: Timestamp,
    /// Tokens signed with it are dead from then on.
    pub retired_at: Option<Timestamp>,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The signing keys.
#[async_trait]
pub trait Keys: Send + Sync + 'static {
    /// All that are not yet removed, oldest first.
    async fn signing_keys(&self) -> Result<Vec<SigningKey>, Error>;
    /// Adds a key, but only where the newest one is still `newest` (`None`: there is none yet): two edges may do so at
    /// once, and one of them shall. Returns all keys.
    async fn add_signing_key(&self, key: SigningKey, newest: Option<String>) -> Result<Vec<SigningKey>, Error>;
    /// Lets tokens of this key be dead from `at` on, unless they are already from an earlier time. Returns all keys.
    async fn retire_signing_key(&self, id: String, at: Timestamp) -> Result<Vec<SigningKey>, Error>;
    /// Removes keys, seed and all, whose tokens have been dead since before `before`; never the newest one, which says
    /// what the next one follows. Returns all keys.
    async fn remove_retired_keys(&self, before: Timestamp) -> Result<Vec<SigningKey>, Error>;
}
