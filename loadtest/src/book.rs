//! What a run writes down as it happens: latencies, counts, how far everyone has come, and the record for the checker.
//! One lock; nothing in here waits.

use std::collections::BTreeMap;

use anyhow::Result;
use checker::{AskId, Checker, Step, Verdict};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use schemas::outcome::RejectCode;
use schemas::{Seq, UserId};
use serde::Serialize;

use crate::waits::Ledger;

/// Longest latency that is told apart, µs: an hour.
const LATENCY_MAX_US: u64 = 3_600_000_000;

/// How often each thing happened.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Counts {
    /// Sends that the schedule made due.
    pub scheduled: u64,
    /// Of them: dropped here, for a client's queue was full. Never reached the server.
    pub overflowed: u64,
    /// Sends that were put on a socket at least once.
    pub sent: u64,
    /// Attempts beyond the first.
    pub retried: u64,
    /// Sends that were accepted.
    pub accepted: u64,
    /// Outcomes flagged as repeats of an earlier one.
    pub duplicates: u64,
    /// Rejections by code, `unavailable` among them.
    pub rejected: BTreeMap<String, u64>,
    /// Sends that were given up: rejected for good.
    pub refused: u64,
    /// Messages that came to someone else than their sender.
    pub delivered: u64,
    /// Events of any kind that came.
    pub events: u64,
    /// Texts whose checksum was wrong.
    pub corrupt: u64,
    /// Gaps that were announced.
    pub gaps: u64,
    /// Sockets that were opened again.
    pub reconnects: u64,
    /// The same of the client that did so most often.
    pub reconnects_max: u64,
    /// Sockets, or tries to have one, that ended before they were live.
    pub in_vain: u64,
    /// Closes by code; 0: without one.
    pub closes: BTreeMap<u16, u64>,
    /// `error` frames, and frames that could not be read.
    pub errors: u64,
}

/// One second of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Second {
    /// Since the beginning, s.
    pub at_s: f64,
    /// Accepted in it.
    pub accepted: u64,
    /// Delivered in it.
    pub delivered: u64,
    /// p50 and p99 of send → accepted, ms.
    pub ack_ms: [f64; 2],
    /// p50 and p99 of send → delivered, ms.
    pub delivery_ms: [f64; 2],
}

/// A latency over the whole run and over the present second.
pub struct Latency {
    /// µs.
    pub all: Histogram<u64>,
    second: Histogram<u64>,
}

impl Latency {
    fn new() -> Result<Self> {
        let histogram = |digits| Histogram::new_with_bounds(1, LATENCY_MAX_US, digits);
        Ok(Self { all: histogram(3)?, second: histogram(2)? })
    }

    /// Adds one, µs.
    pub fn add(&mut self, micros: u64) {
        self.all.saturating_record(micros);
        self.second.saturating_record(micros);
    }

    fn turn(&mut self) -> [f64; 2] {
        let quantiles = [0.5, 0.99].map(|quantile| ms(self.second.value_at_quantile(quantile)));
        self.second.reset();
        quantiles
    }
}

