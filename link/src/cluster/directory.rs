//! Reading what others say of themselves. A log that can't be read freezes what is known: nobody's lease runs out while
//! nobody could be heard.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntGauge, IntGaugeVec, Opts, Registry};
use schemas::cluster::{Instance, Role};
use schemas::ids::InstanceId;
use schemas::link::UsagePort;
use schemas::{Clock, Offset, Record as _, Topic};
use stream::{Error, Log};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::PARTITION;
use super::view::{Living, Member, View};
use crate::stopped;

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(200);

/// A look that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes read at a time: some hundred records.
const CHUNK_BYTES: usize = 64 * 1024;

/// Chunks read in one look, so that it ends whoever writes.
const CHUNKS_MAX: usize = 16;

/// What can be seen of a directory from outside.
#[derive(Clone)]
pub struct Metrics {
    instances: IntGaugeVec,
    stale: IntGauge,
    unreadable: IntCounter,
}

impl Metrics {
    /// Registers them.
    ///
    /// # Errors
    /// A name is taken.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let instances = Opts::new("posthaste_cluster_instances", "Processes that live, by role, as seen from here.");
        let instances = IntGaugeVec::new(instances, &["role"])?;
        let stale = IntGauge::new(
            "posthaste_cluster_view_stale",
            "1 while the log can't be read, so that the last view of the cluster is kept.",
        )?;
        let unreadable = IntCounter::new(
            "posthaste_cluster_unreadable_records_total",
            "Records of the topic cluster that could not be read.",
        )?;
        registry.register(Box::new(instances.clone()))?;
        registry.register(Box::new(stale.clone()))?;
        registry.register(Box::new(unreadable.clone()))?;
        Ok(Self { instances, stale, unreadable })
    }
}

/// Who is where.
pub struct Directory {
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    usage: Option<(InstanceId, Arc<dyn UsagePort>)>,
    state: Mutex<State>,
    living: watch::Sender<Arc<Living>>,
}

#[derive(Default)]
struct State {
    view: View,
    /// Where to read on; unknown before the first look.
    position: Option<Offset>,
    /// When the log was last read, on the monotonic clock.
    looked: Duration,
    /// The last look has failed.
    stale: bool,
    /// How long in all the log could not be read: time that no lease knows of.
    deaf: Duration,
}

impl State {
    fn now(&self) -> Duration {
        self.looked.saturating_sub(self.deaf)
    }
}

impl Directory {
    /// Knows nobody before [`Directory::run`] has run for a second: it begins at the topic's end, and everyone who lives
    /// speaks within that time. What was said earlier may be of the dead. `usage`: whom to tell what was used at other
    /// edges than this one.
    pub fn new(
        log: Arc<dyn Log>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
        usage: Option<(InstanceId, Arc<dyn UsagePort>)>,
    ) -> Arc<Self> {
        let living = watch::Sender::new(Arc::default());
        Arc::new(Self { log, clock, metrics, usage, state: Mutex::default(), living })
    }

    /// Partitions of every topic.
    pub fn partitions(&self) -> u32 {
        self.log.partitions()
    }

    /// Who lives and who owns what, as it changes.
    pub fn watch(&self) -> watch::Receiver<Arc<Living>> {
        self.living.subscribe()
    }

    /// The same at this moment.
    pub fn living(&self) -> Arc<Living> {
        Arc::clone(&self.living.borrow())
    }

    /// Who lives, with how much of each lease is used: for people.
    pub fn members(&self) -> Vec<Member> {
        let state = self.state.lock();
        state.view.members(state.now())
    }

    /// Reads on until `shutdown` turns true or its sender is gone.
    pub async fn run(self: Arc<Self>, mut shutdown: watch::Receiver<bool>) {
        loop {
            let read = timeout(PATIENCE, self.look()).await;
            let failed = match read {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("it does not answer".to_owned()),
            };
            self.metrics.stale.set(i64::from(failed.is_some()));
            let was_stale = std::mem::replace(&mut self.state.lock().stale, failed.is_some());
            if let Some(error) = failed.filter(|_| !was_stale) {
                tracing::warn!(error, "the log can't tell who lives: what was known last is kept");
            }
            tokio::select! {
                () = sleep(POLL) => {}
                () = stopped(&mut shutdown) => return,
            }
        }
    }

    /// Reads what is new.
    async fn look(&self) -> Result<(), Error> {
        let known = self.state.lock().position;
        let mut position = match known {
            Some(position) => position,
            None => self.log.end(Topic::Cluster, PARTITION).await?,
        };
        let mut news = Vec::new();
        for _ in 0..CHUNKS_MAX {
            match self.log.read(Topic::Cluster, PARTITION, position, CHUNK_BYTES).await {
                Ok(fetched) if fetched.next <= position => break,
                Ok(fetched) => {
                    position = fetched.next;
                    news.extend(fetched.records.iter().filter_map(|placed| self.decode(&placed.record.value)));
                }
                // What is gone was said long ago, and a topic that was made anew begins anew.
                Err(Error::OutOfRange { end, .. }) => position = end,
                Err(error) => return Err(error),
            }
        }
        self.take(news, position);
        Ok(())
    }

    fn decode(&self, value: &[u8]) -> Option<Instance> {
        Instance::decode(value)
            .inspect_err(|error| {
                self.metrics.unreadable.inc();
                tracing::warn!(%error, "what a process says of itself can't be read");
            })
            .ok()
    }

    fn take(&self, news: Vec<Instance>, position: Offset) {
        let mut state = self.state.lock();
        let looked = self.clock.elapsed();
        let pause = looked.saturating_sub(state.looked);
        if state.stale {
            state.deaf += pause;
        }
        (state.position, state.looked) = (Some(position), looked);
        let now = state.now();
        for mut instance in news {
            let used = std::mem::take(&mut instance.used);
            if let Some((_, usage)) =
                self.usage.as_ref().filter(|(me, _)| *me != instance.id && instance.role == Role::Edge)
            {
                usage.used_elsewhere(instance.id, &used);
            }
            state.view.take(instance, now);
        }
        state.view.expire(now);
        let living = Arc::new(state.view.living(now));
        for role in Role::ALL {
            let count = i64::try_from(living.of(role).count()).unwrap_or(i64::MAX);
            self.metrics.instances.with_label_values(&[role.name()]).set(count);
        }
        self.living.send_if_modified(|told| {
            let is_news = **told != *living;
            *told = living;
            is_news
        });
    }
}
