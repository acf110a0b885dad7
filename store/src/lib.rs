//! The store port: the rows that people read, one trait per aggregate, and the engines behind them (memory,
//! sqlite, cassandra; their files have the names of the aggregates). Everything above this crate is the same on every engine.
//!
//! # Laws (each is a test of the contract suite, run on every engine)
//!
//! 1. **Durable.** What returned `Ok` survives a crash of process and machine.
//! 2. **Idempotent and versioned (I5).** Archiving the same rows again, in any order, with gaps, or after newer ones
//!    changes nothing that is newer. Receipts merge by maximum.
//! 3. **Progress is written after, or together with, the rows that it covers.** It never goes back by itself. Where
//!    something made it go back all the same, a batch that begins above it is refused: progress covers no hole.
//! 4. **Unique.** Of two that claim a username, an e-mail address or a handle one wins; the same claimant may repeat.
//! 5. **Conditional.** Of two rotations of one refresh token one wins; the other is told what happened.
//! 6. **Reads see writes** that returned before them.

pub mod accounts;
pub mod archive;
pub mod cassandra;
pub mod devices;
pub mod keys;
pub mod memory;
pub mod rooms;
pub mod shut_outs;
pub mod sqlite;
pub mod stored;

/// What can go wrong, as far as a caller acts on it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A read failed, or a write that may or may not have happened: try again under the same ids.
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    /// The store holds less than the writer had archived: it has come back without its newest rows. To be archived again
    /// from its progress on (I5).
    #[error("the store has lost what was archived")]
    Behind,
    /// A fault that no retry mends: a row that does not parse, a directory of a newer version.
    #[error("the store is broken: {0}")]
    Broken(String),
}

/// Everything that a store is.
pub trait Store:
    accounts::Accounts + devices::Devices + keys::Keys + rooms::Rooms + archive::Archive + shut_outs::ShutOuts
{
}
impl<T> Store for T where
    T: accounts::Accounts + devices::Devices + keys::Keys + rooms::Rooms + archive::Archive + shut_outs::ShutOuts
{
}

/// A name as it is compared: without regard to case. The engines fold before they store, so that all agree on it.
fn fold_case(name: &str) -> String {
    name.to_lowercase()
}
