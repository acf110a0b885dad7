//! Judges recorded histories: what clients sent, what they were told, what reached each socket, and what history holds
//! in the end, against the promises of protocol.md ("What a socket is promised"). Pure: no I/O, no clock, no
//! randomness, so that a load test, a simulator and a fault test share one judge. It trusts nothing that it judges:
//! of the shared forms it takes ids and names only.
//!
//! Feed every [`Step`] to [`Checker::observe`] in the order in which it happened at its client, then ask
//! [`Checker::judge`]. Memory: one entry for each event and send, one small record for each client and room; what was
//! delivered is checked as it comes and not kept, so millions of deliveries are cheap.

mod breach;
mod checker;
pub mod frame;
mod judge;
mod reads;
mod step;
mod stream;

pub use breach::{Breach, Kind, Verdict};
pub use checker::Checker;
pub use step::{AskId, ClientId, Digest, Event, Fact, Listed, Reader, Step, digest};
