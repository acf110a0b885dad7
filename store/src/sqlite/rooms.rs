//! Rooms, members, lists and handles in SQLite.

use async_trait::async_trait;
use rusqlite::{Connection, Row, params};
use schemas::message::RoomVisibility;
use schemas::room::{Member, RoomInfo};
use schemas::{RoomId, Timestamp, UserId};
use uuid::Uuid;

use super::SqliteStore;
use super::rows::{all, change, count, integer, json, one, to_json, uuid};
use crate::rooms::{DirectorySort, Listing, Rooms};
use crate::{Error, fold_case};

fn standing(row: &Row<'_>) -> rusqlite::Result<(UserId, Member)> {
    Ok((UserId(uuid(row, 0)?), json(row, 1)?))
}

/// The room that stands with this handle. Two can only where a claim had ended before its room appeared: then the
/// older one keeps it.
fn room_with(sql: &Connection, handle: &str) -> Result<Option<RoomId>, Error> {
    let query = "SELECT id FROM rooms WHERE handle_key = ?1 ORDER BY created_at, id LIMIT 1";
    one(sql, query, [handle], |row| uuid(row, 0).map(RoomId))
}

/// Replaces a room's row if this one is newer (I5).
pub(super) fn put_room(sql: &Connection, room: &RoomInfo) -> Result<(), Error> {
    let upsert = "INSERT INTO rooms
        (id, head_seq, body, listed, name_key, handle_key, last_activity_at, member_count, created_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
        ON CONFLICT (id) DO UPDATE SET head_seq = excluded.head_seq, body = excluded.body, listed = excluded.listed,
            name_key = excluded.name_key, handle_key = excluded.handle_key,
            last_activity_at = excluded.last_activity_at, member_count = excluded.member_count,
            created_at = excluded.created_at
        WHERE rooms.head_seq < excluded.head_seq";
    let listed = !room.deleted && room.settings.visibility == RoomVisibility::Public;
    let handle = room.settings.handle.as_deref().filter(|_| !room.deleted).map(fold_case);
    let params = params![
        room.id.as_bytes(),
        integer(room.head_seq.0),
        to_json(room)?,
        listed,
        fold_case(&room.settings.name),
        handle,
        room.last_activity_at.0,
        room.member_count,
        room.created_at.0
    ];
    if change(sql, upsert, params)? > 0 {
        // The row itself is the proof of its handle from now on. Other claims of a living room may still be on their
        // way through the log: they end by time alone.
        let end = "DELETE FROM handle_claims WHERE room = ?1 AND (?2 OR handle = ?3)";
        change(sql, end, params![room.id.as_bytes(), room.deleted, handle])?;
    }
    Ok(())
}

/// Replaces a standing if this one is newer (I5).
pub(super) fn put_member(sql: &Connection, room: RoomId, user: UserId, member: &Member) -> Result<(), Error> {
    let upsert = "INSERT INTO members (room, user, version, is_in, body) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (room, user) DO UPDATE SET version = excluded.version, is_in = excluded.is_in, body = excluded.body
        WHERE members.version < excluded.version";
    let version = integer(member.version.0);
    change(sql, upsert, params![room.as_bytes(), user.as_bytes(), version, member.is_in(), to_json(member)?]).map(drop)
}

/// Replaces a person's listing of a room if this one is newer (I5).
pub(super) fn put_listing(sql: &Connection, new: &Listing) -> Result<(), Error> {
    let upsert = "INSERT INTO listings (user, room, version, listed) VALUES (?1, ?2, ?3, ?4)
        ON CONFLICT (user, room) DO UPDATE SET version = excluded.version, listed = excluded.listed
        WHERE listings.version < excluded.version";
    let version = integer(new.version.0);
    change(sql, upsert, params![new.user.as_bytes(), new.room.as_bytes(), version, new.listed]).map(drop)
}

/// The directory's query: the order is that of an index.
pub(super) fn directory_query(sort: DirectorySort) -> String {
    let order = match sort {
        DirectorySort::Activity => "last_activity_at DESC",
        DirectorySort::Popularity => "member_count DESC",
        DirectorySort::Name => "name_key",
        DirectorySort::Created => "created_at DESC",
    };
    format!(
        "SELECT body FROM rooms
         WHERE listed = 1 AND (?1 = '' OR instr(name_key, ?1) OR instr(handle_key, ?1))
         ORDER BY {order}, id LIMIT ?2 OFFSET ?3"
    )
}

/// The room after this one, by id, of which anything is kept.
pub(super) fn next_room(sql: &Connection, after: Option<RoomId>) -> Result<Option<RoomId>, Error> {
    let query = "SELECT min(id) FROM (
        SELECT min(id) AS id FROM rooms WHERE id > ?1 UNION ALL SELECT min(room) FROM events WHERE room > ?1
        UNION ALL SELECT min(room) FROM commands WHERE room > ?1
        UNION ALL SELECT min(room) FROM members WHERE room > ?1)";
    let after = after.as_ref().map_or(&[][..], |room| room.as_bytes());
    let next = one(sql, query, [after], |row| row.get::<_, Option<[u8; 16]>>(0))?.flatten();
    Ok(next.map(|id| RoomId(Uuid::from_bytes(id))))
}

