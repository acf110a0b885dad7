//! `posthaste admin …`: what an operator does beside a server that runs. Works on the data directory, so that whoever may
//! read and write it is the operator, and nobody else is: there is no address for this, and no token. The server sees what
//! has changed with its next poll.

mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand};
use schemas::Clock as _;
use store::shut_outs::{Network, SHUT_OUTS_MAX, ShutOut, ShutOuts as _, Subject};
use store::sqlite::SqliteStore;

use crate::config::{self, Settings};
use crate::telemetry::SystemClock;

/// Which installation.
#[derive(Args)]
pub struct Flags {
    /// Settings file (TOML). Also POSTHASTE_CONFIG.
    #[arg(long, value_name = "FILE", env = "POSTHASTE_CONFIG", global = true)]
    config: Option<PathBuf>,
    /// Directory of all data. Default: data
    #[arg(long, value_name = "DIR", global = true)]
    data: Option<PathBuf>,
}

/// What can be done.
#[derive(Subcommand)]
pub enum Command {
    /// Addresses and accounts that are shut out for a time because they kept breaking limits.
    Blocks {
        #[command(subcommand)]
        command: Option<Blocks>,
    },
    /// Reads the archive through: every room dense, chained and indexed. Exit status 0: it is clean; 1: each breach was
    /// printed; 2: it could not be read.
    Verify,
}

/// What can be done about shut-outs.
#[derive(Subcommand)]
pub enum Blocks {
    /// Lists those in force (the default).
    List,
    /// Lets somebody in again, with all that led to it forgiven. The server knows within a second.
    Lift {
        /// As it is listed: a network, an account's id; or an address in the network.
        #[arg(value_name = "KEY", required_unless_present = "all")]
        key: Option<String>,
        /// Everybody.
        #[arg(long, conflicts_with = "key")]
        all: bool,
    },
}

/// Does it. Exit status 2: what is asked for makes no sense; 1: it could not be done.
pub fn run(flags: &Flags, command: &Command) -> ExitCode {
    let flags = config::Flags { config: flags.config.clone(), data: flags.data.clone(), ..config::Flags::default() };
    let settings = match config::load(&flags) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error),
    };
    let command = match command {
        Command::Blocks { command } => command,
        Command::Verify => return verify::run(&settings.data),
    };
    let lifted = match command {
        None | Some(Blocks::List) => None,
        Some(Blocks::Lift { key: Some(key), .. }) => match subject(key, &settings) {
            Some(subject) => Some(Some(subject)),
            None => return refuse(&format!("{key:?} is neither a network like 192.0.2.0/24 nor an account's id")),
        },
        Some(Blocks::Lift { key: None, .. }) => Some(None),
    };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => match runtime.block_on(blocks(&settings, lifted)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("posthaste: {error:#}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("posthaste: can't start the runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

fn refuse(why: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("posthaste: {why}");
    ExitCode::from(crate::EXIT_USAGE)
}

/// Whom a key names; a bare address stands for what the limits count as one with it.
fn subject(key: &str, settings: &Settings) -> Option<Subject> {
    match (key.parse(), &settings.edge.limits) {
        (Ok(address), Some(limits)) => {
            Some(Subject::Address(Network::around(address, limits.ipv4_prefix_bits, limits.ipv6_prefix_bits)))
        }
        _ => key.parse().ok(),
    }
}

/// Lifts, where that is asked for; else lists.
async fn blocks(settings: &Settings, lifted: Option<Option<Subject>>) -> anyhow::Result<()> {
    let store = SqliteStore::open_beside(&settings.data)
        .with_context(|| format!("no store can be opened in {}", settings.data.display()))?;
    let now = SystemClock::new().now();
    if let Some(subject) = lifted {
        let count = store.lift_shut_outs(subject, now).await?;
        println!("lifted: {count}");
        return Ok(());
    }
    let mut after = 0;
    println!("{:<40} {:<14} {:>5}  {:<24} until", "who", "for", "times", "since");
    loop {
        let page: Vec<ShutOut> = store.shut_outs(after).await?;
        for ShutOut { subject, reason, times, since, until, .. } in page.iter().filter(|entry| entry.is_in_force(now)) {
            println!("{:<40} {reason:<14} {times:>5}  {:<24} {until}", subject.to_string(), since.to_string());
        }
        match page.last() {
            Some(last) if page.len() == SHUT_OUTS_MAX => after = last.number,
            _ => return Ok(()),
        }
    }
}
