//! The REST calls: one connection kept open, access tokens renewed as they end. Owns the sign-in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use schemas::frame::EventView;
use schemas::ids::uuid_v7;
use schemas::{CommandId, RoomId, Seq, UserId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::deps::Deps;
use crate::error::Error;
use crate::journal::Session;

/// One call, from connecting to the last byte of the answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// Largest answer, bytes: a page of a hundred largest contents, escaped.
const ANSWER_MAX_BYTES: usize = 32 * 1024 * 1024;

/// A token is renewed so long before it ends: a call takes a while, and clocks differ.
const RENEW_AHEAD: Duration = Duration::from_secs(30);

/// Who signs in.
#[derive(Clone)]
pub enum Credentials {
    /// By name and password; whoever is unknown is signed up.
    Password {
        /// Name.
        username: String,
        /// Password.
        password: String,
    },
    /// With tokens of another issuer: called for each new one. The device names this installation.
    Issuer(Arc<dyn TokenSource>),
    /// Goes on with the sign-in that the journal holds.
    Saved,
}

/// Gives access tokens of another issuer.
#[async_trait::async_trait]
pub trait TokenSource: Send + Sync {
    /// A token that is good for a while.
    async fn token(&self) -> Result<String, Error>;
}

/// What a sign-in answers.
#[derive(Deserialize)]
struct Tokens {
    access_token: String,
    expires_in: u64,
    refresh_token: String,
}

/// An access token, and when it is too old on the monotonic clock.
struct Access {
    token: String,
    until: Duration,
}

#[derive(Deserialize)]
struct Problem {
    #[serde(default)]
    code: String,
    #[serde(default)]
    detail: String,
}

/// A room as this client needs it.
#[derive(Clone, Debug, Deserialize)]
pub struct Room {
    /// Its id.
    pub id: RoomId,
    /// Its name.
    pub name: String,
    /// Its newest event.
    pub head_seq: Seq,
    /// Present for a member.
    pub me: Option<serde_json::Value>,
}

/// A page of history.
#[derive(Clone, Debug, Deserialize)]
pub struct Page {
    /// By ascending seq.
    pub items: Vec<EventView>,
    /// The first event that this person may see.
    pub first_seq: Seq,
    /// The last one.
    pub head_seq: Seq,
}

/// A person.
#[derive(Clone, Debug, Deserialize)]
pub struct User {
    /// Id.
    pub id: UserId,
    /// Unique name.
    pub username: String,
    /// As they want to be shown.
    pub display_name: String,
}

#[derive(Deserialize)]
struct Online {
    items: Vec<Member>,
}

#[derive(Deserialize)]
struct Member {
    profile: Option<User>,
}

/// The REST half of a client.
#[derive(Clone)]
pub struct Rest(Arc<Inner>);

struct Inner {
    deps: Deps,
    authority: String,
    credentials: Credentials,
    access: Mutex<Option<Access>>,
    idle: Mutex<Option<SendRequest<Full<Bytes>>>>,
}

impl Rest {
    pub(crate) fn new(deps: Deps, authority: String, credentials: Credentials) -> Self {
        Self(Arc::new(Inner { deps, authority, credentials, access: Mutex::default(), idle: Mutex::default() }))
    }

    /// Host and port as in the URL.
    pub(crate) fn authority(&self) -> &str {
        &self.0.authority
    }

    /// Who I am.
    pub async fn me(&self) -> Result<User, Error> {
        self.get("/v1/me").await
    }

    /// Somebody.
    pub async fn user(&self, id: UserId) -> Result<User, Error> {
        self.get(&format!("/v1/users/{id}")).await
    }

    /// A room by id or @handle.
    pub async fn room(&self, id_or_handle: &str) -> Result<Room, Error> {
        self.get(&format!("/v1/rooms/{}", escape(id_or_handle))).await
    }

    /// Joins a public room; whoever is in it already stays so.
    pub async fn join(&self, id_or_handle: &str) -> Result<Room, Error> {
        self.call(Method::PUT, &format!("/v1/rooms/{}/members/me", escape(id_or_handle)), None::<&()>).await
    }

    /// The public room with this handle (without the `@`): joins it, or creates it where there is none.
    pub async fn join_or_create(&self, handle: &str) -> Result<Room, Error> {
        let at_handle = format!("@{handle}");
        // Between a look and a creation someone else may have been quicker.
        for _ in 0..3 {
            match self.room(&at_handle).await {
                Ok(room) if room.me.is_some() => return Ok(room),
                Ok(_) => {
                    self.join(&at_handle).await?;
                    return self.room(&at_handle).await;
                }
                Err(Error::Refused { status: 404, .. }) => {}
                Err(error) => return Err(error),
            }
            let new = serde_json::json!({
                "name": handle, "handle": handle, "visibility": "public", "history": "all",
            });
            match self.call(Method::POST, "/v1/rooms", Some(&new)).await {
                Err(Error::Refused { status: 409, .. }) => {}
                created => return created,
            }
        }
        Err(Error::Refused {
            status: 409,
            code: "handle_taken".into(),
            detail: format!("{at_handle} belongs to a room that you may not see"),
            retry_after_ms: None,
        })
    }

    /// Who is in a room and online now.
    pub async fn online(&self, id_or_handle: &str) -> Result<Vec<User>, Error> {
        let page: Online = self.get(&format!("/v1/rooms/{}/online", escape(id_or_handle))).await?;
        Ok(page.items.into_iter().filter_map(|member| member.profile).collect())
    }

    /// Events after a seq, at most 100.
    pub async fn history_after(&self, room: RoomId, after: Seq, limit: usize) -> Result<Page, Error> {
        self.get(&format!("/v1/rooms/{room}/messages?after={}&limit={limit}", after.0)).await
    }

    /// The newest events, at most 100.
    pub async fn newest(&self, room: RoomId, limit: usize) -> Result<Page, Error> {
        self.get(&format!("/v1/rooms/{room}/messages?limit={limit}")).await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        self.call(Method::GET, path, None::<&()>).await
    }

    /// Any call, as this person. What changes something carries an id, so that it may be repeated.
    ///
    /// # Errors
    /// [`Error::Refused`] with the server's problem; after [`Error::Unreachable`] it may have happened or not.
    pub async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<T, Error> {
        let token = self.token().await?;
        let body = body.map(serde_json::to_vec).transpose().map_err(|error| Error::Protocol(error.to_string()))?;
        let key = (method != Method::GET).then(|| self.fresh_id());
        match self.exchange(&method, path, Some(&token), key, body.clone()).await {
            // It ended under way, or its key was withdrawn: once more with a new one.
            Err(Error::Refused { status: 401, .. }) => {
                self.forget(&token).await;
                let token = self.token().await?;
                self.exchange(&method, path, Some(&token), key, body).await
            }
            answer => answer,
        }
    }

    /// An id of now on this client's own clock.
    fn fresh_id(&self) -> CommandId {
        let mut random = [0; 10];
        self.0.deps.entropy.fill(&mut random);
        CommandId(uuid_v7(self.0.deps.clock.now().0, random))
    }

    /// An access token that is good for a while.
    pub(crate) async fn token(&self) -> Result<String, Error> {
        let mut access = self.0.access.lock().await;
        let now = self.0.deps.clock.elapsed();
        if let Some(access) = access.as_ref().filter(|access| now < access.until) {
            return Ok(access.token.clone());
        }
        let fresh = self.sign_in(now).await?;
        let token = fresh.token.clone();
        *access = Some(fresh);
        Ok(token)
    }

    /// The server does not take this token.
    pub(crate) async fn forget(&self, token: &str) {
        let mut access = self.0.access.lock().await;
        if access.as_ref().is_some_and(|access| access.token == token) {
            *access = None;
        }
    }

    async fn sign_in(&self, now: Duration) -> Result<Access, Error> {
        if let Credentials::Issuer(source) = &self.0.credentials {
            return Ok(Access { token: source.token().await?, until: now + RENEW_AHEAD });
        }
        let journal = &self.0.deps.journal;
        if let Some(session) = journal.load().await?.session {
            let body = serde_json::json!({ "refresh_token": session.refresh_token });
            match self.post("/v1/auth/refresh", &body).await {
                Ok(tokens) => return self.keep(tokens, now).await,
                Err(Error::Refused { status: 401, .. }) => journal.remember(None).await?,
                Err(error) => return Err(error),
            }
        }
        let Credentials::Password { username, password } = &self.0.credentials else {
            return Err(Error::SignedOut("the saved sign-in is no longer good".into()));
        };
        let body = serde_json::json!({ "username": username, "password": password });
        let tokens = match self.post("/v1/auth/sign-in", &body).await {
            // The server does not say whether it is the name or the password: where the name is free it is signed up.
            Err(Error::Refused { status: 401, detail, .. }) => match self.post("/v1/auth/sign-up", &body).await {
                Err(Error::Refused { status: 409, .. }) => return Err(Error::SignedOut(detail)),
                signed_up => signed_up?,
            },
            signed_in => signed_in?,
        };
        self.keep(tokens, now).await
    }

    async fn keep(&self, tokens: Tokens, now: Duration) -> Result<Access, Error> {
        self.0.deps.journal.remember(Some(Session { refresh_token: tokens.refresh_token })).await?;
        let lifetime = Duration::from_secs(tokens.expires_in);
        // A very short-lived one is used for half its life.
        let until = now + lifetime.saturating_sub(RENEW_AHEAD).max(lifetime / 2);
        Ok(Access { token: tokens.access_token, until })
    }

    async fn post(&self, path: &str, body: &serde_json::Value) -> Result<Tokens, Error> {
        self.exchange(&Method::POST, path, None, None, Some(body.to_string().into_bytes())).await
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        token: Option<&str>,
        key: Option<CommandId>,
        body: Option<Vec<u8>>,
    ) -> Result<T, Error> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.0.authority);
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(key) = key {
            request = request.header("idempotency-key", key.to_string());
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| Error::Protocol(error.to_string()))?;
        let (status, retry_after, body) = timeout(CALL_TIMEOUT, self.round_trip(request))
            .await
            .map_err(|_| Error::Unreachable("no answer in time".into()))??;
        if status >= 400 {
            let problem =
                serde_json::from_slice(&body).unwrap_or(Problem { code: String::new(), detail: String::new() });
            let retry_after_ms = retry_after.map(|seconds| seconds.saturating_mul(1_000));
            return Err(Error::Refused { status, code: problem.code, detail: problem.detail, retry_after_ms });
        }
        let body = if body.is_empty() { Bytes::from_static(b"null") } else { body };
        serde_json::from_slice(&body).map_err(|error| Error::Protocol(format!("{method} {path}: {error}")))
    }

    async fn round_trip(&self, request: Request<Full<Bytes>>) -> Result<(u16, Option<u64>, Bytes), Error> {
        let unreachable = |error: &dyn std::fmt::Display| Error::Unreachable(error.to_string());
        let idle = self.0.idle.lock().await.take();
        let mut sender = match idle.filter(SendRequest::is_ready) {
            Some(sender) => sender,
            None => {
                let stream = self.0.deps.connector.connect().await.map_err(Error::connecting)?;
                let (sender, connection) =
                    http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
                // It moves the bytes of this connection and ends with it.
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "a connection broke");
                    }
                });
                sender
            }
        };
        let response = sender.send_request(request).await.map_err(|error| unreachable(&error))?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
        let body = body.map_err(|error| unreachable(&error))?.to_bytes();
        *self.0.idle.lock().await = Some(sender);
        Ok((status, retry_after, body))
    }
}

/// A path segment (RFC 3986 section 3.3): what is not unreserved or `@` is escaped.
fn escape(segment: &str) -> String {
    let mut escaped = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'@' => escaped.push(byte.into()),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_can_not_leave_its_segment() {
        assert_eq!(escape("@lobby"), "@lobby");
        assert_eq!(escape("../me?x=ü"), "..%2Fme%3Fx%3D%C3%BC");
    }
}
