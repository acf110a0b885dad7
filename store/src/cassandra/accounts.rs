//! Accounts in Cassandra. A name is claimed for a minute, the account written, then the claim confirmed without end: who
//! dies in between leaves a claim that ends by itself. Searches read a table that has a row for each beginning of a name.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use schemas::{Timestamp, UserId};
use uuid::Uuid;

use super::CassandraStore;
use super::cql::{CAS_TRIES, Cas, Write, contended, from_json, limit, side_by_side, to_json, values};
use crate::accounts::{Account, Accounts, Profile, Taken};
use crate::{Error, fold_case};

/// Beginnings of a name that have rows, up to so many characters; a longer one is looked for among those with its first 8.
const PREFIX_MAX: usize = 8;
/// Each beginning is in so many partitions, so that no common one becomes too large: ten million accounts are a million
/// rows in each for no beginning at all, and 50 MB.
const SHARDS: i32 = 8;
/// Rows of a partition that are read at a time, at least.
const SEARCH_PAGE: usize = 16;

/// A unique name, with its statements.
struct Name {
    claim: &'static str,
    owner: &'static str,
    take_over: &'static str,
    confirm: &'static str,
    release: &'static str,
}

const USERNAME: Name = Name {
    claim: "INSERT INTO usernames (username, id) VALUES (?, ?) IF NOT EXISTS USING TTL 60",
    owner: "SELECT id, TTL(id) FROM usernames WHERE username = ?",
    take_over: "UPDATE usernames USING TTL 60 SET id = ? WHERE username = ? IF id = ?",
    confirm: "UPDATE usernames SET id = ? WHERE username = ? IF id = ?",
    release: "DELETE FROM usernames WHERE username = ? IF id = ?",
};

const EMAIL: Name = Name {
    claim: "INSERT INTO emails (email, id) VALUES (?, ?) IF NOT EXISTS USING TTL 60",
    owner: "SELECT id, TTL(id) FROM emails WHERE email = ?",
    take_over: "UPDATE emails USING TTL 60 SET id = ? WHERE email = ? IF id = ?",
    confirm: "UPDATE emails SET id = ? WHERE email = ? IF id = ?",
    release: "DELETE FROM emails WHERE email = ? IF id = ?",
};

/// An account's row.
struct Versioned {
    version: i64,
    account: Account,
}

impl CassandraStore {
    async fn account(&self, id: UserId) -> Result<Option<Versioned>, Error> {
        type Columns = (i64, String, Option<String>, Option<String>, String, i64);
        let query = "SELECT version, username, email, password_hash, profile, created_at FROM accounts WHERE id = ?";
        let seen = "SELECT last_seen FROM accounts_seen WHERE id = ?";
        let (row, seen) =
            tokio::try_join!(self.cql.row::<Columns>(query, values![id]), self.cql.row::<(i64,)>(seen, values![id]))?;
        let Some((version, username, email, password_hash, profile, created_at)) = row else { return Ok(None) };
        let account = Account {
            id,
            username,
            email,
            password_hash,
            profile: from_json(&profile)?,
            created_at: Timestamp(created_at),
            last_seen: seen.map(|(at,)| Timestamp(at)),
        };
        Ok(Some(Versioned { version, account }))
    }

    /// Claims a name for a minute, unless another account has it.
    async fn claim(&self, name: &Name, text: &str, id: UserId) -> Result<bool, Error> {
        for _ in 0..CAS_TRIES {
            if self.cql.cas(vec![Write(name.claim, values![text, id])]).await? == Cas::Applied {
                return Ok(true);
            }
            let Some((owner, ttl)) = self.cql.row::<(Uuid, Option<i32>)>(name.owner, values![text]).await? else {
                continue;
            };
            let owner = UserId(owner);
            if owner == id {
                return Ok(true);
            }
            // A confirmed name is its account's, unless a rename has left it behind.
            let has_it = |account: &Account| account.username == text || account.email.as_deref() == Some(text);
            if ttl.is_some() || self.account(owner).await?.is_none_or(|owner| has_it(&owner.account)) {
                return Ok(false);
            }
            if self.cql.cas(vec![Write(name.take_over, values![id, text, owner])]).await? == Cas::Applied {
                return Ok(true);
            }
        }
        Err(contended())
    }

    /// Makes a claim last. `false`: it has ended, and another account has the name.
    async fn confirm(&self, name: &Name, text: &str, id: UserId) -> Result<bool, Error> {
        for _ in 0..CAS_TRIES {
            match self.cql.cas(vec![Write(name.confirm, values![id, text, id])]).await? {
                Cas::Applied => return Ok(true),
                Cas::Unknown => {}
                Cas::Refused if self.claim(name, text, id).await? => {}
                Cas::Refused => return Ok(false),
            }
        }
        Err(contended())
    }

