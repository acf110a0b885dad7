//! The archiver's loop: consumes, folds, writes behind. Owns the order of these steps and what happens on errors;
//! what the rows are is [`crate::plan`]'s matter. Two loops in one future: consuming goes on while a write is under
//! way, and is never held up by one unless too much is unarchived (I9).

use std::collections::HashSet;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use schemas::cluster::Owned;
use schemas::dead_letter::DeadLetter;
use schemas::outcome::Outcome;
use schemas::receipt::Receipt;
use schemas::user_event::UserEvent;
use schemas::{Event, Offset, Partition, Record, RoomId, Topic};
use stream::{Consumer, Fetched, Placed, Polled};
use tokio::sync::watch;
use tracing::{debug, error, info, warn};

use crate::history::{History, Reached};
use crate::plan::{self, Base, Breach, Fact, Fault, Flight, Needs, Positions, TOPICS, Tail};
use crate::{Error, GROUP};

/// First and longest wait before something is tried again.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(2);

/// A write is followed by a rest so many times as long as it took, up to the longest one: writing behind shall leave most
/// of the store to those who wait for it, and a batch that waited longer is cheaper for each of its rows.
const REST_TIMES: u32 = 3;
const REST_MAX: Duration = Duration::from_secs(5);

/// Reads of the store side by side while cold rooms are loaded.
const LOADS: usize = 16;

/// What one poll brought from one partition of a topic.
struct Intake {
    fetched: Fetched,
    facts: Vec<(Offset, Fact)>,
}

/// The archiver's worker. Drive [`Worker::run`]; dropping that future is like a crash, and as safe.
pub struct Worker {
    history: Arc<History>,
}

impl Worker {
    pub(crate) fn new(history: Arc<History>) -> Self {
        Self { history }
    }

    /// What this archiver owns, as it changes: what others find it by.
    pub fn owned(&self) -> watch::Receiver<Vec<Owned>> {
        self.history.held()
    }

    /// Consumes and archives until `shutdown` is true; then what was consumed is written, for a bounded time.
    ///
    /// # Errors
    /// What only a person can mend, see [`Error`].
    pub async fn run(self, mut shutdown: watch::Receiver<bool>) -> Result<(), Error> {
        let result = tokio::select! {
            result = self.consume() => result,
            () = self.write() => Ok(()),
            // A sender that is gone asks for the end as well.
            _ = shutdown.wait_for(|end| *end) => Ok(()),
        };
        let drain = async { while self.flush().await {} };
        if tokio::time::timeout(self.history.config.drain_max(), drain).await.is_err() {
            warn!("the last write took too long; what is unarchived will be read from the log again");
        }
        self.history.close_all();
        if let Err(error) = &result {
            error!(%error, "the archiver stops");
        }
        result
    }

    /// One membership of the group after the other.
    async fn consume(&self) -> Result<(), Error> {
        let log = &self.history.deps.log;
        loop {
            let mut consumer = insist("join the group", || log.consumer(GROUP, &TOPICS)).await?;
            let error = self.follow(consumer.as_mut()).await?;
            self.history.close_all();
            warn!(%error, "the archiver joins its group again");
            tokio::time::sleep(RETRY_MIN).await;
        }
    }

