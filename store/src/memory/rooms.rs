//! Rooms, members, lists and handles in memory.

use std::collections::BTreeSet;
use std::ops::Bound;

use async_trait::async_trait;
use schemas::message::RoomVisibility;
use schemas::room::{Member, RoomInfo};
use schemas::{RoomId, Seq, Timestamp, UserId};

use super::{MemoryStore, Tables};
use crate::rooms::{DirectorySort, Rooms};
use crate::{Error, fold_case};

#[async_trait]
impl Rooms for MemoryStore {
    async fn rooms(&self, ids: &[RoomId]) -> Result<Vec<RoomInfo>, Error> {
        let tables = self.tables();
        Ok(ids.iter().filter_map(|id| tables.rooms.get(id).cloned()).collect())
    }

    async fn standings(&self, user: UserId, rooms: &[RoomId]) -> Result<Vec<(RoomId, Member)>, Error> {
        let tables = self.tables();
        Ok(rooms.iter().filter_map(|room| Some((*room, tables.members.get(&(*room, user))?.clone()))).collect())
    }

    async fn members(&self, room: RoomId) -> Result<Vec<(UserId, Member)>, Error> {
        Ok(self.tables().members_after(room, None).collect())
    }

    async fn members_page(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<(UserId, Member)>, Error> {
        Ok(self.tables().members_after(room, after).filter(|(_, member)| member.is_in()).take(limit).collect())
    }

    async fn rooms_of(&self, user: UserId) -> Result<Vec<RoomId>, Error> {
        let tables = self.tables();
        let of_user = tables.listings.range((user, RoomId::NIL)..).take_while(|((of, _), _)| *of == user);
        Ok(of_user.filter(|(_, (_, listed))| *listed).map(|((_, room), _)| *room).collect())
    }

    async fn left_unseen(&self, user: UserId, limit: usize) -> Result<Vec<RoomId>, Error> {
        let tables = self.tables();
        let of_user = tables.listings.range((user, RoomId::NIL)..).take_while(|((of, _), _)| *of == user);
        let delivered = |room: &RoomId| {
            tables.receipts.get(&(*room, user)).map_or(Seq::ZERO, |known| known.watermarks.delivered_seq)
        };
        let unseen = of_user.filter(|((_, room), (version, listed))| !listed && *version > delivered(room));
        Ok(unseen.map(|((_, room), _)| *room).take(limit).collect())
    }

    async fn directory(
        &self,
        text: &str,
        sort: DirectorySort,
        skip: usize,
        limit: usize,
    ) -> Result<Vec<RoomInfo>, Error> {
        let text = fold_case(text);
        let tables = self.tables();
        let shown = |room: &&RoomInfo| {
            let settings = &room.settings;
            let fits = |name: &str| fold_case(name).contains(&text);
            !room.deleted
                && settings.visibility == RoomVisibility::Public
                && (fits(&settings.name) || settings.handle.as_deref().is_some_and(fits))
        };
        let mut found: Vec<&RoomInfo> = tables.rooms.values().filter(shown).collect();
        found.sort_by(|a, b| {
            let order = match sort {
                DirectorySort::Activity => b.last_activity_at.cmp(&a.last_activity_at),
                DirectorySort::Popularity => b.member_count.cmp(&a.member_count),
                DirectorySort::Name => fold_case(&a.settings.name).cmp(&fold_case(&b.settings.name)),
                DirectorySort::Created => b.created_at.cmp(&a.created_at),
            };
            order.then(a.id.cmp(&b.id))
        });
        Ok(found.into_iter().skip(skip).take(limit).cloned().collect())
    }

    async fn claim_handle(
        &self,
        handle: &str,
        room: RoomId,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<bool, Error> {
        let handle = fold_case(handle);
        let mut tables = self.tables();
        tables.handle_claims.retain(|_, (_, expires_at)| *expires_at > now);
        let owner = tables.room_with(&handle).or_else(|| tables.handle_claims.get(&handle).map(|(room, _)| *room));
        if owner.is_some_and(|owner| owner != room) {
            return Ok(false);
        }
        let claim = tables.handle_claims.entry(handle).or_insert((room, expires_at));
        claim.1 = claim.1.max(expires_at);
        Ok(true)
    }

    async fn room_by_handle(&self, handle: &str) -> Result<Option<RoomId>, Error> {
        Ok(self.tables().room_with(&fold_case(handle)))
    }

    async fn all_rooms(&self, after: Option<RoomId>, limit: usize) -> Result<Vec<RoomId>, Error> {
        let tables = self.tables();
        let of_members = tables.members.keys().map(|(room, _)| room);
        let of_events = tables.events.keys().map(|(room, _)| room);
        let all: BTreeSet<RoomId> = tables.rooms.keys().chain(of_members).chain(of_events).copied().collect();
        Ok(all.into_iter().filter(|room| after.is_none_or(|after| *room > after)).take(limit).collect())
    }
}

impl Tables {
    fn members_after(&self, room: RoomId, after: Option<UserId>) -> impl Iterator<Item = (UserId, Member)> {
        let start = match after {
            Some(user) => Bound::Excluded((room, user)),
            None => Bound::Included((room, UserId::NIL)),
        };
        let of_room = self.members.range((start, Bound::Unbounded)).take_while(move |((of, _), _)| *of == room);
        of_room.map(|((_, user), member)| (*user, member.clone()))
    }

    /// The room that stands with this handle. Two can only where a claim had ended before its room appeared: then the
    /// older one keeps it.
    fn room_with(&self, handle: &str) -> Option<RoomId> {
        let has = |room: &&RoomInfo| {
            !room.deleted && room.settings.handle.as_deref().is_some_and(|own| fold_case(own) == handle)
        };
        self.rooms.values().filter(has).min_by_key(|room| (room.created_at, room.id)).map(|room| room.id)
    }

    /// Replaces a room's row if this one is newer (I5).
    pub(super) fn put_room(&mut self, room: RoomInfo) {
        if self.rooms.get(&room.id).is_some_and(|known| known.head_seq >= room.head_seq) {
            return;
        }
        // The row itself is the proof of its handle from now on. Other claims of a living room may still be on their
        // way through the log: they end by time alone.
        let own = room.settings.handle.as_deref().map(fold_case);
        self.handle_claims
            .retain(|handle, (owner, _)| *owner != room.id || !(room.deleted || Some(handle) == own.as_ref()));
        self.rooms.insert(room.id, room);
    }
}
