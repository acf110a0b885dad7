//! All roles in one process, as the binary wires them, for a test: on the engines in memory or on the embedded ones,
//! served on a port of the system's choice, stopped and started again on the same engines.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use edge::auth::issuers::{FetchError, Fetched, JwksPort};
use edge::auth::password::Argon2Pool;
use edge::config::PasswordConfig;
use edge::hub::Hub;
use edge::metrics::HubMetrics;
use prometheus::Registry;
use schemas::link::{EdgePort, FanoutPort, HistoryPort};
use schemas::{Clock, EdgeId, Entropy, Partition};
use store::Store;
use stream::Log;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::client::{Api, Person};
use crate::clock::{Seeded, TestClock};
use crate::switch::{FanoutSwitch, HistorySwitch};

/// More than one, so that what must not depend on the partition is seen to.
const PARTITIONS: u32 = 3;

/// How long a restart waits for the engines to be free, and between two looks.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// Numbers the edges of this process.
static EDGES: AtomicU64 = AtomicU64::new(1);

/// What a test may put between the roles: each takes a port and gives one in its place.
pub struct Between {
    /// Between the roles and the log.
    pub log: fn(Arc<dyn Log>) -> Arc<dyn Log>,
    /// Between the edge and fanout.
    pub fanout: fn(Arc<dyn FanoutPort>) -> Arc<dyn FanoutPort>,
    /// Between the edge and the archiver.
    pub history: fn(Arc<dyn HistoryPort>) -> Arc<dyn HistoryPort>,
}

impl Default for Between {
    fn default() -> Self {
        Self { log: |log| log, fanout: |fanout| fanout, history: |history| history }
    }
}

/// Engines that outlive the roles on them.
enum Engines {
    Memory(Arc<dyn Log>, Arc<dyn Store>),
    Embedded(TempDir),
}

/// All roles in one process.
pub struct Cluster {
    engines: Engines,
    config: edge::config::Config,
    between: Between,
    running: Option<Running>,
    address: SocketAddr,
}

/// A role that can crash by itself. The edge's sockets have tasks of their own: see [`Cluster::restart`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Writes the store, answers for history.
    Archiver,
    /// Feeds the edge.
    Fanout,
    /// Decides.
    Ingest,
}

type Task = JoinHandle<Result<()>>;

struct Running {
    stop: watch::Sender<bool>,
    parts: Parts,
    roles: BTreeMap<Role, Task>,
    edge: Vec<Task>,
    hub: Arc<Hub>,
}

/// What the roles are made of.
struct Parts {
    log: Arc<dyn Log>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    fanout: Arc<FanoutSwitch>,
    history: Arc<HistorySwitch>,
}

impl Drop for Parts {
    fn drop(&mut self) {
        // The edge holds the switch and the switch the edge: without this the engines would never be free.
        self.fanout.let_go();
    }
}

impl Parts {
    async fn start(&self, role: Role, stop: watch::Receiver<bool>) -> Result<Task> {
        let Self { log, store, clock, entropy, .. } = self;
        let (log, store, clock, entropy) = (log.clone(), store.clone(), clock.clone(), entropy.clone());
        // One for each start: nothing reads them, and names must not be taken twice.
        let registry = Registry::new();
        Ok(match role {
            Role::Archiver => {
                let deps = archiver::Deps { log, store, clock };
                let metrics = archiver::Metrics::new(&registry)?;
                let (history, worker) = archiver::new(deps, archiver::Config::default(), metrics);
                self.history.replace(history);
                tokio::spawn(async move { Ok(worker.run(stop).await?) })
            }
            Role::Fanout => {
                let metrics = fanout::Metrics::new(&registry)?;
                let (fanout, worker) = fanout::new(fanout::Deps { log, clock }, fanout::Config::default(), metrics);
                let task = tokio::spawn(async move { Ok(worker.run(stop).await?) });
                self.fanout.replace(fanout).await?;
                task
            }
            Role::Ingest => {
                let deps = ingest::Deps { log, store, clock, entropy };
                let metrics = ingest::Metrics::new(&registry)?;
                tokio::spawn(async move { Ok(ingest::run(deps, ingest::Config::default(), metrics, stop).await?) })
            }
        })
    }
}

impl Cluster {
    /// On the engines in memory.
    pub async fn start() -> Result<Self> {
        let engines =
            Engines::Memory(Arc::new(stream::memory::MemoryLog::new()), Arc::new(store::memory::MemoryStore::new()));
        Self::start_with(engines, test_config(), Between::default(), None).await
    }

    /// On the embedded engines in a directory of its own.
    pub async fn start_embedded() -> Result<Self> {
        let engines = Engines::Embedded(tempfile::tempdir()?);
        Self::start_with(engines, test_config(), Between::default(), None).await
    }

    /// On the embedded engines, with something between the roles, on this address.
    pub async fn start_between(config: edge::config::Config, between: Between, address: SocketAddr) -> Result<Self> {
        let engines = Engines::Embedded(tempfile::tempdir()?);
        Self::start_with(engines, config, between, Some(address)).await
    }

