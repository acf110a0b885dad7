//! The machine's clocks and randomness, for roles that run in this process: what `posthaste/src/telemetry.rs` hands them.

use std::time::{Duration, UNIX_EPOCH};

use schemas::{Clock, Entropy, Timestamp};
use tokio::time::Instant;

/// The machine's clocks.
pub struct SystemClock(Instant);

impl SystemClock {
    /// A clock whose `elapsed` starts now.
    pub fn new() -> Self {
        Self(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.micros() / 1_000)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the Clock that roles are handed")]
    fn micros(&self) -> i64 {
        let since_1970 = std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since_1970.as_micros()).unwrap_or(i64::MAX)
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// The machine's randomness.
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        if let Err(error) = getrandom::fill(bytes) {
            eprintln!("measure: the machine gives no randomness: {error}");
            std::process::abort();
        }
    }
}
