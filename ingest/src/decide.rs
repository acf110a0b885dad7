//! What a command does to a room (I1): permissions, no-ops, and the events that it makes. Pure: no clock, no ids, no
//! seqs; the turn gives those. Whether a command has acted before is dedup's matter (I4).
//!
//! # Who may do what
//!
//! | | owner | admin | member |
//! |---|---|---|---|
//! | send, leave | yes | yes | yes |
//! | add or remove a plain member | yes | yes | – |
//! | change the settings | yes | yes | – |
//! | add as, make or unmake an owner or admin, remove one | yes | only step down themselves | – |
//! | delete the room | yes | – | – |
//!
//! So an admin never acts on another admin or on an owner, and nobody can raise themselves. The last owner can't leave
//! or step down while others are in; the last person may go. In a direct room both are plain members for good: nobody
//! joins, leaves, is added, removed or given a role, and nothing is changed.
//!
//! Who is not in a private room is told what they would be told if it did not exist.

use std::collections::HashSet;

use schemas::limits::{CONTENT_MAX_BYTES, CREATE_MEMBERS_MAX, ID_AHEAD_MAX};
use schemas::message::{MemberChange, Membership, Message, Role, RoomKind, RoomPatch, RoomVisibility, Settings};
use schemas::outcome::RejectCode;
use schemas::room::{Member, RoomState};
use schemas::user_event::RoomEntry;
use schemas::{Action, Command, EventKind, RoomId, Seq, Timestamp, UserId};

/// What a command that is not rejected does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It makes these events, in this order. (Apart, so that the ordinary command with its one event needs no list.)
    Act {
        /// The event that bears the command's own event id.
        first: EventKind,
        /// What follows of it.
        then: Vec<EventKind>,
    },
    /// Nothing: it was so already.
    Done,
}

/// Why a command is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Which kind.
    pub code: RejectCode,
    /// For people.
    pub detail: &'static str,
    /// When to try again under the same id, milliseconds.
    pub retry_after_ms: Option<u32>,
}

impl Rejection {
    /// A rejection without advice when to try again.
    pub const fn new(code: RejectCode, detail: &'static str) -> Self {
        Self { code, detail, retry_after_ms: None }
    }
}

const NOT_FOUND: Rejection = Rejection::new(RejectCode::NotFound, "no such room");
const NOT_A_MEMBER: Rejection = Rejection::new(RejectCode::NotAMember, "you are not in this room");
const ROLE_NEEDED: Rejection = Rejection::new(RejectCode::Forbidden, "your role does not allow this");
const DIRECT_IS_FIXED: Rejection = Rejection::new(RejectCode::Forbidden, "a direct room stays as it is");
const LAST_OWNER: Rejection =
    Rejection::new(RejectCode::Conflict, "the last owner cannot go: make someone else an owner first");

/// Whether a command may be looked at, whatever the room's state.
///
/// # Errors
/// `invalid` if its id is no UUIDv7 or too far ahead (protocol.md), `unavailable` past its deadline (I4).
pub fn admit(command: &Command, now: Timestamp) -> Result<(), Rejection> {
    match command.id.unix_ms() {
        Some(made) if made <= now.after(ID_AHEAD_MAX).0 => {}
        Some(_) => return Err(Rejection::new(RejectCode::Invalid, "the id is more than 24 h ahead of server time")),
        None => return Err(Rejection::new(RejectCode::Invalid, "the id is no UUIDv7")),
    }
    // I4: who waited for the outcome has been told that it is unknown; acting now could overtake their next try.
    if now > command.deadline {
        return Err(Rejection::new(RejectCode::Unavailable, "the command came too late and is void"));
    }
    Ok(())
}

/// What `user` asking for `action` does to a room. `state` is `None` where there has never been such a room.
///
/// # Errors
/// A rejection: this attempt changes nothing.
pub fn decide(state: Option<&RoomState>, room: RoomId, user: UserId, action: Action) -> Result<Decision, Rejection> {
    let live = state.filter(|state| !state.info.deleted);
    match action {
        Action::Send(message) => send(live, user, message),
        Action::Membership(asked) => membership(live, user, asked),
        Action::Change(patch) => change(live, user, patch),
        Action::Create { .. } if state.is_some() && live.is_none() => Err(NOT_FOUND),
        Action::Create { settings, members } => create(live, room, user, settings, &members),
    }
}

