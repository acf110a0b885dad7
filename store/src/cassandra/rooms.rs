//! Rooms, members, lists and handles in Cassandra. A room's own row is written after the rows that lead to it, and whatever
//! leads somewhere is held against it when it is read: so neither a crash in between nor an older archiver misleads.

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::message::RoomVisibility;
use schemas::room::{Member, RoomInfo};
use schemas::{RoomId, Seq, Timestamp, UserId};
use uuid::Uuid;

use super::CassandraStore;
use super::cql::{CAS_TRIES, Cas, Ordered, Write, contended, from_json, id, limit, side_by_side, to_json, values};
use super::trail::{Shown, Trail};
use crate::rooms::{DirectorySort, Listing, Rooms};
use crate::{Error, fold_case};

/// The directory is in so many partitions, which are read side by side.
const SHARDS: i32 = 16;
/// More rows of the directory than were asked for are looked up, for some may turn out to be out of date.
const SPARE: usize = 16;
/// A claim of a handle outlives its end by so long, s: whose clock is slow shall still find it.
const CLAIM_KEPT_S: i64 = 24 * 60 * 60;
/// The rooms with a row, with a member, and with an event, by token: the first ones, and those after one.
const ALL_ROOMS: [(&str, &str); 3] = [
    ("SELECT id, token(id) FROM rooms LIMIT ?", "SELECT id, token(id) FROM rooms WHERE token(id) > token(?) LIMIT ?"),
    (
        "SELECT DISTINCT room, token(room) FROM members LIMIT ?",
        "SELECT DISTINCT room, token(room) FROM members WHERE token(room) > token(?) LIMIT ?",
    ),
    (
        "SELECT room, token(room) FROM room_heads LIMIT ?",
        "SELECT room, token(room) FROM room_heads WHERE token(room) > token(?) LIMIT ?",
    ),
];
/// Keys of one `IN`.
const IN_MAX: usize = 100;

pub(super) fn is_listed(room: &RoomInfo) -> bool {
    !room.deleted && room.settings.visibility == RoomVisibility::Public
}

/// The handle that a room stands with, folded.
pub(super) fn handle(room: &RoomInfo) -> Option<String> {
    room.settings.handle.as_deref().filter(|_| !room.deleted).map(fold_case)
}

fn shard(room: RoomId) -> i32 {
    i32::from(room.as_bytes()[15]) % SHARDS
}

fn standing((user, body): (Vec<u8>, String)) -> Result<(UserId, Member), Error> {
    Ok((UserId(id(&user)?), from_json(&body)?))
}

/// A place in the directory: what it is sorted by, then the id.
type Place = ((i64, String), RoomId);

impl CassandraStore {
    async fn room(&self, id: RoomId) -> Result<Option<RoomInfo>, Error> {
        let body = self.cql.row::<(String,)>("SELECT body FROM rooms WHERE id = ?", values![id]).await?;
        body.map(|(body,)| from_json(&body)).transpose()
    }

    /// The room that stands with this handle. Two can only where a claim had ended before its room appeared: then the
    /// older one keeps it.
    async fn room_with(&self, text: &str) -> Result<Option<RoomId>, Error> {
        // No key is empty; nor is a handle.
        if text.is_empty() {
            return Ok(None);
        }
        let rows = self.cql.rows::<(Vec<u8>,)>("SELECT room FROM handles WHERE handle = ?", values![text]).await?;
        let ids = rows.into_iter().map(|(room,)| id(&room).map(RoomId)).collect::<Result<Vec<_>, _>>()?;
        let rooms = self.rooms(&ids).await?;
        let standing = rooms.into_iter().filter(|room| handle(room).as_deref() == Some(text));
        Ok(standing.min_by_key(|room| (room.created_at, room.id)).map(|room| room.id))
    }

