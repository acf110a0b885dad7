//! What the archiver knows of one partition: the rooms in memory, folded up to the consumed position, and what of it
//! is not in the store yet. Owns how facts become rows (I5), what may be forgotten and when. Pure: loads nothing.
//!
//! A room is in memory when it was touched or asked for lately. Its newest events stay with it: the unarchived ones
//! because nobody else has them, the archived ones until their bucket is whole and moves to the page cache.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::mem;
use std::sync::Arc;

use schemas::event::{EventKind, Hash};
use schemas::receipt::Receipt;
use schemas::room::{Member, RoomInfo};
use schemas::user_event::{RoomEntry, UserEvent};
use schemas::{Event, Offset, Partition, RoomId, Seq, Topic, UserId};
use store::archive::{Batch, Watermarks};
use store::rooms::Listing;

use crate::visible::{self, Range};

/// What the archiver consumes.
pub const TOPICS: [Topic; 3] = [Topic::Events, Topic::UserEvents, Topic::Receipts];

/// Seqs of a bucket, the unit in which archived events are read and kept: a page of the usual 50 touches one or two.
const BUCKET_SEQS: u64 = 128;

/// What a room in memory weighs beside its members and events, bytes; a rough figure.
const ROOM_BYTES: usize = 512;

/// What a standing in memory weighs, bytes; a rough figure.
const MEMBER_BYTES: usize = 128;

/// What an event weighs in memory beside its contents, bytes.
const EVENT_BYTES: usize = size_of::<Event>() + 32;

/// The bucket that a seq is in: its first and last seq.
pub(crate) fn bucket(seq: Seq) -> Range {
    let first = seq.prev().0 / BUCKET_SEQS * BUCKET_SEQS + 1;
    (Seq(first), Seq(first + BUCKET_SEQS - 1))
}

/// What an event weighs in memory, bytes.
pub(crate) fn weight(event: &Event) -> usize {
    let content = match &event.kind {
        EventKind::Message(message) => message.content.size_bytes(),
        EventKind::Created(settings) => settings.name.len() + settings.description.len() + settings.icon.len(),
        EventKind::Changed(patch) => {
            [&patch.name, &patch.handle, &patch.description, &patch.icon].into_iter().flatten().map(String::len).sum()
        }
        EventKind::Member(_) | EventKind::Unknown => 0,
    };
    EVENT_BYTES + content
}

/// A position in each of [`TOPICS`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Positions([Offset; TOPICS.len()]);

impl Positions {
    fn slot(topic: Topic) -> usize {
        match topic {
            Topic::UserEvents => 1,
            Topic::Receipts => 2,
            _ => 0,
        }
    }

    pub(crate) fn of(&self, topic: Topic) -> Offset {
        self.0[Self::slot(topic)]
    }

    pub(crate) fn set(&mut self, topic: Topic, to: Offset) {
        self.0[Self::slot(topic)] = to;
    }
}

/// A decoded record.
pub(crate) enum Fact {
    /// Something has happened in a room.
    Event(Arc<Event>),
    /// A person's list has changed.
    User(UserEvent),
    /// Someone has got further.
    Receipt(Arc<Receipt>),
}

/// A fact that can't stand where it stands: the log breaks a law of ours.
pub(crate) struct Fault {
    /// Where it stands.
    pub offset: Offset,
    /// Which breach.
    pub breach: Breach,
    /// The event.
    pub event: Arc<Event>,
    /// The room's newest event before it.
    pub head: Seq,
}

/// How an event breaks the density of its room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Breach {
    /// Events before it are missing.
    Hole,
    /// Its seq is taken by another event.
    Double,
}

/// What the store knows of the rooms that a poll touches and that are not in memory.
#[derive(Default)]
pub(crate) struct Base {
    /// Rooms; absent where there is none.
    pub rooms: HashMap<RoomId, RoomInfo>,
    /// Standings of those whose membership changes; absent where they were never in.
    pub standings: HashMap<(RoomId, UserId), Member>,
    /// Hashes of events that come once more.
    pub hashes: HashMap<(RoomId, Seq), Hash>,
}

