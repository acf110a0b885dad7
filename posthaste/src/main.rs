//! One binary
fn main() {}
