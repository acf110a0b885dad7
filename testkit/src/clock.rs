//! Time and randomness for tests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use schemas::{Clock, Entropy, Timestamp};
use tokio::time::Instant;

/// Time that goes with tokio's: real in most tests, by hand where a test pauses it.
pub struct TestClock {
    start: Instant,
    start_us: i64,
}

impl TestClock {
    /// A clock that shows the machine's time now.
    #[expect(clippy::disallowed_methods, reason = "a test has to begin at some time")]
    pub fn new() -> Self {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { start: Instant::now(), start_us: i64::try_from(since_1970.as_micros()).unwrap_or(0) }
    }
}

impl Default for TestClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.micros() / 1_000)
    }

    fn micros(&self) -> i64 {
        self.start_us.saturating_add(i64::try_from(self.start.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// Bytes of a fixed sequence: SplitMix64 (Steele, Lea, Flood 2014). No secret, the same in each run of a seed.
pub struct Seeded(AtomicU64);

impl Seeded {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }
}

impl Entropy for Seeded {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let mut mixed = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(mixed ^ (mixed >> 31)).to_be_bytes()[..chunk.len()]);
        }
    }
}
