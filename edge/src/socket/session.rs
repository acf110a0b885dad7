//! One socket's life: hello, welcome, what was missed, `live`, and then frames both ways until it closes. One task; what
//! it holds while nothing happens is small, for there may be many thousands of it: longer work is boxed while it lasts.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use schemas::frame::{ClientFrame, Control, FrameLimits, Hello, close};
use schemas::limits::{COMMAND_DEADLINE, CONTENT_MAX_BYTES, FRAME_MAX_BYTES, HEARTBEAT, HELLO_TIMEOUT};
use schemas::link::{Lane, Unavailable};
use schemas::message::{Content, Message as Text};
use schemas::outcome::RejectCode;
use schemas::signal::SignalKind;
use schemas::{
    Action, Command, CommandId, DeviceId, EventId, Offset, ReplyTo, RoomId, Seq, SessionId, Timestamp, UserId,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use super::outbox::Socket;
use super::{Gate, catch_up, wire};
use crate::hub::Hub;
use crate::limits::Place;

/// A client that takes nothing for so long is cut (I9).
const WRITE_STALL: Duration = Duration::from_secs(10);

/// Time for a client to take its close frame and to answer it.
const PARTING: Duration = Duration::from_secs(2);

/// Pause before reading again what could not be read.
const RETRY: Duration = Duration::from_millis(250);

/// Tries to read what was missed before the socket is told to come back later.
const TRIES: u32 = 20;

/// Rooms that a person has left unseen and is told of at once; the rest, if anybody has so many, next time.
const LEFT_MAX: usize = 100;

/// Buffer of an idle socket, bytes: most client frames are receipts and pongs. It grows for a larger frame.
const READ_BUFFER_BYTES: usize = 512;

/// How sockets are read: small buffers, bounded frames. Nothing but pongs and close replies is written through it.
pub fn websocket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_write_buffer_size(FRAME_MAX_BYTES)
        .max_message_size(Some(FRAME_MAX_BYTES))
        .max_frame_size(Some(FRAME_MAX_BYTES))
}

/// What a session is handed.
#[derive(Clone)]
pub struct Context {
    /// Where live events come from and commands go to.
    pub hub: Arc<Hub>,
    /// Who tokens speak for, ids, limits.
    pub gate: Arc<dyn Gate>,
}

/// Serves one socket until it closes. `bearer`: the token of its Authorization header.
pub async fn run<S>(mut stream: WebSocketStream<S>, context: Context, bearer: Option<String>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some((inside, hello)) = Box::pin(open(&mut stream, &context, bearer)).await else { return };
    let code = serve(&mut stream, &context, &inside.socket, hello).await;
    drop(inside);
    if let Some((code, retry_after_ms)) = code {
        context.hub.metrics().closed.with_label_values(&[code.to_string()]).inc();
        Box::pin(part(&mut stream, code, retry_after_ms)).await;
    }
}

/// A socket that has been let in. However it ends, the hub lets go of it and its place among its person's is free.
struct Inside<'a> {
    hub: &'a Hub,
    socket: Arc<Socket>,
    _place: Place<UserId>,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.hub.leave(&self.socket);
    }
}

/// Reads the first frame and lets the person in.
async fn open<'a, S>(
    stream: &mut WebSocketStream<S>,
    context: &'a Context,
    bearer: Option<String>,
) -> Option<(Inside<'a>, Hello)>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let hello = match tokio::time::timeout(HELLO_TIMEOUT, first_frame(stream)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(None)) => return None,
        Ok(Err(Some(code))) => {
            part(stream, code, None).await;
            return None;
        }
        Err(_) => {
            part(stream, close::NO_HELLO, None).await;
            return None;
        }
    };
    match admit(context, &hello, bearer).await {
        Ok(inside) => Some((inside, hello)),
        Err((code, retry_after_ms)) => {
            context.hub.metrics().closed.with_label_values(&[code.to_string()]).inc();
            part(stream, code, retry_after_ms).await;
            None
        }
    }
}

/// The hello, or the code to close with, or `None` where the client has gone.
async fn first_frame<S>(stream: &mut WebSocketStream<S>) -> Result<Hello, Option<u16>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match stream.next().await {
            Some(Ok(Message::Text(text))) => {
                return match serde_json::from_str(text.as_str()) {
                    Ok(ClientFrame::Hello(hello)) => Ok(hello),
                    _ => Err(Some(close::BAD_FRAME)),
                };
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_))) | None => return Err(None),
            Some(Ok(_)) => return Err(Some(close::BAD_FRAME)),
            Some(Err(error)) => return Err(code_of(&error)),
        }
    }
}

