//! Access tokens: whatever comes, none holds that nobody has signed.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use edge::auth::issuers::Issuers;
use edge::auth::keys::Keys;
use edge::auth::token::Tokens;
use edge::config::TrustedIssuer;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use schemas::{Clock, DeviceId, Timestamp, UserId};
use serde_json::json;
use store::memory::MemoryStore;
use uuid::Uuid;

use crate::input::Input;
use crate::memory::peak;
use crate::world::NoNetwork;

/// 2025-11-21T09:00:00Z.
const NOW: Timestamp = Timestamp(1_763_715_600_000);
const TTL: Duration = Duration::from_secs(900);
/// How far a token's times may be ahead.
const SKEW_MS: i64 = 60_000;

/// A P-256 key of these tests alone, and its public half.
const ES256_KEY: &str = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgfYTdVGW2lyzuDDgU
pjWZPPL6mXkOYVJAi0Qtz6GzE3ShRANCAAQSEv9qgHzJvoifIVUHhzJIk+9rjYHF
jpZxOJdXNZ4zKPua36OhIFlmsKxcnDa7oNQ6FxyeFi9M8qapKwn6xS6q
-----END PRIVATE KEY-----";
const ES256_X: &str = "EhL_aoB8yb6InyFVB4cySJPva42BxY6WcTiXVzWeMyg";
const ES256_Y: &str = "-5rfo6EgWWawrFycNrug1DoXHJ4WL0zypqkrCfrFLqo";

/// The order of Ed25519's group, little endian: S and S + L prove the same where a verifier forgets to look (RFC 8032
/// section 5.1.7).
const ED25519_ORDER: [u8; 32] = [
    0xED, 0xD3, 0xF5, 0x5C, 0x1A, 0x63, 0x12, 0x58, 0xD6, 0x9C, 0xF7, 0xA2, 0xDE, 0xF9, 0xDE, 0x14, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        NOW
    }

    fn micros(&self) -> i64 {
        NOW.0 * 1_000
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}

/// An edge's judgement, and what was signed: our own token, one of an issuer with Ed25519, one of an issuer with ES256.
struct Fixture {
    keys: Keys,
    tokens: Tokens,
    signed: [String; 3],
    public: Vec<u8>,
}

static FIXTURE: LazyLock<Fixture> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let keys = |seed| runtime.block_on(Keys::open(Arc::new(MemoryStore::new()), Arc::new(Still), seed)).unwrap();
    let (own, other) = (keys([7; 32]), keys([9; 32]));
    let es256 = json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "x": ES256_X, "y": ES256_Y}]});
    let trusted = |name: &str, jwks: String| {
        let (jwks, jwks_url) = (Some(jwks), None);
        TrustedIssuer { name: name.into(), jwks, jwks_url, audience: "posthaste".into() }
    };
    let tokens_of = |name: &str, trusted: &[TrustedIssuer]| {
        Tokens::new(name, "posthaste", Issuers::new(trusted, Arc::new(NoNetwork), Arc::new(Still)).unwrap())
    };
    let other_jwks = serde_json::to_string(&other.jwks()).unwrap();
    let trusted = [trusted("load", other_jwks), trusted("curve", es256.to_string())];
    let tokens = tokens_of("posthaste", &trusted);
    let who = (UserId(Uuid::from_u128(1)), DeviceId(Uuid::from_u128(2)));
    let sign = |tokens: &Tokens, keys| tokens.sign(keys, who, Uuid::from_u128(3), NOW, TTL).unwrap();
    let iat = NOW.0 / 1_000;
    let claims = json!({"iss": "curve", "aud": "posthaste", "sub": "u1", "iat": iat, "exp": iat + 900, "name": "Ada"});
    let key = EncodingKey::from_ec_pem(ES256_KEY.as_bytes()).unwrap();
    let signed = [
        sign(&tokens, &own),
        sign(&tokens_of("load", &[]), &other),
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &key).unwrap(),
    ];
    let public = BASE64URL.decode(&own.jwks().keys[0].x).unwrap();
    let fixture = Fixture { keys: own, tokens, signed, public };
    for token in &fixture.signed {
        fixture.tokens.verify(&fixture.keys, token, NOW).expect("what was signed holds");
    }
    fixture
});

