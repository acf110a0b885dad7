//! The REST calls that a run needs, and who is signed in. Owns their forms; no retries (see `http`), no judgement.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use checker::Listed;
use hyper::Method;
use schemas::{CommandId, EventId, RoomId, Seq, UserId};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{json, value::RawValue};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::clock;
use crate::http::{Answer, Call, Http};
use crate::keys::Issuer;

/// A token is renewed when less than this is left of it: a little earlier than the server warns (60 s).
const RENEW_AHEAD: Duration = Duration::from_secs(75);

/// Events on a page of history: the most that is allowed.
const PAGE: usize = schemas::limits::PAGE_MAX;

/// The server's calls.
pub struct Api {
    /// How they are made.
    pub http: Http,
}

/// How a person proves who they are.
pub enum Login {
    /// Our own issuer signs a fresh token each time.
    Issued { issuer: Arc<Issuer>, subject: String },
    /// A pair of tokens from the server.
    Signed(Mutex<Tokens>),
}

/// The server's tokens.
pub struct Tokens {
    access: String,
    refresh: String,
    good_until: Instant,
}

#[derive(Deserialize)]
struct TokensAnswer {
    access_token: String,
    refresh_token: String,
    expires_in: u64,
    user: UserAnswer,
}

#[derive(Deserialize)]
struct UserAnswer {
    id: UserId,
}

#[derive(Deserialize)]
struct RoomAnswer {
    id: RoomId,
    head_seq: Seq,
}

/// A message as the server stored it.
#[derive(Deserialize)]
pub struct Posted {
    /// Its place.
    pub seq: Seq,
    /// Its id.
    pub id: EventId,
    /// Its time.
    pub sent_at: String,
}

/// A page of history.
#[derive(Deserialize)]
pub struct Page {
    /// Events by ascending seq.
    pub items: Vec<Box<RawValue>>,
    /// The first that the reader may see.
    pub first_seq: Seq,
    /// The last.
    pub head_seq: Seq,
}

/// A page of a list.
#[derive(Deserialize)]
struct ListAnswer<T> {
    items: Vec<T>,
    next_cursor: Option<String>,
}

/// A room in its reader's list.
#[derive(Deserialize)]
struct ListedAnswer {
    id: RoomId,
    head_seq: Seq,
    me: StandingAnswer,
}

#[derive(Deserialize)]
struct StandingAnswer {
    delivered_seq: Seq,
    read_seq: Seq,
}

/// The body of an answer that must have one of these statuses.
fn read<T: DeserializeOwned>(what: &str, answer: &Answer, statuses: &[u16]) -> Result<T> {
    if !statuses.contains(&answer.status) {
        let text: String = String::from_utf8_lossy(&answer.body).chars().take(300).collect();
        bail!("{what}: status {}: {text}", answer.status);
    }
    serde_json::from_slice(&answer.body).with_context(|| format!("{what}: the answer is not as promised"))
}

impl Tokens {
    fn of(answer: TokensAnswer) -> (UserId, Self) {
        let life = Duration::from_secs(answer.expires_in).saturating_sub(RENEW_AHEAD);
        let good_until = Instant::now() + life;
        (answer.user.id, Self { access: answer.access_token, refresh: answer.refresh_token, good_until })
    }
}

impl Api {
    /// A token that is good for a while.
    pub async fn token(&self, login: &Login) -> Result<String> {
        let tokens = match login {
            Login::Issued { issuer, subject } => return Ok(issuer.token(subject)),
            Login::Signed(tokens) => tokens,
        };
        let mut tokens = tokens.lock().await;
        if Instant::now() >= tokens.good_until {
            let body = json!({"refresh_token": tokens.refresh}).to_string();
            let answer = self.send(Method::POST, "/v1/auth/refresh", None, None, Some(body)).await?;
            (_, *tokens) = Tokens::of(read("refresh", &answer, &[200])?);
        }
        Ok(tokens.access.clone())
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        key: Option<CommandId>,
        body: Option<String>,
    ) -> Result<Answer> {
        self.http.call(&Call { method, path: path.to_owned(), token, key, body }).await
    }