    /// Replaces a room's row if this one is newer (I5).
    pub(super) async fn put_room(&self, trail: &Mutex<Trail>, room: &RoomInfo) -> Result<(), Error> {
        let new = Shown::of(room);
        let known = trail.lock().room(room.id);
        // What others depend on is held against the row itself.
        let is_usual = |known: &Shown| Shown { head_seq: new.head_seq, ..known.clone() } == new;
        let old = match known.filter(is_usual) {
            Some(known) => Some(known),
            None => self.room(room.id).await?.as_ref().map(Shown::of),
        };
        if old.as_ref().is_some_and(|old| old.head_seq >= room.head_seq) {
            return Ok(());
        }
        let (key, version) = (|| Ordered::from(room.id), room.head_seq);
        let mut leading = Vec::new();
        if new.is_listed {
            let insert = "INSERT INTO directory
                (shard, room, name_key, handle_key, created_at, last_activity_at, member_count)
                VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?";
            let (name, handle) = (fold_case(&room.settings.name), new.handle.clone().unwrap_or_default());
            let (created, active, members) = (room.created_at, room.last_activity_at, i64::from(room.member_count));
            let row = values![shard(room.id), key(), name, handle, created, active, members, version];
            leading.push(vec![Write(insert, row)]);
        } else if old.as_ref().is_some_and(|old| old.is_listed) {
            let delete = "DELETE FROM directory USING TIMESTAMP ? WHERE shard = ? AND room = ?";
            leading.push(vec![Write(delete, values![version, shard(room.id), key()])]);
        }
        let (before, now) = (old.and_then(|old| old.handle), new.handle.clone());
        if let Some(now) = &now {
            let insert = "INSERT INTO handles (handle, room) VALUES (?, ?) USING TIMESTAMP ?";
            leading.push(vec![Write(insert, values![now, key(), version])]);
        }
        if let Some(before) = before.as_ref().filter(|before| Some(*before) != now.as_ref()) {
            let delete = "DELETE FROM handles USING TIMESTAMP ? WHERE handle = ? AND room = ?";
            leading.push(vec![Write(delete, values![version, before, key()])]);
        }
        self.cql.write_partitions(leading).await?;
        let insert = "INSERT INTO rooms (id, head_seq, body) VALUES (?, ?, ?) USING TIMESTAMP ?";
        self.cql.write(insert, values![room.id, version, to_json(room)?, version]).await?;
        // The row itself is the proof of its handle from now on. Other claims of a living room may still be on their way
        // through the log: they end by time alone.
        let ended = match (now, before) {
            (None, Some(before)) if room.deleted => Some(before),
            (now, before) if now != before => now,
            _ => None,
        };
        if let Some(ended) = ended {
            let _turn = self.cql.lane(("handle", &ended)).await;
            let delete = "DELETE FROM handle_claims WHERE handle = ? IF room = ?";
            self.cql.cas(vec![Write(delete, values![ended, room.id])]).await?;
        }
        trail.lock().set_room(room.id, new);
        Ok(())
    }

    /// Replaces a room's standings that these are newer than (I5).
    pub(super) async fn put_members(&self, room: RoomId, members: Vec<(UserId, &Member)>) -> Result<(), Error> {
        let (mut all, mut those_in) = (Vec::new(), Vec::new());
        for (user, member) in members {
            let (key, body, version) = (|| Ordered::from(user), to_json(member)?, member.version);
            let insert = "INSERT INTO members (room, user, body) VALUES (?, ?, ?) USING TIMESTAMP ?";
            all.push(Write(insert, values![room, key(), body, version]));
            those_in.push(if member.is_in() {
                let insert = "INSERT INTO members_in (room, user, body) VALUES (?, ?, ?) USING TIMESTAMP ?";
                Write(insert, values![room, key(), body, version])
            } else {
                let delete = "DELETE FROM members_in USING TIMESTAMP ? WHERE room = ? AND user = ?";
                Write(delete, values![version, room, key()])
            });
        }
        self.cql.write_partitions(vec![all, those_in]).await
    }

    /// Replaces a person's listings that these are newer than (I5).
    pub(super) async fn put_listings(&self, user: UserId, listings: Vec<Listing>) -> Result<(), Error> {
        let insert = "INSERT INTO listings (user, room, version, listed) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
        let row = |of: &Listing| values![user, Ordered::from(of.room), of.version, of.listed, of.version];
        self.cql.write_partition(listings.iter().map(|listing| Write(insert, row(listing))).collect()).await
    }

