//! The signing keys of access tokens: read from the store, the first one made at the first start, a new one by age, all
//! published as a JWKS. Every one that is not retired verifies. No valid token ever fails for a change of keys: a new
//! one is published before it signs, and the one before it stays until its last token has ended.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::SigningKey as Ed25519;
use hmac::{Hmac, Mac as _};
use jsonwebtoken::{DecodingKey, EncodingKey};
use parking_lot::RwLock;
use schemas::{Clock, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use store::Store;
use store::keys::SigningKey;

use super::token::SKEW;

/// Everything of a PKCS #8 Ed25519 private key before the seed (RFC 8410 section 7).
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// An unknown key id asks the store for news at most so often, or bad tokens would load it.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// A new key is published for so long before it signs: others may keep our JWKS for a minute, other edges read the keys
/// every few seconds, and clocks differ.
const PUBLISHED_AHEAD: Duration = Duration::from_secs(150);

/// A retired key is kept for so long: refresh tokens that were derived with it may be asked for again within their
/// grace, and until then people can see what was in force.
const RETIRED_KEPT: Duration = Duration::from_secs(24 * 3600);

/// For how long at least after a new key was made the one before it must stay.
pub(crate) fn overlap(ttl: Duration) -> Duration {
    // The last token is signed when the new key begins, by a clock that may be late.
    PUBLISHED_AHEAD + ttl + SKEW
}

/// One key, ready to use.
pub struct Key {
    /// Its `kid`.
    pub id: String,
    pub(crate) signing: EncodingKey,
    pub(crate) verifying: DecodingKey,
    public: [u8; 32],
    refresh_secret: [u8; 32],
    created_at: Timestamp,
    retired_at: Option<Timestamp>,
}

impl Key {
    fn new(key: &SigningKey) -> Self {
        let public = Ed25519::from_bytes(&key.seed).verifying_key().to_bytes();
        let mut pkcs8 = [0; PKCS8_HEAD.len() + 32];
        pkcs8[..PKCS8_HEAD.len()].copy_from_slice(&PKCS8_HEAD);
        pkcs8[PKCS8_HEAD.len()..].copy_from_slice(&key.seed);
        Self {
            id: key.id.clone(),
            signing: EncodingKey::from_ed_der(&pkcs8),
            verifying: DecodingKey::from_ed_der(&public),
            public,
            refresh_secret: mac(&key.seed, b"posthaste refresh successor"),
            created_at: key.created_at,
            retired_at: key.retired_at,
        }
    }

    /// What derives a refresh token's successor, see [`super::refresh`].
    pub(crate) fn refresh_mac(&self, token: &[u8]) -> [u8; 32] {
        mac(&self.refresh_secret, token)
    }

    fn is_live(&self, now: Timestamp) -> bool {
        self.retired_at.is_none_or(|at| now < at)
    }
}

/// A key of this seed.
fn made(seed: [u8; 32], created_at: Timestamp) -> SigningKey {
    let public = Ed25519::from_bytes(&seed).verifying_key().to_bytes();
    let id = URL_SAFE_NO_PAD.encode(&Sha256::digest(public)[..12]);
    SigningKey { id, seed, created_at, retired_at: None }
}

/// HMAC-SHA-256.
#[expect(clippy::expect_used, reason = "HMAC takes a key of any length (RFC 2104)")]
fn mac(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("any length is a key");
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// A public key as others read it (RFC 8037).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PublicKey {
    /// `OKP`.
    pub kty: String,
    /// `Ed25519`.
    pub crv: String,
    /// `sig`.
    #[serde(rename = "use")]
    pub usage: String,
    /// `EdDSA`.
    pub alg: String,
    /// Key id.
    pub kid: String,
    /// The key, base64url.
    pub x: String,
}

/// A set of public keys (RFC 7517).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Jwks {
    /// The keys.
    pub keys: Vec<PublicKey>,
}

/// The keys in force.
pub struct Keys {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    current: RwLock<(Duration, Arc<[Key]>)>,
}

