//! What the archiver's tests stand on: a log and a store in memory, a clock that is set by hand, an archiver that can
//! crash, and rooms whose truth is a plain list of events.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod watched;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use archiver::{Config, Deps, Error, Metrics};
use parking_lot::Mutex;
use prometheus::Registry;
use schemas::event::EventKind;
use schemas::link::{HistoryPort, Lane, Page, PageFrom, PageQuery, Unavailable};
use schemas::message::{
    Content, MemberChange, Membership, Message, Role, RoomHistory, RoomKind, RoomPatch, RoomVisibility, Settings,
};
use schemas::outcome::{Outcome, RejectCode, Rejected};
use schemas::receipt::Receipt;
use schemas::room::RoomState;
use schemas::user_event::{RoomEntry, UserEvent};
use schemas::{
    Clock, CommandId, EdgeId, Event, EventId, Offset, Partition, Record, ReplyTo, RoomId, Seq, SessionId, Timestamp,
    Topic, UserId,
};
use stream::Log;
use stream::memory::MemoryLog;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use watched::Watched;

pub const PARTITIONS: u32 = 2;

#[derive(Default)]
pub struct ManualClock(Mutex<Duration>);

impl ManualClock {
    pub fn advance(&self, by: Duration) {
        *self.0.lock() += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_763_715_600_000).after(self.elapsed())
    }
    fn micros(&self) -> i64 {
        self.now().0 * 1_000
    }
    fn elapsed(&self) -> Duration {
        *self.0.lock()
    }
}

pub fn user(n: usize) -> UserId {
    UserId(Uuid::from_u128(0xA11C_E000_0000 + n as u128))
}

pub fn room(n: usize) -> RoomId {
    RoomId(Uuid::from_u128(0xB0B_0000_0000 + n as u128))
}

/// An archiver under way.
pub struct Running {
    pub history: Arc<dyn HistoryPort>,
    pub registry: Registry,
    pub task: JoinHandle<Result<(), Error>>,
    pub shutdown: watch::Sender<bool>,
}

impl Running {
    /// The sum of a counter or gauge over its labels; 0 where nothing was counted yet.
    pub fn metric(&self, name: &str) -> f64 {
        let families = self.registry.gather();
        let family = families.iter().filter(|family| family.name() == name);
        let value =
            |metric: &prometheus::proto::Metric| metric.get_counter().get_value() + metric.get_gauge().get_value();
        family.flat_map(|family| family.get_metric()).map(value).sum()
    }

    pub async fn stop(self) -> Result<(), Error> {
        self.shutdown.send_replace(true);
        self.task.await.unwrap()
    }
}

/// The world around an archiver, and the truth that it is measured by.
pub struct World {
    pub log: MemoryLog,
    pub store: Arc<Watched>,
    pub clock: Arc<ManualClock>,
    pub config: Config,
    /// By room: all its events.
    pub rooms: BTreeMap<RoomId, Vec<Arc<Event>>>,
    /// By room and person: maxima of what was published.
    pub receipts: BTreeMap<(RoomId, UserId), (Seq, Seq)>,
    ids: u128,
}

impl World {
    pub async fn new(config: Config) -> Self {
        let log = MemoryLog::new();
        log.create(PARTITIONS).await.unwrap();
        Self {
            log,
            store: Watched::new(),
            clock: Arc::default(),
            config,
            rooms: BTreeMap::new(),
            receipts: BTreeMap::new(),
            ids: 0,
        }
    }

    pub fn start(&self) -> Running {
        let registry = Registry::new();
        let deps = Deps {
            log: Arc::new(self.log.clone()),
            store: Arc::clone(&self.store) as _,
            clock: Arc::clone(&self.clock) as _,
        };
        let (history, worker) = archiver::new(deps, self.config.clone(), Metrics::new(&registry).unwrap());
        let (shutdown, ending) = watch::channel(false);
        Running { history, registry, task: tokio::spawn(worker.run(ending)), shutdown }
    }

