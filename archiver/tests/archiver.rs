//! The archiver as its neighbours see it, one behaviour at a time.

#![expect(clippy::unwrap_used, reason = "the helpers of a test may fail as it does")]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use archiver::{Config, Error};
use common::watched::Mishap;
use common::{PARTITIONS, Running, World, room, seqs, user};
use schemas::dead_letter::DeadLetter;
use schemas::event::EventKind;
use schemas::link::{Lane, PageFrom, PageQuery, Unavailable};
use schemas::message::{Content, MemberChange, Message, Role, RoomHistory, RoomPatch};
use schemas::{Offset, Partition, Record, Seq, Topic};
use store::archive::{Archive, Batch, Watermarks};
use store::rooms::Rooms;
use stream::Log;

const HOUR: Duration = Duration::from_secs(60 * 60);

async fn world() -> World {
    World::new(Config::default()).await
}

/// A room with so many events, its creation and its owner's joining among them.
async fn talk(world: &mut World, count: u64) {
    world.create(room(1), user(0), RoomHistory::All).await;
    for n in 3..=count {
        world.say(room(1), user(0), &format!("message {n}")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_is_read_before_it_is_archived() {
    let mut world = world().await;
    world.store.hangs.send_replace(true);
    let running = world.start();
    talk(&mut world, 4).await;
    let page = world.page(&running, user(0), room(1), PageFrom::Newest, 50).await.unwrap().unwrap();
    assert_eq!(seqs(&page.events), [1, 2, 3, 4]);
    assert_eq!(world.store.progress(Topic::Events, world.partition(room(1).as_bytes())).await.unwrap(), Offset(0));
}

#[tokio::test(start_paused = true)]
async fn a_hot_page_reads_nothing_and_an_expired_one_is_read_once_for_a_hundred_readers() {
    let mut world = world().await;
    let running = world.start();
    talk(&mut world, 100).await;
    world.settle(&running).await;
    running.stop().await.unwrap();
    let running = world.start_cold().await;
    let read = async |readers: usize| {
        let page = || world.page(&running, user(0), room(1), PageFrom::Newest, 50);
        let pages = futures_util::future::join_all((0..readers).map(|_| page())).await;
        for page in pages {
            assert_eq!(seqs(&page.unwrap().unwrap().events), (51..=100).collect::<Vec<_>>());
        }
        world.store.take_calls()
    };
    assert_eq!(read(100).await, BTreeMap::from([("rooms", 1), ("standings", 1), ("events", 1)]));
    assert_eq!(read(100).await, BTreeMap::new());
    world.clock.advance(HOUR);
    assert_eq!(read(100).await, BTreeMap::from([("events", 1)]));
    assert_eq!(read(100).await, BTreeMap::new());
}

#[tokio::test(start_paused = true)]
async fn what_was_just_archived_stays_hot() {
    let mut world = world().await;
    let running = world.start();
    talk(&mut world, 500).await;
    world.settle(&running).await;
    world.store.take_calls();
    for from in [PageFrom::Newest, PageFrom::After(Seq(0)), PageFrom::Before(Seq(300))] {
        let page = world.page(&running, user(0), room(1), from, 100).await.unwrap().unwrap();
        assert_eq!(page.events.len(), 100);
    }
    assert_eq!(world.store.take_calls(), BTreeMap::new());
}

#[tokio::test(start_paused = true)]
async fn a_page_that_grows_is_read_at_its_new_size() {
    let mut world = world().await;
    let running = world.start();
    talk(&mut world, 10).await;
    world.settle(&running).await;
    running.stop().await.unwrap();
    let running = world.start_cold().await;
    for head in 10..300 {
        let page = world.page(&running, user(0), room(1), PageFrom::Newest, 100).await.unwrap().unwrap();
        assert_eq!(page.head_seq, Seq(head));
        assert_eq!(page.events.len() as u64, head.min(100));
        world.say(room(1), user(0), "more").await;
        if head % 7 == 0 {
            world.settle(&running).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_removed_member_sees_up_to_the_removal_and_after_a_return_what_follows_it() {
    let mut world = world().await;
    let running = world.start();
    world.create(room(1), user(0), RoomHistory::SinceJoined).await; // 1, 2
    world.say(room(1), user(0), "alone").await; // 3
    world.join(room(1), user(1)).await; // 4
    world.say(room(1), user(0), "together").await; // 5
    world.member(room(1), user(1), MemberChange::Removed, Role::Member).await; // 6
    world.say(room(1), user(0), "alone again").await; // 7
    for archived in [false, true] {
        let page = world.page(&running, user(1), room(1), PageFrom::Newest, 50).await.unwrap().unwrap();
        assert_eq!(seqs(&page.events), [4, 5, 6]);
        assert_eq!((page.first_seq, page.visible_head, page.head_seq), (Seq(4), Seq(6), Seq(7)));
        if !archived {
            world.settle(&running).await;
        }
    }
    world.member(room(1), user(1), MemberChange::Added, Role::Member).await; // 8
    world.say(room(1), user(0), "welcome back").await; // 9
    let page = world.page(&running, user(1), room(1), PageFrom::Newest, 50).await.unwrap().unwrap();
    assert_eq!(seqs(&page.events), [4, 5, 6, 8, 9]);
    let page = world.page(&running, user(1), room(1), PageFrom::After(Seq(5)), 2).await.unwrap().unwrap();
    assert_eq!(seqs(&page.events), [6, 8]);
    assert!(world.page(&running, user(2), room(1), PageFrom::Newest, 50).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_deleted_room_has_no_pages_and_says_that_it_is_deleted() {
    let mut world = world().await;
    let running = world.start();
    talk(&mut world, 4).await;
    world.change(room(1), user(0), RoomPatch { deleted: true, ..RoomPatch::default() }).await;
    assert!(world.page(&running, user(0), room(1), PageFrom::Newest, 50).await.unwrap().is_none());
    let end = world.end(Topic::Events, room(1).as_bytes()).await;
    let rooms = running.history.rooms(user(0), &[(room(1), end)]).await.unwrap();
    assert!(rooms.iter().all(|of_user| of_user.info.deleted) && rooms.len() == 1, "sockets behind have to be told");
}

#[tokio::test(start_paused = true)]
async fn an_inbox_is_one_round_of_reads_whatever_the_number_of_rooms() {
    let mut world = world().await;
    let running = world.start();
    for n in 0..40 {
        world.create(room(n), user(0), RoomHistory::All).await;
        world.say(room(n), user(0), "hello").await;
    }
    world.receipt(room(7), user(0), Seq(3), Seq(2)).await;
    world.settle(&running).await;
    running.stop().await.unwrap();
    let running = world.start_cold().await;
    let mut asked = vec![(room(99), Offset(0))];
    for n in 0..40 {
        asked.push((room(n), world.end(Topic::Events, room(n).as_bytes()).await));
    }
    let rooms = running.history.rooms(user(0), &asked).await.unwrap();
    let calls = BTreeMap::from([("rooms", 1), ("standings", 1), ("watermarks", 1)]);
    assert_eq!(world.store.take_calls(), calls);
    assert_eq!(rooms.len(), 40);
    for of_user in &rooms {
        // Before any receipt they start at the join, seq 2.
        let expected = if of_user.info.id == room(7) { (Seq(3), Seq(2)) } else { (Seq(1), Seq(1)) };
        assert_eq!((of_user.delivered_seq, of_user.read_seq), expected);
    }
    let newest = |room, limit| PageQuery { user: user(0), room, from: PageFrom::Newest, limit, min_offset: Offset(0) };
    let queries: Vec<_> = (0..40).map(|n| newest(room(n), 1)).collect();
    let pages = running.history.pages(&queries).await.unwrap();
    assert_eq!(world.store.take_calls(), BTreeMap::from([("events", 40)]), "rooms and standings are known by now");
    assert!(pages.iter().all(|page| seqs(&page.as_ref().unwrap().events) == [3]));
    assert_eq!(running.history.pages(&queries).await.unwrap().len(), 40);
    assert_eq!(world.store.take_calls(), BTreeMap::new(), "events too");
}

#[tokio::test(start_paused = true)]
async fn pages_of_cold_rooms_read_rooms_and_standings_once_for_all_of_them() {
    let mut world = world().await;
    let running = world.start();
    for n in 0..40 {
        world.create(room(n), user(n % 2), RoomHistory::All).await;
        world.say(room(n), user(n % 2), "hello").await;
    }
    world.settle(&running).await;
    running.stop().await.unwrap();
    let running = world.start_cold().await;
    let page = |room, from| PageQuery { user: user(0), room, from, limit: 2, min_offset: Offset(0) };
    // Every room twice, every other one a stranger's, and one that does not exist.
    let both = |n| [page(room(n), PageFrom::Newest), page(room(n), PageFrom::After(Seq::ZERO))];
    let queries: Vec<_> = (0..=40).flat_map(both).collect();
    let pages = running.history.pages(&queries).await.unwrap();
    assert_eq!(world.store.take_calls(), BTreeMap::from([("rooms", 1), ("standings", 1), ("events", 20)]));
    for (query, page) in queries.iter().zip(&pages) {
        world.check_page(world.head(query.room), *query, page.as_ref());
    }
    assert_eq!(pages.iter().flatten().count(), 40);
}

#[tokio::test(start_paused = true)]
async fn unarchived_receipts_and_lists_count() {
    let mut world = world().await;
    let running = world.start();
    world.create(room(1), user(0), RoomHistory::All).await;
    world.create(room(2), user(0), RoomHistory::All).await;
    world.settle(&running).await;
    world.store.hangs.send_replace(true);
    world.receipt(room(1), user(0), Seq(2), Seq(2)).await;
    world.receipt(room(1), user(0), Seq(1), Seq(0)).await;
    world.create(room(3), user(0), RoomHistory::All).await;
    world.member(room(2), user(0), MemberChange::Left, Role::Owner).await;
    let end = world.end(Topic::UserEvents, user(0).as_bytes()).await;
    let mut listed = running.history.rooms_of(user(0), end).await.unwrap();
    listed.sort_unstable();
    assert_eq!(listed, [room(1), room(3)]);
    // Receipts have no position of their own to wait for: a page of the same partition lets the worker go on.
    world.say(room(1), user(0), "hello").await;
    let end = world.end(Topic::Events, room(1).as_bytes()).await;
    let rooms = running.history.rooms(user(0), &[(room(1), end)]).await.unwrap();
    assert_eq!((rooms[0].delivered_seq, rooms[0].read_seq), (Seq(2), Seq(2)));
}

#[tokio::test(start_paused = true)]
async fn who_is_back_goes_on_where_an_earlier_stay_was_left_off() {
    let mut world = world().await;
    let running = world.start();
    talk(&mut world, 4).await;
    world.join(room(1), user(1)).await; // 5
    world.say(room(1), user(0), "while in").await; // 6
    world.member(room(1), user(1), MemberChange::Left, Role::Member).await; // 7
    world.say(room(1), user(0), "while out").await; // 8
    world.join(room(1), user(1)).await; // 9
    for (told, begins_after) in [(0, 4), (5, 5), (7, 8)] {
        world.receipt(room(1), user(1), Seq(told), Seq(0)).await;
        world.say(room(1), user(0), "lets the receipt be read").await;
        let end = world.end(Topic::Events, room(1).as_bytes()).await;
        let rooms = running.history.rooms(user(1), &[(room(1), end)]).await.unwrap();
        assert_eq!((rooms[0].delivered_seq, rooms[0].read_seq), (Seq(begins_after), Seq(8)), "told {told}");
    }
}

/// Asks until there is an answer: it has all five events of the room.
async fn five_are_answered(world: &World, running: &Running) {
    let answered = loop {
        match world.page(running, user(0), room(1), PageFrom::Newest, 50).await {
            Ok(page) => break page.unwrap(),
            Err(Unavailable) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    assert_eq!((seqs(&answered.events), answered.head_seq), (vec![1, 2, 3, 4, 5], Seq(5)));
}

#[tokio::test(start_paused = true)]
async fn after_any_failed_call_a_store_that_has_come_back_with_less_is_not_answered_from() {
    let mut world = World::new(Config { room_cache_max_bytes: 1, ..Config::default() }).await;
    let running = world.start();
    talk(&mut world, 4).await;
    world.settle(&running).await;
    let older = world.store.archived();
    world.say(room(1), user(0), "five").await;
    world.settle(&running).await;
    world.store.mishaps.lock().push_back(Mishap::Before);
    world.create(room(2), user(0), RoomHistory::All).await;
    while !world.store.mishaps.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    world.store.lose_since(older);
    five_are_answered(&world, &running).await;
}

#[tokio::test(start_paused = true)]
async fn after_standing_still_a_store_that_has_come_back_with_less_is_not_answered_from() {
    let config = Config { room_cache_max_bytes: 1, hint_interval_ms: 3_600_000, ..Config::default() };
    let mut world = World::new(config).await;
    let running = world.start();
    talk(&mut world, 4).await;
    world.settle(&running).await;
    let older = world.store.archived();
    world.say(room(1), user(0), "five").await;
    world.settle(&running).await;
    // As a process that was stopped sees it: no call has failed, and it is later.
    world.store.lose_since(older);
    world.clock.advance(Duration::from_secs(3));
    five_are_answered(&world, &running).await;
}

#[tokio::test(start_paused = true)]
async fn settled_means_in_the_store_at_once() {
    let mut world = World::new(Config { flush_interval_ms: 3_600_000, ..Config::default() }).await;
    let running = world.start();
    talk(&mut world, 5).await;
    let partition = world.partition(room(1).as_bytes());
    let end = world.end(Topic::Events, room(1).as_bytes()).await;
    running.history.settle(Lane::Rooms, partition, end).await.unwrap();
    assert_eq!(world.store.progress(Topic::Events, partition).await.unwrap(), end);
    assert_eq!(world.store.rooms(&[room(1)]).await.unwrap()[0].head_seq, Seq(5));
    // Beyond the log's end there is nothing to wait for but time.
    assert_eq!(running.history.settle(Lane::Rooms, partition, Offset(end.0 + 1)).await, Err(Unavailable));
}

#[tokio::test(start_paused = true)]
async fn receipts_are_kept_as_the_steps_that_raise_them() {
    let mut world = world().await;
    let running = world.start();
    talk(&mut world, 9).await;
    for (delivered, read) in [(3, 0), (2, 0), (3, 0), (0, 2), (9, 5), (4, 4)] {
        world.receipt(room(1), user(0), Seq(delivered), Seq(read)).await;
    }
    world.settle(&running).await;
    let marks = world.store.watermarks(user(0), &[room(1)]).await.unwrap();
    let expected = Watermarks { delivered_seq: Seq(9), read_seq: Seq(5), at: marks[0].1.at };
    assert_eq!(marks, [(room(1), expected)]);
}

#[tokio::test(start_paused = true)]
async fn a_hole_and_a_double_are_counted_set_aside_and_never_folded() {
    let mut world = world().await;
    let running = world.start();
    talk(&mut world, 4).await;
    let message = |text: &str| EventKind::Message(Message { content: Content::text(text), reply_to: None });
    let mut double = world.next_event(room(1), user(0), message("another four"));
    double.seq = Seq(4);
    let mut hole = world.next_event(room(1), user(0), message("six"));
    hole.seq = Seq(6);
    let headless = world.next_event(room(5), user(0), message("a room can't begin with this"));
    let replay = Arc::clone(&world.rooms[&room(1)][2]);
    for event in [&double, &hole, &headless, &replay] {
        world.append(Topic::Events, *event.room.as_bytes(), event.encode()).await;
    }
    for _ in 0..2 {
        let page = world.page(&running, user(0), room(1), PageFrom::Newest, 50).await.unwrap().unwrap();
        assert_eq!(page.events, world.rooms[&room(1)]);
        world.settle(&running).await;
    }
    assert_eq!(running.metric("posthaste_archiver_holes_total"), 2.0);
    assert_eq!(running.metric("posthaste_archiver_doubles_total"), 1.0);
    assert_eq!(running.metric("posthaste_archiver_dead_letters_total"), 3.0);
    let stored = world.store.events(room(1), Seq(0), Seq(100), 100, false).await.unwrap();
    assert_eq!(stored.into_iter().map(Arc::new).collect::<Vec<_>>(), world.rooms[&room(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_double_of_what_only_the_store_knows_is_found() {
    let mut world = world().await;
    let running = world.start();
    talk(&mut world, 6).await;
    world.settle(&running).await;
    running.stop().await.unwrap();
    let running = world.start_cold().await;
    let mut double = world.next_event(room(1), user(0), EventKind::Unknown);
    double.seq = Seq(3);
    world.append(Topic::Events, *room(1).as_bytes(), double.encode()).await;
    world.settle(&running).await;
    assert_eq!(running.metric("posthaste_archiver_doubles_total"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lost_rows_gets_them_again() {
    let mut world = world().await;
    talk(&mut world, 5).await;
    let info = world.state(room(1), Seq(5)).unwrap().info;
    world.store.archive(Batch { rooms: vec![info], ..Batch::default() }).await.unwrap();
    let running = world.start();
    // Until then there is no page: one with a hole would be a lie (I7).
    assert_eq!(world.page(&running, user(0), room(1), PageFrom::Newest, 50).await.unwrap_err(), Unavailable);
    world.settle(&running).await;
    let page = world.page(&running, user(0), room(1), PageFrom::Newest, 50).await.unwrap().unwrap();
    assert_eq!(page.events, world.rooms[&room(1)]);
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_read_is_set_aside_and_passed() {
    let mut world = world().await;
    let running = world.start_cold().await;
    world.append(Topic::Events, *room(1).as_bytes(), "garbage".into()).await;
    world.append(Topic::UserEvents, *user(0).as_bytes(), "rubbish".into()).await;
    talk(&mut world, 3).await;
    world.settle(&running).await;
    assert_eq!(world.store.rooms(&[room(1)]).await.unwrap()[0].head_seq, Seq(3));
    let mut letters = Vec::new();
    for partition in (0..PARTITIONS).map(Partition) {
        let fetched = world.log.read(Topic::DeadLetters, partition, Offset(0), 1 << 20).await.unwrap();
        letters.extend(fetched.records.iter().map(|placed| DeadLetter::decode(&placed.record.value).unwrap().value));
    }
    letters.sort();
    assert_eq!(letters, [b"garbage", b"rubbish"]);
}

#[tokio::test(start_paused = true)]
async fn an_archive_outside_of_the_log_stops_the_archiver() {
    let mut world = world().await;
    talk(&mut world, 5).await;
    let partition = world.partition(room(1).as_bytes());
    world.log.trim(Topic::Events, partition, Offset(2)).await.unwrap();
    let result = world.start().task.await.unwrap();
    assert!(matches!(result, Err(Error::OutOfLog { topic: Topic::Events, progress: Offset(0), .. })), "{result:?}");
}

#[tokio::test(start_paused = true)]
async fn too_much_that_is_unarchived_stops_consuming_until_the_store_is_back() {
    let config = Config { unarchived_max_bytes: 20_000, flush_max_bytes: 10_000, ..Config::default() };
    let mut world = World::new(config).await;
    world.store.hangs.send_replace(true);
    let running = world.start();
    talk(&mut world, 3).await;
    for _ in 0..200 {
        world.say(room(1), user(0), &"x".repeat(1_000)).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!((20_000.0..30_000.0).contains(&running.metric("posthaste_archiver_unarchived_bytes")));
    assert!(world.page(&running, user(0), room(1), PageFrom::Newest, 1).await.is_err());
    world.store.hangs.send_replace(false);
    let page = world.page(&running, user(0), room(1), PageFrom::Newest, 1).await.unwrap().unwrap();
    assert_eq!(page.head_seq, Seq(203));
    world.settle(&running).await;
    assert_eq!(running.metric("posthaste_archiver_unarchived_bytes"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_makes_cold_history_unavailable_and_hurts_no_other() {
    let mut world = World::new(Config { store_reads_max: 2, ..Config::default() }).await;
    let running = world.start();
    talk(&mut world, 300).await;
    world.settle(&running).await;
    running.stop().await.unwrap();
    let running = world.start_cold().await;
    world.create(room(2), user(0), RoomHistory::All).await;
    assert!(world.page(&running, user(0), room(1), PageFrom::Newest, 1).await.unwrap().is_some());
    world.page(&running, user(0), room(2), PageFrom::Newest, 1).await.unwrap();
    world.store.hangs.send_replace(true);
    let pages = (0..300).step_by(100).map(|seq| world.page(&running, user(0), room(1), PageFrom::After(Seq(seq)), 1));
    let (cold, hot) = tokio::join!(
        futures_util::future::join_all(pages),
        world.page(&running, user(0), room(2), PageFrom::Newest, 50)
    );
    assert!(cold.iter().all(Result::is_err));
    assert_eq!(hot.unwrap().unwrap().events.len(), 2);
    world.store.hangs.send_replace(false);
    let page = world.page(&running, user(0), room(1), PageFrom::After(Seq(0)), 1).await.unwrap().unwrap();
    assert_eq!(seqs(&page.events), [1]);
}

#[tokio::test(start_paused = true)]
async fn without_an_owner_history_comes_from_the_store_if_that_knows_enough() {
    let mut world = world().await;
    let running = world.start();
    talk(&mut world, 5).await;
    world.settle(&running).await;
    running.stop().await.unwrap();
    let deps = archiver::Deps {
        log: Arc::new(world.log.clone()),
        store: Arc::clone(&world.store) as _,
        clock: Arc::clone(&world.clock) as _,
    };
    let metrics = archiver::Metrics::new(&prometheus::Registry::new()).unwrap();
    let (history, _idle) = archiver::new(deps, Config::default(), metrics);
    let end = world.end(Topic::Events, room(1).as_bytes()).await;
    let query = PageQuery { user: user(0), room: room(1), from: PageFrom::Newest, limit: 50, min_offset: end };
    assert_eq!(seqs(&history.page(query).await.unwrap().unwrap().events), [1, 2, 3, 4, 5]);
    assert_eq!(history.rooms_of(user(0), Offset(0)).await.unwrap(), [room(1)]);
    world.say(room(1), user(0), "not archived").await;
    let later = PageQuery { min_offset: Offset(end.0 + 1), ..query };
    assert_eq!(history.page(later).await.unwrap_err(), Unavailable);
}

#[tokio::test(start_paused = true)]
async fn an_answer_holds_at_most_its_bytes_and_the_next_one_goes_on() {
    let mut world = world().await;
    let running = world.start();
    talk(&mut world, 2).await;
    let large = "x".repeat(60 * 1024);
    for _ in 0..100 {
        world.say(room(1), user(0), &large).await;
    }
    let first = world.page(&running, user(0), room(1), PageFrom::After(Seq(0)), 100).await.unwrap().unwrap();
    assert!((60..75).contains(&first.events.len()), "{}", first.events.len());
    let newest = world.page(&running, user(0), room(1), PageFrom::Newest, 100).await.unwrap().unwrap();
    assert_eq!(newest.events.last().unwrap().seq, Seq(102));
    let from = PageFrom::After(first.events.last().unwrap().seq);
    let second = world.page(&running, user(0), room(1), from, 100).await.unwrap().unwrap();
    let all: Vec<_> = first.events.into_iter().chain(second.events).collect();
    assert_eq!(seqs(&all), (1..=102).collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn shutting_down_writes_what_was_consumed() {
    let mut world = World::new(Config { flush_interval_ms: 3_600_000, ..Config::default() }).await;
    let running = world.start();
    talk(&mut world, 5).await;
    world.page(&running, user(0), room(1), PageFrom::Newest, 1).await.unwrap();
    world.store.mishaps.lock().extend([Mishap::Before, Mishap::After]);
    running.stop().await.unwrap();
    assert_eq!(world.store.rooms(&[room(1)]).await.unwrap()[0].head_seq, Seq(5));
}

#[tokio::test(start_paused = true)]
async fn memory_is_bounded_and_what_was_forgotten_is_read_again() {
    let config = Config { room_cache_max_bytes: 30_000, page_cache_max_bytes: 20_000, ..Config::default() };
    let mut world = World::new(config).await;
    let running = world.start();
    for n in 0..200 {
        world.create(room(n), user(n), RoomHistory::All).await;
        world.say(room(n), user(n), "hello").await;
    }
    world.settle(&running).await;
    world.store.take_calls();
    for n in 0..200 {
        let page = world.page(&running, user(n), room(n), PageFrom::Newest, 50).await.unwrap().unwrap();
        assert_eq!(page.events, world.rooms[&room(n)]);
    }
    assert!(world.store.take_calls()["rooms"] > 100);
    for n in 0..200 {
        world.join(room(n), user(n + 1)).await;
        let page = world.page(&running, user(n + 1), room(n), PageFrom::Newest, 50).await.unwrap().unwrap();
        assert_eq!((page.events.len(), page.info.member_count), (4, 2));
    }
}
