//! One edge: what it was handed, and what its handlers and sockets share. Owns the duties that go on beside requests:
//! revocations, signing keys, ids, forgetting tokens that have ended.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use parking_lot::Mutex;
use schemas::frame::close;
use schemas::{DeviceId, Timestamp, UserId};
use store::accounts::Taken;
use store::devices::RevocationReason;
use tokio::sync::Semaphore;

use crate::accounts;
use crate::auth::issuers::{IssuerError, Issuers};
use crate::auth::keys::Keys;
use crate::auth::password::PasswordHasher;
use crate::auth::refresh::purge_again_and_again;
use crate::auth::revocation::{self, Revocations};
use crate::auth::token::{Described, Tokens};
use crate::auth::{AuthError, Identity};
use crate::blocks::Blocks;
use crate::config::{Config, ConfigError};
use crate::hub::Hub;
use crate::ids::Ids;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::proxies::Proxies;
use crate::{Deps, origin};

/// Sign-in reads keys again after so many polls of the revocations: a withdrawn key is dead within 2 s everywhere.
const KEYS_EVERY_POLLS: u32 = 3;

/// People of other issuers whose account is known to exist, before the set begins anew: 1 MiB.
const KNOWN_EXTERNAL_MAX: usize = 65_536;

/// After a failed poll the hub's sockets are told to come back after this.
const STALE_RETRY_MS: u32 = 5_000;

/// Why an edge can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting can't be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The keys of another issuer can't be used.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// The store does not give the signing keys.
    #[error("the signing keys can't be read")]
    Store(#[from] store::Error),
}

/// One edge.
pub struct App {
    /// What it was handed.
    pub deps: Deps,
    /// Its sockets and commands in flight.
    pub hub: Arc<Hub>,
    /// Its settings.
    pub config: Config,
    /// Fresh ids.
    pub ids: Ids,
    /// Rate limits.
    pub limits: Arc<Limits>,
    /// What it counts.
    pub metrics: Metrics,
    pub(crate) proxies: Proxies,
    pub(crate) keys: Keys,
    pub(crate) tokens: Tokens,
    pub(crate) revocations: Revocations,
    pub(crate) passwords: Arc<dyn PasswordHasher>,
    /// Who is shut out; `None` without limits.
    pub(crate) blocks: Option<Mutex<Blocks>>,
    /// The number of the last shut-out that was read.
    pub(crate) shut_outs_read: Mutex<u64>,
    /// Places for sockets, held from the upgrade on.
    pub(crate) sockets: Arc<Semaphore>,
    known_external: Mutex<HashSet<UserId>>,
}

impl App {
    /// An edge that is ready to serve; drive [`App::run`] beside it.
    pub async fn new(
        deps: Deps,
        hub: Arc<Hub>,
        config: Config,
        passwords: Arc<dyn PasswordHasher>,
        metrics: Metrics,
    ) -> Result<Arc<Self>, StartError> {
        let limits = Arc::new(Limits::new(config.limits.as_ref(), deps.clock.clone()));
        Self::with_limits(deps, hub, config, limits, passwords, metrics).await
    }

    /// The same with limits that other edges are told of; they are those of `config`.
    pub async fn with_limits(
        deps: Deps,
        hub: Arc<Hub>,
        config: Config,
        limits: Arc<Limits>,
        passwords: Arc<dyn PasswordHasher>,
        metrics: Metrics,
    ) -> Result<Arc<Self>, StartError> {
        config.validate()?;
        let issuers = Issuers::new(&config.issuers, deps.jwks.clone(), deps.clock.clone())?;
        let tokens = Tokens::new(&config.issuer, &config.audience, issuers);
        let ids = Ids::new(deps.clock.clone(), deps.entropy.clone());
        let keys = Keys::open(deps.store.clone(), deps.clock.clone(), ids.secret()).await?;
        keys.tend(config.signing_key_age_max(), config.access_ttl(), config.signing_keys_since, || ids.secret())
            .await?;
        let revocations = Revocations::new(config.access_ttl(), Duration::from_millis(config.revocation_stale_ms));
        revocations.read(&*deps.store, &*deps.clock).await?;
        if config.limits.is_none() {
            tracing::warn!("rate limits are off, and nobody is shut out: for load tests only");
        }
        let proxies = Proxies::new(&config.trusted_proxies, config.forwarded_header);
        let sockets = Arc::new(Semaphore::new(config.connections_max));
        let known_external = Mutex::default();
        let blocks = config.limits.as_ref().map(|limits| Mutex::new(Blocks::new(limits.blocks.clone())));
        let app = Self {
            deps,
            hub,
            config,
            ids,
            limits,
            metrics,
            proxies,
            keys,
            tokens,
            revocations,
            passwords,
            blocks,
            shut_outs_read: Mutex::default(),
            sockets,
            known_external,
        };
        app.read_shut_outs().await?;
        Ok(Arc::new(app))
    }

    /// Does what goes on beside requests. Never ends.
    pub async fn run(&self) {
        let purge_every = Duration::from_secs(self.config.purge_interval_s);
        let purge = purge_again_and_again(&*self.deps.store, &*self.deps.clock, self.config.access_ttl(), purge_every);
        let (revocations, shut_outs) = (self.watch_revocations(), self.watch_shut_outs());
        tokio::join!(self.ids.run(), revocations, shut_outs, self.tokens.run(), purge);
    }

