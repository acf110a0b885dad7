//! What a person sees while it runs: a bar on a terminal, a line every few seconds elsewhere. On stderr.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Where there is no terminal: a line so often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// The bar.
pub struct Progress {
    bar: ProgressBar,
    terminal: bool,
    last: Mutex<Instant>,
}

impl Progress {
    /// A bar with nothing on it.
    pub fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{prefix:14} [{bar:30}] {pos}/{len} {msg}") {
            bar.set_style(style);
        }
        Self { bar, terminal, last: Mutex::new(Instant::now()) }
    }

    /// Something of `total` steps begins.
    pub fn begin(&self, what: &'static str, total: usize) {
        self.bar.reset();
        self.bar.set_prefix(what);
        self.bar.set_message("");
        self.bar.set_length(total as u64);
    }

    /// One step of it is done.
    pub fn step(&self) {
        self.bar.inc(1);
        self.line(String::new);
    }

    /// It stands at `position`.
    pub fn at(&self, position: u64, message: impl Fn() -> String) {
        self.bar.set_position(position);
        if self.terminal {
            self.bar.set_message(message());
        }
        self.line(message);
    }

    fn line(&self, message: impl FnOnce() -> String) {
        let mut last = self.last.lock();
        if !self.terminal && last.elapsed() >= LINE_EVERY {
            *last = Instant::now();
            let (position, total) = (self.bar.position(), self.bar.length().unwrap_or_default());
            eprintln!("{}: {position}/{total} {}", self.bar.prefix(), message());
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
