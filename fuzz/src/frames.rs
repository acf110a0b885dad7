//! What a client sends over a socket: WebSocket frames, as bytes that come in any pieces, and the JSON in them.

use std::io::{self, Read, Write};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use edge::socket::frames::{Fault, Incoming, Link};
use schemas::frame::{ClientFrame, ServerFrame};
use schemas::limits::FRAME_MAX_BYTES;
use serde_json::Value;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, WebSocket};
use uuid::Uuid;

use crate::input::Input;
use crate::memory::peak;

/// The first byte says what the rest is: bytes of a connection, frames to be made of it, the text of a client's frame, or
/// of a server's.
///
/// # Panics
/// Where a law is broken.
pub fn check(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() % 4 {
        0 => connection(&mut input, <[u8]>::to_vec),
        1 => connection(&mut input, made),
        2 => client_frame(&String::from_utf8_lossy(input.0)),
        _ => server_frame(&String::from_utf8_lossy(input.0)),
    }
}

/// Frames as a client would send them: for each, how it begins, how long it is, what is in it.
fn made(script: &[u8]) -> Vec<u8> {
    let mut input = Input(script);
    let mut bytes = Vec::new();
    while !input.is_empty() {
        let first = input.byte();
        let payload = match input.byte() {
            // Beyond what two bytes of a length can say.
            255 => vec![b'x'; 0x1_0000 + usize::from(input.byte())],
            254 => vec![b'y'; FRAME_MAX_BYTES - 1 + usize::from(input.byte() % 3)],
            253 => vec![b'z'; 100 + usize::from(input.byte())],
            length => input.take(usize::from(length)).to_vec(),
        };
        let mask = [first, 0x5A, 0, 0xFF];
        bytes.push(first);
        match payload.len() {
            length @ 0..=125 => bytes.push(0x80 | u8::try_from(length).unwrap()),
            length @ 126..=0xFFFF => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                bytes.push(0x80 | 127);
                bytes.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&mask);
        bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }
    bytes
}

fn connection(input: &mut Input<'_>, bytes: impl FnOnce(&[u8]) -> Vec<u8>) {
    let cuts = input.byte() % 8;
    let cuts = input.take(usize::from(cuts)).to_vec();
    let ahead = usize::from(input.byte());
    let bytes = bytes(input.0);
    let (whole, held) = peak(|| heard(&bytes, &[], 0));
    // What was read and not understood, a message, and a vector that grows by doubling; never what a head only claims.
    assert!(held <= 6 * bytes.len() + 4_096, "{held} bytes held for {} bytes", bytes.len());
    let cut = heard(&bytes, &cuts, ahead);
    assert_eq!(whole, cut, "in pieces of {cuts:?}, {ahead} of them read ahead");
    for said in &whole.0 {
        if let Incoming::Text(text) = said {
            assert!(text.len() <= FRAME_MAX_BYTES);
            client_frame(text);
        }
    }
    as_tungstenite_reads(&bytes, &whole);
}

/// Everything that comes of these bytes in these pieces, the first few of them with the upgrade.
fn heard(bytes: &[u8], cuts: &[u8], ahead: usize) -> (Vec<Incoming>, Fault) {
    let (ahead, rest) = bytes.split_at(ahead.min(bytes.len()));
    let mut link = Link::new(Pieces { rest, cuts, grain: 1 + bytes.len() / 4_096, next: 0 }, ahead);
    let mut all = Vec::new();
    loop {
        let next = pin!(link.next()).poll(&mut Context::from_waker(Waker::noop()));
        match next {
            Poll::Ready(Ok(incoming)) => all.push(incoming),
            Poll::Ready(Err(fault)) => return (all, fault),
            Poll::Pending => panic!("waits though something is there"),
        }
    }
}

struct Pieces<'a> {
    rest: &'a [u8],
    cuts: &'a [u8],
    /// Long ones are cut in longer pieces, or it would take too long.
    grain: usize,
    next: usize,
}

impl AsyncRead for Pieces<'_> {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, space: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let wish = match self.cuts {
            [] => usize::MAX,
            cuts => (1 + usize::from(cuts[self.next % cuts.len()])) * self.grain,
        };
        self.next += 1;
        let (piece, rest) = self.rest.split_at(wish.min(space.remaining()).min(self.rest.len()));
        space.put_slice(piece);
        self.rest = rest;
        Poll::Ready(Ok(()))
    }
}

/// A connection for a reader that also writes.
struct Both<'a>(&'a [u8]);

impl Read for Both<'_> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        self.0.read(space)
    }
}

