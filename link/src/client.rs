//! The end of links at an edge: one with every fanout and archiver that lives, brought up again whenever it is lost.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use schemas::cluster::{Instance, Role};
use schemas::ids::InstanceId;
use schemas::link::{Batch, EdgePort, HistoryPort, Unavailable};
use schemas::{Entropy, Partition};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::{Directory, Me};
use crate::config::Config;
use crate::fanout::RemoteFanout;
use crate::frame::Frame;
use crate::history::RemoteHistory;
use crate::metrics::Metrics;
use crate::stopped;
use crate::tls::{self, Tls};
use crate::wire::{self, End, Incoming, Wire};
use crate::words::{self, Answer, Head, Pieces, Question};

/// First and longest pause before a link is brought up again.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Bytes of one answer at most: many of the largest pages.
const ANSWER_MAX_BYTES: usize = 64 * 1024 * 1024;

/// What an edge's links stand on.
#[derive(Clone)]
pub struct Deps {
    /// Who the edge is.
    pub me: Me,
    /// Its certificate.
    pub tls: Arc<Tls>,
    /// Who is where.
    pub directory: Arc<Directory>,
    /// Spreads tries of many edges.
    pub entropy: Arc<dyn Entropy>,
}

/// The links of one edge. Drive [`Links::run`]; [`Links::fanout`] and [`Links::history`] are the ports that go over them.
pub struct Links {
    deps: Deps,
    config: Config,
    pub(crate) metrics: Metrics,
    /// Those that are up and, of fanouts, where the edge is attached.
    peers: Mutex<BTreeMap<InstanceId, Arc<Peer>>>,
    edge: watch::Sender<Option<Arc<dyn EdgePort>>>,
}

