//! Limits, deadlines and shut-outs as a client meets them: on a real port where connections matter, else on the router
//! while time stands still.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use common::{Answer, Person, World};
use edge::config::{BlocksConfig, LimitsConfig};
use edge::{Config, Peer};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use store::shut_outs::{ShutOut, ShutOuts as _, Subject};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{WebSocketStream, client_async};

/// Nothing here takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(10);

const GET: &[u8] = b"GET /.well-known/jwks.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";

struct Served {
    world: World,
    address: SocketAddr,
    _shutdown: watch::Sender<bool>,
}

async fn served(config: Config) -> Served {
    let world = World::with(config).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, stop) = watch::channel(false);
    tokio::spawn(edge::server::serve(world.app.clone(), listener, stop));
    Served { world, address, _shutdown: shutdown }
}

impl Served {
    async fn dial(&self, from: &str) -> TcpStream {
        let stream = TcpSocket::new_v4().unwrap();
        stream.bind(format!("{from}:0").parse().unwrap()).unwrap();
        stream.connect(self.address).await.unwrap()
    }

    /// What comes back of these bytes until the connection is closed.
    async fn raw(&self, from: &str, bytes: &[u8]) -> String {
        let mut stream = self.dial(from).await;
        // Whoever is turned away may find the connection reset.
        stream.write_all(bytes).await.ok();
        rest(&mut stream).await
    }

    async fn live(&self, from: &str, who: &Person) -> Result<WebSocketStream<TcpStream>, (u16, Value)> {
        let request = format!("ws://{}/v1/socket", self.address).into_client_request().unwrap();
        let mut socket = client_async(request, self.dial(from).await).await.unwrap().0;
        socket.send(Message::text(json!({"type": "hello", "token": who.token}).to_string())).await.unwrap();
        loop {
            match heard(&mut socket).await? {
                frame if frame["type"] == "live" => return Ok(socket),
                _ => {}
            }
        }
    }

    async fn shut_outs(&self) -> Vec<ShutOut> {
        self.world.store.shut_outs(0).await.unwrap()
    }
}

async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().ok();
    String::from_utf8_lossy(&answer).into_owned()
}

/// The next frame, or the code and reason of the close.
async fn heard(socket: &mut WebSocketStream<TcpStream>) -> Result<Value, (u16, Value)> {
    match tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap() {
        Message::Text(text) => Ok(serde_json::from_str(&text).unwrap()),
        Message::Close(Some(close)) => Err((close.code.into(), serde_json::from_str(&close.reason).unwrap())),
        other => panic!("{other:?}"),
    }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let so = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, so).await.unwrap_or_else(|_| panic!("{what}"));
}

fn with(limits: LimitsConfig) -> Config {
    Config { limits: Some(limits), revocation_poll_ms: 20, ..Config::default() }
}

#[tokio::test]
async fn silence_and_single_bytes_end_when_a_header_and_a_body_must_be_there() {
    let s = served(Config { request_read_timeout_ms: 500, ..Config::default() }).await;
    let head = b"POST /v1/auth/sign-in HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n".to_vec();
    let header = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(5_000)).into_bytes();
    let body = [head.clone(), vec![b' '; 5_000]].concat();
    for (name, at_once, trickle) in [("silence", 0, Vec::new()), ("header", 0, header), ("body", head.len(), body)] {
        let began = Instant::now();
        let (mut reading, mut writing) = s.dial("127.0.0.1").await.into_split();
        let trickle = tokio::spawn(async move {
            writing.write_all(&trickle[..at_once]).await.ok();
            for byte in &trickle[at_once..] {
                tokio::time::sleep(Duration::from_millis(20)).await;
                if writing.write_all(&[*byte]).await.is_err() {
                    break;
                }
            }
            writing
        });
        let ended = tokio::time::timeout(PATIENCE, reading.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "{name} goes on");
        let took = began.elapsed();
        assert!((450..3_000).contains(&took.as_millis()), "{name}: {took:?}");
        trickle.abort();
    }
}

