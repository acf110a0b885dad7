//! What frames say: the head of each, and the way between it and the messages of [`schemas::link`]. Pure.

use std::sync::Arc;

use bytes::Bytes;
use schemas::ids::InstanceId;
use schemas::link::{Batch, Item, Lane, Page, PageFrom, PageQuery, RoomOfUser};
use schemas::outcome::Outcome;
use schemas::receipt::Receipt;
use schemas::room::{Member, RoomInfo};
use schemas::signal::Signal;
use schemas::user_event::UserEvent;
use schemas::{EdgeId, Event, Offset, Partition, Record as _, RoomId, Seq, UserId};
use serde::{Deserialize, Serialize};

use crate::frame::{self, Frame};

/// Of what is said here. A higher one is spoken only where both sides know it.
pub const PROTOCOL: u32 = 1;

/// An answer is cut into frames of about this many bytes.
const ANSWER_BYTES: usize = 1024 * 1024;

/// Rooms to a frame of an answer; each is some hundred bytes, or some KiB where texts are long.
const ROOMS_MAX: usize = 500;

/// The head of a frame.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Head {
    /// The first frame in each direction.
    Hello {
        /// Highest protocol that the sender speaks.
        protocol: u32,
        /// Who it is.
        instance: InstanceId,
        /// What it does, by name.
        role: String,
    },
    /// The sender is there.
    Beat {},
    /// A batch for the edge; parts: its items.
    Batch {
        /// Of this batch on this link.
        number: u64,
        /// As in [`Batch`].
        epoch: u64,
        /// As in [`Batch`].
        lane: LaneName,
        /// As in [`Batch`].
        partition: Partition,
        /// As in [`Batch`].
        from: Offset,
        /// As in [`Batch`].
        to: Offset,
    },
    /// The edge has taken this batch.
    Taken {
        /// Which.
        number: u64,
    },
    /// A question.
    Ask {
        /// Of this question on this link.
        number: u64,
        /// How long the asker waits, ms.
        wait_ms: u64,
        /// What.
        question: Question,
    },
    /// The asker waits no more.
    Cancel {
        /// For which question.
        number: u64,
    },
    /// Part of an answer.
    Answer {
        /// To which question.
        number: u64,
        /// There is no more of it.
        last: bool,
        /// What.
        answer: Answer,
    },
    /// Interest taken back; part 0: the keys.
    Unregister {
        /// In which lane.
        lane: LaneName,
        /// In which partition.
        partition: Partition,
    },
    /// The edge goes.
    Detach {},
    /// Something that a newer version says.
    #[serde(other)]
    Unknown,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "about", rename_all = "snake_case")]
pub enum Question {
    /// Bring this edge in.
    Attach {
        /// Which.
        edge: EdgeId,
    },
    /// Register interest; part 0: the keys.
    Register {
        /// In which lane.
        lane: LaneName,
        /// In which partition.
        partition: Partition,
    },
    /// What has changed.
    Changed {
        /// In which partition.
        partition: Partition,
        /// After this.
        from: Offset,
        /// Up to this.
        to: Offset,
    },
    /// Who is online; part 0: the users.
    Online {},
    /// Pages of history.
    Pages {
        /// Which.
        queries: Vec<Query>,
    },
    /// Rooms by id.
    Rooms {
        /// Who asks.
        user: UserId,
        /// Which, and how new at least.
        rooms: Vec<(RoomId, Offset)>,
    },
    /// A person's list of rooms.
    RoomsOf {
        /// Whose.
        user: UserId,
        /// How new at least.
        min_offset: Offset,
    },
    /// Wait for the store.
    Settle {
        /// Which lane.
        lane: LaneName,
        /// Which partition.
        partition: Partition,
        /// How far.
        min_offset: Offset,
    },
    /// Something that a newer version asks: unavailable.
    #[serde(other)]
    Unknown,
}

/// An answer, or part of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "says", rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done {},
    /// To a registration.
    Registered {
        /// As in [`schemas::link::Registered`].
        epoch: u64,
        /// As in [`schemas::link::Registered`].
        at: Offset,
    },
    /// Part 0: rooms and their largest seqs, 24 bytes each.
    Changed {
        /// Whether that is all; else any room may have changed.
        known: bool,
    },
    /// Part 0: ids.
    Ids {},
    /// Pages, in order; parts: the events of all of them one after the other.
    Pages {
        /// The pages.
        pages: Vec<Option<PageForm>>,
    },
    /// Rooms.
    Rooms {
        /// The rooms.
        rooms: Vec<RoomForm>,
    },
    /// It can't be answered now; also what is not understood.
    #[serde(other)]
    Unavailable,
}

/// A lane by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LaneName {
    /// [`Lane::Rooms`].
    Rooms,
    /// [`Lane::Users`].
    Users,
}

