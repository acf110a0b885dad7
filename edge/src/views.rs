//! The shapes of answers (protocol.md, "Shapes"). Pure.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemas::frame::EventView;
use schemas::link::RoomOfUser;
use schemas::message::{Role, RoomHistory, RoomKind, RoomVisibility};
use schemas::room::RoomInfo;
use schemas::{DeviceId, Event, RoomId, Seq, Timestamp, UserId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use store::accounts::{Account, Audience, ProfileVisibility};
use utoipa::ToSchema;

use crate::error::{Error, Result};

/// A page of a list.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Ask with it for the next page; `null` after the last one.
    pub next_cursor: Option<String>,
}

/// Where a list goes on, as an opaque text.
pub(crate) fn cursor<T: Serialize>(at: &T) -> Option<String> {
    serde_json::to_vec(at).ok().map(|json| URL_SAFE_NO_PAD.encode(json))
}

/// Where a list goes on; `None` at its start.
pub(crate) fn parse_cursor<T: DeserializeOwned>(text: Option<&str>) -> Result<Option<T>> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    let json = URL_SAFE_NO_PAD.decode(text).ok();
    let at = json.and_then(|json| serde_json::from_slice(&json).ok());
    at.map(Some).ok_or_else(|| Error::invalid("cursor", "not a cursor of this list"))
}

/// Access and refresh token of a device.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct TokensView {
    /// For the Authorization header.
    pub access_token: String,
    /// `Bearer`.
    pub token_type: String,
    /// Seconds until the access token ends.
    pub expires_in: u64,
    /// For the next refresh, once.
    pub refresh_token: String,
    /// Seconds until the refresh token ends.
    pub refresh_expires_in: u64,
    /// The device that has signed in.
    pub device: DeviceId,
    /// Who has signed in.
    pub user: UserView,
}

/// One installation of a client that is signed in.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct DeviceView {
    /// Which.
    pub id: DeviceId,
    /// What its owner calls it.
    pub name: String,
    /// When it signed in.
    pub created_at: Timestamp,
    /// When it last took fresh tokens.
    pub last_seen: Timestamp,
    /// Whether this call comes from it.
    pub current: bool,
}

/// A person.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UserView {
    /// Who.
    pub id: UserId,
    /// Unique.
    pub username: String,
    /// What people call them.
    pub display_name: String,
    /// About themselves; empty where hidden.
    pub about: String,
    /// A picture's address or an emoji; empty where hidden.
    pub avatar: String,
    /// Whether a client of theirs is connected; `false` where hidden.
    pub online: bool,
    /// When they were last online; `null` where hidden.
    pub last_seen: Option<Timestamp>,
    /// Only to oneself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub email: Option<String>,
    /// Only to oneself: who sees what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<ProfileVisibility>,
}

impl UserView {
    /// A person as `viewer` may see them.
    pub(crate) fn of(account: &Account, viewer: UserId, online: bool) -> Self {
        let own = account.id == viewer;
        let profile = &account.profile;
        // Until friendships exist, what is for friends is for nobody else.
        let shows = |audience: Audience| own || audience == Audience::Everyone;
        let shown = |audience, text: &String| if shows(audience) { text.clone() } else { String::new() };
        let name = if profile.display_name.is_empty() { &account.username } else { &profile.display_name };
        let visibility = profile.visibility;
        Self {
            id: account.id,
            username: account.username.clone(),
            display_name: name.clone(),
            about: shown(visibility.about, &profile.about),
            avatar: shown(visibility.avatar, &profile.avatar),
            online: online && shows(visibility.last_seen),
            last_seen: account.last_seen.filter(|_| shows(visibility.last_seen)),
            email: account.email.clone().filter(|_| own),
            visibility: own.then_some(visibility),
        }
    }
}

/// One's own standing in a room.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MyStanding {
    /// What one may do.
    pub role: Role,
    /// The event by which one came in.
    pub joined_seq: Seq,
    /// All up to here has reached a device of one's own.
    pub delivered_seq: Seq,
    /// All up to here has been seen.
    pub read_seq: Seq,
}

