//! Rooms: creating, listing, changing, deleting.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use schemas::limits::CREATE_MEMBERS_MAX;
use schemas::link::{Lane, RoomOfUser};
use schemas::message::{Role, RoomHistory, RoomKind, RoomPatch, RoomVisibility, Settings};
use schemas::room::RoomInfo;
use schemas::{Action, Offset, RoomId, UserId};
use serde::{Deserialize, Serialize};
use store::rooms::DirectorySort;
use utoipa::{IntoParams, ToSchema};

use crate::App;
use crate::accounts;
use crate::error::{Code, Error, Result};
use crate::extract::{Body, Caller, Key, Query, page_limit};
use crate::forms;
use crate::reads::Acted;
use crate::views::{Page, RoomView, cursor, parse_cursor};

/// Longest name of a room, characters.
const NAME_MAX_CHARS: usize = 100;
/// Longest description, and address of an icon, characters.
const TEXT_MAX_CHARS: usize = 1_000;
/// How far the directory may be paged: nobody reads further, and skipping costs the store.
const DIRECTORY_SKIP_MAX: usize = 10_000;

#[derive(Deserialize, ToSchema)]
pub(crate) struct CreateRoom {
    #[schema(schema_with = forms::name::<NAME_MAX_CHARS>)]
    name: String,
    #[serde(default)]
    #[schema(schema_with = forms::handle)]
    handle: Option<String>,
    #[serde(default)]
    #[schema(schema_with = forms::text::<TEXT_MAX_CHARS>)]
    description: Option<String>,
    #[serde(default)]
    #[schema(schema_with = forms::text::<TEXT_MAX_CHARS>)]
    icon: Option<String>,
    /// `private` if absent.
    #[serde(default)]
    visibility: Option<RoomVisibility>,
    /// `all` if absent.
    #[serde(default)]
    history: Option<RoomHistory>,
    #[serde(default)]
    #[schema(schema_with = forms::members)]
    members: Vec<UserId>,
}

/// What changes; what is absent stays, an empty handle gives it up.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ChangeRoom {
    #[serde(default)]
    #[schema(schema_with = forms::optional_name::<NAME_MAX_CHARS>)]
    name: Option<String>,
    #[serde(default)]
    #[schema(schema_with = forms::handle)]
    handle: Option<String>,
    #[serde(default)]
    #[schema(schema_with = forms::text::<TEXT_MAX_CHARS>)]
    description: Option<String>,
    #[serde(default)]
    #[schema(schema_with = forms::text::<TEXT_MAX_CHARS>)]
    icon: Option<String>,
    #[serde(default)]
    visibility: Option<RoomVisibility>,
    #[serde(default)]
    history: Option<RoomHistory>,
}

/// Which rooms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scope {
    /// Those that one is in: the inbox.
    #[default]
    Mine,
    /// The directory of public rooms.
    Public,
}

/// In which order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sort {
    /// Newest event first.
    #[default]
    Activity,
    /// Most members first.
    Popularity,
    /// By name.
    Name,
    /// Newest room first.
    Created,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListRooms {
    /// Which rooms; `mine` if absent.
    #[param(inline)]
    scope: Option<Scope>,
    /// What name or handle contain, in any case.
    q: Option<String>,
    /// In which order; by `activity` if absent.
    #[param(inline)]
    sort: Option<Sort>,
    /// At most so many items, 1 to 100; 50 if absent.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// Creates a room.
#[utoipa::path(post, path = "/v1/rooms", tag = "rooms", request_body = CreateRoom,
    params(Key),
    responses(
        (status = 201, description = "The room", body = RoomView),
        (status = 200, description = "The room that the same key created before", body = RoomView),
        (status = 409, description = "`handle_taken`"),
    ))]
pub(crate) async fn create_room(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Key(key): Key,
    Body(input): Body<CreateRoom>,
) -> Result<(StatusCode, Json<RoomView>)> {
    let user = caller.user;
    let name = room_name(&input.name)?;
    let description = accounts::text("description", &input.description.unwrap_or_default(), TEXT_MAX_CHARS)?;
    let icon = accounts::text("icon", &input.icon.unwrap_or_default(), TEXT_MAX_CHARS)?;
    let handle = input.handle.filter(|handle| !handle.is_empty());
    let handle = handle.as_deref().map(accounts::handle).transpose()?;
    let members = members(&app, user, input.members).await?;
    let key = key.unwrap_or_else(|| app.ids.command());
    let room = RoomId::created(user, key);
    if let Some(handle) = &handle {
        claim(&app, handle, room).await?;
    }
    let named = handle.is_some();
    let settings = Settings {
        kind: RoomKind::Group,
        name,
        handle,
        description,
        icon,
        visibility: input.visibility.unwrap_or(RoomVisibility::Private),
        history: input.history.unwrap_or(RoomHistory::All),
    };
    let status = match app.act(user, Some(key), room, Action::Create { settings, members }).await? {
        Acted::Now(_) => StatusCode::CREATED,
        Acted::Before(_) => StatusCode::OK,
    };
    if named {
        // A handle is looked up in the store: it must be there when we say that the room is.
        app.settle_room(room).await?;
    }
    Ok((status, Json(app.room_view(user, room).await?)))
}

