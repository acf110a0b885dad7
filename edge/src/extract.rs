//! What handlers take from a request, with faults told in our own form: who calls, the body, the query, the
//! idempotency key, the address.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap, HeaderName, header};
use http_body_util::LengthLimitError;
pub(crate) use schemas::json::Object;
use schemas::limits::{FRAME_MAX_BYTES, ID_AHEAD_MAX, PAGE_MAX};
use schemas::{Clock, CommandId, UserId};
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;
use store::shut_outs::{Network, Subject};
use utoipa::IntoParams;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterIn};

use crate::App;
use crate::auth::{AuthError, Identity};
use crate::blocks::Offence;
use crate::error::{Code, Error, Fault, Result};
use crate::forms;

/// Names a command, so that a retry acts at most once (protocol.md).
pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Where a connection comes from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// The account that a request turns out to be of, for whoever is to know it afterwards.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account(Arc<OnceLock<UserId>>);

impl Account {
    /// The account, where the request had one.
    pub fn get(&self) -> Option<UserId> {
        self.0.get().copied()
    }
}

/// Who calls.
pub(crate) struct Caller(pub Identity);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self> {
        let Some(token) = bearer(&parts.headers) else {
            app.metrics.auth_failures.with_label_values(&[AuthError::Missing.reason()]).inc();
            return Err(AuthError::Missing.into());
        };
        let identity = app.authenticate(token).await?;
        if let Some(wait) = app.shut_out(Subject::Account(identity.user)) {
            return Err(Error::rate_limited(wait));
        }
        if let Some(account) = parts.extensions.get::<Account>() {
            account.0.get_or_init(|| identity.user);
        }
        Ok(Self(identity))
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// What rate limits count as one address.
pub(crate) struct Address(pub Network);

impl FromRequestParts<Arc<App>> for Address {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self> {
        Ok(Self(app.limits.network(address(app, &parts.extensions, &parts.headers))))
    }
}

/// Who asks, as far as proxies can be believed.
pub(crate) fn address(app: &App, extensions: &Extensions, headers: &HeaderMap) -> IpAddr {
    let peer = extensions.get::<Peer>().map(|peer| app.proxies.client(peer.0.ip(), headers));
    peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

/// The id of the command, if the caller gives one.
pub(crate) struct Key(pub Option<CommandId>);

impl FromRequestParts<Arc<App>> for Key {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self> {
        let Some(value) = parts.headers.get(IDEMPOTENCY_KEY) else { return Ok(Self(None)) };
        let id = value.to_str().ok().and_then(|text| text.trim().parse().ok());
        let id = id.ok_or_else(|| Error::invalid("Idempotency-Key", "not a UUID"))?;
        command_id("Idempotency-Key", id, &*app.deps.clock).map(|id| Self(Some(id)))
    }
}

impl IntoParams for Key {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let key = Parameter::builder().name("Idempotency-Key").parameter_in(ParameterIn::Header);
        let about = "UUIDv7, not more than 24 h ahead of server time; the same at every try";
        vec![key.required(Required::False).description(Some(about)).schema(Some(forms::idempotency_key())).build()]
    }
}

/// Says whether an id may name a command: a UUIDv7 not too far ahead of server time (protocol.md).
pub(crate) fn command_id(at: &str, id: CommandId, clock: &dyn Clock) -> Result<CommandId> {
    match id.unix_ms() {
        None => Err(Error::invalid(at, "not a UUIDv7")),
        Some(made) if made > clock.now().after(ID_AHEAD_MAX).0 => {
            Err(Error::invalid(at, "more than 24 h ahead of server time"))
        }
        Some(_) => Ok(id),
    }
}

/// A JSON body. None at all stands for `{}`.
pub(crate) struct Body<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Body<T> {
    type Rejection = Error;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self> {
        let read = axum::body::to_bytes(request.into_body(), FRAME_MAX_BYTES);
        let bytes = match tokio::time::timeout(app.config.request_read_timeout(), read).await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => {
                let error_of_ours = Error::new(Code::TooLarge, "the body is over the limit, or broke off");
                let is_over = error.into_inner().downcast_ref::<LengthLimitError>().is_some();
                return Err(if is_over { error_of_ours.counted_as(Offence::Oversized) } else { error_of_ours });
            }
            Err(_) => return Err(Error::invalid("", "the body did not come in time").counted_as(Offence::Slow)),
        };
        parse(if bytes.is_empty() { b"{}" } else { &bytes }).map(Self)
    }
}

fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let Object(value) = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let mut pointer = String::from("#");
        for segment in error.path() {
            match segment {
                Segment::Map { key } => pointer.push_str(&format!("/{}", key.replace('~', "~0").replace('/', "~1"))),
                Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
                Segment::Enum { .. } | Segment::Unknown => {}
            }
        }
        let text = error.inner().to_string();
        let detail = text.split(" at line ").next().unwrap_or_default().to_owned();
        // A field that is missing has no path of its own.
        if let Some(field) = detail.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
            pointer.push_str(&format!("/{field}"));
        }
        // What is JSON, but not what we ask for, is an honest mistake.
        let offence = (!error.inner().is_data()).then_some(Offence::Malformed);
        Error { faults: vec![Fault { pointer, detail: detail.clone() }], offence, ..Error::new(Code::Invalid, detail) }
    })?;
    reader.end().map_err(|_| Error::invalid("", "something follows the JSON value"))?;
    Ok(value)
}

/// A query.
pub(crate) struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Arc<App>> for Query<T> {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self> {
        match axum::extract::Query::try_from_uri(&parts.uri) {
            Ok(axum::extract::Query(query)) => Ok(Self(query)),
            Err(error) => {
                let text = error.body_text();
                let fault = text.trim_start_matches("Failed to deserialize query string: ");
                let (at, detail) = fault.split_once(": ").unwrap_or(("", fault));
                Err(Error::invalid(at, detail))
            }
        }
    }
}

/// `limit` and `cursor` of a list.
#[derive(Debug, Default, serde::Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Paging {
    /// At most so many items, 1 to 100; 50 if absent.
    #[param(minimum = 1, maximum = 100)]
    pub limit: Option<usize>,
    /// `next_cursor` of the page before.
    pub cursor: Option<String>,
}

impl Paging {
    /// How many items to give.
    pub fn limit(&self) -> Result<usize> {
        page_limit(self.limit)
    }
}

/// How many items a page shall have.
pub(crate) fn page_limit(limit: Option<usize>) -> Result<usize> {
    match limit {
        None => Ok(PAGE_MAX / 2),
        Some(limit) if (1..=PAGE_MAX).contains(&limit) => Ok(limit),
        Some(_) => Err(Error::invalid("limit", "1 to 100")),
    }
}

/// An id in a path: what is none names nothing.
pub(crate) fn path_id<T: FromStr>(text: &str) -> Result<T> {
    text.parse().map_err(|_| Error::not_found())
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::testing::ManualClock;

    #[derive(Debug, Deserialize)]
    struct Input {
        #[expect(dead_code, reason = "only parsed")]
        name: String,
        #[serde(default)]
        #[expect(dead_code, reason = "only parsed")]
        members: Vec<uuid::Uuid>,
        #[serde(default)]
        #[expect(dead_code, reason = "only parsed")]
        inner: Option<Object<Inner>>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        #[expect(dead_code, reason = "only parsed")]
        kind: String,
    }

    fn pointer(json: &str) -> String {
        let error = parse::<Input>(json.as_bytes()).expect_err("invalid");
        assert_eq!(error.code, Code::Invalid);
        error.faults[0].pointer.clone()
    }

    #[test]
    fn a_fault_is_pointed_at() {
        assert_eq!(pointer("{}"), "#/name");
        assert_eq!(pointer(r#"{"name": 5}"#), "#/name");
        assert_eq!(pointer(r#"{"name": "a", "members": ["no uuid"]}"#), "#/members/0");
        assert_eq!(pointer("{"), "#");
        assert_eq!(pointer("[]"), "#");
        assert_eq!(pointer(r#"["a", []]"#), "#", "not even with the right fields in it");
        assert_eq!(pointer(r#"{"name": "a", "inner": ["b"]}"#), "#/inner");
        assert_eq!(pointer(r#"{"name": "a", "inner": {"kind": 5}}"#), "#/inner/kind");
        assert_eq!(pointer(r#"{"name": "a", "inner": {}}"#), "#/inner/kind");
        assert_eq!(pointer("\u{0}"), "#");
        assert_eq!(pointer(r#"{"name": "a"} {}"#), "#/");
    }

    #[test]
    fn unknown_fields_are_ignored() {
        assert!(parse::<Input>(br#"{"name": "a", "more": {"x": 1}}"#).is_ok());
    }

    #[test]
    fn a_command_id_is_a_uuid_v7_of_no_far_future() {
        let clock = ManualClock::default();
        let made = |ms| CommandId(schemas::ids::uuid_v7(ms, [1; 10]));
        let day = 24 * 60 * 60 * 1_000;
        assert!(command_id("x", made(0), &clock).is_ok(), "any time later");
        assert!(command_id("x", made(clock.now().0 + day), &clock).is_ok());
        assert!(command_id("x", made(clock.now().0 + day + 1), &clock).is_err());
        assert!(command_id("x", CommandId(uuid::Uuid::from_u128(7)), &clock).is_err());
    }
}
