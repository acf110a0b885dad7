//! What people keep to themselves stays out of what the server says of itself: with its log at its most talkative, nothing
//! that it writes there, on standard output or in its metrics holds a password, a token, or what anybody wrote or tried to.

#![expect(clippy::unwrap_used, reason = "what a test can not do without ends it")]

mod common;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use axum::http::Method;
use common::{Server, command};
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::client::{Api, Person, Wire, new_id};

/// In everything that the server is not to repeat, and in no word of its own.
const CANARY: &str = "kanarienvogel";

/// Whatever else has to be kept: tokens, which nobody can choose.
#[derive(Default)]
struct Secrets(Vec<String>);

impl Secrets {
    fn of(&mut self, tokens: &Value) {
        for name in ["access_token", "refresh_token"] {
            let token = tokens[name].as_str().unwrap();
            // A token that was cut is still too much of it; of an access token the claims and the signature are.
            self.0.extend(token.split('.').skip(usize::from(token.contains('.'))).map(|part| part[..16].to_owned()));
        }
    }

    fn assert_not_in(&self, what: &str, text: &str) {
        let secrets = self.0.iter().map(String::as_str).chain([CANARY]);
        for secret in secrets {
            if let Some(at) = text.find(secret) {
                let from = text[..at].rfind('\n').map_or(0, |line| line + 1);
                let line: String = text[from..].chars().take(600).collect();
                panic!("{secret} in {what}: {line}");
            }
        }
    }
}

/// What a connection answers to these bytes; whatever it is, for only the log is looked at.
fn say(to: SocketAddr, bytes: &str) {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    stream.write_all(bytes.as_bytes()).unwrap();
    let mut answer = [0; 4_096];
    let _ = stream.read(&mut answer);
}

/// Signing up, in, wrongly, with what others made up; refreshing, and with what is spent.
async fn accounts(api: &Api, secrets: &mut Secrets) -> (Person, Person) {
    let password = format!("{CANARY} as a password");
    let mut people = Vec::new();
    for name in ["ada", "bob"] {
        let body = json!({
            "username": name, "password": password, "email": format!("{name}@{CANARY}.example"), "display_name": CANARY,
        });
        let tokens = api.post("/v1/auth/sign-up", body).await.unwrap().expect(201).unwrap();
        secrets.of(&tokens);
        let token = tokens["access_token"].as_str().map(str::to_owned);
        let id = tokens["user"]["id"].as_str().unwrap().to_owned();
        people.push(Person { api: Api { token, ..api.clone() }, id, tokens });
    }
    let taken = json!({"username": "ada", "password": password});
    api.post("/v1/auth/sign-up", taken).await.unwrap().refused(409, "username_taken").unwrap();
    let wrong = json!({"username": "ada", "password": format!("not {CANARY}")});
    api.post("/v1/auth/sign-in", wrong).await.unwrap().refused(401, "invalid_credentials").unwrap();
    let right = json!({"email": format!("ada@{CANARY}.example"), "password": password, "device_name": CANARY});
    let first = api.post("/v1/auth/sign-in", right).await.unwrap().expect(200).unwrap();
    secrets.of(&first);
    let second = json!({"refresh_token": first["refresh_token"]});
    let second = api.post("/v1/auth/refresh", second).await.unwrap().expect(200).unwrap();
    secrets.of(&second);
    let third = json!({"refresh_token": second["refresh_token"]});
    secrets.of(&api.post("/v1/auth/refresh", third).await.unwrap().expect(200).unwrap());
    // Spent twice over: it may have been stolen, and the log may say so.
    let spent = json!({"refresh_token": first["refresh_token"]});
    api.post("/v1/auth/refresh", spent).await.unwrap().refused(401, "token_reused").unwrap();
    for made_up in [json!({"refresh_token": CANARY}), json!({"refresh_token": [CANARY]}), json!([CANARY])] {
        assert!(api.post("/v1/auth/refresh", made_up).await.unwrap().status.is_client_error());
    }
    for header in [format!("Bearer {CANARY}"), format!("Bearer {CANARY}.{CANARY}.{CANARY}"), format!("Basic {CANARY}")]
    {
        let answer = api.call_with(Method::GET, "/v1/me", &[("authorization", &header)], None).await.unwrap();
        assert_eq!(answer.status, 401);
    }
    (people.remove(0), people.remove(0))
}

