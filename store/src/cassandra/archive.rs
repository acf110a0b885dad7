//! Events, command ids and progress in Cassandra. What may be written twice is, by versions as write timestamps; progress
//! comes last.

use std::collections::HashMap;
use std::hash::Hash;

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::receipt::Receipt;
use schemas::room::{Member, RoomInfo};
use schemas::{CommandId, Event, EventId, Offset, Partition, Record, RoomId, Seq, Timestamp, Topic, UserId};
use uuid::Uuid;

use super::CassandraStore;
use super::cql::{Ordered, Write, broken, integer, limit, side_by_side, unsigned, values};
use super::receipts::raised;
use super::trail::Trail;
use crate::Error;
use crate::archive::{Acted, Archive, Batch, MessageReceipt, Watermarks};
use crate::rooms::Listing;

/// Events of one partition: 4,096 of a kilobyte are 4 MB, which one read of a replica takes easily, and a page of history
/// seldom needs two.
const BUCKET_EVENTS: u64 = 4_096;
/// Command ids of one room are in partitions of 2^20 ms, 17 minutes, by the time in the id (UUIDv7): at a hundred messages
/// a second 100,000 rows.
const SLICE_BITS: u32 = 20;

/// How a page is read, for who measures Cassandra beside this: room, bucket (0 up to seq 4,095), seq after which, seq before
/// which, how many.
pub const OLDEST_EVENTS: &str =
    "SELECT body FROM events WHERE room = ? AND bucket = ? AND seq > ? AND seq < ? ORDER BY seq LIMIT ?";

fn bucket(seq: Seq) -> u64 {
    seq.0 / BUCKET_EVENTS
}

/// The first 48 bits: of a UUIDv7 its time in ms. They order as the ids do, up to the rest.
fn beginning(command: CommandId) -> i64 {
    (command.0.as_u128() >> 80) as i64
}

fn slice(command: CommandId) -> i64 {
    beginning(command) >> SLICE_BITS
}

/// What belongs together, in the order in which it came.
fn grouped<K: Eq + Hash, T>(all: impl IntoIterator<Item = (K, T)>) -> HashMap<K, Vec<T>> {
    let mut groups: HashMap<K, Vec<T>> = HashMap::new();
    for (key, one) in all {
        groups.entry(key).or_default().push(one);
    }
    groups
}

impl CassandraStore {
    async fn put_events(&self, events: &[std::sync::Arc<Event>]) -> Result<(), Error> {
        // The first wins, also of two in one batch.
        let mut first: HashMap<(RoomId, Seq), &Event> = HashMap::new();
        for event in events {
            first.entry((event.room, event.seq)).or_insert(event);
        }
        let timestamp = self.first_wins.timestamp();
        let insert = "INSERT INTO events (room, bucket, seq, body) VALUES (?, ?, ?, ?) USING TIMESTAMP ?";
        let bodies = grouped(first.into_values().map(|event| {
            let bucket = integer(bucket(event.seq));
            let row = values![event.room, bucket, event.seq, event.encode(), timestamp];
            ((event.room, bucket), Write(insert, row))
        }));
        let index = "INSERT INTO commands (room, slice, user, command, seq, event, at) VALUES (?, ?, ?, ?, ?, ?, ?)
            USING TIMESTAMP ?";
        let commands = grouped(events.iter().map(|event| {
            let (slice, seq) = (slice(event.command), event.seq);
            let (user, command) = (Ordered::from(event.by), Ordered::from(event.command));
            let row = values![event.room, slice, user, command, seq, event.id, event.at, -integer(seq.0)];
            ((event.room, slice), Write(index, row))
        }));
        let heads = grouped(events.iter().map(|event| (event.room, event)));
        let heads = heads.into_iter().map(|(room, events)| {
            let seq = events.iter().map(|event| event.seq).max().unwrap_or_default();
            let command = events.iter().map(|event| event.command).max().unwrap_or(CommandId::NIL);
            // Of two commands with the same beginning Cassandra keeps the larger itself, as of any two values of one
            // timestamp.
            vec![
                Write("UPDATE room_heads USING TIMESTAMP ? SET seq = ? WHERE room = ?", values![seq, seq, room]),
                Write(
                    "UPDATE room_heads USING TIMESTAMP ? SET command = ? WHERE room = ?",
                    values![beginning(command), Ordered::from(command), room],
                ),
            ]
        });
        self.cql.write_partitions(bodies.into_values().chain(commands.into_values()).chain(heads).collect()).await
    }

