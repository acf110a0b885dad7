//! Accounts in SQLite.

use async_trait::async_trait;
use rusqlite::{Connection, Row, params};
use schemas::{Timestamp, UserId};

use super::SqliteStore;
use super::rows::{all, change, count, json, one, optional_time, time, to_json, uuid};
use crate::accounts::{Account, Accounts, Profile, Taken};
use crate::{Error, fold_case};

const COLUMNS: &str = "id, username, email, password_hash, profile, created_at, last_seen";

fn account(row: &Row<'_>) -> rusqlite::Result<Account> {
    Ok(Account {
        id: UserId(uuid(row, 0)?),
        username: row.get(1)?,
        email: row.get(2)?,
        password_hash: row.get(3)?,
        profile: json(row, 4)?,
        created_at: time(row, 5)?,
        last_seen: optional_time(row, 6)?,
    })
}

/// Which of these names another account has.
fn taken(sql: &Connection, id: UserId, username: &str, email: Option<&str>) -> Result<Option<Taken>, Error> {
    let other = |query, name: &str| one(sql, query, params![name, id.as_bytes()], |_| Ok(()));
    if other("SELECT 1 FROM accounts WHERE username = ?1 AND id <> ?2", username)?.is_some() {
        return Ok(Some(Taken::Username));
    }
    let Some(email) = email else { return Ok(None) };
    Ok(other("SELECT 1 FROM accounts WHERE email = ?1 AND id <> ?2", email)?.map(|()| Taken::Email))
}

#[async_trait]
impl Accounts for SqliteStore {
    async fn create_account(&self, account: Account) -> Result<Result<(), Taken>, Error> {
        let (username, email) = (fold_case(&account.username), account.email.as_deref().map(fold_case));
        let create = move |sql: &Connection| {
            let id = account.id.as_bytes();
            if one(sql, "SELECT 1 FROM accounts WHERE id = ?1", [id], |_| Ok(()))?.is_some() {
                return Ok(Ok(()));
            }
            if let Some(taken) = taken(sql, account.id, &username, email.as_deref())? {
                return Ok(Err(taken));
            }
            let insert = "INSERT INTO accounts
                (id, username, email, password_hash, profile, display_key, created_at, last_seen)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
            let profile = to_json(&account.profile)?;
            let display_key = fold_case(&account.profile.display_name);
            let last_seen = account.last_seen.map(|at| at.0);
            let params = params![
                id,
                username,
                email,
                account.password_hash,
                profile,
                display_key,
                account.created_at.0,
                last_seen
            ];
            change(sql, insert, params)?;
            Ok(Ok(()))
        };
        self.writer.write(0, create).await
    }

    async fn accounts(&self, ids: &[UserId]) -> Result<Vec<Account>, Error> {
        let (ids, query) = (ids.to_vec(), format!("SELECT {COLUMNS} FROM accounts WHERE id = ?1"));
        let read = move |sql: &Connection| {
            ids.iter().filter_map(|id| one(sql, &query, [id.as_bytes()], account).transpose()).collect()
        };
        self.readers.read(read).await
    }

    async fn account_by_username(&self, username: &str) -> Result<Option<Account>, Error> {
        let username = fold_case(username);
        let query = format!("SELECT {COLUMNS} FROM accounts WHERE username = ?1");
        self.readers.read(move |sql| one(sql, &query, [username], account)).await
    }

    async fn account_by_email(&self, email: &str) -> Result<Option<Account>, Error> {
        let email = fold_case(email);
        let query = format!("SELECT {COLUMNS} FROM accounts WHERE email = ?1");
        self.readers.read(move |sql| one(sql, &query, [email], account)).await
    }

    async fn update_account(&self, id: UserId, username: &str, profile: Profile) -> Result<Result<(), Taken>, Error> {
        let username = fold_case(username);
        let update = move |sql: &Connection| {
            if let Some(taken) = taken(sql, id, &username, None)? {
                return Ok(Err(taken));
            }
            let update = "UPDATE accounts SET username = ?2, profile = ?3, display_key = ?4 WHERE id = ?1";
            let (json, display_key) = (to_json(&profile)?, fold_case(&profile.display_name));
            change(sql, update, params![id.as_bytes(), username, json, display_key])?;
            Ok(Ok(()))
        };
        self.writer.write(0, update).await
    }

    async fn set_password_hash(&self, id: UserId, hash: &str) -> Result<(), Error> {
        let hash = hash.to_owned();
        let update = "UPDATE accounts SET password_hash = ?2 WHERE id = ?1";
        self.writer.write(0, move |sql| change(sql, update, params![id.as_bytes(), hash]).map(drop)).await
    }

    async fn touch_accounts(&self, seen: &[(UserId, Timestamp)]) -> Result<(), Error> {
        let seen = seen.to_vec();
        let touch = move |sql: &Connection| {
            let update = "UPDATE accounts SET last_seen = ?2 WHERE id = ?1 AND ifnull(last_seen < ?2, TRUE)";
            seen.iter().try_for_each(|(id, at)| change(sql, update, params![id.as_bytes(), at.0]).map(drop))
        };
        self.writer.write(0, touch).await
    }

    async fn find_accounts(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Account>, Error> {
        // Each half is a range of an index.
        let query = format!(
            "SELECT {COLUMNS} FROM accounts WHERE id IN (
                SELECT id FROM (SELECT id FROM accounts
                    WHERE username >= ?1 AND username < ?2 AND username > ?3 ORDER BY username LIMIT ?4)
                UNION
                SELECT id FROM (SELECT id FROM accounts
                    WHERE display_key >= ?1 AND display_key < ?2 AND username > ?3 ORDER BY username LIMIT ?4)
            ) ORDER BY username LIMIT ?4"
        );
        let prefix = fold_case(prefix);
        // The last of all characters: text with this beginning sorts below it.
        let end = format!("{prefix}{}", char::MAX);
        let after = after.map(fold_case).unwrap_or_default();
        self.readers.read(move |sql| all(sql, &query, params![prefix, end, after, count(limit)], account)).await
    }
}
