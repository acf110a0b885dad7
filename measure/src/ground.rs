//! What is measured stands on this: engines, and rooms in them as the roles leave them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::surroundings::{OsEntropy, SystemClock};
use anyhow::{Context, anyhow, bail, ensure};
use engines::cassandra::{self, Cassandra};
use engines::kafka::Kafka;
use indicatif::ProgressBar;
use prometheus::Registry;
use prometheus::proto::Metric;
use schemas::cluster::Owned;
use schemas::{Offset, Partition, Topic};
use store::cassandra::CassandraStore;
use store::memory::MemoryStore;
use stream::kafka::{Config, KafkaLog};
use stream::{Log, Record};
use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep};

use crate::commands::{Maker, Place};
use crate::report::progress;

/// Records of one append.
const APPENDED: usize = 1_000;
/// Commands on their way through the roles at a time while rooms are filled.
const UNDER_WAY: u64 = 20_000;
/// Nothing here takes so long without something being wrong.
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Starts one broker.
pub async fn kafka() -> anyhow::Result<Kafka> {
    spawn_blocking(|| Kafka::start(1)).await?
}

/// Starts one node.
pub async fn cassandra() -> anyhow::Result<Cassandra> {
    spawn_blocking(|| Cassandra::start(cassandra::Options::default())).await?
}

/// Settings of a log on one broker.
pub fn log_config(bootstrap: &str, prefix: &str) -> Config {
    Config { prefix: prefix.to_owned(), replication: 1, min_in_sync: 1, ..Config::new(bootstrap) }
}

/// Settings of a store on one node.
pub fn store_config(cassandra: &Cassandra, keyspace: &str) -> store::cassandra::Config {
    store::cassandra::Config {
        contact_points: cassandra.contact_points(),
        keyspace: keyspace.to_owned(),
        replication: 1,
        ..store::cassandra::Config::default()
    }
}

/// A log whose topics are there.
pub async fn log(bootstrap: &str, prefix: &str, partitions: u32) -> anyhow::Result<Arc<dyn Log>> {
    let log = KafkaLog::connect(log_config(bootstrap, prefix)).await?;
    log.create(partitions).await?;
    Ok(Arc::new(log))
}

/// A store whose tables are there.
pub async fn store(cassandra: &Cassandra, keyspace: &str) -> anyhow::Result<Arc<CassandraStore>> {
    let config = store_config(cassandra, keyspace);
    CassandraStore::tables(&config).await?;
    Ok(Arc::new(CassandraStore::open(&config, Arc::new(SystemClock::new()), &Registry::new()).await?))
}

/// Appends commands, each to its room's partition, in their order.
pub async fn append(log: &dyn Log, records: Vec<Record>) -> anyhow::Result<()> {
    let mut lanes: BTreeMap<Partition, Vec<Record>> = BTreeMap::new();
    for record in records {
        lanes.entry(Partition::of(&record.key, log.partitions())).or_default().push(record);
    }
    for (partition, records) in lanes {
        for some in records.chunks(APPENDED) {
            log.append(Topic::Commands, partition, some.to_vec()).await?;
        }
    }
    Ok(())
}

/// The sum of a counter over its labels, or of those that have this value; 0 where nothing of that name was counted.
pub fn counted(registry: &Registry, name: &str, label: Option<&str>) -> u64 {
    let families = registry.gather();
    let of_name = families.iter().filter(|family| family.name() == name);
    let metrics = of_name.flat_map(|family| family.get_metric());
    let has = |metric: &Metric| label.is_none_or(|value| metric.get_label().iter().any(|label| label.value() == value));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
    let sum = metrics.filter(|metric| has(metric)).map(|metric| metric.get_counter().get_value()).sum::<f64>() as u64;
    sum
}

/// A role that runs until it is told to stop.
pub struct Role {
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
    /// What it owns.
    owned: watch::Receiver<Vec<Owned>>,
    /// What it counts.
    pub registry: Registry,
}

impl Role {
    /// Ingest.
    pub fn ingest(log: Arc<dyn Log>, store: Arc<dyn store::Store>, config: ingest::Config) -> anyhow::Result<Self> {
        let registry = Registry::new();
        let metrics = ingest::Metrics::new(&registry)?;
        let deps = ingest::Deps { log, store, clock: Arc::new(SystemClock::new()), entropy: Arc::new(OsEntropy) };
        let (stop, stopped) = watch::channel(false);
        let (tell, owned) = watch::channel(Vec::new());
        let task = tokio::spawn(async move { Ok(ingest::run_telling(deps, config, metrics, tell, stopped).await?) });
        Ok(Self { stop, task, owned, registry })
    }

