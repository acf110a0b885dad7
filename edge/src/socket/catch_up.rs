//! Reading what a socket missed: new rooms, rooms that are behind, and a list of rooms that may be out of date (I7).
//! One step reads as long as the outbox has room and then returns, so that a slow client holds no more than its outbox.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use schemas::limits::{PAGE_MAX, RECEIPT_MEMBERS_MAX, STREAM_MAX_MISSED};
use schemas::link::{Lane, Page, PageFrom, PageQuery, Unavailable};
use schemas::room::Member;
use schemas::{Event, Offset, RoomId, Seq};

use super::outbox::Socket;
use crate::hub::Hub;

/// What a page turns into.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// An event at its place.
    Event(Arc<Event>),
    /// A stretch that is not streamed.
    Gap(Seq, Seq, bool),
}

/// Subscribes rooms and compares them with history. `resume` holds the cursors of those that have one.
pub async fn follow(
    hub: &Hub,
    socket: &Arc<Socket>,
    rooms: &[RoomId],
    resume: &HashMap<RoomId, Seq>,
) -> Result<(), Unavailable> {
    let positions = hub.subscribe(socket, rooms).await?;
    let mut strange: HashSet<RoomId> = rooms.iter().copied().collect();
    let result = start_all(hub, socket, &positions, resume, &mut strange).await;
    // Rooms that are not this person's, and rooms that could not be compared: they are asked for again.
    for room in strange {
        hub.unsubscribe(socket, room);
    }
    result
}

async fn start_all(
    hub: &Hub,
    socket: &Arc<Socket>,
    positions: &[(RoomId, Offset)],
    resume: &HashMap<RoomId, Seq>,
    strange: &mut HashSet<RoomId>,
) -> Result<(), Unavailable> {
    let positions = at_end(hub, positions).await?;
    for (room, position) in &positions {
        socket.read_at(*room, *position);
    }
    for entry in hub.history().rooms(socket.user, &positions).await? {
        let room = entry.info.id;
        let visible_head = entry.member.visible_head(entry.info.head_seq);
        let held = resume.get(&room).copied();
        let (start, claimed) = (held.unwrap_or(entry.delivered_seq), held.is_some());
        if entry.info.deleted {
            socket.start(room, start, visible_head, claimed);
            put_deletion(hub, socket, room, start).await?;
            continue;
        }
        if !entry.member.is_in() && start >= visible_head {
            // Added again while connected, the stream goes on from there, with a gap (protocol.md).
            if let Some(cursor) = resume.get(&room) {
                socket.ended_before(room, *cursor);
            }
            continue;
        }
        describe(hub, room, entry.info.member_count).await?;
        socket.start(room, start, visible_head, claimed);
        for (seq, read) in socket.early_receipts(room) {
            hub.said(socket, room, seq, read);
        }
        strange.remove(&room);
    }
    Ok(())
}

/// Where history must be read for each room: not before where this edge has heard of its partition, and not before the
/// partition's end, for what this person was told elsewhere may be ahead of what an edge has heard of (I8).
async fn at_end(hub: &Hub, positions: &[(RoomId, Offset)]) -> Result<Vec<(RoomId, Offset)>, Unavailable> {
    let ends = hub.ends(positions.iter().map(|(room, _)| *room)).await?;
    let end = |room: RoomId| ends.get(&hub.partition(room.as_bytes())).copied().unwrap_or_default();
    Ok(positions.iter().map(|(room, heard)| (*room, end(*room).max(*heard))).collect())
}

/// Tells the hub what it has to know of a room, once for all sockets.
async fn describe(hub: &Hub, room: RoomId, member_count: u32) -> Result<(), Unavailable> {
    if !hub.is_undescribed(room) {
        return Ok(());
    }
    let small = member_count <= RECEIPT_MEMBERS_MAX;
    let limit = if small { RECEIPT_MEMBERS_MAX as usize } else { 0 };
    let known = if small { hub.deps().store.room_watermarks(room, limit).await } else { Ok(Vec::new()) };
    let known = known.map_err(|error| {
        tracing::warn!(%error, %room, "receipts could not be read");
        Unavailable
    })?;
    let known = known.into_iter().map(|(user, marks)| (user, (marks.delivered_seq, marks.read_seq)));
    hub.describe(room, member_count, known);
    Ok(())
}

