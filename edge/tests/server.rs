//! The edge on a real port: deadlines, origins, sockets that a sign-out closes, an orderly end.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::{Person, World};
use edge::Config;
use edge::config::LimitsConfig;
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

/// Nothing here takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(10);

struct Served {
    world: World,
    address: SocketAddr,
    shutdown: watch::Sender<bool>,
    server: JoinHandle<()>,
}

async fn served(config: Config) -> Served {
    let world = World::with(config).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, stop) = watch::channel(false);
    let server = tokio::spawn(edge::server::serve(world.app.clone(), listener, stop));
    Served { world, address, shutdown, server }
}

impl Served {
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    async fn socket(&self, origin: Option<&str>) -> Result<WebSocketStream<TcpStream>, tungstenite::Error> {
        let mut request = format!("ws://{}/v1/socket", self.address).into_client_request().unwrap();
        if let Some(origin) = origin {
            request.headers_mut().insert("origin", origin.parse().unwrap());
        }
        let stream = TcpStream::connect(self.address).await.unwrap();
        client_async(request, stream).await.map(|(socket, _)| socket)
    }

    /// A socket from another address of this machine.
    async fn socket_from(&self, ip: &str) -> Result<WebSocketStream<TcpStream>, tungstenite::Error> {
        let request = format!("ws://{}/v1/socket", self.address).into_client_request().unwrap();
        let stream = TcpSocket::new_v4().unwrap();
        stream.bind(format!("{ip}:0").parse().unwrap()).unwrap();
        let stream = stream.connect(self.address).await.unwrap();
        client_async(request, stream).await.map(|(socket, _)| socket)
    }

