//! What one message costs in ingest, without log and store: `cargo run -p ingest --example turn_cost`. Reads the
//! commands, decides, folds and writes the events as the worker does, for 50 rooms of 200 people each.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a measurement that can't go on ends")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{TestClock, TestEntropy, command, create, id, room, send, user};
use ingest::rooms::{Rooms, Rows};
use ingest::turn::{LookedUp, Random, Surroundings, Turn};
use ingest::{Config, Metrics};
use schemas::{Command, Event, Offset, Partition, Record as _, Topic};

const ROOMS: u128 = 50;
const PEOPLE: u128 = 200;
const TURNS: u64 = 1_000;
const MESSAGES: u64 = 100;
const MESSAGES_F: f64 = 100.0;

#[expect(clippy::disallowed_methods, reason = "a measurement reads the machine's own clock")]
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let (clock, metrics) = (TestClock::new(), Metrics::new(&prometheus::Registry::new()).unwrap());
    let config = Config { unarchived_max_events: u64::MAX, unarchived_max_bytes: u64::MAX, ..Config::default() };
    let around =
        Surroundings { partition: Partition(0), partitions: 1, clock: &*clock, config: &config, metrics: &metrics };
    let (mut rooms, mut random) = (Rooms::new(Offset(0)), Random::new(Arc::new(TestEntropy::default())));
    let known = LookedUp::new();
    for n in 0..ROOMS {
        rooms.load(room(n), Rows::default()).unwrap();
    }
    let mut turn = Turn::new(&around, &mut rooms, &known, &mut random);
    for n in 0..ROOMS {
        turn.take(command(id(0), user(0), room(n), create((1..PEOPLE).map(user).collect()))).unwrap();
    }
    let mut end = Offset(0);
    let mut spent: [Vec<Duration>; 4] = Default::default();
    drop(turn.end());
    for number in 0..TURNS {
        let arrived: Vec<_> = (0..MESSAGES)
            .map(|n| {
                let message = number * MESSAGES + n;
                let place = room(u128::from(message) % ROOMS);
                let author = user(u128::from(message) * 7 % PEOPLE);
                command(id(message + 1), author, place, send("See you at eight in front of the station?")).encode()
            })
            .collect();
        let start = Instant::now();
        let commands: Vec<Command> = arrived.iter().map(|bytes| Command::decode(bytes).unwrap()).collect();
        spent[0].push(start.elapsed());
        let start = Instant::now();
        let mut turn = Turn::new(&around, &mut rooms, &known, &mut random);
        for command in commands {
            turn.take(command).unwrap();
        }
        let decided = turn.end();
        spent[1].push(start.elapsed());
        assert_eq!(decided.backlog.events, MESSAGES);
        end.0 += MESSAGES;
        rooms.append(end, decided.backlog);
        rooms.archived(end);
        for (room, user) in decided.crowded {
            rooms.forget_ids(room, user, config.ids_kept);
        }
        // What of that was writing and hashing, by doing it again.
        let records = decided.records.iter().filter(|(topic, ..)| *topic == Topic::Events);
        let events: Vec<Event> = records.map(|(_, _, record)| Event::decode(&record.value).unwrap()).collect();
        let start = Instant::now();
        for event in &events {
            std::hint::black_box(event.encode());
        }
        spent[2].push(start.elapsed());
        let start = Instant::now();
        for event in &events {
            std::hint::black_box(Event::chain(&event.hash, event.seq, &event.salt, &event.kind));
        }
        spent[3].push(start.elapsed());
    }
    // A quick turn, which was not interrupted: others share the machine.
    let [reading, deciding, writing, hashing] = spent.map(|mut turns| {
        turns.sort();
        turns[turns.len() / 10].as_secs_f64() * 1e6 / MESSAGES_F
    });
    println!("read the command (Avro)      {reading:>6.2} µs");
    println!("decide, fold, write          {deciding:>6.2} µs");
    println!("  of it, write (Avro)        {writing:>6.2} µs");
    println!("  of it, the running hash    {hashing:>6.2} µs");
    println!("rooms, bytes in memory       {:?}", rooms.loaded());
}