    /// A person's list as it stands: room, version, whether it is listed; by room.
    async fn listings(&self, user: UserId) -> Result<Vec<(RoomId, Seq, bool)>, Error> {
        let query = "SELECT room, version, listed FROM listings WHERE user = ?";
        let rows = self.cql.rows::<(Vec<u8>, i64, bool)>(query, values![user]).await?;
        let form = |(room, version, listed): (Vec<u8>, i64, bool)| {
            Ok((RoomId(id(&room)?), Seq(super::cql::unsigned(version)?), listed))
        };
        rows.into_iter().map(form).collect()
    }

    /// A shard's first places, so many, whose name or handle contains `text`.
    async fn places(&self, shard: i32, text: &str, sort: DirectorySort, count: usize) -> Result<Vec<Place>, Error> {
        type Columns = (Vec<u8>, String, String, i64, i64, i64);
        let query = "SELECT room, name_key, handle_key, created_at, last_activity_at, member_count
            FROM directory WHERE shard = ?";
        let mut places = Vec::new();
        for (room, name, handle, created, active, members) in self.cql.rows::<Columns>(query, values![shard]).await? {
            if !name.contains(text) && !handle.contains(text) {
                continue;
            }
            let key = match sort {
                DirectorySort::Activity => (-active, String::new()),
                DirectorySort::Popularity => (-members, String::new()),
                DirectorySort::Name => (0, name),
                DirectorySort::Created => (-created, String::new()),
            };
            places.push((key, RoomId(id(&room)?)));
        }
        places.sort_unstable();
        places.truncate(count);
        Ok(places)
    }
}

#[async_trait]
impl Rooms for CassandraStore {
    async fn rooms(&self, ids: &[RoomId]) -> Result<Vec<RoomInfo>, Error> {
        let rooms = side_by_side(ids.iter().map(|id| self.room(*id))).await?;
        Ok(rooms.into_iter().flatten().collect())
    }

