//! Transactional producers. Each is a thread of its own, for its calls block for as long as a broker is away, with
//! several transactional ids in turn: one that has just committed would keep the next transaction waiting until the
//! markers of the last are written.
//!
//! librdkafka speaks the first version of the transaction protocol, in which a late request to end a transaction can
//! end a later one of the same epoch. Such a request needs a connection that failed while the transaction was under way:
//! a producer that has heard of one begins no other, and its successor has an epoch that no late request has
//! (docs/decisions/0016).

use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use schemas::{Offset, Partition, Topic};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::client::{self, Context, fault};
use super::{Config, Inner, PATIENCE, from_raw, index, to_raw};
use crate::broker::LaneId;
use crate::{Error, Positions, Producer, Transaction};

/// Between two looks for delivery reports. Polling with a time of its own would not sleep: it waits to the end of that time
/// also when there is a report, and turns on the spot for the last millisecond, for librdkafka counts whole ones.
const SLICE: Duration = Duration::from_millis(1);

/// What has become of one transaction's records.
#[derive(Default)]
pub(super) struct Reports(Mutex<Reported>);

#[derive(Default)]
struct Reported {
    /// Not heard of yet.
    left: usize,
    /// Position after the last record, by the place of the partition among those touched.
    ends: BTreeMap<usize, i64>,
    error: Option<KafkaError>,
}

impl ProducerContext for Context<Reports> {
    /// The place of its partition among those touched.
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, lane: usize) {
        self.notes.hear();
        let mut reported = self.own.0.lock();
        reported.left = reported.left.saturating_sub(1);
        match result {
            Ok(message) => {
                let end = reported.ends.entry(lane).or_default();
                *end = (*end).max(message.offset() + 1);
            }
            Err((error, _)) => drop(reported.error.get_or_insert_with(|| error.clone())),
        }
    }
}

type Instance = BaseProducer<Context<Reports>>;

/// How long a thread may be late with its answer. Its calls are given a time, but librdkafka does not keep to it: where the
/// group's coordinator is killed at the wrong moment, `send_offsets_to_transaction` (2.12) never returns.
const LATE: Duration = Duration::from_secs(2);

/// The port's handle on the thread.
pub(super) struct KafkaProducer {
    jobs: mpsc::Sender<Job>,
    patience: Duration,
}

struct Job {
    transaction: Transaction,
    answer: oneshot::Sender<Result<Positions, Error>>,
}

impl KafkaProducer {
    /// Initialises every instance of this id, which ends open transactions of older ones (law 4).
    pub(super) async fn start(inner: Arc<Inner>, id: &str) -> Result<Self, Error> {
        let (jobs, waiting) = mpsc::channel();
        let (ready, started) = oneshot::channel();
        let id = inner.config.named(id);
        let patience = inner.config.transaction_timeout + LATE;
        let work = move || match Worker::start(inner, &id) {
            Ok(mut worker) => {
                // Whoever asked may have gone: then there are no jobs either.
                drop(ready.send(Ok(())));
                worker.run(&waiting);
            }
            Err(error) => drop(ready.send(Err(error))),
        };
        thread::Builder::new()
            .name("transactions".into())
            .spawn(work)
            .map_err(|error| Error::Unavailable(error.to_string()))?;
        started.await.map_err(|_| Error::Unavailable("a transactional producer has ended".into()))??;
        Ok(Self { jobs, patience })
    }
}

#[async_trait]
impl Producer for KafkaProducer {
    async fn commit(&mut self, transaction: Transaction) -> Result<Positions, Error> {
        let (answer, answered) = oneshot::channel();
        let ended = || Error::Unknown("a transactional producer has ended".into());
        self.jobs.send(Job { transaction, answer }).map_err(|_| ended())?;
        if let Ok(answer) = timeout(self.patience, answered).await {
            return answer.map_err(|_| ended())?;
        }
        // The thread is left to itself: a call that is under way can't be ended, and whoever has the id next fences it.
        self.jobs = mpsc::channel().0;
        tracing::error!("a call of a transactional producer does not return: it is given up");
        Err(Error::Unknown("a transactional producer does not answer".into()))
    }
}

struct Worker {
    inner: Arc<Inner>,
    /// Each with the disturbances that it had heard of when it was initialised: any more, and it begins no other
    /// transaction.
    instances: Vec<(Instance, u64)>,
    /// Which instance is next.
    turn: usize,
    /// I2: after any error there is nothing more to do for this producer.
    failed: Option<Error>,
}

