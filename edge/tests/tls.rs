//! The edge over TLS: calls and sockets as without it, certificates that change, handshakes that do not end.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::{Person, World};
use edge::Config;
use edge::tls::{CertificateError, Tls};
use futures_util::{SinkExt as _, StreamExt as _};
use rcgen::generate_simple_self_signed;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

/// Nothing here takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(10);

struct Pair {
    certificate: String,
    key: String,
    trusted: CertificateDer<'static>,
}

fn pair() -> Pair {
    let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    Pair { certificate: made.cert.pem(), key: made.signing_key.serialize_pem(), trusted: made.cert.der().clone() }
}

struct Served {
    world: World,
    address: SocketAddr,
    tls: Arc<Tls>,
    _shutdown: watch::Sender<bool>,
}

async fn served(config: Config, pair: &Pair) -> Served {
    let world = World::with(config).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, stop) = watch::channel(false);
    let tls = Arc::new(Tls::new(pair.certificate.as_bytes(), pair.key.as_bytes()).unwrap());
    tokio::spawn(edge::server::serve_tls(world.app.clone(), listener, tls.clone(), stop));
    Served { world, address, tls, _shutdown: shutdown }
}

type Socket = WebSocketStream<TlsStream<TcpStream>>;

impl Served {
    /// A connection of a client that trusts this certificate only.
    async fn connect(&self, trusted: &Pair) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.trusted.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let stream = TcpStream::connect(self.address).await?;
        TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), stream).await
    }

    async fn live(&self, trusted: &Pair, who: &Person) -> Socket {
        let stream = self.connect(trusted).await.unwrap();
        let (mut socket, _) = client_async(format!("wss://{}/v1/socket", self.address), stream).await.unwrap();
        say(&mut socket, &json!({"type": "hello", "token": who.token})).await;
        until(&mut socket, "live").await;
        socket
    }
}

async fn say(socket: &mut Socket, frame: &Value) {
    socket.send(Message::text(frame.to_string())).await.unwrap();
}

/// The next frame of this type.
async fn until(socket: &mut Socket, kind: &str) -> Value {
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        let frame: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        if frame["type"] == kind {
            return frame;
        }
    }
}

/// Says a text; it is accepted.
async fn chat(served: &Served, socket: &mut Socket, room: &str, text: &str) {
    let mut frame = served.world.message(text);
    frame["type"] = "send".into();
    frame["room"] = room.into();
    say(socket, &frame).await;
    assert_eq!(until(socket, "accepted").await["client_msg_id"], frame["client_msg_id"]);
}

#[tokio::test]
async fn people_sign_up_and_chat_over_tls() {
    let pair = pair();
    let s = served(Config::default(), &pair).await;
    let mut call = s.connect(&pair).await.unwrap();
    assert_eq!(call.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let body = json!({"username": "ada", "password": "difference engine"}).to_string();
    let head = format!("Host: x\r\nConnection: close\r\nContent-Length: {}", body.len());
    call.write_all(format!("POST /v1/auth/sign-up HTTP/1.1\r\n{head}\r\n\r\n{body}").as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, call.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    let tokens: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let (ada, bob) = (common::person(&tokens), s.world.person("bob").await);
    let room = s.world.room(&ada, &[&bob], json!({})).await;
    let (mut hers, mut his) = (s.live(&pair, &ada).await, s.live(&pair, &bob).await);
    // The largest frame is larger than any record, and many small ones share them.
    chat(&s, &mut hers, &room, &"x".repeat(60_000)).await;
    assert_eq!(until(&mut his, "message").await["content"]["body"].as_str().unwrap().len(), 60_000);
    for n in 0..200 {
        s.world.say(&ada, &room, &n.to_string()).await;
    }
    for n in 0..200 {
        assert_eq!(until(&mut his, "message").await["content"]["body"], n.to_string());
    }
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections_and_old_ones_live_on() {
    let (old, new) = (pair(), pair());
    let s = served(Config::default(), &old).await;
    let ada = s.world.person("ada").await;
    let room = s.world.room(&ada, &[], json!({})).await;
    let mut first = s.live(&old, &ada).await;
    for (certificate, key, why) in [
        ("nonsense", old.key.as_str(), "certificate"),
        (old.certificate.as_str(), "nonsense", "key"),
        (old.certificate.as_str(), new.key.as_str(), "pair"),
    ] {
        let why_not = match s.tls.replace(certificate.as_bytes(), key.as_bytes()).unwrap_err() {
            CertificateError::Certificate => "certificate",
            CertificateError::Key => "key",
            CertificateError::Pair(_) => "pair",
        };
        assert_eq!(why_not, why);
    }
    assert!(s.connect(&old).await.is_ok(), "a pair that can't be used changes nothing");
    s.tls.replace(new.certificate.as_bytes(), new.key.as_bytes()).unwrap();
    assert!(s.connect(&old).await.is_err());
    let mut second = s.live(&new, &ada).await;
    chat(&s, &mut first, &room, "still here").await;
    chat(&s, &mut second, &room, "here too").await;
}

#[tokio::test]
async fn whoever_is_slow_with_the_handshake_loses_the_connection() {
    let pair = pair();
    let s = served(Config { request_read_timeout_ms: 100, ..Config::default() }, &pair).await;
    for begun in [&[][..], &[0x16, 0x03, 0x01][..], b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = TcpStream::connect(s.address).await.unwrap();
        stream.write_all(begun).await.unwrap();
        let mut rest = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap().ok();
        assert!(rest.len() < 20, "an alert at most: {rest:?}");
    }
    s.connect(&pair).await.unwrap();
}
