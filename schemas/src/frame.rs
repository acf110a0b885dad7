//! The frames of a socket, and an event as people see it: the same fields in history, in a REST answer and on a
//! socket (protocol.md). Owns the JSON form, nothing else.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::event::{Event, EventKind};
use crate::ids::{CommandId, DeviceId, EventId, RoomId, SessionId, UserId};
use crate::json::{self, Object};
use crate::message::{Content, MemberChange, Role, RoomKind, RoomPatch};
use crate::outcome::RejectCode;
use crate::seq::Seq;

/// The subprotocol of JSON text frames.
pub const SUBPROTOCOL: &str = "posthaste.v1.json";

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientFrame {
    /// The first frame.
    Hello(Hello),
    /// A message into a room.
    Send {
        /// Where.
        room: RoomId,
        /// UUIDv7, the same at every try.
        client_msg_id: CommandId,
        /// What.
        #[serde(deserialize_with = "json::object")]
        content: Content,
        /// The message that it answers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reply_to: Option<Seq>,
    },
    /// All up to `seq` has reached this device.
    Delivered {
        /// Where.
        room: RoomId,
        /// Up to here.
        seq: Seq,
    },
    /// All up to `seq` has been seen.
    Read {
        /// Where.
        room: RoomId,
        /// Up to here.
        seq: Seq,
    },
    /// Is typing.
    Typing {
        /// Where.
        room: RoomId,
    },
    /// Answers `ping`.
    Pong {},
    /// A fresh access token on a live socket.
    Authenticate {
        /// The token.
        token: String,
    },
}

impl ClientFrame {
    /// The frame that a text is.
    ///
    /// # Errors
    /// It is no JSON object, or none of these.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text).map(|Object(frame)| frame)
    }
}

/// The first frame of a socket.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Hello {
    /// Access token, where the Authorization header did not carry one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// For tokens of other issuers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<DeviceId>,
    /// The last seq that the client holds of each room.
    #[serde(default, skip_serializing_if = "HashMap::is_empty")]
    #[schema(value_type = HashMap<String, u64>)]
    pub resume: HashMap<RoomId, Seq>,
    /// Only these rooms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rooms: Option<Vec<RoomId>>,
    /// Reserved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receiver_group: Option<String>,
}

/// What changed in a room's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RoomChanged {
    /// The room's first event.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub created: bool,
    /// With `created`: which kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<RoomKind>,
    /// The fields that changed.
    #[serde(flatten)]
    pub patch: RoomPatch,
}

/// A durable event as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum EventView {
    /// Someone wrote.
    Message {
        /// Where.
        room: RoomId,
        /// Its place.
        seq: Seq,
        /// Its id.
        id: EventId,
        /// Who wrote.
        sender: UserId,
        /// When it was accepted.
        sent_at: Timestamp,
        /// What; absent once deleted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        content: Option<Content>,
        /// The message that it answers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reply_to: Option<Seq>,
        /// Only to the sender.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        client_msg_id: Option<CommandId>,
    },
    /// A membership changed.
    Member {
        /// Where.
        room: RoomId,
        /// Its place.
        seq: Seq,
        /// Its id.
        id: EventId,
        /// When.
        at: Timestamp,
        /// Who did it.
        by: UserId,
        /// Whose membership.
        user: UserId,
        /// What happened to it.
        change: MemberChange,
        /// The role after it.
        role: Role,
    },
    /// The room came into being, changed, or is gone.
    Room {
        /// Where.
        room: RoomId,
        /// Its place.
        seq: Seq,
        /// Its id.
        id: EventId,
        /// When.
        at: Timestamp,
        /// Who did it.
        by: UserId,
        /// What changed.
        changed: RoomChanged,
    },
}

impl EventView {
    /// The event as `viewer` sees it. (With `viewer` = `None`: as everyone but its sender does.)
    pub fn of(event: &Event, viewer: Option<UserId>) -> Self {
        let Event { room, seq, id, at, by, .. } = *event;
        let changed = |changed| Self::Room { room, seq, id, at, by, changed };
        match &event.kind {
            EventKind::Message(message) => Self::Message {
                room,
                seq,
                id,
                sender: by,
                sent_at: at,
                content: Some(message.content.clone()),
                reply_to: message.reply_to,
                client_msg_id: (viewer == Some(by)).then_some(event.command),
            },
            EventKind::Member(member) => {
                Self::Member { room, seq, id, at, by, user: member.user, change: member.change, role: member.role }
            }
            EventKind::Created(settings) => changed(RoomChanged {
                created: true,
                kind: Some(settings.kind),
                patch: RoomPatch {
                    name: Some(settings.name.clone()),
                    handle: settings.handle.clone(),
                    description: Some(settings.description.clone()),
                    icon: Some(settings.icon.clone()),
                    visibility: Some(settings.visibility),
                    history: Some(settings.history),
                    deleted: false,
                },
            }),
            EventKind::Changed(patch) => changed(RoomChanged { created: false, kind: None, patch: patch.clone() }),
            EventKind::Unknown => changed(RoomChanged::default()),
        }
    }

    /// Where it happened.
    pub fn room(&self) -> RoomId {
        match self {
            Self::Message { room, .. } | Self::Member { room, .. } | Self::Room { room, .. } => *room,
        }
    }

    /// Its place.
    pub fn seq(&self) -> Seq {
        match self {
            Self::Message { seq, .. } | Self::Member { seq, .. } | Self::Room { seq, .. } => *seq,
        }
    }
}

