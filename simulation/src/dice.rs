//! Chance that can be replayed: one stream of numbers for each thing that draws, so that leaving out one fault does not
//! change what the others draw.

use schemas::Entropy as _;
use testkit::clock::Seeded;

/// A stream of numbers.
pub struct Dice(Seeded);

impl Dice {
    /// The stream of this name under a seed.
    pub fn new(seed: u64, name: &str) -> Self {
        let named = checker::digest(&[&seed.to_be_bytes(), name.as_bytes()]);
        Self(Seeded::new(named))
    }

    /// Any number.
    pub fn number(&self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_be_bytes(bytes)
    }

    /// A number below `end`; 0 where that is 0.
    pub fn below(&self, end: u64) -> u64 {
        self.number().checked_rem(end).unwrap_or(0)
    }

    /// A number of `from..=to`.
    pub fn between(&self, from: u64, to: u64) -> u64 {
        from + self.below(to - from + 1)
    }

    /// True in so many of a thousand cases.
    pub fn per_mille(&self, chance: u64) -> bool {
        self.below(1_000) < chance
    }

    /// An index of a list of so many; 0 where it is empty.
    pub fn index(&self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap_or(0)
    }

    /// One of these.
    pub fn pick<'a, T>(&self, list: &'a [T]) -> Option<&'a T> {
        list.get(self.index(list.len()))
    }
}
