use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus::Registry;
use schemas::event::EventKind;
use schemas::message::RoomPatch;
use schemas::user_event::RoomEntry;
use schemas::{CommandId, EdgeId, EventId, ReplyTo, RoomId, Seq, SessionId, UserId};
use store::archive::{Archive, Batch};
use store::memory::MemoryStore;
use stream::embedded::EmbeddedLog;
use stream::{Consumer, Polled};
use uuid::Uuid;

use super::*;

const P0: Partition = Partition(0);
const HOUR_S: u64 = 3_600;

/// Time by hand, in seconds since 1970.
#[derive(Default)]
struct HandClock(AtomicU64);

impl HandClock {
    fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Clock for HandClock {
    fn now(&self) -> schemas::Timestamp {
        schemas::Timestamp::default().after(self.elapsed())
    }
    fn micros(&self) -> i64 {
        self.now().0 * 1_000
    }
    fn elapsed(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// What a record of a topic says that happened at a time.
fn value(topic: Topic, at: Timestamp) -> bytes::Bytes {
    let (room, user) = (RoomId(Uuid::nil()), UserId(Uuid::nil()));
    match topic {
        Topic::UserEvents => UserEvent { user, room, seq: Seq(1), at, entry: RoomEntry::Joined }.encode(),
        Topic::Receipts => {
            let session = SessionId(Uuid::nil());
            Receipt { room, user, session, delivered_seq: Seq(1), read_seq: Seq(0), at }.encode()
        }
        _ => Event {
            room,
            seq: Seq(1),
            id: EventId(Uuid::nil()),
            at,
            by: user,
            command: CommandId(Uuid::nil()),
            reply_to: None,
            received_us: 0,
            decided_us: 0,
            salt: [0; 16],
            hash: [0; 32],
            kind: EventKind::Changed(RoomPatch { description: Some("x".repeat(900)), ..RoomPatch::default() }),
        }
        .encode(),
    }
}

/// A log of one partition on disk, its readers, and the duty.
struct World {
    log: Arc<EmbeddedLog>,
    store: Arc<MemoryStore>,
    clock: Arc<HandClock>,
    readers: Vec<(&'static str, Box<dyn Consumer>)>,
    retention: Retention,
}

impl World {
    async fn new(dir: &Path, config: Config) -> Self {
        let metrics = stream::embedded::Metrics::new(&Registry::new()).unwrap();
        let log = Arc::new(EmbeddedLog::open(dir, stream::embedded::Config::default(), metrics).unwrap());
        log.create(1).await.unwrap();
        let store = Arc::new(MemoryStore::new());
        // Beyond the longest window: whatever has no time of its own would be old.
        let clock = Arc::new(HandClock(AtomicU64::new(100 * 24 * HOUR_S)));
        let mut readers = Vec::new();
        for (group, topics) in readers::GROUPS {
            let mut consumer = log.consumer(group, topics).await.unwrap();
            assert!(matches!(consumer.poll().await.unwrap(), Polled::Assigned { .. }));
            readers.push((group, consumer));
        }
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let retention = Retention::new(log.clone(), store.clone(), clock.clone(), config, metrics);
        Self { log, store, clock, readers, retention }
    }

    /// Records of now; events of 1 KiB each.
    async fn append(&self, topic: Topic, count: usize) {
        self.append_values(topic, vec![value(topic, self.clock.now()); count]).await;
    }

    async fn append_values(&self, topic: Topic, values: Vec<bytes::Bytes>) {
        let records = values.into_iter().map(|value| stream::Record { key: [0; 16], value });
        self.log.append(topic, P0, records.collect()).await.unwrap();
    }

    async fn commit(&mut self, group: &str, topic: Topic, to: u64) {
        let (_, reader) = self.readers.iter_mut().find(|(name, _)| *name == group).unwrap();
        reader.commit(vec![(topic, P0, Offset(to))]).await.unwrap();
    }

    async fn archive(&self, topic: Topic, to: u64) {
        let progress = vec![(topic, P0, Offset(to))];
        self.store.archive(Batch { progress, ..Batch::default() }).await.unwrap();
    }

    /// Every reader has finished with everything before.
    async fn finish(&mut self, topic: Topic, to: u64) {
        for group in readers::of(topic) {
            self.commit(group, topic, to).await;
        }
        self.archive(topic, to).await;
    }

    async fn start_after_look(&mut self, topic: Topic) -> u64 {
        self.retention.look().await;
        self.log.start(topic, P0).await.unwrap().0
    }
}

#[test]
fn what_is_needed_stays_and_of_the_rest_what_is_young_and_not_too_much() {
    let trim = |start, end, needed, aged, keep| {
        let [start, end, needed, aged] = [start, end, needed, aged].map(Offset);
        trim_to(Standing { start, end, needed, aged }, keep).map(|before| before.0)
    };
    assert_eq!(trim(0, 1_000, 1_000, 400, 5_000), Some(400), "what is old goes");
    assert_eq!(trim(0, 1_000, 300, 400, 5_000), Some(300), "but not what a reader needs");
    assert_eq!(trim(0, 1_000, 1_000, 400, 500), Some(500), "what is too much goes, however young");
    assert_eq!(trim(0, 1_000, 300, 400, 500), Some(300), "but not what a reader needs");
    assert_eq!(trim(400, 1_000, 1_000, 400, 5_000), None, "nothing is old");
    assert_eq!(trim(400, 1_000, 0, 900, 1), None, "a reader stands at the start");
    assert_eq!(trim(0, 1_000, 2_000, 2_000, 1), Some(1_000), "nothing goes that is not there yet");
    assert_eq!(trim(7, 90_000, 90_000, 90_000, 1), Some(7 + STEP_RECORDS), "a step at a time");
}

#[tokio::test]
async fn a_lagging_reader_is_never_overtaken() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), Config { keep_s: HOUR_S, keep_max_records: 5, ..Config::default() }).await;
    for topic in [Topic::Events, Topic::UserEvents, Topic::Receipts] {
        world.append(topic, 100).await;
        assert_eq!(world.start_after_look(topic).await, 0, "nobody has read it");
        world.commit(fanout::GROUP, topic, 100).await;
        world.commit(archiver::GROUP, topic, 100).await;
        assert_eq!(world.start_after_look(topic).await, 0, "the archive has nothing yet");
        world.archive(topic, 40).await;
        assert_eq!(world.start_after_look(topic).await, 40, "the archive has only so much");
        world.archive(topic, 100).await;
        world.append(topic, 100).await;
        world.archive(topic, 200).await;
        world.commit(archiver::GROUP, topic, 200).await;
        assert_eq!(world.start_after_look(topic).await, 100, "fanout has only so much");
        world.commit(fanout::GROUP, topic, 200).await;
        assert_eq!(world.start_after_look(topic).await, 195);
        let read = world.log.read(topic, P0, Offset(195), 1 << 20).await.unwrap();
        assert_eq!(read.records.len(), 5);
    }
}

#[tokio::test]
async fn what_is_read_stays_for_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), Config { keep_s: HOUR_S, ..Config::default() }).await;
    world.append(Topic::Events, 100).await;
    world.finish(Topic::Events, 100).await;
    assert_eq!(world.start_after_look(Topic::Events).await, 0);
    world.clock.advance(HOUR_S / 2);
    world.append(Topic::Events, 100).await;
    world.finish(Topic::Events, 200).await;
    assert_eq!(world.start_after_look(Topic::Events).await, 0);
    world.clock.advance(HOUR_S / 2);
    assert_eq!(world.start_after_look(Topic::Events).await, 100);
    world.clock.advance(HOUR_S / 2);
    assert_eq!(world.start_after_look(Topic::Events).await, 200);
}

