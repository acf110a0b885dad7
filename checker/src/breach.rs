//! What a verdict says: each broken promise by name, with its place.

use std::collections::BTreeMap;
use std::fmt;

use schemas::{RoomId, Seq, SessionId, UserId};
use serde::{Serialize, Serializer};

/// Breaches kept with their details; beyond it they are only counted.
const KEPT_MAX: usize = 1_000;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal),* $(,)?) => {
        /// Which promise was broken.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The stable name.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

kinds! {
    /// Accepted, yet not in history.
    Lost = "lost",
    /// Never came to someone who was connected to the end and may see it.
    Undelivered = "undelivered",
    /// One client_msg_id at two seqs: it acted twice.
    ActedTwice = "acted_twice",
    /// One seq twice on a socket.
    Doubled = "doubled",
    /// At or below the cursor that the client resumed from.
    Redelivered = "redelivered",
    /// Came after a later one.
    OutOfOrder = "out_of_order",
    /// Left out, with no gap to announce it.
    Hole = "hole",
    /// The stream of a newcomer does not start at the own join.
    StartsEarly = "starts_early",
    /// Nobody sent this.
    Phantom = "phantom",
    /// Not what was sent.
    WrongBody = "wrong_body",
    /// One seq, two events.
    SeqReused = "seq_reused",
    /// History shows a seq otherwise than it was delivered.
    HistoryDiffers = "history_differs",
    /// Delivered, yet not in history.
    NotInHistory = "not_in_history",
    /// History leaves out a seq below its head.
    HistoryHole = "history_hole",
    /// History shows a seq twice or out of order.
    HistoryDisordered = "history_disordered",
    /// Not at the place at which the sending socket is promised its `accepted`.
    AcceptedMisplaced = "accepted_misplaced",
    /// An outcome for something that this socket did not send.
    OutcomeUnasked = "outcome_unasked",
    /// Sends of one socket into one room were placed otherwise than in sending order.
    SendDisordered = "send_disordered",
    /// Every attempt was rejected for good, yet it is stored.
    RejectedStored = "rejected_stored",
    /// Every attempt was rejected for good and nothing is stored, yet someone was shown it.
    AbortedRead = "aborted_read",
    /// History or the list of rooms lacks what its reader had been told as accepted before they asked.
    OwnWriteUnread = "own_write_unread",
    /// History or the list of rooms ends before what its reader had seen before they asked.
    ReadWentBack = "read_went_back",
    /// The list of rooms lacks one that its reader was in.
    RoomUnlisted = "room_unlisted",
    /// A watermark beyond the room's newest event.
    ReceiptPastHead = "receipt_past_head",
    /// A watermark beyond everything that reached this person.
    ReceiptUnfounded = "receipt_unfounded",
    /// A watermark below what was told of it.
    ReceiptLost = "receipt_lost",
    /// `live` came before what was missed.
    LiveEarly = "live_early",
    /// A gap over events that do not exist or, if unreadable, that this person may read.
    FalseGap = "false_gap",
    /// History did not fill a readable gap.
    GapUnfilled = "gap_unfilled",
    /// Came to someone who was out of the room by then.
    Leaked = "leaked",
    /// History or the list of rooms shows what its reader may not see.
    HistoryLeaked = "history_leaked",
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Breach {
    /// Which promise.
    pub kind: Kind,
    /// Where.
    pub room: RoomId,
    /// The seq, or the first of a range.
    pub seq: Seq,
    /// The last of the range.
    pub to_seq: Seq,
    /// Who saw it or was owed it.
    pub user: Option<UserId>,
    /// On which socket.
    pub session: Option<SessionId>,
    /// What was expected, for people.
    pub expected: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: room {} seq {}", self.kind, self.room, self.seq)?;
        if self.to_seq != self.seq {
            write!(f, "..={}", self.to_seq)?;
        }
        if let Some(session) = self.session {
            write!(f, " socket {session}")?;
        }
        if let Some(user) = self.user {
            write!(f, " user {user}")?;
        }
        write!(f, ": {}", self.expected)
    }
}

/// The outcome of a judgement.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Verdict {
    /// How many of each kind.
    pub counts: BTreeMap<Kind, u64>,
    /// The first thousand.
    pub breaches: Vec<Breach>,
    /// Sends whose outcome stayed unknown and that are not stored.
    pub unknown_absent: u64,
    /// Sends whose outcome stayed unknown and that are stored, once.
    pub unknown_stored: u64,
}

impl Verdict {
    /// Whether every promise held.
    pub fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }

    /// How many promises were broken.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    pub(crate) fn add(&mut self, breach: Breach) {
        *self.counts.entry(breach.kind).or_default() += 1;
        if self.breaches.len() < KEPT_MAX {
            self.breaches.push(breach);
        }
    }
}
