//! The load test: speaks the public protocol alone, and judges what the server did. Exit status: 0 it ran and, with
//! `--verify`, every promise held; 1 a promise was broken; 2 it could not run, or what `--marks` names could not be read.

mod api;
mod body;
mod book;
mod client;
mod clock;
mod http;
mod keys;
mod marks;
mod plan;
mod progress;
mod report;
mod run;
mod setup;
mod tls;
mod waits;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Loads a Posthaste server through its public protocol and verifies what it promises.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a load. Exit 0: it ran, and with --verify every promise held; 1: a promise was broken; 2: could not run
    Run(Box<run::Options>),
    /// Writes an issuer's key.pem and jwks.json
    Keygen {
        /// Where to
        dir: PathBuf,
    },
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Run(options) => match load(*options) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::from(1),
            Err(error) => failed(&error),
        },
        Command::Keygen { dir } => match keys::generate(&dir) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        },
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("loadtest: could not run: {error:#}");
    ExitCode::from(2)
}

/// Runs, reports, and says whether every promise held.
fn load(options: run::Options) -> Result<bool> {
    let (json, page) = (options.json.clone(), options.report.clone());
    // Each user is a file to the system. Where it does not allow as many, connecting says so.
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files });
    // The server shares the machine: half of it at most.
    let threads = std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .context("can't start")?;
    let report = runtime.block_on(run::run(options))?;
    // The sockets end with the process; waiting for each to notice would be of no use.
    runtime.shutdown_background();
    print!("{}", report.table());
    if let Some(path) = json {
        report.write_json(&path)?;
    }
    if let Some(dir) = page {
        report.write_page(&dir)?;
    }
    // A broken promise is what has to be known first.
    let clean = report.is_clean();
    if clean && let [first, ..] = report.wrong_marks() {
        bail!("the report lacks marks: {first}");
    }
    Ok(clean)
}
