//! The end of a link at a fanout or an archiver: answers an edge, and carries batches to it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::AbortHandle;
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use schemas::cluster::Role;
use schemas::link::{Batch, EdgePort, FanoutPort, HistoryPort, PageQuery, Unavailable};
use schemas::{EdgeId, UserId};
use tokio::io::AsyncRead;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use uuid::Uuid;

use crate::cluster::Me;
use crate::config::Config;
use crate::frame::{self, Frame};
use crate::metrics::Metrics;
use crate::stopped;
use crate::tls::{self, Tls};
use crate::wire::{self, End, Incoming, Wire};
use crate::words::{self, Answer, Head, Pieces, Question};

/// Pause after the system has no descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a server answers from.
#[derive(Clone, Default)]
pub struct Services {
    /// Of a fanout.
    pub fanout: Option<Arc<dyn FanoutPort>>,
    /// Of an archiver.
    pub history: Option<Arc<dyn HistoryPort>>,
}

struct Server {
    tls: Arc<Tls>,
    me: Me,
    services: Services,
    config: Config,
    metrics: Metrics,
    /// The link by which each edge is attached now: one that ends late must not take out who has come back.
    attached: Mutex<HashMap<EdgeId, u64>>,
    links: AtomicU64,
}

/// Serves edges until `shutdown` turns true or its sender is gone; then all links are cut.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<Tls>,
    me: Me,
    services: Services,
    config: Config,
    metrics: Metrics,
    mut shutdown: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(config.links_max));
    let server = Server { tls, me, services, config, metrics, attached: Mutex::default(), links: AtomicU64::new(0) };
    let server = Arc::new(server);
    let mut links = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = links.join_next() => continue,
            () = stopped(&mut shutdown) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a link can't be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!(max = server.config.links_max, "a link is refused: there are too many");
            continue;
        };
        let server = Arc::clone(&server);
        links.spawn(async move {
            let end = server.link(stream).await;
            match &end {
                End::Closed => tracing::info!("a link with an edge has ended"),
                _ => tracing::warn!(error = &end as &dyn std::error::Error, "a link with an edge has ended"),
            }
            drop(place);
        });
    }
}

impl Server {
    /// One link, to its end.
    async fn link(&self, stream: TcpStream) -> End {
        let connects = |outcome| self.metrics.connects.with_label_values(&[Role::Edge.name(), outcome]).inc();
        let accepted = timeout(self.config.connect(), self.accept(stream)).await.unwrap_or(Err(End::Silence));
        let (incoming, outgoing) = match accepted {
            Ok(halves) => halves,
            Err(end) => {
                connects("refused");
                return end;
            }
        };
        connects("up");
        let _up = self.metrics.up(Role::Edge);
        let (wire, queued) = Wire::new(&self.config);
        let link = Link {
            wire,
            number: self.links.fetch_add(1, Ordering::Relaxed),
            taken: Mutex::default(),
            next: AtomicU64::new(0),
            config: self.config.clone(),
            metrics: self.metrics.clone(),
            edge: Mutex::new(None),
        };
        let link = Arc::new(link);
        // Also where this is dropped in between.
        let _ended = Ended { server: self, link: Arc::clone(&link) };
        let end = tokio::select! {
            end = self.answer(&link, incoming) => end,
            end = link.wire.write(outgoing, queued, &self.config, &self.metrics) => end,
        };
        self.metrics.lost.with_label_values(&[Role::Edge.name(), end.reason()]).inc();
        end
    }

