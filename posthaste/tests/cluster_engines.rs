//! The server on a real Kafka and a real Cassandra, with topics and tables that an operator has made: it needs no directory,
//! and what it has accepted outlives kill -9.

#![expect(clippy::unwrap_used, reason = "what a test can not do without ends it")]

mod common;

use std::path::Path;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use common::{Server, at, command, history};
use engines::cassandra::{Cassandra, Options};
use engines::kafka::Kafka;
use rustix::process::Signal;
use scylla::client::session_builder::SessionBuilder;
use serde_json::json;
use testkit::client::Api;

/// Messages that are sent at once; the server is killed when the first third is accepted.
const SENT: usize = 300;

struct Setup {
    variables: Vec<(&'static str, String)>,
    /// Which is not made.
    data: std::path::PathBuf,
}

impl Setup {
    fn variables(&self) -> Vec<(&str, &str)> {
        self.variables.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    fn admin(&self, arguments: &[&str], besides: &[(&str, &str)]) -> Output {
        let mut admin = Command::new(env!("CARGO_BIN_EXE_posthaste"));
        admin.arg("admin").args(arguments).arg("--data").arg(&self.data).env_clear();
        admin.envs(self.variables()).envs(besides.iter().copied()).output().unwrap()
    }

    /// Asserts that this is done, with exit status 0; what it says.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.admin(arguments, &[]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Asserts that the server ends with status 1 and these words.
    fn refused(&self, besides: &[(&str, &str)], words: &str) {
        let output = command(&self.data).envs(self.variables()).envs(besides.iter().copied()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(words), "{words:?} is not in: {said}");
    }

    fn serve(&self) -> Server {
        Server::start_with(&self.data, &self.variables())
    }
}

#[tokio::test]
async fn topics_and_tables_are_made_by_an_operator_and_what_was_accepted_outlives_kill_9() {
    let starting = thread::spawn(|| Kafka::start(1).unwrap());
    let cassandra = Cassandra::start(Options::default()).unwrap();
    let kafka = starting.join().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let setup = Setup {
        variables: vec![
            ("POSTHASTE_KAFKA__BOOTSTRAP", kafka.bootstrap()),
            ("POSTHASTE_KAFKA__REPLICATION", "1".to_owned()),
            ("POSTHASTE_KAFKA__MIN_IN_SYNC", "1".to_owned()),
            ("POSTHASTE_CASSANDRA__CONTACT_POINTS", cassandra.contact_points().join(",")),
            ("POSTHASTE_CASSANDRA__REPLICATION", "1".to_owned()),
            ("POSTHASTE_PARTITIONS", "2".to_owned()),
            ("POSTHASTE_RATE_LIMITS", "false".to_owned()),
        ],
        data: dir.path().join("data"),
    };
    made_by_an_operator(&setup);
    let server = setup.serve();
    let api = Api::new(server.address);
    let (ada, bob) = (api.sign_up("ada").await.unwrap(), api.sign_up("bob").await.unwrap());
    let room = ada.create_room(json!({"name": "Room"}), &[&bob]).await.unwrap();
    let (mut wire, _) = bob.connect(json!({})).await.unwrap();
    ada.post(&room, "hello").await.unwrap();
    assert_eq!(wire.first("message").await.unwrap()["content"]["body"], "hello");
    for name in ["posthaste_store_read_seconds_count", "posthaste_store_write_seconds_count"] {
        assert!(server.metric(name, "") > Some(0.0), "{name}");
    }
    assert_eq!(server.metric("posthaste_store_errors_total", ""), Some(0.0));

    // Killed while it has more to do.
    let mut ids = Vec::new();
    for text in 0..SENT {
        ids.push(wire.send_message(&room, &text.to_string()).await.unwrap());
    }
    let mut accepted = Vec::new();
    while accepted.len() < SENT / 3 {
        accepted.push(wire.first("accepted").await.unwrap()["client_msg_id"].as_str().unwrap().to_owned());
    }
    server.signal(Signal::KILL);
    server.end();

    let server = setup.serve();
    let (ada, bob) = (at(&server, &ada), at(&server, &bob));
    let (seqs, texts) = history(&ada, &room).await;
    assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "dense: {seqs:?}");
    for (text, id) in ids.iter().enumerate().filter(|(_, id)| accepted.contains(id)) {
        assert!(texts.contains(&text.to_string()), "{id} was accepted");
    }
    // Who has not heard sends again: once each, whatever became of the first try.
    let (mut wire, _) = bob.connect(json!({"resume": {room.as_str(): seqs.len()}})).await.unwrap();
    for (text, id) in ids.iter().enumerate().filter(|(_, id)| !accepted.contains(id)) {
        wire.resend_message(&room, id, &text.to_string()).await.unwrap();
        assert_eq!(wire.first("accepted").await.unwrap()["client_msg_id"], **id);
    }
    let (seqs, mut texts) = history(&bob, &room).await;
    assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "dense: {seqs:?}");
    let mut all: Vec<String> = (0..SENT).map(|text| text.to_string()).chain(["hello".to_owned()]).collect();
    texts.sort();
    all.sort();
    assert_eq!(texts, all, "each once");

