use schemas::ids::{EdgeId, EventId, SessionId, uuid_v7};
use schemas::message::{Content, RoomHistory};
use schemas::{CommandId, Event, ReplyTo};
use uuid::Uuid;

use super::*;

const ROOM: RoomId = RoomId(Uuid::from_u128(100));
const OWNER: UserId = UserId(Uuid::from_u128(1));
const ADMIN: UserId = UserId(Uuid::from_u128(2));
const MEMBER: UserId = UserId(Uuid::from_u128(3));
const OTHER: UserId = UserId(Uuid::from_u128(4));
const GONE: UserId = UserId(Uuid::from_u128(5));
const STRANGER: UserId = UserId(Uuid::from_u128(9));

fn settings(visibility: RoomVisibility) -> Settings {
    Settings {
        kind: RoomKind::Group,
        name: "Room".into(),
        handle: Some("room".into()),
        description: String::new(),
        icon: String::new(),
        visibility,
        history: RoomHistory::All,
    }
}

fn fold(state: Option<RoomState>, kind: EventKind) -> Option<RoomState> {
    let seq = state.as_ref().map_or(Seq(1), |state| state.info.head_seq.next());
    let event = Event {
        room: ROOM,
        seq,
        id: EventId::NIL,
        at: Timestamp(0),
        by: OWNER,
        command: CommandId::NIL,
        reply_to: None,
        received_us: 0,
        decided_us: 0,
        salt: [0; 16],
        hash: [0; 32],
        kind,
    };
    Some(RoomState::fold(state, &event).expect("the next event"))
}

fn about(user: UserId, change: MemberChange, role: Role) -> Membership {
    Membership { user, change, role }
}

/// A room with an owner, an admin, two members, and one who has gone.
fn room(visibility: RoomVisibility) -> RoomState {
    let came = [
        about(OWNER, MemberChange::Joined, Role::Owner),
        about(ADMIN, MemberChange::Added, Role::Admin),
        about(MEMBER, MemberChange::Added, Role::Member),
        about(OTHER, MemberChange::Added, Role::Member),
        about(GONE, MemberChange::Added, Role::Member),
        about(GONE, MemberChange::Left, Role::Member),
    ];
    let created = fold(None, EventKind::Created(settings(visibility)));
    came.into_iter().fold(created, |state, change| fold(state, EventKind::Member(change))).unwrap()
}

fn private() -> RoomState {
    room(RoomVisibility::Private)
}

fn public() -> RoomState {
    room(RoomVisibility::Public)
}

fn deleted() -> RoomState {
    fold(Some(public()), EventKind::Changed(RoomPatch { deleted: true, ..RoomPatch::default() })).unwrap()
}

fn direct() -> RoomState {
    let settings = Settings { kind: RoomKind::Direct, ..settings(RoomVisibility::Private) };
    let state = fold(None, EventKind::Created(settings));
    let state = fold(state, EventKind::Member(about(OWNER, MemberChange::Joined, Role::Member)));
    fold(state, EventKind::Member(about(MEMBER, MemberChange::Joined, Role::Member))).unwrap()
}

fn change(state: &RoomState, user: UserId, asked: Membership) -> Result<Decision, Rejection> {
    decide(Some(state), ROOM, user, Action::Membership(asked))
}

fn acts(user: UserId, change: MemberChange, role: Role) -> Result<Decision, Rejection> {
    act_on(user, change, role)
}

fn code(result: Result<Decision, Rejection>) -> RejectCode {
    result.expect_err("a rejection").code
}

fn text(reply_to: Option<Seq>) -> Message {
    Message { content: Content::text("hello"), reply_to }
}

fn command(id: CommandId, deadline: Timestamp) -> Command {
    Command {
        id,
        room: ROOM,
        user: OWNER,
        event_id: EventId::NIL,
        reply_to: ReplyTo { edge: EdgeId::NIL, session: SessionId::NIL },
        received_us: 0,
        deadline,
        action: Action::Send(text(None)),
    }
}

#[test]
fn an_id_is_a_uuid_v7_at_most_a_day_ahead() {
    let now = Timestamp(1_700_000_000_000);
    let id = |ms| CommandId(uuid_v7(ms, [1; 10]));
    let day_ms = 24 * 60 * 60 * 1_000;
    assert_eq!(admit(&command(id(now.0 + day_ms), now), now), Ok(()));
    assert_eq!(admit(&command(id(0), now), now), Ok(()), "however old: retries have no end");
    let ahead = admit(&command(id(now.0 + day_ms + 1), now), now);
    assert_eq!(ahead.unwrap_err().code, RejectCode::Invalid);
    let other_version = admit(&command(CommandId(Uuid::from_u128(7)), now), now);
    assert_eq!(other_version.unwrap_err().code, RejectCode::Invalid);
}

