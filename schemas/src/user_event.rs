//! What is addressed to one person: that a room has entered or left their list.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::codec::record;
use crate::ids::{RoomId, UserId};
use crate::seq::Seq;

/// What is addressed to one person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserEvent {
    /// Who.
    pub user: UserId,
    /// Which room.
    pub room: RoomId,
    /// The room's event that it came of, and so its version (I5).
    pub seq: Seq,
    /// When.
    pub at: Timestamp,
    /// In or out.
    pub entry: RoomEntry,
}

/// Whether the room is in the person's list after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoomEntry {
    /// In.
    Joined,
    /// Out.
    Left,
}

record!(UserEvent, "UserEvent", "user_event.avsc");
