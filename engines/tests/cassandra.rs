//! Cassandra starts, comes back from a kill on what it left, and leaves nothing behind.

use std::net::TcpStream;
use std::path::PathBuf;

use engines::cassandra::{Cassandra, Options};

#[test]
fn a_node_starts_is_killed_and_comes_back_and_nothing_outlives_it() {
    let mut cassandra = Cassandra::start(Options::default()).unwrap();
    let address = cassandra.contact_points().remove(0);
    let first = cassandra.processes();
    TcpStream::connect(&address).unwrap();
    cassandra.kill(0);
    TcpStream::connect(&address).unwrap_err();
    cassandra.start_node(0).unwrap();
    TcpStream::connect(&address).unwrap();
    let second = cassandra.processes();
    assert_ne!(first, second);
    drop(cassandra);
    for process in first.into_iter().chain(second) {
        assert!(!PathBuf::from(format!("/proc/{process}")).exists(), "{process} lives on");
    }
}

#[test]
fn three_nodes_become_one_cluster() {
    let cassandra = Cassandra::start(Options { nodes: 3, ..Options::default() }).unwrap();
    for address in cassandra.contact_points() {
        TcpStream::connect(address).unwrap();
    }
}
