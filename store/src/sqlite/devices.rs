//! Devices, refresh tokens and revocations in SQLite.

use async_trait::async_trait;
use rusqlite::types::{FromSqlError, Type};
use rusqlite::{Connection, Row, params};
use schemas::{DeviceId, Timestamp, UserId};

use super::SqliteStore;
use super::rows::{all, change, count, integer, one, optional_time, time, unreadable, unsigned, uuid};
use crate::Error;
use crate::devices::{
    Device, Devices, REVOCATIONS_MAX, RefreshToken, Revocation, RevocationReason, Rotation, TokenHash,
};

const DEVICE_COLUMNS: &str = "id, user, name, created_at, last_seen, revoked";

fn device(row: &Row<'_>) -> rusqlite::Result<Device> {
    Ok(Device {
        id: DeviceId(uuid(row, 0)?),
        user: UserId(uuid(row, 1)?),
        name: row.get(2)?,
        created_at: time(row, 3)?,
        last_seen: time(row, 4)?,
        revoked: row.get(5)?,
    })
}

fn token(row: &Row<'_>) -> rusqlite::Result<RefreshToken> {
    Ok(RefreshToken {
        hash: row.get(0)?,
        device: DeviceId(uuid(row, 1)?),
        user: UserId(uuid(row, 2)?),
        expires_at: time(row, 3)?,
        spent: optional_time(row, 4)?.map(|at| Ok::<_, rusqlite::Error>((at, row.get(5)?))).transpose()?,
    })
}

fn revocation(row: &Row<'_>) -> rusqlite::Result<Revocation> {
    let reason = row.get_ref(4)?.as_str()?;
    Ok(Revocation {
        number: unsigned(row, 0)?,
        user: UserId(uuid(row, 1)?),
        device: row.get::<_, Option<[u8; 16]>>(2)?.map(|id| DeviceId(uuid::Uuid::from_bytes(id))),
        at: time(row, 3)?,
        reason: REASONS
            .iter()
            .find(|(_, name)| *name == reason)
            .map(|(reason, _)| *reason)
            .ok_or_else(|| unreadable(4, Type::Text, FromSqlError::InvalidType))?,
    })
}

/// The token of a hash.
fn find_token(sql: &Connection, hash: TokenHash) -> Result<Option<RefreshToken>, Error> {
    let query = "SELECT hash, device, user, expires_at, spent_at, successor FROM refresh_tokens WHERE hash = ?1";
    one(sql, query, [hash], token)
}

const REASONS: [(RevocationReason, &str); 3] = [
    (RevocationReason::SignedOut, "signed_out"),
    (RevocationReason::Banned, "banned"),
    (RevocationReason::Reused, "reused"),
];

fn name(reason: RevocationReason) -> &'static str {
    match reason {
        RevocationReason::SignedOut => "signed_out",
        RevocationReason::Banned => "banned",
        RevocationReason::Reused => "reused",
    }
}

fn insert_token(sql: &Connection, token: &RefreshToken) -> Result<(), Error> {
    let insert = "INSERT INTO refresh_tokens (hash, device, user, expires_at) VALUES (?1, ?2, ?3, ?4)
        ON CONFLICT (hash) DO NOTHING";
    let params = params![token.hash, token.device.as_bytes(), token.user.as_bytes(), token.expires_at.0];
    change(sql, insert, params).map(drop)
}

#[async_trait]
impl Devices for SqliteStore {
    async fn create_device(&self, device: Device, token: RefreshToken) -> Result<(), Error> {
        let create = move |sql: &Connection| {
            let insert = "INSERT INTO devices (id, user, name, created_at, last_seen, revoked)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (id) DO NOTHING";
            let (id, user) = (device.id.as_bytes(), device.user.as_bytes());
            let params = params![id, user, device.name, device.created_at.0, device.last_seen.0, device.revoked];
            change(sql, insert, params)?;
            insert_token(sql, &token)
        };
        self.writer.write(0, create).await
    }

    async fn device(&self, id: DeviceId) -> Result<Option<Device>, Error> {
        let query = format!("SELECT {DEVICE_COLUMNS} FROM devices WHERE id = ?1");
        self.readers.read(move |sql| one(sql, &query, [id.as_bytes()], device)).await
    }

