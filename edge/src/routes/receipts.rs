//! How far a message has got.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use schemas::Seq;
use schemas::link::PageFrom;

use crate::App;
use crate::error::{Error, Result};
use crate::extract::{Caller, Paging, Query, path_id};
use crate::views::{Page, ReceiptView, cursor, parse_cursor};

/// Who has got and who has seen a message.
#[utoipa::path(get, path = "/v1/rooms/{room}/messages/{seq}/receipts", tag = "messages",
    params(("room" = String, Path, description = "Id or `@handle`"), ("seq" = u64, Path,), Paging),
    responses(
        (status = 200, description = "By user id", body = Page<ReceiptView>),
        (status = 403, description = "`not_a_member`"),
        (status = 404, description = "`not_found`: no such room or event"),
    ))]
pub(crate) async fn list_receipts(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path((room, seq)): Path<(String, String)>,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<ReceiptView>>> {
    let limit = paging.limit()?;
    let after = parse_cursor(paging.cursor.as_deref())?;
    let seq = Seq(path_id(&seq)?);
    let room = app.resolve(&room).await?;
    let page = app.history(caller.user, room, PageFrom::After(seq.prev()), 1).await?;
    if page.events.first().is_none_or(|event| event.seq != seq) {
        return Err(Error::not_found());
    }
    let mut receipts = app.deps.store.message_receipts(room, seq, after, limit + 1).await?;
    let more = receipts.len() > limit;
    receipts.truncate(limit);
    let next_cursor = receipts.last().filter(|_| more).and_then(|last| cursor(&last.user));
    let items = receipts
        .into_iter()
        .map(|receipt| ReceiptView { user: receipt.user, delivered_at: receipt.delivered_at, read_at: receipt.read_at })
        .collect();
    Ok(Json(Page { items, next_cursor }))
}