impl Keys {
    /// Reads the keys; makes one from `seed` where none is in force. Two edges may start at once: one wins.
    pub async fn open(store: Arc<dyn Store>, clock: Arc<dyn Clock>, seed: [u8; 32]) -> Result<Self, store::Error> {
        let mut stored = store.signing_keys().await?;
        let now = clock.now();
        if !stored.iter().any(|key| Key::new(key).is_live(now)) {
            let newest = stored.last().map(|key| key.id.clone());
            stored = store.add_signing_key(made(seed, now), newest).await?;
        }
        let keys = stored.iter().map(Key::new).collect();
        let current = RwLock::new((clock.elapsed(), keys));
        Ok(Self { store, clock, current })
    }

    /// All keys, oldest first, retired ones among them.
    pub fn all(&self) -> Arc<[Key]> {
        self.current.read().1.clone()
    }

    /// Does something with the key that signs what must hold for `ttl` from now on; `None` where all are retired.
    pub(crate) fn with_signing<T>(&self, ttl: Duration, act: impl FnOnce(&Key) -> T) -> Option<T> {
        let now = self.clock.now();
        let keys = self.all();
        let lasting = |key: &&Key| key.is_live(now.after(ttl));
        let known = |key: &&Key| key.created_at.after(PUBLISHED_AHEAD) <= now;
        let newest_known = keys.iter().rev().find(|key| lasting(key) && known(key));
        // The first key of all, or the one after a withdrawal, can't wait.
        let any = || keys.iter().find(lasting).or_else(|| keys.iter().rev().find(|key| key.is_live(now)));
        newest_known.or_else(any).map(act)
    }

    /// Does what age asks for: withdraws keys made before `since`, makes a new one where the newest is older than
    /// `age_max` or none is in force, says when the ones before it end, whose tokens live for `ttl`, and removes those
    /// that ended long ago. Any number of edges may do so at once.
    pub async fn tend(
        &self,
        age_max: Duration,
        ttl: Duration,
        since: Option<Timestamp>,
        seed: impl FnOnce() -> [u8; 32] + Send,
    ) -> Result<(), store::Error> {
        let now = self.clock.now();
        let mut read = None;
        for key in self
            .all()
            .iter()
            .filter(|key| key.is_live(now) && since.is_some_and(|since| key.created_at < since && since <= now))
        {
            tracing::warn!(key = %key.id, "a signing key is withdrawn: its tokens are dead");
            read = Some(self.store.retire_signing_key(key.id.clone(), now).await?);
        }
        self.adopt(read.take());
        let keys = self.all();
        let newest = keys.last().filter(|key| key.is_live(now));
        if newest.is_none_or(|key| now.since(key.created_at) >= age_max) {
            let last = keys.last();
            // Whatever clocks say, the new one is the newest.
            let at = last.map_or(now, |key| now.max(Timestamp(key.created_at.0 + 1)));
            let new = made(seed(), at);
            tracing::info!(key = %new.id, "a new signing key is published");
            read = Some(self.store.add_signing_key(new, last.map(|key| key.id.clone())).await?);
        }
        self.adopt(read.take());
        let keys = self.all();
        for (old, new) in keys.iter().zip(keys.iter().skip(1)).filter(|(old, _)| old.retired_at.is_none()) {
            read = Some(self.store.retire_signing_key(old.id.clone(), new.created_at.after(overlap(ttl))).await?);
        }
        let long_retired = |key: &Key| key.retired_at.is_some_and(|at| at.after(RETIRED_KEPT) < now);
        if keys.iter().rev().skip(1).any(long_retired) {
            let before = Timestamp(now.0.saturating_sub(i64::try_from(RETIRED_KEPT.as_millis()).unwrap_or(i64::MAX)));
            read = Some(self.store.remove_retired_keys(before).await?);
        }
        self.adopt(read);
        Ok(())
    }

    fn adopt(&self, stored: Option<Vec<SigningKey>>) {
        if let Some(stored) = stored {
            self.current.write().1 = stored.iter().map(Key::new).collect();
        }
    }

