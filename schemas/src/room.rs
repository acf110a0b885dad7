//! A room's state as the fold of its events (I1), and the one place that says who sees which seq. Pure.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::event::{Event, EventKind, Hash};
use crate::ids::{RoomId, UserId};
use crate::message::{MemberChange, Membership, Role, RoomHistory, RoomPatch, Settings};
use crate::seq::Seq;

/// One stay of a person in a room, by seq.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// The event by which they came in.
    pub joined: Seq,
    /// The first event that they may see because of this stay: 1 where the room showed its history to newcomers.
    pub visible_from: Seq,
    /// The event by which they went, the last that they may see; `None` while they are in.
    pub until: Option<Seq>,
}

/// A person's standing in a room, the fold of the membership events about them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Role now or, for someone who has gone, at the end.
    pub role: Role,
    /// Every stay, in order; only the last can be open.
    pub intervals: Vec<Interval>,
    /// The event that it was last changed by (I5).
    pub version: Seq,
}

impl Member {
    /// Whether they are in the room now.
    pub fn is_in(&self) -> bool {
        self.intervals.last().is_some_and(|stay| stay.until.is_none())
    }

    /// The event by which they last came in.
    pub fn joined_seq(&self) -> Seq {
        self.intervals.last().map_or(Seq::ZERO, |stay| stay.joined)
    }

    /// The event by which the first stay began that goes on after this seq: whoever was delivered up to there hears of
    /// that stay and of all later ones, also after they have gone and come back.
    pub fn joined_seq_after(&self, seq: Seq) -> Seq {
        let goes_on = |stay: &&Interval| stay.until.is_none_or(|until| until > seq);
        self.intervals.iter().find(goes_on).map_or(self.joined_seq(), |stay| stay.joined)
    }

    /// Whether they may see this event.
    pub fn sees(&self, seq: Seq) -> bool {
        self.intervals.iter().any(|stay| stay.visible_from <= seq && stay.until.is_none_or(|until| seq <= until))
    }

    /// The last event that they may see in a room with this head.
    pub fn visible_head(&self, head: Seq) -> Seq {
        self.intervals.iter().map(|stay| stay.until.unwrap_or(head)).max().unwrap_or(Seq::ZERO).min(head)
    }

    /// The first event that they may see.
    pub fn visible_first(&self) -> Seq {
        self.intervals.iter().map(|stay| stay.visible_from).min().unwrap_or(Seq(1))
    }

    /// Folds one membership event about this person. Events at or below the version change nothing, so that rows
    /// newer than the event that is replayed onto them stay as they are (I5).
    pub fn fold(standing: Option<Self>, seq: Seq, change: Membership, history: RoomHistory) -> Self {
        let mut member = standing.unwrap_or(Self { role: change.role, intervals: Vec::new(), version: Seq::ZERO });
        if seq <= member.version {
            return member;
        }
        member.version = seq;
        match change.change {
            MemberChange::Joined | MemberChange::Added => {
                if !member.is_in() {
                    let visible_from = match history {
                        RoomHistory::All => Seq(1),
                        RoomHistory::SinceJoined => seq,
                    };
                    member.intervals.push(Interval { joined: seq, visible_from, until: None });
                }
                member.role = change.role;
            }
            MemberChange::Left | MemberChange::Removed => {
                if let Some(stay) = member.intervals.last_mut().filter(|stay| stay.until.is_none()) {
                    stay.until = Some(seq);
                }
            }
            MemberChange::Role => member.role = change.role,
        }
        member
    }
}

/// What is known of a room beside its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomInfo {
    /// Which room.
    pub id: RoomId,
    /// Its settings now.
    pub settings: Settings,
    /// When it was created.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: UserId,
    /// Its newest event.
    pub head_seq: Seq,
    /// Running hash at `head_seq`.
    #[serde(with = "serde_bytes")]
    pub hash: Hash,
    /// Time of the newest event.
    pub last_activity_at: Timestamp,
    /// How many are in.
    pub member_count: u32,
    /// Gone; its seqs stay used.
    pub deleted: bool,
}

impl RoomInfo {
    /// Folds one event, except for `member_count`: that needs to know who was in.
    /// `None` where a room begins otherwise than by its `Created` event, or the event is not the next one.
    pub fn fold(info: Option<Self>, event: &Event) -> Option<Self> {
        let mut info = match (info, &event.kind) {
            (None, EventKind::Created(settings)) => Self {
                id: event.room,
                settings: settings.clone(),
                created_at: event.at,
                created_by: event.by,
                head_seq: Seq::ZERO,
                hash: [0; 32],
                last_activity_at: event.at,
                member_count: 0,
                deleted: false,
            },
            (Some(info), _) => info,
            (None, _) => return None,
        };
        if event.seq != info.head_seq.next() {
            return None;
        }
        info.head_seq = event.seq;
        info.hash = event.hash;
        info.last_activity_at = event.at;
        if let EventKind::Changed(patch) = &event.kind {
            apply(&mut info.settings, patch);
            info.deleted |= patch.deleted;
        }
        Some(info)
    }
}

/// A room's whole state: what ingest decides on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomState {
    /// All but the members.
    pub info: RoomInfo,
    /// Everyone who is or was in.
    pub members: HashMap<UserId, Member>,
}

impl RoomState {
    /// Folds one event. `None` where it is not the room's next one: the log is broken or was read wrongly.
    pub fn fold(state: Option<Self>, event: &Event) -> Option<Self> {
        let (info, mut members) = match state {
            Some(state) => (Some(state.info), state.members),
            None => (None, HashMap::new()),
        };
        let mut info = RoomInfo::fold(info, event)?;
        if let EventKind::Member(change) = &event.kind {
            let before = members.remove(&change.user);
            let was_in = before.as_ref().is_some_and(Member::is_in);
            let after = Member::fold(before, event.seq, *change, info.settings.history);
            info.member_count = info.member_count + u32::from(after.is_in()) - u32::from(was_in);
            members.insert(change.user, after);
        }
        Some(Self { info, members })
    }

    /// The person's standing, if they are in.
    pub fn member(&self, user: UserId) -> Option<&Member> {
        self.members.get(&user).filter(|member| member.is_in())
    }

    /// How many owners are in.
    pub fn owner_count(&self) -> usize {
        self.members.values().filter(|member| member.is_in() && member.role == Role::Owner).count()
    }
}

/// Applies a change of settings.
fn apply(settings: &mut Settings, patch: &RoomPatch) {
    let set = |field: &mut String, value: &Option<String>| {
        if let Some(value) = value {
            field.clone_from(value);
        }
    };
    set(&mut settings.name, &patch.name);
    set(&mut settings.description, &patch.description);
    set(&mut settings.icon, &patch.icon);
    if let Some(handle) = &patch.handle {
        settings.handle = (!handle.is_empty()).then(|| handle.clone());
    }
    settings.visibility = patch.visibility.unwrap_or(settings.visibility);
    settings.history = patch.history.unwrap_or(settings.history);
}
