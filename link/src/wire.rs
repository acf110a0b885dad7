//! One connection, whatever is said over it: frames in and out, heartbeats, silence, and what may be under way. Both ends
//! use it; who asks and who answers is `client.rs` and `server.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use schemas::cluster::Role;
use schemas::ids::InstanceId;
use schemas::link::Unavailable;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufWriter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};

use crate::config::Config;
use crate::frame::{self, Frame, FrameError};
use crate::metrics::Metrics;
use crate::words::{Head, PROTOCOL};

/// Bytes that may wait for a peer that does not read: largest frames of each kind. What no one waits for (interest taken
/// back, heartbeats) is bounded by it; beyond it the link is cut, and what stood at its other end is built anew.
const QUEUE_MAX_BYTES: usize = 4 * frame::FRAME_MAX_BYTES;

/// Bytes read at a time.
const READ_BYTES: usize = 64 * 1024;

/// Why a link has ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("nothing was heard for too long")]
    Silence,
    #[error("the peer did not read or take for too long")]
    Stuck,
    #[error("the peer has closed it")]
    Closed,
    #[error("the connection has failed")]
    Io(#[from] std::io::Error),
    #[error("what the peer sent is no frame")]
    Frame(#[from] FrameError),
    #[error("the peer said {0}")]
    Nonsense(&'static str),
    #[error("the peer is {0}")]
    Stranger(String),
}

impl End {
    /// A few words for a metric.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Silence => "silence",
            Self::Stuck => "stuck",
            Self::Closed => "closed",
            Self::Io(_) => "io",
            Self::Frame(_) | Self::Nonsense(_) => "protocol",
            Self::Stranger(_) => "stranger",
        }
    }
}

struct Queued {
    bytes: Bytes,
    /// Given back once it is written.
    _room: Option<OwnedSemaphorePermit>,
}

/// What speaks into a link.
pub(crate) struct Wire {
    out: mpsc::UnboundedSender<Queued>,
    queued_bytes: AtomicUsize,
    room: Arc<Semaphore>,
    room_bytes: usize,
    over: watch::Sender<bool>,
}

/// What [`Wire`] has said and has not been written.
pub(crate) struct Outgoing(mpsc::UnboundedReceiver<Queued>);

