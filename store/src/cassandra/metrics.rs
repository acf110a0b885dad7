//! What the store in Cassandra shows of itself.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, exponential_buckets};

/// A kind of calls.
#[derive(Clone)]
pub(super) struct Calls {
    /// From the first try to the last.
    pub seconds: Histogram,
    /// Tries that failed and were followed by another.
    pub retried: IntCounter,
    /// Calls that failed.
    pub failed: IntCounter,
}

/// The figures.
#[derive(Clone)]
pub(super) struct Metrics {
    pub read: Calls,
    pub write: Calls,
    pub condition: Calls,
}

impl Metrics {
    /// Registers the figures.
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let help = "Tries that failed, by kind of call (read, write, condition) and whether another try followed.";
        let errors = IntCounterVec::new(Opts::new("posthaste_store_errors_total", help), &["kind", "retried"])?;
        registry.register(Box::new(errors.clone()))?;
        let calls = |kind: &str, help: &str| {
            let seconds = HistogramOpts::new(format!("posthaste_store_{kind}_seconds"), help);
            let seconds = Histogram::with_opts(seconds.buckets(exponential_buckets(50e-6, 2.0, 18)?))?;
            registry.register(Box::new(seconds.clone()))?;
            let count = |retried| errors.get_metric_with_label_values(&[kind, retried]);
            Ok::<_, prometheus::Error>(Calls { seconds, retried: count("true")?, failed: count("false")? })
        };
        Ok(Self {
            read: calls("read", "Time of one page of a read.")?,
            write: calls("write", "Time of one group of writes, until a quorum has acknowledged it.")?,
            condition: calls("condition", "Time of one conditional change.")?,
        })
    }
}
