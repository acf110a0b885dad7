//! The door: HTTP and WebSocket, tokens, limits, and the hub that passes events to local sockets. Publishes commands to
//! the log and waits for their outcomes; decides nothing about rooms and writes no events.

pub mod deps;
pub mod hub;
pub mod metrics;
pub mod socket;

pub use deps::Deps;
