//! The record as it grows, and every check that can be made at once. What needs the whole history is in `judge`.

use std::collections::HashMap;

use schemas::message::MemberChange;
use schemas::outcome::RejectCode;
use schemas::{CommandId, EventId, RoomId, Seq, SessionId, UserId};

use crate::breach::{Breach, Kind, Verdict};
use crate::reads::Reads;
use crate::step::{ClientId, Digest, Event, Fact, Reader, Step};
use crate::stream::{Placed, Stream};

/// Contents that no send explains are kept for the end up to this many; beyond it they are phantoms at once.
const STRANGE_MAX: usize = 10_000;

/// The judge. See the crate's own words for how to feed it.
#[derive(Default)]
pub struct Checker {
    pub(crate) rooms: HashMap<RoomId, Room>,
    pub(crate) clients: Vec<Client>,
    pub(crate) sends: Vec<Send>,
    /// By who, where and client_msg_id.
    pub(crate) by_id: HashMap<(UserId, RoomId, CommandId), usize>,
    /// By where, who and content: how a delivery is told from the others.
    by_body: HashMap<(RoomId, UserId, Digest), usize>,
    pub(crate) strange: Vec<Strange>,
    pub(crate) early: Vec<Early>,
    /// Delivered watermarks as far as clients have told them; they are a person's, whichever device told.
    told: HashMap<UserId, HashMap<RoomId, Seq>>,
    pub(crate) reads: Reads,
    pub(crate) verdict: Verdict,
}

/// What is known of a room: one entry for each seq that anyone has seen.
#[derive(Default)]
pub(crate) struct Room {
    pub entries: HashMap<Seq, Entry>,
    /// The largest seq that someone was told as accepted.
    accepted_head: Seq,
}

/// What stands at a seq, by the first who saw it.
pub(crate) struct Entry {
    pub id: EventId,
    at: Digest,
    pub what: What,
    /// Some socket got it.
    pub delivered: bool,
    /// The audit found it.
    pub kept: bool,
    /// History showed it, at any time.
    in_history: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The send of this index.
    Send(usize),
    /// A deleted message: its content is gone, its sender is not.
    Deleted(UserId),
    /// A membership.
    Member { user: UserId, change: MemberChange, rest: Digest },
    /// Anything else.
    Other(Digest),
}

/// One client_msg_id of one person in one room.
pub(crate) struct Send {
    pub user: UserId,
    pub room: RoomId,
    pub client_msg_id: CommandId,
    /// Where it stands, by the first who saw it.
    pub place: Option<Seq>,
    /// The first outcome.
    pub accepted: Option<(Seq, EventId)>,
    pub attempts: u32,
    /// Attempts that were rejected for good.
    pub refused: u32,
    /// The socket of the first attempt: client and its how-many-th socket.
    socket: Option<(ClientId, u32)>,
    /// Attempts over another socket, or one that ended `unavailable`: its event may come as `message`.
    split: bool,
}

/// A client over all its sockets.
#[derive(Default)]
pub(crate) struct Client {
    pub user: Option<UserId>,
    pub session: Option<SessionId>,
    pub open: bool,
    /// How many sockets there were.
    sockets: u32,
    pub streams: HashMap<RoomId, Stream>,
    /// What the present socket sent and was not yet told as accepted, by sending order.
    asked: HashMap<CommandId, u64>,
    order: u64,
}

/// A content that no send explains, until the end may.
pub(crate) struct Strange {
    pub event: Event,
    pub sender: UserId,
    pub seen: Sight,
}

/// `live` that came before something acknowledged: a breach unless it was not for this person.
pub(crate) struct Early {
    pub client: ClientId,
    pub session: Option<SessionId>,
    pub room: RoomId,
    pub from: Seq,
    pub to: Seq,
}

/// How something came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sight {
    Socket(ClientId),
    Rest(UserId),
    History(Reader),
}

impl Checker {
    /// An empty record.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many promises are known to be broken so far.
    pub fn broken(&self) -> u64 {
        self.verdict.total()
    }

