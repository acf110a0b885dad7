//! Ingest on Kafka, with a backlog of commands waiting: records decided a second with transactions as they are, and
//! without, in turn on the same broker. The role is the real one; [`crate::between`] is what differs.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use store::memory::MemoryStore;
use tokio::time::timeout;

use crate::between::{Between, Mode, Seen};
use crate::commands::Maker;
use crate::ground::{self, Role};
use crate::report::{Table, median, number, progress};

/// A run takes no longer, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is run.
#[derive(Args)]
pub struct Options {
    /// Messages that wait when ingest begins: about 13,000 fill a round.
    #[arg(long, default_value_t = 200_000)]
    records: usize,
    /// Rooms in which they are.
    #[arg(long, default_value_t = 100)]
    rooms: usize,
    /// Partitions in which these are.
    #[arg(long, default_value_t = 4)]
    partitions: u32,
    /// Runs with transactions, and as many without.
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

/// Measures.
pub async fn measure(options: Options) -> anyhow::Result<Table> {
    let kafka = ground::kafka().await?;
    let bar = progress("ingest", 2 * (options.runs as u64 + 1));
    let columns = ["records/s", "without", "ratio", "commits", "commits without"];
    let mut table = Table::new("ingest", &columns);
    let mut ratios = Vec::new();
    // The first pair warms the broker up and does not count.
    for pair in 0..=options.runs {
        // Who is second is on a warmer broker: in turn.
        let mut modes = [Mode::Transactions, Mode::Plain];
        if pair % 2 == 1 {
            modes.reverse();
        }
        let mut rates = [(0.0, 0.0); 2];
        for mode in modes {
            let seen = run(&kafka.bootstrap(), &format!("{mode:?}-{pair}."), mode, &options).await?;
            let (first, last) = seen.first.zip(seen.last).context("nothing was decided")?;
            rates[mode as usize] = (number(seen.commands) / (last - first).as_secs_f64(), number(seen.commits));
            bar.inc(1);
        }
        if pair > 0 {
            let [(with, commits), (without, commits_without)] = rates;
            ratios.push(with / without);
            table.row(format!("pair {pair}"), [with, without, with / without, commits, commits_without]);
        }
    }
    bar.finish_and_clear();
    let spread = |pick: fn(f64, f64) -> f64| ratios.iter().copied().reduce(pick).unwrap_or_default();
    table.note(format!(
        "ratio: median {:.3}, from {:.3} to {:.3}; the goal is 0.9 or more",
        median(&ratios),
        spread(f64::min),
        spread(f64::max)
    ));
    table.note(format!(
        "{} sends of about 250 bytes in {} rooms, {} partitions, from the first record to the last commit",
        options.records, options.rooms, options.partitions
    ));
    table.note("without: the same batches by an idempotent producer with acks=all, then a plain commit of offsets");
    Ok(table)
}

/// One run on topics of its own. All commands are surely accepted, or it fails.
async fn run(bootstrap: &str, prefix: &str, mode: Mode, options: &Options) -> anyhow::Result<Seen> {
    let log = ground::log(bootstrap, prefix, options.partitions).await?;
    let maker = Maker::new(PATIENCE * 2);
    let owner = maker.person();
    let (places, creates): (Vec<_>, Vec<_>) = (0..options.rooms).map(|_| maker.create(owner)).unzip();
    ground::append(log.as_ref(), creates).await?;
    let sends = places.iter().cycle().take(options.records).map(|place| maker.send(*place));
    ground::append(log.as_ref(), sends.collect()).await?;

    let between = Between::new(log, mode);
    let mut seen = between.seen();
    // Asked once for each room, whichever mode: in memory, so that the log alone is measured.
    let ingest = Role::ingest(Arc::new(between), Arc::new(MemoryStore::new()), ingest::Config::default())?;
    let whole = (options.records + options.rooms) as u64;
    let done = timeout(PATIENCE, seen.wait_for(|seen| seen.commands >= whole)).await;
    ingest.check()?;
    let done = *done.context("a run took too long")??;
    let accepted = ingest.accepted();
    ensure!(accepted == whole, "{accepted} of {whole} commands were accepted");
    ingest.stop().await?;
    Ok(done)
}