/// A room.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct RoomView {
    /// Which.
    pub id: RoomId,
    /// Two people or any number.
    pub kind: RoomKind,
    /// What people call it.
    pub name: String,
    /// Its unique name, without the `@`.
    pub handle: Option<String>,
    /// What it is for.
    pub description: String,
    /// A picture's address or an emoji.
    pub icon: String,
    /// Who finds and may join it.
    pub visibility: RoomVisibility,
    /// What new members see of the time before.
    pub history: RoomHistory,
    /// When it was created.
    pub created_at: Timestamp,
    /// By whom.
    pub created_by: UserId,
    /// Time of its newest event; to someone who is out of a private room, of the newest one that they may see.
    pub last_activity_at: Timestamp,
    /// Its newest event that the caller may see.
    pub head_seq: Seq,
    /// How many are in; absent to someone who is out of a private room, since they must not see it change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member_count: Option<u32>,
    /// In the inbox: the event at `head_seq`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest: Option<EventView>,
    /// The caller's standing, while they are in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub me: Option<MyStanding>,
    /// The other one of a direct room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<UserView>,
}

impl RoomView {
    /// A room as a stranger may see it.
    pub(crate) fn of_stranger(info: &RoomInfo) -> Self {
        let settings = info.settings.clone();
        Self {
            id: info.id,
            kind: settings.kind,
            name: settings.name,
            handle: settings.handle,
            description: settings.description,
            icon: settings.icon,
            visibility: settings.visibility,
            history: settings.history,
            created_at: info.created_at,
            created_by: info.created_by,
            last_activity_at: info.last_activity_at,
            head_seq: info.head_seq,
            member_count: Some(info.member_count),
            newest: None,
            me: None,
            peer: None,
        }
    }

    /// Whether what goes on in a room now is kept from someone who was in it: strangers must not see it either.
    pub(crate) fn hides_present(room: &RoomOfUser) -> bool {
        !room.member.is_in() && room.info.settings.visibility == RoomVisibility::Private
    }

    /// A room as someone who is or was in it may see it; `newest` is the newest event that they may see, needed only
    /// where the present is hidden.
    pub(crate) fn of(room: &RoomOfUser, newest: Option<&Event>) -> Self {
        let joined_seq = room.member.joined_seq();
        let me = MyStanding {
            role: room.member.role,
            joined_seq,
            delivered_seq: room.delivered_seq.max(joined_seq.prev()),
            read_seq: room.read_seq.max(joined_seq.prev()),
        };
        let shown = Self {
            head_seq: room.member.visible_head(room.info.head_seq),
            me: room.member.is_in().then_some(me),
            ..Self::of_stranger(&room.info)
        };
        if Self::hides_present(room) {
            let last_activity_at = newest.map_or(room.info.created_at, |event| event.at);
            return Self { last_activity_at, member_count: None, ..shown };
        }
        shown
    }
}

/// Someone who is in a room.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct MemberView {
    /// Who.
    pub user: UserId,
    /// What they may do.
    pub role: Role,
    /// The event by which they came in.
    pub joined_seq: Seq,
    /// What the caller may see of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub profile: Option<UserView>,
}

/// A page of a room's history.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct HistoryView {
    /// By ascending seq.
    pub items: Vec<EventView>,
    /// The first event that the caller may see.
    pub first_seq: Seq,
    /// The last event that the caller may see.
    pub head_seq: Seq,
}

/// How far a message has got with one person.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ReceiptView {
    /// Who.
    pub user: UserId,
    /// When it had reached a device.
    pub delivered_at: Option<Timestamp>,
    /// When it had been seen.
    pub read_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    fn what_is_hidden_is_hidden_from_others_alone() {
        let id = UserId(uuid::Uuid::from_u128(1));
        let mut account = crate::accounts::new(id, "ada".into(), String::new(), Timestamp(0));
        account.email = Some("ada@example.org".into());
        account.last_seen = Some(Timestamp(5));
        account.profile.about = "countess".into();
        account.profile.visibility =
            ProfileVisibility { about: Audience::Nobody, avatar: Audience::Everyone, last_seen: Audience::Friends };
        let other = UserView::of(&account, UserId::NIL, true);
        assert_eq!((other.about.as_str(), other.online, other.last_seen, other.email), ("", false, None, None));
        let own = UserView::of(&account, id, true);
        assert_eq!((own.about.as_str(), own.online, own.last_seen), ("countess", true, Some(Timestamp(5))));
        assert_eq!((own.email.as_deref(), own.display_name.as_str()), (Some("ada@example.org"), "ada"));
    }

    proptest! {
        #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]
        #[test]
        fn a_cursor_comes_back_and_any_other_text_is_invalid(n in any::<i64>(), text in any::<String>()) {
            let sent = cursor(&(n, &text));
            assert_eq!(parse_cursor::<(i64, String)>(sent.as_deref()), Ok(Some((n, text.clone()))));
            if let Err(error) = parse_cursor::<(i64, String)>(Some(&text)) {
                assert_eq!(error.code, crate::error::Code::Invalid);
            }
        }
    }
}