impl Worker {
    fn start(inner: Arc<Inner>, id: &str) -> Result<Self, Error> {
        let ids: Vec<String> = (0..inner.config.instances.max(1)).map(|k| format!("{id}-{k}")).collect();
        // At the same time: a timer of librdkafka lets each take up to a second.
        let instances = thread::scope(|scope| {
            let threads: Vec<_> = ids.iter().map(|id| scope.spawn(|| make(&inner.config, id))).collect();
            let joined = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(Error::Unavailable("a panic of a producer's start".into())))
            });
            joined.collect::<Result<Vec<_>, _>>()
        })?;
        let instances = instances.into_iter().map(|instance| {
            let calm = disturbances(&instance);
            (instance, calm)
        });
        let instances = instances.collect();
        Ok(Self { inner, instances, turn: 0, failed: None })
    }

    fn run(&mut self, jobs: &mpsc::Receiver<Job>) {
        for Job { transaction, answer } in jobs {
            let result = match &self.failed {
                Some(error) => Err(error.clone()),
                None => self.commit(transaction),
            };
            let failed = result.as_ref().err().cloned();
            // Whoever asked may have gone; the transaction is decided all the same.
            drop(answer.send(result));
            if self.failed.is_none()
                && let Some(error) = failed
            {
                self.failed = Some(match error {
                    // It was refused before it began, or nobody may hear twice of the same doubt.
                    Error::Unknown(_) => Error::Fenced,
                    error => error,
                });
                self.abort();
            }
        }
    }

    /// Ends what may be open, so that readers do not wait for the broker to time it out. A successor does the same:
    /// whether this succeeds changes nothing.
    fn abort(&self) {
        for (instance, _) in &self.instances {
            if instance.client().fatal_error().is_none()
                && let Err(error) = instance.abort_transaction(PATIENCE)
            {
                tracing::debug!(%error, "nothing to abort");
            }
        }
    }

    fn commit(&mut self, transaction: Transaction) -> Result<Positions, Error> {
        let Transaction { records, consumed } = transaction;
        let mut touched: BTreeMap<LaneId, usize> = BTreeMap::new();
        for (topic, partition, _) in &records {
            self.inner.check(*topic, *partition)?;
            let place = touched.len();
            touched.entry((*topic, *partition)).or_insert(place);
        }
        // Held until the end: while it is, the member's partitions are not handed on.
        let consumed = match consumed {
            Some((member, positions)) => {
                for (topic, partition, _) in &positions {
                    self.inner.check(*topic, *partition)?;
                }
                Some((self.inner.admit(&member, &positions)?, positions))
            }
            None => None,
        };
        if records.is_empty() && consumed.is_none() {
            return Ok(Vec::new());
        }
        self.turn = (self.turn + 1) % self.instances.len();
        let (instance, calm) = &self.instances[self.turn];
        let notes = &instance.context().notes;
        // It may be the connection to the group's coordinator. For that one librdkafka waits, however long, and asks who is
        // coordinator now only when some other connection comes up or ends.
        if disturbances(instance) != *calm {
            return Err(Error::Unavailable("a connection failed before this transaction".into()));
        }
        let deadline = Instant::now() + self.inner.config.transaction_timeout;
        let failed = |doing: &str, error: &KafkaError| match instance.client().fatal_error() {
            Some((code, _)) if client::is_fenced(code) => Error::Fenced,
            _ => fault(doing, error, notes),
        };

        *instance.context().own.0.lock() = Reported { left: records.len(), ..Reported::default() };
        instance.begin_transaction().map_err(|error| failed("begin", &error))?;
        for (topic, partition, record) in &records {
            let topic_name = self.inner.config.topic(*topic);
            let mut message = BaseRecord::with_opaque_to(&topic_name, touched[&(*topic, *partition)])
                .partition(index(*partition))
                .key(&record.key[..])
                .payload(&record.value[..]);
            while let Err((error, unsent)) = instance.send(message) {
                let is_full = error.rdkafka_error_code() == Some(Code::QueueFull);
                if !is_full || Instant::now() >= deadline {
                    return Err(failed("send", &error));
                }
                look(instance);
                message = unsent;
            }
        }
        // Before anything else of this transaction: a commit or a flush with records under way waits by 100 ms, and
        // offsets beside them make the transaction slower.
        loop {
            let (left, error) = {
                let reported = instance.context().own.0.lock();
                (reported.left, reported.error.clone())
            };
            if let Some(error) = error {
                return Err(failed("send", &error));
            }
            if left == 0 {
                break;
            }
            if Instant::now() >= deadline {
                return Err(Error::Unavailable("records of a transaction were not delivered in time".into()));
            }
            look(instance);
        }
        if let Some((admitted, positions)) = &consumed {
            let offsets = list(&self.inner.config, positions)?;
            let metadata = admitted.consumer.group_metadata().ok_or(Error::Fenced)?;
            retry(deadline, || instance.send_offsets_to_transaction(&offsets, &metadata, remaining(deadline)))
                .map_err(|error| failed("send offsets", &error))?;
        }
        // From here on it may be committed whatever is heard.
        retry(deadline, || instance.commit_transaction(remaining(deadline))).map_err(|error| {
            match failed("commit", &error) {
                fenced @ Error::Fenced => fenced,
                fault => Error::Unknown(fault.to_string()),
            }
        })?;
        let reported = instance.context().own.0.lock();
        let ends: Positions = touched
            .into_iter()
            .filter_map(|((topic, partition), place)| Some((topic, partition, from_raw(*reported.ends.get(&place)?))))
            .collect();
        drop(reported);
        self.inner.promise(&ends);
        if disturbances(instance) != *calm {
            self.failed = Some(Error::Unavailable("a connection failed during the last transaction".into()));
        }
        Ok(ends)
    }
}

