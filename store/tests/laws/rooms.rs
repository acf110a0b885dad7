//! Laws of rooms, members, lists and handles.

use std::sync::Arc;

use schemas::Seq;
use schemas::SessionId;
use schemas::message::RoomVisibility;
use schemas::receipt::Receipt;
use schemas::room::RoomInfo;
use store::Store;
use store::archive::Batch;
use store::rooms::{DirectorySort, Listing};

use crate::Engine;
use crate::forms::{at, info, member, message, room, user};

async fn put(store: &dyn Store, rooms: impl IntoIterator<Item = RoomInfo>) {
    store.archive(Batch { rooms: rooms.into_iter().collect(), ..Batch::default() }).await.unwrap();
}

fn deleted(info: RoomInfo) -> RoomInfo {
    RoomInfo { deleted: true, ..info }
}

pub async fn a_room_row_is_replaced_by_newer_ones_only(engine: impl Engine) {
    let store = engine.store();
    put(&*store, [info(room(1), 5, "five", None), info(room(1), 4, "four", None)]).await;
    put(&*store, [info(room(1), 5, "other five", None)]).await;
    assert_eq!(store.rooms(&[room(1), room(2)]).await.unwrap(), [info(room(1), 5, "five", None)]);
    put(&*store, [info(room(1), 6, "six", Some("h")), info(room(2), 1, "two", None)]).await;
    let both = [info(room(2), 1, "two", None), info(room(1), 6, "six", Some("h"))];
    assert_eq!(store.rooms(&[room(2), room(1)]).await.unwrap(), both);
}

pub async fn a_standing_is_replaced_by_newer_ones_only(engine: impl Engine) {
    let store = engine.store();
    let put = async |standing| {
        let members = vec![(room(1), user(1), standing)];
        store.archive(Batch { members, ..Batch::default() }).await.unwrap();
    };
    put(member(2, Some(9))).await;
    put(member(2, None)).await;
    let standing = vec![(room(1), member(2, Some(9)))];
    assert_eq!(store.standings(user(1), &[room(3), room(1)]).await.unwrap(), standing);
    assert_eq!(store.standings(user(2), &[room(1)]).await.unwrap(), []);
    put(member(12, None)).await;
    assert_eq!(store.members(room(1)).await.unwrap(), [(user(1), member(12, None))]);
}

pub async fn members_come_in_pages_without_those_who_went(engine: impl Engine) {
    let store = engine.store();
    let members: Vec<_> =
        (1..=6).map(|n| (room(1), user(n.into()), member(n, n.is_multiple_of(3).then_some(n + 10)))).collect();
    let other = (room(2), user(4), member(1, None));
    store.archive(Batch { members: [members, vec![other]].concat(), ..Batch::default() }).await.unwrap();
    assert_eq!(store.members(room(1)).await.unwrap().len(), 6);
    let page = async |after, limit| -> Vec<_> {
        store.members_page(room(1), after, limit).await.unwrap().into_iter().map(|(user, _)| user).collect()
    };
    assert_eq!(page(None, 3).await, [user(1), user(2), user(4)]);
    assert_eq!(page(Some(user(4)), 3).await, [user(5)]);
    assert_eq!(page(Some(user(5)), 3).await, []);
}

pub async fn a_list_of_rooms_follows_the_newest_version(engine: impl Engine) {
    let store = engine.store();
    let list = async |n: u128, version, listed| {
        let listing = Listing { user: user(1), room: room(n), version: Seq(version), listed };
        store.archive(Batch { listings: vec![listing], ..Batch::default() }).await.unwrap();
    };
    list(1, 3, true).await;
    list(2, 5, false).await;
    list(2, 4, true).await;
    list(3, 1, true).await;
    list(3, 2, false).await;
    list(4, 7, true).await;
    list(4, 7, false).await;
    assert_eq!(store.rooms_of(user(1)).await.unwrap(), [room(1), room(4)]);
    list(2, 6, true).await;
    assert_eq!(store.rooms_of(user(1)).await.unwrap(), [room(1), room(2), room(4)]);
    assert_eq!(store.rooms_of(user(2)).await.unwrap(), []);
}

