//! A small honest server and its clients, as the steps that a recorder would note. What the tests then spoil.

use std::collections::VecDeque;

use checker::{AskId, Checker, ClientId, Digest, Event, Fact, Listed, Reader, Step, Verdict, digest};
use schemas::message::MemberChange;
use schemas::outcome::RejectCode;
use schemas::{CommandId, EventId, RoomId, Seq, SessionId, UserId};
use uuid::Uuid;

pub const ROOMS: usize = 2;
pub const CLIENTS: usize = 3;
/// More missed events than this become a gap.
const STREAM_MAX: u64 = 6;
const PAGE: usize = 4;

pub fn room(index: usize) -> RoomId {
    RoomId(Uuid::from_u128(0x1000 + index as u128))
}

pub fn user(index: usize) -> UserId {
    UserId(Uuid::from_u128(0x2000 + index as u128))
}

fn client(index: usize) -> ClientId {
    ClientId(u32::try_from(index).unwrap())
}

#[derive(Clone, Copy)]
struct Stored {
    event: Event,
    sent_by: Option<(usize, u32, CommandId)>,
}

#[derive(Clone, Copy)]
struct Pending {
    room: usize,
    id: CommandId,
    body: Digest,
    stored: Option<Seq>,
}

#[derive(Default)]
struct Peer {
    open: bool,
    socket: u32,
    cursors: [u64; ROOMS],
    delivered: [u64; ROOMS],
    pending: VecDeque<Pending>,
}

/// What can happen.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Send {
        who: usize,
        room: usize,
    },
    /// Stored or not, the socket ends before the outcome.
    SendLost {
        who: usize,
        room: usize,
        stored: bool,
    },
    Refuse {
        who: usize,
        room: usize,
    },
    Drop {
        who: usize,
    },
    Return {
        who: usize,
    },
    Pump {
        who: usize,
    },
    Receipt {
        who: usize,
        room: usize,
    },
    Leave {
        who: usize,
        room: usize,
    },
    Add {
        who: usize,
        room: usize,
    },
}

#[derive(Default)]
pub struct World {
    logs: [Vec<Stored>; ROOMS],
    peers: [Peer; CLIENTS],
    pub steps: Vec<Step>,
    next: u64,
}

