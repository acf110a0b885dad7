//! What the worker does, one fact at a time.

#![expect(clippy::unwrap_used, reason = "the helpers of a test may fail as it does")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use common::{Running, Trickle, append, append_event, edge_id, event, outcome, reply_to};
use parking_lot::Mutex;
use schemas::dead_letter::DeadLetter;
use schemas::link::{Batch, EdgePort, FanoutPort, Item, Lane, Registered, Unavailable};
use schemas::receipt::Receipt;
use schemas::signal::{Signal, SignalKind};
use schemas::user_event::{RoomEntry, UserEvent};
use schemas::{EdgeId, Event, Offset, Partition, Record, RoomId, Seq, SessionId, Timestamp, Topic, UserId};
use stream::Log;
use stream::memory::MemoryLog;
use uuid::Uuid;

const ALL: Partition = Partition(0);
const TIME: Timestamp = Timestamp(0);

/// Keeps what it is given.
struct Edge {
    id: EdgeId,
    taken: Mutex<Vec<Batch>>,
    stuck: AtomicBool,
}

#[async_trait]
impl EdgePort for Edge {
    fn id(&self) -> EdgeId {
        self.id
    }
    async fn deliver(&self, batch: Batch) -> Result<(), Unavailable> {
        if self.stuck.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.taken.lock().push(batch);
        Ok(())
    }
}

impl Edge {
    fn new(n: usize) -> Arc<Self> {
        Arc::new(Self { id: edge_id(n), taken: Mutex::default(), stuck: AtomicBool::new(false) })
    }

    /// What has come since the last call.
    fn taken(&self) -> Vec<Batch> {
        std::mem::take(&mut *self.taken.lock())
    }

    /// The items that have come since the last call, in words.
    fn heard(&self) -> Vec<String> {
        let words = |item: Item| match item {
            Item::Event(event) => format!("event {}", event.seq),
            Item::Outcome(outcome) => format!("outcome {}", outcome.command.0.as_u128()),
            Item::User(event) => format!("user {}", event.seq),
            Item::Receipt(receipt) => format!("receipt {}", receipt.read_seq),
            Item::Signal(signal) => format!("signal {:?}", signal.kind),
        };
        self.taken().into_iter().flat_map(|batch| batch.items).map(words).collect()
    }
}

fn room(n: u128) -> RoomId {
    RoomId(Uuid::from_u128(n))
}

fn user(n: u128) -> UserId {
    UserId(Uuid::from_u128(n))
}

async fn log_of(partitions: u32) -> Arc<MemoryLog> {
    let log = MemoryLog::new();
    log.create(partitions).await.unwrap();
    Arc::new(log)
}

async fn rest() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// A worker on a log with one partition, which it has taken over, and an edge attached to it.
async fn started() -> (Arc<MemoryLog>, Running, Arc<Edge>) {
    let log = log_of(1).await;
    let running = Running::start(Arc::clone(&log) as _);
    let edge = Edge::new(1);
    running.handle.attach(Arc::clone(&edge) as _).await.unwrap();
    rest().await;
    (log, running, edge)
}

