//! A cluster whose roles are apart: each speaks to the others over real connections with TLS, as processes of their own do,
//! and is found through the topic `cluster`. Engines are shared and in memory. Whoever ends here ends like a crash.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use edge::Limits;
use edge::auth::password::Argon2Pool;
use edge::hub::Hub;
use edge::metrics::HubMetrics;
use link::cluster;
use link::{Directory, Links, Me, News, Services, Tls, announce};
use prometheus::Registry;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use schemas::cluster::{Owned, Role};
use schemas::ids::{InstanceId, uuid_v7};
use schemas::link::{FanoutPort, HistoryPort};
use schemas::{Clock, EdgeId, Entropy};
use store::Store;
use stream::Log;
use stream::memory::MemoryLog;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::client::Api;
use crate::clock::{Seeded, TestClock};
use crate::cluster::NoNetwork;

/// The cluster's own authority.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one, whom nobody knows yet.
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    /// Its certificate.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Certificate and key of a process that may play these roles.
    pub fn certificate(&self, roles: &[Role]) -> Result<(String, String)> {
        let names = roles.iter().map(|role| format!("{role}.posthaste.internal"));
        let mut params = CertificateParams::new(names.collect::<Vec<_>>())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?.pem(), key.serialize_pem()))
    }

    /// What a process of this role speaks with.
    pub fn tls(&self, role: Role) -> Result<Arc<Tls>> {
        let (certificate, key) = self.certificate(&[role])?;
        Ok(Tls::new(role, self.pem.as_bytes(), certificate.as_bytes(), key.as_bytes())?)
    }
}

/// What becomes of the bytes of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Passing {
    Freely,
    /// Connections stay, and nothing goes over them.
    Frozen,
}

/// Stands between those who connect and a listener: bytes pass, stop, or the connections are cut.
pub struct Relay {
    /// Where to connect.
    pub address: SocketAddr,
    passing: watch::Sender<Passing>,
    cuts: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Relay {
    /// To this listener.
    pub async fn start(to: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (passing, cuts) = (watch::Sender::new(Passing::Freely), watch::Sender::new(0));
        let (passes, cut) = (passing.subscribe(), cuts.subscribe());
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    Some(_) = connections.join_next() => continue,
                };
                let Ok((here, _)) = accepted else { return };
                let (passes, mut cut) = (passes.clone(), cut.clone());
                cut.mark_unchanged();
                connections.spawn(async move {
                    let Ok(there) = TcpStream::connect(to).await else { return };
                    let nodelay = here.set_nodelay(true).and_then(|()| there.set_nodelay(true));
                    let (here_in, here_out) = here.into_split();
                    let (there_in, there_out) = there.into_split();
                    let passed = async {
                        nodelay?;
                        tokio::try_join!(
                            pass(here_in, there_out, passes.clone()),
                            pass(there_in, here_out, passes.clone())
                        )
                    };
                    tokio::select! {
                        _ = passed => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Ok(Self { address, passing, cuts, task })
    }

    /// Cuts what is connected; new connections pass.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Holds all bytes back, or lets them pass again.
    pub fn freeze(&self, frozen: bool) {
        self.passing.send_replace(if frozen { Passing::Frozen } else { Passing::Freely });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut passing: watch::Receiver<Passing>,
) -> std::io::Result<()> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut bytes = vec![0; 64 * 1024];
    loop {
        let count = from.read(&mut bytes).await?;
        // A relay that is gone holds nothing back.
        let _ = passing.wait_for(|passing| *passing == Passing::Freely).await;
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&bytes[..count]).await?;
    }
}

/// A cluster, and what its processes have in common.
pub struct Network {
    /// Shared by all.
    pub log: Arc<dyn Log>,
    /// Shared by all.
    pub store: Arc<dyn Store>,
    /// Shared by all.
    pub clock: Arc<dyn Clock>,
    /// Shared by all.
    pub entropy: Arc<dyn Entropy>,
    /// Vouches for all.
    pub authority: Authority,
    /// Of all links.
    pub config: link::Config,
    processes: AtomicU64,
}

/// A process under way. Dropped, it crashes.
pub struct Process {
    /// Who it is.
    pub id: InstanceId,
    /// What can be seen of it.
    pub registry: Registry,
    tasks: JoinSet<Result<()>>,
    /// Its tasks take the end of this for the order to stop.
    stop: watch::Sender<bool>,
}

impl Process {
    /// Cuts it off in the middle of whatever it does, and waits until nothing of it is left.
    pub async fn kill(mut self) {
        self.tasks.shutdown().await;
    }

    /// The sum of a counter or gauge over its labels; of a histogram, how often.
    pub fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let metrics = families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
        metrics
            .map(|metric| {
                #[expect(clippy::cast_precision_loss, reason = "counts of a test")]
                let count = metric.get_histogram().get_sample_count() as f64;
                metric.get_counter().get_value() + metric.get_gauge().get_value() + count
            })
            .sum()
    }
}

/// A fanout or an archiver.
pub struct Server {
    /// Its tasks.
    pub process: Process,
    /// The way to it.
    pub relay: Relay,
}

/// An edge's links without an edge behind them.
pub struct Bare {
    /// Its tasks.
    pub process: Process,
    /// Whom it finds.
    pub directory: Arc<Directory>,
    /// Fanout over the links.
    pub fanout: Arc<dyn FanoutPort>,
    /// History over the links.
    pub history: Arc<dyn HistoryPort>,
}

/// An edge.
pub struct Edge {
    /// Its tasks.
    pub process: Process,
    /// Whom it finds.
    pub directory: Arc<Directory>,
    /// Its hub.
    pub hub: Arc<Hub>,
    /// Where clients reach it.
    pub address: SocketAddr,
}

impl Edge {
    /// Calls as nobody.
    pub fn api(&self) -> Api {
        Api::new(self.address)
    }
}

impl Network {
    /// Engines in memory, and no process yet.
    pub async fn new(partitions: u32) -> Result<Self> {
        Self::on(Arc::new(MemoryLog::new()), Arc::new(store::memory::MemoryStore::new()), partitions).await
    }

