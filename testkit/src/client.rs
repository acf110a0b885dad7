//! A client for tests: the public protocol as it is on the wire, JSON in and out, every wait bounded.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};
use uuid::Uuid;

/// Longest wait for anything; a test that meets it has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a call answered.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status code.
    pub status: StatusCode,
    /// Headers.
    pub headers: hyper::HeaderMap,
    /// JSON body; `null` where there is none.
    pub body: Value,
}

impl Reply {
    /// The body, if the status is this one; else an error that shows both.
    pub fn expect(self, status: u16) -> Result<Value> {
        ensure!(self.status.as_u16() == status, "expected {status}, got {}: {}", self.status, self.body);
        Ok(self.body)
    }

    /// Checks status and problem code.
    pub fn refused(&self, status: u16, code: &str) -> Result<()> {
        let problem = self.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/problem+json");
        ensure!(
            self.status.as_u16() == status && self.body["code"] == code && problem,
            "expected {status} {code}, got {}: {}",
            self.status,
            self.body
        );
        Ok(())
    }
}

/// The REST calls of one server, as one person or as nobody.
#[derive(Clone, Debug)]
pub struct Api {
    /// Where it listens.
    pub address: SocketAddr,
    /// The address of this machine to come from; `None`: whichever.
    pub from: Option<IpAddr>,
    /// Access token.
    pub token: Option<String>,
}

/// Connects, from this address if one is given.
pub async fn dial(address: SocketAddr, from: Option<IpAddr>) -> std::io::Result<TcpStream> {
    let Some(from) = from else { return TcpStream::connect(address).await };
    let socket = if from.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(address).await
}

/// A person who has signed up.
#[derive(Clone, Debug)]
pub struct Person {
    /// Calls as this person.
    pub api: Api,
    /// User id.
    pub id: String,
    /// The whole answer of the sign-up.
    pub tokens: Value,
}

/// A fresh UUIDv7, as a client makes them.
#[expect(clippy::disallowed_methods, reason = "a client has its own time and randomness")]
pub fn new_id() -> String {
    Uuid::now_v7().to_string()
}

impl Api {
    /// Calls as nobody.
    pub fn new(address: SocketAddr) -> Self {
        Self { address, from: None, token: None }
    }

    /// One call.
    pub async fn call(&self, method: Method, path: &str, body: Option<Value>) -> Result<Reply> {
        self.call_with(method, path, &[], body).await
    }

    /// One call with headers.
    pub async fn call_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Result<Reply> {
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        self.exchange(method, path, headers, body).await
    }

    /// One call with a body that says that it is JSON, whatever it is.
    pub async fn call_raw(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Reply> {
        self.exchange(method, path, &[], body.into()).await
    }

    async fn exchange(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Bytes) -> Result<Reply> {
        let stream = dial(self.address, self.from).await.context("connect")?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, self.address.to_string());
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let work = async {
            let response = sender.send_request(request.body(Full::new(body))?).await?;
            let (parts, body) = response.into_parts();
            let bytes = body.collect().await?.to_bytes();
            let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap_or_default() };
            anyhow::Ok(Reply { status: parts.status, headers: parts.headers, body })
        };
        tokio::time::timeout(PATIENCE, work).await.context("no answer in time")?
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Result<Reply> {
        self.call(Method::GET, path, None).await
    }

    /// POST.
    pub async fn post(&self, path: &str, body: Value) -> Result<Reply> {
        self.call(Method::POST, path, Some(body)).await
    }

    /// PUT without a body.
    pub async fn put(&self, path: &str) -> Result<Reply> {
        self.call(Method::PUT, path, None).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Result<Reply> {
        self.call(Method::DELETE, path, None).await
    }

    /// Signs a person up.
    pub async fn sign_up(&self, username: &str) -> Result<Person> {
        let body = json!({"username": username, "password": "correct horse battery"});
        let tokens = self.post("/v1/auth/sign-up", body).await?.expect(201)?;
        let token = tokens["access_token"].as_str().context("an access token")?.to_owned();
        let id = match &tokens["user"] {
            Value::String(id) => id.clone(),
            user => user["id"].as_str().context("a user id")?.to_owned(),
        };
        Ok(Person { api: Self { token: Some(token), ..self.clone() }, id, tokens })
    }
}

impl Person {
    /// Creates a room with these members; answers its id.
    pub async fn create_room(&self, settings: Value, members: &[&Self]) -> Result<String> {
        let mut body = settings;
        body["members"] = members.iter().map(|member| Value::from(member.id.clone())).collect();
        let room = self.api.post("/v1/rooms", body).await?.expect(201)?;
        Ok(room["id"].as_str().context("a room id")?.to_owned())
    }

