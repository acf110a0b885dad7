//! Laws of events, command ids, receipts and progress.

use std::sync::Arc;

use schemas::event::Event;
use schemas::message::MemberChange;
use schemas::receipt::Receipt;
use schemas::{EventKind, Offset, Partition, Seq, Topic};
use store::Store;
use store::archive::{Acted, Batch, MessageReceipt, Watermarks};
use store::rooms::Listing;

use crate::Engine;
use crate::forms::{at, command, event, info, member, membership, message, receipt, room, user};

async fn put(store: &dyn Store, events: Vec<Arc<Event>>) {
    store.archive(Batch { events, ..Batch::default() }).await.unwrap();
}

async fn step(store: &dyn Store, receipts: Vec<Arc<Receipt>>) {
    store.archive(Batch { receipts, ..Batch::default() }).await.unwrap();
}

pub async fn events_are_read_from_either_end_of_a_range(engine: impl Engine) {
    let store = engine.store();
    put(&*store, (1..=20).map(|seq| message(room(1), seq, user(1))).collect()).await;
    put(&*store, vec![message(room(2), 5, user(1))]).await;
    let read = async |after, before, limit, newest| -> Vec<_> {
        let page = store.events(room(1), Seq(after), Seq(before), limit, newest).await.unwrap();
        page.into_iter().map(|event| event.seq.0).collect()
    };
    assert_eq!(read(0, u64::MAX, 3, false).await, [1, 2, 3]);
    assert_eq!(read(0, u64::MAX, 3, true).await, [18, 19, 20]);
    assert_eq!(read(4, 8, 9, false).await, [5, 6, 7]);
    assert_eq!(read(4, 8, 2, true).await, [6, 7]);
    assert_eq!(read(20, u64::MAX, 9, false).await, [0; 0]);
    assert_eq!(read(4, 5, 9, false).await, [0; 0]);
    assert_eq!(read(9, 3, 9, true).await, [0; 0]);
    assert_eq!(read(0, 0, 9, true).await, [0; 0]);
    assert_eq!(read(u64::MAX, u64::MAX, 9, false).await, [0; 0]);
    let whole = store.events(room(1), Seq(6), Seq(8), 9, false).await.unwrap();
    assert_eq!(whole, [Event::clone(&message(room(1), 7, user(1)))]);
}

pub async fn an_archived_event_never_changes(engine: impl Engine) {
    let store = engine.store();
    put(&*store, vec![message(room(1), 1, user(1))]).await;
    put(&*store, vec![message(room(1), 1, user(2)), message(room(1), 3, user(2))]).await;
    let events = store.events(room(1), Seq(0), Seq(9), 9, false).await.unwrap();
    let expected = [message(room(1), 1, user(1)), message(room(1), 3, user(2))];
    assert_eq!(events, expected.map(|event| Event::clone(&event)));
}

pub async fn a_command_is_known_by_its_first_event(engine: impl Engine) {
    let store = engine.store();
    let added = |seq| event(room(1), seq, user(1), command(7), member_of(seq));
    // A creation's events, the later ones first, as a replay may bring them.
    put(&*store, vec![added(3)]).await;
    put(&*store, vec![added(2), added(1), added(3)]).await;
    put(&*store, vec![message(room(2), 9, user(1))]).await;
    let first = added(1);
    let (known, unknown) = ((room(1), user(1), command(7)), (room(1), user(2), command(7)));
    let acted = store.acted(&[unknown, known, (room(2), user(1), command(7))]).await.unwrap();
    assert_eq!(acted, [(known, Acted { seq: Seq(1), id: first.id, at: first.at })]);
}

fn member_of(seq: u64) -> EventKind {
    EventKind::Member(membership(user(u128::from(seq)), MemberChange::Added))
}

pub async fn the_largest_command_of_a_room_is_kept(engine: impl Engine) {
    let store = engine.store();
    assert_eq!(store.largest_command(room(1)).await.unwrap(), None);
    put(&*store, vec![message(room(1), 40, user(1)), message(room(1), 30, user(2))]).await;
    put(&*store, vec![message(room(1), 20, user(3)), message(room(2), 90, user(1))]).await;
    assert_eq!(store.largest_command(room(1)).await.unwrap(), Some(command(40)));
}

pub async fn a_messages_receipt_has_the_time_of_the_first_step_that_reached_it(engine: impl Engine) {
    let store = engine.store();
    let steps = [(2, 0, 100), (5, 2, 200), (5, 0, 250), (9, 9, 300), (7, 0, 310), (0, 0, 320)];
    // In either order: a late copy of an early step still tells its time.
    for (n, order) in [
        (1, steps),
        (2, {
            let mut back = steps;
            back.reverse();
            back
        }),
    ] {
        for (delivered, read, time) in order {
            step(&*store, vec![receipt(room(n), user(1), delivered, read, time)]).await;
        }
        let times = async |seq| {
            let all = store.message_receipts(room(n), Seq(seq), None, 9).await.unwrap();
            all.first().map(|own: &MessageReceipt| (own.delivered_at, own.read_at))
        };
        assert_eq!(times(1).await, Some((Some(at(100)), Some(at(200)))));
        assert_eq!(times(2).await, Some((Some(at(100)), Some(at(200)))));
        assert_eq!(times(3).await, Some((Some(at(200)), Some(at(300)))));
        assert_eq!(times(6).await, Some((Some(at(300)), Some(at(300)))));
        assert_eq!(times(9).await, Some((Some(at(300)), Some(at(300)))));
        assert_eq!(times(10).await, None);
    }
}

