//! Runs a real engine until its input ends: `engines kafka [NODES]`. Prints the address for clients.

use std::io::{copy, sink, stdin};

use anyhow::bail;
use engines::kafka::Kafka;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["kafka", ref nodes @ ..] if nodes.len() <= 1 => {
            let kafka = Kafka::start(nodes.first().map_or(Ok(1), |nodes| nodes.parse())?)?;
            println!("{}", kafka.bootstrap());
            copy(&mut stdin(), &mut sink())?;
            Ok(())
        }
        _ => bail!("usage: engines kafka [NODES]"),
    }
}
