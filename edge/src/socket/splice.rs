//! One room's place in one socket's stream (I7). Pure. It knows the cursor, and whether live events may follow it
//! directly or have to be read from history first. Resuming, joining, a slow socket and a lost link are all the same
//! thing here: `Behind`, until history has been read up to the highest event heard of.

use schemas::{Offset, Seq};

/// What to do with an event that has come in live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// It is next: send it.
    Push,
    /// It is not, or can't be sent now: read history from the cursor.
    Behind,
    /// The socket has it.
    Drop,
}

/// One room of one socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomCursor {
    /// The last seq sent, or given by the client. Never goes back, and is never lowered to a head (I7).
    cursor: Seq,
    /// The highest event heard of.
    head: Seq,
    /// History has to be read before live events may follow.
    behind: bool,
    /// The highest seq that a receipt of this socket may name: what was sent to or read for it.
    receipt_max: Seq,
    /// Where the stream starts, if that was chosen here and the client does not know.
    chosen: Seq,
    /// Where history has to be read at least, in the room's partition.
    pub read_at: Offset,
}

impl RoomCursor {
    /// A room that has to be compared with history first.
    pub fn unknown() -> Self {
        let (cursor, head, receipt_max, chosen) = Default::default();
        Self { cursor, head, behind: true, receipt_max, chosen, read_at: Offset(0) }
    }

    /// The last seq sent, or given by the client.
    pub fn cursor(&self) -> Seq {
        self.cursor
    }

    /// Whether history has to be read.
    pub fn is_behind(&self) -> bool {
        self.behind
    }

    /// A live event has come in; `room_left`: the socket can take it now.
    pub fn offer(&mut self, seq: Seq, room_left: bool) -> Offer {
        if seq <= self.cursor {
            return Offer::Drop;
        }
        if !self.behind && seq == self.cursor.next() && room_left {
            self.sent(seq);
            return Offer::Push;
        }
        self.heard_of(seq);
        Offer::Behind
    }

    /// There is an event with this seq: if the socket has not got it, it is behind.
    pub fn heard_of(&mut self, seq: Seq) {
        self.head = self.head.max(seq);
        self.behind |= self.head > self.cursor;
    }

    /// There may be events that nobody has told of: history has to be read to know.
    pub fn doubt(&mut self) {
        self.behind = true;
    }

    /// The comparison with history, made with everything up to the subscription known: where the stream starts, and the
    /// last event that this person may see. If nothing is missing the room is live from here on. `claimed`: the client
    /// has named the cursor.
    pub fn start(&mut self, cursor: Seq, visible_head: Seq, claimed: bool) {
        self.cursor = cursor;
        self.chosen = if claimed { Seq::ZERO } else { cursor };
        self.receipt_max = self.receipt_max.max(self.cursor.min(visible_head));
        self.head = self.head.max(visible_head);
        self.behind = self.head > self.cursor;
    }

    /// Whether the stream starts after this event, and the client has not been told so.
    pub fn starts_unknown_after(&self, seq: Seq) -> bool {
        seq <= self.chosen
    }

    /// An event of history or a gap's end has been put into the stream.
    pub fn sent(&mut self, seq: Seq) {
        self.cursor = self.cursor.max(seq);
        self.head = self.head.max(seq);
        self.receipt_max = self.receipt_max.max(seq);
    }

    /// History has been read to its end; live again if nothing newer was heard of meanwhile.
    pub fn caught_up(&mut self) {
        self.behind = self.head > self.cursor;
    }

    /// A receipt for `seq`, lowered to what this socket has been sent.
    pub fn receipt(&self, seq: Seq) -> Seq {
        seq.min(self.receipt_max)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_cursor_above_the_head_waits_for_what_comes_after_it() {
        let mut room = RoomCursor::unknown();
        room.start(Seq(10), Seq(7), true);
        assert!(!room.is_behind());
        assert_eq!(room.offer(Seq(8), true), Offer::Drop);
        assert_eq!(room.offer(Seq(11), true), Offer::Push);
        assert_eq!(room.receipt(Seq(99)), Seq(11));
    }

    #[test]
    fn a_room_in_doubt_is_live_again_once_history_was_read() {
        let mut room = RoomCursor::unknown();
        room.start(Seq(3), Seq(3), true);
        room.doubt();
        assert_eq!(room.offer(Seq(4), true), Offer::Behind);
        room.sent(Seq(4));
        room.caught_up();
        assert_eq!(room.offer(Seq(5), true), Offer::Push);
        room.doubt();
        room.caught_up();
        assert_eq!(room.offer(Seq(6), true), Offer::Push);
    }

    #[test]
    fn a_receipt_never_passes_what_was_sent() {
        let mut room = RoomCursor::unknown();
        assert_eq!(room.receipt(Seq(10)), Seq::ZERO);
        room.start(Seq(10), Seq(7), true);
        assert_eq!(room.receipt(Seq(10)), Seq(7));
    }

    /// What may happen between a log and a socket.
    #[derive(Clone, Debug)]
    enum Step {
        /// The next event is committed and offered live; whether the socket has room.
        Live(bool),
        /// The next event is committed, and its live copy is lost; a later word of the head tells.
        Lost,
        /// An old event is offered again.
        Again(u64),
        /// History is read, at most so many events.
        Read(u64),
        /// The connection is cut and resumed from the cursor.
        Cut,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => any::<bool>().prop_map(Step::Live),
            1 => Just(Step::Lost),
            1 => (1..40_u64).prop_map(Step::Again),
            3 => (1..9_u64).prop_map(Step::Read),
            1 => Just(Step::Cut),
        ];
        prop::collection::vec(step, 0..200)
    }

    /// Reads up to `limit` events of history into the stream.
    fn read(room: &mut RoomCursor, log: u64, limit: u64, stream: &mut Vec<u64>) {
        let from = room.cursor().0;
        let to = (from + limit).min(log);
        for seq in from + 1..=to {
            stream.push(seq);
            room.sent(Seq(seq));
        }
        if to == log {
            room.caught_up();
        }
    }

    proptest! {
        /// A stream cut and resumed anywhere equals one never cut: every seq once, ascending, without a hole.
        #[test]
        fn whatever_happens_the_stream_is_dense(steps in steps()) {
            let mut log = 0_u64;
            let mut stream = Vec::new();
            let mut room = RoomCursor::unknown();
            room.start(Seq::ZERO, Seq(log), true);
            for step in steps {
                match step {
                    Step::Live(room_left) => {
                        log += 1;
                        if room.offer(Seq(log), room_left) == Offer::Push {
                            stream.push(log);
                        }
                    }
                    Step::Lost => log += 1,
                    Step::Again(seq) if seq <= log => {
                        if room.offer(Seq(seq), true) == Offer::Push {
                            stream.push(seq);
                        }
                    }
                    Step::Again(_) => {}
                    Step::Read(limit) if room.is_behind() => read(&mut room, log, limit, &mut stream),
                    Step::Read(_) => {}
                    Step::Cut => {
                        let cursor = room.cursor();
                        room = RoomCursor::unknown();
                        room.start(cursor, Seq(log), true);
                    }
                }
            }
            room.heard_of(Seq(log));
            while room.is_behind() {
                read(&mut room, log, 7, &mut stream);
            }
            prop_assert_eq!(stream, (1..=log).collect::<Vec<_>>());
        }
    }
}
