//! What only the inside shows: log and store agree, event by event; a room's events are dense and their hashes chain;
//! nothing is ahead of the work that it stands for.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use schemas::event::Hash;
use schemas::limits::PAGE_MAX;
use schemas::link::{HistoryPort, PageFrom, PageQuery};
use schemas::message::Membership;
use schemas::outcome::Outcome;
use schemas::{
    Command, CommandId, Event, EventId, EventKind, Offset, Partition, Record as _, RoomId, Seq, Topic, UserId,
};
use store::archive::Archive;
use store::memory::MemoryStore;
use stream::memory::MemoryLog;
use stream::{Fetched, Log, Placed};

use crate::people::Device;

/// All committed events, by room.
pub async fn events(log: &MemoryLog) -> Result<BTreeMap<RoomId, Vec<Event>>, stream::Error> {
    let mut rooms: BTreeMap<RoomId, Vec<Event>> = BTreeMap::new();
    for partition in (0..log.partitions()).map(Partition) {
        let fetched =
            log.read(Topic::Events, partition, log.start(Topic::Events, partition).await?, usize::MAX).await?;
        for event in events_in(&fetched) {
            rooms.entry(event.room).or_default().push(event);
        }
    }
    Ok(rooms)
}

/// What is still open: a message that waits, a client that has not heard everything.
pub async fn unsettled(log: &MemoryLog, devices: &[Device]) -> Option<String> {
    let rooms = match events(log).await {
        Ok(rooms) => rooms,
        Err(error) => return Some(error.to_string()),
    };
    let mut far: BTreeMap<(UserId, RoomId), Seq> = BTreeMap::new();
    for device in devices {
        for (room, seq) in device.standing().await.1 {
            let known = far.entry((device.user, room)).or_default();
            *known = seq.max(*known);
        }
    }
    for device in devices {
        let (queued, cursors) = device.standing().await;
        if queued > 0 {
            return Some(format!("client {} has {queued} messages waiting", device.id.0));
        }
        for (room, events) in &rooms {
            let due = last_for(events, device.user);
            // A device that has nothing of a room begins where another one of its person's has come to.
            let begins = || far.get(&(device.user, *room)).copied().unwrap_or_default();
            let has = cursors.get(room).copied().unwrap_or_else(begins);
            if has < due {
                return Some(format!("client {} has {room} up to {has} of {due}", device.id.0));
            }
        }
    }
    None
}

/// The last event that a person must hear of.
fn last_for(events: &[Event], user: UserId) -> Seq {
    let (mut is_in, mut last) = (false, Seq::ZERO);
    for event in events {
        let was_in = is_in;
        if let EventKind::Member(Membership { user: whose, change, .. }) = &event.kind
            && *whose == user
        {
            if change.begins() {
                is_in = true;
            } else if change.ends() {
                is_in = false;
            }
        }
        if was_in || is_in {
            last = event.seq;
        }
    }
    last
}

/// What the log holds, as far as it has been read: looked at whenever someone is told of an event.
#[derive(Default)]
pub struct Durable {
    events: BTreeMap<(RoomId, Seq), EventId>,
    positions: BTreeMap<Partition, Offset>,
}

impl Durable {
    /// Whether this event is committed at this place.
    pub fn holds(&mut self, log: &MemoryLog, room: RoomId, seq: Seq, id: EventId) -> bool {
        if !self.events.contains_key(&(room, seq)) {
            self.read_on(log);
        }
        self.events.get(&(room, seq)) == Some(&id)
    }

    fn read_on(&mut self, log: &MemoryLog) {
        for partition in (0..log.partitions()).map(Partition) {
            let position = self.positions.entry(partition).or_default();
            // Memory answers at once.
            let fetched = log.read(Topic::Events, partition, *position, usize::MAX).now_or_never();
            let Some(Ok(fetched)) = fetched else { continue };
            *position = fetched.next;
            for event in events_in(&fetched) {
                self.events.insert((event.room, event.seq), event.id);
            }
        }
    }
}