/// [`PageQuery`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    user: UserId,
    room: RoomId,
    from: From,
    limit: usize,
    min_offset: Offset,
}

/// [`PageFrom`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum From {
    After(Seq),
    Before(Seq),
    Newest,
}

/// [`Page`] without its events.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PageForm {
    events: usize,
    first_seq: Seq,
    visible_head: Seq,
    head_seq: Seq,
    member: Member,
    info: Arc<RoomInfo>,
}

/// [`RoomOfUser`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoomForm {
    info: Arc<RoomInfo>,
    member: Member,
    delivered_seq: Seq,
    read_seq: Seq,
}

impl std::convert::From<Lane> for LaneName {
    fn from(lane: Lane) -> Self {
        match lane {
            Lane::Rooms => Self::Rooms,
            Lane::Users => Self::Users,
        }
    }
}

impl std::convert::From<LaneName> for Lane {
    fn from(lane: LaneName) -> Self {
        match lane {
            LaneName::Rooms => Self::Rooms,
            LaneName::Users => Self::Users,
        }
    }
}

impl std::convert::From<PageQuery> for Query {
    fn from(query: PageQuery) -> Self {
        let PageQuery { user, room, from, limit, min_offset } = query;
        let from = match from {
            PageFrom::After(seq) => From::After(seq),
            PageFrom::Before(seq) => From::Before(seq),
            PageFrom::Newest => From::Newest,
        };
        Self { user, room, from, limit, min_offset }
    }
}

impl std::convert::From<Query> for PageQuery {
    fn from(query: Query) -> Self {
        let Query { user, room, from, limit, min_offset } = query;
        let from = match from {
            From::After(seq) => PageFrom::After(seq),
            From::Before(seq) => PageFrom::Before(seq),
            From::Newest => PageFrom::Newest,
        };
        Self { user, room, from, limit, min_offset }
    }
}

/// A batch as a frame.
pub(crate) fn batch(number: u64, batch: &Batch) -> Frame {
    let Batch { epoch, lane, partition, from, to, .. } = *batch;
    let head = Head::Batch { number, epoch, lane: lane.into(), partition, from, to };
    Frame { head, parts: batch.items.iter().map(encode_item).collect() }
}

fn encode_item(item: &Item) -> Bytes {
    match item {
        Item::Event(event) => event.encode(),
        Item::Outcome(outcome) => outcome.encode(),
        Item::User(event) => event.encode(),
        Item::Receipt(receipt) => receipt.encode(),
        Item::Signal(signal) => signal.encode(),
    }
}

/// The items of a batch, each told by what its bytes begin with. `None` where one can't be read: passing over it would
/// be a hole that nobody sees.
pub(crate) fn items(parts: &[Bytes]) -> Option<Vec<Item>> {
    parts.iter().map(|part| decode_item(part)).collect()
}

fn decode_item(part: &[u8]) -> Option<Item> {
    if Event::is(part) {
        Event::decode(part).map(|event| Item::Event(Arc::new(event))).ok()
    } else if Outcome::is(part) {
        Outcome::decode(part).map(|outcome| Item::Outcome(Arc::new(outcome))).ok()
    } else if UserEvent::is(part) {
        UserEvent::decode(part).map(|event| Item::User(Arc::new(event))).ok()
    } else if Receipt::is(part) {
        Receipt::decode(part).map(|receipt| Item::Receipt(Arc::new(receipt))).ok()
    } else {
        Signal::decode(part).map(|signal| Item::Signal(Arc::new(signal))).ok()
    }
}

/// What goes into the frames of one answer: `(answer, parts)` of each.
pub(crate) type Pieces = Vec<(Answer, Vec<Bytes>)>;

/// An answer of one frame without parts.
pub(crate) fn plain(answer: Answer) -> Pieces {
    vec![(answer, Vec::new())]
}

/// An answer of ids.
pub(crate) fn id_list<'a>(ids: impl IntoIterator<Item = &'a [u8; 16]>) -> Pieces {
    vec![(Answer::Ids {}, vec![frame::ids(ids)])]
}

/// The ids of an answer.
pub(crate) fn as_id_list(pieces: &[(Answer, Vec<Bytes>)]) -> Option<Vec<[u8; 16]>> {
    match pieces {
        [(Answer::Ids {}, parts)] => frame::as_ids(parts.first()?),
        _ => None,
    }
}

/// Bytes of a room and its seq.
const CHANGED_BYTES: usize = 24;

