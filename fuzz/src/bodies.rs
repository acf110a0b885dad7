//! Bodies and headers of every call that takes a body, to the real router with a whole installation behind it.

use std::cell::RefCell;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, header};
use edge::Config;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::input::Input;
use crate::world::{Answer, Person, World};

/// The calls; `$room` and `$bob` stand for a room's and a person's id, in bodies as well.
const CALLS: [(&str, &str); 11] = [
    ("POST", "/v1/rooms/$room/messages"),
    ("POST", "/v1/auth/sign-up"),
    ("POST", "/v1/auth/sign-in"),
    ("POST", "/v1/auth/refresh"),
    ("POST", "/v1/auth/sign-out"),
    ("PATCH", "/v1/me"),
    ("POST", "/v1/rooms"),
    ("PATCH", "/v1/rooms/$room"),
    ("PUT", "/v1/rooms/$room/members/me"),
    ("PUT", "/v1/rooms/$room/members/$bob"),
    ("PUT", "/v1/direct/$bob"),
];
const MESSAGES: &str = CALLS[0].1;
const SIGN_OUT: &str = CALLS[4].1;
/// What takes no body, and so looks at none.
const BODILESS: [&str; 3] = [SIGN_OUT, CALLS[8].1, CALLS[10].1];

/// So many inputs find one installation, then a new one is made: it shall neither grow for ever nor cost its making each
/// time.
const INPUTS_PER_WORLD: u32 = 512;

struct Stage {
    world: World,
    ada: Person,
    bob: Person,
    room: String,
    inputs_left: u32,
    runtime: Runtime,
}

thread_local! {
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
}

impl Stage {
    fn set() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let (world, ada, bob, room) = runtime.block_on(async {
            let world = World::with(Config { limits: None, ..Config::default() }).await;
            let (ada, bob) = (world.person("ada").await, world.person("bob").await);
            let room = world.room(&ada, &[&bob], Value::Null).await;
            (world, ada, bob, room)
        });
        Self { world, ada, bob, room, inputs_left: INPUTS_PER_WORLD, runtime }
    }

    fn filled(&self, text: &str) -> String {
        let Self { ada, bob, .. } = self;
        let text = text.replace("$room", &self.room).replace("$bob", &bob.id).replace("$device", &ada.device);
        let text = text.replace("$refresh", &ada.refresh);
        if text.contains("$id") { text.replace("$id", &self.world.v7()) } else { text }
    }
}

/// The first byte says which call, the second whether it is made by somebody; then come headers, a line each up to an
/// empty one, and the body.
///
/// # Panics
/// Where a law is broken.
pub fn check(data: &[u8]) {
    STAGE.with_borrow_mut(|stage| {
        let mut set = stage.take().unwrap_or_else(Stage::set);
        if one(&set, &mut Input(data)) && set.inputs_left > 1 {
            set.inputs_left -= 1;
            *stage = Some(set);
        }
    });
}

/// Whether the stage can be used again.
fn one(stage: &Stage, input: &mut Input<'_>) -> bool {
    let (method, template) = CALLS[usize::from(input.byte()) % CALLS.len()];
    let is_signed_in = input.byte() % 8 != 7;
    let mut headers = Vec::new();
    loop {
        let line = input.until(b'\n');
        if line.is_empty() {
            break;
        }
        let text = stage.filled(&String::from_utf8_lossy(line));
        let line = if std::str::from_utf8(line).is_ok() { text.as_bytes() } else { line };
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':').unwrap_or(line.len()));
        let value = HeaderValue::from_bytes(value.get(1..).unwrap_or_default());
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), value) {
            headers.push((name, value));
        }
    }
    let body = match std::str::from_utf8(input.0) {
        Ok(text) => stage.filled(text).into_bytes(),
        Err(_) => input.0.to_vec(),
    };
    let request = || {
        let mut request = Request::new(Body::from(body.clone()));
        *request.method_mut() = Method::from_bytes(method.as_bytes()).unwrap();
        *request.uri_mut() = stage.filled(template).parse().unwrap();
        request.headers_mut().extend(headers.iter().map(|(name, value)| (Some(name.clone()), value.clone())));
        if is_signed_in {
            let bearer = format!("Bearer {}", stage.ada.token);
            request.headers_mut().insert(header::AUTHORIZATION, bearer.parse().unwrap());
        }
        request
    };
    stage.runtime.block_on(async {
        let answer = stage.world.send(request()).await;
        let status = answer.status;
        let heard = judge(answer);
        let told = || format!("{method} {template} {headers:?} {:?}: {heard}", String::from_utf8_lossy(&body));
        assert!(status.as_u16() < 500, "{status}: {}", told());
        if status.is_success() && !body.is_empty() && !BODILESS.contains(&template) {
            let said: Option<Value> = serde_json::from_slice(&body).ok();
            assert!(said.is_none_or(|said| said.is_object()), "taken, and no object: {}", told());
        }
        if template == MESSAGES && status == StatusCode::CREATED {
            // The same once more is the same message, and everybody can read what was sent.
            let again = stage.world.send(request()).await;
            assert_eq!(again.status, StatusCode::OK, "{}", told());
            assert_eq!(judge(again), heard);
            let page = stage.world.get(&stage.bob, &stage.filled("/v1/rooms/$room/messages?limit=1")).await.is(200);
            let read = &page["items"][0];
            assert_eq!((&read["seq"], &read["content"]), (&heard["seq"], &heard["content"]), "{}", told());
            let said: Value = serde_json::from_slice(&body).unwrap();
            for part in ["type", "body", "data", "media"] {
                assert_eq!(read["content"][part], said["content"][part], "{part}: {}", told());
            }
        }
        !(template == SIGN_OUT && status.is_success())
    })
}

/// What every answer keeps to; its body.
fn judge(answer: Answer) -> Value {
    let Answer { status, headers, body } = answer;
    let id = headers.get("x-request-id").and_then(|id| id.to_str().ok()).expect("every answer has an id");
    if status.is_client_error() || status.is_server_error() {
        assert_eq!(
            headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes),
            Some(&b"application/problem+json"[..])
        );
        assert_eq!(body["status"].as_u64(), Some(u64::from(status.as_u16())), "{body}");
        assert_eq!(body["request_id"].as_str(), Some(id));
        for field in ["type", "title", "detail", "code"] {
            assert!(body[field].is_string(), "{field}: {body}");
        }
        let tells_when = status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(headers.contains_key(header::RETRY_AFTER), tells_when, "{body}");
    }
    body
}
