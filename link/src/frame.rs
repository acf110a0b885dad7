//! What goes over a link: frames. Owns their bytes and nothing of what they mean.
//!
//! ```text
//! u32 length of what follows | u32 length of the head | head, JSON | for each part: u32 length, bytes
//! ```
//!
//! All numbers are big-endian. Parts are Avro single objects as they stand in the log, or ids. A head is read by serde:
//! fields that a reader does not know are passed over, those that a writer did not have take their defaults, and a kind of
//! frame that is not known says nothing, so that processes of two versions speak with one another while they are replaced.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::Serialize;

use crate::words::Head;

/// Largest frame, bytes: four of the largest batches of a poll. All interest of an edge in one partition must fit
/// (16 bytes each: a million keys).
pub const FRAME_MAX_BYTES: usize = 16 * 1024 * 1024;

const _: () = assert!(FRAME_MAX_BYTES >= 4 * schemas::limits::BATCH_MAX_BYTES, "a batch must always fit a frame");

/// Most parts of a frame: the smallest record is larger than 16 bytes.
const PARTS_MAX: usize = FRAME_MAX_BYTES / 64;

/// Bytes of a length.
const LENGTH_BYTES: usize = 4;

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`FRAME_MAX_BYTES`]; nothing was made room for.
    #[error("a frame of {0} bytes")]
    TooLarge(usize),
    /// A length that leads beyond the frame.
    #[error("a frame whose lengths do not fit")]
    Lengths,
    /// A head that can't be read.
    #[error("the head of a frame can't be read")]
    Head(#[from] serde_json::Error),
}

/// A frame.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    /// What it says.
    pub head: Head,
    /// What it carries.
    pub parts: Vec<Bytes>,
}

impl Frame {
    /// A frame without parts.
    pub fn of(head: Head) -> Self {
        Self { head, parts: Vec::new() }
    }

    /// Its bytes.
    ///
    /// # Errors
    /// It would be too large.
    pub fn encode(&self) -> Result<Bytes, FrameError> {
        encode(&self.head, &self.parts)
    }
}

/// The bytes of a frame with this head. A type parameter, so that tests can write what no present version does.
pub(crate) fn encode(head: &impl Serialize, parts: &[Bytes]) -> Result<Bytes, FrameError> {
    let head = serde_json::to_vec(head)?;
    let parts_bytes: usize = parts.iter().map(|part| LENGTH_BYTES + part.len()).sum();
    let length = LENGTH_BYTES + head.len() + parts_bytes;
    if parts.len() > PARTS_MAX {
        return Err(FrameError::Lengths);
    }
    let fits = |length: usize| u32::try_from(length).ok().filter(|_| length <= FRAME_MAX_BYTES);
    let total = fits(length).ok_or(FrameError::TooLarge(length))?;
    let mut bytes = BytesMut::with_capacity(LENGTH_BYTES + length);
    bytes.put_u32(total);
    bytes.put_u32(fits(head.len()).ok_or(FrameError::TooLarge(length))?);
    bytes.put_slice(&head);
    for part in parts {
        bytes.put_u32(fits(part.len()).ok_or(FrameError::TooLarge(length))?);
        bytes.put_slice(part);
    }
    Ok(bytes.freeze())
}

/// Takes the first whole frame out of what has been read; `None` until there is one.
///
/// # Errors
/// What stands there will never be a frame: the link is of no use any more.
pub fn decode(read: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(length) = read.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    let length = as_length(*length);
    if length > FRAME_MAX_BYTES {
        return Err(FrameError::TooLarge(length));
    }
    if read.len() < LENGTH_BYTES + length {
        return Ok(None);
    }
    read.advance(LENGTH_BYTES);
    let mut body = read.split_to(length).freeze();
    let head: Head = serde_json::from_slice(&piece(&mut body)?)?;
    let mut parts = Vec::new();
    while !body.is_empty() {
        if parts.len() == PARTS_MAX {
            return Err(FrameError::Lengths);
        }
        parts.push(piece(&mut body)?);
    }
    Ok(Some(Frame { head, parts }))
}

fn piece(body: &mut Bytes) -> Result<Bytes, FrameError> {
    let length = as_length(*body.first_chunk::<LENGTH_BYTES>().ok_or(FrameError::Lengths)?);
    body.advance(LENGTH_BYTES);
    if body.len() < length {
        return Err(FrameError::Lengths);
    }
    Ok(body.split_to(length))
}

fn as_length(bytes: [u8; LENGTH_BYTES]) -> usize {
    usize::try_from(u32::from_be_bytes(bytes)).unwrap_or(usize::MAX)
}

/// A list of ids as one part.
pub(crate) fn ids<'a>(ids: impl IntoIterator<Item = &'a [u8; 16]>) -> Bytes {
    Bytes::from(ids.into_iter().copied().collect::<Vec<_>>().concat())
}