/// What has changed. A list that no frame can hold is as good as none.
pub(crate) fn changed(rooms: Option<&[(RoomId, Seq)]>) -> Pieces {
    let rooms = rooms.filter(|rooms| rooms.len() < frame::FRAME_MAX_BYTES / 2 / CHANGED_BYTES);
    let Some(rooms) = rooms else { return plain(Answer::Changed { known: false }) };
    let mut list = Vec::with_capacity(rooms.len() * CHANGED_BYTES);
    for (room, seq) in rooms {
        list.extend_from_slice(room.as_bytes());
        list.extend_from_slice(&seq.0.to_be_bytes());
    }
    vec![(Answer::Changed { known: true }, vec![Bytes::from(list)])]
}

/// The same read; the outer `None` where it is something else.
pub(crate) fn as_changed(pieces: &[(Answer, Vec<Bytes>)]) -> Option<Option<Vec<(RoomId, Seq)>>> {
    let [(Answer::Changed { known }, parts)] = pieces else { return None };
    if !known {
        return Some(None);
    }
    let (rooms, []) = parts.first()?.as_chunks::<CHANGED_BYTES>() else { return None };
    let room = |chunk: &[u8; CHANGED_BYTES]| {
        let (id, seq) = chunk.split_first_chunk::<16>()?;
        Some((RoomId(uuid::Uuid::from_bytes(*id)), Seq(u64::from_be_bytes(seq.try_into().ok()?))))
    };
    Some(Some(rooms.iter().map(room).collect::<Option<_>>()?))
}

/// Pages, in frames of about [`ANSWER_BYTES`], but a page is never cut: none is larger than a batch.
pub(crate) fn pages(pages: Vec<Option<Page>>) -> Pieces {
    let mut pieces = Vec::new();
    let (mut forms, mut parts, mut bytes) = (Vec::new(), Vec::new(), 0);
    for page in pages {
        forms.push(page.map(|page| {
            let Page { events, first_seq, visible_head, head_seq, member, info } = page;
            let form = PageForm { events: events.len(), first_seq, visible_head, head_seq, member, info };
            for event in events {
                let event = event.encode();
                bytes += event.len();
                parts.push(event);
            }
            bytes += 1024;
            form
        }));
        if bytes >= ANSWER_BYTES {
            pieces.push((Answer::Pages { pages: std::mem::take(&mut forms) }, std::mem::take(&mut parts)));
            bytes = 0;
        }
    }
    if !forms.is_empty() || pieces.is_empty() {
        pieces.push((Answer::Pages { pages: forms }, parts));
    }
    pieces
}

/// The same read.
pub(crate) fn as_pages(pieces: Vec<(Answer, Vec<Bytes>)>) -> Option<Vec<Option<Page>>> {
    let mut all = Vec::new();
    for (answer, parts) in pieces {
        let Answer::Pages { pages } = answer else { return None };
        let mut parts = parts.into_iter();
        for form in pages {
            let Some(form) = form else {
                all.push(None);
                continue;
            };
            let PageForm { events: count, first_seq, visible_head, head_seq, member, info } = form;
            let events = parts.by_ref().take(count).map(|part| Event::decode(&part).map(Arc::new).ok());
            let events: Vec<Arc<Event>> = events.collect::<Option<_>>()?;
            if events.len() != count {
                return None;
            }
            all.push(Some(Page { events, first_seq, visible_head, head_seq, member, info }));
        }
        if parts.next().is_some() {
            return None;
        }
    }
    Some(all)
}

/// Rooms of a person.
pub(crate) fn rooms(rooms: Vec<RoomOfUser>) -> Pieces {
    let form = |room: RoomOfUser| {
        let RoomOfUser { info, member, delivered_seq, read_seq } = room;
        RoomForm { info, member, delivered_seq, read_seq }
    };
    let forms: Vec<RoomForm> = rooms.into_iter().map(form).collect();
    if forms.is_empty() {
        return plain(Answer::Rooms { rooms: forms });
    }
    forms.chunks(ROOMS_MAX).map(|rooms| (Answer::Rooms { rooms: rooms.to_vec() }, Vec::new())).collect()
}

