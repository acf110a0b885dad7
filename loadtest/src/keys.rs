//! An issuer of our own: its key pair on disk, and the access tokens that it signs (RFC 7519, RFC 8037).

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use ed25519_dalek::{Signer, SigningKey};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::clock;

/// Life of a token, seconds: below the hour that is allowed.
const TOKEN_LIFE_S: i64 = 55 * 60;

/// Signs tokens in place of a sign-up: ten thousand users cost no password hash.
pub struct Issuer {
    name: String,
    key: SigningKey,
    kid: String,
}

impl Issuer {
    /// The issuer whose private key is in `path`.
    pub fn read(name: String, path: &Path) -> Result<Self> {
        let pem = std::fs::read_to_string(path).with_context(|| format!("can't read the key {}", path.display()))?;
        let key = SigningKey::from_pkcs8_pem(&pem)
            .with_context(|| format!("{} is no Ed25519 key in PKCS#8", path.display()))?;
        let kid = kid(&key);
        Ok(Self { name, key, kid })
    }

    /// An access token for `subject`, valid from now.
    pub fn token(&self, subject: &str) -> String {
        let now = clock::unix_ms() / 1000;
        let header = json!({"alg": "EdDSA", "typ": "JWT", "kid": self.kid});
        let claims = json!({
            "iss": self.name, "aud": "posthaste", "sub": subject,
            "iat": now, "exp": now + TOKEN_LIFE_S, "jti": clock::uuid_v7(),
        });
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(header), part(claims));
        let signature = self.key.sign(signed.as_bytes());
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.to_bytes()))
    }
}

/// The public half, base64url as in a JWK.
fn public(key: &SigningKey) -> String {
    URL_SAFE_NO_PAD.encode(key.verifying_key().as_bytes())
}

/// The key's thumbprint (RFC 7638): who has the private key alone names it as the JWKS does.
fn kid(key: &SigningKey) -> String {
    let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, public(key));
    URL_SAFE_NO_PAD.encode(Sha256::digest(canonical))
}

/// Writes a fresh `key.pem` (readable by its owner alone) and its `jwks.json` into `dir`.
pub fn generate(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("can't create {}", dir.display()))?;
    let key = SigningKey::from_bytes(&clock::random());
    // Without the public key inside: the older form, which every tool reads.
    let pem = KeypairBytes { secret_key: key.to_bytes(), public_key: None }.to_pkcs8_pem(LineEnding::LF)?;
    let path = dir.join("key.pem");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("can't create {}; an existing key is not overwritten", path.display()))?;
    file.write_all(pem.as_bytes()).with_context(|| format!("can't write {}", path.display()))?;
    let jwk = json!({
        "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid(&key), "x": public(&key),
    });
    let path = dir.join("jwks.json");
    let jwks = serde_json::to_string_pretty(&json!({"keys": [jwk]}))?;
    std::fs::write(&path, jwks + "\n").with_context(|| format!("can't write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_verifies_by_the_written_jwks() -> Result<()> {
        #[derive(serde::Deserialize)]
        struct Claims {
            sub: String,
            iat: i64,
            exp: i64,
        }
        let dir = tempfile::tempdir()?;
        generate(dir.path())?;
        let issuer = Issuer::read("load".into(), &dir.path().join("key.pem"))?;
        let token = issuer.token("someone");
        let jwks: jsonwebtoken::jwk::JwkSet = serde_json::from_slice(&std::fs::read(dir.path().join("jwks.json"))?)?;
        let kid = jsonwebtoken::decode_header(&token)?.kid.context("no kid")?;
        let key = jsonwebtoken::DecodingKey::from_jwk(jwks.find(&kid).context("no such key")?)?;
        let mut rules = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::EdDSA);
        rules.set_audience(&["posthaste"]);
        rules.set_issuer(&["load"]);
        let claims = jsonwebtoken::decode::<Claims>(&token, &key, &rules)?.claims;
        assert_eq!(claims.sub, "someone");
        assert!(claims.exp - claims.iat <= 3600);
        Ok(())
    }

    #[test]
    fn the_key_is_private_and_not_overwritten() -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir()?;
        generate(dir.path())?;
        let mode = std::fs::metadata(dir.path().join("key.pem"))?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(generate(dir.path()).is_err());
        Ok(())
    }
}