impl Links {
    /// Links with nobody yet.
    pub fn new(deps: Deps, config: Config, metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { deps, config, metrics, peers: Mutex::default(), edge: watch::Sender::new(None) })
    }

    /// Fanout, wherever it is.
    pub fn fanout(self: &Arc<Self>) -> Arc<RemoteFanout> {
        Arc::new(RemoteFanout::new(Arc::clone(self)))
    }

    /// The archiver, wherever it is. Where none answers, `store` does: `archiver::reader` on this edge's own store.
    pub fn history(self: &Arc<Self>, store: Arc<dyn HistoryPort>) -> Arc<RemoteHistory> {
        Arc::new(RemoteHistory::new(Arc::clone(self), store))
    }

    /// Keeps links up until `shutdown` turns true or its sender is gone; then all are cut, and the edge is let go of.
    pub async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        let mut living = self.deps.directory.watch();
        let mut kept: BTreeSet<InstanceId> = BTreeSet::new();
        let mut tasks = JoinSet::new();
        loop {
            let now = Arc::clone(&living.borrow_and_update());
            let wanted = now.of(Role::Fanout).chain(now.of(Role::Archiver)).filter(|peer| !peer.address.is_empty());
            for peer in wanted {
                if kept.insert(peer.id) {
                    tasks.spawn(Arc::clone(&self).keep(peer.clone()));
                }
            }
            tokio::select! {
                changed = living.changed() => if changed.is_err() { break },
                Some(ended) = tasks.join_next() => match ended {
                    Ok(peer) => { kept.remove(&peer); }
                    Err(error) => {
                        // Which one it was nobody knows any more; who is up stays so.
                        tracing::error!(%error, "a link's task has failed");
                        tasks.abort_all();
                        while tasks.join_next().await.is_some() {}
                        kept.clear();
                    }
                },
                () = stopped(&mut shutdown) => break,
            }
        }
        tasks.shutdown().await;
        self.edge.send_replace(None);
    }

    /// The partition of a room or a person.
    pub(crate) fn partition(&self, key: &[u8; 16]) -> Partition {
        Partition::of(key, self.deps.directory.partitions())
    }

    /// The link with a process, where it is up.
    pub(crate) fn peer(&self, id: InstanceId) -> Option<Arc<Peer>> {
        self.peers.lock().get(&id).cloned()
    }

    /// The link with the owner of a role's partition.
    pub(crate) fn owner(&self, role: Role, partition: Partition) -> Option<Arc<Peer>> {
        self.peer(self.deps.directory.living().owner(role, partition)?.id)
    }

    /// All links with a role that are up.
    pub(crate) fn all(&self, role: Role) -> Vec<Arc<Peer>> {
        self.peers.lock().values().filter(|peer| peer.role == role).cloned().collect()
    }

    /// From now on this edge is attached wherever a link with a fanout is or comes up.
    pub(crate) fn set_edge(&self, edge: Option<Arc<dyn EdgePort>>) {
        self.edge.send_replace(edge);
    }

    /// Keeps the link with a process up while it lives.
    async fn keep(self: Arc<Self>, peer: Instance) -> InstanceId {
        let mut pause = BACKOFF_MIN;
        loop {
            let began = Instant::now();
            let end = self.link(&peer).await;
            tracing::warn!(peer = %peer.id, role = %peer.role, address = peer.address, error = &end as &dyn std::error::Error, "no link");
            if began.elapsed() > BACKOFF_MAX {
                pause = BACKOFF_MIN;
            }
            if self.deps.directory.living().get(peer.id).is_none() {
                return peer.id;
            }
            sleep(self.spread(pause)).await;
            pause = BACKOFF_MAX.min(pause * 2);
        }
    }

    /// Half of a pause and up to another half.
    fn spread(&self, pause: Duration) -> Duration {
        let mut random = [0; 2];
        self.deps.entropy.fill(&mut random);
        pause / 2 + pause / 2 * u32::from(u16::from_be_bytes(random)) / u32::from(u16::MAX)
    }

    /// One link, from the first try to its end.
    async fn link(self: &Arc<Self>, at: &Instance) -> End {
        let role = at.role;
        let connects = |outcome| self.metrics.connects.with_label_values(&[role.name(), outcome]).inc();
        let connected = timeout(self.config.connect(), self.connect(at)).await.unwrap_or(Err(End::Silence));
        let (incoming, outgoing) = match connected {
            Ok(halves) => halves,
            Err(end) => {
                connects("failed");
                return end;
            }
        };
        connects("up");
        let _up = self.metrics.up(role);
        let (wire, queued) = Wire::new(&self.config);
        let peer = Arc::new(Peer {
            id: at.id,
            role,
            wire,
            asks: Arc::new(Semaphore::new(self.config.asks_max)),
            pending: Mutex::default(),
            next: AtomicU64::new(0),
            patience: self.config.ask(),
            metrics: self.metrics.clone(),
            greeted: Mutex::default(),
        });
        // Also where this is dropped in between.
        let _ended = Ended { links: self, peer: Arc::clone(&peer) };
        let end = tokio::select! {
            end = self.hear(&peer, incoming) => end,
            end = peer.wire.write(outgoing, queued, &self.config, &self.metrics) => end,
            end = self.introduce(&peer) => end,
        };
        self.metrics.lost.with_label_values(&[role.name(), end.reason()]).inc();
        end
    }

    /// TLS and hello. The name in the peer's certificate is its role's.
    async fn connect(
        &self,
        at: &Instance,
    ) -> Result<(Incoming<impl AsyncRead + Unpin + use<>>, impl AsyncWrite + Unpin + use<>), End> {
        let stream = TcpStream::connect(&at.address).await?;
        stream.set_nodelay(true)?;
        let stream = self.deps.tls.connector().connect(tls::name(at.role), stream).await?;
        let (reader, mut writer) = tokio::io::split(stream);
        writer.write_all(&wire::hello(self.deps.me.id, Role::Edge).encode()?).await?;
        writer.flush().await?;
        let mut incoming = Incoming::new(reader);
        let answered = wire::greeted(&mut incoming, at.role, &self.config, &self.metrics).await?;
        if answered != at.id {
            return Err(End::Stranger(format!("{answered}, who has taken the place of {}", at.id)));
        }
        Ok((incoming, writer))
    }

    /// Makes a link known: one with an archiver at once, one with a fanout when the edge is attached. Whatever the edge had
    /// registered there before is gone. Ends only where that fails.
    async fn introduce(&self, peer: &Arc<Peer>) -> End {
        if peer.role == Role::Fanout {
            let mut edge = self.edge.subscribe();
            // The sender is ours: it can't be gone.
            let port = edge.wait_for(Option::is_some).await.ok().and_then(|edge| edge.clone());
            let Some(port) = port else { return End::Closed };
            let attached = peer.ask(Question::Attach { edge: port.id() }, Vec::new()).await;
            if !matches!(attached.as_deref(), Ok([(Answer::Done {}, _)])) {
                return End::Nonsense("that the edge can't be attached now");
            }
            self.peers.lock().insert(peer.id, Arc::clone(peer));
            let greeted: Vec<Partition> = std::mem::take(&mut *peer.greeted.lock()).into_iter().collect();
            tracing::info!(peer = %peer.id, partitions = greeted.len(), "attached to a fanout");
            port.register_anew(&greeted);
        } else {
            self.peers.lock().insert(peer.id, Arc::clone(peer));
        }
        std::future::pending().await
    }

    /// Hears what the peer says.
    async fn hear(&self, peer: &Peer, mut incoming: Incoming<impl AsyncRead + Unpin>) -> End {
        loop {
            let Frame { head, parts } = match incoming.next(&self.config, &self.metrics).await {
                Ok(frame) => frame,
                Err(end) => return end,
            };
            match head {
                Head::Batch { number, epoch, lane, partition, from, to } => {
                    let Some(items) = words::items(&parts) else {
                        return End::Nonsense("a batch with an item that can't be read");
                    };
                    let edge = self.edge.borrow().clone();
                    let Some(edge) = edge else { return End::Nonsense("a batch for nobody") };
                    peer.greeted.lock().insert(partition);
                    // In their order, and taken before the next is looked at: so is the empty one before an answer.
                    let batch = Batch { epoch, lane: lane.into(), partition, from, to, items };
                    let taken = edge.deliver(batch).await;
                    if taken.and_then(|()| peer.wire.say(&Frame::of(Head::Taken { number }))).is_err() {
                        return End::Stuck;
                    }
                }
                Head::Answer { number, last, answer } => {
                    if let Err(end) = peer.answered(number, last, answer, parts) {
                        return end;
                    }
                }
                Head::Hello { .. } => return End::Nonsense("hello twice"),
                Head::Beat {} | Head::Unknown => {}
                _ => return End::Nonsense("what only an edge says"),
            }
        }
    }
}

