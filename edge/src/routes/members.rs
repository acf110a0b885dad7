//! Who is in a room: joining, leaving, adding, removing, roles; who of them is online.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use schemas::message::{MemberChange, Membership, Role};
use schemas::room::Member;
use schemas::{Action, RoomId, UserId};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::App;
use crate::error::{Error, Result};
use crate::extract::{Body, Caller, Key, Paging, Query, path_id};
use crate::views::{MemberView, Page, RoomView, cursor, parse_cursor};

/// Most members that are looked through for those online in one call.
const ONLINE_SCAN_MAX: usize = 1_000;

#[derive(Deserialize, ToSchema)]
pub(crate) struct PutMember {
    /// `member` if absent.
    #[serde(default)]
    role: Option<Role>,
}

/// Joins a public room.
#[utoipa::path(put, path = "/v1/rooms/{room}/members/me", tag = "members",
    params(
        ("room" = String, Path, description = "Id or `@handle`"),
        Key,
    ),
    responses(
        (status = 200, description = "In it now, or before", body = RoomView),
        (status = 404, description = "`not_found`: no such room, or it is private"),
    ))]
pub(crate) async fn join(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(room): Path<String>,
    Key(key): Key,
) -> Result<Json<RoomView>> {
    let room = app.resolve(&room).await?;
    let join = Membership { user: caller.user, change: MemberChange::Joined, role: Role::Member };
    app.act(caller.user, key, room, Action::Membership(join)).await?;
    Ok(Json(app.room_view(caller.user, room).await?))
}

/// Leaves a room.
#[utoipa::path(delete, path = "/v1/rooms/{room}/members/me", tag = "members",
    params(
        ("room" = String, Path, description = "Id or `@handle`"),
        Key,
    ),
    responses(
        (status = 204, description = "Out of it now, or before"),
        (status = 404, description = "`not_found`"),
        (status = 409, description = "`conflict`: the last owner can't leave others behind"),
    ))]
pub(crate) async fn leave(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(room): Path<String>,
    Key(key): Key,
) -> Result<StatusCode> {
    let room = app.resolve(&room).await?;
    remove(&app, caller.user, key, room, caller.user).await
}

/// Adds someone, or changes their role (owners and admins).
#[utoipa::path(put, path = "/v1/rooms/{room}/members/{user}", tag = "members", request_body = PutMember,
    params(
        ("room" = String, Path, description = "Id or `@handle`"),
        ("user" = UserId, Path,),
        Key,
    ),
    responses(
        (status = 200, description = "They are in it with this role now, or before", body = MemberView),
        (status = 403, description = "`not_a_member`, `forbidden`, `blocked`"),
        (status = 404, description = "`not_found`: no such room or person"),
        (status = 409, description = "`conflict`: a room keeps an owner"),
    ))]
pub(crate) async fn put_member(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path((room, user)): Path<(String, String)>,
    Key(key): Key,
    Body(input): Body<PutMember>,
) -> Result<Json<MemberView>> {
    let room = app.resolve(&room).await?;
    let user: UserId = path_id(&user)?;
    let role = input.role.unwrap_or(Role::Member);
    let profile = app.profiles_of(caller.user, &[user]).await?.remove(&user);
    let profile = profile.ok_or_else(Error::not_found)?;
    // "Added" also means another role for someone who is in: the state, not the caller, says which it is.
    let change = Membership { user, change: MemberChange::Added, role };
    app.act(caller.user, key, room, Action::Membership(change)).await?;
    app.settle_room(room).await?;
    let standing = app.deps.store.standings(user, &[room]).await?.pop();
    let (_, member) = standing.ok_or_else(Error::unavailable)?;
    Ok(Json(view(user, &member, Some(profile))))
}

/// Removes someone (owners and admins).
#[utoipa::path(delete, path = "/v1/rooms/{room}/members/{user}", tag = "members",
    params(
        ("room" = String, Path, description = "Id or `@handle`"),
        ("user" = UserId, Path,),
        Key,
    ),
    responses(
        (status = 204, description = "They are out of it now, or before"),
        (status = 403, description = "`not_a_member`, `forbidden`"),
        (status = 404, description = "`not_found`"),
        (status = 409, description = "`conflict`"),
    ))]