impl Wire {
    pub(crate) fn new(config: &Config) -> (Self, Outgoing) {
        let (out, outgoing) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(config.in_flight_max_bytes));
        let (room_bytes, over) = (config.in_flight_max_bytes, watch::Sender::new(false));
        (Self { out, queued_bytes: AtomicUsize::new(0), room, room_bytes, over }, Outgoing(outgoing))
    }

    /// Says something small, at once.
    pub(crate) fn say(&self, frame: &Frame) -> Result<(), Unavailable> {
        let bytes = frame.encode().map_err(|error| {
            tracing::error!(%error, "a frame that can't be sent");
            Unavailable
        })?;
        self.push(bytes, None)
    }

    /// Says something large once there is room for it.
    pub(crate) async fn send(&self, bytes: Bytes) -> Result<(), Unavailable> {
        let room = self.room_for(&bytes).await?;
        self.push(bytes, Some(room))
    }

    /// Waits until so much more may be under way.
    pub(crate) async fn room_for(&self, bytes: &Bytes) -> Result<OwnedSemaphorePermit, Unavailable> {
        let count = u32::try_from(bytes.len().min(self.room_bytes)).map_err(|_| Unavailable)?;
        tokio::select! {
            room = Arc::clone(&self.room).acquire_many_owned(count) => room.map_err(|_| Unavailable),
            () = self.ended() => Err(Unavailable),
        }
    }

    /// Puts a frame's bytes in line.
    pub(crate) fn push(&self, bytes: Bytes, room: Option<OwnedSemaphorePermit>) -> Result<(), Unavailable> {
        if self.is_over() {
            return Err(Unavailable);
        }
        let waiting = self.queued_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        if waiting > QUEUE_MAX_BYTES {
            tracing::warn!(waiting, "a link is cut: its peer does not read");
            self.end();
            return Err(Unavailable);
        }
        self.out.send(Queued { bytes, _room: room }).map_err(|_| Unavailable)
    }

    /// Ends the link.
    pub(crate) fn end(&self) {
        self.over.send_replace(true);
    }

    pub(crate) fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Returns when the link has ended.
    pub(crate) async fn ended(&self) {
        // The sender is ours: it can't be gone.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    /// Writes what was said, and heartbeats, until the link ends. Never returns otherwise.
    pub(crate) async fn write(
        &self,
        stream: impl AsyncWrite + Unpin,
        mut outgoing: Outgoing,
        config: &Config,
        metrics: &Metrics,
    ) -> End {
        let mut stream = BufWriter::with_capacity(READ_BYTES, stream);
        let mut beat = interval(config.heartbeat());
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let heartbeat = match Frame::of(Head::Beat {}).encode() {
            Ok(bytes) => bytes,
            Err(error) => return error.into(),
        };
        loop {
            let mut next = tokio::select! {
                biased;
                () = self.ended() => return End::Stuck,
                Some(queued) = outgoing.0.recv() => Some(queued),
                _ = beat.tick() => None,
            };
            let written = timeout(config.take(), async {
                if next.is_none() {
                    stream.write_all(&heartbeat).await?;
                }
                while let Some(queued) = next.take() {
                    stream.write_all(&queued.bytes).await?;
                    metrics.written_bytes.inc_by(queued.bytes.len() as u64);
                    self.queued_bytes.fetch_sub(queued.bytes.len(), Ordering::Relaxed);
                    next = outgoing.0.try_recv().ok();
                }
                stream.flush().await
            });
            match written.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error.into(),
                Err(_) => return End::Stuck,
            }
        }
    }
}

/// What comes over a link.
pub(crate) struct Incoming<R> {
    stream: R,
    read: BytesMut,
    heard: Instant,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self { stream, read: BytesMut::new(), heard: Instant::now() }
    }

    /// The next frame that is more than a heartbeat. Cancel safe.
    pub(crate) async fn next(&mut self, config: &Config, metrics: &Metrics) -> Result<Frame, End> {
        loop {
            match frame::decode(&mut self.read)? {
                Some(Frame { head: Head::Beat {} | Head::Unknown, .. }) => {}
                Some(frame) => return Ok(frame),
                None => {
                    self.read.reserve(READ_BYTES);
                    let read = timeout_at(self.heard + config.silence(), self.stream.read_buf(&mut self.read)).await;
                    let count = read.map_err(|_| End::Silence)??;
                    if count == 0 {
                        return Err(End::Closed);
                    }
                    self.heard = Instant::now();
                    metrics.read_bytes.inc_by(count as u64);
                }
            }
        }
    }
}

/// The first frame that either side sends.
pub(crate) fn hello(instance: InstanceId, role: Role) -> Frame {
    Frame::of(Head::Hello { protocol: PROTOCOL, instance, role: role.name().to_owned() })
}

/// Reads the peer's first frame: who it is. A protocol that is newer than ours is spoken as ours.
pub(crate) async fn greeted<R: AsyncRead + Unpin>(
    incoming: &mut Incoming<R>,
    role: Role,
    config: &Config,
    metrics: &Metrics,
) -> Result<InstanceId, End> {
    let frame = incoming.next(config, metrics).await?;
    let Head::Hello { protocol, instance, role: name } = frame.head else {
        return Err(End::Nonsense("something before hello"));
    };
    if protocol < PROTOCOL {
        return Err(End::Stranger(format!("of protocol {protocol}, which is older than {PROTOCOL}")));
    }
    if name != role.name() {
        return Err(End::Stranger(format!("a {name} where a {role} is expected")));
    }
    Ok(instance)
}
