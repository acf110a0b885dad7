//! The loop: takes what has arrived, has it decided, commits one transaction per partition, and builds a partition
//! anew after any fault (I2). The only place of this crate that awaits; it decides nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self as futures, StreamExt};
use schemas::cluster;
use schemas::dead_letter::DeadLetter;
use schemas::{Command, Offset, Partition, Record as _, RoomId, Topic};
use store::Store;
use stream::{Consumer, Fetched, GroupMember, Polled, Producer, Record, Transaction};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::config::Config;
use crate::decide;
use crate::dedup::Verdict;
use crate::metrics::Metrics;
use crate::rooms::{Rooms, Rows};
use crate::turn::{Decided, Key, LookedUp, Random, Surroundings, Turn};
use crate::{Deps, Error};

/// The consumer group of all ingest workers.
pub const GROUP: &str = "ingest";

/// First pause after a fault; doubled by each further one in a row. Long enough for a revocation to arrive, so that a
/// worker which has lost a partition does not fence the new owner.
const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// Longest pause after a fault: a command waits 10 s at most.
const BACKOFF_MAX: Duration = Duration::from_secs(2);

/// Runs the role until `shutdown` turns true (or its sender is gone). A round under way is finished first.
///
/// # Errors
/// Only what no retry mends.
pub async fn run(deps: Deps, config: Config, metrics: Metrics, shutdown: watch::Receiver<bool>) -> Result<(), Error> {
    run_telling(deps, config, metrics, watch::Sender::default(), shutdown).await
}

/// [`run`], telling which partitions have been assigned as they change.
///
/// # Errors
/// As [`run`].
pub async fn run_telling(
    deps: Deps,
    config: Config,
    metrics: Metrics,
    owned: watch::Sender<Vec<cluster::Owned>>,
    mut shutdown: watch::Receiver<bool>,
) -> Result<(), Error> {
    let worker = Worker { deps, config, metrics, owned };
    let mut faults = 0;
    while !*shutdown.borrow() {
        match worker.consume(&mut shutdown, &mut faults).await? {
            Next::Stop => break,
            Next::Rejoin => {}
        }
        tokio::select! {
            () = stopped(&mut shutdown) => break,
            () = sleep(backoff(faults)) => faults += 1,
        }
    }
    worker.observe(&BTreeMap::new());
    worker.owned.send_replace(Vec::new());
    Ok(())
}

enum Next {
    Stop,
    Rejoin,
}

struct Worker {
    deps: Deps,
    config: Config,
    metrics: Metrics,
    owned: watch::Sender<Vec<cluster::Owned>>,
}

/// A partition that this member has been assigned.
enum Slot {
    Ready(Box<Owned>),
    /// To be built anew; what is polled meanwhile comes again from the committed offset.
    Down {
        faults: u32,
        retry_at: Instant,
    },
}

/// A partition that is ready.
struct Owned {
    partition: Partition,
    producer: Box<dyn Producer>,
    rooms: Rooms,
    random: Random,
    /// When to look at the archive's progress again.
    look_at: Instant,
}