    /// On these engines.
    pub async fn on(log: Arc<dyn Log>, store: Arc<dyn Store>, partitions: u32) -> Result<Self> {
        log.create(partitions).await?;
        Ok(Self {
            log,
            store,
            clock: Arc::new(TestClock::new()),
            entropy: Arc::new(Seeded::new(u64::from(std::process::id()))),
            authority: Authority::new()?,
            config: link::Config::default(),
            processes: AtomicU64::new(0),
        })
    }

    /// Who a new process of this role is.
    pub fn me(&self, role: Role, address: String) -> Me {
        let mut random = [0; 10];
        let number = self.processes.fetch_add(1, Ordering::Relaxed);
        random[2..].copy_from_slice(&number.to_be_bytes());
        let started_at = self.clock.now();
        Me { id: InstanceId(uuid_v7(started_at.0, random)), role, address, started_at }
    }

    /// A process that says that it lives.
    fn announced(&self, me: &Me, news: News) -> Process {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let says = announce(Arc::clone(&self.log), Arc::clone(&self.clock), me.clone(), news, stopped);
        tasks.spawn(async move {
            says.await;
            Ok(())
        });
        Process { id: me.id, registry: Registry::new(), tasks, stop }
    }

    async fn serve(
        &self,
        role: Role,
        certified: Role,
        services: Services,
        owned: watch::Receiver<Vec<Owned>>,
        registry: Registry,
    ) -> Result<Server> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let relay = Relay::start(listener.local_addr()?).await?;
        let me = self.me(role, relay.address.to_string());
        let mut process = self.announced(&me, News::owning(owned));
        process.registry = registry;
        let metrics = link::Metrics::new(&process.registry)?;
        let served = link::serve(
            listener,
            self.authority.tls(certified)?,
            me,
            services,
            self.config.clone(),
            metrics,
            process.stop.subscribe(),
        );
        process.tasks.spawn(async move {
            served.await;
            Ok(())
        });
        Ok(Server { process, relay })
    }

    /// A fanout.
    pub async fn fanout(&self) -> Result<Server> {
        let registry = Registry::new();
        let deps = fanout::Deps { log: Arc::clone(&self.log), clock: Arc::clone(&self.clock) };
        let (handle, worker) = fanout::new(deps, fanout::Config::default(), fanout::Metrics::new(&registry)?);
        let owned = handle.owned();
        let services = Services { fanout: Some(handle), history: None };
        let mut server = self.serve(Role::Fanout, Role::Fanout, services, owned, registry).await?;
        let stop = server.process.stop.subscribe();
        server.process.tasks.spawn(async move { Ok(worker.run(stop).await?) });
        Ok(server)
    }

    /// A fanout that answers as told.
    pub async fn fanout_of(&self, port: Arc<dyn FanoutPort>, owned: Vec<Owned>) -> Result<Server> {
        self.impostor(Role::Fanout, Role::Fanout, port, owned).await
    }

    /// The same, of one that says that it has a role and has the certificate of another.
    pub async fn impostor(
        &self,
        role: Role,
        certified: Role,
        port: Arc<dyn FanoutPort>,
        owned: Vec<Owned>,
    ) -> Result<Server> {
        let owned = watch::Sender::new(owned).subscribe();
        let services = Services { fanout: Some(port), history: None };
        self.serve(role, certified, services, owned, Registry::new()).await
    }

    fn archiver_deps(&self) -> archiver::Deps {
        archiver::Deps { log: Arc::clone(&self.log), store: Arc::clone(&self.store), clock: Arc::clone(&self.clock) }
    }

