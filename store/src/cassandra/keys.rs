//! Signing keys in Cassandra: one partition, changed as a whole. That a removed seed's bytes are gone from the disks is not
//! before compaction has rewritten them, a day later at the earliest.

use async_trait::async_trait;
use schemas::Timestamp;

use super::CassandraStore;
use super::cql::{CAS_TRIES, Cas, Write, broken, contended, values};
use crate::Error;
use crate::keys::{Keys, SigningKey};

impl CassandraStore {
    /// All keys, oldest first, and the version of the whole.
    async fn keys(&self) -> Result<(Vec<SigningKey>, Option<i64>), Error> {
        type Columns = (Option<String>, Option<Vec<u8>>, Option<i64>, Option<i64>, Option<i64>);
        let query = "SELECT id, seed, created_at, retired_at, version FROM signing_keys WHERE log = 'keys'";
        let (mut keys, mut at) = (Vec::new(), None);
        for (id, seed, created_at, retired_at, version) in self.cql.rows::<Columns>(query, values![]).await? {
            at = version;
            // The version alone, where there are no keys.
            let Some(id) = id else { continue };
            let seed = seed.unwrap_or_default().try_into().map_err(|_| broken("a seed of another length"))?;
            let created_at = Timestamp(created_at.unwrap_or_default());
            keys.push(SigningKey { id, seed, created_at, retired_at: retired_at.map(Timestamp) });
        }
        keys.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
        Ok((keys, at))
    }

    /// Changes the keys; `change` says how, from what they are, or that nothing is to be done.
    async fn change_keys(&self, change: impl Fn(&[SigningKey]) -> Vec<Write> + Send) -> Result<Vec<SigningKey>, Error> {
        let _turn = self.cql.lane("keys").await;
        for _ in 0..CAS_TRIES {
            let (keys, version) = self.keys().await?;
            let mut writes = change(&keys);
            if writes.is_empty() {
                return Ok(keys);
            }
            let next = version.unwrap_or_default() + 1;
            let step = "UPDATE signing_keys SET version = ? WHERE log = 'keys' IF version = ?";
            writes.push(Write(step, values![next, version]));
            if self.cql.cas(writes).await? == Cas::Applied {
                return self.keys().await.map(|(keys, _)| keys);
            }
        }
        Err(contended())
    }
}

#[async_trait]
impl Keys for CassandraStore {
    async fn signing_keys(&self) -> Result<Vec<SigningKey>, Error> {
        self.keys().await.map(|(keys, _)| keys)
    }

    async fn add_signing_key(&self, key: SigningKey, newest: Option<String>) -> Result<Vec<SigningKey>, Error> {
        let insert = "INSERT INTO signing_keys (log, id, seed, created_at, retired_at) VALUES ('keys', ?, ?, ?, ?)";
        let add = |keys: &[SigningKey]| {
            let is_next = keys.last().map(|known| &known.id) == newest.as_ref();
            let is_new = keys.iter().all(|known| known.id != key.id);
            let write = || Write(insert, values![key.id, key.seed, key.created_at, key.retired_at]);
            (is_next && is_new).then(write).into_iter().collect()
        };
        self.change_keys(add).await
    }

    async fn retire_signing_key(&self, id: String, at: Timestamp) -> Result<Vec<SigningKey>, Error> {
        let update = "UPDATE signing_keys SET retired_at = ? WHERE log = 'keys' AND id = ?";
        let retire = |keys: &[SigningKey]| {
            let known = keys.iter().filter(|key| key.id == id && key.retired_at.is_none_or(|earlier| at < earlier));
            known.map(|key| Write(update, values![at, key.id])).collect()
        };
        self.change_keys(retire).await
    }

    async fn remove_retired_keys(&self, before: Timestamp) -> Result<Vec<SigningKey>, Error> {
        let delete = "DELETE FROM signing_keys WHERE log = 'keys' AND id = ?";
        let remove = |keys: &[SigningKey]| {
            let older = keys.split_last().map_or(&[][..], |(_, older)| older);
            let gone = older.iter().filter(|key| key.retired_at.is_some_and(|at| at < before));
            gone.map(|key| Write(delete, values![key.id])).collect()
        };
        self.change_keys(remove).await
    }
}
