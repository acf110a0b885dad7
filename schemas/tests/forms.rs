//! Every stored form: the round trip as a property, golden bytes, and random bytes that must not panic.

#![expect(clippy::expect_used, reason = "a form that can't be read back fails")]

use proptest::prelude::*;
use schemas::cluster::{self, Instance, Owned, PersonLimit, Used};
use schemas::command::{Action, Command, ReplyTo};
use schemas::dead_letter::DeadLetter;
use schemas::event::{Event, EventKind};
use schemas::ids::{CommandId, EdgeId, EventId, InstanceId, RoomId, SessionId, UserId};
use schemas::message::{
    Content, MemberChange, Membership, Message, Role, RoomHistory, RoomKind, RoomPatch, RoomVisibility, Settings,
};
use schemas::outcome::{Done, Outcome, RejectCode, Rejected};
use schemas::receipt::Receipt;
use schemas::signal::{Signal, SignalKind};
use schemas::user_event::{RoomEntry, UserEvent};
use schemas::{Offset, Partition, Record, Seq, Timestamp};
use uuid::Uuid;

macro_rules! uuid_of {
    ($name:ident, $type:ident) => {
        fn $name() -> impl Strategy<Value = $type> {
            any::<u128>().prop_map(|n| $type(Uuid::from_u128(n)))
        }
    };
}
uuid_of!(user, UserId);
uuid_of!(room, RoomId);
uuid_of!(event_id, EventId);
uuid_of!(command_id, CommandId);
uuid_of!(edge, EdgeId);
uuid_of!(session, SessionId);
uuid_of!(instance_id, InstanceId);

fn seq() -> impl Strategy<Value = Seq> {
    (0..u64::from(u32::MAX)).prop_map(Seq)
}

fn time() -> impl Strategy<Value = Timestamp> {
    (0..4_000_000_000_000_i64).prop_map(Timestamp)
}

fn reply_to() -> impl Strategy<Value = ReplyTo> {
    (edge(), session()).prop_map(|(edge, session)| ReplyTo { edge, session })
}

fn content() -> impl Strategy<Value = Content> {
    (".{0,20}", prop::option::of(".{0,200}"), prop::option::of("[A-Za-z0-9+/]{0,40}"), prop::option::of(".{0,9}"))
        .prop_map(|(mime, body, data, media)| Content { mime, body, data, media })
}

fn message() -> impl Strategy<Value = Message> {
    (content(), prop::option::of(seq())).prop_map(|(content, reply_to)| Message { content, reply_to })
}

fn membership() -> impl Strategy<Value = Membership> {
    let change = prop::sample::select(vec![
        MemberChange::Joined,
        MemberChange::Added,
        MemberChange::Left,
        MemberChange::Removed,
        MemberChange::Role,
    ]);
    let role = prop::sample::select(vec![Role::Owner, Role::Admin, Role::Member]);
    (user(), change, role).prop_map(|(user, change, role)| Membership { user, change, role })
}

fn visibility() -> impl Strategy<Value = RoomVisibility> {
    prop::sample::select(vec![RoomVisibility::Public, RoomVisibility::Private])
}

fn history() -> impl Strategy<Value = RoomHistory> {
    prop::sample::select(vec![RoomHistory::All, RoomHistory::SinceJoined])
}

fn settings() -> impl Strategy<Value = Settings> {
    let kind = prop::sample::select(vec![RoomKind::Direct, RoomKind::Group]);
    (kind, ".{0,9}", prop::option::of("[a-z]{1,9}"), ".{0,9}", ".{0,9}", visibility(), history()).prop_map(
        |(kind, name, handle, description, icon, visibility, history)| Settings {
            kind,
            name,
            handle,
            description,
            icon,
            visibility,
            history,
        },
    )
}

fn patch() -> impl Strategy<Value = RoomPatch> {
    let text = || prop::option::of(".{0,9}");
    (text(), text(), text(), text(), prop::option::of(visibility()), prop::option::of(history()), any::<bool>())
        .prop_map(|(name, handle, description, icon, visibility, history, deleted)| RoomPatch {
            name,
            handle,
            description,
            icon,
            visibility,
            history,
            deleted,
        })
}

