//! The one binary: parses, loads the settings, dispatches. Decides nothing about messages.

mod admin;
mod cassandra;
mod chat;
mod config;
mod engines;
mod issuers;
mod kafka;
mod lag;
mod operator;
mod readers;
mod retention;
mod shutdown;
mod telemetry;
mod tls;
mod wiring;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    let (flags, print) = match &cli.command {
        Command::Chat { flags } => return chat::run(flags),
        Command::Admin { flags, command } => return operator::run(flags, command),
        Command::Serve { flags } => (flags, false),
        Command::Config { flags, print } => (flags, *print),
    };
    let settings = match config::load(flags) {
        Ok(settings) if print => {
            print!("{}", config::print(&settings));
            return ExitCode::SUCCESS;
        }
        Ok(settings) => settings,
        Err(error) => return refuse(&error),
    };
    let edge = match settings.edge() {
        Ok(edge) => edge,
        Err(error) => return refuse(&error),
    };
    telemetry::start(&settings);
    match wiring::serve(settings, edge) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
