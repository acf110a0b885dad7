//! The order of one client's stream of one room, as it comes: cursor, holes, gaps. Knows seqs only, not contents.

use schemas::Seq;

/// What came of placing a seq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// At or above its place: what it skipped is noted as a hole.
    Ahead,
    /// Came before on this socket.
    Doubled,
    /// At or below the resume cursor.
    Redelivered,
    /// Skipped before; the flag tells whether an `accepted` did the skipping.
    Late { by_accepted: bool },
    /// A gap on this socket said that it is not streamed.
    InGap,
}

/// Seqs that are not streamed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub from: Seq,
    pub to: Seq,
    pub readable: bool,
    /// History has filled it up to here.
    pub filled: Seq,
}

/// Where the stream of a client that gave no cursor began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Start {
    /// With this seq.
    pub first: Seq,
    /// The largest watermark that the person had told before.
    pub told: Seq,
    /// The client claims to hold what is before it; the server did not choose it.
    pub claimed: bool,
}

/// A client's stream of a room.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stream {
    /// Resume cursor of the present socket; `None`: the server knows it.
    floor: Option<Seq>,
    /// First seq that came on the present socket.
    first: Option<Seq>,
    /// Up to here the stream has come.
    pub cursor: Option<Seq>,
    /// The largest seq that ever came, on all sockets.
    pub furthest: Seq,
    /// Skipped on the present socket, not announced.
    holes: Vec<(Seq, Seq)>,
    /// All that were announced, on all sockets.
    pub gaps: Vec<Gap>,
    /// Where in `gaps` the present socket's begin.
    gaps_before: usize,
    /// The last things placed were all `accepted`: the cursor before them, and the seq of the last.
    by_accepted: Option<(Seq, Seq)>,
    /// The largest watermark that the person had told before the stream began.
    pub told: Seq,
    /// Every start without a cursor.
    pub starts: Vec<Start>,
    /// The head that `live` of the present socket must have reached.
    pub due_at_live: Seq,
    /// Sending order: the last accepted one on the present socket.
    pub last_order: u64,
    /// A rejection on the present socket: later sends may overtake.
    pub rejected: bool,
}

impl Stream {
    /// A new socket, the client's first or `again`. Returns what the client claims to hold and never got.
    pub fn open(&mut self, resume: Option<Seq>, again: bool) -> Option<(Seq, Seq)> {
        let claimed = match (self.cursor, resume) {
            (Some(held), Some(resume)) if resume > held => Some((held.next(), resume)),
            (None, Some(resume)) if again => {
                self.starts.push(Start { first: resume.next(), told: self.told, claimed: true });
                None
            }
            _ => None,
        };
        let kept = std::mem::take(self);
        *self = Self {
            floor: resume,
            cursor: resume,
            furthest: kept.furthest,
            gaps_before: kept.gaps.len(),
            gaps: kept.gaps,
            told: kept.told,
            starts: kept.starts,
            ..Self::default()
        };
        claimed
    }

    /// What was skipped on the present socket and can't come any more.
    pub fn take_holes(&mut self) -> Vec<(Seq, Seq)> {
        std::mem::take(&mut self.holes)
    }

    /// Whether a gap of the present socket covers it.
    fn in_gap(&self, seq: Seq) -> bool {
        self.gaps.iter().skip(self.gaps_before).any(|gap| gap.from <= seq && seq <= gap.to)
    }

    fn begin(&mut self, seq: Seq) {
        self.first = Some(seq);
        self.starts.push(Start { first: seq, told: self.told, claimed: false });
    }

    /// Something stands at `seq`.
    pub fn place(&mut self, seq: Seq, accepted: bool) -> Placed {
        self.furthest = self.furthest.max(seq);
        let Some(cursor) = self.cursor else {
            self.begin(seq);
            self.cursor = Some(seq);
            return Placed::Ahead;
        };
        if seq > cursor {
            if seq > cursor.next() {
                self.holes.push((cursor.next(), seq.prev()));
            }
            let before = self.by_accepted.map_or(cursor, |(before, _)| before);
            self.by_accepted = accepted.then_some((before, seq));
            self.cursor = Some(seq);
            return Placed::Ahead;
        }
        if self.floor.is_some_and(|floor| seq <= floor) {
            Placed::Redelivered
        } else if self.fill_hole(seq) || self.first.is_some_and(|first| seq < first) {
            Placed::Late { by_accepted: self.by_accepted.is_some_and(|(before, _)| seq > before) }
        } else if self.in_gap(seq) {
            Placed::InGap
        } else {
            Placed::Doubled
        }
    }

    /// Takes `seq` out of the hole that it is in.
    fn fill_hole(&mut self, seq: Seq) -> bool {
        let Some(at) = self.holes.iter().rposition(|(from, to)| *from <= seq && seq <= *to) else { return false };
        let (from, to) = self.holes.swap_remove(at);
        if from < seq {
            self.holes.push((from, seq.prev()));
        }
        if seq < to {
            self.holes.push((seq.next(), to));
        }
        true
    }

    /// A gap was announced. Returns whether it stands where the stream is.
    pub fn gap(&mut self, from: Seq, to: Seq, readable: bool) -> bool {
        let mut fits = from <= to;
        match self.cursor {
            None => self.begin(from),
            Some(cursor) if from > cursor.next() => self.holes.push((cursor.next(), from.prev())),
            Some(cursor) if from <= cursor => {
                // What is `accepted` with its place in the gap stands outside the sequence, on either side of it.
                let excused = self.by_accepted.is_some_and(|(before, at)| from > before && to >= at);
                if excused {
                    self.holes.retain(|hole| hole.0 < from);
                    self.holes.iter_mut().for_each(|hole| hole.1 = hole.1.min(from.prev()));
                }
                fits &= excused;
            }
            Some(_) => {}
        }
        self.cursor = self.cursor.max(Some(to));
        self.furthest = self.furthest.max(to);
        self.by_accepted = None;
        self.gaps.push(Gap { from, to, readable, filled: from.prev() });
        fits
    }

    /// History had everything in `from..=to`.
    pub fn refill(&mut self, from: Seq, to: Seq) {
        for gap in &mut self.gaps {
            if gap.readable && from <= gap.filled.next() && to > gap.filled {
                gap.filled = to.min(gap.to);
            }
        }
    }
}
