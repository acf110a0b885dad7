//! The topics: their settings, and that their partitions are as many as ever.

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::metadata::Metadata;
use schemas::{Offset, Partition, Topic};

use super::client::{self, Context, fault};
use super::{Config, PATIENCE};
use crate::Error;

/// Who makes topics and trims them.
pub(super) struct Admin {
    client: AdminClient<Context<()>>,
}

impl Admin {
    pub(super) fn new(config: &Config) -> Result<Self, Error> {
        let context = Context::default();
        let client = AdminClient::from_config_and_context(&client::settings(config), context)
            .map_err(|error| Error::Broken(error.to_string()))?;
        Ok(Self { client })
    }

    fn options() -> AdminOptions {
        AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
    }

    /// Creates the topics that are missing.
    pub(super) async fn create(&self, config: &Config, partitions: u32) -> Result<(), Error> {
        let count = i32::try_from(partitions).map_err(|_| Error::Broken(format!("{partitions} partitions")))?;
        let names: Vec<String> = Topic::ALL.into_iter().map(|topic| config.topic(topic)).collect();
        let in_sync = config.min_in_sync.to_string();
        let kept_ms = config.kept.as_millis().to_string();
        let topics: Vec<NewTopic> = names
            .iter()
            .map(|name| {
                NewTopic::new(name, count, TopicReplication::Fixed(config.replication))
                    .set("min.insync.replicas", &in_sync)
                    .set("unclean.leader.election.enable", "false")
                    // Nothing here is the latest state of a key: all topics are sequences, and what is old goes.
                    .set("cleanup.policy", "delete")
                    .set("retention.ms", &kept_ms)
                    // Retention must not depend on a client's clock.
                    .set("message.timestamp.type", "LogAppendTime")
            })
            .collect();
        let notes = &self.client.inner().context().notes;
        let results = self.client.create_topics(&topics, &Self::options()).await;
        for result in results.map_err(|error| fault("create topics", &error, notes))? {
            match result {
                Ok(_) | Err((_, Code::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    return Err(match code {
                        Code::RequestTimedOut | Code::OperationTimedOut | Code::BrokerTransportFailure => {
                            Error::Unavailable(format!("create {name}: {code}"))
                        }
                        _ => Error::Broken(format!("create {name}: {code}")),
                    });
                }
            }
        }
        Ok(())
    }

    /// Forgets records below `before`, which is not beyond the end.
    pub(super) async fn trim(&self, topic: &str, partition: Partition, before: Offset) -> Result<(), Error> {
        let mut offsets = rdkafka::TopicPartitionList::new();
        let at = rdkafka::Offset::Offset(super::to_raw(before));
        offsets
            .add_partition_offset(topic, super::index(partition), at)
            .map_err(|error| Error::Broken(error.to_string()))?;
        let notes = &self.client.inner().context().notes;
        let done = self.client.delete_records(&offsets, &Self::options()).await;
        let done = done.map_err(|error| fault("trim", &error, notes))?;
        done.elements().iter().try_for_each(|element| element.error().map_err(|error| fault("trim", &error, notes)))
    }
}

/// How many partitions all topics have; 0 where none is there yet, and none where only some are.
///
/// # Errors
/// `Broken` where they differ: a room would have another number in each (I2).
pub(super) fn partitions(config: &Config, metadata: &Metadata) -> Result<Option<u32>, Error> {
    let mut counts = Topic::ALL.into_iter().map(|topic| {
        let name = config.topic(topic);
        let found = metadata.topics().iter().find(|found| found.name() == name && found.error().is_none());
        (name, found.map_or(0, |found| found.partitions().len()))
    });
    let Some((first, count)) = counts.next() else { return Ok(None) };
    for (name, other) in counts {
        if other != count && (other == 0 || count == 0) {
            return Ok(None);
        }
        if other != count {
            return Err(Error::Broken(format!(
                "{first} has {count} partitions and {name} {other}: they must be equal"
            )));
        }
    }
    Ok(u32::try_from(count).ok())
}