/// Reads rooms that are behind until all have caught up or the outbox is full enough.
pub async fn read(hub: &Hub, socket: &Arc<Socket>, rooms: Vec<RoomId>) -> Result<(), Unavailable> {
    hub.metrics().behind.inc_by(rooms.len() as u64);
    for room in rooms {
        while let Some((cursor, position)) = socket.behind(room) {
            if !socket.has_room() {
                hub.metrics().lagging.inc();
                socket.still_behind();
                return Ok(());
            }
            let min_offset = hub.position_of(room).max(position);
            let query =
                PageQuery { user: socket.user, room, from: PageFrom::After(cursor), limit: PAGE_MAX, min_offset };
            match hub.history().page(query).await? {
                Some(page) => put(hub, socket, room, cursor, &page),
                None => {
                    put_deletion(hub, socket, room, cursor).await?;
                    hub.unsubscribe(socket, room);
                }
            }
        }
    }
    Ok(())
}

/// Tells a socket that was behind that its room is gone: what it missed is not to be read any more, then the deletion
/// itself (protocol.md).
async fn put_deletion(hub: &Hub, socket: &Arc<Socket>, room: RoomId, cursor: Seq) -> Result<(), Unavailable> {
    hub.history().settle(Lane::Rooms, hub.partition(room.as_bytes()), hub.position_of(room)).await?;
    let store = &hub.deps().store;
    let unavailable = |error: store::Error| {
        tracing::warn!(%error, %room, "a deleted room could not be read");
        Unavailable
    };
    let info = store.rooms(&[room]).await.map_err(unavailable)?.into_iter().find(|info| info.deleted);
    let standing = store.standings(socket.user, &[room]).await.map_err(unavailable)?;
    let (Some(info), true) = (info, standing.iter().any(|(_, member)| member.is_in())) else { return Ok(()) };
    let head = info.head_seq;
    for event in store.events(room, cursor.max(head.prev()), head.next(), 1, true).await.map_err(unavailable)? {
        if cursor.next() < head {
            socket.put_gap(room, cursor.next(), head.prev(), false);
        }
        socket.put_event(&Arc::new(event), true);
    }
    Ok(())
}

/// Puts a page into the stream.
fn put(hub: &Hub, socket: &Arc<Socket>, room: RoomId, cursor: Seq, page: &Page) {
    let (pieces, complete) = lay_out(cursor, page);
    let last_stay_over = !page.member.is_in();
    let mut ended = false;
    for piece in pieces {
        match piece {
            Piece::Event(event) => {
                let last_of_all = last_stay_over && event.seq == page.visible_head;
                ended |= socket.put_event(&event, last_of_all);
            }
            Piece::Gap(from, to, readable) => socket.put_gap(room, from, to, readable),
        }
    }
    if ended || (complete && last_stay_over) {
        hub.unsubscribe(socket, room);
        socket.relist();
    } else if complete {
        socket.caught_up(room);
    }
}

/// A page as the stream has it, and whether it reaches the last event that this person may see. Pure.
pub fn lay_out(cursor: Seq, page: &Page) -> (Vec<Piece>, bool) {
    if page.visible_head.0.saturating_sub(cursor.0) > STREAM_MAX_MISSED {
        return (gaps(&page.member, cursor.next(), page.visible_head), true);
    }
    let mut pieces = Vec::with_capacity(page.events.len());
    let mut next = cursor.next();
    for event in &page.events {
        if event.seq < next || is_between_stays(&page.member, event.seq) {
            continue;
        }
        if event.seq > next {
            pieces.extend(gaps(&page.member, next, event.seq.prev()));
        }
        pieces.push(Piece::Event(Arc::clone(event)));
        next = event.seq.next();
    }
    // A page of nothing but events between two stays moves the cursor as well.
    if let Some(last) = page.events.last().filter(|last| last.seq >= next) {
        pieces.extend(gaps(&page.member, next, last.seq));
        next = last.seq.next();
    }
    (pieces, next > page.visible_head)
}

/// Whether a person was out of the room at this event, between two stays: such a stretch is announced as a gap even
/// where they may read it.
fn is_between_stays(member: &Member, seq: Seq) -> bool {
    member.intervals.windows(2).any(|pair| pair[0].until.is_some_and(|until| until < seq) && seq < pair[1].joined)
}

/// The stretch from..=to as gaps, cut where readability changes.
fn gaps(member: &Member, from: Seq, to: Seq) -> Vec<Piece> {
    // Readability changes only at the ends of stays.
    let mut cuts: Vec<Seq> = member
        .intervals
        .iter()
        .flat_map(|stay| [Some(stay.visible_from), stay.until.map(Seq::next)])
        .flatten()
        .filter(|cut| *cut > from && *cut <= to)
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut pieces: Vec<Piece> = Vec::new();
    let mut start = from;
    for end in cuts.into_iter().map(Seq::prev).chain([to]) {
        let readable = member.sees(start);
        match pieces.last_mut() {
            Some(Piece::Gap(_, last, same)) if *same == readable => *last = end,
            _ => pieces.push(Piece::Gap(start, end, readable)),
        }
        start = end.next();
    }
    pieces
}

