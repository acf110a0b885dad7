//! Which engines hold the log and the store: the only place that chooses them, for who serves and for who does something
//! beside. Makes nothing on Kafka or in Cassandra: an operator does, with `posthaste admin topics` and `admin tables`.

use std::collections::HashMap;
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use prometheus::Registry;
use schemas::{Clock, Offset, Partition, Topic};
use store::Store;
use store::cassandra::{CassandraStore, OpenError};
use store::sqlite::SqliteStore;
use stream::Log;
use stream::embedded::{DirLock, EmbeddedLog};
use stream::kafka::KafkaLog;

use crate::config::Settings;
use crate::kafka;

/// Makes the data directory, where anything is to be in it.
pub fn prepare(settings: &Settings) -> anyhow::Result<()> {
    if settings.kafka.is_some() && settings.cassandra.is_some() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&settings.data)
        .with_context(|| format!("can't make the data directory {}", settings.data.display()))
}

/// The log, all of whose topics are there; and the lock on the data directory, where the store is in it and the log,
/// which has a lock of its own, is not.
pub async fn open_log(settings: &Settings, registry: &Registry) -> anyhow::Result<(Arc<dyn Log>, Option<DirLock>)> {
    let Some(kafka) = &settings.kafka else {
        let metrics = stream::embedded::Metrics::new(registry)?;
        let log = EmbeddedLog::open(&settings.data, stream::embedded::Config::default(), metrics);
        let log = log.context("can't open the log")?;
        log.create(settings.partitions).await.context("can't use the log")?;
        return Ok((Arc::new(log), None));
    };
    let lock = match settings.cassandra {
        Some(_) => None,
        None => Some(DirLock::take(&settings.data).context("can't use the data directory")?),
    };
    Ok((Arc::new(open_kafka(kafka, settings.partitions).await?), lock))
}

/// The log on Kafka, with all of its topics.
async fn open_kafka(kafka: &kafka::Settings, partitions: u32) -> anyhow::Result<KafkaLog> {
    let log = KafkaLog::connect(kafka.config()?).await.context("can't reach the log")?;
    match log.partitions() {
        found if found == partitions => Ok(log),
        0 => bail!("topics are missing on Kafka: make them with `posthaste admin topics`"),
        found => bail!(
            "the topics on Kafka have {found} partitions and the settings say {partitions}: the count is fixed for ever, set it back"
        ),
    }
}

/// Where the log's partitions begin and end.
pub type Extents = HashMap<(Topic, Partition), Range<Offset>>;

/// How far the log reaches, for who looks at it beside whoever serves.
pub enum Reach {
    /// In the directory.
    Directory(PathBuf),
    /// On Kafka.
    Kafka(KafkaLog),
}

impl Reach {
    /// Finds the log.
    pub async fn new(settings: &Settings) -> anyhow::Result<Self> {
        Ok(match &settings.kafka {
            Some(kafka) => Self::Kafka(open_kafka(kafka, settings.partitions).await?),
            None => Self::Directory(settings.data.clone()),
        })
    }

    /// How far it reaches now, in all durable partitions at least.
    pub async fn extents(&self) -> anyhow::Result<Extents> {
        let log = match self {
            Self::Directory(data) => return Ok(stream::embedded::extents(data)?),
            Self::Kafka(log) => log,
        };
        let mut extents = HashMap::new();
        for partition in (0..log.partitions()).map(Partition) {
            for topic in Topic::ALL.into_iter().filter(|topic| topic.is_durable()) {
                let extent = log.start(topic, partition).await?..log.end(topic, partition).await?;
                extents.insert((topic, partition), extent);
            }
        }
        Ok(extents)
    }
}

/// The store, for who serves.
pub async fn open_store(
    settings: &Settings,
    clock: Arc<dyn Clock>,
    registry: &Registry,
) -> anyhow::Result<Arc<dyn Store>> {
    match &settings.cassandra {
        Some(_) => open_cassandra(settings, clock, registry).await,
        None => {
            let store = SqliteStore::open(&settings.data, &settings.store, registry);
            Ok(Arc::new(store.context("can't open the store")?))
        }
    }
}

/// The store beside whoever serves it, for a few reads and writes: nothing is made.
pub async fn open_store_beside(settings: &Settings, clock: Arc<dyn Clock>) -> anyhow::Result<Arc<dyn Store>> {
    match &settings.cassandra {
        Some(_) => open_cassandra(settings, clock, &Registry::new()).await,
        None => {
            let store = SqliteStore::open_beside(&settings.data);
            Ok(Arc::new(store.with_context(|| format!("no store can be opened in {}", settings.data.display()))?))
        }
    }
}

async fn open_cassandra(
    settings: &Settings,
    clock: Arc<dyn Clock>,
    registry: &Registry,
) -> anyhow::Result<Arc<dyn Store>> {
    let config = settings.cassandra.as_ref().context("there is no Cassandra in the settings")?.config()?;
    match CassandraStore::open(&config, clock, registry).await {
        Ok(store) => Ok(Arc::new(store)),
        Err(error @ OpenError::Older { .. }) => {
            Err(anyhow!("{error}, with `posthaste admin tables`").context("can't open the store"))
        }
        Err(error) => Err(error).context("can't open the store"),
    }
}