struct Ended<'a> {
    links: &'a Links,
    peer: Arc<Peer>,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.peer.wire.end();
        self.links.peers.lock().remove(&self.peer.id);
        // Who waits for an answer hears that there will be none.
        self.peer.pending.lock().clear();
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoAnswer {
    /// The peer says that it can't answer now, or too much is asked already.
    Unavailable,
    /// The link was lost, or the peer took too long.
    Lost,
}

impl From<NoAnswer> for Unavailable {
    fn from(_: NoAnswer) -> Self {
        Self
    }
}

/// A process at the other end of a link that is up.
pub(crate) struct Peer {
    pub(crate) id: InstanceId,
    role: Role,
    wire: Wire,
    asks: Arc<Semaphore>,
    pending: Mutex<HashMap<u64, Waiting>>,
    next: AtomicU64,
    patience: Duration,
    metrics: Metrics,
    /// Partitions of batches that have come while the edge was being attached: what the fanout owns.
    greeted: Mutex<BTreeSet<Partition>>,
}

/// A question without its whole answer.
struct Waiting {
    pieces: Pieces,
    bytes: usize,
    answer: oneshot::Sender<Pieces>,
}

/// A question in flight: however it ends, nothing of it stays, here or there.
struct Asked<'a> {
    peer: &'a Peer,
    number: u64,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if self.peer.pending.lock().remove(&self.number).is_some() {
            // A link that has ended has nothing to cancel.
            let _ = self.peer.wire.say(&Frame::of(Head::Cancel { number: self.number }));
        }
    }
}

impl Peer {
    /// Says something that needs no answer; a link that has ended has nothing to be told.
    pub(crate) fn tell(&self, head: Head, parts: Vec<Bytes>) {
        let _ = self.wire.say(&Frame { head, parts });
    }

    /// Asks. The question is on its way in the order of calls, before anything is awaited.
    pub(crate) async fn ask(&self, question: Question, parts: Vec<Bytes>) -> Result<Pieces, NoAnswer> {
        let about = about(&question);
        let began = Instant::now();
        let answer = self.put(question, parts).await;
        let outcome = match &answer {
            Ok(_) => "ok",
            Err(NoAnswer::Unavailable) => "unavailable",
            Err(NoAnswer::Lost) => "lost",
        };
        self.metrics.questions.with_label_values(&[about, outcome]).observe(began.elapsed().as_secs_f64());
        answer
    }

    async fn put(&self, question: Question, parts: Vec<Bytes>) -> Result<Pieces, NoAnswer> {
        let _place = self.asks.try_acquire().map_err(|_| NoAnswer::Unavailable)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.pending.lock().insert(number, Waiting { pieces: Vec::new(), bytes: 0, answer: sender });
        let _asked = Asked { peer: self, number };
        let wait_ms = u64::try_from(self.patience.as_millis()).unwrap_or(u64::MAX);
        let frame = Frame { head: Head::Ask { number, wait_ms, question }, parts };
        self.wire.say(&frame).map_err(|Unavailable| NoAnswer::Lost)?;
        let pieces = timeout(self.patience, answer).await.map_err(|_| NoAnswer::Lost)?.map_err(|_| NoAnswer::Lost)?;
        match pieces.first() {
            Some((Answer::Unavailable, _)) => Err(NoAnswer::Unavailable),
            _ => Ok(pieces),
        }
    }

    fn answered(&self, number: u64, last: bool, answer: Answer, parts: Vec<Bytes>) -> Result<(), End> {
        let mut pending = self.pending.lock();
        // Who asked may wait no more.
        let Some(waiting) = pending.get_mut(&number) else { return Ok(()) };
        waiting.bytes += parts.iter().map(Bytes::len).sum::<usize>();
        if waiting.bytes > ANSWER_MAX_BYTES {
            return Err(End::Nonsense("too much in one answer"));
        }
        waiting.pieces.push((answer, parts));
        if last && let Some(waiting) = pending.remove(&number) {
            drop(pending);
            let _ = waiting.answer.send(waiting.pieces);
        }
        Ok(())
    }
}

/// For a metric.
fn about(question: &Question) -> &'static str {
    match question {
        Question::Attach { .. } => "attach",
        Question::Register { .. } => "register",
        Question::Changed { .. } => "changed",
        Question::Online {} => "online",
        Question::Pages { .. } => "pages",
        Question::Rooms { .. } => "rooms",
        Question::RoomsOf { .. } => "rooms_of",
        Question::Settle { .. } => "settle",
        Question::Unknown => "unknown",
    }
}
