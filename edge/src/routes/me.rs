//! Oneself.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use store::accounts::{Account, Audience};
use utoipa::ToSchema;

use crate::App;
use crate::accounts;
use crate::error::{Code, Error, Result};
use crate::extract::{Body, Caller, Object};
use crate::forms;
use crate::views::UserView;

/// Longest text about oneself, characters.
const ABOUT_MAX_CHARS: usize = 1_000;
/// Longest address of a picture, characters.
const AVATAR_MAX_CHARS: usize = 1_000;

#[derive(Deserialize, ToSchema)]
pub(crate) struct ChangeMe {
    #[serde(default)]
    #[schema(schema_with = forms::text::<{ accounts::DISPLAY_NAME_MAX_CHARS }>)]
    display_name: Option<String>,
    #[serde(default)]
    #[schema(schema_with = forms::text::<ABOUT_MAX_CHARS>)]
    about: Option<String>,
    #[serde(default)]
    #[schema(schema_with = forms::text::<AVATAR_MAX_CHARS>)]
    avatar: Option<String>,
    #[serde(default)]
    #[schema(schema_with = forms::optional_username)]
    username: Option<String>,
    #[serde(default)]
    #[schema(value_type = Option<ChangeVisibility>)]
    visibility: Option<Object<ChangeVisibility>>,
}

/// Who sees which part; what is absent stays.
#[derive(Deserialize, ToSchema)]
pub(crate) struct ChangeVisibility {
    #[serde(default)]
    about: Option<Audience>,
    #[serde(default)]
    avatar: Option<Audience>,
    #[serde(default)]
    last_seen: Option<Audience>,
}

/// Who I am.
#[utoipa::path(get, path = "/v1/me", tag = "me", responses((status = 200, description = "Oneself", body = UserView)))]
pub(crate) async fn get_me(State(app): State<Arc<App>>, Caller(caller): Caller) -> Result<Json<UserView>> {
    let account = own_account(&app, caller.user).await?;
    show(&app, &account).await
}

/// Changes who I am; what is absent stays.
#[utoipa::path(patch, path = "/v1/me", tag = "me", request_body = ChangeMe, responses(
    (status = 200, description = "Oneself, changed", body = UserView),
    (status = 409, description = "`username_taken`"),
))]
pub(crate) async fn change_me(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Body(input): Body<ChangeMe>,
) -> Result<Json<UserView>> {
    let mut account = own_account(&app, caller.user).await?;
    let profile = &mut account.profile;
    if let Some(name) = input.display_name {
        profile.display_name = accounts::text("display_name", &name, accounts::DISPLAY_NAME_MAX_CHARS)?;
    }
    if let Some(about) = input.about {
        profile.about = accounts::text("about", &about, ABOUT_MAX_CHARS)?;
    }
    if let Some(avatar) = input.avatar {
        profile.avatar = accounts::text("avatar", &avatar, AVATAR_MAX_CHARS)?;
    }
    if let Some(Object(change)) = input.visibility {
        let shown = &mut profile.visibility;
        shown.about = change.about.unwrap_or(shown.about);
        shown.avatar = change.avatar.unwrap_or(shown.avatar);
        shown.last_seen = change.last_seen.unwrap_or(shown.last_seen);
    }
    if let Some(username) = input.username {
        account.username = accounts::username(&username)?;
    }
    let updated = app.deps.store.update_account(account.id, &account.username, account.profile.clone()).await?;
    updated.map_err(|_| Error::new(Code::UsernameTaken, "another account has this username"))?;
    show(&app, &account).await
}

async fn own_account(app: &App, user: schemas::UserId) -> Result<Account> {
    app.deps.store.accounts(&[user]).await?.pop().ok_or_else(Error::not_found)
}

async fn show(app: &App, account: &Account) -> Result<Json<UserView>> {
    app.profiles(account.id, std::slice::from_ref(account)).await.pop().map(Json).ok_or_else(Error::not_found)
}
