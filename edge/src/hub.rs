//! The hub: which local sockets want which rooms and users, which commands of REST calls wait for their outcome, and how
//! far this edge has heard of each partition (I6). Passes batches on to sockets; owns interest, receipts on their way
//! out, presence and heartbeats. Reads no history: a socket that can't be served live reads for itself.

mod batches;
mod drain;
mod interest;
pub(crate) mod publish;
mod ticks;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use schemas::link::{Batch, EdgePort, FanoutPort, HistoryPort, Lane, Unavailable};
use schemas::outcome::Outcome;
use schemas::{Command, CommandId, DeviceId, EdgeId, Event, Offset, Partition, Record, RoomId, Seq, SessionId, UserId};
use stream::Log;
use tokio::sync::{Notify, oneshot};

use crate::deps::Deps;
use crate::metrics::HubMetrics;
use crate::socket::outbox::Socket;
use publish::Asker;

/// What became of a command.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Its first event.
    Event(Arc<Event>),
    /// A repeat, a thing that was so already, or a rejection.
    Outcome(Arc<Outcome>),
}

/// The hub of one edge.
pub struct Hub {
    deps: Deps,
    metrics: HubMetrics,
    state: Mutex<State>,
    /// Commands of REST calls in flight. Bounded by the number of open connections.
    calls: Mutex<HashMap<Call, Waiting>>,
    /// Commands on their way to the log.
    commands: Mutex<publish::Commands>,
    /// Some have come for [`Hub::run`] to publish.
    publish: Notify,
    /// Receipts that wait to be published, merged by maximum. One entry for each room and person at most.
    receipts: Mutex<ticks::Receipts>,
    /// Sockets that hold frames which woke nobody: each at most once.
    drowsy: Mutex<Vec<Arc<Socket>>>,
    /// Something for [`Hub::run`] to mend: a missed stretch, or a new owner of a partition.
    mend: Notify,
}

/// What tells a command of a call from all others: an id is one person's in one room (I4).
type Call = (RoomId, UserId, CommandId);

/// Calls that wait for one command, and the command as it was published.
struct Waiting {
    record: stream::Record,
    /// Of its last copy: a rejection of an earlier one says nothing yet.
    received_us: i64,
    answers: Vec<oneshot::Sender<Answer>>,
}

/// A call under way: however it ends, also where its client goes, nothing of it stays behind.
struct Called<'a> {
    hub: &'a Hub,
    call: Call,
}

impl Drop for Called<'_> {
    fn drop(&mut self) {
        self.hub.forget_dead(self.call);
    }
}

#[derive(Default)]
struct State {
    rooms: HashMap<RoomId, Room>,
    users: HashMap<UserId, User>,
    sessions: HashMap<SessionId, Arc<Socket>>,
    /// How far this edge has heard of each partition, and from which owner.
    lanes: HashMap<(Lane, Partition), Heard>,
    /// Stretches that have been missed: rooms that changed in them are to be asked for.
    missed: Vec<(Lane, Partition, Offset, Offset)>,
    /// Set by a drain: when the last socket shall have been asked to close, on the monotonic clock, and over how long
    /// they shall come back. Who comes now is sent away at once.
    drain: Option<drain::Drain>,
    /// Partitions whose new owner does not know this edge's interest yet, and how far was heard of each before.
    unregistered: Vec<(Lane, Partition, Offset)>,
}

/// A room that local sockets follow.
#[derive(Default)]
struct Room {
    sockets: Arc<Vec<Arc<Socket>>>,
    member_count: u32,
    described: bool,
    receipts: HashMap<UserId, (Seq, Seq)>,
    senders: std::collections::VecDeque<(Seq, UserId)>,
}

/// A person with local sockets.
#[derive(Default)]
struct User {
    sockets: Vec<Arc<Socket>>,
}

#[derive(Clone, Copy, Default)]
struct Heard {
    epoch: u64,
    watermark: Offset,
}

impl Hub {
    /// A hub without sockets. [`Hub::attach`] it, and run [`Hub::run`] beside it.
    pub fn new(deps: Deps, metrics: HubMetrics) -> Arc<Self> {
        Arc::new(Self {
            deps,
            metrics,
            state: Mutex::default(),
            calls: Mutex::default(),
            commands: Mutex::default(),
            publish: Notify::new(),
            receipts: Mutex::default(),
            drowsy: Mutex::default(),
            mend: Notify::new(),
        })
    }

    /// Brings this edge in at fanout.
    pub async fn attach(self: &Arc<Self>) -> Result<(), Unavailable> {
        self.deps.fanout.attach(Arc::clone(self) as Arc<dyn EdgePort>).await
    }

    /// The port that answers for history.
    pub fn history(&self) -> &Arc<dyn HistoryPort> {
        &self.deps.history
    }

