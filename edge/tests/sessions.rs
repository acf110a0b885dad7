//! One socket's session over a pipe in memory, with the whole installation behind it and time that stands still until
//! everyone waits: its deadlines, to the second.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use common::{Person, World};
use edge::auth::Identity;
use edge::limits::{Bucket, Place};
use edge::socket::Gate;
use edge::socket::frames::Link;
use edge::socket::session::{self, Context};
use edge::{App, Config};
use futures_util::{SinkExt as _, StreamExt as _};
use schemas::limits::FRAME_MAX_BYTES;
use schemas::{RoomId, UserId};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, DuplexStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use tower::ServiceExt as _;

/// What the pipe holds where that does not matter.
const ROOMY: usize = 1 << 20;

struct Client {
    socket: WebSocketStream<DuplexStream>,
    session: JoinHandle<()>,
    began: Instant,
}

/// A session, and its client at the other end of a pipe that holds so many bytes.
async fn connected(world: &World, pipe_bytes: usize) -> Client {
    let (near, far) = tokio::io::duplex(pipe_bytes);
    let context = Context { hub: world.app.hub.clone(), gate: world.app.clone() };
    let session = tokio::spawn(async move {
        session::run(Link::new(far, &[]), context, None, ()).await;
    });
    let socket = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    Client { socket, session, began: Instant::now() }
}

/// A session that is live.
async fn live(world: &World, who: &Person, pipe_bytes: usize) -> Client {
    let mut client = connected(world, pipe_bytes).await;
    client.say(json!({"type": "hello", "token": who.token})).await;
    while client.next().await.unwrap()["type"] != "live" {}
    client.began = Instant::now();
    client
}

impl Client {
    async fn say(&mut self, frame: Value) {
        self.socket.send(Message::text(frame.to_string())).await.unwrap();
    }

    /// The next frame, or the code that closes.
    async fn next(&mut self) -> Result<Value, u16> {
        match self.socket.next().await.unwrap().unwrap() {
            Message::Text(text) => Ok(serde_json::from_str(&text).unwrap()),
            Message::Close(Some(close)) => {
                let reason: Value = serde_json::from_str(&close.reason).unwrap();
                assert_eq!(reason["code"], u16::from(close.code));
                Err(close.code.into())
            }
            other => panic!("{other:?}"),
        }
    }

