//! One socket as the hub and its session share it: the frames that wait to be written, its place in each of its rooms,
//! and its commands in flight. Bounded in bytes: what does not fit is not queued, the room is `Behind` instead (I7,
//! I9). Awaits nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use schemas::frame::{Control, EventView};
use schemas::limits::{OUTBOX_MAX_BYTES, TOKEN_WARNING};
use schemas::message::Membership;
use schemas::outcome::{Done, Outcome, RejectCode};
use schemas::{
    Command, CommandId, DeviceId, Event, EventId, EventKind, Offset, RoomId, Seq, SessionId, Timestamp, UserId,
};
use tokio::sync::Notify;

use super::splice::{Offer, RoomCursor};
use super::{Gate, wire};
use crate::hub::Hub;
use crate::limits::Bucket;

/// Commands of one socket whose outcome is not known yet; more are refused as `rate_limited`.
const IN_FLIGHT_MAX: usize = 1_000;

/// Their records that are kept to be published again, bytes: what an outbox may hold. Beyond it a command whose outcome
/// is missed stays unknown until its deadline (I9).
const IN_FLIGHT_MAX_BYTES: usize = OUTBOX_MAX_BYTES;

/// Frames that a queue keeps room for when it is empty: none of a busy socket's buffers outlives its rush.
const KEPT_FRAMES: usize = 4;

/// One socket.
pub struct Socket {
    /// This socket.
    pub session: SessionId,
    /// Whose.
    pub user: UserId,
    /// Of which device.
    pub device: DeviceId,
    /// The only rooms that it wants, if it has said so, in order.
    only: Option<Box<[RoomId]>>,
    /// Seconds on the edge's monotonic clock when the client was last heard.
    heard_s: AtomicU32,
    /// Second of the last sign of life.
    signalled_s: AtomicU32,
    wake: Notify,
    /// What is left of the frames that it may send. Apart from the state, which is to be had while it is locked: whoever
    /// is shut out for too many frames has this socket closed.
    allowance: Mutex<Option<Bucket>>,
    state: Mutex<State>,
}

/// What changes, under one short lock that is never held over an await.
#[derive(Default)]
struct State {
    frames: VecDeque<Bytes>,
    bytes: usize,
    /// When the command behind the oldest waiting event was received, µs; 0: none waits.
    oldest_us: i64,
    rooms: HashMap<RoomId, RoomCursor>,
    /// Rooms that this person has left while connected, with the last event they were sent.
    ended: HashMap<RoomId, Seq>,
    /// In the order of sending.
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: usize,
    /// `accepted` frames whose place has not come yet.
    held: Vec<Held>,
    joined: Vec<(RoomId, Seq)>,
    relist: bool,
    behind: bool,
    /// Receipts for rooms whose stream has not begun; `true`: read.
    early_receipts: Vec<(RoomId, Seq, bool)>,
    /// Holds a frame that woke nobody, and will be nudged.
    drowsy: bool,
    closing: Option<(u16, Option<u32>)>,
    /// To be closed like this once no outcome is waited for.
    leaving: Option<(u16, Option<u32>)>,
    live: bool,
    expires_at: Timestamp,
    /// Whether the end of the token has been announced.
    warned: bool,
}

/// Receipts of a socket that wait for their rooms' streams; they are maxima, and a later one says as much.
const EARLY_RECEIPTS_MAX: usize = 1_000;

struct InFlight {
    command: CommandId,
    /// The id that its event will have, if this attempt makes one.
    event: EventId,
    room: RoomId,
    deadline: Timestamp,
    /// As it was published, where there was room to keep it.
    record: Option<Bytes>,
    /// Of its last copy: a rejection of an earlier one says nothing yet.
    received_us: i64,
}

impl InFlight {
    fn bytes(&self) -> usize {
        self.record.as_ref().map_or(0, Bytes::len)
    }
}

struct Held {
    room: RoomId,
    seq: Seq,
    command: CommandId,
    frame: Bytes,
}

/// An event in the forms in which sockets get it, each encoded at most once and then shared.
pub struct Shared<'a> {
    event: &'a Arc<Event>,
    public: Option<Bytes>,
    own: Option<Bytes>,
}

impl<'a> Shared<'a> {
    /// Nothing is encoded yet.
    pub fn new(event: &'a Arc<Event>) -> Self {
        Self { event, public: None, own: None }
    }