    /// Adds what happened next.
    pub fn observe(&mut self, step: Step) {
        match step {
            Step::Hello { client, user, resume } => self.hello(client, user, &resume),
            Step::Welcome { client, session } => self.client(client).session = Some(session),
            Step::Sending { user, client, room, client_msg_id, body } => {
                self.sending(user, client, room, client_msg_id, body);
            }
            Step::Accepted { user, client, room, client_msg_id, seq, id, at, duplicate } => {
                let told = Told { room, seq, id, at };
                self.accepted(user, client, client_msg_id, told, duplicate);
            }
            Step::Rejected { user, client, room, client_msg_id, code } => {
                self.rejected(user, client, room, client_msg_id, code);
            }
            Step::Delivered { client, event } => self.delivered(client, event),
            Step::Gap { client, room, from, to, readable } => {
                if !self.stream(client, room).gap(from, to, readable) {
                    let expected = "a gap begins right after the last event";
                    self.breach(Kind::OutOfOrder, Sight::Socket(client), room, from, to, expected);
                }
            }
            Step::Live { client } => self.live(client),
            Step::Receipt { client, room, seq, read } => self.receipt(client, room, seq, read),
            Step::ReceiptShown { client, room, user, delivered_seq, read_seq } => {
                self.reads.shown(user, room, delivered_seq.max(read_seq), client);
            }
            Step::Calm => self.reads.calm = true,
            Step::Secretive { room } => self.reads.secretive(room),
            Step::Closed { client } => self.close(client),
            Step::Asking { ask, user } => self.asking(ask, user),
            Step::Rooms { ask, user, rooms } => self.listed(ask, user, &rooms),
            Step::Page { ask, reader, room, after, first_seq, head_seq, events } => {
                let shown = events.iter().map(|event| event.seq).fold(head_seq, Seq::max);
                self.answered(ask, Sight::History(reader), room, shown);
                self.page(reader, room, after, first_seq, head_seq, &events);
            }
        }
    }

    pub(crate) fn client(&mut self, client: ClientId) -> &mut Client {
        let index = client.0 as usize;
        if index >= self.clients.len() {
            self.clients.resize_with(index + 1, Client::default);
        }
        &mut self.clients[index]
    }

    /// A stream about to go on. Where the server chooses its start, that depends on what the person has told.
    fn stream(&mut self, client: ClientId, room: RoomId) -> &mut Stream {
        self.client(client);
        let client = &mut self.clients[client.0 as usize];
        let stream = client.streams.entry(room).or_default();
        if let (None, Some(user)) = (stream.cursor, client.user) {
            stream.told = self.told.get(&user).and_then(|told| told.get(&room)).copied().unwrap_or_default();
        }
        stream
    }

    fn receipt(&mut self, client: ClientId, room: RoomId, seq: Seq, read: bool) {
        // What was never sent to the person does not count.
        let Some(cursor) = self.stream(client, room).cursor else { return };
        let Some(user) = self.client(client).user else { return };
        let seq = seq.min(cursor);
        let told = self.told.entry(user).or_default().entry(room).or_default();
        *told = seq.max(*told);
        self.reads.told(user, room, seq, read);
    }

    /// Notes a breach that spans `seq..=to`.
    pub(crate) fn breach(&mut self, kind: Kind, seen: Sight, room: RoomId, seq: Seq, to: Seq, expected: &str) {
        let (user, session) = match seen {
            Sight::Socket(client) | Sight::History(Reader::Refill(client)) => {
                let client = self.client(client);
                (client.user, client.session)
            }
            Sight::Rest(user) | Sight::History(Reader::Audit(user) | Reader::Look(user)) => (Some(user), None),
        };
        self.verdict.add(Breach { kind, room, seq, to_seq: to, user, session, expected: expected.to_owned() });
    }

