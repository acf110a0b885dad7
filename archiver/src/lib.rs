//! Writes history to the store and answers for it.
