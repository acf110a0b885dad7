//! Runs real engines. `engines kafka [NODES]` runs Kafka until its input ends and prints the address for clients;
//! `engines cluster` is what `make cluster` starts.

mod cluster;

use std::io::{copy, sink, stdin};

use clap::Parser;
use engines::kafka::Kafka;

#[derive(Parser)]
enum Command {
    /// Runs Kafka until its input ends. Prints the address for clients.
    Kafka {
        #[arg(default_value_t = 1)]
        nodes: usize,
    },
    /// Runs a whole cluster.
    #[command(subcommand)]
    Cluster(cluster::Task),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Kafka { nodes } => {
            let kafka = Kafka::start(nodes)?;
            println!("{}", kafka.bootstrap());
            copy(&mut stdin(), &mut sink())?;
            Ok(())
        }
        Command::Cluster(task) => cluster::run(task),
    }
}
