//! Accounts: who someone is. Names and addresses are unique without regard to case.

use async_trait::async_trait;
use schemas::{Timestamp, UserId};
use serde::{Deserialize, Serialize};

use crate::Error;

/// An account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Who.
    pub id: UserId,
    /// Unique, lower case.
    pub username: String,
    /// Unique, lower case.
    pub email: Option<String>,
    /// PHC string; `None` for people of another issuer.
    pub password_hash: Option<String>,
    /// What others see.
    pub profile: Profile,
    /// When.
    pub created_at: Timestamp,
    /// Last seen online.
    pub last_seen: Option<Timestamp>,
}

/// What others see of a person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// What people call them.
    pub display_name: String,
    /// About themselves.
    pub about: String,
    /// A picture's address or an emoji.
    pub avatar: String,
    /// Who sees what.
    pub visibility: ProfileVisibility,
}

/// Who sees which part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct ProfileVisibility {
    /// Of `about`.
    pub about: Audience,
    /// Of `avatar`.
    pub avatar: Audience,
    /// Of `last_seen` (and `online`).
    pub last_seen: Audience,
}

/// Who sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Audience {
    /// Everyone.
    #[default]
    Everyone,
    /// Friends.
    Friends,
    /// Nobody.
    Nobody,
}

/// Which unique name was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The username.
    Username,
    /// The e-mail address.
    Email,
}

/// The accounts.
#[async_trait]
pub trait Accounts: Send + Sync + 'static {
    /// Creates an account. `Ok(Err(_))`: a name is taken by another account, nothing was written. Repeating the same
    /// creation (same id) is `Ok(Ok(()))` and changes nothing.
    async fn create_account(&self, account: Account) -> Result<Result<(), Taken>, Error>;
    /// By id.
    async fn accounts(&self, ids: &[UserId]) -> Result<Vec<Account>, Error>;
    /// By username (any case).
    async fn account_by_username(&self, username: &str) -> Result<Option<Account>, Error>;
    /// By e-mail address (any case).
    async fn account_by_email(&self, email: &str) -> Result<Option<Account>, Error>;
    /// Changes profile and username. `Ok(Err(_))`: the name is taken. Without such an account nothing happens.
    async fn update_account(&self, id: UserId, username: &str, profile: Profile) -> Result<Result<(), Taken>, Error>;
    /// Replaces the password hash.
    async fn set_password_hash(&self, id: UserId, hash: &str) -> Result<(), Error>;
    /// Raises `last_seen`; never lowers it.
    async fn touch_accounts(&self, seen: &[(UserId, Timestamp)]) -> Result<(), Error>;
    /// Accounts whose username or display name begins with `prefix` (any case), by username, after `after`.
    async fn find_accounts(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Account>, Error>;
}
