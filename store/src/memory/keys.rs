//! Signing keys in memory.

use async_trait::async_trait;

use super::MemoryStore;
use crate::Error;
use crate::keys::{Keys, SigningKey};

#[async_trait]
impl Keys for MemoryStore {
    async fn signing_keys(&self) -> Result<Vec<SigningKey>, Error> {
        Ok(self.tables().signing_keys.clone())
    }

    async fn add_signing_key(&self, key: SigningKey, only_first: bool) -> Result<Vec<SigningKey>, Error> {
        let keys = &mut self.tables().signing_keys;
        let fits = if only_first { keys.is_empty() } else { keys.iter().all(|known| known.id != key.id) };
        if fits {
            keys.push(key);
            keys.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        }
        Ok(keys.clone())
    }
}
