//! What one process has written last, so that the usual case (the next event, the next step) needs no look at Cassandra.
//!
//! It is a function of the log up to where the archive has come, for as long as this process alone goes on from there: a
//! batch that does not go on exactly where the last one ended, or an error, and all of it is forgotten. Another archiver
//! that has taken the partition over meanwhile (or had it before, and was late) writes what follows from the same log, which
//! this one meets there too; so what is not known here yet is at most what will come again.

use std::collections::HashMap;

use schemas::room::RoomInfo;
use schemas::{Offset, Partition, RoomId, Seq, Timestamp, Topic, UserId};

use super::rooms::{handle, is_listed};
use crate::archive::Batch;

/// Rooms, and people's steps in rooms, of which is known what was written last. Beyond that all are forgotten: about 10 MiB.
const KNOWN_MAX: usize = 65_536;

/// The highest step of a person in a room: what was reached, and when.
pub(super) type Step = (Seq, Timestamp);

/// What of a room's row decides whether other rows have to change with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) head_seq: Seq,
    pub(super) is_listed: bool,
    pub(super) handle: Option<String>,
}

impl Shown {
    pub(super) fn of(room: &RoomInfo) -> Self {
        Self { head_seq: room.head_seq, is_listed: is_listed(room), handle: handle(room) }
    }
}

/// See above.
#[derive(Debug, Default)]
pub(super) struct Trail {
    reached: HashMap<(Topic, Partition), Offset>,
    steps: HashMap<(RoomId, UserId, i32), Step>,
    rooms: HashMap<RoomId, Shown>,
}

impl Trail {
    /// This one if the batch goes on where it ends, else an empty one.
    pub(super) fn before(self, batch: &Batch) -> Self {
        let ends_at = |topic: Topic, partition: Partition| self.reached.get(&(topic, partition)).copied();
        let goes_on = batch.since.iter().all(|(topic, partition, at)| ends_at(*topic, *partition) == Some(*at));
        if goes_on && !batch.since.is_empty() { self } else { Self::default() }
    }

    /// After the whole batch was written.
    pub(super) fn after(mut self, batch: &Batch) -> Self {
        self.reached.extend(batch.progress.iter().map(|(topic, partition, to)| ((*topic, *partition), *to)));
        self
    }

    pub(super) fn step(&self, room: RoomId, user: UserId, kind: i32) -> Option<Step> {
        self.steps.get(&(room, user, kind)).copied()
    }

    pub(super) fn set_step(&mut self, room: RoomId, user: UserId, kind: i32, step: Option<Step>) {
        set(&mut self.steps, (room, user, kind), step);
    }

    pub(super) fn room(&self, room: RoomId) -> Option<Shown> {
        self.rooms.get(&room).cloned()
    }

    pub(super) fn set_room(&mut self, room: RoomId, shown: Shown) {
        set(&mut self.rooms, room, Some(shown));
    }
}

fn set<K: Eq + std::hash::Hash, V>(known: &mut HashMap<K, V>, key: K, value: Option<V>) {
    let Some(value) = value else {
        known.remove(&key);
        return;
    };
    if known.len() >= KNOWN_MAX && !known.contains_key(&key) {
        known.clear();
    }
    known.insert(key, value);
}
