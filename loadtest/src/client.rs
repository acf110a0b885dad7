//! One user's client: one task, one socket at a time. It comes back after every loss with the cursors that it holds, and
//! tries its sends again under the same ids until they have an outcome. It notes everything in the book.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use checker::frame::{Frame, text_digest};
use checker::{ClientId, Reader, Step};
use futures_util::{SinkExt, StreamExt};
use schemas::frame::{ClientFrame, Hello};
use schemas::message::Content;
use schemas::outcome::RejectCode;
use schemas::{CommandId, DeviceId, RoomId, Seq, UserId};
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::api::{Api, Login};
use crate::book::{Book, Pages};
use crate::clock::{self, Timeline};
use crate::tls::Stream;
use crate::{body, http};

/// Each step of connecting, and each write.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a busy client looks at its receipts and retries.
const TICK: Duration = Duration::from_millis(250);

/// An attempt without any outcome is repeated after this: past the deadline of a command (10 s), when a server that is
/// alive has answered.
const OUTCOME_TIMEOUT: Duration = Duration::from_secs(15);

/// Pause before a try again where the server names none.
const RETRY: Duration = Duration::from_secs(1);

/// Reconnecting: full jitter below a bound that doubles from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Sends of one client that wait for their outcome; beyond it none is taken from the queue.
const PENDING_MAX: usize = 1_024;

/// Largest frame that is taken, bytes: thrice what a server is promised to send.
const FRAME_MAX_BYTES: usize = 1024 * 1024;

/// Heartbeats without any frame before a socket counts as dead.
const HEARTBEATS_MISSED: u32 = 3;

/// What all clients are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Be connected; send what is due.
    On,
    /// As before, and tell again how far everything has come.
    Telling,
    /// Drop the socket at once and stay away.
    Away,
    /// Be connected, but send nothing more, not even again.
    Quiet,
}

/// What all clients share.
pub struct Shared {
    /// Where the server is.
    pub target: http::Target,
    /// For tokens and for filling gaps.
    pub api: Api,
    /// Where everything is noted.
    pub book: Book,
    /// What latencies are measured on.
    pub timeline: Timeline,
    /// Bounds how many connect at a time.
    pub connecting: Semaphore,
}

/// A send that is due.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    /// Where.
    pub room: RoomId,
    /// When it should have been sent, on the timeline.
    pub scheduled_us: u64,
}

/// A room of this client.
pub struct Local {
    /// Its number in the book.
    pub room: usize,
    /// The membership's number in the book.
    pub membership: usize,
    /// The last seq that this client holds.
    pub cursor: Option<Seq>,
    told: Option<Seq>,
}

impl Local {
    /// A room of which this client holds nothing, or everything up to `cursor`.
    pub fn new(room: usize, membership: usize, cursor: Option<Seq>) -> Self {
        Self { room, membership, cursor, told: cursor }
    }
}

/// The rooms of a client.
pub type Locals = HashMap<RoomId, Local>;

struct Pending {
    id: CommandId,
    room: RoomId,
    scheduled_us: u64,
    retry_at: Instant,
    /// The server has asked to come back with it later: until it has taken it, nothing new is sent.
    put_off: bool,
}

/// The client.
pub struct Client {
    /// Its number.
    pub id: ClientId,
    /// Whose.
    pub user: UserId,
    /// With tokens of another issuer the client names its device.
    pub device: Option<DeviceId>,
    /// How it signs in.
    pub login: Arc<Login>,
    /// Its rooms.
    pub rooms: Locals,
    /// What it shares.
    pub shared: Arc<Shared>,
    /// What is due.
    pub due: mpsc::Receiver<Due>,
    /// What is going on.
    pub phase: watch::Receiver<Phase>,
    pending: VecDeque<Pending>,
}

type Ws = WebSocketStream<Box<dyn Stream>>;

/// How a socket ended.
enum End {
    /// Come back, after this if the server names it.
    Lost(Option<Duration>),
    /// It was dropped on purpose.
    Dropped,
    /// Nobody needs it any more.
    Over,
}

/// Why a close came, by its reason.
#[derive(Deserialize)]
struct CloseReason {
    retry_after_ms: Option<u64>,
}

/// What a socket knows of itself.
struct Socket {
    ws: Ws,
    timer: Pin<Box<Sleep>>,
    /// The timer is set to the next tick, not to the next heartbeat.
    busy: bool,
    heartbeat: Duration,
    heard: Instant,
    live: bool,
    started_us: u64,
}

