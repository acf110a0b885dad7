//! What is said outside: the log's form, and the real clock and randomness that roles are handed. The only place that
//! asks the operating system for either.

use std::io::IsTerminal;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use schemas::{Clock, Entropy, Timestamp};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Settings};

/// Starts logging to standard error.
pub fn start(settings: &Settings) {
    let filter = EnvFilter::new(&settings.log);
    let terminal = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match settings.log_format {
        LogFormat::Text => lines.with_ansi(terminal).init(),
        LogFormat::Auto if terminal => lines.init(),
        LogFormat::Auto | LogFormat::Json => lines.json().flatten_event(true).init(),
    }
}

/// The machine's clocks.
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose `elapsed` starts now.
    #[expect(clippy::disallowed_methods, reason = "this is the Clock that everything else asks")]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }

    #[expect(clippy::disallowed_methods, reason = "this is the Clock that everything else asks")]
    fn since_1970() -> Duration {
        // A clock set before 1970 reads as 1970: nothing that we store is older.
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp(i64::try_from(Self::since_1970().as_millis()).unwrap_or(i64::MAX))
    }

    fn micros(&self) -> i64 {
        i64::try_from(Self::since_1970().as_micros()).unwrap_or(i64::MAX)
    }

    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// The operating system's randomness.
pub struct OsEntropy;

impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        if let Err(error) = getrandom::fill(bytes) {
            // Going on would hand out secrets that can be guessed. Nothing acknowledged is lost by ending here.
            tracing::error!("the operating system gives no randomness: {error}");
            std::process::abort();
        }
    }
}
