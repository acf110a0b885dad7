//! Signing keys in SQLite.

use async_trait::async_trait;
use rusqlite::{Connection, Row, params};
use schemas::Timestamp;

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

    async fn add_signing_key(&self, key: SigningKey, newest: Option<String>) -> Result<Vec<SigningKey>, Error> {
        let add = move |sql: &Connection| {
            let insert = "INSERT INTO signing_keys (id, seed, created_at, retired_at) SELECT ?1, ?2, ?3, ?4
                WHERE ?5 IS (SELECT id FROM signing_keys ORDER BY created_at DESC, id DESC LIMIT 1)
                ON CONFLICT (id) DO NOTHING";
            let retired_at = key.retired_at.map(|at| at.0);
            change(sql, insert, params![key.id, key.seed, key.created_at.0, retired_at, newest])?;
            keys(sql)
        };
        self.writer.write(0, add).await
    }

    async fn retire_signing_key(&self, id: String, at: Timestamp) -> Result<Vec<SigningKey>, Error> {
        let retire = move |sql: &Connection| {
            let update = "UPDATE signing_keys SET retired_at = min(coalesce(retired_at, ?2), ?2) WHERE id = ?1";
            change(sql, update, params![id, at.0])?;
            keys(sql)
        };
        self.writer.write(0, retire).await
    }

    async fn remove_retired_keys(&self, before: Timestamp) -> Result<Vec<SigningKey>, Error> {
        let remove = move |sql: &Connection| {
            let delete = "DELETE FROM signing_keys WHERE retired_at < ?1
                AND id <> (SELECT id FROM signing_keys ORDER BY created_at DESC, id DESC LIMIT 1)";
            change(sql, delete, [before.0])?;
            keys(sql)
        };
        self.writer.write(0, remove).await
    }
}
