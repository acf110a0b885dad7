//! The room of two people.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use schemas::message::{RoomHistory, RoomKind, RoomVisibility, Settings};
use schemas::{Action, RoomId, UserId};

use crate::App;
use crate::error::{Error, Result};
use crate::extract::{Caller, Key, path_id};
use crate::views::RoomView;

/// Opens the direct room with someone; both sides find the same one.
#[utoipa::path(put, path = "/v1/direct/{user}", tag = "rooms",
    params(
        ("user" = UserId, Path,),
        Key,
    ),
    responses(
        (status = 200, description = "The room", body = RoomView),
        (status = 403, description = "`blocked`"),
        (status = 404, description = "`not_found`: no such person"),
    ))]
pub(crate) async fn open_direct(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(user): Path<String>,
    Key(key): Key,
) -> Result<Json<RoomView>> {
    let peer: UserId = path_id(&user)?;
    if peer == caller.user {
        return Err(Error::invalid("user", "a direct room is one of two people"));
    }
    if app.deps.store.accounts(&[peer]).await?.is_empty() {
        return Err(Error::not_found());
    }
    let room = RoomId::direct(caller.user, peer);
    let settings = Settings {
        kind: RoomKind::Direct,
        name: String::new(),
        handle: None,
        description: String::new(),
        icon: String::new(),
        visibility: RoomVisibility::Private,
        history: RoomHistory::All,
    };
    app.act(caller.user, key, room, Action::Create { settings, members: vec![peer] }).await?;
    Ok(Json(app.room_view(caller.user, room).await?))
}
