//! Measures the log on a Kafka of one node that it starts: `cargo run -p stream --example kafka` (after
//! `scripts/jars.sh engines/kafka.jars`). What a producer costs, how long a transaction takes, and how soon partitions
//! have another owner, by each protocol of groups. Started by itself with an address it is the member that is killed.
#![expect(clippy::unwrap_used, reason = "a measurement stops where something goes wrong")]
#![expect(clippy::disallowed_methods, reason = "a measurement needs the real clock")]

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use engines::kafka::Kafka;
use schemas::{Partition, Topic};
use stream::kafka::{Config, KafkaLog, Protocol};
use stream::{Consumer, Log, Polled, Record, Transaction};

const PARTITIONS: u32 = 8;
const EACH: Duration = Duration::from_secs(4);
const TAKEOVERS: usize = 5;
const GROUP: &str = "measured";
/// The last record is under way: whoever counts stops when it comes.
static STOP: AtomicBool = AtomicBool::new(false);

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [bootstrap, protocol] = &arguments[..] {
        let log = connect(bootstrap, named(protocol)).await;
        let mut member = log.consumer(GROUP, &[Topic::Commands]).await.unwrap();
        hold(&mut *member, PARTITIONS as usize).await;
        println!("joined");
        return std::future::pending().await;
    }
    let kafka = Kafka::start(1).unwrap();
    let bootstrap = kafka.bootstrap();
    println!("\ninstances  init ms  threads/producer  RSS KiB/producer  commit p50 ms  p99 ms  seen p50 ms  p99 ms");
    for instances in [1, 2, 3] {
        transactions(&bootstrap, instances).await;
    }
    println!("\nprotocol  join s  leave s  kill -9 s (median of {TAKEOVERS}, and the longest)");
    for protocol in ["consumer", "classic"] {
        take_overs(&bootstrap, protocol).await;
    }
}

fn named(protocol: &str) -> Protocol {
    if protocol == "classic" { Protocol::Classic } else { Protocol::Consumer }
}

async fn connect(bootstrap: &str, protocol: Protocol) -> KafkaLog {
    let prefix = format!("{protocol:?}-");
    let config = Config { prefix, protocol, replication: 1, min_in_sync: 1, ..Config::new(bootstrap) };
    let log = KafkaLog::connect(config).await.unwrap();
    log.create(PARTITIONS).await.unwrap();
    log
}

/// Threads and resident KiB of this process.
fn costs() -> (i64, i64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let number = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (number("Threads:"), number("VmRSS:"))
}

fn quantile(sorted: &[Duration], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize].as_secs_f64() * 1_000.0
}

/// One producer after the other does nothing but commit one event of 200 bytes, as ingest does when little is sent.
async fn transactions(bootstrap: &str, instances: usize) {
    const PRODUCERS: u32 = 4;
    STOP.store(false, Ordering::Relaxed);
    let config = Config {
        prefix: format!("by-{instances}-"),
        instances,
        replication: 1,
        min_in_sync: 1,
        ..Config::new(bootstrap)
    };
    let log = KafkaLog::connect(config).await.unwrap();
    log.create(PARTITIONS).await.unwrap();
    log.end(Topic::Events, Partition(0)).await.unwrap();
    let (threads, rss) = costs();
    let (mut producers, mut init) = (Vec::new(), Duration::ZERO);
    for partition in 0..PRODUCERS {
        let began = Instant::now();
        producers.push(log.producer(&format!("ingest-{partition}")).await.unwrap());
        init += began.elapsed();
    }
    let record = || Record { key: [7; 16], value: vec![7; 200].into() };
    for (partition, producer) in producers.iter_mut().enumerate() {
        let records = (0..9).map(|_| (Topic::Events, Partition(partition as u32), record())).collect();
        producer.commit(Transaction { records, consumed: None }).await.unwrap();
    }
    let (threads, rss) = (costs().0 - threads, costs().1 - rss);

    let mut member = log.consumer(GROUP, &[Topic::Events]).await.unwrap();
    hold(&mut *member, PARTITIONS as usize).await;
    let reading = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Ok(polled) = member.poll().await {
            if let Polled::Records(fetched) = polled {
                let records: usize = fetched.iter().map(|fetched| fetched.records.len()).sum();
                seen.extend(std::iter::repeat_n(Instant::now(), records));
            }
            if STOP.load(Ordering::Relaxed) {
                break;
            }
        }
        seen
    });
    // What was sent before the measurement has been seen.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (mut commits, mut begins) = (Vec::new(), Vec::new());
    let until = Instant::now() + EACH;
    while Instant::now() < until {
        let began = Instant::now();
        let records = vec![(Topic::Events, Partition(0), record())];
        producers[0].commit(Transaction { records, consumed: None }).await.unwrap();
        commits.push(began.elapsed());
        begins.push(began);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    STOP.store(true, Ordering::Relaxed);
    producers[0]
        .commit(Transaction { records: vec![(Topic::Events, Partition(0), record())], consumed: None })
        .await
        .unwrap();
    let seen = reading.await.unwrap();
    let seen = &seen[4 * 9..];
    let mut delays: Vec<Duration> = begins.iter().zip(seen).map(|(began, seen)| seen.duration_since(*began)).collect();
    commits.sort();
    delays.sort();
    println!(
        "{instances:9}  {:7.0}  {:16.1}  {:16}  {:13.1}  {:6.1}  {:11.1}  {:6.1}   ({} transactions)",
        init.as_secs_f64() * 1_000.0 / f64::from(PRODUCERS),
        threads as f64 / f64::from(PRODUCERS),
        rss / i64::from(PRODUCERS),
        quantile(&commits, 0.5),
        quantile(&commits, 0.99),
        quantile(&delays, 0.5),
        quantile(&delays, 0.99),
        commits.len(),
    );
}