    /// TLS and hello.
    async fn accept(
        &self,
        stream: TcpStream,
    ) -> Result<(Incoming<impl AsyncRead + Unpin + use<>>, impl tokio::io::AsyncWrite + Unpin + use<>), End> {
        stream.set_nodelay(true)?;
        let stream = self.tls.acceptor().accept(stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        if !certificate.is_some_and(|certificate| tls::may_play(certificate, Role::Edge)) {
            return Err(End::Stranger("without a certificate of an edge".to_owned()));
        }
        let (reader, mut writer) = tokio::io::split(stream);
        let mut incoming = Incoming::new(reader);
        // Said first, so that a peer that is refused knows by whom.
        let hello = wire::hello(self.me.id, self.me.role).encode()?;
        tokio::io::AsyncWriteExt::write_all(&mut writer, &hello).await?;
        tokio::io::AsyncWriteExt::flush(&mut writer).await?;
        wire::greeted(&mut incoming, Role::Edge, &self.config, &self.metrics).await?;
        Ok((incoming, writer))
    }

    /// Reads what the edge says and answers it.
    async fn answer(&self, link: &Arc<Link>, mut incoming: Incoming<impl AsyncRead + Unpin>) -> End {
        let mut answering: FuturesUnordered<Pin<Box<dyn Future<Output = u64> + Send + '_>>> = FuturesUnordered::new();
        let mut asked: HashMap<u64, AbortHandle> = HashMap::new();
        loop {
            let frame = tokio::select! {
                frame = incoming.next(&self.config, &self.metrics) => frame,
                Some(number) = answering.next() => {
                    asked.remove(&number);
                    continue;
                }
            };
            let Frame { head, parts } = match frame {
                Ok(frame) => frame,
                Err(end) => return end,
            };
            match head {
                Head::Ask { number, wait_ms, question } => {
                    if asked.len() >= self.config.asks_max {
                        if link.say_unavailable(number).is_err() {
                            return End::Stuck;
                        }
                        continue;
                    }
                    let patience = Duration::from_millis(wait_ms).min(self.config.ask());
                    let answer = async move {
                        let answer = timeout(patience, self.answer_to(link, question, parts)).await;
                        let pieces =
                            answer.unwrap_or(Err(Unavailable)).unwrap_or_else(|_| words::plain(Answer::Unavailable));
                        link.answer(number, pieces).await;
                    };
                    let (answer, abort) = futures_util::future::abortable(answer);
                    let mut answer: Pin<Box<dyn Future<Output = u64> + Send + '_>> =
                        Box::pin(answer.map(move |_| number));
                    // What is asked must reach the port in the order in which it came: interest that is taken back and
                    // registered anew must not end as taken back.
                    if futures_util::poll!(&mut answer).is_pending() {
                        asked.insert(number, abort);
                        answering.push(answer);
                    }
                }
                Head::Cancel { number } => {
                    if let Some(abort) = asked.get(&number) {
                        abort.abort();
                    }
                }
                Head::Taken { number } => link.taken(number),
                Head::Unregister { lane, partition } => {
                    let edge = *link.edge.lock();
                    let keys = parts.first().and_then(|part| frame::as_ids(part));
                    let (Some(fanout), Some(edge), Some(keys)) = (&self.services.fanout, edge, keys) else {
                        return End::Nonsense("to take back what can't have been registered");
                    };
                    fanout.unregister(edge, lane.into(), partition, &keys);
                }
                Head::Detach {} => self.detach(link),
                Head::Hello { .. } => return End::Nonsense("hello twice"),
                Head::Batch { .. } | Head::Answer { .. } => return End::Nonsense("what an edge does not say"),
                Head::Beat {} | Head::Unknown => {}
            }
        }
    }

    async fn answer_to(&self, link: &Arc<Link>, question: Question, parts: Vec<Bytes>) -> Result<Pieces, Unavailable> {
        let fanout = || self.services.fanout.as_ref().ok_or(Unavailable);
        let history = || self.services.history.as_ref().ok_or(Unavailable);
        let keys = || parts.first().and_then(|part| frame::as_ids(part)).ok_or(Unavailable);
        let edge = || (*link.edge.lock()).ok_or(Unavailable);
        Ok(match question {
            Question::Attach { edge } => {
                let port = RemoteEdge { id: edge, link: Arc::clone(link) };
                // Before the call: who was attached by another link is not taken out by its end any more.
                *link.edge.lock() = Some(edge);
                self.attached.lock().insert(edge, link.number);
                fanout()?.attach(Arc::new(port)).await?;
                words::plain(Answer::Done {})
            }
            Question::Register { lane, partition } => {
                let registered = fanout()?.register(edge()?, lane.into(), partition, &keys()?).await?;
                words::plain(Answer::Registered { epoch: registered.epoch, at: registered.at })
            }
            Question::Changed { partition, from, to } => {
                words::changed(fanout()?.changed(partition, from, to).await?.as_deref())
            }
            Question::Online {} => {
                let users: Vec<UserId> = keys()?.into_iter().map(|id| UserId(Uuid::from_bytes(id))).collect();
                words::id_list(fanout()?.online(&users).await?.iter().map(UserId::as_bytes))
            }
            Question::Pages { queries } => {
                let queries: Vec<PageQuery> = queries.into_iter().map(PageQuery::from).collect();
                words::pages(match queries[..] {
                    [query] => vec![history()?.page(query).await?],
                    _ => history()?.pages(&queries).await?,
                })
            }
            Question::Rooms { user, rooms } => words::rooms(history()?.rooms(user, &rooms).await?),
            Question::RoomsOf { user, min_offset } => {
                words::id_list(history()?.rooms_of(user, min_offset).await?.iter().map(schemas::RoomId::as_bytes))
            }
            Question::Settle { lane, partition, min_offset } => {
                history()?.settle(lane.into(), partition, min_offset).await?;
                words::plain(Answer::Done {})
            }
            Question::Unknown => return Err(Unavailable),
        })
    }

    /// Takes the edge of a link out, unless it has come back by another one.
    fn detach(&self, link: &Link) {
        let Some(edge) = link.edge.lock().take() else { return };
        let mut attached = self.attached.lock();
        if attached.get(&edge) == Some(&link.number) {
            attached.remove(&edge);
            if let Some(fanout) = &self.services.fanout {
                // Under the lock: who comes back meanwhile is attached after this.
                fanout.detach(edge);
            }
        }
    }
}

struct Ended<'a> {
    server: &'a Server,
    link: Arc<Link>,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.link.wire.end();
        self.link.taken.lock().clear();
        self.server.detach(&self.link);
    }
}