/// What a server sends: an event, or anything else.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(untagged)]
pub enum ServerFrame {
    /// A durable event at its place.
    Event(EventView),
    /// Anything else.
    Control(Control),
}

/// What a server sends beside events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Control {
    /// Authenticated.
    Welcome {
        /// Who.
        user: UserId,
        /// With which device.
        device: DeviceId,
        /// This socket.
        session: SessionId,
        /// Server time.
        time: Timestamp,
        /// Seconds between pings.
        heartbeat_s: u64,
        /// What a client must keep to.
        limits: FrameLimits,
    },
    /// The message is durable.
    Accepted {
        /// The send's id.
        client_msg_id: CommandId,
        /// Where.
        room: RoomId,
        /// Its place.
        seq: Seq,
        /// The event's id.
        id: EventId,
        /// When it was accepted.
        sent_at: Timestamp,
        /// It repeats the first outcome and stands outside the sequence.
        duplicate: bool,
    },
    /// This attempt is not stored; `unavailable`: unknown.
    Rejected {
        /// The send's id.
        client_msg_id: CommandId,
        /// Where.
        room: RoomId,
        /// Why.
        code: RejectCode,
        /// For people.
        detail: String,
        /// Back off, then send again under the same id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u32>,
    },
    /// Cumulative; take the maximum.
    Receipt {
        /// Where.
        room: RoomId,
        /// Who.
        user: UserId,
        /// All up to here has reached a device.
        delivered_seq: Seq,
        /// All up to here has been seen.
        read_seq: Seq,
        /// When.
        at: Timestamp,
    },
    /// Shown for 6 s.
    Typing {
        /// Where.
        room: RoomId,
        /// Who.
        user: UserId,
    },
    /// Came or went.
    Presence {
        /// Who.
        user: UserId,
        /// Which.
        online: bool,
        /// When last seen.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        last_seen: Option<Timestamp>,
    },
    /// These are not streamed.
    Gap {
        /// Where.
        room: RoomId,
        /// From here.
        from_seq: Seq,
        /// To here.
        to_seq: Seq,
        /// Fetch them by GET messages; otherwise they are not for this person.
        readable: bool,
    },
    /// Everything missed has been sent.
    Live {},
    /// The access token ends soon.
    TokenExpiring {
        /// In so many seconds.
        in_s: u64,
    },
    /// Another device of this person has read up to here.
    ReadMarker {
        /// Where.
        room: RoomId,
        /// Up to here.
        read_seq: Seq,
    },
    /// Heartbeat.
    Ping {},
    /// A frame was not understood.
    Error {
        /// Why.
        code: String,
        /// For people.
        detail: String,
    },
    /// A drain is about to close this socket.
    Closing {
        /// The close code that follows.
        code: u16,
        /// Reconnect elsewhere after this.
        retry_after_ms: u32,
    },
}

/// What a client must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FrameLimits {
    /// Largest content, bytes.
    pub content_bytes: usize,
    /// Largest frame, bytes.
    pub frame_bytes: usize,
    /// Up to this many members receipts go to everyone.
    pub receipt_members: u32,
    /// Beyond this many missed events in a room there is a gap.
    pub stream_missed: u64,
}

impl FrameLimits {
    /// The limits in force.
    pub const DEFAULT: Self = Self {
        content_bytes: crate::limits::CONTENT_MAX_BYTES,
        frame_bytes: crate::limits::FRAME_MAX_BYTES,
        receipt_members: crate::limits::RECEIPT_MEMBERS_MAX,
        stream_missed: crate::limits::STREAM_MAX_MISSED,
    };
}

/// Close codes (protocol.md): 4000–4499 come back, 4500–4999 stay away.
pub mod close {
    macro_rules! codes {
        ($(#[doc = $about:literal] $name:ident = $code:literal;)*) => {
            $(#[doc = $about] pub const $name: u16 = $code;)*

            /// All of them, and what each says.
            pub const ALL: &[(u16, &str)] = &[$(($code, $about)),*];
        };
    }

    codes! {
        /// Drain: reconnect elsewhere.
        RESTART = 1012;
        /// Try later.
        TRY_LATER = 1013;
        /// A frame over the limit.
        TOO_LARGE = 1009;
        /// The access token ended: refresh it first.
        TOKEN_ENDED = 4001;
        /// Over a rate limit.
        RATE_LIMITED = 4003;
        /// No pong.
        HEARTBEAT_MISSED = 4004;
        /// No hello in time.
        NO_HELLO = 4008;
        /// Not JSON, a first frame other than hello, or an unknown version.
        BAD_FRAME = 4500;
        /// The token is invalid or revoked.
        TOKEN_INVALID = 4501;
        /// Banned.
        BANNED = 4503;
        /// Signed out.
        SIGNED_OUT = 4504;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_and_its_content_stand_in_braces() {
        let frame = |content| {
            let id = "0198f3a0-0000-7000-8000-000000000001";
            format!(r#"{{"type": "send", "room": "{id}", "client_msg_id": "{id}", "content": {content}}}"#)
        };
        assert!(ClientFrame::parse(&frame(r#"{"type": "text/plain", "body": "x"}"#)).is_ok());
        assert!(ClientFrame::parse(&frame(r#"["text/plain", "x"]"#)).is_err());
        assert_eq!(ClientFrame::parse(r#"{"type": "pong"}"#).unwrap(), ClientFrame::Pong {});
        for none in [r#"["pong"]"#, r#"["pong", {}]"#, r#""pong""#, r#"{"type": "pong"} {}"#] {
            assert!(ClientFrame::parse(none).is_err(), "{none}");
        }
    }
}
