//! The archiver against a naive model: random histories, reads at any time, failing writes, crashes at any point, a
//! group whose committed offsets are anywhere. What is read and what is stored must be the plain list of events.

#![expect(clippy::unwrap_used, reason = "the helpers of a test may fail as it does")]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use archiver::{Config, GROUP};
use common::watched::Mishap;
use common::{PARTITIONS, Running, World, room, user};
use proptest::prelude::*;
use schemas::link::{PageFrom, PageQuery};
use schemas::message::{MemberChange, Role, RoomHistory, RoomPatch};
use schemas::{Partition, Seq, Topic};
use store::archive::Archive;
use store::rooms::Rooms;
use stream::{Log, Polled};

const ROOMS: usize = 4;
const USERS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    Say(usize, usize, usize),
    Turn(usize, usize, MemberChange),
    History(usize, RoomHistory),
    Delete(usize),
    Receipt(usize, usize, u64, u64),
    Read(usize, usize, PageFrom, usize),
    /// A read that runs while the following steps happen.
    ReadBeside(usize, usize, PageFrom, usize),
    List(usize),
    Wait(u64),
    Settle,
    Mishap(Mishap),
    Crash,
    /// A crash after a write that went wrong.
    CrashInWrite(Mishap),
    Stop,
    /// The group's committed offsets go to the start or the end.
    Hint(bool),
}

