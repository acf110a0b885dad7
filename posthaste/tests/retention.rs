//! The log of a running server stays bounded, and nothing that it lets go of is missed.

#![expect(clippy::unwrap_used, reason = "what a test can not do without ends it")]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Server, at, history};
use prometheus::Registry;
use rustix::process::Signal;
use schemas::{Partition, Topic};
use serde_json::{Value, json};
use stream::Log;
use stream::embedded::{Config, EmbeddedLog, Metrics};
use testkit::client::{Api, Wire};

/// Records kept of each partition of a topic.
const KEPT: u64 = 50;
const SETTINGS: [(&str, &str); 3] = [
    ("POSTHASTE_RETENTION__INTERVAL_MS", "20"),
    ("POSTHASTE_RETENTION__KEEP_MAX_RECORDS", "50"),
    ("POSTHASTE_PARTITIONS", "2"),
];

/// Sends so many messages over one socket, and waits until all are accepted; the ids that they were sent under.
async fn send(wire: &mut Wire, room: &str, texts: std::ops::Range<usize>) -> Vec<String> {
    let mut ids = Vec::new();
    for text in texts {
        ids.push(wire.send_message(room, &text.to_string()).await.unwrap());
    }
    for id in &ids {
        let accepted = wire.first("accepted").await.unwrap();
        assert_eq!(accepted["client_msg_id"], **id);
    }
    ids
}

/// Waits until retention has let go of all but about what it is to keep.
async fn trimmed(server: &Server) {
    let patience = Duration::from_secs(20);
    let bounded = async {
        // Fanout and archiver commit at their own pace.
        while server.metric("posthaste_log_kept_records", "topic=\"events\"").unwrap() > 2.0 * KEPT as f64 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(patience, bounded).await.unwrap();
}

/// What a stopped server has left of the events in its log: kept and let go of.
async fn left(data: &Path) -> (u64, u64) {
    let log = EmbeddedLog::open(data, Config::default(), Metrics::new(&Registry::new()).unwrap()).unwrap();
    let (mut kept, mut gone) = (0, 0);
    for partition in (0..log.partitions()).map(Partition) {
        let start = log.start(Topic::Events, partition).await.unwrap().0;
        kept += log.end(Topic::Events, partition).await.unwrap().0 - start;
        gone += start;
    }
    (kept, gone)
}

#[tokio::test]
async fn a_trimmed_log_is_missed_by_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), &SETTINGS);
    let api = Api::new(server.address);
    let (ada, bob) = (api.sign_up("ada").await.unwrap(), api.sign_up("bob").await.unwrap());
    let room = ada.create_room(json!({"name": "Long"}), &[&bob]).await.unwrap();
    let (mut wire, _) = ada.connect(json!({})).await.unwrap();
    let ids = send(&mut wire, &room, 0..400).await;
    trimmed(&server).await;

    let expected: Vec<String> = (0..400).map(|text| text.to_string()).collect();
    let (seqs, texts) = history(&bob, &room).await;
    assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "dense: {seqs:?}");
    assert_eq!(texts, expected);

    // Whoever starts now reads the archive, and of the log what is left.
    server.signal(Signal::KILL);
    server.end();
    let server = Server::start_with(dir.path(), &SETTINGS);
    let (ada, bob) = (at(&server, &ada), at(&server, &bob));
    let (again, texts) = history(&bob, &room).await;
    assert_eq!((again, texts), (seqs.clone(), expected), "the same after a restart");
    let body = json!({"client_msg_id": ids[0], "content": {"type": "text/plain", "body": "again"}});
    let first = ada.api.post(&format!("/v1/rooms/{room}/messages"), body).await.unwrap().expect(200).unwrap();
    assert_eq!(first["content"]["body"], "0", "an old retry finds its first outcome");
    let next = ada.post(&room, "next").await.unwrap();
    assert_eq!(next["seq"], *seqs.last().unwrap() + 1);

    // Someone who was away all the time is streamed all of it.
    let resume = json!({"resume": {room.as_str(): 0}});
    let (_wire, missed) = bob.connect(resume).await.unwrap();
    let streamed: Vec<&Value> = missed.iter().filter(|frame| frame["type"] == "message").collect();
    assert_eq!(streamed.len(), 401);

    trimmed(&server).await;
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
    let (kept, gone) = left(dir.path()).await;
    assert!(kept <= 2 * KEPT + 10 && gone >= 300, "{kept} kept, {gone} gone");
}
