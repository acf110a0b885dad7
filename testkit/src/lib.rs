//! Whole clusters in a test, manual clock, faulty ports.
