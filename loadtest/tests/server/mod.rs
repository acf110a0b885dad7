//! The smallest honest server: rooms in memory, the few calls and frames of a load test. And its mutants.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use parking_lot::Mutex;
use schemas::frame::{ClientFrame, Control, EventView, FrameLimits, RoomChanged};
use schemas::message::{Content, MemberChange, Role};
use schemas::{CommandId, DeviceId, EventId, RoomId, Seq, SessionId, Timestamp, UserId};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request as Upgrade, Response as Upgraded};
use uuid::Uuid;

/// What the server does wrong, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    Honest,
    DropOne,
    DoubleOne,
    SwapTwo,
    CorruptOne,
    AcceptWithoutStoring,
    ForgetHistory,
    ForgetRoom,
    RejectEverything,
}

/// The send at which a mutant strikes.
const STRIKES_AT: usize = 40;

struct Room {
    events: Vec<EventView>,
    /// Which socket sent which event under which id.
    sent: HashMap<(UserId, CommandId), (usize, SessionId)>,
    members: Vec<UserId>,
    /// How far each has come.
    delivered: HashMap<UserId, Seq>,
}

#[derive(Default)]
struct State {
    rooms: HashMap<RoomId, Room>,
    sends: usize,
    struck: bool,
    /// The event that the mutant spoils, for whoever gets it first.
    victim: Option<(RoomId, Seq)>,
}

pub struct Server {
    pub addr: SocketAddr,
    state: Arc<Mutex<State>>,
    news: watch::Sender<u64>,
    mutant: Mutant,
}

fn id() -> Uuid {
    Uuid::from_u128({
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).unwrap();
        u128::from_be_bytes(bytes)
    })
}

impl Room {
    fn push(&mut self, event: impl FnOnce(Seq, EventId) -> EventView) -> Seq {
        let seq = Seq(self.events.len() as u64 + 1);
        self.events.push(event(seq, EventId(id())));
        seq
    }

    fn new(room: RoomId, owner: UserId, members: &[UserId]) -> Self {
        let mut new = Self { events: Vec::new(), sent: HashMap::new(), members: Vec::new(), delivered: HashMap::new() };
        let at = Timestamp(1_763_715_600_007);
        let changed = RoomChanged { created: true, ..RoomChanged::default() };
        new.push(|seq, id| EventView::Room { room, seq, id, at, by: owner, changed });
        for user in std::iter::once(&owner).chain(members) {
            let (user, change, role) = (*user, MemberChange::Added, Role::Member);
            new.push(|seq, id| EventView::Member { room, seq, id, at, by: owner, user, change, role });
            new.members.push(user);
        }
        new
    }

    /// The first seq that a member's socket is owed.
    fn joined(&self, user: UserId) -> u64 {
        self.members.iter().position(|member| *member == user).map_or(1, |at| at as u64 + 2)
    }
}

impl Server {
    pub async fn bind(mutant: Mutant) -> (Arc<Self>, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        (Arc::new(Self { addr, state, news: watch::channel(0).0, mutant }), listener)
    }