#[test]
fn a_command_past_its_deadline_is_void() {
    let now = Timestamp(1_700_000_000_000);
    let late = command(CommandId(uuid_v7(now.0, [1; 10])), Timestamp(now.0 - 1));
    assert_eq!(admit(&late, now).unwrap_err().code, RejectCode::Unavailable);
}

#[test]
fn a_group_begins_with_its_creation_its_owner_and_the_others_once_each() {
    let action =
        Action::Create { settings: settings(RoomVisibility::Public), members: vec![MEMBER, OWNER, MEMBER, OTHER] };
    let expected = Decision::Act {
        first: EventKind::Created(settings(RoomVisibility::Public)),
        then: [
            about(OWNER, MemberChange::Joined, Role::Owner),
            about(MEMBER, MemberChange::Added, Role::Member),
            about(OTHER, MemberChange::Added, Role::Member),
        ]
        .map(EventKind::Member)
        .into(),
    };
    assert_eq!(decide(None, ROOM, OWNER, action.clone()), Ok(expected));
    assert_eq!(code(decide(Some(&public()), ROOM, OWNER, action.clone())), RejectCode::Conflict);
    assert_eq!(code(decide(Some(&deleted()), ROOM, OWNER, action)), RejectCode::NotFound);
}

#[test]
fn a_group_cannot_begin_with_more_members_than_one_batch_takes() {
    let members = (0..=CREATE_MEMBERS_MAX as u128).map(|n| UserId(Uuid::from_u128(n))).collect();
    let action = Action::Create { settings: settings(RoomVisibility::Public), members };
    assert_eq!(code(decide(None, ROOM, OWNER, action)), RejectCode::Invalid);
}

#[test]
fn a_direct_room_is_of_exactly_two_and_asking_again_is_fine() {
    let create = |members: Vec<UserId>| Action::Create {
        settings: Settings { kind: RoomKind::Direct, ..settings(RoomVisibility::Public) },
        members,
    };
    let id = RoomId::direct(OWNER, MEMBER);
    let Ok(Decision::Act { first: EventKind::Created(made), then }) = decide(None, id, OWNER, create(vec![MEMBER]))
    else {
        panic!("a new room");
    };
    assert_eq!((made.visibility, made.handle), (RoomVisibility::Private, None), "nobody finds it");
    let both = [OWNER, MEMBER].map(|user| EventKind::Member(about(user, MemberChange::Joined, Role::Member)));
    assert_eq!(then, both);
    assert_eq!(decide(Some(&direct()), id, OWNER, create(vec![MEMBER])), Ok(Decision::Done));
    for members in [vec![], vec![OWNER], vec![MEMBER, OTHER]] {
        assert_eq!(code(decide(None, id, OWNER, create(members))), RejectCode::Invalid);
    }
    assert_eq!(code(decide(None, ROOM, OWNER, create(vec![MEMBER]))), RejectCode::Invalid, "another room's id");
}

#[test]
fn a_direct_room_stays_as_it_is() {
    let room = direct();
    for asked in [
        about(OTHER, MemberChange::Added, Role::Member),
        about(MEMBER, MemberChange::Removed, Role::Member),
        about(MEMBER, MemberChange::Role, Role::Owner),
        about(OWNER, MemberChange::Left, Role::Member),
    ] {
        assert_eq!(code(change(&room, OWNER, asked)), RejectCode::Forbidden, "{asked:?}");
    }
    assert_eq!(code(change(&room, OTHER, about(OTHER, MemberChange::Joined, Role::Member))), RejectCode::NotFound);
    let patch = RoomPatch { deleted: true, ..RoomPatch::default() };
    assert_eq!(code(decide(Some(&room), ROOM, OWNER, Action::Change(patch))), RejectCode::Forbidden);
}

#[test]
fn only_who_is_in_may_send() {
    let send = |state: Option<&RoomState>, user| decide(state, ROOM, user, Action::Send(text(None)));
    for user in [OWNER, ADMIN, MEMBER] {
        assert_eq!(send(Some(&private()), user), act(EventKind::Message(text(None))));
    }
    assert_eq!(code(send(Some(&private()), STRANGER)), RejectCode::NotAMember);
    assert_eq!(code(send(Some(&private()), GONE)), RejectCode::NotAMember);
    assert_eq!(code(send(Some(&deleted()), OWNER)), RejectCode::NotAMember);
    assert_eq!(code(send(None, OWNER)), RejectCode::NotAMember);
}

