//! `decide` and `fold` over random commands agree with a naive model that keeps plain lists and says who may do what
//! in another way.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::collections::{BTreeMap, HashMap, HashSet};

use common::{TestClock, TestEntropy, command, id, room, settings, user};
use ingest::rooms::{Rooms, Rows};
use ingest::turn::{LookedUp, Random, Surroundings, Turn};
use ingest::{Config, Metrics};
use proptest::prelude::*;
use schemas::message::{
    Content, MemberChange, Membership, Message, Role, RoomKind, RoomPatch, RoomVisibility, Settings,
};
use schemas::outcome::{Outcome, RejectCode};
use schemas::room::RoomState;
use schemas::user_event::{RoomEntry, UserEvent};
use schemas::{Action, Command, Event, EventKind, Offset, Partition, Record as _, RoomId, Seq, Topic, UserId};

/// A room as plain lists.
#[derive(Clone, Debug, Default)]
struct Plain {
    settings: Option<Settings>,
    roles: BTreeMap<UserId, Role>,
    ever: HashSet<UserId>,
    is_deleted: bool,
    head: u64,
}

#[derive(Debug, PartialEq)]
enum Expected {
    Events(Vec<EventKind>),
    Done,
    Rejected(RejectCode),
}

/// Rank of a role: who outranks whom, the owner highest.
fn rank(role: Role) -> u8 {
    match role {
        Role::Owner => 3,
        Role::Admin => 2,
        Role::Member => 1,
    }
}

impl Plain {
    fn rank(&self, user: UserId) -> u8 {
        self.roles.get(&user).map_or(0, |role| rank(*role))
    }

    fn owners(&self) -> usize {
        self.roles.values().filter(|role| **role == Role::Owner).count()
    }

    /// What a room that can't be seen, or is seen from outside, answers.
    fn closed(&self, user: UserId) -> Option<RejectCode> {
        let settings = self.settings.as_ref().filter(|_| !self.is_deleted);
        match settings {
            None => Some(RejectCode::NotFound),
            Some(_) if self.rank(user) > 0 => None,
            Some(settings) if settings.visibility == RoomVisibility::Public => Some(RejectCode::NotAMember),
            Some(_) => Some(RejectCode::NotFound),
        }
    }