/// µs as ms.
#[expect(clippy::cast_precision_loss, reason = "shown to people")]
pub fn ms(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// The pages of the book.
pub struct Pages {
    checker: Option<Checker>,
    /// Scheduled time → `accepted`.
    pub ack: Latency,
    /// Scheduled time → `message` at another member.
    pub delivery: Latency,
    /// Scheduled time → put on a socket: large where the load test itself, or the socket, does not keep up.
    pub lag: Histogram<u64>,
    /// Start of a socket → `live`.
    pub connect: Histogram<u64>,
    /// How often.
    pub counts: Counts,
    /// Second by second.
    pub seconds: Vec<Second>,
    /// What is waited for: outcomes and deliveries.
    pub waits: Ledger,
    /// Sockets that are live.
    pub live: usize,
    /// Sockets that are open.
    pub open: usize,
    /// Readable gaps that are being filled.
    pub refills: u64,
    /// The newest seq of each room, as far as anyone was told.
    pub heads: Vec<Seq>,
    /// For each membership: its room, and how far its client has come.
    pub progress: Vec<(usize, Seq)>,
    /// The last trouble that a client had, for the message when nothing goes on.
    pub trouble: Option<String>,
    /// Why the run can't go on.
    pub fatal: Option<String>,
    last: (u64, u64),
    asks: u64,
}

impl Pages {
    /// Adds to the record, if there is one.
    pub fn note(&mut self, step: impl FnOnce() -> Step) {
        if let Some(checker) = &mut self.checker {
            checker.observe(step());
        }
    }

    /// A person is about to read.
    pub fn ask(&mut self, user: UserId) -> AskId {
        self.asks += 1;
        let ask = AskId(self.asks);
        self.note(|| Step::Asking { ask, user });
        ask
    }

    /// A send that was due then has been accepted for the first time.
    pub fn accepted(&mut self, due_us: u64, now_us: u64) {
        self.counts.accepted += 1;
        self.ack.add(now_us.saturating_sub(due_us));
        self.waits.accepted(due_us, now_us);
    }

    /// A message that was due then has come to someone else than its sender.
    pub fn delivered(&mut self, due_us: u64, now_us: u64) {
        self.counts.delivered += 1;
        self.delivery.add(now_us.saturating_sub(due_us));
        self.waits.delivered(due_us, now_us);
    }

    /// A room has come so far.
    pub fn head(&mut self, room: usize, seq: Seq) {
        if let Some(head) = self.heads.get_mut(room) {
            *head = seq.max(*head);
        }
    }

    /// How many memberships have not come to their room's head.
    pub fn behind(&self) -> usize {
        self.progress.iter().filter(|(room, seq)| self.heads.get(*room).is_some_and(|head| seq < head)).count()
    }

    /// Whether everything has its outcome and everyone has everything.
    pub fn is_settled(&self) -> bool {
        self.waits.owed() == 0 && self.refills == 0 && self.behind() == 0
    }

    /// Ends a second.
    pub fn turn(&mut self, at_s: f64) {
        let (accepted, delivered) = (self.counts.accepted, self.counts.delivered);
        let second = Second {
            at_s,
            accepted: accepted - self.last.0,
            delivered: delivered - self.last.1,
            ack_ms: self.ack.turn(),
            delivery_ms: self.delivery.turn(),
        };
        self.last = (accepted, delivered);
        self.seconds.push(second);
    }

    /// Counts a rejection.
    pub fn rejected(&mut self, code: RejectCode) {
        *self.counts.rejected.entry(code.as_str().to_owned()).or_default() += 1;
    }

    /// Closes the record.
    pub fn judge(&mut self) -> Option<Verdict> {
        self.checker.take().map(Checker::judge)
    }
}

/// The book.
pub struct Book(Mutex<Pages>);

impl Book {
    /// An empty book of so many rooms; `progress` names the room of each membership.
    pub fn new(verify: bool, rooms: usize, progress: Vec<(usize, Seq)>) -> Result<Self> {
        Ok(Self(Mutex::new(Pages {
            checker: verify.then(Checker::new),
            ack: Latency::new()?,
            delivery: Latency::new()?,
            lag: Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)?,
            connect: Histogram::new_with_bounds(1, LATENCY_MAX_US, 3)?,
            counts: Counts::default(),
            seconds: Vec::new(),
            waits: Ledger::default(),
            live: 0,
            open: 0,
            refills: 0,
            heads: vec![Seq::ZERO; rooms],
            progress,
            trouble: None,
            fatal: None,
            last: (0, 0),
            asks: 0,
        })))
    }

    /// Opens it for a moment.
    pub fn open(&self) -> parking_lot::MutexGuard<'_, Pages> {
        self.0.lock()
    }
}