    async fn standings(&self, user: UserId, rooms: &[RoomId]) -> Result<Vec<(RoomId, Member)>, Error> {
        let read = |room: RoomId| async move {
            let query = "SELECT body FROM members WHERE room = ? AND user = ?";
            let body = self.cql.row::<(String,)>(query, values![room, Ordered::from(user)]).await?;
            body.map(|(body,)| Ok::<_, Error>((room, from_json(&body)?))).transpose()
        };
        let found = side_by_side(rooms.iter().copied().map(read)).await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn members(&self, room: RoomId) -> Result<Vec<(UserId, Member)>, Error> {
        let query = "SELECT user, body FROM members WHERE room = ?";
        self.cql.rows(query, values![room]).await?.into_iter().map(standing).collect()
    }

    async fn members_page(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit_to: usize,
    ) -> Result<Vec<(UserId, Member)>, Error> {
        let query = "SELECT user, body FROM members_in WHERE room = ? AND user > ? LIMIT ?";
        let after = after.map(|user| user.as_bytes().to_vec()).unwrap_or_default();
        self.cql.rows(query, values![room, after, limit(limit_to)]).await?.into_iter().map(standing).collect()
    }

    async fn rooms_of(&self, user: UserId) -> Result<Vec<RoomId>, Error> {
        let listings = self.listings(user).await?;
        Ok(listings.into_iter().filter(|(_, _, listed)| *listed).map(|(room, ..)| room).collect())
    }

    async fn left_unseen(&self, user: UserId, limit_to: usize) -> Result<Vec<RoomId>, Error> {
        let left = self.listings(user).await?.into_iter().filter(|(_, _, listed)| !listed);
        let left: Vec<(RoomId, Seq)> = left.map(|(room, version, _)| (room, version)).collect();
        let mut unseen = Vec::new();
        for part in left.chunks(IN_MAX) {
            let rooms: Vec<RoomId> = part.iter().map(|(room, _)| *room).collect();
            let delivered: HashMap<RoomId, Seq> = self
                .watermarks_in(user, &rooms)
                .await?
                .into_iter()
                .map(|(room, mark)| (room, mark.delivered_seq))
                .collect();
            let is_unseen =
                |(room, version): &&(RoomId, Seq)| *version > delivered.get(room).copied().unwrap_or_default();
            unseen.extend(part.iter().filter(is_unseen).map(|(room, _)| *room));
            if unseen.len() >= limit_to {
                unseen.truncate(limit_to);
                break;
            }
        }
        Ok(unseen)
    }

    async fn directory(
        &self,
        text: &str,
        sort: DirectorySort,
        skip: usize,
        limit_to: usize,
    ) -> Result<Vec<RoomInfo>, Error> {
        let text = fold_case(text);
        let count = skip.saturating_add(limit_to).saturating_add(SPARE);
        let text = &text;
        let shards = side_by_side((0..SHARDS).map(|shard| self.places(shard, text, sort, count))).await?;
        let mut places = shards.concat();
        places.sort_unstable();
        let ids: Vec<RoomId> = places.into_iter().skip(skip).take(limit_to + SPARE).map(|(_, room)| room).collect();
        let fits = |room: &RoomInfo| {
            let fits = |name: &str| fold_case(name).contains(text);
            is_listed(room) && (fits(&room.settings.name) || room.settings.handle.as_deref().is_some_and(fits))
        };
        Ok(self.rooms(&ids).await?.into_iter().filter(fits).take(limit_to).collect())
    }

    async fn claim_handle(
        &self,
        handle: &str,
        room: RoomId,
        now: Timestamp,
        expires_at: Timestamp,
    ) -> Result<bool, Error> {
        let handle = fold_case(handle);
        let _turn = self.cql.lane(("handle", &handle)).await;
        let kept = (expires_at.since(now).as_secs() as i64).saturating_add(CLAIM_KEPT_S);
        let kept = i32::try_from(kept).unwrap_or(i32::MAX / 10);
        for _ in 0..CAS_TRIES {
            if self.room_with(&handle).await?.is_some_and(|owner| owner != room) {
                return Ok(false);
            }
            let known = "SELECT room, expires_at FROM handle_claims WHERE handle = ?";
            let change = match self.cql.row::<(Uuid, i64)>(known, values![handle]).await? {
                None => {
                    let claim = "INSERT INTO handle_claims (handle, room, expires_at) VALUES (?, ?, ?)
                        IF NOT EXISTS USING TTL ?";
                    Write(claim, values![handle, room, expires_at, kept])
                }
                Some((owner, until)) if owner == room.0 && until >= expires_at.0 => return Ok(true),
                Some((owner, until)) if owner != room.0 && until > now.0 => return Ok(false),
                Some((owner, until)) => {
                    let claim = "UPDATE handle_claims USING TTL ? SET room = ?, expires_at = ? WHERE handle = ?
                        IF room = ? AND expires_at = ?";
                    Write(claim, values![kept, room, expires_at, handle, owner, until])
                }
            };
            if self.cql.cas(vec![change]).await? != Cas::Applied {
                continue;
            }
            // The claim that was in the way may have ended because its room appeared, after the look above.
            return Ok(self.room_with(&handle).await?.is_none_or(|owner| owner == room));
        }
        Err(contended())
    }

    async fn room_by_handle(&self, handle: &str) -> Result<Option<RoomId>, Error> {
        self.room_with(&fold_case(handle)).await
    }

    async fn all_rooms(&self, after: Option<RoomId>, limit_to: usize) -> Result<Vec<RoomId>, Error> {
        // Each table has its rooms by token, so that the first of all are among the first of each. Two rooms of one token
        // (1 in 2^64) at the end of a page would lose the second.
        let read = |(first, further): (&'static str, &'static str)| async move {
            let rows = match after {
                Some(after) => self.cql.rows::<(Uuid, i64)>(further, values![after, limit(limit_to)]).await?,
                None => self.cql.rows::<(Uuid, i64)>(first, values![limit(limit_to)]).await?,
            };
            Ok::<_, Error>(rows)
        };
        let rooms = side_by_side(ALL_ROOMS.into_iter().map(read)).await?;
        let rooms: BTreeSet<(i64, Uuid)> = rooms.concat().into_iter().map(|(room, token)| (token, room)).collect();
        Ok(rooms.into_iter().take(limit_to).map(|(_, room)| RoomId(room)).collect())
    }
}
