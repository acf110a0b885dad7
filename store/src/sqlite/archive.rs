//! Events, command ids, receipts and progress in SQLite.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::types::Type;
use rusqlite::{Connection, Row, params};
use schemas::receipt::Receipt;
use schemas::{CommandId, Event, EventId, Offset, Partition, Record, RoomId, Seq, Timestamp, Topic, UserId};

use super::SqliteStore;
use super::rooms::{put_listing, put_member, put_room};
use super::rows::{all, change, count, integer, one, optional_time, seq, time, unreadable, unsigned, uuid};
use crate::Error;
use crate::archive::{Acted, Archive, Batch, MessageReceipt, Watermarks};

/// `receipt_steps.kind`.
const DELIVERED: i64 = 0;
const READ: i64 = 1;

/// What a row beside its body weighs in the queue, bytes: ids, settings, a closure's share.
const ROW_BYTES: usize = 512;

fn event(row: &Row<'_>) -> rusqlite::Result<Event> {
    Event::decode(row.get_ref(0)?.as_blob()?).map_err(|error| unreadable(0, Type::Blob, error))
}

fn watermarks(row: &Row<'_>, first: usize) -> rusqlite::Result<Watermarks> {
    Ok(Watermarks { delivered_seq: seq(row, first)?, read_seq: seq(row, first + 1)?, at: time(row, first + 2)? })
}

/// What the index has of a command.
pub(super) fn acted(
    sql: &Connection,
    (room, user, command): (RoomId, UserId, CommandId),
) -> Result<Option<Acted>, Error> {
    let query = "SELECT seq, event, at FROM commands WHERE room = ?1 AND user = ?2 AND command = ?3";
    let form = |row: &Row<'_>| Ok(Acted { seq: seq(row, 0)?, id: EventId(uuid(row, 1)?), at: time(row, 2)? });
    one(sql, query, [room.as_bytes(), user.as_bytes(), command.as_bytes()], form)
}

fn progress(sql: &Connection, topic: Topic, partition: Partition) -> Result<Offset, Error> {
    let query = "SELECT offset FROM progress WHERE topic = ?1 AND partition = ?2";
    let offset = one(sql, query, params![topic.name(), partition.0], |row| unsigned(row, 0).map(Offset))?;
    Ok(offset.unwrap_or_default())
}

/// Archives events and indexes their commands. What is there stays as it is.
fn put_events(sql: &Connection, events: &[(Arc<Event>, Bytes)]) -> Result<(), Error> {
    let mut largest: HashMap<RoomId, CommandId> = HashMap::new();
    for (event, body) in events {
        let (room, seq) = (event.room.as_bytes(), integer(event.seq.0));
        let insert = "INSERT INTO events (room, seq, body) VALUES (?1, ?2, ?3) ON CONFLICT (room, seq) DO NOTHING";
        change(sql, insert, params![room, seq, &body[..]])?;
        let index = "INSERT INTO commands (room, user, command, seq, event, at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
            ON CONFLICT (room, user, command) DO UPDATE SET seq = excluded.seq, event = excluded.event, at = excluded.at
            WHERE excluded.seq < commands.seq";
        let (user, command) = (event.by.as_bytes(), event.command.as_bytes());
        change(sql, index, params![room, user, command, seq, event.id.as_bytes(), event.at.0])?;
        let largest = largest.entry(event.room).or_insert(event.command);
        *largest = event.command.max(*largest);
    }
    for (room, command) in largest {
        let raise = "INSERT INTO largest_commands (room, command) VALUES (?1, ?2)
            ON CONFLICT (room) DO UPDATE SET command = excluded.command WHERE command < excluded.command";
        change(sql, raise, [room.as_bytes(), command.as_bytes()])?;
    }
    Ok(())
}

