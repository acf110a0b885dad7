//! Law 2 as a whole: the rows of a random history do not depend on how they came.

use std::fmt::Debug;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use schemas::message::{Content, MemberChange, Message, RoomPatch, RoomVisibility};
use schemas::room::RoomState;
use schemas::{EventKind, Offset, Partition, Seq, Timestamp, Topic};
use store::Store;
use store::archive::{Archive, Batch};
use store::memory::MemoryStore;
use store::rooms::{DirectorySort, Listing};

use crate::Engine;
use crate::forms::{command, event, info, membership, receipt, room, user};

const ROOMS: u128 = 3;
const USERS: u128 = 4;
const HANDLES: [&str; 3] = ["alpha", "beta", "Gamma"];

/// One thing that happens in a room.
#[derive(Clone, Debug)]
enum Step {
    Message,
    Member(MemberChange),
    Change(RoomPatch),
    Receipt { delivered: u64, read: u64, time: i64 },
}

/// A step, where and by whom.
type Placed = (u128, u128, Step);

fn step() -> impl Strategy<Value = Placed> {
    let member = prop_oneof![
        Just(MemberChange::Joined),
        Just(MemberChange::Added),
        Just(MemberChange::Left),
        Just(MemberChange::Removed),
        Just(MemberChange::Role)
    ];
    let handle = prop_oneof![Just(""), Just(HANDLES[0]), Just(HANDLES[1]), Just(HANDLES[2])];
    let visibility = any::<bool>().prop_map(|public| match public {
        true => RoomVisibility::Public,
        false => RoomVisibility::Private,
    });
    let change = prop_oneof![
        handle.prop_map(|handle| RoomPatch { handle: Some(handle.to_owned()), ..RoomPatch::default() }),
        visibility.prop_map(|visibility| RoomPatch { visibility: Some(visibility), ..RoomPatch::default() }),
        "[a-c]{1,3}".prop_map(|name| RoomPatch { name: Some(name), ..RoomPatch::default() }),
        Just(RoomPatch { deleted: true, ..RoomPatch::default() }),
    ];
    let receipt =
        (0..12_u64, 0..12_u64, 0..40_i64).prop_map(|(delivered, read, time)| Step::Receipt { delivered, read, time });
    let step = prop_oneof![
        3 => Just(Step::Message),
        2 => member.prop_map(Step::Member),
        2 => change.prop_map(Step::Change),
        3 => receipt
    ];
    (0..ROOMS, 0..USERS, step)
}

/// What the archiver would write for each step, in order; each room begins with its creation.
fn pieces(steps: &[Placed]) -> Vec<Batch> {
    let mut states = vec![None; ROOMS as usize];
    let mut offset = 0;
    let mut pieces = Vec::new();
    for (of, who, step) in steps {
        let (id, who) = (room(*of), user(*who));
        let state: &mut Option<RoomState> = &mut states[*of as usize];
        let mut kinds = Vec::new();
        if state.is_none() {
            kinds.push(EventKind::Created(info(id, 0, "new", None).settings));
            kinds.push(EventKind::Member(membership(who, MemberChange::Joined)));
        }
        let mut batch = Batch::default();
        match step {
            Step::Message => {
                let content = Content::text("hello");
                kinds.push(EventKind::Message(Message { content, reply_to: None }));
            }
            Step::Member(change) => kinds.push(EventKind::Member(membership(who, *change))),
            Step::Change(patch) => kinds.push(EventKind::Changed(patch.clone())),
            Step::Receipt { delivered, read, time } => {
                batch.receipts.push(receipt(id, who, *delivered, *read, *time));
            }
        }
        offset += 1;
        for kind in kinds {
            let seq = state.as_ref().map_or(1, |state| state.info.head_seq.0 + 1);
            let event = event(id, seq, who, command(offset), kind);
            *state = RoomState::fold(state.take(), &event);
            let folded = state.as_ref().unwrap();
            if let EventKind::Member(change) = &event.kind {
                let member = folded.members[&change.user].clone();
                let listed = member.is_in();
                batch.listings.push(Listing { user: change.user, room: id, version: event.seq, listed });
                batch.members.push((id, change.user, member));
            }
            batch.rooms.push(folded.info.clone());
            batch.events.push(event);
        }
        batch.progress.push((Topic::Events, Partition(*of as u32 % 2), Offset(offset)));
        pieces.push(batch);
    }
    pieces
}

/// Each row of these batches in a batch of its own.
fn rows(pieces: &[Batch]) -> Vec<Batch> {
    let mut rows = Vec::new();
    for piece in pieces {
        let empty = Batch::default;
        rows.extend(piece.events.iter().map(|row| Batch { events: vec![row.clone()], ..empty() }));
        rows.extend(piece.rooms.iter().map(|row| Batch { rooms: vec![row.clone()], ..empty() }));
        rows.extend(piece.members.iter().map(|row| Batch { members: vec![row.clone()], ..empty() }));
        rows.extend(piece.listings.iter().map(|row| Batch { listings: vec![*row], ..empty() }));
        rows.extend(piece.receipts.iter().map(|row| Batch { receipts: vec![row.clone()], ..empty() }));
        rows.extend(piece.progress.iter().map(|row| Batch { progress: vec![*row], ..empty() }));
    }
    rows
}

