//! Reading outside of groups, and asking where partitions begin and end: a few clients that stand where they last read,
//! so that whoever reads on finds the next records fetched already. Their calls block and run on threads for that.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::TopicPartitionList;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode as Code};
use rdkafka::message::Message;
use rdkafka::metadata::Metadata;
use schemas::{Offset, Partition, Topic};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::Instant;

use super::client::{self, Context, fault};
use super::transactions::list;
use super::{Config, PATIENCE, from_raw, index};
use crate::broker::{LaneId, size_of_record};
use crate::{Error, Fetched, Placed};

/// Group of clients that join none: librdkafka wants a name.
const GROUP: &str = "readers";
/// How long a first connection may take before it is looked why it does not come about.
const QUESTION: Duration = Duration::from_secs(2);
/// Between two looks at how far a client has got.
const SLICE: Duration = Duration::from_millis(5);

type Client = BaseConsumer<Context<()>>;

impl ConsumerContext for Context<()> {}

/// The clients.
pub(super) struct Readers {
    config: Config,
    free: Mutex<Vec<Reader>>,
    /// As many as there are readers.
    turns: Semaphore,
}

struct Reader {
    client: Client,
    /// What it reads, where it stands, and an end that this partition has reached at least.
    stands: Option<(LaneId, Offset, Offset)>,
}

impl Readers {
    pub(super) fn new(config: &Config) -> Result<Self, Error> {
        let free = (0..config.readers.max(1))
            .map(|_| Ok(Reader { client: client(config, GROUP)?, stands: None }))
            .collect::<Result<Vec<_>, Error>>()?;
        let turns = Semaphore::new(free.len());
        Ok(Self { config: config.clone(), free: Mutex::new(free), turns })
    }

    /// Runs `work` with a client on a thread for blocking work: with the one that `fits`, where there is one.
    async fn with<R: Send + 'static>(
        self: &Arc<Self>,
        fits: impl Fn(&Reader) -> bool + Send + 'static,
        work: impl FnOnce(&Config, &mut Reader) -> Result<R, Error> + Send + 'static,
    ) -> Result<R, Error> {
        let closed = || Error::Unavailable("shutting down".into());
        let this = Arc::clone(self);
        // The turn goes with the work, which goes on when the caller does not.
        let turn = self.turns.acquire().await.map_err(|_| closed())?;
        turn.forget();
        let blocking = tokio::task::spawn_blocking(move || {
            let turn = Turn(&this);
            let mut reader = {
                let mut free = this.free.lock();
                let place = free.iter().position(fits).unwrap_or(0);
                if free.is_empty() {
                    return Err(closed());
                }
                free.remove(place)
            };
            let result = work(&this.config, &mut reader);
            // At the end: the first in line is the one that has rested longest.
            this.free.lock().push(reader);
            drop(turn);
            result
        });
        blocking.await.map_err(|_| closed())?
    }

    /// `Log::read`, after the partition was found to exist.
    pub(super) async fn read(self: &Arc<Self>, id: LaneId, from: Offset, max_bytes: usize) -> Result<Fetched, Error> {
        let fits = move |reader: &Reader| reader.stands.is_some_and(|(at, position, _)| (at, position) == (id, from));
        self.with(fits, move |config, reader| reader.read(config, id, from, max_bytes)).await
    }

    /// Start and end of a partition.
    pub(super) async fn extent(self: &Arc<Self>, id: LaneId) -> Result<(Offset, Offset), Error> {
        self.with(|_| false, move |config, reader| reader.extent(config, id)).await
    }

    /// What of the cluster's metadata is asked for.
    pub(super) async fn metadata<R: Send + 'static>(
        self: &Arc<Self>,
        form: impl FnOnce(&Config, &Metadata) -> R + Send + 'static,
    ) -> Result<R, Error> {
        let asked = |config: &Config, reader: &mut Reader| {
            let metadata = patiently(|left| {
                // Not all of it at once: a connection that is refused is refused again and again meanwhile.
                let metadata = reader.client.fetch_metadata(None, left.min(QUESTION));
                metadata.map_err(|error| reader.refused(&error))
            })?;
            Ok(form(config, &metadata))
        };
        self.with(|_| false, asked).await
    }

    /// Partitions of the topics, as [`super::topics::partitions`].
    pub(super) async fn partitions(self: &Arc<Self>) -> Result<Option<u32>, Error> {
        self.metadata(super::topics::partitions).await?
    }
}