/// Rooms: one's own with their newest event, or the directory.
#[utoipa::path(get, path = "/v1/rooms", tag = "rooms", params(ListRooms), responses(
    (status = 200, description = "Rooms", body = Page<RoomView>),
))]
pub(crate) async fn list_rooms(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Query(list): Query<ListRooms>,
) -> Result<Json<Page<RoomView>>> {
    let limit = page_limit(list.limit)?;
    let (q, sort) = (list.q.unwrap_or_default(), list.sort.unwrap_or_default());
    let page = match list.scope.unwrap_or_default() {
        Scope::Mine => inbox(&app, caller.user, q.trim(), sort, limit, list.cursor.as_deref()).await?,
        Scope::Public => directory(&app, caller.user, q.trim(), sort, limit, list.cursor.as_deref()).await?,
    };
    Ok(Json(page))
}

/// A room.
#[utoipa::path(get, path = "/v1/rooms/{room}", tag = "rooms",
    params(("room" = String, Path, description = "Id or `@handle`")),
    responses(
        (status = 200, description = "The room", body = RoomView),
        (status = 404, description = "`not_found`: no such room, or it is private"),
    ))]
pub(crate) async fn get_room(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(room): Path<String>,
) -> Result<Json<RoomView>> {
    let room = app.resolve(&room).await?;
    Ok(Json(app.room_view(caller.user, room).await?))
}

/// Changes a room's settings (owners and admins).
#[utoipa::path(patch, path = "/v1/rooms/{room}", tag = "rooms", request_body = ChangeRoom,
    params(
        ("room" = String, Path, description = "Id or `@handle`"),
        Key,
    ),
    responses(
        (status = 200, description = "The room, changed", body = RoomView),
        (status = 403, description = "`not_a_member`, `forbidden`"),
        (status = 404, description = "`not_found`"),
        (status = 409, description = "`handle_taken`"),
    ))]
pub(crate) async fn change_room(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(room): Path<String>,
    Key(key): Key,
    Body(input): Body<ChangeRoom>,
) -> Result<Json<RoomView>> {
    let user = caller.user;
    let text = |at: &str, text: Option<String>| text.map(|text| accounts::text(at, &text, TEXT_MAX_CHARS)).transpose();
    let patch = RoomPatch {
        name: input.name.as_deref().map(room_name).transpose()?,
        description: text("description", input.description)?,
        icon: text("icon", input.icon)?,
        handle: match input.handle.as_deref() {
            None | Some("") => input.handle,
            Some(handle) => Some(accounts::handle(handle)?),
        },
        visibility: input.visibility,
        history: input.history,
        deleted: false,
    };
    let room = app.resolve(&room).await?;
    let handle = patch.handle.clone();
    if let Some(handle) = handle.as_deref().filter(|handle| !handle.is_empty()) {
        // Ingest decides; but who can't change the room must not keep handles from others meanwhile.
        if app.own_room(user, room).await?.member.role == Role::Member {
            return Err(Error::new(Code::Forbidden, "your role does not allow this"));
        }
        claim(&app, handle, room).await?;
    }
    app.act(user, key, room, Action::Change(patch)).await?;
    if handle.is_some() {
        app.settle_room(room).await?;
    }
    Ok(Json(app.room_view(user, room).await?))
}

/// Deletes a room (owners).
#[utoipa::path(delete, path = "/v1/rooms/{room}", tag = "rooms",
    params(
        ("room" = String, Path, description = "Id or `@handle`"),
        Key,
    ),
    responses(
        (status = 204, description = "It is gone"),
        (status = 403, description = "`not_a_member`, `forbidden`"),
        (status = 404, description = "`not_found`"),
    ))]