    assert_eq!(setup.done(&["blocks"]).lines().count(), 1, "nobody is shut out");
    // Beside the server, clean at any time, and in a moment it has everything.
    let all = format!("clean: 1 rooms, {} events\n", seqs.len());
    let archived = async {
        while setup.done(&["verify"]) != all {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), archived).await.unwrap();
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
    assert_eq!(setup.done(&["verify"]), all);
    assert!(!Path::new(&setup.data).exists(), "no directory is needed");

    // Without an event behind its back, and with an archive that has come further than its log.
    let session = SessionBuilder::new().known_nodes(cassandra.contact_points()).build().await.unwrap();
    let behind = format!("DELETE FROM posthaste.events WHERE room = {room} AND bucket = 0 AND seq = 7");
    session.query_unpaged(behind, ()).await.unwrap();
    let ahead = "UPDATE posthaste.progress SET position = 1000000 WHERE topic = 'events' AND number = 0";
    session.query_unpaged(ahead, ()).await.unwrap();
    let output = setup.admin(&["verify"], &[]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    let [progress, hole, verdict] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
    assert!(progress.starts_with("the archive of events/0 stands at 1000000, the log has "), "{said}");
    assert_eq!(hole, format!("room {room} seq 8: expected seq 7 here: what is between is missing"));
    assert!(verdict.starts_with("broken: 2 breaches in 1 rooms, "), "{said}");
}

/// Each step before the next is refused with the command that mends it; twice is as good as once.
fn made_by_an_operator(setup: &Setup) {
    setup.refused(&[], "make them with `posthaste admin topics`");
    let made = setup.done(&["topics"]);
    let events = made.lines().find(|line| line.starts_with("events ")).unwrap();
    assert_eq!(events.split_whitespace().collect::<Vec<_>>(), ["events", "2", "1", "1", "delete", "604800", "s"]);
    assert_eq!(setup.done(&["topics"]), made, "again");
    let other = setup.admin(&["topics"], &[("POSTHASTE_KAFKA__KEEP_S", "60")]);
    assert_eq!(other.status.code(), Some(1), "{other:?}");
    let difference = "events: retention.ms is 604800000, the settings say 60000";
    assert!(String::from_utf8_lossy(&other.stdout).contains(difference), "{other:?}");
    let other = [("POSTHASTE_PARTITIONS", "3")];
    assert_eq!(setup.admin(&["topics"], &other).status.code(), Some(1));
    setup.refused(&other, "have 2 partitions and the settings say 3");

    setup.refused(&[], "made first, with `posthaste admin tables`");
    assert_eq!(setup.done(&["tables"]), "keyspace posthaste: the tables have version 1\n");
    assert_eq!(setup.done(&["tables"]), "keyspace posthaste: the tables have version 1\n", "again");
}