fn merge(rows: &[Batch]) -> Batch {
    rows.iter().fold(Batch::default(), |mut all, row| {
        all.events.extend_from_slice(&row.events);
        all.rooms.extend_from_slice(&row.rooms);
        all.members.extend_from_slice(&row.members);
        all.listings.extend_from_slice(&row.listings);
        all.receipts.extend_from_slice(&row.receipts);
        all.progress.extend_from_slice(&row.progress);
        all
    })
}

/// A history, and batches that hold each of its rows at least once, in any order. Each goes on where the one before it
/// ended, and one of two writers has it.
fn scrambled() -> impl Strategy<Value = (Vec<Batch>, Vec<(Batch, bool)>)> {
    vec(step(), 1..30).prop_flat_map(|steps| {
        let pieces = pieces(&steps);
        let rows = rows(&pieces);
        let repeated = vec(0..rows.len(), 0..rows.len());
        let order = repeated
            .prop_flat_map({
                let all = 0..rows.len();
                move |repeated| Just(all.clone().chain(repeated).collect::<Vec<_>>()).prop_shuffle()
            })
            .prop_map(move |order| order.into_iter().map(|index| rows[index].clone()).collect::<Vec<_>>());
        let batches = (order, 1..40_usize).prop_map(|(rows, size)| rows.chunks(size).map(merge).collect::<Vec<_>>());
        let batches = batches.prop_flat_map(|batches| {
            let place = |number: usize| (Topic::Receipts, Partition(0), Offset(number as u64));
            let chained = batches.into_iter().enumerate().map(|(number, mut batch)| {
                batch.since.push(place(number));
                batch.progress.push(place(number + 1));
                batch
            });
            chained.map(|batch| (Just(batch), prop::bool::weighted(0.1))).collect::<Vec<_>>()
        });
        (Just(pieces), batches)
    })
}

/// Every read that shows archived rows, one line each.
async fn everything(store: &dyn Store) -> Vec<String> {
    fn line(what: &str, found: impl Debug) -> String {
        format!("{what}: {found:?}")
    }
    let rooms: Vec<_> = (0..ROOMS).map(room).collect();
    let mut lines = vec![line("rooms", store.rooms(&rooms).await.unwrap())];
    for id in rooms.iter().copied() {
        lines.push(line("members", store.members(id).await.unwrap()));
        lines.push(line("members page", store.members_page(id, Some(user(0)), 2).await.unwrap()));
        lines.push(line("events", store.events(id, Seq(0), Seq(u64::MAX), 1_000, false).await.unwrap()));
        lines.push(line("newest events", store.events(id, Seq(1), Seq(9), 3, true).await.unwrap()));
        lines.push(line("largest command", store.largest_command(id).await.unwrap()));
        lines.push(line("room watermarks", store.room_watermarks(id, 9).await.unwrap()));
        for seq in 1..12 {
            lines.push(line("receipts", store.message_receipts(id, Seq(seq), None, 9).await.unwrap()));
        }
    }
    for who in (0..USERS).map(user) {
        lines.push(line("standings", store.standings(who, &rooms).await.unwrap()));
        lines.push(line("rooms of", store.rooms_of(who).await.unwrap()));
        lines.push(line("watermarks", store.watermarks(who, &rooms).await.unwrap()));
        let keys: Vec<_> = rooms.iter().flat_map(|id| (1..=30).map(|n| (*id, who, command(n)))).collect();
        lines.push(line("acted", store.acted(&keys).await.unwrap()));
    }
    for sort in [DirectorySort::Activity, DirectorySort::Popularity, DirectorySort::Name, DirectorySort::Created] {
        lines.push(line("directory", store.directory("", sort, 0, 9).await.unwrap()));
        lines.push(line("directory with a", store.directory("A", sort, 1, 1).await.unwrap()));
    }
    for handle in HANDLES {
        lines.push(line("handle", store.room_by_handle(handle).await.unwrap()));
        let (now, end) = (Timestamp(1), Timestamp(2));
        lines.push(line("claim", store.claim_handle(handle, room(77), now, end).await.unwrap()));
    }
    for partition in 0..2 {
        lines.push(line("progress", store.progress(Topic::Events, Partition(partition)).await.unwrap()));
    }
    lines
}

pub fn any_order_repetition_and_splitting_of_batches_ends_in_the_same_rows<E: Engine>() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let config = Config { cases: 24, failure_persistence: None, ..Config::default() };
    let judged = TestRunner::new(config).run(&scrambled(), |(in_order, scrambled)| {
        runtime.block_on(async {
            // The reference is the engine in memory, so that engines are compared with each other as well.
            let reference = MemoryStore::new();
            for piece in in_order {
                reference.archive(piece).await.unwrap();
            }
            let engine = E::start();
            let (store, other) = (engine.store(), engine.other());
            for (batch, is_others) in scrambled {
                let writer = if is_others { &other } else { &store };
                writer.archive(batch).await.unwrap();
            }
            let (expected, found) = (everything(&reference).await, everything(&*store).await);
            for (expected, found) in expected.iter().zip(&found) {
                assert_eq!(expected, found);
            }
        });
        Ok(())
    });
    judged.unwrap();
}