/// What of the store a poll needs beside the rooms.
#[derive(Default)]
pub(crate) struct Needs {
    /// Standings, by person.
    pub standings: HashMap<UserId, HashSet<RoomId>>,
    /// Events that are in the store and come once more: first and last.
    pub replayed: HashMap<RoomId, Range>,
}

/// Facts on their way to the store.
#[derive(Default)]
struct Window {
    events: Vec<Arc<Event>>,
    rooms: Vec<RoomId>,
    members: HashMap<(RoomId, UserId), Member>,
    news: News,
    receipts: Vec<Arc<Receipt>>,
    /// Of events, which also weigh in their rooms.
    event_bytes: usize,
    /// Of everything else.
    other_bytes: usize,
}

/// The part of a window that answers questions until the store does.
#[derive(Default)]
struct News {
    listings: HashMap<UserId, Vec<Listing>>,
    marks: HashMap<(RoomId, UserId), Watermarks>,
}

/// One partition's part of a write. Stays as it is until the store has it, however many attempts it takes.
pub(crate) struct Flight {
    /// Which partition.
    pub partition: Partition,
    /// Its events.
    pub events: Vec<Arc<Event>>,
    rooms: Vec<Arc<RoomInfo>>,
    members: Vec<(RoomId, UserId, Member)>,
    news: News,
    receipts: Vec<Arc<Receipt>>,
    /// Everything before is archived.
    since: Positions,
    positions: Positions,
    event_bytes: usize,
    other_bytes: usize,
}

/// One batch for the store: everything of these flights, with the progress that it makes (I5).
pub(crate) fn batch(flights: &[Arc<Flight>]) -> Batch {
    let mut batch = Batch::default();
    for flight in flights {
        batch.events.extend_from_slice(&flight.events);
        batch.rooms.extend(flight.rooms.iter().map(|info| RoomInfo::clone(info)));
        batch.members.extend_from_slice(&flight.members);
        batch.listings.extend(flight.news.listings.values().flatten());
        batch.receipts.extend_from_slice(&flight.receipts);
        batch.since.extend(TOPICS.map(|topic| (topic, flight.partition, flight.since.of(topic))));
        batch.progress.extend(TOPICS.map(|topic| (topic, flight.partition, flight.positions.of(topic))));
    }
    batch
}

/// A room in memory.
struct Room {
    /// `None`: there is no such room yet.
    info: Option<Arc<RoomInfo>>,
    /// Standings that are known, also those of people who were never in.
    members: HashMap<UserId, Option<Member>>,
    /// The newest events, dense up to the head; all unarchived ones are among them.
    recent: VecDeque<Arc<Event>>,
    /// Everything up to here is in the store.
    archived: Seq,
    /// Its row is to be written: it is in the open window.
    dirty: bool,
    /// A poll under way relies on what is known here.
    busy: bool,
    /// When it was last used, in ticks of the partition.
    used: u64,
    bytes: usize,
}

impl Room {
    fn new(info: Option<Arc<RoomInfo>>) -> Self {
        let archived = info.as_ref().map_or(Seq::ZERO, |info| info.head_seq);
        Self {
            info,
            members: HashMap::new(),
            recent: VecDeque::new(),
            archived,
            dirty: false,
            busy: false,
            used: 0,
            bytes: ROOM_BYTES,
        }
    }

    fn head(&self) -> Seq {
        self.info.as_ref().map_or(Seq::ZERO, |info| info.head_seq)
    }

    fn recent(&self, seq: Seq) -> Option<&Arc<Event>> {
        let first = self.recent.front()?.seq;
        self.recent.get(usize::try_from(seq.0.checked_sub(first.0)?).ok()?)
    }

    /// The hash of an event at or below the head, where memory has it.
    fn hash(&self, seq: Seq) -> Option<Hash> {
        match &self.info {
            Some(info) if info.head_seq == seq => Some(info.hash),
            _ => self.recent(seq).map(|event| event.hash),
        }
    }

    fn can_go(&self) -> bool {
        !self.busy && self.archived == self.head()
    }

