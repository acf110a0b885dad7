//! `posthaste admin status`: which processes of a cluster live, who owns what, and how far each group is behind. Reads what
//! the processes themselves go by.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use link::Directory;
use link::cluster::Living;
use prometheus::Registry;
use schemas::cluster::Role;
use schemas::{Clock as _, Partition, Timestamp};
use tokio::sync::watch;

use crate::config::Settings;
use crate::engines;
use crate::lag;
use crate::readers;
use crate::telemetry::SystemClock;

/// Who lives says so every second: after this long all have been heard.
const LISTEN: Duration = Duration::from_millis(1_500);
/// Where someone seems to be missing, they are given so long again: on a busy machine they may be late.
const LISTEN_AGAIN: u32 = 3;

/// Prints it. Exit status 0: each partition has an owner in each role, and an edge lives; 1: not.
pub async fn run(settings: &Settings) -> anyhow::Result<ExitCode> {
    if settings.kafka.is_none() {
        println!(
            "the log is in the directory {}: all roles are in the one process that serves",
            settings.data.display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    let registry = Registry::new();
    let (log, _lock) = engines::open_log(settings, &registry).await?;
    let clock = Arc::new(SystemClock::new());
    let directory = Directory::new(log.clone(), clock.clone(), link::cluster::Metrics::new(&registry)?, None);
    let (_stop, stopped) = watch::channel(false);
    // It reads until it is told to stop, which nobody does.
    let mut reading = std::pin::pin!(directory.clone().run(stopped));
    for _ in 0..=LISTEN_AGAIN {
        let _ = tokio::time::timeout(LISTEN, &mut reading).await;
        if complaints(&directory.living(), log.partitions()).is_empty() {
            break;
        }
    }

    let (members, now) = (directory.members(), clock.now());
    println!("{:<9} {:<36}  {:<21} {:>9}  {:>6}  partitions", "role", "instance", "link", "up", "heard");
    for role in Role::ALL {
        for member in members.iter().filter(|member| member.instance.role == role) {
            let instance = &member.instance;
            let owned: BTreeSet<u32> = instance.owned.iter().map(|owned| owned.partition.0).collect();
            let owned: Vec<String> = owned.into_iter().map(|partition| partition.to_string()).collect();
            println!(
                "{:<9} {}  {:<21} {:>9}  {:>4.1} s  {}",
                role.name(),
                instance.id,
                if instance.address.is_empty() { "-" } else { &instance.address },
                up(instance.started_at, now),
                member.age.as_secs_f64(),
                if owned.is_empty() { "-".to_owned() } else { owned.join(",") },
            );
        }
    }
    println!();
    for (group, topic, records) in lag::all(&*log, &readers::GROUPS).await? {
        println!("{group:<9} {topic:<12} {records:>9} records behind", topic = topic.name());
    }
    let complaints = complaints(&directory.living(), log.partitions());
    for complaint in &complaints {
        println!("{complaint}");
    }
    Ok(if complaints.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What nobody does, for people.
fn complaints(living: &Living, partitions: u32) -> Vec<String> {
    let mut complaints = Vec::new();
    for role in [Role::Ingest, Role::Fanout, Role::Archiver] {
        let free = (0..partitions).filter(|partition| living.owner(role, Partition(*partition)).is_none());
        let free: Vec<String> = free.map(|partition| partition.to_string()).collect();
        if !free.is_empty() {
            complaints.push(format!("no {role} owns partition {}", free.join(",")));
        }
    }
    if living.of(Role::Edge).next().is_none() {
        complaints.push("no edge lives".to_owned());
    }
    complaints
}

/// How long a process has been up, in the largest unit that says enough. By its own clock, so it may be a little off.
fn up(since: Timestamp, now: Timestamp) -> String {
    let s = now.since(since).as_secs();
    match s {
        0..120 => format!("{s} s"),
        120..7_200 => format!("{} min", s / 60),
        7_200..172_800 => format!("{} h", s / 3_600),
        _ => format!("{} d", s / 86_400),
    }
}