    /// Posts a text; answers the event.
    pub async fn post(&self, room: &str, text: &str) -> Result<Value> {
        let body = json!({"client_msg_id": new_id(), "content": {"type": "text/plain", "body": text}});
        self.api.post(&format!("/v1/rooms/{room}/messages"), body).await?.expect(201)
    }

    /// Opens a socket and reads up to `live`; answers the frames between `welcome` and it as well.
    pub async fn connect(&self, hello: Value) -> Result<(Wire, Vec<Value>)> {
        let mut wire = Wire::open_from(self.api.address, self.api.from).await?;
        let mut hello = hello;
        hello["type"] = "hello".into();
        hello["token"] = self.api.token.clone().into();
        wire.send(hello).await?;
        ensure!(wire.next().await?["type"] == "welcome", "the first frame is welcome");
        let missed = wire.until(|frame| frame["type"] == "live").await?;
        Ok((wire, missed))
    }
}

/// One socket.
pub struct Wire {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Wire {
    /// Opens a socket without a word.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        Self::open_with(address, &[]).await.map_err(Into::into)
    }

    /// Opens a socket from this address.
    pub async fn open_from(address: SocketAddr, from: Option<IpAddr>) -> Result<Self> {
        let request = format!("ws://{address}/v1/socket").into_client_request()?;
        let stream = MaybeTlsStream::Plain(dial(address, from).await?);
        Ok(Self { stream: tokio_tungstenite::client_async(request, stream).await?.0 })
    }

    /// Opens a socket with these headers.
    pub async fn open_with(address: SocketAddr, headers: &[(&'static str, &str)]) -> Result<Self, WsError> {
        let mut request = format!("ws://{address}/v1/socket").into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().map_err(|_| WsError::AttackAttempt)?);
        }
        let (stream, _) = connect_async(request).await?;
        Ok(Self { stream })
    }

    /// Sends a frame.
    pub async fn send(&mut self, frame: Value) -> Result<()> {
        self.send_text(&frame.to_string()).await
    }

    /// Sends text as it is.
    pub async fn send_text(&mut self, text: &str) -> Result<()> {
        Ok(self.stream.send(Message::text(text)).await?)
    }

    /// Sends a message; answers its client_msg_id.
    pub async fn send_message(&mut self, room: &str, text: &str) -> Result<String> {
        let id = new_id();
        self.resend_message(room, &id, text).await?;
        Ok(id)
    }

    /// Sends a message under an id of the caller's.
    pub async fn resend_message(&mut self, room: &str, id: &str, text: &str) -> Result<()> {
        let content = json!({"type": "text/plain", "body": text});
        self.send(json!({"type": "send", "room": room, "client_msg_id": id, "content": content})).await
    }

    /// The next frame but heartbeats. A close is an error that says its code.
    pub async fn next(&mut self) -> Result<Value> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.stream.next()).await.context("no frame in time")?;
            match message.context("the connection ended")?? {
                Message::Text(text) => {
                    let frame: Value = serde_json::from_str(text.as_str())?;
                    if frame["type"] != "ping" {
                        return Ok(frame);
                    }
                    self.send(json!({"type": "pong"})).await?;
                }
                Message::Close(Some(close)) => bail!("closed: {} {}", u16::from(close.code), close.reason),
                Message::Close(None) => bail!("closed without a code"),
                _ => {}
            }
        }
    }

    /// Frames up to the one that fits, which is left out.
    pub async fn until(&mut self, fits: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
        let mut frames = Vec::new();
        loop {
            let frame = self.next().await?;
            if fits(&frame) {
                return Ok(frames);
            }
            frames.push(frame);
        }
    }

    /// The first frame of this type; others are passed over.
    pub async fn first(&mut self, kind: &str) -> Result<Value> {
        loop {
            let frame = self.next().await?;
            if frame["type"] == kind {
                return Ok(frame);
            }
        }
    }

    /// The code that the server closes with; frames before it are passed over.
    pub async fn close_code(&mut self) -> Result<u16> {
        loop {
            let message = tokio::time::timeout(PATIENCE, self.stream.next()).await.context("no close in time")?;
            match message {
                Some(Ok(Message::Close(Some(close)))) => {
                    let reason: Value = serde_json::from_str(close.reason.as_str()).context("the reason is JSON")?;
                    ensure!(reason["code"] == u16::from(close.code), "the reason repeats the code: {reason}");
                    return Ok(close.code.into());
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => bail!("broken instead of closed: {error}"),
                None => bail!("ended instead of closed"),
            }
        }
    }
}
