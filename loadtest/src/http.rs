//! A small HTTP/1.1 client: keep-alive, bounded connections, bounded patience. Knows no call of the protocol.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use schemas::CommandId;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::tls::{Stream, Tls};

/// Connections at a time: the server shares the machine.
const CONNECTIONS_MAX: usize = 16;

/// One try: connecting, sending, the whole answer.
const TRY_TIMEOUT: Duration = Duration::from_secs(15);

/// Largest answer, bytes: a page of a hundred largest contents, escaped.
const ANSWER_MAX_BYTES: usize = 32 * 1024 * 1024;

/// How long a call is tried again while the server is away or busy. Longer than a restart takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pause before a try again, unless the server names one.
const PAUSE: Duration = Duration::from_millis(250);

/// The longest pause that a server may ask for.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Connecting, and the handshake of TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the server is.
#[derive(Clone)]
pub struct Target {
    addr: SocketAddr,
    tls: Option<Tls>,
    /// Host and port as in the URL.
    pub authority: String,
}

impl Target {
    /// Finds the server of a URL, and that it listens; over TLS also that it is the right one, see [`Tls::new`].
    pub async fn find(url: &str, authorities: Option<&Path>) -> Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("--target {url} is no URL"))?;
        let host = uri.host().with_context(|| format!("--target {url} names no host"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let (tls, port) = match uri.scheme_str() {
            Some("https") => (Some(Tls::new(host, authorities)?), 443),
            Some("http") => (None, 80),
            _ => bail!("--target {url}: only http:// and https:// are spoken"),
        };
        let port = uri.port_u16().unwrap_or(port);
        let authority = uri.authority().map_or_else(String::new, ToString::to_string);
        let found = tokio::net::lookup_host((host, port)).await;
        let mut last = None;
        for addr in found.with_context(|| format!("--target {url}: no such host"))? {
            let target = Self { addr, tls: tls.clone(), authority: authority.clone() };
            match target.connect().await {
                Ok(_) => return Ok(target),
                Err(error) => last = Some(format!("{error:#}")),
            }
        }
        bail!("--target {url}: can't connect: {}", last.unwrap_or_else(|| "no address".into()))
    }

    /// A new connection.
    pub async fn connect(&self) -> Result<Box<dyn Stream>> {
        let connect = async {
            let stream = TcpStream::connect(self.addr).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(match &self.tls {
                Some(tls) => tls.wrap(stream).await?,
                None => Box::new(stream) as Box<dyn Stream>,
            })
        };
        let connected = timeout(CONNECT_TIMEOUT, connect).await;
        Ok(connected.with_context(|| format!("no answer in {} s", CONNECT_TIMEOUT.as_secs()))??)
    }
}

/// What came back.
#[derive(Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The whole body.
    pub body: Bytes,
}

/// One call.
pub struct Call<'a> {
    /// GET, POST, …
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// Access token.
    pub token: Option<&'a str>,
    /// The id that makes it safe to try again.
    pub key: Option<CommandId>,
    /// JSON.
    pub body: Option<String>,
}

/// The client.
pub struct Http {
    target: Target,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
    places: Semaphore,
}

impl Http {
    /// A client of this server.
    pub fn new(target: Target) -> Self {
        Self { target, idle: Mutex::new(Vec::new()), places: Semaphore::new(CONNECTIONS_MAX) }
    }

    /// Makes a call; again while the server is away or says 429 or 503, within [`PATIENCE`]. Every call that changes
    /// something must be safe to repeat.
    ///
    /// # Errors
    /// When patience has run out.
    pub async fn call(&self, call: &Call<'_>) -> Result<Answer> {
        let _place = self.places.acquire().await?;
        let end = Instant::now() + PATIENCE;
        loop {
            let (problem, pause) = match timeout(TRY_TIMEOUT, self.once(call)).await {
                Ok(Ok((answer, after))) if matches!(answer.status, 429 | 503) => {
                    (format!("status {}", answer.status), after.unwrap_or(PAUSE).min(PAUSE_MAX))
                }
                Ok(Ok((answer, _))) => return Ok(answer),
                Ok(Err(error)) => (format!("{error:#}"), PAUSE),
                Err(_) => (format!("no answer in {} s", TRY_TIMEOUT.as_secs()), PAUSE),
            };
            if Instant::now() + pause > end {
                bail!("{} {}: {problem}, for {} s", call.method, call.path, PATIENCE.as_secs());
            }
            sleep(pause).await;
        }
    }

    async fn once(&self, call: &Call<'_>) -> Result<(Answer, Option<Duration>)> {
        let mut sender = self.connection().await?;
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(call.path.as_str())
            .header(HOST, self.target.authority.as_str());
        if let Some(token) = call.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(key) = call.key {
            request = request.header("idempotency-key", key.to_string());
        }
        if call.body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = Full::new(Bytes::from(call.body.clone().unwrap_or_default()));
        let response = sender.send_request(request.body(body)?).await?;
        let status = response.status().as_u16();
        let after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = Limited::new(response.into_body(), ANSWER_MAX_BYTES).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?.to_bytes();
        self.idle.lock().push(sender);
        Ok((Answer { status, body }, after.map(Duration::from_secs)))
    }

    /// An idle connection that is still good, or a new one.
    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>> {
        loop {
            let Some(mut sender) = self.idle.lock().pop() else { break };
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        let stream = self.target.connect().await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the connection; its errors reach the caller through the sender.
        tokio::spawn(connection);
        Ok(sender)
    }
}