/// The first byte says how a token is made of the rest; two more, what time it is.
///
/// # Panics
/// Where a law is broken.
pub fn check(data: &[u8]) {
    let fixture = &*FIXTURE;
    let mut input = Input(data);
    let how = input.byte();
    let shift = input.number();
    // From 18 h before to 18 h after, in steps of 2 s; 0 is now.
    let ahead_s = i64::from(u16::try_from(shift).unwrap().cast_signed()) * 2;
    let now = Timestamp(NOW.0 + ahead_s * 1_000);
    let token = match how % 4 {
        0 => String::from_utf8_lossy(input.0).into_owned(),
        1 => by_hand(fixture, &mut input),
        _ => mutated(fixture, &mut input),
    };
    let (judged, held) = peak(|| fixture.tokens.verify(&fixture.keys, &token, now));
    assert!(held <= 64 * token.len() + 64 * 1_024, "{held} bytes held for {} bytes", token.len());
    if judged.is_err() {
        // The other way round: what was signed holds as long as it shall.
        let in_time = -SKEW_MS <= ahead_s * 1_000 && ahead_s < 900;
        assert!(!in_time || !fixture.signed.contains(&token), "{judged:?} for what was signed: {token}");
        return;
    }
    assert!(now.0 < NOW.0 + 900_000 && NOW.0 <= now.0 + SKEW_MS, "holds at {now:?}");
    let [own, load, curve] = &fixture.signed;
    // An ES256 signature has a twin that anybody can make out of it (s, n - s). Nothing hangs on a token's own bytes, so
    // it may hold, but for the same claims alone.
    let (claims, _) = curve.rsplit_once('.').unwrap();
    let same_claims = token.rsplit_once('.').is_some_and(|(said, _)| said == claims);
    assert!(token == *own || token == *load || same_claims, "holds, and nobody has signed it: {token}");
}

/// Header and claims as said, with a signature that was made for something else, or with a secret that everybody knows.
fn by_hand(fixture: &Fixture, input: &mut Input<'_>) -> String {
    let kind = input.byte();
    let header = input.until(0);
    let said = format!("{}.{}", BASE64URL.encode(header), BASE64URL.encode(input.0));
    let signature = match kind % 8 {
        0..=2 => fixture.signed[usize::from(kind % 3)].rsplit('.').next().unwrap().to_owned(),
        3 => String::new(),
        4 => BASE64URL.encode([0; 64]),
        kind => {
            let algorithm = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512][usize::from(kind - 5)];
            jsonwebtoken::crypto::sign(said.as_bytes(), &EncodingKey::from_secret(&fixture.public), algorithm).unwrap()
        }
    };
    format!("{said}.{signature}")
}

/// Something that was signed, and then changed.
fn mutated(fixture: &Fixture, input: &mut Input<'_>) -> String {
    let mut bytes = fixture.signed[usize::from(input.byte() % 3)].clone().into_bytes();
    for _ in 0..16 {
        if input.is_empty() {
            break;
        }
        let (kind, at, byte) = (input.byte(), input.number(), input.byte());
        let at = at % (bytes.len() + 1);
        match kind % 8 {
            0 if at < bytes.len() => bytes[at] = byte,
            1 => bytes.insert(at, byte),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 => bytes.truncate(at),
            // A part of another token in the place of this one's.
            4 => {
                let other = fixture.signed[usize::from(byte % 3)].split('.').nth(at % 3).unwrap();
                replace_part(&mut bytes, at % 3, other.as_bytes());
            }
            // What base64 leaves over in the last character of a part, or the padding that it may have elsewhere.
            5 => {
                let Some(mut part) = part(&bytes, at % 3) else { continue };
                match part.last_mut() {
                    Some(last) if byte % 2 == 0 => *last = last.wrapping_add(byte / 2 % 4),
                    _ => part.push(b'='),
                }
                replace_part(&mut bytes, at % 3, &part);
            }
            // The twin of an Ed25519 signature.
            6 => {
                let Some(signature) = part(&bytes, 2).and_then(|part| BASE64URL.decode(part).ok()) else { continue };
                let Ok(mut signature) = <[u8; 64]>::try_from(signature) else { continue };
                let mut carry = 0;
                for (byte, order) in signature[32..].iter_mut().zip(ED25519_ORDER) {
                    let sum = u16::from(*byte) + u16::from(order) + carry;
                    [*byte, _] = sum.to_le_bytes();
                    carry = sum >> 8;
                }
                replace_part(&mut bytes, 2, BASE64URL.encode(signature).as_bytes());
            }
            // A bit of what a part says, not of how it is written.
            _ => {
                let Some(mut raw) = part(&bytes, at % 3).and_then(|part| BASE64URL.decode(part).ok()) else { continue };
                if raw.is_empty() {
                    continue;
                }
                let place = at % raw.len();
                raw[place] ^= byte;
                replace_part(&mut bytes, at % 3, BASE64URL.encode(raw).as_bytes());
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn part(token: &[u8], n: usize) -> Option<Vec<u8>> {
    token.split(|byte| *byte == b'.').nth(n).map(<[u8]>::to_vec)
}

fn replace_part(token: &mut Vec<u8>, n: usize, new: &[u8]) {
    let mut parts: Vec<&[u8]> = token.split(|byte| *byte == b'.').collect();
    if let Some(part) = parts.get_mut(n) {
        *part = new;
        *token = parts.join(&b'.');
    }
}
