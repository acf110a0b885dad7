//! `posthaste admin topics` and `posthaste admin tables`: making what has to be there before anything is served on Kafka or
//! in Cassandra. Running them again changes nothing.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use prometheus::Registry;
use store::cassandra::CassandraStore;
use stream::Log as _;
use stream::kafka::KafkaLog;

use crate::config::Settings;
use crate::telemetry::SystemClock;

/// Makes topics that are missing, shows all, and names what is not as the settings say: changing that is the operator's.
pub async fn topics(settings: &Settings) -> anyhow::Result<ExitCode> {
    let Some(kafka) = &settings.kafka else {
        println!("the log is in the directory {}: there is nothing to do", settings.data.display());
        return Ok(ExitCode::SUCCESS);
    };
    let log = KafkaLog::connect(kafka.config()?).await.context("can't reach the log")?;
    log.create(settings.partitions).await.context("can't make the topics")?;
    let topics = log.topics().await.context("can't look at the topics")?;
    let width = topics.iter().map(|topic| topic.name.len()).max().unwrap_or_default();
    println!("{:<width$}  partitions  replication  min.insync  cleanup         retention", "topic");
    let mut differences = Vec::new();
    for topic in &topics {
        let retention = match topic.setting("retention.ms") {
            "-1" => "for ever".to_owned(),
            ms => ms.parse::<u64>().map_or_else(|_| ms.to_owned(), |ms| format!("{} s", ms / 1_000)),
        };
        println!(
            "{:<width$}  {:>10}  {:>11}  {:>10}  {:<14}  {retention}",
            topic.name,
            topic.partitions,
            topic.replication,
            topic.setting("min.insync.replicas"),
            topic.setting("cleanup.policy"),
        );
        let copies = ("replication", topic.replication.to_string(), kafka.replication.to_string());
        for (what, has, wanted) in topic.settings.iter().chain([&copies]).filter(|(_, has, wanted)| has != wanted) {
            differences.push(format!("{}: {what} is {has}, the settings say {wanted}", topic.name));
        }
    }
    for difference in &differences {
        println!("{difference}");
    }
    Ok(if differences.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Makes the tables, or brings them to the newest version.
pub async fn tables(settings: &Settings) -> anyhow::Result<ExitCode> {
    let Some(cassandra) = &settings.cassandra else {
        println!("the store is in the directory {}: there is nothing to do", settings.data.display());
        return Ok(ExitCode::SUCCESS);
    };
    let config = cassandra.config()?;
    let version = CassandraStore::tables(&config).await.context("can't make the tables")?;
    println!("keyspace {}: the tables have version {version}", config.keyspace);
    // Opened as a server will.
    let store = CassandraStore::open(&config, Arc::new(SystemClock::new()), &Registry::new()).await?;
    for node in store.forgetful_nodes() {
        eprintln!(
            "posthaste: {node} loses what it has acknowledged when it is killed: set commitlog_sync to batch or group"
        );
    }
    Ok(ExitCode::SUCCESS)
}
