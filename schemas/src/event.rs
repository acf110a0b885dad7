//! An event: what has happened in a room, in its order; and its running hash. The truth that everything else folds.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::clock::Timestamp;
use crate::codec::record;
use crate::command::ReplyTo;
use crate::ids::{CommandId, EventId, RoomId, UserId};
use crate::message::{Membership, Message, RoomPatch, Settings};
use crate::seq::Seq;

/// SHA-256.
pub type Hash = [u8; 32];

/// What has happened in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where.
    pub room: RoomId,
    /// Its place: dense, from 1.
    pub seq: Seq,
    /// Its own id.
    pub id: EventId,
    /// When it was decided; people see this time.
    pub at: Timestamp,
    /// Who did it.
    pub by: UserId,
    /// The command that it came of (I4).
    pub command: CommandId,
    /// On the first event of a command: who hears the outcome.
    pub reply_to: Option<ReplyTo>,
    /// When the edge received the command, µs since 1970.
    pub received_us: i64,
    /// When ingest decided, µs since 1970.
    pub decided_us: i64,
    /// Keeps short contents from being guessed out of their hash; dropped with the body.
    pub salt: [u8; 16],
    /// Running hash of the room up to here, see [`Event::chain`].
    pub hash: Hash,
    /// What.
    pub kind: EventKind,
}

/// What kind of thing has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The room came into being. Always seq 1.
    Created(Settings),
    /// Someone wrote.
    Message(Message),
    /// A membership changed.
    Member(Membership),
    /// The settings changed, or the room was deleted.
    Changed(RoomPatch),
    /// Something that a newer version wrote: it has its seq and nothing to show here.
    Unknown,
}

impl Event {
    /// The room's hash after this event: SHA-256 over (previous hash, seq, SHA-256 over (salt, content)).
    pub fn chain(previous: &Hash, seq: Seq, salt: &[u8; 16], kind: &EventKind) -> Hash {
        let mut content = Sha256::new();
        content.update(salt);
        let mut field = |bytes: &[u8]| {
            content.update((bytes.len() as u64).to_be_bytes());
            content.update(bytes);
        };
        match kind {
            EventKind::Message(Message { content, reply_to }) => {
                field(b"message");
                field(content.mime.as_bytes());
                for part in [&content.body, &content.data, &content.media] {
                    field(&[u8::from(part.is_some())]);
                    field(part.as_deref().unwrap_or_default().as_bytes());
                }
                field(&reply_to.unwrap_or(Seq::ZERO).0.to_be_bytes());
            }
            EventKind::Member(member) => {
                field(b"member");
                field(member.user.as_bytes());
                field(&[member.change as u8, member.role as u8]);
            }
            EventKind::Created(settings) => {
                field(b"created");
                field(&[settings.kind as u8, settings.visibility as u8, settings.history as u8]);
                for text in [&settings.name, &settings.description, &settings.icon] {
                    field(text.as_bytes());
                }
                field(settings.handle.as_deref().unwrap_or_default().as_bytes());
            }
            EventKind::Changed(patch) => {
                field(b"changed");
                for text in [&patch.name, &patch.handle, &patch.description, &patch.icon] {
                    field(&[u8::from(text.is_some())]);
                    field(text.as_deref().unwrap_or_default().as_bytes());
                }
                field(&[
                    patch.visibility.map_or(255, |v| v as u8),
                    patch.history.map_or(255, |h| h as u8),
                    u8::from(patch.deleted),
                ]);
            }
            EventKind::Unknown => field(b"unknown"),
        }
        let mut link = Sha256::new();
        link.update(previous);
        link.update(seq.0.to_be_bytes());
        link.update(content.finalize());
        link.finalize().into()
    }
}

record!(Event, "Event", "event.avsc");

#[derive(Serialize)]
#[serde(rename = "Event")]
struct WireRef<'a> {
    room: RoomId,
    seq: Seq,
    id: EventId,
    at: Timestamp,
    by: UserId,
    command: CommandId,
    reply_to: Option<ReplyTo>,
    received_us: i64,
    decided_us: i64,
    #[serde(with = "serde_bytes")]
    salt: &'a [u8; 16],
    #[serde(with = "serde_bytes")]
    hash: &'a Hash,
    message: Option<&'a Message>,
    member: Option<&'a Membership>,
    created: Option<&'a Settings>,
    changed: Option<&'a RoomPatch>,
}

#[derive(Deserialize)]
#[serde(rename = "Event")]
struct Wire {
    room: RoomId,
    seq: Seq,
    id: EventId,
    at: Timestamp,
    by: UserId,
    command: CommandId,
    reply_to: Option<ReplyTo>,
    received_us: i64,
    decided_us: i64,
    #[serde(with = "serde_bytes")]
    salt: [u8; 16],
    #[serde(with = "serde_bytes")]
    hash: Hash,
    message: Option<Message>,
    member: Option<Membership>,
    created: Option<Settings>,
    changed: Option<RoomPatch>,
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut wire = WireRef {
            room: self.room,
            seq: self.seq,
            id: self.id,
            at: self.at,
            by: self.by,
            command: self.command,
            reply_to: self.reply_to,
            received_us: self.received_us,
            decided_us: self.decided_us,
            salt: &self.salt,
            hash: &self.hash,
            message: None,
            member: None,
            created: None,
            changed: None,
        };
        match &self.kind {
            EventKind::Created(settings) => wire.created = Some(settings),
            EventKind::Message(message) => wire.message = Some(message),
            EventKind::Member(member) => wire.member = Some(member),
            EventKind::Changed(patch) => wire.changed = Some(patch),
            EventKind::Unknown => {}
        }
        wire.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire = Wire::deserialize(deserializer)?;
        let kind = match (wire.created, wire.message, wire.member, wire.changed) {
            (Some(settings), ..) => EventKind::Created(settings),
            (_, Some(message), ..) => EventKind::Message(message),
            (_, _, Some(member), _) => EventKind::Member(member),
            (.., Some(patch)) => EventKind::Changed(patch),
            _ => EventKind::Unknown,
        };
        Ok(Self {
            room: wire.room,
            seq: wire.seq,
            id: wire.id,
            at: wire.at,
            by: wire.by,
            command: wire.command,
            reply_to: wire.reply_to,
            received_us: wire.received_us,
            decided_us: wire.decided_us,
            salt: wire.salt,
            hash: wire.hash,
            kind,
        })
    }
}