    /// Lets go of a name. A claim that stays for want of an answer is of no harm: see [`CassandraStore::claim`].
    async fn release(&self, name: &Name, text: &str, id: UserId) -> Result<(), Error> {
        self.cql.cas(vec![Write(name.release, values![text, id])]).await.map(drop)
    }

    /// Holds what an account is called. `Err(_)`: another one has it.
    async fn hold(&self, account: &Account) -> Result<Result<(), Taken>, Error> {
        if !self.confirm(&USERNAME, &account.username, account.id).await? {
            return Ok(Err(Taken::Username));
        }
        match &account.email {
            Some(email) if !self.confirm(&EMAIL, email, account.id).await? => Ok(Err(Taken::Email)),
            _ => Ok(Ok(())),
        }
    }

    /// Enters an account under all beginnings of its names, as of a version.
    async fn enter(&self, id: UserId, username: &str, profile: &Profile, version: i64) -> Result<(), Error> {
        let insert =
            "INSERT INTO accounts_by_prefix (prefix, shard, username, id) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
        let rows = beginnings(username, profile)
            .into_iter()
            .map(|prefix| vec![Write(insert, values![prefix, shard(id), username, id, version])]);
        self.cql.write_partitions(rows.collect()).await
    }
}

/// Beginnings of an account's names, folded.
fn beginnings(username: &str, profile: &Profile) -> BTreeSet<String> {
    let display = fold_case(&profile.display_name);
    let of = |name: &str| (0..=PREFIX_MAX).map(|length| name.chars().take(length).collect()).collect::<Vec<String>>();
    of(username).into_iter().chain(of(&display)).collect()
}

fn shard(id: UserId) -> i32 {
    i32::from(id.as_bytes()[15]) % SHARDS
}

#[async_trait]
impl Accounts for CassandraStore {
    async fn create_account(&self, account: Account) -> Result<Result<(), Taken>, Error> {
        let (username, email) = (fold_case(&account.username), account.email.as_deref().map(fold_case));
        let account = Account { username, email, ..account };
        let _turn = self.cql.lane(("account", &account.username)).await;
        if let Some(known) = self.account(account.id).await? {
            return self.hold(&known.account).await;
        }
        if !self.claim(&USERNAME, &account.username, account.id).await? {
            return Ok(Err(Taken::Username));
        }
        if let Some(email) = &account.email
            && !self.claim(&EMAIL, email, account.id).await?
        {
            self.release(&USERNAME, &account.username, account.id).await?;
            return Ok(Err(Taken::Email));
        }
        self.enter(account.id, &account.username, &account.profile, 1).await?;
        if let Some(at) = account.last_seen {
            self.touch_accounts(&[(account.id, at)]).await?;
        }
        let insert = "INSERT INTO accounts (id, version, username, email, password_hash, profile, created_at)
            VALUES (?, 1, ?, ?, ?, ?, ?) IF NOT EXISTS";
        let Account { id, username, email, password_hash, profile, created_at, .. } = &account;
        let row = values![id, username, email, password_hash, to_json(profile)?, created_at];
        match self.cql.cas(vec![Write(insert, row)]).await? {
            Cas::Applied => {}
            // Another copy of the same creation, or this one.
            Cas::Refused | Cas::Unknown => {
                return match self.account(account.id).await? {
                    Some(known) => self.hold(&known.account).await,
                    None => Err(contended()),
                };
            }
        }
        let held = self.hold(&account).await?;
        if held.is_err() {
            // It took longer than the claims lasted, and somebody else was quicker.
            self.cql.cas(vec![Write("DELETE FROM accounts WHERE id = ? IF version = 1", values![account.id])]).await?;
        }
        Ok(held)
    }

    async fn accounts(&self, ids: &[UserId]) -> Result<Vec<Account>, Error> {
        let found = side_by_side(ids.iter().map(|id| self.account(*id))).await?;
        Ok(found.into_iter().flatten().map(|row| row.account).collect())
    }

    async fn account_by_username(&self, username: &str) -> Result<Option<Account>, Error> {
        let username = fold_case(username);
        let owner = self.cql.row::<(Uuid, Option<i32>)>(USERNAME.owner, values![username]).await?;
        let Some((id, _)) = owner else { return Ok(None) };
        let account = self.account(UserId(id)).await?.map(|row| row.account);
        Ok(account.filter(|account| account.username == username))
    }

    async fn account_by_email(&self, email: &str) -> Result<Option<Account>, Error> {
        let email = fold_case(email);
        // No key is empty; nor is an address.
        if email.is_empty() {
            return Ok(None);
        }
        let owner = self.cql.row::<(Uuid, Option<i32>)>(EMAIL.owner, values![email]).await?;
        let Some((id, _)) = owner else { return Ok(None) };
        let account = self.account(UserId(id)).await?.map(|row| row.account);
        Ok(account.filter(|account| account.email.as_ref() == Some(&email)))
    }

