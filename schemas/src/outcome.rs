//! An outcome: what became of a command that made no new event. It stands in the events topic, at its place.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::codec::record;
use crate::command::ReplyTo;
use crate::ids::{CommandId, EventId, RoomId, UserId};
use crate::seq::Seq;

/// What became of a command that made no new event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Where.
    pub room: RoomId,
    /// Who asked.
    pub user: UserId,
    /// What was asked.
    pub command: CommandId,
    /// Who hears of it.
    pub reply_to: ReplyTo,
    /// When the edge received the command, µs since 1970.
    pub received_us: i64,
    /// It is done: the first outcome of a repeat, or it was so already.
    pub done: Option<Done>,
    /// It is not, and this attempt will never be.
    pub rejected: Option<Rejected>,
}

/// The first outcome of a repeated command; `seq` 0 where it was so already and no event stands for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The event's place.
    pub seq: Seq,
    /// The event's id.
    pub id: EventId,
    /// The event's time.
    pub at: Timestamp,
}

/// Why this attempt was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejected {
    /// One of [`RejectCode`], as text.
    pub code: RejectCode,
    /// For people.
    pub detail: String,
    /// With it: back off, then try again under the same id.
    pub retry_after_ms: Option<u32>,
}

/// The codes of `rejected` frames, and the ones that only REST calls can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case", from = "String", into = "String")]
pub enum RejectCode {
    /// Not a member, or no such room for this person.
    NotAMember,
    /// The other side has blocked this person.
    Blocked,
    /// Over a size limit.
    TooLarge,
    /// Too often.
    RateLimited,
    /// Unknown: try again under the same id.
    Unavailable,
    /// Never valid.
    Invalid,
    /// A member, but without the role for it.
    Forbidden,
    /// No such thing to act on.
    NotFound,
    /// The state forbids it, as the last owner leaving.
    Conflict,
}

impl RejectCode {
    /// All codes.
    pub const ALL: [Self; 9] = [
        Self::NotAMember,
        Self::Blocked,
        Self::TooLarge,
        Self::RateLimited,
        Self::Unavailable,
        Self::Invalid,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
    ];

    /// The stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAMember => "not_a_member",
            Self::Blocked => "blocked",
            Self::TooLarge => "too_large",
            Self::RateLimited => "rate_limited",
            Self::Unavailable => "unavailable",
            Self::Invalid => "invalid",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
        }
    }
}

impl From<RejectCode> for String {
    fn from(code: RejectCode) -> Self {
        code.as_str().to_owned()
    }
}

impl From<String> for RejectCode {
    /// A code of a newer version reads as `invalid`: this attempt is over either way.
    fn from(text: String) -> Self {
        Self::ALL.into_iter().find(|code| code.as_str() == text).unwrap_or(Self::Invalid)
    }
}

record!(Outcome, "Outcome", "outcome.avsc");
