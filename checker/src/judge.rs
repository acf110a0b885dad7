//! The end: everything that only the whole history can tell.

use std::collections::HashMap;

use schemas::{RoomId, Seq, UserId};

use crate::breach::{Kind, Verdict};
use crate::checker::{Checker, Room, Send, Sight, What};
use crate::step::{ClientId, Fact, Reader};
use crate::stream::Stream;

/// One stay in a room: the own join, and the event by which it ended.
type Stay = (Seq, Option<Seq>);

/// What the table tells about a room.
pub(crate) struct Facts {
    pub head: Seq,
    stays: HashMap<UserId, Vec<Stay>>,
}

impl Facts {
    fn of(room: &Room) -> Self {
        let mut members: Vec<_> = room
            .entries
            .iter()
            .filter_map(|(seq, entry)| match entry.what {
                What::Member { user, change, .. } => Some((*seq, user, change)),
                _ => None,
            })
            .collect();
        members.sort_unstable_by_key(|(seq, ..)| *seq);
        let mut stays: HashMap<UserId, Vec<Stay>> = HashMap::new();
        for (seq, user, change) in members {
            let stays = stays.entry(user).or_default();
            match stays.last_mut() {
                Some((_, until @ None)) if change.ends() => *until = Some(seq),
                Some((_, None)) => {}
                _ if change.begins() => stays.push((seq, None)),
                _ => {}
            }
        }
        Self { head: room.entries.keys().max().copied().unwrap_or_default(), stays }
    }

    pub fn stays(&self, user: UserId) -> &[Stay] {
        self.stays.get(&user).map_or(&[], Vec::as_slice)
    }

    /// The last event that they may see; `None`: none at all.
    pub fn last_visible(&self, user: UserId) -> Option<Seq> {
        self.stays(user).last().map(|(_, until)| until.unwrap_or(self.head))
    }

    /// What they may see of it, as ranges that ascend.
    pub fn visible(&self, user: UserId, secretive: bool) -> Vec<(Seq, Seq)> {
        if secretive {
            return self.stays(user).iter().map(|(from, until)| (*from, until.unwrap_or(self.head))).collect();
        }
        self.last_visible(user).map(|last| (Seq(1), last)).into_iter().collect()
    }
}

/// Whether two ranges share a seq.
pub(crate) fn meet(a: (Seq, Seq), b: (Seq, Seq)) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

impl Checker {
    /// The verdict over everything that was observed.
    pub fn judge(mut self) -> Verdict {
        let connected: Vec<bool> = self.clients.iter().map(|client| client.open).collect();
        for index in 0..self.clients.len() {
            self.close(client_id(index));
        }
        let rooms: HashMap<RoomId, Facts> = self.rooms.iter().map(|(id, room)| (*id, Facts::of(room))).collect();
        self.judge_strange();
        self.judge_history();
        self.judge_sends();
        self.judge_reads(&rooms);
        for (index, connected) in connected.into_iter().enumerate() {
            self.judge_client(client_id(index), connected, &rooms);
        }
        for early in std::mem::take(&mut self.early) {
            let user = self.client(early.client).user;
            let stays = rooms.get(&early.room).zip(user).map_or(&[][..], |(facts, user)| facts.stays(user));
            if stays.iter().any(|(from, until)| meet((*from, until.unwrap_or(early.to)), (early.from, early.to))) {
                self.client(early.client).session = early.session;
                let expected = "live after everything that was acknowledged before the hello";
                let seen = Sight::Socket(early.client);
                self.breach(Kind::LiveEarly, seen, early.room, early.from, early.to, expected);
            }
        }
        self.verdict
    }

    /// Contents that no send explains: something stands there or was promised, then they are wrong; else phantoms.
    fn judge_strange(&mut self) {
        let promised: HashMap<(RoomId, Seq), usize> = self
            .sends
            .iter()
            .enumerate()
            .filter_map(|(index, send)| Some(((send.room, send.accepted?.0), index)))
            .collect();
        for strange in std::mem::take(&mut self.strange) {
            let (room, seq) = (strange.event.room, strange.event.seq);
            let entry = self.rooms.get(&room).and_then(|room| room.entries.get(&seq));
            let named = match strange.event.fact {
                Fact::Message { client_msg_id: Some(id), .. } => self.by_id.get(&(strange.sender, room, id)),
                _ => None,
            };
            let kind = match (strange.seen, entry) {
                (Sight::History(_), Some(entry)) if entry.delivered => Kind::HistoryDiffers,
                (_, Some(_)) => Kind::WrongBody,
                _ if named.is_some() || promised.contains_key(&(room, seq)) => Kind::WrongBody,
                _ => Kind::Phantom,
            };
            let expected = if kind == Kind::Phantom { "nobody sent this" } else { "the content that was sent" };
            self.breach(kind, strange.seen, room, seq, seq, expected);
        }
    }

