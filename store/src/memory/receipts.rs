//! The steps of one person's receipts that can still tell a message's time. Pure.

use std::collections::BTreeMap;

use schemas::{Seq, Timestamp};

/// Steps (seq, time) of which none is made needless by another: with a higher seq comes a later time. A step that
/// reaches no further than one of the same or an earlier time is left out, whichever came first, so that the rows do
/// not depend on the order of their arrival (law 2).
#[derive(Clone, Default)]
pub(super) struct Frontier(BTreeMap<Seq, Timestamp>);

impl Frontier {
    /// Adds a step; one at `Seq::ZERO` says nothing.
    pub(super) fn add(&mut self, seq: Seq, at: Timestamp) {
        if seq == Seq::ZERO || self.reached_at(seq).is_some_and(|known| known <= at) {
            return;
        }
        while let Some((&lower, _)) = self.0.range(..=seq).next_back().filter(|(_, known)| **known >= at) {
            self.0.remove(&lower);
        }
        self.0.insert(seq, at);
    }

    /// When all up to `seq` was reached.
    pub(super) fn reached_at(&self, seq: Seq) -> Option<Timestamp> {
        self.0.range(seq..).next().map(|(_, at)| *at)
    }
}
