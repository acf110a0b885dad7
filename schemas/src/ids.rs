//! Identifiers: one newtype per meaning, all UUIDs. Owns how ids derive from one another; does not make random ones
//! (the edge's pool does, from [`crate::clock::Entropy`]).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(transparent)]
        #[schema(value_type = String, format = Uuid)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The all-zero id: "none" where a record must carry a value.
            pub const NIL: Self = Self(Uuid::nil());

            /// The 16 bytes, most significant first.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }
        }

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

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::from_str(text).map(Self)
            }
        }
    };
}

id!(/** A person or a program with an account. */ UserId);
id!(/** A conversation, direct or group. */ RoomId);
id!(/** One installation of a client. */ DeviceId);
id!(/** One socket, or [`SessionId::NIL`] for a REST call. */ SessionId);
id!(/** One durable event of a room, a message among them (UUIDv7). */ EventId);
id!(/** `client_msg_id` or `Idempotency-Key`: the same one never acts twice in a room for a user (I4). */ CommandId);
id!(/** One edge process; a new one at each start. */ EdgeId);
id!(/** One process of a cluster; a new one at each start (UUIDv7). */ InstanceId);

/// Namespace of every id that we derive by name (RFC 9562 section 5.5).
const NAMESPACE: Uuid = Uuid::from_u128(0x9b1d_4c3e_52a7_5f0e_8d61_706f_7374_6861);

impl RoomId {
    /// The direct room of two people: the same whichever of them asks.
    pub fn direct(a: UserId, b: UserId) -> Self {
        let (low, high) = if a <= b { (a, b) } else { (b, a) };
        Self(derive(b"direct", low.as_bytes(), high.as_bytes()))
    }

    /// The room that `user` creates under `key`: a retried creation finds its own room.
    pub fn created(user: UserId, key: CommandId) -> Self {
        Self(derive(b"room", user.as_bytes(), key.as_bytes()))
    }
}

impl UserId {
    /// A user of another issuer: UUIDv5 of issuer and subject, so no table maps them.
    pub fn external(issuer: &str, subject: &str) -> Self {
        let issuer = Uuid::new_v5(&NAMESPACE, issuer.as_bytes());
        Self(Uuid::new_v5(&issuer, subject.as_bytes()))
    }
}

impl CommandId {
    /// Unix milliseconds inside a UUIDv7 (RFC 9562 section 5.7); `None` for any other version.
    pub fn unix_ms(&self) -> Option<i64> {
        if self.0.get_version_num() != 7 || self.0.get_variant() != uuid::Variant::RFC4122 {
            return None;
        }
        let bytes = self.0.as_bytes();
        let mut ms = [0_u8; 8];
        ms[2..].copy_from_slice(&bytes[..6]);
        Some(i64::from_be_bytes(ms))
    }
}

fn derive(purpose: &[u8], a: &[u8; 16], b: &[u8; 16]) -> Uuid {
    let mut name = Vec::with_capacity(purpose.len() + 32);
    name.extend_from_slice(purpose);
    name.extend_from_slice(a);
    name.extend_from_slice(b);
    Uuid::new_v5(&NAMESPACE, &name)
}

/// A UUIDv7 from a time and 10 random bytes; pure, so that tests and the simulator own both.
pub fn uuid_v7(unix_ms: i64, random: [u8; 10]) -> Uuid {
    uuid::Builder::from_unix_timestamp_millis(u64::try_from(unix_ms).unwrap_or(0), &random).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_find_the_same_direct_room() {
        let (a, b) = (UserId(Uuid::from_u128(1)), UserId(Uuid::from_u128(2)));
        assert_eq!(RoomId::direct(a, b), RoomId::direct(b, a));
        assert_ne!(RoomId::direct(a, b), RoomId::direct(a, a));
    }

    #[test]
    fn a_uuid_v7_tells_its_time_and_others_do_not() {
        let id = CommandId(uuid_v7(1_700_000_000_123, [7; 10]));
        assert_eq!(id.unix_ms(), Some(1_700_000_000_123));
        assert_eq!(CommandId(Uuid::from_u128(5)).unix_ms(), None);
        assert_eq!(CommandId(uuid::Builder::from_random_bytes([7; 16]).into_uuid()).unix_ms(), None);
    }
}
