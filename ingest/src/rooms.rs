//! The rooms of one partition: those in memory, the tail of the log that the store lacks, and what is relied upon the
//! store to hold (I3). Pure: it says what must be read, and takes what was.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use schemas::outcome::Outcome;
use schemas::room::{Member, RoomInfo, RoomState};
use schemas::{CommandId, Event, EventKind, Offset, Record, RoomId, UserId};
use store::archive::Acted;
use stream::Fetched;
use uuid::Uuid;

use crate::dedup::Dedup;

/// A stretch of the partition's log, numbered in its order: one transaction, or one read at take-over. What happened
/// in a step is archived when the step's end is. Step 0 is what was archived at take-over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step(pub u64);

/// A room in memory.
#[derive(Debug)]
pub struct Room {
    /// `None` while there has never been such a room.
    pub state: Option<RoomState>,
    /// Which commands have acted in it.
    pub dedup: Dedup,
    /// Where its last event stands.
    pub last: Step,
    /// Asked for since the last look at what may go.
    used: bool,
}

/// What the store says of a room.
#[derive(Debug, Default)]
pub struct Rows {
    /// The room, if it has been archived.
    pub info: Option<RoomInfo>,
    /// Everyone who is or was in; read after `info`, so at least as new.
    pub members: Vec<(UserId, Member)>,
    /// The largest command id archived in it.
    pub largest_command: Option<CommandId>,
}

/// Rows and tail do not make a room: the room can't be decided upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// A record of a newer version, which may be an event.
    #[error("a record of the room cannot be read")]
    Unreadable,
    /// The store lacks events below the tail, or there is a hole in the log.
    #[error("the room's events do not follow upon one another")]
    Hole,
}

/// What the archive does not hold yet of a partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Events.
    pub events: u64,
    /// Their size in the log, bytes.
    pub bytes: u64,
}

#[derive(Debug)]
struct Unarchived {
    end: Offset,
    backlog: Backlog,
}

/// The rooms of one partition.
#[derive(Debug)]
pub struct Rooms {
    loaded: HashMap<RoomId, Room>,
    /// Loaded rooms in the order of the next look at them.
    ring: VecDeque<RoomId>,
    weight_bytes: usize,
    /// The tail found at take-over, of rooms not loaded since.
    tail: HashMap<RoomId, Vec<(Step, Bytes)>>,
    /// Steps that are not archived, after `archived` without a gap.
    unarchived: VecDeque<Unarchived>,
    backlog: Backlog,
    archived: Step,
    archived_end: Offset,
    need: Offset,
}

/// A room's memory beside members and ids, bytes: entry, settings, strings.
const ROOM_BYTES: usize = 512;
/// A member's, bytes: entry and one interval.
const MEMBER_BYTES: usize = size_of::<(UserId, Member)>() + 48;
/// Rooms per round that are found to be unarchived, and so must stay, before the search for others is given up.
const STAYING_PER_ROUND: usize = 512;

impl Rooms {
    /// A partition just taken over, with its archive's progress. What lies before is left to the store.
    pub fn new(progress: Offset) -> Self {
        Self {
            loaded: HashMap::new(),
            ring: VecDeque::new(),
            weight_bytes: 0,
            tail: HashMap::new(),
            unarchived: VecDeque::new(),
            backlog: Backlog::default(),
            archived: Step(0),
            archived_end: progress,
            need: progress,
        }
    }

    /// Takes a part of the tail in at take-over, in the log's order.
    pub fn take_tail(&mut self, fetched: &Fetched) {
        let step = self.next_step();
        let mut backlog = Backlog::default();
        for placed in fetched.records.iter() {
            let record = &placed.record;
            // Whatever is not surely an outcome may be an event: better a room that can't be loaded than a seq twice.
            if !Outcome::is(&record.value) {
                backlog.events += 1;
                backlog.bytes += record.value.len() as u64;
                let room = RoomId(Uuid::from_bytes(record.key));
                self.tail.entry(room).or_default().push((step, record.value.clone()));
            }
        }
        self.append(fetched.next, backlog);
    }

