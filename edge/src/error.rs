//! What goes wrong, as a client sees it: RFC 9457 problems with stable codes. The only place that knows which code has
//! which HTTP status and which close code. Says nothing of SQL, addresses or stack traces.
//!
//! Input that can't be understood or is never valid is always 422 `invalid`, broken JSON among it, with a JSON
//! pointer (RFC 6901, as a URI fragment) for each fault; header fields, path and query stand under their own names.

use std::borrow::Cow;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemas::frame::close;
use schemas::link::Unavailable;
use schemas::outcome::{RejectCode, Rejected};
use serde::{Deserialize, Serialize};

use crate::auth::AuthError;
use crate::blocks::Offence;
use crate::limits::Refused;

/// A stable code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// Input that is never valid.
    Invalid,
    /// E-mail, username or password do not fit together.
    InvalidCredentials,
    /// No access token, or one that was never valid here.
    Unauthorized,
    /// A token past its time.
    TokenExpired,
    /// A refresh token that was already spent.
    TokenReused,
    /// A token that was taken back.
    TokenRevoked,
    /// A room that the caller knows of but is not in.
    NotAMember,
    /// The other side has blocked the caller.
    Blocked,
    /// In the room, but without the role for it.
    Forbidden,
    /// No such thing, as far as the caller may know.
    NotFound,
    /// The path exists, the method does not.
    MethodNotAllowed,
    /// Another account has this username.
    UsernameTaken,
    /// Another account has this e-mail address.
    EmailTaken,
    /// Another room has this handle.
    HandleTaken,
    /// The state forbids it.
    Conflict,
    /// Over a size limit.
    TooLarge,
    /// A socket's path, but not its handshake.
    UpgradeRequired,
    /// Too often.
    RateLimited,
    /// Unknown whether it happened: try again under the same id.
    Unavailable,
    /// A fault of ours.
    Internal,
}

impl Code {
    /// The stable name, the HTTP status and the title.
    fn form(self) -> (&'static str, StatusCode, &'static str) {
        match self {
            Self::Invalid => ("invalid", StatusCode::UNPROCESSABLE_ENTITY, "Invalid input"),
            Self::InvalidCredentials => ("invalid_credentials", StatusCode::UNAUTHORIZED, "Wrong credentials"),
            Self::Unauthorized => ("unauthorized", StatusCode::UNAUTHORIZED, "No valid access token"),
            Self::TokenExpired => ("token_expired", StatusCode::UNAUTHORIZED, "The token has ended"),
            Self::TokenReused => ("token_reused", StatusCode::UNAUTHORIZED, "The token was already used"),
            Self::TokenRevoked => ("token_revoked", StatusCode::UNAUTHORIZED, "The token was revoked"),
            Self::NotAMember => ("not_a_member", StatusCode::FORBIDDEN, "Not a member"),
            Self::Blocked => ("blocked", StatusCode::FORBIDDEN, "Blocked"),
            Self::Forbidden => ("forbidden", StatusCode::FORBIDDEN, "Not allowed"),
            Self::NotFound => ("not_found", StatusCode::NOT_FOUND, "Not found"),
            Self::MethodNotAllowed => {
                ("method_not_allowed", StatusCode::METHOD_NOT_ALLOWED, "This method is not for this path")
            }
            Self::UsernameTaken => ("username_taken", StatusCode::CONFLICT, "The username is taken"),
            Self::EmailTaken => ("email_taken", StatusCode::CONFLICT, "The e-mail address is taken"),
            Self::HandleTaken => ("handle_taken", StatusCode::CONFLICT, "The handle is taken"),
            Self::Conflict => ("conflict", StatusCode::CONFLICT, "Not in this state"),
            Self::TooLarge => ("too_large", StatusCode::PAYLOAD_TOO_LARGE, "Too large"),
            Self::UpgradeRequired => ("upgrade_required", StatusCode::UPGRADE_REQUIRED, "Not a WebSocket handshake"),
            Self::RateLimited => ("rate_limited", StatusCode::TOO_MANY_REQUESTS, "Too often"),
            Self::Unavailable => ("unavailable", StatusCode::SERVICE_UNAVAILABLE, "Unavailable"),
            Self::Internal => ("internal", StatusCode::INTERNAL_SERVER_ERROR, "A fault of the server"),
        }
    }

