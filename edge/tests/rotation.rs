//! Signing keys that change while requests and sockets go on, all in parallel: no valid token fails.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use common::{Person, World};
use edge::Config;
use futures_util::{SinkExt as _, StreamExt as _};
use parking_lot::Mutex;
use schemas::Clock as _;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

/// Nothing here takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Keys that are to be seen signing.
const KEYS: usize = 4;

/// People who call as fast as they can, and people with sockets.
const CALLERS: usize = 2;
const SOCKETS: usize = 6;

/// How long a token lives; and a key, not much longer than its predecessor has to stay.
const TTL: Duration = Duration::from_secs(60);
const KEY_AGE: Duration = Duration::from_secs(280);

/// What all have done so far.
#[derive(Default)]
struct Seen {
    kids: Mutex<BTreeSet<String>>,
    calls: AtomicU64,
    renewals: AtomicU64,
}

/// A part of a token, decoded.
fn part(token: &str, index: usize) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(index).unwrap()).unwrap()).unwrap()
}

/// Whether a token holds still by the clock of the server.
fn holds(world: &World, token: &str) -> bool {
    world.clock.now().0 < part(token, 1)["exp"].as_i64().unwrap() * 1_000
}

/// A fresh token; the one that is given up may have ended meanwhile.
async fn renewed(world: &World, person: &Person, seen: &Seen) -> Person {
    let body = json!({"refresh_token": person.refresh});
    let fresh = common::person(&world.call("", "POST", "/v1/auth/refresh", body).await.is(200));
    seen.kids.lock().insert(part(&fresh.token, 0)["kid"].as_str().unwrap().to_owned());
    fresh
}

type Socket = WebSocketStream<TcpStream>;

async fn say(socket: &mut Socket, frame: Value) {
    socket.send(Message::text(frame.to_string())).await.unwrap();
}

/// The next frame of this type. A close fails.
async fn until(socket: &mut Socket, kind: &str) -> Value {
    loop {
        let message = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
        assert!(!message.is_close(), "{message}");
        let frame: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        if frame["type"] == kind {
            return frame;
        }
    }
}

/// Calls, again and again, with tokens of every age that has not ended.
async fn call_on(world: Arc<World>, mut person: Person, seen: Arc<Seen>, over: watch::Receiver<bool>) {
    let mut tokens = vec![person.token.clone()];
    while !*over.borrow() {
        for token in &tokens {
            let answer = world.call(token, "GET", "/v1/me", Value::Null).await;
            assert!(answer.status == 200 || !holds(&world, token), "{}: {}", answer.status, answer.body);
            seen.calls.fetch_add(u64::from(answer.status == 200), Ordering::Relaxed);
        }
        tokens.retain(|token| holds(&world, token));
        person = renewed(&world, &person, &seen).await;
        let (newest, fresh) = (tokens.last().map(|token| part(token, 1)), part(&person.token, 1));
        if newest.is_none_or(|newest| newest["exp"] != fresh["exp"]) {
            tokens.push(person.token.clone());
        }
    }
}

/// Keeps a socket, renewing its token, and opens another one with the newest token beside it each time.
async fn stay_on(
    world: Arc<World>,
    address: SocketAddr,
    mut person: Person,
    seen: Arc<Seen>,
    over: watch::Receiver<bool>,
) {
    let open = async || {
        let stream = TcpStream::connect(address).await.unwrap();
        client_async(format!("ws://{address}/v1/socket"), stream).await.unwrap().0
    };
    let mut kept = open().await;
    say(&mut kept, json!({"type": "hello", "token": person.token})).await;
    until(&mut kept, "live").await;
    while !*over.borrow() {
        person = renewed(&world, &person, &seen).await;
        say(&mut kept, json!({"type": "authenticate", "token": person.token})).await;
        // Whatever is answered to this comes on a socket that is not closed, now or the next time.
        say(&mut kept, json!({"type": "no such type"})).await;
        until(&mut kept, "error").await;
        let mut other = open().await;
        say(&mut other, json!({"type": "hello", "token": person.token})).await;
        until(&mut other, "welcome").await;
        seen.renewals.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_valid_token_fails_while_keys_change_under_parallel_requests_and_sockets() {
    let config = Config {
        access_ttl_s: TTL.as_secs(),
        signing_key_age_max_s: KEY_AGE.as_secs(),
        revocation_poll_ms: 5,
        limits: None,
        ..Config::default()
    };
    let world = Arc::new(World::with(config).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_shutdown, stop) = watch::channel(false);
    tokio::spawn(edge::server::serve(world.app.clone(), listener, stop));
    let (seen, (end, over)) = (Arc::new(Seen::default()), watch::channel(false));
    let mut working = tokio::task::JoinSet::new();
    for n in 0..CALLERS {
        let person = world.person(&format!("person{n}")).await;
        working.spawn(call_on(world.clone(), person, seen.clone(), over.clone()));
    }
    for n in 0..SOCKETS {
        let person = world.person(&format!("other{n}")).await;
        working.spawn(stay_on(world.clone(), address, person, seen.clone(), over.clone()));
    }
    let changes = async {
        while seen.kids.lock().len() < KEYS {
            // Time goes on with the work, so that a token is used often in its life however slow the machine is.
            let enough = seen.renewals.load(Ordering::Relaxed) + SOCKETS as u64;
            while seen.renewals.load(Ordering::Relaxed) < enough {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            world.clock.put_forward(TTL / 9);
        }
    };
    tokio::select! {
        changed = tokio::time::timeout(PATIENCE, changes) => changed.unwrap_or_else(|_| panic!("{:?}", seen.kids.lock())),
        ended = working.join_next() => panic!("{ended:?}"),
    }
    end.send_replace(true);
    while let Some(ended) = working.join_next().await {
        ended.unwrap();
    }
    let (calls, renewals) = (seen.calls.load(Ordering::Relaxed), seen.renewals.load(Ordering::Relaxed));
    assert!(calls > 1_000 && renewals > 500, "{calls} calls, {renewals} renewals");
}