/// Gives a turn back, whatever happened in it.
struct Turn<'a>(&'a Readers);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.turns.add_permits(1);
    }
}

impl Reader {
    fn failed(&self, doing: &str, error: &KafkaError) -> Error {
        fault(doing, error, &self.client.context().notes)
    }

    /// Why the cluster was not reached. Only for a client that stands nowhere: it takes what waits to be polled, which is
    /// where a connection says what is wrong with it.
    fn refused(&self, error: &KafkaError) -> Error {
        for _ in 0..20 {
            match self.client.poll(SLICE) {
                Some(Err(KafkaError::MessageConsumption(Code::Authentication | Code::SaslAuthenticationFailed))) => {
                    return Error::Broken("the brokers refuse this user and password".into());
                }
                Some(Err(KafkaError::MessageConsumption(Code::SSL))) => {
                    return Error::Broken(
                        "no TLS with the brokers: is it they who are trusted, and do they speak it?".into(),
                    );
                }
                _ => {}
            }
        }
        self.failed("read metadata", error)
    }

    fn extent(&self, config: &Config, (topic, partition): LaneId) -> Result<(Offset, Offset), Error> {
        let topic = config.topic(topic);
        let (start, end) = patiently(|left| {
            let extent = client::extent(&self.client, &topic, index(partition), left);
            extent.map_err(|error| self.failed("read positions", &error))
        })?;
        Ok((from_raw(start), from_raw(end)))
    }

    fn read(&mut self, config: &Config, id: LaneId, from: Offset, max_bytes: usize) -> Result<Fetched, Error> {
        let (topic, partition) = id;
        let known = self.stands.take().filter(|(at, position, _)| (*at, *position) == (id, from));
        let until = match known {
            Some((_, _, until)) => until,
            None => {
                let (start, end) = self.extent(config, id)?;
                if from < start || from > end {
                    return Err(Error::OutOfRange { topic, partition, asked: from, start, end });
                }
                end
            }
        };
        let fetched = |next, records: Vec<Placed>| Fetched { topic, partition, from, next, records: records.into() };
        if from == until {
            return Ok(fetched(from, Vec::new()));
        }
        if known.is_none() {
            let place = list(config, &[(topic, partition, from)])?;
            self.client.assign(&place).map_err(|error| self.failed("read", &error))?;
        }
        let deadline = Instant::now() + PATIENCE;
        let (mut records, mut bytes, mut next) = (Vec::new(), 0, from);
        while next < until && (records.is_empty() || bytes < max_bytes) {
            match self.client.poll(SLICE) {
                Some(Ok(message)) => {
                    let placed = super::member::placed(&message);
                    // What was fetched for whoever stood here before.
                    if message.topic() != config.topic(topic) || message.partition() != index(partition) {
                        continue;
                    }
                    bytes += size_of_record(&placed.record);
                    next = Offset(placed.offset.0 + 1);
                    records.push(placed);
                }
                Some(Err(KafkaError::MessageConsumption(Code::AutoOffsetReset))) => {
                    let (start, end) = self.extent(config, id)?;
                    return Err(Error::OutOfRange { topic, partition, asked: from, start, end });
                }
                Some(Err(error)) => match self.failed("read", &error) {
                    broken @ Error::Broken(_) => return Err(broken),
                    fault => tracing::debug!(%fault, "while reading"),
                },
                None => next = next.max(self.position(config, id)),
            }
            if Instant::now() >= deadline {
                return Err(Error::Unavailable(format!("{topic}/{partition} could not be read in time")));
            }
        }
        if next < until {
            self.stands = Some((id, next, until));
        } else {
            // Nothing is there to be fetched ahead, and asking for it again and again would keep the brokers busy.
            self.client.unassign().map_err(|error| self.failed("read", &error))?;
        }
        Ok(fetched(next, records))
    }

    /// Where the client stands, control records counted.
    fn position(&self, config: &Config, (topic, partition): LaneId) -> Offset {
        let positions = self.client.position().ok();
        let found = positions.as_ref().and_then(|list| {
            let found = list.find_partition(&config.topic(topic), index(partition))?;
            match found.offset() {
                rdkafka::Offset::Offset(raw) => Some(from_raw(raw)),
                _ => None,
            }
        });
        found.unwrap_or_default()
    }
}

/// Of which partition, and whom to tell.
type Asked = (LaneId, oneshot::Sender<Result<Offset, Error>>);

