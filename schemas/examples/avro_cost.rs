//! What Avro costs on our own records, beside JSON: `cargo run -p schemas --example avro_cost`. The figures and what
//! follows from them stand in docs/decisions/0001-avro-cost.md.

use std::hint::black_box;
use std::time::{Duration, Instant};

use schemas::ids::{EdgeId, EventId, SessionId, uuid_v7};
use schemas::message::{Content, MemberChange, Membership, Message, Role};
use schemas::{Action, Command, CommandId, Event, EventKind, Record, ReplyTo, RoomId, Seq, Timestamp, UserId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

fn main() {
    println!(
        "{:<24} {:>6} {:>10} {:>10}   {:>6} {:>10} {:>10}",
        "", "Avro B", "encode ns", "decode ns", "JSON B", "encode ns", "decode ns"
    );
    let short = Message { content: Content::text("See you at eight in front of the station?"), reply_to: None };
    let long = Message { content: Content::text("long text ".repeat(200)), reply_to: Some(Seq(41)) };
    let joined = Membership { user: UserId(Uuid::from_u128(5)), change: MemberChange::Joined, role: Role::Member };
    row("event: 41 B of text", &event(EventKind::Message(short.clone())));
    row("event: 2,000 B of text", &event(EventKind::Message(long)));
    row("event: membership", &event(EventKind::Member(joined)));
    row("command: 41 B of text", &command(Action::Send(short.clone())));
    let kind = EventKind::Message(short);
    let hash = nanos(|| Event::chain(&[1; 32], Seq(9), &[2; 16], black_box(&kind)));
    println!("{:<24} {:>17.0} ns, for comparison", "the running hash", hash);
}

fn event(kind: EventKind) -> Event {
    Event {
        room: RoomId(Uuid::from_u128(1 << 100)),
        seq: Seq(123_456),
        id: EventId(uuid_v7(1_763_715_600_007, [7; 10])),
        at: Timestamp(1_763_715_600_007),
        by: UserId(Uuid::from_u128(3 << 90)),
        command: CommandId(uuid_v7(1_763_715_600_000, [8; 10])),
        reply_to: Some(reply_to()),
        received_us: 1_763_715_600_003_000,
        decided_us: 1_763_715_600_007_000,
        salt: [9; 16],
        hash: [200; 32],
        kind,
    }
}

fn command(action: Action) -> Command {
    Command {
        id: CommandId(uuid_v7(1_763_715_600_000, [8; 10])),
        room: RoomId(Uuid::from_u128(1 << 100)),
        user: UserId(Uuid::from_u128(3 << 90)),
        event_id: EventId(uuid_v7(1_763_715_600_007, [7; 10])),
        reply_to: reply_to(),
        received_us: 1_763_715_600_003_000,
        deadline: Timestamp(1_763_715_610_003),
        action,
    }
}

fn reply_to() -> ReplyTo {
    ReplyTo { edge: EdgeId(Uuid::from_u128(4 << 80)), session: SessionId(Uuid::from_u128(5 << 80)) }
}

fn row<T: Record + Serialize + DeserializeOwned>(name: &str, record: &T) {
    let avro = record.encode();
    let Ok(json) = serde_json::to_vec(record) else { return println!("{name}: no JSON") };
    println!(
        "{name:<24} {:>6} {:>10.0} {:>10.0}   {:>6} {:>10.0} {:>10.0}",
        avro.len(),
        nanos(|| black_box(record).encode()),
        nanos(|| T::decode(black_box(&avro))),
        json.len(),
        nanos(|| serde_json::to_vec(black_box(record))),
        nanos(|| serde_json::from_slice::<T>(black_box(&json))),
    );
}

/// Nanoseconds of one call: the mean of the quickest of many short rounds, as others share the machine.
#[expect(clippy::disallowed_methods, reason = "a measurement reads the machine's own clock")]
fn nanos<T>(mut call: impl FnMut() -> T) -> f64 {
    const CALLS: u32 = 200;
    let mut least = Duration::MAX;
    for _ in 0..1_000 {
        let start = Instant::now();
        for _ in 0..CALLS {
            black_box(call());
        }
        least = least.min(start.elapsed());
    }
    least.as_secs_f64() * 1e9 / f64::from(CALLS)
}
