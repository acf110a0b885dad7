//! What the larger tests share: a clock and randomness of their own, commands, and reading the log back.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod faults;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use schemas::ids::{EdgeId, EventId, SessionId, uuid_v7};
use schemas::message::{
    Content, MemberChange, Membership, Message, Role, RoomHistory, RoomKind, RoomVisibility, Settings,
};
use schemas::outcome::Outcome;
use schemas::user_event::UserEvent;
use schemas::{
    Action, Clock, Command, CommandId, Entropy, Event, Offset, Partition, Record as _, ReplyTo, RoomId, Timestamp,
    Topic, UserId,
};
use stream::Log;
use uuid::Uuid;

pub const START_MS: i64 = 1_700_000_000_000;

/// Wall time that follows the runtime's, paused or not.
pub struct TestClock(tokio::time::Instant);

impl TestClock {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(tokio::time::Instant::now()))
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(START_MS).after(self.elapsed())
    }

    fn micros(&self) -> i64 {
        START_MS * 1_000 + i64::try_from(self.elapsed().as_micros()).unwrap()
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A counter's worth of entropy: never the same bytes twice.
#[derive(Default)]
pub struct TestEntropy(AtomicU64);

impl Entropy for TestEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let number = self.0.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            chunk.copy_from_slice(&number.to_le_bytes()[..chunk.len()]);
        }
    }
}

pub fn user(n: u128) -> UserId {
    UserId(Uuid::from_u128(0x1000 + n))
}

pub fn room(n: u128) -> RoomId {
    RoomId(Uuid::new_v5(&Uuid::nil(), &n.to_be_bytes()))
}

/// The n-th command id; ids of rising n rise.
pub fn id(n: u64) -> CommandId {
    let mut random = [0; 10];
    random[2..].copy_from_slice(&n.to_be_bytes());
    CommandId(uuid_v7(START_MS + i64::try_from(n).unwrap(), random))
}

pub fn command(id: CommandId, user: UserId, room: RoomId, action: Action) -> Command {
    Command {
        id,
        room,
        user,
        event_id: EventId(Uuid::new_v5(&room.0, id.as_bytes())),
        reply_to: ReplyTo { edge: EdgeId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(2)) },
        received_us: START_MS * 1_000,
        deadline: Timestamp(i64::MAX),
        action,
    }
}

pub fn settings(kind: RoomKind, visibility: RoomVisibility) -> Settings {
    Settings {
        kind,
        name: "Room".into(),
        handle: None,
        description: String::new(),
        icon: String::new(),
        visibility,
        history: RoomHistory::All,
    }
}

pub fn create(members: Vec<UserId>) -> Action {
    Action::Create { settings: settings(RoomKind::Group, RoomVisibility::Public), members }
}

pub fn send(text: &str) -> Action {
    Action::Send(Message { content: Content::text(text), reply_to: None })
}

pub fn membership(user: UserId, change: MemberChange, role: Role) -> Action {
    Action::Membership(Membership { user, change, role })
}

/// Everything in a partition of a topic.
pub async fn read_all(log: &dyn Log, topic: Topic, partition: Partition) -> Vec<stream::Placed> {
    let mut from = log.start(topic, partition).await.unwrap();
    let end = log.end(topic, partition).await.unwrap();
    let mut records = Vec::new();
    while from < end {
        let fetched = log.read(topic, partition, from, usize::MAX).await.unwrap();
        from = fetched.next;
        records.extend(fetched.records.iter().cloned());
    }
    records
}

/// All events and outcomes of all rooms, in the order of their partitions.
pub async fn read_events(log: &dyn Log) -> (Vec<Event>, Vec<Outcome>) {
    let (mut events, mut outcomes) = (Vec::new(), Vec::new());
    for partition in (0..log.partitions()).map(Partition) {
        for placed in read_all(log, Topic::Events, partition).await {
            match Event::decode(&placed.record.value) {
                Ok(event) => events.push(event),
                Err(_) => outcomes.push(Outcome::decode(&placed.record.value).unwrap()),
            }
        }
    }
    (events, outcomes)
}

pub async fn read_user_events(log: &dyn Log) -> Vec<UserEvent> {
    let mut all = Vec::new();
    for partition in (0..log.partitions()).map(Partition) {
        for placed in read_all(log, Topic::UserEvents, partition).await {
            let event = UserEvent::decode(&placed.record.value).unwrap();
            assert_eq!(Partition::of(event.user.as_bytes(), log.partitions()), partition);
            all.push(event);
        }
    }
    all
}

/// Puts commands into the log, in this order.
pub async fn submit(log: &dyn Log, commands: &[Command]) {
    for command in commands {
        let record = stream::Record { key: *command.room.as_bytes(), value: command.encode() };
        let partition = Partition::of(command.room.as_bytes(), log.partitions());
        log.append(Topic::Commands, partition, vec![record]).await.unwrap();
    }
}

/// Whether the workers have consumed all commands.
pub async fn is_consumed(log: &dyn Log) -> bool {
    for partition in (0..log.partitions()).map(Partition) {
        let end = log.end(Topic::Commands, partition).await.unwrap();
        let committed = log.committed(ingest::worker::GROUP, Topic::Commands, partition).await.unwrap();
        if committed.unwrap_or(Offset(0)) < end {
            return false;
        }
    }
    true
}
