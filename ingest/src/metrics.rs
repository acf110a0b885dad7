//! What the ingest role counts. No ids of people or rooms as labels.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, exponential_buckets};
use schemas::outcome::RejectCode;

/// What the ingest role counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) decided: Stage,
    pub(crate) committed: Stage,
    pub(crate) accepted: IntCounter,
    pub(crate) done: IntCounter,
    pub(crate) dead_letters: IntCounter,
    /// In the order of [`RejectCode::ALL`].
    rejections: Vec<IntCounter>,
    pub(crate) repeats: IntCounter,
    pub(crate) look_ups: IntCounter,
    pub(crate) loads: IntCounter,
    pub(crate) failed_loads: IntCounter,
    pub(crate) takeovers: IntCounter,
    pub(crate) failed_commits: IntCounter,
    pub(crate) round_commands: Histogram,
    pub(crate) partitions: IntGauge,
    pub(crate) rooms: IntGauge,
    pub(crate) rooms_bytes: IntGauge,
    pub(crate) unarchived_events: IntGauge,
}

/// Latency up to a stage, from the edge's receipt of the command.
#[derive(Clone, Debug)]
pub(crate) struct Stage(Histogram);

impl Stage {
    /// Observes the stage reached at `now_us`. Clocks of two machines may disagree: never below zero.
    pub(crate) fn since(&self, received_us: i64, now_us: i64) {
        let micros = u32::try_from(now_us.saturating_sub(received_us).max(0)).unwrap_or(u32::MAX);
        self.0.observe(f64::from(micros) / 1e6);
    }
}

impl Metrics {
    /// Makes and registers them.
    ///
    /// # Errors
    /// If one of that name is registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let histogram = |opts: HistogramOpts| -> Result<Histogram, prometheus::Error> {
            let histogram = Histogram::with_opts(opts)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        let stage = |stage: &str| -> Result<Stage, prometheus::Error> {
            let help = "Time since the edge received the command, by the stage reached.";
            let opts = HistogramOpts::new("posthaste_stage_seconds", help)
                .const_label("stage", stage)
                .buckets(exponential_buckets(50e-6, 2.0, 18)?);
            histogram(opts).map(Stage)
        };
        let outcomes = IntCounterVec::new(
            Opts::new("posthaste_ingest_commands_total", "Commands decided, by what became of them."),
            &["outcome"],
        )?;
        registry.register(Box::new(outcomes.clone()))?;
        let rejections = IntCounterVec::new(
            Opts::new("posthaste_ingest_rejections_total", "Commands rejected, by reason."),
            &["code"],
        )?;
        registry.register(Box::new(rejections.clone()))?;
        let round = HistogramOpts::new("posthaste_ingest_round_commands", "Commands of a partition taken at once.")
            .buckets(exponential_buckets(1.0, 2.0, 15)?);
        Ok(Self {
            decided: stage("decided")?,
            committed: stage("committed")?,
            accepted: outcomes.with_label_values(&["accepted"]),
            done: outcomes.with_label_values(&["done"]),
            dead_letters: outcomes.with_label_values(&["dead_letter"]),
            rejections: RejectCode::ALL.iter().map(|code| rejections.with_label_values(&[code.as_str()])).collect(),
            repeats: counter("posthaste_ingest_dedup_hits_total", "Commands that had acted before.")?,
            look_ups: counter("posthaste_ingest_dedup_look_ups_total", "Command ids looked up in the store.")?,
            loads: counter("posthaste_ingest_room_loads_total", "Cold rooms loaded from the store.")?,
            failed_loads: counter("posthaste_ingest_room_load_failures_total", "Cold rooms that could not be loaded.")?,
            takeovers: counter("posthaste_ingest_takeovers_total", "Partitions taken over, recoveries among them.")?,
            failed_commits: counter(
                "posthaste_ingest_failed_commits_total",
                "Transactions that did not surely commit.",
            )?,
            round_commands: histogram(round)?,
            partitions: gauge("posthaste_ingest_partitions", "Partitions owned and ready.")?,
            rooms: gauge("posthaste_ingest_rooms", "Rooms in memory.")?,
            rooms_bytes: gauge("posthaste_ingest_rooms_bytes", "Estimated memory of the rooms in memory.")?,
            unarchived_events: gauge(
                "posthaste_ingest_unarchived_events",
                "Events that the archive lacked at the last look.",
            )?,
        })
    }

    pub(crate) fn rejected(&self, code: RejectCode) -> &IntCounter {
        &self.rejections[code as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejection_counts_under_its_own_code() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        for (times, code) in (1..).zip(RejectCode::ALL) {
            metrics.rejected(code).inc_by(times);
        }
        let families = registry.gather();
        let family = families.iter().find(|family| family.name() == "posthaste_ingest_rejections_total").unwrap();
        for (times, code) in (1..).zip(RejectCode::ALL) {
            let of_code = family.get_metric().iter().find(|metric| metric.get_label()[0].value() == code.as_str());
            assert_eq!(of_code.unwrap().get_counter().get_value(), f64::from(times), "{}", code.as_str());
        }
    }
}
