//! What only this engine promises: groups of writes, refusals, a bounded WAL, full disks and broken rows.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, mpsc};

use prometheus::Registry;
use schemas::message::{RoomHistory, RoomKind, RoomVisibility, Settings};
use schemas::room::RoomInfo;
use schemas::{CommandId, Event, EventId, EventKind, RoomId, Seq, Timestamp, UserId};
use tempfile::TempDir;
use uuid::Uuid;

use super::rows::{all, change};
use super::*;
use crate::archive::{Archive, Batch};
use crate::devices::{Devices, RevocationReason};
use crate::keys::{Keys as _, SigningKey};
use crate::rooms::{DirectorySort, Rooms};

const ROOM: RoomId = RoomId(Uuid::from_u128(1));
const USER: UserId = UserId(Uuid::from_u128(2));

fn open(dir: &Path) -> SqliteStore {
    SqliteStore::open(dir, &Config::default(), &Registry::new()).unwrap()
}

/// Events of 1 KiB each.
fn events(seqs: std::ops::Range<u64>) -> Batch {
    let settings = Settings {
        kind: RoomKind::Group,
        name: "n".repeat(1_000),
        handle: None,
        description: String::new(),
        icon: String::new(),
        visibility: RoomVisibility::Public,
        history: RoomHistory::All,
    };
    let event = |seq| Event {
        room: ROOM,
        seq: Seq(seq),
        id: EventId::NIL,
        at: Timestamp(1),
        by: USER,
        command: CommandId(Uuid::from_u128(seq.into())),
        reply_to: None,
        received_us: 0,
        decided_us: 0,
        salt: [0; 16],
        hash: [0; 32],
        kind: EventKind::Created(settings.clone()),
    };
    Batch { events: seqs.map(|seq| Arc::new(event(seq))).collect(), ..Batch::default() }
}

async fn archived(store: &SqliteStore) -> usize {
    store.events(ROOM, Seq(0), Seq(u64::MAX), usize::MAX, false).await.unwrap().len()
}

fn wal_bytes(dir: &Path) -> u64 {
    fs::metadata(dir.join("store.db-wal")).unwrap().len()
}

async fn sql(store: &SqliteStore, statement: &'static str) {
    store.writer.write(0, move |sql| Ok(sql.execute_batch(statement)?)).await.unwrap();
}

