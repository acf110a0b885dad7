//! Puts the roles together, in one process or each in its own: the only place that knows what stands on what. Decides
//! nothing about messages.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use link::{Directory, Links, Me, News, Services, Tls, announce};
use prometheus::Registry;
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use schemas::cluster::{Owned, Role};
use schemas::ids::InstanceId;
use schemas::link::HistoryPort;
use schemas::{Clock, EdgeId, Entropy};
use store::Store;
use stream::Log;
use stream::embedded::DirLock;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::cluster;
use crate::config::Settings;
use crate::engines;
use crate::front::{Behind, Front};
use crate::lag::Lag;
use crate::readers;
use crate::retention::{self, Retention};
use crate::running::{Running, bind};
use crate::telemetry::{OsEntropy, SystemClock};

/// How long threads of the runtime may take to end once everything has stopped or failed.
const RUNTIME_END: Duration = Duration::from_secs(1);

/// How long a process that has joined its group waits for partitions before it serves without any: joining takes a few
/// seconds where a member before it has died.
const SHARE_PATIENCE: Duration = Duration::from_secs(15);

/// The partitions that a role has, as they change.
type Share = watch::Receiver<Vec<Owned>>;

/// What every role stands on.
pub struct Ground {
    /// As they were loaded.
    pub settings: Settings,
    /// The log; its topics are there.
    pub log: Arc<dyn Log>,
    /// The store; its tables are there.
    pub store: Arc<dyn Store>,
    /// The machine's time.
    pub clock: Arc<dyn Clock>,
    /// The machine's randomness.
    pub entropy: Arc<dyn Entropy>,
    _lock: Option<DirLock>,
}

impl Ground {
    async fn open(settings: Settings, registry: &Registry) -> anyhow::Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let (log, lock) = engines::open_log(&settings, registry).await?;
        let store = engines::open_store(&settings, clock.clone(), registry).await?;
        Ok(Self { settings, log, store, clock, entropy: Arc::new(OsEntropy), _lock: lock })
    }

    /// An id that nobody else has.
    fn new_id(&self) -> uuid::Uuid {
        let mut random = [0; 10];
        self.entropy.fill(&mut random);
        schemas::ids::uuid_v7(self.clock.now().0, random)
    }

    fn archiver_deps(&self) -> archiver::Deps {
        archiver::Deps { log: self.log.clone(), store: self.store.clone(), clock: self.clock.clone() }
    }

    fn start_archiver(&self, running: &mut Running) -> anyhow::Result<(Arc<dyn HistoryPort>, Share)> {
        let metrics = archiver::Metrics::new(&running.registry)?;
        let (history, worker) = archiver::new(self.archiver_deps(), self.settings.archiver.clone(), metrics);
        let owned = worker.owned();
        running.start("archiver", |stop| async move { Ok(worker.run(stop).await?) });
        Ok((history, owned))
    }

    fn start_fanout(&self, running: &mut Running) -> anyhow::Result<Arc<fanout::Handle>> {
        let deps = fanout::Deps { log: self.log.clone(), clock: self.clock.clone() };
        let metrics = fanout::Metrics::new(&running.registry)?;
        let (handle, worker) = fanout::new(deps, self.settings.fanout.clone(), metrics);
        running.start("fanout", |stop| async move { Ok(worker.run(stop).await?) });
        Ok(handle)
    }

    fn start_ingest(&self, running: &mut Running) -> anyhow::Result<Share> {
        let deps = ingest::Deps {
            log: self.log.clone(),
            store: self.store.clone(),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
        };
        let (config, metrics) = (self.settings.ingest.clone(), ingest::Metrics::new(&running.registry)?);
        let (tell, owned) = watch::channel(Vec::new());
        running
            .start("ingest", |stop| async move { Ok(ingest::run_telling(deps, config, metrics, tell, stop).await?) });
        Ok(owned)
    }

    fn start_lag(&self, running: &mut Running, groups: Vec<readers::Group>) -> anyhow::Result<()> {
        let lag = Lag::new(self.log.clone(), groups, &running.registry)?;
        running.start_duty("lag", lag.run());
        Ok(())
    }

    /// This process, as others of the cluster know it.
    fn me(&self, role: Role, address: String) -> Me {
        Me { id: InstanceId(self.new_id()), role, address, started_at: self.clock.now() }
    }

    fn limits(&self, edge: &edge::Config) -> edge::Limits {
        edge::Limits::new(edge.limits.as_ref(), self.clock.clone())
    }

    fn start_announcing(&self, running: &mut Running, me: Me, news: News) {
        let (log, clock) = (self.log.clone(), self.clock.clone());
        running.start("announcements", |stop| async move {
            announce(log, clock, me, news, stop).await;
            Ok(())
        });
    }
}