    /// An archiver that owns all partitions and holds nothing in memory.
    pub async fn start_cold(&self) -> Running {
        let running = self.start();
        let rejected = Rejected { code: RejectCode::Invalid, detail: String::new(), retry_after_ms: None };
        let outcome = Outcome {
            room: RoomId::NIL,
            user: UserId::NIL,
            command: CommandId::NIL,
            reply_to: ReplyTo { edge: EdgeId::NIL, session: SessionId::NIL },
            received_us: 0,
            done: None,
            rejected: Some(rejected),
        };
        // None of the archive's business, but a position that only a new owner can reach.
        for partition in (0..PARTITIONS).map(Partition) {
            let record = stream::Record { key: [0; 16], value: outcome.encode() };
            self.log.append(Topic::Events, partition, vec![record]).await.unwrap();
        }
        self.settle(&running).await;
        self.store.take_calls();
        running
    }

    pub fn partition(&self, key: &[u8; 16]) -> Partition {
        Partition::of(key, PARTITIONS)
    }

    pub async fn end(&self, topic: Topic, key: &[u8; 16]) -> Offset {
        self.log.end(topic, self.partition(key)).await.unwrap()
    }

    pub async fn append(&self, topic: Topic, key: [u8; 16], value: bytes::Bytes) {
        self.log.append(topic, self.partition(&key), vec![stream::Record { key, value }]).await.unwrap();
    }

    /// The room's next event, not yet anywhere.
    pub fn next_event(&mut self, room: RoomId, by: UserId, kind: EventKind) -> Event {
        self.ids += 1;
        let last = self.rooms.get(&room).and_then(|events| events.last());
        let (seq, previous) = last.map_or((Seq(1), [0; 32]), |last| (last.seq.next(), last.hash));
        let salt = self.ids.to_be_bytes();
        Event {
            room,
            seq,
            id: EventId(Uuid::from_u128(self.ids)),
            at: self.clock.now().after(Duration::from_millis(seq.0)),
            by,
            command: CommandId(Uuid::from_u128(self.ids)),
            reply_to: None,
            received_us: self.clock.micros(),
            decided_us: self.clock.micros(),
            salt,
            hash: Event::chain(&previous, seq, &salt, &kind),
            kind,
        }
    }

    /// Something happens in a room, and in the lists of those whom it concerns.
    pub async fn happen(&mut self, room: RoomId, by: UserId, kind: EventKind) -> Arc<Event> {
        let event = Arc::new(self.next_event(room, by, kind));
        self.append(Topic::Events, *room.as_bytes(), event.encode()).await;
        if let EventKind::Member(Membership { user, change, .. }) = event.kind
            && (change.begins() || change.ends())
        {
            let entry = if change.begins() { RoomEntry::Joined } else { RoomEntry::Left };
            let listed = UserEvent { user, room, seq: event.seq, at: event.at, entry };
            self.append(Topic::UserEvents, *user.as_bytes(), listed.encode()).await;
        }
        self.rooms.entry(room).or_default().push(Arc::clone(&event));
        event
    }

    pub async fn create(&mut self, room: RoomId, owner: UserId, history: RoomHistory) {
        let settings = Settings {
            kind: RoomKind::Group,
            name: "a room".into(),
            handle: None,
            description: String::new(),
            icon: String::new(),
            visibility: RoomVisibility::Public,
            history,
        };
        self.happen(room, owner, EventKind::Created(settings)).await;
        self.member(room, owner, MemberChange::Joined, Role::Owner).await;
    }

    pub async fn member(&mut self, room: RoomId, user: UserId, change: MemberChange, role: Role) {
        self.happen(room, user, EventKind::Member(Membership { user, change, role })).await;
    }

    pub async fn join(&mut self, room: RoomId, user: UserId) {
        self.member(room, user, MemberChange::Joined, Role::Member).await;
    }

