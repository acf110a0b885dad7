//! The rim: the only place that reads the clock and takes randomness.

use std::time::{SystemTime, UNIX_EPOCH};

use schemas::CommandId;
use tokio::time::Instant;
use uuid::Uuid;

/// Time since the run began, in microseconds: what latencies are measured on.
#[derive(Clone, Copy, Debug)]
pub struct Timeline {
    began: Instant,
    began_unix_ms: i64,
}

impl Timeline {
    /// Begins now.
    pub fn begin() -> Self {
        Self { began: Instant::now(), began_unix_ms: unix_ms() }
    }

    /// Microseconds since the beginning.
    pub fn micros(self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Microseconds from the beginning to a Unix time in milliseconds, below 0 before it. As exact as the wall clock was
    /// left alone since.
    pub fn at_unix_ms(self, unix_ms: u64) -> i64 {
        i64::try_from(unix_ms).unwrap_or(i64::MAX).saturating_sub(self.began_unix_ms).saturating_mul(1000)
    }
}

/// Unix time in milliseconds.
#[expect(clippy::disallowed_methods, reason = "the rim of this binary: ids and tokens carry wall time")]
pub fn unix_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(0))
}

/// Random bytes.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Without randomness ids would collide and every verdict would be void: there is nothing to go on with.
    assert!(getrandom::fill(&mut bytes).is_ok(), "the operating system gives no randomness");
    bytes
}

/// A fresh UUIDv7.
pub fn uuid_v7() -> Uuid {
    schemas::ids::uuid_v7(unix_ms(), random())
}

/// A fresh id of a send or a command.
pub fn command_id() -> CommandId {
    CommandId(uuid_v7())
}

/// A random number below `bound`; 0 for 0.
pub fn below(bound: u64) -> u64 {
    u64::from_le_bytes(random()).checked_rem(bound).unwrap_or(0)
}