impl Write for Both<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Another reader of the same protocol hears the same. It is told apart where it refuses something at another place.
fn as_tungstenite_reads(bytes: &[u8], (ours, fault): &(Vec<Incoming>, Fault)) {
    let config = WebSocketConfig::default()
        .max_message_size(Some(FRAME_MAX_BYTES))
        .max_frame_size(Some(FRAME_MAX_BYTES))
        .accept_unmasked_frames(false);
    // We refuse a frame by its head, they when all of it is there.
    let rest = if *fault == Fault::Gone { 0 } else { FRAME_MAX_BYTES + 14 };
    let bytes = [bytes, &vec![0; rest]].concat();
    let mut theirs = WebSocket::from_raw_socket(Both(&bytes), Role::Server, Some(config));
    let mut ours = ours.iter();
    loop {
        match (ours.next(), theirs.read()) {
            (Some(Incoming::Text(ours)), Ok(Message::Text(theirs))) => assert_eq!(ours, theirs.as_str()),
            (Some(Incoming::Ping(ours)), Ok(Message::Ping(theirs))) => assert_eq!(ours, &theirs),
            (Some(Incoming::Pong), Ok(Message::Pong(_))) => {}
            // The session ends with either; theirs reads a binary message to its end first.
            (Some(Incoming::Binary | Incoming::Close(_)), _) => return,
            // They look at a text while it comes, we when it is whole: what we still hear is not of it.
            (said, Err(Error::Utf8(_))) => {
                for said in said.into_iter().chain(ours) {
                    assert!(!matches!(said, Incoming::Text(_)), "a text out of what is none");
                    if matches!(said, Incoming::Binary | Incoming::Close(_)) {
                        return;
                    }
                }
                return;
            }
            // They take any number.
            (None, _) if *fault == Fault::TooManyFrames => return,
            (None, Err(error)) => {
                let at_the_end = matches!(
                    error,
                    Error::Protocol(ProtocolError::ResetWithoutClosingHandshake)
                        | Error::ConnectionClosed
                        | Error::Io(_)
                );
                assert_eq!(at_the_end, *fault == Fault::Gone, "to us {fault}, to them {error}");
                return;
            }
            // They take a control frame whose short length is written long; RFC 6455 section 5.2 wants the shortest form.
            (None, Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_)))
                if *fault == Fault::BadFrame && bytes.windows(2).any(is_control_written_long) =>
            {
                return;
            }
            (ours, theirs) => panic!("we hear {ours:?} ({fault:?}), they {theirs:?}"),
        }
    }
}

/// Whether these may be the first two bytes of a control frame that says its length in further ones.
fn is_control_written_long(head: &[u8]) -> bool {
    matches!(head, [0x88..=0x8A, 0xFE | 0xFF])
}

fn client_frame(text: &str) {
    let Ok(frame) = ClientFrame::parse(text) else { return };
    let again = serde_json::to_string(&frame).unwrap();
    assert_eq!(ClientFrame::parse(&again).unwrap(), frame, "from {again}");
    assert_said(&serde_json::to_value(&frame).unwrap(), text);
}

fn server_frame(text: &str) {
    let Ok(frame) = serde_json::from_str::<ServerFrame>(text) else { return };
    let again = serde_json::to_string(&frame).unwrap();
    assert_eq!(serde_json::from_str::<ServerFrame>(&again).unwrap(), frame, "from {again}");
}

/// Nothing is understood that was not said, and it was said in an object.
fn assert_said(understood: &Value, text: &str) {
    // What serde_json keeps in a `Value` it also keeps to a depth, which a field that is passed over need not.
    let Ok(said) = serde_json::from_str::<Value>(text) else { return };
    assert!(is_part(understood, &said), "{understood} out of {said}");
}

fn is_part(understood: &Value, said: &Value) -> bool {
    match (understood, said) {
        (Value::Object(understood), Value::Object(said)) => understood.iter().all(|(name, value)| {
            let same = |other: &String| other == name || is_same_id(name, other);
            said.iter().any(|(other, said)| same(other) && is_part(value, said))
        }),
        (Value::Array(understood), Value::Array(said)) => {
            understood.len() == said.len() && understood.iter().zip(said).all(|(one, other)| is_part(one, other))
        }
        (Value::String(understood), Value::String(said)) => understood == said || is_same_id(understood, said),
        (understood, said) => understood == said,
    }
}

fn is_same_id(one: &str, other: &str) -> bool {
    matches!((Uuid::parse_str(one), Uuid::parse_str(other)), (Ok(one), Ok(other)) if one == other)
}
