//! Settings of links between roles.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Settings of links between roles.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Both sides say this often that they are there.
    pub heartbeat_ms: u64,
    /// A link on which nothing is heard for so long is lost. More than two heartbeats.
    pub silence_ms: u64,
    /// How long name, connection, TLS and hello may take together.
    pub connect_ms: u64,
    /// An edge that has not taken a batch after so long is cut off, as is a peer that does not read.
    pub take_ms: u64,
    /// How long a question may wait for its answer. Beyond the archiver's own `wait_max_ms`, so that it says itself when
    /// it can't.
    pub ask_ms: u64,
    /// Questions in flight on a link; beyond it they are unavailable at once.
    pub asks_max: usize,
    /// Bytes of batches and answers under way on a link; more wait.
    pub in_flight_max_bytes: usize,
    /// Links that one fanout or archiver accepts; more are refused. An edge has one with each.
    pub links_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            heartbeat_ms: 500,
            silence_ms: 2_000,
            connect_ms: 2_000,
            take_ms: 5_000,
            ask_ms: 6_000,
            asks_max: 256,
            in_flight_max_bytes: 8 * 1024 * 1024,
            links_max: 1_024,
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
            ("heartbeat_ms", self.heartbeat_ms),
            ("connect_ms", self.connect_ms),
            ("take_ms", self.take_ms),
            ("ask_ms", self.ask_ms),
            ("asks_max", self.asks_max as u64),
            ("in_flight_max_bytes", self.in_flight_max_bytes as u64),
            ("links_max", self.links_max as u64),
        ] {
            if value == 0 {
                return Err(format!("link.{name} must be above 0"));
            }
        }
        if self.silence_ms <= 2 * self.heartbeat_ms {
            return Err("link.silence_ms must be above twice link.heartbeat_ms".to_owned());
        }
        if u32::try_from(self.in_flight_max_bytes).is_err() {
            return Err("link.in_flight_max_bytes must be below 4 GiB".to_owned());
        }
        Ok(())
    }

    pub(crate) fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }

    pub(crate) fn silence(&self) -> Duration {
        Duration::from_millis(self.silence_ms)
    }

    pub(crate) fn connect(&self) -> Duration {
        Duration::from_millis(self.connect_ms)
    }

    pub(crate) fn take(&self) -> Duration {
        Duration::from_millis(self.take_ms)
    }

    pub(crate) fn ask(&self) -> Duration {
        Duration::from_millis(self.ask_ms)
    }
}
