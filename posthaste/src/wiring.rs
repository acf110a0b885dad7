//! Puts the roles together: the only place that spawns, and knows in which order things start and stop. Decides nothing
//! about messages.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use edge::auth::password::Argon2Pool;
use edge::hub::Hub;
use edge::metrics::HubMetrics;
use futures_util::future::select_all;
use prometheus::Registry;
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, umask};
use schemas::link::{FanoutPort, HistoryPort, Lane};
use schemas::{Clock, EdgeId, Entropy, Partition, Topic};
use stream::Log;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::{self, Process, Readiness};
use crate::config::Settings;
use crate::engines;
use crate::issuers::HttpJwks;
use crate::lag::Lag;
use crate::retention::{self, Retention};
use crate::shutdown::Signals;
use crate::telemetry::{OsEntropy, SystemClock};
use crate::tls::Certificate;

/// Pause between two looks whether something is so yet, at start and stop: short beside the 2 s that a start may take.
const POLL: Duration = Duration::from_millis(10);

/// How long requests under way may take at a stop beyond the time in which sockets are sent away.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// How long threads of the runtime may take to end once everything has stopped or failed.
const RUNTIME_END: Duration = Duration::from_secs(1);

/// Everything in one process, until a signal or a failure ends it.
pub fn serve(settings: Settings, edge: edge::Config) -> anyhow::Result<()> {
    prepare_process();
    engines::prepare(&settings)?;
    let runtime = tokio::runtime::Runtime::new().context("can't start the runtime")?;
    let served = runtime.block_on(run(settings, edge));
    runtime.shutdown_timeout(RUNTIME_END);
    served
}

/// A socket is a descriptor, so take as many as we may; and what we write is for us alone: keys and hashes are in it.
fn prepare_process() {
    umask(Mode::RWXG | Mode::RWXO);
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the limit of open files stays as it was");
    }
}

async fn run(settings: Settings, edge_config: edge::Config) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("can't listen to signals")?;
    let registry = Registry::new();
    registry.register(Box::new(Process::new()?))?;
    let ready = Readiness::default();

    // Whatever is wrong with addresses or the directory shows before the first role starts.
    let listener = bind(settings.listen).await?;
    let admin_listener = bind(settings.admin_listen).await?;
    let certificate = match settings.tls() {
        Some((certificate, key)) => Some(Certificate::open(certificate.into(), key.into())?),
        None => None,
    };
    let tls = certificate.as_ref().map(Certificate::tls);
    let scheme = if tls.is_some() { "https" } else { "http" };
    let (url, admin_url) = (url_of(scheme, &listener)?, url_of("http", &admin_listener)?);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let (log, _lock) = engines::open_log(&settings, &registry).await?;
    let store = engines::open_store(&settings, clock.clone(), &registry).await?;
    let entropy: Arc<dyn Entropy> = Arc::new(OsEntropy);

    let (history, archiver) = archiver::new(
        archiver::Deps { log: log.clone(), store: store.clone(), clock: clock.clone() },
        settings.archiver.clone(),
        archiver::Metrics::new(&registry)?,
    );
    let (fanout, fanout_worker) = fanout::new(
        fanout::Deps { log: log.clone(), clock: clock.clone() },
        settings.fanout.clone(),
        fanout::Metrics::new(&registry)?,
    );
    let ingest =
        ingest::Deps { log: log.clone(), store: store.clone(), clock: clock.clone(), entropy: entropy.clone() };
    let (ingest_config, ingest_metrics) = (settings.ingest.clone(), ingest::Metrics::new(&registry)?);
    let lag = Lag::new(log.clone(), &registry)?;
    let keeping = retention::Metrics::new(&registry)?;
    let retention = Retention::new(log.clone(), store.clone(), clock.clone(), settings.retention.clone(), keeping);
    let deps = edge::Deps {
        edge: EdgeId(new_id(&*clock, &*entropy)),
        log: log.clone(),
        store,
        fanout: fanout.clone(),
        history: history.clone(),
        jwks: Arc::new(HttpJwks::new(&edge_config.issuers)?),
        clock,
        entropy,
    };
    let edge = deps.edge;
    let hub = Hub::new(deps.clone(), HubMetrics::new(&registry)?);
    // Half of the grace at most: the roles behind the edge need some of it too.
    let (drain, spread) = (edge_config.drain().min(settings.grace() / 2), edge_config.drain_retry_spread());
    let passwords = Argon2Pool::start(&edge_config.password).context("can't start the password threads")?;
    let edge_metrics = edge::Metrics::new(&registry)?;
    let app = edge::App::new(deps, hub.clone(), edge_config, Arc::new(passwords), edge_metrics)
        .await
        .context("can't start the edge")?;

    let mut roles = Roles::default();
    let router = admin::router(registry, ready.clone());
    roles.start("admin", |stop| async move {
        Ok(axum::serve(admin_listener, router).with_graceful_shutdown(stopped(stop)).await?)
    });
    roles.start("archiver", |stop| async move { Ok(archiver.run(stop).await?) });
    roles.start("fanout", |stop| async move { Ok(fanout_worker.run(stop).await?) });
    roles.start("ingest", |stop| async move { Ok(ingest::run(ingest, ingest_config, ingest_metrics, stop).await?) });
    if settings.kafka.is_none() {
        roles.start("retention", |stop| until_stopped(stop, retention.run()));
    }
    roles.start("lag", |stop| until_stopped(stop, lag.run()));
    let (its_hub, its_app) = (hub.clone(), app.clone());
    let attached = hub.clone();
    roles.start("hub", |stop| async move {
        its_hub.run(stop).await;
        Ok(())
    });
    if let Some(certificate) = certificate {
        roles.start("certificate", |stop| async move {
            tokio::select! {
                watched = certificate.watch() => watched,
                () = stopped(stop) => Ok(()),
            }
        });
    }
    roles.start("edge's duties", |stop| until_stopped(stop, async move { its_app.run().await }));

    let mut signal = tokio::select! {
        error = roles.ended() => return Err(error),
        signal = signals.next() => Some(signal),
        caught_up = async {
            attached.attach().await?;
            catch_up(&*log, &*fanout, &*history, edge).await
        } => {
            caught_up.context("can't catch up")?;
            None
        }
    };
    if signal.is_none() {
        roles.start("edge", |stop| async move {
            // Beside one another: a slow request must not keep sockets from hearing of the end.
            let sent_away = async {
                stopped(stop.clone()).await;
                hub.drain(drain, spread).await;
            };
            let too_long = async {
                stopped(stop.clone()).await;
                tokio::time::sleep(drain + LAST_REQUESTS).await;
            };
            let accepted: Pin<Box<dyn Future<Output = ()> + Send>> = match tls {
                Some(tls) => Box::pin(edge::server::serve_tls(app, listener, tls, stop.clone())),
                None => Box::pin(edge::server::serve(app, listener, stop.clone())),
            };
            let served = async {
                tokio::select! {
                    () = accepted => {}
                    () = too_long => tracing::warn!("requests that took too long were cut off"),
                }
            };
            tokio::join!(sent_away, served);
            Ok(())
        });
        ready.set(true);
        println!("posthaste is ready: {url} (API at {url}/docs), health and metrics at {admin_url}");
        signal = tokio::select! {
            error = roles.ended() => return Err(error),
            signal = signals.next() => Some(signal),
        };
    }

    tracing::info!(signal, "stopping; a second signal ends the process at once");
    ready.set(false);
    tokio::select! {
        stopped = tokio::time::timeout(settings.grace(), roles.stop()) => match stopped {
            Ok(stopped) => stopped,
            Err(_) => {
                tracing::warn!("the grace time is over; nothing that was acknowledged is lost");
                Ok(())
            }
        },
        _ = signals.next() => Err(anyhow!("ended by a second signal")),
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("can't listen on {address}"))
}

