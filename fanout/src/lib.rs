//! Pushes events to interested edges.
