//! A client's frames (RFC 6455 section 5): read, unmasked, and put together to messages. Holds no buffer while nothing is
//! on its way, and never more than one message and one read: a socket that once sent much is as small as any other.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use schemas::limits::FRAME_MAX_BYTES;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Most bytes of one read, on the stack: any frame but a large message's, and several receipts at once.
const READ_BYTES: usize = 4 * 1_024;

/// Largest payload of a control frame (section 5.5).
const CONTROL_MAX_BYTES: usize = 125;

/// Most frames of one message: many times what the largest one has with any library, and an end to empty ones.
const FRAGMENTS_MAX: u32 = 1_024;

/// Time from a message's first byte to its last: the largest one at 7 KiB/s. What has come of it takes memory meanwhile.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// What a client says.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A message of text.
    Text(String),
    /// A message of bytes, which nothing of ours is; not read on.
    Binary,
    /// To be answered with the same payload.
    Ping(Bytes),
    /// The answer to a ping that was never sent.
    Pong,
    /// It wants to go; to be answered with the same payload.
    Close(Bytes),
}

/// Why nothing more can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The client has gone.
    #[error("the client has gone")]
    Gone,
    /// What it sent is no frame, or no text.
    #[error("not a frame")]
    BadFrame,
    /// A message over the limit.
    #[error("too large")]
    TooLarge,
    /// A message in too many frames.
    #[error("too many frames")]
    TooManyFrames,
    /// A message that was begun and does not come to its end.
    #[error("too slow")]
    TooSlow,
}

/// A connection to a client: what it says comes out of it in frames; what it is told is written to the stream.
#[derive(Debug)]
pub struct Link<S> {
    /// Where to write (see [`super::wire`]). What comes from it is not to be read past the frames.
    pub stream: S,
    frames: Frames,
}

impl<S: AsyncRead + Unpin> Link<S> {
    /// A connection of which this much has been read already.
    pub fn new(stream: S, read: &[u8]) -> Self {
        Self { stream, frames: Frames::new(read) }
    }

    /// What the client says next. Dropping the future in between loses nothing.
    ///
    /// # Errors
    /// Nothing more can be read.
    pub async fn next(&mut self) -> Result<Incoming, Fault> {
        poll_fn(|context| self.frames.poll_next(&mut self.stream, context)).await
    }
}

#[derive(Debug)]
struct Frames {
    /// Read, and not understood yet: the beginning of a frame, or frames that came together with the last one.
    read: Vec<u8>,
    /// A message that comes in several frames; boxed, for that is rare.
    begun: Option<Box<Begun>>,
    /// Runs from the first byte of a message that is not whole yet to its end; room for it is made only then.
    overdue: Option<Pin<Box<Sleep>>>,
}

/// A message that comes in several frames.
#[derive(Debug)]
struct Begun {
    text: Vec<u8>,
    /// How many have come.
    frames: u32,
}

impl Frames {
    fn new(read: &[u8]) -> Self {
        Self { read: read.to_vec(), begun: None, overdue: None }
    }

    fn poll_next<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<Result<Incoming, Fault>> {
        loop {
            if let Some(incoming) = self.take()? {
                if self.is_idle() || matches!(incoming, Incoming::Text(_)) {
                    self.overdue = None;
                }
                return Poll::Ready(Ok(incoming));
            }
            let mut space = [MaybeUninit::uninit(); READ_BYTES];
            let mut space = ReadBuf::uninit(&mut space);
            match Pin::new(&mut *stream).poll_read(context, &mut space) {
                Poll::Ready(read) => read.map_err(|_| Fault::Gone)?,
                Poll::Pending => return self.poll_overdue(context),
            }
            if space.filled().is_empty() {
                return Poll::Ready(Err(Fault::Gone));
            }
            self.read.extend_from_slice(space.filled());
        }
    }

    /// Whether nothing is on its way.
    fn is_idle(&self) -> bool {
        self.read.is_empty() && self.begun.is_none()
    }

