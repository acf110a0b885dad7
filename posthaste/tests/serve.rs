//! The server as a supervisor meets it: when it is ready, how it stops, what it refuses.

mod common;

use common::{Server, command};
use rustix::process::Signal;

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

#[test]
fn metrics_of_the_process_and_of_every_role_are_in_one_place() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let metrics = server.get("/metrics");
    for name in ["process_open_fds", "process_resident_memory_bytes", "process_cpu_seconds_total"] {
        assert!(metrics.contains(&format!("\n{name} ")), "{name}");
    }
    for area in ["log", "store", "ingest", "fanout", "archiver", "edge"] {
        assert!(metrics.contains(&format!("\nposthaste_{area}_")), "{area}");
    }
    for stage in ["appended", "decided", "committed", "fanned_out", "written", "acknowledged", "archived"] {
        assert!(metrics.contains(&format!("posthaste_stage_seconds_count{{stage=\"{stage}\"}}")), "{stage}");
    }
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