    fn expects(&self, id: RoomId, by: UserId, action: &Action) -> Expected {
        use Expected::{Done, Events, Rejected};
        let member = |user, change, role| EventKind::Member(Membership { user, change, role });
        let one = |kind| Events(vec![kind]);
        let is_direct = self.settings.as_ref().is_some_and(|settings| settings.kind == RoomKind::Direct);
        match action {
            Action::Create { settings, members } => {
                if self.is_deleted {
                    return Rejected(RejectCode::NotFound);
                }
                let mut others: Vec<UserId> = Vec::new();
                for other in members {
                    if *other != by && !others.contains(other) {
                        others.push(*other);
                    }
                }
                let direct = settings.kind == RoomKind::Direct;
                if direct && (others.len() != 1 || RoomId::direct(by, others[0]) != id) {
                    return Rejected(RejectCode::Invalid);
                }
                match (self.settings.is_some(), direct) {
                    (true, true) => return Done,
                    (true, false) => return Rejected(RejectCode::Conflict),
                    _ => {}
                }
                let mut kept = settings.clone();
                let mut events = Vec::new();
                if direct {
                    (kept.handle, kept.visibility) = (None, RoomVisibility::Private);
                    events.push(member(by, MemberChange::Joined, Role::Member));
                    events.push(member(others[0], MemberChange::Joined, Role::Member));
                } else {
                    events.push(member(by, MemberChange::Joined, Role::Owner));
                    events.extend(others.into_iter().map(|other| member(other, MemberChange::Added, Role::Member)));
                }
                events.insert(0, EventKind::Created(kept));
                Events(events)
            }
            Action::Send(message) => {
                if self.is_deleted || self.rank(by) == 0 {
                    Rejected(RejectCode::NotAMember)
                } else if message.reply_to.is_some_and(|seq| !(1..=self.head).contains(&seq.0)) {
                    Rejected(RejectCode::Invalid)
                } else {
                    one(EventKind::Message(message.clone()))
                }
            }
            Action::Change(patch) => {
                let settings = match (self.closed(by), &self.settings) {
                    (Some(code), _) => return Rejected(code),
                    (None, settings) => settings.clone().unwrap(),
                };
                let needed = if patch.deleted { 3 } else { 2 };
                let name = patch.name.clone().unwrap_or(settings.name.clone());
                let visibility = patch.visibility.unwrap_or(settings.visibility);
                if is_direct || self.rank(by) < needed {
                    Rejected(RejectCode::Forbidden)
                } else if (name, visibility, patch.deleted) == (settings.name, settings.visibility, false) {
                    Done
                } else {
                    one(EventKind::Changed(patch.clone()))
                }
            }
            Action::Membership(Membership { user, change, role }) => {
                let target = self.rank(*user);
                let closed = self.closed(by);
                let goes = matches!(change, MemberChange::Left | MemberChange::Removed) && *user == by;
                if *user != by && matches!(change, MemberChange::Joined | MemberChange::Left) {
                    return Rejected(RejectCode::Invalid);
                }
                if *change == MemberChange::Joined {
                    return match closed {
                        None => Done,
                        Some(RejectCode::NotAMember) if !is_direct => one(member(by, *change, Role::Member)),
                        Some(_) => Rejected(RejectCode::NotFound),
                    };
                }
                if goes {
                    let knows = self.ever.contains(&by) && self.settings.is_some() && !self.is_deleted;
                    return match closed {
                        Some(RejectCode::NotAMember) => Done,
                        Some(_) if knows => Done,
                        Some(code) => Rejected(code),
                        None if is_direct => Rejected(RejectCode::Forbidden),
                        None if target == 3 && self.owners() == 1 && self.roles.len() > 1 => {
                            Rejected(RejectCode::Conflict)
                        }
                        None => one(member(by, MemberChange::Left, self.roles[user])),
                    };
                }
                if let Some(code) = closed {
                    return Rejected(code);
                }
                if is_direct || self.rank(by) < 2 {
                    return Rejected(RejectCode::Forbidden);
                }
                // An owner outranks all, an admin those below; nobody gives a rank that they do not outrank.
                let outranks = |rank: u8| self.rank(by) == 3 || rank < self.rank(by);
                match (change, target) {
                    (MemberChange::Removed, 0) => Done,
                    (MemberChange::Removed, _) if !outranks(target) => Rejected(RejectCode::Forbidden),
                    (MemberChange::Removed, _) => one(member(*user, MemberChange::Removed, self.roles[user])),
                    (MemberChange::Role, 0) => Rejected(RejectCode::NotFound),
                    (_, 0) if !outranks(rank(*role)) => Rejected(RejectCode::Forbidden),
                    (_, 0) => one(member(*user, MemberChange::Added, *role)),
                    _ if target == rank(*role) => Done,
                    _ if (*user != by || rank(*role) > target) && self.rank(by) < 3 => Rejected(RejectCode::Forbidden),
                    (_, 3) if self.owners() == 1 => Rejected(RejectCode::Conflict),
                    _ => one(member(*user, MemberChange::Role, *role)),
                }
            }
        }
    }

    fn apply(&mut self, kind: &EventKind) {
        self.head += 1;
        match kind {
            EventKind::Created(settings) => self.settings = Some(settings.clone()),
            EventKind::Member(Membership { user, change, role }) => {
                self.ever.insert(*user);
                if change.ends() {
                    self.roles.remove(user);
                } else {
                    self.roles.insert(*user, *role);
                }
            }
            EventKind::Changed(patch) => {
                let settings = self.settings.as_mut().unwrap();
                settings.name = patch.name.clone().unwrap_or(settings.name.clone());
                settings.visibility = patch.visibility.unwrap_or(settings.visibility);
                self.is_deleted |= patch.deleted;
            }
            EventKind::Message(_) | EventKind::Unknown => {}
        }
    }
}