/// The ids of a part.
pub(crate) fn as_ids(part: &[u8]) -> Option<Vec<[u8; 16]>> {
    let (ids, rest) = part.as_chunks::<16>();
    rest.is_empty().then(|| ids.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schemas::{Offset, Partition};

    use crate::words::{LaneName, Question};

    fn frame() -> impl Strategy<Value = Frame> {
        let head = prop_oneof![
            Just(Head::Beat {}),
            any::<u32>().prop_map(|number| Head::Taken { number: number.into() }),
            (any::<u32>(), any::<u32>(), any::<u32>()).prop_map(|(number, from, to)| Head::Batch {
                number: number.into(),
                epoch: 7,
                lane: LaneName::Users,
                partition: Partition(from),
                from: Offset(from.into()),
                to: Offset(to.into()),
            }),
            any::<u32>().prop_map(|at| Head::Ask {
                number: at.into(),
                wait_ms: 5,
                question: Question::Register { lane: LaneName::Rooms, partition: Partition(at) },
            }),
        ];
        let part = prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        (head, prop::collection::vec(part, 0..5)).prop_map(|(head, parts)| Frame { head, parts })
    }

    /// All frames of these bytes, which arrive in pieces of these lengths.
    fn decode_all(bytes: &[u8], mut lengths: impl Iterator<Item = usize>) -> Result<Vec<Frame>, FrameError> {
        let (mut read, mut rest, mut frames) = (BytesMut::new(), bytes, Vec::new());
        while !rest.is_empty() {
            let (piece, left) = rest.split_at(lengths.next().unwrap_or(rest.len()).clamp(1, rest.len()));
            read.extend_from_slice(piece);
            rest = left;
            while let Some(frame) = decode(&mut read)? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn frames_survive_the_way_however_their_bytes_arrive(
            frames in prop::collection::vec(frame(), 0..6),
            lengths in prop::collection::vec(1..300_usize, 0..40),
        ) {
            let bytes: Vec<u8> = frames.iter().flat_map(|frame| frame.encode().unwrap()).collect();
            prop_assert_eq!(decode_all(&bytes, lengths.into_iter()).unwrap(), frames);
        }

        /// Whatever comes: frames or an error, never a panic, and never more bytes than came.
        #[test]
        fn noise_is_no_panic(
            noise in prop::collection::vec(any::<u8>(), 0..300),
            frame in frame(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            drop(decode_all(&noise, std::iter::empty()));
            let mut broken = frame.encode().unwrap().to_vec();
            let at = at.index(broken.len());
            broken[at] = byte;
            if let Ok(frames) = decode_all(&broken, std::iter::empty()) {
                let bytes: usize = frames.iter().flat_map(|frame| &frame.parts).map(Bytes::len).sum();
                prop_assert!(bytes <= broken.len());
            }
        }
    }

    #[test]
    fn a_length_that_can_not_be_is_refused_before_anything_is_made_room_for() {
        let mut read = BytesMut::from(&(FRAME_MAX_BYTES as u32 + 1).to_be_bytes()[..]);
        assert!(matches!(decode(&mut read), Err(FrameError::TooLarge(_))));
        let large = Frame { head: Head::Beat {}, parts: vec![Bytes::from(vec![0; FRAME_MAX_BYTES])] };
        assert!(matches!(large.encode(), Err(FrameError::TooLarge(_))));
        let many = Frame { head: Head::Beat {}, parts: vec![Bytes::new(); PARTS_MAX + 1] };
        assert!(matches!(many.encode(), Err(FrameError::Lengths)));
    }

    #[test]
    fn what_a_newer_version_says_is_passed_over() {
        let newer = serde_json::json!({"is": "hologram", "of": [1, 2]});
        let beat = serde_json::json!({"is": "taken", "number": 3, "mood": "good"});
        let bytes = [encode(&newer, &[Bytes::from_static(b"x")]).unwrap(), encode(&beat, &[]).unwrap()].concat();
        let heads: Vec<Head> = decode_all(&bytes, std::iter::empty()).unwrap().into_iter().map(|f| f.head).collect();
        assert_eq!(heads, [Head::Unknown, Head::Taken { number: 3 }]);
    }

    /// What an older version has written must be read by all later ones, while they are replaced.
    #[test]
    fn the_bytes_of_a_frame_never_change() {
        let head = Head::Ask {
            number: 1,
            wait_ms: 2,
            question: Question::Register { lane: LaneName::Rooms, partition: Partition(3) },
        };
        let bytes = Frame { head, parts: vec![Bytes::from_static(b"key")] }.encode().unwrap();
        let json =
            br#"{"is":"ask","number":1,"wait_ms":2,"question":{"about":"register","lane":"rooms","partition":3}}"#;
        let expected = [&[0, 0, 0, 107, 0, 0, 0, 96], &json[..], &[0, 0, 0, 3], b"key"].concat();
        assert_eq!(json.len(), 96);
        assert_eq!(bytes, expected);
    }
}