/// Runs on a runtime of its own until a signal or a failure ends it.
fn drive(settings: &Settings, process: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    prepare_process();
    engines::prepare(settings)?;
    let runtime = tokio::runtime::Runtime::new().context("can't start the runtime")?;
    let driven = runtime.block_on(process);
    runtime.shutdown_timeout(RUNTIME_END);
    driven
}

/// A socket is a descriptor, so take as many as we may; and what we write is for us alone: keys and hashes are in it.
fn prepare_process() {
    umask(Mode::RWXG | Mode::RWXO);
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it was");
    }
}

/// Everything in one process, until a signal or a failure ends it.
pub fn serve(settings: Settings, edge: edge::Config) -> anyhow::Result<()> {
    drive(&settings.clone(), everything(settings, edge))
}

async fn everything(settings: Settings, edge: edge::Config) -> anyhow::Result<()> {
    let mut running = Running::begin(&settings).await?;
    let front = Front::open(&settings).await?;
    let ground = Ground::open(settings, &running.registry).await?;
    let (history, _) = ground.start_archiver(&mut running)?;
    let fanout = ground.start_fanout(&mut running)?;
    ground.start_ingest(&mut running)?;
    if ground.settings.kafka.is_none() {
        let (log, store, clock) = (ground.log.clone(), ground.store.clone(), ground.clock.clone());
        let metrics = retention::Metrics::new(&running.registry)?;
        let retention = Retention::new(log, store, clock, ground.settings.retention.clone(), metrics);
        running.start_duty("retention", retention.run());
    }
    ground.start_lag(&mut running, readers::GROUPS.to_vec())?;
    let (id, limits) = (EdgeId(ground.new_id()), Arc::new(ground.limits(&edge)));
    front.serve(&mut running, &ground, edge, id, Behind { fanout, history, limits }).await?;
    running.stop().await
}

/// One role in a process of its own, in a cluster with others, until a signal or a failure ends it.
pub fn serve_alone(role: Role, settings: Settings, edge: edge::Config) -> anyhow::Result<()> {
    drive(&settings.clone(), alone(role, settings, edge))
}

async fn alone(role: Role, settings: Settings, edge: edge::Config) -> anyhow::Result<()> {
    let mut running = Running::begin(&settings).await?;
    match role {
        Role::Edge => edge_alone(&mut running, settings, edge).await?,
        Role::Ingest => {
            let ground = Ground::open(settings, &running.registry).await?;
            let owned = ground.start_ingest(&mut running)?;
            ground.start_lag(&mut running, readers::of_group(ingest::GROUP))?;
            ground.start_announcing(&mut running, ground.me(role, String::new()), News::owning(owned.clone()));
            serve_share(&mut running, "ingest", owned).await?;
        }
        Role::Fanout => {
            let reached = Reached::open(role, &settings).await?;
            let ground = Ground::open(settings, &running.registry).await?;
            let handle = ground.start_fanout(&mut running)?;
            ground.start_lag(&mut running, readers::of_group(fanout::GROUP))?;
            let owned = handle.owned();
            let services = Services { fanout: Some(handle), history: None };
            let me = reached.serve(&mut running, &ground, services)?;
            ground.start_announcing(&mut running, me, News::owning(owned.clone()));
            serve_share(&mut running, "fanout", owned).await?;
        }
        Role::Archiver => {
            let reached = Reached::open(role, &settings).await?;
            let ground = Ground::open(settings, &running.registry).await?;
            let (history, owned) = ground.start_archiver(&mut running)?;
            ground.start_lag(&mut running, readers::of_group(archiver::GROUP))?;
            let services = Services { fanout: None, history: Some(history) };
            let me = reached.serve(&mut running, &ground, services)?;
            ground.start_announcing(&mut running, me, News::owning(owned.clone()));
            serve_share(&mut running, "archiver", owned).await?;
        }
    }
    running.stop().await
}

