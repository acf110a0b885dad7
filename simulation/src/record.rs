//! Writes down what passes between a client and its socket, at the client's end, for the judge. Reads frames off the
//! bytes (RFC 6455 section 5.2); changes nothing.

use std::collections::{BTreeSet, VecDeque};
use std::io::Cursor;
use std::sync::{Arc, OnceLock};

use checker::frame::{Frame, text_digest};
use checker::{AskId, Checker, ClientId, Listed, Reader, Step, digest};
use parking_lot::Mutex;
use schemas::frame::ClientFrame;
use schemas::{EventId, RoomId, Seq, UserId};
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::people::FIRST_CALLER;

/// Looks into the log: whether this event is committed at this place.
pub type Committed = Box<dyn Fn(RoomId, Seq, EventId) -> bool + Send + Sync>;

/// The record of a schedule.
#[derive(Default)]
pub struct Record {
    pages: Mutex<Pages>,
    committed: OnceLock<Committed>,
}

#[derive(Default)]
struct Pages {
    checker: Checker,
    /// Folds all steps: what everyone saw, in order.
    trace: u64,
    steps: u64,
    asks: u64,
    /// Clients that are connected and were told that nothing is missed.
    live: BTreeSet<ClientId>,
    /// What someone was told before it was durable.
    acted_before_durable: Vec<String>,
}

impl Record {
    /// Adds a step.
    pub fn note(&self, step: Step) {
        let mut pages = self.pages.lock();
        let told = match &step {
            Step::Delivered { event, .. } => Some((event.room, event.seq, event.id)),
            Step::Accepted { room, seq, id, .. } => Some((*room, *seq, *id)),
            _ => None,
        };
        if let (Some((room, seq, id)), Some(committed)) = (told, self.committed.get())
            && !committed(room, seq, id)
        {
            pages.acted_before_durable.push(format!("acted_before_durable: {room} {seq}: {step:?}"));
        }
        match step {
            Step::Live { client } => pages.live.insert(client),
            Step::Hello { client, .. } | Step::Closed { client } => pages.live.remove(&client),
            _ => false,
        };
        pages.steps += 1;
        pages.trace = digest(&[&pages.trace.to_be_bytes(), format!("{step:?}").as_bytes()]);
        tracing::trace!(?step, "seen");
        pages.checker.observe(step);
    }

    /// Whether a client is connected and misses nothing.
    pub fn is_live(&self, client: ClientId) -> bool {
        self.pages.lock().live.contains(&client)
    }

    /// How it looks into the log.
    pub fn watch(&self, committed: Committed) {
        // Set once, when the world begins.
        let _ = self.committed.set(committed);
    }

    /// A person is about to read.
    pub fn ask(&self, user: UserId) -> AskId {
        let ask = {
            let mut pages = self.pages.lock();
            pages.asks += 1;
            AskId(pages.asks)
        };
        self.note(Step::Asking { ask, user });
        ask
    }

    /// Closes it: all that must not be.
    pub fn judge(&self) -> Vec<String> {
        let mut pages = self.pages.lock();
        let verdict = std::mem::take(&mut pages.checker).judge();
        let mut broken = std::mem::take(&mut pages.acted_before_durable);
        broken.extend(verdict.breaches.iter().map(ToString::to_string));
        broken
    }

    /// How many steps there were, and what stands for all of them.
    pub fn trace(&self) -> (u64, u64) {
        let pages = self.pages.lock();
        (pages.steps, pages.trace)
    }
}

/// One connection, as it is read along: a socket, or calls, of which pages of history are what a client fills gaps with.
pub struct Tap {
    record: Arc<Record>,
    client: ClientId,
    user: UserId,
    from_client: Half,
    from_server: Half,
    said_hello: bool,
    /// The calls under way, where this is no socket.
    calls: VecDeque<(String, Option<AskId>)>,
}

/// One direction.
#[derive(Default)]
struct Half {
    bytes: Vec<u8>,
    /// The head of the handshake is over.
    open: bool,
}

