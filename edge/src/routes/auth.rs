//! Signing up, in and out, and new tokens for old.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemas::DeviceId;
use serde::Deserialize;
use store::accounts::{Account, Taken};
use store::devices::{self, RevocationReason};
use store::shut_outs::Network;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::App;
use crate::accounts;
use crate::auth::password::{PASSWORD_MAX_BYTES, Verdict};
use crate::auth::refresh::{RefreshToken, Refreshed, refresh as spend};
use crate::blocks::Offence;
use crate::error::{Code, Error, Result};
use crate::extract::{Address, Body, Caller};
use crate::forms;
use crate::views::TokensView;

/// Longest name of a device, characters.
const DEVICE_NAME_MAX_CHARS: usize = 100;
/// Tries to find a free username by a random ending: two people rarely meet at the first.
const USERNAME_TRIES: usize = 8;

#[derive(Deserialize)]
pub(crate) struct SignIn {
    /// Either this …
    #[serde(default)]
    email: Option<String>,
    /// … or this.
    #[serde(default)]
    username: Option<String>,
    password: String,
    /// What its owner calls the device.
    #[serde(default)]
    device_name: Option<String>,
}

impl PartialSchema for SignIn {
    fn schema() -> RefOr<Schema> {
        forms::sign_in::<DEVICE_NAME_MAX_CHARS>()
    }
}

impl ToSchema for SignIn {}

#[derive(Deserialize, ToSchema)]
pub(crate) struct SignUp {
    #[schema(schema_with = forms::username)]
    username: String,
    #[schema(schema_with = forms::new_password)]
    password: String,
    #[serde(default)]
    #[schema(schema_with = forms::optional_email)]
    email: Option<String>,
    #[serde(default)]
    #[schema(schema_with = forms::text::<{ accounts::DISPLAY_NAME_MAX_CHARS }>)]
    display_name: Option<String>,
    /// What its owner calls the device.
    #[serde(default)]
    #[schema(schema_with = forms::text::<DEVICE_NAME_MAX_CHARS>)]
    device_name: Option<String>,
}

#[derive(Deserialize, ToSchema)]
pub(crate) struct Refresh {
    refresh_token: String,
}

/// Signs in; signs up whose e-mail address is unknown.
#[utoipa::path(post, path = "/v1/auth/sign-in", tag = "auth", security(()), request_body = SignIn, responses(
    (status = 200, description = "Signed in", body = TokensView),
    (status = 201, description = "The e-mail address was unknown and is signed up now", body = TokensView),
    (status = 401, description = "`invalid_credentials`"),
    (status = 429, description = "`rate_limited`: too many wrong passwords or sign-ups"),
))]
pub(crate) async fn sign_in(
    State(app): State<Arc<App>>,
    Address(from): Address,
    Body(input): Body<SignIn>,
) -> Result<(StatusCode, Json<TokensView>)> {
    if input.password.len() > PASSWORD_MAX_BYTES {
        return Err(Error::invalid("password", "at most 1,024 bytes"));
    }
    let name = device_name(input.device_name)?;
    let store = &app.deps.store;
    let (account, email) = match (&input.email, &input.username) {
        (Some(email), _) => {
            let email = accounts::email(email)?;
            (store.account_by_email(&email).await?, Some(email))
        }
        (None, Some(username)) => (store.account_by_username(username).await?, None),
        (None, None) => return Err(Error::invalid("email", "email or username is needed")),
    };
    let (account, status) = match (account, email) {
        (None, Some(email)) => sign_up_by_email(&app, from, &email, input.password).await?,
        (account, _) => (check(&app, from, account, input.password).await?, StatusCode::OK),
    };
    tracing::info!(user = %account.id, new = status == StatusCode::CREATED, "signed in");
    Ok((status, Json(new_device(&app, &account, name).await?)))
}