fn visibility() -> impl Strategy<Value = RoomVisibility> {
    prop::sample::select(vec![RoomVisibility::Public, RoomVisibility::Private])
}

fn action() -> impl Strategy<Value = Action> {
    let change = prop::sample::select(vec![
        MemberChange::Joined,
        MemberChange::Added,
        MemberChange::Left,
        MemberChange::Removed,
        MemberChange::Role,
    ]);
    let role = prop::sample::select(vec![Role::Owner, Role::Admin, Role::Member]);
    let kind = prop::sample::select(vec![RoomKind::Direct, RoomKind::Group, RoomKind::Group]);
    prop_oneof![
        3 => (kind, visibility(), prop::collection::vec(person(), 0..3))
            .prop_map(|(kind, visibility, members)| Action::Create { settings: settings(kind, visibility), members }),
        3 => prop::option::of(0..8_u64).prop_map(|seq| {
            Action::Send(Message { content: Content::text("hello"), reply_to: seq.map(Seq) })
        }),
        8 => (person(), change, role)
            .prop_map(|(user, change, role)| Action::Membership(Membership { user, change, role })),
        2 => (prop::option::of("[ab]"), prop::option::of(visibility()), prop::bool::weighted(0.1))
            .prop_map(|(name, visibility, deleted)| {
                Action::Change(RoomPatch { name, visibility, deleted, ..RoomPatch::default() })
            }),
    ]
}

fn person() -> impl Strategy<Value = UserId> {
    (0..4_u128).prop_map(user)
}

fn place() -> impl Strategy<Value = RoomId> {
    prop_oneof![Just(room(1)), Just(room(2)), Just(RoomId::direct(user(0), user(1)))]
}

