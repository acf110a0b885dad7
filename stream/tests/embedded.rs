//! The laws of the log port on the engine inside the process, and what that engine alone promises.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where something goes wrong")]

mod laws;

use std::sync::Arc;

use async_trait::async_trait;
use laws::{Engine, PARTITIONS, VOLATILE_MAX_BYTES, laws, record};
use prometheus::Registry;
use proptest::prelude::*;
use schemas::{Offset, Partition, Topic};
use stream::embedded::{Config, EmbeddedLog, Metrics};
use stream::{Error, Log, Polled, Transaction};
use tempfile::TempDir;

struct Embedded {
    log: Arc<EmbeddedLog>,
    dir: TempDir,
}

fn open(dir: &TempDir, config: Config) -> Arc<EmbeddedLog> {
    let metrics = Metrics::new(&Registry::new()).unwrap();
    Arc::new(EmbeddedLog::open(dir.path(), config, metrics).unwrap())
}

/// Memory so small that most reads go to the database.
fn small() -> Config {
    Config { volatile_max_bytes: VOLATILE_MAX_BYTES, tail_max_bytes: 16 * 2_000, ..Config::default() }
}

#[async_trait]
impl Engine for Embedded {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir, small());
        log.create(PARTITIONS).await.unwrap();
        Self { log, dir }
    }

    fn log(&self) -> Arc<dyn Log> {
        Arc::clone(&self.log) as _
    }

    async fn restart(self) -> Self {
        let Self { log, dir } = self;
        drop(Arc::into_inner(log).expect("a test still holds the log"));
        Self { log: open(&dir, small()), dir }
    }
}

laws!(Embedded);

const EVENTS: Topic = Topic::Events;
const P0: Partition = Partition(0);

/// Nothing here cuts the power: where a test makes many files, memory will do.
fn in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn refusal(dir: &TempDir) -> String {
    let metrics = Metrics::new(&Registry::new()).unwrap();
    EmbeddedLog::open(dir.path(), Config::default(), metrics).err().expect("must be refused").to_string()
}

fn wal_bytes(dir: &TempDir) -> u64 {
    dir.path().join("log.db-wal").metadata().map_or(0, |metadata| metadata.len())
}

#[tokio::test]
async fn a_second_opener_of_the_directory_is_refused_with_the_mend() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(&dir, Config::default());
    let refused = refusal(&dir);
    assert!(refused.contains("in use by another process: stop that one, or use another directory"), "{refused}");
    drop(first);
    open(&dir, Config::default());
}

#[tokio::test]
async fn a_database_of_a_newer_program_is_refused_with_the_mend() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(&dir, Config::default()));
    let database = rusqlite::Connection::open(dir.path().join("log.db")).unwrap();
    database.execute_batch("PRAGMA user_version = 2").unwrap();
    drop(database);
    let refused = refusal(&dir);
    assert!(
        refused.contains("has form 2 and this program knows up to 1: start the version that wrote it"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused_with_the_mend() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("log.db"), "not a database, and long enough to be taken for one".repeat(100))
        .unwrap();
    let refused = refusal(&dir);
    assert!(refused.contains("is damaged (file is not a database): restore it from a backup"), "{refused}");
}

