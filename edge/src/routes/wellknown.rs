//! What others look for at the root.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;

use crate::App;
use crate::auth::keys::Jwks;

/// The keys that access tokens are signed with (RFC 7517).
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "auth", security(()), responses(
    (status = 200, description = "The keys", body = Jwks),
))]
pub(crate) async fn jwks(State(app): State<Arc<App>>) -> impl IntoResponse {
    // A minute: whoever verifies elsewhere shall see a new key soon.
    ([(header::CACHE_CONTROL, "public, max-age=60")], Json(app.keys.jwks()))
}