/// Looks at everything, once nothing moves any more: what is broken.
pub async fn check(log: &MemoryLog, store: &MemoryStore) -> anyhow::Result<Vec<String>> {
    let mut broken = Vec::new();
    for (room, events) in events(log).await? {
        let mut previous = Hash::default();
        let mut commands = BTreeSet::new();
        for (seq, event) in (1..).zip(&events) {
            if event.seq != Seq(seq) {
                broken.push(format!("log_not_dense: {room} has {} where {seq} is due", event.seq));
                break;
            }
            if event.reply_to.is_some() && !commands.insert((event.by, event.command)) {
                broken.push(format!("acted_twice: command {} of {} in the log of {room}", event.command, event.by));
            }
            previous = Event::chain(&previous, event.seq, &event.salt, &event.kind);
            if previous != event.hash {
                broken.push(format!("hash_unchained: {room} {}", event.seq));
            }
        }
        let end = Seq(events.len() as u64 + 2);
        let stored = store.events(room, Seq::ZERO, end, usize::MAX, false).await?;
        if stored != events {
            let at = stored.iter().zip(&events).take_while(|(stored, event)| stored == event).count() + 1;
            broken.push(format!("store_differs: {room} at {at}, {} of {} rows", stored.len(), events.len()));
        }
    }
    for partition in (0..log.partitions()).map(Partition) {
        for topic in archiver::TOPICS {
            let (progress, end) = (store.progress(topic, partition).await?, log.end(topic, partition).await?);
            if progress > end {
                broken.push(format!("progress_past_end: {topic}/{partition} at {progress} of {end}"));
            }
        }
    }
    Ok(broken)
}

/// What an archiver answers from, its cache first, is what the log has: what is broken. It answers for the partitions
/// that it owns.
pub async fn check_history(
    log: &MemoryLog,
    history: &dyn HistoryPort,
    users: &[UserId],
) -> anyhow::Result<Vec<String>> {
    let mut broken = Vec::new();
    for (room, events) in events(log).await? {
        for user in users {
            let mut after = Seq::ZERO;
            loop {
                let from = PageFrom::After(after);
                let query = PageQuery { user: *user, room, from, limit: PAGE_MAX, min_offset: Offset(0) };
                let Ok(Some(page)) = history.page(query).await else { break };
                broken.extend(page.events.iter().find_map(|event| cache_differs(event, &events)));
                match page.events.last() {
                    Some(last) if last.seq > after => after = last.seq,
                    _ => break,
                }
            }
        }
    }
    Ok(broken)
}

fn cache_differs(event: &Event, log: &[Event]) -> Option<String> {
    let there = usize::try_from(event.seq.prev().0).ok().and_then(|at| log.get(at));
    (there != Some(event)).then(|| format!("cache_differs: {} {}", event.room, event.seq))
}

/// The archive's progress is never ahead of its rows, whenever one looks: what is broken.
pub async fn check_progress(log: &MemoryLog, store: &MemoryStore) -> anyhow::Result<Vec<String>> {
    for partition in (0..log.partitions()).map(Partition) {
        let progress = store.progress(Topic::Events, partition).await?;
        let from = log.start(Topic::Events, partition).await?;
        let fetched = log.read(Topic::Events, partition, from, usize::MAX).await?;
        for placed in fetched.records.iter().take_while(|placed| placed.offset < progress) {
            let Some(event) = event_of(placed) else { continue };
            let (room, seq) = (event.room, event.seq);
            if store.events(room, seq.prev(), seq.next(), 1, false).await?.is_empty() {
                return Ok(vec![format!("progress_past_rows: {partition} at {progress} lacks {room} {seq}")]);
            }
        }
    }
    Ok(Vec::new())
}

/// One command of one person in one room.
type CommandKey = (RoomId, UserId, CommandId);

/// Commands that the log has taken, by their places. It keeps none that it has given to its readers.
#[derive(Default)]
pub struct Commands(BTreeMap<(Partition, Offset), CommandKey>);

impl Commands {
    /// These were appended up to this position.
    pub fn appended(&mut self, partition: Partition, end: Offset, commands: &[Command]) {
        for (back, command) in (1..).zip(commands.iter().rev()) {
            self.0.insert((partition, Offset(end.0 - back)), (command.room, command.user, command.id));
        }
    }

    /// The log has lost them, and begins anew.
    pub fn lost(&mut self) {
        self.0.clear();
    }

    fn before(&self, partition: Partition, position: Offset) -> Vec<(Offset, CommandKey)> {
        let range = self.0.range((partition, Offset(0))..(partition, position));
        range.map(|((_, offset), key)| (*offset, *key)).collect()
    }
}

