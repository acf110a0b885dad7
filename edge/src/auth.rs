//! Who someone is: access tokens (`token`, signed with `keys` or by other `issuers`), passwords (`password`), refresh tokens (`refresh`) and
//! what takes tokens back (`revocation`).

use schemas::{DeviceId, Timestamp, UserId};

pub mod issuers;
pub mod keys;
pub mod password;
pub mod refresh;
pub mod revocation;
pub mod token;

/// Who an access token speaks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Who.
    pub user: UserId,
    /// With which device; `None` for tokens of other issuers, which know none of ours.
    pub device: Option<DeviceId>,
    /// When the token was issued.
    pub issued_at: Timestamp,
    /// When it ends.
    pub expires_at: Timestamp,
    /// Whether another issuer signed it.
    pub external: bool,
}

/// Why a token does not speak for anyone now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// There is none.
    #[error("no access token")]
    Missing,
    /// It was never valid here; the reason is for metrics.
    #[error("not a valid access token: {0}")]
    Invalid(&'static str),
    /// It was valid once.
    #[error("the access token has ended")]
    Expired,
    /// It was taken back.
    #[error("the access token was revoked")]
    Revoked,
    /// This edge can't tell now: it has not read the revocations for too long, or not reached the store.
    #[error("tokens can't be judged now")]
    Unavailable,
}

impl AuthError {
    /// A label for metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Invalid(reason) => reason,
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Unavailable => "unavailable",
        }
    }
}