#[tokio::test]
async fn consumers_share_what_was_committed_without_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir, Config::default());
    log.create(1).await.unwrap();
    let mut shared = Vec::new();
    let mut members = [log.consumer("a", &[EVENTS]).await.unwrap(), log.consumer("b", &[EVENTS]).await.unwrap()];
    for member in &mut members {
        assert!(matches!(member.poll().await, Ok(Polled::Assigned { .. })));
    }
    log.append(EVENTS, P0, vec![record("one"), record("two")]).await.unwrap();
    for member in &mut members {
        let Polled::Records(fetched) = member.poll().await.unwrap() else { panic!("no records") };
        shared.push(Arc::clone(&fetched[0].records));
    }
    assert!(Arc::ptr_eq(&shared[0], &shared[1]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_at_once_share_a_sync_and_one_refused_spoils_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::new();
    let log = EmbeddedLog::open(dir.path(), Config::default(), Metrics::new(&registry).unwrap()).unwrap();
    log.create(1).await.unwrap();
    let mut fenced = log.producer("t").await.unwrap();
    log.producer("t").await.unwrap();
    let before = commits(&registry);
    let appends = (0..200).map(|number| log.append(EVENTS, P0, vec![record(number)]));
    let late = Transaction { records: vec![(EVENTS, P0, record("zombie"))], consumed: None };
    let (appended, fenced, beyond) = tokio::join!(
        futures_util::future::join_all(appends),
        fenced.commit(late),
        log.append(EVENTS, Partition(1), vec![record("nowhere")])
    );
    assert!(appended.iter().all(Result::is_ok));
    assert!(matches!(fenced, Err(Error::Fenced)));
    assert!(matches!(beyond, Err(Error::Broken(_))));
    assert_eq!(laws::read_all(&log, EVENTS, P0, 1 << 20).await.len(), 200);
    let commits = commits(&registry) - before;
    assert!(commits <= 20, "{commits} commits for 200 appends at once");
}

fn commits(registry: &Registry) -> u64 {
    let families = registry.gather();
    let commits = families.iter().find(|family| family.name() == "posthaste_log_commit_seconds").unwrap();
    commits.get_metric()[0].get_histogram().get_sample_count()
}

#[tokio::test]
async fn what_is_larger_than_the_queue_passes_and_a_full_queue_makes_wait() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir, Config { queue_max_bytes: 1_000, ..Config::default() });
    log.create(1).await.unwrap();
    log.append(EVENTS, P0, vec![record("x".repeat(100_000))]).await.unwrap();
    let appends = (0..30).map(|_| log.append(EVENTS, P0, vec![record("x".repeat(400))]));
    assert!(futures_util::future::join_all(appends).await.iter().all(Result::is_ok));
    assert_eq!(laws::read_all(&*log, EVENTS, P0, 1 << 20).await.len(), 31);
    let refused = log.append(EVENTS, P0, vec![record("x".repeat(65 * 1024 * 1024))]).await;
    assert!(matches!(refused, Err(Error::Broken(_))), "one that fits no row");
}

#[tokio::test]
async fn the_write_ahead_log_stays_within_its_bound_under_a_slow_reader() {
    const WAL_MAX_BYTES: usize = 1024 * 1024;
    let dir = in_memory();
    let config =
        Config { wal_max_bytes: WAL_MAX_BYTES, queue_max_bytes: WAL_MAX_BYTES / 4, tail_max_bytes: 0, ..small() };
    let log = open(&dir, config);
    log.create(1).await.unwrap();
    let mut slow = log.consumer("slow", &[EVENTS]).await.unwrap();
    let (mut seen, mut largest) = (0, 0);
    for number in 0..600 {
        log.append(EVENTS, P0, (0..20).map(|n| record(format!("{number}.{n}:{}", "x".repeat(1_000)))).collect())
            .await
            .unwrap();
        if number % 40 == 0
            && let Polled::Records(fetched) = slow.poll().await.unwrap()
        {
            seen += fetched[0].records.len();
        }
        largest = largest.max(wal_bytes(&dir));
    }
    assert!(seen > 0);
    assert!(largest > 0 && largest <= WAL_MAX_BYTES as u64, "{largest} bytes after 12 MB of records");
}

#[tokio::test]
async fn a_reader_that_holds_a_snapshot_for_ever_makes_the_write_ahead_log_grow_only_while_it_does() {
    const WAL_MAX_BYTES: usize = 256 * 1024;
    let dir = in_memory();
    let log = open(&dir, Config { wal_max_bytes: WAL_MAX_BYTES, queue_max_bytes: WAL_MAX_BYTES / 4, ..small() });
    log.create(1).await.unwrap();
    let fill = async || {
        for _ in 0..20 {
            log.append(EVENTS, P0, vec![record("x".repeat(10_000))]).await.unwrap();
        }
    };
    // None of the engine's own readers does this; a backup tool may.
    let foreign = rusqlite::Connection::open(dir.path().join("log.db")).unwrap();
    foreign.execute_batch("BEGIN").unwrap();
    foreign.query_row("SELECT count(*) FROM batch", [], |_| Ok(())).unwrap();
    fill().await;
    foreign.execute_batch("COMMIT").unwrap();
    fill().await;
    assert!(wal_bytes(&dir) <= WAL_MAX_BYTES as u64, "{}", wal_bytes(&dir));
    assert_eq!(laws::read_all(&*log, EVENTS, P0, 1 << 20).await.len(), 40);
}

#[tokio::test]
async fn positions_of_a_group_ride_along_with_the_next_write() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir, Config::default());
    log.create(1).await.unwrap();
    log.append(EVENTS, P0, vec![record("one")]).await.unwrap();
    let mut member = log.consumer("g", &[EVENTS]).await.unwrap();
    assert!(matches!(member.poll().await, Ok(Polled::Assigned { .. })));
    member.commit(vec![(EVENTS, P0, Offset(1))]).await.unwrap();
    log.append(EVENTS, P0, vec![record("two")]).await.unwrap();
    // What a crash would leave: the files as they are now.
    let left = tempfile::tempdir().unwrap();
    for name in ["log.db", "log.db-wal"] {
        std::fs::copy(dir.path().join(name), left.path().join(name)).unwrap();
    }
    let found = open(&left, Config::default());
    assert_eq!(found.committed("g", EVENTS, P0).await.unwrap(), Some(Offset(1)));
    assert_eq!(found.end(EVENTS, P0).await.unwrap(), Offset(2));
}

