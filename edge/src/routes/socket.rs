//! From HTTP to a socket: who may open one; the rest is [`crate::socket`].

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::extract::{Request, State};
use axum::response::Response;
use schemas::{RoomId, UserId};
use store::shut_outs::{Network, Subject};
use tokio::sync::OwnedSemaphorePermit;
use uuid::Uuid;

use crate::App;
use crate::auth::Identity;
use crate::blocks::Offence;
use crate::error::{Code, Error, Result};
use crate::extract::Address;
use crate::guard::wait_ms;
use crate::limits::{Bucket, Place, Refused};
use crate::socket::session::Context;
use crate::socket::upgrade::{NotASocket, upgrade};
use crate::socket::{Gate, Kept};

#[async_trait]
impl Gate for App {
    async fn authenticate(&self, token: &str) -> Result<Identity, u16> {
        Self::authenticate(self, token).await.map_err(|error| error.close_code())
    }

    fn is_revoked(&self, identity: &Identity) -> bool {
        self.revocations.revoked(identity)
    }

    fn next_id(&self) -> Uuid {
        self.ids.next()
    }

    fn allow_frame(&self, user: UserId, allowance: &mut Option<Bucket>) -> Result<(), u32> {
        self.limits.frame_allowed(allowance).map_err(|wait| {
            self.offended(Subject::Account(user), Offence::Flood);
            wait_ms(wait)
        })
    }

    fn allow_send(&self, user: UserId, room: RoomId) -> Result<(), u32> {
        self.limits.send_allowed(user, room).map_err(|refused| {
            if let Refused::Own(_) = refused {
                self.offended(Subject::Account(user), Offence::Flood);
            }
            wait_ms(refused.wait())
        })
    }

    fn allow_socket(&self, user: UserId) -> Result<Place<UserId>, u32> {
        if let Some(wait) = self.shut_out(Subject::Account(user)) {
            return Err(wait_ms(wait));
        }
        self.limits.socket_of(user).map_err(|wait| {
            self.metrics.sockets_refused.with_label_values(&["user"]).inc();
            self.offended(Subject::Account(user), Offence::Flood);
            wait_ms(wait)
        })
    }

    fn hello_timeout(&self) -> Duration {
        self.config.hello_timeout()
    }
}

/// What a socket holds for as long as it lives, from its upgrade on.
struct Held {
    app: Arc<App>,
    from: Network,
    _place: Place<Network>,
    _seat: OwnedSemaphorePermit,
}

impl Kept for Held {
    fn offended(&self, account: Option<UserId>, offence: Offence) {
        self.app.offended(account.map_or(Subject::Address(self.from), Subject::Account), offence);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.app.metrics.connections.dec();
    }
}

/// Opens a WebSocket (RFC 6455) with the subprotocol `posthaste.v1.json`; frames are `ClientFrame` and `ServerFrame`.
///
/// The access token comes in the Authorization header or in the first frame.
#[utoipa::path(get, path = "/v1/socket", tag = "socket", security((), ("bearer" = [])), responses(
    (status = 101, description = "The connection is a socket now"),
    (status = 403, description = "`forbidden`: the page's origin is not on the list"),
    (status = 429, description = "`rate_limited`: as many sockets of this address are open as may be"),
    (status = 426, description = "`upgrade_required`: not a WebSocket handshake of version 13"),
))]
pub(crate) async fn open_socket(
    State(app): State<Arc<App>>,
    Address(from): Address,
    request: Request,
) -> Result<Response> {
    if !app.origin_allowed(request.headers()) {
        return Err(Error::new(Code::Forbidden, "pages of this origin may not open sockets here"));
    }
    // A socket leaves its place among the connections: the same bound counts for sockets apart, so that a full house of
    // them leaves room for calls.
    let seat = app.sockets.clone().try_acquire_owned().map_err(|_| Error::unavailable())?;
    let place = app.limits.socket_from(from).map_err(|wait| {
        app.metrics.sockets_refused.with_label_values(&["address"]).inc();
        Error::refused(Refused::Own(wait))
    })?;
    app.metrics.connections.inc();
    let kept = Held { app: app.clone(), from, _place: place, _seat: seat };
    let context = Context { hub: app.hub.clone(), gate: app };
    match upgrade(request, context, kept) {
        Ok(response) => Ok(response),
        Err(NotASocket::NoHandshake) => {
            Err(Error::new(Code::UpgradeRequired, "a WebSocket handshake of version 13 is needed"))
        }
        Err(NotASocket::UnknownSubprotocol) => {
            Err(Error::invalid("Sec-WebSocket-Protocol", "posthaste.v1.json is spoken here"))
        }
    }
}