    /// The event.
    pub fn event(&self) -> &'a Arc<Event> {
        self.event
    }

    fn frame_for(&mut self, user: UserId) -> Bytes {
        let event = self.event;
        let (form, viewer) = if user == event.by { (&mut self.own, Some(user)) } else { (&mut self.public, None) };
        form.get_or_insert_with(|| wire::event(&EventView::of(event, viewer))).clone()
    }

    fn accepted(&self) -> Bytes {
        wire::control(Control::Accepted {
            client_msg_id: self.event.command,
            room: self.event.room,
            seq: self.event.seq,
            id: self.event.id,
            sent_at: self.event.at,
            duplicate: false,
        })
    }
}

impl Socket {
    /// A socket without rooms.
    pub fn new(
        session: SessionId,
        user: UserId,
        device: DeviceId,
        only: Option<&[RoomId]>,
        expires_at: Timestamp,
    ) -> Self {
        Self {
            session,
            user,
            device,
            only: only.map(|rooms| {
                let mut rooms: Box<[RoomId]> = rooms.into();
                rooms.sort_unstable();
                rooms
            }),
            heard_s: AtomicU32::new(0),
            signalled_s: AtomicU32::new(u32::MAX),
            wake: Notify::new(),
            allowance: Mutex::default(),
            state: Mutex::new(State { expires_at, ..State::default() }),
        }
    }

    /// Whether this room is one of those that the socket follows.
    pub fn wants(&self, room: RoomId) -> bool {
        self.only.as_ref().is_none_or(|only| only.binary_search(&room).is_ok())
    }

    /// Waits until there is something to write or to do.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Takes one frame from what the client may send; else how many ms to wait.
    pub fn allow_frame(&self, gate: &dyn Gate) -> Result<(), u32> {
        gate.allow_frame(self.user, &mut self.allowance.lock())
    }

    /// The client was heard now.
    pub fn heard(&self, elapsed_s: u32) {
        self.heard_s.store(elapsed_s, Ordering::Relaxed);
    }

    /// When the client was last heard, seconds.
    pub fn heard_s(&self) -> u32 {
        self.heard_s.load(Ordering::Relaxed)
    }

    /// When the access token ends.
    pub fn expires_at(&self) -> Timestamp {
        self.state.lock().expires_at
    }

    /// A token has come; what it says of its end counts from now on.
    pub fn renew(&self, expires_at: Timestamp) {
        let mut state = self.state.lock();
        if state.expires_at != expires_at {
            state.expires_at = expires_at;
            state.warned = false;
        }
    }

    /// Everything missed has been sent.
    pub fn go_live(&self) {
        let mut state = self.state.lock();
        state.live = true;
        state.push(wire::control(Control::Live {}));
        self.wake.notify_one();
    }

    /// Says that the token ends soon, where it does and that has not been said. Before `live` nothing is said: whoever
    /// comes with a token that is nearly over hears of it once they are there.
    pub fn warn_of_end(&self, now: Timestamp) {
        let mut state = self.state.lock();
        let left = state.expires_at.since(now);
        if state.live && !state.warned && left <= TOKEN_WARNING && !left.is_zero() {
            state.warned = true;
            state.push(wire::control(Control::TokenExpiring { in_s: left.as_secs() }));
            self.wake.notify_one();
        }
    }

    /// Queues a frame that has no place in a room's sequence. `shed`: it may be dropped where the socket is lagging.
    pub fn push(&self, frame: Bytes, shed: bool) {
        let mut state = self.state.lock();
        if !(shed && state.bytes + frame.len() > OUTBOX_MAX_BYTES / 2) {
            state.push(frame);
            self.wake.notify_one();
        }
    }

    /// Queues a frame that can wait for the next one's write, or for [`Socket::nudge`]; it is dropped where the socket
    /// is lagging. `true`: the socket is to be nudged, and was not before.
    pub fn push_drowsily(&self, frame: Bytes) -> bool {
        let mut state = self.state.lock();
        if state.bytes + frame.len() > OUTBOX_MAX_BYTES / 2 {
            return false;
        }
        state.push(frame);
        !std::mem::replace(&mut state.drowsy, true)
    }

    /// Has what waits written.
    pub fn nudge(&self) {
        let mut state = self.state.lock();
        state.drowsy = false;
        if state.bytes > 0 {
            self.wake.notify_one();
        }
    }

    /// Asks the session to close the socket with this code.
    pub fn close(&self, code: u16, retry_after_ms: Option<u32>) {
        self.state.lock().closing.get_or_insert((code, retry_after_ms));
        self.wake.notify_one();
    }

    /// Asks the session to close the socket with this code when the outcomes of its commands in flight are there. New
    /// ones are refused from now on.
    pub fn leave(&self, code: u16, retry_after_ms: Option<u32>) {
        let mut state = self.state.lock();
        state.leaving.get_or_insert((code, retry_after_ms));
        state.part();
        self.wake.notify_one();
    }

