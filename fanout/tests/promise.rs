//! The promise of I6 under random streams, registrations, worker restarts and edges that fail: an edge that keeps the
//! rule (drop what is known; where the watermark is not `from`, ask what changed) sees every event of its rooms after
//! its registration exactly once and in order, and outcomes reach their edge and no other.

#![expect(clippy::unwrap_used, reason = "the helpers of a test may fail as it does")]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use common::{Running, Trickle, append, append_event, edge_id, event, outcome, reply_to};
use fanout::Handle;
use parking_lot::Mutex;
use proptest::prelude::*;
use schemas::link::{Batch, EdgePort, FanoutPort, Item, Lane, Unavailable};
use schemas::{EdgeId, Event, Offset, Partition, Record, RoomId, Seq, Topic};
use stream::Log;
use stream::memory::MemoryLog;
use uuid::Uuid;

const PARTITIONS: u32 = 2;
const ROOMS: usize = 5;
const EDGES: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    /// Events of a room; with the edge that waits for the outcome of the last.
    Publish {
        room: usize,
        count: u64,
        asked_by: Option<usize>,
    },
    /// What became of a command that made no event.
    Outcome {
        room: usize,
        asked_by: usize,
    },
    /// Something that no one can read.
    Rubbish {
        room: usize,
    },
    Register {
        edge: usize,
        room: usize,
    },
    Unregister {
        edge: usize,
        room: usize,
    },
    /// The edge does not take its next batch.
    Fail {
        edge: usize,
    },
    /// The edge attaches again if it must, and leaves it at that for a while.
    Attach {
        edge: usize,
    },
    /// The edge attaches and registers again where it must.
    Mend {
        edge: usize,
    },
    /// The worker crashes, or ends in order, and another one begins.
    Restart {
        crash: bool,
    },
    /// The others run.
    Yield {
        times: usize,
    },
    /// Time passes.
    Pause,
}

impl Op {
    fn is_fault(&self) -> bool {
        matches!(self, Self::Fail { .. } | Self::Restart { .. })
    }
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..ROOMS, 1..4_u64, prop::option::of(0..EDGES))
            .prop_map(|(room, count, asked_by)| Op::Publish { room, count, asked_by }),
        2 => (0..ROOMS, 0..EDGES).prop_map(|(room, asked_by)| Op::Outcome { room, asked_by }),
        1 => (0..ROOMS).prop_map(|room| Op::Rubbish { room }),
        4 => (0..EDGES, 0..ROOMS).prop_map(|(edge, room)| Op::Register { edge, room }),
        1 => (0..EDGES, 0..ROOMS).prop_map(|(edge, room)| Op::Unregister { edge, room }),
        1 => (0..EDGES).prop_map(|edge| Op::Fail { edge }),
        2 => (0..EDGES).prop_map(|edge| Op::Attach { edge }),
        2 => (0..EDGES).prop_map(|edge| Op::Mend { edge }),
        1 => any::<bool>().prop_map(|crash| Op::Restart { crash }),
        4 => (1..20_usize).prop_map(|times| Op::Yield { times }),
        1 => Just(Op::Pause),
    ]
}

fn room(n: usize) -> RoomId {
    RoomId(Uuid::from_u128(0x1000 + n as u128))
}

fn partition_of(room: RoomId) -> Partition {
    Partition::of(room.as_bytes(), PARTITIONS)
}

/// What the log holds, and what of it some edge has passed on.
#[derive(Default)]
struct Ledger {
    /// The offset of each event, by room.
    offsets: Mutex<HashMap<RoomId, Vec<Offset>>>,
    acknowledged: Mutex<HashMap<Partition, Offset>>,
}

impl Ledger {
    fn head(&self, room: RoomId) -> u64 {
        self.offsets.lock().get(&room).map_or(0, |offsets| offsets.len() as u64)
    }

    /// Last seq before a position: what history answers.
    fn head_at(&self, room: RoomId, at: Offset) -> u64 {
        self.offsets.lock().get(&room).map_or(0, |offsets| offsets.iter().filter(|offset| **offset < at).count() as u64)
    }

    fn offset(&self, event: &Event) -> Offset {
        self.offsets.lock()[&event.room][usize::try_from(event.seq.0).unwrap() - 1]
    }

    fn note(&self, room: RoomId, next: Offset) {
        self.offsets.lock().entry(room).or_default().push(Offset(next.0 - 1));
    }
}

