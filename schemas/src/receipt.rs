//! How far a person has got in a room: two maxima.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::codec::record;
use crate::ids::{RoomId, SessionId, UserId};
use crate::seq::Seq;

/// One coalesced step of a person's receipts in a room. Merge by maximum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Where.
    pub room: RoomId,
    /// Who.
    pub user: UserId,
    /// The socket that said so.
    pub session: SessionId,
    /// All up to here has reached a device; 0 if this step does not say.
    pub delivered_seq: Seq,
    /// All up to here has been seen; 0 if this step does not say.
    pub read_seq: Seq,
    /// When.
    pub at: Timestamp,
}

record!(Receipt, "Receipt", "receipt.avsc");
