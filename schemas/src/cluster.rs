//! What each process of a cluster says of itself, every second and whenever it changes: by it the others find it, and
//! whoever owns a partition. Who is believed, and for how long, is the reader's matter (`link::cluster`).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::codec::unreleased_record;
use crate::ids::{InstanceId, UserId};
use crate::seq::Partition;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", rename = "InstanceRole")]
pub enum Role {
    /// Serves clients.
    Edge,
    /// Decides.
    Ingest,
    /// Feeds edges.
    Fanout,
    /// Writes the store, answers for history.
    Archiver,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 4] = [Self::Edge, Self::Ingest, Self::Fanout, Self::Archiver];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Edge => "edge",
            Self::Ingest => "ingest",
            Self::Fanout => "fanout",
            Self::Archiver => "archiver",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A partition and the generation of its ownership: of two that say they own it, the higher one is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owned {
    /// Generation of the role's consumer group in which it was assigned.
    #[serde(with = "as_long")]
    pub epoch: u64,
    /// Which.
    pub partition: Partition,
}

/// A limit of a person's that holds on all edges together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PersonLimit {
    /// Messages.
    Sends,
    /// Sockets opened.
    Sockets,
    /// Wrong passwords.
    SignIns,
    /// Sockets held at once.
    SocketsHeld,
}

/// What a person has used of a limit at one edge since that edge last spoke; of [`PersonLimit::SocketsHeld`], how many
/// they hold there now, and whoever is not named holds none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Whose it is.
    pub user: UserId,
    /// Which.
    pub limit: PersonLimit,
    /// How often, or how many.
    pub times: u32,
}

/// Most that an edge says of it at once: some 20 bytes each.
pub const USED_MAX: usize = 1_000;

/// A process says that it lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Which one; new at each start (UUIDv7).
    pub id: InstanceId,
    /// What it does.
    pub role: Role,
    /// Where its link listens, `host:port`; empty for roles that nobody calls.
    pub address: String,
    /// When it began, by its own clock.
    pub started_at: Timestamp,
    /// When it said this, by its own clock: for people. Nobody compares it with another clock.
    pub at: Timestamp,
    /// What it owns in its role's group, in no order.
    pub owned: Vec<Owned>,
    /// Of an edge, what people have used of their limits since it last spoke: at most [`USED_MAX`], in no order.
    pub used: Vec<Used>,
    /// It is about to end: the last that is heard of it.
    pub leaving: bool,
}

unreleased_record!(Instance, "Instance", "instance.avsc");

/// Avro's integers are signed.
mod as_long {
    use serde::{Deserialize, Deserializer, Serializer, de, ser};

    pub(super) fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(i64::try_from(*number).map_err(ser::Error::custom)?)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        u64::try_from(i64::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
