//! Settings of the fanout role.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of the fanout role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// An edge that had nothing in a partition is told at least this often how far the partition has come, so that
    /// after a lost link it has little to ask about. The group's positions are committed at the same beat.
    pub advance_every_ms: u64,
    /// An edge that takes longer over a batch is taken for gone: the others wait for it meanwhile.
    pub deliver_timeout_ms: u64,
    /// Pause after an error of the log.
    pub retry_after_ms: u64,
    /// Registrations that may wait; more are answered `unavailable`. Each holds its keys, 16 bytes apiece.
    pub waiting_max: usize,
    /// Readings of the log for edges that have missed something, at the same time; more wait their turn.
    pub changed_max: usize,
    /// Rooms whose last seq is remembered, to see holes and doubles; about 80 bytes each.
    pub rooms_remembered_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            advance_every_ms: 500,
            deliver_timeout_ms: 5_000,
            retry_after_ms: 200,
            waiting_max: 4_096,
            changed_max: 4,
            rooms_remembered_max: 100_000,
        }
    }
}

impl Config {
    /// Refuses what could not work.
    ///
    /// # Errors
    /// The name of the first setting that makes no sense, and why.
    pub fn validate(&self) -> Result<(), String> {
        for (name, value) in [
            ("advance_every_ms", self.advance_every_ms),
            ("deliver_timeout_ms", self.deliver_timeout_ms),
            ("retry_after_ms", self.retry_after_ms),
            ("waiting_max", self.waiting_max as u64),
            ("changed_max", self.changed_max as u64),
            ("rooms_remembered_max", self.rooms_remembered_max as u64),
        ] {
            if value == 0 {
                return Err(format!("fanout.{name} must be above 0"));
            }
        }
        Ok(())
    }

    pub(crate) fn advance_every(&self) -> Duration {
        Duration::from_millis(self.advance_every_ms)
    }

    pub(crate) fn deliver_timeout(&self) -> Duration {
        Duration::from_millis(self.deliver_timeout_ms)
    }

    pub(crate) fn retry_after(&self) -> Duration {
        Duration::from_millis(self.retry_after_ms)
    }
}
