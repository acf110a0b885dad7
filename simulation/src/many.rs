//! Many schedules: as many at a time as there are cores, each a process; counts what happened in all of them.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use crate::Outcome;

/// In so many schedules everything of [`EXPECTED`] must have happened.
const ENOUGH: u64 = 1_000;

/// What must happen now and then, or the simulation does not try what it should: every fault, and paths that only a
/// coincidence leads to. As they are counted.
const EXPECTED: &[&str] = &[
    "fault: crash",
    "fault: zombie",
    "fault: log errors",
    "fault: log full",
    "fault: store errors",
    "fault: store full",
    "fault: offsets lost",
    "fault: slow",
    "fault: cut link",
    "fault: one-way link",
    "fault: rebalance",
    "fault: store loss",
    "fault: server clock jump",
    "fault: client clock jump",
    "fault: line break",
    "fault: slow socket",
    "fault: client crash",
    "log errors: not done",
    "log errors: unheard",
    "store errors: unheard",
    "zombie: given up by its group",
    "late end: committed",
    "late end: fenced",
    "link: batch lost",
    "link: answer lost",
    "link: edge attached again",
    "store loss: forgot rows",
    "client: heard again after a crash",
    "client: came back across a take-over",
    "call: looked at history",
    "call: looked at rooms",
    "call: stored after retries",
    "counted: archiver_cache_hits",
    "counted: archiver_flush_failures",
    "counted: archiver_rewinds",
    "counted: edge_behind",
    "counted: edge_commands_published_again",
    "counted: edge_lagging",
    "counted: edge_missed_stretches",
    "counted: fanout_edges_lost",
    "counted: ingest_dedup_hits",
    "counted: ingest_dedup_look_ups",
    "counted: ingest_failed_commits",
    "counted: ingest_room_load_failures",
    "counted: ingest_room_loads",
];

/// Some seed to begin with.
pub fn any_start() -> anyhow::Result<u64> {
    let mut bytes = [0; 4];
    std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("no randomness")?;
    Ok(u64::from(u32::from_be_bytes(bytes)))
}

/// Runs a schedule in a process of its own.
pub fn child(seed: u64, without: &[usize]) -> anyhow::Result<Outcome> {
    let without: Vec<String> = without.iter().map(ToString::to_string).collect();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--child", "--seed", &seed.to_string()]);
    if !without.is_empty() {
        command.args(["--without", &without.join(",")]);
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("can't start a process")?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("seed {seed} ended without an answer: {}", output.status))
}

/// Runs these seeds. Whether every promise held, and everything happened that must.
pub fn run(seeds: u64, start: u64) -> anyhow::Result<bool> {
    ensure!(seeds > 0, "no schedules are nothing to look at");
    println!("schedules {start}..{} (START={start} repeats them)", start + seeds);
    let bar = ProgressBar::new(seeds);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} schedules, {per_sec}, {eta} left")?);
    let next = AtomicU64::new(start);
    let total: Mutex<(BTreeMap<String, u64>, u64, u64)> = Mutex::default();
    let failed: Mutex<BTreeMap<u64, Vec<String>>> = Mutex::default();
    #[expect(clippy::disallowed_methods, reason = "how long all of it took, for people")]
    let begun = Instant::now();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= start + seeds {
                        return;
                    }
                    match child(seed, &[]) {
                        Ok(outcome) => {
                            let mut total = total.lock();
                            outcome
                                .seen
                                .into_iter()
                                .for_each(|(what, times)| *total.0.entry(what).or_default() += times);
                            total.1 += outcome.polls;
                            total.2 += outcome.steps;
                            if !outcome.broken.is_empty() {
                                bar.println(format!("seed {seed}: {}", outcome.broken[0]));
                                failed.lock().insert(seed, outcome.broken);
                            }
                        }
                        Err(error) => {
                            bar.println(format!("seed {seed}: {error:#}"));
                            failed.lock().insert(seed, vec![format!("{error:#}")]);
                        }
                    }
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let took = begun.elapsed();
    let ((seen, polls, steps), failed) = (total.into_inner(), failed.into_inner());
    for (what, times) in &seen {
        println!("{times:>10}  {what}");
    }
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let per_second = seeds as f64 / took.as_secs_f64();
    println!(
        "{seeds} schedules in {:.1} s, {per_second:.1} a second ({:.0} a minute); {polls} polls of tasks, {steps} steps seen",
        took.as_secs_f64(),
        per_second * 60.0,
    );
    let missing: Vec<&str> = EXPECTED.iter().filter(|what| !seen.contains_key(**what)).copied().collect();
    if seeds >= ENOUGH && !missing.is_empty() {
        println!("never happened: {}", missing.join(", "));
    }
    for (seed, broken) in &failed {
        println!("SEED={seed} make simulate   # {}", broken[0]);
    }
    println!("{} of {seeds} failed", failed.len());
    Ok(failed.is_empty() && (seeds < ENOUGH || missing.is_empty()))
}