/// A close code, and when to come back, ms.
type Closing = (u16, Option<u32>);

/// Who is it, and with which device? Have they room for one more socket?
async fn admit<'a>(context: &'a Context, hello: &Hello, bearer: Option<String>) -> Result<Inside<'a>, Closing> {
    let token = bearer.as_deref().or(hello.token.as_deref()).ok_or((close::TOKEN_INVALID, None))?;
    let identity = context.gate.authenticate(token).await.map_err(|code| (code, None))?;
    let device = match (identity.device, hello.device) {
        (Some(own), Some(said)) if own != said => return Err((close::TOKEN_INVALID, None)),
        (Some(device), _) | (None, Some(device)) => device,
        (None, None) => DeviceId(context.gate.next_id()),
    };
    let place = context.gate.allow_socket(identity.user).map_err(|wait_ms| (close::RATE_LIMITED, Some(wait_ms)))?;
    let session = SessionId(context.gate.next_id());
    let socket = Arc::new(Socket::new(session, identity.user, device, hello.rooms.as_deref(), identity.expires_at));
    socket.heard(context.hub.elapsed_s());
    socket.push(
        wire::control(Control::Welcome {
            user: identity.user,
            device,
            session,
            time: context.hub.deps().clock.now(),
            heartbeat_s: HEARTBEAT.as_secs(),
            limits: FrameLimits::DEFAULT,
        }),
        false,
    );
    Ok(Inside { hub: &context.hub, socket, _place: place })
}

/// Work beside reading and writing; boxed, for it is rare.
type Work = BoxFuture<'static, Result<(), Unavailable>>;

/// The loop: write what waits, do what there is to do, read what comes. Answers the code to close with, or `None` where
/// the client has gone.
async fn serve<S>(
    stream: &mut WebSocketStream<S>,
    context: &Context,
    socket: &Arc<Socket>,
    hello: Hello,
) -> Option<Closing>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut work: Option<Work> = Some(Box::pin(begin(context.clone(), Arc::clone(socket), hello)));
    let mut live = false;
    let mut failures = 0;
    loop {
        if !flush(stream, context, socket).await {
            return None;
        }
        if let Some(closing) = socket.closing() {
            return Some(closing);
        }
        if work.is_none() && socket.has_work() && socket.has_room() {
            work = Some(Box::pin(step(context.clone(), Arc::clone(socket), failures > 0)));
        }
        tokio::select! {
            () = socket.woken() => {}
            frame = stream.next() => {
                socket.heard(context.hub.elapsed_s());
                match frame {
                    Some(Ok(Message::Text(text))) => handle(context, socket, text.as_str()).await,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Binary(_) | Message::Frame(_))) => socket.close(close::BAD_FRAME, None),
                    Some(Ok(Message::Close(_))) | None => return None,
                    Some(Err(error)) => match code_of(&error) {
                        Some(code) => socket.close(code, None),
                        None => return None,
                    },
                }
            }
            done = poll_fn(|cx| work.as_mut().map_or(Poll::Pending, |work| work.as_mut().poll(cx))) => {
                work = None;
                match done {
                    Ok(()) => failures = 0,
                    Err(Unavailable) => failures += 1,
                }
                if failures > TRIES {
                    socket.close(close::TRY_LATER, Some(1_000));
                } else if failures > 0 {
                    socket.still_behind();
                } else if !live && !socket.has_work() {
                    live = true;
                    go_live(context, socket).await;
                }
            }
        }
    }
}

/// The first work of a socket: who is in, which rooms, what was missed (I7).
async fn begin(context: Context, socket: Arc<Socket>, hello: Hello) -> Result<(), Unavailable> {
    let hub = &context.hub;
    let mut tries = 0;
    loop {
        match begin_once(hub, &socket, &hello).await {
            Err(Unavailable) if tries < TRIES => {
                tries += 1;
                tokio::time::sleep(RETRY).await;
            }
            Err(Unavailable) => {
                socket.close(close::TRY_LATER, Some(1_000));
                return Ok(());
            }
            Ok(()) => return Ok(()),
        }
    }
}