/// Polls until the member has as many partitions as that.
async fn hold(member: &mut dyn Consumer, count: usize) {
    let mut has = BTreeSet::new();
    while has.len() != count {
        match member.poll().await.unwrap() {
            Polled::Assigned { partitions, .. } => has.extend(partitions),
            Polled::Revoked(partitions) => has.retain(|partition| !partitions.contains(partition)),
            Polled::Records(_) => {}
        }
    }
}

/// One member is there; another process joins, and leaves or is killed.
async fn take_overs(bootstrap: &str, protocol: &str) {
    let log = connect(bootstrap, named(protocol)).await;
    let mut stays = log.consumer(GROUP, &[Topic::Commands]).await.unwrap();
    hold(&mut *stays, PARTITIONS as usize).await;
    let (mut joins, mut leaves, mut kills) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..TAKEOVERS {
        // In this process, for leaving in order.
        let began = Instant::now();
        let mut other = log.consumer(GROUP, &[Topic::Commands]).await.unwrap();
        tokio::join!(hold_change(&mut *stays), hold(&mut *other, PARTITIONS as usize / 2));
        joins.push(began.elapsed());
        let began = Instant::now();
        drop(other);
        hold_gain(&mut *stays).await;
        leaves.push(began.elapsed());
    }
    drop(stays);
    for _ in 0..TAKEOVERS {
        // The one that is killed has all, and the heir joins the moment it is dead, as a supervisor starts it.
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args([bootstrap, protocol])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = victim.stdout.take().unwrap();
        let joined = tokio::task::spawn_blocking(move || BufReader::new(output).lines().next());
        joined.await.unwrap().unwrap().unwrap();
        victim.kill().unwrap();
        victim.wait().unwrap();
        let began = Instant::now();
        let mut heir = log.consumer(GROUP, &[Topic::Commands]).await.unwrap();
        hold(&mut *heir, PARTITIONS as usize).await;
        kills.push(began.elapsed());
    }
    let shown = |durations: &mut Vec<Duration>| {
        durations.sort();
        format!("{:.2} {:.2}", quantile(durations, 0.5) / 1_000.0, quantile(durations, 1.0) / 1_000.0)
    };
    println!("{protocol:8}  {}  {}  {}", shown(&mut joins), shown(&mut leaves), shown(&mut kills));
}

/// Until half is gone; with the classic protocol all of it is for a moment.
async fn hold_change(member: &mut dyn Consumer) {
    let mut has: BTreeSet<Partition> = (0..PARTITIONS).map(Partition).collect();
    while has.len() != PARTITIONS as usize / 2 {
        match member.poll().await.unwrap() {
            Polled::Assigned { partitions, .. } => has.extend(partitions),
            Polled::Revoked(partitions) => has.retain(|partition| !partitions.contains(partition)),
            Polled::Records(_) => {}
        }
    }
}

/// Until there is more than half.
async fn hold_gain(member: &mut dyn Consumer) {
    let mut gained = 0;
    while gained < PARTITIONS as usize / 2 {
        if let Polled::Assigned { partitions, .. } = member.poll().await.unwrap() {
            gained += partitions.len();
        }
    }
}
