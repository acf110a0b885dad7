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

/// Who reads a page of history, and what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A client that fills a readable gap.
    Refill(ClientId),
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
    /// The client says that all up to here has reached it.
    Receipt {
        /// Who.
        client: ClientId,
        /// Where.
        room: RoomId,
        /// Up to here.
        seq: Seq,
    },
    /// The socket is gone. A client without this at the end was connected to the end and owed everything.
    Closed {
        /// Whose.
        client: ClientId,
    },
    /// A page of history by `after=`.
    Page {
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