    /// What this edge was handed.
    pub fn deps(&self) -> &Deps {
        &self.deps
    }

    /// What is counted and timed.
    pub fn metrics(&self) -> &HubMetrics {
        &self.metrics
    }

    /// The partition of a room or a user.
    pub fn partition(&self, key: &[u8; 16]) -> Partition {
        Partition::of(key, self.deps.log.partitions())
    }

    /// A command as the log has it.
    pub fn record_of(command: &Command) -> stream::Record {
        stream::Record { key: *command.room.as_bytes(), value: command.encode() }
    }

    /// A command to be published once more. Copies are told apart by their times, and so are their outcomes: while a
    /// later copy is under way, the rejection of an earlier one is not the last word.
    pub(crate) fn copy_of(record: &Bytes, now_us: i64) -> Option<(Bytes, i64)> {
        let command = Command::decode(record).ok()?;
        let received_us = now_us.max(command.received_us + 1);
        Some((Command { received_us, ..command }.encode(), received_us))
    }

    /// Publishes a command of a REST call and waits for what becomes of it, at most until its deadline.
    pub async fn submit(&self, command: Command) -> Result<Answer, Unavailable> {
        let call = (command.room, command.user, command.id);
        let patience = command.deadline.since(self.deps.clock.now()) + Duration::from_millis(200);
        let record = Self::record_of(&command);
        let _called = Called { hub: self, call };
        let (answer, waiting) = oneshot::channel();
        match self.calls.lock().entry(call) {
            Entry::Occupied(mut other) => {
                // A retry while the first try is under way: its deadline is the later one.
                other.get_mut().record = record.clone();
                other.get_mut().received_us = command.received_us;
                other.get_mut().answers.push(answer);
            }
            Entry::Vacant(none) => {
                let received_us = command.received_us;
                none.insert(Waiting { record: record.clone(), received_us, answers: vec![answer] });
            }
        }
        self.publish(&command, record, Asker::Call(call)).map_err(|_| Unavailable)?;
        tokio::time::timeout(patience, waiting).await.map_err(|_| Unavailable)?.map_err(|_| Unavailable)
    }

    fn forget_dead(&self, call: Call) {
        let mut calls = self.calls.lock();
        if let Some(waiting) = calls.get_mut(&call) {
            waiting.answers.retain(|answer| !answer.is_closed());
            if waiting.answers.is_empty() {
                calls.remove(&call);
            }
        }
    }

    /// The position that a read must not be older than (I8): the partition's end.
    pub async fn end(&self, lane: Lane, partition: Partition) -> Result<Offset, Unavailable> {
        self.deps.log.end(lane.topic(), partition).await.map_err(|error| {
            tracing::warn!(%error, "the end of a partition is unknown");
            Unavailable
        })
    }

    /// The ends of these rooms' partitions, each asked once.
    pub(crate) async fn ends(
        &self,
        rooms: impl Iterator<Item = RoomId>,
    ) -> Result<HashMap<Partition, Offset>, Unavailable> {
        let partitions: HashSet<Partition> = rooms.map(|room| self.partition(room.as_bytes())).collect();
        let ends = partitions.into_iter().map(async |partition| {
            let end = self.end(Lane::Rooms, partition).await?;
            Ok::<_, Unavailable>((partition, end))
        });
        Ok(try_join_all(ends).await?.into_iter().collect())
    }

    /// Closes the sockets of a person (of one device, if given) with this code; they may come back then, if ever.
    pub fn close(&self, user: UserId, device: Option<DeviceId>, code: u16, retry_after_ms: Option<u32>) {
        let state = self.state.lock();
        for socket in state.users.get(&user).into_iter().flat_map(|user| &user.sockets) {
            if device.is_none_or(|device| device == socket.device) {
                socket.close(code, retry_after_ms);
            }
        }
    }

    /// Closes all sockets with this code.
    pub fn close_all(&self, code: u16, retry_after_ms: Option<u32>) {
        for socket in self.state.lock().sessions.values() {
            socket.close(code, retry_after_ms);
        }
    }

    /// How many sockets are in.
    pub fn socket_count(&self) -> usize {
        self.state.lock().sessions.len()
    }
}

#[async_trait::async_trait]
impl EdgePort for Hub {
    fn id(&self) -> EdgeId {
        self.deps.edge
    }

    async fn deliver(&self, batch: Batch) -> Result<(), Unavailable> {
        self.take(batch);
        Ok(())
    }

    fn register_anew(&self, partitions: &[Partition]) {
        self.register_again(|partition| partitions.contains(&partition));
    }
}

/// The parts of the hub that only need these.
impl Hub {
    fn log(&self) -> &Arc<dyn Log> {
        &self.deps.log
    }

    fn fanout(&self) -> &Arc<dyn FanoutPort> {
        &self.deps.fanout
    }
}