    /// An archiver.
    pub async fn archiver(&self) -> Result<Server> {
        let registry = Registry::new();
        let metrics = archiver::Metrics::new(&registry)?;
        let (history, worker) = archiver::new(self.archiver_deps(), archiver::Config::default(), metrics);
        let owned = worker.owned();
        let services = Services { fanout: None, history: Some(history) };
        let mut server = self.serve(Role::Archiver, Role::Archiver, services, owned, registry).await?;
        let stop = server.process.stop.subscribe();
        server.process.tasks.spawn(async move { Ok(worker.run(stop).await?) });
        Ok(server)
    }

    /// An ingest.
    pub fn ingest(&self) -> Result<Process> {
        let owned = watch::Sender::new(Vec::new());
        let mut process = self.announced(&self.me(Role::Ingest, String::new()), News::owning(owned.subscribe()));
        let deps = ingest::Deps {
            log: Arc::clone(&self.log),
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            entropy: Arc::clone(&self.entropy),
        };
        let metrics = ingest::Metrics::new(&process.registry)?;
        let (config, stop) = (ingest::Config::default(), process.stop.subscribe());
        process.tasks.spawn(async move { Ok(ingest::run_telling(deps, config, metrics, owned, stop).await?) });
        Ok(process)
    }

    /// Links as an edge has them.
    pub fn links(&self) -> Result<Bare> {
        self.links_with(self.authority.tls(Role::Edge)?)
    }

    /// The same with this certificate.
    pub fn links_with(&self, tls: Arc<Tls>) -> Result<Bare> {
        self.linked(tls, Arc::new(Limits::new(None, Arc::clone(&self.clock))))
    }

    fn linked(&self, tls: Arc<Tls>, limits: Arc<Limits>) -> Result<Bare> {
        let me = self.me(Role::Edge, String::new());
        let mut process = self.announced(&me, News::counting(limits.clone()));
        let metrics = cluster::Metrics::new(&process.registry)?;
        let usage = Some((me.id, limits as _));
        let directory = Directory::new(Arc::clone(&self.log), Arc::clone(&self.clock), metrics, usage);
        let deps = link::Deps { me, tls, directory: Arc::clone(&directory), entropy: Arc::clone(&self.entropy) };
        let links = Links::new(deps, self.config.clone(), link::Metrics::new(&process.registry)?);
        let (reads, stop, stop_too) = (Arc::clone(&directory), process.stop.subscribe(), process.stop.subscribe());
        process.tasks.spawn(async move {
            reads.run(stop).await;
            Ok(())
        });
        let fanout = links.fanout();
        let patient = archiver::Config { wait_max_ms: 1_000, ..archiver::Config::default() };
        let reader = archiver::reader(self.archiver_deps(), patient, archiver::Metrics::new(&process.registry)?);
        let history = links.history(reader);
        process.tasks.spawn(async move {
            links.run(stop_too).await;
            Ok(())
        });
        Ok(Bare { process, directory, fanout, history })
    }

    /// An edge, once it has registered in every partition. `config` as for a whole cluster in one process.
    pub async fn edge(&self, config: edge::config::Config) -> Result<Edge> {
        self.edge_on(config, Arc::clone(&self.store)).await
    }

    /// The same on a store of its own.
    pub async fn edge_on(&self, config: edge::config::Config, store: Arc<dyn Store>) -> Result<Edge> {
        let limits = Arc::new(Limits::new(config.limits.as_ref(), Arc::clone(&self.clock)).told());
        let Bare { mut process, directory, fanout, history } =
            self.linked(self.authority.tls(Role::Edge)?, Arc::clone(&limits))?;
        let deps = edge::Deps {
            edge: EdgeId(process.id.0),
            log: Arc::clone(&self.log),
            store,
            fanout,
            history,
            jwks: Arc::new(NoNetwork),
            clock: Arc::clone(&self.clock),
            entropy: Arc::clone(&self.entropy),
        };
        let hub = Hub::new(deps.clone(), HubMetrics::new(&process.registry)?);
        let passwords = Arc::new(Argon2Pool::start(&config.password)?);
        let metrics = edge::metrics::Metrics::new(&process.registry)?;
        let app = edge::App::with_limits(deps, Arc::clone(&hub), config, limits, passwords, metrics).await?;
        let listener = TcpListener::bind("127.0.0.1:0").await.context("bind")?;
        let address = listener.local_addr()?;
        let (its_hub, stop) = (Arc::clone(&hub), process.stop.subscribe());
        process.tasks.spawn(async move {
            its_hub.run(stop).await;
            Ok(())
        });
        let its_app = app.clone();
        process.tasks.spawn(async move {
            its_app.run().await;
            Ok(())
        });
        let stop = process.stop.subscribe();
        process.tasks.spawn(async move {
            edge::server::serve(app, listener, stop).await;
            Ok(())
        });
        hub.attach().await?;
        crate::cluster::register_everywhere(&hub, self.log.partitions()).await;
        Ok(Edge { process, directory, hub, address })
    }
}