    async fn start_with(
        engines: Engines,
        config: edge::config::Config,
        between: Between,
        address: Option<SocketAddr>,
    ) -> Result<Self> {
        let address = address.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut cluster = Self { engines, config, between, running: None, address };
        cluster.run().await?;
        Ok(cluster)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Calls as nobody.
    pub fn api(&self) -> Api {
        Api::new(self.address)
    }

    /// The same person after a restart, which may have changed the port.
    pub fn again(&self, person: &Person) -> Person {
        let mut person = person.clone();
        person.api.address = self.address;
        person
    }

    /// The hub of its edge.
    pub fn hub(&self) -> Option<&Arc<Hub>> {
        self.running.as_ref().map(|running| &running.hub)
    }

    /// Cuts the roles off in the middle of whatever they do, and starts new ones on the same engines.
    pub async fn restart(&mut self) -> Result<()> {
        if let Some(running) = self.running.take() {
            running.hub.close_all(schemas::frame::close::RESTART, None);
            for task in running.roles.into_values().chain(running.edge) {
                cut_off(task).await;
            }
        }
        self.address.set_port(0);
        // Sockets have tasks of their own, which hold the engines until they see that their clients have gone.
        let patience = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.run().await {
                Err(error) if tokio::time::Instant::now() < patience => {
                    tracing::debug!(%error, "not yet");
                    tokio::time::sleep(POLL).await;
                }
                result => return result,
            }
        }
    }

    /// Cuts one role off in the middle of whatever it does, and starts another one in its place.
    pub async fn crash(&mut self, role: Role) -> Result<()> {
        let running = self.running.as_mut().context("nothing runs")?;
        if let Some(task) = running.roles.remove(&role) {
            cut_off(task).await;
        }
        let task = running.parts.start(role, running.stop.subscribe()).await?;
        running.roles.insert(role, task);
        Ok(())
    }

    /// Stops in order, and says what went wrong.
    pub async fn stop(mut self) -> Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        running.hub.close_all(schemas::frame::close::RESTART, None);
        running.stop.send_replace(true);
        for task in running.roles.into_values().chain(running.edge) {
            task.await??;
        }
        Ok(())
    }

    async fn run(&mut self) -> Result<()> {
        let registry = Registry::new();
        let (log, store): (Arc<dyn Log>, Arc<dyn Store>) = match &self.engines {
            Engines::Memory(log, store) => (Arc::clone(log), Arc::clone(store)),
            Engines::Embedded(dir) => {
                let metrics = stream::embedded::Metrics::new(&registry)?;
                let config = stream::embedded::Config::default();
                let log = stream::embedded::EmbeddedLog::open(dir.path(), config, metrics)?;
                let store = store::sqlite::SqliteStore::open(dir.path(), &store::sqlite::Config::default(), &registry)?;
                (Arc::new(log), Arc::new(store))
            }
        };
        log.create(PARTITIONS).await?;
        let log = (self.between.log)(log);
        let clock: Arc<dyn Clock> = Arc::new(TestClock::new());
        let number = EDGES.fetch_add(1, Ordering::Relaxed);
        let entropy: Arc<dyn Entropy> = Arc::new(Seeded::new(u64::from(std::process::id()) << 32 | number));
        let (fanout, history) = (Arc::new(FanoutSwitch::default()), Arc::new(HistorySwitch::default()));
        let deps = edge::Deps {
            edge: EdgeId(Uuid::from_u128(u128::from(number))),
            log: log.clone(),
            store: store.clone(),
            fanout: (self.between.fanout)(fanout.clone()),
            history: (self.between.history)(history.clone()),
            jwks: Arc::new(NoNetwork),
            clock: clock.clone(),
            entropy: entropy.clone(),
        };
        let parts = Parts { log, store, clock, entropy, fanout, history };
        let hub = Hub::new(deps.clone(), HubMetrics::new(&registry)?);
        let passwords = Arc::new(Argon2Pool::start(&self.config.password)?);
        let metrics = edge::metrics::Metrics::new(&registry)?;
        let app = edge::App::new(deps, hub.clone(), self.config.clone(), passwords, metrics).await?;
        let listener = TcpListener::bind(self.address).await.context("bind")?;
        self.address = listener.local_addr()?;

        let (stop, stopped) = watch::channel(false);
        let mut roles = BTreeMap::new();
        for role in [Role::Archiver, Role::Fanout, Role::Ingest] {
            roles.insert(role, parts.start(role, stopped.clone()).await?);
        }
        let (its_hub, its_app) = (hub.clone(), app.clone());
        let (until, mut until_too, until_then) = (stopped.clone(), stopped.clone(), stopped);
        let edge = vec![
            tokio::spawn(async move {
                its_hub.run(until).await;
                Ok(())
            }),
            tokio::spawn(async move {
                tokio::select! {
                    () = its_app.run() => {}
                    _ = until_too.wait_for(|stop| *stop) => {}
                }
                Ok(())
            }),
            tokio::spawn(async move {
                edge::server::serve(app, listener, until_then).await;
                Ok(())
            }),
        ];
        hub.attach().await?;
        register_everywhere(&hub, PARTITIONS).await;
        self.running = Some(Running { stop, parts, roles, edge, hub });
        Ok(())
    }
}

/// Clusters know no issuer behind a URL.
pub struct NoNetwork;

#[async_trait]
impl JwksPort for NoNetwork {
    async fn fetch(&self, _: &str) -> Result<Fetched, FetchError> {
        Err(FetchError("no network".into()))
    }
}

/// Returns when the edge hears of every partition.
pub(crate) async fn register_everywhere(hub: &Hub, partitions: u32) {
    for partition in (0..partitions).map(Partition) {
        for lane in schemas::link::Lane::ALL {
            while hub.deps().fanout.register(hub.id(), lane, partition, &[]).await.is_err() {
                tokio::time::sleep(POLL).await;
            }
        }
    }
}

async fn cut_off(task: Task) {
    task.abort();
    // An aborted task tells so; whatever else it may say does not matter any more.
    drop(task.await);
}

/// As shipped, but with cheap password hashes and no rate limits: tests of these bring their own.
pub fn test_config() -> edge::config::Config {
    edge::config::Config {
        limits: None,
        password: PasswordConfig { memory_kib: 64, passes: 1, ..PasswordConfig::default() },
        ..edge::config::Config::default()
    }
}