impl Client {
    /// A client that has not connected yet.
    #[expect(clippy::too_many_arguments, reason = "each is one part of it, named where it is made")]
    pub fn new(
        id: ClientId,
        user: UserId,
        device: Option<DeviceId>,
        login: Arc<Login>,
        rooms: Locals,
        shared: Arc<Shared>,
        due: mpsc::Receiver<Due>,
        phase: watch::Receiver<Phase>,
    ) -> Self {
        Self { id, user, device, login, rooms, shared, due, phase, pending: VecDeque::new() }
    }

    /// Runs until nobody needs it any more.
    pub async fn run(mut self) {
        let mut failures = 0;
        let mut sockets = 0;
        loop {
            if self.phase.wait_for(|phase| *phase != Phase::Away).await.is_err() {
                return;
            }
            if sockets > 0 {
                let counts = &mut self.shared.book.open().counts;
                counts.reconnects += 1;
                counts.reconnects_max = counts.reconnects_max.max(sockets);
            }
            sockets += 1;
            let (end, was_live) = self.socket().await;
            self.shared.book.open().counts.in_vain += u64::from(!was_live);
            failures = if was_live { 0 } else { failures + 1 };
            let asked = match end {
                End::Over => return,
                End::Dropped => continue,
                End::Lost(asked) => asked.unwrap_or_default(),
            };
            let bound = BACKOFF.0.saturating_mul(1 << u32::min(failures, 16)).min(BACKOFF.1);
            let jitter = clock::below(u64::try_from(bound.as_micros()).unwrap_or(u64::MAX));
            sleep(asked.min(BACKOFF.1) + Duration::from_micros(jitter)).await;
        }
    }

    /// One socket from its beginning to its end; and whether it was ever live.
    async fn socket(&mut self) -> (End, bool) {
        let mut socket = match Box::pin(self.connect()).await {
            Ok(socket) => socket,
            Err(error) => {
                self.shared.book.open().trouble = Some(format!("{error:#}"));
                return (End::Lost(None), false);
            }
        };
        self.shared.book.open().open += 1;
        let end = self.serve(&mut socket).await;
        let mut book = self.shared.book.open();
        book.open -= 1;
        book.live -= usize::from(socket.live);
        book.note(|| Step::Closed { client: self.id });
        let end = end.unwrap_or_else(|error| {
            book.trouble = Some(format!("{error:#}"));
            *book.counts.closes.entry(0).or_default() += 1;
            End::Lost(None)
        });
        (end, socket.live)
    }

    async fn connect(&mut self) -> Result<Socket> {
        let shared = Arc::clone(&self.shared);
        let _place = shared.connecting.acquire().await?;
        let started_us = shared.timeline.micros();
        let token = shared.api.token(&self.login).await?;
        let stream = shared.target.connect().await?;
        let url = format!("ws://{}/v1/socket", shared.target.authority);
        let mut request = url.into_client_request()?;
        let protocol = schemas::frame::SUBPROTOCOL.parse()?;
        request.headers_mut().insert("sec-websocket-protocol", protocol);
        let config = WebSocketConfig::default()
            .read_buffer_size(4096)
            .write_buffer_size(4096)
            .max_message_size(Some(FRAME_MAX_BYTES))
            .max_frame_size(Some(FRAME_MAX_BYTES));
        let upgrade = tokio_tungstenite::client_async_with_config(request, stream, Some(config));
        let (mut ws, _) = timeout(STEP_TIMEOUT, upgrade).await??;
        let resume: HashMap<RoomId, Seq> =
            self.rooms.iter().filter_map(|(room, local)| Some((*room, local.cursor?))).collect();
        let record = resume.iter().map(|(room, seq)| (*room, *seq)).collect();
        shared.book.open().note(|| Step::Hello { client: self.id, user: self.user, resume: record });
        let hello = Hello { token: Some(token), device: self.device, resume, ..Hello::default() };
        write(&mut ws, &ClientFrame::Hello(hello)).await?;
        timeout(STEP_TIMEOUT, ws.flush()).await??;
        let heartbeat = schemas::limits::HEARTBEAT;
        let heard = Instant::now();
        Ok(Socket { ws, timer: Box::pin(sleep(heartbeat)), busy: false, heartbeat, heard, live: false, started_us })
    }

