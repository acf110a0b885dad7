//! Receipts in Cassandra. Watermarks are maxima by their write timestamps; of steps only those are kept that still tell a
//! time, which takes a look at their neighbours.

use std::collections::HashMap;

use parking_lot::Mutex;
use schemas::receipt::Receipt;
use schemas::{RoomId, Seq, Timestamp, UserId};

use super::CassandraStore;
use super::cql::{Ordered, Values, Write, id, integer, limit, side_by_side, unsigned, values};
use super::trail::{Step, Trail};
use crate::Error;
use crate::archive::{MessageReceipt, Watermarks};

/// `receipt_steps.kind`.
const DELIVERED: i32 = 0;
const READ: i32 = 1;
/// Keys of one `IN`.
const IN_MAX: usize = 100;
/// Lower steps that are looked at at a time.
const LOWER_PAGE: i32 = 16;

/// The highest steps up to a seq, the highest first.
const BELOW: &str = "SELECT seq, at FROM receipt_steps WHERE room = ? AND user = ? AND kind = ? AND seq <= ?
    ORDER BY kind DESC, seq DESC LIMIT ?";

type MarkColumns = (Vec<u8>, Option<i64>, Option<i64>, Option<i64>);

fn marks((key, delivered, read, at): MarkColumns) -> Result<(uuid::Uuid, Watermarks), Error> {
    let seq = |number: Option<i64>| unsigned(number.unwrap_or_default()).map(Seq);
    let at = Timestamp(at.unwrap_or_default());
    Ok((id(&key)?, Watermarks { delivered_seq: seq(delivered)?, read_seq: seq(read)?, at }))
}

/// The writes that raise one person's watermarks in a room: in the room's partition, and in the person's.
pub(super) fn raised(room: RoomId, user: UserId, receipts: &[&Receipt]) -> (Vec<Write>, Vec<Write>) {
    let reached = receipts.iter().fold(Watermarks::default(), |marks, receipt| Watermarks {
        delivered_seq: marks.delivered_seq.max(receipt.delivered_seq),
        read_seq: marks.read_seq.max(receipt.read_seq),
        at: marks.at.max(receipt.at),
    });
    let (by_room, by_user) = (|| values![room, Ordered::from(user)], || values![user, Ordered::from(room)]);
    let (mut in_room, mut of_user) = (Vec::new(), Vec::new());
    // Each value is its own write timestamp: the largest stays.
    let mut raise = |value: i64, room_statement, user_statement| {
        let row = |key: Values| [values![value, value], key].concat();
        in_room.push(Write(room_statement, row(by_room())));
        of_user.push(Write(user_statement, row(by_user())));
    };
    if reached.delivered_seq > Seq::ZERO {
        raise(
            integer(reached.delivered_seq.0),
            "UPDATE watermarks_by_room USING TIMESTAMP ? SET delivered_seq = ? WHERE room = ? AND user = ?",
            "UPDATE watermarks_by_user USING TIMESTAMP ? SET delivered_seq = ? WHERE user = ? AND room = ?",
        );
    }
    if reached.read_seq > Seq::ZERO {
        raise(
            integer(reached.read_seq.0),
            "UPDATE watermarks_by_room USING TIMESTAMP ? SET read_seq = ? WHERE room = ? AND user = ?",
            "UPDATE watermarks_by_user USING TIMESTAMP ? SET read_seq = ? WHERE user = ? AND room = ?",
        );
    }
    raise(
        reached.at.0,
        "UPDATE watermarks_by_room USING TIMESTAMP ? SET at = ? WHERE room = ? AND user = ?",
        "UPDATE watermarks_by_user USING TIMESTAMP ? SET at = ? WHERE user = ? AND room = ?",
    );
    (in_room, of_user)
}

impl CassandraStore {
    /// Enters steps of receipts of one person in one room, in order.
    pub(super) async fn put_steps(
        &self,
        trail: &Mutex<Trail>,
        room: RoomId,
        user: UserId,
        receipts: &[&Receipt],
    ) -> Result<(), Error> {
        // All are of one partition.
        let mut writes = Vec::new();
        for receipt in receipts {
            for (kind, seq) in [(DELIVERED, receipt.delivered_seq), (READ, receipt.read_seq)] {
                if seq > Seq::ZERO {
                    self.put_step(trail, (room, user, kind), (seq, receipt.at), &mut writes).await?;
                }
            }
        }
        self.cql.write_partition(writes).await
    }

    /// Keeps a step unless another reaches as far at the same or an earlier time, and drops those to which that now
    /// applies (law 2). What is left to be written is added to `writes`.
    async fn put_step(
        &self,
        trail: &Mutex<Trail>,
        (room, user, kind): (RoomId, UserId, i32),
        (seq, at): Step,
        writes: &mut Vec<Write>,
    ) -> Result<(), Error> {
        let known = trail.lock().step(room, user, kind);
        let last = match known {
            Some(last) => Some(last),
            None => {
                // What is not written yet can't be looked at.
                self.cql.write_partition(std::mem::take(writes)).await?;
                let top = values![room, user, kind, i64::MAX, 1];
                let last = self.cql.row::<(i64, i64)>(BELOW, top).await?;
                last.map(|(seq, at)| Ok::<_, Error>((Seq(unsigned(seq)?), Timestamp(at)))).transpose()?
            }
        };
        match last {
            // Another time of the last one: it is there, or comes first.
            Some((last, then)) if seq == last && at >= then => {
                trail.lock().set_step(room, user, kind, Some((last, then)));
                return Ok(());
            }
            Some((last, then)) if seq <= last || at <= then => {
                self.cql.write_partition(std::mem::take(writes)).await?;
                trail.lock().set_step(room, user, kind, None);
                if !self.make_room(room, user, kind, (seq, at), writes).await? {
                    return Ok(());
                }
            }
            // In the usual order it comes after all others.
            _ => trail.lock().set_step(room, user, kind, Some((seq, at))),
        }
        // Of two times of one step the earlier stays.
        let insert = "INSERT INTO receipt_steps (room, user, kind, seq, at) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?";
        writes.push(Write(insert, values![room, user, kind, seq, at, -at.0]));
        Ok(())
    }

