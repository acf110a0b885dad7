//! Small forms that the laws are told in.

use std::sync::Arc;

use schemas::event::Event;
use schemas::ids::uuid_v7;
use schemas::message::{
    Content, MemberChange, Membership, Message, Role, RoomHistory, RoomKind, RoomVisibility, Settings,
};
use schemas::receipt::Receipt;
use schemas::room::{Interval, Member, RoomInfo};
use schemas::{CommandId, DeviceId, EventId, EventKind, RoomId, Seq, SessionId, Timestamp, UserId};
use uuid::Uuid;

/// Someone.
pub fn user(n: u128) -> UserId {
    UserId(Uuid::from_u128(0x1000 + n))
}

/// Somewhere.
pub fn room(n: u128) -> RoomId {
    RoomId(Uuid::from_u128(0x2000 + n))
}

/// Some device.
pub fn device(n: u128) -> DeviceId {
    DeviceId(Uuid::from_u128(0x3000 + n))
}

/// A command made at millisecond `n`.
pub fn command(n: u64) -> CommandId {
    CommandId(uuid_v7(n as i64, [7; 10]))
}

/// Millisecond `n`.
pub fn at(n: i64) -> Timestamp {
    Timestamp(n)
}

/// An event of command number `command`.
pub fn event(room: RoomId, seq: u64, by: UserId, command: CommandId, kind: EventKind) -> Arc<Event> {
    Arc::new(Event {
        room,
        seq: Seq(seq),
        id: EventId(Uuid::from_u128(room.0.as_u128() << 64 | u128::from(seq))),
        at: at(1_000 + seq as i64),
        by,
        command,
        reply_to: None,
        received_us: 1,
        decided_us: 2,
        salt: [3; 16],
        hash: [4; 32],
        kind,
    })
}

/// A message at `seq`, of a command of its own.
pub fn message(room: RoomId, seq: u64, by: UserId) -> Arc<Event> {
    let text = format!("message {seq}: “%_\\” 好");
    event(room, seq, by, command(seq), EventKind::Message(Message { content: Content::text(text), reply_to: None }))
}

/// A change of a membership.
pub fn membership(user: UserId, change: MemberChange) -> Membership {
    Membership { user, change, role: Role::Member }
}

/// A public room's row as of `head`.
pub fn info(id: RoomId, head: u64, name: &str, handle: Option<&str>) -> RoomInfo {
    RoomInfo {
        id,
        settings: Settings {
            kind: RoomKind::Group,
            name: name.to_owned(),
            handle: handle.map(str::to_owned),
            description: String::new(),
            icon: String::new(),
            visibility: RoomVisibility::Public,
            history: RoomHistory::All,
        },
        created_at: at(1),
        created_by: user(0),
        head_seq: Seq(head),
        hash: [head as u8; 32],
        last_activity_at: at(1_000 + head as i64),
        member_count: 1,
        deleted: false,
    }
}

/// A standing: in since `joined`, gone at `until`.
pub fn member(joined: u64, until: Option<u64>) -> Member {
    Member {
        role: Role::Member,
        intervals: vec![Interval { joined: Seq(joined), visible_from: Seq(1), until: until.map(Seq) }],
        version: Seq(until.unwrap_or(joined)),
    }
}

/// A step of receipts.
pub fn receipt(room: RoomId, user: UserId, delivered: u64, read: u64, time: i64) -> Arc<Receipt> {
    Arc::new(Receipt {
        room,
        user,
        session: SessionId::NIL,
        delivered_seq: Seq(delivered),
        read_seq: Seq(read),
        at: at(time),
    })
}
