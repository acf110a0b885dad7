//! The Rust SDK of Posthaste: programs and devices that lose nothing on their side either.
//!
//! - **Durable before the first try.** [`Client::send`] returns when the message is on this device's disk. It is sent
//!   when there is a network, again under the same id until there is an outcome, in the order of its room; whatever is
//!   killed or cut off in between, it is stored once.
//! - **Acknowledged after the listener has returned.** [`Listener::on_receive`] gets every event of every room in
//!   order. What it had not finished when the process died comes again; what it had finished does not.
//! - **Visible.** [`Client::steps`] tells each step of a message's life: Creation → Queuing → Sending → Annotation →
//!   Storage → Monitoring → Retrieval → Collection → `on_receive` ([`Stage`]).
//!
//! ```no_run
//! use client::{Client, Credentials, Event, Listener, Retry, Settings};
//! use schemas::message::Content;
//!
//! struct Print;
//!
//! #[async_trait::async_trait]
//! impl Listener for Print {
//!     async fn on_receive(&self, event: &Event) -> Result<(), Retry> {
//!         println!("{event:?}");
//!         Ok(())
//!     }
//! }
//!
//! # async fn example() -> Result<(), client::Error> {
//! let me = Credentials::Password { username: "ada".into(), password: "correct horse battery".into() };
//! let (client, worker) = Client::open(Settings::new("http://127.0.0.1:8080", "./ada"), me)?;
//! let (_stop, stopped) = tokio::sync::watch::channel(false);
//! let running = tokio::spawn(worker.run(Print, stopped));
//!
//! let room = client.rest().join_or_create("lobby").await?;
//! let stored = client.send(room.id, Content::text("hello")).await?.stored().await?;
//! println!("it is message {} of the room", stored.seq.0);
//! # running.await.ok();
//! # Ok(())
//! # }
//! ```

mod backoff;
mod deps;
mod error;
mod inbox;
mod journal;
mod outbox;
mod rest;
mod socket;
mod stage;
mod tls;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use schemas::message::Content;
use schemas::{CommandId, DeviceId, EventId, RoomId, Seq, Timestamp};
use tokio::sync::{broadcast, mpsc, oneshot};

pub use crate::deps::{Connector, Deps, Stream, SystemClock, SystemEntropy, TcpConnector};
pub use crate::error::Error;
pub use crate::inbox::{Listener, Retry, Signal};
pub use crate::journal::{Journal, MemoryJournal, Queued, Saved, Session, SqliteJournal};
pub use crate::rest::{Credentials, Page, Rest, Room, TokenSource, User};
pub use crate::stage::{Stage, Step};
pub use crate::tls::TlsConnector;
pub use crate::worker::Worker;

/// Names the calls that [`Rest::call`] makes.
pub use hyper::Method;

/// An event of a room, as everyone sees it; one's own messages too.
pub use schemas::frame::EventView as Event;

/// Steps that a slow watcher may fall behind before it misses some.
const STEPS_KEPT: usize = 1_024;

/// Requests of this process that wait for the worker.
const REQUESTS_MAX: usize = 256;

/// What a client needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The server: `https://host`, or `http://host:port` where nobody else listens in.
    pub server: String,
    /// The certificate authorities that are trusted to know the server, a PEM file; `None`: those of the system.
    pub authorities: Option<PathBuf>,
    /// Where the journal is; `None`: in memory, and gone with the process.
    pub dir: Option<PathBuf>,
    /// With tokens of another issuer: which installation this is.
    pub device: Option<DeviceId>,
    /// Messages that may wait to be stored.
    pub queue_max: usize,
}

impl Settings {
    /// A client that keeps its journal in a directory of its own.
    pub fn new(server: impl Into<String>, dir: impl AsRef<Path>) -> Self {
        Self {
            server: server.into(),
            authorities: None,
            dir: Some(dir.as_ref().into()),
            device: None,
            queue_max: 10_000,
        }
    }

    /// Trusts the certificate authorities of this PEM file in place of the system's.
    #[must_use]
    pub fn trusting(mut self, authorities: impl Into<PathBuf>) -> Self {
        self.authorities = Some(authorities.into());
        self
    }
}

/// A message is on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place in the room.
    pub seq: Seq,
    /// Its event's id.
    pub id: EventId,
    /// The server's time.
    pub sent_at: Timestamp,
}

/// A message on its way. Dropping this does not call it back.
#[derive(Debug)]
pub struct Sending {
    /// Its id.
    pub id: CommandId,
    outcome: oneshot::Receiver<Result<Stored, Error>>,
}

impl Sending {
    /// Waits until the message is durable on the server: for as long as there is no network, if need be.
    ///
    /// # Errors
    /// [`Error::Rejected`] if it is refused for good.
    pub async fn stored(self) -> Result<Stored, Error> {
        self.outcome.await.map_err(|_| Error::Ended)?
    }
}

/// What a handle asks of the worker.
pub(crate) enum Request {
    Send(Content, RoomId, Option<Seq>, oneshot::Sender<Result<Sending, Error>>),
    Read(RoomId, Seq),
    Typing(RoomId),
}

