//! Accounts in memory.

use async_trait::async_trait;
use schemas::{Timestamp, UserId};

use super::{MemoryStore, Tables};
use crate::accounts::{Account, Accounts, Profile, Taken};
use crate::{Error, fold_case};

#[async_trait]
impl Accounts for MemoryStore {
    async fn create_account(&self, mut account: Account) -> Result<Result<(), Taken>, Error> {
        account.username = fold_case(&account.username);
        account.email = account.email.as_deref().map(fold_case);
        let mut tables = self.tables();
        if tables.accounts.contains_key(&account.id) {
            return Ok(Ok(()));
        }
        if let Some(taken) = tables.taken(account.id, &account.username, account.email.as_deref()) {
            return Ok(Err(taken));
        }
        tables.accounts.insert(account.id, account);
        Ok(Ok(()))
    }

    async fn accounts(&self, ids: &[UserId]) -> Result<Vec<Account>, Error> {
        let tables = self.tables();
        Ok(ids.iter().filter_map(|id| tables.accounts.get(id).cloned()).collect())
    }

    async fn account_by_username(&self, username: &str) -> Result<Option<Account>, Error> {
        let username = fold_case(username);
        Ok(self.tables().accounts.values().find(|account| account.username == username).cloned())
    }

    async fn account_by_email(&self, email: &str) -> Result<Option<Account>, Error> {
        let email = Some(fold_case(email));
        Ok(self.tables().accounts.values().find(|account| account.email == email).cloned())
    }

    async fn update_account(&self, id: UserId, username: &str, profile: Profile) -> Result<Result<(), Taken>, Error> {
        let username = fold_case(username);
        let mut tables = self.tables();
        if let Some(taken) = tables.taken(id, &username, None) {
            return Ok(Err(taken));
        }
        if let Some(account) = tables.accounts.get_mut(&id) {
            account.username = username;
            account.profile = profile;
        }
        Ok(Ok(()))
    }

    async fn set_password_hash(&self, id: UserId, hash: &str) -> Result<(), Error> {
        if let Some(account) = self.tables().accounts.get_mut(&id) {
            account.password_hash = Some(hash.to_owned());
        }
        Ok(())
    }

    async fn touch_accounts(&self, seen: &[(UserId, Timestamp)]) -> Result<(), Error> {
        let mut tables = self.tables();
        for (id, at) in seen {
            if let Some(account) = tables.accounts.get_mut(id) {
                account.last_seen = account.last_seen.max(Some(*at));
            }
        }
        Ok(())
    }

    async fn find_accounts(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Account>, Error> {
        let (prefix, after) = (fold_case(prefix), after.map(fold_case));
        let tables = self.tables();
        let mut found: Vec<&Account> = tables
            .accounts
            .values()
            .filter(|account| {
                (account.username.starts_with(&prefix) || fold_case(&account.profile.display_name).starts_with(&prefix))
                    && after.as_ref().is_none_or(|after| account.username > *after)
            })
            .collect();
        found.sort_by(|a, b| a.username.cmp(&b.username));
        Ok(found.into_iter().take(limit).cloned().collect())
    }
}

impl Tables {
    /// Which of these names another account has.
    fn taken(&self, id: UserId, username: &str, email: Option<&str>) -> Option<Taken> {
        let others = || self.accounts.values().filter(|account| account.id != id);
        if others().any(|account| account.username == username) {
            Some(Taken::Username)
        } else if email.is_some() && others().any(|account| account.email.as_deref() == email) {
            Some(Taken::Email)
        } else {
            None
        }
    }
}
