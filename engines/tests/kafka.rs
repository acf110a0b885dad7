//! Kafka starts, comes back from a kill on what it left, and leaves nothing behind.

use std::net::TcpStream;
use std::path::PathBuf;

use engines::kafka::Kafka;

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
