//! Frames as bytes (RFC 6455 section 5.2) and how they reach the network: a server's frames are not masked, so each is
//! encoded once, whole, and shared by all sockets; what is due for a socket goes out in one vectored write.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use schemas::frame::{Control, EventView, ServerFrame};
use serde::Serialize;
use tokio::io::AsyncWrite;

/// Slices handed to one vectored write; Linux takes 1,024, and more than this hardly saves more.
const SLICES_MAX: usize = 128;

const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;
const PONG: u8 = 0x8A;

/// A durable event as a whole text frame.
pub fn event(view: &EventView) -> Bytes {
    text(view)
}

/// Anything else as a whole text frame.
pub fn control(frame: Control) -> Bytes {
    text(&ServerFrame::Control(frame))
}

/// A close frame; the reason is JSON and at most 123 bytes (RFC 6455 section 5.5.1, protocol.md).
pub fn close(code: u16, retry_after_ms: Option<u32>) -> Bytes {
    let reason = match retry_after_ms {
        Some(ms) => format!("{{\"code\":{code},\"retry_after_ms\":{ms}}}"),
        None => format!("{{\"code\":{code}}}"),
    };
    let mut payload = BytesMut::with_capacity(2 + reason.len());
    payload.put_u16(code);
    payload.put_slice(reason.as_bytes());
    frame(CLOSE, &payload)
}

/// The answer to a close frame, which repeats its payload.
pub fn close_answer(payload: &[u8]) -> Bytes {
    frame(CLOSE, payload)
}

/// The answer to a ping of WebSocket's own, which repeats its payload.
pub fn pong(payload: &[u8]) -> Bytes {
    frame(PONG, payload)
}

fn text<T: Serialize>(value: &T) -> Bytes {
    // Our own frames always serialize: no map keys but strings, no fallible parts.
    frame(TEXT, &serde_json::to_vec(value).unwrap_or_default())
}

fn frame(first: u8, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + 10);
    out.put_u8(first);
    match payload.len() {
        length @ 0..=125 => out.put_u8(u8::try_from(length).unwrap_or(125)),
        length @ 126..=0xFFFF => {
            out.put_u8(126);
            out.put_u16(u16::try_from(length).unwrap_or(u16::MAX));
        }
        length => {
            out.put_u8(127);
            out.put_u64(length as u64);
        }
    }
    out.put_slice(payload);
    out.freeze()
}

/// Writes `frames`, front first. An error where the stream takes nothing at all for as long as `stall`: a client may be
/// slow, each time that it takes something it has its time anew.
pub async fn write_frames<S: AsyncWrite + Unpin>(
    stream: &mut S,
    frames: &mut VecDeque<Bytes>,
    stall: Duration,
) -> io::Result<()> {
    loop {
        let is_last = frames.is_empty();
        // Nearly always the kernel takes it all at once; a timer is set, and room made for it, only where it does not.
        match poll_fn(|context| Poll::Ready(poll_step(stream, frames, context))).await {
            Poll::Ready(done) => done?,
            Poll::Pending => {
                let step = poll_fn(|context| poll_step(stream, frames, context));
                Box::pin(tokio::time::timeout(stall, step)).await??;
            }
        }
        if is_last {
            return Ok(());
        }
    }
}

/// Writes some of `frames`; where there are none, lets nothing stay behind in the stream: TLS may hold a last record.
fn poll_step<S: AsyncWrite + Unpin>(
    stream: &mut S,
    frames: &mut VecDeque<Bytes>,
    context: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    if frames.is_empty() {
        return Pin::new(stream).poll_flush(context);
    }
    poll_write_frames(stream, frames, context)
}

/// Writes as much of `frames` as the stream takes. `Ready(Ok)`: some of it, or all. What is written leaves the queue, the
/// front frame's written part too, so that a frame cut in the middle is always finished first.
fn poll_write_frames<S: AsyncWrite + Unpin>(
    stream: &mut S,
    frames: &mut VecDeque<Bytes>,
    context: &mut Context<'_>,
) -> Poll<io::Result<()>> {
    let mut some = false;
    while !frames.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES_MAX];
        let mut count = 0;
        for (slice, frame) in slices.iter_mut().zip(frames.iter()) {
            *slice = IoSlice::new(frame);
            count += 1;
        }
        let mut written = match Pin::new(&mut *stream).poll_write_vectored(context, &slices[..count]) {
            Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending if some => return Poll::Ready(Ok(())),
            Poll::Pending => return Poll::Pending,
        };
        some = true;
        while let Some(front) = frames.front_mut() {
            if written < front.len() {
                // Splitting keeps the rest of this frame at the front.
                drop(front.split_to(written));
                break;
            }
            written -= front.len();
            frames.pop_front();
            if written == 0 {
                break;
            }
        }
    }
    Poll::Ready(Ok(()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes a few bytes at a time, and now and then none.
    struct Trickle {
        taken: Vec<u8>,
        sizes: Vec<usize>,
    }

    impl AsyncWrite for Trickle {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let Some(size) = self.sizes.pop() else {
                self.taken.extend_from_slice(bytes);
                return Poll::Ready(Ok(bytes.len()));
            };
            if size == 0 {
                return Poll::Pending;
            }
            let size = size.min(bytes.len());
            self.taken.extend_from_slice(&bytes[..size]);
            Poll::Ready(Ok(size))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    proptest! {
        #[test]
        fn frames_arrive_whole_and_in_order_however_the_stream_takes_them(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..20),
            sizes in prop::collection::vec(0..200_usize, 0..60),
        ) {
            let mut frames: VecDeque<Bytes> = payloads.iter().map(|payload| frame(TEXT, payload)).collect();
            let expected: Vec<u8> = frames.iter().flat_map(|frame| frame.to_vec()).collect();
            let mut stream = Trickle { taken: Vec::new(), sizes };
            let mut context = Context::from_waker(std::task::Waker::noop());
            while !frames.is_empty() {
                prop_assert!(!matches!(poll_write_frames(&mut stream, &mut frames, &mut context), Poll::Ready(Err(_))));
            }
            prop_assert_eq!(stream.taken, expected);
        }
    }

    #[test]
    fn a_frame_says_its_length_in_the_shortest_form() {
        assert_eq!(&frame(TEXT, &[0; 125])[..2], &[0x81, 125]);
        assert_eq!(&frame(TEXT, &[0; 126])[..4], &[0x81, 126, 0, 126]);
        assert_eq!(&frame(TEXT, &[0; 0x1_0000])[..10], &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }
}