pub(crate) async fn delete_room(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(room): Path<String>,
    Key(key): Key,
) -> Result<StatusCode> {
    let room = app.resolve(&room).await?;
    let patch = RoomPatch { deleted: true, ..RoomPatch::default() };
    app.act(caller.user, key, room, Action::Change(patch)).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn room_name(name: &str) -> Result<String> {
    let name = accounts::text("name", name, NAME_MAX_CHARS)?;
    if name.is_empty() { Err(Error::invalid("name", "at least one character")) } else { Ok(name) }
}

/// The members beside the creator, each once; all of them exist.
async fn members(app: &App, user: UserId, mut members: Vec<UserId>) -> Result<Vec<UserId>> {
    if members.len() > CREATE_MEMBERS_MAX {
        return Err(Error::invalid("members", "at most 1,000; add more later"));
    }
    if members.is_empty() {
        return Ok(members);
    }
    let known = app.deps.store.accounts(&members).await?;
    let unknown = members.iter().position(|member| !known.iter().any(|account| account.id == *member));
    if let Some(at) = unknown {
        return Err(Error::invalid(&format!("members/{at}"), "no such person"));
    }
    members.sort_unstable();
    members.dedup();
    members.retain(|member| *member != user);
    Ok(members)
}

/// Keeps a handle for a room until its event says that it has it (I4).
async fn claim(app: &App, handle: &str, room: RoomId) -> Result<()> {
    let now = app.deps.clock.now();
    let expires_at = now.after(Duration::from_secs(app.config.handle_claim_s));
    if app.deps.store.claim_handle(handle, room, now, expires_at).await? {
        Ok(())
    } else {
        Err(Error::new(Code::HandleTaken, "another room has this handle"))
    }
}

/// Where a room stands in a list; the smallest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Place(i64, String, RoomId);

impl Place {
    fn of(room: &RoomOfUser, sort: Sort) -> Self {
        let info = &room.info;
        match sort {
            Sort::Activity => Self(-info.last_activity_at.0, String::new(), info.id),
            Sort::Popularity => Self(-i64::from(info.member_count), String::new(), info.id),
            Sort::Created => Self(-info.created_at.0, String::new(), info.id),
            Sort::Name => Self(0, info.settings.name.to_lowercase(), info.id),
        }
    }
}

/// One's own rooms: one call for the list, one for all rooms in it, one for what is shown of them, whatever their number
/// (I7).
async fn inbox(
    app: &App,
    user: UserId,
    q: &str,
    sort: Sort,
    limit: usize,
    after: Option<&str>,
) -> Result<Page<RoomView>> {
    let after: Option<Place> = parse_cursor(after)?;
    let end = app.hub.end(Lane::Users, app.hub.partition(user.as_bytes())).await?;
    let ids = app.deps.history.rooms_of(user, end).await?;
    let mut rooms = app.deps.history.rooms(user, &at_their_ends(app, &ids).await?).await?;
    let q = q.to_lowercase();
    rooms.retain(|room| room.member.is_in() && !room.info.deleted && matches(room, &q));
    let mut placed: Vec<(Place, RoomOfUser)> = rooms.into_iter().map(|room| (Place::of(&room, sort), room)).collect();
    placed.retain(|(place, _)| after.as_ref().is_none_or(|after| place > after));
    placed.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    let more = placed.len() > limit;
    placed.truncate(limit);
    let next_cursor = placed.last().filter(|_| more).and_then(|(place, _)| cursor(place));
    let rooms: Vec<RoomOfUser> = placed.into_iter().map(|(_, room)| room).collect();
    Ok(Page { items: app.show(user, &rooms, true).await?, next_cursor })
}

fn matches(room: &RoomOfUser, q: &str) -> bool {
    let settings = &room.info.settings;
    let in_handle = settings.handle.as_ref().is_some_and(|handle| handle.contains(q));
    q.is_empty() || in_handle || settings.name.to_lowercase().contains(q)
}

/// Rooms with the end of their partition, which is asked once for each.
async fn at_their_ends(app: &App, rooms: &[RoomId]) -> Result<Vec<(RoomId, Offset)>> {
    let ends = app.hub.ends(rooms.iter().copied()).await?;
    let end = |room: &RoomId| ends.get(&app.hub.partition(room.as_bytes())).copied();
    Ok(rooms.iter().filter_map(|room| Some((*room, end(room)?))).collect())
}

/// The directory of public rooms. It follows within seconds, so nothing waits for it.
async fn directory(
    app: &App,
    user: UserId,
    q: &str,
    sort: Sort,
    limit: usize,
    after: Option<&str>,
) -> Result<Page<RoomView>> {
    let skip: usize = parse_cursor(after)?.unwrap_or_default();
    if skip > DIRECTORY_SKIP_MAX {
        return Err(Error::invalid("cursor", "the directory is not paged so far: narrow it with q"));
    }
    let sort = match sort {
        Sort::Activity => DirectorySort::Activity,
        Sort::Popularity => DirectorySort::Popularity,
        Sort::Name => DirectorySort::Name,
        Sort::Created => DirectorySort::Created,
    };
    let mut infos = app.deps.store.directory(q, sort, skip, limit + 1).await?;
    let more = infos.len() > limit;
    infos.truncate(limit);
    let next_cursor = if more { cursor(&(skip + limit)) } else { None };
    let known: Vec<(RoomId, Offset)> = infos.iter().map(|info| (info.id, Offset::default())).collect();
    let mine = app.deps.history.rooms(user, &known).await?;
    let mine: HashMap<RoomId, RoomOfUser> = mine.into_iter().map(|room| (room.info.id, room)).collect();
    let show = |info: &RoomInfo| {
        mine.get(&info.id).map_or_else(|| RoomView::of_stranger(info), |room| RoomView::of(room, None))
    };
    Ok(Page { items: infos.iter().map(show).collect(), next_cursor })
}