/// Ingest's committed positions are never ahead of its work: each command before them has its event or its outcome in the
/// log, whenever one looks. What is broken.
pub async fn check_offsets(log: &MemoryLog, commands: &Mutex<Commands>) -> anyhow::Result<Vec<String>> {
    let mut broken = Vec::new();
    for partition in (0..log.partitions()).map(Partition) {
        let Some(position) = log.committed(ingest::GROUP, Topic::Commands, partition).await? else { continue };
        let from = log.start(Topic::Events, partition).await?;
        let decided = log.read(Topic::Events, partition, from, usize::MAX).await?;
        let decided: BTreeSet<CommandKey> = decided.records.iter().filter_map(command_of).collect();
        for (offset, command) in commands.lock().before(partition, position) {
            if !decided.contains(&command) {
                let id = command.2;
                broken.push(format!("offset_past_work: {partition} at {position}, and {offset} ({id}) is undecided"));
            }
        }
    }
    Ok(broken)
}

/// The command that an event or an outcome answers.
fn command_of(placed: &Placed) -> Option<CommandKey> {
    if Outcome::is(&placed.record.value) {
        let outcome = Outcome::decode(&placed.record.value).ok()?;
        return Some((outcome.room, outcome.user, outcome.command));
    }
    event_of(placed).map(|event| (event.room, event.by, event.command))
}

fn event_of(placed: &Placed) -> Option<Event> {
    if Outcome::is(&placed.record.value) {
        return None;
    }
    Event::decode(&placed.record.value).ok()
}

fn events_in(fetched: &Fetched) -> impl Iterator<Item = Event> {
    fetched.records.iter().filter_map(event_of)
}