/// The same read.
pub(crate) fn as_rooms(pieces: Vec<(Answer, Vec<Bytes>)>) -> Option<Vec<RoomOfUser>> {
    let mut all = Vec::new();
    for (answer, _) in pieces {
        let Answer::Rooms { rooms } = answer else { return None };
        all.extend(rooms.into_iter().map(|room| {
            let RoomForm { info, member, delivered_seq, read_seq } = room;
            RoomOfUser { info, member, delivered_seq, read_seq }
        }));
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::Timestamp;
    use schemas::event::EventKind;
    use schemas::message::{Content, Message, Role, RoomHistory, RoomKind, RoomVisibility, Settings};
    use schemas::room::Interval;
    use uuid::Uuid;

    fn event(seq: u64, text: &str) -> Arc<Event> {
        Arc::new(Event {
            room: RoomId(Uuid::from_u128(1)),
            seq: Seq(seq),
            id: schemas::EventId(Uuid::from_u128(seq.into())),
            at: Timestamp(3),
            by: UserId(Uuid::from_u128(4)),
            command: schemas::CommandId(Uuid::from_u128(5)),
            reply_to: None,
            received_us: 6,
            decided_us: 7,
            salt: [8; 16],
            hash: [9; 32],
            kind: EventKind::Message(Message { content: Content::text(text), reply_to: None }),
        })
    }

    fn page(count: u64, text: &str) -> Page {
        let member = Member {
            role: Role::Admin,
            intervals: vec![
                Interval { joined: Seq(1), visible_from: Seq(1), until: Some(Seq(4)) },
                Interval { joined: Seq(9), visible_from: Seq(9), until: None },
            ],
            version: Seq(9),
        };
        let settings = Settings {
            kind: RoomKind::Group,
            name: "tea \"&\" cake\u{0}".into(),
            handle: Some("tea".into()),
            description: String::new(),
            icon: String::new(),
            visibility: RoomVisibility::Public,
            history: RoomHistory::SinceJoined,
        };
        let info = RoomInfo {
            id: RoomId(Uuid::from_u128(1)),
            settings,
            created_at: Timestamp(1_763_715_600_007),
            created_by: UserId(Uuid::from_u128(4)),
            head_seq: Seq(count),
            hash: [0xF0; 32],
            last_activity_at: Timestamp(1_763_715_600_008),
            member_count: 2,
            deleted: false,
        };
        let events = (1..=count).map(|seq| event(seq, text)).collect();
        let (first_seq, visible_head, head_seq) = (Seq(1), Seq(count), Seq(count));
        Page { events, first_seq, visible_head, head_seq, member, info: Arc::new(info) }
    }

    /// Over the wire and back.
    fn sent(pieces: Pieces) -> Pieces {
        let frame = |(answer, parts)| Frame { head: Head::Answer { number: 1, last: false, answer }, parts };
        let frames = pieces.into_iter().map(frame).map(|frame| frame.encode().unwrap());
        let read = frames.map(|bytes| frame::decode(&mut bytes::BytesMut::from(&bytes[..])).unwrap().unwrap());
        read.map(|frame| match frame.head {
            Head::Answer { answer, .. } => (answer, frame.parts),
            other => panic!("{other:?}"),
        })
        .collect()
    }

    #[test]
    fn pages_survive_the_way_also_where_they_fill_many_frames() {
        let long = "x".repeat(60_000);
        let all =
            vec![Some(page(3, "short")), None, Some(page(60, &long)), Some(page(0, "")), None, Some(page(40, &long))];
        let pieces = pages(all.clone());
        assert_eq!(pieces.len(), 2);
        let read = as_pages(sent(pieces)).unwrap();
        assert_eq!(format!("{read:?}"), format!("{all:?}"));
        assert!(as_pages(sent(pages(Vec::new()))).unwrap().is_empty());
    }

    #[test]
    fn a_page_with_fewer_events_than_it_says_is_none() {
        let mut pieces = pages(vec![Some(page(3, "short"))]);
        pieces[0].1.pop();
        assert!(as_pages(sent(pieces)).is_none());
        let mut pieces = pages(vec![Some(page(3, "short"))]);
        pieces[0].1.push(event(4, "one too many").encode());
        assert!(as_pages(sent(pieces)).is_none());
    }

    #[test]
    fn rooms_and_changes_survive_the_way() {
        let Page { info, member, .. } = page(1, "");
        let room = RoomOfUser { info, member, delivered_seq: Seq(7), read_seq: Seq(6) };
        let all = vec![room; ROOMS_MAX + 1];
        let read = as_rooms(sent(rooms(all.clone()))).unwrap();
        assert_eq!(format!("{read:?}"), format!("{all:?}"));
        let moved = vec![(RoomId(Uuid::from_u128(1)), Seq(u64::MAX)), (RoomId(Uuid::from_u128(2)), Seq(3))];
        assert_eq!(as_changed(&sent(changed(Some(&moved)))).unwrap(), Some(moved));
        assert_eq!(as_changed(&sent(changed(None))).unwrap(), None);
        let too_many = vec![(RoomId::NIL, Seq(1)); frame::FRAME_MAX_BYTES / CHANGED_BYTES];
        assert_eq!(as_changed(&sent(changed(Some(&too_many)))).unwrap(), None, "as if it were unknown");
    }

    #[test]
    fn an_item_that_can_not_be_read_spoils_the_batch() {
        assert_eq!(items(&[event(1, "x").encode()]).unwrap().len(), 1);
        assert!(items(&[event(1, "x").encode(), Bytes::from_static(b"tomorrow's news")]).is_none());
    }
}
