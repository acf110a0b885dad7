//! Rows as they stand, readable or not: what is handed to whoever judges an archive.

use schemas::room::{Member, RoomInfo};
use schemas::{CommandId, Event, Seq, UserId};

use crate::archive::Acted;

/// What stands in a row, or why it can't be read.
pub type Found<T> = Result<T, String>;

/// A room but for its events.
#[derive(Debug)]
pub struct StoredRoom {
    /// Its row; `None`: there is none.
    pub info: Option<Found<RoomInfo>>,
    /// Everyone's standing.
    pub members: Vec<(UserId, Found<Member>)>,
    /// How many command ids are indexed; `None` where the engine can't count them.
    pub commands: Option<u64>,
    /// The largest of them, as it is kept.
    pub largest_command: Option<CommandId>,
}

/// An event's row, with what is indexed of its command.
#[derive(Debug)]
pub struct StoredEvent {
    /// The row's key.
    pub seq: Seq,
    /// Its body.
    pub event: Found<Event>,
    /// What the index has under the event's command; `None`: nothing.
    pub acted: Option<Acted>,
}
