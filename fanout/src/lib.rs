//! Pushes events to interested edges: consumes `events`, `user-events`, `receipts` and `signals`, knows which edge has
//! interest in which room or person, and hands each edge its part in batches that tell their place (I6). Holds no
//! truth: whatever it loses, an edge finds again in the log and in history.

pub mod config;
pub mod delivery;
pub mod density;
pub mod interest;
pub mod metrics;
pub mod worker;

pub use config::Config;
pub use metrics::Metrics;
pub use worker::{Deps, GROUP, Handle, TOPICS, Worker, new};