/// A room as an edge follows it.
#[derive(Default)]
struct Followed {
    /// Tells it from the same room followed again: an answer counts for the one that asked.
    born: usize,
    /// The last event known, once a registration was answered.
    last: Option<u64>,
    /// Live events that came before the answer.
    early: BTreeSet<u64>,
    /// What a question about a missed stretch told.
    head: u64,
}

#[derive(Default)]
struct Knowledge {
    lanes: BTreeMap<Partition, (u64, Offset)>,
    rooms: BTreeMap<RoomId, Followed>,
    /// Partitions whose present owner has answered a registration of everything wanted there.
    settled: BTreeSet<Partition>,
    attached: bool,
    resets: usize,
    births: usize,
    missed: usize,
    outcomes: Vec<u128>,
    breaches: Vec<String>,
}

impl Knowledge {
    fn reset(&mut self) {
        self.resets += 1;
        self.attached = false;
        self.settled.clear();
    }

    fn live(&mut self, room: RoomId, seq: u64) {
        let settled = self.settled.contains(&partition_of(room));
        let Some(followed) = self.rooms.get_mut(&room) else { return };
        let Some(last) = followed.last.as_mut() else {
            followed.early.insert(seq);
            return;
        };
        if seq > *last + 1 && settled {
            self.breaches.push(format!("{room}: {seq} after {last}"));
        }
        *last = seq.max(*last);
    }

    fn answered(&mut self, room: RoomId, born: usize, head: u64) {
        let asked = self.rooms.get_mut(&room).filter(|followed| followed.born == born && followed.last.is_none());
        let Some(followed) = asked else { return };
        let mut last = head.max(followed.head);
        for seq in std::mem::take(&mut followed.early) {
            if seq > last + 1 {
                self.breaches.push(format!("{room}: {seq} after {last}, while registering"));
            }
            last = last.max(seq);
        }
        followed.last = Some(last);
    }
}

/// An edge that keeps the rule.
struct ModelEdge {
    id: EdgeId,
    fanout: Arc<Mutex<Arc<Handle>>>,
    ledger: Arc<Ledger>,
    known: Mutex<Knowledge>,
    mending: tokio::sync::Mutex<()>,
    fails: AtomicBool,
}

#[async_trait]
impl EdgePort for ModelEdge {
    fn id(&self) -> EdgeId {
        self.id
    }

    async fn deliver(&self, batch: Batch) -> Result<(), Unavailable> {
        if self.fails.swap(false, Ordering::Relaxed) {
            self.known.lock().reset();
            return Err(Unavailable);
        }
        if batch.lane == Lane::Users {
            assert!(batch.items.is_empty(), "nobody has published any");
            return Ok(());
        }
        assert!(batch.from <= batch.to);
        let missed = {
            let known = &mut *self.known.lock();
            let (epoch, watermark) = known.lanes.entry(batch.partition).or_insert((batch.epoch, batch.to));
            if batch.epoch < *epoch {
                return Ok(());
            }
            if batch.epoch > *epoch {
                *epoch = batch.epoch;
                known.settled.remove(&batch.partition);
            }
            let before = *watermark;
            *watermark = batch.to.max(before);
            (batch.from > before).then_some((before, batch.from))
        };
        let mut changed = Vec::new();
        if let Some((from, to)) = missed {
            let fanout = Arc::clone(&self.fanout.lock());
            changed = fanout.changed(batch.partition, from, to).await.unwrap().unwrap_or_default();
        }
        if !batch.items.is_empty() {
            let mut acknowledged = self.ledger.acknowledged.lock();
            let before = acknowledged.entry(batch.partition).or_default();
            *before = batch.to.max(*before);
        }
        let mut known = self.known.lock();
        known.missed += usize::from(missed.is_some());
        for (room, Seq(head)) in changed {
            if let Some(followed) = known.rooms.get_mut(&room) {
                followed.head = followed.head.max(head);
                followed.last = followed.last.map(|last| last.max(head));
            }
        }
        for item in batch.items {
            match item {
                Item::Event(event) => {
                    let offset = self.ledger.offset(&event);
                    let covered = batch.from <= offset && offset < batch.to;
                    assert!(covered || batch.from == batch.to, "{offset} in {}..{}", batch.from, batch.to);
                    if event.reply_to == Some(reply_to(self.id)) {
                        known.outcomes.push(event.command.0.as_u128());
                    }
                    known.live(event.room, event.seq.0);
                }
                Item::Outcome(outcome) => {
                    assert_eq!(outcome.reply_to, reply_to(self.id), "an outcome of another edge");
                    known.outcomes.push(outcome.command.0.as_u128());
                }
                other => panic!("nobody has published {other:?}"),
            }
        }
        Ok(())
    }
}