#[tokio::test]
async fn a_socket_must_say_a_whole_hello_in_time() {
    let s = served(Config { hello_timeout_ms: 300, ..Config::default() }).await;
    let request = format!("ws://{}/v1/socket", s.address).into_client_request().unwrap();
    let mut socket = client_async(request, s.dial("127.0.0.1").await).await.unwrap().0;
    let began = Instant::now();
    assert_eq!(heard(&mut socket).await.unwrap_err().0, 4008);
    assert!((250..3_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_header_has_a_size_and_a_number_of_fields() {
    let s = served(Config { header_max_bytes: 8_192, header_fields_max: 20, ..Config::default() }).await;
    let get =
        |fields: String| format!("GET /.well-known/jwks.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n");
    let few: String = (0..18).map(|n| format!("X-{n}: x\r\n")).collect();
    assert!(s.raw("127.0.0.1", get(few).as_bytes()).await.starts_with("HTTP/1.1 200 "));
    let many: String = (0..19).map(|n| format!("X-{n}: x\r\n")).collect();
    assert!(s.raw("127.0.0.1", get(many).as_bytes()).await.starts_with("HTTP/1.1 431 "));
    let long = get(format!("X: {}\r\n", "x".repeat(20_000)));
    assert!(s.raw("127.0.0.1", long.as_bytes()).await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test]
async fn an_address_that_keeps_sending_nonsense_is_turned_away_and_nobody_else() {
    let blocks = BlocksConfig { first_ms: 60_000, forgiven_per_s: 0.0, ..BlocksConfig::default() };
    let s = served(with(LimitsConfig { blocks, ..LimitsConfig::default() })).await;
    let ada = s.world.person("ada").await;
    let mut before = s.live("127.0.9.1", &ada).await.unwrap();
    for n in 0..19 {
        assert!(s.raw("127.0.9.1", b"nonsense\r\n\r\n").await.starts_with("HTTP/1.1 400 "), "{n}");
    }
    assert!(s.raw("127.0.9.1", GET).await.starts_with("HTTP/1.1 200 "), "not yet");
    s.raw("127.0.9.1", b"nonsense\r\n\r\n").await;
    until("closed without a word", async || s.raw("127.0.9.1", GET).await.is_empty()).await;
    assert_eq!(s.raw("127.0.9.77", GET).await, "", "its neighbours are the same subscriber");
    assert!(s.raw("127.0.8.1", GET).await.starts_with("HTTP/1.1 200 "));
    // Who had come in before answers for themselves.
    before.send(Message::text(r#"{"type": "no_such_thing"}"#)).await.unwrap();
    assert_eq!(heard(&mut before).await.unwrap()["code"], "bad_frame");
    let metrics = &s.world.app.metrics;
    assert_eq!(metrics.shut_outs.with_label_values(&["address", "malformed"]).get(), 1);
    assert!(metrics.connections_refused.with_label_values(&["shut_out"]).get() >= 2);
    until("it is shared with other edges", async || s.shut_outs().await.len() == 1).await;
    let entry = s.shut_outs().await.remove(0);
    assert_eq!(
        (entry.subject.to_string().as_str(), entry.reason.as_str(), entry.times),
        ("127.0.9.0/24", "malformed", 1)
    );
    until("the gauge shows it", async || metrics.shut_outs_in_force.get() == 1).await;
    let now = schemas::Clock::now(&*s.world.clock);
    assert_eq!(s.world.store.lift_shut_outs(Some(entry.subject), now).await.unwrap(), 1);
    until("it is lifted", async || s.raw("127.0.9.1", GET).await.starts_with("HTTP/1.1 200 ")).await;
}

#[tokio::test]
async fn what_another_edge_has_shut_out_is_shut_out_here() {
    let s = served(with(LimitsConfig::default())).await;
    let ada = s.world.person("ada").await;
    let mut socket = s.live("127.0.0.1", &ada).await.unwrap();
    let since = schemas::Clock::now(&*s.world.clock);
    let until_then = since.after(Duration::from_secs(60));
    let subject = Subject::Account(ada.id.parse().unwrap());
    let (number, reason, times) = (0, "flood".to_owned(), 7);
    let entry = ShutOut { number, subject, reason, since, until: until_then, times, lifted_at: None };
    s.world.store.shut_out(vec![entry]).await.unwrap();
    let (code, reason) = heard(&mut socket).await.unwrap_err();
    assert!(code == 4003 && reason["retry_after_ms"].as_u64().unwrap() > 50_000, "{code} {reason}");
    s.world.get(&ada, "/v1/me").await.fails(429, "rate_limited");
}

#[tokio::test]
async fn an_account_that_floods_is_sent_away_from_everywhere_and_nobody_else() {
    let blocks = BlocksConfig { points: 5.0, first_ms: 60_000, ..BlocksConfig::default() };
    let limits = LimitsConfig { frame_burst: 20, frames_per_s: 1.0, blocks, ..LimitsConfig::default() };
    let s = served(with(limits)).await;
    let (ada, bob) = (s.world.person("ada").await, s.world.person("bob").await);
    let mut other_device = s.live("127.0.2.1", &ada).await.unwrap();
    let mut flooding = s.live("127.0.1.1", &ada).await.unwrap();
    let mut honest = s.live("127.0.1.1", &bob).await.unwrap();
    let typing = json!({"type": "typing", "room": s.world.v7()}).to_string();
    for _ in 0..150 {
        if flooding.send(Message::text(typing.clone())).await.is_err() {
            break;
        }
    }
    let mut refused = 0;
    let (code, reason) = loop {
        match heard(&mut flooding).await {
            Ok(frame) => refused += u32::from(frame["code"] == "rate_limited"),
            Err(closed) => break closed,
        }
    };
    assert!(refused >= 99 && code == 4003 && reason["retry_after_ms"].as_u64().unwrap() > 50_000, "{refused} {reason}");
    assert_eq!(heard(&mut other_device).await.unwrap_err().0, 4003);
    assert_eq!(s.live("127.0.3.1", &ada).await.err().unwrap().0, 4003, "nor does it come in again");
    let answer = s.world.get(&ada, "/v1/me").await;
    assert!(answer.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 50);
    answer.fails(429, "rate_limited");
    honest.send(Message::text(r#"{"type": "no_such_thing"}"#)).await.unwrap();
    assert_eq!(heard(&mut honest).await.unwrap()["code"], "bad_frame", "at the same address, but not the same person");
    assert!(s.live("127.0.1.1", &bob).await.is_ok());
}

/// A request through the router, from this address.
async fn from(w: &World, peer: &str, forwarded: Option<&str>, path: &str, body: &str) -> Answer {
    let mut request = Request::post(path);
    if let Some(client) = forwarded {
        request = request.header("x-forwarded-for", client);
    }
    let mut request = request.body(Body::from(body.to_owned())).unwrap();
    request.extensions_mut().insert(Peer(format!("{peer}:1").parse().unwrap()));
    w.send(request).await
}

#[tokio::test(start_paused = true)]
async fn behind_a_proxy_the_client_is_shut_out_and_never_the_proxy() {
    let config = Config { trusted_proxies: vec!["10.0.0.0/8".into()], ..Config::default() };
    let w = World::with(config).await;
    let broken = async |client| from(&w, "10.0.0.1", Some(client), "/v1/auth/sign-in", "{\"email\": ").await;
    for _ in 0..20 {
        broken("203.0.113.7").await.fails(422, "invalid");
    }
    let answer = broken("203.0.113.9").await;
    assert_eq!(answer.headers["retry-after"], "1");
    answer.fails(429, "rate_limited");
    broken("198.51.100.7").await.fails(422, "invalid");
    assert_eq!(w.app.shut_out(w.app.at("10.0.0.1".parse().unwrap())), None);
    tokio::time::sleep(Duration::from_secs(1)).await;
    broken("203.0.113.7").await.fails(422, "invalid");
}

#[tokio::test(start_paused = true)]
async fn who_tries_passwords_is_shut_out_and_not_the_one_whose_they_are() {
    let w = World::new().await;
    let ada = w.person("ada").await;
    let sign_in = async |peer, password: &str| {
        let body = json!({"username": "ada", "password": password}).to_string();
        from(&w, peer, None, "/v1/auth/sign-in", &body).await
    };
    let mut answers = std::collections::BTreeMap::new();
    let thief = "203.0.113.7";
    let mut tries = 0;
    while w.app.shut_out(w.app.at(thief.parse().unwrap())).is_none() {
        tries += 1;
        assert!(tries < 1_000, "{answers:?}");
        *answers.entry(sign_in(thief, &format!("guess {tries}")).await.status.as_u16()).or_insert(0) += 1;
    }
    assert_eq!(answers, [(401, 50), (429, 100)].into(), "the account's own limit, and then too many above it");
    assert_eq!(w.app.shut_out(Subject::Account(ada.id.parse().unwrap())), None);
    w.get(&ada, "/v1/me").await.is(200);
    // The account's own limit lets a try through in 10 s, from wherever.
    tokio::time::sleep(Duration::from_secs(11)).await;
    sign_in("198.51.100.7", "password of ada").await.is(200);
}

#[tokio::test(start_paused = true)]
async fn whoever_keeps_within_what_they_are_told_is_never_shut_out() {
    let w = World::new().await;
    let ada = w.person("ada").await;
    let room = w.room(&ada, &[], json!({})).await;
    let path = format!("/v1/rooms/{room}/messages");
    let content = json!({"type": "text/plain", "body": "x"});
    for n in 0..1_500 {
        let answer = w.post(&ada, &path, json!({"client_msg_id": w.v7(), "content": content})).await;
        match answer.status.as_u16() {
            201 => {}
            429 => {
                let wait = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
                tokio::time::sleep(Duration::from_secs(wait)).await;
            }
            other => panic!("{other}: {} ({n})", answer.body),
        }
    }
    assert_eq!(w.app.metrics.shut_outs.with_label_values(&["account", "flood"]).get(), 0);
}

#[tokio::test(start_paused = true)]
async fn without_limits_nobody_is_shut_out() {
    let w = World::with(Config { limits: None, ..Config::default() }).await;
    for _ in 0..1_000 {
        from(&w, "203.0.113.7", None, "/v1/auth/sign-in", "{").await.fails(422, "invalid");
    }
}

/// serde_json refuses what is nested deeper than 128; what is passed over costs a byte a level.
#[tokio::test(start_paused = true)]
async fn nesting_without_end_is_refused_or_passed_over() {
    let w = World::with(Config { limits: None, ..Config::default() }).await;
    let ada = w.person("ada").await;
    let room = w.room(&ada, &[], json!({})).await;
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let send = async |body: String| {
        let request = Request::post(format!("/v1/rooms/{room}/messages"));
        let request = request.header("authorization", format!("Bearer {}", ada.token));
        w.send(request.body(Body::from(body)).unwrap()).await
    };
    for depth in [200, 90_000] {
        send(format!("{{\"content\": {}}}", deep(depth))).await.fails(422, "invalid");
        let ignored = format!(
            "{{\"client_msg_id\": \"{}\", \"content\": {{\"type\": \"text/plain\", \"body\": \"x\"}}, \"more\": {}}}",
            w.v7(),
            deep(depth)
        );
        send(ignored).await.is(201);
    }
}

#[tokio::test]
async fn a_frame_nested_without_end_is_refused() {
    let s = served(Config { limits: None, ..Config::default() }).await;
    let ada = s.world.person("ada").await;
    for depth in [200, 90_000] {
        let mut socket = s.live("127.0.0.1", &ada).await.unwrap();
        let deep = format!("{{\"type\": \"typing\", \"room\": {}{}}}", "[".repeat(depth), "]".repeat(depth));
        socket.send(Message::text(deep)).await.unwrap();
        match heard(&mut socket).await {
            Ok(frame) => assert_eq!(frame["type"], "error", "{frame}"),
            Err((code, _)) => assert_eq!(code, 4500),
        }
    }
    assert!(s.live("127.0.0.1", &ada).await.is_ok(), "the server lives");
}

#[tokio::test]
async fn a_socket_takes_no_other_content_than_a_call() {
    let s = served(Config::default()).await;
    let ada = s.world.person("ada").await;
    let room = s.world.room(&ada, &[], json!({})).await;
    let mut socket = s.live("127.0.0.1", &ada).await.unwrap();
    for (content, code) in [
        (json!({"type": "no MIME type", "body": "x"}), "invalid"),
        (json!({"type": "text/plain"}), "invalid"),
        (json!({"type": "text/plain", "data": "no base64!"}), "invalid"),
        (json!({"type": "text/plain", "body": "x".repeat(65_536)}), "too_large"),
    ] {
        let status = if code == "invalid" { 422 } else { 413 };
        let body = json!({"client_msg_id": s.world.v7(), "content": content});
        s.world.post(&ada, &format!("/v1/rooms/{room}/messages"), body.clone()).await.fails(status, code);
        let frame = json!({"type": "send", "room": room, "client_msg_id": body["client_msg_id"], "content": content});
        socket.send(Message::text(frame.to_string())).await.unwrap();
        let told = heard(&mut socket).await.unwrap();
        assert_eq!((told["type"].as_str(), told["code"].as_str()), (Some("rejected"), Some(code)), "{told}");
    }
}
