//! What the edge counts and times: its requests, and its hub and sockets. No ids as labels.

use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, exponential_buckets,
};

/// Metrics of the hub and its sockets.
pub struct HubMetrics {
    /// Sockets that are in.
    pub sockets: IntGauge,
    /// Events put into a socket's queue live.
    pub delivered: IntCounter,
    /// Times that a room of a socket could not be served live and read history instead.
    pub behind: IntCounter,
    /// Times that a socket which reads too slowly held so much that reading for it stopped.
    pub lagging: IntCounter,
    /// Stretches of a partition that never came over the link.
    pub missed: IntCounter,
    /// Commands in flight that were published again after a stretch was missed.
    pub published_again: IntCounter,
    /// Commands turned away for their partition owed answers for too long, or too much waited to be published.
    pub turned_away: IntCounter,
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
            lagging: counter("posthaste_edge_lagging_total", "Times that a full outbox held up reading history.")?,
            missed: counter("posthaste_edge_missed_stretches_total", "Stretches that never came over the link.")?,
            published_again: counter(
                "posthaste_edge_commands_published_again_total",
                "Commands in flight published again after a stretch was missed.",
            )?,
            turned_away: counter(
                "posthaste_edge_commands_turned_away_total",
                "Commands refused before they were published: their partition owed answers for too long.",
            )?,
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

/// What the REST half of an edge counts.
#[derive(Clone)]
pub struct Metrics {
    /// Requests, by method, route (its pattern) and status.
    pub requests: IntCounterVec,
    /// Time to answer, by route.
    pub request_seconds: HistogramVec,
    /// Tokens and passwords that did not hold, by reason.
    pub auth_failures: IntCounterVec,
    /// Commands of REST calls that were rejected, by code.
    pub rejections: IntCounterVec,
    /// Password hashes that wait or are at work.
    pub hashing_depth: IntGauge,
    /// Open connections, sockets among them.
    pub connections: IntGauge,
    /// Sockets refused because as many were open as may be, by what they were counted by.
    pub sockets_refused: IntCounterVec,
    /// Connections closed before anything was read of them, by reason.
    pub connections_refused: IntCounterVec,
    /// What clients have done that counts against them, by kind.
    pub offences: IntCounterVec,
    /// Shut-outs that began here, by who is shut out and for what.
    pub shut_outs: IntCounterVec,
    /// Addresses and accounts that are shut out.
    pub shut_outs_in_force: IntGauge,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let metrics = Self {
            requests: counter(
                "posthaste_edge_requests_total",
                "Requests by method, route and status.",
                &["method", "route", "status"],
            )?,
            request_seconds: HistogramVec::new(
                HistogramOpts::new("posthaste_edge_request_seconds", "Time to answer a request, by route.")
                    .buckets(exponential_buckets(0.000_5, 2.0, 16)?),
                &["route"],
            )?,
            auth_failures: counter(
                "posthaste_edge_auth_failures_total",
                "Tokens and passwords that did not hold, by reason.",
                &["reason"],
            )?,
            rejections: counter(
                "posthaste_edge_rejections_total",
                "Commands of REST calls that were rejected, by code.",
                &["code"],
            )?,
            hashing_depth: IntGauge::new("posthaste_edge_hashing_depth", "Password hashes that wait or are at work.")?,
            connections: IntGauge::new("posthaste_edge_connections", "Open connections, sockets among them.")?,
            sockets_refused: counter(
                "posthaste_edge_sockets_refused_total",
                "Sockets refused because as many were open as may be, by what they are counted by.",
                &["limit"],
            )?,
            connections_refused: counter(
                "posthaste_edge_connections_refused_total",
                "Connections closed before anything was read of them, by reason.",
                &["reason"],
            )?,
            offences: counter(
                "posthaste_edge_offences_total",
                "What clients have done that counts against them, by kind.",
                &["offence"],
            )?,
            shut_outs: counter(
                "posthaste_edge_shut_outs_total",
                "Shut-outs that began here, by who is shut out (address or account) and for what.",
                &["subject", "offence"],
            )?,
            shut_outs_in_force: IntGauge::new("posthaste_edge_shut_outs", "Addresses and accounts that are shut out.")?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.request_seconds.clone()))?;
        registry.register(Box::new(metrics.auth_failures.clone()))?;
        registry.register(Box::new(metrics.rejections.clone()))?;
        registry.register(Box::new(metrics.hashing_depth.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.sockets_refused.clone()))?;
        registry.register(Box::new(metrics.connections_refused.clone()))?;
        registry.register(Box::new(metrics.offences.clone()))?;
        registry.register(Box::new(metrics.shut_outs.clone()))?;
        registry.register(Box::new(metrics.shut_outs_in_force.clone()))?;
        Ok(metrics)
    }
}