    /// Who an access token speaks for. For tokens of other issuers the account exists afterwards.
    pub async fn authenticate(&self, bearer: &str) -> Result<Identity, AuthError> {
        let judged = self.judge(bearer).await;
        if let Err(error) = &judged {
            self.metrics.auth_failures.with_label_values(&[error.reason()]).inc();
        }
        judged
    }

    async fn judge(&self, bearer: &str) -> Result<Identity, AuthError> {
        // Whoever can't tell what was taken back must not let anybody in.
        if self.revocations.is_stale(&*self.deps.clock) {
            return Err(AuthError::Unavailable);
        }
        let now = self.deps.clock.now();
        let verified = match self.tokens.verify(&self.keys, bearer, now) {
            // Another edge, or another issuer, may have begun a new key since we last looked.
            Err(AuthError::Invalid("unknown_key") | AuthError::Unavailable) => {
                if !self.tokens.learn_keys(bearer).await {
                    self.keys.reload().await.map_err(|_| AuthError::Unavailable)?;
                }
                self.tokens.verify(&self.keys, bearer, now)?
            }
            judged => judged?,
        };
        if self.revocations.revoked(&verified.identity) {
            return Err(AuthError::Revoked);
        }
        if let Some(described) = &verified.described {
            self.ensure_account(verified.identity.user, described).await?;
        }
        Ok(verified.identity)
    }

    /// Whether the page that a request comes from may open a socket here.
    pub fn origin_allowed(&self, headers: &HeaderMap) -> bool {
        origin::allowed(headers, self.config.public_scheme, &self.config.allowed_origins)
    }

    /// Takes a device's tokens back: here at once, on every other edge with its next poll.
    pub(crate) async fn revoke(
        &self,
        user: UserId,
        device: DeviceId,
        reason: RevocationReason,
    ) -> Result<(), store::Error> {
        let at = self.deps.clock.now();
        self.deps.store.revoke_device(user, device, at, reason).await?;
        self.apply_revocation(user, Some(device), at, reason);
        Ok(())
    }

    pub(crate) fn apply_revocation(
        &self,
        user: UserId,
        device: Option<DeviceId>,
        at: Timestamp,
        reason: RevocationReason,
    ) {
        self.revocations.enter(user, device, at);
        self.hub.close(user, device, revocation::close_code(reason), None);
    }

    async fn watch_revocations(&self) {
        let poll = Duration::from_millis(self.config.revocation_poll_ms);
        let mut polls: u32 = 0;
        loop {
            tokio::time::sleep(poll).await;
            // A store that hangs must not keep us from seeing that we are stale.
            let read = self.revocations.read(&*self.deps.store, &*self.deps.clock);
            match tokio::time::timeout(poll * 2, read).await {
                Ok(Ok(news)) => {
                    for entry in news {
                        self.apply_revocation(entry.user, entry.device, entry.at, entry.reason);
                    }
                }
                Ok(Err(error)) => tracing::warn!(%error, "the revocations can't be read"),
                Err(_) => tracing::warn!("the revocations can't be read in time"),
            }
            if self.revocations.has_become_stale(&*self.deps.clock) {
                tracing::error!("cut off from the revocations: no token is trusted until they are read again");
                self.hub.close_all(close::TRY_LATER, Some(STALE_RETRY_MS));
            }
            polls = polls.wrapping_add(1);
            if polls.is_multiple_of(KEYS_EVERY_POLLS)
                && !matches!(tokio::time::timeout(poll * 2, self.tend_keys()).await, Ok(Ok(())))
            {
                tracing::warn!("the signing keys can't be read");
            }
            self.metrics.hashing_depth.set(i64::try_from(self.passwords.depth()).unwrap_or(i64::MAX));
        }
    }

    async fn tend_keys(&self) -> Result<(), store::Error> {
        self.keys.reload().await?;
        let (age_max, since) = (self.config.signing_key_age_max(), self.config.signing_keys_since);
        self.keys.tend(age_max, self.config.access_ttl(), since, || self.ids.secret()).await
    }

    /// Creates the account of a person of another issuer, if this is their first time.
    async fn ensure_account(&self, user: UserId, described: &Described) -> Result<(), AuthError> {
        if self.known_external.lock().contains(&user) {
            return Ok(());
        }
        let store = &*self.deps.store;
        let known = store.accounts(&[user]).await.map_err(|_| AuthError::Unavailable)?;
        if known.is_empty() {
            let wish = described.username.as_deref().or(described.name.as_deref()).unwrap_or(&described.subject);
            let base = accounts::derived_username(wish);
            let display_name = described.name.as_deref().and_then(accounts::display_name).unwrap_or_default();
            let mut account = accounts::new(user, base.clone(), display_name, self.deps.clock.now());
            // The id is unique, so that a few of its digits soon make a unique name.
            let digits = user.0.simple().to_string();
            for length in [0, 6, 12, digits.len()] {
                if length > 0 {
                    account.username = accounts::suffixed(&base, &digits[..length]);
                }
                let created = store.create_account(account.clone()).await.map_err(|_| AuthError::Unavailable)?;
                match created {
                    Ok(()) => break,
                    Err(Taken::Username | Taken::Email) if length < digits.len() => {}
                    Err(_) => return Err(AuthError::Unavailable),
                }
            }
        }
        let mut set = self.known_external.lock();
        if set.len() >= KNOWN_EXTERNAL_MAX {
            set.clear();
        }
        set.insert(user);
        Ok(())
    }
}
