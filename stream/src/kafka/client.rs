//! What every client of the cluster has in common: settings, what it notes of its connections, and what its errors
//! mean to a caller.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::statistics::Statistics;
use rdkafka::{ClientContext, TopicPartitionList};

use super::Config;
use crate::Error;

/// What a client heard of its connections.
#[derive(Default)]
pub(super) struct Notes {
    last: Mutex<Option<String>>,
    disturbances: AtomicU64,
    /// Whatever polling has brought: what is said to people as well.
    heard: AtomicU64,
}

impl Notes {
    /// How many connections or requests have failed, of those that polling has brought so far.
    pub(super) fn disturbances(&self) -> u64 {
        self.disturbances.load(Ordering::Acquire)
    }

    /// How much polling has brought so far of which the client tells its context.
    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Acquire)
    }

    /// Counts one.
    pub(super) fn hear(&self) {
        self.heard.fetch_add(1, Ordering::AcqRel);
    }

    /// For people: what was heard last, after what went wrong.
    fn explain(&self, text: String) -> String {
        match &*self.last.lock() {
            Some(last) => format!("{text} ({last})"),
            None => text,
        }
    }
}

/// A client's context: its notes, and what its kind of client needs besides.
#[derive(Default)]
pub(super) struct Context<T> {
    pub(super) notes: Notes,
    pub(super) own: T,
}

impl<T: Send + Sync> ClientContext for Context<T> {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.notes.hear();
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::error!(facility, "{message}");
            }
            // A broker that is away is said every time that it is tried.
            RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning => tracing::warn!(facility, "{message}"),
            _ => tracing::debug!(facility, "{message}"),
        }
    }

    fn stats(&self, _: Statistics) {}

    fn error(&self, error: KafkaError, reason: &str) {
        self.notes.hear();
        self.notes.disturbances.fetch_add(1, Ordering::AcqRel);
        *self.notes.last.lock() = Some(reason.to_owned());
        tracing::debug!(%error, reason, "a client's connection");
    }
}

/// What a failed call means: `Fenced` where somebody newer owns this, `Broken` where no retry helps, and else
/// `Unavailable`, which says that nothing was done. Callers who can't know that say `Unknown` themselves.
pub(super) fn fault(doing: &str, error: &KafkaError, notes: &Notes) -> Error {
    let text = || notes.explain(format!("{doing}: {error}"));
    match error.rdkafka_error_code() {
        Some(code) if is_fenced(code) => Error::Fenced,
        Some(code) if is_final(code) => Error::Broken(text()),
        _ => match error {
            KafkaError::ClientConfig(..) | KafkaError::ClientCreation(_) => Error::Broken(text()),
            _ => Error::Unavailable(text()),
        },
    }
}

/// Somebody newer has this transactional id or this partition, or the broker gave us up for late.
pub(super) fn is_fenced(code: Code) -> bool {
    matches!(
        code,
        Code::Fenced
            | Code::ProducerFenced
            | Code::InvalidProducerEpoch
            | Code::InvalidProducerIdMapping
            | Code::IllegalGeneration
            | Code::UnknownMemberId
            | Code::FencedInstanceId
            | Code::FencedMemberEpoch
            | Code::StaleMemberEpoch
    )
}

/// Nothing that time mends.
pub(super) fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::SaslAuthenticationFailed
            | Code::UnknownTopic
            | Code::MessageSizeTooLarge
    )
}

/// Start and end of a partition.
pub(super) fn extent<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    topic: &str,
    partition: i32,
    timeout: Duration,
) -> Result<(i64, i64), KafkaError> {
    let ask = || client.fetch_watermarks(topic, partition, timeout);
    match ask() {
        Err(error) if is_outdated(&error) => {
            client.fetch_metadata(Some(topic), timeout)?;
            ask()
        }
        answer => answer,
    }
}

/// Where partitions end, for consumers as they are set: at the last stable offset. It takes one request to each of their
/// leaders.
pub(super) fn ends<C: ConsumerContext>(
    client: &BaseConsumer<C>,
    list: TopicPartitionList,
    timeout: Duration,
) -> Result<TopicPartitionList, KafkaError> {
    let ask = || {
        let ends = client.offsets_for_times(list.clone(), timeout)?;
        ends.elements().iter().try_for_each(rdkafka::topic_partition_list::TopicPartitionListElem::error)?;
        Ok(ends)
    };
    match ask() {
        Err(error) if is_outdated(&error) => {
            let topics: BTreeSet<String> = list.elements().iter().map(|of| of.topic().to_owned()).collect();
            for topic in topics {
                client.fetch_metadata(Some(&topic), timeout)?;
            }
            ask()
        }
        answer => answer,
    }
}

/// What librdkafka has heard of a topic whose leaders were gone for a moment (a broker that was fenced) it believes for
/// `metadata.max.age.ms`, minutes: "unknown partition". Our partitions are fixed, so it is to be made to ask anew.
fn is_outdated(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(Code::UnknownPartition)
}

/// Settings of every client.
pub(super) fn settings(config: &Config) -> ClientConfig {
    let mut settings = ClientConfig::new();
    settings
        .set("bootstrap.servers", &config.bootstrap)
        .set("client.id", "posthaste")
        .set("allow.auto.create.topics", "false")
        // As shipped these wait for up to a second or ten: longer than a take-over lasts.
        .set("reconnect.backoff.max.ms", "1000")
        .set("topic.metadata.refresh.interval.ms", "60000");
    match (&config.user, &config.ca) {
        (Some(_), Some(_)) => settings.set("security.protocol", "SASL_SSL"),
        (Some(_), None) => settings.set("security.protocol", "SASL_PLAINTEXT"),
        (None, Some(_)) => settings.set("security.protocol", "SSL"),
        (None, None) => settings.set("security.protocol", "PLAINTEXT"),
    };
    if let Some(ca) = &config.ca {
        settings.set("ssl.ca.location", ca.to_string_lossy());
    }
    if let Some((certificate, key)) = &config.certificate {
        settings.set("ssl.certificate.location", certificate.to_string_lossy());
        settings.set("ssl.key.location", key.to_string_lossy());
    }
    if let Some((user, password)) = &config.user {
        settings.set("sasl.mechanism", "SCRAM-SHA-512").set("sasl.username", user).set("sasl.password", password);
    }
    settings
}

/// Settings of every producer: what it sends is in order, once, and on all replicas in sync before it counts.
pub fn producer_settings(config: &Config) -> ClientConfig {
    let mut settings = settings(config);
    settings
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("compression.type", "lz4")
        // Batches are made above; a record alone waits for no other.
        .set("linger.ms", "1")
        .set("queue.buffering.max.kbytes", "65536");
    settings
}

/// Settings of every consumer: committed records only, positions by us alone, and no jump where one is gone.
pub fn consumer_settings(config: &Config, group: &str, fetch_wait_ms: u32) -> ClientConfig {
    let mut settings = settings(config);
    settings
        .set("group.id", group)
        .set("isolation.level", "read_committed")
        .set("auto.offset.reset", "error")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("check.crcs", "true")
        .set("fetch.wait.max.ms", fetch_wait_ms.to_string())
        // As shipped a full queue waits for a second and an error for half of one.
        .set("fetch.queue.backoff.ms", "20")
        .set("fetch.error.backoff.ms", "50")
        .set("queued.max.messages.kbytes", "8192");
    settings
}
