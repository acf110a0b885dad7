//! The worker over the engines in memory, with faults: what was accepted is in the log exactly once, whatever fails.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use common::faults::{Fault, FaultyLog, FaultyStore, archive};
use common::{
    TestClock, TestEntropy, command, create, id, is_consumed, membership, read_all, read_events, read_user_events,
    room, send, submit, user,
};
use ingest::{Config, Deps, Metrics};
use proptest::prelude::*;
use schemas::dead_letter::DeadLetter;
use schemas::message::{MemberChange, Role};
use schemas::outcome::{Outcome, RejectCode};
use schemas::room::RoomState;
use schemas::{
    Action, Command, CommandId, Event, EventKind, Partition, Record as _, RoomId, Seq, Timestamp, Topic, UserId,
};
use store::memory::MemoryStore;
use stream::Log;
use stream::memory::MemoryLog;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// A log, a store and what runs on them.
struct House {
    log: Arc<FaultyLog>,
    store: Arc<FaultyStore>,
    clock: Arc<TestClock>,
    entropy: Arc<TestEntropy>,
    config: Config,
    metrics: Metrics,
    registry: prometheus::Registry,
}

impl House {
    async fn new(partitions: u32, config: Config) -> Self {
        let log = FaultyLog::new(MemoryLog::new());
        log.create(partitions).await.unwrap();
        let registry = prometheus::Registry::new();
        Self {
            log,
            store: FaultyStore::new(),
            clock: TestClock::new(),
            entropy: Arc::default(),
            config,
            metrics: Metrics::new(&registry).unwrap(),
            registry,
        }
    }

    fn worker(&self) -> Worker {
        let (stop, stopped) = watch::channel(false);
        let deps = Deps {
            log: self.log.clone(),
            store: self.store.clone(),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
        };
        Worker { stop, task: tokio::spawn(ingest::run(deps, self.config.clone(), self.metrics.clone(), stopped)) }
    }

