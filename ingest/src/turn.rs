//! One turn of a partition: commands in their order become one transaction's records, each result folded at once (I1,
//! I2). Pure but for the clock and the randomness handed in. What was decided counts only once it is committed: after
//! a failed commit the rooms are to be dropped.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use schemas::Record as _;
use schemas::ids::uuid_v7;
use schemas::outcome::{Done, Outcome, RejectCode, Rejected};
use schemas::room::RoomState;
use schemas::user_event::UserEvent;
use schemas::{
    Clock, Command, CommandId, Entropy, Event, EventId, EventKind, Partition, RoomId, Seq, Timestamp, Topic, UserId,
};
use store::archive::Acted;
use stream::Record;

use crate::config::Config;
use crate::decide::{self, Decision, Rejection};
use crate::dedup::Verdict;
use crate::metrics::Metrics;
use crate::rooms::{Backlog, Room, Rooms, Step};

/// A command's identity in the store.
pub type Key = (RoomId, UserId, CommandId);

/// What the store said of ids at or below their floor; a key that it could not be asked about is absent (I4).
pub type LookedUp = HashMap<Key, Option<Acted>>;

/// A decided event does not follow upon its room's state: that state can't be trusted any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// What a turn relies on from outside.
pub struct Surroundings<'a> {
    /// Which partition.
    pub partition: Partition,
    /// How many there are.
    pub partitions: u32,
    /// Time.
    pub clock: &'a dyn Clock,
    /// Bounds.
    pub config: &'a Config,
    /// What is counted.
    pub metrics: &'a Metrics,
}

/// A turn under way.
pub struct Turn<'a> {
    around: &'a Surroundings<'a>,
    rooms: &'a mut Rooms,
    looked_up: &'a LookedUp,
    random: &'a mut Random,
    step: Step,
    now: Timestamp,
    decided: Decided,
}

/// What a turn has made.
#[derive(Default)]
pub struct Decided {
    /// Records in their order.
    pub records: Vec<(Topic, Partition, Record)>,
    /// What the archive lacks once they are committed.
    pub backlog: Backlog,
    /// When the edges received the commands, µs since 1970.
    pub received_us: Vec<i64>,
    /// People of whom many ids are kept: some may go after the commit.
    pub crowded: HashSet<(RoomId, UserId)>,
}

impl<'a> Turn<'a> {
    /// Begins a turn.
    pub fn new(
        around: &'a Surroundings<'a>,
        rooms: &'a mut Rooms,
        looked_up: &'a LookedUp,
        random: &'a mut Random,
    ) -> Self {
        let step = rooms.next_step();
        Self { around, rooms, looked_up, random, step, now: around.clock.now(), decided: Decided::default() }
    }

    /// What the turn has made.
    pub fn end(self) -> Decided {
        self.decided
    }

    /// Decides the next command.
    ///
    /// # Errors
    /// The turn and the rooms are to be dropped.
    pub fn take(&mut self, command: Command) -> Result<(), Broken> {
        let caller = Caller::of(&command);
        self.decided.received_us.push(caller.received_us);
        let answer = match decide::admit(&command, self.now) {
            Ok(()) => self.settle(&caller, command)?,
            Err(rejection) => Answer::Rejected(rejection),
        };
        let metrics = self.around.metrics;
        match answer {
            Answer::Accepted => metrics.accepted.inc(),
            Answer::Done(done) => {
                metrics.done.inc();
                self.outcome(&caller, Some(done), None);
            }
            Answer::Rejected(rejection) => {
                metrics.rejected(rejection.code).inc();
                let Rejection { code, detail, retry_after_ms } = rejection;
                self.outcome(&caller, None, Some(Rejected { code, detail: detail.to_owned(), retry_after_ms }));
            }
        }
        metrics.decided.since(caller.received_us, self.around.clock.micros());
        Ok(())
    }

    fn settle(&mut self, caller: &Caller, command: Command) -> Result<Answer, Broken> {
        let Some(room) = self.rooms.get(command.room) else {
            return Ok(Answer::Rejected(self.unavailable("the room could not be read")));
        };
        let verdict = match room.dedup.check(caller.user, caller.id) {
            Verdict::Ask => match self.looked_up.get(&caller.key()) {
                Some(Some(acted)) => Verdict::Repeat(*acted),
                Some(None) => Verdict::New,
                None => Verdict::Ask,
            },
            verdict => verdict,
        };
        match verdict {
            Verdict::New => {}
            Verdict::Ask => {
                return Ok(Answer::Rejected(self.unavailable("it could not be read whether this was done before")));
            }
            // I4: the first outcome, whatever the body is now.
            Verdict::Repeat(Acted { seq, id, at }) => {
                self.around.metrics.repeats.inc();
                return Ok(Answer::Done(Done { seq, id, at }));
            }
        }
        match decide::decide(room.state.as_ref(), command.room, command.user, command.action) {
            Err(rejection) => Ok(Answer::Rejected(rejection)),
            Ok(Decision::Done) => Ok(Answer::Done(Done { seq: Seq::ZERO, id: EventId::NIL, at: self.now })),
            Ok(Decision::Act { .. }) if self.is_full() => {
                Ok(Answer::Rejected(self.unavailable("the archive is behind")))
            }
            Ok(Decision::Act { first, then }) => self.act(caller, first, then).map(|()| Answer::Accepted),
        }
    }