fn put_receipt(sql: &Connection, receipt: &Receipt) -> Result<(), Error> {
    if receipt.delivered_seq.max(receipt.read_seq) == Seq::ZERO {
        return Ok(());
    }
    let upsert = "INSERT INTO watermarks (room, user, delivered_seq, read_seq, at) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (room, user) DO UPDATE SET delivered_seq = max(delivered_seq, excluded.delivered_seq),
            read_seq = max(read_seq, excluded.read_seq), at = max(at, excluded.at)";
    let (room, user) = (receipt.room.as_bytes(), receipt.user.as_bytes());
    let (delivered, read) = (integer(receipt.delivered_seq.0), integer(receipt.read_seq.0));
    change(sql, upsert, params![room, user, delivered, read, receipt.at.0])?;
    put_step(sql, receipt, DELIVERED, receipt.delivered_seq)?;
    put_step(sql, receipt, READ, receipt.read_seq)
}

/// Keeps a step unless another reaches as far at the same or an earlier time, and drops those to which that now
/// applies: in whatever order steps come, the same ones are left (law 2).
fn put_step(sql: &Connection, receipt: &Receipt, kind: i64, seq: Seq) -> Result<(), Error> {
    let (room, user, seq, at) = (receipt.room.as_bytes(), receipt.user.as_bytes(), integer(seq.0), receipt.at.0);
    let further = "SELECT at FROM receipt_steps WHERE room = ?1 AND user = ?2 AND kind = ?3 AND seq >= ?4
        ORDER BY seq LIMIT 1";
    let further = one(sql, further, params![room, user, kind, seq], |row| row.get::<_, i64>(0))?;
    if seq == 0 || further.is_some_and(|known| known <= at) {
        return Ok(());
    }
    // Times fall with the seq: the first one that is early enough ends the search.
    let below = "SELECT seq, at FROM receipt_steps WHERE room = ?1 AND user = ?2 AND kind = ?3 AND seq <= ?4
        ORDER BY seq DESC LIMIT 1";
    let form = |row: &Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
    while let Some((lower, known)) = one(sql, below, params![room, user, kind, seq], form)? {
        if known < at {
            break;
        }
        let drop_it = "DELETE FROM receipt_steps WHERE room = ?1 AND user = ?2 AND kind = ?3 AND seq = ?4";
        change(sql, drop_it, params![room, user, kind, lower])?;
    }
    let insert = "INSERT INTO receipt_steps (room, user, kind, seq, at) VALUES (?1, ?2, ?3, ?4, ?5)";
    change(sql, insert, params![room, user, kind, seq, at]).map(drop)
}

#[async_trait]
impl Archive for SqliteStore {
    async fn archive(&self, batch: Batch) -> Result<(), Error> {
        // Encoded here, so that the one writer does not have to.
        let events: Vec<_> = batch.events.into_iter().map(|event| (event.clone(), event.encode())).collect();
        let others = batch.rooms.len() + batch.members.len() + batch.listings.len() + batch.receipts.len();
        let bytes = others * ROW_BYTES + events.iter().map(|(_, body)| body.len() + ROW_BYTES).sum::<usize>();
        let write = move |sql: &Connection| {
            for (topic, partition, since) in &batch.since {
                if progress(sql, *topic, *partition)? < *since {
                    return Err(Error::Behind);
                }
            }
            put_events(sql, &events)?;
            batch.rooms.iter().try_for_each(|room| put_room(sql, room))?;
            batch.members.iter().try_for_each(|(room, user, member)| put_member(sql, *room, *user, member))?;
            batch.listings.iter().try_for_each(|listing| put_listing(sql, listing))?;
            batch.receipts.iter().try_for_each(|receipt| put_receipt(sql, receipt))?;
            // Together with the rows that it covers (law 3).
            let advance = "INSERT INTO progress (topic, partition, offset) VALUES (?1, ?2, ?3)
                ON CONFLICT (topic, partition) DO UPDATE SET offset = max(offset, excluded.offset)";
            batch.progress.iter().try_for_each(|(topic, partition, offset)| {
                change(sql, advance, params![topic.name(), partition.0, integer(offset.0)]).map(drop)
            })
        };
        self.writer.write(bytes, write).await
    }

    async fn progress(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.readers.read(move |sql| progress(sql, topic, partition)).await
    }