pub async fn a_way_out_that_was_not_delivered_is_told(engine: impl Engine) {
    let store = engine.store();
    let listing = |n: u128, version, listed| Listing { user: user(1), room: room(n), version: Seq(version), listed };
    let listings = vec![listing(1, 3, true), listing(2, 5, false), listing(3, 6, false)];
    store.archive(Batch { listings, ..Batch::default() }).await.unwrap();
    assert_eq!(store.left_unseen(user(1), 9).await.unwrap(), [room(2), room(3)]);
    assert_eq!(store.left_unseen(user(1), 1).await.unwrap(), [room(2)]);
    assert_eq!(store.left_unseen(user(2), 9).await.unwrap(), []);
    let receipt = |n: u128, seq| {
        Arc::new(Receipt {
            room: room(n),
            user: user(1),
            session: SessionId::NIL,
            delivered_seq: Seq(seq),
            read_seq: Seq::ZERO,
            at: at(7),
        })
    };
    let receipts = vec![receipt(2, 4), receipt(3, 6)];
    store.archive(Batch { receipts, ..Batch::default() }).await.unwrap();
    assert_eq!(store.left_unseen(user(1), 9).await.unwrap(), [room(2)], "the way out of room 3 was delivered");
}

pub async fn the_directory_shows_public_living_rooms_in_each_order(engine: impl Engine) {
    let store = engine.store();
    let with = |n: u128, name: &str, created, activity, member_count| RoomInfo {
        created_at: at(created),
        last_activity_at: at(activity),
        member_count,
        ..info(room(n), 1, name, None)
    };
    let mut hidden = with(5, "hidden", 9, 9, 9);
    hidden.settings.visibility = RoomVisibility::Private;
    put(
        &*store,
        [
            with(1, "beta", 3, 50, 7),
            with(2, "Alpha", 1, 40, 9),
            with(3, "ämter", 2, 60, 8),
            // Equal in everything to room 1: then by id.
            with(4, "Beta", 3, 50, 7),
            hidden,
            deleted(with(6, "gone", 9, 9, 9)),
        ],
    )
    .await;
    let list = async |sort, skip, limit| -> Vec<_> {
        store.directory("", sort, skip, limit).await.unwrap().into_iter().map(|info| info.id).collect()
    };
    assert_eq!(list(DirectorySort::Activity, 0, 9).await, [room(3), room(1), room(4), room(2)]);
    assert_eq!(list(DirectorySort::Popularity, 0, 9).await, [room(2), room(3), room(1), room(4)]);
    assert_eq!(list(DirectorySort::Name, 0, 9).await, [room(2), room(1), room(4), room(3)]);
    assert_eq!(list(DirectorySort::Created, 0, 9).await, [room(1), room(4), room(3), room(2)]);
    assert_eq!(list(DirectorySort::Created, 1, 2).await, [room(4), room(3)]);
    assert_eq!(list(DirectorySort::Created, 4, 2).await, []);
    // A room that turns private leaves, one that turns public enters.
    let mut private = RoomInfo { head_seq: Seq(2), ..with(3, "ämter", 2, 70, 8) };
    private.settings.visibility = RoomVisibility::Private;
    put(&*store, [private, RoomInfo { head_seq: Seq(2), ..with(5, "hidden", 9, 80, 9) }]).await;
    assert_eq!(list(DirectorySort::Activity, 0, 2).await, [room(5), room(1)]);
}

pub async fn the_directory_takes_text_as_it_is(engine: impl Engine) {
    let store = engine.store();
    put(
        &*store,
        [
            info(room(1), 1, "100% Rust", None),
            info(room(2), 1, "a_b", Some("Über")),
            info(room(3), 1, "axb \\ 好吗", None),
        ],
    )
    .await;
    let find = async |text| -> Vec<_> {
        let found = store.directory(text, DirectorySort::Name, 0, 9).await.unwrap();
        found.into_iter().map(|info| info.id).collect()
    };
    assert_eq!(find("%").await, [room(1)]);
    assert_eq!(find("A_B").await, [room(2)]);
    assert_eq!(find("üBE").await, [room(2)]);
    assert_eq!(find("好").await, [room(3)]);
    assert_eq!(find("\\").await, [room(3)]);
    assert_eq!(find("rust").await, [room(1)]);
    assert_eq!(find("nothing").await, []);
}

pub async fn a_deleted_room_is_still_read_by_id_alone(engine: impl Engine) {
    let store = engine.store();
    put(&*store, [info(room(1), 1, "one", Some("one"))]).await;
    let listing = Listing { user: user(1), room: room(1), version: Seq(1), listed: true };
    store.archive(Batch { listings: vec![listing], ..Batch::default() }).await.unwrap();
    put(&*store, [deleted(info(room(1), 2, "one", Some("one")))]).await;
    assert_eq!(store.rooms(&[room(1)]).await.unwrap(), [deleted(info(room(1), 2, "one", Some("one")))]);
    assert_eq!(store.directory("", DirectorySort::Name, 0, 9).await.unwrap(), []);
    assert_eq!(store.room_by_handle("one").await.unwrap(), None);
    assert!(store.claim_handle("one", room(2), at(10), at(20)).await.unwrap());
    // Off the list only by a listing: a room stays listed until its end has been delivered.
    assert_eq!(store.rooms_of(user(1)).await.unwrap(), [room(1)]);
}