#[async_trait]
impl Rooms for SqliteStore {
    async fn rooms(&self, ids: &[RoomId]) -> Result<Vec<RoomInfo>, Error> {
        let ids = ids.to_vec();
        let query = "SELECT body FROM rooms WHERE id = ?1";
        let read = move |sql: &Connection| {
            ids.iter().filter_map(|id| one(sql, query, [id.as_bytes()], |row| json(row, 0)).transpose()).collect()
        };
        self.readers.read(read).await
    }

    async fn standings(&self, user: UserId, rooms: &[RoomId]) -> Result<Vec<(RoomId, Member)>, Error> {
        let rooms = rooms.to_vec();
        let query = "SELECT body FROM members WHERE room = ?1 AND user = ?2";
        let read = move |sql: &Connection| {
            let own = |room: &RoomId| {
                one(sql, query, [room.as_bytes(), user.as_bytes()], |row| Ok((*room, json(row, 0)?))).transpose()
            };
            rooms.iter().filter_map(own).collect()
        };
        self.readers.read(read).await
    }

    async fn members(&self, room: RoomId) -> Result<Vec<(UserId, Member)>, Error> {
        let query = "SELECT user, body FROM members WHERE room = ?1 ORDER BY user";
        self.readers.read(move |sql| all(sql, query, [room.as_bytes()], standing)).await
    }

    async fn members_page(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<(UserId, Member)>, Error> {
        let query = "SELECT user, body FROM members WHERE room = ?1 AND user > ?2 AND is_in ORDER BY user LIMIT ?3";
        let read = move |sql: &Connection| {
            let after = after.as_ref().map_or(&[][..], |user| user.as_bytes());
            all(sql, query, params![room.as_bytes(), after, count(limit)], standing)
        };
        self.readers.read(read).await
    }

    async fn rooms_of(&self, user: UserId) -> Result<Vec<RoomId>, Error> {
        let query = "SELECT room FROM listings WHERE user = ?1 AND listed ORDER BY room";
        self.readers.read(move |sql| all(sql, query, [user.as_bytes()], |row| uuid(row, 0).map(RoomId))).await
    }

    async fn left_unseen(&self, user: UserId, limit: usize) -> Result<Vec<RoomId>, Error> {
        let query = "SELECT room FROM listings AS l WHERE user = ?1 AND NOT listed AND version > COALESCE(
                         (SELECT delivered_seq FROM watermarks AS w WHERE w.room = l.room AND w.user = l.user), 0)
                     ORDER BY room LIMIT ?2";
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.readers
            .read(move |sql| all(sql, query, params![user.as_bytes(), limit], |row| uuid(row, 0).map(RoomId)))
            .await
    }

    async fn directory(
        &self,
        text: &str,
        sort: DirectorySort,
        skip: usize,
        limit: usize,
    ) -> Result<Vec<RoomInfo>, Error> {
        let (text, query) = (fold_case(text), directory_query(sort));
        let read =
            move |sql: &Connection| all(sql, &query, params![text, count(limit), count(skip)], |row| json(row, 0));
        self.readers.read(read).await
    }

    async fn claim_handle(
        &self,
        handle: &str,
        room: RoomId,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<bool, Error> {
        let handle = fold_case(handle);
        let claim = move |sql: &Connection| {
            if room_with(sql, &handle)?.is_some_and(|owner| owner != room) {
                return Ok(false);
            }
            change(sql, "DELETE FROM handle_claims WHERE expires_at <= ?1", [now.0])?;
            let claim = "INSERT INTO handle_claims (handle, room, expires_at) VALUES (?1, ?2, ?3)
                ON CONFLICT (handle) DO UPDATE SET expires_at = max(expires_at, excluded.expires_at)
                WHERE room = excluded.room";
            Ok(change(sql, claim, params![handle, room.as_bytes(), expires_at.0])? > 0)
        };
        self.writer.write(0, claim).await
    }

    async fn room_by_handle(&self, handle: &str) -> Result<Option<RoomId>, Error> {
        let handle = fold_case(handle);
        self.readers.read(move |sql| room_with(sql, &handle)).await
    }

    async fn all_rooms(&self, mut after: Option<RoomId>, limit: usize) -> Result<Vec<RoomId>, Error> {
        let read = move |sql: &Connection| {
            let mut rooms = Vec::new();
            while rooms.len() < limit
                && let Some(room) = next_room(sql, after)?
            {
                rooms.push(room);
                after = Some(room);
            }
            Ok(rooms)
        };
        self.readers.read(read).await
    }
}