    async fn serve(&mut self, socket: &mut Socket) -> Result<End> {
        // The socket before this one may have taken their outcomes with it.
        for index in 0..self.pending.len() {
            if *self.phase.borrow() != Phase::Quiet {
                self.attempt(socket, index, true).await?;
            }
        }
        loop {
            let quiet = *self.phase.borrow() == Phase::Quiet;
            timeout(STEP_TIMEOUT, socket.ws.flush()).await??;
            tokio::select! {
                frame = socket.ws.next() => {
                    socket.heard = Instant::now();
                    match frame {
                        Some(Ok(Message::Text(text))) => self.handle(socket, &text).await?,
                        Some(Ok(Message::Close(frame))) => return Ok(self.closed(frame)),
                        Some(Ok(_)) => {}
                        Some(Err(error)) => return Err(error.into()),
                        None => return Err(anyhow!("the connection ended without a close")),
                    }
                }
                due = self.due.recv(), if !quiet && self.may_send() => {
                    let Some(due) = due else { return Ok(End::Over) };
                    self.send(socket, due).await?;
                }
                () = &mut socket.timer => self.tick(socket, quiet).await?,
                changed = self.phase.changed() => {
                    if changed.is_err() {
                        return Ok(End::Over);
                    }
                    match *self.phase.borrow_and_update() {
                        Phase::Away => return Ok(End::Dropped),
                        Phase::Telling => self.rooms.values_mut().for_each(|local| local.told = None),
                        Phase::On | Phase::Quiet => {}
                    }
                }
            }
            if !socket.busy && (!self.pending.is_empty() || self.untold().next().is_some()) {
                socket.busy = true;
                socket.timer.as_mut().reset(Instant::now() + TICK);
            }
        }
    }

    /// A close frame came.
    fn closed(&self, frame: Option<CloseFrame>) -> End {
        let (code, reason) = frame.map_or((0, String::new()), |frame| (frame.code.into(), frame.reason.to_string()));
        let mut book = self.shared.book.open();
        *book.counts.closes.entry(code).or_default() += 1;
        if (4500..5000).contains(&code) {
            book.fatal =
                Some(format!("the server closed a socket of user {} with {code} {reason}: stay away", self.user));
        }
        let asked = serde_json::from_str::<CloseReason>(&reason).ok().and_then(|reason| reason.retry_after_ms);
        End::Lost(asked.map(Duration::from_millis))
    }

    /// Whether something new may go out: what is due waits in the queue, and its latency with it.
    fn may_send(&self) -> bool {
        self.pending.len() < PENDING_MAX && !self.pending.iter().any(|pending| pending.put_off)
    }

    /// A new send.
    async fn send(&mut self, socket: &mut Socket, due: Due) -> Result<()> {
        let Due { room, scheduled_us } = due;
        let retry_at = Instant::now();
        self.pending.push_back(Pending { id: clock::command_id(), room, scheduled_us, retry_at, put_off: false });
        self.attempt(socket, self.pending.len() - 1, false).await
    }

    /// Puts a send on the socket.
    async fn attempt(&mut self, socket: &mut Socket, index: usize, again: bool) -> Result<()> {
        let Some(pending) = self.pending.get_mut(index) else { return Ok(()) };
        pending.retry_at = Instant::now() + OUTCOME_TIMEOUT;
        let Pending { id, room, scheduled_us, .. } = *pending;
        let text = body::text(id, scheduled_us);
        {
            let mut book = self.shared.book.open();
            if again {
                book.counts.retried += 1;
            } else {
                book.counts.sent += 1;
                book.lag.saturating_record(self.shared.timeline.micros().saturating_sub(scheduled_us));
            }
            book.note(|| Step::Sending {
                user: self.user,
                client: Some(self.id),
                room,
                client_msg_id: id,
                body: text_digest(&text),
            });
        }
        let content = Content::text(text);
        write(&mut socket.ws, &ClientFrame::Send { room, client_msg_id: id, content, reply_to: None }).await
    }

    /// Rooms whose news the server has not been told to have arrived.
    fn untold(&mut self) -> impl Iterator<Item = (&RoomId, &mut Local)> {
        self.rooms.iter_mut().filter(|(_, local)| local.cursor > local.told)
    }