    /// The step that the next transaction makes.
    pub fn next_step(&self) -> Step {
        Step(self.archived.0 + self.unarchived.len() as u64 + 1)
    }

    /// Closes a step that is in the log up to `end`. One without events is none: nothing waits for it.
    pub fn append(&mut self, end: Offset, backlog: Backlog) {
        if backlog.events == 0 {
            return;
        }
        self.backlog.events += backlog.events;
        self.backlog.bytes += backlog.bytes;
        self.unarchived.push_back(Unarchived { end, backlog });
    }

    /// Takes note of the archive's progress.
    pub fn archived(&mut self, progress: Offset) {
        while let Some(step) = self.unarchived.pop_front_if(|step| step.end <= progress) {
            self.archived = Step(self.archived.0 + 1);
            self.archived_end = step.end;
            self.backlog.events -= step.backlog.events;
            self.backlog.bytes -= step.backlog.bytes;
        }
        let (archived, tails) = (self.archived, self.tail.len());
        self.tail.retain(|_, records| records.last().is_some_and(|(step, _)| *step > archived));
        if self.tail.len() < tails {
            self.need = self.archived_end;
        }
    }

    /// What the archive does not hold yet.
    pub fn backlog(&self) -> Backlog {
        self.backlog
    }

    /// The archive's progress that every load and look-up demands (I3).
    pub fn need(&self) -> Offset {
        self.need
    }

    /// A room in memory.
    pub fn get(&self, room: RoomId) -> Option<&Room> {
        self.loaded.get(&room)
    }

    /// Lets a loaded room change, and keeps account of its weight. `None` if it is not loaded.
    pub fn with<T>(&mut self, room: RoomId, change: impl FnOnce(&mut Room) -> T) -> Option<T> {
        let room = self.loaded.get_mut(&room)?;
        room.used = true;
        let before = room.weight_bytes();
        let result = change(room);
        self.weight_bytes = self.weight_bytes + room.weight_bytes() - before;
        Some(result)
    }

    /// Puts a cold room together: rows read at a progress of at least [`Rooms::need`], and the tail on top.
    ///
    /// # Errors
    /// The room stays cold; other rooms are none the worse.
    pub fn load(&mut self, id: RoomId, rows: Rows) -> Result<(), Unfit> {
        let room = Room::from_rows(rows, self.tail.get(&id).map_or(&[], Vec::as_slice))?;
        self.tail.remove(&id);
        self.weight_bytes += room.weight_bytes();
        if let Some(replaced) = self.loaded.insert(id, room) {
            self.weight_bytes -= replaced.weight_bytes();
        } else {
            self.ring.push_back(id);
        }
        Ok(())
    }

    /// Forgets a person's oldest ids but `keep`, as far as they are archived (I4).
    pub fn forget_ids(&mut self, room: RoomId, user: UserId, keep: usize) {
        let archived = self.archived;
        if self.with(room, |room| room.dedup.forget(user, keep, archived)) == Some(true) {
            self.need = self.archived_end;
        }
    }

    /// Lets rooms go that are archived and were not asked for of late, until the rest weighs at most `max_bytes`.
    pub fn evict(&mut self, max_bytes: usize) {
        let mut must_stay = 0;
        while self.weight_bytes > max_bytes && must_stay < STAYING_PER_ROUND.min(self.ring.len()) {
            let Some(id) = self.ring.pop_front() else { return };
            let Some(room) = self.loaded.get_mut(&id) else { continue };
            if room.used || room.last > self.archived {
                // The mark is taken away at the first look, so that this ends.
                must_stay += usize::from(!std::mem::take(&mut room.used));
                self.ring.push_back(id);
                continue;
            }
            self.weight_bytes -= room.weight_bytes();
            self.loaded.remove(&id);
            self.need = self.archived_end;
        }
    }

    /// How many rooms are in memory, and about how many bytes they take.
    pub fn loaded(&self) -> (usize, usize) {
        (self.loaded.len(), self.weight_bytes)
    }
}

