//! Real engines for tests and trials: Kafka and Cassandra as child processes on loopback, from jars that
//! `scripts/jars.sh` has fetched. Each is ready when its constructor returns, and is gone when it is dropped or when this
//! process ends, however that happens. It knows no client and no port of ours; the binary alone does, which starts whole
//! clusters (`make cluster`).

pub mod cassandra;
mod home;
mod jars;
mod java;
pub mod kafka;
pub mod ports;
pub mod process;
pub mod supervisor;