impl ModelEdge {
    fn fanout(&self) -> Arc<Handle> {
        Arc::clone(&self.fanout.lock())
    }

    async fn register(&self, partition: Partition, rooms: Vec<(RoomId, usize)>) -> bool {
        let acknowledged = self.ledger.acknowledged.lock().get(&partition).copied().unwrap_or_default();
        let keys: Vec<_> = rooms.iter().map(|(room, _)| *room.as_bytes()).collect();
        let Ok(registered) = self.fanout().register(self.id, Lane::Rooms, partition, &keys).await else { return false };
        let mut known = self.known.lock();
        if registered.at < acknowledged {
            known.breaches.push(format!("registered at {}, below {acknowledged}", registered.at));
        }
        for (room, born) in rooms {
            let head = self.ledger.head_at(room, registered.at);
            known.answered(room, born, head);
        }
        known.attached && known.lanes.get(&partition).is_some_and(|(epoch, _)| *epoch == registered.epoch)
    }

    async fn follow(self: &Arc<Self>, room: RoomId) {
        {
            let mut known = self.known.lock();
            known.births += 1;
            let born = known.births;
            known.rooms.entry(room).or_insert_with(|| Followed { born, ..Followed::default() });
        }
        self.mend().await;
    }

    fn unfollow(&self, room: RoomId) {
        if self.known.lock().rooms.remove(&room).is_some() {
            self.fanout().unregister(self.id, Lane::Rooms, partition_of(room), &[*room.as_bytes()]);
        }
    }

    async fn attach(self: &Arc<Self>) {
        let _one_at_a_time = self.mending.lock().await;
        let (attached, resets) = {
            let known = self.known.lock();
            (known.attached, known.resets)
        };
        if !attached && self.fanout().attach(Arc::clone(self) as _).await.is_ok() {
            let mut known = self.known.lock();
            // It may have failed again before it hears that it is in.
            known.attached = known.resets == resets;
        }
    }

    /// Attaches and registers, where that is needed: with a new owner everything, in one call.
    async fn mend(self: &Arc<Self>) {
        self.attach().await;
        let _one_at_a_time = self.mending.lock().await;
        for partition in (0..PARTITIONS).map(Partition) {
            let (settled, rooms) = {
                let known = self.known.lock();
                let settled = known.settled.contains(&partition);
                let open = known.rooms.iter().filter(|(room, _)| partition_of(**room) == partition);
                let open = open.filter(|(_, followed)| !settled || followed.last.is_none());
                (settled, open.map(|(room, followed)| (*room, followed.born)).collect::<Vec<_>>())
            };
            if (!settled || !rooms.is_empty()) && self.register(partition, rooms).await {
                self.known.lock().settled.insert(partition);
            }
        }
    }
}