#[tokio::test]
async fn a_long_trim_holds_up_nobody() {
    let dir = in_memory();
    let log = open(&dir, Config::default());
    log.create(2).await.unwrap();
    // More rows than one step deletes: each append alone makes one.
    for _ in 0..8_050 {
        log.append(EVENTS, P0, vec![record("x")]).await.unwrap();
    }
    let order = parking_lot::Mutex::new(Vec::new());
    tokio::join!(
        async {
            log.trim(EVENTS, P0, Offset(8_000)).await.unwrap();
            order.lock().push("trimmed");
        },
        async {
            log.append(EVENTS, Partition(1), vec![record("y")]).await.unwrap();
            order.lock().push("appended");
        }
    );
    assert_eq!(*order.lock(), ["appended", "trimmed"]);
    assert_eq!(laws::read_all(&*log, EVENTS, P0, 1 << 20).await.len(), 50);
    drop(log);
    let database = rusqlite::Connection::open(dir.path().join("log.db")).unwrap();
    let rows: i64 = database.query_row("SELECT count(*) FROM batch", [], |row| row.get(0)).unwrap();
    assert_eq!(rows, 51);
}

#[tokio::test]
async fn whoever_outlives_the_log_hears_that_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir, Config::default());
    log.create(1).await.unwrap();
    let mut producer = log.producer("t").await.unwrap();
    let mut member = log.consumer("g", &[EVENTS]).await.unwrap();
    assert!(matches!(member.poll().await, Ok(Polled::Assigned { .. })));
    let (heard, ()) = tokio::join!(member.poll(), async { drop(log) });
    assert!(matches!(heard, Err(Error::Unavailable(_))));
    let late = Transaction { records: vec![(EVENTS, P0, record("late"))], consumed: None };
    assert!(matches!(producer.commit(late).await, Err(Error::Unavailable(_))));
}

/// SQLite has no checksums of its own in the database: what it then says may be anything, and is an error or right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_bytes_are_an_error_and_never_a_wrong_record_or_a_panic() {
    const COUNT: u64 = 120;
    let text = |number: u64| format!("{number}:{}", "x".repeat(number as usize * 7 % 900));
    let whole = in_memory();
    let log = open(&whole, Config::default());
    log.create(2).await.unwrap();
    for number in 0..COUNT {
        log.append(EVENTS, Partition((number % 2) as u32), vec![record(text(number))]).await.unwrap();
    }
    let mut member = log.consumer("g", &[EVENTS]).await.unwrap();
    assert!(matches!(member.poll().await, Ok(Polled::Assigned { .. })));
    member.commit(vec![(EVENTS, P0, Offset(5))]).await.unwrap();
    drop((member, log));
    let bytes = std::fs::read(whole.path().join("log.db")).unwrap();

    let damage = proptest::collection::vec((any::<proptest::sample::Index>(), 1..=255_u8), 1..12);
    let config = ProptestConfig { failure_persistence: None, cases: 300, ..ProptestConfig::default() };
    let runtime = tokio::runtime::Handle::current();
    let outcome = tokio::task::spawn_blocking(move || {
        let dir = in_memory();
        proptest::test_runner::TestRunner::new(config).run(&damage, |flips| {
            let mut damaged = bytes.clone();
            for (at, mask) in flips {
                damaged[at.index(bytes.len())] ^= mask;
            }
            let _ = std::fs::remove_file(dir.path().join("log.db-wal"));
            std::fs::write(dir.path().join("log.db"), damaged).unwrap();
            let metrics = Metrics::new(&Registry::new()).unwrap();
            let Ok(log) = EmbeddedLog::open(dir.path(), Config::default(), metrics) else { return Ok(()) };
            for partition in (0..log.partitions()).map(Partition) {
                for at in 0..COUNT {
                    if let Ok(fetched) = runtime.block_on(log.read(EVENTS, partition, Offset(at), 1)) {
                        for placed in fetched.records.iter() {
                            prop_assert_eq!(placed.offset, Offset(at));
                            let expected = text(at * 2 + u64::from(partition.0));
                            prop_assert_eq!(&*placed.record.value, expected.as_bytes());
                        }
                    }
                }
            }
            let committed = runtime.block_on(log.committed("g", EVENTS, P0)).unwrap();
            prop_assert!(committed.is_none_or(|offset| offset == Offset(5)));
            Ok(())
        })
    });
    outcome.await.unwrap().unwrap();
}