    /// Drops lower steps of the same or a later time than a new one; `false` if that is to be dropped itself.
    async fn make_room(
        &self,
        room: RoomId,
        user: UserId,
        kind: i32,
        (seq, at): Step,
        writes: &mut Vec<Write>,
    ) -> Result<bool, Error> {
        if self.reached_at(room, user, kind, seq).await?.is_some_and(|known| known <= at) {
            return Ok(false);
        }
        // Times fall with the seq: the first one that is early enough ends the search.
        let mut from = seq;
        loop {
            let lower = self.cql.rows::<(i64, i64)>(BELOW, values![room, user, kind, from, LOWER_PAGE]).await?;
            for (lower, known) in &lower {
                if *known < at.0 {
                    return Ok(true);
                }
                // That very step: its deletion has its timestamp, and wins.
                if *lower < integer(seq.0) {
                    let delete = "DELETE FROM receipt_steps USING TIMESTAMP ?
                        WHERE room = ? AND user = ? AND kind = ? AND seq = ?";
                    writes.push(Write(delete, values![-*known, room, user, kind, *lower]));
                }
            }
            match lower.last() {
                Some((lower, _)) if *lower > 1 => from = Seq(unsigned(lower - 1)?),
                _ => return Ok(true),
            }
        }
    }

    /// When all up to `seq` was reached.
    async fn reached_at(&self, room: RoomId, user: UserId, kind: i32, seq: Seq) -> Result<Option<Timestamp>, Error> {
        let query = "SELECT at FROM receipt_steps WHERE room = ? AND user = ? AND kind = ? AND seq >= ? LIMIT 1";
        let at = self.cql.row::<(i64,)>(query, values![room, user, kind, seq]).await?;
        Ok(at.map(|(at,)| Timestamp(at)))
    }

    /// One person's watermarks in several rooms, in no order.
    pub(super) async fn watermarks_in(
        &self,
        user: UserId,
        rooms: &[RoomId],
    ) -> Result<HashMap<RoomId, Watermarks>, Error> {
        let query = "SELECT room, delivered_seq, read_seq, at FROM watermarks_by_user WHERE user = ? AND room IN ?";
        let mut found = HashMap::new();
        for part in rooms.chunks(IN_MAX) {
            let keys: Vec<Ordered> = part.iter().copied().map(Ordered::from).collect();
            for row in self.cql.rows::<MarkColumns>(query, values![user, &keys[..]]).await? {
                let (room, marks) = marks(row)?;
                found.insert(RoomId(room), marks);
            }
        }
        Ok(found)
    }

    /// Everyone's watermarks in a room, by user id, after `after`.
    pub(super) async fn watermarks_of(
        &self,
        room: RoomId,
        after: Option<UserId>,
        limit_to: usize,
    ) -> Result<Vec<(UserId, Watermarks)>, Error> {
        let query = "SELECT user, delivered_seq, read_seq, at FROM watermarks_by_room
            WHERE room = ? AND user > ? LIMIT ?";
        let after = after.map(|user| user.as_bytes().to_vec()).unwrap_or_default();
        let rows = self.cql.rows::<MarkColumns>(query, values![room, after, limit(limit_to)]).await?;
        rows.into_iter().map(|row| marks(row).map(|(user, marks)| (UserId(user), marks))).collect()
    }

    pub(super) async fn receipts_of(
        &self,
        room: RoomId,
        seq: Seq,
        mut after: Option<UserId>,
        limit_to: usize,
    ) -> Result<Vec<MessageReceipt>, Error> {
        let mut receipts = Vec::new();
        while receipts.len() < limit_to {
            let page = self.watermarks_of(room, after, limit_to.max(IN_MAX)).await?;
            let Some((last, _)) = page.last() else { break };
            after = Some(*last);
            let reached = page.iter().filter(|(_, marks)| marks.delivered_seq >= seq || marks.read_seq >= seq);
            let read = |user: UserId| async move {
                let (delivered_at, read_at) = tokio::try_join!(
                    self.reached_at(room, user, DELIVERED, seq),
                    self.reached_at(room, user, READ, seq)
                )?;
                Ok::<_, Error>(MessageReceipt { user, delivered_at, read_at })
            };
            let users: Vec<UserId> = reached.map(|(user, _)| *user).take(limit_to - receipts.len()).collect();
            let found = side_by_side(users.into_iter().map(read)).await?;
            receipts.extend(found.into_iter().filter(|receipt| receipt.delivered_at.or(receipt.read_at).is_some()));
        }
        Ok(receipts)
    }
}
