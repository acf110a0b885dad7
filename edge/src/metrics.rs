//! What the socket side of the edge counts and times.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry, exponential_buckets};

/// Metrics of the hub and its sockets.
pub struct HubMetrics {
    /// Sockets that are in.
    pub sockets: IntGauge,
    /// Events put into a socket's queue live.
    pub delivered: IntCounter,
    /// Times that a room of a socket could not be served live and read history instead.
    pub behind: IntCounter,
    /// Stretches of a partition that never came over the link.
    pub missed: IntCounter,
    /// Frames refused, by reason.
    pub refused: IntCounterVec,
    /// Sockets closed by the server, by code.
    pub closed: IntCounterVec,
    appended: Histogram,
    written: Histogram,
    acknowledged: Histogram,
}

impl HubMetrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let stage = |stage: &str| -> Result<Histogram, prometheus::Error> {
            let opts = HistogramOpts::new(
                "posthaste_stage_seconds",
                "Time since the edge received the command, by the stage reached.",
            )
            .const_label("stage", stage)
            .buckets(exponential_buckets(50e-6, 2.0, 18)?);
            let histogram = Histogram::with_opts(opts)?;
            registry.register(Box::new(histogram.clone()))?;
            Ok(histogram)
        };
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let by = |name: &str, help: &str, label: &str| -> Result<IntCounterVec, prometheus::Error> {
            let counter = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let sockets = IntGauge::new("posthaste_edge_sockets", "Sockets that are connected and authenticated.")?;
        registry.register(Box::new(sockets.clone()))?;
        Ok(Self {
            sockets,
            delivered: counter("posthaste_edge_deliveries_total", "Events queued for sockets live.")?,
            behind: counter("posthaste_edge_behind_total", "Times a room of a socket had to read history.")?,
            missed: counter("posthaste_edge_missed_stretches_total", "Stretches that never came over the link.")?,
            refused: by("posthaste_edge_frames_refused_total", "Client frames refused, by reason.", "reason")?,
            closed: by("posthaste_edge_sockets_closed_total", "Sockets closed by the server, by close code.", "code")?,
            appended: stage("appended")?,
            written: stage("written")?,
            acknowledged: stage("acknowledged")?,
        })
    }

    /// A command has been published, so many µs after it was received.
    pub fn appended(&self, us: i64) {
        self.appended.observe(seconds(us));
    }

    /// A socket's oldest waiting event has been written.
    pub fn written(&self, us: i64) {
        self.written.observe(seconds(us));
    }

    /// A command's outcome has been queued for its socket or handed to its call.
    pub fn acknowledged(&self, us: i64) {
        self.acknowledged.observe(seconds(us));
    }
}

#[expect(clippy::cast_precision_loss, reason = "latencies are far below 2^52 µs")]
fn seconds(us: i64) -> f64 {
    us.max(0) as f64 / 1e6
}