/// Whose list of rooms an event changes, and how.
pub fn list_entry(kind: &EventKind) -> Option<(UserId, RoomEntry)> {
    let EventKind::Member(Membership { user, change, .. }) = kind else { return None };
    match change {
        MemberChange::Joined | MemberChange::Added => Some((*user, RoomEntry::Joined)),
        MemberChange::Left | MemberChange::Removed => Some((*user, RoomEntry::Left)),
        MemberChange::Role => None,
    }
}

fn act(kind: EventKind) -> Result<Decision, Rejection> {
    Ok(Decision::Act { first: kind, then: Vec::new() })
}

fn act_on(user: UserId, change: MemberChange, role: Role) -> Result<Decision, Rejection> {
    act(EventKind::Member(Membership { user, change, role }))
}

fn is_direct(room: &RoomState) -> bool {
    room.info.settings.kind == RoomKind::Direct
}

fn is_public(room: &RoomState) -> bool {
    room.info.settings.visibility == RoomVisibility::Public
}

/// The room and the standing of someone who is in it.
fn standing(state: Option<&RoomState>, user: UserId) -> Result<(&RoomState, &Member), Rejection> {
    let room = state.ok_or(NOT_FOUND)?;
    match room.member(user) {
        Some(member) => Ok((room, member)),
        None if is_public(room) => Err(NOT_A_MEMBER),
        None => Err(NOT_FOUND),
    }
}

/// As [`standing`], for what only owners and admins of a group do.
fn office(state: Option<&RoomState>, user: UserId) -> Result<(&RoomState, Role), Rejection> {
    let (room, member) = standing(state, user)?;
    match member.role {
        _ if is_direct(room) => Err(DIRECT_IS_FIXED),
        Role::Member => Err(ROLE_NEEDED),
        role => Ok((room, role)),
    }
}

fn create(
    state: Option<&RoomState>,
    room: RoomId,
    user: UserId,
    mut settings: Settings,
    members: &[UserId],
) -> Result<Decision, Rejection> {
    if members.len() > CREATE_MEMBERS_MAX {
        return Err(Rejection::new(RejectCode::Invalid, "too many members at once: add more later"));
    }
    let mut seen = HashSet::from([user]);
    let others = members.iter().copied().filter(|other| seen.insert(*other));
    let member = |user, change, role| EventKind::Member(Membership { user, change, role });
    let then = match settings.kind {
        RoomKind::Direct => {
            let others: Vec<UserId> = others.collect();
            let [peer] = others[..] else {
                return Err(Rejection::new(RejectCode::Invalid, "a direct room is one of two people"));
            };
            if room != RoomId::direct(user, peer) {
                return Err(Rejection::new(RejectCode::Invalid, "not the id of these two people's room"));
            }
            if state.is_some() {
                return Ok(Decision::Done);
            }
            settings.visibility = RoomVisibility::Private;
            settings.handle = None;
            [user, peer].map(|user| member(user, MemberChange::Joined, Role::Member)).into()
        }
        RoomKind::Group => {
            if state.is_some() {
                return Err(Rejection::new(RejectCode::Conflict, "the room exists"));
            }
            let mut then = vec![member(user, MemberChange::Joined, Role::Owner)];
            then.extend(others.map(|other| member(other, MemberChange::Added, Role::Member)));
            then
        }
    };
    Ok(Decision::Act { first: EventKind::Created(settings), then })
}

fn send(state: Option<&RoomState>, user: UserId, message: Message) -> Result<Decision, Rejection> {
    let room = state.filter(|room| room.member(user).is_some()).ok_or(NOT_A_MEMBER)?;
    if message.content.size_bytes() > CONTENT_MAX_BYTES {
        return Err(Rejection::new(RejectCode::TooLarge, "the content is over 64 KiB"));
    }
    if message.content.mime.is_empty() {
        return Err(Rejection::new(RejectCode::Invalid, "the content has no type"));
    }
    if message.reply_to.is_some_and(|seq| seq == Seq::ZERO || seq > room.info.head_seq) {
        return Err(Rejection::new(RejectCode::Invalid, "reply_to names no event of this room"));
    }
    act(EventKind::Message(message))
}

