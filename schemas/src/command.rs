//! A command: what someone asks of a room, on its way from an edge to ingest.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::clock::Timestamp;
use crate::codec::record;
use crate::ids::{CommandId, EdgeId, EventId, RoomId, SessionId, UserId};
use crate::message::{Membership, Message, RoomPatch, Settings};

/// Who hears the outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReplyTo {
    /// The edge that holds the caller.
    pub edge: EdgeId,
    /// The socket, or nil for a REST call (then the command id tells them apart).
    pub session: SessionId,
}

/// What someone asks of a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The same id never acts twice (I4).
    pub id: CommandId,
    /// Where.
    pub room: RoomId,
    /// Who, as the edge has authenticated them.
    pub user: UserId,
    /// The id of its (first) event.
    pub event_id: EventId,
    /// Who hears of it.
    pub reply_to: ReplyTo,
    /// Wall time at the edge, µs since 1970.
    pub received_us: i64,
    /// Void afterwards (I4).
    pub deadline: Timestamp,
    /// What.
    pub action: Action,
}

/// What a command asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A new room with these members beside its creator. For a direct room: exactly one, and asking again is fine.
    Create {
        /// The room's settings.
        settings: Settings,
        /// Members beside the creator.
        members: Vec<UserId>,
    },
    /// A message.
    Send(Message),
    /// Join, leave, add, remove or change a role.
    Membership(Membership),
    /// Change the room's settings, or delete it.
    Change(RoomPatch),
}

record!(Command, "Command", "command.avsc");

/// The record as its schema has it: one nullable part for each kind of action, so that a kind can be added.
#[derive(Serialize)]
#[serde(rename = "Command")]
struct WireRef<'a> {
    id: CommandId,
    room: RoomId,
    user: UserId,
    event_id: EventId,
    reply_to: ReplyTo,
    received_us: i64,
    deadline: Timestamp,
    create: Option<CreateRef<'a>>,
    send: Option<&'a Message>,
    membership: Option<&'a Membership>,
    change: Option<&'a RoomPatch>,
}

#[derive(Serialize)]
#[serde(rename = "Create")]
struct CreateRef<'a> {
    settings: &'a Settings,
    members: &'a [UserId],
}

#[derive(Deserialize)]
#[serde(rename = "Command")]
struct Wire {
    id: CommandId,
    room: RoomId,
    user: UserId,
    event_id: EventId,
    reply_to: ReplyTo,
    received_us: i64,
    deadline: Timestamp,
    create: Option<Create>,
    send: Option<Message>,
    membership: Option<Membership>,
    change: Option<RoomPatch>,
}

#[derive(Deserialize)]
struct Create {
    settings: Settings,
    members: Vec<UserId>,
}

impl Serialize for Command {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut wire = WireRef {
            id: self.id,
            room: self.room,
            user: self.user,
            event_id: self.event_id,
            reply_to: self.reply_to,
            received_us: self.received_us,
            deadline: self.deadline,
            create: None,
            send: None,
            membership: None,
            change: None,
        };
        match &self.action {
            Action::Create { settings, members } => wire.create = Some(CreateRef { settings, members }),
            Action::Send(message) => wire.send = Some(message),
            Action::Membership(membership) => wire.membership = Some(membership),
            Action::Change(patch) => wire.change = Some(patch),
        }
        wire.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Command {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(deserializer)?;
        let action = match (wire.create, wire.send, wire.membership, wire.change) {
            (Some(Create { settings, members }), None, None, None) => Action::Create { settings, members },
            (None, Some(message), None, None) => Action::Send(message),
            (None, None, Some(membership), None) => Action::Membership(membership),
            (None, None, None, Some(patch)) => Action::Change(patch),
            _ => return Err(de::Error::custom("a command carries exactly one known action")),
        };
        Ok(Self {
            id: wire.id,
            room: wire.room,
            user: wire.user,
            event_id: wire.event_id,
            reply_to: wire.reply_to,
            received_us: wire.received_us,
            deadline: wire.deadline,
            action,
        })
    }
}