/// Calls that work and calls that fail, with something to keep in every part of them.
async fn calls(ada: &Person, bob: &Person) -> String {
    let settings = json!({"name": CANARY, "description": CANARY, "handle": CANARY});
    let room = ada.create_room(settings, &[bob]).await.unwrap();
    ada.post(&room, CANARY).await.unwrap();
    let messages = format!("/v1/rooms/{room}/messages");
    let sent = json!({"client_msg_id": new_id(), "content": {"type": "text/plain", "body": CANARY}});
    for _ in 0..2 {
        assert!(ada.api.post(&messages, sent.clone()).await.unwrap().status.is_success());
    }
    assert!(ada.api.call(Method::PATCH, "/v1/me", Some(json!({"about": CANARY}))).await.unwrap().status.is_success());
    let large = json!({"client_msg_id": new_id(), "content": {"type": "text/plain", "body": CANARY.repeat(6_000)}});
    let larger = json!({"client_msg_id": new_id(), "content": {"type": "text/plain", "body": CANARY.repeat(60_000)}});
    for refused in [
        json!({"client_msg_id": CANARY, "content": {"type": "text/plain", "body": CANARY}}),
        json!({"client_msg_id": new_id(), "content": {"type": CANARY, "body": CANARY}}),
        json!({"client_msg_id": new_id(), "content": CANARY}),
        json!({"client_msg_id": new_id(), "content": {"type": "text/plain", "data": CANARY}}),
        json!({"client_msg_id": new_id(), "content": {"type": "text/plain", "body": CANARY}, "reply_to": CANARY}),
        large,
        larger,
    ] {
        assert!(ada.api.post(&messages, refused).await.unwrap().status.is_client_error());
    }
    for broken in [format!("{{\"content\": \"{CANARY}"), format!("\"{CANARY}\""), format!("{CANARY}\u{0}\u{1b}[31m")] {
        let answer = ada.api.call_raw(Method::POST, &messages, broken.into_bytes()).await.unwrap();
        assert_eq!(answer.status, 422, "{}", answer.body);
    }
    for path in [
        "/v1/rooms/CANARY",
        "/v1/rooms/@CANARY-2",
        "/v1/users/CANARY",
        "/CANARY",
        "/v1/rooms?cursor=CANARY&limit=CANARY",
    ] {
        let answer = ada.api.get(&path.replace("CANARY", CANARY)).await.unwrap();
        assert!(answer.status.is_client_error(), "{path}: {}", answer.status);
    }
    let key = [("idempotency-key", CANARY), ("x-request-id", CANARY), ("user-agent", CANARY)];
    assert!(
        ada.api
            .call_with(Method::PUT, &format!("/v1/direct/{}", bob.id), &key, None)
            .await
            .unwrap()
            .status
            .is_client_error()
    );
    assert!(ada.api.get(&format!("/v1/users?q={CANARY}")).await.unwrap().status.is_success());
    room
}

/// Sockets: the token in `hello`, messages, frames that are none, and none that is taken.
async fn sockets(ada: &Person, room: &str) {
    let (mut wire, _) = ada.connect(json!({})).await.unwrap();
    let id = wire.send_message(room, CANARY).await.unwrap();
    assert_eq!(wire.first("accepted").await.unwrap()["client_msg_id"], *id);
    wire.send(json!({"type": CANARY})).await.unwrap();
    wire.send(json!({"type": "send", "room": CANARY, "client_msg_id": CANARY, "content": CANARY})).await.unwrap();
    wire.send(json!({"type": "send", "room": room, "client_msg_id": new_id(), "content": [CANARY]})).await.unwrap();
    for _ in 0..3 {
        wire.first("error").await.unwrap();
    }
    wire.resend_message(room, &new_id(), &CANARY.repeat(6_000)).await.unwrap();
    assert_eq!(wire.first("rejected").await.unwrap()["code"], "too_large");
    wire.send(json!({"type": "authenticate", "token": format!("{CANARY}.{CANARY}.{CANARY}")})).await.unwrap();
    assert_eq!(wire.close_code().await.unwrap(), 4501);
    let (mut wire, _) = ada.connect(json!({"receiver_group": CANARY})).await.unwrap();
    wire.send_text(CANARY).await.unwrap();
    assert_eq!(wire.close_code().await.unwrap(), 4500);
    let (mut wire, _) = ada.connect(json!({})).await.unwrap();
    wire.send_text(&CANARY.repeat(60_000)).await.unwrap();
    assert_eq!(wire.close_code().await.unwrap(), 1009);
    for (hello, code) in [(json!({"type": "hello", "token": CANARY}), 4501), (json!({"type": CANARY}), 4500)] {
        let mut wire = Wire::open(ada.api.address).await.unwrap();
        wire.send(hello).await.unwrap();
        assert_eq!(wire.close_code().await.unwrap(), code);
    }
    let origin = format!("http://{CANARY}.example");
    assert!(Wire::open_with(ada.api.address, &[("origin", &origin)]).await.is_err());
    let upgrade = "Host: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let bearer = ada.api.token.as_deref().unwrap();
    say(ada.api.address, &format!("GET /v1/socket?token={bearer} HTTP/1.1\r\n{upgrade}\r\n{CANARY}"));
    say(
        ada.api.address,
        &format!("GET /v1/socket HTTP/1.1\r\n{upgrade}Authorization: Bearer {bearer}\r\n\r\n{CANARY}"),
    );
    say(ada.api.address, &format!("{CANARY} / HTTP/9.9\r\n\r\n"));
    say(ada.api.address, &format!("GET / HTTP/1.1\r\n{CANARY}\r\n\r\n"));
}

#[tokio::test]
async fn nothing_that_is_to_be_kept_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let start = || {
        let to = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = command(&dir.path().join("data"));
        command.env("POSTHASTE_LOG", "trace").stderr(to);
        Server::spawn(command)
    };
    let mut server = start();
    let mut secrets = Secrets::default();
    let api = Api::new(server.address);
    let (ada, bob) = accounts(&api, &mut secrets).await;
    let room = calls(&ada, &bob).await;
    sockets(&ada, &room).await;
    for path in ["/metrics", "/readyz", "/healthz"] {
        let text = server.get(path);
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        secrets.assert_not_in(path, &text);
    }
    secrets.assert_not_in("an unknown admin path", &server.get("/nothing"));
    // A crash, a start on what it left, and an orderly end.
    server.signal(Signal::KILL);
    secrets.assert_not_in("standard output", &server.rest_of_stdout());
    server.end();
    let mut server = start();
    let again = Api { address: server.address, ..ada.api.clone() };
    assert!(again.get(&format!("/v1/rooms/{room}/messages")).await.unwrap().status.is_success());
    secrets.assert_not_in("/metrics", &server.get("/metrics"));
    server.signal(Signal::TERM);
    secrets.assert_not_in("standard output", &server.rest_of_stdout());
    assert_eq!(server.end().code(), Some(0));

    let log = std::fs::read_to_string(&log).unwrap();
    assert!(["DEBUG", "INFO", "WARN"].iter().all(|level| log.contains(level)), "it is talkative: {log}");
    secrets.assert_not_in("the log", &log);
}
