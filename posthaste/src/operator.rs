//! `posthaste admin …`: what an operator does before a server runs or beside it. Works on the data itself (directory, Kafka,
//! Cassandra), so that whoever may read and write it is the operator, and nobody else is: there is no address for this, and
//! no token. The server sees what has changed with its next poll.

mod setup;
mod status;
mod verify;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, Subcommand};
use schemas::Clock as _;
use store::shut_outs::{Network, SHUT_OUTS_MAX, ShutOut, Subject};

use crate::config::{self, Settings};
use crate::engines;
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
    /// Makes the topics that are missing on Kafka, and shows all of them; where the log is in the directory there is nothing
    /// to do. Exit status 0: all are as the settings say; 1: what differs was printed, or it could not be done.
    Topics,
    /// Makes the keyspace and the tables in Cassandra, or brings them to this program's version; where the store is in the
    /// directory there is nothing to do.
    Tables,
    /// Which processes of a cluster live, who owns which partitions, and how far each group is behind. Exit status 0: every
    /// role owns every partition; 1: what is missing was printed.
    Status,
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
    let lifted = match command {
        Command::Verify => return verify::run(&settings),
        Command::Topics => return drive(setup::topics(&settings)),
        Command::Tables => return drive(setup::tables(&settings)),
        Command::Status => return drive(status::run(&settings)),
        Command::Blocks { command: None | Some(Blocks::List) } => None,
        Command::Blocks { command: Some(Blocks::Lift { key: Some(key), .. }) } => match subject(key, &settings) {
            Some(subject) => Some(Some(subject)),
            None => return refuse(&format!("{key:?} is neither a network like 192.0.2.0/24 nor an account's id")),
        },
        Command::Blocks { command: Some(Blocks::Lift { key: None, .. }) } => Some(None),
    };
    drive(blocks(&settings, lifted))
}

/// Does what has to wait for others, with status 1 where it can't be done.
fn drive(work: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    wait(work).unwrap_or_else(|error| {
        eprintln!("posthaste: {error:#}");
        ExitCode::FAILURE
    })
}

fn wait<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("can't start the runtime")?.block_on(work)
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
async fn blocks(settings: &Settings, lifted: Option<Option<Subject>>) -> anyhow::Result<ExitCode> {
    let clock = Arc::new(SystemClock::new());
    let store = engines::open_store_beside(settings, clock.clone()).await?;
    let now = clock.now();
    if let Some(subject) = lifted {
        let count = store.lift_shut_outs(subject, now).await?;
        println!("lifted: {count}");
        return Ok(ExitCode::SUCCESS);
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
            _ => return Ok(ExitCode::SUCCESS),
        }
    }
}