    /// Takes whole archived buckets out of memory and hands them over; the part of a bucket that was in memory from
    /// its middle on is forgotten.
    fn hand_over(&mut self, whole: &mut Vec<Vec<Arc<Event>>>) -> usize {
        let mut freed = 0;
        while let Some(seq) = self.recent.front().map(|event| event.seq) {
            let (first, last) = bucket(seq);
            if last > self.archived || self.busy {
                break;
            }
            #[expect(clippy::cast_possible_truncation, reason = "at most a bucket")]
            let events: Vec<_> = self.recent.drain(..=(last.0 - seq.0) as usize).collect();
            freed += events.iter().map(|event| weight(event)).sum::<usize>();
            if first == seq {
                whole.push(events);
            }
        }
        self.bytes -= freed;
        freed
    }
}

/// What memory knows of a room and a person in it; the outer `None` is "ask the store".
pub(crate) struct Known {
    /// Changes when something was forgotten: what was read from the store before may be older than what was.
    pub stamp: u64,
    /// The room.
    pub info: Option<Option<Arc<RoomInfo>>>,
    /// The standing.
    pub member: Option<Option<Member>>,
    /// Steps of receipts that the store may not have yet.
    pub marks: Watermarks,
}

/// A partition that this archiver owns.
pub(crate) struct Tail {
    consumed: Positions,
    archived: Positions,
    rooms: HashMap<RoomId, Room>,
    window: Window,
    flying: Option<Arc<Flight>>,
    stamp: u64,
    tick: u64,
    bytes: usize,
    budget_bytes: usize,
    shrink_at_bytes: usize,
}

impl Tail {
    /// A partition whose archive stands at `archived`. `stamp` must lie above all that an earlier tail has had.
    pub(crate) fn new(archived: Positions, stamp: u64, budget_bytes: usize) -> Self {
        Self {
            consumed: archived,
            archived,
            rooms: HashMap::new(),
            window: Window::default(),
            flying: None,
            stamp,
            tick: 0,
            bytes: 0,
            budget_bytes,
            shrink_at_bytes: budget_bytes,
        }
    }

    /// Up to where everything is known.
    pub(crate) fn consumed(&self) -> Positions {
        self.consumed
    }

    /// Up to where everything is in the store.
    pub(crate) fn archived(&self) -> Positions {
        self.archived
    }

