//! The archiver's settings. Owns their defaults and what they may be; reads no file.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The archiver's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How long consumed records wait for others before one batch of them is written. Nobody waits for it on the
    /// hot path: longer means fewer, larger writes, and a longer tail to read again after a crash.
    pub flush_interval_ms: u64,
    /// So many waiting events are written at once.
    pub flush_max_events: usize,
    /// So many waiting bytes are written at once.
    pub flush_max_bytes: usize,
    /// Unarchived bytes beyond which nothing more is consumed (I9); ingest's own bound on the unarchived tail then
    /// makes commands unavailable.
    pub unarchived_max_bytes: usize,
    /// How long a question for history may wait, for its position and for the store together.
    pub wait_max_ms: u64,
    /// Reads of the store at a time on behalf of history; the others wait, at most `wait_max_ms`.
    pub store_reads_max: usize,
    /// Bytes of archived events that are kept for readers.
    pub page_cache_max_bytes: u64,
    /// How long they are kept after they were read or written: what is read now is mostly what was said just now.
    pub page_cache_window_s: u64,
    /// Bytes of rooms, standings and newest events that are kept with them; unarchived ones don't count.
    pub room_cache_max_bytes: usize,
    /// How often the group's offsets are committed (a hint, I5) and the lag is measured.
    pub hint_interval_ms: u64,
    /// How long the last write may take when the process ends; what is not written is read again from the log.
    pub drain_max_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            flush_interval_ms: 100,
            flush_max_events: 5_000,
            flush_max_bytes: 4 * 1024 * 1024,
            unarchived_max_bytes: 64 * 1024 * 1024,
            wait_max_ms: 5_000,
            store_reads_max: 64,
            page_cache_max_bytes: 256 * 1024 * 1024,
            page_cache_window_s: 60 * 60,
            room_cache_max_bytes: 64 * 1024 * 1024,
            hint_interval_ms: 1_000,
            drain_max_ms: 10_000,
        }
    }
}

impl Config {
    /// What is wrong with these settings, for people.
    ///
    /// # Errors
    /// The first setting that can't work.
    pub fn validate(&self) -> Result<(), String> {
        let not_zero = [
            ("flush_interval_ms", self.flush_interval_ms),
            ("unarchived_max_bytes", self.unarchived_max_bytes as u64),
            ("wait_max_ms", self.wait_max_ms),
            ("store_reads_max", self.store_reads_max as u64),
            ("hint_interval_ms", self.hint_interval_ms),
        ];
        for (name, value) in not_zero {
            if value == 0 {
                return Err(format!("{name} must not be 0"));
            }
        }
        if self.flush_max_bytes > self.unarchived_max_bytes {
            return Err("flush_max_bytes must not be larger than unarchived_max_bytes".to_owned());
        }
        Ok(())
    }

    pub(crate) fn flush_interval(&self) -> Duration {
        Duration::from_millis(self.flush_interval_ms)
    }

    pub(crate) fn wait_max(&self) -> Duration {
        Duration::from_millis(self.wait_max_ms)
    }

    pub(crate) fn page_cache_window(&self) -> Duration {
        Duration::from_secs(self.page_cache_window_s)
    }

    pub(crate) fn hint_interval(&self) -> Duration {
        Duration::from_millis(self.hint_interval_ms)
    }

    pub(crate) fn drain_max(&self) -> Duration {
        Duration::from_millis(self.drain_max_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_a_zero_interval_is_not() {
        assert_eq!(Config::default().validate(), Ok(()));
        assert!(Config { flush_interval_ms: 0, ..Config::default() }.validate().is_err());
    }
}
