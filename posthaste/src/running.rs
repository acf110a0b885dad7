//! The frame of a process: its signals, its admin listener, the futures that run in it, and the order in which they stop.
//! Knows no role.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use futures_util::future::select_all;
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admin::{self, Process, Readiness};
use crate::config::Settings;
use crate::shutdown::Signals;

/// A process that has begun.
pub struct Running {
    /// Where its parts count and time.
    pub registry: Registry,
    /// Of health and metrics.
    pub admin_url: String,
    ready: Readiness,
    signals: Signals,
    /// The one that has come.
    signal: Option<&'static str>,
    grace: Duration,
    /// In the order in which they were started. They stop in the opposite one: who feeds others before those that it
    /// feeds.
    parts: Vec<Part>,
}

struct Part {
    name: &'static str,
    stop: watch::Sender<bool>,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    /// Takes the signals over and answers on the admin listener: alive, not ready.
    pub async fn begin(settings: &Settings) -> anyhow::Result<Self> {
        let signals = Signals::new().context("can't listen to signals")?;
        let registry = Registry::new();
        registry.register(Box::new(Process::new()?))?;
        let ready = Readiness::default();
        let listener = bind(settings.admin_listen).await?;
        let admin_url = url_of("http", &listener)?;
        let router = admin::router(registry.clone(), ready.clone());
        let mut this =
            Self { registry, admin_url, ready, signals, signal: None, grace: settings.grace(), parts: Vec::new() };
        this.start("admin", |stop| async move {
            Ok(axum::serve(listener, router).with_graceful_shutdown(stopped(stop)).await?)
        });
        Ok(this)
    }

    /// Starts a part, which runs until it is told to stop.
    pub fn start<F>(&mut self, name: &'static str, part: impl FnOnce(watch::Receiver<bool>) -> F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(false);
        self.parts.push(Part { name, stop, task: tokio::spawn(part(stopped)) });
    }

    /// Starts a duty that never ends by itself.
    pub fn start_duty(&mut self, name: &'static str, duty: impl Future<Output = ()> + Send + 'static) {
        self.start_watch(name, async {
            duty.await;
            Ok(())
        });
    }

    /// Starts a duty that never ends by itself but where it fails.
    pub fn start_watch<F>(&mut self, name: &'static str, duty: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.start(name, |stop| async move {
            tokio::select! {
                ended = duty => ended,
                () = stopped(stop) => Ok(()),
            }
        });
    }

    /// Does what has to be done before the process is ready. `None`: it was told to stop meanwhile.
    ///
    /// # Errors
    /// Of that work, or of a part that has ended meanwhile.
    pub async fn first<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<Option<T>> {
        tokio::select! {
            error = ended(&mut self.parts) => Err(error),
            signal = self.signals.next() => {
                self.signal = Some(signal);
                Ok(None)
            }
            done = work => done.map(Some),
        }
    }

    /// Says that the process is ready, and goes on until it is told to stop.
    ///
    /// # Errors
    /// Of a part that has ended though nobody has told it to.
    pub async fn serve(&mut self, greeting: &str) -> anyhow::Result<()> {
        self.ready.set(true);
        println!("posthaste is ready: {greeting}, health and metrics at {}", self.admin_url);
        self.first(std::future::pending::<anyhow::Result<()>>()).await.map(drop)
    }

    /// Stops one part after the other: each may rely on those started before it until it has ended.
    ///
    /// # Errors
    /// Of a part that fails at that, or a second signal.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        tracing::info!(signal = self.signal, "stopping; a second signal ends the process at once");
        self.ready.set(false);
        let stop = async {
            for part in self.parts.into_iter().rev() {
                part.stop.send_replace(true);
                part.task
                    .await
                    .map_err(anyhow::Error::new)
                    .flatten()
                    .with_context(|| format!("{} has failed", part.name))?;
                tracing::debug!(part = part.name, "stopped");
            }
            Ok(())
        };
        tokio::select! {
            stopped = tokio::time::timeout(self.grace, stop) => stopped.unwrap_or_else(|_| {
                tracing::warn!("the grace time is over; nothing that was acknowledged is lost");
                Ok(())
            }),
            _ = self.signals.next() => Err(anyhow!("ended by a second signal")),
        }
    }
}

/// Waits until one ends that nobody has told to, and says why. Such an end is a fault that the part did not foresee; the
/// process ends with it (docs/decisions/0007).
async fn ended(parts: &mut Vec<Part>) -> anyhow::Error {
    let (result, index, _) = select_all(parts.iter_mut().map(|part| &mut part.task)).await;
    let name = parts.swap_remove(index).name;
    match result {
        Ok(Ok(())) => anyhow!("{name} has ended though nobody told it to"),
        Ok(Err(error)) => error.context(format!("{name} has failed")),
        Err(panic) => anyhow::Error::new(panic).context(format!("{name} has failed")),
    }
}

/// Listens.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("can't listen on {address}"))
}

/// Where a listener is found.
pub fn url_of(scheme: &str, listener: &TcpListener) -> anyhow::Result<String> {
    Ok(format!("{scheme}://{}", listener.local_addr()?))
}

/// Returns when told to stop.
pub async fn stopped(mut stop: watch::Receiver<bool>) {
    // A sender that is gone tells the same.
    let _ = stop.wait_for(|stop| *stop).await;
}