    /// Events and bytes that wait for a write to begin.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        (self.window.events.len(), self.window.event_bytes + self.window.other_bytes)
    }

    /// Events and bytes that are not in the store.
    pub(crate) fn unarchived(&self) -> (usize, usize) {
        let (events, bytes) = self.waiting();
        let flying = self.flying.as_ref();
        (
            events + flying.map_or(0, |flight| flight.events.len()),
            bytes + flying.map_or(0, |flight| flight.event_bytes + flight.other_bytes),
        )
    }

    /// Collects the rooms of these facts that are not in memory, and holds on to the others.
    pub(crate) fn cold(&mut self, facts: &[(Offset, Fact)], cold: &mut HashSet<RoomId>) {
        for (_, fact) in facts {
            if let Fact::Event(event) = fact {
                match self.rooms.get_mut(&event.room) {
                    Some(room) => room.busy = true,
                    None => {
                        cold.insert(event.room);
                    }
                }
            }
        }
    }

    /// Collects what else these facts need of the store, once the cold rooms are in `base`.
    pub(crate) fn needs(&mut self, facts: &[(Offset, Fact)], base: &Base, needs: &mut Needs) {
        for (_, fact) in facts {
            let Fact::Event(event) = fact else { continue };
            let mut room = self.rooms.get_mut(&event.room);
            if let Some(room) = &mut room {
                room.busy = true; // a reader may have brought it in meanwhile
            }
            let head = match &room {
                Some(room) => room.head(),
                None => base.rooms.get(&event.room).map_or(Seq::ZERO, |info| info.head_seq),
            };
            if head == Seq::ZERO {
                continue;
            }
            if event.seq < head && room.as_ref().is_none_or(|room| room.recent(event.seq).is_none()) {
                let range = needs.replayed.entry(event.room).or_insert((event.seq, event.seq));
                *range = (range.0.min(event.seq), range.1.max(event.seq));
            }
            if let EventKind::Member(change) = &event.kind
                && room.is_none_or(|room| !room.members.contains_key(&change.user))
            {
                needs.standings.entry(change.user).or_default().insert(event.room);
            }
        }
    }

    /// Folds what was consumed up to `next`. What breaks a law is left out and handed back.
    pub(crate) fn fold(
        &mut self,
        topic: Topic,
        next: Offset,
        facts: Vec<(Offset, Fact)>,
        base: &mut Base,
    ) -> Vec<Fault> {
        self.tick += 1;
        let mut faults = Vec::new();
        for (offset, fact) in facts {
            match fact {
                Fact::Event(event) => {
                    if let Err((breach, head)) = self.fold_event(&event, base) {
                        faults.push(Fault { offset, breach, event, head });
                    }
                }
                Fact::User(event) => self.window.fold_user(&event),
                Fact::Receipt(receipt) => self.window.fold_receipt(receipt),
            }
        }
        self.consumed.set(topic, next);
        self.shrink();
        faults
    }

    fn fold_event(&mut self, event: &Arc<Event>, base: &mut Base) -> Result<(), (Breach, Seq)> {
        let room = match self.rooms.entry(event.room) {
            Entry::Occupied(room) => room.into_mut(),
            Entry::Vacant(place) => {
                self.bytes += ROOM_BYTES;
                place.insert(Room::new(base.rooms.remove(&event.room).map(Arc::new)))
            }
        };
        room.busy = false;
        room.used = self.tick;
        let (head, bytes) = (room.head(), weight(event));
        let is_new = event.seq > head;
        if is_new {
            let begins = room.info.is_some() || matches!(event.kind, EventKind::Created(_));
            if event.seq != head.next() || !begins {
                return Err((Breach::Hole, head));
            }
            // Nobody but a reader holds the info now and then: mostly this clones nothing.
            let Some(info) = RoomInfo::fold(room.info.take().map(Arc::unwrap_or_clone), event) else {
                return Err((Breach::Hole, head));
            };
            room.info = Some(Arc::new(info));
            room.recent.push_back(Arc::clone(event));
            room.bytes += bytes;
            self.bytes += bytes;
        } else {
            // A replay: written once more, for rows of one write may have arrived without the others (I5).
            let known = room.hash(event.seq).or_else(|| base.hashes.get(&(event.room, event.seq)).copied());
            if known.is_some_and(|hash| hash != event.hash) {
                return Err((Breach::Double, head));
            }
        }
        if let (EventKind::Member(change), Some(info)) = (&event.kind, &mut room.info) {
            let before = match room.members.remove(&change.user) {
                Some(known) => known,
                None => {
                    room.bytes += MEMBER_BYTES;
                    self.bytes += MEMBER_BYTES;
                    base.standings.remove(&(event.room, change.user))
                }
            };
            // The standing may be ahead of the room, if it came from a write of which the room's row was lost.
            let was_in = before.as_ref().is_some_and(|member| visible::is_in_at(member, event.seq.prev()));
            let after = Member::fold(before, event.seq, *change, info.settings.history);
            if is_new {
                let is_in = visible::is_in_at(&after, event.seq);
                let info = Arc::make_mut(info);
                info.member_count = (info.member_count + u32::from(is_in)).saturating_sub(u32::from(was_in));
            }
            self.window.members.insert((event.room, change.user), after.clone());
            room.members.insert(change.user, Some(after));
        }
        if is_new && !mem::replace(&mut room.dirty, true) {
            self.window.rooms.push(event.room);
        }
        self.window.events.push(Arc::clone(event));
        self.window.event_bytes += bytes;
        Ok(())
    }

    /// What the next write takes of this partition: what an unfinished write had, else everything consumed so far.
    pub(crate) fn flight(&mut self, partition: Partition) -> Option<Arc<Flight>> {
        if self.flying.is_none() && self.consumed != self.archived {
            let window = mem::take(&mut self.window);
            let mut rooms = Vec::with_capacity(window.rooms.len());
            for id in window.rooms {
                if let Some(room) = self.rooms.get_mut(&id) {
                    room.dirty = false;
                    rooms.extend(room.info.clone());
                }
            }
            self.flying = Some(Arc::new(Flight {
                partition,
                events: window.events,
                rooms,
                members: window.members.into_iter().map(|((room, user), member)| (room, user, member)).collect(),
                news: window.news,
                receipts: window.receipts,
                since: self.archived,
                positions: self.consumed,
                event_bytes: window.event_bytes,
                other_bytes: window.other_bytes,
            }));
        }
        self.flying.clone()
    }

    /// The store has this flight. Brings the whole buckets that are for the page cache from now on.
    pub(crate) fn landed(&mut self, flight: &Arc<Flight>) -> Vec<Vec<Arc<Event>>> {
        let mut whole = Vec::new();
        if !self.flying.as_ref().is_some_and(|flying| Arc::ptr_eq(flying, flight)) {
            return whole; // of an earlier ownership
        }
        self.flying = None;
        self.archived = flight.positions;
        for info in &flight.rooms {
            if let Some(room) = self.rooms.get_mut(&info.id) {
                room.archived = room.archived.max(info.head_seq);
                self.bytes -= room.hand_over(&mut whole);
            }
        }
        // What is archived may be forgotten from now on.
        self.shrink_at_bytes = self.budget_bytes;
        self.shrink();
        whole
    }

    /// What memory knows of a room and a person in it.
    pub(crate) fn known(&mut self, room: RoomId, user: UserId) -> Known {
        self.tick += 1;
        let mut marks = Watermarks::default();
        for news in self.flying.iter().map(|flight| &flight.news).chain([&self.window.news]) {
            if let Some(newer) = news.marks.get(&(room, user)) {
                raise(&mut marks, newer);
            }
        }
        let known = self.rooms.get_mut(&room);
        if let Some(room) = known {
            room.used = self.tick;
            Known { stamp: self.stamp, info: Some(room.info.clone()), member: room.members.get(&user).cloned(), marks }
        } else {
            Known { stamp: self.stamp, info: None, member: None, marks }
        }
    }

    /// Keeps what was read from the store after `stamp` was current. It is as new as memory then: had the room been
    /// touched meanwhile, it would be here, unless it was forgotten again, which changes the stamp.
    pub(crate) fn learn(&mut self, stamp: u64, info: &Arc<RoomInfo>, user: UserId, member: Option<&Member>) {
        if stamp != self.stamp {
            return;
        }
        let tick = self.tick;
        let room = self.rooms.entry(info.id).or_insert_with(|| {
            self.bytes += ROOM_BYTES;
            Room { used: tick, ..Room::new(Some(Arc::clone(info))) }
        });
        if let Entry::Vacant(place) = room.members.entry(user) {
            place.insert(member.cloned());
            room.bytes += MEMBER_BYTES;
            self.bytes += MEMBER_BYTES;
        }
        self.shrink();
    }

    /// Those events of these ranges that are in memory, and the seq up to which the rest is in the store; `head` is
    /// the last seq of interest.
    pub(crate) fn recent(&self, room: RoomId, head: Seq, ranges: &[Range]) -> (Seq, Vec<Arc<Event>>) {
        let Some(room) = self.rooms.get(&room) else { return (head, Vec::new()) };
        let Some(start) = room.recent.front().map(|event| event.seq) else { return (head, Vec::new()) };
        let seqs = ranges.iter().flat_map(|(first, last)| first.0.max(start.0)..=last.0);
        (start.prev().min(head), seqs.filter_map(|seq| room.recent(Seq(seq)).cloned()).collect())
    }

    /// Changes of a person's list that the store may not have yet, older ones first.
    pub(crate) fn listings(&self, user: UserId) -> Vec<Listing> {
        let flying = self.flying.iter().map(|flight| &flight.news);
        flying.chain([&self.window.news]).filter_map(|news| news.listings.get(&user)).flatten().copied().collect()
    }

    fn cached_bytes(&self) -> usize {
        let flying = self.flying.as_ref().map_or(0, |flight| flight.event_bytes);
        self.bytes.saturating_sub(self.window.event_bytes + flying)
    }

    /// I9: forgets what was used least lately, a quarter of the budget at a time, so that a search is paid for by
    /// many insertions.
    fn shrink(&mut self) {
        if self.cached_bytes() <= self.shrink_at_bytes {
            return;
        }
        let (goal, before) = (self.budget_bytes - self.budget_bytes / 4, self.bytes);
        let mut idle: Vec<_> =
            self.rooms.iter().filter(|(_, room)| room.can_go()).map(|(id, room)| (room.used, *id)).collect();
        idle.sort_unstable();
        for (_, id) in idle {
            if self.cached_bytes() <= goal {
                break;
            }
            self.bytes -= self.rooms.remove(&id).map_or(0, |room| room.bytes);
        }
        if self.cached_bytes() > goal {
            // What is left is in use, but archived standings can be read again.
            for room in self.rooms.values_mut().filter(|room| !room.busy) {
                let (archived, known) = (room.archived, room.members.len());
                room.members.retain(|_, member| member.as_ref().is_some_and(|member| member.version > archived));
                let freed = (known - room.members.len()) * MEMBER_BYTES;
                room.bytes -= freed;
                self.bytes -= freed;
            }
        }
        if self.bytes < before {
            self.stamp += 1;
        }
        self.shrink_at_bytes = self.budget_bytes.max(self.cached_bytes() + self.budget_bytes / 4);
    }
}