    /// Receipts, retries, and whether the server is still there.
    async fn tick(&mut self, socket: &mut Socket, quiet: bool) -> Result<()> {
        if socket.heard.elapsed() > socket.heartbeat * HEARTBEATS_MISSED {
            return Err(anyhow!("no frame for {} heartbeats", HEARTBEATS_MISSED));
        }
        let mut told = Vec::new();
        for (room, local) in self.untold() {
            local.told = local.cursor;
            told.extend(local.cursor.map(|seq| (*room, seq)));
        }
        for (room, seq) in told {
            self.shared.book.open().note(|| Step::Receipt { client: self.id, room, seq, read: false });
            write(&mut socket.ws, &ClientFrame::Delivered { room, seq }).await?;
        }
        for index in 0..self.pending.len() {
            if !quiet && self.pending[index].retry_at <= Instant::now() {
                self.attempt(socket, index, true).await?;
            }
        }
        socket.busy = !self.pending.is_empty();
        let next = if socket.busy { TICK } else { socket.heartbeat };
        socket.timer.as_mut().reset(Instant::now() + next);
        Ok(())
    }

    /// A frame came.
    async fn handle(&mut self, socket: &mut Socket, raw: &Utf8Bytes) -> Result<()> {
        let Ok(frame) = Frame::parse(raw) else {
            let mut book = self.shared.book.open();
            book.counts.errors += 1;
            book.trouble = Some("a frame that is not as promised".into());
            return Ok(());
        };
        let now = self.shared.timeline.micros();
        match &*frame.kind.0 {
            "accepted" => self.accepted(&frame, now),
            "rejected" => self.rejected(&frame, now),
            "gap" => self.gap(&frame),
            "receipt" => {
                if let (Some(room), Some(user), Some(delivered_seq), Some(read_seq)) =
                    (frame.room, frame.user, frame.delivered_seq, frame.read_seq)
                {
                    let client = self.id;
                    let shown = Step::ReceiptShown { client, room, user, delivered_seq, read_seq };
                    self.shared.book.open().note(|| shown);
                }
            }
            "welcome" => {
                socket.heartbeat = frame.heartbeat_s.map_or(socket.heartbeat, Duration::from_secs);
                if let Some(session) = frame.session {
                    self.shared.book.open().note(|| Step::Welcome { client: self.id, session });
                }
            }
            "live" => {
                let mut book = self.shared.book.open();
                book.note(|| Step::Live { client: self.id });
                if !std::mem::replace(&mut socket.live, true) {
                    book.live += 1;
                    book.connect.saturating_record(now.saturating_sub(socket.started_us));
                }
            }
            "ping" => write(&mut socket.ws, &ClientFrame::Pong {}).await?,
            "token_expiring" => {
                let token = self.shared.api.token(&self.login).await?;
                write(&mut socket.ws, &ClientFrame::Authenticate { token }).await?;
            }
            "error" => {
                let mut book = self.shared.book.open();
                book.counts.errors += 1;
                book.trouble = Some(format!("the server says: {}", raw.as_str()));
            }
            _ if frame.is_event() => self.event(&frame, raw, now),
            _ => {}
        }
        Ok(())
    }

    /// Everything up to `seq` has come.
    fn advance(&mut self, room: RoomId, seq: Seq) {
        let Some(local) = self.rooms.get_mut(&room) else { return };
        local.cursor = local.cursor.max(Some(seq));
        let mut book = self.shared.book.open();
        book.head(local.room, seq);
        if let Some((_, reached)) = book.progress.get_mut(local.membership) {
            *reached = seq.max(*reached);
        }
    }

    fn event(&mut self, frame: &Frame<'_>, raw: &str, now: u64) {
        let event = frame.event(raw);
        {
            let mut book = self.shared.book.open();
            let Some(event) = event else {
                book.counts.errors += 1;
                return;
            };
            book.note(|| Step::Delivered { client: self.id, event });
            book.counts.events += 1;
            delivered(&mut book, self.user, frame, now);
        }
        if let Some(event) = event {
            self.advance(event.room, event.seq);
        }
    }

    fn accepted(&mut self, frame: &Frame<'_>, now: u64) {
        let (Some(client_msg_id), Some(room), Some(seq), Some(id)) =
            (frame.client_msg_id, frame.room, frame.seq, frame.id)
        else {
            self.shared.book.open().counts.errors += 1;
            return;
        };
        let pending = self.pending.iter().position(|pending| pending.id == client_msg_id);
        let pending = pending.and_then(|index| self.pending.remove(index));
        {
            let mut book = self.shared.book.open();
            book.note(|| Step::Accepted {
                user: self.user,
                client: Some(self.id),
                room,
                client_msg_id,
                seq,
                id,
                at: frame.at(),
                duplicate: frame.duplicate,
            });
            book.counts.duplicates += u64::from(frame.duplicate);
            if let Some(pending) = pending {
                book.accepted(pending.scheduled_us, now);
            }
            if let Some(local) = self.rooms.get(&room) {
                book.head(local.room, seq);
            }
        }
        if !frame.duplicate {
            self.advance(room, seq);
        }
    }