pub async fn watermarks_are_maxima(engine: impl Engine) {
    let store = engine.store();
    step(&*store, vec![receipt(room(1), user(1), 5, 3, 100), receipt(room(1), user(2), 0, 4, 90)]).await;
    step(&*store, vec![receipt(room(1), user(1), 4, 4, 80), receipt(room(2), user(1), 1, 0, 70)]).await;
    step(&*store, vec![receipt(room(3), user(1), 0, 0, 60)]).await;
    let marks = |delivered, read, time| Watermarks { delivered_seq: Seq(delivered), read_seq: Seq(read), at: at(time) };
    let own = store.watermarks(user(1), &[room(3), room(2), room(1)]).await.unwrap();
    assert_eq!(own, [(room(2), marks(1, 0, 70)), (room(1), marks(5, 4, 100))]);
    let all = store.room_watermarks(room(1), 9).await.unwrap();
    assert_eq!(all, [(user(1), marks(5, 4, 100)), (user(2), marks(0, 4, 90))]);
    assert_eq!(store.room_watermarks(room(1), 1).await.unwrap(), all[..1]);
}

pub async fn receipts_come_in_pages_of_those_who_have_one(engine: impl Engine) {
    let store = engine.store();
    let receipts = (1..=6).map(|n| receipt(room(1), user(n), n as u64, 0, 100)).collect();
    step(&*store, receipts).await;
    let page = async |seq, after, limit| -> Vec<_> {
        let page = store.message_receipts(room(1), Seq(seq), after, limit).await.unwrap();
        page.into_iter().map(|receipt| receipt.user).collect()
    };
    assert_eq!(page(3, None, 2).await, [user(3), user(4)]);
    assert_eq!(page(3, Some(user(4)), 9).await, [user(5), user(6)]);
    assert_eq!(page(7, None, 9).await, []);
}

pub async fn progress_never_goes_back(engine: impl Engine) {
    let store = engine.store();
    let go = async |topic, partition, offset| {
        let progress = vec![(topic, Partition(partition), Offset(offset))];
        store.archive(Batch { progress, ..Batch::default() }).await.unwrap();
    };
    go(Topic::Events, 0, 10).await;
    go(Topic::Events, 0, 7).await;
    go(Topic::Receipts, 0, 3).await;
    go(Topic::Events, 1, 4).await;
    assert_eq!(store.progress(Topic::Events, Partition(0)).await.unwrap(), Offset(10));
    assert_eq!(store.progress(Topic::Events, Partition(1)).await.unwrap(), Offset(4));
    assert_eq!(store.progress(Topic::Receipts, Partition(0)).await.unwrap(), Offset(3));
    assert_eq!(store.progress(Topic::Receipts, Partition(1)).await.unwrap(), Offset(0));
}

pub async fn a_batch_that_begins_above_the_progress_is_refused(engine: impl Engine) {
    let store = engine.store();
    let at = |offset| vec![(Topic::Events, Partition(0), Offset(offset))];
    store.archive(Batch { progress: at(10), ..Batch::default() }).await.unwrap();
    let events = vec![message(room(1), 1, user(1))];
    let ahead = Batch { events: events.clone(), since: at(11), progress: at(20), ..Batch::default() };
    assert!(matches!(store.archive(ahead).await, Err(store::Error::Behind)));
    assert_eq!(store.progress(Topic::Events, Partition(0)).await.unwrap(), Offset(10));
    assert_eq!(store.events(room(1), Seq::ZERO, Seq(9), 9, false).await.unwrap(), [], "all of it or nothing");
    for since in [10, 4] {
        let next = Batch { events: events.clone(), since: at(since), progress: at(20), ..Batch::default() };
        store.archive(next).await.unwrap();
    }
    assert_eq!(store.progress(Topic::Events, Partition(0)).await.unwrap(), Offset(20));
}

pub async fn what_was_written_is_there_after_a_restart(engine: impl Engine) {
    let store = engine.store();
    let batch = Batch {
        events: vec![message(room(1), 1, user(1))],
        rooms: vec![info(room(1), 1, "one", Some("one"))],
        members: vec![(room(1), user(1), member(1, None))],
        listings: vec![Listing { user: user(1), room: room(1), version: Seq(1), listed: true }],
        receipts: vec![receipt(room(1), user(1), 1, 1, 50)],
        since: Vec::new(),
        progress: vec![(Topic::Events, Partition(0), Offset(3))],
    };
    store.archive(batch).await.unwrap();
    assert!(store.claim_handle("claimed", room(2), at(10), at(20)).await.unwrap());
    drop(store);
    let engine = engine.restart();
    let store = engine.store();
    assert_eq!(store.events(room(1), Seq(0), Seq(9), 9, false).await.unwrap().len(), 1);
    assert_eq!(store.rooms(&[room(1)]).await.unwrap(), [info(room(1), 1, "one", Some("one"))]);
    assert_eq!(store.members(room(1)).await.unwrap(), [(user(1), member(1, None))]);
    assert_eq!(store.rooms_of(user(1)).await.unwrap(), [room(1)]);
    assert_eq!(store.largest_command(room(1)).await.unwrap(), Some(command(1)));
    assert_eq!(store.message_receipts(room(1), Seq(1), None, 9).await.unwrap().len(), 1);
    assert_eq!(store.progress(Topic::Events, Partition(0)).await.unwrap(), Offset(3));
    assert_eq!(store.room_by_handle("one").await.unwrap(), Some(room(1)));
    assert!(!store.claim_handle("claimed", room(3), at(11), at(20)).await.unwrap());
}