    pub async fn say(&mut self, room: RoomId, user: UserId, text: &str) -> Arc<Event> {
        self.happen(room, user, EventKind::Message(Message { content: Content::text(text), reply_to: None })).await
    }

    pub async fn change(&mut self, room: RoomId, by: UserId, patch: RoomPatch) {
        self.happen(room, by, EventKind::Changed(patch)).await;
    }

    pub async fn receipt(&mut self, room: RoomId, user: UserId, delivered_seq: Seq, read_seq: Seq) {
        let step = Receipt { room, user, session: SessionId::NIL, delivered_seq, read_seq, at: self.clock.now() };
        self.append(Topic::Receipts, *room.as_bytes(), step.encode()).await;
        let mark = self.receipts.entry((room, user)).or_default();
        *mark = (mark.0.max(delivered_seq), mark.1.max(read_seq));
    }

    /// The room's state when `head` was its newest event.
    pub fn state(&self, room: RoomId, head: Seq) -> Option<RoomState> {
        let events = self.rooms.get(&room)?.iter().take_while(|event| event.seq <= head);
        events.fold(None, |state, event| Some(RoomState::fold(state, event).unwrap()))
    }

    pub fn head(&self, room: RoomId) -> Seq {
        self.rooms.get(&room).and_then(|events| events.last()).map_or(Seq::ZERO, |event| event.seq)
    }

    /// A page that knows everything that has happened so far.
    pub async fn page(
        &self,
        running: &Running,
        user: UserId,
        room: RoomId,
        from: PageFrom,
        limit: usize,
    ) -> Result<Option<Page>, Unavailable> {
        let min_offset = self.end(Topic::Events, room.as_bytes()).await;
        running.history.page(PageQuery { user, room, from, limit, min_offset }).await
    }

    /// Checks a page against the truth at the page's own position, which must not lie before `at_least`.
    pub fn check_page(&self, at_least: Seq, query: PageQuery, page: Option<&Page>) {
        let Some(page) = page else {
            // Nothing to see: never in, no room, or a deleted one, at some position from there on.
            let heads = at_least.0..=self.head(query.room).0.max(at_least.0);
            let nothing = |head| match self.state(query.room, Seq(head)) {
                Some(state) => state.info.deleted || !state.members.contains_key(&query.user),
                None => true,
            };
            assert!(heads.into_iter().any(nothing), "a member got nothing");
            return;
        };
        let head = page.head_seq;
        assert!(head >= at_least, "the page stands at {head}, asked at {at_least}");
        let state = self.state(query.room, head).unwrap();
        let member = &state.members[&query.user];
        assert_eq!(*page.info, state.info);
        assert_eq!(page.member.intervals, member.intervals);
        assert_eq!(page.first_seq, member.visible_first());
        assert_eq!(page.visible_head, member.visible_head(head));
        let visible = self.rooms[&query.room].iter().filter(|event| event.seq <= head && member.sees(event.seq));
        let mut expected: Vec<_> = visible
            .filter(|event| match query.from {
                PageFrom::After(seq) => event.seq > seq,
                PageFrom::Before(seq) => event.seq < seq,
                PageFrom::Newest => true,
            })
            .cloned()
            .collect();
        if matches!(query.from, PageFrom::After(_)) {
            expected.truncate(query.limit);
        } else {
            expected.drain(..expected.len().saturating_sub(query.limit));
        }
        assert_eq!(seqs(&page.events), seqs(&expected));
        assert_eq!(page.events, expected);
    }

    /// Waits until everything is in the store.
    pub async fn settle(&self, running: &Running) {
        for lane in Lane::ALL {
            for partition in (0..PARTITIONS).map(Partition) {
                let end = self.log.end(lane.topic(), partition).await.unwrap();
                while running.history.settle(lane, partition, end).await.is_err() {}
            }
        }
    }
}

pub fn seqs(events: &[Arc<Event>]) -> Vec<u64> {
    events.iter().map(|event| event.seq.0).collect()
}
