//! Roles find one another and speak over the network: what `schemas::link` promises within one process, between several.
//! Owns the topic `cluster` (who lives, who owns what), the wire, its TLS, and network implementations of the ports. Decides
//! nothing about messages; nothing above the ports knows of it.
//!
//! A process of the cluster does this:
//!
//! ```text
//! all        announce(log, clock, Me { id, role, address, started_at }, news, stop)    says that it lives and what it owns
//! fanout     serve(listener, tls, me, Services { fanout: Some(handle), .. }, …)        owned: handle.owned()
//! archiver   serve(listener, tls, me, Services { history: Some(port), .. }, …)         owned: worker.owned()
//! ingest     nothing more                                                              owned: the sender of run_telling
//! edge       directory = Directory::new(log, clock, …, limits); directory.run(stop)    news: what people used of limits
//!            links = Links::new(Deps { me, tls, directory, entropy }, …); links.run(stop)
//!            edge::Deps { fanout: links.fanout(), history: links.history(archiver::reader(…)), .. }
//! ```
//!
//! `Directory::members` is what a person is shown of the cluster. The wire is in docs/decisions/0018.

mod client;
pub mod cluster;
mod config;
mod fanout;
mod frame;
mod history;
mod metrics;
mod server;
mod tls;
mod wire;
mod words;

use tokio::sync::watch;

pub use client::{Deps, Links};
pub use cluster::{Directory, Me, News, announce};
pub use config::Config;
pub use fanout::RemoteFanout;
pub use history::RemoteHistory;
pub use metrics::Metrics;
pub use server::{Services, serve};
pub use tls::{Tls, TlsError};

/// Returns when told to stop.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // A sender that is gone can't say so any more.
    let _ = shutdown.wait_for(|stop| *stop).await;
}
