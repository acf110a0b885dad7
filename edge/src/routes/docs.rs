//! The description of the API and the page to try it on, until a web client takes the root.

use std::sync::Arc;

use axum::Router;
use axum::response::Redirect;
use axum::routing::get;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::App;

/// `/docs`, `/openapi.json`, and `/` leading there.
pub(super) fn pages() -> Router<Arc<App>> {
    let config = Config::default().persist_authorization(true).try_it_out_enabled(true);
    let ui = SwaggerUi::new("/docs").url("/openapi.json", crate::openapi::document()).config(config);
    Router::from(ui).route("/", get(async || Redirect::temporary("/docs")))
}