    /// A socket that is open once a place has come free: the server sees by itself when one ends.
    async fn socket_soon(&self) -> WebSocketStream<TcpStream> {
        let opened = async {
            loop {
                match self.socket(None).await {
                    Ok(socket) => return socket,
                    Err(tungstenite::Error::Http(response)) => assert_eq!(response.status(), 429),
                    Err(error) => panic!("{error}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, opened).await.unwrap()
    }

    async fn live_socket(&self, who: &Person) -> WebSocketStream<TcpStream> {
        hello(self.socket(None).await.unwrap(), who).await.unwrap()
    }
}

/// Says hello and reads up to `live`; a close is an error with its code and reason.
async fn hello(
    mut socket: WebSocketStream<TcpStream>,
    who: &Person,
) -> Result<WebSocketStream<TcpStream>, (u16, String)> {
    let hello = json!({"type": "hello", "token": who.token}).to_string();
    socket.send(Message::text(hello)).await.unwrap();
    loop {
        match tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap() {
            Message::Text(text) if serde_json::from_str::<Value>(&text).unwrap()["type"] == "live" => {
                return Ok(socket);
            }
            Message::Close(Some(frame)) => return Err((frame.code.into(), frame.reason.to_string())),
            _ => {}
        }
    }
}

async fn close_code(mut socket: WebSocketStream<TcpStream>) -> u16 {
    loop {
        match tokio::time::timeout(PATIENCE, socket.next()).await.unwrap() {
            Some(Ok(Message::Close(Some(frame)))) => return frame.code.into(),
            Some(Ok(_)) => {}
            other => panic!("closed without a code: {other:?}"),
        }
    }
}

#[tokio::test]
async fn signing_out_closes_the_sockets_of_the_device_alone() {
    let s = served(Config::default()).await;
    let phone = s.world.person("ada").await;
    let body = json!({"username": "ada", "password": "password of ada"});
    let laptop = common::person(&s.world.call("", "POST", "/v1/auth/sign-in", body).await.is(200));
    let (on_phone, on_laptop) = (s.live_socket(&phone).await, s.live_socket(&laptop).await);
    s.world.post(&phone, "/v1/auth/sign-out", Value::Null).await.is(204);
    assert_eq!(close_code(on_phone).await, 4504);
    s.world.post(&laptop, "/v1/auth/sign-out", Value::Null).await.is(204);
    assert_eq!(close_code(on_laptop).await, 4504);
}

#[tokio::test]
async fn a_sign_out_on_another_edge_closes_sockets_here() {
    let s = served(Config { revocation_poll_ms: 50, ..Config::default() }).await;
    let ada = s.world.person("ada").await;
    let socket = s.live_socket(&ada).await;
    let (user, device) = (ada.id.parse().unwrap(), ada.device.parse().unwrap());
    let at = schemas::Clock::now(&*s.world.clock);
    let reason = store::devices::RevocationReason::SignedOut;
    store::devices::Devices::revoke_device(&*s.world.store, user, device, at, reason).await.unwrap();
    assert_eq!(close_code(socket).await, 4504);
    s.world.get(&ada, "/v1/me").await.fails(401, "token_revoked");
}

#[tokio::test]
async fn a_reused_refresh_token_closes_the_sockets_of_its_device() {
    let s = served(Config { refresh_grace_ms: 0, ..Config::default() }).await;
    let ada = s.world.person("ada").await;
    let socket = s.live_socket(&ada).await;
    let body = json!({"refresh_token": ada.refresh});
    s.world.call("", "POST", "/v1/auth/refresh", body.clone()).await.is(200);
    s.world.call("", "POST", "/v1/auth/refresh", body).await.fails(401, "token_reused");
    assert_eq!(close_code(socket).await, 4501);
}

#[tokio::test]
async fn pages_of_other_origins_open_no_socket() {
    let s = served(Config { allowed_origins: vec!["https://app.example.org".into()], ..Config::default() }).await;
    let own = format!("http://{}", s.address);
    for good in [None, Some(own.as_str()), Some("https://app.example.org")] {
        assert!(s.socket(good).await.is_ok(), "{good:?}");
    }
    for bad in ["null", "https://evil.example", &format!("{own}0"), "https://app.example.org.evil.example"] {
        match s.socket(Some(bad)).await {
            Err(tungstenite::Error::Http(response)) => assert_eq!(response.status(), 403, "{bad}"),
            other => panic!("{bad}: {other:?}"),
        }
    }
    let plain = s.raw("GET /v1/socket HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(plain.starts_with("HTTP/1.1 426 "), "{plain}");
}

#[tokio::test]
async fn whoever_is_slow_with_a_request_loses_the_connection() {
    let s = served(Config { request_read_timeout_ms: 100, ..Config::default() }).await;
    s.raw("GET /v1/me HTTP/1.1\r\nHost: x\r\n").await;
    let body = "POST /v1/auth/sign-in HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 50\r\n\r\n{";
    let answer = s.raw(body).await;
    assert!(answer.starts_with("HTTP/1.1 422 "), "{answer}");
}

#[tokio::test]
async fn shutting_down_ends_idle_connections_and_the_server() {
    let s = served(Config::default()).await;
    let mut idle = TcpStream::connect(s.address).await.unwrap();
    idle.write_all(b"GET /.well-known/jwks.json HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut begun = [0; 12];
    idle.read_exact(&mut begun).await.unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200");
    s.shutdown.send(true).unwrap();
    tokio::time::timeout(PATIENCE, s.server).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_address_has_so_many_sockets_and_each_that_ends_makes_room() {
    let limits = LimitsConfig { sockets_per_address: 2, ..LimitsConfig::default() };
    let s = served(Config { limits: Some(limits), ..Config::default() }).await;
    let ada = s.world.person("ada").await;
    let mut kept = s.live_socket(&ada).await;
    // However a socket ends, before its hello or after it, by either side: its place is free again.
    for end in ["left", "closed", "not let in", "signed out"] {
        let bob = s.world.person(&format!("bob_{}", end.replace(' ', "_"))).await;
        let mut other = s.socket_soon().await;
        match s.socket(None).await {
            Err(tungstenite::Error::Http(response)) => {
                assert_eq!(response.status(), 429, "{end}");
                assert_eq!(response.headers()["retry-after"], "5");
                assert_eq!(response.headers()["content-type"], "application/problem+json");
                let body: Value = serde_json::from_slice(response.body().as_deref().unwrap_or_default()).unwrap();
                assert_eq!(body["code"], "rate_limited");
            }
            other => panic!("{end}: {other:?}"),
        }
        assert!(s.socket_from("127.0.1.1").await.is_ok(), "another address has places of its own");
        s.world.get(&ada, "/v1/me").await.is(200);
        match end {
            "left" => {}
            "closed" => hello(other, &bob).await.unwrap().close(None).await.unwrap(),
            "not let in" => {
                other.send(Message::text("{}")).await.unwrap();
                assert_eq!(close_code(other).await, 4500);
            }
            _ => {
                let other = hello(other, &bob).await.unwrap();
                s.world.post(&bob, "/v1/auth/sign-out", Value::Null).await.is(204);
                assert_eq!(close_code(other).await, 4504);
            }
        }
    }
    drop(s.socket_soon().await);
    assert_eq!(s.world.app.metrics.sockets_refused.with_label_values(&["user"]).get(), 0);
    assert!(s.world.app.metrics.sockets_refused.with_label_values(&["address"]).get() >= 4);
    kept.send(Message::text("{}")).await.unwrap();
}

#[tokio::test]
async fn a_person_has_so_many_sockets_and_is_told_when_to_come_back() {
    let limits = LimitsConfig { sockets_per_user: 2, ..LimitsConfig::default() };
    let s = served(Config { limits: Some(limits), ..Config::default() }).await;
    let (ada, bob) = (s.world.person("ada").await, s.world.person("bob").await);
    let (first, _second) = (s.live_socket(&ada).await, s.live_socket(&ada).await);
    let refused = hello(s.socket(None).await.unwrap(), &ada).await.unwrap_err();
    assert_eq!(refused, (4003, json!({"code": 4003, "retry_after_ms": 5_000}).to_string()));
    assert_eq!(s.world.app.metrics.sockets_refused.with_label_values(&["user"]).get(), 1);
    let _others = s.live_socket(&bob).await;
    drop(first);
    let soon = async { while hello(s.socket(None).await.unwrap(), &ada).await.map(drop).is_err() {} };
    tokio::time::timeout(PATIENCE, soon).await.unwrap();
}

#[tokio::test]
async fn without_limits_sockets_are_not_counted() {
    let s = served(Config { limits: None, ..Config::default() }).await;
    let ada = s.world.person("ada").await;
    let mut sockets = Vec::new();
    for _ in 0..20 {
        sockets.push(s.live_socket(&ada).await);
    }
    assert_eq!(s.world.app.hub.socket_count(), 20);
}
