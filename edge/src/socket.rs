//! The WebSocket side of the edge. In reading order: `splice` (a room's cursor, pure), `wire` (frames as bytes and
//! how they reach the network), `frames` (how a client's are read), `outbox` (what waits for one socket), `session` (one socket's life), `catch_up` (reading
//! what a socket missed), `upgrade` (from HTTP to a session).

pub mod catch_up;
pub mod frames;
pub mod outbox;
pub mod session;
pub mod splice;
pub mod upgrade;
pub mod wire;

use std::time::Duration;

use async_trait::async_trait;

use schemas::{RoomId, UserId};
use uuid::Uuid;

use crate::auth::Identity;
use crate::blocks::Offence;
use crate::limits::{Bucket, Place};

/// What a socket needs of the rest of the edge: who a token speaks for, ids, and whether it and its sends are within
/// the limits.
#[async_trait]
pub trait Gate: Send + Sync {
    /// Who an access token speaks for, or the close code for a bad one.
    async fn authenticate(&self, token: &str) -> Result<Identity, u16>;
    /// Whether the token that made this out has been taken back since.
    fn is_revoked(&self, identity: &Identity) -> bool;
    /// A fresh UUIDv7.
    fn next_id(&self) -> Uuid;
    /// Takes one frame of this person's socket from its allowance; else how many ms to wait.
    fn allow_frame(&self, user: UserId, allowance: &mut Option<Bucket>) -> Result<(), u32>;
    /// Takes one send of this person from their allowance, and from the room's; else how many ms to wait.
    fn allow_send(&self, user: UserId, room: RoomId) -> Result<(), u32>;
    /// Takes a place for one more socket of this person, unless they are shut out; else how many ms to wait.
    fn allow_socket(&self, user: UserId) -> Result<Place<UserId>, u32>;
    /// How long a socket may take for its hello.
    fn hello_timeout(&self) -> Duration;
}

/// What a socket holds for as long as it lives; it knows where the socket came from.
pub trait Kept: Send + 'static {
    /// The client has offended: this person, where it is known who they are.
    fn offended(&self, account: Option<UserId>, offence: Offence);
}

impl Kept for () {
    fn offended(&self, _: Option<UserId>, _: Offence) {}
}
