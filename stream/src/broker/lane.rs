//! One partition of one topic, as far as it is in memory: batches in order, sliced for readers. Pure.

use std::collections::VecDeque;
use std::sync::Arc;

use schemas::Offset;

use super::LaneId;
use crate::{Error, Fetched, Placed, Record};

/// What a record costs in memory, bytes: the bounds count this, so that many tiny records count too.
pub(crate) fn size_of_record(record: &Record) -> usize {
    record.value.len() + size_of::<Placed>() + 64
}

/// Records that became visible together; never empty. Offsets of the engines in this crate are dense.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    /// Shared with whoever reads them.
    pub records: Arc<[Placed]>,
    /// By [`size_of_record`].
    pub bytes: usize,
    /// Of the first record.
    pub base: Offset,
}

impl Batch {
    /// Records from `base` on; `None` if there are none.
    pub(crate) fn new(base: Offset, records: Vec<Record>) -> Option<Self> {
        if records.is_empty() {
            return None;
        }
        let bytes = records.iter().map(size_of_record).sum();
        let records =
            records.into_iter().zip(base.0..).map(|(record, at)| Placed { offset: Offset(at), record }).collect();
        Some(Self { records, bytes, base })
    }

    /// Position after the last record.
    pub(crate) fn next(&self) -> Offset {
        Offset(self.base.0 + self.records.len() as u64)
    }
}

/// One partition of one topic.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    /// First offset kept, in memory or beneath.
    pub start: Offset,
    /// After the last visible one.
    pub end: Offset,
    /// In memory, by [`size_of_record`].
    pub bytes: usize,
    batches: VecDeque<Batch>,
}

impl Lane {
    /// A partition whose records lie beneath.
    pub(crate) fn beneath(start: Offset, end: Offset) -> Self {
        Self { start, end, ..Self::default() }
    }

    /// Adds the newest batch.
    pub(crate) fn push(&mut self, batch: Batch) {
        debug_assert_eq!(batch.base, self.end, "a hole or an overlap in a partition");
        self.end = batch.next();
        self.bytes += batch.bytes;
        self.batches.push_back(batch);
    }

    /// Lets go of the oldest batches beyond `max_bytes`, which must be readable beneath; the newest one stays.
    pub(crate) fn forget_beyond(&mut self, max_bytes: usize) {
        while self.bytes > max_bytes && self.batches.len() > 1 {
            self.pop();
        }
    }

    /// Drops the oldest batch for good; its bytes.
    pub(crate) fn drop_oldest(&mut self) -> usize {
        let before = self.bytes;
        self.pop();
        self.start = self.batches.front().map_or(self.end, |batch| batch.base);
        before - self.bytes
    }

    /// Forgets records below `before` for good.
    pub(crate) fn trim(&mut self, before: Offset) {
        self.start = self.start.max(before.min(self.end));
        while self.batches.front().is_some_and(|batch| batch.next() <= self.start) {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(batch) = self.batches.pop_front() {
            self.bytes -= batch.bytes;
        }
    }

    /// Whether a reader may stand at `asked`.
    pub(crate) fn check(&self, (topic, partition): LaneId, asked: Offset) -> Result<(), Error> {
        if (self.start..=self.end).contains(&asked) {
            Ok(())
        } else {
            Err(Error::OutOfRange { topic, partition, asked, start: self.start, end: self.end })
        }
    }

    /// Records from `from` on, which [`Lane::check`] allows; `None` if they lie beneath. Whole batches are shared,
    /// several or a part are gathered anew (which copies no value).
    pub(crate) fn fetch(&self, (topic, partition): LaneId, from: Offset, max_bytes: usize) -> Option<Fetched> {
        let done = |next, records| Fetched { topic, partition, from, next, records };
        if from >= self.end {
            return Some(done(from, Arc::new([])));
        }
        let first = self.batches.partition_point(|batch| batch.next() <= from);
        let batch = self.batches.get(first).filter(|batch| batch.base <= from)?;
        let only = self.batches.len() == first + 1;
        if batch.base == from && batch.bytes <= max_bytes && only {
            return Some(done(batch.next(), Arc::clone(&batch.records)));
        }
        let mut bytes = 0;
        let mut count = 0;
        let placed = || {
            let rest = self.batches.range(first..).flat_map(|batch| batch.records.iter());
            rest.skip_while(move |placed| placed.offset < from)
        };
        for placed in placed() {
            bytes += size_of_record(&placed.record);
            if count > 0 && bytes > max_bytes {
                break;
            }
            count += 1;
        }
        Some(done(Offset(from.0 + count as u64), placed().take(count).cloned().collect()))
    }
}
