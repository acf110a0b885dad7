//! One socket: opened with hello, read frame by frame. Knows the forms, not what follows from them.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use schemas::frame::{ClientFrame, Control, Hello, SUBPROTOCOL, ServerFrame};
use schemas::{Timestamp, UserId};
use serde::Deserialize;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::deps::Stream;
use crate::error::Error;

/// Each step of opening, and each write.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// Largest frame that is taken, bytes: a largest content, every byte of it escaped.
const FRAME_MAX_BYTES: usize = 1024 * 1024;

/// A socket whose hello was answered.
pub(crate) struct Socket {
    stream: WebSocketStream<Box<dyn Stream>>,
    /// Who the server says that this is.
    pub(crate) user: UserId,
    /// The server's time when it said so.
    pub(crate) time: Timestamp,
    /// How often the server sends a ping.
    pub(crate) heartbeat: Duration,
}

/// What a socket brings.
pub(crate) enum Incoming {
    /// A frame.
    Frame(ServerFrame),
    /// Nothing that concerns this client.
    Nothing,
    /// It is over; with the close code, what was said, and when to come back.
    Closed { code: Option<u16>, reason: String, retry_after: Option<Duration> },
}

#[derive(Deserialize)]
struct Reason {
    retry_after_ms: Option<u64>,
}

impl Socket {
    /// Opens a socket and says hello.
    pub(crate) async fn open(stream: Box<dyn Stream>, authority: &str, hello: Hello) -> Result<Self, Error> {
        let unreachable = |error: WsError| Error::Unreachable(error.to_string());
        let mut request = format!("ws://{authority}/v1/socket").into_client_request().map_err(unreachable)?;
        let headers = request.headers_mut();
        headers.insert(
            "sec-websocket-protocol",
            tokio_tungstenite::tungstenite::http::HeaderValue::from_static(SUBPROTOCOL),
        );
        let config = WebSocketConfig::default()
            .read_buffer_size(16 * 1024)
            .max_message_size(Some(FRAME_MAX_BYTES))
            .max_frame_size(Some(FRAME_MAX_BYTES));
        let upgrade = tokio_tungstenite::client_async_with_config(request, stream, Some(config));
        let (stream, _) = timeout(STEP_TIMEOUT, upgrade)
            .await
            .map_err(|_| Error::Unreachable("no answer to the handshake".into()))?
            .map_err(refused)?;
        let mut socket = Self { stream, user: UserId::NIL, time: Timestamp(0), heartbeat: schemas::limits::HEARTBEAT };
        socket.send(&ClientFrame::Hello(hello)).await?;
        socket.flush().await?;
        loop {
            let incoming = timeout(STEP_TIMEOUT, socket.next())
                .await
                .map_err(|_| Error::Unreachable("no answer to hello".into()))?;
            match incoming {
                Incoming::Frame(ServerFrame::Control(Control::Welcome { user, time, heartbeat_s, .. })) => {
                    (socket.user, socket.time, socket.heartbeat) = (user, time, Duration::from_secs(heartbeat_s));
                    return Ok(socket);
                }
                Incoming::Closed { code: Some(code), reason, .. } if is_final(code) => {
                    return Err(Error::SentAway { code, reason });
                }
                Incoming::Closed { code, reason, retry_after } => {
                    return Err(Error::Refused {
                        status: code.unwrap_or(0),
                        code: "closed".into(),
                        detail: reason,
                        retry_after_ms: retry_after.map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
                    });
                }
                Incoming::Frame(_) | Incoming::Nothing => {}
            }
        }
    }

    /// The next frame. Cancel safe.
    pub(crate) async fn next(&mut self) -> Incoming {
        match self.stream.next().await {
            // A frame of a kind that a newer server sends is none of our business.
            Some(Ok(Message::Text(text))) => {
                serde_json::from_str(text.as_str()).map_or(Incoming::Nothing, Incoming::Frame)
            }
            Some(Ok(Message::Close(close))) => closed(close),
            Some(Ok(_)) => Incoming::Nothing,
            Some(Err(error)) => Incoming::Closed { code: None, reason: error.to_string(), retry_after: None },
            None => Incoming::Closed { code: None, reason: "the connection ended".into(), retry_after: None },
        }
    }

    /// Hands a frame over; [`Socket::flush`] sees to it that it leaves.
    pub(crate) async fn send(&mut self, frame: &ClientFrame) -> Result<(), Error> {
        let text = serde_json::to_string(frame).map_err(|error| Error::Protocol(error.to_string()))?;
        in_time(self.stream.feed(Message::text(text))).await
    }

    /// Writes what was handed over.
    pub(crate) async fn flush(&mut self) -> Result<(), Error> {
        in_time(self.stream.flush()).await
    }
}

async fn in_time(write: impl Future<Output = Result<(), WsError>>) -> Result<(), Error> {
    let written = timeout(STEP_TIMEOUT, write).await.map_err(|_| Error::Unreachable("it takes nothing".into()))?;
    written.map_err(|error| Error::Unreachable(error.to_string()))
}

/// Whether a close code says to stay away.
pub(crate) fn is_final(code: u16) -> bool {
    (4500..5000).contains(&code)
}

fn closed(close: Option<CloseFrame>) -> Incoming {
    let (code, reason) =
        close.map_or((None, String::new()), |close| (Some(close.code.into()), close.reason.to_string()));
    let asked = serde_json::from_str::<Reason>(&reason).ok().and_then(|reason| reason.retry_after_ms);
    Incoming::Closed { code, reason, retry_after: asked.map(Duration::from_millis) }
}

/// A handshake that was answered with a status instead.
fn refused(error: WsError) -> Error {
    match error {
        WsError::Http(response) => {
            let after =
                response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
            Error::Refused {
                status: response.status().as_u16(),
                code: "handshake".into(),
                detail: "the server refuses the socket".into(),
                retry_after_ms: after.map(|seconds| seconds.saturating_mul(1_000)),
            }
        }
        error => Error::Unreachable(error.to_string()),
    }
}