/// Creates an account and signs in.
#[utoipa::path(post, path = "/v1/auth/sign-up", tag = "auth", security(()), request_body = SignUp, responses(
    (status = 201, description = "Signed up", body = TokensView),
    (status = 409, description = "`username_taken`, `email_taken`"),
    (status = 429, description = "`rate_limited`: too many sign-ups from this address"),
))]
pub(crate) async fn sign_up(
    State(app): State<Arc<App>>,
    Address(from): Address,
    Body(input): Body<SignUp>,
) -> Result<(StatusCode, Json<TokensView>)> {
    let username = accounts::username(&input.username)?;
    let password = accounts::password(input.password)?;
    let email = input.email.as_deref().map(accounts::email).transpose()?;
    let display_name = input.display_name.unwrap_or_default();
    let display_name = accounts::text("display_name", &display_name, accounts::DISPLAY_NAME_MAX_CHARS)?;
    let device = device_name(input.device_name)?;
    app.limits.sign_up_allowed(from).map_err(too_often)?;
    // Before the hash, which costs a hundred times as much; creating it settles who is first.
    if app.deps.store.account_by_username(&username).await?.is_some() {
        return Err(taken(Taken::Username));
    }
    let hash = app.passwords.hash(password, app.ids.secret()).await?;
    let id = schemas::UserId(app.ids.next());
    let account =
        Account { email, password_hash: Some(hash), ..accounts::new(id, username, display_name, app.deps.clock.now()) };
    app.deps.store.create_account(account.clone()).await?.map_err(taken)?;
    tracing::info!(user = %account.id, "signed up");
    Ok((StatusCode::CREATED, Json(new_device(&app, &account, device).await?)))
}

/// Spends a refresh token for new tokens. An answer that was lost may be asked again for 10 s.
#[utoipa::path(post, path = "/v1/auth/refresh", tag = "auth", security(()), request_body = Refresh, responses(
    (status = 200, description = "Both tokens anew", body = TokensView),
    (status = 401, description = "`token_reused`: the device is signed out now; `token_expired`; `unauthorized`"),
))]
pub(crate) async fn refresh(State(app): State<Arc<App>>, Body(input): Body<Refresh>) -> Result<Json<TokensView>> {
    let fail = |code: Code, detail: &'static str| {
        app.metrics.auth_failures.with_label_values(&[code.as_str()]).inc();
        Err(Error::new(code, detail))
    };
    let Some(token) = RefreshToken::parse(&input.refresh_token) else {
        return fail(Code::Unauthorized, "not a refresh token");
    };
    let now = app.deps.clock.now();
    let expires_at = now.after(app.config.refresh_ttl());
    let grace = Duration::from_millis(app.config.refresh_grace_ms);
    match spend(&*app.deps.store, &app.keys, &token, now, expires_at, grace).await? {
        Refreshed::Next { user, device, token } => {
            let account = app.deps.store.accounts(&[user]).await?.pop().ok_or_else(Error::unavailable)?;
            Ok(Json(tokens(&app, &account, device, &token).await?))
        }
        Refreshed::Reused { user, device } => {
            tracing::warn!(%user, %device, "a spent refresh token came back: the device is signed out");
            app.apply_revocation(user, Some(device), now, RevocationReason::Reused);
            fail(Code::TokenReused, "this token was already spent: the device is signed out, sign in again")
        }
        Refreshed::Dead => fail(Code::TokenExpired, "the token has ended: sign in again"),
        Refreshed::Unknown => fail(Code::Unauthorized, "not a refresh token"),
    }
}

/// Signs the device out: its tokens are dead, its sockets are closed with 4504.
#[utoipa::path(post, path = "/v1/auth/sign-out", tag = "auth", responses(
    (status = 204, description = "Signed out"),
    (status = 403, description = "`forbidden`: tokens of another issuer end there"),
))]
pub(crate) async fn sign_out(State(app): State<Arc<App>>, Caller(caller): Caller) -> Result<StatusCode> {
    let Some(device) = caller.device else {
        return Err(Error::new(Code::Forbidden, "this token is of another issuer: sign out there"));
    };
    app.revoke(caller.user, device, RevocationReason::SignedOut).await?;
    tracing::info!(user = %caller.user, %device, "signed out");
    Ok(StatusCode::NO_CONTENT)
}

fn device_name(name: Option<String>) -> Result<String> {
    accounts::text("device_name", &name.unwrap_or_default(), DEVICE_NAME_MAX_CHARS)
}

