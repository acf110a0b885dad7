//! Records outside of transactions: one idempotent producer for all callers, who wait for their delivery.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use schemas::{Offset, Partition};
use tokio::sync::oneshot;

use super::client::{self, Context, fault, is_final};
use super::{Config, index};
use crate::{Error, Record};

/// The producer, and how to make it anew.
pub(super) struct Appender {
    config: Config,
    /// A fatal error ends a producer for good; the next caller makes another one.
    producer: Mutex<Arc<Appending>>,
}

type Appending = ThreadedProducer<Context<Deliveries>>;

#[derive(Default)]
pub(super) struct Deliveries;

/// Records of one call.
pub(super) struct Batch {
    left: AtomicUsize,
    /// Position after the last one delivered.
    end: AtomicI64,
    error: Mutex<Option<KafkaError>>,
    done: Mutex<Option<oneshot::Sender<()>>>,
}

impl Batch {
    fn settle(&self, count: usize) {
        if self.left.fetch_sub(count, Ordering::AcqRel) == count
            && let Some(done) = self.done.lock().take()
        {
            // Whoever appended may have gone.
            let _ = done.send(());
        }
    }
}

impl ProducerContext for Context<Deliveries> {
    type DeliveryOpaque = Arc<Batch>;

    fn delivery(&self, result: &DeliveryResult<'_>, batch: Arc<Batch>) {
        match result {
            Ok(message) => drop(batch.end.fetch_max(message.offset() + 1, Ordering::AcqRel)),
            Err((error, _)) => drop(batch.error.lock().get_or_insert_with(|| error.clone())),
        }
        batch.settle(1);
    }
}

impl Appender {
    pub(super) fn new(config: &Config) -> Result<Self, Error> {
        Ok(Self { config: config.clone(), producer: Mutex::new(Arc::new(make(config)?)) })
    }

    fn producer(&self) -> Result<Arc<Appending>, Error> {
        let mut producer = self.producer.lock();
        if let Some((code, reason)) = producer.client().fatal_error() {
            tracing::warn!(%code, reason, "the appending producer is made anew");
            *producer = Arc::new(make(&self.config)?);
        }
        Ok(Arc::clone(&producer))
    }

    /// Appends at least one record; the position after the last one.
    pub(super) async fn append(
        &self,
        topic: &str,
        partition: Partition,
        records: Vec<Record>,
    ) -> Result<Offset, Error> {
        let producer = self.producer()?;
        let (done, delivered) = oneshot::channel();
        let batch = Arc::new(Batch {
            left: AtomicUsize::new(records.len()),
            end: AtomicI64::new(0),
            error: Mutex::new(None),
            done: Mutex::new(Some(done)),
        });
        for (sent, record) in records.iter().enumerate() {
            let message = BaseRecord::with_opaque_to(topic, Arc::clone(&batch))
                .partition(index(partition))
                .key(&record.key[..])
                .payload(&record.value[..]);
            if let Err((error, _)) = producer.send(message) {
                let fault = fault("append", &error, &producer.context().notes);
                if sent == 0 {
                    return Err(fault);
                }
                *batch.error.lock() = Some(error);
                batch.settle(records.len() - sent);
                break;
            }
        }
        if delivered.await.is_err() {
            return Err(Error::Unknown("the producer has ended".into()));
        }
        let error = batch.error.lock().take();
        match error {
            None => Ok(super::from_raw(batch.end.load(Ordering::Acquire))),
            Some(error) => Err(match fault("append", &error, &producer.context().notes) {
                // Refused by the broker: not there.
                Error::Broken(reason) if error.rdkafka_error_code().is_some_and(is_final) => Error::Broken(reason),
                // Given up here: it may be there all the same.
                fault => Error::Unknown(fault.to_string()),
            }),
        }
    }
}

fn make(config: &Config) -> Result<Appending, Error> {
    let mut settings = client::producer_settings(config);
    settings.set("delivery.timeout.ms", config.append_timeout.as_millis().to_string());
    Appending::from_config_and_context(&settings, Context::default()).map_err(|error| Error::Broken(error.to_string()))
}