impl Half {
    /// Adds bytes of calls: the heads and bodies that are whole by now (RFC 9112; all have a length).
    fn take_calls(&mut self, more: &[u8]) -> Vec<(String, Vec<u8>)> {
        self.bytes.extend_from_slice(more);
        let mut messages = Vec::new();
        while let Some(end) = end_of_head(&self.bytes) {
            let head = String::from_utf8_lossy(&self.bytes[..end]).into_owned();
            let mut headers = head.lines().filter_map(|line| line.split_once(": "));
            let length = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length = length.and_then(|(_, length)| length.parse::<usize>().ok()).unwrap_or(0);
            let Some(body) = self.bytes.get(end..end + length) else { break };
            messages.push((head, body.to_vec()));
            self.bytes.drain(..end + length);
        }
        messages
    }

    /// Adds bytes of a socket; the texts that are whole by now.
    fn take(&mut self, more: &[u8]) -> Vec<String> {
        self.bytes.extend_from_slice(more);
        if !self.open {
            let Some(end) = end_of_head(&self.bytes) else { return Vec::new() };
            self.bytes.drain(..end);
            self.open = true;
        }
        let mut texts = Vec::new();
        while let Some((opcode, payload, length)) = first_frame(&self.bytes) {
            if opcode == OpCode::Data(Data::Text)
                && let Ok(text) = String::from_utf8(payload)
            {
                texts.push(text);
            }
            self.bytes.drain(..length);
        }
        texts
    }
}

/// Where the head of an HTTP message ends.
pub fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// The first frame: its opcode, its payload and its length in bytes. Neither side splits messages.
fn first_frame(bytes: &[u8]) -> Option<(OpCode, Vec<u8>, usize)> {
    let mut read = Cursor::new(bytes);
    let (header, length) = FrameHeader::parse(&mut read).ok()??;
    let (at, length) = (usize::try_from(read.position()).ok()?, usize::try_from(length).ok()?);
    let payload = bytes.get(at..at + length)?;
    let mask = header.mask.unwrap_or_default();
    let payload = payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect();
    Some((header.opcode, payload, at + length))
}

impl Tap {
    /// Of a client's connection.
    pub fn new(record: Arc<Record>, client: ClientId, user: UserId) -> Self {
        let (from_client, from_server) = (Half::default(), Half::default());
        Self { record, client, user, from_client, from_server, said_hello: false, calls: VecDeque::new() }
    }

    /// The client is about to say this.
    pub fn said(&mut self, bytes: &[u8]) {
        let is_first = self.from_client.bytes.is_empty() && !self.from_client.open;
        if !self.calls.is_empty() || (is_first && !bytes.starts_with(b"GET /v1/socket ")) {
            let calls = self.from_client.take_calls(bytes);
            for (head, _) in calls {
                let call = head.lines().next().unwrap_or_default().to_owned();
                let is_device = self.client.0 < FIRST_CALLER;
                self.calls.push_back((call, is_device.then(|| self.record.ask(self.user))));
            }
            return;
        }
        for text in self.from_client.take(bytes) {
            let Ok(frame) = serde_json::from_str::<ClientFrame>(&text) else { continue };
            let client = self.client;
            match frame {
                ClientFrame::Hello(hello) => {
                    self.said_hello = true;
                    let mut resume: Vec<_> = hello.resume.into_iter().collect();
                    resume.sort_unstable();
                    self.record.note(Step::Hello { client, user: self.user, resume });
                }
                ClientFrame::Send { room, client_msg_id, content, .. } => {
                    let body = text_digest(content.body.as_deref().unwrap_or_default());
                    let (user, client) = (self.user, Some(client));
                    self.record.note(Step::Sending { user, client, room, client_msg_id, body });
                }
                ClientFrame::Delivered { room, seq } => {
                    self.record.note(Step::Receipt { client, room, seq, read: false });
                }
                ClientFrame::Read { room, seq } => {
                    self.record.note(Step::Receipt { client, room, seq, read: true });
                }
                _ => {}
            }
        }
    }