    /// The stable name.
    pub fn as_str(self) -> &'static str {
        self.form().0
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        self.form().1
    }

    /// The code of a rejected command.
    fn of(code: RejectCode) -> Self {
        match code {
            RejectCode::NotAMember => Self::NotAMember,
            RejectCode::Blocked => Self::Blocked,
            RejectCode::TooLarge => Self::TooLarge,
            RejectCode::RateLimited => Self::RateLimited,
            RejectCode::Unavailable => Self::Unavailable,
            RejectCode::Invalid => Self::Invalid,
            RejectCode::Forbidden => Self::Forbidden,
            RejectCode::NotFound => Self::NotFound,
            RejectCode::Conflict => Self::Conflict,
        }
    }

    /// What a framework's bare answer of this status means.
    pub(crate) fn of_status(status: StatusCode) -> Option<Self> {
        match status {
            StatusCode::NOT_FOUND => Some(Self::NotFound),
            StatusCode::METHOD_NOT_ALLOWED => Some(Self::MethodNotAllowed),
            StatusCode::PAYLOAD_TOO_LARGE => Some(Self::TooLarge),
            status if status.is_client_error() => Some(Self::Invalid),
            status if status.is_server_error() => Some(Self::Internal),
            _ => None,
        }
    }
}

/// One fault of the input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Fault {
    /// Where: a JSON pointer as a URI fragment, `#/content/type`.
    pub pointer: String,
    /// What is wrong, for people.
    pub detail: String,
}

/// A problem as it is sent (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// A URI of the kind of problem.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem, for people.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong here, for people.
    pub detail: String,
    /// The kind of problem, for programs: stable.
    pub code: String,
    /// Quote it when you report the problem.
    pub request_id: String,
    /// Each fault of invalid input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<Fault>,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", code.as_str())]
pub struct Error {
    /// Which kind.
    pub code: Code,
    /// What is wrong here, for people.
    pub detail: Cow<'static, str>,
    /// Each fault of invalid input.
    pub faults: Vec<Fault>,
    /// When to try again.
    pub retry_after: Option<Duration>,
    /// What of it counts against the caller.
    pub offence: Option<Offence>,
}

/// What a handler returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of this kind.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        let retry_after = (code == Code::Unavailable).then_some(Duration::from_secs(1));
        Self { code, detail: detail.into(), faults: Vec::new(), retry_after, offence: None }
    }

    /// Invalid input with one fault; `at` is the path inside the body, as `content/type`.
    pub fn invalid(at: &str, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        let faults = vec![Fault { pointer: format!("#/{at}"), detail: detail.clone() }];
        Self { faults, ..Self::new(Code::Invalid, detail) }
    }

    /// No such thing, as far as the caller may know.
    pub fn not_found() -> Self {
        Self::new(Code::NotFound, "there is no such thing, or it is not for you")
    }

    /// Unknown whether it happened.
    pub fn unavailable() -> Self {
        Self::new(Code::Unavailable, "try again under the same id")
    }

    /// Too often; may be tried again after this time.
    pub fn rate_limited(retry_after: Duration) -> Self {
        Self { retry_after: Some(retry_after), ..Self::new(Code::RateLimited, "too often; wait, then try again") }
    }

    /// A limit has been reached. What others have used up as well counts against nobody.
    pub fn refused(refused: Refused) -> Self {
        let error = Self::rate_limited(refused.wait());
        match refused {
            Refused::Own(_) => error.counted_as(Offence::Flood),
            Refused::Shared(_) => error,
        }
    }

    /// The same, which counts against the caller.
    #[must_use]
    pub fn counted_as(self, offence: Offence) -> Self {
        Self { offence: Some(offence), ..self }
    }

    /// The code of a frame that says the same of a command.
    pub(crate) fn reject_code(&self) -> RejectCode {
        if self.code == Code::TooLarge { RejectCode::TooLarge } else { RejectCode::Invalid }
    }

    /// The problem that stands for this error.
    fn problem(&self, request_id: &str) -> Problem {
        let (code, status, title) = self.code.form();
        Problem {
            kind: format!("urn:posthaste:problem:{code}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: self.detail.to_string(),
            code: code.to_owned(),
            request_id: request_id.to_owned(),
            errors: self.faults.clone(),
        }
    }

    /// The answer that stands for this error.
    pub(crate) fn respond(&self, request_id: &str) -> Response {
        let mut response = (self.code.status(), Json(self.problem(request_id))).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(wait) = self.retry_after {
            // Whole seconds, never 0: a client that reads 0 would come back at once.
            headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs_f64().ceil().max(1.0) as u64));
        }
        if self.code.status() == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.code == Code::UpgradeRequired {
            headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        }
        response
    }
}

