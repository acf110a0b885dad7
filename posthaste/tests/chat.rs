//! Two people chat in their terminals while terminals and server are killed: all is there, once.

#![expect(clippy::unwrap_used, reason = "what a test can not do without ends it")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::Server;
use rustix::process::{Pid, Signal, kill_process};

/// A terminal as a program has it: lines in, lines out.
struct Chat {
    process: Child,
    input: Option<ChildStdin>,
    said: Arc<Mutex<Vec<String>>>,
    noted: Arc<Mutex<Vec<String>>>,
}

fn collect(from: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&lines);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines() {
            into.lock().unwrap().push(line.unwrap());
        }
    });
    lines
}

impl Chat {
    fn start(server: SocketAddr, name: &str, dir: &Path) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_posthaste"))
            .args(["chat", "--server", &format!("http://{server}"), "--room", "@tea", "--user", name, "--data"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (said, noted) = (collect(process.stdout.take().unwrap()), collect(process.stderr.take().unwrap()));
        Self { input: process.stdin.take(), process, said, noted }
    }

    fn first_time(server: SocketAddr, name: &str, dir: &Path) -> Self {
        let mut chat = Self::start(server, name, dir);
        chat.types("correct horse battery");
        chat
    }

    fn types(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// What was said, without the times.
    fn heard(&self) -> Vec<String> {
        self.said.lock().unwrap().iter().map(|line| line.get(6..).unwrap_or_default().to_owned()).collect()
    }

    fn hears(&self, wanted: &[&str]) {
        wait(|| self.heard().len() >= wanted.len(), || format!("{:?} {:?}", self.heard(), self.noted));
        assert_eq!(self.heard(), wanted, "{:?}", self.noted.lock().unwrap());
    }

    fn is_told(&self, words: &str) {
        let told = || self.noted.lock().unwrap().iter().any(|line| line.contains(words));
        wait(told, || format!("{words:?} is not in {:?}", self.noted));
    }

    fn kill(mut self) {
        kill_process(Pid::from_child(&self.process), Signal::KILL).unwrap();
        self.process.wait().unwrap();
    }

    fn leaves(mut self) {
        self.input = None;
        assert_eq!(self.process.wait().unwrap().code(), Some(0), "{:?}", self.noted.lock().unwrap());
    }
}

impl Drop for Chat {
    fn drop(&mut self) {
        // Whatever a failed test leaves.
        let _ = self.process.kill();
    }
}

fn wait(holds: impl Fn() -> bool, what: impl Fn() -> String) {
    for _ in 0..4_000 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{}", what());
}

#[test]
fn who_is_killed_gets_what_they_missed_once_and_what_was_typed_without_a_server_arrives_once() {
    let dir = tempfile::tempdir().unwrap();
    let (data, ann_dir, bob_dir) = (dir.path().join("data"), dir.path().join("ann"), dir.path().join("bob"));
    let server = Server::start(&data);
    let address = server.address;
    let mut ann = Chat::first_time(address, "ann", &ann_dir);
    ann.is_told("connected");
    let mut bob = Chat::first_time(address, "bob", &bob_dir);
    bob.is_told("connected");
    ann.types("hello bob");
    bob.hears(&["ann: hello bob"]);
    bob.types("hello ann");
    ann.hears(&["ann: hello bob", "bob: hello ann"]);
    bob.hears(&["ann: hello bob", "bob: hello ann"]);

    bob.kill();
    ann.types("are you there?");
    ann.types("bob?");
    ann.hears(&["ann: hello bob", "bob: hello ann", "ann: are you there?", "ann: bob?"]);
    // No password: the sign-in is still good.
    let bob = Chat::start(address, "bob", &bob_dir);
    bob.hears(&["ann: are you there?", "ann: bob?"]);

    server.signal(Signal::KILL);
    server.end();
    ann.is_told("the server is away");
    ann.types("typed without a server");
    ann.is_told("kept until the server is back");
    ann.kill();
    let server = Server::start_with(&data, &[("POSTHASTE_LISTEN", &address.to_string())]);
    let ann = Chat::start(address, "ann", &ann_dir);
    ann.hears(&["ann: typed without a server"]);
    bob.hears(&["ann: are you there?", "ann: bob?", "ann: typed without a server"]);

    ann.leaves();
    bob.leaves();
    drop(server);
}

#[test]
fn a_wrong_password_and_a_wrong_address_are_said() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(&dir.path().join("data"));
    let ann = Chat::first_time(server.address, "ann", &dir.path().join("ann"));
    ann.is_told("connected");
    let mut other = Chat::start(server.address, "ann", &dir.path().join("other"));
    other.types("not her password");
    other.is_told("not signed in");
    assert_eq!(other.process.wait().unwrap().code(), Some(1));
    let wrong = Command::new(env!("CARGO_BIN_EXE_posthaste"))
        .args(["chat", "--server", "127.0.0.1", "--room", "@tea", "--user", "ann", "--data"])
        .arg(dir.path().join("nowhere"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(wrong.status.code(), Some(2), "{}", String::from_utf8_lossy(&wrong.stderr));
}
