//! What a message and a membership are made of: the parts that commands, events and frames share.

use serde::{Deserialize, Serialize};

use crate::ids::UserId;
use crate::seq::Seq;

/// What a message holds. Chat text is `text/plain` with a `body`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Content {
    /// MIME type.
    #[serde(rename = "type")]
    pub mime: String,
    /// Text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Bytes, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Id of an uploaded medium.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media: Option<String>,
}

impl Content {
    /// Plain text.
    pub fn text(body: impl Into<String>) -> Self {
        Self { mime: "text/plain".into(), body: Some(body.into()), data: None, media: None }
    }

    /// Its size in bytes as the limits count it.
    pub fn size_bytes(&self) -> usize {
        let part = |part: &Option<String>| part.as_ref().map_or(0, String::len);
        self.mime.len() + part(&self.body) + part(&self.data) + part(&self.media)
    }
}

/// A message as it is asked for and kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// What it holds.
    pub content: Content,
    /// The message that it answers.
    #[serde(default)]
    pub reply_to: Option<Seq>,
}

/// What a member may do: an owner everything, an admin all but owners' matters, a member read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Everything, deleting the room among it.
    Owner,
    /// Adds and removes members, changes the room.
    Admin,
    /// Reads and writes.
    Member,
}

/// What happened to a membership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberChange {
    /// Came by themselves.
    Joined,
    /// Was added by another.
    Added,
    /// Went by themselves.
    Left,
    /// Was removed by another.
    Removed,
    /// Has another role now.
    Role,
}

impl MemberChange {
    /// Whether the person is out after it.
    pub fn ends(self) -> bool {
        matches!(self, Self::Left | Self::Removed)
    }

    /// Whether the person came in by it.
    pub fn begins(self) -> bool {
        matches!(self, Self::Joined | Self::Added)
    }
}

/// A change of one membership, as it is asked for and kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// Whose.
    pub user: UserId,
    /// Which.
    pub change: MemberChange,
    /// The role after it.
    pub role: Role,
}

/// A room of two, or of any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RoomKind {
    /// Two people; its id derives from theirs.
    Direct,
    /// Any number.
    Group,
}

/// Who finds and may join a room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RoomVisibility {
    /// Everyone.
    Public,
    /// Whom a member adds.
    Private,
}

/// What a new member sees of the time before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RoomHistory {
    /// Everything.
    All,
    /// Nothing.
    SinceJoined,
}

/// A room's settings. Empty text means "not set".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Two people or any number.
    pub kind: RoomKind,
    /// What people call it.
    pub name: String,
    /// Its unique name, without the `@`.
    #[serde(default)]
    pub handle: Option<String>,
    /// What it is for.
    #[serde(default)]
    pub description: String,
    /// A picture's address or an emoji.
    #[serde(default)]
    pub icon: String,
    /// Who finds it.
    pub visibility: RoomVisibility,
    /// What new members see.
    pub history: RoomHistory,
}

/// A change of settings: what is `None` stays; an empty handle gives it up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct RoomPatch {
    /// New name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// New handle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<String>,
    /// New description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// New icon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icon: Option<String>,
    /// New visibility.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub visibility: Option<RoomVisibility>,
    /// New rule for new members.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<RoomHistory>,
    /// The room is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}
