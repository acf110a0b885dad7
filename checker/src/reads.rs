//! What a person reads against what they had been told before they asked: their own writes, what they had seen, the
//! rooms that they are in, and how far receipts say that people have come. A read is held to what was known when it was
//! asked, not when it was answered: whatever came between may or may not be in it.

use std::collections::{HashMap, HashSet};

use schemas::message::MemberChange;
use schemas::{RoomId, Seq, UserId};

use crate::breach::Kind;
use crate::checker::{Checker, Sight};
use crate::judge::{Facts, meet};
use crate::step::{AskId, ClientId, Listed, Reader};

/// What is known of everyone's reads and receipts.
#[derive(Default)]
pub(crate) struct Reads {
    /// Up to where each person must be shown a room from now on.
    floors: HashMap<UserId, HashMap<RoomId, Floor>>,
    /// Reads under way, with the floors of their reader when they asked.
    asks: HashMap<AskId, (UserId, HashMap<RoomId, Floor>)>,
    /// Rooms that a list lacked although their reader had seen themselves come in.
    unlisted: Vec<(UserId, RoomId, Seq)>,
    /// Rooms that lists had, and the largest newest event that they showed.
    listed: HashMap<(UserId, RoomId), Seq>,
    /// What history showed to whom, as ranges.
    histories: HashMap<(UserId, RoomId), Vec<(Seq, Seq)>>,
    /// What history left out where it may have to.
    left_out: Vec<(UserId, RoomId, Seq, Seq)>,
    /// Rooms that show newcomers nothing of the time before them.
    secretive: HashSet<RoomId>,
    /// The largest watermark of a person that anyone was shown, and to whom.
    watermarks: HashMap<(UserId, RoomId), (Seq, Sight)>,
    /// Nothing breaks any more.
    pub calm: bool,
    /// Delivered and read, as told since then.
    owed: HashMap<(UserId, RoomId), (Seq, Seq)>,
    /// Delivered and read, as each person's last list of rooms had them.
    paid: HashMap<UserId, HashMap<RoomId, (Seq, Seq)>>,
}

/// What a person knows of a room.
#[derive(Clone, Copy, Default)]
struct Floor {
    /// Their last accepted message.
    own: Seq,
    /// The last event that they know there is.
    seen: Seq,
    /// They have seen themselves come in by this event, and not go since.
    joined: Option<Seq>,
}

impl Reads {
    fn floor(&mut self, user: UserId, room: RoomId) -> &mut Floor {
        self.floors.entry(user).or_default().entry(room).or_default()
    }

    /// They were told that a message of theirs stands there.
    pub fn accepted(&mut self, user: UserId, room: RoomId, seq: Seq) {
        let floor = self.floor(user, room);
        floor.own = floor.own.max(seq);
    }

    /// They saw a change of their own membership.
    pub fn came_or_went(&mut self, user: UserId, room: RoomId, seq: Seq, change: MemberChange) {
        let floor = self.floor(user, room);
        if change.begins() {
            floor.joined = floor.joined.or(Some(seq));
        } else if change.ends() {
            floor.joined = None;
        }
    }

    /// A room that shows newcomers nothing of the time before them.
    pub fn secretive(&mut self, room: RoomId) {
        self.secretive.insert(room);
    }

    /// They say that they have come so far.
    pub fn told(&mut self, user: UserId, room: RoomId, seq: Seq, read: bool) {
        if !self.calm {
            return;
        }
        let owed = self.owed.entry((user, room)).or_default();
        let which = if read { &mut owed.1 } else { &mut owed.0 };
        *which = seq.max(*which);
    }

    /// Someone is told that this person has come so far.
    pub fn shown(&mut self, user: UserId, room: RoomId, seq: Seq, to: ClientId) {
        self.watermark(user, room, seq, Sight::Socket(to));
    }