impl Worker {
    /// One membership in the group, until it ends.
    async fn consume(&self, shutdown: &mut watch::Receiver<bool>, faults: &mut u32) -> Result<Next, Error> {
        let mut consumer = match self.deps.log.consumer(GROUP, &[Topic::Commands]).await {
            Ok(consumer) => consumer,
            Err(error) => return give_up_if_broken(error).map(|()| Next::Rejoin),
        };
        let mut slots: BTreeMap<Partition, Slot> = BTreeMap::new();
        self.owned.send_replace(Vec::new());
        loop {
            self.observe(&slots);
            let polled = tokio::select! {
                biased;
                () = stopped(shutdown) => return Ok(Next::Stop),
                () = reached(first_due(&slots)) => {
                    let now = Instant::now();
                    let is_due = |slot: &Slot| matches!(slot, Slot::Down { retry_at, .. } if *retry_at <= now);
                    let partitions = slots.iter().filter(|(_, slot)| is_due(slot)).map(|(partition, _)| *partition);
                    self.take_over(partitions.collect(), &mut slots, consumer.as_mut()).await?;
                    continue;
                }
                polled = consumer.poll() => polled,
            };
            match polled {
                Ok(Polled::Assigned { epoch, partitions }) => {
                    tracing::info!(epoch, partitions = partitions.len(), "assigned");
                    *faults = 0;
                    let new = partitions.iter().map(|partition| cluster::Owned { epoch, partition: *partition });
                    self.owned.send_modify(|owned| owned.extend(new));
                    self.take_over(partitions, &mut slots, consumer.as_mut()).await?;
                }
                Ok(Polled::Revoked(partitions)) => {
                    tracing::info!(partitions = partitions.len(), "revoked");
                    slots.retain(|partition, _| !partitions.contains(partition));
                    self.owned.send_modify(|owned| owned.retain(|owned| !partitions.contains(&owned.partition)));
                }
                Ok(Polled::Records(fetched)) => self.round(&fetched, &consumer.member(), &mut slots).await,
                Err(error) => {
                    tracing::warn!(%error, "left the group");
                    return give_up_if_broken(error).map(|()| Next::Rejoin);
                }
            }
        }
    }

    /// Takes partitions over, or anew after a fault. I2: initialises every producer, ending any open transaction,
    /// before it reads anything.
    async fn take_over(
        &self,
        partitions: Vec<Partition>,
        slots: &mut BTreeMap<Partition, Slot>,
        consumer: &mut dyn Consumer,
    ) -> Result<(), Error> {
        let producers = join_all(partitions.iter().map(|partition| {
            let id = format!("ingest-{partition}");
            async move { (*partition, self.deps.log.producer(&id).await) }
        }))
        .await;
        let taken = join_all(producers.into_iter().map(|(partition, producer)| async move {
            let owned = match producer {
                Ok(producer) => self.read_partition(partition, producer).await,
                Err(error) => Err(Fault::from(error)),
            };
            (partition, owned)
        }))
        .await;
        for (partition, owned) in taken {
            self.metrics.takeovers.inc();
            let slot = match owned {
                Ok((owned, position)) => {
                    consumer.seek(Topic::Commands, partition, position);
                    let backlog = owned.rooms.backlog();
                    tracing::info!(%partition, %position, unarchived = backlog.events, "taken over");
                    Slot::Ready(Box::new(owned))
                }
                Err(Fault::Final(error)) => return Err(error),
                Err(Fault::Passing(error)) => {
                    tracing::warn!(%partition, error, "could not be taken over");
                    let faults = match slots.get(&partition) {
                        Some(Slot::Down { faults, .. }) => faults + 1,
                        _ => 0,
                    };
                    Slot::down(faults)
                }
            };
            slots.insert(partition, slot);
        }
        Ok(())
    }

    /// Reads what a partition's owner must know: the tail that the archive lacks, and where the commands go on.
    async fn read_partition(
        &self,
        partition: Partition,
        producer: Box<dyn Producer>,
    ) -> Result<(Owned, Offset), Fault> {
        let Deps { log, store, entropy, .. } = &self.deps;
        let progress = self.answer(store.progress(Topic::Events, partition)).await?;
        let end = log.end(Topic::Events, partition).await?;
        if end < progress {
            return Err(Fault::Final(Error::LogBehindArchive { partition, end, progress }));
        }
        let mut rooms = Rooms::new(progress);
        let mut from = progress;
        while from < end {
            let fetched = log.read(Topic::Events, partition, from, schemas::limits::BATCH_MAX_BYTES).await?;
            if fetched.next <= from {
                return Err(Fault::Passing(format!("the log's tail stops at {from}, before its end {end}")));
            }
            from = fetched.next;
            rooms.take_tail(&fetched);
        }
        let position = match log.committed(GROUP, Topic::Commands, partition).await? {
            Some(position) => position,
            None => log.start(Topic::Commands, partition).await?,
        };
        let random = Random::new(entropy.clone());
        Ok((Owned { partition, producer, rooms, random, look_at: Instant::now() }, position))
    }