impl IntoResponse for Error {
    /// Carries the error to the outermost layer, which knows the request's id and writes the problem.
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Unavailable> for Error {
    fn from(_: Unavailable) -> Self {
        Self::unavailable()
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Unavailable(_) | store::Error::Behind => Self::unavailable(),
            store::Error::Broken(reason) => {
                tracing::error!(%reason, "the store is broken");
                Self::new(Code::Internal, "the fault is logged")
            }
        }
    }
}

impl From<AuthError> for Error {
    fn from(error: AuthError) -> Self {
        match error {
            AuthError::Missing => Self::new(Code::Unauthorized, "an access token is needed"),
            AuthError::Invalid(_) => {
                Self::new(Code::Unauthorized, "the access token is not valid here").counted_as(Offence::Forged)
            }
            AuthError::Expired => Self::new(Code::TokenExpired, "the access token has ended: refresh it"),
            AuthError::Revoked => Self::new(Code::TokenRevoked, "the access token was revoked: sign in again"),
            AuthError::Unavailable => Self::unavailable(),
        }
    }
}

impl From<&Rejected> for Error {
    fn from(rejected: &Rejected) -> Self {
        if rejected.code == RejectCode::NotFound {
            // In the words of every other "not found": which step found nothing would tell what exists.
            return Self::not_found();
        }
        let retry_after = rejected.retry_after_ms.map(|ms| Duration::from_millis(u64::from(ms)));
        let error = Self::new(Code::of(rejected.code), rejected.detail.clone());
        Self { retry_after: retry_after.or(error.retry_after), ..error }
    }
}

impl AuthError {
    /// The code that closes a socket whose token fails so.
    pub fn close_code(&self) -> u16 {
        match self {
            Self::Missing | Self::Invalid(_) | Self::Revoked => close::TOKEN_INVALID,
            Self::Expired => close::TOKEN_ENDED,
            Self::Unavailable => close::TRY_LATER,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sent(error: Error) -> (StatusCode, axum::http::HeaderMap, serde_json::Value) {
        let (parts, body) = error.respond("req-1").into_parts();
        let bytes = axum::body::to_bytes(body, 65_536).await.expect("a small body");
        (parts.status, parts.headers, serde_json::from_slice(&bytes).expect("a problem is JSON"))
    }

    #[tokio::test]
    async fn a_problem_has_the_fields_of_rfc_9457_and_our_own() {
        let (status, headers, body) = sent(Error::invalid("content/type", "must be a MIME type")).await;
        assert_eq!(status, 422);
        assert_eq!(headers[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(
            body,
            serde_json::json!({
                "type": "urn:posthaste:problem:invalid", "title": "Invalid input", "status": 422,
                "detail": "must be a MIME type", "code": "invalid", "request_id": "req-1",
                "errors": [{"pointer": "#/content/type", "detail": "must be a MIME type"}],
            })
        );
    }

    #[tokio::test]
    async fn too_often_and_unavailable_say_when_to_come_back() {
        let (status, headers, _) = sent(Error::rate_limited(Duration::from_millis(1_200))).await;
        assert_eq!((status.as_u16(), headers[header::RETRY_AFTER].to_str().ok()), (429, Some("2")));
        let (status, headers, _) = sent(Error::from(Unavailable)).await;
        assert_eq!((status.as_u16(), headers[header::RETRY_AFTER].to_str().ok()), (503, Some("1")));
    }

    #[tokio::test]
    async fn what_the_store_says_stays_inside() {
        let (status, _, body) = sent(store::Error::Broken("SQL error in /var/lib/x".into()).into()).await;
        assert_eq!(status, 500);
        assert!(!body.to_string().contains("SQL"), "{body}");
    }
}
