//! Other issuers whose tokens are taken, and their keys: fixed ones, or those behind a URL, which change there when they
//! like. Owns when a URL is asked; how is the port's matter, and tokens are [`super::token`]'s.
//!
//! A token whose key is known never waits. One whose key is not may make us ask, at most once in `GAP` for each issuer
//! whatever it is sent, and waits with all others for that one answer.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::Mutex;
use schemas::Clock;
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::AuthError;
use crate::config::TrustedIssuer;

/// An issuer's URL is asked at most so often, or made-up key ids would have us storm it. A key that signs before this
/// time has passed since it was published may be refused for as long.
const GAP: Duration = Duration::from_secs(10);

/// One try, from connecting to the last byte: tokens may wait for it.
const TRY_TIMEOUT: Duration = Duration::from_secs(5);

/// Keys are asked for again after this, unless the answer says how long it may be kept.
const FRESH: Duration = Duration::from_secs(5 * 60);

/// What an answer may say of that. The upper bound is how long a key that was withdrawn may still be believed.
const FRESH_MIN: Duration = Duration::from_secs(60);
const FRESH_MAX: Duration = Duration::from_secs(60 * 60);

/// The longest pause between tries while the URL does not answer.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How long the last good keys serve while the URL does not answer: issuers are away for hours, not days.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// An answer of an issuer's URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// The body: a JWKS (RFC 7517).
    pub jwks: Vec<u8>,
    /// How long it may be kept (`max-age`, RFC 9111 section 5.2.2.1), if it says so.
    pub max_age: Option<Duration>,
}

/// No answer that could be a JWKS.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(pub String);

/// Asks URLs of issuers for their keys.
#[async_trait]
pub trait JwksPort: Send + Sync {
    /// What `url` answers to a GET. Follows no redirect, or whoever may redirect could name the keys; reads no endless
    /// body; is dropped when it takes too long.
    async fn fetch(&self, url: &str) -> Result<Fetched, FetchError>;
}

/// An issuer whose keys can't be used.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    /// Not a JWKS.
    #[error("the keys of issuer {issuer} are no JWKS")]
    NotAJwks {
        /// Whose.
        issuer: String,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Not one key that signs tokens: Ed25519, P-256 or RSA.
    #[error("issuer {0} has no usable key")]
    NoKey(String),
}

/// A key with the one algorithm that it is for.
pub(super) struct IssuerKey {
    id: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

/// The key of this id; where the token names none, the only one.
fn find<'a>(keys: &'a [IssuerKey], id: Option<&str>) -> Option<&'a IssuerKey> {
    match (id, keys) {
        (None, [only]) => Some(only),
        (None, _) => None,
        (Some(id), keys) => keys.iter().find(|key| key.id.as_deref() == Some(id)),
    }
}

/// The keys of a JWKS that are for signatures and known; others are passed over (RFC 7517 section 5).
fn parse(jwks: &[u8]) -> Result<Arc<[IssuerKey]>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let set: Set = serde_json::from_slice(jwks)?;
    Ok(set.keys.into_iter().filter_map(|key| usable(&serde_json::from_value(key).ok()?)).collect())
}

fn usable(jwk: &Jwk) -> Option<IssuerKey> {
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return None;
    }
    let algorithm = match (&jwk.algorithm, jwk.common.key_algorithm) {
        (AlgorithmParameters::OctetKeyPair(pair), None | Some(KeyAlgorithm::EdDSA))
            if pair.curve == EllipticCurve::Ed25519 =>
        {
            Algorithm::EdDSA
        }
        (AlgorithmParameters::EllipticCurve(curve), None | Some(KeyAlgorithm::ES256))
            if curve.curve == EllipticCurve::P256 =>
        {
            Algorithm::ES256
        }
        (AlgorithmParameters::RSA(_), None | Some(KeyAlgorithm::RS256)) => Algorithm::RS256,
        // A shared secret is never among them: who verifies could sign.
        _ => return None,
    };
    let key = DecodingKey::from_jwk(jwk).ok()?;
    Some(IssuerKey { id: jwk.common.key_id.clone(), algorithm, key })
}