#[test]
fn a_content_has_a_type_and_a_bound() {
    let send = |content| decide(Some(&private()), ROOM, MEMBER, Action::Send(Message { content, reply_to: None }));
    let fits = "x".repeat(CONTENT_MAX_BYTES - "text/plain".len());
    assert!(send(Content::text(fits.clone())).is_ok());
    assert_eq!(code(send(Content::text(fits + "x"))), RejectCode::TooLarge);
    assert_eq!(code(send(Content { mime: String::new(), ..Content::text("x") })), RejectCode::Invalid);
}

#[test]
fn an_answer_names_an_event_that_exists() {
    let room = private();
    let send = |seq| decide(Some(&room), ROOM, MEMBER, Action::Send(text(Some(seq))));
    assert!(send(Seq(1)).is_ok() && send(room.info.head_seq).is_ok());
    assert_eq!(code(send(Seq::ZERO)), RejectCode::Invalid);
    assert_eq!(code(send(room.info.head_seq.next())), RejectCode::Invalid);
}

#[test]
fn people_join_public_rooms_alone() {
    let join = |state: &RoomState, user| change(state, user, about(user, MemberChange::Joined, Role::Owner));
    let joined = |user| acts(user, MemberChange::Joined, Role::Member);
    assert_eq!(join(&public(), STRANGER), joined(STRANGER), "as a member, whatever was asked");
    assert_eq!(join(&public(), GONE), joined(GONE));
    assert_eq!(join(&public(), MEMBER), Ok(Decision::Done));
    assert_eq!(code(join(&private(), STRANGER)), RejectCode::NotFound);
    assert_eq!(code(join(&private(), GONE)), RejectCode::NotFound);
    assert_eq!(code(join(&deleted(), STRANGER)), RejectCode::NotFound);
    let for_another = change(&public(), OWNER, about(STRANGER, MemberChange::Joined, Role::Member));
    assert_eq!(code(for_another), RejectCode::Invalid);
}

#[test]
fn the_last_owner_stays_while_others_are_in() {
    let leave = |state: &RoomState, user| change(state, user, about(user, MemberChange::Left, Role::Member));
    assert_eq!(leave(&private(), MEMBER), acts(MEMBER, MemberChange::Left, Role::Member));
    assert_eq!(code(leave(&private(), OWNER)), RejectCode::Conflict);
    let promoted = fold(Some(private()), EventKind::Member(about(ADMIN, MemberChange::Role, Role::Owner))).unwrap();
    assert_eq!(leave(&promoted, OWNER), acts(OWNER, MemberChange::Left, Role::Owner));
    let alone = fold(None, EventKind::Created(settings(RoomVisibility::Private)));
    let alone = fold(alone, EventKind::Member(about(OWNER, MemberChange::Joined, Role::Owner))).unwrap();
    assert_eq!(leave(&alone, OWNER), acts(OWNER, MemberChange::Left, Role::Owner));
    let removes_themselves = change(&private(), OWNER, about(OWNER, MemberChange::Removed, Role::Owner));
    assert_eq!(code(removes_themselves), RejectCode::Conflict, "by whatever name");
}

#[test]
fn leaving_twice_is_fine_and_tells_a_stranger_nothing() {
    let leave = |state: &RoomState, user| change(state, user, about(user, MemberChange::Left, Role::Member));
    assert_eq!(leave(&private(), GONE), Ok(Decision::Done));
    assert_eq!(leave(&public(), STRANGER), Ok(Decision::Done));
    assert_eq!(code(leave(&private(), STRANGER)), RejectCode::NotFound);
    assert_eq!(code(leave(&deleted(), MEMBER)), RejectCode::NotFound);
}