    async fn put_rooms(&self, trail: &Mutex<Trail>, rooms: &[RoomInfo]) -> Result<(), Error> {
        let mut newest: HashMap<RoomId, &RoomInfo> = HashMap::new();
        for room in rooms {
            let known = newest.entry(room.id).or_insert(room);
            if known.head_seq < room.head_seq {
                *known = room;
            }
        }
        side_by_side(newest.into_values().map(|room| self.put_room(trail, room))).await.map(drop)
    }

    async fn put_standings(&self, members: &[(RoomId, UserId, Member)]) -> Result<(), Error> {
        let of_rooms = grouped(members.iter().map(|(room, user, member)| (*room, (*user, member))));
        side_by_side(of_rooms.into_iter().map(|(room, members)| self.put_members(room, members))).await.map(drop)
    }

    async fn put_lists(&self, listings: &[Listing]) -> Result<(), Error> {
        let of_users = grouped(listings.iter().map(|listing| (listing.user, *listing)));
        side_by_side(of_users.into_iter().map(|(user, listings)| self.put_listings(user, listings))).await.map(drop)
    }

    async fn put_receipts(&self, trail: &Mutex<Trail>, receipts: &[std::sync::Arc<Receipt>]) -> Result<(), Error> {
        let some = receipts.iter().filter(|receipt| receipt.delivered_seq.max(receipt.read_seq) > Seq::ZERO);
        let of_people = grouped(some.map(|receipt| ((receipt.room, receipt.user), &**receipt)));
        let steps = of_people.iter().map(|((room, user), receipts)| self.put_steps(trail, *room, *user, receipts));
        side_by_side(steps).await?;
        // Last, as they are what leads to the steps.
        let (mut by_room, mut by_user) = (HashMap::new(), HashMap::new());
        for ((room, user), receipts) in &of_people {
            let (in_room, of_user) = raised(*room, *user, receipts);
            by_room.entry(*room).or_insert_with(Vec::new).extend(in_room);
            by_user.entry(*user).or_insert_with(Vec::new).extend(of_user);
        }
        self.cql.write_partitions(by_room.into_values().chain(by_user.into_values()).collect()).await
    }

    async fn write_batch(&self, trail: &Mutex<Trail>, batch: &Batch) -> Result<(), Error> {
        let since =
            side_by_side(batch.since.iter().map(|(topic, partition, since)| async move {
                Ok(self.progress(*topic, *partition).await? >= *since)
            }));
        if since.await?.contains(&false) {
            return Err(Error::Behind);
        }
        tokio::try_join!(
            self.put_events(&batch.events),
            self.put_rooms(trail, &batch.rooms),
            self.put_standings(&batch.members),
            self.put_lists(&batch.listings),
            self.put_receipts(trail, &batch.receipts),
        )?;
        // After the rows that it covers (law 3).
        let advance = "INSERT INTO progress (topic, number, position) VALUES (?, ?, ?) USING TIMESTAMP ?";
        let rows = batch.progress.iter().map(|(topic, partition, offset)| {
            vec![Write(advance, values![topic.name(), partition.0 as i32, offset, offset])]
        });
        self.cql.write_partitions(rows.collect()).await
    }

    /// The bucket of a room's last event.
    async fn last_bucket(&self, room: RoomId) -> Result<Option<u64>, Error> {
        let query = "SELECT seq FROM room_heads WHERE room = ?";
        let seq = self.cql.row::<(Option<i64>,)>(query, values![room]).await?.and_then(|(seq,)| seq);
        seq.map(|seq| unsigned(seq).map(|seq| bucket(Seq(seq)))).transpose()
    }
}