/// What is known of the keys behind a URL, and when to ask again. Pure; times are the monotonic clock's.
#[derive(Default)]
struct Known {
    keys: Arc<[IssuerKey]>,
    /// Since when these keys are good, and for how long they are fresh.
    good: Option<(Duration, Duration)>,
    tried: Option<Duration>,
    under_way: bool,
    /// Tries in a row that brought nothing.
    failures: u32,
}

impl Known {
    /// The key of this id. `Unavailable` where it might exist and we can't know: whoever holds such a token must come
    /// again, not throw it away.
    fn find<'a>(&'a self, id: Option<&str>, now: Duration) -> Result<&'a IssuerKey, AuthError> {
        if self.good.is_none_or(|(since, _)| now >= since + KEPT) {
            return Err(AuthError::Unavailable);
        }
        let unknown = if self.failures > 0 { AuthError::Unavailable } else { AuthError::Invalid("unknown_key") };
        find(&self.keys, id).ok_or(unknown)
    }

    /// Whether a try is under way or may begin.
    fn may_bring_news(&self, now: Duration) -> bool {
        self.under_way || self.tried.is_none_or(|at| now >= at + GAP)
    }

    /// Begins a try, if one may.
    fn begin(&mut self, now: Duration) -> bool {
        let may = !self.under_way && self.may_bring_news(now);
        if may {
            (self.under_way, self.tried) = (true, Some(now));
        }
        may
    }

    /// The try that began has ended.
    fn end(&mut self, brought: Option<(Arc<[IssuerKey]>, Option<Duration>)>) {
        self.under_way = false;
        match brought {
            Some((keys, max_age)) => {
                // Since it was asked: the answer may have been on its way for a while.
                self.good = self.tried.map(|at| (at, max_age.unwrap_or(FRESH).clamp(FRESH_MIN, FRESH_MAX)));
                (self.keys, self.failures) = (keys, 0);
            }
            None => self.failures = self.failures.saturating_add(1),
        }
    }

    /// How long until the next try is due though nobody asks.
    fn due_in(&self, now: Duration) -> Duration {
        let due = match (self.tried, self.good) {
            (None, _) => Duration::ZERO,
            (Some(tried), Some((since, fresh))) if self.failures == 0 => tried.max(since + fresh),
            (Some(tried), _) => tried + GAP.saturating_mul(1 << self.failures.saturating_sub(1).min(8)).min(PAUSE_MAX),
        };
        due.saturating_sub(now)
    }
}

/// An issuer whose keys are behind a URL.
struct Remote {
    name: String,
    url: String,
    known: Mutex<Known>,
    asked: Notify,
    tries: watch::Sender<u64>,
}

impl Remote {
    /// Asks when it is due, or when a token asks and it may be. Never ends.
    async fn follow(&self, port: &dyn JwksPort, clock: &dyn Clock) {
        loop {
            let due = self.known.lock().due_in(clock.elapsed());
            tokio::select! {
                () = sleep(due) => {}
                () = self.asked.notified() => {}
            }
            if !self.known.lock().begin(clock.elapsed()) {
                continue;
            }
            let fetched = match timeout(TRY_TIMEOUT, port.fetch(&self.url)).await {
                Ok(fetched) => fetched.and_then(|fetched| {
                    let keys = parse(&fetched.jwks).map_err(|error| FetchError(format!("no JWKS: {error}")))?;
                    let usable = !keys.is_empty();
                    usable.then_some((keys, fetched.max_age)).ok_or_else(|| FetchError("no usable key".into()))
                }),
                Err(_) => Err(FetchError(format!("no answer in {} s", TRY_TIMEOUT.as_secs()))),
            };
            if let Err(error) = &fetched {
                tracing::warn!(issuer = self.name, url = self.url, %error, "an issuer's keys can't be fetched");
            }
            self.known.lock().end(fetched.ok());
            self.tries.send_modify(|tries| *tries += 1);
        }
    }

