//! Access tokens: EdDSA JWTs of our own, and those of issuers that the settings trust. The algorithm never comes from
//! the token: our keys have one, and so has each key of another issuer (RFC 8725 section 3.1).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use schemas::{DeviceId, Timestamp, UserId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::issuers::Issuers;
use super::keys::Keys;
use super::{AuthError, Identity};

/// Longest token that is looked at, bytes: other issuers put much into theirs, but headers end at some 16 KiB.
const TOKEN_MAX_BYTES: usize = 8 * 1024;

/// How far a token's times may be ahead of ours: clocks differ.
pub(super) const SKEW: Duration = Duration::from_secs(60);

/// What our own tokens say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// Issuer.
    pub iss: String,
    /// Audience.
    pub aud: String,
    /// Who.
    pub sub: UserId,
    /// Void from this second on, since 1970.
    pub exp: i64,
    /// Issued at, seconds since 1970.
    pub iat: i64,
    /// The token's own id.
    pub jti: Uuid,
    /// With which device.
    pub device: DeviceId,
}

/// What we read of other issuers' tokens.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct ExternalClaims {
    sub: String,
    exp: i64,
    /// Absent: as old as can be, so that every revocation counts for it.
    #[serde(default)]
    iat: i64,
    #[serde(default)]
    nbf: i64,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    preferred_username: Option<String>,
}

/// A person of another issuer, as their token describes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    /// `name`.
    pub name: Option<String>,
    /// `preferred_username`.
    pub username: Option<String>,
    /// `sub`.
    pub subject: String,
}

/// A token that holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Who it speaks for.
    pub identity: Identity,
    /// For tokens of other issuers: what they say of the person.
    pub described: Option<Described>,
}

/// Signs and judges tokens.
pub struct Tokens {
    issuer: String,
    audience: String,
    issuers: Issuers,
}

impl Tokens {
    /// For our own tokens and those of these issuers.
    pub fn new(issuer: &str, audience: &str, issuers: Issuers) -> Self {
        Self { issuer: issuer.to_owned(), audience: audience.to_owned(), issuers }
    }

    /// Keeps the keys of other issuers fresh. Never ends.
    pub async fn run(&self) {
        self.issuers.run().await;
    }

    /// Returns once the keys of the issuer that a token claims are as fresh as they can be now; false where that is no
    /// other issuer of ours.
    pub async fn learn_keys(&self, token: &str) -> bool {
        match claimed_issuer(token).filter(|issuer| *issuer != self.issuer && self.issuers.has(issuer)) {
            Some(issuer) => {
                self.issuers.ask(&issuer).await;
                true
            }
            None => false,
        }
    }

    /// Signs a token that holds for `ttl`; `None` where every key is retired.
    pub fn sign(
        &self,
        keys: &Keys,
        (user, device): (UserId, DeviceId),
        jti: Uuid,
        now: Timestamp,
        ttl: Duration,
    ) -> Option<String> {
        let iat = now.0.div_euclid(1_000);
        let claims = Claims {
            iss: self.issuer.clone(),
            aud: self.audience.clone(),
            sub: user,
            exp: iat.saturating_add(i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)),
            iat,
            jti,
            device,
        };
        keys.with_signing(ttl, |key| {
            let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::EdDSA) };
            jsonwebtoken::encode(&header, &claims, &key.signing).ok()
        })?
    }

    /// Judges a token by signature, issuer, audience and times; revocation is another's matter.
    pub fn verify(&self, keys: &Keys, token: &str, now: Timestamp) -> Result<Verified, AuthError> {
        if token.len() > TOKEN_MAX_BYTES {
            return Err(AuthError::Invalid("too_long"));
        }
        let header = jsonwebtoken::decode_header(token).map_err(|_| AuthError::Invalid("malformed"))?;
        // Read before anything is proven, and used for nothing but the choice of the key that must prove it.
        let issuer = claimed_issuer(token).ok_or(AuthError::Invalid("malformed"))?;
        if header.crit.is_some() {
            // RFC 7515 section 4.1.11: an extension that we do not know must not be passed over.
            return Err(AuthError::Invalid("malformed"));
        }
        let (identity, described) = if issuer == self.issuer {
            let kid = header.kid.as_deref().ok_or(AuthError::Invalid("unknown_key"))?;
            let claims: Claims = keys
                .with(kid, |key| decode(token, &key.verifying, Algorithm::EdDSA, &self.issuer, &self.audience))
                .ok_or(AuthError::Invalid("unknown_key"))??;
            let identity = Identity {
                user: claims.sub,
                device: Some(claims.device),
                issued_at: seconds(claims.iat),
                expires_at: seconds(claims.exp),
                external: false,
            };
            (identity, None)
        } else {
            let claims: ExternalClaims =
                self.issuers.with_key(&issuer, header.kid.as_deref(), |key, audience| {
                    decode(token, &key.key, key.algorithm, &issuer, audience)
                })??;
            if claims.sub.is_empty() || seconds(claims.nbf) > now.after(SKEW) {
                return Err(AuthError::Invalid("malformed"));
            }
            let identity = Identity {
                user: UserId::external(&issuer, &claims.sub),
                device: None,
                issued_at: seconds(claims.iat),
                expires_at: seconds(claims.exp),
                external: true,
            };
            let described = Described { name: claims.name, username: claims.preferred_username, subject: claims.sub };
            (identity, Some(described))
        };
        if identity.expires_at <= now {
            return Err(AuthError::Expired);
        }
        // A token from the future would outlive every revocation.
        if identity.issued_at > now.after(SKEW) {
            return Err(AuthError::Invalid("from_the_future"));
        }
        Ok(Verified { identity, described })
    }
}