    /// Serves; dropping the future cuts every connection, as a crash does.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut tasks = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let server = Arc::clone(&self);
            tasks.spawn(async move {
                let mut head = [0; 14];
                stream.peek(&mut head).await.unwrap();
                if head == *b"GET /v1/socket" { server.socket(stream).await } else { server.http(stream).await }
            });
        }
    }

    async fn http(self: Arc<Self>, stream: TcpStream) {
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let server = Arc::clone(&self);
            async move {
                let path = request.uri().to_string();
                let method = request.method().to_string();
                let bearer =
                    request.headers().get("authorization").map(|value| value.to_str().unwrap()[7..].to_owned());
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
                let (status, answer) = server.call(&method, &path, bearer.as_deref().map(user_of), &body);
                Response::builder().status(status).body(Full::new(Bytes::from(answer.to_string())))
            }
        });
        let io = hyper_util::rt::TokioIo::new(stream);
        // A client that goes away is its own affair.
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
    }

    fn call(&self, method: &str, path: &str, caller: Option<UserId>, body: &Value) -> (u16, Value) {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let parts: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
        let room = |text: &str| text.parse::<RoomId>().unwrap();
        let mut state = self.state.lock();
        match (method, parts.as_slice()) {
            ("POST", ["auth", "sign-up"]) => {
                let user = UserId(id());
                let tokens = json!({
                    "access_token": user, "refresh_token": "r", "expires_in": 900, "token_type": "Bearer",
                    "user": {"id": user},
                });
                (201, tokens)
            }
            ("GET", ["me"]) => (200, json!({"id": caller.unwrap()})),
            ("POST", ["rooms"]) => {
                let members: Vec<UserId> = serde_json::from_value(body["members"].clone()).unwrap();
                let room = RoomId(id());
                state.rooms.insert(room, Room::new(room, caller.unwrap(), &members));
                (201, json!({"id": room, "head_seq": members.len() + 2}))
            }
            ("PUT", ["direct", other]) => {
                let (caller, other) = (caller.unwrap(), other.parse().unwrap());
                let room = RoomId::direct(caller, other);
                state.rooms.insert(room, Room::new(room, caller, &[other]));
                (200, json!({"id": room, "head_seq": 3}))
            }
            ("GET", ["rooms"]) => {
                let caller = caller.unwrap();
                let own = state.rooms.iter().filter(|(_, room)| room.members.contains(&caller));
                let item = |(id, room): (&RoomId, &Room)| {
                    let delivered = room.delivered.get(&caller).copied().unwrap_or_default();
                    let me = json!({"delivered_seq": delivered, "read_seq": 0});
                    json!({"id": id, "head_seq": room.events.len(), "me": me})
                };
                let forgotten = usize::from(self.mutant == Mutant::ForgetRoom);
                (200, json!({"items": own.map(item).skip(forgotten).collect::<Vec<_>>(), "next_cursor": null}))
            }
            ("GET", ["rooms", of]) => (200, json!({"id": of, "head_seq": state.rooms[&room(of)].events.len()})),
            ("POST", ["rooms", of, "messages"]) => {
                let (of, sender) = (room(of), caller.unwrap());
                let content = serde_json::from_value(body["content"].clone()).unwrap();
                let client_msg_id = serde_json::from_value(body["client_msg_id"].clone()).unwrap();
                let (index, _) = self.store(&mut state, of, sender, client_msg_id, content, SessionId::NIL);
                (201, serde_json::to_value(&state.rooms[&of].events[index]).unwrap())
            }
            ("GET", ["rooms", of, "messages"]) => {
                let after: usize =
                    query.split('&').find_map(|pair| pair.strip_prefix("after=")).unwrap().parse().unwrap();
                let mut events = &state.rooms[&room(of)].events[..];
                if self.mutant == Mutant::ForgetHistory {
                    events = &events[..events.len() - 1];
                }
                let items: Vec<_> =
                    events.iter().skip(after).take(100).map(|event| seen_by(event, caller.unwrap())).collect();
                (200, json!({"items": items, "first_seq": 1, "head_seq": events.len()}))
            }
            _ => (404, json!({"code": "not_found"})),
        }
    }

    /// Stores a message, once for each id. Returns its index and whether it was there before.
    fn store(
        &self,
        state: &mut State,
        room: RoomId,
        sender: UserId,
        client_msg_id: CommandId,
        content: Content,
        session: SessionId,
    ) -> (usize, bool) {
        state.sends += 1;
        let strikes = state.sends >= STRIKES_AT && !std::mem::replace(&mut state.struck, state.sends >= STRIKES_AT);
        let of = state.rooms.get_mut(&room).unwrap();
        if let Some((index, _)) = of.sent.get(&(sender, client_msg_id)) {
            return (*index, true);
        }
        let (sent_at, client_msg_id) = (Timestamp(1_763_715_600_009), client_msg_id);
        let seq = of.push(|seq, id| EventView::Message {
            room,
            seq,
            id,
            sender,
            sent_at,
            content: Some(content),
            reply_to: None,
            client_msg_id: Some(client_msg_id),
        });
        let index = of.events.len() - 1;
        of.sent.insert((sender, client_msg_id), (index, session));
        if strikes {
            state.victim = Some((room, seq));
        }
        (index, false)
    }

    async fn socket(self: Arc<Self>, stream: TcpStream) {
        #[expect(clippy::result_large_err, reason = "the signature is the library's")]
        let name = |_: &Upgrade, mut answer: Upgraded| {
            answer.headers_mut().insert("sec-websocket-protocol", schemas::frame::SUBPROTOCOL.parse().unwrap());
            Ok(answer)
        };
        let mut ws = tokio_tungstenite::accept_hdr_async(stream, name).await.unwrap();
        let Some(Ok(Message::Text(hello))) = ws.next().await else { return };
        let ClientFrame::Hello(hello) = serde_json::from_str(&hello).unwrap() else { panic!("hello comes first") };
        let (user, session) = (user_of(&hello.token.unwrap()), SessionId(id()));
        let mut news = self.news.subscribe();
        let welcome = Control::Welcome {
            user,
            device: DeviceId(id()),
            session,
            time: Timestamp(0),
            heartbeat_s: 25,
            limits: FrameLimits::DEFAULT,
        };
        let mut cursors: HashMap<RoomId, u64> = {
            let state = self.state.lock();
            let own = state.rooms.iter().filter(|(_, room)| room.members.contains(&user));
            own.map(|(id, room)| (*id, hello.resume.get(id).map_or(room.joined(user) - 1, |seq| seq.0))).collect()
        };
        let mut out = vec![serde_json::to_string(&welcome).unwrap()];
        self.stream(user, session, &mut cursors, &mut out);
        out.push(r#"{"type":"live"}"#.into());
        loop {
            for text in out.drain(..) {
                if ws.feed(Message::Text(text.into())).await.is_err() {
                    return;
                }
            }
            if ws.flush().await.is_err() {
                return;
            }
            tokio::select! {
                _ = news.changed() => self.stream(user, session, &mut cursors, &mut out),
                frame = ws.next() => match frame {
                    Some(Ok(Message::Text(text))) => self.handle(user, session, &text, &mut out),
                    Some(Ok(_)) => {}
                    _ => return,
                },
            }
        }
    }

    fn handle(&self, user: UserId, session: SessionId, text: &str, out: &mut Vec<String>) {
        let frame = serde_json::from_str(text).unwrap();
        if let ClientFrame::Delivered { room, seq } = frame
            && let Some(room) = self.state.lock().rooms.get_mut(&room)
        {
            let delivered = room.delivered.entry(user).or_default();
            *delivered = seq.max(*delivered);
        }
        let ClientFrame::Send { room, client_msg_id, content, .. } = frame else { return };
        if self.mutant == Mutant::RejectEverything {
            let code = schemas::outcome::RejectCode::TooLarge;
            let frame = Control::Rejected { client_msg_id, room, code, detail: String::new(), retry_after_ms: None };
            return out.push(serde_json::to_string(&frame).unwrap());
        }
        let mut state = self.state.lock();
        if self.mutant == Mutant::AcceptWithoutStoring && state.sends + 1 == STRIKES_AT {
            state.sends += 1;
            let seq = Seq(state.rooms[&room].events.len() as u64 + 1);
            let (id, sent_at) = (EventId(id()), Timestamp(1));
            let frame = Control::Accepted { client_msg_id, room, seq, id, sent_at, duplicate: false };
            return out.push(serde_json::to_string(&frame).unwrap());
        }
        let (index, repeat) = self.store(&mut state, room, user, client_msg_id, content, session);
        if repeat {
            out.push(accepted(&state.rooms[&room].events[index], client_msg_id, true));
        }
        drop(state);
        self.news.send_modify(|count| *count += 1);
    }

    /// What a socket is owed, spoiled where the mutant strikes.
    fn stream(&self, user: UserId, session: SessionId, cursors: &mut HashMap<RoomId, u64>, out: &mut Vec<String>) {
        let mut state = self.state.lock();
        let State { rooms, victim, .. } = &mut *state;
        for (id, cursor) in cursors {
            let room = &rooms[id];
            let mut late = None;
            for event in &room.events[usize::try_from(*cursor).unwrap()..] {
                let own = match event {
                    EventView::Message { sender, client_msg_id: Some(id), .. } if *sender == user => {
                        room.sent.get(&(user, *id)).filter(|(_, by)| *by == session).map(|_| *id)
                    }
                    _ => None,
                };
                let text = match own {
                    Some(client_msg_id) => accepted(event, client_msg_id, false),
                    None => serde_json::to_string(&seen_by(event, user)).unwrap(),
                };
                let struck = own.is_none() && *victim == Some((*id, event.seq()));
                match self.mutant {
                    Mutant::DropOne if struck => {}
                    Mutant::DoubleOne if struck => out.extend([text.clone(), text]),
                    Mutant::CorruptOne if struck => out.push(text.replace("quick brown", "quick green")),
                    // It waits for the next event of the room: see below.
                    Mutant::SwapTwo if struck => late = Some((text, out.len())),
                    _ => out.push(text),
                }
                if struck && late.is_none() {
                    *victim = None;
                }
                *cursor = event.seq().0;
            }
            match late {
                Some((text, before)) if out.len() > before => {
                    out.push(text);
                    *victim = None;
                }
                Some(_) => *cursor -= 1,
                None => {}
            }
        }
    }
}

