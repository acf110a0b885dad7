//! What is never stored and shed first: typing and presence.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::codec::record;
use crate::ids::{RoomId, SessionId, UserId};

/// A passing sign of life in a room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Where.
    pub room: RoomId,
    /// Who.
    pub user: UserId,
    /// The socket that it comes from, which does not hear it.
    pub session: SessionId,
    /// What.
    pub kind: SignalKind,
    /// When.
    pub at: Timestamp,
}

/// Which sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignalKind {
    /// Types; shown for 6 s.
    Typing,
    /// Has come online.
    Online,
    /// Has gone offline.
    Offline,
}

record!(Signal, "Signal", "signal.avsc");
