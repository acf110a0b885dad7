//! Commands as an edge makes them of what clients send.

use crate::surroundings::{OsEntropy, SystemClock};
use schemas::ids::uuid_v7;
use schemas::message::{Content, Message, RoomHistory, RoomKind, RoomVisibility, Settings};
use schemas::{
    Action, Clock, Command, CommandId, EdgeId, Entropy, EventId, Partition, Record as _, ReplyTo, RoomId, SessionId,
    UserId,
};
use std::time::Duration;
use stream::Record;

/// Text of a message: its event takes about 250 bytes in the log then.
const BODY_BYTES: usize = 60;

/// Makes them.
pub struct Maker {
    /// The machine's time.
    pub clock: SystemClock,
    /// From receipt on.
    deadline: Duration,
}

/// A room and who made it.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The room.
    pub room: RoomId,
    /// Its owner.
    pub owner: UserId,
}

impl Place {
    /// Its partition.
    pub fn partition(&self, partitions: u32) -> Partition {
        Partition::of(self.room.as_bytes(), partitions)
    }
}

impl Maker {
    /// Commands that are void this long after they were made.
    pub fn new(deadline: Duration) -> Self {
        Self { clock: SystemClock::new(), deadline }
    }

    fn id(&self) -> uuid::Uuid {
        let mut random = [0; 10];
        OsEntropy.fill(&mut random);
        uuid_v7(self.clock.now().0, random)
    }

    fn record(&self, Place { room, owner }: Place, id: CommandId, action: Action) -> Record {
        let command = Command {
            id,
            room,
            user: owner,
            event_id: EventId(self.id()),
            reply_to: ReplyTo { edge: EdgeId::NIL, session: SessionId::NIL },
            received_us: self.clock.micros(),
            deadline: self.clock.now().after(self.deadline),
            action,
        };
        Record { key: *room.as_bytes(), value: command.encode() }
    }

    /// Somebody new, who is in no room.
    pub fn person(&self) -> UserId {
        UserId(self.id())
    }

    /// A new room.
    pub fn create(&self, owner: UserId) -> (Place, Record) {
        let id = CommandId(self.id());
        let place = Place { room: RoomId::created(owner, id), owner };
        let settings = Settings {
            kind: RoomKind::Group,
            name: "A room that is measured".to_owned(),
            handle: None,
            description: String::new(),
            icon: String::new(),
            visibility: RoomVisibility::Private,
            history: RoomHistory::All,
        };
        (place, self.record(place, id, Action::Create { settings, members: Vec::new() }))
    }

    /// A message of a room's owner.
    pub fn send(&self, place: Place) -> Record {
        let content = Content::text("m".repeat(BODY_BYTES));
        self.record(place, CommandId(self.id()), Action::Send(Message { content, reply_to: None }))
    }
}
