//! The door: HTTP and WebSocket, tokens, limits, and the hub that passes events to local sockets. Publishes commands to
//! the log and waits for their outcomes; decides nothing about rooms and writes no events.

mod accounts;
pub mod app;
pub mod asyncapi;
pub mod auth;
pub mod blocks;
pub mod config;
pub mod deps;
pub mod error;
mod extract;
mod forms;
pub mod guard;
pub mod hub;
pub mod ids;
pub mod limits;
pub mod metrics;
pub mod openapi;
mod origin;
mod proxies;
mod reads;
pub mod routes;
pub mod server;
pub mod socket;
#[cfg(test)]
mod testing;
pub mod tls;
mod views;

pub use app::App;
pub use config::Config;
pub use deps::Deps;
pub use extract::Peer;
pub use limits::Limits;
pub use metrics::Metrics;