#[tokio::test]
async fn a_restart_does_not_begin_the_window_anew_and_age_is_found_exactly() {
    for topic in [Topic::Events, Topic::UserEvents, Topic::Receipts] {
        let dir = tempfile::tempdir().unwrap();
        let mut world = World::new(dir.path(), Config { keep_s: HOUR_S, ..Config::default() }).await;
        for _ in 0..200 {
            world.append(topic, 7).await;
            world.clock.advance(60);
        }
        world.finish(topic, 1_400).await;
        // This duty has never looked before: what it knows is in the records.
        let exact = 1_400 - 60 * 7 + 7;
        assert_eq!(world.start_after_look(topic).await, exact, "{topic}");
        assert_eq!(world.start_after_look(topic).await, exact, "{topic}");
        world.clock.advance(60);
        assert_eq!(world.start_after_look(topic).await, exact + 7, "{topic}");
    }
}

#[tokio::test]
async fn outcomes_have_a_time_and_what_can_not_be_read_is_as_old_as_what_follows() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), Config { keep_s: HOUR_S, ..Config::default() }).await;
    let damaged = || bytes::Bytes::from_static(&[7; 100]);
    let reply_to = ReplyTo { edge: EdgeId(Uuid::nil()), session: SessionId(Uuid::nil()) };
    let outcome = Outcome {
        room: RoomId(Uuid::nil()),
        user: UserId(Uuid::nil()),
        command: CommandId(Uuid::nil()),
        reply_to,
        received_us: world.clock.micros(),
        done: None,
        rejected: None,
    };
    world.append_values(Topic::Events, vec![outcome.encode(); 10]).await;
    world.append_values(Topic::Events, vec![damaged(); 10]).await;
    world.append(Topic::Events, 10).await;
    world.finish(Topic::Events, 30).await;
    assert_eq!(world.start_after_look(Topic::Events).await, 0, "all are young");
    world.clock.advance(HOUR_S);
    world.append_values(Topic::Events, vec![damaged(); 10]).await;
    world.append(Topic::Events, 10).await;
    world.finish(Topic::Events, 50).await;
    assert_eq!(world.start_after_look(Topic::Events).await, 30);
}

