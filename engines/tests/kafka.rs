//! Kafka starts, comes back from a kill on what it left, and leaves nothing behind.

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use engines::kafka::Kafka;
use engines::process::{LOOK_EVERY, now};

#[test]
fn a_node_starts_is_killed_and_comes_back_and_nothing_outlives_it() {
    let mut kafka = Kafka::start(1).unwrap();
    let bootstrap = kafka.bootstrap();
    let first = kafka.processes();
    TcpStream::connect(&bootstrap).unwrap();
    kafka.kill(0);
    TcpStream::connect(&bootstrap).unwrap_err();
    kafka.start_node(0).unwrap();
    TcpStream::connect(&bootstrap).unwrap();
    let second = kafka.processes();
    assert_ne!(first, second);
    drop(kafka);
    for process in first.into_iter().chain(second) {
        assert!(!PathBuf::from(format!("/proc/{process}")).exists(), "{process} lives on");
    }
}

#[test]
fn nodes_end_with_the_process_that_started_them_even_if_it_is_killed() {
    let mut engines = Command::new(env!("CARGO_BIN_EXE_engines"));
    let mut engines = engines.arg("kafka").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut bootstrap = String::new();
    BufReader::new(engines.stdout.take().unwrap()).read_line(&mut bootstrap).unwrap();
    TcpStream::connect(bootstrap.trim()).unwrap();
    engines.kill().unwrap();
    engines.wait().unwrap();
    let begin = now();
    while TcpStream::connect(bootstrap.trim()).is_ok() {
        assert!(begin.elapsed() < Duration::from_secs(10), "it lives on");
        thread::sleep(LOOK_EVERY);
    }
}
