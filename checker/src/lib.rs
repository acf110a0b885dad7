//! Judges recorded histories.