/// Where partitions end. Everyone who asks while a question is under way is answered by the next one, which asks for all of
/// their partitions at once: however many ask, brokers have one question at a time of a process.
pub(super) struct Ends {
    config: Config,
    client: Client,
    waiting: Mutex<Vec<Asked>>,
    /// To ask.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Ends {
    pub(super) fn new(config: &Config) -> Result<Self, Error> {
        let client = client(config, GROUP)?;
        Ok(Self { config: config.clone(), client, waiting: Mutex::default(), turn: Arc::default() })
    }

    /// Where this partition ends at some moment after the call.
    pub(super) async fn of(self: &Arc<Self>, id: LaneId) -> Result<Offset, Error> {
        let (answer, mut answered) = oneshot::channel();
        self.waiting.lock().push((id, answer));
        let closed = |_| Error::Unavailable("shutting down".into());
        let turn = tokio::select! {
            biased;
            answer = &mut answered => return answer.map_err(closed)?,
            turn = Arc::clone(&self.turn).lock_owned() => turn,
        };
        let this = Arc::clone(self);
        // Not awaited: whoever waits is told, this caller too. The turn ends with the question, whatever becomes of it.
        drop(tokio::task::spawn_blocking(move || {
            let _turn = turn;
            this.ask_for_all();
        }));
        answered.await.map_err(closed)?
    }

    fn ask_for_all(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        if waiting.is_empty() {
            return; // the one before asked for all of them
        }
        let lanes: BTreeSet<LaneId> = waiting.iter().map(|(id, _)| *id).collect();
        let ends = patiently(|left| self.ask(&lanes, left));
        for (id, answer) in waiting {
            let end = ends.clone().and_then(|ends| {
                let nowhere = || Error::Unavailable(format!("nobody said where {}/{} ends", id.0, id.1));
                ends.get(&id).copied().ok_or_else(nowhere)
            });
            // Whoever asked may have gone.
            drop(answer.send(end));
        }
    }

    fn ask(&self, lanes: &BTreeSet<LaneId>, timeout: Duration) -> Result<HashMap<LaneId, Offset>, Error> {
        let failed = |error: KafkaError| fault("read positions", &error, &self.client.context().notes);
        let mut list = TopicPartitionList::with_capacity(lanes.len());
        for (topic, partition) in lanes {
            list.add_partition_offset(&self.config.topic(*topic), index(*partition), rdkafka::Offset::End)
                .map_err(failed)?;
        }
        let ends = client::ends(&self.client, list, timeout).map_err(failed)?;
        let end = |id: &LaneId| {
            let found = ends.find_partition(&self.config.topic(id.0), index(id.1))?;
            match found.offset() {
                rdkafka::Offset::Offset(raw) => Some((*id, from_raw(raw))),
                _ => None,
            }
        };
        Ok(lanes.iter().filter_map(end).collect())
    }
}

/// A client that joins no group.
fn client(config: &Config, group: &str) -> Result<Client, Error> {
    let settings = client::consumer_settings(config, &config.named(group), 10);
    let client = Client::from_config_and_context(&settings, Context::default());
    client.map_err(|error| Error::Broken(error.to_string()))
}

/// What groups have committed: a client for each group, for that is how it is asked.
pub(super) struct Committed {
    client: Client,
}

impl Committed {
    pub(super) fn new(config: &Config, group: &str) -> Result<Self, Error> {
        Ok(Self { client: client(config, group)? })
    }

    /// Blocks. Waits for transactions that would change the answer.
    pub(super) fn ask(&self, config: &Config, topic: Topic, partition: Partition) -> Result<Option<Offset>, Error> {
        let failed = |error: KafkaError| fault("read positions", &error, &self.client.context().notes);
        patiently(|left| {
            let asked = list(config, &[(topic, partition, Offset(0))])?;
            let found = self.client.committed_offsets(asked, left).map_err(failed)?;
            let Some(found) = found.find_partition(&config.topic(topic), index(partition)) else { return Ok(None) };
            found.error().map_err(failed)?;
            Ok(match found.offset() {
                rdkafka::Offset::Offset(raw) => Some(from_raw(raw)),
                _ => None,
            })
        })
    }
}

/// Asks again while the answer is that nobody can say: leaders and coordinators move.
fn patiently<R>(mut ask: impl FnMut(Duration) -> Result<R, Error>) -> Result<R, Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask(deadline.saturating_duration_since(Instant::now()).max(SLICE)) {
            Err(Error::Unavailable(_)) if Instant::now() < deadline => thread::sleep(SLICE),
            answer => return answer,
        }
    }
}
