//! `posthaste admin verify` on archives that a real server has written: a clean one, beside the server and after it, and
//! ones in which a row was changed behind its back.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use common::Server;
use rusqlite::{Connection, params};
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;
use testkit::client::Api;

const MESSAGES: u64 = 12;

/// Of the messages, and of the room's beginning: it was created, and one member each was added.
const EVENTS: u64 = MESSAGES + 3;

fn verify(data: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_posthaste")).args(["admin", "verify", "--data"]).arg(data).output().unwrap()
}

/// A directory with one room, and its id; `beside` is done while the server still runs.
async fn archive(beside: impl AsyncFnOnce(&Path)) -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let api = Api::new(server.address);
    let (ada, bob) = (api.sign_up("ada").await.unwrap(), api.sign_up("bob").await.unwrap());
    let room = ada.create_room(json!({"name": "Room"}), &[&bob]).await.unwrap();
    for number in 1..=MESSAGES {
        ada.post(&room, &format!("message {number}")).await.unwrap();
    }
    beside(dir.path()).await;
    server.signal(Signal::TERM);
    assert_eq!(server.end().code(), Some(0));
    (dir, room)
}

#[tokio::test]
async fn a_clean_archive_passes_beside_its_server_and_after_it_and_stays_as_it_was() {
    let (dir, _) = archive(async |data| {
        // What the archive has by then is clean, and in a moment it has everything.
        let all = format!("clean: 1 rooms, {EVENTS} events\n");
        let seen = async {
            loop {
                let output = verify(data);
                assert_eq!(output.status.code(), Some(0), "{output:?}");
                if output.stdout == all.as_bytes() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), seen).await.unwrap();
    })
    .await;
    let before = std::fs::read(dir.path().join("store.db")).unwrap();
    let output = verify(dir.path());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("clean: 1 rooms, {EVENTS} events\n"));
    assert_eq!(std::fs::read(dir.path().join("store.db")).unwrap(), before);
}

#[tokio::test]
async fn what_was_changed_behind_the_servers_back_is_found_and_named() {
    let (dir, room) = archive(async |_| {}).await;
    let body = |sql: &Connection, seq: i64| -> Vec<u8> {
        sql.query_row("SELECT body FROM events WHERE seq = ?1", [seq], |row| row.get(0)).unwrap()
    };
    let set_body = |sql: &Connection, seq: i64, body: &[u8]| {
        sql.execute("UPDATE events SET body = ?2 WHERE seq = ?1", params![seq, body]).unwrap();
    };
    let run = |statement: &'static str| move |sql: &Connection| sql.execute_batch(statement).unwrap();
    let at = |seq: u64, what: &str| format!("room {room} seq {seq}: {what}");
    let whole = |what: &str| format!("room {room}: {what}");

    type Change = Box<dyn Fn(&Connection)>;
    let changes: Vec<(&str, Change, Vec<String>)> = vec![
        (
            "a flipped byte of a text",
            Box::new(move |sql| {
                let mut bytes = body(sql, 7);
                let text = bytes.windows(8).position(|part| part == b"message ").unwrap();
                bytes[text] ^= 1;
                set_body(sql, 7, &bytes);
            }),
            vec![at(7, "expected the hash ")],
        ),
        (
            "a body that is cut short",
            Box::new(move |sql| set_body(sql, 7, &body(sql, 7)[..40])),
            vec![at(7, "expected an event, found what can't be read")],
        ),
        ("a deleted row", Box::new(run("DELETE FROM events WHERE seq = 7")), vec![at(8, "expected seq 7 here")]),
        (
            "the last row deleted",
            Box::new(run("DELETE FROM events WHERE seq = 15")),
            vec![whole("its row says that its head is 15, its events end with 14")],
        ),
        (
            "two rows swapped",
            Box::new(move |sql| {
                let (one, other) = (body(sql, 7), body(sql, 8));
                set_body(sql, 7, &other);
                set_body(sql, 8, &one);
            }),
            vec![at(7, "expected this event, found seq 8"), at(8, "expected this event, found seq 7")],
        ),
        (
            "a command that is forgotten",
            Box::new(run("DELETE FROM commands WHERE seq = 7")),
            vec![at(7, "its command ")],
        ),
        (
            "a command that never was",
            Box::new(run(
                "INSERT INTO commands SELECT room, user, zeroblob(16), seq, event, at FROM commands WHERE seq = 7",
            )),
            vec![whole("expected 13 commands in the index, found 14")],
        ),
        (
            "a standing that is forgotten",
            Box::new(run("DELETE FROM members WHERE user = (SELECT max(user) FROM members)")),
            vec![whole("the standing of ")],
        ),
        (
            "a room without a row",
            Box::new(run("DELETE FROM rooms")),
            vec![whole("expected a row of a room with head 15, found none")],
        ),
        (
            "an archive ahead of its log",
            Box::new(run("UPDATE progress SET offset = 1000000 WHERE topic = 'events'
                AND partition = (SELECT min(partition) FROM progress WHERE topic = 'events')")),
            vec!["the archive of events/".to_owned()],
        ),
    ];
    for (what, change, breaches) in changes {
        let copy = tempfile::tempdir().unwrap();
        for name in ["log.db", "store.db"] {
            std::fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
        }
        assert_eq!(verify(copy.path()).status.code(), Some(0));
        change(&Connection::open(copy.path().join("store.db")).unwrap());
        let output = verify(copy.path());
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(1), "{what}: {output:?}");
        let lines: Vec<&str> = said.lines().collect();
        let (verdict, found) = lines.split_last().unwrap();
        assert_eq!(found.len(), breaches.len(), "{what}: {said}");
        for (found, expected) in found.iter().zip(&breaches) {
            assert!(found.starts_with(expected), "{what}: {found:?} in place of {expected:?}");
        }
        assert!(verdict.starts_with(&format!("broken: {} breaches in ", breaches.len())), "{what}: {verdict}");
    }
}

#[test]
fn what_is_no_archive_can_not_be_judged() {
    let dir = tempfile::tempdir().unwrap();
    for data in [dir.path().to_owned(), dir.path().join("nowhere")] {
        let output = verify(&data);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("no archive can be read in "), "{output:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was made");
}
