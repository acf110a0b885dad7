//! Sending without a socket, and a room's history.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use schemas::frame::EventView;
use schemas::limits::CONTENT_MAX_BYTES;
use schemas::link::PageFrom;
use schemas::message::{Content, Message};
use schemas::{Action, CommandId, Seq};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::App;
use crate::error::{Code, Error, Result};
use crate::extract::{Body, Caller, Key, Object, Query, command_id, page_limit};
use crate::forms;
use crate::reads::Acted;
use crate::views::HistoryView;

/// Longest MIME type, bytes (RFC 6838 section 4.2: 127 characters each side of the slash).
pub(crate) const MIME_MAX_BYTES: usize = 255;

#[derive(Deserialize, ToSchema)]
pub(crate) struct Send {
    #[serde(default)]
    #[schema(schema_with = forms::client_msg_id)]
    client_msg_id: Option<CommandId>,
    #[schema(schema_with = forms::content)]
    content: Object<Content>,
    #[serde(default)]
    #[schema(schema_with = forms::optional_seq)]
    reply_to: Option<Seq>,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct History {
    /// The newest events before this one; not together with `after`.
    #[param(schema_with = forms::seq)]
    before: Option<u64>,
    /// The oldest events after this one.
    #[param(schema_with = forms::seq)]
    after: Option<u64>,
    /// At most so many events, 1 to 100; 50 if absent.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
}

/// Sends a message.
#[utoipa::path(post, path = "/v1/rooms/{room}/messages", tag = "messages", request_body = Send,
    params(
        ("room" = String, Path, description = "Id or `@handle`"),
        Key,
    ),
    responses(
        (status = 201, description = "The event; it is durable", body = EventView),
        (status = 200, description = "The first event under this id", body = EventView),
        (status = 403, description = "`not_a_member`, `blocked`"),
        (status = 404, description = "`not_found`: no such room, or it is private"),
        (status = 413, description = "`too_large`"),
        (status = 429, description = "`rate_limited`"),
    ))]
pub(crate) async fn send(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(room): Path<String>,
    Key(key): Key,
    Body(input): Body<Send>,
) -> Result<(StatusCode, Json<EventView>)> {
    let user = caller.user;
    let id = match input.client_msg_id {
        Some(id) => command_id("client_msg_id", id, &*app.deps.clock)?,
        None => key.ok_or_else(|| Error::invalid("client_msg_id", "it or an Idempotency-Key is needed"))?,
    };
    let Object(content) = input.content;
    check(&content)?;
    if input.reply_to == Some(Seq::ZERO) {
        return Err(Error::invalid("reply_to", "the first event is 1"));
    }
    let room = app.resolve(&room).await?;
    app.limits.send_allowed(user, room).map_err(Error::refused)?;
    let message = Message { content, reply_to: input.reply_to };
    match app.act(user, Some(id), room, Action::Send(message)).await? {
        Acted::Now(event) => Ok((StatusCode::CREATED, Json(EventView::of(&event, Some(user))))),
        Acted::Before(done) => {
            let page = app.history(user, room, PageFrom::After(done.seq.prev()), 1).await?;
            let event = page.events.first().filter(|event| event.seq == done.seq).ok_or_else(Error::unavailable)?;
            Ok((StatusCode::OK, Json(EventView::of(event, Some(user)))))
        }
    }
}

/// A page of a room's history; the newest events if neither end is named.
#[utoipa::path(get, path = "/v1/rooms/{room}/messages", tag = "messages",
    params(("room" = String, Path, description = "Id or `@handle`"), History),
    responses(
        (status = 200, description = "By ascending seq", body = HistoryView),
        (status = 403, description = "`not_a_member`"),
        (status = 404, description = "`not_found`: no such room, or it is private"),
    ))]
pub(crate) async fn history(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(room): Path<String>,
    Query(query): Query<History>,
) -> Result<Json<HistoryView>> {
    let limit = page_limit(query.limit)?;
    let from = match (query.before, query.after) {
        (Some(_), Some(_)) => return Err(Error::invalid("before", "before or after, not both")),
        (Some(before), None) => PageFrom::Before(Seq(before)),
        (None, Some(after)) => PageFrom::After(Seq(after)),
        (None, None) => PageFrom::Newest,
    };
    if [query.before, query.after].iter().flatten().any(|seq| i64::try_from(*seq).is_err()) {
        return Err(Error::invalid("before", "larger than any seq"));
    }
    let room = app.resolve(&room).await?;
    let page = app.history(caller.user, room, from, limit).await?;
    let items = page.events.iter().map(|event| EventView::of(event, Some(caller.user))).collect();
    Ok(Json(HistoryView { items, first_seq: page.first_seq, head_seq: page.visible_head }))
}

/// What can be said of a content without knowing the room.
pub(crate) fn check(content: &Content) -> Result<()> {
    if content.size_bytes() > CONTENT_MAX_BYTES {
        return Err(Error::new(Code::TooLarge, "the content is over 64 KiB"));
    }
    let is_mime = content.mime.split_once('/').is_some_and(|(kind, rest)| !kind.is_empty() && !rest.is_empty())
        && content.mime.len() <= MIME_MAX_BYTES
        && content.mime.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if !is_mime {
        return Err(Error::invalid("content/type", "not a MIME type"));
    }
    if content.body.is_none() && content.data.is_none() && content.media.is_none() {
        return Err(Error::invalid("content", "body, data or media is needed"));
    }
    if let Some(data) = &content.data {
        use base64::Engine as _;
        use base64::engine::general_purpose::STANDARD;
        STANDARD.decode(data).map_err(|_| Error::invalid("content/data", "not base64"))?;
    }
    Ok(())
}