    fn hello(&mut self, id: ClientId, user: UserId, resume: &[(RoomId, Seq)]) {
        self.close(id);
        let rooms = &self.rooms;
        let index = id.0 as usize;
        let client = &mut self.clients[index];
        client.user = Some(user);
        client.session = None;
        client.open = true;
        let again = client.sockets > 0;
        client.sockets += 1;
        let resume: HashMap<RoomId, Seq> = resume.iter().copied().collect();
        let mut claims = Vec::new();
        for room in resume.keys() {
            client.streams.entry(*room).or_default();
        }
        for (room, stream) in &mut client.streams {
            let cursor = resume.get(room).copied();
            claims.extend(stream.open(cursor, again).map(|claim| (*room, claim)));
            if cursor.is_some() {
                stream.due_at_live = rooms.get(room).map_or(Seq::ZERO, |room| room.accepted_head);
            }
        }
        for (room, (from, to)) in claims {
            let expected = "the client goes on after these, yet never got them";
            self.breach(Kind::Hole, Sight::Socket(id), room, from, to, expected);
        }
    }

    /// The socket is over: what it skipped can't come any more.
    pub(crate) fn close(&mut self, id: ClientId) {
        let client = self.client(id);
        client.open = false;
        client.asked.clear();
        let holes: Vec<(RoomId, Seq, Seq)> = client
            .streams
            .iter_mut()
            .flat_map(|(room, stream)| stream.take_holes().into_iter().map(|(from, to)| (*room, from, to)))
            .collect();
        for (room, from, to) in holes {
            self.breach(Kind::Hole, Sight::Socket(id), room, from, to, "these come before the later ones that came");
        }
    }

    fn sending(&mut self, user: UserId, id: Option<ClientId>, room: RoomId, client_msg_id: CommandId, body: Digest) {
        let socket = id.map(|id| {
            let client = self.client(id);
            client.order += 1;
            let order = client.order;
            if *client.asked.entry(client_msg_id).or_insert(order) != order {
                // A second attempt on one socket: the others may have overtaken it.
                client.streams.entry(room).or_default().rejected = true;
            }
            (id, client.sockets)
        });
        let next = self.sends.len();
        let index = *self.by_id.entry((user, room, client_msg_id)).or_insert(next);
        if index == next {
            self.by_body.insert((room, user, body), index);
            self.sends.push(Send {
                user,
                room,
                client_msg_id,
                place: None,
                accepted: None,
                attempts: 0,
                refused: 0,
                socket,
                split: false,
            });
        }
        let send = &mut self.sends[index];
        send.attempts += 1;
        send.split |= send.socket != socket;
    }

    fn accepted(&mut self, user: UserId, id: Option<ClientId>, client_msg_id: CommandId, told: Told, duplicate: bool) {
        let Told { room, seq, .. } = told;
        let seen = id.map_or(Sight::Rest(user), Sight::Socket);
        let Some(&index) = self.by_id.get(&(user, room, client_msg_id)) else {
            return self.breach(Kind::OutcomeUnasked, seen, room, seq, seq, "no outcome for what was never sent");
        };
        let first = *self.sends[index].accepted.get_or_insert((seq, told.id));
        if first.0 != seq {
            let expected = format!("{client_msg_id} was accepted at seq {} before", first.0);
            self.breach(Kind::ActedTwice, seen, room, seq, seq, &expected);
        }
        let head = &mut self.rooms.entry(room).or_default().accepted_head;
        *head = seq.max(*head);
        self.reads.accepted(user, room, seq);
        self.witness(seen, told, What::Send(index));
        if duplicate {
            return;
        }
        let Some(id) = id else { return };
        let asked = self.client(id).asked.remove(&client_msg_id);
        let stream = self.stream(id, room);
        let placed = stream.place(seq, true);
        let disordered = asked.is_some_and(|order| order < stream.last_order && !stream.rejected);
        stream.last_order = stream.last_order.max(asked.unwrap_or(0));
        if asked.is_none() {
            self.breach(Kind::OutcomeUnasked, seen, room, seq, seq, "one outcome, to the socket that sent it");
        }
        if disordered {
            let expected = "sends of one socket into one room are placed in sending order";
            self.breach(Kind::SendDisordered, seen, room, seq, seq, expected);
        }
        if !matches!(placed, Placed::Ahead | Placed::InGap) {
            let expected = "accepted stands in the sequence, at its seq";
            self.breach(Kind::AcceptedMisplaced, seen, room, seq, seq, expected);
        }
    }