    fn judge_history(&mut self) {
        let mut missing: Vec<(RoomId, Seq, Option<usize>)> = Vec::new();
        for (id, room) in &self.rooms {
            for (seq, entry) in room.entries.iter().filter(|(_, entry)| !entry.kept) {
                match entry.what {
                    What::Send(index) if self.sends[index].accepted.is_some() => missing.push((*id, *seq, Some(index))),
                    _ if entry.delivered => missing.push((*id, *seq, None)),
                    _ => {}
                }
            }
        }
        missing.sort_unstable();
        for (room, seq, accepted) in missing {
            match accepted {
                Some(index) => {
                    let Send { user, client_msg_id, .. } = self.sends[index];
                    let expected = format!("accepted message {client_msg_id} in history");
                    self.breach(Kind::Lost, Sight::Rest(user), room, seq, seq, &expected);
                }
                None => {
                    let anyone = Sight::History(Reader::Audit(UserId::NIL));
                    self.breach(Kind::NotInHistory, anyone, room, seq, seq, "what was delivered, in history");
                }
            }
        }
    }

    fn judge_sends(&mut self) {
        let mut stored = Vec::new();
        for send in self.sends.iter().filter(|send| send.accepted.is_none()) {
            match send.place {
                Some(seq) if send.attempts == send.refused => stored.push((send.user, send.room, seq)),
                Some(_) => self.verdict.unknown_stored += 1,
                None if send.attempts > send.refused => self.verdict.unknown_absent += 1,
                None => {}
            }
        }
        for (user, room, seq) in stored {
            let entry = self.rooms.get(&room).and_then(|room| room.entries.get(&seq));
            let (kind, expected) = if entry.is_some_and(|entry| entry.kept) {
                (Kind::RejectedStored, "not stored, for every attempt was rejected")
            } else {
                (Kind::AbortedRead, "not shown to anyone, for every attempt was rejected")
            };
            self.breach(kind, Sight::Rest(user), room, seq, seq, expected);
        }
    }

    fn judge_client(&mut self, id: ClientId, connected: bool, rooms: &HashMap<RoomId, Facts>) {
        let client = self.client(id);
        let Some(user) = client.user else { return };
        let mut streams = std::mem::take(&mut client.streams);
        for (room, facts) in rooms {
            let stays = facts.stays(user);
            let stream = streams.remove(room).unwrap_or_default();
            if connected {
                self.judge_tail(id, *room, facts, stays, &stream);
            }
            self.judge_stream(id, *room, facts, stays, &stream);
        }
    }

    /// Who was connected to the end has everything.
    fn judge_tail(&mut self, id: ClientId, room: RoomId, facts: &Facts, stays: &[Stay], stream: &Stream) {
        let Some((joined, until)) = stays.last() else { return };
        let end = until.unwrap_or(facts.head);
        let next = stream.cursor.map_or_else(|| stream.told.next().max(*joined), Seq::next);
        if next <= end {
            let expected = "everything up to the room's head, for the socket was connected to the end";
            self.breach(Kind::Undelivered, Sight::Socket(id), room, next, end, expected);
        }
    }

    fn judge_stream(&mut self, id: ClientId, room: RoomId, facts: &Facts, stays: &[Stay], stream: &Stream) {
        let seen = Sight::Socket(id);
        if let Some((joined, _)) = stays.first() {
            for start in &stream.starts {
                let due = start.told.next().max(*joined);
                if start.first > due {
                    let expected = "a stream without a cursor begins after the delivered watermark";
                    self.breach(Kind::Hole, seen, room, due, start.first.prev(), expected);
                } else if start.first < *joined && !start.claimed {
                    let expected = "a stream begins with the own join";
                    self.breach(Kind::StartsEarly, seen, room, start.first, joined.prev(), expected);
                }
            }
        }
        // Between two stays, and after the last, nothing may come; a gap leads over it.
        let begun = stream.starts.first().map_or(Seq::ZERO, |start| start.first);
        let cursor = stream.cursor.unwrap_or_default();
        let backs = stays.iter().skip(1).map(|(from, _)| Some(*from)).chain([None]);
        for ((_, until), back) in stays.iter().zip(backs) {
            let Some(until) = *until else { continue };
            let out = (until.next(), back.map_or(cursor, Seq::prev));
            let passed = begun <= until && out.0 <= out.1 && cursor >= back.unwrap_or(out.0);
            let announced = stream.gaps.iter().any(|gap| gap.from <= out.0 && out.1 <= gap.to);
            if passed && !announced {
                let expected = "nothing after the event by which they went";
                self.breach(Kind::Leaked, seen, room, out.0, out.1, expected);
            }
        }
        for gap in &stream.gaps {
            let hides = |(from, until): &Stay| meet((*from, until.unwrap_or(facts.head)), (gap.from, gap.to));
            if gap.to > facts.head || (!gap.readable && stays.iter().any(hides)) {
                let expected = "a gap only over events that exist, unreadable only where they may not be read";
                self.breach(Kind::FalseGap, seen, room, gap.from, gap.to, expected);
            } else if gap.readable && gap.filled < gap.to {
                let expected = "history fills a readable gap";
                self.breach(Kind::GapUnfilled, seen, room, gap.filled.next(), gap.to, expected);
            }
        }
    }
}

fn client_id(index: usize) -> ClientId {
    ClientId(u32::try_from(index).unwrap_or(u32::MAX))
}