    /// An archiver that has these settings, and its answers for history.
    pub fn archiver(
        log: Arc<dyn Log>,
        store: Arc<dyn store::Store>,
        config: archiver::Config,
    ) -> anyhow::Result<(Self, Arc<dyn schemas::link::HistoryPort>)> {
        let registry = Registry::new();
        let metrics = archiver::Metrics::new(&registry)?;
        let deps = archiver::Deps { log, store, clock: Arc::new(SystemClock::new()) };
        let (history, worker) = archiver::new(deps, config, metrics);
        let (stop, stopped) = watch::channel(false);
        let owned = worker.owned();
        let task = tokio::spawn(async move { Ok(worker.run(stopped).await?) });
        Ok((Self { stop, task, owned, registry }, history))
    }

    /// Fails where the role has ended, though nobody told it to.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.task.is_finished(), "a role has ended");
        Ok(())
    }

    /// How many partitions it owns.
    pub fn owned(&self) -> usize {
        self.owned.borrow().len()
    }

    /// Commands that made events.
    pub fn accepted(&self) -> u64 {
        counted(&self.registry, "posthaste_ingest_commands_total", Some("accepted"))
    }

    /// Ends it in order.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stop.send_replace(true);
        self.task.await?
    }
}

/// Makes rooms with this many messages each. All of it goes through the real roles, over the log and into the store;
/// ingest alone asks a store in memory that has nothing for rooms that it does not know, which is what Cassandra would
/// tell it of new rooms as well, in a third of the time.
pub async fn fill(
    log: &Arc<dyn Log>,
    store: &Arc<CassandraStore>,
    rooms: usize,
    messages: usize,
) -> anyhow::Result<Vec<Place>> {
    let maker = Maker::new(Duration::from_secs(3_600));
    let ingest = Role::ingest(log.clone(), Arc::new(MemoryStore::new()), ingest::Config::default())?;
    let (archiver, _) = Role::archiver(log.clone(), store.clone(), archiver::Config::default())?;
    let whole = (rooms * (1 + messages)) as u64;
    let bar = progress("filling", whole);
    let people: Vec<_> = (0..rooms.div_ceil(100)).map(|_| maker.person()).collect();
    let (mut places, mut sent) = (Vec::with_capacity(rooms), 0);
    let mut records = Vec::new();
    for owner in people.iter().cycle().take(rooms) {
        let (place, create) = maker.create(*owner);
        records.push(create);
        records.extend((0..messages).map(|_| maker.send(place)));
        places.push(place);
        if records.len() >= APPENDED * log.partitions() as usize {
            sent += records.len() as u64;
            append(log.as_ref(), std::mem::take(&mut records)).await?;
            decided(&ingest, &bar, sent.saturating_sub(UNDER_WAY)).await?;
        }
    }
    sent += records.len() as u64;
    append(log.as_ref(), records).await?;
    decided(&ingest, &bar, sent).await?;
    bar.finish_and_clear();
    ingest.stop().await?;
    archived(log.as_ref(), store.as_ref(), &archiver).await?;
    archiver.stop().await?;
    Ok(places)
}

/// Waits until this many commands have made events.
async fn decided(ingest: &Role, bar: &ProgressBar, count: u64) -> anyhow::Result<()> {
    let until = Instant::now() + PATIENCE;
    loop {
        let accepted = ingest.accepted();
        bar.set_position(accepted);
        if accepted >= count {
            return Ok(());
        }
        ingest.check()?;
        ensure!(Instant::now() < until, "{accepted} of {count} commands were accepted after {PATIENCE:?}");
        sleep(LOOK_EVERY).await;
    }
}

/// Waits until the store has all that the log has.
async fn archived(log: &dyn Log, store: &CassandraStore, archiver: &Role) -> anyhow::Result<()> {
    use store::archive::Archive as _;
    let bar = progress("archiving", end(log).await?);
    let until = Instant::now() + PATIENCE;
    for partition in (0..log.partitions()).map(Partition) {
        for topic in [Topic::Events, Topic::UserEvents] {
            let end = log.end(topic, partition).await?;
            while store.progress(topic, partition).await? < end {
                archiver.check()?;
                if Instant::now() >= until {
                    bail!("{topic}/{partition} is not archived after {PATIENCE:?}");
                }
                sleep(LOOK_EVERY).await;
            }
        }
        bar.inc(log.end(Topic::Events, partition).await?.0);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Positions of all partitions of the events together.
pub async fn end(log: &dyn Log) -> anyhow::Result<u64> {
    let mut sum = Offset(0);
    for partition in (0..log.partitions()).map(Partition) {
        sum.0 += log.end(Topic::Events, partition).await?.0;
    }
    Ok(sum.0)
}

/// The program of ours that is built beside this one.
pub fn posthaste() -> anyhow::Result<String> {
    let here = std::env::current_exe()?;
    let program = here.parent().context("this program is nowhere")?.join("posthaste");
    if !program.exists() {
        return Err(anyhow!("{} is missing: `make measure` builds it", program.display()));
    }
    Ok(program.display().to_string())
}
