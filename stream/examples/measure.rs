//! Measures the embedded log on a directory's disk: `cargo run --release -p stream --example measure [DIR]`. Each line
//! stands beside what a bare sync of the same disk took in the same seconds, for that is the floor.
#![expect(clippy::unwrap_used, reason = "a measurement stops where something goes wrong")]
#![expect(clippy::disallowed_methods, reason = "a measurement needs the real clock")]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use prometheus::Registry;
use schemas::{Partition, Topic};
use stream::embedded::{Config, EmbeddedLog, Metrics};
use stream::{Log, Record, Transaction};

const PARTITIONS: u32 = 8;
const RECORD_BYTES: usize = 300;
const EACH: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() {
    let parent = std::env::args().nth(1).unwrap_or_else(|| ".".into());
    let dir = tempfile::tempdir_in(parent).unwrap();
    let registry = Registry::new();
    let log = EmbeddedLog::open(dir.path(), Config::default(), Metrics::new(&registry).unwrap()).unwrap();
    log.create(PARTITIONS).await.unwrap();
    let log: Arc<dyn Log> = Arc::new(log);
    println!(
        "producers records/tx      tx/s  records/s   p50 ms   p99 ms | bare fdatasync p50 ms   p99 ms | tx/commit"
    );
    for (producers, records) in [(1, 1), (16, 1), (256, 1), (16, 200)] {
        let (p50, p99) = bare_syncs(dir.path());
        let commits = commits(&registry);
        let started = Instant::now();
        let mut latencies = transactions(&log, producers, records).await;
        let seconds = started.elapsed().as_secs_f64();
        let rate = latencies.len() as f64 / seconds;
        let group = latencies.len() as f64 / (self::commits(&registry) - commits) as f64;
        println!(
            "{producers:9} {records:10} {rate:9.0} {:10.0} {:8.2} {:8.2} | {p50:21.2} {p99:8.2} | {group:9.1}",
            rate * records as f64,
            quantile(&mut latencies, 0.50),
            quantile(&mut latencies, 0.99),
        );
    }
}

/// Latencies of transactions, by so many producers at once.
async fn transactions(log: &Arc<dyn Log>, producers: u32, records: usize) -> Vec<Duration> {
    let stop = Arc::new(AtomicBool::new(false));
    let tasks: Vec<_> = (0..producers)
        .map(|producer| {
            let (log, stop) = (Arc::clone(log), Arc::clone(&stop));
            tokio::spawn(async move {
                let partition = Partition(producer % PARTITIONS);
                let mut producer = log.producer(&format!("t{producer}")).await.unwrap();
                let record = Record { key: [1; 16], value: vec![b'x'; RECORD_BYTES].into() };
                let mut latencies = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let records = (0..records).map(|_| (Topic::Events, partition, record.clone())).collect();
                    let began = Instant::now();
                    producer.commit(Transaction { records, consumed: None }).await.unwrap();
                    latencies.push(began.elapsed());
                }
                latencies
            })
        })
        .collect();
    tokio::time::sleep(EACH).await;
    stop.store(true, Ordering::Relaxed);
    let mut all = Vec::new();
    for task in tasks {
        all.extend(task.await.unwrap());
    }
    all
}

/// Milliseconds that a page and its sync take without any log: median and 99th percentile.
fn bare_syncs(dir: &Path) -> (f64, f64) {
    let mut file = File::create(dir.join("bare")).unwrap();
    let mut latencies = Vec::new();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(1) {
        let began = Instant::now();
        file.write_all(&[0; 4096]).unwrap();
        file.sync_data().unwrap();
        latencies.push(began.elapsed());
    }
    (quantile(&mut latencies, 0.50), quantile(&mut latencies, 0.99))
}

fn quantile(latencies: &mut [Duration], share: f64) -> f64 {
    latencies.sort_unstable();
    latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3
}

fn commits(registry: &Registry) -> u64 {
    let families = registry.gather();
    let commits = families.iter().find(|family| family.name() == "posthaste_log_commit_seconds").unwrap();
    commits.get_metric()[0].get_histogram().get_sample_count()
}