    /// Brings the reason why the group has to be joined again.
    async fn follow(&self, consumer: &mut dyn Consumer) -> Result<stream::Error, Error> {
        let mut hint = tokio::time::interval(self.history.config.hint_interval());
        hint.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.room_to_consume().await;
            tokio::select! {
                polled = consumer.poll() => match polled {
                    Ok(Polled::Records(fetched)) => self.take_in(fetched).await?,
                    Ok(Polled::Assigned { epoch, partitions }) => {
                        info!(epoch, partitions = partitions.len(), "the archiver takes partitions over");
                        for partition in partitions {
                            self.take_over(consumer, epoch, partition).await?;
                        }
                    }
                    Ok(Polled::Revoked(partitions)) => {
                        for partition in partitions {
                            self.history.close(partition);
                        }
                    }
                    Err(error) if is_fatal(&error) => return Err(Error::Log(error)),
                    Err(error) => return Ok(error),
                },
                () = self.history.rewind.notified() => {
                    self.history.metrics.rewinds.inc();
                    error!("the store has come back without its newest rows: archiving them again");
                    return Ok(stream::Error::Unavailable("the archive is behind".to_owned()));
                }
                _ = hint.tick() => if let Err(error) = self.hint(consumer).await {
                    debug!(%error, "only a hint; what matters the next poll will tell");
                },
            }
        }
    }

    /// I9: nothing more is consumed while too much is unarchived.
    async fn room_to_consume(&self) {
        loop {
            let landed = self.history.landed.notified();
            if self.history.total(|tail| tail.unarchived()).1 <= self.history.config.unarchived_max_bytes {
                return;
            }
            self.history.hurry.notify_one();
            landed.await;
        }
    }

    /// I5: the progress that counts is the store's, whatever the group has committed.
    async fn take_over(&self, consumer: &mut dyn Consumer, epoch: u64, partition: Partition) -> Result<(), Error> {
        let (log, store) = (&self.history.deps.log, &self.history.deps.store);
        let mut positions = Positions::default();
        for topic in TOPICS {
            let progress =
                always(&self.history, "read the archive's progress", || store.progress(topic, partition)).await;
            let start = insist("find the log's start", || log.start(topic, partition)).await?;
            let end = insist("find the log's end", || log.end(topic, partition)).await?;
            if !(start..=end).contains(&progress) {
                return Err(Error::OutOfLog { topic, partition, progress, start, end });
            }
            consumer.seek(topic, partition, progress);
            positions.set(topic, progress);
        }
        self.history.open(epoch, partition, positions);
        Ok(())
    }

    /// Tells the group how far the archive is, and the metrics how far it is behind.
    async fn hint(&self, consumer: &mut dyn Consumer) -> Result<(), stream::Error> {
        let owned = self.history.owned();
        if owned.is_empty() {
            return Ok(());
        }
        if !self.history.was_sure_within(self.history.config.hint_interval()) && self.history.make_sure().await.is_err()
        {
            debug!("the archive's progress is not sure");
        }
        for topic in TOPICS {
            let ends = owned.iter().map(|(partition, _)| self.history.deps.log.end(topic, *partition));
            let ends = try_join_all(ends).await?;
            let behind = |(end, (_, reached)): (&Offset, &(Partition, Reached))| {
                end.0.saturating_sub(reached.consumed.of(topic).0)
            };
            let lag: u64 = ends.iter().zip(&owned).map(behind).sum();
            let gauge = self.history.metrics.lag_records.with_label_values(&[topic.name()]);
            gauge.set(i64::try_from(lag).unwrap_or(i64::MAX));
        }
        let archived = |(partition, reached): &(Partition, Reached)| {
            let (partition, archived) = (*partition, reached.archived);
            TOPICS.map(|topic| (topic, partition, archived.of(topic)))
        };
        consumer.commit(owned.iter().flat_map(archived).collect()).await
    }

    /// Folds what a poll brought, so that readers see it at once.
    async fn take_in(&self, fetched: Vec<Fetched>) -> Result<(), Error> {
        let mut intakes = Vec::with_capacity(fetched.len());
        for fetched in fetched.into_iter().filter(|fetched| TOPICS.contains(&fetched.topic)) {
            let mut facts = Vec::with_capacity(fetched.records.len());
            for placed in &*fetched.records {
                match decode(fetched.topic, &placed.record.value) {
                    Ok(Some(fact)) => facts.push((placed.offset, fact)),
                    Ok(None) => {}
                    Err(reason) => {
                        error!(topic = %fetched.topic, partition = %fetched.partition, offset = %placed.offset, %reason, "undecodable");
                        self.set_aside(&fetched, placed, reason.to_string()).await?;
                    }
                }
            }
            intakes.push(Intake { fetched, facts });
        }
        let mut base = self.load(&intakes).await;
        for Intake { fetched, facts } in intakes {
            let fold = |tail: &mut Tail| tail.fold(fetched.topic, fetched.next, facts, &mut base);
            let faults = self.history.with(fetched.partition, fold).unwrap_or_default();
            if !faults.is_empty() && self.history.make_sure().await.is_err() {
                // What is missing here was lost there: all of it comes again.
                self.history.lacks_rows();
                continue;
            }
            for fault in faults {
                self.refuse(&fetched, &fault).await?;
            }
        }
        self.history.dirty.notify_one();
        let (events, bytes) = self.history.total(|tail| tail.waiting());
        let config = &self.history.config;
        if events >= config.flush_max_events || bytes >= config.flush_max_bytes || self.history.is_awaited() {
            self.history.hurry.notify_one();
        }
        self.show_unarchived();
        Ok(())
    }

    /// What the fold needs of the store: one call for all cold rooms, then the standings that change.
    async fn load(&self, intakes: &[Intake]) -> Base {
        let store = &self.history.deps.store;
        let mut base = Base::default();
        let mut cold = HashSet::new();
        let of_rooms = || intakes.iter().filter(|intake| intake.fetched.topic == Topic::Events);
        for intake in of_rooms() {
            self.history.with(intake.fetched.partition, |tail| tail.cold(&intake.facts, &mut cold));
        }
        if !cold.is_empty() {
            let cold: Vec<RoomId> = cold.into_iter().collect();
            let rooms = always(&self.history, "load cold rooms", || store.rooms(&cold)).await;
            base.rooms = rooms.into_iter().map(|info| (info.id, info)).collect();
        }
        let mut needs = Needs::default();
        for intake in of_rooms() {
            self.history.with(intake.fetched.partition, |tail| {
                tail.needs(&intake.facts, &base, &mut needs);
            });
        }
        let standings = needs.standings.into_iter().map(|(user, rooms)| async move {
            let rooms: Vec<RoomId> = rooms.into_iter().collect();
            let standings = always(&self.history, "load standings", || store.standings(user, &rooms)).await;
            standings.into_iter().map(|(room, member)| ((room, user), member)).collect::<Vec<_>>()
        });
        let standings: Vec<_> = futures_util::stream::iter(standings).buffer_unordered(LOADS).collect().await;
        base.standings = standings.into_iter().flatten().collect();
        for (room, (first, last)) in needs.replayed {
            let count = usize::try_from(last.0 - first.0 + 1).unwrap_or(usize::MAX);
            let events =
                always(&self.history, "load events", || store.events(room, first.prev(), last.next(), count, false))
                    .await;
            base.hashes.extend(events.into_iter().map(|event| ((room, event.seq), event.hash)));
        }
        base
    }

    /// An event that breaks its room's density is never folded: what stands in the archive stays dense and as it is.
    async fn refuse(&self, fetched: &Fetched, fault: &Fault) -> Result<(), Error> {
        let (metric, reason) = match fault.breach {
            Breach::Hole => (&self.history.metrics.holes, "hole: events before it are missing"),
            Breach::Double => (&self.history.metrics.doubles, "double: its seq is another event's"),
        };
        metric.inc();
        let (event, head) = (&fault.event, fault.head);
        error!(
            room = %event.room, seq = %event.seq, %head, partition = %fetched.partition, offset = %fault.offset,
            reason, "an event breaks its room"
        );
        match fetched.records.iter().find(|placed| placed.offset == fault.offset) {
            Some(placed) => self.set_aside(fetched, placed, format!("{reason}; the room's head is {head}")).await,
            None => Ok(()),
        }
    }

    /// Nothing is dropped without a trace.
    async fn set_aside(&self, fetched: &Fetched, placed: &Placed, reason: String) -> Result<(), Error> {
        let letter = DeadLetter {
            topic: fetched.topic.name().to_owned(),
            partition: fetched.partition.0,
            offset: placed.offset,
            reason,
            at: self.history.deps.clock.now(),
            value: placed.record.value.to_vec(),
        };
        let record = stream::Record { key: placed.record.key, value: letter.encode() };
        let log = &self.history.deps.log;
        let append = || log.append(Topic::DeadLetters, fetched.partition, vec![record.clone()]);
        insist("set a record aside", append).await?;
        self.history.metrics.dead_letters.with_label_values(&[fetched.topic.name()]).inc();
        Ok(())
    }

    /// Writes behind, for ever: a while after something came, or at once if there is much of it or someone waits. A store
    /// that is slow gets larger batches, and more rest between them.
    async fn write(&self) {
        let (clock, interval) = (&self.history.deps.clock, self.history.config.flush_interval());
        let mut took = Duration::ZERO;
        loop {
            self.history.dirty.notified().await;
            tokio::select! {
                () = tokio::time::sleep((REST_TIMES * took).clamp(interval, interval.max(REST_MAX))) => {}
                () = self.history.hurry.notified() => {}
            }
            let begun = clock.elapsed();
            self.flush().await;
            took = clock.elapsed().saturating_sub(begun);
        }
    }

    /// Writes everything consumed so far as one batch. `false`: there was nothing.
    async fn flush(&self) -> bool {
        let history = &self.history;
        let flights = history.flights();
        if flights.is_empty() {
            return false;
        }
        // Rows may repeat (I5), so a failed or unknown write is simply made again.
        let is_behind = |error: &store::Error| matches!(error, store::Error::Behind);
        if retry("write a batch", is_behind, || self.attempt(&flights)).await.is_err() {
            history.lacks_rows();
            return false;
        }
        let mut whole = Vec::new();
        for flight in &flights {
            whole.extend(history.with(flight.partition, |tail| tail.landed(flight)).unwrap_or_default());
        }
        history.landed.notify_one();
        let now = history.deps.clock.micros();
        let events = || flights.iter().flat_map(|flight| &flight.events);
        for event in events() {
            #[expect(clippy::cast_precision_loss, reason = "a latency")]
            history.metrics.archived_seconds.observe(now.saturating_sub(event.received_us).max(0) as f64 / 1e6);
        }
        #[expect(clippy::cast_precision_loss, reason = "a count")]
        history.metrics.flush_events.observe(events().count() as f64);
        self.show_unarchived();
        history.keep(whole).await;
        true
    }

    async fn attempt(&self, flights: &[Arc<Flight>]) -> Result<(), store::Error> {
        let history = &self.history;
        let started = history.deps.clock.elapsed();
        let result = history.deps.store.archive(plan::batch(flights)).await;
        history.metrics.flush_seconds.observe(history.deps.clock.elapsed().saturating_sub(started).as_secs_f64());
        if result.is_err() {
            history.failed();
            history.metrics.flush_failures.inc();
        } else if history.owned().iter().all(|(at, _)| flights.iter().any(|flight| flight.partition == *at)) {
            // A batch is refused where the store's progress is not what it goes on from.
            history.sure_at(started);
        }
        result
    }

    fn show_unarchived(&self) {
        let (events, bytes) = self.history.total(|tail| tail.unarchived());
        self.history.metrics.unarchived_events.set(i64::try_from(events).unwrap_or(i64::MAX));
        self.history.metrics.unarchived_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}