    async fn devices_of(&self, user: UserId) -> Result<Vec<Device>, Error> {
        let query = format!(
            "SELECT {DEVICE_COLUMNS} FROM devices WHERE user = ?1 AND NOT revoked ORDER BY created_at DESC, id DESC"
        );
        self.readers.read(move |sql| all(sql, &query, [user.as_bytes()], device)).await
    }

    async fn refresh_token(&self, hash: TokenHash) -> Result<Option<RefreshToken>, Error> {
        self.readers.read(move |sql| find_token(sql, hash)).await
    }

    async fn rotate(
        &self,
        hash: TokenHash,
        next: TokenHash,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<Rotation, Error> {
        let rotate = move |sql: &Connection| {
            let Some(token) = find_token(sql, hash)? else { return Ok(Rotation::Unknown) };
            let device = token.device.as_bytes();
            let is_live = "SELECT NOT revoked FROM devices WHERE id = ?1";
            let is_live = one(sql, is_live, [device], |row| row.get(0))?.unwrap_or(false);
            if !is_live || token.expires_at < now {
                return Ok(Rotation::Dead);
            }
            if token.spent.is_some() {
                return Ok(Rotation::Spent { token });
            }
            insert_token(sql, &RefreshToken { hash: next, expires_at, ..token.clone() })?;
            let spend = "UPDATE refresh_tokens SET spent_at = ?2, successor = ?3 WHERE hash = ?1";
            change(sql, spend, params![hash, now.0, next])?;
            let touch = "UPDATE devices SET last_seen = max(last_seen, ?2) WHERE id = ?1";
            change(sql, touch, params![device, now.0])?;
            Ok(Rotation::Rotated { user: token.user, device: token.device })
        };
        self.writer.write(0, rotate).await
    }

    async fn revoke_device(
        &self,
        user: UserId,
        device: DeviceId,
        at: Timestamp,
        reason: RevocationReason,
    ) -> Result<(), Error> {
        let revoke = move |sql: &Connection| {
            let (user, device) = (user.as_bytes(), device.as_bytes());
            let known = "SELECT user = ?2 AND NOT revoked FROM devices WHERE id = ?1";
            if one(sql, known, [device, user], |row| row.get(0))? == Some(false) {
                return Ok(());
            }
            change(sql, "UPDATE devices SET revoked = 1 WHERE id = ?1", [device])?;
            let enter = "INSERT INTO revocations (user, device, at, reason) SELECT ?1, ?2, ?3, ?4
                WHERE NOT EXISTS (SELECT 1 FROM revocations WHERE user = ?1 AND device = ?2 AND at >= ?3)";
            change(sql, enter, params![user, device, at.0, name(reason)])?;
            Ok(())
        };
        self.writer.write(0, revoke).await
    }

    async fn revocations(&self, after: u64) -> Result<Vec<Revocation>, Error> {
        let query = "SELECT number, user, device, at, reason FROM revocations WHERE number > ?1
            ORDER BY number LIMIT ?2";
        self.readers.read(move |sql| all(sql, query, [integer(after), count(REVOCATIONS_MAX)], revocation)).await
    }

    async fn purge_tokens(&self, before: Timestamp, limit: usize) -> Result<usize, Error> {
        let purge = move |sql: &Connection| {
            let ended = "SELECT hash, device FROM refresh_tokens WHERE expires_at < ?1 ORDER BY expires_at LIMIT ?2";
            let form = |row: &Row<'_>| Ok((row.get::<_, TokenHash>(0)?, row.get::<_, [u8; 16]>(1)?));
            let ended = all(sql, ended, params![before.0, count(limit)], form)?;
            for (hash, _) in &ended {
                change(sql, "DELETE FROM refresh_tokens WHERE hash = ?1", [hash])?;
            }
            for (_, device) in &ended {
                let orphaned = "DELETE FROM devices
                    WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM refresh_tokens WHERE device = ?1)";
                change(sql, orphaned, [device])?;
            }
            Ok(ended.len())
        };
        self.writer.write(0, purge).await
    }

    async fn purge_revocations(&self, before: Timestamp, limit: usize) -> Result<usize, Error> {
        let purge = move |sql: &Connection| {
            let old = "DELETE FROM revocations WHERE number IN (
                SELECT number FROM revocations WHERE at < ?1 AND device IS NOT NULL ORDER BY number LIMIT ?2)";
            change(sql, old, params![before.0, count(limit)])
        };
        self.writer.write(0, purge).await
    }
}
