//! Real engines for tests and trials: Kafka and Cassandra as child processes on loopback, from jars that
//! `scripts/jars.sh` has fetched. Each is ready when its constructor returns, keeps its data in a directory of its own, and
//! is gone when it is dropped or when this process ends, however that happens. It knows no client and no port of ours.

pub mod cassandra;
mod jars;
mod java;
pub mod kafka;
mod ports;
mod process;