    /// Decides and commits what has arrived, all partitions at once: the engine may then make them durable together.
    async fn round(&self, fetched: &[Fetched], member: &GroupMember, slots: &mut BTreeMap<Partition, Slot>) {
        let rooms_max_bytes = self.config.rooms_max_bytes / slots.len().max(1);
        let turns = slots.iter_mut().filter_map(|(partition, slot)| {
            let arrived = fetched.iter().find(|fetched| fetched.partition == *partition)?;
            let Slot::Ready(owned) = slot else { return None };
            Some(async move {
                let turn = self.turn(owned, arrived, member.clone()).await;
                owned.rooms.evict(rooms_max_bytes);
                (*partition, turn)
            })
        });
        for (partition, turn) in join_all(turns).await {
            if let Err(error) = turn {
                // I2: whatever it was, nothing that was decided since the last commit can be relied upon.
                tracing::warn!(%partition, error, "the transaction did not surely commit: building anew");
                self.metrics.failed_commits.inc();
                slots.insert(partition, Slot::down(0));
            }
        }
    }

    /// One partition's part of a round.
    async fn turn(&self, owned: &mut Owned, arrived: &Fetched, member: GroupMember) -> Result<(), String> {
        let Deps { log, clock, .. } = &self.deps;
        let (partition, partitions) = (owned.partition, log.partitions());
        let around =
            Surroundings { partition, partitions, clock: clock.as_ref(), config: &self.config, metrics: &self.metrics };
        let mut commands = Vec::with_capacity(arrived.records.len());
        let mut dead_letters = Vec::new();
        for placed in arrived.records.iter() {
            match readable(&placed.record, partition, partitions) {
                Ok(command) => commands.push(command),
                Err(reason) => {
                    tracing::warn!(%partition, offset = %placed.offset, reason, "dead letter");
                    dead_letters.push(self.dead_letter(arrived, placed, reason));
                }
            }
        }
        self.metrics.dead_letters.inc_by(dead_letters.len() as u64);
        self.metrics.round_commands.observe(f64::from(u32::try_from(commands.len()).unwrap_or(u32::MAX)));
        let looked_up = self.fetch(owned, &commands).await;

        let mut turn = Turn::new(&around, &mut owned.rooms, &looked_up, &mut owned.random);
        for command in commands {
            turn.take(command).map_err(|_| "a decided event does not follow upon its room".to_owned())?;
        }
        let Decided { mut records, backlog, received_us, crowded } = turn.end();
        records.extend(dead_letters);
        let consumed = Some((member, vec![(Topic::Commands, partition, arrived.next)]));
        let ends = owned.producer.commit(Transaction { records, consumed }).await.map_err(|error| error.to_string())?;

        let now_us = clock.micros();
        for received_us in received_us {
            self.metrics.committed.since(received_us, now_us);
        }
        let end = ends.iter().find(|(topic, at, _)| (*topic, *at) == (Topic::Events, partition));
        match end {
            Some((_, _, end)) => owned.rooms.append(*end, backlog),
            None if backlog.events == 0 => {}
            None => return Err("the log did not say where the events are".to_owned()),
        }
        for (room, user) in crowded {
            owned.rooms.forget_ids(room, user, self.config.ids_kept);
        }
        Ok(())
    }

    fn dead_letter(&self, arrived: &Fetched, placed: &stream::Placed, reason: String) -> (Topic, Partition, Record) {
        let letter = DeadLetter {
            topic: arrived.topic.name().to_owned(),
            partition: arrived.partition.0,
            offset: placed.offset,
            reason,
            at: self.deps.clock.now(),
            value: placed.record.value.to_vec(),
        };
        (Topic::DeadLetters, arrived.partition, Record { key: placed.record.key, value: letter.encode() })
    }

