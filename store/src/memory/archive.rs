//! Events, command ids, receipts and progress in memory.

use std::ops::Bound;

use async_trait::async_trait;
use schemas::{CommandId, Event, Offset, Partition, RoomId, Seq, Topic, UserId};

use super::{MemoryStore, Receipts, Tables};
use crate::Error;
use crate::archive::{Acted, Archive, Batch, MessageReceipt, Watermarks};

#[async_trait]
impl Archive for MemoryStore {
    async fn archive(&self, batch: Batch) -> Result<(), Error> {
        let mut tables = self.tables();
        let progress = |topic, partition| tables.progress.get(&(topic, partition)).copied().unwrap_or_default();
        if batch.since.iter().any(|(topic, partition, since)| progress(*topic, *partition) < *since) {
            return Err(Error::Behind);
        }
        for event in batch.events {
            tables.index_command(&event);
            tables.events.entry((event.room, event.seq)).or_insert(event);
        }
        for room in batch.rooms {
            tables.put_room(room);
        }
        for (room, user, member) in batch.members {
            let known = tables.members.entry((room, user));
            known
                .and_modify(|known| {
                    if known.version < member.version {
                        known.clone_from(&member);
                    }
                })
                .or_insert(member);
        }
        for new in batch.listings {
            let known = tables.listings.entry((new.user, new.room)).or_insert((new.version, new.listed));
            if known.0 < new.version {
                *known = (new.version, new.listed);
            }
        }
        for receipt in batch.receipts {
            if receipt.delivered_seq.max(receipt.read_seq) == Seq::ZERO {
                continue;
            }
            let known = tables.receipts.entry((receipt.room, receipt.user)).or_default();
            known.watermarks.delivered_seq = known.watermarks.delivered_seq.max(receipt.delivered_seq);
            known.watermarks.read_seq = known.watermarks.read_seq.max(receipt.read_seq);
            known.watermarks.at = known.watermarks.at.max(receipt.at);
            known.delivered.add(receipt.delivered_seq, receipt.at);
            known.read.add(receipt.read_seq, receipt.at);
        }
        for (topic, partition, offset) in batch.progress {
            let known = tables.progress.entry((topic, partition)).or_default();
            *known = offset.max(*known);
        }
        Ok(())
    }

    async fn progress(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        Ok(self.tables().progress.get(&(topic, partition)).copied().unwrap_or_default())
    }

    async fn events(
        &self,
        room: RoomId,
        after: Seq,
        before: Seq,
        limit: usize,
        newest: bool,
    ) -> Result<Vec<Event>, Error> {
        if after >= before.prev() {
            return Ok(Vec::new());
        }
        let tables = self.tables();
        let range = tables.events.range((Bound::Excluded((room, after)), Bound::Excluded((room, before))));
        let events = range.map(|(_, event)| Event::clone(event));
        if newest {
            let mut last: Vec<Event> = events.rev().take(limit).collect();
            last.reverse();
            Ok(last)
        } else {
            Ok(events.take(limit).collect())
        }
    }

    async fn acted(
        &self,
        keys: &[(RoomId, UserId, CommandId)],
    ) -> Result<Vec<((RoomId, UserId, CommandId), Acted)>, Error> {
        let tables = self.tables();
        Ok(keys.iter().filter_map(|key| Some((*key, *tables.commands.get(key)?))).collect())
    }

    async fn largest_command(&self, room: RoomId) -> Result<Option<CommandId>, Error> {
        Ok(self.tables().largest_commands.get(&room).copied())
    }

    async fn watermarks(&self, user: UserId, rooms: &[RoomId]) -> Result<Vec<(RoomId, Watermarks)>, Error> {
        let tables = self.tables();
        let own = |room: &RoomId| Some((*room, tables.receipts.get(&(*room, user))?.watermarks));
        Ok(rooms.iter().filter_map(own).collect())
    }

    async fn room_watermarks(&self, room: RoomId, limit: usize) -> Result<Vec<(UserId, Watermarks)>, Error> {
        let tables = self.tables();
        Ok(tables.receipts_after(room, None).take(limit).map(|(user, known)| (user, known.watermarks)).collect())
    }

    async fn message_receipts(
        &self,
        room: RoomId,
        seq: Seq,
        after: Option<UserId>,
        limit: usize,
    ) -> Result<Vec<MessageReceipt>, Error> {
        let tables = self.tables();
        let receipts = tables.receipts_after(room, after).map(|(user, known)| MessageReceipt {
            user,
            delivered_at: known.delivered.reached_at(seq),
            read_at: known.read.reached_at(seq),
        });
        Ok(receipts.filter(|receipt| receipt.delivered_at.or(receipt.read_at).is_some()).take(limit).collect())
    }
}

impl Tables {
    /// Keeps the place of a command's first event, and the room's largest command id.
    fn index_command(&mut self, event: &Event) {
        let acted = Acted { seq: event.seq, id: event.id, at: event.at };
        let known = self.commands.entry((event.room, event.by, event.command)).or_insert(acted);
        if acted.seq < known.seq {
            *known = acted;
        }
        let largest = self.largest_commands.entry(event.room).or_insert(event.command);
        *largest = event.command.max(*largest);
    }

    fn receipts_after(&self, room: RoomId, after: Option<UserId>) -> impl Iterator<Item = (UserId, &Receipts)> {
        let start = match after {
            Some(user) => Bound::Excluded((room, user)),
            None => Bound::Included((room, UserId::NIL)),
        };
        let of_room = self.receipts.range((start, Bound::Unbounded)).take_while(move |((of, _), _)| *of == room);
        of_room.map(|((_, user), known)| (*user, known))
    }
}