    /// Returns once a try has ended that may bring news; at once where none may begin now.
    async fn ask(&self, clock: &dyn Clock) {
        let mut tries = self.tries.subscribe();
        if self.known.lock().may_bring_news(clock.elapsed()) {
            self.asked.notify_one();
            // The try under way may have had its time already; the one that this asks for has no more than this.
            let _ = timeout(TRY_TIMEOUT, tries.changed()).await;
        }
    }
}

enum Keys {
    Fixed(Arc<[IssuerKey]>),
    Remote(Remote),
}

struct Issuer {
    audience: String,
    keys: Keys,
}

/// The issuers that the settings trust.
pub struct Issuers {
    port: Arc<dyn JwksPort>,
    clock: Arc<dyn Clock>,
    by_name: HashMap<String, Issuer>,
}

impl Issuers {
    /// Those of the settings. Nothing is asked before [`Issuers::run`]; an issuer that is away at the start is no reason
    /// not to serve everybody else.
    pub fn new(trusted: &[TrustedIssuer], port: Arc<dyn JwksPort>, clock: Arc<dyn Clock>) -> Result<Self, IssuerError> {
        let mut by_name = HashMap::new();
        for TrustedIssuer { name, jwks, jwks_url, audience } in trusted {
            let keys = match jwks_url {
                Some(url) => Keys::Remote(Remote {
                    name: name.clone(),
                    url: url.clone(),
                    known: Mutex::default(),
                    asked: Notify::new(),
                    tries: watch::Sender::new(0),
                }),
                None => {
                    let keys = parse(jwks.as_deref().unwrap_or_default().as_bytes())
                        .map_err(|source| IssuerError::NotAJwks { issuer: name.clone(), source })?;
                    if keys.is_empty() {
                        return Err(IssuerError::NoKey(name.clone()));
                    }
                    Keys::Fixed(keys)
                }
            };
            by_name.insert(name.clone(), Issuer { audience: audience.clone(), keys });
        }
        Ok(Self { port, clock, by_name })
    }

    /// Keeps the keys behind URLs fresh. Never ends.
    pub async fn run(&self) {
        let remote = self.by_name.values().filter_map(|issuer| match &issuer.keys {
            Keys::Remote(remote) => Some(remote.follow(&*self.port, &*self.clock)),
            Keys::Fixed(_) => None,
        });
        join_all(remote).await;
        // There may be none.
        std::future::pending().await
    }

    /// Whether this is one of them.
    pub(super) fn has(&self, issuer: &str) -> bool {
        self.by_name.contains_key(issuer)
    }

    /// Does something with an issuer's key of this id and the audience that its tokens must have.
    pub(super) fn with_key<T>(
        &self,
        issuer: &str,
        id: Option<&str>,
        act: impl FnOnce(&IssuerKey, &str) -> T,
    ) -> Result<T, AuthError> {
        let issuer = self.by_name.get(issuer).ok_or(AuthError::Invalid("unknown_issuer"))?;
        match &issuer.keys {
            Keys::Fixed(keys) => {
                find(keys, id).map(|key| act(key, &issuer.audience)).ok_or(AuthError::Invalid("unknown_key"))
            }
            Keys::Remote(remote) => {
                // Verifying a signature takes long beside finding its key: not under the lock.
                let known = {
                    let known = remote.known.lock();
                    known.find(id, self.clock.elapsed())?;
                    known.keys.clone()
                };
                find(&known, id).map(|key| act(key, &issuer.audience)).ok_or(AuthError::Invalid("unknown_key"))
            }
        }
    }

    /// Returns once the keys of an issuer are as fresh as they can be now, see [`GAP`].
    pub(super) async fn ask(&self, issuer: &str) {
        if let Some(Issuer { keys: Keys::Remote(remote), .. }) = self.by_name.get(issuer) {
            remote.ask(&*self.clock).await;
        }
    }
}

#[cfg(test)]
mod tests;
