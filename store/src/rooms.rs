//! Rooms, members, people's lists of rooms and handles, as projections of the events: written by the archiver alone
//! (see [`crate::archive`]), except for claims of handles.

use async_trait::async_trait;
use schemas::room::{Member, RoomInfo};
use schemas::{RoomId, Seq, Timestamp, UserId};

use crate::Error;

/// Order of a directory listing, each with the largest first except `Name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectorySort {
    /// Newest event first.
    Activity,
    /// Most members first.
    Popularity,
    /// By name.
    Name,
    /// Newest room first.
    Created,
}

/// Rooms and who is in them.
#[async_trait]
pub trait Rooms: Send + Sync + 'static {
    /// Rooms by id; absent where there is none.
    async fn rooms(&self, ids: &[RoomId]) -> Result<Vec<RoomInfo>, Error>;
    /// One person's standing in several rooms; absent where there is none.
    async fn standings(&self, user: UserId, rooms: &[RoomId]) -> Result<Vec<(RoomId, Member)>, Error>;
    /// All who are or were in a room.
    async fn members(&self, room: RoomId) -> Result<Vec<(UserId, Member)>, Error>;
    /// Those who are in a room now, by user id, after `after`.
    async fn members_page(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<(UserId, Member)>, Error>;
    /// Ids of the rooms that a person is in.
    async fn rooms_of(&self, user: UserId) -> Result<Vec<RoomId>, Error>;
    /// Ids of rooms that a person has left or was removed from by an event above their delivered watermark: they have
    /// still to be told. At most `limit`.
    async fn left_unseen(&self, user: UserId, limit: usize) -> Result<Vec<RoomId>, Error>;
    /// Public rooms that exist, whose name or handle contains `text` (any case), sorted, `skip` left out.
    async fn directory(
        &self,
        text: &str,
        sort: DirectorySort,
        skip: usize,
        limit: usize,
    ) -> Result<Vec<RoomInfo>, Error>;
    /// Claims a handle for a room until `expires_at`, when the claim ends unless the room has appeared with it by
    /// then. `Ok(false)`: another room has it. The same room may claim again.
    async fn claim_handle(
        &self,
        handle: &str,
        room: RoomId,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<bool, Error>;
    /// The room that appeared with this handle.
    async fn room_by_handle(&self, handle: &str) -> Result<Option<RoomId>, Error>;
    /// Ids of all rooms of which a row, a member or an event is kept, each once: at most `limit` of those after `after`, in
    /// an order of the engine's own. For whoever reads everything through; what is written meanwhile may be in it or not.
    async fn all_rooms(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<RoomId>, Error>;
}

/// A room entering or leaving a person's list, versioned by the room's seq (I5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Whose list.
    pub user: UserId,
    /// Which room.
    pub room: RoomId,
    /// The room's event that it came of.
    pub version: Seq,
    /// In or out.
    pub listed: bool,
}