fn membership(state: Option<&RoomState>, user: UserId, asked: Membership) -> Result<Decision, Rejection> {
    let own = asked.user == user;
    match asked.change {
        MemberChange::Joined | MemberChange::Left if !own => {
            Err(Rejection::new(RejectCode::Invalid, "people join and leave for themselves alone"))
        }
        MemberChange::Joined => join(state, user),
        MemberChange::Left => leave(state, user),
        MemberChange::Removed if own => leave(state, user),
        MemberChange::Removed => remove(state, user, asked.user),
        MemberChange::Added | MemberChange::Role => set_role(state, user, asked),
    }
}

fn join(state: Option<&RoomState>, user: UserId) -> Result<Decision, Rejection> {
    let room = state.ok_or(NOT_FOUND)?;
    if room.member(user).is_some() {
        return Ok(Decision::Done);
    }
    if is_direct(room) || !is_public(room) {
        return Err(NOT_FOUND);
    }
    act_on(user, MemberChange::Joined, Role::Member)
}

fn leave(state: Option<&RoomState>, user: UserId) -> Result<Decision, Rejection> {
    let room = state.ok_or(NOT_FOUND)?;
    let Some(member) = room.member(user) else {
        // Who was in it knows of it; a stranger must not learn that a private room exists.
        let knows = is_public(room) || room.members.contains_key(&user);
        return if knows { Ok(Decision::Done) } else { Err(NOT_FOUND) };
    };
    if is_direct(room) {
        return Err(DIRECT_IS_FIXED);
    }
    if member.role == Role::Owner && room.info.member_count > 1 && room.owner_count() == 1 {
        return Err(LAST_OWNER);
    }
    act_on(user, MemberChange::Left, member.role)
}

fn remove(state: Option<&RoomState>, user: UserId, whom: UserId) -> Result<Decision, Rejection> {
    let (room, role) = office(state, user)?;
    let Some(target) = room.member(whom) else { return Ok(Decision::Done) };
    if role != Role::Owner && target.role != Role::Member {
        return Err(ROLE_NEEDED);
    }
    act_on(whom, MemberChange::Removed, target.role)
}

/// Adds someone, or gives someone who is in another role: a PUT means both.
fn set_role(state: Option<&RoomState>, user: UserId, asked: Membership) -> Result<Decision, Rejection> {
    let (room, my_role) = office(state, user)?;
    let may_appoint = my_role == Role::Owner;
    match room.member(asked.user) {
        None if asked.change == MemberChange::Role => {
            Err(Rejection::new(RejectCode::NotFound, "they are not in this room"))
        }
        None if asked.role != Role::Member && !may_appoint => Err(ROLE_NEEDED),
        None => act_on(asked.user, MemberChange::Added, asked.role),
        Some(target) if target.role == asked.role => Ok(Decision::Done),
        Some(target) => {
            let steps_down = asked.user == user && asked.role > my_role;
            if !may_appoint && !steps_down {
                return Err(ROLE_NEEDED);
            }
            if target.role == Role::Owner && room.owner_count() == 1 {
                return Err(LAST_OWNER);
            }
            act_on(asked.user, MemberChange::Role, asked.role)
        }
    }
}

fn change(state: Option<&RoomState>, user: UserId, patch: RoomPatch) -> Result<Decision, Rejection> {
    let (room, role) = office(state, user)?;
    if patch.deleted && role != Role::Owner {
        return Err(ROLE_NEEDED);
    }
    if changes_nothing(&patch, &room.info.settings) { Ok(Decision::Done) } else { act(EventKind::Changed(patch)) }
}

fn changes_nothing(patch: &RoomPatch, settings: &Settings) -> bool {
    let same = |new: &Option<String>, old: &str| new.as_deref().is_none_or(|new| new == old);
    !patch.deleted
        && same(&patch.name, &settings.name)
        && same(&patch.description, &settings.description)
        && same(&patch.icon, &settings.icon)
        && same(&patch.handle, settings.handle.as_deref().unwrap_or_default())
        && patch.visibility.is_none_or(|new| new == settings.visibility)
        && patch.history.is_none_or(|new| new == settings.history)
}

#[cfg(test)]
mod tests;
