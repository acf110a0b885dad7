//! The topics: their settings, and that their partitions are as many as ever.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::metadata::Metadata;
use schemas::{Offset, Partition, Topic};

use super::client::{self, Context, fault};
use super::{Config, PATIENCE};
use crate::Error;

/// A topic as the brokers have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicState {
    /// Its name there.
    pub name: String,
    /// How many partitions it has.
    pub partitions: usize,
    /// Copies of each partition: of the one that has fewest.
    pub replication: usize,
    /// Its settings by Kafka's names, as far as they matter here: what it has, and what our settings say.
    pub settings: Vec<(&'static str, String, String)>,
}

impl TopicState {
    /// What it has under one of Kafka's names.
    pub fn setting(&self, name: &str) -> &str {
        self.settings.iter().find(|(known, ..)| *known == name).map_or("", |(_, has, _)| has)
    }
}

/// What a topic is made with, and held to, by Kafka's names.
fn settings(config: &Config, topic: Topic) -> Vec<(&'static str, String)> {
    let mut settings = vec![
        ("min.insync.replicas", config.min_in_sync.to_string()),
        ("unclean.leader.election.enable", "false".to_owned()),
        // Retention must not depend on a client's clock.
        ("message.timestamp.type", "LogAppendTime".to_owned()),
    ];
    match topic {
        // The latest of each process, and not for long: what it says counts for seconds, the rest is for people who look.
        // Segments are closed often, which is what compaction and retention wait for.
        Topic::Cluster => settings.extend([
            ("cleanup.policy", "compact,delete".to_owned()),
            ("retention.ms", CLUSTER_KEPT.as_millis().to_string()),
            ("segment.ms", CLUSTER_SEGMENT.as_millis().to_string()),
        ]),
        // All others are sequences, and what is old goes.
        _ => settings
            .extend([("cleanup.policy", "delete".to_owned()), ("retention.ms", config.kept.as_millis().to_string())]),
    }
    settings
}

/// How long a record of `cluster` is kept, and how long a segment of it is written to.
const CLUSTER_KEPT: Duration = Duration::from_secs(60 * 60);
const CLUSTER_SEGMENT: Duration = Duration::from_secs(10 * 60);

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
        let made = |topic| (config.topic(topic), settings(config, topic));
        let topics: Vec<(String, Vec<(&str, String)>)> = Topic::ALL.into_iter().map(made).collect();
        let topics: Vec<NewTopic> = topics
            .iter()
            .map(|(name, settings)| {
                let topic = NewTopic::new(name, count, TopicReplication::Fixed(config.replication));
                settings.iter().fold(topic, |topic, (setting, value)| topic.set(setting, value))
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

    /// The topics with these partitions and copies, and their settings.
    pub(super) async fn describe(&self, config: &Config, shapes: Vec<Shape>) -> Result<Vec<TopicState>, Error> {
        if shapes.is_empty() {
            // Kafka takes no empty question.
            return Ok(Vec::new());
        }
        let names: Vec<String> = shapes.iter().map(|(topic, ..)| config.topic(*topic)).collect();
        let asked: Vec<_> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let notes = &self.client.inner().context().notes;
        let described = self.client.describe_configs(&asked, &Self::options()).await;
        let described = described.map_err(|error| fault("describe topics", &error, notes))?;
        let state = |((topic, partitions, replication), described): (Shape, Result<ConfigResource, Code>)| {
            let described = described.map_err(|code| fault("describe topics", &KafkaError::AdminOp(code), notes))?;
            if described.entries.is_empty() {
                // Every topic has some: this broker has not heard of it.
                return Err(Error::Unavailable(format!("the settings of {topic} are not known yet")));
            }
            let has = |name| described.get(name).and_then(|entry| entry.value.clone()).unwrap_or_default();
            let wanted = settings(config, topic).into_iter();
            let settings = wanted.map(|(name, wanted)| (name, has(name), wanted)).collect();
            Ok(TopicState { name: config.topic(topic), partitions, replication, settings })
        };
        // Answers come in the order of the questions.
        shapes.into_iter().zip(described).map(state).collect()
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

/// A topic, how many partitions it has, and how many copies of the one that has fewest.
pub(super) type Shape = (Topic, usize, usize);

/// The shapes of the topics that are there.
pub(super) fn shapes(config: &Config, metadata: &Metadata) -> Vec<Shape> {
    let shape = |topic| {
        let name = config.topic(topic);
        let found = metadata.topics().iter().find(|found| found.name() == name && found.error().is_none())?;
        let copies = found.partitions().iter().map(|partition| partition.replicas().len()).min();
        Some((topic, found.partitions().len(), copies.unwrap_or_default()))
    };
    Topic::ALL.into_iter().filter_map(shape).collect()
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