impl Window {
    fn fold_user(&mut self, event: &UserEvent) {
        let new = Listing {
            user: event.user,
            room: event.room,
            version: event.seq,
            listed: event.entry == RoomEntry::Joined,
        };
        let listings = self.news.listings.entry(event.user).or_default();
        match listings.iter_mut().find(|listing| listing.room == event.room) {
            Some(listing) if listing.version < new.version => *listing = new,
            Some(_) => {}
            None => {
                listings.push(new);
                self.other_bytes += 2 * size_of::<Listing>();
            }
        }
    }

    /// Receipts are maxima: a step that raises none in this window tells nothing.
    fn fold_receipt(&mut self, receipt: Arc<Receipt>) {
        let mark = self.news.marks.entry((receipt.room, receipt.user)).or_default();
        if receipt.delivered_seq > mark.delivered_seq || receipt.read_seq > mark.read_seq {
            let step = Watermarks { delivered_seq: receipt.delivered_seq, read_seq: receipt.read_seq, at: receipt.at };
            raise(mark, &step);
            self.receipts.push(receipt);
            self.other_bytes += 2 * size_of::<Receipt>();
        }
    }
}

/// Raises watermarks to the larger of both.
pub(crate) fn raise(mark: &mut Watermarks, other: &Watermarks) {
    mark.delivered_seq = mark.delivered_seq.max(other.delivered_seq);
    mark.read_seq = mark.read_seq.max(other.read_seq);
    mark.at = mark.at.max(other.at);
}