    /// The client has got this.
    pub fn heard(&mut self, bytes: &[u8]) {
        if !self.calls.is_empty() {
            for (head, body) in self.from_server.take_calls(bytes) {
                let Some((call, ask)) = self.calls.pop_front() else { continue };
                if let (true, Some(page)) = (head.starts_with("HTTP/1.1 200"), self.page(ask, &call, &body)) {
                    self.record.note(page);
                }
            }
            return;
        }
        for text in self.from_server.take(bytes) {
            let Ok(frame) = Frame::parse(&text) else { continue };
            let (client, user) = (self.client, self.user);
            let step = match (&*frame.kind.0, frame.room, frame.client_msg_id) {
                ("welcome", ..) => frame.session.map(|session| Step::Welcome { client, session }),
                ("live", ..) => Some(Step::Live { client }),
                ("gap", Some(room), _) => match (frame.from_seq, frame.to_seq) {
                    (Some(from), Some(to)) => Some(Step::Gap { client, room, from, to, readable: frame.readable }),
                    _ => None,
                },
                ("receipt", Some(room), _) => match (frame.user, frame.delivered_seq, frame.read_seq) {
                    (Some(user), Some(delivered_seq), Some(read_seq)) => {
                        Some(Step::ReceiptShown { client, room, user, delivered_seq, read_seq })
                    }
                    _ => None,
                },
                ("accepted", Some(room), Some(client_msg_id)) => match (frame.seq, frame.id) {
                    (Some(seq), Some(id)) => Some(Step::Accepted {
                        user,
                        client: Some(client),
                        room,
                        client_msg_id,
                        seq,
                        id,
                        at: frame.at(),
                        duplicate: frame.duplicate,
                    }),
                    _ => None,
                },
                ("rejected", Some(room), Some(client_msg_id)) => {
                    let (client, code) = (Some(client), frame.reject_code());
                    Some(Step::Rejected { user, client, room, client_msg_id, code })
                }
                _ => frame.event(&text).map(|event| Step::Delivered { client, event }),
            };
            if let Some(step) = step {
                self.record.note(step);
            }
        }
    }
}

impl Tap {
    /// A page of history, if the call asked for one.
    fn page(&self, ask: Option<AskId>, call: &str, body: &[u8]) -> Option<Step> {
        let (room, rest) = call.strip_prefix("GET /v1/rooms/")?.split_once("/messages?after=")?;
        let after = Seq(rest.split(['&', ' ']).next()?.parse().ok()?);
        page(ask?, Reader::Refill(self.client), RoomId(room.parse().ok()?), after, body)
    }
}

/// A page of history as it is answered.
pub fn page(ask: AskId, reader: Reader, room: RoomId, after: Seq, body: &[u8]) -> Option<Step> {
    let page: serde_json::Value = serde_json::from_slice(body).ok()?;
    let seq = |name: &str| page[name].as_u64().map(Seq);
    let texts: Vec<String> = page["items"].as_array()?.iter().map(ToString::to_string).collect();
    let events = texts.iter().map(|text| Frame::parse(text).ok()?.event(text)).collect::<Option<_>>()?;
    Some(Step::Page { ask, reader, room, after, first_seq: seq("first_seq")?, head_seq: seq("head_seq")?, events })
}

/// The rooms of a list as it is answered.
pub fn rooms(items: &[serde_json::Value]) -> Option<Vec<Listed>> {
    let listed = |item: &serde_json::Value| {
        let seq = |value: &serde_json::Value| value.as_u64().map(Seq);
        Some(Listed {
            room: RoomId(item["id"].as_str()?.parse().ok()?),
            head_seq: seq(&item["head_seq"])?,
            delivered_seq: seq(&item["me"]["delivered_seq"])?,
            read_seq: seq(&item["me"]["read_seq"])?,
        })
    };
    items.iter().map(listed).collect()
}

impl Drop for Tap {
    fn drop(&mut self) {
        if self.said_hello {
            self.record.note(Step::Closed { client: self.client });
        }
    }
}
