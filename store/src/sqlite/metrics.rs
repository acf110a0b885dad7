//! What the embedded store shows of itself.

use prometheus::{Histogram, HistogramOpts, IntGauge, Registry, exponential_buckets};

/// The figures.
#[derive(Clone)]
pub(super) struct Metrics {
    pub write: Histogram,
    pub group: Histogram,
    pub queued: IntGauge,
    pub wal_bytes: IntGauge,
}

impl Metrics {
    /// Registers the figures.
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            write: Histogram::with_opts(
                HistogramOpts::new("posthaste_store_write_seconds", "Time of one group of writes, its fsync included.")
                    .buckets(exponential_buckets(50e-6, 2.0, 18)?),
            )?,
            group: Histogram::with_opts(
                HistogramOpts::new("posthaste_store_group_writes", "Writes that shared one fsync.")
                    .buckets(exponential_buckets(1.0, 2.0, 9)?),
            )?,
            queued: IntGauge::new("posthaste_store_queued_writes", "Writes that wait for the writer.")?,
            wal_bytes: IntGauge::new("posthaste_store_wal_bytes", "Size of the write-ahead log.")?,
        };
        registry.register(Box::new(metrics.write.clone()))?;
        registry.register(Box::new(metrics.group.clone()))?;
        registry.register(Box::new(metrics.queued.clone()))?;
        registry.register(Box::new(metrics.wal_bytes.clone()))?;
        Ok(metrics)
    }
}
