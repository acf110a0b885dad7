//! What can be observed: the steps of a recorded history. Owns their form and the digest of contents; judges nothing.

use schemas::message::MemberChange;
use schemas::outcome::RejectCode;
use schemas::{CommandId, EventId, RoomId, Seq, SessionId, UserId};

/// One installation of a client, numbered by the recorder from 0; its sockets follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u32);

/// What stands for a content, see [`digest`].
pub type Digest = u64;

/// FNV-1a over the parts and their lengths. Each of its steps is a bijection of the state, so that one changed byte
/// always changes the digest.
pub fn digest(parts: &[&[u8]]) -> Digest {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    parts.iter().fold(0xcbf2_9ce4_8422_2325, |hash, part| {
        let hash = (part.len() as u64).to_be_bytes().iter().fold(hash, step);
        part.iter().fold(hash, step)
    })
}

/// A durable event as someone saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Where.
    pub room: RoomId,
    /// Its place.
    pub seq: Seq,
    /// Its id.
    pub id: EventId,
    /// Its time, as text.
    pub at: Digest,
    /// What it says.
    pub fact: Fact,
}

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// Someone wrote.
    Message {
        /// Who.
        sender: UserId,
        /// The content; `None` once deleted.
        body: Option<Digest>,
        /// Where it is shown.
        client_msg_id: Option<CommandId>,
    },
    /// A membership changed.
    Member {
        /// Whose.
        user: UserId,
        /// What happened to it.
        change: MemberChange,
        /// Everything else.
        rest: Digest,
    },
    /// Anything else that takes a seq.
    Other(Digest),
}

/// Names a read from its question to its answer; the recorder uses each once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// A room as a person's list of rooms shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Which.
    pub room: RoomId,
    /// The newest event that they may see.
    pub head_seq: Seq,
    /// Their delivered watermark.
    pub delivered_seq: Seq,
    /// Their read watermark.
    pub read_seq: Seq,
}

/// Who reads a page of history, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A client that fills a readable gap.
    Refill(ClientId),
    /// Someone who looks, at any time and over any edge.
    Look(UserId),
    /// The audit after everything has settled: only this says what history holds.
    Audit(UserId),
}

/// One thing that happened. The recorder notes what a client is about to do *before* it does it, and what it gets
/// after it has got it.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A client opens a socket; its last one is over.
    Hello {
        /// Which.
        client: ClientId,
        /// Whose; the same at every hello.
        user: UserId,
        /// The cursors that it gives. They must be those that it holds.
        resume: Vec<(RoomId, Seq)>,
    },
    /// The socket has its name.
    Welcome {
        /// Whose.
        client: ClientId,
        /// Its name, for the reports.
        session: SessionId,
    },
    /// One attempt of a send. Contents must differ between the sends of one person into one room: by content a
    /// delivery is told from the others.
    Sending {
        /// By whom.
        user: UserId,
        /// Over whose socket; `None` for REST.
        client: Option<ClientId>,
        /// Where.
        room: RoomId,
        /// The same at every attempt.
        client_msg_id: CommandId,
        /// What.
        body: Digest,
    },
    /// An attempt was accepted.
    Accepted {
        /// By whom it was sent.
        user: UserId,
        /// The socket that was told; `None` for REST.
        client: Option<ClientId>,
        /// Where.
        room: RoomId,
        /// Which.
        client_msg_id: CommandId,
        /// Its place.
        seq: Seq,
        /// Its id.
        id: EventId,
        /// Its time, as text.
        at: Digest,
        /// Repeats the first outcome, outside the sequence.
        duplicate: bool,
    },
    /// An attempt was rejected.
    Rejected {
        /// By whom it was sent.
        user: UserId,
        /// The socket that was told; `None` for REST.
        client: Option<ClientId>,
        /// Where.
        room: RoomId,
        /// Which.
        client_msg_id: CommandId,
        /// Why; `unavailable` leaves it unknown.
        code: RejectCode,
    },
    /// An event came at its place.
    Delivered {
        /// To whom.
        client: ClientId,
        /// Which.
        event: Event,
    },
    /// A gap came.
    Gap {
        /// To whom.
        client: ClientId,
        /// Where.
        room: RoomId,
        /// First seq that is not streamed.
        from: Seq,
        /// Last one.
        to: Seq,
        /// History has them.
        readable: bool,
    },
    /// Everything missed has come.
    Live {
        /// To whom.
        client: ClientId,
    },
    /// The client says that all up to here has reached it, or has been read.
    Receipt {
        /// Who.
        client: ClientId,
        /// Where.
        room: RoomId,
        /// Up to here.
        seq: Seq,
        /// It has been read.
        read: bool,
    },
    /// A client is told how far someone has come.
    ReceiptShown {
        /// Who is told.
        client: ClientId,
        /// Where.
        room: RoomId,
        /// Who has come so far.
        user: UserId,
        /// Delivered up to here.
        delivered_seq: Seq,
        /// Read up to here.
        read_seq: Seq,
    },
    /// Nothing breaks from here on: a receipt that is told now is not lost with whoever took it.
    Calm,
    /// A room that shows newcomers nothing of the time before them; all others show everything.
    Secretive {
        /// Which.
        room: RoomId,
    },
    /// Someone is about to read history or their list of rooms, over any edge.
    Asking {
        /// The read; its answer, if one comes, has the same.
        ask: AskId,
        /// Who reads.
        user: UserId,
    },
    /// A person's whole list of rooms.
    Rooms {
        /// The read that it answers.
        ask: AskId,
        /// Whose.
        user: UserId,
        /// All of it.
        rooms: Vec<Listed>,
    },
    /// The socket is gone. A client without this at the end was connected to the end and owed everything.
    Closed {
        /// Whose.
        client: ClientId,
    },
    /// A page of history by `after=`.
    Page {
        /// The read that it answers.
        ask: AskId,
        /// Who reads.
        reader: Reader,
        /// Where.
        room: RoomId,
        /// What was asked for: events above it.
        after: Seq,
        /// The first event that the reader may see.
        first_seq: Seq,
        /// The last one.
        head_seq: Seq,
        /// What came.
        events: Vec<Event>,
    },
}
