//! The calls of the REST API, one file per resource, and the layer around them: request ids, problems, metrics. A
//! mutation goes validate → command → [`Hub::submit`](crate::hub::Hub::submit) → answer; what may be is ingest's matter.

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use store::shut_outs::Subject;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::App;
use crate::config::Scheme;
use crate::error::{Code, Error};
use crate::extract::{Account, address};

mod auth;
mod devices;
mod direct;
mod docs;
mod me;
mod members;
mod messages;
mod receipts;
mod rooms;
mod socket;
mod users;
mod wellknown;

pub(crate) use messages::{MIME_MAX_BYTES, check as check_content};

/// Answers of the API are data: nothing in them is to be run, shown or framed.
const API_POLICY: &str = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page at `/docs`: its own scripts, which set styles and draw with data: images, and calls to this server.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A year without plain HTTP.
const ONLY_HTTPS: &str = "max-age=31536000";

/// Every documented call.
pub(crate) fn api() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(crate::openapi::base())
        .routes(routes!(auth::sign_in))
        .routes(routes!(auth::sign_up))
        .routes(routes!(auth::refresh))
        .routes(routes!(auth::sign_out))
        .routes(routes!(me::get_me, me::change_me))
        .routes(routes!(devices::list_devices))
        .routes(routes!(devices::sign_device_out))
        .routes(routes!(users::get_user))
        .routes(routes!(users::find_users))
        .routes(routes!(rooms::create_room, rooms::list_rooms))
        .routes(routes!(rooms::get_room, rooms::change_room, rooms::delete_room))
        .routes(routes!(members::join, members::leave))
        .routes(routes!(members::put_member, members::remove_member))
        .routes(routes!(members::list_members))
        .routes(routes!(members::list_online))
        .routes(routes!(direct::open_direct))
        .routes(routes!(messages::send, messages::history))
        .routes(routes!(receipts::list_receipts))
        .routes(routes!(socket::open_socket))
        .routes(routes!(wellknown::jwks))
}

/// All of it, ready to serve.
pub fn router(app: Arc<App>) -> Router {
    let (calls, _) = api().split_for_parts();
    calls
        .merge(docs::pages())
        .fallback(async || Error::not_found())
        .method_not_allowed_fallback(async || Error::new(Code::MethodNotAllowed, "another method, perhaps"))
        .layer(from_fn_with_state(app.clone(), finish))
        .with_state(app)
}

/// Gives each request an id, writes its problem if it has one, counts it, and what of it counts against its caller. Who is
/// shut out gets no further.
async fn finish(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let began = app.deps.clock.elapsed();
    let id = app.ids.next().to_string();
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let route = request.extensions().get::<MatchedPath>().map_or("none".to_owned(), |path| path.as_str().to_owned());
    let from = app.at(address(&app, request.extensions(), request.headers()));
    let account = Account::default();
    request.extensions_mut().insert(account.clone());
    let mut response = match app.shut_out(from) {
        Some(wait) => Error::rate_limited(wait).into_response(),
        None => next.run(request).await,
    };
    let error = response.extensions_mut().remove::<Error>();
    let bare = || {
        let typed = response.headers().contains_key("content-type");
        Code::of_status(response.status()).filter(|_| !typed).map(|code| Error::new(code, "the request is not right"))
    };
    if let Some(error) = error.or_else(bare) {
        if let Some(offence) = error.offence {
            app.offended(account.get().map_or(from, Subject::Account), offence);
        }
        if error.code == Code::Internal {
            tracing::error!(request = %id, %route, "a request failed");
        }
        response = error.respond(&id);
    }
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert("x-request-id", id);
    }
    protect(response.headers_mut(), &path, app.config.public_scheme);
    let seconds = app.deps.clock.elapsed().saturating_sub(began).as_secs_f64();
    app.metrics.request_seconds.with_label_values(&[&route]).observe(seconds);
    // Methods are the caller's to invent: labels are not.
    let method = if known_method(&method) { method.as_str() } else { "other" };
    app.metrics.requests.with_label_values(&[method, &route, response.status().as_str()]).inc();
    response
}

/// What keeps a browser from making more of an answer than it is.
fn protect(headers: &mut HeaderMap, path: &str, scheme: Scheme) {
    let policy = if path == "/docs" || path.starts_with("/docs/") { PAGE_POLICY } else { API_POLICY };
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if scheme == Scheme::Https {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static(ONLY_HTTPS));
    }
}

fn known_method(method: &axum::http::Method) -> bool {
    matches!(method.as_str(), "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS")
}