    /// Reads what these commands need and memory lacks: cold rooms, and ids at or below their floor. What could not be
    /// read is missing afterwards, and its commands alone suffer (I3).
    async fn fetch(&self, owned: &mut Owned, commands: &[Command]) -> LookedUp {
        let now = self.deps.clock.now();
        let rooms = &mut owned.rooms;
        let mut cold: HashMap<RoomId, Vec<Key>> = HashMap::new();
        let mut asked: HashSet<Key> = HashSet::new();
        for command in commands.iter().filter(|command| decide::admit(command, now).is_ok()) {
            let key = (command.room, command.user, command.id);
            match rooms.get(command.room) {
                None => cold.entry(command.room).or_default().push(key),
                Some(room) if room.dedup.check(command.user, command.id) == Verdict::Ask => drop(asked.insert(key)),
                Some(_) => {}
            }
        }
        let must_read = !cold.is_empty() || !asked.is_empty();
        let due = rooms.backlog().events > 0 && owned.look_at <= Instant::now();
        if !must_read && !due && !self.is_crowded(rooms) {
            return LookedUp::new();
        }
        let store = self.deps.store.as_ref();
        owned.look_at = Instant::now() + self.config.progress_interval();
        match self.answer(store.progress(Topic::Events, owned.partition)).await {
            // I3: a store that has lost what we let go of must not answer for it.
            Ok(progress) if progress < rooms.need() => {
                tracing::warn!(partition = %owned.partition, %progress, need = %rooms.need(), "the store is behind");
                self.metrics.failed_loads.inc_by(cold.len() as u64);
                return LookedUp::new();
            }
            Ok(progress) => rooms.archived(progress),
            Err(error) => {
                tracing::warn!(partition = %owned.partition, %error, "the archive's progress could not be read");
                self.metrics.failed_loads.inc_by(cold.len() as u64);
                return LookedUp::new();
            }
        }
        let asked: Vec<Key> = asked.into_iter().collect();
        let loads = futures::iter(cold)
            .map(|(room, keys)| async move { (room, self.answer(load(store, room, &keys)).await) })
            .buffer_unordered(self.config.loads_max)
            .collect::<Vec<_>>();
        let (loaded, known) = tokio::join!(loads, self.look_up(&asked));
        let mut looked_up = known.unwrap_or_else(|error| {
            tracing::warn!(partition = %owned.partition, %error, "command ids could not be looked up");
            LookedUp::new()
        });
        // Looked at once more: what was read before it lost anything is good, and after it nothing is.
        if must_read && !self.holds_enough(owned.partition, owned.rooms.need()).await {
            tracing::warn!(partition = %owned.partition, "the store has lost something while it was read");
            self.metrics.failed_loads.inc_by(loaded.len() as u64);
            return LookedUp::new();
        }
        for (room, rows) in loaded {
            let put_together = match rows {
                Ok((rows, known)) => {
                    looked_up.extend(known);
                    owned.rooms.load(room, rows).map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            match put_together {
                Ok(()) => self.metrics.loads.inc(),
                Err(error) => {
                    tracing::warn!(%room, error, "a room could not be loaded");
                    self.metrics.failed_loads.inc();
                }
            }
        }
        self.metrics.look_ups.inc_by(looked_up.len() as u64);
        looked_up
    }

    /// I3: whether the store still holds what memory relies on it for.
    async fn holds_enough(&self, partition: Partition, need: Offset) -> bool {
        let progress = self.answer(self.deps.store.progress(Topic::Events, partition)).await;
        progress.is_ok_and(|progress| progress >= need)
    }

    async fn look_up(&self, keys: &[Key]) -> Result<LookedUp, store::Error> {
        if keys.is_empty() {
            return Ok(LookedUp::new());
        }
        self.answer(look_up(self.deps.store.as_ref(), keys)).await
    }

    fn is_crowded(&self, rooms: &Rooms) -> bool {
        let backlog = rooms.backlog();
        backlog.events >= self.config.unarchived_max_events || backlog.bytes >= self.config.unarchived_max_bytes
    }

    /// An answer of the store, or its error if it takes too long.
    async fn answer<T>(&self, call: impl Future<Output = Result<T, store::Error>>) -> Result<T, store::Error> {
        match timeout(self.config.load_timeout(), call).await {
            Ok(answer) => answer,
            Err(_) => Err(store::Error::Unavailable("no answer in time".into())),
        }
    }

    fn observe(&self, slots: &BTreeMap<Partition, Slot>) {
        let (mut partitions, mut rooms, mut bytes, mut unarchived) = (0, 0, 0, 0);
        for slot in slots.values() {
            if let Slot::Ready(owned) = slot {
                let (count, weight) = owned.rooms.loaded();
                (partitions, rooms, bytes) = (partitions + 1, rooms + count, bytes + weight);
                unarchived += owned.rooms.backlog().events;
            }
        }
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.metrics.partitions.set(partitions);
        self.metrics.rooms.set(gauge(rooms));
        self.metrics.rooms_bytes.set(gauge(bytes));
        self.metrics.unarchived_events.set(i64::try_from(unarchived).unwrap_or(i64::MAX));
    }
}

impl Slot {
    fn down(faults: u32) -> Self {
        Self::Down { faults, retry_at: Instant::now() + backoff(faults) }
    }
}

/// A cold room's rows, and what the store knows of these of its commands. Reads `info` before `members`: a standing may
/// be newer than the room's row, never older.
async fn load(store: &dyn Store, room: RoomId, keys: &[Key]) -> Result<(Rows, LookedUp), store::Error> {
    let info = store.rooms(&[room]).await?.pop();
    let members = if info.is_some() { store.members(room).await? } else { Vec::new() };
    let largest_command = store.largest_command(room).await?;
    let below_floor: Vec<Key> = keys.iter().copied().filter(|(_, _, id)| Some(*id) <= largest_command).collect();
    let known = if below_floor.is_empty() { LookedUp::new() } else { look_up(store, &below_floor).await? };
    Ok((Rows { info, members, largest_command }, known))
}

async fn look_up(store: &dyn Store, keys: &[Key]) -> Result<LookedUp, store::Error> {
    let mut known: LookedUp = keys.iter().map(|key| (*key, None)).collect();
    known.extend(store.acted(keys).await?.into_iter().map(|(key, acted)| (key, Some(acted))));
    Ok(known)
}

/// The command of a record, or why it can't be processed.
fn readable(record: &Record, partition: Partition, partitions: u32) -> Result<Command, String> {
    let command = Command::decode(&record.value).map_err(|error| match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })?;
    // I2: a room's commands are decided in its own partition or not at all.
    if Partition::of(command.room.as_bytes(), partitions) != partition {
        return Err("a command in another room's partition".to_owned());
    }
    Ok(command)
}

/// Why a partition can't be taken over.
enum Fault {
    /// Try again.
    Passing(String),
    /// Don't.
    Final(Error),
}

impl From<stream::Error> for Fault {
    fn from(error: stream::Error) -> Self {
        match error {
            stream::Error::Broken(_) => Self::Final(Error::Log(error)),
            error => Self::Passing(error.to_string()),
        }
    }
}

impl From<store::Error> for Fault {
    fn from(error: store::Error) -> Self {
        Self::Passing(error.to_string())
    }
}

fn give_up_if_broken(error: stream::Error) -> Result<(), Error> {
    match error {
        stream::Error::Broken(_) | stream::Error::OutOfRange { .. } => Err(Error::Log(error)),
        _ => Ok(()),
    }
}

fn backoff(faults: u32) -> Duration {
    (BACKOFF_MIN * 2_u32.saturating_pow(faults.min(16))).min(BACKOFF_MAX)
}

async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // A sender that is gone can't call for a stop any more: stop.
    drop(shutdown.wait_for(|stop| *stop).await);
}

/// When the first of the partitions that are down may be tried again.
fn first_due(slots: &BTreeMap<Partition, Slot>) -> Option<Instant> {
    let due = slots.values().filter_map(|slot| match slot {
        Slot::Down { retry_at, .. } => Some(*retry_at),
        Slot::Ready(_) => None,
    });
    due.min()
}

async fn reached(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