#[test]
fn a_database_newer_than_we_know_is_refused_and_left_as_it_is() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path()));
    let path = dir.path().join(FILE_NAME);
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 1_000).unwrap();
    let before = fs::read(&path).unwrap();
    let refused = SqliteStore::open(dir.path(), &Config::default(), &Registry::new()).err().unwrap();
    assert!(refused.to_string().contains("has version 1000"), "{refused}");
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn settings_that_make_no_sense_are_refused() {
    let dir = TempDir::new().unwrap();
    let config = Config { readers: 0, ..Config::default() };
    assert!(matches!(SqliteStore::open(dir.path(), &config, &Registry::new()), Err(OpenError::Config(_))));
    assert!(serde_json::from_str::<Config>(r#"{"reader": 3}"#).is_err());
}

#[tokio::test]
async fn only_the_owner_reads_the_files() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    store.archive(events(1..2)).await.unwrap();
    for name in ["store.db", "store.db-wal", "store.db-shm"] {
        let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[tokio::test]
async fn what_was_answered_is_in_the_files_when_the_process_dies() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    store.archive(events(1..10)).await.unwrap();
    // What a killed process leaves: the files as they are, nothing closed.
    let left = TempDir::new().unwrap();
    for name in ["store.db", "store.db-wal"] {
        fs::copy(dir.path().join(name), left.path().join(name)).unwrap();
    }
    assert_eq!(archived(&open(left.path())).await, 9);
}

#[tokio::test]
async fn writes_that_wait_share_a_group_and_a_failing_one_spoils_no_other() {
    let dir = TempDir::new().unwrap();
    let store = Arc::new(open(dir.path()));
    // The writer is kept busy until all others wait.
    let (started, has_started) = tokio::sync::oneshot::channel();
    let (go, wait) = mpsc::channel::<()>();
    let busy = {
        let store = store.clone();
        let run = move |_: &Connection| {
            started.send(()).unwrap();
            wait.recv().map_err(|_| stopped())
        };
        tokio::spawn(async move { store.writer.write(0, run).await })
    };
    has_started.await.unwrap();
    let writes: Vec<_> = (0..50_i64)
        .map(|n| {
            let store = store.clone();
            let run = move |sql: &Connection| {
                change(sql, "INSERT INTO progress VALUES ('test', ?1, 0)", [n])?;
                if n % 10 == 3 { Err(Error::Broken("as planned".to_owned())) } else { Ok(n) }
            };
            tokio::spawn(async move { store.writer.write(0, run).await })
        })
        .collect();
    while store.writer.queued() < 50 {
        tokio::task::yield_now().await;
    }
    go.send(()).unwrap();
    busy.await.unwrap().unwrap();
    let mut done = Vec::new();
    for write in writes {
        done.extend(write.await.unwrap().ok());
    }
    let query = "SELECT partition FROM progress ORDER BY partition";
    let kept: Vec<i64> = store.readers.read(move |sql| all(sql, query, [], |row| row.get(0))).await.unwrap();
    assert_eq!(kept, done);
    assert_eq!(kept.len(), 45);
    assert_eq!(store.writer.groups(), 2);
}

#[tokio::test]
async fn a_full_disk_refuses_writes_keeps_what_it_has_and_recovers() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    store.archive(events(1..100)).await.unwrap();
    sql(&store, "PRAGMA max_page_count = 1").await; // SQLite takes the present size instead.
    let refused = store.archive(events(100..1_000)).await;
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    assert_eq!(archived(&store).await, 99);
    sql(&store, "PRAGMA max_page_count = 1000000").await;
    store.archive(events(100..1_000)).await.unwrap();
    assert_eq!(archived(&store).await, 999);
}

#[tokio::test]
async fn a_group_whose_transaction_has_ended_fails_as_a_whole_and_the_next_is_fine() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let lost = store.writer.write(0, |sql| {
        change(sql, "INSERT INTO progress VALUES ('test', 1, 0)", [])?;
        // As SQLite does by itself after some errors.
        Ok(sql.execute_batch("ROLLBACK")?)
    });
    assert!(matches!(lost.await, Err(Error::Unavailable(_))));
    store.archive(events(1..3)).await.unwrap();
    assert_eq!(archived(&store).await, 2);
}

#[tokio::test]
async fn the_wal_is_emptied_once_a_slow_reader_is_done() {
    const MAX: u64 = 256 * 1024;
    let dir = TempDir::new().unwrap();
    let config = Config { wal_max_bytes: MAX, ..Config::default() };
    let store = Arc::new(SqliteStore::open(dir.path(), &config, &Registry::new()).unwrap());
    let (started, has_started) = tokio::sync::oneshot::channel();
    let (go, wait) = mpsc::channel::<()>();
    let slow = {
        let store = store.clone();
        let run = move |sql: &Connection| {
            let before = all(sql, "SELECT seq FROM events", [], |_| Ok(()))?.len();
            started.send(()).unwrap();
            wait.recv().map_err(|_| stopped())?;
            assert_eq!(all(sql, "SELECT seq FROM events", [], |_| Ok(()))?.len(), before, "a snapshot stands still");
            Ok(())
        };
        tokio::spawn(async move { store.readers.read(run).await })
    };
    has_started.await.unwrap();
    store.archive(events(1..1_000)).await.unwrap();
    assert!(wal_bytes(dir.path()) > MAX);
    assert_eq!(archived(&store).await, 999, "other reads go on");
    go.send(()).unwrap();
    slow.await.unwrap().unwrap();
    // The second one is taken after the checkpoint that follows the first one's answer.
    store.archive(events(1_000..1_001)).await.unwrap();
    store.archive(events(1_001..1_002)).await.unwrap();
    assert!(wal_bytes(dir.path()) < MAX);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wal_stays_bounded_under_readers_that_never_pause() {
    const MAX: u64 = 1024 * 1024;
    let dir = TempDir::new().unwrap();
    let config = Config { wal_max_bytes: MAX, ..Config::default() };
    let store = Arc::new(SqliteStore::open(dir.path(), &config, &Registry::new()).unwrap());
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (store, stopping) = (store.clone(), stopping.clone());
            tokio::spawn(async move {
                while !*stopping.borrow() {
                    store.events(ROOM, Seq(0), Seq(u64::MAX), 500, true).await.unwrap();
                }
            })
        })
        .collect();
    let mut largest = 0;
    for start in (1..3_000).step_by(100) {
        store.archive(events(start..start + 100)).await.unwrap();
        largest = largest.max(wal_bytes(dir.path()));
    }
    stop.send(true).unwrap();
    for reader in readers {
        reader.await.unwrap();
    }
    // A group is written before its WAL is looked at; in all some 15 MiB were.
    assert!(largest < 3 * MAX, "{largest}");
    assert_eq!(archived(&store).await, 3_000);
}