    /// Whether no command is taken any more.
    pub fn is_leaving(&self) -> bool {
        self.state.lock().leaving.is_some()
    }

    /// The code to close with, once asked. What was queued before that can still be written.
    pub fn closing(&self) -> Option<(u16, Option<u32>)> {
        self.state.lock().closing
    }

    /// Takes what waits to be written, and when the command behind its oldest event was received (µs; 0: none).
    pub fn take_frames(&self) -> (VecDeque<Bytes>, i64) {
        let mut state = self.state.lock();
        state.bytes = 0;
        (std::mem::take(&mut state.frames), std::mem::take(&mut state.oldest_us))
    }

    /// Gives the emptied queue back, so that a busy socket does not allocate one each time.
    pub fn give_back(&self, emptied: VecDeque<Bytes>) {
        let mut state = self.state.lock();
        if state.frames.capacity() == 0 && emptied.capacity() <= KEPT_FRAMES {
            state.frames = emptied;
        }
    }

    /// Whether the queue has room for pages of history.
    pub fn has_room(&self) -> bool {
        self.state.lock().bytes < OUTBOX_MAX_BYTES / 2
    }

    /// A command is on its way, published as this record. `false`: too many are.
    pub fn send_started(&self, command: &Command, record: &Bytes) -> bool {
        let Command { id, event_id: event, room, deadline, received_us, .. } = *command;
        let mut state = self.state.lock();
        if state.in_flight.len() >= IN_FLIGHT_MAX {
            return false;
        }
        let fits = state.in_flight_bytes + record.len() <= IN_FLIGHT_MAX_BYTES;
        let sent = InFlight { command: id, event, room, deadline, record: fits.then(|| record.clone()), received_us };
        state.in_flight_bytes += sent.bytes();
        state.in_flight.push_back(sent);
        true
    }

    /// The records of commands in flight into rooms that fit, in the order of sending, to be published once more.
    pub fn in_flight(&self, now_us: i64, fits: impl Fn(RoomId) -> bool) -> Vec<(RoomId, Bytes)> {
        let mut state = self.state.lock();
        let here = state.in_flight.iter_mut().filter(|sent| fits(sent.room));
        let again = here.filter_map(|sent| {
            let record;
            (record, sent.received_us) = Hub::copy_of(sent.record.as_ref()?, now_us)?;
            sent.record = Some(record.clone());
            Some((sent.room, record))
        });
        let again = again.collect();
        // A later time may take a byte more.
        state.in_flight_bytes = state.in_flight.iter().map(InFlight::bytes).sum();
        again
    }

    /// A command did not get on its way.
    pub fn send_failed(&self, command: CommandId) {
        self.state.lock().landed(command);
    }

    /// Whether a sign of life may go out now: one a second.
    pub fn may_signal(&self, elapsed_s: u32) -> bool {
        self.signalled_s.swap(elapsed_s, Ordering::Relaxed) != elapsed_s
    }

    /// Gives up on commands whose deadline has passed: nobody knows what became of them.
    pub fn expire(&self, now: Timestamp) {
        let mut state = self.state.lock();
        if state.in_flight.iter().all(|sent| sent.deadline >= now) {
            return;
        }
        let (lost, kept): (VecDeque<InFlight>, VecDeque<InFlight>) =
            std::mem::take(&mut state.in_flight).into_iter().partition(|sent| sent.deadline < now);
        state.in_flight_bytes = kept.iter().map(InFlight::bytes).sum();
        state.in_flight = kept;
        state.part();
        for sent in lost {
            state.held.retain(|held| held.command != sent.command);
            state.push(wire::control(Control::Rejected {
                client_msg_id: sent.command,
                room: sent.room,
                code: RejectCode::Unavailable,
                detail: "no outcome in time: it is unknown, send again under the same id".into(),
                retry_after_ms: Some(1_000),
            }));
        }
        self.wake.notify_one();
    }

