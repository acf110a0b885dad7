//! Time and randomness for this crate's unit tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use schemas::{Clock, Entropy, Timestamp};

use crate::auth::issuers::{FetchError, Fetched, IssuerError, Issuers, JwksPort};
use crate::config::TrustedIssuer;

/// Where the manual clock starts: 2025-11-21T09:00:00Z.
const START_MS: i64 = 1_763_715_600_000;

/// A clock that moves only when told to.
#[derive(Default)]
pub(crate) struct ManualClock(AtomicI64);

impl ManualClock {
    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as i64, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(START_MS + self.0.load(Ordering::SeqCst))
    }

    fn micros(&self) -> i64 {
        self.now().0 * 1_000
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::SeqCst) as u64)
    }
}

/// Bytes that differ at each call, and are no secret.
#[derive(Default)]
pub(crate) struct Counting(AtomicU64);

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let count = self.0.fetch_add(1, Ordering::SeqCst).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
            chunk.copy_from_slice(&count[..chunk.len()]);
        }
    }
}

/// A network with nothing behind it.
struct NoNetwork;

#[async_trait]
impl JwksPort for NoNetwork {
    async fn fetch(&self, _: &str) -> Result<Fetched, FetchError> {
        Err(FetchError("no network".into()))
    }
}

/// Issuers with these names and JWKS, for the audience `posthaste`.
pub(crate) fn issuers_of(fixed: &[(&str, &str)]) -> Result<Issuers, IssuerError> {
    let trusted: Vec<TrustedIssuer> = fixed
        .iter()
        .map(|(name, jwks)| TrustedIssuer {
            name: (*name).into(),
            jwks: Some((*jwks).into()),
            jwks_url: None,
            audience: "posthaste".into(),
        })
        .collect();
    Issuers::new(&trusted, Arc::new(NoNetwork), Arc::new(ManualClock::default()))
}