fn accepted(event: &EventView, client_msg_id: CommandId, duplicate: bool) -> String {
    let EventView::Message { room, seq, id, sent_at, .. } = event else { panic!("a message") };
    let (room, seq, id, sent_at) = (*room, *seq, *id, *sent_at);
    serde_json::to_string(&Control::Accepted { client_msg_id, room, seq, id, sent_at, duplicate }).unwrap()
}

fn seen_by(event: &EventView, user: UserId) -> EventView {
    let mut event = event.clone();
    if let EventView::Message { sender, client_msg_id, .. } = &mut event
        && *sender != user
    {
        *client_msg_id = None;
    }
    event
}

/// Our tokens are user ids; an issuer's tokens name a subject. (That signatures hold is tested where they are made.)
fn user_of(token: &str) -> UserId {
    match token.split('.').nth(1) {
        None => token.parse().unwrap(),
        Some(claims) => {
            let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
            UserId::external(claims["iss"].as_str().unwrap(), claims["sub"].as_str().unwrap())
        }
    }
}

/// Cuts every connection a few times and listens again on the same port.
pub async fn crash_again_and_again(server: Arc<Server>, listener: TcpListener, up: Duration, times: usize) {
    let mut listener = listener;
    for _ in 0..times {
        let _ = tokio::time::timeout(up, Arc::clone(&server).serve(listener)).await;
        listener = TcpListener::bind(server.addr).await.unwrap();
    }
    server.serve(listener).await;
}
