//! The loop of the fanout role, the only place that awaits: one poll of the group at a time, handed to every edge that
//! wants a part of it, then the registrations that have come meanwhile, so that each stands between two batches (I6).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::join_all;
use schemas::cluster::Owned;
use schemas::dead_letter::DeadLetter;
use schemas::link::{Batch, EdgePort, FanoutPort, Item, Lane, Registered, Unavailable};
use schemas::outcome::Outcome;
use schemas::receipt::Receipt;
use schemas::signal::Signal;
use schemas::user_event::UserEvent;
use schemas::{Clock, EdgeId, Event, Offset, Partition, Record, RoomId, Seq, Topic, UserId};
use stream::{Consumer, Fetched, Log, Placed, Polled};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, timeout};

use crate::config::Config;
use crate::delivery::{Addressed, Delivery, Standing};
use crate::density::{Breach, Density};
use crate::interest::{Interest, Key};
use crate::metrics::Metrics;

/// The consumer group.
pub const GROUP: &str = "fanout";

/// What the group consumes. All are keyed alike, so partition n of each has one owner.
pub const TOPICS: [Topic; 4] = [Topic::Events, Topic::UserEvents, Topic::Receipts, Topic::Signals];

/// Bytes of the log read at a time for an edge that has missed something.
const CHANGED_CHUNK_BYTES: usize = 1 << 20;

/// What fanout is handed.
#[derive(Clone)]
pub struct Deps {
    /// What it reads.
    pub log: Arc<dyn Log>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Fanout in two parts: the handle that edges call, and the worker that the caller runs.
pub fn new(deps: Deps, config: Config, metrics: Metrics) -> (Arc<Handle>, Worker) {
    let (sender, requests) = mpsc::unbounded_channel();
    let owned = watch::Sender::new(Vec::new());
    let handle = Handle {
        owned: owned.subscribe(),
        log: Arc::clone(&deps.log),
        requests: sender,
        waiting: Semaphore::new(config.waiting_max),
        reading: Semaphore::new(config.changed_max),
    };
    let worker = Worker {
        requests,
        owned,
        parked: Vec::new(),
        edges: BTreeMap::new(),
        interest: Interest::default(),
        delivery: Delivery::default(),
        density: Density::new(config.rooms_remembered_max),
        deps,
        config,
        metrics,
    };
    (Arc::new(handle), worker)
}

/// What edges call.
pub struct Handle {
    owned: watch::Receiver<Vec<Owned>>,
    log: Arc<dyn Log>,
    /// In the order in which they were called: a key taken back and registered anew must not end as taken back.
    /// Bounded all the same: calls that wait for an answer by `waiting`, the others by what is attached and registered.
    requests: mpsc::UnboundedSender<Request>,
    waiting: Semaphore,
    reading: Semaphore,
}

enum Request {
    Attach(Arc<dyn EdgePort>, oneshot::Sender<()>),
    Detach(EdgeId),
    Register(Registration),
    Unregister(EdgeId, Lane, Partition, Vec<Key>),
    Online(Vec<UserId>, oneshot::Sender<Vec<UserId>>),
}

struct Registration {
    edge: EdgeId,
    lane: Lane,
    partition: Partition,
    keys: Vec<Key>,
    answer: oneshot::Sender<Registered>,
}

impl Handle {
    /// What this fanout owns, as it changes: what others find it by.
    pub fn owned(&self) -> watch::Receiver<Vec<Owned>> {
        self.owned.clone()
    }

    /// Sends a request that is answered; a worker that has ended or drops it answers `Unavailable`.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Unavailable> {
        let _waiting = self.waiting.try_acquire().map_err(|_| Unavailable)?;
        let (sender, answer) = oneshot::channel();
        self.requests.send(request(sender)).map_err(|_| Unavailable)?;
        answer.await.map_err(|_| Unavailable)
    }
}

#[async_trait]
impl FanoutPort for Handle {
    async fn attach(&self, edge: Arc<dyn EdgePort>) -> Result<(), Unavailable> {
        self.ask(|answer| Request::Attach(edge, answer)).await
    }

    fn detach(&self, edge: EdgeId) {
        // A worker that has ended holds nobody.
        let _ = self.requests.send(Request::Detach(edge));
    }

    async fn register(
        &self,
        edge: EdgeId,
        lane: Lane,
        partition: Partition,
        keys: &[[u8; 16]],
    ) -> Result<Registered, Unavailable> {
        let keys = keys.to_vec();
        self.ask(|answer| Request::Register(Registration { edge, lane, partition, keys, answer })).await
    }

