//! Clocks of processes: all go with the paused time, each may be wrong by an offset that jumps.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use schemas::{Clock, Timestamp};
use tokio::time::Instant;

/// When every schedule begins: 2026-01-01T00:00:00Z, ms since 1970.
const BEGINNING_MS: i64 = 1_767_225_600_000;

/// A process's clock.
#[derive(Clone)]
pub struct ProcessClock {
    start: Instant,
    offset_us: Arc<AtomicI64>,
}

impl ProcessClock {
    /// A clock that is right, begun with the schedule.
    pub fn new(start: Instant) -> Self {
        Self { start, offset_us: Arc::default() }
    }

    /// Lets the wall clock jump to this much off.
    pub fn jump(&self, offset: i64) {
        self.offset_us.store(offset.saturating_mul(1_000), Ordering::Relaxed);
    }
}

impl Clock for ProcessClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.micros() / 1_000)
    }

    fn micros(&self) -> i64 {
        let since = i64::try_from(self.elapsed().as_micros()).unwrap_or(i64::MAX);
        BEGINNING_MS * 1_000 + since + self.offset_us.load(Ordering::Relaxed)
    }

    /// Does not jump, as a monotonic clock does not.
    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}