async fn follow(running: &Running, edge: &Edge, room: RoomId) -> Registered {
    running.handle.register(edge.id, Lane::Rooms, ALL, &[*room.as_bytes()]).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn each_edge_gets_what_it_wants_and_no_more() {
    let (log, running, here) = started().await;
    let there = Edge::new(2);
    running.handle.attach(Arc::clone(&there) as _).await.unwrap();
    follow(&running, &here, room(1)).await;
    running.handle.register(there.id, Lane::Users, ALL, &[*user(7).as_bytes()]).await.unwrap();
    here.taken();
    there.taken();

    append_event(&*log, &event(room(1), 1, None)).await;
    append_event(&*log, &event(room(2), 1, None)).await;
    append_event(&*log, &event(room(1), 2, Some(reply_to(there.id)))).await;
    append(&*log, Topic::Events, room(2).as_bytes(), outcome(room(2), 77, there.id).encode()).await;
    let joined = UserEvent { user: user(7), room: room(9), seq: Seq(3), at: TIME, entry: RoomEntry::Joined };
    append(&*log, Topic::UserEvents, user(7).as_bytes(), joined.encode()).await;
    let receipt = Receipt {
        room: room(1),
        user: user(7),
        session: SessionId::NIL,
        delivered_seq: Seq(2),
        read_seq: Seq(2),
        at: TIME,
    };
    append(&*log, Topic::Receipts, room(1).as_bytes(), receipt.encode()).await;
    let signal = Signal { room: room(1), user: user(7), session: SessionId::NIL, kind: SignalKind::Typing, at: TIME };
    append(&*log, Topic::Signals, room(1).as_bytes(), signal.encode()).await;
    rest().await;

    let mut heard = here.heard();
    heard.sort();
    assert_eq!(heard, ["event 1", "event 2", "receipt 2", "signal Typing"]);
    let mut heard = there.heard();
    heard.sort();
    assert_eq!(heard, ["event 2", "outcome 77", "user 3"]);
}

#[tokio::test(start_paused = true)]
async fn an_edge_that_waits_for_an_event_of_its_own_room_gets_it_once() {
    let (log, running, edge) = started().await;
    follow(&running, &edge, room(1)).await;
    append_event(&*log, &event(room(1), 1, Some(reply_to(edge.id)))).await;
    rest().await;
    assert_eq!(edge.heard(), ["event 1"]);
}

#[tokio::test(start_paused = true)]
async fn a_skipped_edge_stays_behind_and_its_next_batch_says_so() {
    let (log, running, edge) = started().await;
    follow(&running, &edge, room(1)).await;
    edge.taken();
    append_event(&*log, &event(room(2), 1, None)).await;
    rest().await;
    assert!(edge.taken().is_empty(), "nothing of interest");
    append_event(&*log, &event(room(1), 1, None)).await;
    rest().await;
    let batches = edge.taken();
    assert_eq!((batches.len(), batches[0].from, batches[0].to), (1, Offset(0), Offset(2)));

    append_event(&*log, &event(room(2), 2, None)).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    let batches = edge.taken();
    assert_eq!((batches.len(), batches[0].from, batches[0].to), (1, Offset(2), Offset(3)), "an idle edge advances");
    assert!(batches[0].items.is_empty());
}

#[tokio::test(start_paused = true)]
async fn receipts_and_signals_move_no_position() {
    let (log, running, edge) = started().await;
    follow(&running, &edge, room(1)).await;
    append_event(&*log, &event(room(2), 1, None)).await;
    let signal = Signal { room: room(1), user: user(7), session: SessionId::NIL, kind: SignalKind::Typing, at: TIME };
    append(&*log, Topic::Signals, room(1).as_bytes(), signal.encode()).await;
    edge.taken();
    rest().await;
    let batches = edge.taken();
    assert_eq!((batches.len(), batches[0].from, batches[0].to), (1, Offset(0), Offset(0)));
}

#[tokio::test(start_paused = true)]
async fn a_registration_waits_until_the_end_at_take_over_has_been_read() {
    let log = Arc::new(Trickle(MemoryLog::new()));
    log.create(1).await.unwrap();
    for seq in 1..=20 {
        append_event(&*log, &event(room(1), seq, None)).await;
    }
    let running = Running::start(Arc::clone(&log) as _);
    let edge = Edge::new(1);
    running.handle.attach(Arc::clone(&edge) as _).await.unwrap();
    let registered = loop {
        // Unavailable until the partition is taken over, then it waits.
        if let Ok(registered) = running.handle.register(edge.id, Lane::Rooms, ALL, &[*room(1).as_bytes()]).await {
            break registered;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(registered.at, Offset(20));
    let batches: Vec<Batch> = edge.taken().into_iter().filter(|batch| batch.lane == Lane::Rooms).collect();
    assert!(batches.iter().all(|batch| batch.items.is_empty() && batch.from == Offset(20) && batch.to == Offset(20)));
    assert!(!batches.is_empty(), "before the answer the edge has taken an empty batch");
}

#[tokio::test(start_paused = true)]
async fn each_new_owner_tells_every_edge_of_its_epoch() {
    let (log, running, edge) = started().await;
    let before = follow(&running, &edge, room(1)).await.epoch;
    running.end(false).await;
    edge.taken();
    let running = Running::start(Arc::clone(&log) as _);
    running.handle.attach(Arc::clone(&edge) as _).await.unwrap();
    rest().await;
    let lanes: Vec<Lane> = edge.taken().iter().filter(|batch| batch.epoch > before).map(|batch| batch.lane).collect();
    assert_eq!(lanes, [Lane::Rooms, Lane::Users]);
}

#[tokio::test(start_paused = true)]
async fn an_edge_that_is_attached_after_the_take_over_is_told_of_the_epoch_as_well() {
    let (_log, running, edge) = started().await;
    let epoch = follow(&running, &edge, room(1)).await.epoch;
    let late = Edge::new(2);
    running.handle.attach(Arc::clone(&late) as _).await.unwrap();
    let told: Vec<_> = late.taken().iter().map(|batch| (batch.epoch, batch.lane)).collect();
    assert_eq!(told, [(epoch, Lane::Rooms), (epoch, Lane::Users)]);
}

#[tokio::test(start_paused = true)]
async fn a_partition_of_another_owner_is_unavailable() {
    let log = log_of(2).await;
    let (one, two) = (Running::start(Arc::clone(&log) as _), Running::start(Arc::clone(&log) as _));
    let edge = Edge::new(1);
    one.handle.attach(Arc::clone(&edge) as _).await.unwrap();
    two.handle.attach(Arc::clone(&edge) as _).await.unwrap();
    rest().await;
    for partition in [Partition(0), Partition(1)] {
        let mut owners = 0;
        for running in [&one, &two] {
            owners += usize::from(running.handle.register(edge.id, Lane::Rooms, partition, &[[1; 16]]).await.is_ok());
        }
        assert_eq!(owners, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_edge_must_attach_before_it_registers() {
    let (_log, running, _edge) = started().await;
    assert_eq!(running.handle.register(edge_id(9), Lane::Rooms, ALL, &[[1; 16]]).await, Err(Unavailable));
}

#[tokio::test(start_paused = true)]
async fn after_the_worker_has_ended_all_is_unavailable() {
    let (_log, running, edge) = started().await;
    let handle = Arc::clone(&running.handle);
    running.end(false).await;
    assert_eq!(handle.register(edge.id, Lane::Rooms, ALL, &[[1; 16]]).await, Err(Unavailable));
    assert_eq!(handle.online(&[user(1)]).await, Err(Unavailable));
}

#[tokio::test(start_paused = true)]
async fn an_edge_that_is_stuck_is_out_and_the_others_go_on() {
    let (log, running, edge) = started().await;
    let stuck = Edge::new(2);
    running.handle.attach(Arc::clone(&stuck) as _).await.unwrap();
    follow(&running, &edge, room(1)).await;
    follow(&running, &stuck, room(1)).await;
    edge.taken();
    stuck.stuck.store(true, Ordering::Relaxed);
    append_event(&*log, &event(room(1), 1, None)).await;
    append_event(&*log, &event(room(1), 2, None)).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(edge.heard(), ["event 1", "event 2"]);
    assert_eq!(running.count("posthaste_fanout_edges_lost_total"), 1.0);
    assert_eq!(running.handle.register(stuck.id, Lane::Rooms, ALL, &[[1; 16]]).await, Err(Unavailable));
}

#[tokio::test(start_paused = true)]
async fn interest_taken_back_is_served_no_longer() {
    let (log, running, edge) = started().await;
    follow(&running, &edge, room(1)).await;
    running.handle.unregister(edge.id, Lane::Rooms, ALL, &[*room(1).as_bytes()]);
    rest().await;
    append_event(&*log, &event(room(1), 1, None)).await;
    rest().await;
    assert_eq!(edge.heard(), [] as [&str; 0]);
    running.handle.unregister(edge.id, Lane::Rooms, ALL, &[*room(1).as_bytes()]);
    follow(&running, &edge, room(1)).await;
    append_event(&*log, &event(room(1), 2, None)).await;
    rest().await;
    assert_eq!(edge.heard(), ["event 2"], "in the order in which it was asked");
}

#[tokio::test(start_paused = true)]
async fn those_are_online_in_whom_an_edge_has_interest() {
    let (_log, running, edge) = started().await;
    running.handle.register(edge.id, Lane::Users, ALL, &[*user(1).as_bytes()]).await.unwrap();
    assert_eq!(running.handle.online(&[user(1), user(2)]).await, Ok(vec![user(1)]));
    running.handle.detach(edge.id);
    assert_eq!(running.handle.online(&[user(1), user(2)]).await, Ok(vec![]));
}

#[tokio::test(start_paused = true)]
async fn what_has_changed_is_the_last_seq_of_each_room_in_between() {
    let (log, running, _edge) = started().await;
    for (n, seq) in [(1, 1), (2, 1), (1, 2), (1, 3), (3, 1)] {
        append_event(&*log, &event(room(n), seq, None)).await;
    }
    let changed = |from, to| running.handle.changed(ALL, Offset(from), Offset(to));
    assert_eq!(changed(1, 3).await, Ok(Some(vec![(room(1), Seq(2)), (room(2), Seq(1))])));
    assert_eq!(changed(0, 99).await, Ok(Some(vec![(room(1), Seq(3)), (room(2), Seq(1)), (room(3), Seq(1))])));
    assert_eq!(changed(4, 4).await, Ok(Some(vec![])));
    assert_eq!(changed(4, 2).await, Ok(Some(vec![])));
    log.trim(Topic::Events, ALL, Offset(3)).await.unwrap();
    assert_eq!(changed(1, 5).await, Ok(None), "never an answer with a hole");
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_read_is_set_aside_and_passed() {
    let (log, running, edge) = started().await;
    follow(&running, &edge, room(1)).await;
    append(&*log, Topic::Events, room(1).as_bytes(), bytes::Bytes::from_static(b"rubbish")).await;
    append_event(&*log, &event(room(1), 1, None)).await;
    rest().await;
    assert_eq!(edge.heard(), ["event 1"]);
    assert_eq!(running.count("posthaste_fanout_dead_letters_total"), 1.0);
    let letters = log.read(Topic::DeadLetters, ALL, Offset(0), 1_000).await.unwrap();
    let letter = DeadLetter::decode(&letters.records[0].record.value).unwrap();
    assert_eq!((letter.topic.as_str(), letter.offset, letter.value.as_slice()), ("events", Offset(0), &b"rubbish"[..]));
}

#[tokio::test(start_paused = true)]
async fn holes_and_doubles_in_the_log_are_kept_back_counted_and_set_aside() {
    let (log, running, edge) = started().await;
    follow(&running, &edge, room(1)).await;
    follow(&running, &edge, room(2)).await;
    for (n, seq) in [(1, 5), (1, 6), (1, 6), (1, 9), (2, 1), (1, 10), (1, 7)] {
        append_event(&*log, &event(room(n), seq, None)).await;
    }
    rest().await;
    assert_eq!(edge.heard(), ["event 5", "event 6", "event 1", "event 7"]);
    assert_eq!(running.count("posthaste_fanout_doubles_total"), 1.0);
    assert_eq!(running.count("posthaste_fanout_holes_total"), 2.0);
    assert_eq!(running.count("posthaste_fanout_dead_letters_total"), 3.0);
    let letters = log.read(Topic::DeadLetters, ALL, Offset(0), 10_000).await.unwrap();
    let letters: Vec<_> =
        letters.records.iter().map(|placed| DeadLetter::decode(&placed.record.value).unwrap()).collect();
    let told: Vec<_> = letters.iter().map(|letter| (letter.offset, letter.reason.as_str())).collect();
    let expected = [
        (Offset(2), "double: it has come before; the room's last is 6"),
        (Offset(3), "hole: events before it are missing; the room's last is 6"),
        (Offset(5), "hole: events before it are missing; the room's last is 6"),
    ];
    assert_eq!(told, expected);
    assert_eq!(Event::decode(&letters[1].value).unwrap().seq, Seq(9), "whole");
}

#[tokio::test(start_paused = true)]
async fn what_every_edge_has_taken_is_committed_in_all_topics() {
    let (log, running, _edge) = started().await;
    append_event(&*log, &event(room(1), 1, None)).await;
    append(&*log, Topic::Receipts, room(1).as_bytes(), bytes::Bytes::from_static(b"rubbish")).await;
    rest().await;
    running.end(false).await;
    for topic in [Topic::Events, Topic::Receipts] {
        assert_eq!(log.committed("fanout", topic, ALL).await.unwrap(), Some(Offset(1)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_overtaken_by_retention_begins_at_what_is_left() {
    let (log, running, edge) = started().await;
    append_event(&*log, &event(room(1), 1, None)).await;
    rest().await;
    running.end(false).await;
    for seq in 2..=5 {
        append_event(&*log, &event(room(1), seq, None)).await;
    }
    log.trim(Topic::Events, ALL, Offset(4)).await.unwrap();
    let running = Running::start(Arc::clone(&log) as _);
    running.handle.attach(Arc::clone(&edge) as _).await.unwrap();
    rest().await;
    assert_eq!(follow(&running, &edge, room(1)).await.at, Offset(5));
}