    async fn events(
        &self,
        room: RoomId,
        after: Seq,
        before: Seq,
        limit: usize,
        newest: bool,
    ) -> Result<Vec<Event>, Error> {
        let read = move |sql: &Connection| {
            let query = match newest {
                true => "SELECT body FROM events WHERE room = ?1 AND seq > ?2 AND seq < ?3 ORDER BY seq DESC LIMIT ?4",
                false => "SELECT body FROM events WHERE room = ?1 AND seq > ?2 AND seq < ?3 ORDER BY seq LIMIT ?4",
            };
            let params = params![room.as_bytes(), integer(after.0), integer(before.0), count(limit)];
            let mut events = all(sql, query, params, event)?;
            if newest {
                events.reverse();
            }
            Ok(events)
        };
        self.readers.read(read).await
    }

    async fn acted(
        &self,
        keys: &[(RoomId, UserId, CommandId)],
    ) -> Result<Vec<((RoomId, UserId, CommandId), Acted)>, Error> {
        let keys = keys.to_vec();
        let read = move |sql: &Connection| {
            let find =
                |key: &(RoomId, UserId, CommandId)| acted(sql, *key).map(|acted| Some((*key, acted?))).transpose();
            keys.iter().filter_map(find).collect()
        };
        self.readers.read(read).await
    }

    async fn largest_command(&self, room: RoomId) -> Result<Option<CommandId>, Error> {
        let query = "SELECT command FROM largest_commands WHERE room = ?1";
        self.readers.read(move |sql| one(sql, query, [room.as_bytes()], |row| uuid(row, 0).map(CommandId))).await
    }

    async fn watermarks(&self, user: UserId, rooms: &[RoomId]) -> Result<Vec<(RoomId, Watermarks)>, Error> {
        let rooms = rooms.to_vec();
        let read = move |sql: &Connection| {
            let query = "SELECT delivered_seq, read_seq, at FROM watermarks WHERE room = ?1 AND user = ?2";
            let own = |room: &RoomId| {
                let form = |row: &Row<'_>| Ok((*room, watermarks(row, 0)?));
                one(sql, query, [room.as_bytes(), user.as_bytes()], form).transpose()
            };
            rooms.iter().filter_map(own).collect()
        };
        self.readers.read(read).await
    }

    async fn room_watermarks(&self, room: RoomId, limit: usize) -> Result<Vec<(UserId, Watermarks)>, Error> {
        let query = "SELECT user, delivered_seq, read_seq, at FROM watermarks WHERE room = ?1 ORDER BY user LIMIT ?2";
        let form = |row: &Row<'_>| Ok((UserId(uuid(row, 0)?), watermarks(row, 1)?));
        self.readers.read(move |sql| all(sql, query, params![room.as_bytes(), count(limit)], form)).await
    }

    async fn message_receipts(
        &self,
        room: RoomId,
        seq: Seq,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<MessageReceipt>, Error> {
        // ?5 and ?6 are the kinds of steps.
        let query = "SELECT user,
                (SELECT at FROM receipt_steps AS step WHERE step.room = ?1 AND step.user = watermarks.user
                    AND kind = ?5 AND seq >= ?2 ORDER BY seq LIMIT 1),
                (SELECT at FROM receipt_steps AS step WHERE step.room = ?1 AND step.user = watermarks.user
                    AND kind = ?6 AND seq >= ?2 ORDER BY seq LIMIT 1)
            FROM watermarks WHERE room = ?1 AND user > ?3 AND (delivered_seq >= ?2 OR read_seq >= ?2)
            ORDER BY user LIMIT ?4";
        let form = |row: &Row<'_>| {
            let (delivered_at, read_at): (Option<Timestamp>, _) = (optional_time(row, 1)?, optional_time(row, 2)?);
            Ok(MessageReceipt { user: UserId(uuid(row, 0)?), delivered_at, read_at })
        };
        let read = move |sql: &Connection| {
            let after = after.as_ref().map_or(&[][..], |user| user.as_bytes());
            let params = params![room.as_bytes(), integer(seq.0), after, count(limit), DELIVERED, READ];
            all(sql, query, params, form)
        };
        self.readers.read(read).await
    }
}