#[cfg(test)]
mod tests {
    use schemas::event::EventKind;
    use schemas::message::{Content, Message, Role, RoomHistory, RoomKind, RoomVisibility, Settings};
    use schemas::room::{Interval, RoomInfo};
    use schemas::{CommandId, EventId, Timestamp, UserId};

    use super::*;

    fn event(seq: u64) -> Arc<Event> {
        Arc::new(Event {
            room: RoomId::NIL,
            seq: Seq(seq),
            id: EventId::NIL,
            at: Timestamp(0),
            by: UserId::NIL,
            command: CommandId::NIL,
            reply_to: None,
            received_us: 0,
            decided_us: 0,
            salt: [0; 16],
            hash: [0; 32],
            kind: EventKind::Message(Message { content: Content::text("x"), reply_to: None }),
        })
    }

    /// A page of a room with this head, as someone with these stays (joined, visible from, until) sees it.
    fn page(stays: &[(u64, u64, Option<u64>)], head: u64, after: u64) -> Page {
        let intervals = stays
            .iter()
            .map(|(joined, from, until)| Interval {
                joined: Seq(*joined),
                visible_from: Seq(*from),
                until: until.map(Seq),
            })
            .collect();
        let member = Member { role: Role::Member, intervals, version: Seq(1) };
        let events = (after + 1..=head).filter(|seq| member.sees(Seq(*seq))).take(PAGE_MAX).map(event).collect();
        let info = RoomInfo {
            id: RoomId::NIL,
            settings: Settings {
                kind: RoomKind::Group,
                name: String::new(),
                handle: None,
                description: String::new(),
                icon: String::new(),
                visibility: RoomVisibility::Private,
                history: RoomHistory::All,
            },
            created_at: Timestamp(0),
            created_by: UserId::NIL,
            head_seq: Seq(head),
            hash: [0; 32],
            last_activity_at: Timestamp(0),
            member_count: 1,
            deleted: false,
        };
        Page {
            events,
            first_seq: member.visible_first(),
            visible_head: member.visible_head(Seq(head)),
            head_seq: Seq(head),
            member,
            info: Arc::new(info),
        }
    }

    /// The stream in short: events as numbers, gaps as (from, to, readable).
    fn stream(stays: &[(u64, u64, Option<u64>)], head: u64, after: u64) -> (Vec<String>, bool) {
        let (pieces, complete) = lay_out(Seq(after), &page(stays, head, after));
        let short = pieces.iter().map(|piece| match piece {
            Piece::Event(event) => event.seq.to_string(),
            Piece::Gap(from, to, readable) => format!("{from}-{to}{}", if *readable { "" } else { "!" }),
        });
        (short.collect(), complete)
    }

    #[test]
    fn what_was_missed_is_streamed_in_order() {
        assert_eq!(stream(&[(1, 1, None)], 5, 2), (vec!["3".into(), "4".into(), "5".into()], true));
    }

    #[test]
    fn a_long_absence_is_one_gap() {
        assert_eq!(stream(&[(1, 1, None)], 1_500, 2), (vec!["3-1500".into()], true));
    }

    #[test]
    fn a_page_that_is_full_is_not_the_end() {
        let (pieces, complete) = stream(&[(1, 1, None)], 500, 0);
        assert_eq!((pieces.len(), complete), (PAGE_MAX, false));
    }

    #[test]
    fn nothing_after_a_removal_is_sent() {
        assert_eq!(stream(&[(1, 1, Some(4))], 9, 2), (vec!["3".into(), "4".into()], true));
    }

    #[test]
    fn what_lies_between_two_stays_is_a_gap_readable_or_not() {
        let hidden = [(1, 1, Some(3)), (6, 6, None)];
        assert_eq!(stream(&hidden, 7, 2).0, ["3", "4-5!", "6", "7"]);
        let shown = [(1, 1, Some(3)), (6, 1, None)];
        assert_eq!(stream(&shown, 7, 2).0, ["3", "4-5", "6", "7"]);
        assert_eq!(stream(&shown, 7, 3).0, ["4-5", "6", "7"]);
    }

    #[test]
    fn what_was_before_a_newcomer_is_a_gap_that_they_may_not_read() {
        assert_eq!(stream(&[(4, 4, None)], 5, 0).0, ["1-3!", "4", "5"]);
    }
}
