//! Taking a batch from fanout: events to the sockets of their rooms, outcomes to those who asked, receipts and signals
//! to whom they concern; and noticing what was missed (I6). One JSON encoding per event, shared by all sockets.

use std::collections::BTreeSet;
use std::sync::Arc;

use schemas::frame::Control;
use schemas::limits::RECEIPT_MEMBERS_MAX;
use schemas::link::{Batch, Item};
use schemas::message::Membership;
use schemas::outcome::Outcome;
use schemas::receipt::Receipt;
use schemas::signal::{Signal, SignalKind};
use schemas::user_event::{RoomEntry, UserEvent};
use schemas::{Event, EventKind, Partition, RoomId, Seq, SessionId, UserId};

use super::{Answer, Call, Heard, Hub, Room, State};
use crate::socket::outbox::{Shared, Socket};
use crate::socket::wire;

/// Senders of a large room's newest messages that are remembered, to tell them who has received them.
const SENDERS_KEPT: usize = 64;

/// What an item needs once the hub's lock is free again.
enum Due {
    Event(Arc<Event>, Arc<Vec<Arc<Socket>>>, Option<Arc<Socket>>),
    Frame(bytes::Bytes, Vec<Arc<Socket>>),
    Receipt(bytes::Bytes, Vec<Arc<Socket>>),
    Listing(Arc<UserEvent>, Vec<Arc<Socket>>),
    Outcome(Arc<Outcome>, Arc<Socket>),
}

impl Hub {
    /// Takes one batch. What its items concern is gathered under one lock, together with the new watermark: a socket
    /// that subscribes is either among those gathered or learns a position that covers the batch (I7).
    pub(super) fn take(&self, batch: Batch) {
        if let Some(received_us) = batch.items.iter().filter_map(|item| self.received_here(item)).max() {
            self.answered(batch.partition, received_us);
        }
        let mut due = Vec::with_capacity(batch.items.len());
        {
            let mut state = self.state.lock();
            if !state.advance(&batch) {
                return;
            }
            if !state.missed.is_empty() || !state.unregistered.is_empty() {
                self.mend.notify_one();
            }
            for item in batch.items {
                self.gather(&mut state, item, &mut due);
            }
        }
        for item in due {
            self.pass_on(item);
        }
    }

    /// When this edge received the command that this answers, µs, if it was one of its own.
    fn received_here(&self, item: &Item) -> Option<i64> {
        let (reply_to, received_us) = match item {
            Item::Event(event) => (event.reply_to?, event.received_us),
            Item::Outcome(outcome) => (outcome.reply_to, outcome.received_us),
            _ => return None,
        };
        (reply_to.edge == self.deps.edge).then_some(received_us)
    }

    fn gather(&self, state: &mut State, item: Item, due: &mut Vec<Due>) {
        match item {
            Item::Event(event) => {
                let asker = event.reply_to.filter(|to| to.edge == self.deps.edge).map(|to| to.session);
                if asker == Some(SessionId::NIL) {
                    let call = (event.room, event.by, event.command);
                    self.answer(call, || Answer::Event(Arc::clone(&event)), event.received_us);
                }
                let asker = asker.and_then(|session| state.sessions.get(&session)).cloned();
                let sockets = match state.rooms.get_mut(&event.room) {
                    Some(room) => {
                        room.note(&event);
                        Arc::clone(&room.sockets)
                    }
                    None => Arc::default(),
                };
                due.push(Due::Event(event, sockets, asker));
            }
            Item::Outcome(outcome) => {
                if outcome.reply_to.session == SessionId::NIL {
                    let call = (outcome.room, outcome.user, outcome.command);
                    if outcome.rejected.is_some() && self.waits_for_copy(call, outcome.received_us) {
                        return;
                    }
                    self.answer(call, || Answer::Outcome(Arc::clone(&outcome)), outcome.received_us);
                } else if let Some(socket) = state.sessions.get(&outcome.reply_to.session) {
                    due.push(Due::Outcome(outcome, Arc::clone(socket)));
                }
            }
            Item::User(event) => {
                if let Some(user) = state.users.get(&event.user) {
                    due.push(Due::Listing(event, user.sockets.clone()));
                }
            }
            Item::Receipt(receipt) => state.gather_receipt(&receipt, due),
            Item::Signal(signal) => state.gather_signal(&signal, due),
        }
    }

    /// Answers REST calls that wait for this command.
    fn answer(&self, call: Call, answer: impl Fn() -> Answer, received_us: i64) {
        let waiting = self.calls.lock().remove(&call);
        for call in waiting.into_iter().flat_map(|waiting| waiting.answers) {
            // A caller that has gone needs no answer.
            drop(call.send(answer()));
            self.metrics.acknowledged(self.deps.clock.micros() - received_us);
        }
    }

    /// A copy of a command was rejected: whether a later one is under way, and may still act.
    fn waits_for_copy(&self, call: Call, received_us: i64) -> bool {
        self.calls.lock().get(&call).is_some_and(|waiting| received_us < waiting.received_us)
    }