#[async_trait]
impl Archive for CassandraStore {
    async fn archive(&self, batch: Batch) -> Result<(), Error> {
        // Taken, and put back only if all went well: whoever writes at the same time, or after an error, knows nothing.
        let trail = Mutex::new(std::mem::take(&mut *self.trail.lock()).before(&batch));
        self.write_batch(&trail, &batch).await?;
        *self.trail.lock() = trail.into_inner().after(&batch);
        Ok(())
    }

    async fn progress(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        let query = "SELECT position FROM progress WHERE topic = ? AND number = ?";
        let position = self.cql.row::<(i64,)>(query, values![topic.name(), partition.0 as i32]).await?;
        Ok(Offset(unsigned(position.map(|(position,)| position).unwrap_or_default())?))
    }

    async fn events(
        &self,
        room: RoomId,
        after: Seq,
        before: Seq,
        limit_to: usize,
        newest: bool,
    ) -> Result<Vec<Event>, Error> {
        if after >= before.prev() || limit_to == 0 {
            return Ok(Vec::new());
        }
        let (lowest, highest) = (bucket(after.next()), bucket(before.prev()));
        let query = match newest {
            true => {
                "SELECT body FROM events WHERE room = ? AND bucket = ? AND seq > ? AND seq < ? ORDER BY seq DESC LIMIT ?"
            }
            false => OLDEST_EVENTS,
        };
        let mut events = Vec::new();
        let (mut at, mut last) = (if newest { highest } else { lowest }, None);
        loop {
            let values = values![room, integer(at), after, before, limit(limit_to - events.len())];
            for (body,) in self.cql.rows::<(Vec<u8>,)>(query, values).await? {
                events.push(Event::decode(&body).map_err(broken)?);
            }
            let end = if newest { lowest } else { highest };
            if events.len() == limit_to || at == end {
                break;
            }
            // Beyond the first bucket: where the room ends, so that none is asked for that can't be.
            let last = match last {
                Some(last) => last,
                None => *last.insert(self.last_bucket(room).await?.unwrap_or_default()),
            };
            at = if newest { (at - 1).min(last) } else { at + 1 };
            if at < lowest || at > last {
                break;
            }
        }
        if newest {
            events.reverse();
        }
        Ok(events)
    }

    async fn acted(
        &self,
        keys: &[(RoomId, UserId, CommandId)],
    ) -> Result<Vec<((RoomId, UserId, CommandId), Acted)>, Error> {
        let query = "SELECT seq, event, at FROM commands WHERE room = ? AND slice = ? AND user = ? AND command = ?";
        let read = |key: (RoomId, UserId, CommandId)| async move {
            let (room, user, command) = key;
            let values = values![room, slice(command), Ordered::from(user), Ordered::from(command)];
            let row = self.cql.row::<(i64, Uuid, i64)>(query, values).await?;
            let form = |(seq, event, at)| {
                Ok::<_, Error>((key, Acted { seq: Seq(unsigned(seq)?), id: EventId(event), at: Timestamp(at) }))
            };
            row.map(form).transpose()
        };
        let found = side_by_side(keys.iter().copied().map(read)).await?;
        Ok(found.into_iter().flatten().collect())
    }

    async fn largest_command(&self, room: RoomId) -> Result<Option<CommandId>, Error> {
        let query = "SELECT command FROM room_heads WHERE room = ?";
        let command = self.cql.row::<(Option<Vec<u8>>,)>(query, values![room]).await?.and_then(|(command,)| command);
        command.map(|bytes| super::cql::id(&bytes).map(CommandId)).transpose()
    }

    async fn watermarks(&self, user: UserId, rooms: &[RoomId]) -> Result<Vec<(RoomId, Watermarks)>, Error> {
        let found = self.watermarks_in(user, rooms).await?;
        Ok(rooms.iter().filter_map(|room| found.get(room).map(|marks| (*room, *marks))).collect())
    }

    async fn room_watermarks(&self, room: RoomId, limit: usize) -> Result<Vec<(UserId, Watermarks)>, Error> {
        self.watermarks_of(room, None, limit).await
    }

    async fn message_receipts(
        &self,
        room: RoomId,
        seq: Seq,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<MessageReceipt>, Error> {
        self.receipts_of(room, seq, after, limit).await
    }
}
