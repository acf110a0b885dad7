//! What can be seen of links from outside.

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, exponential_buckets,
};
use schemas::cluster::Role;

/// Counters and gauges of links.
#[derive(Clone)]
pub struct Metrics {
    pub(crate) up: IntGaugeVec,
    pub(crate) connects: IntCounterVec,
    pub(crate) lost: IntCounterVec,
    pub(crate) read_bytes: IntCounter,
    pub(crate) written_bytes: IntCounter,
    pub(crate) batches_in_flight: IntGauge,
    pub(crate) questions: HistogramVec,
    pub(crate) from_store: IntCounter,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// A name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let up = Opts::new("posthaste_link_up", "Links that are up, by the role at the other end.");
        let up = IntGaugeVec::new(up, &["peer"])?;
        let connects = Opts::new(
            "posthaste_link_connects_total",
            "Tries to bring a link up, by the other end's role and outcome.",
        );
        let connects = IntCounterVec::new(connects, &["peer", "outcome"])?;
        let lost = Opts::new("posthaste_link_lost_total", "Links that were up and are not any more, by the reason.");
        let lost = IntCounterVec::new(lost, &["peer", "reason"])?;
        let bytes = |direction: &str| {
            let opts = Opts::new("posthaste_link_bytes_total", "Bytes of frames over links, by direction.");
            IntCounter::with_opts(opts.const_label("direction", direction))
        };
        let (read_bytes, written_bytes) = (bytes("in")?, bytes("out")?);
        let batches_in_flight =
            IntGauge::new("posthaste_link_batches_in_flight", "Batches under way to edges and not taken yet.")?;
        let questions = HistogramVec::new(
            HistogramOpts::new("posthaste_link_question_seconds", "Time to an answer over a link, by outcome.")
                .buckets(exponential_buckets(100e-6, 2.0, 17)?),
            &["about", "outcome"],
        )?;
        let from_store = IntCounter::new(
            "posthaste_link_history_from_store_total",
            "Questions for history that no archiver answered, so that the store was read.",
        )?;
        registry.register(Box::new(up.clone()))?;
        registry.register(Box::new(connects.clone()))?;
        registry.register(Box::new(lost.clone()))?;
        registry.register(Box::new(read_bytes.clone()))?;
        registry.register(Box::new(written_bytes.clone()))?;
        registry.register(Box::new(batches_in_flight.clone()))?;
        registry.register(Box::new(questions.clone()))?;
        registry.register(Box::new(from_store.clone()))?;
        Ok(Self { up, connects, lost, read_bytes, written_bytes, batches_in_flight, questions, from_store })
    }

    /// A link is up until this is dropped.
    pub(crate) fn up(&self, peer: Role) -> Up {
        let gauge = self.up.with_label_values(&[peer.name()]);
        gauge.inc();
        Up(gauge)
    }
}

/// A link that is up.
pub(crate) struct Up(IntGauge);

impl Drop for Up {
    fn drop(&mut self) {
        self.0.dec();
    }
}
