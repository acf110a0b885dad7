//! The edge in a process: its listener and certificate, and the order in which it comes and goes. What is behind it, in
//! this process or in others, it is handed.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use edge::auth::password::Argon2Pool;
use edge::hub::Hub;
use edge::metrics::HubMetrics;
use futures_util::future::try_join_all;
use schemas::link::{FanoutPort, HistoryPort, Lane};
use schemas::{EdgeId, Partition};
use stream::Log;
use tokio::net::TcpListener;

use crate::config::Settings;
use crate::issuers::HttpJwks;
use crate::running::{Running, bind, stopped, url_of};
use crate::tls::Certificate;
use crate::wiring::Ground;

/// Pause between two looks whether something is so yet: short beside the 2 s that a start may take.
const POLL: Duration = Duration::from_millis(10);

/// How long requests under way may take at a stop beyond the time in which sockets are sent away.
const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// What is behind an edge, and its limits.
pub struct Behind {
    /// Feeds it.
    pub fanout: Arc<dyn FanoutPort>,
    /// Answers for history.
    pub history: Arc<dyn HistoryPort>,
    /// Those of its settings.
    pub limits: Arc<edge::Limits>,
}

/// Where clients come.
pub struct Front {
    listener: TcpListener,
    certificate: Option<Certificate>,
    url: String,
}

impl Front {
    /// Listens, and reads the certificate: whatever is wrong with either shows before anything else starts.
    pub async fn open(settings: &Settings) -> anyhow::Result<Self> {
        let listener = bind(settings.listen).await?;
        let certificate = match settings.tls() {
            Some((certificate, key)) => Some(Certificate::open(certificate.into(), key.into())?),
            None => None,
        };
        let url = url_of(if certificate.is_some() { "https" } else { "http" }, &listener)?;
        Ok(Self { listener, certificate, url })
    }

    /// Serves clients until the process is told to stop.
    pub async fn serve(
        self,
        running: &mut Running,
        ground: &Ground,
        config: edge::Config,
        edge: EdgeId,
        behind: Behind,
    ) -> anyhow::Result<()> {
        let Behind { fanout, history, limits } = behind;
        let Self { listener, certificate, url } = self;
        let deps = edge::Deps {
            edge,
            log: ground.log.clone(),
            store: ground.store.clone(),
            fanout: fanout.clone(),
            history: history.clone(),
            jwks: Arc::new(HttpJwks::new(&config.issuers)?),
            clock: ground.clock.clone(),
            entropy: ground.entropy.clone(),
        };
        let hub = Hub::new(deps.clone(), HubMetrics::new(&running.registry)?);
        // Half of the grace at most: the roles behind the edge need some of it too.
        let (drain, spread) = (config.drain().min(ground.settings.grace() / 2), config.drain_retry_spread());
        let passwords = Argon2Pool::start(&config.password).context("can't start the password threads")?;
        let metrics = edge::Metrics::new(&running.registry)?;
        let app = edge::App::with_limits(deps, hub.clone(), config, limits, Arc::new(passwords), metrics)
            .await
            .context("can't start the edge")?;
        let (its_hub, its_app) = (hub.clone(), app.clone());
        running.start("hub", |stop| async move {
            its_hub.run(stop).await;
            Ok(())
        });
        let tls = certificate.as_ref().map(Certificate::tls);
        if let Some(certificate) = certificate {
            running.start_watch("certificate", certificate.watch());
        }
        running.start_duty("edge's duties", async move { its_app.run().await });
        let caught_up = async {
            hub.attach().await?;
            catch_up(&*ground.log, &*fanout, &*history, edge).await
        };
        if running.first(async { caught_up.await.context("can't catch up") }).await?.is_none() {
            return Ok(());
        }
        running.start("edge", |stop| async move {
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
        running.serve(&format!("{url} (API at {url}/docs)")).await
    }
}

/// Returns once each partition has a fanout that has caught up, and the archive knows everything that is in the log.
/// The edge must be attached.
async fn catch_up(
    log: &dyn Log,
    fanout: &dyn FanoutPort,
    history: &dyn HistoryPort,
    edge: EdgeId,
) -> anyhow::Result<()> {
    let partitions = (0..log.partitions()).map(Partition);
    let caught_up =
        partitions.flat_map(|partition| Lane::ALL.map(|lane| (partition, lane))).map(async |(partition, lane)| {
            while fanout.register(edge, lane, partition, &[]).await.is_err() {
                tokio::time::sleep(POLL).await;
            }
            let end = log.end(lane.topic(), partition).await?;
            while history.settle(lane, partition, end).await.is_err() {
                tokio::time::sleep(POLL).await;
            }
            anyhow::Ok(())
        });
    // All at once: one write of an archiver is what all of its partitions wait for.
    try_join_all(caught_up).await.map(drop)
}
