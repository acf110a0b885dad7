//! `GET /v1/socket`: from HTTP to a session (RFC 6455 section 4.2).

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use schemas::frame::SUBPROTOCOL;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::Kept;
use super::frames::Link;
use super::session::{self, Context};
use crate::server::watched::Watched;

/// Why a request is no WebSocket handshake of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotASocket {
    /// Not a handshake of version 13 at all.
    NoHandshake,
    /// It asks for subprotocols, and none of them is spoken here.
    UnknownSubprotocol,
}

/// Answers the handshake and starts a session once the connection is the socket's, which keeps `kept` as long as it
/// lives. The caller has checked the Origin.
pub fn upgrade<K: Kept>(mut request: Request<Body>, context: Context, kept: K) -> Result<Response<Body>, NotASocket> {
    let headers = request.headers();
    let key = handshake_key(headers).ok_or(NotASocket::NoHandshake)?;
    let subprotocol = subprotocol(headers)?;
    let bearer = bearer(headers);
    let accept = derive_accept_key(key.as_bytes());
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        // Each session is a task of its own: what the handshake needed does not live as long as the socket.
        match upgraded.await.map(take_over) {
            Ok(Some(Taken::Plain(link))) => drop(tokio::spawn(session::run(link, context, bearer, kept))),
            Ok(Some(Taken::Tls(link))) => drop(tokio::spawn(session::run(link, context, bearer, kept))),
            Ok(None) => tracing::error!("a socket came over a connection of unknown kind"),
            Err(error) => tracing::debug!(%error, "a handshake was not finished"),
        }
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    if let Ok(accept) = HeaderValue::from_str(&accept) {
        answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if subprotocol {
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
    }
    Ok(response)
}

/// A connection over TLS; boxed, for it is large, and most of a session's life it only waits.
type TlsConnection = Box<TlsStream<TcpStream>>;

/// A connection that is a socket's now.
enum Taken {
    Plain(Link<TcpStream>),
    Tls(Link<TlsConnection>),
}

/// Takes the connection out of hyper, its buffers with it: an idle socket shall not pay for them.
fn take_over(upgraded: hyper::upgrade::Upgraded) -> Option<Taken> {
    let upgraded = match upgraded.downcast::<TokioIo<Watched<TcpStream>>>() {
        Ok(parts) => return Some(Taken::Plain(Link::new(parts.io.into_inner().into_inner(), &parts.read_buf))),
        Err(upgraded) => upgraded,
    };
    let parts = upgraded.downcast::<TokioIo<Watched<TlsConnection>>>().ok()?;
    Some(Taken::Tls(Link::new(parts.io.into_inner().into_inner(), &parts.read_buf)))
}

fn handshake_key(headers: &HeaderMap) -> Option<String> {
    let has = |name: header::HeaderName, token: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    };
    let is_ours = has(header::CONNECTION, "upgrade")
        && has(header::UPGRADE, "websocket")
        && has(header::SEC_WEBSOCKET_VERSION, "13");
    let key = headers.get(header::SEC_WEBSOCKET_KEY)?.to_str().ok()?;
    is_ours.then(|| key.to_owned())
}

/// Whether to name the subprotocol: only where the client does.
fn subprotocol(headers: &HeaderMap) -> Result<bool, NotASocket> {
    let mut asked = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().peekable();
    if asked.peek().is_none() {
        return Ok(false);
    }
    let ours = asked
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split(',').any(|part| part.trim() == SUBPROTOCOL));
    if ours { Ok(true) } else { Err(NotASocket::UnknownSubprotocol) }
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn only_a_handshake_of_version_13_is_one() {
        let good = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        assert!(handshake_key(&headers(&good)).is_some());
        for left_out in 0..good.len() {
            let mut list = good.to_vec();
            list.remove(left_out);
            assert!(handshake_key(&headers(&list)).is_none(), "without {}", good[left_out].0);
        }
    }

    #[test]
    fn a_subprotocol_is_named_only_where_the_client_names_it() {
        assert_eq!(subprotocol(&headers(&[])), Ok(false));
        let ours = headers(&[("sec-websocket-protocol", "mqtt, posthaste.v1.json")]);
        assert_eq!(subprotocol(&ours), Ok(true));
        let other = headers(&[("sec-websocket-protocol", "mqtt")]);
        assert_eq!(subprotocol(&other), Err(NotASocket::UnknownSubprotocol));
    }
}