    fn pass_on(&self, due: Due) {
        match due {
            Due::Event(event, sockets, asker) => {
                let mut shared = Shared::new(&event);
                let mut asker_follows = false;
                for socket in sockets.iter() {
                    asker_follows |= asker.as_ref().is_some_and(|asker| asker.session == socket.session);
                    if socket.offer(&mut shared) {
                        self.unsubscribe(socket, event.room);
                    }
                }
                self.metrics.delivered.inc_by(sockets.len() as u64);
                if let Some(asker) = asker {
                    if !asker_follows {
                        asker.offer(&mut shared);
                    }
                    self.metrics.acknowledged(self.deps.clock.micros() - event.received_us);
                }
            }
            Due::Frame(frame, sockets) => {
                for socket in sockets {
                    socket.push(frame.clone(), true);
                }
            }
            Due::Receipt(frame, sockets) => {
                let drowsy = sockets.into_iter().filter(|socket| socket.push_drowsily(frame.clone()));
                self.drowsy.lock().extend(drowsy);
            }
            Due::Listing(event, sockets) => {
                for socket in sockets {
                    match event.entry {
                        RoomEntry::Joined => socket.room_joined(event.room, event.seq),
                        RoomEntry::Left => socket.room_left(event.room, event.seq),
                    }
                }
            }
            Due::Outcome(outcome, socket) => {
                socket.outcome(&outcome);
                self.metrics.acknowledged(self.deps.clock.micros() - outcome.received_us);
            }
        }
    }
}

impl State {
    /// Moves the watermark of a batch's lane. `false`: it comes from an owner that has been replaced.
    fn advance(&mut self, batch: &Batch) -> bool {
        let lane = (batch.lane, batch.partition);
        let Some(heard) = self.lanes.get_mut(&lane) else {
            self.lanes.insert(lane, Heard { epoch: batch.epoch, watermark: batch.to });
            return true;
        };
        if batch.epoch < heard.epoch {
            return false;
        }
        if batch.epoch > heard.epoch {
            heard.epoch = batch.epoch;
            self.unregistered.push((batch.lane, batch.partition, heard.watermark));
        }
        if batch.from > heard.watermark {
            self.missed.push((batch.lane, batch.partition, heard.watermark, batch.from));
        }
        heard.watermark = heard.watermark.max(batch.to);
        true
    }

    fn gather_receipt(&mut self, receipt: &Receipt, due: &mut Vec<Due>) {
        let Some(room) = self.rooms.get_mut(&receipt.room) else { return };
        let known = room.receipts.entry(receipt.user).or_default();
        let before = *known;
        *known = (known.0.max(receipt.delivered_seq), known.1.max(receipt.read_seq));
        let (delivered_seq, read_seq) = *known;
        let frame = wire::control(Control::Receipt {
            room: receipt.room,
            user: receipt.user,
            delivered_seq,
            read_seq,
            at: receipt.at,
        });
        let concerned: Vec<Arc<Socket>> = if room.is_small() {
            room.sockets.iter().filter(|socket| socket.user != receipt.user).cloned().collect()
        } else {
            // In a large room only those hear of it whose messages it covers.
            let is_new = |seq: Seq| (before.0 < seq && seq <= delivered_seq) || (before.1 < seq && seq <= read_seq);
            let covered: BTreeSet<UserId> = room
                .senders
                .iter()
                .filter(|(seq, user)| *user != receipt.user && is_new(*seq))
                .map(|(_, user)| *user)
                .collect();
            let sockets = covered.iter().filter_map(|user| self.users.get(user)).flat_map(|user| &user.sockets);
            sockets.filter(|socket| socket.wants(receipt.room)).cloned().collect()
        };
        due.push(Due::Receipt(frame, concerned));
        if receipt.read_seq > Seq::ZERO {
            let marker = wire::control(Control::ReadMarker { room: receipt.room, read_seq });
            let others = self.users.get(&receipt.user).into_iter().flat_map(|user| &user.sockets);
            let others = others.filter(|socket| socket.session != receipt.session).cloned().collect();
            due.push(Due::Receipt(marker, others));
        }
    }

    fn gather_signal(&mut self, signal: &Signal, due: &mut Vec<Due>) {
        let Some(room) = self.rooms.get(&signal.room) else { return };
        let frame = match signal.kind {
            SignalKind::Typing => Control::Typing { room: signal.room, user: signal.user },
            SignalKind::Online => Control::Presence { user: signal.user, online: true, last_seen: None },
            SignalKind::Offline => Control::Presence { user: signal.user, online: false, last_seen: Some(signal.at) },
        };
        let others = room.sockets.iter().filter(|socket| socket.user != signal.user).cloned().collect();
        due.push(Due::Frame(wire::control(frame), others));
    }
}

impl Room {
    /// Whether everyone hears everyone's receipts.
    pub(super) fn is_small(&self) -> bool {
        self.member_count <= RECEIPT_MEMBERS_MAX
    }

    /// Keeps the count of members and the senders of the newest messages.
    fn note(&mut self, event: &Event) {
        match &event.kind {
            EventKind::Member(Membership { user, change, .. }) => {
                if change.begins() {
                    self.member_count += 1;
                } else if change.ends() {
                    self.member_count = self.member_count.saturating_sub(1);
                    self.receipts.remove(user);
                }
            }
            EventKind::Message(_) if !self.is_small() => {
                if self.senders.len() == SENDERS_KEPT {
                    self.senders.pop_front();
                }
                self.senders.push_back((event.seq, event.by));
            }
            _ => {}
        }
    }
}

impl Hub {
    /// Rooms that had events that never came: their sockets read for themselves.
    pub(super) fn heard_of(&self, changed: &[(RoomId, Seq)]) {
        for (room, seq) in changed {
            let sockets = self.state.lock().rooms.get(room).map(|room| Arc::clone(&room.sockets));
            for socket in sockets.iter().flat_map(|sockets| sockets.iter()) {
                socket.heard_of(*room, *seq);
            }
        }
    }

    /// Any room of a partition may have had events that never came: their sockets look.
    pub(super) fn doubt(&self, partition: Partition) {
        let sockets: Vec<Arc<Socket>> = self.state.lock().sessions.values().cloned().collect();
        for socket in sockets {
            socket.doubt(|room| self.partition(room.as_bytes()) == partition);
        }
    }
}