#[test]
fn admins_act_on_plain_members_and_owners_on_all() {
    let ok = [
        (ADMIN, about(STRANGER, MemberChange::Added, Role::Member)),
        (ADMIN, about(GONE, MemberChange::Added, Role::Member)),
        (ADMIN, about(MEMBER, MemberChange::Removed, Role::Member)),
        (ADMIN, about(ADMIN, MemberChange::Role, Role::Member)),
        (OWNER, about(STRANGER, MemberChange::Added, Role::Owner)),
        (OWNER, about(STRANGER, MemberChange::Added, Role::Admin)),
        (OWNER, about(MEMBER, MemberChange::Role, Role::Owner)),
    ];
    for (user, asked) in ok {
        assert_eq!(change(&private(), user, asked), act(EventKind::Member(asked)), "{user} {asked:?}");
    }
    let forbidden = [
        (MEMBER, about(STRANGER, MemberChange::Added, Role::Member)),
        (MEMBER, about(OTHER, MemberChange::Removed, Role::Member)),
        (MEMBER, about(MEMBER, MemberChange::Role, Role::Owner)),
        (ADMIN, about(STRANGER, MemberChange::Added, Role::Admin)),
        (ADMIN, about(MEMBER, MemberChange::Role, Role::Admin)),
        (ADMIN, about(ADMIN, MemberChange::Role, Role::Owner)),
        (ADMIN, about(OWNER, MemberChange::Role, Role::Member)),
        (ADMIN, about(OWNER, MemberChange::Removed, Role::Member)),
    ];
    for (user, asked) in forbidden {
        assert_eq!(code(change(&private(), user, asked)), RejectCode::Forbidden, "{user} {asked:?}");
    }
}

#[test]
fn a_put_on_someone_who_is_in_changes_their_role() {
    let put = |user, role| change(&private(), OWNER, about(user, MemberChange::Added, role));
    assert_eq!(put(MEMBER, Role::Admin), acts(MEMBER, MemberChange::Role, Role::Admin));
    assert_eq!(put(MEMBER, Role::Member), Ok(Decision::Done));
    assert_eq!(code(put(OWNER, Role::Member)), RejectCode::Conflict, "the last owner");
    let of_nobody = change(&private(), OWNER, about(STRANGER, MemberChange::Role, Role::Admin));
    assert_eq!(code(of_nobody), RejectCode::NotFound);
    assert_eq!(change(&private(), OWNER, about(GONE, MemberChange::Removed, Role::Member)), Ok(Decision::Done));
}

#[test]
fn a_removal_tells_the_role_that_was_held() {
    let removed = change(&private(), OWNER, about(ADMIN, MemberChange::Removed, Role::Member));
    assert_eq!(removed, acts(ADMIN, MemberChange::Removed, Role::Admin));
}

#[test]
fn settings_are_changed_by_owners_and_admins_and_only_if_they_differ() {
    let patch = |user, patch: RoomPatch| decide(Some(&private()), ROOM, user, Action::Change(patch));
    let name = |name: &str| RoomPatch { name: Some(name.into()), ..RoomPatch::default() };
    assert_eq!(patch(ADMIN, name("New")), act(EventKind::Changed(name("New"))));
    assert_eq!(patch(ADMIN, name("Room")), Ok(Decision::Done));
    assert_eq!(patch(ADMIN, RoomPatch { handle: Some("room".into()), ..RoomPatch::default() }), Ok(Decision::Done));
    assert!(matches!(
        patch(ADMIN, RoomPatch { handle: Some(String::new()), ..RoomPatch::default() }),
        Ok(Decision::Act { .. })
    ));
    assert_eq!(patch(OWNER, RoomPatch::default()), Ok(Decision::Done));
    assert_eq!(code(patch(MEMBER, name("New"))), RejectCode::Forbidden);
    let delete = RoomPatch { deleted: true, ..RoomPatch::default() };
    assert_eq!(code(patch(ADMIN, delete.clone())), RejectCode::Forbidden);
    assert_eq!(patch(OWNER, delete.clone()), act(EventKind::Changed(delete)));
}

#[test]
fn a_private_room_is_to_strangers_as_one_that_does_not_exist() {
    let actions = [
        Action::Send(text(None)),
        Action::Change(RoomPatch::default()),
        Action::Membership(about(STRANGER, MemberChange::Joined, Role::Member)),
        Action::Membership(about(STRANGER, MemberChange::Left, Role::Member)),
        Action::Membership(about(MEMBER, MemberChange::Removed, Role::Member)),
        Action::Membership(about(STRANGER, MemberChange::Added, Role::Owner)),
        Action::Membership(about(MEMBER, MemberChange::Role, Role::Admin)),
    ];
    for action in actions {
        let none = decide(None, ROOM, STRANGER, action.clone());
        assert_eq!(decide(Some(&private()), ROOM, STRANGER, action.clone()), none, "{action:?}");
        assert_eq!(decide(Some(&deleted()), ROOM, STRANGER, action.clone()), none, "{action:?}");
    }
    let of_public = change(&public(), STRANGER, about(MEMBER, MemberChange::Removed, Role::Member));
    assert_eq!(code(of_public), RejectCode::NotAMember);
}