impl World {
    /// Rooms with everyone in, everyone connected for the first time.
    pub fn new() -> Self {
        let mut world = Self::default();
        for index in 0..ROOMS {
            world.store(index, Fact::Other(7), None);
            for who in 0..CLIENTS {
                world.member(index, who, MemberChange::Added);
            }
        }
        for who in 0..CLIENTS {
            // The server's watermark of a newcomer: before their join. The first hello gives no cursor.
            world.peers[who].cursors = [who as u64 + 1; ROOMS];
            world.open(who, Vec::new());
        }
        world
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn store(&mut self, index: usize, fact: Fact, sent_by: Option<(usize, u32, CommandId)>) -> Event {
        let n = self.fresh();
        let log = &mut self.logs[index];
        let seq = Seq(log.len() as u64 + 1);
        let event = Event { room: room(index), seq, id: EventId(Uuid::from_u128(u128::from(n))), at: n, fact };
        log.push(Stored { event, sent_by });
        event
    }

    fn member(&mut self, index: usize, who: usize, change: MemberChange) {
        self.store(index, Fact::Member { user: user(who), change, rest: 3 }, None);
    }

    fn is_in(&self, index: usize, who: usize) -> bool {
        self.until(index, who).is_none()
    }

    /// The event by which they went, unless they are in.
    fn until(&self, index: usize, who: usize) -> Option<u64> {
        self.logs[index].iter().rev().find_map(|stored| match stored.event.fact {
            Fact::Member { user: of, change, .. } if of == user(who) => {
                Some(change.ends().then_some(stored.event.seq.0))
            }
            _ => None,
        })?
    }

    fn open(&mut self, who: usize, resume: Vec<(RoomId, Seq)>) {
        let peer = &mut self.peers[who];
        (peer.open, peer.socket) = (true, peer.socket + 1);
        let session = SessionId(Uuid::from_u128(u128::from(peer.socket) * 100 + who as u128));
        self.steps.push(Step::Hello { client: client(who), user: user(who), resume });
        self.steps.push(Step::Welcome { client: client(who), session });
        self.pump(who);
        self.steps.push(Step::Live { client: client(who) });
    }

    fn sending(&mut self, who: usize, pending: Pending) {
        self.steps.push(Step::Sending {
            user: user(who),
            client: Some(client(who)),
            room: room(pending.room),
            client_msg_id: pending.id,
            body: pending.body,
        });
    }

    fn accepted(&mut self, who: usize, id: CommandId, event: Event, duplicate: bool) {
        self.steps.push(Step::Accepted {
            user: user(who),
            client: Some(client(who)),
            room: event.room,
            client_msg_id: id,
            seq: event.seq,
            id: event.id,
            at: event.at,
            duplicate,
        });
    }

    fn new_send(&mut self, room: usize) -> Pending {
        let n = self.fresh();
        let id = CommandId(Uuid::from_u128(0x3000_0000 + u128::from(n)));
        Pending { room, id, body: digest(&[&n.to_be_bytes()]), stored: None }
    }

    fn keep(&mut self, who: usize, mut pending: Pending) -> Pending {
        let fact = Fact::Message { sender: user(who), body: Some(pending.body), client_msg_id: Some(pending.id) };
        let sent_by = Some((who, self.peers[who].socket, pending.id));
        pending.stored = Some(self.store(pending.room, fact, sent_by).seq);
        pending
    }

    /// The event as someone else than its sender, or its sender, sees it.
    fn seen_by(event: Event, who: usize) -> Event {
        match event.fact {
            Fact::Message { sender, body, .. } if sender != user(who) => {
                Event { fact: Fact::Message { sender, body, client_msg_id: None }, ..event }
            }
            _ => event,
        }
    }

    /// Streams everything to a socket.
    pub fn pump(&mut self, who: usize) {
        for index in 0..ROOMS {
            let head = self.logs[index].len() as u64;
            let end = self.until(index, who).unwrap_or(head);
            let cursor = self.peers[who].cursors[index];
            // Out and back in since: a gap leads from the going to the coming.
            let went = self.logs[index].iter().skip(usize::try_from(cursor).unwrap().saturating_sub(1)).find(|stored| {
                matches!(stored.event.fact, Fact::Member { user: of, change, .. } if of == user(who) && change.ends())
            });
            let went = went.map(|stored| stored.event.seq.0).filter(|went| *went < end);
            if end.saturating_sub(cursor) > STREAM_MAX {
                self.gap(who, index, cursor + 1, end - 1);
                self.stream(who, index, end - 1, end);
            } else if let Some(went) = went {
                let back = self.logs[index].iter().skip(usize::try_from(went).unwrap()).find(|stored| {
                    matches!(stored.event.fact, Fact::Member { user: of, change, .. } if of == user(who) && change.begins())
                });
                let back = back.unwrap().event.seq.0;
                self.stream(who, index, cursor, went);
                if back > went + 1 {
                    self.gap(who, index, went + 1, back - 1);
                }
                self.stream(who, index, back - 1, back);
                self.peers[who].cursors[index] = back;
                self.pump(who);
            } else {
                self.stream(who, index, cursor, end);
            }
            let peer = &mut self.peers[who];
            peer.cursors[index] = peer.cursors[index].max(end);
        }
    }

    fn stream(&mut self, who: usize, index: usize, after: u64, to: u64) {
        for seq in after..to {
            let Stored { event, sent_by } = self.logs[index][usize::try_from(seq).unwrap()];
            match sent_by {
                Some((by, socket, id)) if by == who && socket == self.peers[who].socket => {
                    self.peers[who].pending.retain(|pending| pending.id != id);
                    self.accepted(who, id, event, false);
                }
                _ => self.steps.push(Step::Delivered { client: client(who), event: Self::seen_by(event, who) }),
            }
        }
    }

    fn gap(&mut self, who: usize, index: usize, from: u64, to: u64) {
        let (client, room) = (client(who), room(index));
        self.steps.push(Step::Gap { client, room, from: Seq(from), to: Seq(to), readable: true });
        let skipped: Vec<_> = self.logs[index][usize::try_from(from - 1).unwrap()..usize::try_from(to).unwrap()]
            .iter()
            .map(|stored| (stored.event, stored.sent_by))
            .collect();
        for (event, sent_by) in &skipped {
            if let Some((by, socket, id)) = *sent_by
                && by == who
                && socket == self.peers[who].socket
            {
                self.peers[who].pending.retain(|pending| pending.id != id);
                self.accepted(who, id, *event, false);
            }
        }
        let events = skipped.into_iter().map(|(event, _)| Self::seen_by(event, who)).collect();
        self.page(who, Reader::Refill(client), index, from - 1, events);
    }

    fn ask(&mut self, who: usize) -> AskId {
        let ask = AskId(self.fresh());
        self.steps.push(Step::Asking { ask, user: user(who) });
        ask
    }

    /// Nothing breaks any more: everyone tells how far they have come, and looks at their list of rooms.
    fn list_rooms(&mut self) {
        self.steps.push(Step::Calm);
        for who in 0..CLIENTS {
            for index in 0..ROOMS {
                self.apply(Op::Receipt { who, room: index });
                let (client, room, seq) = (client(who), room(index), Seq(self.peers[who].cursors[index]));
                self.steps.push(Step::Receipt { client, room, seq, read: true });
            }
            let ask = self.ask(who);
            let rooms = (0..ROOMS).filter(|index| self.is_in(*index, who)).map(|index| Listed {
                room: room(index),
                head_seq: Seq(self.logs[index].len() as u64),
                delivered_seq: Seq(self.peers[who].delivered[index]),
                read_seq: Seq(self.peers[who].cursors[index]),
            });
            let (user, rooms) = (user(who), rooms.collect());
            self.steps.push(Step::Rooms { ask, user, rooms });
        }
    }

    fn page(&mut self, who: usize, reader: Reader, index: usize, after: u64, events: Vec<Event>) {
        let head_seq = Seq(self.until(index, who).unwrap_or(self.logs[index].len() as u64));
        let (room, after, first_seq) = (room(index), Seq(after), Seq(1));
        let ask = self.ask(who);
        self.steps.push(Step::Page { ask, reader, room, after, first_seq, head_seq, events });
    }

    pub fn apply(&mut self, op: Op) {
        match op {
            Op::Send { who, room } if self.peers[who].open && self.is_in(room, who) => {
                let pending = self.new_send(room);
                self.sending(who, pending);
                let pending = self.keep(who, pending);
                self.peers[who].pending.push_back(pending);
            }
            Op::SendLost { who, room, stored } if self.peers[who].open && self.is_in(room, who) => {
                self.pump(who);
                let mut pending = self.new_send(room);
                self.sending(who, pending);
                if stored {
                    pending = self.keep(who, pending);
                }
                self.peers[who].pending.push_back(pending);
                self.apply(Op::Drop { who });
            }
            Op::Refuse { who, room: index } if self.peers[who].open => {
                let pending = self.new_send(index);
                self.sending(who, pending);
                self.steps.push(Step::Rejected {
                    user: user(who),
                    client: Some(client(who)),
                    room: room(index),
                    client_msg_id: pending.id,
                    code: RejectCode::TooLarge,
                });
            }
            Op::Drop { who } if self.peers[who].open => {
                self.peers[who].open = false;
                self.steps.push(Step::Closed { client: client(who) });
            }
            Op::Return { who } if !self.peers[who].open => {
                let resume = (0..ROOMS).map(|index| (room(index), Seq(self.peers[who].cursors[index]))).collect();
                self.open(who, resume);
                let retries: Vec<_> = self.peers[who].pending.drain(..).collect();
                for pending in retries {
                    if pending.stored.is_none() && !self.is_in(pending.room, who) {
                        continue;
                    }
                    self.sending(who, pending);
                    match pending.stored {
                        Some(seq) => {
                            let event = self.logs[pending.room][usize::try_from(seq.0 - 1).unwrap()].event;
                            self.accepted(who, pending.id, event, true);
                        }
                        None => {
                            let pending = self.keep(who, pending);
                            self.peers[who].pending.push_back(pending);
                        }
                    }
                }
            }
            Op::Pump { who } if self.peers[who].open => self.pump(who),
            Op::Receipt { who, room: index } if self.peers[who].open => {
                self.pump(who);
                let seq = Seq(self.peers[who].cursors[index]);
                self.steps.push(Step::Receipt { client: client(who), room: room(index), seq, read: false });
                let marks = &mut self.peers[who].delivered[index];
                *marks = (*marks).max(seq.0);
                let (user, delivered_seq) = (user(who), Seq(*marks));
                for other in (0..CLIENTS).filter(|other| self.peers[*other].open) {
                    let (client, room) = (client(other), room(index));
                    self.steps.push(Step::ReceiptShown { client, room, user, delivered_seq, read_seq: Seq(0) });
                }
            }
            Op::Leave { who, room } if who > 0 && self.is_in(room, who) => {
                self.member(room, who, MemberChange::Left);
            }
            Op::Add { who, room } if !self.is_in(room, who) => self.member(room, who, MemberChange::Added),
            _ => {}
        }
    }

    /// Everyone comes back and gets everything; two people read all of history.
    pub fn finish(mut self) -> Vec<Step> {
        for who in 0..CLIENTS {
            self.apply(Op::Return { who });
        }
        for who in 0..CLIENTS {
            self.pump(who);
        }
        for index in 0..ROOMS {
            for who in [0, 1] {
                let end = self.until(index, who).unwrap_or(self.logs[index].len() as u64);
                let events: Vec<_> = self.logs[index]
                    .iter()
                    .take(usize::try_from(end).unwrap())
                    .map(|stored| Self::seen_by(stored.event, who))
                    .collect();
                for (number, events) in events.chunks(PAGE).enumerate() {
                    let after = Seq((number * PAGE) as u64);
                    let (reader, room, first_seq, head_seq) = (Reader::Audit(user(who)), room(index), Seq(1), Seq(end));
                    let (ask, events) = (self.ask(who), events.to_vec());
                    self.steps.push(Step::Page { ask, reader, room, after, first_seq, head_seq, events });
                }
            }
        }
        self.list_rooms();
        self.steps
    }
}

pub fn judge(steps: &[Step]) -> Verdict {
    let mut checker = Checker::new();
    steps.iter().for_each(|step| checker.observe(step.clone()));
    checker.judge()
}