fn url_of(scheme: &str, listener: &TcpListener) -> anyhow::Result<String> {
    Ok(format!("{scheme}://{}", listener.local_addr()?))
}

fn new_id(clock: &dyn Clock, entropy: &dyn Entropy) -> uuid::Uuid {
    let mut random = [0; 10];
    entropy.fill(&mut random);
    schemas::ids::uuid_v7(clock.now().0, random)
}

/// Returns once each partition has a fanout that has caught up, and the archiver knows everything that is in the log.
/// The edge must be attached.
async fn catch_up(
    log: &dyn Log,
    fanout: &dyn FanoutPort,
    history: &dyn HistoryPort,
    edge: EdgeId,
) -> anyhow::Result<()> {
    for partition in (0..log.partitions()).map(Partition) {
        for (lane, topic) in [(Lane::Rooms, Topic::Events), (Lane::Users, Topic::UserEvents)] {
            while fanout.register(edge, lane, partition, &[]).await.is_err() {
                tokio::time::sleep(POLL).await;
            }
            let end = log.end(topic, partition).await?;
            while history.settle(lane, partition, end).await.is_err() {
                tokio::time::sleep(POLL).await;
            }
        }
    }
    Ok(())
}

/// The futures that run, in the order in which they were started. They stop in the opposite one: who feeds others
/// before those that it feeds.
#[derive(Default)]
struct Roles(Vec<Role>);

struct Role {
    name: &'static str,
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Roles {
    fn start<F>(&mut self, name: &'static str, role: impl FnOnce(watch::Receiver<bool>) -> F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(false);
        self.0.push(Role { name, stop, task: tokio::spawn(role(stopped)) });
    }

    /// Waits until one ends that nobody has told to, and says why. Such an end is a fault that the role did not
    /// foresee; the process ends with it (docs/decisions/0007).
    async fn ended(&mut self) -> anyhow::Error {
        let (result, index, _) = select_all(self.0.iter_mut().map(|role| &mut role.task)).await;
        let name = self.0.swap_remove(index).name;
        match result {
            Ok(Ok(())) => anyhow!("{name} has ended though nobody told it to"),
            Ok(Err(error)) => error.context(format!("{name} has failed")),
            Err(panic) => anyhow::Error::new(panic).context(format!("{name} has failed")),
        }
    }

    /// Stops one after the other: each may rely on those started before it until it has ended.
    async fn stop(self) -> anyhow::Result<()> {
        for role in self.0.into_iter().rev() {
            role.stop.send_replace(true);
            role.task
                .await
                .map_err(anyhow::Error::new)
                .flatten()
                .with_context(|| format!("{} has failed", role.name))?;
            tracing::debug!(role = role.name, "stopped");
        }
        Ok(())
    }
}

/// Goes on with a duty that never ends until told to stop.
async fn until_stopped(stop: watch::Receiver<bool>, duty: impl Future<Output = ()>) -> anyhow::Result<()> {
    tokio::select! {
        () = duty => {}
        () = stopped(stop) => {}
    }
    Ok(())
}

/// Returns when told to stop.
async fn stopped(mut stop: watch::Receiver<bool>) {
    // A sender that is gone tells the same.
    let _ = stop.wait_for(|stop| *stop).await;
}