impl Room {
    fn from_rows(rows: Rows, tail: &[(Step, Bytes)]) -> Result<Self, Unfit> {
        let mut info = rows.info;
        let mut members: HashMap<UserId, Member> = rows.members.into_iter().collect();
        let mut dedup = Dedup::new(rows.largest_command);
        let mut last = Step(0);
        for (step, value) in tail {
            let event = Event::decode(value).map_err(|_| Unfit::Unreadable)?;
            last = *step;
            // The tail may begin between a command's events; its first one is archived then, its id below the floor.
            if event.reply_to.is_some() {
                dedup.accept(event.by, event.command, Acted { seq: event.seq, id: event.id, at: event.at }, *step);
            }
            // The rows may be newer than the progress that covers them, and each row by itself: what is above the
            // room's head is folded onto the room, memberships onto theirs whatever the head (I5).
            if info.as_ref().is_none_or(|info| event.seq > info.head_seq) {
                info = Some(RoomInfo::fold(info, &event).ok_or(Unfit::Hole)?);
            }
            if let (EventKind::Member(change), Some(info)) = (&event.kind, &info) {
                let before = members.remove(&change.user);
                members.insert(change.user, Member::fold(before, event.seq, *change, info.settings.history));
            }
        }
        let state = info.map(|mut info| {
            info.member_count =
                u32::try_from(members.values().filter(|member| member.is_in()).count()).unwrap_or(u32::MAX);
            RoomState { info, members }
        });
        Ok(Self { state, dedup, last, used: true })
    }

    fn weight_bytes(&self) -> usize {
        let members = self.state.as_ref().map_or(0, |state| state.members.len());
        ROOM_BYTES + members * MEMBER_BYTES + self.dedup.weight_bytes()
    }
}

#[cfg(test)]
mod tests {
    use schemas::event::EventKind::{Created, Member as Came};
    use schemas::ids::{EdgeId, EventId, SessionId};
    use schemas::message::{MemberChange, Membership, Role, RoomHistory, RoomKind, RoomVisibility, Settings};
    use schemas::{Partition, ReplyTo, Seq, Timestamp, Topic};
    use stream::{Placed, Record as Appended};

    use super::*;

    const ROOM: RoomId = RoomId(Uuid::from_u128(7));

    fn room(n: u128) -> RoomId {
        RoomId(Uuid::from_u128(n))
    }

    fn user(n: u128) -> UserId {
        UserId(Uuid::from_u128(n))
    }

    fn event(seq: u64, kind: EventKind) -> Event {
        Event {
            room: ROOM,
            seq: Seq(seq),
            id: EventId::NIL,
            at: Timestamp(0),
            by: user(1),
            command: CommandId(Uuid::from_u128(seq.into())),
            reply_to: Some(ReplyTo { edge: EdgeId::NIL, session: SessionId::NIL }),
            received_us: 0,
            decided_us: 0,
            salt: [0; 16],
            hash: [0; 32],
            kind,
        }
    }

    /// Created, user 1 came, user 2 came, user 2 went.
    fn history() -> Vec<Event> {
        let settings = Settings {
            kind: RoomKind::Group,
            name: String::new(),
            handle: None,
            description: String::new(),
            icon: String::new(),
            visibility: RoomVisibility::Public,
            history: RoomHistory::All,
        };
        let about = |n, change| Came(Membership { user: user(n), change, role: Role::Member });
        vec![
            event(1, Created(settings)),
            event(2, about(1, MemberChange::Joined)),
            event(3, about(2, MemberChange::Joined)),
            event(4, about(2, MemberChange::Left)),
        ]
    }

    fn state(events: &[Event]) -> Option<RoomState> {
        events.iter().fold(None, RoomState::fold)
    }

    fn rows(events: &[Event], members_of: &[Event]) -> Rows {
        Rows {
            info: state(events).map(|state| state.info),
            members: state(members_of).map_or(Vec::new(), |state| state.members.into_iter().collect()),
            largest_command: events.last().map(|event| event.command),
        }
    }