#[tokio::test]
async fn dead_letters_stay_for_a_week_and_not_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), Config { dead_letters_max_records: 3, ..Config::default() }).await;
    let week_s = world.retention.config.dead_letters_keep_s;
    let set_aside = async |world: &World, count: usize| {
        let letter = DeadLetter {
            topic: "events".into(),
            partition: 0,
            offset: Offset(1),
            reason: "a test".into(),
            at: world.clock.now(),
            value: vec![1],
        };
        let record = stream::Record { key: [0; 16], value: letter.encode() };
        world.log.append(Topic::DeadLetters, P0, vec![record; count]).await.unwrap();
    };
    set_aside(&world, 1).await;
    world.clock.advance(week_s - 1);
    set_aside(&world, 1).await;
    assert_eq!(world.start_after_look(Topic::DeadLetters).await, 0);
    world.clock.advance(1);
    assert_eq!(world.start_after_look(Topic::DeadLetters).await, 1, "one is a week old");
    set_aside(&world, 5).await;
    assert_eq!(world.start_after_look(Topic::DeadLetters).await, 4, "three are the newest");
}

#[tokio::test]
async fn the_file_stops_growing() {
    let dir = tempfile::tempdir().unwrap();
    let mut world = World::new(dir.path(), Config { keep_max_records: 1_000, ..Config::default() }).await;
    let mut sizes = Vec::new();
    for round in 1..=40 {
        for _ in 0..10 {
            world.append(Topic::Events, 100).await;
        }
        world.finish(Topic::Events, round * 1_000).await;
        assert_eq!(world.start_after_look(Topic::Events).await, (round - 1) * 1_000);
        let size = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
        sizes.push(size("log.db") + size("log.db-wal"));
    }
    // 40 MiB have gone through; what is kept is 1 MiB, and the write-ahead log takes up to its own bound.
    let (early, late) = (sizes[19], sizes[39]);
    assert!(late <= early + 2 * 1_024 * 1_024, "the file goes on growing: {sizes:?}");
}