    /// Does something with the live key of this id.
    pub(crate) fn with<T>(&self, id: &str, act: impl FnOnce(&Key) -> T) -> Option<T> {
        let now = self.clock.now();
        self.all().iter().find(|key| key.id == id && key.is_live(now)).map(act)
    }

    /// Reads the keys again, unless that was done a moment ago.
    pub async fn reload(&self) -> Result<(), store::Error> {
        let now = self.clock.elapsed();
        {
            let mut current = self.current.write();
            if now < current.0 + RELOAD_INTERVAL {
                return Ok(());
            }
            current.0 = now;
        }
        let stored = self.store.signing_keys().await?;
        self.adopt(Some(stored));
        Ok(())
    }

    /// The public keys.
    pub fn jwks(&self) -> Jwks {
        let now = self.clock.now();
        let keys = self.all();
        let public = keys.iter().filter(|key| key.is_live(now)).map(|key| PublicKey {
            kty: "OKP".into(),
            crv: "Ed25519".into(),
            usage: "sig".into(),
            alg: "EdDSA".into(),
            kid: key.id.clone(),
            x: URL_SAFE_NO_PAD.encode(key.public),
        });
        Jwks { keys: public.collect() }
    }
}

#[cfg(test)]
mod tests {
    use schemas::{DeviceId, UserId};
    use store::memory::MemoryStore;
    use uuid::Uuid;

    use super::*;
    use crate::auth::token::Tokens;
    use crate::auth::{AuthError, Identity};
    use crate::testing::{ManualClock, issuers_of};

    const AGE: Duration = Duration::from_secs(3_600);
    const TTL: Duration = Duration::from_secs(900);
    /// How long others keep our JWKS, as its answer says.
    const JWKS_KEPT: Duration = Duration::from_secs(60);

    struct Edge {
        keys: Keys,
        seeds: u64,
        tokens: Tokens,
    }

    impl Edge {
        async fn new(store: &Arc<MemoryStore>, clock: &Arc<ManualClock>, seeds: u64) -> Self {
            let keys = Keys::open(store.clone(), clock.clone(), seed(seeds)).await.expect("a store");
            Self { keys, seeds, tokens: Tokens::new("posthaste", "posthaste", issuers_of(&[]).expect("no issuers")) }
        }

        /// What an edge does every few seconds.
        async fn tend(&mut self, since: Option<Timestamp>) {
            self.keys.reload().await.expect("a store");
            self.seeds += 1;
            let seed = seed(self.seeds);
            self.keys.tend(AGE, TTL, since, || seed).await.expect("a store");
        }

        fn sign(&self, now: Timestamp) -> String {
            let who = (UserId(Uuid::from_u128(1)), DeviceId(Uuid::from_u128(2)));
            self.tokens.sign(&self.keys, who, Uuid::from_u128(3), now, TTL).expect("a live key")
        }

        fn verify(&self, token: &str, now: Timestamp) -> Result<Identity, AuthError> {
            self.tokens.verify(&self.keys, token, now).map(|verified| verified.identity)
        }
    }

