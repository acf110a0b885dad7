//! The server as a supervisor meets it: when it is ready, how it stops, what it refuses.

mod common;

use std::time::Duration;

use common::{Server, command};
use rustix::process::Signal;
use serde_json::json;
use testkit::client::{Api, new_id};

#[test]
fn a_server_says_that_it_is_ready_and_ends_with_0_when_told_to() {
    let dir = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let server = Server::start(&dir.path().join("data"));
        assert!(server.get("/healthz").starts_with("HTTP/1.1 200"));
        assert!(server.get("/readyz").starts_with("HTTP/1.1 200"));
        server.signal(signal);
        assert_eq!(server.end().code(), Some(0));
    }
}

#[tokio::test]
async fn metrics_of_the_process_and_of_every_role_are_in_one_place() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let api = Api::new(server.address);
    let (ada, bob) = (api.sign_up("ada").await.unwrap(), api.sign_up("bob").await.unwrap());
    let room = ada.create_room(json!({"name": "Room"}), &[&bob]).await.unwrap();
    let (mut wire, _) = bob.connect(json!({})).await.unwrap();
    let id = wire.send_message(&room, "over a socket").await.unwrap();
    assert_eq!(wire.first("accepted").await.unwrap()["client_msg_id"], *id);
    ada.post(&room, "over REST").await.unwrap();
    assert_eq!(wire.first("message").await.unwrap()["content"]["body"], "over REST");
    // Sent again, and refused: such things are counted as well.
    wire.resend_message(&room, &id, "again").await.unwrap();
    assert_eq!(wire.first("accepted").await.unwrap()["duplicate"], true);
    let eve = api.sign_up("eve").await.unwrap();
    let message = json!({"client_msg_id": new_id(), "content": {"type": "text/plain", "body": "let me in"}});
    eve.api.post(&format!("/v1/rooms/{room}/messages"), message).await.unwrap().refused(404, "not_found").unwrap();

    for stage in ["appended", "decided", "committed", "fanned_out", "written", "acknowledged", "archived"] {
        // The archive is written a moment later.
        until(|| server.metric("posthaste_stage_seconds_count", &format!("stage=\"{stage}\"")) >= Some(1.0), stage)
            .await;
    }
    let lags = [
        ("ingest", vec!["commands"]),
        ("fanout", vec!["events", "user-events", "receipts", "signals"]),
        ("archiver", vec!["events", "user-events", "receipts"]),
    ];
    for (group, topics) in lags {
        for topic in topics {
            let labels = format!("group=\"{group}\",topic=\"{topic}\"");
            until(|| server.metric("posthaste_log_lag_records", &labels) == Some(0.0), &labels).await;
        }
    }
    for name in [
        "process_open_fds",
        "process_resident_memory_bytes",
        "process_cpu_seconds_total",
        // Queues.
        "posthaste_log_queue_requests",
        "posthaste_store_queued_writes",
        "posthaste_archiver_unarchived_events",
        "posthaste_ingest_unarchived_events",
        "posthaste_fanout_waiting_requests",
        "posthaste_edge_hashing_depth",
        // People.
        "posthaste_edge_connections",
        "posthaste_edge_sockets",
        // What must not happen.
        "posthaste_fanout_holes_total",
        "posthaste_fanout_doubles_total",
        "posthaste_archiver_holes_total",
        "posthaste_archiver_doubles_total",
    ] {
        assert!(server.metric(name, "").is_some(), "{name}");
    }
    assert_eq!(server.metric("posthaste_edge_sockets", ""), Some(1.0));
    assert_eq!(server.metric("posthaste_ingest_dedup_hits_total", ""), Some(1.0));
    assert_eq!(server.metric("posthaste_ingest_rejections_total", "code=\"not_a_member\""), Some(1.0));
    for breach in ["fanout_holes", "fanout_doubles", "archiver_holes", "archiver_doubles"] {
        assert_eq!(server.metric(&format!("posthaste_{breach}_total"), ""), Some(0.0), "{breach}");
    }
}

/// Waits for something that comes a moment later.
async fn until(is_so: impl Fn() -> bool, what: &str) {
    let so = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), so).await.unwrap_or_else(|_| panic!("{what}"));
}

#[test]
fn a_directory_is_its_owners_alone_and_serves_one_process_at_a_time() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("new").join("data");
    let first = Server::start(&data);
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700);
    let second = command(&data).output().unwrap();
    let message = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{message}");
    assert!(message.contains("in use by another process"), "{message}");
    assert!(first.get("/readyz").starts_with("HTTP/1.1 200"), "the first one goes on");
}

#[test]
fn a_server_killed_starts_again_on_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.signal(Signal::KILL);
    server.end();
    let server = Server::start(dir.path());
    assert!(server.get("/readyz").starts_with("HTTP/1.1 200"));
}

#[test]
fn the_number_of_partitions_can_not_change() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    server.signal(Signal::TERM);
    server.end();
    let refused = command(dir.path()).env("POSTHASTE_PARTITIONS", "5").output().unwrap();
    let message = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{message}");
    assert!(message.contains("partitions"), "{message}");
}
