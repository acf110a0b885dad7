//! The one binary: parses, loads the settings, dispatches. Decides nothing about messages.

mod admin;
mod cassandra;
mod chat;
mod cluster;
mod config;
mod engines;
mod front;
mod issuers;
mod kafka;
mod lag;
mod operator;
mod readers;
mod retention;
mod running;
mod shutdown;
mod telemetry;
mod tls;
mod wiring;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use schemas::cluster::Role;

/// Exit status of a usage or settings error, as clap has it.
const EXIT_USAGE: u8 = 2;

/// Self-hosted real-time messaging that never loses, doubles or reorders a message.
#[derive(Parser)]
#[command(name = "posthaste", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves everything in one process, with its data in one directory, or on Kafka and in Cassandra.
    Serve {
        #[command(flatten)]
        flags: config::Flags,
    },
    /// Serves clients, as one process of a cluster on Kafka and Cassandra.
    Edge {
        #[command(flatten)]
        flags: config::Flags,
    },
    /// Decides what becomes of commands, as one process of a cluster.
    Ingest {
        #[command(flatten)]
        flags: config::Flags,
    },
    /// Feeds edges, as one process of a cluster.
    Fanout {
        #[command(flatten)]
        flags: config::Flags,
    },
    /// Writes the store and answers for history, as one process of a cluster.
    Archiver {
        #[command(flatten)]
        flags: config::Flags,
    },
    /// Chats in the terminal. What is typed while the server is away is kept and sent when it is back.
    Chat {
        #[command(flatten)]
        flags: chat::Flags,
    },
    /// Does what an operator does before a server runs or beside it; for whoever may read and write its data.
    Admin {
        #[command(flatten)]
        flags: operator::Flags,
        #[command(subcommand)]
        command: operator::Command,
    },
    /// Shows the settings.
    Config {
        /// Prints what flags, POSTHASTE_… variables, the file and the defaults come to, secrets masked.
        #[arg(long, required = true)]
        print: bool,
        #[command(flatten)]
        flags: config::Flags,
    },
}

fn refuse(error: &config::Error) -> ExitCode {
    eprintln!("posthaste: {error}");
    ExitCode::from(EXIT_USAGE)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (flags, role) = match &cli.command {
        Command::Chat { flags } => return chat::run(flags),
        Command::Admin { flags, command } => return operator::run(flags, command),
        Command::Config { flags, .. } => {
            return match config::load(flags) {
                Ok(settings) => {
                    print!("{}", config::print(&settings));
                    ExitCode::SUCCESS
                }
                Err(error) => refuse(&error),
            };
        }
        Command::Serve { flags } => (flags, None),
        Command::Edge { flags } => (flags, Some(Role::Edge)),
        Command::Ingest { flags } => (flags, Some(Role::Ingest)),
        Command::Fanout { flags } => (flags, Some(Role::Fanout)),
        Command::Archiver { flags } => (flags, Some(Role::Archiver)),
    };
    let settings = match config::load(flags) {
        Ok(settings) => settings,
        Err(error) => return refuse(&error),
    };
    if let Some(Err(error)) = role.map(|role| settings.suits(role)) {
        return refuse(&error);
    }
    let edge = match settings.edge() {
        Ok(edge) => edge,
        Err(error) => return refuse(&error),
    };
    telemetry::start(&settings);
    let served = match role {
        Some(role) => wiring::serve_alone(role, settings, edge),
        None => wiring::serve(settings, edge),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
