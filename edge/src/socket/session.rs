//! One socket's life: hello, welcome, what was missed, `live`, and then frames both ways until it closes. One task; what
//! it holds while nothing happens is small, for there may be many thousands of it: longer work is boxed while it lasts.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use schemas::frame::{ClientFrame, Control, FrameLimits, Hello, close};
use schemas::limits::{COMMAND_DEADLINE, FRAME_MAX_BYTES, HEARTBEAT};
use schemas::link::{Lane, Unavailable};
use schemas::message::{Content, Message as Text};
use schemas::outcome::RejectCode;
use schemas::signal::SignalKind;
use schemas::{
    Action, Command, CommandId, DeviceId, EventId, Offset, ReplyTo, RoomId, Seq, SessionId, Timestamp, UserId,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::frames::{Fault, Incoming, Link};
use super::outbox::Socket;
use super::{Gate, Kept, catch_up, wire};
use crate::auth::Identity;
use crate::blocks::Offence;
use crate::hub::Hub;
use crate::hub::publish::{Asker, Busy};
use crate::limits::Place;
use crate::routes::check_content;
use crate::server::watched::WRITE_STALL;

/// Time for a client to take its close frame and to answer it.
const PARTING: Duration = Duration::from_secs(2);

/// What is read away of a client that is told to go because it can't be understood.
const PARTING_MAX_BYTES: u64 = FRAME_MAX_BYTES as u64;

/// Pause before reading again what could not be read.
const RETRY: Duration = Duration::from_millis(250);

/// Tries to read what was missed before the socket is told to come back later.
const TRIES: u32 = 20;

/// Rooms that a person has left unseen and is told of at once; the rest, if anybody has so many, next time.
const LEFT_MAX: usize = 100;

/// What a session is handed.
#[derive(Clone)]
pub struct Context {
    /// Where live events come from and commands go to.
    pub hub: Arc<Hub>,
    /// Who tokens speak for, ids, limits.
    pub gate: Arc<dyn Gate>,
}

/// Serves one socket until it closes. `bearer`: the token of its Authorization header. `kept` is dropped when it has
/// ended.
///
/// No `async fn`, which keeps each argument twice: as it was handed over, and as it is used. What this answers is as large
/// as a socket's task, for as long as the socket lives.
#[expect(clippy::manual_async_fn, reason = "see above")]
pub fn run<S, K>(
    mut link: Link<S>,
    context: Context,
    bearer: Option<String>,
    kept: K,
) -> impl Future<Output = ()> + Send
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    K: Kept,
{
    async move {
        let end = match Box::pin(open(&mut link, &context, bearer)).await {
            Ok((inside, beginning)) => {
                let end = serve(&mut link, &context, &inside.socket, beginning).await;
                end.blame(&kept, Some(inside.socket.user));
                end
            }
            Err(end) => {
                end.blame(&kept, None);
                end
            }
        };
        if !matches!(end, End::Gone) {
            Box::pin(part(&mut link, &context, end)).await;
        }
    }
}

/// How a socket ends.
enum End {
    /// The client has gone, or takes nothing.
    Gone,
    /// The client has said goodbye: the payload of its close frame.
    Left(Bytes),
    /// We close it: the code, and when to come back, ms.
    Closed(u16, Option<u32>),
}

impl End {
    /// Tells what of this end counts against the client.
    fn blame(&self, kept: &impl Kept, account: Option<UserId>) {
        let offence = match self {
            Self::Closed(close::BAD_FRAME, _) => Offence::Malformed,
            Self::Closed(close::TOO_LARGE, _) => Offence::Oversized,
            Self::Closed(close::NO_HELLO, _) => Offence::Slow,
            Self::Closed(close::TOKEN_INVALID, _) if account.is_none() => Offence::Forged,
            _ => return,
        };
        kept.offended(account, offence);
    }
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Gone => Self::Gone,
            Fault::BadFrame => Self::Closed(close::BAD_FRAME, None),
            Fault::TooLarge | Fault::TooManyFrames => Self::Closed(close::TOO_LARGE, None),
            // Nothing whole has been heard for too long.
            Fault::TooSlow => Self::Closed(close::HEARTBEAT_MISSED, None),
        }
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

/// Reads the first frame and lets the person in; what there is to do first comes with it.
async fn open<'a, S>(
    link: &mut Link<S>,
    context: &'a Context,
    bearer: Option<String>,
) -> Result<(Inside<'a>, Work), End>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let hello = tokio::time::timeout(context.gate.hello_timeout(), first_frame(link)).await;
    let hello = hello.unwrap_or(Err(End::Closed(close::NO_HELLO, None)))?;
    let (inside, identity) = admit(context, &hello, bearer).await?;
    let beginning = Box::pin(begin(context.clone(), Arc::clone(&inside.socket), hello, identity));
    Ok((inside, beginning))
}