    /// What became of a send that made no event.
    pub fn outcome(&self, outcome: &Outcome) {
        let mut state = self.state.lock();
        if let Some(done) =
            outcome.done.as_ref().filter(|done| state.is_to_come(outcome, done, self.wants(outcome.room)))
        {
            let (client_msg_id, room) = (outcome.command, outcome.room);
            let Done { seq, id, at: sent_at } = *done;
            let frame = wire::control(Control::Accepted { client_msg_id, room, seq, id, sent_at, duplicate: false });
            state.held.retain(|held| held.command != client_msg_id);
            state.held.push(Held { room, seq, command: client_msg_id, frame });
            return;
        }
        if outcome.rejected.is_some()
            && let Some(sent) = state.in_flight.iter().find(|sent| sent.command == outcome.command)
            && outcome.received_us < sent.received_us
        {
            // A later copy is under way.
            return;
        }
        if !state.landed(outcome.command) {
            // It was published again, and the client knows already.
            return;
        }
        state.held.retain(|held| held.command != outcome.command);
        let (client_msg_id, room) = (outcome.command, outcome.room);
        let frame = match (&outcome.done, &outcome.rejected) {
            (Some(done), _) => {
                Control::Accepted { client_msg_id, room, seq: done.seq, id: done.id, sent_at: done.at, duplicate: true }
            }
            (None, Some(rejected)) => Control::Rejected {
                client_msg_id,
                room,
                code: rejected.code,
                detail: rejected.detail.clone(),
                retry_after_ms: rejected.retry_after_ms,
            },
            (None, None) => return,
        };
        state.push(wire::control(frame));
        self.wake.notify_one();
    }

    /// A live event of a room. `true`: it was this person's way out, and the room is done with.
    pub fn offer(&self, shared: &mut Shared<'_>) -> bool {
        let event = shared.event;
        let mine = event.reply_to.is_some_and(|to| to.session == self.session);
        let mut state = self.state.lock();
        let room_left = state.bytes < OUTBOX_MAX_BYTES;
        let offer = state.rooms.get_mut(&event.room).map(|room| room.offer(event.seq, room_left));
        let mut ended = false;
        match offer {
            Some(Offer::Push) => {
                let frame = if mine { shared.accepted() } else { shared.frame_for(self.user) };
                state.push(frame);
                if state.oldest_us == 0 {
                    state.oldest_us = event.received_us;
                }
                if mine {
                    state.landed(event.command);
                }
                if ends_for(event, self.user) {
                    state.end_by(event);
                    ended = true;
                }
            }
            Some(Offer::Behind) => {
                state.hold(shared, mine);
                state.behind = true;
            }
            // Not followed yet: the send was quicker than the list of rooms. It waits for its place like any other.
            None if self.wants(event.room) => state.hold(shared, mine),
            // The client claims to hold it, or does not want the room: the outcome stands outside the sequence.
            Some(Offer::Drop) | None => {
                if !mine || !state.landed(event.command) {
                    return false;
                }
                // A client whose start we chose can't know that, unless it is told as what stands outside.
                let unknown = state.rooms.get(&event.room).is_some_and(|cursor| cursor.starts_unknown_after(event.seq));
                let frame = if unknown { wire::control(repeated(event)) } else { shared.accepted() };
                state.push(frame);
            }
        }
        drop(state);
        self.wake.notify_one();
        ended
    }

    /// The room has had an event with this seq, of which the socket may not have heard.
    pub fn heard_of(&self, room: RoomId, seq: Seq) {
        let mut state = self.state.lock();
        let Some(cursor) = state.rooms.get_mut(&room) else { return };
        cursor.heard_of(seq);
        if cursor.is_behind() {
            state.behind = true;
            self.wake.notify_one();
        }
    }

    /// These rooms may have had events of which nobody knows here: they are compared with history.
    pub fn doubt(&self, rooms: impl Fn(RoomId) -> bool) {
        let mut state = self.state.lock();
        let mut concerned = false;
        for (_, cursor) in state.rooms.iter_mut().filter(|(room, _)| rooms(**room)) {
            cursor.doubt();
            concerned = true;
        }
        if concerned {
            state.behind = true;
            self.wake.notify_one();
        }
    }

    /// A room has come into this person's list.
    pub fn room_joined(&self, room: RoomId, seq: Seq) {
        self.state.lock().joined.push((room, seq));
        self.wake.notify_one();
    }

    /// A room has gone from this person's list. Where the socket neither follows it nor has followed it up to there, they
    /// may have been in it for so short a time that no list had it: they are to be told all the same.
    pub fn room_left(&self, room: RoomId, seq: Seq) {
        let mut state = self.state.lock();
        let told = state.rooms.contains_key(&room) || state.ended.get(&room).is_some_and(|ended| *ended >= seq);
        if !told && self.wants(room) {
            state.relist = true;
            self.wake.notify_one();
        }
    }

    /// The list of rooms has to be read again.
    pub fn relist(&self) {
        self.state.lock().relist = true;
        self.wake.notify_one();
    }