    fn fetched(values: impl IntoIterator<Item = Bytes>) -> Fetched {
        let placed =
            |(offset, value)| Placed { offset: Offset(offset), record: Appended { key: *ROOM.as_bytes(), value } };
        let records: Vec<Placed> = (0..).zip(values).map(placed).collect();
        let next = Offset(records.len() as u64);
        let (topic, partition, from) = (Topic::Events, Partition(0), Offset(0));
        Fetched { topic, partition, from, next, records: records.into() }
    }

    #[test]
    fn rows_and_tail_make_the_room_however_far_each_row_has_got() {
        let history = history();
        for members_at in 0..=4 {
            for info_at in 0..=4 {
                let mut rooms = Rooms::new(Offset(0));
                rooms.take_tail(&fetched(history.iter().map(Event::encode)));
                rooms.load(ROOM, rows(&history[..info_at], &history[..members_at])).unwrap();
                assert_eq!(rooms.get(ROOM).unwrap().state, state(&history), "{info_at} {members_at}");
            }
        }
    }

    #[test]
    fn a_hole_between_rows_and_tail_keeps_a_room_from_being_loaded() {
        let history = history();
        let mut rooms = Rooms::new(Offset(0));
        rooms.take_tail(&fetched(history[2..].iter().map(Event::encode)));
        assert_eq!(rooms.load(ROOM, rows(&history[..1], &history[..1])), Err(Unfit::Hole));
        assert_eq!(rooms.load(ROOM, Rows::default()), Err(Unfit::Hole));
        assert_eq!(rooms.load(ROOM, rows(&history[..2], &history[..2])), Ok(()), "later, when the rows are there");
    }

    #[test]
    fn a_record_of_a_newer_version_keeps_its_room_from_being_loaded() {
        let mut newer = history()[0].encode().to_vec();
        newer[4] ^= 1; // Another schema's fingerprint.
        let mut rooms = Rooms::new(Offset(0));
        rooms.take_tail(&fetched([newer.into()]));
        assert_eq!(rooms.load(ROOM, Rows::default()), Err(Unfit::Unreadable));
        assert_eq!(rooms.load(room(8), Rows::default()), Ok(()), "others are none the worse");
    }

    #[test]
    fn memory_follows_the_rooms_asked_for_of_late() {
        let mut rooms = Rooms::new(Offset(10));
        let max_bytes = 3 * ROOM_BYTES;
        (0..4).for_each(|n| rooms.load(room(n), Rows::default()).unwrap());
        rooms.evict(max_bytes);
        assert!(rooms.get(room(0)).is_none(), "the one loaded first");
        rooms.with(room(1), |_| ());
        rooms.load(room(4), Rows::default()).unwrap();
        rooms.evict(max_bytes);
        assert!(rooms.get(room(2)).is_none(), "the one not asked for since");
        (5..2_000).for_each(|n| rooms.load(room(n), Rows::default()).unwrap());
        rooms.evict(max_bytes);
        assert_eq!(rooms.loaded(), (3, max_bytes));
        assert_eq!(rooms.need(), Offset(10), "no more is relied upon than at take-over");
    }

    #[test]
    fn a_room_goes_once_its_last_event_is_archived_and_is_then_needed_from_the_store() {
        let mut rooms = Rooms::new(Offset(0));
        rooms.load(ROOM, Rows::default()).unwrap();
        let step = rooms.next_step();
        rooms.with(ROOM, |room| room.last = step);
        rooms.append(Offset(5), Backlog { events: 4, bytes: 400 });
        rooms.archived(Offset(4));
        rooms.evict(0);
        assert_eq!((rooms.loaded().0, rooms.backlog().events), (1, 4), "part of a step is not the step");
        rooms.archived(Offset(5));
        rooms.evict(0);
        assert_eq!((rooms.loaded(), rooms.backlog(), rooms.need()), ((0, 0), Backlog::default(), Offset(5)));
    }

    #[test]
    fn a_tail_that_has_been_archived_meanwhile_is_needed_from_the_store() {
        let mut rooms = Rooms::new(Offset(0));
        rooms.take_tail(&fetched(history().iter().map(Event::encode)));
        assert_eq!(rooms.need(), Offset(0));
        rooms.archived(Offset(4));
        assert_eq!((rooms.need(), rooms.tail.len()), (Offset(4), 0));
    }
}