fn decode<T: DeserializeOwned>(
    token: &str,
    key: &DecodingKey,
    algorithm: Algorithm,
    issuer: &str,
    audience: &str,
) -> Result<T, AuthError> {
    let mut validation = Validation::new(algorithm);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    validation.set_issuer(&[issuer]);
    validation.set_audience(&[audience]);
    // The library would read the wall clock; `verify` asks ours.
    validation.validate_exp = false;
    jsonwebtoken::decode::<T>(token, key, &validation).map(|data| data.claims).map_err(|error| {
        use jsonwebtoken::errors::ErrorKind;
        AuthError::Invalid(match error.kind() {
            ErrorKind::InvalidSignature => "bad_signature",
            ErrorKind::InvalidAlgorithm => "bad_algorithm",
            ErrorKind::InvalidAudience => "wrong_audience",
            ErrorKind::InvalidIssuer => "unknown_issuer",
            _ => "malformed",
        })
    })
}

fn seconds(since_1970: i64) -> Timestamp {
    Timestamp(since_1970.saturating_mul(1_000))
}

fn claimed_issuer(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claimed {
        iss: String,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice::<Claimed>(&payload).ok().map(|claimed| claimed.iss)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use jsonwebtoken::EncodingKey;
    use proptest::prelude::{any, proptest};
    use schemas::Clock;
    use serde_json::{Value, json};
    use store::memory::MemoryStore;

    use super::*;
    use crate::auth::issuers::IssuerError;
    use crate::testing::{ManualClock, issuers_of};

    const TTL: Duration = Duration::from_secs(900);

    struct Fixture {
        clock: Arc<ManualClock>,
        keys: Keys,
        tokens: Tokens,
        foreign: EncodingKey,
    }

    /// Our own key, and an issuer `load` that we trust with its key `k1`.
    async fn fixture() -> Fixture {
        let clock = Arc::new(ManualClock::default());
        let keys = Keys::open(Arc::new(MemoryStore::new()), clock.clone(), [7; 32]).await.expect("a store");
        let other = Keys::open(Arc::new(MemoryStore::new()), clock.clone(), [9; 32]).await.expect("a store");
        let mut public = other.jwks().keys.remove(0);
        public.kid = "k1".into();
        let jwks = json!({ "keys": [public, { "kty": "oct", "kid": "secret", "k": "c2VjcmV0" }] }).to_string();
        let issuers = issuers_of(&[("load", &jwks)]).expect("a usable key");
        let tokens = Tokens::new("posthaste", "posthaste", issuers);
        let foreign = other.with_signing(TTL, |key| key.signing.clone()).expect("a key");
        Fixture { clock, keys, tokens, foreign }
    }

    impl Fixture {
        fn verify(&self, token: &str) -> Result<Verified, AuthError> {
            self.tokens.verify(&self.keys, token, self.clock.now())
        }

        fn own(&self) -> String {
            let who = (UserId(Uuid::from_u128(1)), DeviceId(Uuid::from_u128(2)));
            self.tokens.sign(&self.keys, who, Uuid::from_u128(3), self.clock.now(), TTL).expect("a live key")
        }

        fn own_claims(&self) -> Value {
            let iat = self.clock.now().0 / 1_000;
            json!({
                "iss": "posthaste", "aud": "posthaste", "sub": Uuid::from_u128(1), "exp": iat + 900, "iat": iat,
                "jti": Uuid::from_u128(3), "device": Uuid::from_u128(2),
            })
        }

        fn own_signed(&self, claims: &Value) -> String {
            self.keys
                .with_signing(TTL, |key| {
                    let header = Header { kid: Some(key.id.clone()), ..Header::new(Algorithm::EdDSA) };
                    jsonwebtoken::encode(&header, claims, &key.signing).expect("signs")
                })
                .expect("a live key")
        }

        fn foreign_claims(&self) -> Value {
            let iat = self.clock.now().0 / 1_000;
            json!({ "iss": "load", "aud": "posthaste", "sub": "u1", "exp": iat + 900, "iat": iat, "name": "Ada" })
        }

        fn foreign_signed(&self, kid: Option<&str>, claims: &Value) -> String {
            let header = Header { kid: kid.map(str::to_owned), ..Header::new(Algorithm::EdDSA) };
            jsonwebtoken::encode(&header, claims, &self.foreign).expect("signs")
        }
    }

    /// Changed claims under the untouched signature do not hold; these are signed anew.
    fn with(mut claims: Value, name: &str, value: Value) -> Value {
        claims[name] = value;
        claims
    }

    fn without(mut claims: Value, name: &str) -> Value {
        claims.as_object_mut().expect("an object").remove(name);
        claims
    }

    fn by_hand(header: &Value, claims: &Value, signature: &[u8]) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.{}", part(header), part(claims), URL_SAFE_NO_PAD.encode(signature))
    }

    #[tokio::test]
    async fn our_own_token_speaks_for_its_user_and_device_until_it_ends() {
        let f = fixture().await;
        let token = f.own();
        let identity = f.verify(&token).expect("holds").identity;
        assert_eq!(identity.user, UserId(Uuid::from_u128(1)));
        assert_eq!(identity.device, Some(DeviceId(Uuid::from_u128(2))));
        assert!(!identity.external);
        f.clock.advance(TTL - Duration::from_millis(1));
        assert!(f.verify(&token).is_ok());
        f.clock.advance(Duration::from_millis(1));
        assert_eq!(f.verify(&token), Err(AuthError::Expired));
    }

    #[tokio::test]
    async fn the_algorithm_is_ours_to_say() {
        let f = fixture().await;
        let kid = f.keys.jwks().keys[0].kid.clone();
        let public = URL_SAFE_NO_PAD.decode(&f.keys.jwks().keys[0].x).expect("base64url");
        for alg in ["none", "None", "NONE", ""] {
            let token = by_hand(&json!({"alg": alg, "typ": "JWT", "kid": kid}), &f.own_claims(), b"");
            assert!(matches!(f.verify(&token), Err(AuthError::Invalid(_))), "{alg}");
        }
        // The public key as a shared secret: the classic confusion.
        for alg in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let header = Header { kid: Some(kid.clone()), ..Header::new(alg) };
            let token = jsonwebtoken::encode(&header, &f.own_claims(), &EncodingKey::from_secret(&public));
            let token = token.expect("signs");
            assert_eq!(f.verify(&token), Err(AuthError::Invalid("bad_algorithm")));
        }
        for alg in ["RS256", "ES256", "PS256"] {
            let token = by_hand(&json!({"alg": alg, "kid": kid}), &f.own_claims(), &[1; 64]);
            assert_eq!(f.verify(&token), Err(AuthError::Invalid("bad_algorithm")), "{alg}");
        }
        let header = Header { kid: Some("secret".into()), ..Header::new(Algorithm::HS256) };
        let token = jsonwebtoken::encode(&header, &f.foreign_claims(), &EncodingKey::from_secret(b"secret"));
        assert_eq!(f.verify(&token.expect("signs")), Err(AuthError::Invalid("unknown_key")));
    }

    #[tokio::test]
    async fn a_token_needs_every_claim_in_its_own_form() {
        let f = fixture().await;
        assert!(f.verify(&f.own_signed(&f.own_claims())).is_ok());
        for name in ["iss", "aud", "sub", "exp", "iat", "jti", "device"] {
            let token = f.own_signed(&without(f.own_claims(), name));
            assert!(matches!(f.verify(&token), Err(AuthError::Invalid(_))), "without {name}");
        }
        for (name, value) in [
            ("exp", json!("4102444800")),
            ("exp", json!(null)),
            ("exp", json!([4_102_444_800_u64])),
            ("exp", json!(u64::MAX)),
            ("iat", json!("0")),
            ("iss", json!("posthaste ")),
            ("iss", json!(["posthaste"])),
            ("iss", json!("load")),
            ("aud", json!("other")),
            ("aud", json!([])),
            ("sub", json!("no uuid")),
            ("sub", json!("")),
            ("device", json!("")),
        ] {
            let token = f.own_signed(&with(f.own_claims(), name, value.clone()));
            assert!(matches!(f.verify(&token), Err(AuthError::Invalid(_))), "{name} = {value}");
        }
        let ahead = f.clock.now().0 / 1_000 + 3_600;
        let token = f.own_signed(&with(with(f.own_claims(), "iat", json!(ahead)), "exp", json!(ahead + 900)));
        assert_eq!(f.verify(&token), Err(AuthError::Invalid("from_the_future")));
    }

    #[tokio::test]
    async fn a_changed_token_does_not_hold() {
        let f = fixture().await;
        let token = f.own();
        let parts: Vec<&str> = token.split('.').collect();
        let other = URL_SAFE_NO_PAD.encode(with(f.own_claims(), "sub", json!(Uuid::from_u128(9))).to_string());
        assert_eq!(f.verify(&format!("{}.{other}.{}", parts[0], parts[2])), Err(AuthError::Invalid("bad_signature")));
        for bad in ["", ".", "..", "...", "a.b.c", parts[0], &format!("{}.{}.", parts[0], parts[1])] {
            assert!(matches!(f.verify(bad), Err(AuthError::Invalid(_))), "{bad:?}");
        }
        assert_eq!(f.verify(&"a".repeat(TOKEN_MAX_BYTES + 1)), Err(AuthError::Invalid("too_long")));
    }

    #[tokio::test]
    async fn a_token_is_judged_by_the_key_that_it_names_alone() {
        let f = fixture().await;
        let stranger = Keys::open(Arc::new(MemoryStore::new()), f.clock.clone(), [1; 32]).await.expect("a store");
        let who = (UserId(Uuid::from_u128(1)), DeviceId(Uuid::from_u128(2)));
        let token = f.tokens.sign(&stranger, who, Uuid::nil(), f.clock.now(), TTL).expect("a live key");
        assert_eq!(f.verify(&token), Err(AuthError::Invalid("unknown_key")));
        let no_kid = jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &f.own_claims(), &f.foreign);
        assert_eq!(f.verify(&no_kid.expect("signs")), Err(AuthError::Invalid("unknown_key")));
        // Another issuer's key must not sign for us, whatever it says.
        let kid = f.keys.jwks().keys[0].kid.clone();
        assert_eq!(f.verify(&f.foreign_signed(Some(&kid), &f.own_claims())), Err(AuthError::Invalid("bad_signature")));
    }

    #[tokio::test]
    async fn a_trusted_issuers_token_speaks_for_a_derived_user() {
        let f = fixture().await;
        let verified = f.verify(&f.foreign_signed(Some("k1"), &f.foreign_claims())).expect("holds");
        assert_eq!(verified.identity.user, UserId::external("load", "u1"));
        assert!(verified.identity.external && verified.identity.device.is_none());
        assert_eq!(verified.described.and_then(|described| described.name).as_deref(), Some("Ada"));
        assert!(f.verify(&f.foreign_signed(None, &f.foreign_claims())).is_ok(), "its only key needs no name");
        let listed = with(f.foreign_claims(), "aud", json!(["x", "posthaste"]));
        assert!(f.verify(&f.foreign_signed(Some("k1"), &listed)).is_ok());
    }

    #[tokio::test]
    async fn a_trusted_issuers_token_must_be_for_us_and_in_time() {
        let f = fixture().await;
        let far = f.clock.now().0 / 1_000 + 3_600;
        for (name, value) in [
            ("iss", json!("other")),
            ("aud", json!("other")),
            ("aud", json!(["x", "y"])),
            ("sub", json!("")),
            ("nbf", json!(far)),
            ("exp", json!("soon")),
        ] {
            let token = f.foreign_signed(Some("k1"), &with(f.foreign_claims(), name, value.clone()));
            assert!(matches!(f.verify(&token), Err(AuthError::Invalid(_))), "{name} = {value}");
        }
        for name in ["iss", "aud", "sub", "exp"] {
            let token = f.foreign_signed(Some("k1"), &without(f.foreign_claims(), name));
            assert!(matches!(f.verify(&token), Err(AuthError::Invalid(_))), "without {name}");
        }
        let ended = with(f.foreign_claims(), "exp", json!(1));
        assert_eq!(f.verify(&f.foreign_signed(Some("k1"), &ended)), Err(AuthError::Expired));
        assert_eq!(
            f.verify(&f.foreign_signed(Some("k2"), &f.foreign_claims())),
            Err(AuthError::Invalid("unknown_key"))
        );
    }

    #[test]
    fn an_issuer_without_a_signing_key_is_refused_at_the_start() {
        let open = |jwks: &str| issuers_of(&[("x", jwks)]);
        assert!(matches!(open("no json"), Err(IssuerError::NotAJwks { .. })));
        assert!(matches!(open(r#"{"keys": []}"#), Err(IssuerError::NoKey(_))));
        assert!(matches!(open(r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}"#), Err(IssuerError::NoKey(_))));
    }

    proptest! {
        #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]
        #[test]
        fn no_text_is_a_token_by_accident(text in any::<String>(), header in any::<String>()) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let f = runtime.block_on(fixture());
            assert!(f.verify(&text).is_err());
            let encoded = URL_SAFE_NO_PAD.encode(&header);
            assert!(f.verify(&format!("{encoded}.{encoded}.{encoded}")).is_err());
        }
    }
}