fn from() -> impl Strategy<Value = PageFrom> {
    prop_oneof![
        Just(PageFrom::Newest),
        (0..300_u64).prop_map(|seq| PageFrom::After(Seq(seq))),
        (0..300_u64).prop_map(|seq| PageFrom::Before(Seq(seq))),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let change = prop::sample::select(vec![
        MemberChange::Joined,
        MemberChange::Added,
        MemberChange::Left,
        MemberChange::Removed,
        MemberChange::Role,
    ]);
    let history = prop::sample::select(vec![RoomHistory::All, RoomHistory::SinceJoined]);
    let torn = || (0..5_usize, 0..9_usize).prop_map(|(kinds, rows)| Mishap::Torn(kinds, rows));
    let mishap = prop_oneof![1 => Just(Mishap::Before), 1 => Just(Mishap::After), 2 => torn()];
    prop_oneof![
        8 => (0..ROOMS, 0..USERS, 1..80_usize).prop_map(|(room, user, count)| Step::Say(room, user, count)),
        8 => (0..ROOMS, 0..USERS, change).prop_map(|(room, user, change)| Step::Turn(room, user, change)),
        2 => (0..ROOMS, history).prop_map(|(room, history)| Step::History(room, history)),
        1 => (0..ROOMS).prop_map(Step::Delete),
        4 => (0..ROOMS, 0..USERS, 0..99_u64, 0..99_u64).prop_map(|(room, user, d, r)| Step::Receipt(room, user, d, r)),
        8 => (0..ROOMS, 0..USERS, from(), 1..120_usize).prop_map(|(r, u, from, limit)| Step::Read(r, u, from, limit)),
        6 => (0..ROOMS, 0..USERS, from(), 1..120_usize)
            .prop_map(|(r, u, from, limit)| Step::ReadBeside(r, u, from, limit)),
        3 => (0..USERS).prop_map(Step::List),
        6 => (0..300_u64).prop_map(Step::Wait),
        1 => Just(Step::Settle),
        4 => mishap.prop_map(Step::Mishap),
        3 => Just(Step::Crash),
        3 => torn().prop_map(Step::CrashInWrite),
        1 => Just(Step::Stop),
        1 => any::<bool>().prop_map(Step::Hint),
    ]
}

/// Reads a person's list and their rooms, and compares them with the truth.
async fn check_list(world: &World, running: &Running, who: usize) {
    let min_offset = world.end(Topic::UserEvents, user(who).as_bytes()).await;
    let rooms = running.history.rooms_of(user(who), min_offset).await.unwrap();
    let rooms: BTreeSet<_> = rooms.into_iter().collect();
    let is_in = |id| world.state(id, world.head(id)).is_some_and(|state| state.member(user(who)).is_some());
    let expected: BTreeSet<_> = (0..ROOMS).map(room).filter(|id| is_in(*id)).collect();
    assert_eq!(rooms, expected);
    let mut asked = Vec::new();
    for id in (0..ROOMS).map(room) {
        asked.push((id, world.end(Topic::Events, id.as_bytes()).await));
    }
    let rooms = running.history.rooms(user(who), &asked).await.unwrap();
    let expected: BTreeSet<_> = (0..ROOMS)
        .map(room)
        .filter(|id| {
            let state = world.state(*id, world.head(*id));
            state.is_some_and(|state| state.members.contains_key(&user(who)))
        })
        .collect();
    assert_eq!(rooms.iter().map(|of_user| of_user.info.id).collect::<BTreeSet<_>>(), expected);
    for of_user in rooms {
        let state = world.state(of_user.info.id, world.head(of_user.info.id)).unwrap();
        assert_eq!(*of_user.info, state.info);
        assert_eq!(of_user.member, state.members[&user(who)]);
    }
}

/// Asks for pages of all rooms at once, one that does not exist among them.
async fn check_pages(world: &World, running: &Running, who: usize) {
    let mut queries = Vec::new();
    for room in (0..=ROOMS).rev().map(room) {
        let min_offset = world.end(Topic::Events, room.as_bytes()).await;
        let query = PageQuery { user: user(who), room, from: PageFrom::Newest, limit: 1, min_offset };
        let first = PageQuery { from: PageFrom::After(Seq::ZERO), limit: 3, min_offset: schemas::Offset(0), ..query };
        queries.extend([query, first]);
    }
    let pages = running.history.pages(&queries).await.unwrap();
    assert_eq!(pages.len(), queries.len());
    for (query, page) in queries.into_iter().zip(&pages) {
        world.check_page(world.head(query.room), query, page.as_ref());
    }
}

/// Pages through a room from `cursor` on, as a socket that comes back does.
async fn check_resumed(world: &World, running: &Running, who: usize, id: usize, mut cursor: Seq) {
    let mut got = Vec::new();
    let start = cursor;
    while let Some(page) = world.page(running, user(who), room(id), PageFrom::After(cursor), 37).await.unwrap() {
        got.extend(page.events.iter().cloned());
        match page.events.last() {
            Some(last) => cursor = last.seq,
            None => break,
        }
    }
    let state = world.state(room(id), world.head(room(id)));
    let Some(member) = state.filter(|state| !state.info.deleted).and_then(|mut state| state.members.remove(&user(who)))
    else {
        return assert!(got.is_empty());
    };
    let visible = world.rooms[&room(id)].iter().filter(|event| event.seq > start && member.sees(event.seq));
    assert_eq!(got, visible.cloned().collect::<Vec<_>>());
}

/// The store against the naive fold.
async fn check_store(world: &World) {
    for (id, events) in &world.rooms {
        let state = world.state(*id, world.head(*id)).unwrap();
        assert_eq!(world.store.rooms(&[*id]).await.unwrap(), [state.info]);
        let members = world.store.members(*id).await.unwrap();
        assert_eq!(members.into_iter().collect::<std::collections::HashMap<_, _>>(), state.members);
        let stored = world.store.events(*id, Seq(0), Seq(u64::MAX), usize::MAX, false).await.unwrap();
        assert_eq!(stored.into_iter().map(Arc::new).collect::<Vec<_>>(), *events);
        for who in (0..USERS).map(user) {
            let marks = world.store.watermarks(who, &[*id]).await.unwrap();
            let got = marks.first().map_or((Seq(0), Seq(0)), |(_, marks)| (marks.delivered_seq, marks.read_seq));
            assert_eq!(got, world.receipts.get(&(*id, who)).copied().unwrap_or_default());
        }
    }
    for who in (0..USERS).map(user) {
        let listed: BTreeSet<_> = world.store.rooms_of(who).await.unwrap().into_iter().collect();
        let is_in = |id| world.state(id, world.head(id)).is_some_and(|state| state.member(who).is_some());
        assert_eq!(listed, world.rooms.keys().copied().filter(|id| is_in(*id)).collect());
    }
}

/// The offsets that the group has committed are only a hint: they may be anything (I5).
async fn commit_anything(world: &World, at_end: bool) {
    let topics = [Topic::Events, Topic::UserEvents, Topic::Receipts];
    let mut consumer = world.log.consumer(GROUP, &topics).await.unwrap();
    let Polled::Assigned { partitions, .. } = consumer.poll().await.unwrap() else { panic!("not assigned") };
    assert_eq!(partitions.len(), PARTITIONS as usize);
    let mut positions = Vec::new();
    for topic in topics {
        for partition in (0..PARTITIONS).map(Partition) {
            let end = world.log.end(topic, partition).await.unwrap();
            positions.push((topic, partition, if at_end { end } else { schemas::Offset(0) }));
        }
    }
    consumer.commit(positions).await.unwrap();
}

async fn crash(running: Running) {
    running.task.abort();
    let _ = running.task.await;
}

async fn run(config: Config, steps: Vec<Step>) {
    let mut world = World::new(config).await;
    for id in 0..ROOMS {
        let history = if id == 1 { RoomHistory::SinceJoined } else { RoomHistory::All };
        world.create(room(id), user(id), history).await;
    }
    let mut running = world.start();
    let mut reads = Vec::new();
    for step in steps {
        match step {
            Step::Say(id, who, count) => {
                for _ in 0..count {
                    world.say(room(id), user(who), "hello").await;
                }
            }
            Step::Turn(id, who, change) => {
                // As ingest decides: who is in leaves, who is not comes in.
                let state = world.state(room(id), world.head(room(id))).unwrap();
                let is_in = state.member(user(who)).is_some();
                if is_in != change.begins() {
                    world.member(room(id), user(who), change, Role::Member).await;
                }
            }
            Step::History(id, history) => {
                world.change(room(id), user(0), RoomPatch { history: Some(history), ..RoomPatch::default() }).await;
            }
            Step::Delete(id) => {
                world.change(room(id), user(0), RoomPatch { deleted: true, ..RoomPatch::default() }).await;
            }
            Step::Receipt(id, who, delivered, read) => {
                world.receipt(room(id), user(who), Seq(delivered), Seq(read)).await;
            }
            Step::Read(id, who, from, limit) => {
                let min_offset = world.end(Topic::Events, room(id).as_bytes()).await;
                let query = PageQuery { user: user(who), room: room(id), from, limit, min_offset };
                let page = running.history.page(query).await.unwrap();
                world.check_page(world.head(room(id)), query, page.as_ref());
            }
            Step::ReadBeside(id, who, from, limit) => {
                let min_offset = world.end(Topic::Events, room(id).as_bytes()).await;
                let query = PageQuery { user: user(who), room: room(id), from, limit, min_offset };
                let history = Arc::clone(&running.history);
                let read = tokio::spawn(async move { history.page(query).await });
                reads.push((world.head(room(id)), query, read));
            }
            Step::List(who) => {
                check_list(&world, &running, who).await;
                check_pages(&world, &running, who).await;
            }
            Step::Wait(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Step::Settle => world.settle(&running).await,
            Step::Mishap(mishap) => world.store.mishaps.lock().push_back(mishap),
            Step::Crash => {
                crash(running).await;
                running = world.start();
            }
            Step::CrashInWrite(mishap) => {
                world.store.mishaps.lock().clear();
                world.store.mishaps.lock().push_back(mishap);
                for _ in 0..100 {
                    if world.store.mishaps.lock().is_empty() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                crash(running).await;
                running = world.start();
            }
            Step::Stop => {
                running.stop().await.unwrap();
                running = world.start();
            }
            Step::Hint(at_end) => {
                crash(running).await;
                commit_anything(&world, at_end).await;
                running = world.start();
            }
        }
    }
    for id in 0..ROOMS {
        for who in 0..USERS {
            check_resumed(&world, &running, who, id, Seq(who as u64 * 20)).await;
        }
    }
    for (at_least, query, read) in reads {
        // A crash takes the answers under way with it: those are unavailable.
        if let Ok(page) = read.await.unwrap() {
            world.check_page(at_least, query, page.as_ref());
        }
    }
    // Receipts have no position that one could wait for: what is consumed is written at the end.
    world.settle(&running).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.settle(&running).await;
    for name in ["holes", "doubles", "dead_letters"] {
        let name = format!("posthaste_archiver_{name}_total");
        assert_eq!(running.metric(&name), 0.0, "{name}");
    }
    running.stop().await.unwrap();
    check_store(&world).await;
}

fn paused(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(work);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_readers_and_store_agree_with_the_naive_log(steps in prop::collection::vec(step(), 1..60)) {
        paused(run(Config::default(), steps));
    }

    #[test]
    fn so_they_do_with_next_to_no_memory(steps in prop::collection::vec(step(), 1..60)) {
        let config = Config {
            room_cache_max_bytes: 6_000,
            page_cache_max_bytes: 30_000,
            unarchived_max_bytes: 30_000,
            flush_max_bytes: 3_000,
            flush_interval_ms: 5,
            ..Config::default()
        };
        paused(run(config, steps));
    }
}