    fn rejected(&mut self, user: UserId, id: Option<ClientId>, room: RoomId, sent: CommandId, code: RejectCode) {
        let seen = id.map_or(Sight::Rest(user), Sight::Socket);
        let Some(&index) = self.by_id.get(&(user, room, sent)) else {
            let (seq, expected) = (Seq::ZERO, "no outcome for what was never sent");
            return self.breach(Kind::OutcomeUnasked, seen, room, seq, seq, expected);
        };
        let send = &mut self.sends[index];
        if code == RejectCode::Unavailable {
            send.split = true;
        } else {
            send.refused += 1;
        }
        if let Some(id) = id {
            self.client(id).streams.entry(room).or_default().rejected = true;
        }
    }

    fn delivered(&mut self, id: ClientId, event: Event) {
        let seen = Sight::Socket(id);
        let Event { room, seq, .. } = event;
        let placed = self.stream(id, room).place(seq, false);
        match placed {
            Placed::Ahead => {}
            Placed::Doubled => self.breach(Kind::Doubled, seen, room, seq, seq, "one seq once"),
            Placed::Redelivered => {
                self.breach(Kind::Redelivered, seen, room, seq, seq, "nothing at or below the resume cursor");
            }
            Placed::Late { by_accepted: true } => {
                let expected = "accepted stands at its seq, after the events before it";
                self.breach(Kind::AcceptedMisplaced, seen, room, seq, seq, expected);
            }
            Placed::Late { by_accepted: false } => {
                self.breach(Kind::OutOfOrder, seen, room, seq, seq, "ascending seq");
            }
            Placed::InGap => {
                self.breach(Kind::OutOfOrder, seen, room, seq, seq, "a gap said that it is not streamed");
            }
        }
        if let (Fact::Member { user, change, .. }, Some(me)) = (event.fact, self.client(id).user)
            && user == me
        {
            self.reads.came_or_went(me, room, seq, change);
        }
        let Some(index) = self.recognise(seen, event) else { return };
        let client = &self.clients[id.0 as usize];
        let send = &self.sends[index];
        if send.socket == Some((id, client.sockets)) && !send.split && Some(send.user) == client.user {
            let expected = "the sending socket gets accepted in place of its own message";
            self.breach(Kind::AcceptedMisplaced, seen, room, seq, seq, expected);
        }
    }

    /// Takes an event into the table. Returns the send that it is.
    fn recognise(&mut self, seen: Sight, event: Event) -> Option<usize> {
        let Event { room, seq, id, at, fact } = event;
        let (what, index) = match fact {
            Fact::Other(digest) => (What::Other(digest), None),
            Fact::Member { user, change, rest } => (What::Member { user, change, rest }, None),
            Fact::Message { sender, body: None, .. } => (What::Deleted(sender), None),
            Fact::Message { sender, body: Some(body), client_msg_id } => {
                let sent = self.by_body.get(&(room, sender, body)).copied();
                let sent = sent.filter(|&i| client_msg_id.is_none_or(|id| id == self.sends[i].client_msg_id));
                let Some(index) = sent else {
                    if self.strange.len() < STRANGE_MAX {
                        self.strange.push(Strange { event, sender, seen });
                    } else {
                        self.breach(Kind::Phantom, seen, room, seq, seq, "nobody sent this");
                    }
                    return None;
                };
                (What::Send(index), Some(index))
            }
        };
        self.witness(seen, Told { room, seq, id, at }, what);
        index
    }

