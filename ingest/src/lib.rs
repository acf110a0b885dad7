//! Orders, deduplicates and checks commands.