async fn begin_once(hub: &Arc<Hub>, socket: &Arc<Socket>, hello: &Hello) -> Result<(), Unavailable> {
    let position = hub.enter(socket).await?;
    let mut rooms = hub.history().rooms_of(socket.user, position).await?;
    // A room that they have left is followed up to their way out: if the client says that it is not there yet, or if
    // nobody has told it.
    hub.history().settle(Lane::Users, hub.partition(socket.user.as_bytes()), position).await?;
    let unseen = hub.deps().store.left_unseen(socket.user, LEFT_MAX).await.map_err(|error| {
        tracing::warn!(%error, "rooms that were left could not be read");
        Unavailable
    })?;
    let left: HashSet<RoomId> =
        hello.resume.keys().copied().chain(unseen).filter(|room| !rooms.contains(room)).collect();
    if !left.is_empty() {
        let left: Vec<(RoomId, Offset)> = left.into_iter().map(|room| (room, Offset(0))).collect();
        rooms.extend(hub.history().rooms(socket.user, &left).await?.iter().map(|entry| entry.info.id));
    }
    rooms.retain(|room| socket.wants(*room));
    catch_up::follow(hub, socket, &rooms, &hello.resume).await?;
    hub.came(socket).await;
    catch_up::read(hub, socket, socket.take_behind()).await
}

/// Any later work: rooms that came in, rooms that are behind.
async fn step(context: Context, socket: Arc<Socket>, after_failure: bool) -> Result<(), Unavailable> {
    if after_failure {
        tokio::time::sleep(RETRY).await;
    }
    let hub = &context.hub;
    let wanted = |room: &RoomId| socket.wants(*room);
    let (joined, relist) = socket.take_news();
    let mut came: HashMap<RoomId, Seq> = HashMap::new();
    for (room, seq) in &joined {
        if wanted(room) && !socket.follows(*room) {
            // Back in the same connection: on from their way out. Else from their way in, what was before is history.
            came.insert(*room, socket.ended_at(*room).unwrap_or(seq.prev()));
        }
    }
    let mut result = Ok(());
    if relist {
        let position = hub.end(Lane::Users, hub.partition(socket.user.as_bytes())).await;
        match position {
            Ok(position) => match hub.history().rooms_of(socket.user, position).await {
                Ok(rooms) => {
                    for room in rooms.into_iter().filter(wanted).filter(|room| !socket.follows(*room)) {
                        if let Some(seq) = socket.ended_at(room) {
                            came.insert(room, seq);
                        } else {
                            came.entry(room).or_insert(Seq::ZERO);
                        }
                    }
                }
                Err(unavailable) => result = Err(unavailable),
            },
            Err(unavailable) => result = Err(unavailable),
        }
        if result.is_err() {
            socket.relist();
        }
    }
    if !came.is_empty() {
        let rooms: Vec<RoomId> = came.keys().copied().collect();
        // A room of the list without a known cursor starts where the person was delivered to.
        let resume = came.iter().filter(|(_, seq)| **seq > Seq::ZERO).map(|(room, seq)| (*room, *seq)).collect();
        if let Err(unavailable) = catch_up::follow(hub, &socket, &rooms, &resume).await {
            for (room, seq) in came {
                socket.room_joined(room, seq.next());
            }
            return Err(unavailable);
        }
    }
    catch_up::read(hub, &socket, socket.take_behind()).await?;
    result
}

/// Everything missed has been sent.
async fn go_live(context: &Context, socket: &Arc<Socket>) {
    let at = context.hub.deps().clock.now();
    for room in socket.rooms() {
        for (user, (delivered_seq, read_seq)) in context.hub.receipts_of(room) {
            socket.push(wire::control(Control::Receipt { room, user, delivered_seq, read_seq, at }), true);
        }
    }
    socket.push(wire::control(Control::Live {}), false);
}

/// Writes everything that waits. `false`: the client takes nothing or has gone.
async fn flush<S>(stream: &mut WebSocketStream<S>, context: &Context, socket: &Socket) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let (mut frames, oldest_us) = socket.take_frames();
        if frames.is_empty() {
            socket.give_back(frames);
            return true;
        }
        if wire::write_frames(stream.get_mut(), &mut frames, WRITE_STALL).await.is_err() {
            return false;
        }
        if oldest_us > 0 {
            context.hub.metrics().written(context.hub.deps().clock.micros() - oldest_us);
        }
        socket.give_back(frames);
    }
}

/// Says goodbye: the close frame, and then what the client still had to say is read away for a moment.
async fn part<S>(stream: &mut WebSocketStream<S>, code: u16, retry_after_ms: Option<u32>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut frames = std::collections::VecDeque::from([wire::close(code, retry_after_ms)]);
    let goodbye = async {
        wire::write_frames(stream.get_mut(), &mut frames, PARTING).await?;
        while let Some(Ok(message)) = stream.next().await {
            if matches!(message, Message::Close(_)) {
                return Ok(());
            }
        }
        // What comes now can't be understood any more. It is taken all the same: a connection that is closed with bytes
        // unread is reset, and the client might never read why.
        stream.get_mut().shutdown().await?;
        let mut unread = [0; 1_024];
        while stream.get_mut().read(&mut unread).await? > 0 {}
        std::io::Result::Ok(())
    };
    // A client that does not answer within this time has its connection cut: nothing of ours is lost by it.
    drop(tokio::time::timeout(PARTING, goodbye).await);
}