pub async fn of_many_who_claim_a_handle_at_once_one_wins(engine: impl Engine) {
    let claims: Vec<_> = (0..32)
        .map(|n| {
            let store = engine.store();
            tokio::spawn(async move { (n, store.claim_handle("Rust", room(n), at(10), at(20)).await.unwrap()) })
        })
        .collect();
    let mut won = Vec::new();
    for claim in claims {
        let (n, has_won) = claim.await.unwrap();
        won.extend(has_won.then_some(n));
    }
    assert_eq!(won.len(), 1);
    let store = engine.store();
    assert!(store.claim_handle("RUST", room(won[0]), at(11), at(20)).await.unwrap(), "the winner may repeat");
    assert!(!store.claim_handle("rust", room(99), at(11), at(20)).await.unwrap());
}

pub async fn a_claim_ends_at_its_time_unless_its_room_appeared(engine: impl Engine) {
    let store = engine.store();
    assert!(store.claim_handle("rust", room(1), at(10), at(20)).await.unwrap());
    assert_eq!(store.room_by_handle("rust").await.unwrap(), None, "a claim alone is no room");
    assert!(!store.claim_handle("rust", room(2), at(19), at(30)).await.unwrap());
    assert!(store.claim_handle("rust", room(2), at(20), at(30)).await.unwrap());
    put(&*store, [info(room(2), 1, "two", Some("Rust"))]).await;
    assert_eq!(store.room_by_handle("RUST").await.unwrap(), Some(room(2)));
    assert!(!store.claim_handle("rust", room(1), at(1_000), at(2_000)).await.unwrap());
    assert!(store.claim_handle("rust", room(2), at(1_000), at(2_000)).await.unwrap());
}

pub async fn a_handle_given_up_is_free_at_once(engine: impl Engine) {
    let store = engine.store();
    assert!(store.claim_handle("old", room(1), at(10), at(1_000)).await.unwrap());
    put(&*store, [info(room(1), 1, "one", Some("old"))]).await;
    assert!(store.claim_handle("new", room(1), at(11), at(1_000)).await.unwrap());
    put(&*store, [info(room(1), 2, "one", Some("new"))]).await;
    assert_eq!(store.room_by_handle("old").await.unwrap(), None);
    assert_eq!(store.room_by_handle("new").await.unwrap(), Some(room(1)));
    assert!(store.claim_handle("old", room(2), at(12), at(1_000)).await.unwrap());
    put(&*store, [info(room(2), 1, "two", Some("old"))]).await;
    // A late copy of the first row takes nothing back (I5).
    put(&*store, [info(room(1), 1, "one", Some("old"))]).await;
    assert_eq!(store.room_by_handle("old").await.unwrap(), Some(room(2)));
    put(&*store, [info(room(1), 3, "one", None)]).await;
    assert_eq!(store.room_by_handle("new").await.unwrap(), None);
}

pub async fn a_claim_on_its_way_outlives_other_events_of_its_room(engine: impl Engine) {
    let store = engine.store();
    put(&*store, [info(room(1), 1, "one", Some("old"))]).await;
    assert!(store.claim_handle("new", room(1), at(10), at(20)).await.unwrap());
    // An ordinary event is archived while the change of handle is still in the log.
    put(&*store, [info(room(1), 2, "one", Some("old"))]).await;
    assert!(!store.claim_handle("new", room(2), at(11), at(20)).await.unwrap());
}

pub async fn all_rooms_come_once_each_whatever_is_kept_of_them(engine: impl Engine) {
    let store = engine.store();
    assert_eq!(store.all_rooms(None, 5).await.unwrap(), []);
    // Of some all of it, of others a row, a member or an event alone; and some are deleted.
    let rooms = (1..=20).map(|n| info(room(n), 1, "here", None)).chain([deleted(info(room(21), 2, "gone", None))]);
    let members = (15..=30).map(|n| (room(n), user(n), member(1, None)));
    let more = (15..=30).map(|n| (room(n), user(n + 100), member(1, Some(2))));
    let events = (25..=40).flat_map(|n| [message(room(n), 1, user(1)), message(room(n), 2, user(1))]);
    let (rooms, members, events) = (rooms.collect(), members.chain(more).collect(), events.collect());
    store.archive(Batch { rooms, members, events, ..Batch::default() }).await.unwrap();
    let expected: Vec<_> = (1..=40).map(room).collect();
    for limit in [1, 7, 40, 100] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = store.all_rooms(after, limit).await.unwrap();
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = Some(*last);
            seen.extend(page);
        }
        seen.sort();
        assert_eq!(seen, expected, "in pages of {limit}");
    }
}
