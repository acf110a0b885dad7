//! Signing keys in memory.

use async_trait::async_trait;

use schemas::Timestamp;

use super::MemoryStore;
use crate::Error;
use crate::keys::{Keys, SigningKey};

#[async_trait]
impl Keys for MemoryStore {
    async fn signing_keys(&self) -> Result<Vec<SigningKey>, Error> {
        Ok(self.tables().signing_keys.clone())
    }

    async fn add_signing_key(&self, key: SigningKey, newest: Option<String>) -> Result<Vec<SigningKey>, Error> {
        let keys = &mut self.tables().signing_keys;
        let is_new = keys.iter().all(|known| known.id != key.id);
        if is_new && keys.last().map(|known| &known.id) == newest.as_ref() {
            keys.push(key);
            keys.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        }
        Ok(keys.clone())
    }

    async fn retire_signing_key(&self, id: String, at: Timestamp) -> Result<Vec<SigningKey>, Error> {
        let keys = &mut self.tables().signing_keys;
        for key in keys.iter_mut().filter(|key| key.id == id) {
            key.retired_at = Some(key.retired_at.map_or(at, |earlier| earlier.min(at)));
        }
        Ok(keys.clone())
    }

    async fn remove_retired_keys(&self, before: Timestamp) -> Result<Vec<SigningKey>, Error> {
        let keys = &mut self.tables().signing_keys;
        let newest = keys.last().map(|key| key.id.clone());
        keys.retain(|key| Some(&key.id) == newest.as_ref() || key.retired_at.is_none_or(|at| at >= before));
        Ok(keys.clone())
    }
}