pub(crate) async fn remove_member(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path((room, user)): Path<(String, String)>,
    Key(key): Key,
) -> Result<StatusCode> {
    let room = app.resolve(&room).await?;
    remove(&app, caller.user, key, room, path_id(&user)?).await
}

async fn remove(
    app: &App,
    caller: UserId,
    key: Option<schemas::CommandId>,
    room: RoomId,
    user: UserId,
) -> Result<StatusCode> {
    let change = if user == caller { MemberChange::Left } else { MemberChange::Removed };
    let change = Membership { user, change, role: Role::Member };
    app.act(caller, key, room, Action::Membership(change)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who is in a room.
#[utoipa::path(get, path = "/v1/rooms/{room}/members", tag = "members",
    params(("room" = String, Path, description = "Id or `@handle`"), Paging),
    responses(
        (status = 200, description = "By user id", body = Page<MemberView>),
        (status = 403, description = "`not_a_member`"),
        (status = 404, description = "`not_found`"),
    ))]
pub(crate) async fn list_members(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(room): Path<String>,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<MemberView>>> {
    let limit = paging.limit()?;
    let after = parse_cursor(paging.cursor.as_deref())?;
    let room = own_settled_room(&app, caller.user, &room).await?;
    let mut members = app.deps.store.members_page(room, after, limit + 1).await?;
    let more = members.len() > limit;
    members.truncate(limit);
    let next_cursor = members.last().filter(|_| more).and_then(|(user, _)| cursor(user));
    Ok(Json(Page { items: show(&app, caller.user, &members).await?, next_cursor }))
}

/// Who is in a room and online now.
#[utoipa::path(get, path = "/v1/rooms/{room}/online", tag = "members",
    params(("room" = String, Path, description = "Id or `@handle`"), Paging),
    responses(
        (status = 200, description = "By user id", body = Page<MemberView>),
        (status = 403, description = "`not_a_member`"),
        (status = 404, description = "`not_found`"),
    ))]
pub(crate) async fn list_online(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(room): Path<String>,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<MemberView>>> {
    let limit = paging.limit()?;
    let after = parse_cursor(paging.cursor.as_deref())?;
    let room = own_settled_room(&app, caller.user, &room).await?;
    let members = app.deps.store.members_page(room, after, ONLINE_SCAN_MAX).await?;
    let ids: Vec<UserId> = members.iter().map(|(user, _)| *user).collect();
    let online: HashSet<UserId> = app.deps.fanout.online(&ids).await?.into_iter().collect();
    let last = ids.last().copied().filter(|_| ids.len() == ONLINE_SCAN_MAX);
    let mut found: Vec<(UserId, Member)> = members.into_iter().filter(|(user, _)| online.contains(user)).collect();
    let more = found.len() > limit;
    found.truncate(limit);
    let go_on = if more { found.last().map(|(user, _)| *user) } else { last };
    Ok(Json(Page { items: show(&app, caller.user, &found).await?, next_cursor: go_on.and_then(|at| cursor(&at)) }))
}

/// A room that the caller is in, once the store holds all of it that was acknowledged.
async fn own_settled_room(app: &App, user: UserId, room: &str) -> Result<RoomId> {
    let room = app.resolve(room).await?;
    app.own_room(user, room).await?;
    app.settle_room(room).await?;
    Ok(room)
}

async fn show(app: &App, viewer: UserId, members: &[(UserId, Member)]) -> Result<Vec<MemberView>> {
    let ids: Vec<UserId> = members.iter().map(|(user, _)| *user).collect();
    let mut profiles = app.profiles_of(viewer, &ids).await?;
    Ok(members.iter().map(|(user, member)| view(*user, member, profiles.remove(user))).collect())
}

fn view(user: UserId, member: &Member, profile: Option<crate::views::UserView>) -> MemberView {
    MemberView { user, role: member.role, joined_seq: member.joined_seq(), profile }
}