async fn run(ops: Vec<Op>) -> Result<(), TestCaseError> {
    let log = Arc::new(Trickle(MemoryLog::new()));
    log.create(PARTITIONS).await.unwrap();
    let ledger = Arc::new(Ledger::default());
    let mut running = Running::start(Arc::clone(&log) as _);
    let fanout = Arc::new(Mutex::new(Arc::clone(&running.handle)));
    let edges: Vec<Arc<ModelEdge>> = (0..EDGES)
        .map(|n| {
            Arc::new(ModelEdge {
                id: edge_id(n),
                fanout: Arc::clone(&fanout),
                ledger: Arc::clone(&ledger),
                known: Mutex::default(),
                mending: tokio::sync::Mutex::default(),
                fails: AtomicBool::new(false),
            })
        })
        .collect();
    for edge in &edges {
        while edge.known.lock().settled.len() < PARTITIONS as usize {
            tokio::time::sleep(Duration::from_millis(1)).await;
            edge.mend().await;
        }
    }
    let honest = !ops.iter().any(Op::is_fault);
    let mut asked: Vec<Vec<u128>> = vec![Vec::new(); EDGES];
    let mut commands = 1_000_000_u128;
    let mut rubbish = 0.0;
    for op in ops {
        match op {
            Op::Publish { room: n, count, asked_by } => {
                for left in (0..count).rev() {
                    let asked_by = asked_by.filter(|_| left == 0);
                    let mut event = event(room(n), ledger.head(room(n)) + 1, asked_by.map(|n| reply_to(edge_id(n))));
                    commands += 1;
                    event.command.0 = Uuid::from_u128(commands);
                    ledger.note(room(n), append_event(&*log, &event).await);
                    if let Some(edge) = asked_by {
                        asked[edge].push(commands);
                    }
                }
            }
            Op::Outcome { room: n, asked_by } => {
                commands += 1;
                let outcome = outcome(room(n), commands, edge_id(asked_by));
                append(&*log, Topic::Events, room(n).as_bytes(), outcome.encode()).await;
                asked[asked_by].push(commands);
            }
            Op::Rubbish { room: n } => {
                append(&*log, Topic::Events, room(n).as_bytes(), bytes::Bytes::from_static(b"rubbish")).await;
                rubbish += 1.0;
            }
            Op::Register { edge, room: n } => {
                let edge = Arc::clone(&edges[edge]);
                tokio::spawn(async move { edge.follow(room(n)).await });
            }
            Op::Unregister { edge, room: n } => edges[edge].unfollow(room(n)),
            Op::Fail { edge } => edges[edge].fails.store(true, Ordering::Relaxed),
            Op::Attach { edge } => {
                let edge = Arc::clone(&edges[edge]);
                tokio::spawn(async move { edge.attach().await });
            }
            Op::Mend { edge } => {
                let edge = Arc::clone(&edges[edge]);
                tokio::spawn(async move { edge.mend().await });
            }
            Op::Restart { crash } => {
                let next = Running::start(Arc::clone(&log) as _);
                let last = std::mem::replace(&mut running, next);
                last.end(crash).await;
                *fanout.lock() = Arc::clone(&running.handle);
                edges.iter().for_each(|edge| edge.known.lock().reset());
            }
            Op::Yield { times } => {
                for _ in 0..times {
                    tokio::task::yield_now().await;
                }
            }
            Op::Pause => tokio::time::sleep(Duration::from_millis(600)).await,
        }
    }
    // All comes to rest: twice, for the first rest may bring an edge's failure to light.
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_secs(2)).await;
        for edge in &edges {
            edge.mend().await;
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut ends = BTreeMap::new();
    for partition in (0..PARTITIONS).map(Partition) {
        let end = log.end(Topic::Events, partition).await.unwrap();
        let committed = log.committed("fanout", Topic::Events, partition).await.unwrap().unwrap_or_default();
        prop_assert_eq!(committed, end, "all is committed");
        ends.insert(partition, end);
    }
    for (edge, asked) in edges.iter().zip(&asked) {
        let known = edge.known.lock();
        prop_assert!(known.breaches.is_empty(), "{:?}", known.breaches);
        for (room, followed) in &known.rooms {
            prop_assert_eq!(followed.last, Some(ledger.head(*room)), "{} on {}", room, edge.id);
            let partition = partition_of(*room);
            prop_assert_eq!(known.lanes[&partition].1, ends[&partition], "an idle partition advances");
        }
        prop_assert!(known.outcomes.iter().all(|command| asked.contains(command)));
        if honest {
            prop_assert_eq!(&known.outcomes.iter().collect::<BTreeSet<_>>(), &asked.iter().collect::<BTreeSet<_>>());
            prop_assert_eq!(known.outcomes.len(), asked.len());
            prop_assert_eq!(known.missed, 0, "nothing is missed without a fault");
        }
    }
    if honest {
        prop_assert_eq!(running.count("posthaste_fanout_dead_letters_total"), rubbish);
        prop_assert_eq!(running.count("posthaste_fanout_holes_total"), 0.0);
        prop_assert_eq!(running.count("posthaste_fanout_doubles_total"), 0.0);
    }
    running.end(false).await;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_edge_sees_every_event_of_its_rooms_once_and_in_order(ops in prop::collection::vec(op(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run(ops))?;
    }

    #[test]
    fn without_faults_every_outcome_arrives_and_nothing_is_missed(
        ops in prop::collection::vec(op().prop_filter("no faults", |op| !op.is_fault()), 1..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run(ops))?;
    }
}