async fn first_frame<S>(link: &mut Link<S>) -> Result<Hello, End>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        match link.next().await? {
            Incoming::Text(text) => {
                return match ClientFrame::parse(&text) {
                    Ok(ClientFrame::Hello(hello)) => Ok(hello),
                    _ => Err(End::Closed(close::BAD_FRAME, None)),
                };
            }
            Incoming::Ping(payload) => {
                let mut pong = VecDeque::from([wire::pong(&payload)]);
                wire::write_frames(&mut link.stream, &mut pong, WRITE_STALL).await.map_err(|_| End::Gone)?;
            }
            Incoming::Pong => {}
            Incoming::Close(payload) => return Err(End::Left(payload)),
            Incoming::Binary => return Err(End::Closed(close::BAD_FRAME, None)),
        }
    }
}

/// Who is it, and with which device? Have they room for one more socket?
async fn admit<'a>(context: &'a Context, hello: &Hello, bearer: Option<String>) -> Result<(Inside<'a>, Identity), End> {
    let refuse = |code| End::Closed(code, None);
    let token = bearer.as_deref().or(hello.token.as_deref()).ok_or(refuse(close::TOKEN_INVALID))?;
    let identity = context.gate.authenticate(token).await.map_err(refuse)?;
    let device = match (identity.device, hello.device) {
        (Some(own), Some(said)) if own != said => return Err(refuse(close::TOKEN_INVALID)),
        (Some(device), _) | (None, Some(device)) => device,
        (None, None) => DeviceId(context.gate.next_id()),
    };
    let place = context.gate.allow_socket(identity.user);
    let place = place.map_err(|wait_ms| End::Closed(close::RATE_LIMITED, Some(wait_ms)))?;
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
    Ok((Inside { hub: &context.hub, socket, _place: place }, identity))
}

/// Work beside reading and writing; boxed, for it is rare.
type Work = BoxFuture<'static, Result<(), Unavailable>>;

/// The loop: write what waits, do what there is to do, read what comes.
async fn serve<S>(link: &mut Link<S>, context: &Context, socket: &Arc<Socket>, beginning: Work) -> End
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut work = Some(beginning);
    let mut live = false;
    let mut failures = 0;
    loop {
        // Looked at first: whatever was queued before the socket was asked to close is written.
        let is_closing = socket.closing().is_some();
        if !flush(&mut link.stream, context, socket).await {
            return End::Gone;
        }
        if is_closing && let Some((code, retry_after_ms)) = socket.closing() {
            return End::Closed(code, retry_after_ms);
        }
        if work.is_none() && socket.has_work() && socket.has_room() {
            work = Some(Box::pin(step(context.clone(), Arc::clone(socket), failures > 0)));
        }
        tokio::select! {
            () = socket.woken() => {}
            incoming = link.next() => match took(context, socket, incoming) {
                Ok(None) => {}
                Ok(Some(rest)) => rest.await,
                Err(end) => return end,
            },
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
                    go_live(context, socket);
                }
            }
        }
    }
}