    fn unregister(&self, edge: EdgeId, lane: Lane, partition: Partition, keys: &[[u8; 16]]) {
        let _ = self.requests.send(Request::Unregister(edge, lane, partition, keys.to_vec()));
    }

    async fn changed(
        &self,
        partition: Partition,
        from: Offset,
        to: Offset,
    ) -> Result<Option<Vec<(RoomId, Seq)>>, Unavailable> {
        let _reading = self.reading.acquire().await.map_err(|_| Unavailable)?;
        let mut heads: BTreeMap<RoomId, Seq> = BTreeMap::new();
        let mut position = from;
        while position < to {
            let fetched = match self.log.read(Topic::Events, partition, position, CHANGED_CHUNK_BYTES).await {
                Ok(fetched) => fetched,
                Err(error @ stream::Error::OutOfRange { .. }) => {
                    tracing::warn!(%partition, %position, %error, "retention has taken what an edge has missed");
                    return Ok(None);
                }
                Err(error) => {
                    tracing::warn!(%partition, %position, %error, "an edge that has missed something can't be told what");
                    return Err(Unavailable);
                }
            };
            if fetched.records.is_empty() {
                break;
            }
            for placed in fetched.records.iter().take_while(|placed| placed.offset < to) {
                if let Ok(event) = Event::decode(&placed.record.value) {
                    let head = heads.entry(event.room).or_default();
                    *head = event.seq.max(*head);
                }
            }
            position = fetched.next;
        }
        Ok(Some(heads.into_iter().collect()))
    }

    async fn online(&self, users: &[UserId]) -> Result<Vec<UserId>, Unavailable> {
        let users = users.to_vec();
        self.ask(|answer| Request::Online(users, answer)).await
    }
}

/// Reads the log and feeds the edges.
pub struct Worker {
    deps: Deps,
    config: Config,
    metrics: Metrics,
    requests: mpsc::UnboundedReceiver<Request>,
    owned: watch::Sender<Vec<Owned>>,
    /// Registrations in partitions that are still catching up.
    parked: Vec<Registration>,
    edges: BTreeMap<EdgeId, Arc<dyn EdgePort>>,
    interest: Interest,
    delivery: Delivery,
    density: Density,
}

/// What a wait has come to.
enum Due {
    Stop,
    Commit,
    Polled(Polled),
}

/// What has arrived in a slice.
#[derive(Default)]
struct Arrived {
    items: Vec<Item>,
    next: Option<Offset>,
}

impl Worker {
    /// Runs until `shutdown` turns true or its sender is gone. Errors that pass are waited out here; while they last,
    /// requests wait.
    ///
    /// # Errors
    /// `Broken`, where no retry helps.
    pub async fn run(mut self, mut shutdown: watch::Receiver<bool>) -> Result<(), stream::Error> {
        loop {
            match self.own(&mut shutdown).await {
                Ok(()) => return Ok(()),
                Err(error @ stream::Error::Broken(_)) => return Err(error),
                Err(error) => tracing::warn!(%error, "fanout leaves its group and joins anew"),
            }
            for partition in self.delivery.partitions() {
                self.forget(partition);
            }
            self.tell_owned();
            tokio::select! {
                () = stopped(&mut shutdown) => return Ok(()),
                () = sleep(self.config.retry_after()) => {}
            }
        }
    }