#[tokio::test]
async fn a_broken_row_is_an_error_and_never_a_panic() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let mut batch = events(1..2);
    batch.rooms.push(RoomInfo {
        id: ROOM,
        settings: match &batch.events[0].kind {
            EventKind::Created(settings) => settings.clone(),
            _ => unreachable!(),
        },
        created_at: Timestamp(1),
        created_by: USER,
        head_seq: Seq(1),
        hash: [0; 32],
        last_activity_at: Timestamp(1),
        member_count: 1,
        deleted: false,
    });
    store.archive(batch).await.unwrap();
    let device = schemas::DeviceId(Uuid::from_u128(9));
    store.revoke_device(USER, device, Timestamp(1), RevocationReason::Banned).await.unwrap();
    sql(
        &store,
        "UPDATE events SET body = x'c301';
         UPDATE rooms SET body = '{\"id\": 3}', id = x'01' WHERE head_seq = 1;
         UPDATE revocations SET reason = 'whim';
         UPDATE commands SET seq = -1",
    )
    .await;
    assert!(matches!(store.events(ROOM, Seq(0), Seq(9), 9, false).await, Err(Error::Broken(_))));
    assert!(matches!(store.directory("", DirectorySort::Name, 0, 9).await, Err(Error::Broken(_))));
    assert!(matches!(store.revocations(0).await, Err(Error::Broken(_))));
    let key = (ROOM, USER, CommandId(Uuid::from_u128(1)));
    assert!(matches!(store.acted(&[key]).await, Err(Error::Broken(_))));
    assert_eq!(store.rooms(&[ROOM]).await.unwrap(), [], "the rest is served");
}

#[tokio::test]
async fn the_directory_walks_an_index_in_each_order() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    for sort in [DirectorySort::Activity, DirectorySort::Popularity, DirectorySort::Name, DirectorySort::Created] {
        let query = format!("EXPLAIN QUERY PLAN {}", rooms::directory_query(sort));
        let plan = move |sql: &Connection| all(sql, &query, rusqlite::params!["", 9, 0], |row| row.get::<_, String>(3));
        let plan = store.readers.read(plan).await.unwrap();
        assert!(plan.len() == 1 && plan[0].contains("USING INDEX rooms_by_"), "{plan:?}");
    }
}

/// A statement that is planned anew for each value that is bound costs more than all the rest of a write.
#[test]
fn statements_are_planned_once_whatever_is_bound() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let reader = connect_reader(&dir.path().join(FILE_NAME)).unwrap();
    let mut query = reader.prepare("SELECT body FROM events WHERE room = ?1 AND seq > ?2 ORDER BY seq").unwrap();
    for seq in 0..3 {
        assert!(!query.exists(rusqlite::params![ROOM.as_bytes(), seq]).unwrap());
    }
    assert_eq!(query.get_status(rusqlite::StatementStatus::RePrepare), 0);
    drop(store);
}

#[tokio::test]
async fn the_seed_of_a_removed_key_is_in_no_file() {
    let dir = TempDir::new().unwrap();
    let seed = *b"a seed that nobody else may read";
    let is_there = || {
        let has = |name: &str| fs::read(dir.path().join(name)).is_ok_and(|file| file.windows(32).any(|at| at == seed));
        has("store.db") || has("store.db-wal")
    };
    let key = |n: u8, seed| SigningKey { id: n.to_string(), seed, created_at: Timestamp(n.into()), retired_at: None };
    let store = open(dir.path());
    store.add_signing_key(key(1, seed), None).await.unwrap();
    store.add_signing_key(key(2, [2; 32]), Some("1".into())).await.unwrap();
    store.retire_signing_key("1".into(), Timestamp(3)).await.unwrap();
    drop(store);
    assert!(is_there());
    let store = open(dir.path());
    assert_eq!(store.remove_retired_keys(Timestamp(4)).await.unwrap().len(), 1);
    drop(store);
    assert!(!is_there());
}