    /// Puts a room in that has still to be compared with history. `false`: it is there already.
    pub fn follow(&self, room: RoomId) -> bool {
        let mut state = self.state.lock();
        if state.rooms.contains_key(&room) {
            return false;
        }
        state.rooms.insert(room, RoomCursor::unknown());
        true
    }

    /// Where history has to be read to compare a followed room with it.
    pub fn read_at(&self, room: RoomId, position: Offset) {
        if let Some(cursor) = self.state.lock().rooms.get_mut(&room) {
            cursor.read_at = cursor.read_at.max(position);
        }
    }

    /// Compares a followed room with history: where its stream starts, and the last event this person may see.
    /// `claimed`: the client has named the cursor. Where it has not, answers to its sends that wait for their place move
    /// the start before that place: the client could not know that it lies outside of its stream.
    pub fn start(&self, room: RoomId, cursor: Seq, visible_head: Seq, claimed: bool) {
        let mut state = self.state.lock();
        let waiting = state.held.iter().filter(|held| !claimed && held.room == room).map(|held| held.seq.prev());
        let cursor = waiting.min().map_or(cursor, |first| first.min(cursor));
        let Some(place) = state.rooms.get_mut(&room) else { return };
        place.start(cursor, visible_head, claimed);
        state.behind |= place.is_behind();
        state.ended.remove(&room);
        state.release(room, cursor);
        self.wake.notify_one();
    }

    /// The last event sent of a room that ended while connected, until its stream starts again.
    pub fn ended_at(&self, room: RoomId) -> Option<Seq> {
        self.state.lock().ended.get(&room).copied()
    }

    /// The rooms that ended while connected, or before.
    pub fn ended_rooms(&self) -> Vec<RoomId> {
        self.state.lock().ended.keys().copied().collect()
    }

    /// The client holds a room up to this event, by which its person had gone.
    pub fn ended_before(&self, room: RoomId, at: Seq) {
        self.state.lock().ended.insert(room, at);
    }

    /// Ends a room without an event of its own.
    pub fn end(&self, room: RoomId) {
        self.state.lock().end(room);
    }

    /// Takes the rooms that came in, with the event by which they did, and whether the list of rooms has to be read
    /// again.
    pub fn take_news(&self) -> (Vec<(RoomId, Seq)>, bool) {
        let mut state = self.state.lock();
        (std::mem::take(&mut state.joined), std::mem::take(&mut state.relist))
    }

    /// Takes the rooms whose history has to be read.
    pub fn take_behind(&self) -> Vec<RoomId> {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.behind) {
            return Vec::new();
        }
        state.rooms.iter().filter(|(_, cursor)| cursor.is_behind()).map(|(room, _)| *room).collect()
    }

    /// Whether there is something to do beside writing.
    pub fn has_work(&self) -> bool {
        let state = self.state.lock();
        state.behind || state.relist || !state.joined.is_empty()
    }

    /// The followed rooms.
    pub fn rooms(&self) -> Vec<RoomId> {
        self.state.lock().rooms.keys().copied().collect()
    }

    /// Whether a room is followed.
    pub fn follows(&self, room: RoomId) -> bool {
        self.state.lock().rooms.contains_key(&room)
    }

    /// The last seq sent of a room that is behind.
    pub fn behind(&self, room: RoomId) -> Option<(Seq, Offset)> {
        let state = self.state.lock();
        state.rooms.get(&room).filter(|cursor| cursor.is_behind()).map(|cursor| (cursor.cursor(), cursor.read_at))
    }

    /// A receipt's seq, lowered to what this socket was sent; `None` where there is nothing to say. Before a room's
    /// stream has begun it is kept until then: a client may say at once what was read while it was offline.
    pub fn receipt(&self, room: RoomId, seq: Seq, read: bool) -> Option<Seq> {
        let mut state = self.state.lock();
        let place = state.rooms.get(&room);
        let lowered = place.map(|cursor| cursor.receipt(seq)).filter(|seq| *seq > Seq::ZERO);
        let may_come = place.is_some() || !state.live;
        if lowered.is_none() && may_come && state.early_receipts.len() < EARLY_RECEIPTS_MAX {
            state.early_receipts.push((room, seq, read));
        }
        lowered
    }

    /// What was said of a room before its stream had begun, as [`Socket::receipt`] takes it.
    pub fn early_receipts(&self, room: RoomId) -> Vec<(Seq, bool)> {
        let mut state = self.state.lock();
        let early = state.early_receipts.extract_if(.., |(of, ..)| *of == room);
        early.map(|(_, seq, read)| (seq, read)).collect()
    }

    /// Puts an event of history into the stream, if it is still the next one. `true`: it was this person's way out.
    pub fn put_event(&self, event: &Arc<Event>, last_of_all: bool) -> bool {
        let mut shared = Shared::new(event);
        let mut state = self.state.lock();
        let Some(cursor) = state.rooms.get_mut(&event.room) else { return false };
        if event.seq <= cursor.cursor() {
            return false;
        }
        cursor.sent(event.seq);
        let mine = event.reply_to.is_some_and(|to| to.session == self.session);
        let frame = if mine && matches!(event.kind, EventKind::Message(_)) {
            state.landed(event.command);
            state.held.retain(|held| held.command != event.command);
            shared.accepted()
        } else {
            shared.frame_for(self.user)
        };
        state.push(frame);
        let ended = last_of_all && ends_for(event, self.user);
        if ended {
            state.end_by(event);
        }
        ended
    }

    /// Announces that (cursor, to] is not streamed; `accepted` frames whose place falls into it follow it.
    pub fn put_gap(&self, room: RoomId, from_seq: Seq, to_seq: Seq, readable: bool) {
        let mut state = self.state.lock();
        let Some(cursor) = state.rooms.get_mut(&room) else { return };
        cursor.sent(to_seq);
        state.push(wire::control(Control::Gap { room, from_seq, to_seq, readable }));
        state.release(room, to_seq);
    }

    /// History of a room has been read to its end.
    pub fn caught_up(&self, room: RoomId) {
        let mut state = self.state.lock();
        let Some(cursor) = state.rooms.get_mut(&room) else { return };
        cursor.caught_up();
        state.behind |= state.rooms.get(&room).is_some_and(RoomCursor::is_behind);
        self.wake.notify_one();
    }

    /// There is more to read: remind the session.
    pub fn still_behind(&self) {
        self.state.lock().behind = true;
        self.wake.notify_one();
    }
}

