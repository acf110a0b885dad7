//! Signing keys in SQLite.

use async_trait::async_trait;
use rusqlite::{Connection, Row, params};

use super::SqliteStore;
use super::rows::{all, change, optional_time, time};
use crate::Error;
use crate::keys::{Keys, SigningKey};

fn key(row: &Row<'_>) -> rusqlite::Result<SigningKey> {
    Ok(SigningKey { id: row.get(0)?, seed: row.get(1)?, created_at: time(row, 2)?, retired_at: optional_time(row, 3)? })
}

fn keys(sql: &Connection) -> Result<Vec<SigningKey>, Error> {
    all(sql, "SELECT id, seed, created_at, retired_at FROM signing_keys ORDER BY created_at, id", [], key)
}

#[async_trait]
impl Keys for SqliteStore {
    async fn signing_keys(&self) -> Result<Vec<SigningKey>, Error> {
        self.readers.read(keys).await
    }

    async fn add_signing_key(&self, key: SigningKey, only_first: bool) -> Result<Vec<SigningKey>, Error> {
        let add = move |sql: &Connection| {
            let insert = "INSERT INTO signing_keys (id, seed, created_at, retired_at) SELECT ?1, ?2, ?3, ?4
                WHERE NOT (?5 AND EXISTS (SELECT 1 FROM signing_keys)) ON CONFLICT (id) DO NOTHING";
            let retired_at = key.retired_at.map(|at| at.0);
            change(sql, insert, params![key.id, key.seed, key.created_at.0, retired_at, only_first])?;
            keys(sql)
        };
        self.writer.write(0, add).await
    }
}