/// A handle, cheap to clone. What it asks is done by its [`Worker`].
#[derive(Clone)]
pub struct Client {
    requests: mpsc::Sender<Request>,
    steps: broadcast::Sender<Step>,
    rest: Rest,
}

impl Client {
    /// A client on this system's clock, disk and network, and the worker that does its work: run it.
    ///
    /// # Errors
    /// Where the address, the authorities or the journal can't be used.
    pub fn open(settings: Settings, credentials: Credentials) -> Result<(Self, Worker), Error> {
        let (connector, authority) = connector(&settings.server, settings.authorities.as_deref())?;
        let journal: Arc<dyn Journal> = match &settings.dir {
            Some(dir) => Arc::new(SqliteJournal::open(dir)?),
            None => Arc::new(MemoryJournal::default()),
        };
        let deps = Deps { clock: Arc::new(SystemClock::start()), entropy: Arc::new(SystemEntropy), connector, journal };
        Ok(Self::with(deps, authority, settings, credentials))
    }

    /// The same on whatever is handed in. `authority`: host and port as in the URL.
    pub fn with(deps: Deps, authority: String, settings: Settings, credentials: Credentials) -> (Self, Worker) {
        let (requests, asked) = mpsc::channel(REQUESTS_MAX);
        let (steps, _) = broadcast::channel(STEPS_KEPT);
        let rest = Rest::new(deps.clone(), authority, credentials);
        let client = Self { requests, steps: steps.clone(), rest: rest.clone() };
        (client, Worker::new(deps, settings, rest, asked, steps))
    }

    /// Queues a message. When this returns it is durable on this device.
    ///
    /// # Errors
    /// [`Error::QueueFull`]; [`Error::Journal`] where the disk fails. Then it is not queued.
    pub async fn send(&self, room: RoomId, content: Content) -> Result<Sending, Error> {
        self.reply(room, content, None).await
    }

    /// Queues an answer to a message.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn reply(&self, room: RoomId, content: Content, to: Option<Seq>) -> Result<Sending, Error> {
        let (answer, queued) = oneshot::channel();
        self.requests.send(Request::Send(content, room, to, answer)).await.map_err(|_| Error::Ended)?;
        queued.await.map_err(|_| Error::Ended)?
    }

    /// Tells the others that everything up to `seq` has been seen. Best effort: it is a maximum, the next one says as
    /// much.
    pub async fn read(&self, room: RoomId, seq: Seq) -> Result<(), Error> {
        self.requests.send(Request::Read(room, seq)).await.map_err(|_| Error::Ended)
    }

    /// Tells the others that this person is typing.
    pub async fn typing(&self, room: RoomId) -> Result<(), Error> {
        self.requests.send(Request::Typing(room)).await.map_err(|_| Error::Ended)
    }

    /// The steps of all messages from now on. Who is slow misses the oldest: they are for people to look at.
    pub fn steps(&self) -> broadcast::Receiver<Step> {
        self.steps.subscribe()
    }

    /// The REST calls, as this person.
    pub fn rest(&self) -> &Rest {
        &self.rest
    }
}

/// The way to the server of a URL, and its host and port as in the URL. `authorities` as in [`Settings`].
///
/// # Errors
/// [`Error::Address`] for what is no `http` or `https` URL of a server; those of [`TlsConnector::new`].
pub fn connector(url: &str, authorities: Option<&Path>) -> Result<(Arc<dyn Connector>, String), Error> {
    let Server { tls, host, port, authority } = Server::parse(url)?;
    let tcp = TcpConnector { host, port };
    let connector: Arc<dyn Connector> =
        if tls { Arc::new(TlsConnector::new(tcp, authorities)?) } else { Arc::new(tcp) };
    Ok((connector, authority))
}

/// Where a server is.
struct Server {
    tls: bool,
    host: String,
    port: u16,
    authority: String,
}

impl Server {
    fn parse(url: &str) -> Result<Self, Error> {
        let wrong = |why: &str| Error::Address(format!("{url:?} is no address of a server: {why}"));
        let uri: hyper::Uri = url.parse().map_err(|_| wrong("not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("it must begin with https:// or http://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?.to_string();
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        if host.is_empty() || authority.contains('@') || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong("write https://host:port and nothing else"));
        }
        Ok(Self { tls, host, port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }), authority })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_scheme_a_host_and_a_port() {
        let server = Server::parse("http://[::1]:8080/").unwrap();
        assert_eq!((server.host.as_str(), server.port, server.authority.as_str()), ("::1", 8080, "[::1]:8080"));
        let server = Server::parse("https://chat.example.org").unwrap();
        assert_eq!((server.tls, server.port, server.authority.as_str()), (true, 443, "chat.example.org"));
        for bad in ["127.0.0.1:8080", "ftp://x", "http://", "http://a/b", "http://u:p@a", "http://a/?q=1", ""] {
            assert!(Server::parse(bad).is_err(), "{bad}");
        }
    }
}
