//! Loads
fn main() {}