    fn watermark(&mut self, user: UserId, room: RoomId, seq: Seq, seen: Sight) {
        let known = self.watermarks.entry((user, room)).or_insert((seq, seen));
        if seq > known.0 {
            *known = (seq, seen);
        }
    }

    /// History showed them this.
    pub fn shown_history(&mut self, user: UserId, room: RoomId, seq: Seq) {
        let ranges = self.histories.entry((user, room)).or_default();
        match ranges.last_mut() {
            Some(last) if last.0 <= seq && seq <= last.1.next() => last.1 = last.1.max(seq),
            _ => ranges.push((seq, seq)),
        }
    }

    /// History left this out. `true`: it may be right to, for the room hides the time in which a person was not in it.
    pub fn left_out(&mut self, user: UserId, room: RoomId, from: Seq, to: Seq) -> bool {
        let hides = self.secretive.contains(&room);
        if hides {
            self.left_out.push((user, room, from, to));
        }
        hides
    }
}

impl Checker {
    /// Who reads.
    pub(crate) fn user_of(&mut self, reader: Reader) -> Option<UserId> {
        match reader {
            Reader::Refill(client) => self.client(client).user,
            Reader::Look(user) | Reader::Audit(user) => Some(user),
        }
    }

    pub(crate) fn asking(&mut self, ask: AskId, user: UserId) {
        let mut floors = self.reads.floors.get(&user).cloned().unwrap_or_default();
        for client in self.clients.iter().filter(|client| client.user == Some(user)) {
            for (room, stream) in &client.streams {
                let floor = floors.entry(*room).or_default();
                floor.seen = floor.seen.max(stream.furthest);
            }
        }
        self.reads.asks.insert(ask, (user, floors));
    }

    /// A read of a room was answered with everything up to `shown`.
    pub(crate) fn answered(&mut self, ask: AskId, seen: Sight, room: RoomId, shown: Seq) {
        let Some((user, floors)) = self.reads.asks.remove(&ask) else { return };
        self.compare(seen, user, room, floors.get(&room).copied().unwrap_or_default(), shown);
    }

    fn compare(&mut self, seen: Sight, user: UserId, room: RoomId, floor: Floor, shown: Seq) {
        if shown < floor.own {
            let expected = "what its reader had been told as accepted before they asked";
            self.breach(Kind::OwnWriteUnread, seen, room, shown.next(), floor.own, expected);
        } else if shown < floor.seen {
            let expected = "what its reader had seen before they asked";
            self.breach(Kind::ReadWentBack, seen, room, shown.next(), floor.seen, expected);
        }
        let floor = self.reads.floor(user, room);
        floor.seen = floor.seen.max(shown);
    }

    pub(crate) fn listed(&mut self, ask: AskId, user: UserId, rooms: &[Listed]) {
        let seen = Sight::Rest(user);
        let Some((_, mut floors)) = self.reads.asks.remove(&ask) else { return };
        let marks = rooms.iter().map(|listed| (listed.room, (listed.delivered_seq, listed.read_seq)));
        self.reads.paid.insert(user, marks.collect());
        for Listed { room, head_seq, delivered_seq, read_seq } in rooms.iter().copied() {
            self.compare(seen, user, room, floors.remove(&room).unwrap_or_default(), head_seq);
            self.reads.watermark(user, room, delivered_seq.max(read_seq), seen);
            let listed = self.reads.listed.entry((user, room)).or_default();
            *listed = head_seq.max(*listed);
        }
        let lacking = floors.into_iter().filter_map(|(room, floor)| Some((user, room, floor.joined?)));
        self.reads.unlisted.extend(lacking);
    }

