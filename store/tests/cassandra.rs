//! The store in Cassandra beyond the laws: making tables, passwords and TLS, a node that is killed under load.

#![expect(clippy::unwrap_used, reason = "a test that fails panics")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use engines::cassandra::{Cassandra, Options};
use prometheus::Registry;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use schemas::message::{Content, Message};
use schemas::{Clock, CommandId, Event, EventId, EventKind, Offset, Partition, RoomId, Seq, Timestamp, Topic, UserId};
use store::archive::{Archive, Batch};
use store::cassandra::{CassandraStore, Config, OpenError};
use uuid::Uuid;

/// For write timestamps alone.
struct Still;

impl Clock for Still {
    fn now(&self) -> Timestamp {
        Timestamp(1)
    }

    fn micros(&self) -> i64 {
        1_000
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}

fn config(server: &Cassandra) -> Config {
    Config { contact_points: server.contact_points(), replication: 1, ..Config::default() }
}

async fn open(config: &Config) -> Result<CassandraStore, OpenError> {
    CassandraStore::open(config, Arc::new(Still), &Registry::new()).await
}

const ROOM: RoomId = RoomId(Uuid::from_u128(1));

fn message(seq: u64) -> Arc<Event> {
    Arc::new(Event {
        room: ROOM,
        seq: Seq(seq),
        id: EventId(Uuid::from_u128(seq.into())),
        at: Timestamp(seq as i64),
        by: UserId(Uuid::from_u128(2)),
        command: CommandId(schemas::ids::uuid_v7(seq as i64, [1; 10])),
        reply_to: None,
        received_us: 1,
        decided_us: 2,
        salt: [3; 16],
        hash: [4; 32],
        kind: EventKind::Message(Message { content: Content::text("hello"), reply_to: None }),
    })
}

fn batch(seq: u64) -> Batch {
    let at = |offset| vec![(Topic::Events, Partition(0), Offset(offset))];
    Batch { events: vec![message(seq)], since: at(seq - 1), progress: at(seq), ..Batch::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_made_once_by_whoever_asks_and_no_store_opens_without_them() {
    let server = Cassandra::start(Options { commit_log: "periodic", ..Options::default() }).unwrap();
    let config = config(&server);
    assert!(matches!(open(&config).await, Err(OpenError::Older { found: 0, .. })));
    let (one, other) = tokio::join!(CassandraStore::tables(&config), CassandraStore::tables(&config));
    let version = one.unwrap();
    assert_eq!((version, other.unwrap()), (1, 1));
    let store = open(&config).await.unwrap();
    assert_eq!(store.forgetful_nodes(), server.contact_points(), "it is said that this node's log is not synced");
    store.archive(batch(1)).await.unwrap();
    assert_eq!(CassandraStore::tables(&config).await.unwrap(), version, "again");
    assert_eq!(store.events(ROOM, Seq::ZERO, Seq(9), 9, false).await.unwrap().len(), 1, "the rows stay");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9_and_the_store_finds_its_node_again() {
    let mut server = Cassandra::start(Options::default()).unwrap();
    let config = config(&server);
    CassandraStore::tables(&config).await.unwrap();
    let store = Arc::new(open(&config).await.unwrap());
    assert!(store.forgetful_nodes().is_empty());
    let writing = tokio::spawn({
        let store = store.clone();
        async move {
            // One after the other, until one is not acknowledged.
            for seq in 1.. {
                if let Err(error) = store.archive(batch(seq)).await {
                    assert!(matches!(error, store::Error::Unavailable(_)), "{error:?}");
                    return seq - 1;
                }
            }
            0
        }
    });
    // Under load, not after it.
    while store.progress(Topic::Events, Partition(0)).await.unwrap() < Offset(500) {
        tokio::task::yield_now().await;
    }
    server.kill(0);
    let acknowledged = writing.await.unwrap();
    server.start_node(0).unwrap();
    let mut progress = store.progress(Topic::Events, Partition(0)).await;
    for _ in 0..20 {
        if progress.is_ok() {
            break;
        }
        progress = store.progress(Topic::Events, Partition(0)).await;
    }
    let progress = progress.unwrap().0;
    assert!((acknowledged..=acknowledged + 1).contains(&progress), "{acknowledged} acknowledged, {progress} there");
    let there = store.events(ROOM, Seq::ZERO, Seq(progress + 1), usize::MAX, false).await.unwrap();
    assert!(there.iter().map(|event| event.seq.0).eq(1..=progress), "progress covers no hole");
    store.archive(batch(progress + 1)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_asks_for_a_password_and_tls_gets_both() {
    let dir = tempfile::tempdir().unwrap();
    let (node, authority, other) = certificates(dir.path());
    let server = Cassandra::start(Options { passwords: true, tls: Some(node), ..Options::default() }).unwrap();
    let right = Config {
        user: Some("cassandra".to_owned()),
        password: Some("cassandra".to_owned()),
        ca_file: Some(authority),
        ..config(&server)
    };
    // The first sign-in right after the start may be refused: the user is still being made.
    let mut made = CassandraStore::tables(&right).await;
    for _ in 0..20 {
        if made.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        made = CassandraStore::tables(&right).await;
    }
    made.unwrap();
    let store = open(&right).await.unwrap();
    store.archive(batch(1)).await.unwrap();
    for wrong in [
        Config { password: Some("wrong".to_owned()), ..right.clone() },
        Config { user: None, password: None, ..right.clone() },
        Config { ca_file: None, ..right.clone() },
        Config { ca_file: Some(other), ..right.clone() },
    ] {
        assert!(matches!(open(&wrong).await, Err(OpenError::Connect(_))), "{wrong:?}");
    }
}

/// A node's key and certificate in one file, its authority, and another authority.
fn certificates(dir: &Path) -> (std::path::PathBuf, std::path::PathBuf, std::path::PathBuf) {
    let authority = |name: &str| {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // A node's name must be another, or it would look like its own authority.
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.self_signed(&key).unwrap().pem(), Issuer::new(params, key))
    };
    let ((pem, issuer), (other_pem, _)) = (authority("one"), authority("other"));
    let key = KeyPair::generate().unwrap();
    let node = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let node = write("node.pem", key.serialize_pem() + &node.pem());
    (node, write("authority.pem", pem), write("other.pem", other_pem))
}
