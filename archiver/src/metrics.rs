//! What the archiver shows of itself: how far behind it is, what its writes and reads cost, breaches that it saw.

use prometheus::{
    Error, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    exponential_buckets,
};

/// The archiver's metrics.
pub struct Metrics {
    pub(crate) archived_seconds: Histogram,
    pub(crate) unarchived_events: IntGauge,
    pub(crate) unarchived_bytes: IntGauge,
    pub(crate) flush_events: Histogram,
    pub(crate) flush_seconds: Histogram,
    pub(crate) rewinds: IntCounter,
    pub(crate) flush_failures: IntCounter,
    pub(crate) cache_hits: IntCounter,
    pub(crate) cache_misses: IntCounter,
    pub(crate) cache_bytes: IntGauge,
    pub(crate) store_reads: IntCounterVec,
    pub(crate) lag_records: IntGaugeVec,
    pub(crate) holes: IntCounter,
    pub(crate) doubles: IntCounter,
    pub(crate) dead_letters: IntCounterVec,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// If a name is taken already.
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let latencies = exponential_buckets(50e-6, 2.0, 18)?;
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, Error>(counter)
        };
        let counters = |name: &str, help: &str, label: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok::<_, Error>(counters)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, Error>(gauge)
        };
        let histogram = |options: HistogramOpts| {
            let histogram = Histogram::with_opts(options)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok::<_, Error>(histogram)
        };
        let lag_records = IntGaugeVec::new(
            Opts::new("posthaste_archiver_lag_records", "Positions between what is consumed and the log's end."),
            &["topic"],
        )?;
        registry.register(Box::new(lag_records.clone()))?;
        Ok(Self {
            archived_seconds: histogram(
                HistogramOpts::new(
                    "posthaste_stage_seconds",
                    "Time since the edge received the command, by the stage reached.",
                )
                .const_label("stage", "archived")
                .buckets(latencies.clone()),
            )?,
            unarchived_events: gauge("posthaste_archiver_unarchived_events", "Events consumed and not in the store.")?,
            unarchived_bytes: gauge("posthaste_archiver_unarchived_bytes", "What is consumed and not in the store.")?,
            flush_events: histogram(
                HistogramOpts::new("posthaste_archiver_flush_events", "Events of a write.")
                    .buckets(exponential_buckets(1.0, 4.0, 10)?),
            )?,
            flush_seconds: histogram(
                HistogramOpts::new("posthaste_archiver_flush_seconds", "Duration of a write, each attempt.")
                    .buckets(latencies),
            )?,
            rewinds: counter("posthaste_archiver_rewinds_total", "Times that the store had lost what was archived.")?,
            flush_failures: counter("posthaste_archiver_flush_failures_total", "Writes that have to be tried again.")?,
            cache_hits: counter("posthaste_archiver_cache_hits_total", "Buckets of history found in memory.")?,
            cache_misses: counter("posthaste_archiver_cache_misses_total", "Buckets of history read from the store.")?,
            cache_bytes: gauge("posthaste_archiver_cache_bytes", "Archived events kept in memory.")?,
            store_reads: counters("posthaste_archiver_store_reads_total", "Reads of the store.", "rows")?,
            lag_records,
            holes: counter("posthaste_archiver_holes_total", "Events after missing ones, and missing rows.")?,
            doubles: counter("posthaste_archiver_doubles_total", "Events whose seq is another's.")?,
            dead_letters: counters("posthaste_archiver_dead_letters_total", "Records set aside.", "topic")?,
        })
    }
}