    /// Waits until every command has been consumed.
    async fn settled(&self) {
        for _ in 0..10_000 {
            if is_consumed(&*self.log).await {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("commands are left");
    }

    async fn submit(&self, commands: &[Command]) {
        submit(&*self.log, commands).await;
    }

    async fn archive(&self, limit: usize) {
        for partition in (0..self.log.partitions()).map(Partition) {
            archive(&*self.log, &self.store.now(), partition, limit, false).await;
        }
    }

    async fn events(&self) -> Vec<Event> {
        read_events(&*self.log).await.0
    }

    /// A counter's value.
    fn count(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().find(|family| family.name() == name).unwrap();
        family.get_metric()[0].get_counter().get_value()
    }

    async fn outcomes(&self) -> Vec<Outcome> {
        read_events(&*self.log).await.1
    }
}

struct Worker {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<(), ingest::Error>>,
}

impl Worker {
    async fn stop(self) {
        self.stop.send(true).unwrap();
        self.task.await.unwrap().unwrap();
    }

    /// Ends it where it stands.
    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }
}

/// A small bound on everything: rooms go as soon as they may, ids too.
fn forgetful() -> Config {
    Config { rooms_max_bytes: 0, ids_kept: 1, ..Config::default() }
}

fn text(event: &Event) -> &str {
    match &event.kind {
        EventKind::Message(message) => message.content.body.as_deref().unwrap(),
        _ => "",
    }
}

/// Every room dense and rightly chained, no command with two effects; returns the first event of each command.
fn check_log(events: &[Event]) -> HashMap<(RoomId, UserId, CommandId), (Seq, schemas::EventId)> {
    let mut heads: HashMap<RoomId, (Seq, [u8; 32])> = HashMap::new();
    let mut first = HashMap::new();
    for event in events {
        let (head, hash) = heads.entry(event.room).or_default();
        assert_eq!(event.seq, head.next(), "dense");
        assert_eq!(event.hash, Event::chain(hash, event.seq, &event.salt, &event.kind));
        (*head, *hash) = (event.seq, event.hash);
        if event.reply_to.is_some() {
            let before = first.insert((event.room, event.by, event.command), (event.seq, event.id));
            assert_eq!(before, None, "a command acts at most once");
        } else {
            assert!(first.contains_key(&(event.room, event.by, event.command)), "what follows has a first event");
        }
    }
    first
}

#[tokio::test(start_paused = true)]
async fn a_message_becomes_the_rooms_next_event_and_its_people_hear_of_the_room() {
    let house = House::new(4, Config::default()).await;
    let worker = house.worker();
    house
        .submit(&[
            command(id(1), user(1), room(1), create(vec![user(2)])),
            command(id(2), user(2), room(1), send("hello")),
            command(id(3), user(3), room(1), send("from outside")),
        ])
        .await;
    house.settled().await;
    worker.stop().await;
    let events = house.events().await;
    check_log(&events);
    assert_eq!(
        events.iter().map(|event| (event.seq.0, text(event))).collect::<Vec<_>>(),
        [(1, ""), (2, ""), (3, ""), (4, "hello")]
    );
    assert_eq!(house.outcomes().await[0].rejected.as_ref().unwrap().code, RejectCode::NotAMember);
    let mut told: Vec<_> = read_user_events(&*house.log).await.iter().map(|told| (told.user, told.seq)).collect();
    told.sort();
    assert_eq!(told, [(user(1), Seq(2)), (user(2), Seq(3))]);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_gets_the_first_outcome_from_memory_and_from_the_store() {
    let house = House::new(2, forgetful()).await;
    let worker = house.worker();
    let first = command(id(5), user(1), room(1), send("first"));
    house.submit(&[command(id(1), user(1), room(1), create(vec![])), first.clone(), first.clone()]).await;
    house.settled().await;
    house.archive(usize::MAX).await;
    sleep(Duration::from_secs(1)).await;
    // Other rooms' commands bring the look at the progress after which the room may go.
    house.submit(&[command(id(6), user(1), room(1), send("second"))]).await;
    house.settled().await;
    house.archive(usize::MAX).await;
    sleep(Duration::from_secs(1)).await;
    house.submit(&[command(id(5), user(1), room(1), send("another body"))]).await;
    house.settled().await;
    worker.stop().await;
    let events = house.events().await;
    let first_events = check_log(&events);
    assert_eq!(events.iter().filter(|event| event.command == first.id).count(), 1);
    let (seq, event_id) = first_events[&(room(1), user(1), id(5))];
    let outcomes = house.outcomes().await;
    assert_eq!(outcomes.len(), 2);
    assert!(outcomes.iter().all(|outcome| outcome.done.is_some_and(|done| (done.seq, done.id) == (seq, event_id))));
    assert!(house.store.calls("acted") > 0, "the second was looked up");
}

#[tokio::test(start_paused = true)]
async fn a_void_command_is_answered_as_unknown_and_not_stored() {
    let house = House::new(1, Config::default()).await;
    let worker = house.worker();
    let late = Command { deadline: Timestamp(common::START_MS - 1), ..command(id(2), user(1), room(1), send("late")) };
    house.submit(&[command(id(1), user(1), room(1), create(vec![])), late]).await;
    house.settled().await;
    worker.stop().await;
    assert_eq!(house.events().await.len(), 2);
    assert_eq!(house.outcomes().await[0].rejected.as_ref().unwrap().code, RejectCode::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_take_over_touches_no_cold_room() {
    let house = House::new(2, Config::default()).await;
    let worker = house.worker();
    let rooms: Vec<Command> = (0..500).map(|n| command(id(n as u64), user(n), room(n), create(vec![]))).collect();
    house.submit(&rooms).await;
    house.settled().await;
    worker.stop().await;
    house.archive(usize::MAX).await;
    let (reads_before, loads_before) = (house.store.calls("rooms"), house.count("posthaste_ingest_room_loads_total"));
    let worker = house.worker();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(house.store.calls("rooms"), reads_before, "taking over reads none");
    let sends: Vec<Command> = (0..3).map(|n| command(id(1_000 + n as u64), user(n), room(n), send("x"))).collect();
    house.submit(&sends).await;
    house.settled().await;
    worker.stop().await;
    assert_eq!(house.store.calls("rooms") - reads_before, 3);
    assert_eq!(house.count("posthaste_ingest_room_loads_total") - loads_before, 3.0);
    check_log(&house.events().await);
    assert_eq!(house.events().await.len(), 2 * 500 + 3);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lost_what_is_relied_upon_answers_for_nothing() {
    let house = House::new(1, forgetful()).await;
    let worker = house.worker();
    house
        .submit(&[command(id(1), user(1), room(1), create(vec![])), command(id(2), user(1), room(1), send("a"))])
        .await;
    house.settled().await;
    let older = MemoryStore::new();
    archive(&*house.log, &older, Partition(0), 2, false).await;
    house.archive(usize::MAX).await;
    sleep(Duration::from_secs(1)).await;
    // A look at the progress, so that room 1 goes.
    house.submit(&[command(id(3), user(2), room(2), create(vec![]))]).await;
    house.settled().await;
    house.submit(&[command(id(4), user(2), room(2), send("b")), command(id(5), user(2), room(2), send("c"))]).await;
    house.settled().await;

    house.store.become_store(older);
    house
        .submit(&[command(id(6), user(1), room(1), send("too early")), command(id(2), user(1), room(1), send("a"))])
        .await;
    house.settled().await;
    let outcomes = house.outcomes().await;
    let codes: Vec<_> = outcomes.iter().map(|outcome| outcome.rejected.as_ref().map(|why| why.code)).collect();
    assert_eq!(codes, [Some(RejectCode::Unavailable); 2]);
    assert!(outcomes[0].rejected.as_ref().unwrap().retry_after_ms.is_some());

    // The archiver writes again what was lost.
    house.archive(usize::MAX).await;
    house
        .submit(&[command(id(6), user(1), room(1), send("in time")), command(id(2), user(1), room(1), send("a"))])
        .await;
    house.settled().await;
    worker.stop().await;
    let events = house.events().await;
    check_log(&events);
    let of_room: Vec<_> = events.iter().filter(|event| event.room == room(1)).map(text).collect();
    assert_eq!(of_room, ["", "", "a", "in time"]);
}

#[tokio::test(start_paused = true)]
async fn beyond_the_bound_commands_wait_for_the_archive() {
    let house = House::new(1, Config { unarchived_max_events: 4, ..Config::default() }).await;
    let worker = house.worker();
    let sends: Vec<Command> = (2..8).map(|n| command(id(n), user(1), room(1), send("x"))).collect();
    house.submit(&[command(id(1), user(1), room(1), create(vec![]))]).await;
    house.submit(&sends).await;
    house.settled().await;
    assert_eq!(house.events().await.len(), 4);
    let refused = house.outcomes().await;
    assert_eq!(refused.len(), 4);
    for outcome in refused {
        let why = outcome.rejected.unwrap();
        assert_eq!((why.code, why.retry_after_ms), (RejectCode::Unavailable, Some(500)));
    }
    // A repeat adds nothing, and so is answered.
    house.submit(&sends[..1]).await;
    house.settled().await;
    assert_eq!(house.outcomes().await.last().unwrap().done.unwrap().seq, Seq(3));
    house.archive(usize::MAX).await;
    house.submit(&sends[2..4]).await;
    house.settled().await;
    worker.stop().await;
    check_log(&house.events().await);
    assert_eq!(house.events().await.len(), 6);
}

#[tokio::test(start_paused = true)]
async fn a_failed_load_rejects_its_own_commands_alone() {
    let house = House::new(1, Config::default()).await;
    let worker = house.worker();
    house.store.fail("largest_command", 1);
    let creations: Vec<Command> = (1..=5).map(|n| command(id(n as u64), user(n), room(n), create(vec![]))).collect();
    house.submit(&creations).await;
    house.settled().await;
    assert_eq!(house.outcomes().await.len(), 1);
    assert_eq!(house.events().await.len(), 2 * 4);
    house.submit(&creations).await;
    house.settled().await;
    worker.stop().await;
    assert_eq!(house.events().await.len(), 2 * 5);
    check_log(&house.events().await);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_makes_commands_unavailable_and_hot_rooms_go_on() {
    let house = House::new(1, Config::default()).await;
    let worker = house.worker();
    house.submit(&[command(id(1), user(1), room(1), create(vec![]))]).await;
    house.settled().await;
    house.store.hang("rooms");
    house
        .submit(&[command(id(2), user(2), room(2), create(vec![])), command(id(3), user(1), room(1), send("x"))])
        .await;
    house.settled().await;
    worker.stop().await;
    assert_eq!(house.events().await.len(), 3);
    assert_eq!(house.outcomes().await[0].rejected.as_ref().unwrap().code, RejectCode::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_at_take_over_is_waited_for() {
    let house = House::new(1, Config::default()).await;
    house.store.hang("progress");
    let worker = house.worker();
    house.submit(&[command(id(1), user(1), room(1), create(vec![]))]).await;
    sleep(Duration::from_secs(60)).await;
    assert!(!is_consumed(&*house.log).await);
    house.store.forget_plans();
    house.settled().await;
    worker.stop().await;
    assert_eq!(house.events().await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_log_older_than_its_archive_is_refused() {
    let house = House::new(1, Config::default()).await;
    let worker = house.worker();
    house.submit(&[command(id(1), user(1), room(1), create(vec![]))]).await;
    house.settled().await;
    worker.stop().await;
    house.archive(usize::MAX).await;
    let other = House { store: house.store.clone(), ..House::new(1, Config::default()).await };
    let error = other.worker().task.await.unwrap().unwrap_err();
    assert!(matches!(error, ingest::Error::LogBehindArchive { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_owner_fences_the_producers_of_its_partitions_before_it() {
    let house = House::new(2, Config::default()).await;
    let mut older = Vec::new();
    for partition in 0..2 {
        older.push(house.log.inner.producer(&format!("ingest-{partition}")).await.unwrap());
    }
    let worker = house.worker();
    house.submit(&[command(id(1), user(1), room(1), create(vec![]))]).await;
    house.settled().await;
    for mut producer in older {
        let late = stream::Transaction::default();
        assert!(matches!(producer.commit(late).await, Err(stream::Error::Fenced)));
    }
    worker.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_second_worker_takes_its_share_and_all_of_it_when_the_first_dies() {
    let house = House::new(8, forgetful()).await;
    let first = house.worker();
    let creations: Vec<Command> = (0..40).map(|n| command(id(n as u64), user(n), room(n), create(vec![]))).collect();
    house.submit(&creations[..20]).await;
    let second = house.worker();
    house.submit(&creations[20..]).await;
    house.settled().await;
    first.kill().await;
    let sends: Vec<Command> = (0..40).map(|n| command(id(100 + n as u64), user(n), room(n), send("x"))).collect();
    house.submit(&sends).await;
    house.submit(&creations).await;
    house.settled().await;
    second.stop().await;
    check_log(&house.events().await);
    assert_eq!(house.events().await.len(), 3 * 40);
}

#[tokio::test(start_paused = true)]
async fn a_command_in_anothers_partition_is_set_aside() {
    let house = House::new(2, Config::default()).await;
    let worker = house.worker();
    let command = command(id(1), user(1), room(1), create(vec![]));
    let wrong = Partition(1 - Partition::of(room(1).as_bytes(), 2).0);
    let record = stream::Record { key: *room(1).as_bytes(), value: command.encode() };
    house.log.append(Topic::Commands, wrong, vec![record.clone()]).await.unwrap();
    house.settled().await;
    worker.stop().await;
    let letters = read_all(&*house.log, Topic::DeadLetters, wrong).await;
    let letter = DeadLetter::decode(&letters[0].record.value).unwrap();
    assert_eq!((letter.topic.as_str(), letter.partition, letter.value), ("commands", wrong.0, record.value.to_vec()));
    assert!(house.events().await.is_empty());
}

#[test]
fn random_bytes_as_commands_become_dead_letters_and_nothing_stops() {
    let valid = command(id(1), user(1), room(1), create(vec![user(2)])).encode();
    let noise = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        // A right header and a broken datum; a cut command; one with a changed byte may even be a command.
        prop::collection::vec(any::<u8>(), 0..100).prop_map({
            let header = valid[..10].to_vec();
            move |noise| [header.clone(), noise].concat()
        }),
        (0..valid.len()).prop_map({
            let valid = valid.clone();
            move |cut| valid[..cut].to_vec()
        }),
        (0..valid.len(), any::<u8>()).prop_map(move |(at, byte)| {
            let mut changed = valid.to_vec();
            changed[at] = byte;
            changed
        }),
    ];
    proptest!(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }, |(
        noises in prop::collection::vec(noise, 1..20),
    )| {
        paused(async {
            let house = House::new(1, Config::default()).await;
            let worker = house.worker();
            let unreadable = noises.iter().filter(|bytes| Command::decode(bytes).is_err()).count();
            for value in noises {
                let record = stream::Record { key: [7; 16], value: value.into() };
                house.log.append(Topic::Commands, Partition(0), vec![record]).await.unwrap();
            }
            house.submit(&[command(id(9), user(9), room(9), create(vec![]))]).await;
            house.settled().await;
            worker.stop().await;
            assert_eq!(read_all(&*house.log, Topic::DeadLetters, Partition(0)).await.len(), unreadable);
            assert_eq!(house.events().await.iter().filter(|event| event.room == room(9)).count(), 2);
        });
    });
}

/// What may happen between two commands.
#[derive(Clone, Debug)]
enum Step {
    Submit(usize),
    Plan(Fault),
    Kill(usize),
    Start,
    Archive { limit: usize, rows_only: bool },
    Yield(usize),
    Wait(u64),
    FailStore(&'static str),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fault = prop::sample::select(vec![
        Fault::Refused,
        Fault::Lost,
        Fault::Unheard,
        Fault::Fenced,
        Fault::Slow,
        Fault::Unread,
    ]);
    let method = prop::sample::select(vec!["rooms", "members", "largest_command", "acted", "progress"]);
    let step = prop_oneof![
        12 => (0..UNIVERSE).prop_map(Step::Submit),
        3 => fault.prop_map(Step::Plan),
        1 => (0..2_usize).prop_map(Step::Kill),
        1 => Just(Step::Start),
        4 => (0..12_usize, prop::bool::weighted(0.2)).prop_map(|(limit, rows_only)| Step::Archive { limit, rows_only }),
        6 => (0..30_usize).prop_map(Step::Yield),
        3 => (0..500_u64).prop_map(Step::Wait),
        1 => method.prop_map(Step::FailStore),
    ];
    prop::collection::vec(step, 1..80)
}

const UNIVERSE: usize = 36;

/// The n-th of all commands there are: three rooms, and what three people do in each under ids that are not in order.
fn nth(n: usize) -> Command {
    let (in_room, place) = (n / 3, room(n as u128 % 3));
    let number = (in_room as u64 * 7) % 13;
    match in_room {
        0 => command(id(number), user(0), place, create(vec![user(1)])),
        1 => command(id(number), user(2), place, membership(user(2), MemberChange::Joined, Role::Member)),
        2 => command(id(number), user(0), place, membership(user(2), MemberChange::Added, Role::Admin)),
        _ => command(id(number), user(in_room as u128 % 3), place, send(&format!("message {n}"))),
    }
}

#[test]
fn any_interleaving_of_retries_restarts_and_faults_gives_one_effect_for_each_command() {
    let config = ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() };
    let bounds = (prop_oneof![Just(0), Just(4_096), Just(usize::MAX)], 1..3_usize, 6..60_u64);
    proptest!(config, |(steps in steps(), (rooms_max_bytes, ids_kept, unarchived_max_events) in bounds)| {
        paused(async {
            let config = Config { rooms_max_bytes, ids_kept, unarchived_max_events, ..Config::default() };
            let house = House::new(2, config).await;
            let mut workers = vec![house.worker()];
            for step in steps {
                match step {
                    Step::Submit(n) => house.submit(&[nth(n)]).await,
                    Step::Plan(fault) => house.log.plan(fault),
                    Step::Kill(which) if which < workers.len() => workers.remove(which).kill().await,
                    Step::Start if workers.len() < 2 => workers.push(house.worker()),
                    Step::Kill(_) | Step::Start => {}
                    Step::Archive { limit, rows_only } => {
                        for partition in [Partition(0), Partition(1)] {
                            archive(&house.log.inner, &house.store.now(), partition, limit, rows_only).await;
                        }
                    }
                    Step::Yield(times) => {
                        for _ in 0..times {
                            tokio::task::yield_now().await;
                        }
                    }
                    Step::Wait(ms) => sleep(Duration::from_millis(ms)).await,
                    Step::FailStore(method) => house.store.fail(method, 2),
                }
            }
            house.log.forget_plans();
            house.store.forget_plans();
            if workers.is_empty() {
                workers.push(house.worker());
            }
            house.settled().await;
            // Everyone tries until there is an answer: creation first, and with an archive that catches up.
            for n in (0..UNIVERSE).chain(0..UNIVERSE) {
                house.submit(&[nth(n)]).await;
                house.settled().await;
                house.archive(usize::MAX).await;
            }
            for worker in workers {
                worker.stop().await;
            }
            let (events, outcomes) = read_events(&*house.log).await;
            let first = check_log(&events);
            for n in 0..UNIVERSE {
                let Command { room, user, id, action, .. } = nth(n);
                // Who was added before they joined has nothing left to do.
                let acted = first.contains_key(&(room, user, id));
                assert!(acted || matches!(action, Action::Membership(_)), "command {n} has acted");
            }
            for n in 0..3 {
                let of_room = events.iter().filter(|event| event.room == room(n));
                let state = of_room.fold(None, RoomState::fold).unwrap();
                assert_eq!(state.info.member_count, 3);
                assert_eq!(state.member(user(2)).unwrap().role, Role::Admin);
            }
            for outcome in outcomes {
                if let Some(done) = outcome.done.filter(|done| done.seq > Seq::ZERO) {
                    assert_eq!(first[&(outcome.room, outcome.user, outcome.command)], (done.seq, done.id));
                }
            }
            let told = read_user_events(&*house.log).await;
            assert_eq!(told.len(), 3 * 3, "each who came is told once");
        });
    });
}

fn paused(scenario: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(scenario);
}