impl State {
    fn push(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// The outcome of a command is known. `true`: it was in flight.
    fn landed(&mut self, command: CommandId) -> bool {
        let at = self.in_flight.iter().position(|sent| sent.command == command);
        let Some(sent) = at.and_then(|at| self.in_flight.remove(at)) else { return false };
        self.in_flight_bytes -= sent.bytes();
        if self.in_flight.is_empty() {
            // What an idle socket need not keep.
            self.in_flight = VecDeque::new();
        }
        self.part();
        true
    }

    /// Who is leaving goes when nothing is in flight any more.
    fn part(&mut self) {
        if self.in_flight.is_empty() && self.closing.is_none() {
            self.closing = self.leaving;
        }
    }

    /// Keeps the answer to a send of this socket until its place has come.
    fn hold(&mut self, shared: &Shared<'_>, mine: bool) {
        let event = shared.event();
        if mine && self.is_in_flight(event.command) {
            let frame = shared.accepted();
            self.held.push(Held { room: event.room, seq: event.seq, command: event.command, frame });
        }
    }

    /// Sends what was held for places up to `to`, which will not come any more.
    fn release(&mut self, room: RoomId, to: Seq) {
        let (due, kept): (Vec<Held>, Vec<Held>) =
            std::mem::take(&mut self.held).into_iter().partition(|held| held.room == room && held.seq <= to);
        self.held = kept;
        for held in due {
            self.landed(held.command);
            self.push(held.frame);
        }
    }

    /// Whether a repeat repeats what this very socket sent, and its place has not come: the command was published again
    /// by us, and its `accepted` stands at its place as if it had not been.
    fn is_to_come(&self, outcome: &Outcome, done: &Done, wanted: bool) -> bool {
        let sent = self.in_flight.iter().any(|sent| sent.command == outcome.command && sent.event == done.id);
        sent && self.rooms.get(&outcome.room).map_or(wanted, |cursor| cursor.cursor() < done.seq)
    }

    fn is_in_flight(&self, command: CommandId) -> bool {
        self.in_flight.iter().any(|sent| sent.command == command)
    }

    /// The person's way out has been sent. Their way back in may have been heard of before, in another partition's
    /// order: so the list of rooms is looked at again.
    fn end_by(&mut self, event: &Event) {
        self.end(event.room);
        self.relist |= matches!(event.kind, EventKind::Member(_));
    }

    fn end(&mut self, room: RoomId) {
        // One that was never compared with history has no place to go on from.
        if let Some(cursor) = self.rooms.remove(&room).map(|cursor| cursor.cursor()).filter(|at| *at > Seq::ZERO) {
            self.ended.insert(room, cursor);
        }
    }
}

/// The outcome of a send as what stands outside the sequence.
fn repeated(event: &Event) -> Control {
    let (client_msg_id, room, seq, id, sent_at) = (event.command, event.room, event.seq, event.id, event.at);
    Control::Accepted { client_msg_id, room, seq, id, sent_at, duplicate: true }
}

/// Whether this event ends the room for this person: their own way out, or the room's end.
fn ends_for(event: &Event, user: UserId) -> bool {
    match &event.kind {
        EventKind::Member(Membership { user: whose, change, .. }) => *whose == user && change.ends(),
        EventKind::Changed(patch) => patch.deleted,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use schemas::message::{Content, Message};
    use schemas::outcome::Rejected;
    use schemas::{Action, EdgeId, Record as _, ReplyTo};
    use uuid::Uuid;

    use super::*;

    const ROOM: RoomId = RoomId(Uuid::from_u128(1));
    const USER: UserId = UserId(Uuid::from_u128(2));
    const SESSION: SessionId = SessionId(Uuid::from_u128(3));

    fn new() -> Socket {
        Socket::new(SESSION, USER, DeviceId(Uuid::from_u128(4)), None, Timestamp(i64::MAX))
    }

    fn command() -> Command {
        Command {
            id: CommandId(Uuid::from_u128(5)),
            room: ROOM,
            user: USER,
            event_id: EventId(Uuid::from_u128(6)),
            reply_to: ReplyTo { edge: EdgeId(Uuid::from_u128(7)), session: SESSION },
            received_us: 0,
            deadline: Timestamp(100),
            action: Action::Send(Message { content: Content::text("x"), reply_to: None }),
        }
    }

    /// The event that the command makes.
    fn event(seq: u64) -> Arc<Event> {
        let Command { id, event_id, reply_to, .. } = command();
        Arc::new(Event {
            room: ROOM,
            seq: Seq(seq),
            id: event_id,
            at: Timestamp(9),
            by: USER,
            command: id,
            reply_to: Some(reply_to),
            received_us: 0,
            decided_us: 0,
            salt: [0; 16],
            hash: [0; 32],
            kind: EventKind::Message(Message { content: Content::text("x"), reply_to: None }),
        })
    }

    fn outcome(done: Option<Done>) -> Outcome {
        let Command { id, reply_to, .. } = command();
        let rejected = done.is_none().then(|| Rejected {
            code: RejectCode::NotAMember,
            detail: "as planned".into(),
            retry_after_ms: None,
        });
        Outcome { room: ROOM, user: USER, command: id, reply_to, received_us: 0, done, rejected }
    }

    /// The texts that wait to be written.
    fn waiting(socket: &Socket) -> Vec<String> {
        let (frames, _) = socket.take_frames();
        let text = |frame: &Bytes| {
            let start = frame.iter().position(|byte| *byte == b'{').unwrap_or(0);
            String::from_utf8_lossy(&frame[start..]).into_owned()
        };
        frames.iter().map(text).collect()
    }

    #[test]
    fn what_was_published_twice_by_us_is_accepted_once_at_its_place() {
        let socket = new();
        socket.follow(ROOM);
        socket.start(ROOM, Seq(3), Seq(3), true);
        assert!(socket.send_started(&command(), &command().encode()));
        assert_eq!(socket.in_flight(7, |_| true).len(), 1, "published again");
        // The second copy's outcome comes first: it repeats the event of the first, whose place has not come.
        socket.outcome(&outcome(Some(Done { seq: Seq(4), id: command().event_id, at: Timestamp(9) })));
        assert_eq!(waiting(&socket), Vec::<String>::new());
        let event = event(4);
        socket.offer(&mut Shared::new(&event));
        let told = waiting(&socket);
        assert!(
            told.len() == 1 && told[0].contains(r#""accepted""#) && told[0].contains(r#""duplicate":false"#),
            "{told:?}"
        );
    }

    #[test]
    fn the_rejection_of_a_copy_is_not_told_while_a_later_one_may_act() {
        let socket = new();
        assert!(socket.send_started(&command(), &command().encode()));
        assert_eq!(socket.in_flight(7, |_| true).len(), 1, "published again");
        socket.outcome(&outcome(None));
        assert_eq!(waiting(&socket), Vec::<String>::new());
        // The later copy's, whatever has become of the earlier one's.
        socket.outcome(&Outcome { received_us: 7, ..outcome(None) });
        let told = waiting(&socket);
        assert!(told.len() == 1 && told[0].contains(r#""rejected""#), "{told:?}");
    }

    #[test]
    fn a_room_that_goes_from_the_list_and_was_never_followed_has_it_read_again() {
        let socket = new();
        socket.room_left(ROOM, Seq(6));
        assert!(socket.take_news().1);
        socket.follow(ROOM);
        socket.room_left(ROOM, Seq(7));
        assert!(!socket.take_news().1, "its own stream tells");
        let other = RoomId(uuid::Uuid::from_u128(9));
        socket.ended_before(other, Seq(8));
        socket.room_left(other, Seq(8));
        assert!(!socket.take_news().1, "it has told");
        socket.room_left(other, Seq(9));
        assert!(socket.take_news().1);
    }

    #[test]
    fn what_is_said_of_a_room_before_its_stream_begins_is_kept_until_it_does() {
        let socket = new();
        assert_eq!(socket.receipt(ROOM, Seq(9), true), None, "before the list of rooms is known");
        socket.follow(ROOM);
        assert_eq!(socket.receipt(ROOM, Seq(10), false), None, "before it is compared with history");
        socket.start(ROOM, Seq(9), Seq(10), true);
        assert_eq!(socket.early_receipts(ROOM), [(Seq(9), true), (Seq(10), false)]);
        assert_eq!(socket.early_receipts(ROOM), []);
        assert_eq!(socket.receipt(ROOM, Seq(10), false), Some(Seq(9)), "lowered to what was sent");
        for seq in 0..2_000 {
            socket.receipt(RoomId(uuid::Uuid::from_u128(7)), Seq(seq), true);
        }
        assert_eq!(socket.early_receipts(RoomId(uuid::Uuid::from_u128(7))).len(), EARLY_RECEIPTS_MAX);
        socket.go_live();
        let stranger = RoomId(uuid::Uuid::from_u128(8));
        assert_eq!(socket.receipt(stranger, Seq(1), true), None);
        assert_eq!(socket.early_receipts(stranger), [], "a live socket knows its rooms");
    }

    #[test]
    fn what_is_in_flight_is_counted_as_large_as_it_is_whatever_time_its_copies_have() {
        let socket = new();
        assert!(socket.send_started(&command(), &command().encode()));
        assert_eq!(socket.in_flight(i64::MAX / 2, |_| true).len(), 1, "published again, with a longer time");
        socket.send_failed(command().id);
        assert_eq!(socket.state.lock().in_flight_bytes, 0);
    }

    #[test]
    fn an_answer_that_waits_moves_the_start_that_we_choose_before_its_place() {
        for claimed in [false, true] {
            let socket = new();
            assert!(socket.send_started(&command(), &command().encode()));
            let event = event(8);
            // Not followed yet: the answer waits.
            socket.offer(&mut Shared::new(&event));
            socket.follow(ROOM);
            socket.start(ROOM, Seq(10), Seq(10), claimed);
            let expected = if claimed { None } else { Some(Seq(7)) };
            assert_eq!(socket.behind(ROOM).map(|(cursor, _)| cursor), expected, "what a client names is never lowered");
        }
    }

    #[test]
    fn below_a_start_that_we_chose_an_answer_stands_outside_the_sequence() {
        let socket = new();
        socket.follow(ROOM);
        socket.start(ROOM, Seq(10), Seq(10), false);
        assert!(socket.send_started(&command(), &command().encode()));
        let event = event(8);
        socket.offer(&mut Shared::new(&event));
        let told = waiting(&socket);
        assert!(told.len() == 1 && told[0].contains(r#""duplicate":true"#), "{told:?}");
    }

    #[test]
    fn a_room_that_was_never_compared_leaves_no_place_to_go_on_from() {
        let socket = new();
        socket.follow(ROOM);
        socket.end(ROOM);
        assert_eq!(socket.ended_at(ROOM), None);
        socket.follow(ROOM);
        socket.start(ROOM, Seq(4), Seq(4), true);
        socket.end(ROOM);
        assert_eq!(socket.ended_at(ROOM), Some(Seq(4)));
    }

    #[test]
    fn who_leaves_waits_for_what_is_in_flight_and_takes_the_outcome_along() {
        let idle = new();
        idle.leave(1012, Some(7));
        assert_eq!(idle.closing(), Some((1012, Some(7))));

        for answered in [true, false] {
            let busy = new();
            assert!(busy.send_started(&command(), &command().encode()));
            busy.leave(1012, Some(7));
            assert!(busy.is_leaving());
            assert_eq!(busy.closing(), None, "an outcome is waited for");
            if answered {
                busy.send_failed(command().id);
            } else {
                busy.expire(Timestamp(101));
            }
            assert_eq!(busy.closing(), Some((1012, Some(7))));
        }
    }
}