/// A try above the rate: of this address, or for this account. Whoever tries passwords at an account from here is counted
/// here; its owner, who has the right one, is refused as well while others try, but does not try a hundred times.
fn too_often(wait: Duration) -> Error {
    Error::rate_limited(wait).counted_as(Offence::Credentials)
}

fn taken(taken: Taken) -> Error {
    match taken {
        Taken::Username => Error::new(Code::UsernameTaken, "another account has this username"),
        Taken::Email => Error::new(Code::EmailTaken, "another account has this e-mail address"),
    }
}

/// The account, if the password is its own. Whoever is unknown costs the same time.
async fn check(app: &App, from: Network, account: Option<Account>, password: String) -> Result<Account> {
    let id = account.as_ref().map(|account| account.id);
    app.limits.sign_in_allowed(from, id).map_err(|refused| too_often(refused.wait()))?;
    let phc = account.as_ref().and_then(|account| account.password_hash.clone());
    let verdict = app.passwords.verify(password.clone(), phc).await;
    if !matches!(verdict, Ok(Verdict::Wrong)) {
        app.limits.sign_in_was_none(from, id);
    }
    match (account, verdict?) {
        (Some(account), Verdict::Right) => Ok(account),
        (Some(account), Verdict::RightButOld) => {
            let hash = app.passwords.hash(password, app.ids.secret()).await?;
            app.deps.store.set_password_hash(account.id, &hash).await?;
            Ok(account)
        }
        _ => {
            app.metrics.auth_failures.with_label_values(&[Code::InvalidCredentials.as_str()]).inc();
            Err(Error::new(Code::InvalidCredentials, "e-mail, username or password do not fit together"))
        }
    }
}

/// Creates an account under an unknown address, with a username after it.
async fn sign_up_by_email(app: &App, from: Network, email: &str, password: String) -> Result<(Account, StatusCode)> {
    let password = accounts::password(password)?;
    app.limits.sign_up_allowed(from).map_err(too_often)?;
    let hash = app.passwords.hash(password.clone(), app.ids.secret()).await?;
    let base = accounts::derived_username(email);
    let mut account = Account {
        email: Some(email.to_owned()),
        password_hash: Some(hash),
        ..accounts::new(schemas::UserId(app.ids.next()), base.clone(), String::new(), app.deps.clock.now())
    };
    for _ in 0..USERNAME_TRIES {
        match app.deps.store.create_account(account.clone()).await? {
            Ok(()) => return Ok((account, StatusCode::CREATED)),
            Err(Taken::Email) => {
                // Someone signed up with this address at the same moment: perhaps the same person, twice.
                let first = app.deps.store.account_by_email(email).await?;
                return Ok((check(app, from, first, password).await?, StatusCode::OK));
            }
            Err(Taken::Username) => {
                let ending = u32::from_be_bytes(app.ids.secret());
                account.username = accounts::suffixed(&base, &format!("{ending:08x}"));
            }
        }
    }
    Err(Error::unavailable())
}

/// A new device with its first tokens.
async fn new_device(app: &App, account: &Account, name: String) -> Result<TokensView> {
    let now = app.deps.clock.now();
    let token = RefreshToken::first(app.ids.secret());
    let id = DeviceId(app.ids.next());
    let device = devices::Device { id, user: account.id, name, created_at: now, last_seen: now, revoked: false };
    let expires_at = now.after(app.config.refresh_ttl());
    let row = devices::RefreshToken { hash: token.hash(), device: id, user: account.id, expires_at, spent: None };
    app.deps.store.create_device(device, row).await?;
    tokens(app, account, id, &token).await
}

async fn tokens(app: &App, account: &Account, device: DeviceId, refresh: &RefreshToken) -> Result<TokensView> {
    let (now, ttl) = (app.deps.clock.now(), app.config.access_ttl());
    let access_token =
        app.tokens.sign(&app.keys, (account.id, device), app.ids.next(), now, ttl).ok_or_else(Error::unavailable)?;
    let user = app.profiles(account.id, std::slice::from_ref(account)).await.pop().ok_or_else(Error::unavailable)?;
    Ok(TokensView {
        access_token,
        token_type: "Bearer".into(),
        expires_in: ttl.as_secs(),
        refresh_token: refresh.text(),
        refresh_expires_in: app.config.refresh_ttl_s,
        device,
        user,
    })
}
