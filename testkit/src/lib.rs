//! Whole clusters in a test, clocks and randomness for them, a client that speaks the public protocol. For tests only;
//! nothing of it is in what we ship.

pub mod client;
pub mod clock;
pub mod cluster;
pub mod faulty;
pub mod network;
pub mod proxy;
pub mod switch;