    fn seed(n: u64) -> [u8; 32] {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&n.to_be_bytes());
        seed
    }

    fn kid(token: &str) -> String {
        jsonwebtoken::decode_header(token).expect("a token").kid.expect("a key id")
    }

    #[tokio::test]
    async fn no_valid_token_fails_over_many_changes_of_keys_here_elsewhere_or_outside() {
        let (clock, store) = (Arc::new(ManualClock::default()), Arc::new(MemoryStore::new()));
        let mut edges = [Edge::new(&store, &clock, 1).await, Edge::new(&store, &clock, 1 << 32).await];
        let mut alive: std::collections::VecDeque<String> = std::collections::VecDeque::new();
        let mut outside = (clock.now(), edges[0].keys.jwks());
        let mut kids = std::collections::BTreeSet::new();
        let step = Duration::from_secs(15);
        // On beyond the last change until the new key signs.
        for round in 0..((4 * AGE + 2 * PUBLISHED_AHEAD).as_secs() / step.as_secs()) {
            clock.advance(step);
            let now = clock.now();
            // The second edge looks only now and then.
            edges[0].tend(None).await;
            if round % 7 == 0 {
                edges[1].tend(None).await;
            }
            for edge in &edges {
                alive.push_back(edge.sign(now));
            }
            while alive.len() > 2 * (TTL.as_secs() / step.as_secs()) as usize {
                alive.pop_front();
            }
            if now.since(outside.0) >= JWKS_KEPT {
                outside = (now, edges[0].keys.jwks());
            }
            for token in alive.iter().step_by(31).chain([&alive[0], &alive[alive.len() - 1]]) {
                for edge in &edges {
                    if edge.verify(token, now) == Err(AuthError::Invalid("unknown_key")) {
                        edge.keys.reload().await.expect("a store");
                    }
                    assert!(edge.verify(token, now).is_ok(), "round {round}: {:?}", edge.verify(token, now));
                }
                assert!(outside.1.keys.iter().any(|key| key.kid == kid(token)), "round {round}");
                kids.insert(kid(token));
            }
            assert!(edges[0].keys.jwks().keys.len() <= 2, "old keys go");
        }
        assert!(kids.len() >= 4, "{kids:?}");
        assert_eq!(edges[0].keys.all().len(), kids.len(), "two edges make one new key at a time");
    }

    #[tokio::test]
    async fn keys_that_ended_long_ago_are_gone_and_an_edge_that_slept_meanwhile_goes_on() {
        let (clock, store) = (Arc::new(ManualClock::default()), Arc::new(MemoryStore::new()));
        let mut edge = Edge::new(&store, &clock, 1).await;
        let mut asleep = Edge::new(&store, &clock, 1 << 32).await;
        let mut most = 0;
        for _ in 0..(50 * AGE.as_secs() / 60) {
            clock.advance(Duration::from_secs(60));
            edge.tend(None).await;
            most = most.max(edge.keys.all().len());
        }
        // A day's worth of hourly keys, those in force, and no more.
        assert!((24..=28).contains(&most), "{most}");
        let token = edge.sign(clock.now());
        asleep.tend(None).await;
        assert!(asleep.verify(&token, clock.now()).is_ok());
        assert_eq!(asleep.keys.all().len(), edge.keys.all().len());
    }

    #[tokio::test]
    async fn tokens_of_a_withdrawn_key_fail_and_another_key_signs_at_once() {
        let (clock, store) = (Arc::new(ManualClock::default()), Arc::new(MemoryStore::new()));
        let mut edge = Edge::new(&store, &clock, 1).await;
        let token = edge.sign(clock.now());
        clock.advance(Duration::from_secs(5));
        assert!(edge.verify(&token, clock.now()).is_ok());
        edge.tend(Some(clock.now())).await;
        assert_eq!(edge.verify(&token, clock.now()), Err(AuthError::Invalid("unknown_key")));
        let fresh = edge.sign(clock.now());
        assert_ne!(kid(&fresh), kid(&token));
        assert!(edge.verify(&fresh, clock.now()).is_ok());
        let jwks = edge.keys.jwks();
        assert_eq!(jwks.keys.len(), 1);
        assert_eq!(jwks.keys[0].kid, kid(&fresh));
        // The same again, after a restart on the same store.
        let mut edge = Edge::new(&store, &clock, 1 << 40).await;
        edge.tend(Some(clock.now())).await;
        assert!(edge.verify(&fresh, clock.now()).is_ok());
    }

    #[tokio::test]
    async fn an_edge_that_starts_with_withdrawn_keys_only_makes_one() {
        let (clock, store) = (Arc::new(ManualClock::default()), Arc::new(MemoryStore::new()));
        let edge = Edge::new(&store, &clock, 1).await;
        store::keys::Keys::retire_signing_key(&*store, edge.keys.all()[0].id.clone(), clock.now())
            .await
            .expect("a store");
        let edge = Edge::new(&store, &clock, 2).await;
        assert!(edge.verify(&edge.sign(clock.now()), clock.now()).is_ok());
    }
}
