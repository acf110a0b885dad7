//! Reading choices out of made-up bytes. What is not there is 0, so that every input means something and a shorter one
//! means less.

/// Bytes to choose by, from the front.
pub(crate) struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    pub fn number(&mut self) -> usize {
        usize::from(self.byte()) << 8 | usize::from(self.byte())
    }

    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// What stands before the next byte of this value, which is passed over.
    pub fn until(&mut self, end: u8) -> &'a [u8] {
        let at = self.0.iter().position(|byte| *byte == end);
        let taken = self.take(at.unwrap_or(self.0.len()));
        self.take(1);
        taken
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
