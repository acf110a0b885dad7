//! A server that breaks one promise, once: it shows that `loadtest run --verify` is an honest judge. The roles are the
//! real ones on the embedded engines; only what is named here lies between them, or between them and their clients.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use edge::config::{Config, PasswordConfig, TrustedIssuer};
use parking_lot::Mutex;
use schemas::link::{Batch, FanoutPort, Item};
use schemas::outcome::{Done, Outcome};
use schemas::{Action, Command, Event, EventId, EventKind, Record, Seq, Timestamp, Topic};
use serde_json::Value;
use stream::Log;
use testkit::cluster::{Between, Cluster};
use testkit::faulty::{FaultyFanout, FaultyLog};
use testkit::proxy::{self, Tamper};
use tokio::net::TcpListener;

/// The breach is at this one of those that it could be at: when everyone is there and more follow.
const VICTIM: u64 = 20;

/// A server that breaks one promise, once.
#[derive(Parser)]
struct Args {
    /// Which promise.
    mutant: Mutant,
    /// Address for clients.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Trusts another issuer's keys: NAME=JWKS_FILE.
    #[arg(long, value_name = "NAME=JWKS_FILE")]
    issuer: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mutant {
    /// One event is not shown to one socket.
    Drop,
    /// One event is shown to one socket twice.
    Twice,
    /// Two events of a room are shown to one socket in the wrong order.
    Swap,
    /// One send is accepted and then not stored.
    Early,
    /// One message is shown with another body.
    Corrupt,
    /// None: the judge must not find fault with an honest server.
    None,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut between = Between::default();
    match args.mutant {
        Mutant::Early => between.log = early,
        Mutant::Corrupt => between.fanout = corrupt,
        Mutant::Drop | Mutant::Twice | Mutant::Swap | Mutant::None => {}
    }
    let config = Config {
        limits: None,
        issuers: args.issuer.iter().map(|text| issuer(text)).collect::<Result<_>>()?,
        password: PasswordConfig { memory_kib: 64, passes: 1, ..PasswordConfig::default() },
        ..Config::default()
    };
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("can't listen on {}", args.listen))?;
    let url = listener.local_addr()?;
    let cluster = Cluster::start_between(config, between, SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    println!("mutant is ready: http://{url}");
    let seen = Arc::new(AtomicU64::new(0));
    tokio::select! {
        ended = proxy::run(listener, cluster.address(), || tamper(args.mutant, &seen)) => ended?,
        _ = tokio::signal::ctrl_c() => {}
    }
    cluster.stop().await
}

fn issuer(text: &str) -> Result<TrustedIssuer> {
    let (name, file) = text.split_once('=').context("expected NAME=JWKS_FILE")?;
    let jwks = std::fs::read_to_string(PathBuf::from(file)).with_context(|| format!("can't read {file}"))?;
    Ok(TrustedIssuer { name: name.to_owned(), jwks: Some(jwks), jwks_url: None, audience: "posthaste".to_owned() })
}

/// Whether this is the one.
fn is_victim(seen: &AtomicU64) -> bool {
    seen.fetch_add(1, Ordering::Relaxed) + 1 == VICTIM
}

/// What lies between the edge and its clients. An honest edge mends what is dropped, doubled or swapped before it.
fn tamper(mutant: Mutant, seen: &Arc<AtomicU64>) -> Tamper {
    let seen = Arc::clone(seen);
    let mut held: Option<(Value, String)> = None;
    Box::new(move |frame| {
        let parsed: Value = serde_json::from_str(&frame).unwrap_or_default();
        if parsed["type"] != "message" {
            return vec![frame];
        }
        if let Some((_, late)) = held.take_if(|(room, _)| *room == parsed["room"]) {
            return vec![frame, late];
        }
        match mutant {
            Mutant::Drop if is_victim(&seen) => vec![],
            Mutant::Twice if is_victim(&seen) => vec![frame.clone(), frame],
            Mutant::Swap if is_victim(&seen) => {
                held = Some((parsed["room"].clone(), frame));
                vec![]
            }
            _ => vec![frame],
        }
    })
}

/// In place of a command, its outcome is written: done.
fn early(log: Arc<dyn Log>) -> Arc<dyn Log> {
    let (seen, heads) = (AtomicU64::new(0), Mutex::new(std::collections::HashMap::new()));
    Arc::new(FaultyLog::rewriting(log, move |topic, mut record| {
        if let Ok(event) = Event::decode(&record.value) {
            heads.lock().insert(event.room, event.seq);
        }
        match Command::decode(&record.value) {
            Ok(Command { id, room, user, reply_to, received_us, action: Action::Send(_), .. }) if is_victim(&seen) => {
                let seq = heads.lock().get(&room).map_or(Seq(1), |head: &Seq| head.next());
                // As the repeat of an earlier attempt: its own would wait for the place that never comes.
                let done = Some(Done { seq, id: EventId(id.0), at: Timestamp(received_us / 1_000) });
                let outcome = Outcome { room, user, command: id, reply_to, received_us, done, rejected: None };
                record.value = outcome.encode();
                (Topic::Events, record)
            }
            _ => (topic, record),
        }
    }))
}

/// One message has another body on its way to the edge; the archive has the right one.
fn corrupt(fanout: Arc<dyn FanoutPort>) -> Arc<dyn FanoutPort> {
    let seen = AtomicU64::new(0);
    Arc::new(FaultyFanout::new(fanout, move |batch: &mut Batch| {
        for item in &mut batch.items {
            let Item::Event(event) = item else { continue };
            if let EventKind::Message(message) = &mut Arc::make_mut(event).kind
                && is_victim(&seen)
            {
                message.content.body = Some("not what was sent".to_owned());
            }
        }
    }))
}