/// An edge whose fanouts and archivers are elsewhere.
async fn edge_alone(running: &mut Running, settings: Settings, edge: edge::Config) -> anyhow::Result<()> {
    let link = settings.link()?.clone();
    let tls = link.tls(Role::Edge)?;
    let front = Front::open(&settings).await?;
    let ground = Ground::open(settings, &running.registry).await?;
    let me = ground.me(Role::Edge, String::new());
    let id = EdgeId(me.id.0);
    let limits = Arc::new(ground.limits(&edge).told());
    let metrics = link::cluster::Metrics::new(&running.registry)?;
    let usage = Some((me.id, limits.clone() as _));
    let directory = Directory::new(ground.log.clone(), ground.clock.clone(), metrics, usage);
    let deps =
        link::Deps { me: me.clone(), tls: tls.clone(), directory: directory.clone(), entropy: ground.entropy.clone() };
    let links = Links::new(deps, link.limits.clone(), link::Metrics::new(&running.registry)?);
    running.start_watch("certificate of links", link.watch(tls));
    running.start("directory", |stop| async move {
        directory.run(stop).await;
        Ok(())
    });
    let running_links = links.clone();
    running.start("links", |stop| async move {
        running_links.run(stop).await;
        Ok(())
    });
    ground.start_announcing(running, me, News::counting(limits.clone()));
    let metrics = archiver::Metrics::new(&running.registry)?;
    let store = archiver::reader(ground.archiver_deps(), ground.settings.archiver.clone(), metrics);
    let behind = Behind { fanout: links.fanout(), history: links.history(store), limits };
    front.serve(running, &ground, edge, id, behind).await
}

/// Where edges reach a process: open before anything else is, so that whatever is wrong with it shows first.
struct Reached {
    role: Role,
    listener: TcpListener,
    tls: Arc<Tls>,
    link: cluster::Settings,
}

impl Reached {
    async fn open(role: Role, settings: &Settings) -> anyhow::Result<Self> {
        let link = settings.link()?.clone();
        Ok(Self { role, tls: link.tls(role)?, listener: bind(link.listen).await?, link })
    }

    /// Answers edges, as whom this says.
    fn serve(self, running: &mut Running, ground: &Ground, services: Services) -> anyhow::Result<Me> {
        let Self { role, listener, tls, link } = self;
        let me = ground.me(role, link.address(listener.local_addr()?));
        let (who, its_tls, limits) = (me.clone(), tls.clone(), link.limits.clone());
        let metrics = link::Metrics::new(&running.registry)?;
        running.start("links", |stop| async move {
            link::serve(listener, its_tls, who, services, limits, metrics, stop).await;
            Ok(())
        });
        running.start_watch("certificate of links", link.watch(tls));
        Ok(me)
    }
}

/// Serves once partitions are assigned; without any where the others have all.
async fn serve_share(running: &mut Running, role: &str, mut owned: watch::Receiver<Vec<Owned>>) -> anyhow::Result<()> {
    let assigned = async {
        // A sender that is gone has failed, which shows elsewhere.
        let _ = tokio::time::timeout(SHARE_PATIENCE, owned.wait_for(|owned| !owned.is_empty())).await;
        Ok(())
    };
    match running.first(assigned).await? {
        Some(()) => running.serve(role).await,
        None => Ok(()),
    }
}
