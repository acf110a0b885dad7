//! Other people.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::App;
use crate::error::{Error, Result};
use crate::extract::{Caller, Query, page_limit, path_id};
use crate::views::{Page, UserView, cursor, parse_cursor};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Find {
    /// How the username or the display name begins, in any case.
    #[param(pattern = r"\S")]
    q: String,
    /// At most so many items, 1 to 100; 50 if absent.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<usize>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A person, less what they hide.
#[utoipa::path(get, path = "/v1/users/{id}", tag = "users", params(("id" = schemas::UserId, Path,)), responses(
    (status = 200, description = "The person", body = UserView),
    (status = 404, description = "`not_found`"),
))]
pub(crate) async fn get_user(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(id): Path<String>,
) -> Result<Json<UserView>> {
    let id = path_id(&id)?;
    let person = app.profiles_of(caller.user, &[id]).await?.remove(&id);
    person.map(Json).ok_or_else(Error::not_found)
}

/// People by the beginning of their name.
#[utoipa::path(get, path = "/v1/users", tag = "users", params(Find), responses(
    (status = 200, description = "By username", body = Page<UserView>),
))]
pub(crate) async fn find_users(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Query(find): Query<Find>,
) -> Result<Json<Page<UserView>>> {
    let limit = page_limit(find.limit)?;
    let after: Option<String> = parse_cursor(find.cursor.as_deref())?;
    let q = find.q.trim();
    if q.is_empty() {
        return Err(Error::invalid("q", "at least one character"));
    }
    // One more than asked tells whether there is a next page.
    let mut accounts = app.deps.store.find_accounts(q, after.as_deref(), limit + 1).await?;
    let more = accounts.len() > limit;
    accounts.truncate(limit);
    let next_cursor = accounts.last().filter(|_| more).and_then(|last| cursor(&last.username));
    Ok(Json(Page { items: app.profiles(caller.user, &accounts).await, next_cursor }))
}
