//! The topics of the log and what each is keyed by.

use std::fmt;

/// A topic. All have the same number of partitions, so that a room has one number everywhere (I2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Topic {
    /// What people ask of rooms, keyed by room. Nothing was promised yet: need not survive a crash.
    Commands,
    /// What has happened in rooms and what became of commands, keyed by room. The truth.
    Events,
    /// What is addressed to a person, keyed by user.
    UserEvents,
    /// How far people have got, keyed by room.
    Receipts,
    /// Typing and presence, keyed by room. Shed first, never stored.
    Signals,
    /// What could not be processed, keyed as it was.
    DeadLetters,
    /// Which processes live and what they own, keyed by process and all in partition 0. Only the last few seconds count.
    Cluster,
}

impl Topic {
    /// All topics.
    pub const ALL: [Self; 7] = [
        Self::Commands,
        Self::Events,
        Self::UserEvents,
        Self::Receipts,
        Self::Signals,
        Self::DeadLetters,
        Self::Cluster,
    ];

    /// Its name in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Commands => "commands",
            Self::Events => "events",
            Self::UserEvents => "user-events",
            Self::Receipts => "receipts",
            Self::Signals => "signals",
            Self::DeadLetters => "dead-letters",
            Self::Cluster => "cluster",
        }
    }

    /// Whether what is in it must survive a crash. (On Kafka every topic does; the embedded engine keeps the others
    /// in memory.)
    pub fn is_durable(self) -> bool {
        !matches!(self, Self::Commands | Self::Signals | Self::Cluster)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