#[cfg(test)]
mod tests {
    use schemas::message::{MemberChange, Membership, Role, RoomHistory, RoomKind, RoomVisibility, Settings};
    use schemas::{CommandId, EventId, Timestamp};

    use super::*;

    const HERE: Partition = Partition(0);

    fn room(n: u128) -> RoomId {
        RoomId(uuid::Uuid::from_u128(n))
    }

    fn event(room: RoomId, seq: u64, kind: EventKind) -> Fact {
        Fact::Event(Arc::new(Event {
            room,
            seq: Seq(seq),
            id: EventId::NIL,
            at: Timestamp(0),
            by: UserId::NIL,
            command: CommandId::NIL,
            reply_to: None,
            received_us: 0,
            decided_us: 0,
            salt: [0; 16],
            hash: Event::chain(&[0; 32], Seq(seq), &[0; 16], &kind),
            kind,
        }))
    }

    fn created() -> EventKind {
        EventKind::Created(Settings {
            kind: RoomKind::Group,
            name: String::new(),
            handle: None,
            description: String::new(),
            icon: String::new(),
            visibility: RoomVisibility::Private,
            history: RoomHistory::All,
        })
    }

    fn joined() -> EventKind {
        EventKind::Member(Membership { user: UserId::NIL, change: MemberChange::Joined, role: Role::Owner })
    }