fn command() -> impl Strategy<Value = Command> {
    let action = prop_oneof![
        (settings(), prop::collection::vec(user(), 0..4))
            .prop_map(|(settings, members)| Action::Create { settings, members }),
        message().prop_map(Action::Send),
        membership().prop_map(Action::Membership),
        patch().prop_map(Action::Change),
    ];
    (command_id(), room(), user(), event_id(), reply_to(), any::<i64>(), time(), action).prop_map(
        |(id, room, user, event_id, reply_to, received_us, deadline, action)| Command {
            id,
            room,
            user,
            event_id,
            reply_to,
            received_us,
            deadline,
            action,
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let kind = prop_oneof![
        settings().prop_map(EventKind::Created),
        message().prop_map(EventKind::Message),
        membership().prop_map(EventKind::Member),
        patch().prop_map(EventKind::Changed),
        Just(EventKind::Unknown),
    ];
    let ids = (room(), seq(), event_id(), time(), user(), command_id(), prop::option::of(reply_to()));
    (ids, any::<(i64, i64)>(), any::<[u8; 16]>(), any::<[u8; 32]>(), kind).prop_map(
        |((room, seq, id, at, by, command, reply_to), (received_us, decided_us), salt, hash, kind)| Event {
            room,
            seq,
            id,
            at,
            by,
            command,
            reply_to,
            received_us,
            decided_us,
            salt,
            hash,
            kind,
        },
    )
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let done = (seq(), event_id(), time()).prop_map(|(seq, id, at)| Done { seq, id, at });
    let rejected = (prop::sample::select(RejectCode::ALL.to_vec()), ".{0,20}", prop::option::of(0..99_999_u32))
        .prop_map(|(code, detail, retry_after_ms)| Rejected { code, detail, retry_after_ms });
    let ids = (room(), user(), command_id(), reply_to(), any::<i64>());
    (ids, prop::option::of(done), prop::option::of(rejected)).prop_map(
        |((room, user, command, reply_to, received_us), done, rejected)| Outcome {
            room,
            user,
            command,
            reply_to,
            received_us,
            done,
            rejected,
        },
    )
}

fn user_event() -> impl Strategy<Value = UserEvent> {
    (user(), room(), seq(), time(), any::<bool>()).prop_map(|(user, room, seq, at, joined)| UserEvent {
        user,
        room,
        seq,
        at,
        entry: if joined { RoomEntry::Joined } else { RoomEntry::Left },
    })
}

fn receipt() -> impl Strategy<Value = Receipt> {
    (room(), user(), session(), seq(), seq(), time()).prop_map(|(room, user, session, delivered_seq, read_seq, at)| {
        Receipt { room, user, session, delivered_seq, read_seq, at }
    })
}

fn signal() -> impl Strategy<Value = Signal> {
    let kind = prop::sample::select(vec![SignalKind::Typing, SignalKind::Online, SignalKind::Offline]);
    (room(), user(), session(), kind, time()).prop_map(|(room, user, session, kind, at)| Signal {
        room,
        user,
        session,
        kind,
        at,
    })
}

fn dead_letter() -> impl Strategy<Value = DeadLetter> {
    (".{0,9}", 0..99_u32, 0..99_u64, ".{0,20}", time(), any::<Vec<u8>>()).prop_map(
        |(topic, partition, offset, reason, at, value)| DeadLetter {
            topic,
            partition,
            offset: Offset(offset),
            reason,
            at,
            value,
        },
    )
}

fn instance() -> impl Strategy<Value = Instance> {
    let owned = (0..u64::MAX / 2, any::<u32>());
    let owned = owned.prop_map(|(epoch, partition)| Owned { epoch, partition: Partition(partition) });
    let role = prop::sample::select(cluster::Role::ALL.to_vec());
    let limit = prop::sample::select(vec![PersonLimit::Sends, PersonLimit::Sockets, PersonLimit::SignIns]);
    let used = (user(), limit, any::<u32>()).prop_map(|(user, limit, times)| Used { user, limit, times });
    let (owned, used) = (prop::collection::vec(owned, 0..9), prop::collection::vec(used, 0..9));
    (instance_id(), role, ".{0,20}", time(), time(), owned, used, any::<bool>()).prop_map(
        |(id, role, address, started_at, at, owned, used, leaving)| Instance {
            id,
            role,
            address,
            started_at,
            at,
            owned,
            used,
            leaving,
        },
    )
}

/// Round trip, and that no other bytes than a whole record decode.
fn holds<T: Record + PartialEq + std::fmt::Debug>(form: &T, noise: &[u8]) {
    let bytes = form.encode();
    assert!(T::is(&bytes));
    assert_eq!(&T::decode(&bytes).expect("what was written can be read"), form);
    assert!(T::decode(&bytes[..bytes.len() - 1]).is_err(), "a cut record is refused");
    let mut broken = bytes[..10].to_vec();
    broken.extend_from_slice(noise);
    // Whatever follows a right header: a record or an error, never a panic.
    drop(T::decode(&broken));
    drop(T::decode(noise));
}

proptest! {
    #[test]
    fn every_form_survives_the_round_trip_and_noise_is_refused(
        command in command(),
        event in event(),
        outcome in outcome(),
        user_event in user_event(),
        receipt in receipt(),
        signal in signal(),
        dead_letter in dead_letter(),
        instance in instance(),
        noise in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        holds(&command, &noise);
        holds(&event, &noise);
        holds(&outcome, &noise);
        holds(&user_event, &noise);
        holds(&receipt, &noise);
        holds(&signal, &noise);
        holds(&dead_letter, &noise);
        holds(&instance, &noise);
    }
}

/// Golden bytes: what was written once can be read for ever. A change here needs a decision about old records.
#[test]
fn the_bytes_of_each_form_never_change() {
    let id = |n: u128| Uuid::from_u128(n);
    let reply_to = ReplyTo { edge: EdgeId(id(1)), session: SessionId(id(2)) };
    let message = Message { content: Content::text("hi"), reply_to: Some(Seq(3)) };
    let command = Command {
        id: CommandId(id(3)),
        room: RoomId(id(4)),
        user: UserId(id(5)),
        event_id: EventId(id(6)),
        reply_to,
        received_us: 7,
        deadline: Timestamp(8),
        action: Action::Send(message.clone()),
    };
    let event = Event {
        room: RoomId(id(4)),
        seq: Seq(9),
        id: EventId(id(6)),
        at: Timestamp(10),
        by: UserId(id(5)),
        command: CommandId(id(3)),
        reply_to: Some(reply_to),
        received_us: 7,
        decided_us: 11,
        salt: [12; 16],
        hash: [13; 32],
        kind: EventKind::Message(message),
    };
    let outcome = Outcome {
        room: RoomId(id(4)),
        user: UserId(id(5)),
        command: CommandId(id(3)),
        reply_to,
        received_us: 7,
        done: Some(Done { seq: Seq(9), id: EventId(id(6)), at: Timestamp(10) }),
        rejected: None,
    };
    let user_event =
        UserEvent { user: UserId(id(5)), room: RoomId(id(4)), seq: Seq(9), at: Timestamp(10), entry: RoomEntry::Left };
    let receipt = Receipt {
        room: RoomId(id(4)),
        user: UserId(id(5)),
        session: SessionId(id(2)),
        delivered_seq: Seq(9),
        read_seq: Seq(8),
        at: Timestamp(10),
    };
    let signal = Signal {
        room: RoomId(id(4)),
        user: UserId(id(5)),
        session: SessionId(id(2)),
        kind: SignalKind::Online,
        at: Timestamp(10),
    };
    let dead_letter = DeadLetter {
        topic: "events".into(),
        partition: 1,
        offset: Offset(9),
        reason: "broken".into(),
        at: Timestamp(10),
        value: vec![1, 2, 3],
    };
    let instance = Instance {
        id: InstanceId(id(7)),
        role: cluster::Role::Fanout,
        address: "10.0.0.7:7400".into(),
        started_at: Timestamp(9),
        at: Timestamp(10),
        owned: vec![Owned { epoch: 3, partition: Partition(5) }],
        used: vec![Used { user: UserId(id(2)), limit: PersonLimit::SignIns, times: 4 }],
        leaving: false,
    };
    let lines = [
        ("command", command.encode()),
        ("event", event.encode()),
        ("outcome", outcome.encode()),
        ("user_event", user_event.encode()),
        ("receipt", receipt.encode()),
        ("signal", signal.encode()),
        ("dead_letter", dead_letter.encode()),
        ("instance", instance.encode()),
    ]
    .map(|(name, bytes)| {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{name} {hex}\n")
    })
    .concat();
    assert_eq!(lines, include_str!("golden.txt"));
}