/// The first work of a socket: who is in, which rooms, what was missed (I7).
async fn begin(context: Context, socket: Arc<Socket>, mut hello: Hello, identity: Identity) -> Result<(), Unavailable> {
    let mut tries = 0;
    loop {
        match begin_once(&context, &socket, &mut hello, &identity).await {
            Err(Unavailable) if tries < TRIES => {
                tries += 1;
                // What this try has begun goes on from where it is.
                socket.still_behind();
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

async fn begin_once(
    context: &Context,
    socket: &Arc<Socket>,
    hello: &mut Hello,
    identity: &Identity,
) -> Result<(), Unavailable> {
    let hub = &context.hub;
    let position = hub.enter(socket).await?;
    // A revocation closes the sockets that the hub knows: this one may have been on its way in.
    if context.gate.is_revoked(identity) {
        socket.close(close::TOKEN_INVALID, None);
        return Ok(());
    }
    let named: Vec<RoomId> = hello.resume.keys().copied().collect();
    let mut rooms = rooms_due(hub, socket, position, &named).await?;
    rooms.retain(|room| socket.wants(*room) && !socket.follows(*room));
    // What an earlier try has sent up to the person's way out is not sent again.
    for room in &rooms {
        if let Some(ended) = socket.ended_at(*room) {
            hello.resume.insert(*room, ended);
        }
    }
    catch_up::follow(hub, socket, &rooms, &hello.resume).await?;
    hub.came(socket);
    catch_up::read(hub, socket, socket.take_behind()).await
}

/// The rooms that a person is to hear of: those of their list, and those that they have left and are followed up to their
/// way out: if the client is not there yet (`named`: those that it knows), or if nobody has told it.
async fn rooms_due(hub: &Hub, socket: &Socket, position: Offset, named: &[RoomId]) -> Result<Vec<RoomId>, Unavailable> {
    let mut rooms = hub.history().rooms_of(socket.user, position).await?;
    hub.history().settle(Lane::Users, hub.partition(socket.user.as_bytes()), position).await?;
    let unseen = hub.deps().store.left_unseen(socket.user, LEFT_MAX).await.map_err(|error| {
        tracing::warn!(%error, "rooms that were left could not be read");
        Unavailable
    })?;
    let left: HashSet<RoomId> = named.iter().copied().chain(unseen).filter(|room| !rooms.contains(room)).collect();
    if !left.is_empty() {
        let left: Vec<(RoomId, Offset)> = left.into_iter().map(|room| (room, Offset(0))).collect();
        rooms.extend(hub.history().rooms(socket.user, &left).await?.iter().map(|entry| entry.info.id));
    }
    Ok(rooms)
}

/// Any later work: rooms that came in, rooms that are behind.
async fn step(context: Context, socket: Arc<Socket>, after_failure: bool) -> Result<(), Unavailable> {
    if after_failure {
        tokio::time::sleep(RETRY).await;
    }
    let hub = &context.hub;
    let wanted = |room: &RoomId| socket.wants(*room);
    let (mut joined, relist) = socket.take_news();
    joined.retain(|(room, _)| socket.wants(*room) && !socket.follows(*room));
    let mut came = starts(&joined, |room| socket.ended_at(room));
    let mut result = Ok(());
    if relist {
        // Someone may have been back and gone again in what was missed.
        let ended = socket.ended_rooms();
        let listed = async {
            let position = hub.end(Lane::Users, hub.partition(socket.user.as_bytes())).await?;
            rooms_due(hub, &socket, position, &ended).await
        };
        match listed.await {
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

/// Where the streams of rooms start that came in by these events, as the cursor before the first event. Back in the same
/// connection: on from their way out (`ended`). Else from their way in, what was before is history; of several ways in
/// that were heard of meanwhile the first one counts. Pure.
fn starts(joined: &[(RoomId, Seq)], ended: impl Fn(RoomId) -> Option<Seq>) -> HashMap<RoomId, Seq> {
    let mut starts = HashMap::new();
    for (room, seq) in joined {
        let from = ended(*room).unwrap_or(seq.prev());
        starts.entry(*room).and_modify(|known| *known = from.min(*known)).or_insert(from);
    }
    starts
}

/// Everything missed has been sent.
fn go_live(context: &Context, socket: &Arc<Socket>) {
    if socket.closing().is_some() {
        return;
    }
    let at = context.hub.deps().clock.now();
    for room in socket.rooms() {
        for (user, (delivered_seq, read_seq)) in context.hub.receipts_of(room) {
            socket.push(wire::control(Control::Receipt { room, user, delivered_seq, read_seq, at }), true);
        }
    }
    socket.go_live();
    socket.warn_of_end(at);
}

/// Writes everything that waits. `false`: the client takes nothing or has gone.
async fn flush<S>(stream: &mut S, context: &Context, socket: &Socket) -> bool
where
    S: AsyncWrite + Unpin,
{
    loop {
        let (mut frames, oldest_us) = socket.take_frames();
        if frames.is_empty() {
            socket.give_back(frames);
            return true;
        }
        if wire::write_frames(stream, &mut frames, WRITE_STALL).await.is_err() {
            return false;
        }
        if oldest_us > 0 {
            context.hub.metrics().written(context.hub.deps().clock.micros() - oldest_us);
        }
        socket.give_back(frames);
    }
}

/// Says goodbye: the close frame, and then what the client still had to say is read away for a moment.
async fn part<S>(link: &mut Link<S>, context: &Context, end: End)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (frame, answered) = match end {
        End::Gone => return,
        End::Left(payload) => (wire::close_answer(&payload), true),
        End::Closed(code, retry_after_ms) => {
            context.hub.metrics().closed.with_label_values(&[code.to_string()]).inc();
            (wire::close(code, retry_after_ms), false)
        }
    };
    let goodbye = async {
        wire::write_frames(&mut link.stream, &mut VecDeque::from([frame]), PARTING).await?;
        if answered {
            return Ok(());
        }
        loop {
            match link.next().await {
                Ok(Incoming::Close(_)) | Err(Fault::Gone) => return Ok(()),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        // What comes now can't be understood any more. It is taken all the same: a connection that is closed with bytes
        // unread is reset, and the client might never read why.
        link.stream.shutdown().await?;
        let mut unread = [0; 1_024];
        // But not without end: what is left of one message, or of what the network still holds of it.
        let mut rest = (&mut link.stream).take(PARTING_MAX_BYTES);
        while rest.read(&mut unread).await? > 0 {}
        std::io::Result::Ok(())
    };
    // A client that does not answer within this time has its connection cut: nothing of ours is lost by it.
    drop(tokio::time::timeout(PARTING, goodbye).await);
}

/// What is left to do of a frame, where it has to wait for something; boxed, for most frames are receipts and pongs.
type Rest<'a> = BoxFuture<'a, ()>;

/// What has come from the client.
fn took<'a>(
    context: &'a Context,
    socket: &'a Arc<Socket>,
    incoming: Result<Incoming, Fault>,
) -> Result<Option<Rest<'a>>, End> {
    socket.heard(context.hub.elapsed_s());
    let incoming = incoming?;
    let allowed = socket.allow_frame(&*context.gate);
    match incoming {
        Incoming::Text(text) => return Ok(handle(context, socket, &text, allowed)),
        Incoming::Ping(_) if allowed.is_err() => {}
        // Where too much waits already this client takes nothing, and pings to no end.
        Incoming::Ping(payload) => socket.push(wire::pong(&payload), true),
        Incoming::Pong => {}
        Incoming::Close(payload) => return Err(End::Left(payload)),
        Incoming::Binary => return Err(End::Closed(close::BAD_FRAME, None)),
    }
    Ok(None)
}

/// One client frame; `allowed`: whether it is within the socket's limit, else how many ms to wait.
fn handle<'a>(context: &'a Context, socket: &'a Arc<Socket>, text: &str, allowed: Result<(), u32>) -> Option<Rest<'a>> {
    let frame = match ClientFrame::parse(text) {
        Ok(frame) => frame,
        Err(error) => {
            refuse(context, socket, text, &error);
            return None;
        }
    };
    let hub = &context.hub;
    if let Err(wait_ms) = allowed {
        let code = RejectCode::RateLimited;
        if let ClientFrame::Send { room, client_msg_id, .. } = frame {
            hub.reject(socket, (room, client_msg_id), code, "too many frames", Some(wait_ms));
        } else {
            hub.metrics().refused.with_label_values(&[code.as_str()]).inc();
            error(socket, code.as_str(), "too many frames");
        }
        return None;
    }
    match frame {
        ClientFrame::Send { room, client_msg_id, content, reply_to } => {
            send(context, socket, room, client_msg_id, content, reply_to);
        }
        ClientFrame::Delivered { room, seq } => {
            hub.said(socket, room, seq, false);
        }
        ClientFrame::Read { room, seq } => {
            hub.said(socket, room, seq, true);
        }
        ClientFrame::Typing { room } => {
            if socket.follows(room) && socket.may_signal(hub.elapsed_s()) {
                hub.signal(socket.user, socket.session, SignalKind::Typing, &[room]);
            }
        }
        ClientFrame::Pong {} => {}
        ClientFrame::Authenticate { token } => {
            return Some(Box::pin(async move {
                match context.gate.authenticate(&token).await {
                    // Another device's token would keep the socket when its own device is signed out.
                    Ok(identity)
                        if identity.user == socket.user && identity.device.is_none_or(|it| it == socket.device) =>
                    {
                        socket.renew(identity.expires_at);
                    }
                    Ok(_) => socket.close(close::TOKEN_INVALID, None),
                    Err(code) => socket.close(code, None),
                }
            }));
        }
        ClientFrame::Hello(_) => error(socket, "unexpected_hello", "hello is the first frame only"),
    }
    None
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
fn send(
    context: &Context,
    socket: &Arc<Socket>,
    room: RoomId,
    client_msg_id: CommandId,
    content: Content,
    reply_to: Option<Seq>,
) {
    let hub = &context.hub;
    let reject = |code: RejectCode, detail: &str, retry_after_ms: Option<u32>| {
        hub.reject(socket, (room, client_msg_id), code, detail, retry_after_ms);
    };
    if socket.is_leaving() {
        return reject(RejectCode::Unavailable, "this server is stopping, send again elsewhere", Some(1_000));
    }
    if let Err(fault) = check_content(&content) {
        return reject(fault.reject_code(), &fault.detail, None);
    }
    if let Err(retry_after_ms) = context.gate.allow_send(socket.user, room) {
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
    let record = Hub::record_of(&command);
    let asker = Asker::Socket(Arc::clone(socket), room, client_msg_id);
    if !socket.send_started(&command, &record.value) {
        return reject(RejectCode::RateLimited, "too many sends without an outcome yet", Some(1_000));
    }
    if let Err(Busy { retry_after_ms }) = hub.publish(&command, record, asker) {
        socket.send_failed(client_msg_id);
        reject(
            RejectCode::Unavailable,
            "too much waits to be done, send again under the same id",
            Some(retry_after_ms),
        );
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn who_was_in_twice_meanwhile_goes_on_from_their_last_way_out() {
        let room = RoomId::NIL;
        let joined = [(room, Seq(23)), (room, Seq(25))];
        assert_eq!(starts(&joined, |_| None), HashMap::from([(room, Seq(22))]));
        let socket = Socket::new(SessionId::NIL, UserId::NIL, DeviceId::NIL, None, Timestamp(0));
        socket.ended_before(room, Seq(26));
        let start = || starts(&joined, |room| socket.ended_at(room));
        assert_eq!(start(), HashMap::from([(room, Seq(26))]));
        // And again, if the room could not be compared with history.
        assert_eq!(start(), HashMap::from([(room, Seq(26))]));
    }

    fn size_of_answer<A, B, C, D, F>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// A socket's task is allocated as large as its future can ever be, and lives as long as the socket: what is needed
    /// only for a while (the hello, a send, a timer) is boxed while it lasts.
    #[test]
    fn an_idle_session_is_small() {
        let size = size_of_answer(run::<TcpStream, ()>);
        assert!(size <= 576, "{size} bytes");
    }
}
