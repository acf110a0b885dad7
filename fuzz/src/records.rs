//! Stored records: Avro single objects as they come out of the log.

use schemas::command::Command;
use schemas::dead_letter::DeadLetter;
use schemas::limits::BATCH_MAX_BYTES;
use schemas::outcome::Outcome;
use schemas::receipt::Receipt;
use schemas::signal::Signal;
use schemas::user_event::UserEvent;
use schemas::{Event, Record};

use crate::input::Input;
use crate::memory::peak;

/// The first byte says which record, and whether its header comes with it or is put before the rest.
///
/// # Panics
/// Where a law is broken.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    let which = input.byte();
    let with_header = which >= 128;
    match which % 7 {
        0 => record::<Command>(input.0, with_header),
        1 => record::<Event>(input.0, with_header),
        2 => record::<Outcome>(input.0, with_header),
        3 => record::<UserEvent>(input.0, with_header),
        4 => record::<Receipt>(input.0, with_header),
        5 => record::<Signal>(input.0, with_header),
        _ => record::<DeadLetter>(input.0, with_header),
    }
}

fn record<T: Record + PartialEq + std::fmt::Debug>(bytes: &[u8], with_header: bool) {
    let codec = T::codec();
    let object = if with_header { bytes.to_vec() } else { [codec.header(), bytes].concat() };
    let (decoded, held) = peak(|| T::decode(&object));
    // A value is its bytes again and what points to them. Avro's reader makes room for what a length claims, once, before
    // it looks what is there.
    assert!(held <= 64 * object.len() + 16 * 1_024 + BATCH_MAX_BYTES, "{held} bytes held for {} bytes", object.len());
    let Ok(value) = decoded else { return };
    assert!(T::is(&object), "decoded, and yet it claims to be something else");
    let again = value.encode();
    let read_again = T::decode(&again).expect("what was written is read");
    assert_eq!(value, read_again);
    assert_eq!(again, read_again.encode());
}
