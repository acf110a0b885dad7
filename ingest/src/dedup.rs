//! Which commands have acted (I4): for each person in a room the ids accepted of late and a floor under them. Pure; it
//! says when the store must be asked, and does not ask.

use std::collections::HashMap;

use schemas::{CommandId, UserId};
use store::archive::Acted;

use crate::rooms::Step;

/// What is known of a command's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has acted; this was its first outcome.
    Repeat(Acted),
    /// It has not.
    New,
    /// Only the store knows.
    Ask,
}

/// The memory of one room.
#[derive(Debug)]
pub struct Dedup {
    /// Floor of people of whom nothing is kept: the largest id archived when the room was loaded.
    floor: Option<CommandId>,
    people: HashMap<UserId, Recent>,
    /// Ids kept of all people, for the room's weight.
    kept: usize,
}

/// One person's ids in one room.
#[derive(Debug)]
struct Recent {
    /// The largest id ever evicted. It only rises, which is always safe: below it the store is asked.
    floor: Option<CommandId>,
    /// By rising id: UUIDv7 grow with time, so that a new one almost always goes to the end.
    kept: Vec<Kept>,
}

#[derive(Debug)]
struct Kept {
    id: CommandId,
    acted: Acted,
    /// Where its events stand: not to be forgotten before that is archived.
    step: Step,
}

impl Dedup {
    /// The memory of a room just loaded: empty above the largest id archived in it.
    pub fn new(largest_archived: Option<CommandId>) -> Self {
        Self { floor: largest_archived, people: HashMap::new(), kept: 0 }
    }

    /// What is known of an id.
    pub fn check(&self, user: UserId, id: CommandId) -> Verdict {
        let floor = match self.people.get(&user) {
            Some(recent) => match recent.find(id) {
                Ok(at) => return Verdict::Repeat(recent.kept[at].acted),
                Err(_) => recent.floor,
            },
            None => self.floor,
        };
        if Some(id) > floor { Verdict::New } else { Verdict::Ask }
    }

    /// Keeps an id that has acted with events of this step. Of a command's several events the first counts. Returns
    /// how many ids are kept of this person.
    pub fn accept(&mut self, user: UserId, id: CommandId, acted: Acted, step: Step) -> usize {
        let floor = self.floor;
        let recent = self.people.entry(user).or_insert_with(|| Recent { floor, kept: Vec::new() });
        if let Err(at) = recent.find(id) {
            recent.kept.insert(at, Kept { id, acted, step });
            self.kept += 1;
        }
        recent.kept.len()
    }

    /// Forgets a person's smallest ids but `keep`, as far as they are archived. Returns whether any was: the store is
    /// then relied upon (I3).
    pub fn forget(&mut self, user: UserId, keep: usize, archived: Step) -> bool {
        let Some(recent) = self.people.get_mut(&user) else { return false };
        let beyond = recent.kept.len().saturating_sub(keep);
        // An unarchived id stays, and with it those above it: the floor must not rise past what the store lacks.
        let count = recent.kept[..beyond].iter().take_while(|kept| kept.step <= archived).count();
        let Some(last) = count.checked_sub(1) else { return false };
        recent.floor = recent.floor.max(Some(recent.kept[last].id));
        recent.kept.drain(..count);
        self.kept -= count;
        true
    }

    /// About how much memory this takes, bytes.
    pub fn weight_bytes(&self) -> usize {
        self.kept * size_of::<Kept>() + self.people.len() * (size_of::<UserId>() + size_of::<Recent>())
    }
}

impl Recent {
    fn find(&self, id: CommandId) -> Result<usize, usize> {
        match self.kept.last() {
            Some(last) if last.id < id => Err(self.kept.len()),
            _ => self.kept.binary_search_by_key(&id, |kept| kept.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::ids::uuid_v7;
    use schemas::{EventId, Seq, Timestamp};
    use uuid::Uuid;

    use super::*;

    const USER: UserId = UserId(Uuid::from_u128(1));
    const OTHER: UserId = UserId(Uuid::from_u128(2));

    fn id(ms: i64) -> CommandId {
        CommandId(uuid_v7(ms, [0; 10]))
    }

    fn acted(seq: u64) -> Acted {
        Acted { seq: Seq(seq), id: EventId::NIL, at: Timestamp(0) }
    }

    #[test]
    fn an_accepted_id_is_a_repeat_of_its_first_event_and_only_for_its_user() {
        let mut dedup = Dedup::new(None);
        dedup.accept(USER, id(5), acted(1), Step(1));
        dedup.accept(USER, id(5), acted(2), Step(1));
        assert_eq!(dedup.check(USER, id(5)), Verdict::Repeat(acted(1)));
        assert_eq!(dedup.check(OTHER, id(5)), Verdict::New);
    }

    #[test]
    fn ids_out_of_order_are_all_remembered() {
        let mut dedup = Dedup::new(None);
        for (n, ms) in [(1, 50), (2, 10), (3, 30), (4, 70), (5, 20)] {
            assert_eq!(dedup.check(USER, id(ms)), Verdict::New);
            dedup.accept(USER, id(ms), acted(n), Step(n));
        }
        assert_eq!(dedup.check(USER, id(30)), Verdict::Repeat(acted(3)));
        assert_eq!(dedup.check(USER, id(40)), Verdict::New);
    }

    #[test]
    fn a_cold_room_asks_the_store_at_or_below_its_largest_archived_id() {
        let mut dedup = Dedup::new(Some(id(100)));
        assert_eq!(dedup.check(USER, id(100)), Verdict::Ask);
        assert_eq!(dedup.check(USER, id(101)), Verdict::New);
        dedup.accept(USER, id(101), acted(9), Step(1));
        assert_eq!(dedup.check(USER, id(99)), Verdict::Ask, "keeping a newer id does not lower the floor");
    }

    #[test]
    fn the_floor_rises_only_to_archived_ids_and_never_falls() {
        let mut dedup = Dedup::new(None);
        for n in 1..=6 {
            dedup.accept(USER, id(n * 10), acted(n.unsigned_abs()), Step(n.unsigned_abs()));
        }
        assert!(!dedup.forget(USER, 2, Step(0)), "nothing is archived");
        assert!(dedup.forget(USER, 2, Step(3)));
        assert_eq!(dedup.check(USER, id(30)), Verdict::Ask);
        assert_eq!(dedup.check(USER, id(40)), Verdict::Repeat(acted(4)));
        assert_eq!(dedup.check(USER, id(35)), Verdict::New);
        // A late small id, looked up in the store and accepted, is evicted first and leaves the floor where it is.
        dedup.accept(USER, id(15), acted(7), Step(4));
        assert!(dedup.forget(USER, 3, Step(4)));
        assert_eq!(dedup.check(USER, id(15)), Verdict::Ask);
        assert_eq!(dedup.check(USER, id(30)), Verdict::Ask);
        assert_eq!(dedup.check(USER, id(31)), Verdict::New);
    }

    #[test]
    fn an_unarchived_id_holds_back_those_above_it() {
        let mut dedup = Dedup::new(None);
        dedup.accept(USER, id(10), acted(1), Step(9));
        dedup.accept(USER, id(20), acted(2), Step(1));
        assert!(!dedup.forget(USER, 0, Step(5)));
        assert!(dedup.forget(USER, 0, Step(9)));
        assert_eq!(dedup.weight_bytes(), size_of::<UserId>() + size_of::<Recent>());
    }
}
