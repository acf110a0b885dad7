//! The signing keys of access tokens: read from the store, the first one made at the first start, all published as a
//! JWKS. The newest that is not retired signs; every one that is not retired verifies.

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

/// Everything of a PKCS #8 Ed25519 private key before the seed (RFC 8410 section 7).
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// An unknown key id asks the store for news at most so often, or bad tokens would load it.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);

/// One key, ready to use.
pub struct Key {
    /// Its `kid`.
    pub id: String,
    pub(crate) signing: EncodingKey,
    pub(crate) verifying: DecodingKey,
    public: [u8; 32],
    refresh_secret: [u8; 32],
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
    /// Reads the keys; makes the first one from `seed` where there is none yet. Two edges may start at once: one wins.
    pub async fn open(store: Arc<dyn Store>, clock: Arc<dyn Clock>, seed: [u8; 32]) -> Result<Self, store::Error> {
        let mut stored = store.signing_keys().await?;
        if stored.is_empty() {
            let public = Ed25519::from_bytes(&seed).verifying_key().to_bytes();
            let id = URL_SAFE_NO_PAD.encode(&Sha256::digest(public)[..12]);
            let first = SigningKey { id, seed, created_at: clock.now(), retired_at: None };
            stored = store.add_signing_key(first, true).await?;
        }
        let keys = stored.iter().map(Key::new).collect();
        let current = RwLock::new((clock.elapsed(), keys));
        Ok(Self { store, clock, current })
    }

    /// All keys, oldest first, retired ones among them.
    pub fn all(&self) -> Arc<[Key]> {
        self.current.read().1.clone()
    }

    /// Does something with the key that signs now; `None` where all are retired.
    pub(crate) fn with_signing<T>(&self, act: impl FnOnce(&Key) -> T) -> Option<T> {
        let now = self.clock.now();
        self.all().iter().rev().find(|key| key.is_live(now)).map(act)
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
        let keys = self.store.signing_keys().await?.iter().map(Key::new).collect();
        self.current.write().1 = keys;
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