    /// What only the whole history tells of reads and receipts.
    pub(crate) fn judge_reads(&mut self, rooms: &HashMap<RoomId, Facts>) {
        let mut reads = std::mem::take(&mut self.reads);
        reads.unlisted.sort_unstable();
        reads.unlisted.dedup_by_key(|(user, room, _)| (*user, *room));
        for (user, room, joined) in reads.unlisted {
            let stays = rooms.get(&room).map_or(&[][..], |facts| facts.stays(user));
            // One who has gone since may have gone before the answer.
            if stays.iter().any(|(from, until)| *from <= joined && until.is_none()) {
                let expected = "the room in the list of whoever is in it";
                self.breach(Kind::RoomUnlisted, Sight::Rest(user), room, joined, joined, expected);
            }
        }
        let mut listed: Vec<_> = reads.listed.into_iter().collect();
        listed.sort_unstable();
        for ((user, room), head) in listed {
            let last = rooms.get(&room).and_then(|facts| facts.last_visible(user));
            if last.is_none_or(|last| head > last) {
                let expected = "the list shows only rooms that its reader was in, up to what they may see";
                self.breach(Kind::HistoryLeaked, Sight::Rest(user), room, head, head, expected);
            }
        }
        let mut histories: Vec<_> = reads.histories.into_iter().collect();
        histories.sort_unstable();
        for ((user, room), ranges) in histories {
            let Some(facts) = rooms.get(&room) else { continue };
            let visible = facts.visible(user, reads.secretive.contains(&room));
            for (from, to) in ranges {
                if let Some(seq) = first_outside(&visible, from, to) {
                    let expected = "history shows only what its reader may see";
                    self.breach(Kind::HistoryLeaked, Sight::Rest(user), room, seq, to, expected);
                }
            }
        }
        for (user, room, from, to) in reads.left_out {
            let visible = rooms.get(&room).map(|facts| facts.visible(user, true)).unwrap_or_default();
            if visible.iter().any(|range| meet(*range, (from, to))) {
                self.breach(
                    Kind::HistoryHole,
                    Sight::Rest(user),
                    room,
                    from,
                    to,
                    "history is dense where it may be read",
                );
            }
        }
        let mut watermarks: Vec<_> = reads.watermarks.into_iter().collect();
        watermarks.sort_unstable_by_key(|(whose, _)| *whose);
        for ((user, room), (seq, seen)) in watermarks {
            let Some(facts) = rooms.get(&room) else { continue };
            let clients = self.clients.iter().filter(|client| client.user == Some(user));
            let reached = clients.filter_map(|client| client.streams.get(&room)).map(|stream| stream.furthest).max();
            let known = reads.floors.get(&user).and_then(|floors| floors.get(&room));
            let known = known.map_or(Seq::ZERO, |floor| floor.own.max(floor.seen));
            let joined = facts.stays(user).last().map_or(Seq::ZERO, |(joined, _)| joined.prev());
            if seq > facts.head {
                let expected = format!("watermarks up to the newest event, {}", facts.head);
                self.breach(Kind::ReceiptPastHead, seen, room, seq, seq, &expected);
            } else if seq > known.max(joined).max(reached.unwrap_or_default()) {
                let expected = format!("{user} come so far only as something has reached them");
                self.breach(Kind::ReceiptUnfounded, seen, room, seq, seq, &expected);
            }
        }
        let mut owed: Vec<_> = reads.owed.into_iter().collect();
        owed.sort_unstable();
        for ((user, room), (delivered, read)) in owed {
            let Some(paid) = reads.paid.get(&user).and_then(|paid| paid.get(&room)) else { continue };
            for (owed, paid) in [(delivered, paid.0), (read, paid.1)] {
                if paid < owed {
                    let expected = format!("a watermark of at least {owed}, as was told, not {paid}");
                    self.breach(Kind::ReceiptLost, Sight::Rest(user), room, owed, owed, &expected);
                }
            }
        }
    }
}

/// The first of `from..=to` that is in none of the ranges, which ascend.
fn first_outside(visible: &[(Seq, Seq)], from: Seq, to: Seq) -> Option<Seq> {
    let mut next = from;
    for (start, end) in visible {
        if *start <= next && next <= *end {
            next = end.next();
        }
    }
    (next <= to).then_some(next)
}
