//! Settings of the ingest role.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of the ingest role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Memory of loaded rooms, bytes, estimated; shared evenly by the partitions owned (I9). What is not archived yet
    /// stays in memory beyond it and is bounded by `unarchived_max_bytes`.
    pub rooms_max_bytes: usize,
    /// Events of a partition that the archive may lack before commands get `unavailable` (I3). Bounds the time of a
    /// take-over: about 3 µs per event.
    pub unarchived_max_events: u64,
    /// The same in bytes: the tail is held in memory after a take-over.
    pub unarchived_max_bytes: u64,
    /// Command ids kept of a person in a room; up to twice as many between two cuts. A retry of an older one costs a
    /// read of the store (I4).
    pub ids_kept: usize,
    /// Rooms of a partition read from the store at once.
    pub loads_max: usize,
    /// Wait for one answer of the store before the command is `unavailable`, milliseconds. All partitions of a round
    /// wait for each other, so that it must be well below the deadline of a command (10 s).
    pub load_timeout_ms: u64,
    /// Pause between looks at the archive's progress, milliseconds; shorter only if something waits for it.
    pub progress_interval_ms: u64,
    /// Advice with `unavailable`, milliseconds.
    pub retry_after_ms: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rooms_max_bytes: 256 * 1024 * 1024,
            unarchived_max_events: 200_000,
            unarchived_max_bytes: 128 * 1024 * 1024,
            ids_kept: 32,
            loads_max: 64,
            load_timeout_ms: 2_000,
            progress_interval_ms: 200,
            retry_after_ms: 500,
        }
    }
}

impl Config {
    /// Checks the settings before anything starts.
    ///
    /// # Errors
    /// The first setting that can't work, with the reason, for people.
    pub fn validate(&self) -> Result<(), String> {
        let positive = [
            ("unarchived_max_events", self.unarchived_max_events),
            ("unarchived_max_bytes", self.unarchived_max_bytes),
            ("ids_kept", self.ids_kept as u64),
            ("loads_max", self.loads_max as u64),
            ("load_timeout_ms", self.load_timeout_ms),
        ];
        match positive.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(format!("ingest.{name} must be at least 1")),
            None => Ok(()),
        }
    }

    pub(crate) fn load_timeout(&self) -> Duration {
        Duration::from_millis(self.load_timeout_ms)
    }

    pub(crate) fn progress_interval(&self) -> Duration {
        Duration::from_millis(self.progress_interval_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_a_bound_of_nothing_is_not() {
        assert_eq!(Config::default().validate(), Ok(()));
        let config = Config { loads_max: 0, ..Config::default() };
        assert_eq!(config.validate(), Err("ingest.loads_max must be at least 1".into()));
    }
}
