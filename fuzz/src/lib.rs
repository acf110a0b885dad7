//! What must hold for whatever comes in from outside: one module for each kind of input, with a `check` that panics where
//! its laws are broken. The targets in `fuzz_targets` hand these what libFuzzer makes up (`make fuzz`), and a test hands
//! them everything that was found worth keeping (`corpus`).

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "to panic is how a broken law is told")]

pub mod bodies;
pub mod frames;
mod input;
pub mod logs;
pub mod memory;
pub mod records;
pub mod tokens;
#[path = "../../edge/tests/common/mod.rs"]
mod world;

/// Panics where one is broken.
pub type Laws = fn(&[u8]);

/// Every target: its name and its laws.
pub const TARGETS: [(&str, Laws); 5] = [
    ("frames", frames::check),
    ("bodies", bodies::check),
    ("tokens", tokens::check),
    ("records", records::check),
    ("logs", logs::check),
];
