//! A record that could not be processed, with the reason: nothing is dropped without a trace.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::codec::record;
use crate::seq::Offset;

/// A record that could not be processed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Where it stood.
    pub topic: String,
    /// In which partition.
    pub partition: u32,
    /// At which offset.
    pub offset: Offset,
    /// Why.
    pub reason: String,
    /// When it was set aside.
    pub at: Timestamp,
    /// The record itself.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

record!(DeadLetter, "DeadLetter", "dead_letter.avsc");