    fn rejected(&mut self, frame: &Frame<'_>, now: u64) {
        let code = frame.reject_code();
        let mut book = self.shared.book.open();
        book.rejected(code);
        let (Some(client_msg_id), Some(room)) = (frame.client_msg_id, frame.room) else {
            book.counts.errors += 1;
            return;
        };
        book.note(|| Step::Rejected { user: self.user, client: Some(self.id), room, client_msg_id, code });
        let Some(index) = self.pending.iter().position(|pending| pending.id == client_msg_id) else { return };
        let after = frame.retry_after_ms.map(Duration::from_millis);
        match after.or((code == RejectCode::Unavailable).then_some(RETRY)) {
            Some(after) => {
                self.pending[index].retry_at = Instant::now() + after;
                self.pending[index].put_off = true;
            }
            None => {
                self.pending.remove(index);
                book.counts.refused += 1;
                book.waits.refused(now);
            }
        }
    }

    /// A gap leads the stream on; a readable one is filled from history, beside the socket.
    fn gap(&mut self, frame: &Frame<'_>) {
        let (Some(room), Some(from), Some(to)) = (frame.room, frame.from_seq, frame.to_seq) else {
            self.shared.book.open().counts.errors += 1;
            return;
        };
        let readable = frame.readable;
        {
            let mut book = self.shared.book.open();
            book.counts.gaps += 1;
            book.note(|| Step::Gap { client: self.id, room, from, to, readable });
            book.refills += u64::from(readable);
        }
        self.advance(room, to);
        if readable {
            let (shared, login) = (Arc::clone(&self.shared), Arc::clone(&self.login));
            let (user, reader) = (self.user, Reader::Refill(self.id));
            tokio::spawn(async move {
                let filled = refill(&shared, &login, (user, reader), room, from.prev(), to).await;
                let mut book = shared.book.open();
                book.refills -= 1;
                if let Err(error) = filled {
                    book.trouble = Some(format!("{error:#}"));
                }
            });
        }
    }
}

/// Notes when a message of someone else has come to a person.
fn delivered(book: &mut Pages, to: UserId, frame: &Frame<'_>, now: u64) {
    if frame.sender.is_some_and(|sender| sender != to) {
        let text = frame.content.as_ref().and_then(|content| content.body.as_ref());
        match text.and_then(|text| body::scheduled_us(&text.0)) {
            Some(scheduled) => book.delivered(scheduled, now),
            None => book.counts.corrupt += 1,
        }
    }
}

/// Reads `(after, to]` of history for a client. Ends where a page brings nothing on.
async fn refill(
    shared: &Shared,
    login: &Login,
    reader: (UserId, Reader),
    room: RoomId,
    mut after: Seq,
    to: Seq,
) -> Result<()> {
    while after < to {
        match read_page(shared, login, reader, room, after).await? {
            (last, _) if last > after => after = last,
            _ => break,
        }
    }
    Ok(())
}

/// Reads the page of history after a seq into the record. Returns its last seq and the head.
pub async fn read_page(
    shared: &Shared,
    login: &Login,
    (user, reader): (UserId, Reader),
    room: RoomId,
    after: Seq,
) -> Result<(Seq, Seq)> {
    let ask = shared.book.open().ask(user);
    let page = shared.api.page(login, room, after).await?;
    let mut events = Vec::with_capacity(page.items.len());
    for item in &page.items {
        let frame = Frame::parse(item.get())?;
        // What fills a gap has come as good as by the socket.
        if matches!(reader, Reader::Refill(_)) {
            delivered(&mut shared.book.open(), user, &frame, shared.timeline.micros());
        }
        let event = frame.event(item.get());
        events.push(event.ok_or_else(|| anyhow!("history of room {room} has an item that is no event"))?);
    }
    let last = events.last().map_or(after, |event| event.seq);
    let (first_seq, head_seq) = (page.first_seq, page.head_seq);
    shared.book.open().note(|| Step::Page { ask, reader, room, after, first_seq, head_seq, events });
    Ok((last, head_seq))
}

/// Puts a frame into the socket's buffer; the loop flushes it.
async fn write(ws: &mut Ws, frame: &ClientFrame) -> Result<()> {
    let text = serde_json::to_string(frame)?;
    timeout(STEP_TIMEOUT, ws.feed(Message::Text(text.into()))).await??;
    Ok(())
}