/// A link with an edge, as the ports see it.
struct Link {
    wire: Wire,
    number: u64,
    /// Batches under way: who waits for each to be taken.
    taken: Mutex<HashMap<u64, oneshot::Sender<()>>>,
    next: AtomicU64,
    config: Config,
    metrics: Metrics,
    edge: Mutex<Option<EdgeId>>,
}

impl Link {
    fn taken(&self, number: u64) {
        if let Some(waiting) = self.taken.lock().remove(&number) {
            // Who waits no more has cut the link.
            let _ = waiting.send(());
        }
    }

    fn say_unavailable(&self, number: u64) -> Result<(), Unavailable> {
        self.wire.say(&Frame::of(Head::Answer { number, last: true, answer: Answer::Unavailable }))
    }

    /// Sends an answer. Where it can't be sent the link has ended.
    async fn answer(&self, number: u64, pieces: Pieces) {
        let count = pieces.len();
        for (at, (answer, parts)) in pieces.into_iter().enumerate() {
            let head = Head::Answer { number, last: at + 1 == count, answer };
            let sent = match (Frame { head, parts }).encode() {
                Ok(bytes) => self.wire.send(bytes).await,
                Err(error) => {
                    tracing::error!(%error, "an answer that can't be sent");
                    let _ = self.say_unavailable(number);
                    return;
                }
            };
            if sent.is_err() {
                return;
            }
        }
    }
}

/// An edge at the other end of a link.
struct RemoteEdge {
    id: EdgeId,
    link: Arc<Link>,
}

/// A batch under way. If it is not taken, whatever the reason, the edge has missed something and fanout takes it out: the
/// link is cut, by which the edge learns of it.
struct UnderWay<'a> {
    link: &'a Link,
    number: u64,
    taken: bool,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.link.metrics.batches_in_flight.dec();
        if !self.taken {
            self.link.taken.lock().remove(&self.number);
            self.link.wire.end();
        }
    }
}

#[async_trait]
impl EdgePort for RemoteEdge {
    fn id(&self) -> EdgeId {
        self.id
    }

    async fn deliver(&self, batch: Batch) -> Result<(), Unavailable> {
        let link = &*self.link;
        let number = link.next.fetch_add(1, Ordering::Relaxed);
        link.metrics.batches_in_flight.inc();
        let mut under_way = UnderWay { link, number, taken: false };
        let bytes = words::batch(number, &batch).encode().map_err(|error| {
            tracing::error!(%error, "a batch that can't be sent");
            Unavailable
        })?;
        let delivery = async {
            // Held until it is taken.
            let _room = link.wire.room_for(&bytes).await?;
            let (sender, taken) = oneshot::channel();
            link.taken.lock().insert(number, sender);
            link.wire.push(bytes.clone(), None)?;
            taken.await.map_err(|_| Unavailable)
        };
        timeout(link.config.take(), delivery).await.map_err(|_| Unavailable)??;
        under_way.taken = true;
        Ok(())
    }
}
