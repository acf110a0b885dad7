//! What fanout tells Prometheus. No ids as labels.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry, exponential_buckets};

/// What fanout tells Prometheus.
#[derive(Clone, Debug)]
pub struct Metrics {
    pub(crate) edges: IntGauge,
    pub(crate) rooms: IntGauge,
    pub(crate) users: IntGauge,
    pub(crate) waiting: IntGauge,
    pub(crate) batches: IntCounter,
    pub(crate) items: IntCounter,
    pub(crate) edges_lost: IntCounter,
    pub(crate) dead_letters: IntCounter,
    pub(crate) holes: IntCounter,
    pub(crate) doubles: IntCounter,
    pub(crate) fanned_out: Histogram,
}

impl Metrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// Where the registry has them already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |opts: Opts| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::with_opts(opts)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let keys = || Opts::new("posthaste_fanout_keys", "Rooms and users that an edge has registered interest in.");
        let fanned_out = Histogram::with_opts(
            HistogramOpts::new(
                "posthaste_stage_seconds",
                "Time since the edge received the command, by the stage reached.",
            )
            .const_label("stage", "fanned_out")
            .buckets(exponential_buckets(50e-6, 2.0, 18)?),
        )?;
        registry.register(Box::new(fanned_out.clone()))?;
        Ok(Self {
            edges: gauge(Opts::new("posthaste_fanout_edges", "Edges attached."))?,
            rooms: gauge(keys().const_label("lane", "rooms"))?,
            users: gauge(keys().const_label("lane", "users"))?,
            waiting: gauge(Opts::new(
                "posthaste_fanout_waiting_requests",
                "Requests of edges that wait for their turn.",
            ))?,
            batches: counter("posthaste_fanout_batches_total", "Batches that an edge has taken.")?,
            items: counter("posthaste_fanout_items_total", "Items in the batches that an edge has taken.")?,
            edges_lost: counter("posthaste_fanout_edges_lost_total", "Edges that did not take a batch.")?,
            dead_letters: counter("posthaste_fanout_dead_letters_total", "Records that could not be passed on.")?,
            holes: counter(
                "posthaste_fanout_holes_total",
                "Events kept back since one before them in the room never came.",
            )?,
            doubles: counter("posthaste_fanout_doubles_total", "Events kept back since their seq had come before.")?,
            fanned_out,
        })
    }
}