    /// Answers pings until the server closes or the time is over; the code, and when since it was live.
    async fn faithful(&mut self, until: Duration) -> Option<(u16, u64)> {
        let end = self.began + until;
        loop {
            match tokio::time::timeout_at(end, self.next()).await.ok()? {
                Ok(frame) if frame["type"] == "ping" => self.say(json!({"type": "pong"})).await,
                Ok(_) => {}
                Err(code) => return Some((code, self.began.elapsed().as_secs())),
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_hello_within_10_s_the_socket_is_closed() {
    let world = World::new().await;
    let mut client = connected(&world, ROOMY).await;
    assert_eq!(client.next().await, Err(4008));
    assert_eq!(client.began.elapsed().as_secs(), 10);
    client.session.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_no_hello_gives_no_more_time() {
    let world = World::new().await;
    let ada = world.person("ada").await;
    let mut client = connected(&world, ROOMY).await;
    // WebSocket pings are no hello.
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        client.socket.send(Message::Ping(Vec::new().into())).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    client.say(json!({"type": "hello", "token": ada.token})).await;
    let closed = loop {
        match client.socket.next().await.unwrap().unwrap() {
            Message::Close(Some(close)) => break u16::from(close.code),
            Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(closed, 4008);
}

#[tokio::test(start_paused = true)]
async fn a_first_frame_of_bytes_is_refused() {
    let world = World::new().await;
    let mut client = connected(&world, ROOMY).await;
    client.socket.send(Message::binary(vec![1, 2, 3])).await.unwrap();
    assert_eq!(client.next().await, Err(4500));
}

#[tokio::test(start_paused = true)]
async fn who_answers_no_ping_for_two_heartbeats_is_cut() {
    let world = World::new().await;
    let ada = world.person("ada").await;
    let mut client = live(&world, &ada, ROOMY).await;
    let mut pings = 0;
    let code = loop {
        match client.next().await {
            Ok(frame) if frame["type"] == "ping" => pings += 1,
            Ok(_) => {}
            Err(code) => break code,
        }
    };
    assert_eq!(code, 4004);
    assert!((2..=3).contains(&pings), "{pings}");
    assert!((50..=52).contains(&client.began.elapsed().as_secs()), "{:?}", client.began.elapsed());
    client.session.await.unwrap();
    assert_eq!(world.app.hub.socket_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn who_answers_pings_stays() {
    let world = World::new().await;
    let ada = world.person("ada").await;
    let mut client = live(&world, &ada, ROOMY).await;
    assert_eq!(client.faithful(Duration::from_secs(600)).await, None);
    assert_eq!(world.app.hub.socket_count(), 1);
}

#[tokio::test(start_paused = true)]
async fn when_the_access_token_ends_the_socket_does() {
    let world = World::with(Config { access_ttl_s: 60, ..Config::default() }).await;
    let ada = world.person("ada").await;
    let mut client = live(&world, &ada, ROOMY).await;
    let (code, second) = client.faithful(Duration::from_secs(600)).await.unwrap();
    assert_eq!(code, 4001);
    assert!((59..=61).contains(&second), "{second}");
}

#[tokio::test(start_paused = true)]
async fn a_fresh_token_in_time_keeps_the_socket() {
    let world = World::with(Config { access_ttl_s: 60, ..Config::default() }).await;
    let ada = world.person("ada").await;
    let mut client = live(&world, &ada, ROOMY).await;
    assert_eq!(client.faithful(Duration::from_secs(40)).await, None);
    let body = json!({"refresh_token": ada.refresh});
    let fresh = common::person(&world.call("", "POST", "/v1/auth/refresh", body).await.is(200));
    client.say(json!({"type": "authenticate", "token": fresh.token})).await;
    let (code, second) = client.faithful(Duration::from_secs(600)).await.unwrap();
    assert_eq!(code, 4001);
    assert!((99..=101).contains(&second), "{second}");
}

/// Reads on to the next warning, answering pings; how long since live, s, and what it says.
async fn warned(client: &mut Client) -> (u64, u64) {
    loop {
        match client.next().await {
            Ok(frame) if frame["type"] == "ping" => client.say(json!({"type": "pong"})).await,
            Ok(frame) if frame["type"] == "token_expiring" => {
                return (client.began.elapsed().as_secs(), frame["in_s"].as_u64().unwrap());
            }
            Ok(_) => {}
            Err(code) => panic!("closed with {code}"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_end_of_each_token_is_announced_once_60_s_ahead() {
    let world = World::new().await;
    let ada = world.person("ada").await;
    let mut client = live(&world, &ada, ROOMY).await;
    let (second, in_s) = warned(&mut client).await;
    assert!((839..=841).contains(&second) && (59..=60).contains(&in_s), "{second} {in_s}");
    // The same one again is no news; a fresh one is.
    client.say(json!({"type": "authenticate", "token": ada.token})).await;
    assert!(tokio::time::timeout(Duration::from_secs(20), warned(&mut client)).await.is_err(), "it is said once");
    let body = json!({"refresh_token": ada.refresh});
    let fresh = common::person(&world.call("", "POST", "/v1/auth/refresh", body).await.is(200));
    client.say(json!({"type": "authenticate", "token": fresh.token})).await;
    let (second, _) = warned(&mut client).await;
    assert!((1_698..=1_702).contains(&second), "{second}");
    let (code, second) = client.faithful(Duration::from_secs(3_600)).await.unwrap();
    assert_eq!(code, 4001);
    assert!((1_759..=1_762).contains(&second), "{second}");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_nearly_over_is_announced_right_after_live() {
    let world = World::with(Config { access_ttl_s: 40, ..Config::default() }).await;
    let ada = world.person("ada").await;
    let mut client = live(&world, &ada, ROOMY).await;
    let (second, in_s) = warned(&mut client).await;
    assert_eq!(second, 0);
    assert!((38..=40).contains(&in_s), "{in_s}");
}

#[tokio::test(start_paused = true)]
async fn a_token_of_another_device_does_not_keep_the_socket() {
    let world = World::new().await;
    let phone = world.person("ada").await;
    let body = json!({"username": "ada", "password": "password of ada"});
    let laptop = common::person(&world.call("", "POST", "/v1/auth/sign-in", body).await.is(200));
    let mut client = live(&world, &phone, ROOMY).await;
    client.say(json!({"type": "authenticate", "token": laptop.token})).await;
    assert_eq!(client.faithful(Duration::from_secs(5)).await.unwrap().0, 4501);
}

#[tokio::test(start_paused = true)]
async fn signing_a_device_out_from_another_one_closes_its_sockets_and_no_others() {
    let world = World::new().await;
    let phone = world.person("ada").await;
    let body = json!({"username": "ada", "password": "password of ada"});
    let laptop = common::person(&world.call("", "POST", "/v1/auth/sign-in", body).await.is(200));
    let mut of_phone = live(&world, &phone, ROOMY).await;
    let mut of_laptop = live(&world, &laptop, ROOMY).await;
    world.delete(&laptop, &format!("/v1/me/devices/{}", phone.device)).await.is(204);
    assert_eq!(of_phone.faithful(Duration::from_secs(2)).await.unwrap().0, 4504);
    assert_eq!(of_laptop.faithful(Duration::from_secs(30)).await, None);
}

/// A gate behind which each token is taken back the moment that it was found good.
struct TooLate {
    app: Arc<App>,
    router: axum::Router,
}

#[async_trait::async_trait]
impl Gate for TooLate {
    async fn authenticate(&self, token: &str) -> Result<Identity, u16> {
        let identity = self.app.authenticate(token).await.map_err(|_| 0_u16)?;
        let sign_out = Request::post("/v1/auth/sign-out").header("authorization", format!("Bearer {token}"));
        let answer = self.router.clone().oneshot(sign_out.body(Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), 204);
        Ok(identity)
    }
    fn is_revoked(&self, identity: &Identity) -> bool {
        Gate::is_revoked(&*self.app, identity)
    }
    fn next_id(&self) -> uuid::Uuid {
        Gate::next_id(&*self.app)
    }
    fn allow_frame(&self, user: UserId, allowance: &mut Option<Bucket>) -> Result<(), u32> {
        self.app.allow_frame(user, allowance)
    }
    fn allow_send(&self, user: UserId, room: RoomId) -> Result<(), u32> {
        self.app.allow_send(user, room)
    }
    fn hello_timeout(&self) -> Duration {
        self.app.hello_timeout()
    }
    fn allow_socket(&self, user: UserId) -> Result<Place<UserId>, u32> {
        self.app.allow_socket(user)
    }
}

#[tokio::test(start_paused = true)]
async fn a_socket_on_its_way_in_does_not_slip_past_its_sign_out() {
    let world = World::new().await;
    let ada = world.person("ada").await;
    let gate = Arc::new(TooLate { app: world.app.clone(), router: world.router.clone() });
    let (near, far) = tokio::io::duplex(ROOMY);
    let context = Context { hub: world.app.hub.clone(), gate };
    let session = tokio::spawn(session::run(Link::new(far, &[]), context, None, ()));
    let socket = WebSocketStream::from_raw_socket(near, Role::Client, None).await;
    let mut client = Client { socket, session, began: Instant::now() };
    client.say(json!({"type": "hello", "token": ada.token})).await;
    assert_eq!(client.next().await.unwrap()["type"], "welcome");
    assert_eq!(client.next().await, Err(4501));
}

#[tokio::test(start_paused = true)]
async fn a_token_of_somebody_else_ends_the_socket() {
    let world = World::new().await;
    let (ada, bob) = (world.person("ada").await, world.person("bob").await);
    let mut client = live(&world, &ada, ROOMY).await;
    client.say(json!({"type": "authenticate", "token": bob.token})).await;
    assert_eq!(client.faithful(Duration::from_secs(5)).await.unwrap().0, 4501);
}

#[tokio::test(start_paused = true)]
async fn a_frame_over_the_limit_is_too_large() {
    let world = World::new().await;
    let ada = world.person("ada").await;
    let mut client = live(&world, &ada, ROOMY).await;
    client.socket.send(Message::text("x".repeat(FRAME_MAX_BYTES))).await.unwrap();
    assert_eq!(client.faithful(Duration::from_secs(5)).await.unwrap().0, 4500, "it may be as large as this");
    let mut client = live(&world, &ada, ROOMY).await;
    client.socket.send(Message::text("x".repeat(FRAME_MAX_BYTES + 1))).await.unwrap();
    assert_eq!(client.faithful(Duration::from_secs(5)).await.unwrap().0, 1009);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_for_10_s_is_cut_and_nothing_is_kept_for_it() {
    let world = World::new().await;
    let (ada, bob) = (world.person("ada").await, world.person("bob").await);
    let room = world.room(&ada, &[&bob], json!({})).await;
    let client = live(&world, &bob, 1_024).await;
    let began = Instant::now();
    for _ in 0..20 {
        world.say(&ada, &room, &"x".repeat(30_000)).await;
    }
    assert_eq!(world.app.hub.socket_count(), 1);
    // The task's end is the end of all that it held; the hub has let go of the rest.
    client.session.await.unwrap();
    assert!((10..=11).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(world.app.hub.socket_count(), 0);
    // What the pipe held has been sent, and then there is no more.
    let mut pipe = client.socket.into_inner();
    let mut sent = Vec::new();
    pipe.read_to_end(&mut sent).await.unwrap();
    assert!(sent.len() <= 1_024, "{}", sent.len());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_little_at_a_time_is_not_cut() {
    let world = World::new().await;
    let (ada, bob) = (world.person("ada").await, world.person("bob").await);
    let room = world.room(&ada, &[&bob], json!({})).await;
    let mut client = live(&world, &bob, 10_000).await;
    let text = "x".repeat(60_000);
    world.say(&ada, &room, &text).await;
    let mut taken = Vec::new();
    while taken.len() < text.len() {
        // 5 s six times: longer in all than a client may take nothing.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut piece = vec![0; 10_000];
        let length = client.socket.get_mut().read(&mut piece).await.unwrap();
        taken.extend_from_slice(&piece[..length]);
    }
    assert!(client.began.elapsed() > Duration::from_secs(25));
    assert!(!client.session.is_finished());
    assert_eq!(world.app.hub.socket_count(), 1);
}

/// What a client hears until it is closed: the frames but pings, and the close.
async fn to_the_end(mut client: Client) -> (Vec<Value>, u16, u64) {
    let mut heard = Vec::new();
    loop {
        match client.socket.next().await.unwrap().unwrap() {
            Message::Text(text) => {
                let frame: Value = serde_json::from_str(&text).unwrap();
                if frame["type"] != "ping" {
                    heard.push(frame);
                }
            }
            Message::Close(Some(close)) => {
                let reason: Value = serde_json::from_str(&close.reason).unwrap();
                return (heard, close.code.into(), reason["retry_after_ms"].as_u64().unwrap());
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A send of a new message into a room.
fn send(world: &World, room: &str) -> Value {
    let mut frame = world.message("hello");
    frame["type"] = "send".into();
    frame["room"] = room.into();
    frame
}

#[tokio::test(start_paused = true)]
async fn a_session_waits_for_no_append_and_sends_keep_their_order() {
    let world = World::new().await;
    let ada = world.person("ada").await;
    let room = world.room(&ada, &[], json!({})).await;
    let mut client = live(&world, &ada, ROOMY).await;
    world.log.take_appends();
    world.log.hold(true);
    let sent: Vec<Value> = (0..5).map(|_| send(&world, &room)).collect();
    for frame in &sent {
        client.say(frame.clone()).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client.socket.send(Message::Ping(b"there?".to_vec().into())).await.unwrap();
    let began = Instant::now();
    assert_eq!(client.socket.next().await.unwrap().unwrap(), Message::Pong(b"there?".to_vec().into()));
    assert!(began.elapsed() < Duration::from_millis(1));
    assert_eq!(world.log.take_appends(), [1], "one at a time");
    world.log.hold(false);
    for frame in &sent {
        let heard = client.next().await.unwrap();
        assert_eq!((&heard["type"], &heard["client_msg_id"]), (&json!("accepted"), &frame["client_msg_id"]));
    }
    assert_eq!(world.log.take_appends(), [4], "with all that has come meanwhile");
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_owes_answers_for_too_long_takes_no_more_until_it_answers() {
    let world = World::new().await;
    let ada = world.person("ada").await;
    let room = world.room(&ada, &[], json!({})).await;
    let mut client = live(&world, &ada, ROOMY).await;
    world.log.hold(true);
    let (first, second) = (send(&world, &room), send(&world, &room));
    client.say(first.clone()).await;
    tokio::time::sleep(Duration::from_millis(5_500)).await;
    client.say(second.clone()).await;
    let heard = client.next().await.unwrap();
    assert_eq!((&heard["type"], &heard["client_msg_id"]), (&json!("rejected"), &second["client_msg_id"]), "{heard}");
    assert_eq!(heard["code"], "unavailable");
    assert!((1_000..3_000).contains(&heard["retry_after_ms"].as_u64().unwrap()), "{heard}");
    let refused = world.post(&ada, &format!("/v1/rooms/{room}/messages"), world.message("hello")).await;
    assert_eq!(refused.is(503)["code"], "unavailable");
    world.log.hold(false);
    let heard = client.next().await.unwrap();
    assert_eq!((&heard["type"], &heard["client_msg_id"]), (&json!("accepted"), &first["client_msg_id"]), "{heard}");
    client.say(second.clone()).await;
    let heard = client.next().await.unwrap();
    assert_eq!((&heard["type"], &heard["client_msg_id"]), (&json!("accepted"), &second["client_msg_id"]), "{heard}");
}

#[tokio::test(start_paused = true)]
async fn a_drain_tells_everyone_finishes_what_was_taken_and_spreads_the_return() {
    let world = World::new().await;
    let ada = world.person("ada").await;
    let room = world.room(&ada, &[], json!({})).await;
    let mut clients = Vec::new();
    for _ in 0..40 {
        clients.push(live(&world, &ada, ROOMY).await);
    }
    let mut sent = Vec::new();
    for client in &mut clients {
        let frame = send(&world, &room);
        sent.push(frame["client_msg_id"].as_str().unwrap().to_owned());
        client.say(frame).await;
    }
    let (hub, began) = (world.app.hub.clone(), Instant::now());
    let (over, spread) = (Duration::from_millis(100), Duration::from_secs(5));
    let draining = tokio::spawn(async move { hub.drain(over, spread).await });
    let mut delays = Vec::new();
    for (client, id) in clients.into_iter().zip(sent) {
        let (heard, code, retry_after_ms) = to_the_end(client).await;
        assert_eq!(code, 1012);
        let closing = heard.iter().find(|frame| frame["type"] == "closing").unwrap();
        assert_eq!(closing["code"], 1012);
        assert!(closing["retry_after_ms"].as_u64().unwrap() >= retry_after_ms, "the same moment");
        let own = heard.iter().find(|frame| frame["client_msg_id"] == id.as_str()).unwrap();
        assert_eq!(own["type"], "accepted", "{own}");
        delays.push(retry_after_ms);
    }
    draining.await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(world.app.hub.socket_count(), 0);
    assert!(delays.iter().all(|delay| *delay <= 5_100), "{delays:?}");
    assert!(delays.iter().any(|delay| *delay < 1_500) && delays.iter().any(|delay| *delay > 3_500), "{delays:?}");

    let mut late = connected(&world, ROOMY).await;
    late.say(json!({"type": "hello", "token": ada.token})).await;
    assert_eq!(late.next().await.unwrap()["type"], "welcome");
    assert_eq!(late.next().await, Err(1012));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_go_keeps_no_drain_for_long() {
    let world = World::new().await;
    let ada = world.person("ada").await;
    let _deaf = live(&world, &ada, ROOMY).await;
    let began = Instant::now();
    world.app.hub.drain(Duration::from_secs(4), Duration::from_secs(5)).await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}
