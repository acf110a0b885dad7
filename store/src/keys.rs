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
    /// When it was made; the newest signs.
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
    /// Adds a key; if `only_first`, only where there is none yet (two edges may start at once). Returns all keys.
    async fn add_signing_key(&self, key: SigningKey, only_first: bool) -> Result<Vec<SigningKey>, Error>;
}