    /// One membership of the group, to its end.
    async fn own(&mut self, shutdown: &mut watch::Receiver<bool>) -> Result<(), stream::Error> {
        let mut consumer = self.deps.log.consumer(GROUP, &TOPICS).await?;
        let mut beat = interval(self.config.advance_every());
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            match self.wait(consumer.as_mut(), &mut beat, shutdown).await? {
                Due::Stop => return self.commit(consumer.as_mut()).await,
                Due::Commit => self.commit(consumer.as_mut()).await?,
                Due::Polled(Polled::Assigned { epoch, partitions }) => {
                    self.take_over(consumer.as_mut(), epoch, partitions).await?;
                    self.tell_owned();
                }
                Due::Polled(Polled::Revoked(partitions)) => {
                    partitions.into_iter().for_each(|partition| self.forget(partition));
                    self.tell_owned();
                }
                Due::Polled(Polled::Records(fetched)) => self.pass_on(fetched).await,
            }
        }
    }

    /// Waits for the next poll, and answers requests meanwhile. They don't interrupt it: a poll that has to read from
    /// the disk would never end while they come.
    async fn wait(
        &mut self,
        consumer: &mut dyn Consumer,
        beat: &mut Interval,
        shutdown: &mut watch::Receiver<bool>,
    ) -> Result<Due, stream::Error> {
        let mut poll = consumer.poll();
        let mut requests = Vec::new();
        loop {
            self.go_live().await;
            while let Ok(request) = self.requests.try_recv() {
                requests.push(request);
            }
            self.answer(std::mem::take(&mut requests)).await;
            // In this order, not by chance: roles have no randomness of their own.
            tokio::select! {
                biased;
                () = stopped(shutdown) => return Ok(Due::Stop),
                _ = beat.tick() => {
                    let news = self.delivery.advance();
                    self.deliver(news).await;
                    self.catch_up().await?;
                    self.measure();
                    if self.delivery.is_commit_due() {
                        return Ok(Due::Commit);
                    }
                }
                polled = &mut poll => return polled.map(Due::Polled),
                Some(request) = self.requests.recv() => requests.push(request),
            }
        }
    }

    /// Takes partitions over. Nobody has interest in them: the owner before us had it, if any.
    async fn take_over(
        &mut self,
        consumer: &mut dyn Consumer,
        epoch: u64,
        partitions: Vec<Partition>,
    ) -> Result<(), stream::Error> {
        tracing::info!(epoch, count = partitions.len(), "fanout takes partitions over");
        let log = Arc::clone(&self.deps.log);
        // Reading goes on at the committed positions, behind what was seen: that is no double.
        self.density.clear();
        for partition in partitions {
            for topic in TOPICS {
                let start = log.start(topic, partition).await?;
                let committed = log.committed(GROUP, topic, partition).await?;
                let position = committed.map_or(start, |committed| committed.max(start));
                if committed.is_some_and(|committed| committed < start) {
                    // Nobody is registered yet, so nobody was promised what is gone: whoever missed it reads history.
                    tracing::error!(%topic, %partition, %start, "retention has overtaken fanout");
                    consumer.seek(topic, partition, start);
                }
                if let Some(lane) = lane_of(topic) {
                    let end = log.end(topic, partition).await?;
                    self.delivery.take_over(lane, partition, epoch, position, end);
                }
            }
        }
        self.catch_up().await
    }

    /// Looks whether slices that have not come to their end yet only lack control records, which no poll brings.
    async fn catch_up(&mut self) -> Result<(), stream::Error> {
        for (lane, partition, position) in self.delivery.catching_up() {
            let rest = self.deps.log.read(lane.topic(), partition, position, 1).await?;
            if rest.records.is_empty() {
                self.delivery.caught_up(lane, partition);
            }
        }
        Ok(())
    }

    /// Slices that have come to their end go live, and registrations that waited for that are answered.
    async fn go_live(&mut self) {
        let news = self.delivery.go_live();
        if !news.is_empty() || !self.parked.is_empty() {
            self.deliver(news).await;
            let parked = std::mem::take(&mut self.parked);
            self.register(parked).await;
        }
    }

    /// Forgets a partition and who wanted what of it: they ask its next owner.
    fn forget(&mut self, partition: Partition) {
        self.delivery.forget(partition);
        self.interest.forget_partition(partition);
        // Dropping the answer is `Unavailable`.
        self.parked.retain(|registration| registration.partition != partition);
    }

    fn tell_owned(&self) {
        let owned = self.delivery.owned();
        self.owned.send_if_modified(|told| std::mem::replace(told, owned.clone()) != owned);
    }

    /// Hands each edge its part of what has been read, and returns when all have taken theirs.
    async fn pass_on(&mut self, fetched: Vec<Fetched>) {
        let mut slices: BTreeMap<(Lane, Partition), Arrived> = BTreeMap::new();
        for fetched in &fetched {
            let lane = lane_of(fetched.topic);
            let arrived = slices.entry((lane.unwrap_or(Lane::Rooms), fetched.partition)).or_default();
            if lane.is_some() {
                arrived.next = Some(fetched.next);
            }
            for placed in fetched.records.iter() {
                let item = decode(fetched.topic, &placed.record.value);
                match item.and_then(|item| self.in_its_place(item)) {
                    Ok(item) => arrived.items.push(item),
                    Err(reason) => self.set_aside(fetched, placed, reason).await,
                }
            }
        }
        let mut addressed = Vec::new();
        for ((lane, partition), arrived) in &slices {
            let routed = self.interest.route(*lane, *partition, &arrived.items);
            addressed.extend(self.delivery.stamp(*lane, *partition, arrived.next, routed));
        }
        self.deliver(addressed).await;
        for fetched in &fetched {
            self.delivery.taken(fetched.topic, fetched.partition, fetched.next);
        }
        let now_us = self.deps.clock.micros();
        for item in slices.values().flat_map(|arrived| &arrived.items) {
            if let Item::Event(event) = item {
                self.observe(event, now_us);
            }
        }
    }

    /// Delivers batches: to each edge in their order, to several edges at once. Who fails is out.
    async fn deliver(&mut self, addressed: Vec<Addressed>) -> BTreeSet<EdgeId> {
        let mut by_edge: BTreeMap<EdgeId, Vec<Batch>> = BTreeMap::new();
        for (edge, batch) in addressed {
            by_edge.entry(edge).or_default().push(batch);
        }
        let limit = self.config.deliver_timeout();
        let metrics = &self.metrics;
        let deliveries = by_edge.into_iter().filter_map(|(id, batches)| {
            let edge = self.edges.get(&id)?;
            Some(async move {
                for batch in batches {
                    let item_count = batch.items.len() as u64;
                    let Ok(Ok(())) = timeout(limit, edge.deliver(batch)).await else { return Some(id) };
                    metrics.batches.inc();
                    metrics.items.inc_by(item_count);
                }
                None
            })
        });
        let lost: BTreeSet<EdgeId> = join_all(deliveries).await.into_iter().flatten().collect();
        for edge in &lost {
            tracing::warn!(%edge, "an edge did not take a batch and is out until it attaches again");
            self.metrics.edges_lost.inc();
            self.detach(*edge);
        }
        lost
    }

    /// Does what edges ask for, in the order in which they have asked; registrations side by side are one delivery.
    async fn answer(&mut self, requests: Vec<Request>) {
        let mut registrations = Vec::new();
        for request in requests {
            if !matches!(request, Request::Register(_)) {
                self.register(std::mem::take(&mut registrations)).await;
            }
            match request {
                Request::Register(registration) => registrations.push(registration),
                Request::Attach(edge, answer) => {
                    let id = edge.id();
                    self.detach(id);
                    let news = self.delivery.attach(id);
                    self.edges.insert(id, edge);
                    tracing::info!(edge = %id, "an edge is attached");
                    if self.deliver(news).await.is_empty() {
                        // Whoever no longer waits needs no answer; so below.
                        let _ = answer.send(());
                    }
                }
                Request::Detach(edge) => self.detach(edge),
                Request::Unregister(edge, lane, partition, keys) => {
                    self.interest.remove(edge, lane, partition, &keys);
                    let slice = (edge, lane, partition);
                    for parked in self.parked.iter_mut().filter(|parked| parked.slice() == slice) {
                        parked.keys.retain(|key| !keys.contains(key));
                    }
                }
                Request::Online(users, answer) => {
                    let count = self.deps.log.partitions();
                    let is_online =
                        |user: &UserId| self.interest.is_online(*user, Partition::of(user.as_bytes(), count));
                    let _ = answer.send(users.into_iter().filter(is_online).collect());
                }
            }
        }
        self.register(registrations).await;
    }

    /// Registers interest. This stands between two batches, so that `at` parts history from what is sent.
    async fn register(&mut self, registrations: Vec<Registration>) {
        let mut slices: BTreeMap<(EdgeId, Lane, Partition), Registered> = BTreeMap::new();
        let mut batches = Vec::new();
        let mut answers = Vec::with_capacity(registrations.len());
        for registration in registrations {
            let slice = registration.slice();
            let (edge, lane, partition) = slice;
            match self.delivery.standing(lane, partition) {
                // The caller has given up, or asks the wrong one.
                _ if registration.answer.is_closed() => {}
                Standing::Foreign => {}
                Standing::CatchingUp => self.parked.push(registration),
                Standing::Live => {
                    let registered = match slices.entry(slice) {
                        Entry::Occupied(known) => *known.get(),
                        Entry::Vacant(new) => {
                            // Not attached, or no longer: dropping the answer is `Unavailable`.
                            let Some((registered, batch)) = self.delivery.register(edge, lane, partition) else {
                                continue;
                            };
                            batches.push((edge, batch));
                            *new.insert(registered)
                        }
                    };
                    self.interest.add(edge, lane, partition, &registration.keys);
                    answers.push((edge, registered, registration.answer));
                }
            }
        }
        let lost = self.deliver(batches).await;
        for (edge, registered, answer) in answers {
            if !lost.contains(&edge) {
                let _ = answer.send(registered);
            }
        }
    }

    fn detach(&mut self, edge: EdgeId) {
        self.edges.remove(&edge);
        self.delivery.detach(edge);
        self.interest.forget_edge(edge);
        self.parked.retain(|registration| registration.edge != edge);
    }

    /// Commits what every edge has taken. It is a hint: where it is lost, more is read again.
    async fn commit(&mut self, consumer: &mut dyn Consumer) -> Result<(), stream::Error> {
        let positions = self.delivery.to_commit();
        if positions.is_empty() {
            return Ok(());
        }
        match consumer.commit(positions).await {
            Err(stream::Error::Fenced) => Err(stream::Error::Fenced),
            Err(error) => {
                tracing::warn!(%error, "fanout can't commit its positions");
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Keeps a record that can't be passed on where people can look at it, and goes on: holding everyone up would mend
    /// nothing.
    async fn set_aside(&self, fetched: &Fetched, placed: &Placed, reason: String) {
        let (topic, partition, offset) = (fetched.topic, fetched.partition, placed.offset);
        tracing::error!(%topic, %partition, %offset, reason, "a record can't be passed on");
        self.metrics.dead_letters.inc();
        let letter = DeadLetter {
            topic: topic.name().to_owned(),
            partition: partition.0,
            offset,
            reason,
            at: self.deps.clock.now(),
            value: placed.record.value.to_vec(),
        };
        let record = stream::Record { key: placed.record.key, value: letter.encode() };
        if let Err(error) = self.deps.log.append(Topic::DeadLetters, partition, vec![record]).await {
            tracing::error!(%topic, %partition, %offset, %error, "nor be set aside");
        }
    }

    /// An item, unless it is an event that does not follow its room's last: the log breaks I2 there.
    fn in_its_place(&mut self, item: Item) -> Result<Item, String> {
        let Item::Event(event) = &item else { return Ok(item) };
        let Err(breach) = self.density.note(event.room, event.seq) else { return Ok(item) };
        match breach {
            Breach::Hole { .. } => self.metrics.holes.inc(),
            Breach::Double { .. } => self.metrics.doubles.inc(),
        }
        tracing::error!(room = %event.room, seq = %event.seq, %breach, "an event breaks its room");
        Err(breach.to_string())
    }

    /// Looks at an event that all edges have taken: how long it took.
    fn observe(&self, event: &Event, now_us: i64) {
        if event.reply_to.is_some() {
            let took = Duration::from_micros(u64::try_from(now_us - event.received_us).unwrap_or(0));
            self.metrics.fanned_out.observe(took.as_secs_f64());
        }
    }

    fn measure(&self) {
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        self.metrics.edges.set(gauge(self.edges.len()));
        self.metrics.rooms.set(gauge(self.interest.key_count(Lane::Rooms)));
        self.metrics.users.set(gauge(self.interest.key_count(Lane::Users)));
        self.metrics.waiting.set(gauge(self.requests.len() + self.parked.len()));
    }
}

impl Registration {
    fn slice(&self) -> (EdgeId, Lane, Partition) {
        (self.edge, self.lane, self.partition)
    }
}

/// The lane that counts this topic's positions; receipts and signals have none.
fn lane_of(topic: Topic) -> Option<Lane> {
    Lane::ALL.into_iter().find(|lane| lane.topic() == topic)
}

/// A record as an item.
fn decode(topic: Topic, value: &[u8]) -> Result<Item, String> {
    let item = match topic {
        Topic::Events if Outcome::is(value) => Outcome::decode(value).map(|outcome| Item::Outcome(Arc::new(outcome))),
        Topic::UserEvents => UserEvent::decode(value).map(|event| Item::User(Arc::new(event))),
        Topic::Receipts => Receipt::decode(value).map(|receipt| Item::Receipt(Arc::new(receipt))),
        Topic::Signals => Signal::decode(value).map(|signal| Item::Signal(Arc::new(signal))),
        _ => Event::decode(value).map(|event| Item::Event(Arc::new(event))),
    };
    item.map_err(|error| error.to_string())
}

async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    // A sender that is gone can't say so any more.
    let _ = shutdown.wait_for(|stop| *stop).await;
}
