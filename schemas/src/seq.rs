//! Numbers that must not be mixed up: `seq` in a room, `offset` and `partition` in the log.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

/// A room's own event number: dense, starting at 1, given by ingest. `Seq(0)` means "before the first".
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, utoipa::ToSchema)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first event.
    pub const ZERO: Self = Self(0);

    /// The number after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The number before this one; `ZERO` stays `ZERO`.
    pub fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

/// A position in a partition: the offset of the next record to read, as in Kafka. Positions also count control
/// records, so they are not dense; never derive a seq from one.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Offset(pub u64);

/// A partition of a topic, from 0.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Partition(pub u32);

impl Partition {
    /// The partition of a key, for all topics alike: FNV-1a of its 16 bytes, modulo the count. Fixed for ever, for a
    /// room must never change its partition (I2).
    pub fn of(key: &[u8; 16], partitions: u32) -> Self {
        let hash = key
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        // Fold the high half in: FNV's low bits alone mix poorly.
        #[expect(clippy::cast_possible_truncation, reason = "the remainder is below a u32")]
        Self(((hash ^ (hash >> 32)) % u64::from(partitions.max(1))) as u32)
    }
}

macro_rules! shown_as_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    )*};
}
shown_as_number!(Seq, Offset, Partition);

/// A number in JSON, a `long` in Avro, whose integers are signed.
macro_rules! stored_as_long {
    ($($name:ident),*) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_i64(i64::try_from(self.0).map_err(ser::Error::custom)?)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                u64::try_from(i64::deserialize(deserializer)?).map(Self).map_err(de::Error::custom)
            }
        }
    )*};
}
stored_as_long!(Seq, Offset);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keys_partition_never_changes() {
        // Golden values: a change here would move rooms between partitions of an existing directory.
        assert_eq!(Partition::of(&[0; 16], 4), Partition(0));
        let far: Vec<u32> = (0..8).map(|byte| Partition::of(&[byte; 16], 1_000).0).collect();
        assert_eq!(far, FAR);
    }

    const FAR: [u32; 8] = [452, 470, 416, 346, 612, 104, 688, 629];

    #[test]
    fn keys_spread_over_the_partitions() {
        let mut counts = [0_u32; 8];
        for n in 0..8_000_u128 {
            let key = uuid::Uuid::new_v5(&uuid::Uuid::nil(), &n.to_be_bytes());
            counts[Partition::of(key.as_bytes(), 8).0 as usize] += 1;
        }
        assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
    }
}