/// The close code for what a client sent wrong; `None` where the connection is simply gone.
fn code_of(error: &WsError) -> Option<u16> {
    match error {
        WsError::Capacity(_) => Some(close::TOO_LARGE),
        WsError::Protocol(_) | WsError::Utf8(_) => Some(close::BAD_FRAME),
        _ => None,
    }
}

/// One client frame.
async fn handle(context: &Context, socket: &Arc<Socket>, text: &str) {
    let frame = match serde_json::from_str::<ClientFrame>(text) {
        Ok(frame) => frame,
        Err(error) => return refuse(context, socket, text, &error),
    };
    let hub = &context.hub;
    match frame {
        ClientFrame::Send { room, client_msg_id, content, reply_to } => {
            Box::pin(send(context, socket, room, client_msg_id, content, reply_to)).await;
        }
        ClientFrame::Delivered { room, seq } => {
            if let Some(seq) = socket.receipt(room, seq) {
                hub.receipt(socket, room, seq, Seq::ZERO);
            }
        }
        ClientFrame::Read { room, seq } => {
            if let Some(seq) = socket.receipt(room, seq) {
                // What has been seen has arrived.
                hub.receipt(socket, room, seq, seq);
            }
        }
        ClientFrame::Typing { room } => {
            if socket.follows(room) && socket.may_signal(hub.elapsed_s()) {
                Box::pin(hub.signal(socket.user, socket.session, SignalKind::Typing, &[room])).await;
            }
        }
        ClientFrame::Pong {} => {}
        ClientFrame::Authenticate { token } => match Box::pin(context.gate.authenticate(&token)).await {
            Ok(identity) if identity.user == socket.user => socket.renew(identity.expires_at),
            Ok(_) => socket.close(close::TOKEN_INVALID, None),
            Err(code) => socket.close(code, None),
        },
        ClientFrame::Hello(_) => error(socket, "unexpected_hello", "hello is the first frame only"),
    }
}

/// A frame of unknown type or with wrong fields is answered; what is no JSON object ends the socket (protocol.md).
fn refuse(context: &Context, socket: &Socket, text: &str, why: &serde_json::Error) {
    let is_object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).is_ok();
    let reason = if is_object { "bad_frame" } else { "not_json" };
    context.hub.metrics().refused.with_label_values(&[reason]).inc();
    if is_object {
        error(socket, "bad_frame", &why.to_string());
    } else {
        socket.close(close::BAD_FRAME, None);
    }
}

fn error(socket: &Socket, code: &str, detail: &str) {
    socket.push(wire::control(Control::Error { code: code.into(), detail: detail.into() }), true);
}

/// A message into a room.
async fn send(
    context: &Context,
    socket: &Arc<Socket>,
    room: RoomId,
    client_msg_id: CommandId,
    content: Content,
    reply_to: Option<Seq>,
) {
    let reject = |code: RejectCode, detail: &str, retry_after_ms: Option<u32>| {
        context.hub.metrics().refused.with_label_values(&[code.as_str()]).inc();
        let detail = detail.to_owned();
        socket.push(wire::control(Control::Rejected { client_msg_id, room, code, detail, retry_after_ms }), false);
    };
    let hub = &context.hub;
    if content.size_bytes() > CONTENT_MAX_BYTES {
        return reject(RejectCode::TooLarge, "the content is over the limit", None);
    }
    if let Err(retry_after_ms) = context.gate.allow_send(socket.user) {
        return reject(RejectCode::RateLimited, "too many sends", Some(retry_after_ms));
    }
    let now: Timestamp = hub.deps().clock.now();
    let command = Command {
        id: client_msg_id,
        room,
        user: socket.user,
        event_id: EventId(context.gate.next_id()),
        reply_to: ReplyTo { edge: hub.deps().edge, session: socket.session },
        received_us: hub.deps().clock.micros(),
        deadline: now.after(COMMAND_DEADLINE),
        action: Action::Send(Text { content, reply_to }),
    };
    if !socket.send_started(client_msg_id, room, command.deadline) {
        return reject(RejectCode::RateLimited, "too many sends without an outcome yet", Some(1_000));
    }
    if hub.publish(&command).await.is_err() {
        socket.send_failed(client_msg_id);
        reject(RejectCode::Unavailable, "it could not be published, send again under the same id", Some(1_000));
    }
}