    /// A new account.
    pub async fn sign_up(&self, name: &str) -> Result<(UserId, Login)> {
        let password = clock::uuid_v7().to_string();
        let body = json!({"username": name, "password": password}).to_string();
        let mut answer = self.send(Method::POST, "/v1/auth/sign-up", None, None, Some(body.clone())).await?;
        if answer.status == 409 {
            // The names of a run are its own: an earlier try got through and only its answer was lost.
            answer = self.send(Method::POST, "/v1/auth/sign-in", None, None, Some(body)).await?;
        }
        let (user, tokens) = Tokens::of(read("sign-up", &answer, &[200, 201])?);
        Ok((user, Login::Signed(Mutex::new(tokens))))
    }

    /// Who a token speaks for.
    pub async fn me(&self, login: &Login) -> Result<UserId> {
        let token = self.token(login).await?;
        let answer = self.send(Method::GET, "/v1/me", Some(&token), None, None).await?;
        Ok(read::<UserAnswer>("GET /v1/me", &answer, &[200])?.id)
    }

    /// A new private room of its caller and `members`.
    pub async fn create_room(&self, login: &Login, name: &str, members: &[UserId]) -> Result<RoomId> {
        let token = self.token(login).await?;
        let body = json!({"name": name, "visibility": "private", "history": "all", "members": members}).to_string();
        let key = Some(clock::command_id());
        let answer = self.send(Method::POST, "/v1/rooms", Some(&token), key, Some(body)).await?;
        Ok(read::<RoomAnswer>("POST /v1/rooms", &answer, &[200, 201])?.id)
    }

    /// Adds a member to a room.
    pub async fn add_member(&self, login: &Login, room: RoomId, user: UserId) -> Result<()> {
        let token = self.token(login).await?;
        let path = format!("/v1/rooms/{room}/members/{user}");
        let body = Some(json!({"role": "member"}).to_string());
        let answer = self.send(Method::PUT, &path, Some(&token), Some(clock::command_id()), body).await?;
        if !(200..300).contains(&answer.status) {
            bail!("PUT {path}: status {}", answer.status);
        }
        Ok(())
    }

    /// The direct room with another.
    pub async fn direct_room(&self, login: &Login, other: UserId) -> Result<RoomId> {
        let token = self.token(login).await?;
        let path = format!("/v1/direct/{other}");
        let answer = self.send(Method::PUT, &path, Some(&token), Some(clock::command_id()), None).await?;
        Ok(read::<RoomAnswer>("PUT /v1/direct", &answer, &[200, 201])?.id)
    }

    /// The room's newest seq.
    pub async fn head(&self, login: &Login, room: RoomId) -> Result<Seq> {
        let token = self.token(login).await?;
        let answer = self.send(Method::GET, &format!("/v1/rooms/{room}"), Some(&token), None, None).await?;
        Ok(read::<RoomAnswer>("GET /v1/rooms", &answer, &[200])?.head_seq)
    }

    /// Sends a message. With it: whether it is a repeat.
    pub async fn post(&self, login: &Login, room: RoomId, id: CommandId, text: &str) -> Result<(Posted, bool)> {
        let token = self.token(login).await?;
        let content = json!({"type": "text/plain", "body": text});
        let body = json!({"client_msg_id": id, "content": content}).to_string();
        let path = format!("/v1/rooms/{room}/messages");
        let answer = self.send(Method::POST, &path, Some(&token), None, Some(body)).await?;
        Ok((read("POST messages", &answer, &[200, 201])?, answer.status == 200))
    }

    /// The whole list of a person's rooms.
    pub async fn rooms(&self, login: &Login) -> Result<Vec<Listed>> {
        let (mut rooms, mut cursor) = (Vec::new(), String::new());
        loop {
            let token = self.token(login).await?;
            let path = format!("/v1/rooms?limit={PAGE}{cursor}");
            let answer = self.send(Method::GET, &path, Some(&token), None, None).await?;
            let page: ListAnswer<ListedAnswer> = read("GET /v1/rooms", &answer, &[200])?;
            rooms.extend(page.items.iter().map(|ListedAnswer { id, head_seq, me }| Listed {
                room: *id,
                head_seq: *head_seq,
                delivered_seq: me.delivered_seq,
                read_seq: me.read_seq,
            }));
            match page.next_cursor {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return Ok(rooms),
            }
        }
    }

    /// The page of history after a seq.
    pub async fn page(&self, login: &Login, room: RoomId, after: Seq) -> Result<Page> {
        let token = self.token(login).await?;
        let path = format!("/v1/rooms/{room}/messages?after={after}&limit={PAGE}");
        let answer = self.send(Method::GET, &path, Some(&token), None, None).await?;
        read("GET messages", &answer, &[200])
    }
}