    async fn update_account(&self, id: UserId, username: &str, profile: Profile) -> Result<Result<(), Taken>, Error> {
        let username = fold_case(username);
        let _turn = self.cql.lane(("account", id)).await;
        for _ in 0..CAS_TRIES {
            let Some(known) = self.account(id).await? else { return Ok(Ok(())) };
            if !self.claim(&USERNAME, &username, id).await? {
                return Ok(Err(Taken::Username));
            }
            let version = known.version + 1;
            self.enter(id, &username, &profile, version).await?;
            let update = "UPDATE accounts SET version = ?, username = ?, profile = ? WHERE id = ? IF version = ?";
            let row = values![version, username, to_json(&profile)?, id, known.version];
            if self.cql.cas(vec![Write(update, row)]).await? != Cas::Applied {
                continue;
            }
            if !self.confirm(&USERNAME, &username, id).await? {
                return Ok(Err(Taken::Username));
            }
            let before = known.account;
            if before.username != username {
                self.release(&USERNAME, &before.username, id).await?;
            }
            let kept = if before.username == username { beginnings(&username, &profile) } else { BTreeSet::new() };
            let delete =
                "DELETE FROM accounts_by_prefix USING TIMESTAMP ? WHERE prefix = ? AND shard = ? AND username = ?";
            let gone = beginnings(&before.username, &before.profile);
            let gone = gone
                .difference(&kept)
                .map(|prefix| vec![Write(delete, values![version, prefix, shard(id), before.username])]);
            self.cql.write_partitions(gone.collect()).await?;
            return Ok(Ok(()));
        }
        Err(contended())
    }

    async fn set_password_hash(&self, id: UserId, hash: &str) -> Result<(), Error> {
        let _turn = self.cql.lane(("account", id)).await;
        for _ in 0..CAS_TRIES {
            let update = "UPDATE accounts SET password_hash = ? WHERE id = ? IF EXISTS";
            if self.cql.cas(vec![Write(update, values![hash, id])]).await? != Cas::Unknown {
                return Ok(());
            }
        }
        Err(contended())
    }

    async fn touch_accounts(&self, seen: &[(UserId, Timestamp)]) -> Result<(), Error> {
        // The time as the write timestamp: the latest stays. What nobody has an account for, nobody reads.
        let touch = "INSERT INTO accounts_seen (id, last_seen) VALUES (?, ?) USING TIMESTAMP ?";
        let rows = seen.iter().map(|(id, at)| vec![Write(touch, values![id, at, at])]);
        self.cql.write_partitions(rows.collect()).await
    }

    async fn find_accounts(&self, prefix: &str, after: Option<&str>, limit_to: usize) -> Result<Vec<Account>, Error> {
        let prefix = fold_case(prefix);
        let key: String = prefix.chars().take(PREFIX_MAX).collect();
        let page = limit_to.max(SEARCH_PAGE);
        let mut after = after.map(fold_case).unwrap_or_default();
        let mut found = Vec::new();
        let query = "SELECT username, id FROM accounts_by_prefix
            WHERE prefix = ? AND shard = ? AND username > ? LIMIT ?";
        loop {
            let (key, from) = (&key, &after);
            let read = |shard: i32| self.cql.rows::<(String, Uuid)>(query, values![key, shard, from, limit(page)]);
            let shards = side_by_side((0..SHARDS).map(read)).await?;
            // Beyond the end of a full page there may be more of its shard: rows count up to the first such end.
            let full = shards.iter().filter(|rows| rows.len() == page);
            let end = full.filter_map(|rows| rows.last()).map(|(username, _)| username.clone()).min();
            let rows: BTreeMap<String, Uuid> = shards.into_iter().flatten().collect();
            let ids: Vec<(String, UserId)> = rows
                .into_iter()
                .filter(|(username, _)| end.as_ref().is_none_or(|end| username <= end))
                .map(|(username, id)| (username, UserId(id)))
                .collect();
            for part in ids.chunks(page) {
                let accounts = self.accounts(&part.iter().map(|(_, id)| *id).collect::<Vec<_>>()).await?;
                // A row may have been left behind by a change of names, or be ahead of one.
                let fits = |account: &Account| {
                    part.iter().any(|(username, id)| *id == account.id && *username == account.username)
                        && (account.username.starts_with(&prefix)
                            || fold_case(&account.profile.display_name).starts_with(&prefix))
                };
                found.extend(accounts.into_iter().filter(fits));
                if found.len() >= limit_to {
                    found.truncate(limit_to);
                    return Ok(found);
                }
            }
            match end {
                Some(end) => after = end,
                None => return Ok(found),
            }
        }
    }
}
