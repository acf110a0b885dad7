//! How long the embedded log is kept: what every reader has finished with and what is old goes, a little at a time, for
//! otherwise `log.db` would grow for ever. (Kafka has a retention of its own.) What it keeps is a window behind the
//! readers, never what one of them may still ask for. How old something is its record says, so that a restart changes
//! nothing; a clock that is set forward shortens the window, and loses nothing that is needed.
//!
//! The file does not shrink, and need not: SQLite puts the pages of deleted rows on its free list and writes the next
//! records there, so that the file ends at the size of what is kept (a test below). `auto_vacuum` would only move pages
//! about, on the one thread that sends wait for.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounter, IntGaugeVec, Opts, Registry};
use schemas::dead_letter::DeadLetter;
use schemas::outcome::Outcome;
use schemas::receipt::Receipt;
use schemas::user_event::UserEvent;
use schemas::{Clock, Event, Offset, Partition, Record, Timestamp, Topic};
use serde::{Deserialize, Serialize};
use store::Store;
use stream::{Log, Placed};

use crate::readers;

/// Records that one call trims at most: deleting them shares the writer with the sends of that moment.
const STEP_RECORDS: u64 = 10_000;
/// How much is read to learn how old a place is: one record, as a rule, tells.
const PROBE_BYTES: usize = 4 * 1024;

/// What is kept of the embedded log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Pause between two looks at what may go, milliseconds. Each costs a few reads of memory and of the store, and
    /// one small commit for each partition in which something goes.
    pub interval_ms: u64,
    /// How long records are kept that nobody reads any more, seconds: an edge that was cut off learns from them which
    /// rooms it has missed, and a copy of `store.db` that was made before one of `log.db` fits it as long as the
    /// copying took less.
    pub keep_s: u64,
    /// How many of these are kept of one partition of a topic at most, however young: bounds the disk under load. A record takes about 400 bytes, so some 5 GB with four partitions.
    pub keep_max_records: u64,
    /// How long dead letters are kept, seconds. Nobody consumes them, people look at them; they hold what was said,
    /// so not for ever: a week, in which somebody should have seen them.
    pub dead_letters_keep_s: u64,
    /// How many dead letters of a partition are kept at most: one fault can make many.
    pub dead_letters_max_records: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            interval_ms: 10_000,
            keep_s: 60 * 60,
            keep_max_records: 1_000_000,
            dead_letters_keep_s: 7 * 24 * 60 * 60,
            dead_letters_max_records: 10_000,
        }
    }
}

impl Config {
    /// What is wrong with these settings, for people.
    pub fn validate(&self) -> Result<(), String> {
        let positive = [
            ("interval_ms", self.interval_ms),
            ("keep_max_records", self.keep_max_records),
            ("dead_letters_max_records", self.dead_letters_max_records),
        ];
        match positive.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(format!("{name} must be at least 1")),
            None => Ok(()),
        }
    }
}

/// What retention shows of itself.
pub struct Metrics {
    trimmed: IntCounter,
    kept: IntGaugeVec,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let trimmed = IntCounter::new("posthaste_log_trimmed_records_total", "Records that retention has let go of.")?;
        let kept = IntGaugeVec::new(
            Opts::new("posthaste_log_kept_records", "Records in the log at the last look, by topic."),
            &["topic"],
        )?;
        registry.register(Box::new(trimmed.clone()))?;
        registry.register(Box::new(kept.clone()))?;
        Ok(Self { trimmed, kept })
    }
}

/// One partition of a topic at one moment.
#[derive(Clone, Copy, Debug)]
struct Standing {
    /// First offset kept.
    start: Offset,
    /// Position after the last record.
    end: Offset,
    /// The smallest position that a reader may go on from.
    needed: Offset,
    /// Everything before is old.
    aged: Offset,
}

/// Up to where a partition is to be trimmed now: what is needed stays, of the rest what is young and not too much.
fn trim_to(standing: Standing, keep_max_records: u64) -> Option<Offset> {
    let Standing { start, end, needed, aged } = standing;
    let before = aged.0.max(end.0.saturating_sub(keep_max_records)).min(needed.0).min(end.0);
    (before > start.0).then(|| Offset(before.min(start.0 + STEP_RECORDS)))
}

