//! Whether the events of each room come dense (I2): the last seq of rooms seen lately. Pure. Whoever asks keeps back what
//! breaks that, as the archiver does: a room goes on where it was dense last, or not at all.

use std::collections::HashMap;
use std::fmt;

use schemas::{RoomId, Seq};

/// What was wrong with an event's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breach {
    /// Events between this one and `last` never came.
    Hole {
        /// The last seq before.
        last: Seq,
    },
    /// This one has come before.
    Double {
        /// The last seq before.
        last: Seq,
    },
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hole { last } => write!(f, "hole: events before it are missing; the room's last is {last}"),
            Self::Double { last } => write!(f, "double: it has come before; the room's last is {last}"),
        }
    }
}

/// The last seq of rooms seen lately. Two generations of at most half the bound each: when the young one is full it
/// becomes the old one, and what nobody has asked for since is forgotten.
#[derive(Debug)]
pub struct Density {
    young: HashMap<RoomId, Seq>,
    old: HashMap<RoomId, Seq>,
    half: usize,
}

impl Density {
    /// Remembers at most about `rooms_max` rooms.
    pub fn new(rooms_max: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: rooms_max.div_ceil(2).max(1) }
    }

    /// Notes an event; one that breaks its room does not count. A room that is not known has nothing to be compared with.
    ///
    /// # Errors
    /// How it breaks its room.
    pub fn note(&mut self, room: RoomId, seq: Seq) -> Result<(), Breach> {
        let last = self.young.get(&room).or_else(|| self.old.get(&room)).copied();
        if self.young.len() >= self.half && !self.young.contains_key(&room) {
            self.old = std::mem::take(&mut self.young);
        }
        let verdict = match last {
            Some(last) if seq <= last => Err(Breach::Double { last }),
            Some(last) if seq > last.next() => Err(Breach::Hole { last }),
            _ => Ok(()),
        };
        self.young.insert(room, last.filter(|_| verdict.is_err()).unwrap_or(seq));
        verdict
    }

    /// Forgets everything: after a change of partitions the log may be read again from further back.
    pub fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn room(n: u128) -> RoomId {
        RoomId(Uuid::from_u128(n))
    }

    #[test]
    fn holes_and_doubles_are_seen_and_dense_events_are_not() {
        let mut density = Density::new(10);
        assert_eq!(density.note(room(1), Seq(7)), Ok(()), "nothing to compare with");
        assert_eq!(density.note(room(1), Seq(8)), Ok(()));
        assert_eq!(density.note(room(1), Seq(8)), Err(Breach::Double { last: Seq(8) }));
        assert_eq!(density.note(room(1), Seq(11)), Err(Breach::Hole { last: Seq(8) }));
        assert_eq!(density.note(room(1), Seq(12)), Err(Breach::Hole { last: Seq(8) }), "still");
        assert_eq!(density.note(room(1), Seq(9)), Ok(()), "it goes on where it was dense");
    }

    #[test]
    fn memory_is_bounded_and_keeps_the_rooms_seen_last() {
        let mut density = Density::new(10);
        for n in 0..1_000 {
            density.note(room(n), Seq(1)).unwrap();
            density.note(room(5_000), Seq(u64::try_from(n).unwrap() + 1)).unwrap();
            assert!(density.young.len() + density.old.len() <= 11);
        }
        assert_eq!(density.note(room(5_000), Seq(1_000)), Err(Breach::Double { last: Seq(1_000) }));
        assert_eq!(density.note(room(0), Seq(9)), Ok(()), "forgotten");
    }
}
