//! `measure`: figures of Posthaste beside those of the engines that it stands on, taken in the same minutes on the same
//! machine. Starts the engines that it needs and ends them. Each part is a file; this one chooses.

mod between;
mod cold_rooms;
mod commands;
mod ground;
mod history;
mod kafka;
mod report;
mod surroundings;
mod transactions;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::{Parser, Subcommand};

use crate::report::{Report, Table};

/// Threads that still block when all is over, as in a call to a broker that has gone, are waited for so long.
const RUNTIME_END: Duration = Duration::from_secs(2);

/// Measures Posthaste beside the engines that it stands on.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    part: Part,
    /// Writes the figures into this file as JSON as well.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Part {
    /// All parts, each as it is without flags.
    All,
    /// Kafka alone: one record a transaction, until it is committed and until a reader of committed records has it.
    Kafka(kafka::Options),
    /// Ingest on Kafka: records decided a second with transactions, and without.
    Ingest(transactions::Options),
    /// Pages of history a second from Cassandra, beside the driver's own.
    History(history::Options),
    /// How soon an ingest that takes partitions over serves, and its memory, by rooms that nobody uses.
    ColdRooms(cold_rooms::Options),
}

fn main() -> anyhow::Result<()> {
    let Args { part, json } = Args::parse();
    let mut report = Report::begin()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let measured = runtime.block_on(async {
        tokio::select! {
            measured = measure(part) => measured,
            // Engines end where what holds them is dropped.
            _ = tokio::signal::ctrl_c() => bail!("ended by a signal"),
        }
    });
    runtime.shutdown_timeout(RUNTIME_END);
    report.end(measured?)?;
    print!("{report}");
    if let Some(path) = json {
        std::fs::write(path, report.json()?)?;
    }
    Ok(())
}

async fn measure(part: Part) -> anyhow::Result<Vec<Table>> {
    Ok(match part {
        Part::Kafka(options) => vec![kafka::measure(options).await?],
        Part::Ingest(options) => vec![transactions::measure(options).await?],
        Part::History(options) => vec![history::measure(options).await?],
        Part::ColdRooms(options) => vec![cold_rooms::measure(options).await?],
        Part::All => {
            let mut tables = Vec::new();
            for name in ["kafka", "ingest", "history", "cold-rooms"] {
                eprintln!("measure {name}");
                let part = Args::try_parse_from(["measure", name])?.part;
                tables.extend(Box::pin(measure(part)).await?);
            }
            tables
        }
    })
}

/// A number of seconds, as flags have it: `20s` or `20`.
fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text).parse().map_err(|_| "a number of seconds, as in 20s")?;
    Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_each_part_needs_no_flags() {
        use clap::CommandFactory;
        Args::command().debug_assert();
        for part in ["all", "kafka", "ingest", "history", "cold-rooms"] {
            Args::try_parse_from(["measure", part]).unwrap();
        }
    }

    #[test]
    fn seconds_are_read_with_and_without_their_unit() {
        assert_eq!(seconds("20s"), Ok(Duration::from_secs(20)));
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert!(seconds("soon").is_err() && seconds("-1s").is_err());
    }
}