    /// Gives the events their places, folds them, and writes them down.
    fn act(&mut self, caller: &Caller, first: EventKind, then: Vec<EventKind>) -> Result<(), Broken> {
        let Self { around, rooms, random, step, now, decided, .. } = self;
        let kept = rooms.with(caller.room, |room| {
            let acted = Self::happen(around, random, *now, decided, caller, room, first, true)?;
            for kind in then {
                Self::happen(around, random, *now, decided, caller, room, kind, false)?;
            }
            room.last = *step;
            Ok(room.dedup.accept(caller.user, caller.id, acted, *step))
        });
        if kept.ok_or(Broken)?? >= 2 * around.config.ids_kept {
            decided.crowded.insert((caller.room, caller.user));
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of self that a borrowed room leaves free")]
    fn happen(
        around: &Surroundings<'_>,
        random: &mut Random,
        now: Timestamp,
        decided: &mut Decided,
        caller: &Caller,
        room: &mut Room,
        kind: EventKind,
        is_first: bool,
    ) -> Result<Acted, Broken> {
        let (head, hash, last_at) = match &room.state {
            Some(RoomState { info, .. }) => (info.head_seq, info.hash, info.last_activity_at),
            None => (Seq::ZERO, [0; 32], now),
        };
        let (seq, salt) = (head.next(), random.take());
        let event = Event {
            room: caller.room,
            seq,
            id: if is_first { caller.event_id } else { EventId(uuid_v7(now.0, random.take())) },
            // A clock that was set back must not make a later message look earlier.
            at: now.max(last_at),
            by: caller.user,
            command: caller.id,
            reply_to: is_first.then_some(caller.reply_to),
            received_us: caller.received_us,
            decided_us: around.clock.micros(),
            salt,
            hash: Event::chain(&hash, seq, &salt, &kind),
            kind,
        };
        room.state = Some(RoomState::fold(room.state.take(), &event).ok_or(Broken)?);
        decided.event(around, &event);
        Ok(Acted { seq, id: event.id, at: event.at })
    }

    fn outcome(&mut self, caller: &Caller, done: Option<Done>, rejected: Option<Rejected>) {
        let outcome = Outcome {
            room: caller.room,
            user: caller.user,
            command: caller.id,
            reply_to: caller.reply_to,
            received_us: caller.received_us,
            done,
            rejected,
        };
        let record = Record { key: *caller.room.as_bytes(), value: outcome.encode() };
        self.decided.records.push((Topic::Events, self.around.partition, record));
    }

    /// I3: what the archive lacks is bounded, for it must be read at the next take-over.
    fn is_full(&self) -> bool {
        let (waiting, new) = (self.rooms.backlog(), self.decided.backlog);
        waiting.events + new.events >= self.around.config.unarchived_max_events
            || waiting.bytes + new.bytes >= self.around.config.unarchived_max_bytes
    }

    fn unavailable(&self, detail: &'static str) -> Rejection {
        let retry_after_ms = Some(self.around.config.retry_after_ms);
        Rejection { code: RejectCode::Unavailable, detail, retry_after_ms }
    }
}

impl Decided {
    fn event(&mut self, around: &Surroundings<'_>, event: &Event) {
        let value = event.encode();
        self.backlog.events += 1;
        self.backlog.bytes += value.len() as u64;
        self.records.push((Topic::Events, around.partition, Record { key: *event.room.as_bytes(), value }));
        if let Some((user, entry)) = decide::list_entry(&event.kind) {
            let user_event = UserEvent { user, room: event.room, seq: event.seq, at: event.at, entry };
            let partition = Partition::of(user.as_bytes(), around.partitions);
            let record = Record { key: *user.as_bytes(), value: user_event.encode() };
            self.records.push((Topic::UserEvents, partition, record));
        }
    }
}

/// All of a command but its action.
struct Caller {
    id: CommandId,
    room: RoomId,
    user: UserId,
    event_id: EventId,
    reply_to: schemas::ReplyTo,
    received_us: i64,
}

impl Caller {
    fn of(command: &Command) -> Self {
        let &Command { id, room, user, event_id, reply_to, received_us, .. } = command;
        Self { id, room, user, event_id, reply_to, received_us }
    }

    fn key(&self) -> Key {
        (self.room, self.user, self.id)
    }
}

enum Answer {
    Accepted,
    Done(Done),
    Rejected(Rejection),
}

/// Randomness for salts and ids, fetched in advance: one call for many events.
pub struct Random {
    entropy: Arc<dyn Entropy>,
    pool: Box<[u8; Self::POOL_BYTES]>,
    used: usize,
}

impl Random {
    /// Enough for 256 messages.
    const POOL_BYTES: usize = 4_096;

    /// An empty pool.
    pub fn new(entropy: Arc<dyn Entropy>) -> Self {
        Self { entropy, pool: Box::new([0; Self::POOL_BYTES]), used: Self::POOL_BYTES }
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        if self.used + N > Self::POOL_BYTES {
            self.entropy.fill(self.pool.as_mut_slice());
            self.used = 0;
        }
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.pool[self.used..self.used + N]);
        self.used += N;
        bytes
    }
}
