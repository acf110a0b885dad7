//! The text of a message: it carries its own id, the time for which it was scheduled, and a checksum.

use std::fmt::Write;

use checker::digest;
use schemas::CommandId;

/// Its length, bytes.
const LENGTH: usize = 128;

/// Length of the checksum, hex digits.
const SUM: usize = 16;

/// The text of a send: the same at every attempt.
pub fn text(id: CommandId, scheduled_us: u64) -> String {
    let mut text = String::with_capacity(LENGTH);
    // Writing into a String can't fail.
    let _ = write!(text, "load {id} {scheduled_us:016x} ");
    let filler = "the quick brown fox jumps over the lazy dog ".chars().cycle();
    text.extend(filler.take(LENGTH - SUM - text.len()));
    let sum = digest(&[text.as_bytes()]);
    let _ = write!(text, "{sum:016x}");
    text
}

/// When a message was scheduled; `None` if it is not as it was written.
pub fn scheduled_us(text: &str) -> Option<u64> {
    let (head, sum) = text.split_at_checked(text.len().checked_sub(SUM)?)?;
    if u64::from_str_radix(sum, 16).ok()? != digest(&[head.as_bytes()]) {
        return None;
    }
    u64::from_str_radix(head.split(' ').nth(2)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_tells_its_time_unless_a_byte_of_it_changed() {
        let text = text(CommandId::NIL, 123_456);
        assert_eq!(text.len(), LENGTH);
        assert_eq!(scheduled_us(&text), Some(123_456));
        for at in 0..LENGTH {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            assert_eq!(scheduled_us(&String::from_utf8_lossy(&bytes)), None, "byte {at}");
        }
        assert_eq!(scheduled_us("short"), None);
    }
}