    /// Waits for a message that has been begun only so long.
    fn poll_overdue<T>(&mut self, context: &mut Context<'_>) -> Poll<Result<T, Fault>> {
        if self.is_idle() {
            return Poll::Pending;
        }
        let overdue = self.overdue.get_or_insert_with(|| Box::pin(sleep(MESSAGE_TIMEOUT)));
        overdue.as_mut().poll(context).map(|()| Err(Fault::TooSlow))
    }

    /// The next message of what has been read.
    fn take(&mut self) -> Result<Option<Incoming>, Fault> {
        while let Some(head) = Head::parse(&self.read)? {
            let so_far = match head.kind {
                Kind::More => self.begun.as_ref().map_or(0, |begun| begun.text.len()),
                _ => 0, // A control frame in between is no part of the message.
            };
            // Told by the head alone: no room is made for what will be refused.
            if head.length.saturating_add(so_far) > FRAME_MAX_BYTES {
                return Err(Fault::TooLarge);
            }
            let end = head.start + head.length;
            if self.read.len() < end {
                return Ok(None);
            }
            let mut payload: Vec<u8> = self.read[head.start..end].to_vec();
            for (byte, mask) in payload.iter_mut().zip(head.mask.iter().cycle()) {
                *byte ^= mask;
            }
            if self.read.len() == end {
                self.read = Vec::new();
            } else {
                self.read.drain(..end);
            }
            if let Some(incoming) = self.put(&head, payload)? {
                return Ok(Some(incoming));
            }
        }
        Ok(None)
    }

    /// Puts a frame to what came before it.
    fn put(&mut self, head: &Head, payload: Vec<u8>) -> Result<Option<Incoming>, Fault> {
        let mut message = match (head.kind, self.begun.take()) {
            (Kind::Text, None) if head.last => return text(payload).map(Some),
            (Kind::Text, None) => Box::new(Begun { text: payload, frames: 1 }),
            (Kind::More, Some(mut begun)) => {
                begun.text.extend_from_slice(&payload);
                begun.frames += 1;
                begun
            }
            (Kind::Text | Kind::More, _) => return Err(Fault::BadFrame),
            (Kind::Binary, _) => return Ok(Some(Incoming::Binary)),
            (control, begun) => {
                // These may come between the frames of a message.
                self.begun = begun;
                return Ok(Some(match control {
                    Kind::Ping => Incoming::Ping(payload.into()),
                    Kind::Close => Incoming::Close(payload.into()),
                    _ => Incoming::Pong,
                }));
            }
        };
        if head.last {
            return text(std::mem::take(&mut message.text)).map(Some);
        }
        if message.frames >= FRAGMENTS_MAX {
            return Err(Fault::TooManyFrames);
        }
        self.begun = Some(message);
        Ok(None)
    }
}

