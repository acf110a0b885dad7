//! What the engine shows of itself.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Registry, exponential_buckets};

/// What the engine shows of itself.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(super) commit_seconds: Histogram,
    pub(super) commit_records: Histogram,
    pub(super) checkpoint_seconds: Histogram,
    pub(super) wal_bytes: IntGauge,
    pub(super) queue_requests: IntGauge,
    pub(super) faults: IntCounter,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// If the registry has them already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let seconds = |name, help| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(exponential_buckets(50e-6, 2.0, 18)?))
        };
        let this = Self {
            commit_seconds: seconds(
                "posthaste_log_commit_seconds",
                "Time that a group commit of the log took, sync included.",
            )?,
            commit_records: Histogram::with_opts(
                HistogramOpts::new("posthaste_log_commit_records", "Records in a group commit of the log.")
                    .buckets(exponential_buckets(1.0, 2.0, 16)?),
            )?,
            checkpoint_seconds: seconds(
                "posthaste_log_checkpoint_seconds",
                "Time that a checkpoint of the log took; commits wait for it.",
            )?,
            wal_bytes: IntGauge::new("posthaste_log_wal_bytes", "Used part of the log's write-ahead log.")?,
            queue_requests: IntGauge::new(
                "posthaste_log_queue_requests",
                "Appends and transactions in the group that the log's writer took last.",
            )?,
            faults: IntCounter::new("posthaste_log_faults_total", "Group commits and checkpoints that failed.")?,
        };
        registry.register(Box::new(this.commit_seconds.clone()))?;
        registry.register(Box::new(this.commit_records.clone()))?;
        registry.register(Box::new(this.checkpoint_seconds.clone()))?;
        registry.register(Box::new(this.wal_bytes.clone()))?;
        registry.register(Box::new(this.queue_requests.clone()))?;
        registry.register(Box::new(this.faults.clone()))?;
        Ok(this)
    }
}