/// A record as a fact; `None` for what is not ours to keep.
fn decode(topic: Topic, value: &[u8]) -> Result<Option<Fact>, schemas::codec::CodecError> {
    Ok(match topic {
        Topic::UserEvents => Some(Fact::User(UserEvent::decode(value)?)),
        Topic::Receipts => Some(Fact::Receipt(Arc::new(Receipt::decode(value)?))),
        // What became of a command that made no event is for its edge alone.
        _ if Outcome::is(value) => None,
        _ => Some(Fact::Event(Arc::new(Event::decode(value)?))),
    })
}

fn is_fatal(error: &stream::Error) -> bool {
    matches!(error, stream::Error::Broken(_) | stream::Error::OutOfRange { .. })
}

/// Does something of the log until it succeeds or fails for good.
async fn insist<T, F>(what: &'static str, call: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, stream::Error>>,
{
    retry(what, is_fatal, call).await.map_err(Error::Log)
}

/// Does something of the store until it succeeds: without it there is nothing else to do.
async fn always<T, F>(history: &History, what: &'static str, call: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, store::Error>>,
{
    loop {
        let call = async || call().await.inspect_err(|_| history.failed());
        if let Ok(done) = retry(what, |_| false, call).await {
            return done;
        }
    }
}

/// Tries again, with growing pauses, while the error may pass.
async fn retry<T, E, F>(what: &'static str, is_fatal: fn(&E) -> bool, call: impl Fn() -> F) -> Result<T, E>
where
    E: Display,
    F: Future<Output = Result<T, E>>,
{
    let mut pause = RETRY_MIN;
    loop {
        match call().await {
            Err(error) if !is_fatal(&error) => {
                warn!(what, %error, "the archiver tries again");
                tokio::time::sleep(pause).await;
                pause = (2 * pause).min(RETRY_MAX);
            }
            result => return result,
        }
    }
}
