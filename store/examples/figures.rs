//! Prints what the embedded store does on this machine: `cargo run -p store --example figures [DIR]`.
//! Figures of the test profile are lower than those of a release build.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::Registry;
use schemas::event::Event;
use schemas::message::{Content, Message, Role, RoomHistory, RoomKind, RoomVisibility, Settings};
use schemas::room::{Interval, Member, RoomInfo};
use schemas::{CommandId, EventId, EventKind, Offset, Partition, RoomId, Seq, Timestamp, Topic, UserId};
use store::archive::{Archive, Batch};
use store::rooms::{Listing, Rooms};
use store::sqlite::{Config, SqliteStore};
use uuid::Uuid;

const ROOMS: u64 = 200;
const USER: UserId = UserId(Uuid::from_u128(7));

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args_os().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(dir)?;
    let store = Arc::new(SqliteStore::open(dir.path(), &Config::default(), &Registry::new())?);

    let members = (0..ROOMS).map(|n| (room(n), USER, member())).collect();
    let listings = (0..ROOMS).map(|n| Listing { user: USER, room: room(n), version: Seq(1), listed: true }).collect();
    store.archive(Batch { members, listings, ..Batch::default() }).await?;

    let mut next = 0;
    for size in [20, 500] {
        let mut times = Vec::new();
        let began = now();
        while times.len() < 20_000 / size {
            let batch = batch(next, size as u64);
            next += size as u64;
            let start = now();
            store.archive(batch).await?;
            times.push(start.elapsed());
        }
        let rows = times.len() as f64 * size as f64 / began.elapsed().as_secs_f64();
        println!(
            "archive, batches of {size} events and the rooms that they touch: {rows:.0} events/s, {}",
            spread(times)
        );
    }

    let mut times = Vec::new();
    for n in 0..2_000 {
        let start = now();
        let page = store.events(room(n % ROOMS), Seq(20), Seq(150), 50, n % 2 == 0).await?;
        times.push(start.elapsed());
        assert_eq!(page.len(), 50);
    }
    println!("page of 50 events: {}", spread(times));

    let (mut lists, mut infos) = (Vec::new(), Vec::new());
    for _ in 0..500 {
        let start = now();
        let ids = store.rooms_of(USER).await?;
        lists.push(start.elapsed());
        let start = now();
        let rooms = store.rooms(&ids).await?;
        infos.push(start.elapsed());
        assert_eq!(rooms.len() as u64, ROOMS);
    }
    println!("rooms_of a person in {ROOMS} rooms: {}", spread(lists));
    println!("rooms of these {ROOMS}: {}", spread(infos));
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a measurement is about this machine's own time")]
fn now() -> Instant {
    Instant::now()
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
    format!("p50 {:.2} ms, p99 {:.2} ms", at(50), at(99))
}

fn room(n: u64) -> RoomId {
    RoomId(Uuid::new_v5(&Uuid::nil(), &n.to_be_bytes()))
}

fn member() -> Member {
    let stay = Interval { joined: Seq(1), visible_from: Seq(1), until: None };
    Member { role: Role::Member, intervals: vec![stay], version: Seq(1) }
}

/// Events number `first` and on, dealt to the rooms in turn, and the rooms after them.
fn batch(first: u64, size: u64) -> Batch {
    let settings = Settings {
        kind: RoomKind::Group,
        name: format!("Room {}", first % ROOMS),
        handle: None,
        description: "Where things are talked over".to_owned(),
        icon: String::new(),
        visibility: RoomVisibility::Public,
        history: RoomHistory::All,
    };
    let message =
        Message { content: Content::text("Some words of an ordinary length, as people write them."), reply_to: None };
    let event = |n: u64| Event {
        room: room(n % ROOMS),
        seq: Seq(n / ROOMS + 1),
        id: EventId(Uuid::from_u128(n.into())),
        at: Timestamp(1_763_715_600_000 + n as i64),
        by: USER,
        command: CommandId(schemas::ids::uuid_v7(1_763_715_600_000 + n as i64, [1; 10])),
        reply_to: None,
        received_us: 1_763_715_600_000_000,
        decided_us: 1_763_715_600_000_000,
        salt: [1; 16],
        hash: [2; 32],
        kind: EventKind::Message(message.clone()),
    };
    let info = |event: &Event| RoomInfo {
        id: event.room,
        settings: settings.clone(),
        created_at: Timestamp(1),
        created_by: USER,
        head_seq: event.seq,
        hash: event.hash,
        last_activity_at: event.at,
        member_count: 9,
        deleted: false,
    };
    let events: Vec<_> = (first..first + size).map(|n| Arc::new(event(n))).collect();
    let newest = events.len().saturating_sub(ROOMS as usize);
    Batch {
        rooms: events[newest..].iter().map(|event| info(event)).collect(),
        events,
        progress: vec![(Topic::Events, Partition(0), Offset(first + size))],
        ..Batch::default()
    }
}