fn text(bytes: Vec<u8>) -> Result<Incoming, Fault> {
    String::from_utf8(bytes).map(Incoming::Text).map_err(|_| Fault::BadFrame)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    More,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// The head of a frame.
#[derive(Debug)]
struct Head {
    last: bool,
    kind: Kind,
    mask: [u8; 4],
    /// Where its payload begins.
    start: usize,
    length: usize,
}

impl Head {
    /// `None`: it has not come whole yet.
    fn parse(read: &[u8]) -> Result<Option<Self>, Fault> {
        let [first, second, ..] = *read else { return Ok(None) };
        let (last, kind) = (first & 0x80 != 0, first & 0x0F);
        let kind = match kind {
            0x0 => Kind::More,
            0x1 => Kind::Text,
            0x2 => Kind::Binary,
            0x8 => Kind::Close,
            0x9 => Kind::Ping,
            0xA => Kind::Pong,
            _ => return Err(Fault::BadFrame),
        };
        let is_control = matches!(kind, Kind::Close | Kind::Ping | Kind::Pong);
        let short = usize::from(second & 0x7F);
        // No extension has been agreed on; a client masks; control frames are short and whole (sections 5.2 and 5.5).
        if first & 0x70 != 0 || second & 0x80 == 0 || (is_control && (!last || short > CONTROL_MAX_BYTES)) {
            return Err(Fault::BadFrame);
        }
        let wide = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let start = 2 + wide + 4;
        let Some(head) = read.get(..start) else { return Ok(None) };
        let length = match wide {
            0 => short,
            _ => {
                let long = head[2..2 + wide].iter().fold(0_u64, |length, byte| length << 8 | u64::from(*byte));
                usize::try_from(long).unwrap_or(usize::MAX)
            }
        };
        let mut mask = [0; 4];
        mask.copy_from_slice(&head[start - 4..]);
        Ok(Some(Self { last, kind, mask, start, length }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// A client's frame.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x5A, 0xA5, 0x01, 0xFE];
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..=125 => frame.push(0x80 | u8::try_from(length).unwrap()),
            length @ 126..=0xFFFF => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&u16::try_from(length).unwrap().to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    /// Everything that comes of these bytes, read in pieces that end where said.
    async fn all(bytes: &[u8], cuts: &[usize]) -> (Vec<Incoming>, Fault) {
        let (mut near, far) = tokio::io::duplex(1 << 20);
        let (bytes, cuts) = (bytes.to_vec(), cuts.to_vec());
        let mut link = Link::new(far, &[]);
        let read = async {
            let mut all = Vec::new();
            loop {
                match link.next().await {
                    Ok(incoming) => all.push(incoming),
                    Err(fault) => return (all, fault),
                }
            }
        };
        let write = async {
            let mut done = 0;
            for cut in cuts.into_iter().chain([bytes.len()]) {
                if cut > done && cut <= bytes.len() {
                    near.write_all(&bytes[done..cut]).await.unwrap();
                    done = cut;
                    tokio::task::yield_now().await;
                }
            }
            drop(near);
        };
        tokio::join!(read, write).0
    }

    #[derive(Clone, Debug)]
    enum Said {
        Text(Vec<String>),
        Ping(Vec<u8>),
        Pong,
    }

    fn said() -> impl Strategy<Value = Said> {
        prop_oneof![
            4 => prop::collection::vec("\\PC{0,200}", 1..4).prop_map(Said::Text),
            1 => prop::collection::vec(any::<u8>(), 0..126).prop_map(Said::Ping),
            1 => Just(Said::Pong),
        ]
    }

    proptest! {
        #[test]
        fn what_is_said_is_heard_however_it_is_cut(
            said in prop::collection::vec(said(), 0..12),
            mut cuts in prop::collection::vec(0..8_000_usize, 0..20),
        ) {
            let (mut bytes, mut expected) = (Vec::new(), Vec::new());
            for said in said {
                match said {
                    Said::Text(parts) => {
                        for (n, part) in parts.iter().enumerate() {
                            let last = if n + 1 == parts.len() { 0x80 } else { 0 };
                            let kind = u8::from(n == 0);
                            bytes.extend(frame(last | kind, part.as_bytes()));
                            if last == 0 {
                                bytes.extend(frame(0x8A, b"between"));
                                expected.push(Incoming::Pong);
                            }
                        }
                        expected.push(Incoming::Text(parts.concat()));
                    }
                    Said::Ping(payload) => {
                        bytes.extend(frame(0x89, &payload));
                        expected.push(Incoming::Ping(payload.into()));
                    }
                    Said::Pong => {
                        bytes.extend(frame(0x8A, &[]));
                        expected.push(Incoming::Pong);
                    }
                }
            }
            cuts.sort_unstable();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let (heard, fault) = runtime.block_on(all(&bytes, &cuts));
            prop_assert_eq!(heard, expected);
            prop_assert_eq!(fault, Fault::Gone);
        }

        #[test]
        fn whatever_comes_nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut frames = Frames::new(&bytes);
            while let Ok(Some(_)) = frames.take() {}
        }
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        let unmasked = [0x81, 0x01, b'x'].to_vec();
        let long_ping = frame(0x89, &[0; 126]);
        let split_ping = frame(0x09, b"x");
        let reserved_bit = frame(0xC1, b"x");
        let reserved_kind = frame(0x83, b"x");
        let more_of_nothing = frame(0x80, b"x");
        let no_utf8 = frame(0x81, &[0xFF]);
        let twice_begun = [frame(0x01, b"x"), frame(0x81, b"x")].concat();
        for bad in [unmasked, long_ping, split_ping, reserved_bit, reserved_kind, more_of_nothing, no_utf8, twice_begun]
        {
            assert!(matches!(Frames::new(&bad).take(), Err(Fault::BadFrame)), "{bad:?}");
        }
    }

    #[test]
    fn what_is_too_large_is_refused_by_its_head() {
        let largest = frame(0x81, &vec![b'x'; FRAME_MAX_BYTES]);
        assert!(matches!(Frames::new(&largest).take(), Ok(Some(Incoming::Text(_)))));
        let larger = frame(0x81, &vec![b'x'; FRAME_MAX_BYTES + 1]);
        assert!(matches!(Frames::new(&larger[..14]).take(), Err(Fault::TooLarge)));
        let absurd = [0x81, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0];
        assert!(matches!(Frames::new(&absurd).take(), Err(Fault::TooLarge)));
        let in_parts = [frame(0x01, &vec![b'x'; FRAME_MAX_BYTES]), frame(0x80, b"x")].concat();
        assert!(matches!(Frames::new(&in_parts).take(), Err(Fault::TooLarge)));
        // A ping in between counts for itself alone.
        let largest = [frame(0x01, &vec![b'x'; FRAME_MAX_BYTES]), frame(0x89, b"alive?"), frame(0x80, b"")].concat();
        let mut frames = Frames::new(&largest);
        assert!(matches!(frames.take(), Ok(Some(Incoming::Ping(_)))));
        assert!(matches!(frames.take(), Ok(Some(Incoming::Text(_)))));
    }

    #[test]
    fn a_message_has_only_so_many_frames_however_small() {
        let message = |frames: u32| {
            let mut bytes = frame(0x01, b"");
            (2..frames).for_each(|_| bytes.extend(frame(0x00, b"")));
            bytes.extend(frame(0x80, b""));
            bytes
        };
        let mut frames = Frames::new(&message(FRAGMENTS_MAX).repeat(2));
        for _ in 0..2 {
            assert!(matches!(frames.take(), Ok(Some(Incoming::Text(_)))));
        }
        assert!(matches!(Frames::new(&message(FRAGMENTS_MAX + 1)).take(), Err(Fault::TooManyFrames)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_must_come_to_its_end_in_time_whatever_comes_in_between() {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let mut link = Link::new(server, &[]);
        let trickle = async {
            tokio::time::sleep(MESSAGE_TIMEOUT * 2).await;
            client.write_all(&frame(0x01, b"x")).await.unwrap();
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                client.write_all(&[frame(0x00, b"x"), frame(0x8A, b"")].concat()).await.unwrap();
            }
        };
        let began = tokio::time::Instant::now();
        let heard = async {
            loop {
                match link.next().await {
                    Ok(incoming) => assert_eq!(incoming, Incoming::Pong),
                    Err(fault) => return fault,
                }
            }
        };
        let fault = tokio::select! {
            fault = heard => fault,
            () = trickle => unreachable!("it never ends"),
        };
        assert_eq!((fault, began.elapsed()), (Fault::TooSlow, MESSAGE_TIMEOUT * 3), "silence before it is no matter");
    }

    #[test]
    fn nothing_is_kept_once_all_is_understood() {
        let mut frames = Frames::new(&frame(0x81, &vec![b'x'; 100_000]));
        assert!(matches!(frames.take(), Ok(Some(_))));
        assert_eq!(frames.read.capacity(), 0);
        assert!(frames.begun.is_none());
    }
}
