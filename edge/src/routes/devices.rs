//! One's own devices: where one is signed in, and signing out elsewhere.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use schemas::{DeviceId, Timestamp};
use store::devices::RevocationReason;

use crate::App;
use crate::error::{Error, Result};
use crate::extract::{Caller, Paging, Query, path_id};
use crate::views::{DeviceView, Page, cursor, parse_cursor};

/// Where one is signed in, newest first.
#[utoipa::path(get, path = "/v1/me/devices", tag = "me", params(Paging), responses(
    (status = 200, description = "One's devices; none of another issuer's", body = Page<DeviceView>),
))]
pub(crate) async fn list_devices(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Query(paging): Query<Paging>,
) -> Result<Json<Page<DeviceView>>> {
    let limit = paging.limit()?;
    let after: Option<(Timestamp, DeviceId)> = parse_cursor(paging.cursor.as_deref())?;
    let mut devices = app.deps.store.devices_of(caller.user).await?;
    devices.retain(|device| after.is_none_or(|after| (device.created_at, device.id) < after));
    let more = devices.len() > limit;
    devices.truncate(limit);
    let next_cursor = devices.last().filter(|_| more).and_then(|last| cursor(&(last.created_at, last.id)));
    let items = devices.into_iter().map(|device| DeviceView {
        id: device.id,
        name: device.name,
        created_at: device.created_at,
        last_seen: device.last_seen,
        current: caller.device == Some(device.id),
    });
    Ok(Json(Page { items: items.collect(), next_cursor }))
}

/// Signs one of one's own devices out: its tokens are dead, its sockets are closed with 4504. Repeating it changes
/// nothing.
#[utoipa::path(delete, path = "/v1/me/devices/{device}", tag = "me", params(("device" = DeviceId, Path,)), responses(
    (status = 204, description = "Signed out"),
    (status = 404, description = "`not_found`: no device, or another person's"),
))]
pub(crate) async fn sign_device_out(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Path(device): Path<String>,
) -> Result<StatusCode> {
    let device: DeviceId = path_id(&device)?;
    let known = app.deps.store.device(device).await?;
    known.filter(|known| known.user == caller.user).ok_or_else(Error::not_found)?;
    app.revoke(caller.user, device, RevocationReason::SignedOut).await?;
    tracing::info!(user = %caller.user, %device, by = ?caller.device, "signed out");
    Ok(StatusCode::NO_CONTENT)
}