    /// Folds and archives a room of two events.
    fn archive(tail: &mut Tail, id: RoomId) {
        let facts = vec![(Offset(0), event(id, 1, created())), (Offset(1), event(id, 2, joined()))];
        let next = Offset(tail.consumed().of(Topic::Events).0 + 2);
        assert!(tail.fold(Topic::Events, next, facts, &mut Base::default()).is_empty());
        let flight = tail.flight(HERE).unwrap();
        tail.landed(&flight);
    }

    #[test]
    fn what_a_poll_relies_on_is_not_forgotten_while_it_loads() {
        let mut tail = Tail::new(Positions::default(), 0, 3_000);
        archive(&mut tail, room(1));
        let facts = vec![(Offset(9), event(room(1), 3, EventKind::Unknown))];
        let mut cold = HashSet::new();
        tail.cold(&facts, &mut cold);
        assert!(cold.is_empty());
        // Readers bring in more than there is room for.
        let info = RoomInfo { id: room(1), ..RoomInfo::clone(&tail.rooms[&room(1)].info.clone().unwrap()) };
        for n in 2..20 {
            let stamp = tail.known(room(n), UserId::NIL).stamp;
            tail.learn(stamp, &Arc::new(RoomInfo { id: room(n), ..info.clone() }), UserId::NIL, None);
        }
        assert!(tail.known(room(2), UserId::NIL).info.is_none());
        assert!(tail.fold(Topic::Events, Offset(10), facts, &mut Base::default()).is_empty());
    }

    #[test]
    fn what_was_read_before_something_was_forgotten_is_not_kept() {
        let mut tail = Tail::new(Positions::default(), 0, 3_000);
        let old = Arc::new(
            RoomInfo::fold(
                None,
                match &event(room(1), 1, created()) {
                    Fact::Event(event) => event,
                    _ => unreachable!("made above"),
                },
            )
            .unwrap(),
        );
        let stamp = tail.known(room(1), UserId::NIL).stamp; // a reader asks the store …
        for n in 1..20 {
            archive(&mut tail, room(n)); // … while the room gets another event and is forgotten
        }
        assert!(tail.known(room(1), UserId::NIL).info.is_none());
        tail.learn(stamp, &old, UserId::NIL, None);
        assert!(tail.known(room(1), UserId::NIL).info.is_none());
    }

    #[test]
    fn a_bucket_is_handed_over_once_it_is_whole_and_archived() {
        let mut tail = Tail::new(Positions::default(), 0, 1 << 20);
        let fold = |tail: &mut Tail, seqs: std::ops::RangeInclusive<u64>| {
            let next = Offset(*seqs.end());
            let facts = seqs
                .map(|seq| (Offset(seq), event(room(1), seq, if seq == 1 { created() } else { EventKind::Unknown })));
            assert!(tail.fold(Topic::Events, next, facts.collect(), &mut Base::default()).is_empty());
        };
        fold(&mut tail, 1..=100);
        let first = tail.flight(HERE).unwrap();
        fold(&mut tail, 101..=130); // consumed while the first write is under way
        assert!(tail.landed(&first).is_empty());
        assert_eq!(tail.recent(room(1), Seq(130), &[(Seq(1), Seq(130))]).0, Seq(0));
        let second = tail.flight(HERE).unwrap();
        assert_eq!(batch(&[Arc::clone(&second)]).events.len(), 30);
        assert!(tail.landed(&first).is_empty()); // not the one under way
        assert_eq!(tail.unarchived().0, 30);
        assert_eq!(tail.landed(&second)[0].len(), 128);
        let (archived, recent) = tail.recent(room(1), Seq(130), &[(Seq(1), Seq(130))]);
        assert_eq!((archived, recent.len()), (Seq(128), 2));
        assert_eq!(tail.unarchived(), (0, 0));
    }
}
