//! What can go wrong, as far as a caller acts on it.

use schemas::outcome::RejectCode;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server's address can't be one.
    #[error("{0}")]
    Address(String),
    /// The server can't be reached, or said nothing in time. Nothing is lost: what was queued stays queued.
    #[error("the server can't be reached: {0}")]
    Unreachable(String),
    /// The server can't prove that it is who it should be, or this system says nobody to trust. Nothing is lost: what was
    /// queued stays queued.
    #[error("{0}")]
    Untrusted(String),
    /// The server refuses a call: an RFC 9457 problem.
    #[error("{code} ({status}): {detail}")]
    Refused {
        /// Status code.
        status: u16,
        /// What programs compare.
        code: String,
        /// For people.
        detail: String,
        /// When to try again, ms, where the server says so.
        retry_after_ms: Option<u64>,
    },
    /// A message was refused for good: it has left the queue and was not stored.
    #[error("the message was refused ({}): {detail}", code.as_str())]
    Rejected {
        /// Why.
        code: RejectCode,
        /// For people.
        detail: String,
    },
    /// The server wants this client to stay away (close codes 4500–4999): signed out, banned, or spoken to wrongly.
    #[error("the server closed the socket for good with {code}: {reason}")]
    SentAway {
        /// Close code.
        code: u16,
        /// What the server said.
        reason: String,
    },
    /// Neither the refresh token nor a password is good.
    #[error("not signed in: {0}")]
    SignedOut(String),
    /// The queue holds as many messages as it may.
    #[error("the queue is full")]
    QueueFull,
    /// The journal can't be read or written.
    #[error("the journal in {path}: {reason}")]
    Journal {
        /// Where it is.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The worker has ended.
    #[error("the client has ended")]
    Ended,
    /// The server speaks otherwise than this client knows.
    #[error("an answer that can't be understood: {0}")]
    Protocol(String),
}

impl Error {
    /// Why there is no connection.
    pub(crate) fn connecting(error: std::io::Error) -> Self {
        error.downcast().unwrap_or_else(|error| Self::Unreachable(error.to_string()))
    }

    /// Whether the same call may succeed later.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::QueueFull => true,
            Self::Refused { status, .. } => matches!(status, 429 | 500..),
            _ => false,
        }
    }
}