    /// Compares what someone saw at a seq with what the others saw.
    fn witness(&mut self, seen: Sight, told: Told, what: What) {
        let Told { room, seq, id, at } = told;
        let from_history = matches!(seen, Sight::History(_));
        let audited = matches!(seen, Sight::History(Reader::Audit(_)));
        let delivered = matches!(seen, Sight::Socket(_));
        let entries = &mut self.rooms.entry(room).or_default().entries;
        let Some(entry) = entries.get_mut(&seq) else {
            entries.insert(seq, Entry { id, at, what, delivered, kept: audited, in_history: from_history });
            if let What::Send(index) = what {
                let place = *self.sends[index].place.get_or_insert(seq);
                if place != seq {
                    let expected = format!("{} stands at seq {place} already", self.sends[index].client_msg_id);
                    self.breach(Kind::ActedTwice, seen, room, seq, seq, &expected);
                }
            }
            return;
        };
        let live_before = entry.delivered || !entry.in_history;
        let same = entry.id == id && entry.at == at && same_thing(&self.sends, entry.what, what);
        if same {
            entry.delivered |= delivered;
            entry.kept |= audited;
            entry.in_history |= from_history;
            return;
        }
        let before = entry.id;
        let (kind, expected) = if from_history == live_before {
            (Kind::HistoryDiffers, format!("event {before} with its content and time, live as in history"))
        } else if before == id {
            (Kind::WrongBody, format!("event {id} with one content and time for everyone"))
        } else {
            (Kind::SeqReused, format!("event {before}, not {id}"))
        };
        self.breach(kind, seen, room, seq, seq, &expected);
    }

    fn live(&mut self, id: ClientId) {
        // Where nothing has come, the stream begins after what the person's other devices have told.
        let user = self.client(id).user;
        let told = user.and_then(|user| self.told.get(&user)).into_iter().flatten();
        let told: Vec<RoomId> = told.map(|(room, _)| *room).collect();
        for room in told {
            self.stream(id, room);
        }
        let client = self.client(id);
        let session = client.session;
        let behind = |(room, stream): (&RoomId, &Stream)| {
            let cursor = stream.cursor.unwrap_or(Seq::ZERO);
            (cursor < stream.due_at_live).then(|| Early {
                client: id,
                session,
                room: *room,
                from: cursor.next(),
                to: stream.due_at_live,
            })
        };
        let early: Vec<Early> = client.streams.iter().filter_map(behind).collect();
        self.early.extend(early);
    }

    fn page(&mut self, reader: Reader, room: RoomId, after: Seq, first: Seq, head: Seq, events: &[Event]) {
        let seen = Sight::History(reader);
        let user = self.user_of(reader).unwrap_or(UserId::NIL);
        let from = after.next().max(first);
        let mut next = from;
        for event in events {
            let seq = event.seq;
            self.reads.shown_history(user, room, seq);
            if seq > next && !self.reads.left_out(user, room, next, seq.prev()) {
                self.breach(Kind::HistoryHole, seen, room, next, seq.prev(), "history is dense");
            } else if seq < next {
                self.breach(Kind::HistoryDisordered, seen, room, seq, seq, "history ascends, each seq once");
            }
            next = next.max(seq.next());
            self.recognise(seen, Event { room, ..*event });
        }
        if events.is_empty() && from <= head {
            self.breach(Kind::HistoryHole, seen, room, from, head, "history goes up to its head");
        }
        if let (Reader::Refill(id), true) = (reader, next > from) {
            self.client(id).streams.entry(room).or_default().refill(from, next.prev());
        }
    }
}

/// Where something was said to stand.
#[derive(Clone, Copy)]
struct Told {
    room: RoomId,
    seq: Seq,
    id: EventId,
    at: Digest,
}

/// Whether two sights are of the same thing: a message may have been deleted between them.
fn same_thing(sends: &[Send], a: What, b: What) -> bool {
    match (a, b) {
        (What::Send(send), What::Deleted(user)) | (What::Deleted(user), What::Send(send)) => sends[send].user == user,
        _ => a == b,
    }
}
