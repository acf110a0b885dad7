//! Connections between clients and edges: pipes that stall, break and fill up, with the record at the client's end and
//! the real session, or the real router, at the other.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::http::Request;
use checker::ClientId;
use client::{Connector, Stream};
use edge::socket::frames::Link;
use edge::socket::session;
use edge::{App, Peer};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use schemas::UserId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tower::ServiceExt as _;

use crate::record::{Record, Tap, end_of_head};
use crate::surroundings::Surroundings;
use crate::tasks::ProcessId;

/// What a connection holds under way, bytes: what more is sent waits at the sender's.
const PIPE_BYTES: usize = 8 * 1024;

/// Longest head of a request.
const HEAD_MAX_BYTES: usize = 16 * 1024;

/// The edges that listen, and what their clients' lines are like.
pub struct Network {
    around: Arc<Surroundings>,
    record: Arc<Record>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    edges: BTreeMap<ProcessId, (Arc<App>, Router)>,
    /// Clients whose lines carry nothing up to then.
    stalls: BTreeMap<ClientId, Instant>,
    /// Rises with each break of a client's lines.
    breaks: BTreeMap<ClientId, watch::Sender<u64>>,
    /// How many processes there had been when each client came last.
    came: BTreeMap<ClientId, u64>,
}

impl Network {
    /// Nobody listens yet.
    pub fn new(around: Arc<Surroundings>, record: Arc<Record>) -> Arc<Self> {
        Arc::new(Self { around, record, state: Mutex::default() })
    }

    /// An edge listens.
    pub fn listens(&self, process: ProcessId, app: Arc<App>) {
        let router = edge::routes::router(Arc::clone(&app));
        self.state.lock().edges.insert(process, (app, router));
    }

    /// It does no longer.
    pub fn ended(&self, process: ProcessId) {
        let gone = self.state.lock().edges.remove(&process);
        drop(gone);
    }

    /// A client's lines carry nothing up to then.
    pub fn stall(&self, client: ClientId, until: Instant) {
        self.state.lock().stalls.insert(client, until);
    }

    /// A client's lines break.
    pub fn break_off(&self, client: ClientId) {
        self.breaks(client, |breaks| breaks.send_modify(|times| *times += 1));
    }

    /// No line is stalled any more.
    pub fn heal(&self) {
        self.state.lock().stalls.clear();
    }

    fn breaks<T>(&self, client: ClientId, with: impl FnOnce(&watch::Sender<u64>) -> T) -> T {
        with(self.state.lock().breaks.entry(client).or_insert_with(|| watch::Sender::new(0)))
    }

    fn breaks_of(&self, client: ClientId) -> u64 {
        self.breaks(client, |breaks| *breaks.borrow())
    }

    fn stalled_until(&self, client: ClientId) -> Option<Instant> {
        self.state.lock().stalls.get(&client).copied().filter(|until| *until > Instant::now())
    }

    /// How a client comes to the edges.
    pub fn of(self: &Arc<Self>, client: ClientId, user: UserId) -> Arc<Lines> {
        Arc::new(Lines { network: Arc::clone(self), client, user })
    }
}

/// A client's way to the edges.
pub struct Lines {
    network: Arc<Network>,
    client: ClientId,
    user: UserId,
}

#[async_trait]
impl Connector for Lines {
    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let network = &self.network;
        network.around.delay().await;
        let (process, app, router) = {
            let state = network.state.lock();
            let all: Vec<_> = state.edges.iter().collect();
            let Some((process, (app, router))) = network.around.dice.pick(&all) else {
                return Err(io::ErrorKind::ConnectionRefused.into());
            };
            (**process, Arc::clone(app), router.clone())
        };
        let (ours, theirs) = duplex(PIPE_BYTES);
        let births = network.around.births();
        if network.state.lock().came.insert(self.client, births).is_some_and(|before| before < births) {
            network.around.saw("client: came back across a take-over");
        }
        let mut broken = network.breaks(self.client, watch::Sender::subscribe);
        network.around.tasks.spawn(process, async move {
            tokio::select! {
                biased;
                _ = broken.changed() => {}
                served = serve(theirs, app, router) => if let Err(error) = served {
                    tracing::debug!(%error, "a connection broke");
                },
            }
        });
        Ok(Box::new(Line {
            pipe: ours,
            tap: Tap::new(Arc::clone(&network.record), self.client, self.user),
            network: Arc::clone(network),
            client: self.client,
            born: network.breaks_of(self.client),
            waiting: None,
        }))
    }
}

/// The server's end: a socket gets its session, everything else the router.
async fn serve(mut pipe: DuplexStream, app: Arc<App>, router: Router) -> io::Result<()> {
    let mut head = Vec::new();
    let end = loop {
        if let Some(end) = end_of_head(&head) {
            break end;
        }
        if head.len() > HEAD_MAX_BYTES || pipe.read_buf(&mut head).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    if head.starts_with(b"GET /v1/socket ") {
        let text = String::from_utf8_lossy(&head);
        let mut lines = text.lines().filter_map(|line| line.split_once(": "));
        let key = lines.find(|(name, _)| name.eq_ignore_ascii_case("sec-websocket-key")).map(|(_, key)| key.to_owned());
        let accept = derive_accept_key(key.unwrap_or_default().as_bytes());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-accept: {accept}\r\nsec-websocket-protocol: {}\r\n\r\n",
            schemas::frame::SUBPROTOCOL
        );
        pipe.write_all(answer.as_bytes()).await?;
        let context = session::Context { hub: Arc::clone(&app.hub), gate: app };
        session::run(Link::new(pipe, &head[end..]), context, None, ()).await;
        return Ok(());
    }
    let (read, write) = tokio::io::split(pipe);
    let stream = tokio::io::join(io::Cursor::new(head).chain(read), write);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(([127, 0, 0, 1], 1).into()));
        let answer = router.clone().oneshot(request);
        async move { Ok::<_, std::convert::Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await
        .map_err(io::Error::other)
}

/// The client's end of a connection.
struct Line {
    pipe: DuplexStream,
    tap: Tap,
    network: Arc<Network>,
    client: ClientId,
    born: u64,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Line {
    /// Whether bytes may pass now.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.network.breaks_of(self.client) != self.born {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            }
            let Some(until) = self.network.stalled_until(self.client) else { return Poll::Ready(Ok(())) };
            let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep_until(until)));
            if waiting.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.waiting = None;
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_open(cx))?;
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.pipe).poll_read(cx, buf))?;
        let this = &mut *self;
        this.tap.heard(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_open(cx))?;
        let written = std::task::ready!(Pin::new(&mut self.pipe).poll_write(cx, buf))?;
        self.tap.said(&buf[..written]);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_open(cx))?;
        Pin::new(&mut self.pipe).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.pipe).poll_shutdown(cx)
    }
}