/// Takes all that is there: a poll brings one thing at a time, be it a line for people.
fn drain(instance: &Instance) {
    let notes = &instance.context().notes;
    loop {
        let before = notes.heard();
        instance.poll(Duration::ZERO);
        if notes.heard() == before {
            return;
        }
    }
}

/// How many connections or requests have failed up to now.
fn disturbances(instance: &Instance) -> u64 {
    drain(instance);
    instance.context().notes.disturbances()
}

/// Takes the delivery reports that are there, after a rest.
fn look(instance: &Instance) {
    thread::sleep(SLICE);
    drain(instance);
}

/// Calls again for as long as the client says that it may, and there is time.
fn retry(deadline: Instant, mut call: impl FnMut() -> Result<(), KafkaError>) -> Result<(), KafkaError> {
    loop {
        match call() {
            Err(KafkaError::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

fn remaining(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

fn make(config: &Config, id: &str) -> Result<Instance, Error> {
    let mut settings = client::producer_settings(config);
    settings
        .set("transactional.id", id)
        .set("transaction.timeout.ms", config.transaction_timeout.as_millis().to_string())
        .set("delivery.timeout.ms", config.transaction_timeout.as_millis().to_string());
    let instance = Instance::from_config_and_context(&settings, Context::default())
        .map_err(|error| Error::Broken(error.to_string()))?;
    let deadline = Instant::now() + PATIENCE;
    retry(deadline, || instance.init_transactions(remaining(deadline)))
        .map_err(|error| fault("init transactions", &error, &instance.context().notes))?;
    Ok(instance)
}

/// Positions as librdkafka has them.
pub(super) fn list(config: &Config, positions: &[(Topic, Partition, Offset)]) -> Result<TopicPartitionList, Error> {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for (topic, partition, offset) in positions {
        let at = rdkafka::Offset::Offset(to_raw(*offset));
        list.add_partition_offset(&config.topic(*topic), index(*partition), at)
            .map_err(|error| Error::Broken(error.to_string()))?;
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_call_that_never_returns_is_given_up() {
        let (jobs, waiting) = mpsc::channel();
        let mut producer = KafkaProducer { jobs, patience: Duration::from_secs(12) };
        let transaction = || Transaction { records: Vec::new(), consumed: None };
        assert!(matches!(producer.commit(transaction()).await, Err(Error::Unknown(_))));
        // Nor does anything more get in behind it.
        let asked = Instant::now();
        assert!(matches!(producer.commit(transaction()).await, Err(Error::Unknown(_))));
        assert_eq!(asked.elapsed(), Duration::ZERO);
        assert_eq!(waiting.try_iter().count(), 1);
    }
}