/// Each check finds what was spoiled for it, by name.
#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use schemas::command::ReplyTo;
    use schemas::message::{Content, Message};
    use schemas::{Action, EdgeId, SessionId, Timestamp};
    use store::archive::Batch;
    use stream::{GroupMember, Polled, Record, Transaction};
    use uuid::Uuid;

    use super::*;

    const P: Partition = Partition(0);
    const ROOM: RoomId = RoomId(Uuid::from_u128(1));
    const REPLY_TO: ReplyTo = ReplyTo { edge: EdgeId::NIL, session: SessionId::NIL };

    /// Three messages, with hashes that chain.
    fn honest() -> Vec<Event> {
        let mut hash = Hash::default();
        let event = |seq: u64| {
            let kind = EventKind::Message(Message { content: Content::text(format!("{seq}")), reply_to: None });
            hash = Event::chain(&hash, Seq(seq), &[0; 16], &kind);
            Event {
                room: ROOM,
                seq: Seq(seq),
                id: EventId(Uuid::from_u128(u128::from(seq))),
                at: Timestamp(5),
                by: UserId::NIL,
                command: CommandId(Uuid::from_u128(u128::from(seq))),
                reply_to: Some(REPLY_TO),
                received_us: 0,
                decided_us: 0,
                salt: [0; 16],
                hash,
                kind,
            }
        };
        (1..=3).map(event).collect()
    }

    fn command(event: &Event) -> Command {
        let EventKind::Message(message) = &event.kind else { panic!("messages only") };
        Command {
            id: event.command,
            room: ROOM,
            user: event.by,
            event_id: event.id,
            reply_to: REPLY_TO,
            received_us: 0,
            deadline: Timestamp(10_000),
            action: Action::Send(message.clone()),
        }
    }

    fn record(value: impl schemas::Record) -> Record {
        Record { key: *ROOM.as_bytes(), value: value.encode() }
    }

    /// A log with the commands of the honest events, these events, and everything before `position` consumed.
    async fn log(events: &[Event], position: u64) -> MemoryLog {
        let log = MemoryLog::new();
        log.create(1).await.unwrap();
        let commands = honest().iter().map(|event| record(command(event))).collect();
        log.append(Topic::Commands, P, commands).await.unwrap();
        let mut consumer = log.consumer(ingest::GROUP, &[Topic::Commands]).await.unwrap();
        while !matches!(consumer.poll().await.unwrap(), Polled::Assigned { .. }) {}
        let member: GroupMember = consumer.member();
        let transaction = Transaction {
            records: events.iter().map(|event| (Topic::Events, P, record(event.clone()))).collect(),
            consumed: Some((member, vec![(Topic::Commands, P, Offset(position))])),
        };
        log.producer("ingest").await.unwrap().commit(transaction).await.unwrap();
        log
    }

    async fn store(events: &[Event], progress: Offset) -> MemoryStore {
        let store = MemoryStore::new();
        let events = events.iter().cloned().map(Arc::new).collect();
        let batch = Batch { events, progress: vec![(Topic::Events, P, progress)], ..Batch::default() };
        store.archive(batch).await.unwrap();
        store
    }

    /// The names of what is broken with this log and this store.
    async fn names(log: &MemoryLog, store: &MemoryStore) -> Vec<String> {
        let mut broken = check(log, store).await.unwrap();
        broken.extend(check_progress(log, store).await.unwrap());
        let commands: Vec<_> = honest().iter().map(command).collect();
        let mut appended = Commands::default();
        appended.appended(P, Offset(3), &commands);
        broken.extend(check_offsets(log, &Mutex::new(appended)).await.unwrap());
        let mut names: Vec<String> =
            broken.iter().map(|broken| broken.split(':').next().unwrap_or_default().to_owned()).collect();
        names.dedup();
        names
    }

    /// What is broken where the log has these events and the store has the same.
    async fn both(events: &[Event]) -> Vec<String> {
        let log = log(events, 0).await;
        let end = log.end(Topic::Events, P).await.unwrap();
        names(&log, &store(events, end).await).await
    }

    #[tokio::test]
    async fn nothing_is_broken_that_was_not_spoiled() {
        assert_eq!(both(&honest()).await, [""; 0]);
        let log = log(&honest(), 3).await;
        assert_eq!(names(&log, &store(&honest(), Offset(0)).await).await, [""; 0], "and all of it is decided");
    }

    #[tokio::test]
    async fn a_seq_left_out_is_found() {
        let mut events = honest();
        events.remove(1);
        assert_eq!(both(&events).await, ["log_not_dense"]);
    }

    #[tokio::test]
    async fn a_command_that_acted_twice_is_found() {
        let mut events = honest();
        events[2].command = events[1].command;
        assert_eq!(both(&events).await, ["acted_twice"]);
    }

    #[tokio::test]
    async fn a_hash_that_does_not_follow_is_found() {
        let mut events = honest();
        events[1].hash[0] ^= 1;
        assert_eq!(both(&events).await, ["hash_unchained"]);
        let mut events = honest();
        events[1].kind = EventKind::Message(Message { content: Content::text("another"), reply_to: None });
        assert_eq!(both(&events).await, ["hash_unchained"]);
    }

    #[tokio::test]
    async fn a_store_that_holds_something_else_is_found() {
        let log = log(&honest(), 0).await;
        let mut events = honest();
        events[1].kind = EventKind::Message(Message { content: Content::text("another"), reply_to: None });
        assert_eq!(names(&log, &store(&events, Offset(0)).await).await, ["store_differs"]);
        assert_eq!(names(&log, &store(&honest()[..2], Offset(0)).await).await, ["store_differs"]);
    }

    #[tokio::test]
    async fn a_cache_that_holds_something_else_is_found() {
        let events = honest();
        assert_eq!(cache_differs(&events[1], &events), None);
        let mut other = events[1].clone();
        other.kind = EventKind::Message(Message { content: Content::text("another"), reply_to: None });
        assert!(cache_differs(&other, &events).unwrap().starts_with("cache_differs"));
        assert!(cache_differs(&events[2], &events[..2]).unwrap().starts_with("cache_differs"));
    }

    #[tokio::test]
    async fn progress_past_the_end_of_the_log_is_found() {
        let log = log(&honest(), 0).await;
        let end = log.end(Topic::Events, P).await.unwrap();
        assert_eq!(names(&log, &store(&honest(), Offset(end.0 + 1)).await).await, ["progress_past_end"]);
    }

    #[tokio::test]
    async fn progress_past_the_rows_is_found() {
        let log = log(&honest(), 0).await;
        let end = log.end(Topic::Events, P).await.unwrap();
        let names = names(&log, &store(&honest()[..2], end).await).await;
        assert_eq!(names, ["store_differs", "progress_past_rows"]);
    }

    #[tokio::test]
    async fn a_position_past_the_work_is_found() {
        let log = log(&honest()[..2], 3).await;
        assert_eq!(names(&log, &store(&honest()[..2], Offset(0)).await).await, ["offset_past_work"]);
    }

    #[tokio::test]
    async fn an_event_that_was_told_before_it_was_durable_is_found() {
        let (log, mut durable) = (log(&honest()[..2], 0).await, Durable::default());
        let events = honest();
        let mut told = |event: &Event| durable.holds(&log, ROOM, event.seq, event.id);
        assert!(told(&events[0]) && told(&events[1]));
        assert!(!told(&events[2]), "not committed");
        assert!(!durable.holds(&log, ROOM, Seq(2), events[2].id), "another one is");
    }
}