/// When what is in a record happened; `None` where it can't be read.
fn time_of(topic: Topic, value: &[u8]) -> Option<Timestamp> {
    match topic {
        Topic::Events if Outcome::is(value) => {
            Outcome::decode(value).map(|outcome| Timestamp(outcome.received_us / 1_000)).ok()
        }
        Topic::Events => Event::decode(value).map(|event| event.at).ok(),
        Topic::UserEvents => UserEvent::decode(value).map(|event| event.at).ok(),
        Topic::Receipts => Receipt::decode(value).map(|receipt| receipt.at).ok(),
        Topic::DeadLetters => DeadLetter::decode(value).map(|letter| letter.at).ok(),
        Topic::Commands | Topic::Signals | Topic::Cluster => None,
    }
}

/// The duty of trimming the log.
pub struct Retention {
    log: Arc<dyn Log>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    config: Config,
    metrics: Metrics,
}

impl Retention {
    /// A duty that has not seen anything yet; drive [`Retention::run`].
    pub fn new(
        log: Arc<dyn Log>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        config: Config,
        metrics: Metrics,
    ) -> Self {
        Self { log, store, clock, config, metrics }
    }

    /// Looks and trims again and again. Never ends: what fails is tried at the next look, and until then more is kept.
    pub async fn run(self) {
        loop {
            self.look().await;
            tokio::time::sleep(Duration::from_millis(self.config.interval_ms)).await;
        }
    }

    /// Trims every partition as far as it may go now.
    async fn look(&self) {
        for topic in Topic::ALL.into_iter().filter(|topic| topic.is_durable()) {
            let mut kept = 0;
            for partition in (0..self.log.partitions()).map(Partition) {
                match self.trim(topic, partition).await {
                    Ok(left) => kept += left,
                    Err(error) => tracing::warn!(%topic, %partition, %error, "the log is not trimmed for now"),
                }
            }
            let gauge = self.metrics.kept.with_label_values(&[topic.name()]);
            gauge.set(i64::try_from(kept).unwrap_or(i64::MAX));
        }
    }

    /// Trims one partition; the number of records that are left.
    async fn trim(&self, topic: Topic, partition: Partition) -> Result<u64, Error> {
        let end = self.log.end(topic, partition).await?;
        let mut start = self.log.start(topic, partition).await?;
        let (needed, keep_s, keep_max_records) = match topic {
            Topic::DeadLetters => (end, self.config.dead_letters_keep_s, self.config.dead_letters_max_records),
            _ => (self.needed(topic, partition, start).await?, self.config.keep_s, self.config.keep_max_records),
        };
        loop {
            let before = Offset(needed.min(end).0.min(start.0 + STEP_RECORDS));
            let aged = self.aged(topic, partition, start..before, Duration::from_secs(keep_s)).await?;
            let Some(before) = trim_to(Standing { start, end, needed, aged }, keep_max_records) else {
                return Ok(end.0 - start.0);
            };
            self.log.trim(topic, partition, before).await?;
            self.metrics.trimmed.inc_by(before.0 - start.0);
            tracing::debug!(%topic, %partition, %start, %before, %end, "trimmed");
            start = before;
        }
    }

    /// The smallest position from which someone may read on. Everyone moves forward only, so that it stays true.
    async fn needed(&self, topic: Topic, partition: Partition, start: Offset) -> Result<Offset, Error> {
        // I3, I5: archiver and ingest begin at the archive's progress, whatever the group has committed.
        let mut needed = self.store.progress(topic, partition).await?;
        for group in readers::of(topic) {
            // A group that has committed nothing begins at the start.
            needed = needed.min(self.log.committed(group, topic, partition).await?.unwrap_or(start));
        }
        Ok(needed)
    }

    /// The position within these before which everything is as old as `keep`: times rise with offsets, but for what
    /// clocks differ.
    async fn aged(
        &self,
        topic: Topic,
        partition: Partition,
        within: Range<Offset>,
        keep: Duration,
    ) -> Result<Offset, Error> {
        let now = self.clock.now();
        let Range { start: mut old, end: mut young } = within;
        // Nothing has become old since the last look, as a rule, and the first record says so.
        let mut middle = old;
        while old < young {
            let fetched = self.log.read(topic, partition, middle, PROBE_BYTES).await?;
            let time = |placed: &Placed| Some((placed.offset, time_of(topic, &placed.record.value)?));
            match fetched.records.iter().find_map(time) {
                Some((_, at)) if now.since(at) < keep => young = middle,
                Some((offset, _)) => old = Offset(offset.0 + 1),
                // What nobody can read is nobody's loss.
                None => old = fetched.next.max(Offset(middle.0 + 1)),
            }
            middle = Offset(old.0 + young.0.saturating_sub(old.0) / 2);
        }
        Ok(old.min(young))
    }
}

/// Why a partition could not be trimmed now.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Log(#[from] stream::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

#[cfg(test)]
mod tests;