fn commands() -> impl Strategy<Value = Vec<Command>> {
    // Few ids, so that many are repeats, with another body or by another person.
    let one = (0..40_u64, person(), place(), action());
    prop::collection::vec(one.prop_map(|(n, user, room, action)| command(id(n), user, room, action)), 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 512, ..ProptestConfig::default() })]
    #[test]
    fn decisions_folded_agree_with_a_naive_model(
        commands in commands(),
        turn_sizes in prop::collection::vec(1..20_usize, 80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let _in_runtime = runtime.enter();
        let (clock, entropy) = (TestClock::new(), std::sync::Arc::new(TestEntropy::default()));
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let config = Config { ids_kept: 2, ..Config::default() };
        let around =
            Surroundings { partition: Partition(0), partitions: 1, clock: &*clock, config: &config, metrics: &metrics };
        let mut rooms = Rooms::new(Offset(0));
        for id in [room(1), room(2), RoomId::direct(user(0), user(1))] {
            rooms.load(id, Rows::default()).unwrap();
        }
        let mut random = Random::new(entropy);
        let mut plain: HashMap<RoomId, Plain> = HashMap::new();
        let mut accepted: HashMap<(RoomId, UserId, schemas::CommandId), (Seq, schemas::EventId)> = HashMap::new();
        let mut states: HashMap<RoomId, Option<RoomState>> = HashMap::new();
        let mut left = commands.as_slice();
        for size in turn_sizes {
            let (now, later) = left.split_at(size.min(left.len()));
            left = later;
            let known = LookedUp::new();
            let mut turn = Turn::new(&around, &mut rooms, &known, &mut random);
            for command in now {
                turn.take(command.clone()).unwrap();
            }
            let mut records = turn.end().records.into_iter().peekable();
            for command in now {
                let Command { room, user, .. } = *command;
                let model = plain.entry(room).or_default();
                let key = (room, user, command.id);
                let expected = model.expects(room, user, &command.action);
                let mut next = || records.next().expect("an answer to each command").2.value;
                if let Some(first) = accepted.get(&key) {
                    let done = Outcome::decode(&next()).unwrap().done.expect("the first outcome");
                    prop_assert_eq!((done.seq, done.id), *first);
                    continue;
                }
                match expected {
                    Expected::Events(kinds) => {
                        for (at, kind) in kinds.into_iter().enumerate() {
                            let event = Event::decode(&next()).unwrap();
                            model.apply(&kind);
                            prop_assert_eq!((event.seq, &event.kind), (Seq(model.head), &kind));
                            prop_assert_eq!((event.room, event.by, event.command), key);
                            prop_assert_eq!(event.reply_to.is_some(), at == 0, "one outcome");
                            prop_assert!((event.id == command.event_id) == (at == 0));
                            let state = states.entry(room).or_default();
                            let before = state.as_ref().map_or([0; 32], |state| state.info.hash);
                            prop_assert_eq!(event.hash, Event::chain(&before, event.seq, &event.salt, &kind));
                            *state = RoomState::fold(state.take(), &event);
                            if at == 0 {
                                accepted.insert(key, (event.seq, event.id));
                            }
                            if let EventKind::Member(change) = kind && change.change != MemberChange::Role {
                                let listed = UserEvent::decode(&next()).unwrap();
                                let entry = if change.change.begins() { RoomEntry::Joined } else { RoomEntry::Left };
                                prop_assert_eq!(listed, UserEvent { user: change.user, room, seq: event.seq, at: event.at, entry });
                            }
                        }
                    }
                    Expected::Done => {
                        let outcome = Outcome::decode(&next()).unwrap();
                        prop_assert_eq!(outcome.done.map(|done| done.seq), Some(Seq::ZERO));
                    }
                    Expected::Rejected(code) => {
                        let outcome = Outcome::decode(&next()).unwrap();
                        prop_assert_eq!(outcome.rejected.map(|rejected| rejected.code), Some(code), "{:?}", command.action);
                    }
                }
            }
            prop_assert!(records.next().is_none(), "nothing beside the answers");
        }
        for (id, model) in plain {
            let state = rooms.get(id).unwrap().state.clone();
            prop_assert_eq!(&state, states.get(&id).unwrap_or(&None), "the fold of the events written");
            let roles: BTreeMap<UserId, Role> = state.iter().flat_map(|state| &state.members)
                .filter(|(_, member)| member.is_in()).map(|(user, member)| (*user, member.role)).collect();
            prop_assert_eq!(&roles, &model.roles);
            if let Some(state) = state {
                prop_assert_eq!(state.info.member_count as usize, roles.len());
                prop_assert_eq!(Some(state.info.settings), model.settings);
            }
        }
    }
}

#[test]
fn topics_are_keyed_by_room_and_by_person() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let _in_runtime = runtime.enter();
    let clock = TestClock::new();
    let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
    let config = Config::default();
    let around =
        Surroundings { partition: Partition(3), partitions: 64, clock: &*clock, config: &config, metrics: &metrics };
    let mut rooms = Rooms::new(Offset(0));
    rooms.load(room(1), Rows::default()).unwrap();
    let (known, mut random) = (LookedUp::new(), Random::new(std::sync::Arc::new(TestEntropy::default())));
    let mut turn = Turn::new(&around, &mut rooms, &known, &mut random);
    turn.take(command(id(1), user(1), room(1), common::create(vec![user(2)]))).unwrap();
    for (topic, partition, record) in turn.end().records {
        match topic {
            Topic::Events => assert_eq!((partition, record.key), (Partition(3), *room(1).as_bytes())),
            Topic::UserEvents => assert_eq!(partition, Partition::of(&record.key, 64)),
            other => panic!("{other}"),
        }
    }
}
