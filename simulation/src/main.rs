//! `simulate`: thousands of schedules of the real roles and clients on engines in memory, each from a seed: who goes on
//! when, what people do, what goes wrong. A schedule is a process of its own, so that nothing of the one before it is
//! left, and a seed gives the same history each time.

mod dice;
mod inside;
mod links;
mod log;
mod many;
mod network;
mod people;
mod plan;
mod random;
mod record;
mod store;
mod surroundings;
mod tasks;
mod time;
mod world;

use std::process::ExitCode;
use std::sync::OnceLock;

use clap::Parser;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::plan::Plan;

/// Simulates schedules. Exit status 0: every promise held; 1: one was broken, or something that must happen now and
/// then never did; 2: it could not run.
#[derive(Parser)]
struct Args {
    /// How many schedules.
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed; chance chooses it where it is not given.
    #[arg(long)]
    start: Option<u64>,
    /// Replays this one seed, tells what happened, and drops faults while it still fails.
    #[arg(long)]
    seed: Option<u64>,
    /// Leaves these faults out, by number.
    #[arg(long, value_delimiter = ',')]
    without: Vec<usize>,
    /// Runs the seed in this process and answers in JSON.
    #[arg(long, hide = true)]
    child: bool,
}

/// What came of a schedule.
#[derive(Serialize, Deserialize)]
struct Outcome {
    /// Broken promises, each a line for people.
    broken: Vec<String>,
    /// What happened, and how often.
    seen: std::collections::BTreeMap<String, u64>,
    /// Polls of tasks.
    polls: u64,
    /// Steps that clients saw.
    steps: u64,
    /// What stands for all of it: the same for each run of a seed.
    trace: u64,
}

/// Tells the schedule's own time, ms since it was first asked for.
struct Since(OnceLock<tokio::time::Instant>);

impl FormatTime for Since {
    fn format_time(&self, out: &mut Writer<'_>) -> std::fmt::Result {
        let begun = *self.0.get_or_init(tokio::time::Instant::now);
        write!(out, "{} ms", begun.elapsed().as_millis())
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("simulate: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> anyhow::Result<bool> {
    match args.seed {
        Some(seed) if args.child => {
            random::seed(seed);
            tracing_subscriber::fmt()
                // What goes wrong here is meant to.
                .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off")))
                .with_writer(std::io::stderr)
                .with_timer(Since(OnceLock::new()))
                .init();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
            let outcome = runtime.block_on(world::run(seed, &args.without));
            println!("{}", serde_json::to_string(&outcome)?);
            Ok(outcome.broken.is_empty())
        }
        Some(seed) => replay(seed, args.without.clone()),
        None => many::run(args.seeds, args.start.map_or_else(many::any_start, Ok)?),
    }
}

/// One seed, for people.
fn replay(seed: u64, without: Vec<usize>) -> anyhow::Result<bool> {
    let outcome = many::child(seed, &without)?;
    for (what, times) in &outcome.seen {
        println!("{times:>8}  {what}");
    }
    println!("seed {seed}: {} polls, {} steps, trace {:016x}", outcome.polls, outcome.steps, outcome.trace);
    let mut left = without;
    let mut last = outcome;
    if !last.broken.is_empty() {
        // One fault after the other is dropped for good if it fails without it too.
        for (number, _) in Plan::new(seed, &left).harms {
            let fewer: Vec<usize> = left.iter().copied().chain([number]).collect();
            let outcome = many::child(seed, &fewer)?;
            if !outcome.broken.is_empty() {
                (left, last) = (fewer, outcome);
            }
        }
        println!("it fails still without {left:?}; these are left:");
    }
    let plan = Plan::new(seed, &left);
    println!("{:?}, {} partitions, {} rooms", plan.layout, plan.partitions, plan.rooms.len());
    for (number, harm) in &plan.harms {
        println!("  fault {number} at {} ms for {} ms: {:?}", harm.at_ms, harm.for_ms, harm.what);
    }
    for broken in &last.broken {
        println!("broken: {broken}");
    }
    Ok(last.broken.is_empty())
}
