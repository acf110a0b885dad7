//! Issuers whose keys are behind URLs, real ones: keys that change, and URLs that must not be believed.

#![expect(clippy::unwrap_used, reason = "what a test can not do without ends it")]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::Server;
use futures_util::future::join_all;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use parking_lot::Mutex;
use serde_json::{Value, json};
use testkit::client::Api;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// Nothing here takes so long unless it hangs; a new key may take 10 s and a fetch.
const PATIENCE: Duration = Duration::from_secs(20);

/// What the web has at each path, and how often it was asked for it.
#[derive(Clone, Default)]
struct Web {
    pages: Arc<Mutex<HashMap<String, String>>>,
    asked: Arc<Mutex<HashMap<String, usize>>>,
}

impl Web {
    fn has(&self, path: &str, keys: &[&Key]) {
        let keys: Vec<Value> = keys.iter().map(|key| key.public()).collect();
        self.says(path, "200 OK\r\nCache-Control: max-age=3600", &json!({ "keys": keys }).to_string());
    }

    fn says(&self, path: &str, head: &str, body: &str) {
        let answer = format!("HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        self.pages.lock().insert(path.into(), answer);
    }

    fn times_asked(&self, path: &str) -> usize {
        self.asked.lock().get(path).copied().unwrap_or_default()
    }

    async fn answer(self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        let path = head.split(' ').nth(1).unwrap().to_owned();
        *self.asked.lock().entry(path.clone()).or_default() += 1;
        let page = self.pages.lock().get(&path).cloned();
        // Whoever has read enough goes away.
        let _ = stream.write_all(page.unwrap_or_else(|| "HTTP/1.1 404 Not Found\r\n\r\n".into()).as_bytes()).await;
        let _ = stream.shutdown().await;
    }

    /// Serves it, in the clear or over TLS. Answers the port.
    async fn serve(&self, tls: Option<TlsAcceptor>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let web = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (web, tls) = (web.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        // Whoever does not trust us goes away in the middle.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                web.answer(stream).await;
                            }
                        }
                        None => web.answer(stream).await,
                    }
                });
            }
        });
        port
    }
}

/// A certificate as text, and what serves by it.
fn certificate() -> (String, TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (made.cert.pem(), TlsAcceptor::from(Arc::new(config)))
}

/// An issuer's key.
struct Key {
    id: &'static str,
    key: EncodingKey,
}

impl Key {
    fn new(id: &'static str) -> Self {
        // Everything of a PKCS #8 Ed25519 private key before the seed (RFC 8410 section 7).
        let mut pkcs8 = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        pkcs8.extend(id.bytes().cycle().take(32));
        Self { id, key: EncodingKey::from_ed_der(&pkcs8) }
    }

    fn public(&self) -> Value {
        let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&self.key, Algorithm::EdDSA).unwrap();
        let mut jwk = serde_json::to_value(jwk).unwrap();
        jwk["kid"] = self.id.into();
        jwk
    }

    #[expect(clippy::disallowed_methods, reason = "an issuer has its own time")]
    fn token_with_id(&self, issuer: &str, kid: &str) -> String {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({"iss": issuer, "aud": "posthaste", "sub": "ada", "exp": now + 900, "iat": now});
        let header = Header { kid: Some(kid.into()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, &claims, &self.key).unwrap()
    }

    fn token(&self, issuer: &str) -> String {
        self.token_with_id(issuer, self.id)
    }
}

/// Status and code of a call with this token.
async fn judged(server: &Server, token: String) -> (u16, String) {
    let api = Api { token: Some(token), ..Api::new(server.address) };
    let reply = api.get("/v1/me").await.unwrap();
    (reply.status.as_u16(), reply.body["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "how often something happened in a time needs the time")]
async fn keys_behind_a_url_change_and_urls_that_can_not_be_believed_are_not() {
    let (old, new, other) = (Key::new("old"), Key::new("new"), Key::new("other"));
    let web = Web::default();
    web.has("/jwks", &[&old]);
    web.has("/elsewhere", &[&other]);
    web.says("/moved", "302 Found\r\nLocation: /elsewhere", "");
    let padded = json!({"keys": [other.public()], "padding": "x".repeat(200_000)}).to_string();
    web.says("/endless", "200 OK", &padded);
    let (trusted, tls) = certificate();
    let (_, tls_of_others) = certificate();
    let (https, untrusted, plain) =
        (web.serve(Some(tls)).await, web.serve(Some(tls_of_others)).await, web.serve(None).await);
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();

    let dir = tempfile::tempdir().unwrap();
    let authorities = dir.path().join("authorities.pem");
    std::fs::write(&authorities, trusted).unwrap();
    let mut command = common::command(&dir.path().join("data"));
    // Hundreds of made-up keys from one address would have it shut out before the new one is known.
    command.env("POSTHASTE_RATE_LIMITS", "false");
    command.env("SSL_CERT_FILE", &authorities).stderr(std::process::Stdio::inherit()).env("POSTHASTE_LOG", "error");
    for (name, url) in [
        ("id", format!("https://localhost:{https}/jwks")),
        ("here", format!("http://127.0.0.1:{plain}/elsewhere")),
        ("moved", format!("https://localhost:{https}/moved")),
        ("endless", format!("https://localhost:{https}/endless")),
        ("away", format!("https://localhost:{nobody}/jwks")),
        ("untrusted", format!("https://localhost:{untrusted}/elsewhere")),
        ("misnamed", format!("https://127.0.0.1:{https}/elsewhere")),
    ] {
        command.args(["--issuer", &format!("{name}={url}")]);
    }
    let begun = Instant::now();
    let server = Server::spawn(command);
    assert!(server.get("/readyz").starts_with("HTTP/1.1 200"), "issuers that are away keep nobody waiting");

    // The first answer may be under way.
    assert_eq!(judged(&server, old.token("id")).await.0, 200);
    assert_eq!(judged(&server, other.token("here")).await.0, 200);
    for name in ["moved", "endless", "away", "untrusted", "misnamed"] {
        let judged = judged(&server, other.token(name)).await;
        assert_eq!(judged, (503, "unavailable".into()), "{name}");
    }
    // A key of one issuer is nothing to another.
    assert_eq!(judged(&server, other.token("id")).await, (401, "unauthorized".into()));
    assert_eq!(judged(&server, other.token_with_id("id", "old")).await, (401, "unauthorized".into()));

    web.has("/jwks", &[&old, &new]);
    let (mut round, mut known) = (0, false);
    while !known {
        assert!(begun.elapsed() < PATIENCE, "the new key is never known");
        round += 1;
        let made_up = (0..20).map(|n| judged(&server, new.token_with_id("id", &format!("{round}-{n}"))));
        assert!(join_all(made_up).await.iter().all(|(status, _)| *status == 401));
        assert_eq!(judged(&server, old.token("id")).await.0, 200);
        known = judged(&server, new.token("id")).await.0 == 200;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let at_most = usize::try_from(begun.elapsed().as_secs() / 10 + 1).unwrap();
    assert!((2..=at_most).contains(&web.times_asked("/jwks")), "{} of {at_most}", web.times_asked("/jwks"));
    assert!(round > 10, "{round}");
}
