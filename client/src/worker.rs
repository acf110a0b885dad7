//! The loop: keeps a socket, sends what waits, hands on what comes, notes what must survive. The only place of this crate
//! that decides when something happens; what waits is [`crate::outbox`]'s and [`crate::inbox`]'s matter.

use std::collections::HashMap;
use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::BoxFuture;
use schemas::frame::{ClientFrame, Control, EventView, Hello, ServerFrame};
use schemas::ids::uuid_v7;
use schemas::message::Content;
use schemas::outcome::RejectCode;
use schemas::{CommandId, RoomId, Seq, Timestamp, UserId};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::deps::Deps;
use crate::error::Error;
use crate::inbox::{Inbox, Item, Listener, Retry, Signal};
use crate::journal::Queued;
use crate::outbox::Outbox;
use crate::rest::Rest;
use crate::socket::{Incoming, STEP_TIMEOUT, Socket, is_final};
use crate::stage::{Stage, Step};
use crate::{Request, Sending, Settings, Stored, backoff};

/// Requests that share one write to the journal.
const GROUP_MAX: usize = 64;

/// How long acknowledgements wait for others: they are maxima.
const TELL_AFTER: Duration = Duration::from_millis(100);

/// Heartbeats without a frame before a socket counts as dead.
const HEARTBEATS_MISSED: u32 = 3;

/// Events of a page.
const PAGE: usize = 100;

/// An id may be so far ahead of the server's time; it takes 24 h.
const AHEAD_MAX: Duration = Duration::from_secs(23 * 3600);

/// Does a client's work.
pub struct Worker {
    deps: Deps,
    settings: Settings,
    rest: Rest,
    requests: mpsc::Receiver<Request>,
    steps: broadcast::Sender<Step>,
    outbox: Outbox,
    inbox: Inbox,
    waiting: HashMap<CommandId, oneshot::Sender<Result<Stored, Error>>>,
    /// What the server has not been told of: the last event received in each room, and read.
    untold: HashMap<RoomId, (Seq, Seq)>,
    /// What it was told on this socket. Nothing says that it has heard: the next socket tells it again.
    told: HashMap<RoomId, (Seq, Seq)>,
    tell_at: Option<Duration>,
    /// Messages whose outcome was repeated on this socket before their place came.
    repeated: HashMap<CommandId, Queued>,
    /// The server's clock less ours, ms.
    clock_offset_ms: i64,
    me: UserId,
    only: Option<Vec<RoomId>>,
}

/// The way to the server.
enum Link {
    Down { until: Duration, failures: u32 },
    Opening(BoxFuture<'static, Result<Socket, Error>>, u32),
    Up(Box<Up>),
}

/// An open socket.
struct Up {
    socket: Socket,
    heard: Duration,
    live: bool,
    renewal: Option<BoxFuture<'static, Result<String, Error>>>,
    /// Tries in a row that did not come to live.
    failures: u32,
}

impl Link {
    fn failures(&self) -> u32 {
        match self {
            Self::Down { failures, .. } | Self::Opening(_, failures) => *failures,
            Self::Up(up) => up.failures,
        }
    }
}

/// What a wait has come to.
enum News {
    Stop,
    Requests(Vec<Request>),
    Opened(Result<Socket, Error>),
    Incoming(Incoming),
    Renewed(Result<String, Error>),
    Received(Result<(), Retry>),
    Due,
}

impl Worker {
    pub(crate) fn new(
        deps: Deps,
        settings: Settings,
        rest: Rest,
        requests: mpsc::Receiver<Request>,
        steps: broadcast::Sender<Step>,
    ) -> Self {
        Self {
            deps,
            settings,
            rest,
            requests,
            steps,
            outbox: Outbox::default(),
            inbox: Inbox::default(),
            waiting: HashMap::new(),
            untold: HashMap::new(),
            told: HashMap::new(),
            tell_at: None,
            repeated: HashMap::new(),
            clock_offset_ms: 0,
            me: UserId::NIL,
            only: None,
        }
    }

    /// Hears of these rooms alone; what happens in others waits for a client that wants it.
    #[must_use]
    pub fn only(mut self, rooms: Vec<RoomId>) -> Self {
        self.only = Some(rooms);
        self
    }

    /// Works until `shutdown` turns true, or every [`crate::Client`] is gone and nothing waits to be stored or received.
    /// Dropping this future is like a crash, and as safe.
    ///
    /// # Errors
    /// What no further try mends: [`Error::SentAway`], [`Error::SignedOut`], [`Error::Journal`], and
    /// [`Error::Untrusted`] until it has been connected once.
    pub async fn run(mut self, listener: impl Listener, mut shutdown: watch::Receiver<bool>) -> Result<(), Error> {
        let listener: Arc<dyn Listener> = Arc::new(listener);
        let saved = self.deps.journal.load().await?;
        saved.queue.into_iter().for_each(|queued| self.outbox.push(queued));
        // The process before this one may have ended before it told the server.
        for (room, received) in &saved.cursors {
            self.untold_to(*room, *received, Seq::ZERO);
        }
        self.inbox = Inbox::new(saved.cursors);
        let mut link = Link::Down { until: Duration::ZERO, failures: 0 };
        let mut receiving: Option<BoxFuture<'static, Result<(), Retry>>> = None;
        let mut asked_off = false;
        loop {
            if let Err(error) = self.pump(&mut link).await {
                self.lose(&mut link, None, &error, &*listener).await?;
            }
            if receiving.is_none() {
                receiving = self.receive(&listener).await?;
            }
            // What has come is still received, one's own last message among it.
            if asked_off && self.outbox.len() == 0 && receiving.is_none() {
                return Ok(());
            }
            match self.wait(&mut link, &mut receiving, &mut shutdown, asked_off).await {
                News::Stop => return Ok(()),
                News::Requests(requests) if requests.is_empty() => asked_off = true,
                News::Requests(requests) => self.take(requests, &mut link).await?,
                News::Opened(Ok(socket)) => {
                    self.opened(socket.user, socket.time).await?;
                    let (heard, failures) = (self.now(), link.failures());
                    link = Link::Up(Box::new(Up { socket, heard, live: false, renewal: None, failures }));
                }
                News::Opened(Err(error)) => self.lose(&mut link, None, &error, &*listener).await?,
                News::Renewed(token) => match token {
                    Ok(token) => self.authenticate(&mut link, token).await,
                    // The socket closes when the old token ends, and the next one is opened with a new token.
                    Err(error) => tracing::warn!(%error, "no fresh token"),
                },
                News::Incoming(Incoming::Closed { code, reason, retry_after }) => {
                    if let Some(code) = code.filter(|code| is_final(*code)) {
                        return Err(Error::SentAway { code, reason });
                    }
                    let error = Error::Unreachable(reason);
                    self.lose(&mut link, retry_after, &error, &*listener).await?;
                }
                News::Incoming(Incoming::Nothing) => self.heard(&mut link),
                News::Incoming(Incoming::Frame(frame)) => {
                    self.heard(&mut link);
                    if let Err(error) = self.handle(frame, &mut link, &*listener).await {
                        self.lose(&mut link, None, &error, &*listener).await?;
                    }
                }
                News::Received(done) => receiving = self.received(done, &listener).await?,
                News::Due => {}
            }
        }
    }

    fn now(&self) -> Duration {
        self.deps.clock.elapsed()
    }

    fn tell(&self, room: RoomId, stage: Stage) {
        // Nobody may be watching.
        let _ = self.steps.send(Step { room, stage });
    }

    async fn wait(
        &mut self,
        link: &mut Link,
        receiving: &mut Option<BoxFuture<'static, Result<(), Retry>>>,
        shutdown: &mut watch::Receiver<bool>,
        asked_off: bool,
    ) -> News {
        let now = self.now();
        let due = self.next_due(link).map(|due| due.saturating_sub(now));
        let (inbox, requests) = (&self.inbox, &mut self.requests);
        let mut first = Vec::new();
        tokio::select! {
            biased;
            _ = shutdown.wait_for(|stop| *stop) => News::Stop,
            done = poll_fn(|cx| receiving.as_mut().map_or(Poll::Pending, |it| it.as_mut().poll(cx))) => News::Received(done),
            _ = requests.recv_many(&mut first, GROUP_MAX), if !asked_off => News::Requests(first),
            news = on_link(link, inbox.has_room()) => news,
            () = async { match due { Some(due) => sleep(due).await, None => pending().await } } => News::Due,
        }
    }

    /// When something has to be done though nothing has come.
    fn next_due(&self, link: &Link) -> Option<Duration> {
        match link {
            Link::Down { until, .. } => Some(*until),
            Link::Opening(..) => None,
            Link::Up(up) => {
                [Some(up.heard + up.socket.heartbeat * HEARTBEATS_MISSED), self.outbox.next_due(), self.tell_at]
                    .into_iter()
                    .flatten()
                    .min()
            }
        }
    }

    /// Does what is due on the link.
    async fn pump(&mut self, link: &mut Link) -> Result<(), Error> {
        let now = self.now();
        match link {
            Link::Down { until, failures } if now >= *until => *link = Link::Opening(self.open(), *failures),
            Link::Down { .. } | Link::Opening(..) => {}
            Link::Up(up) => {
                let socket = &mut up.socket;
                if now > up.heard + socket.heartbeat * HEARTBEATS_MISSED {
                    return Err(Error::Unreachable("no sign of life from the server".into()));
                }
                let due = self.outbox.due(now);
                let new: Vec<CommandId> = due.iter().filter(|(queued, _)| !queued.tried).map(|(it, _)| it.id).collect();
                if !new.is_empty() {
                    self.deps.journal.tried(new).await?;
                }
                for (Queued { id, room, content, reply_to, .. }, retries) in due {
                    socket.send(&ClientFrame::Send { room, client_msg_id: id, content, reply_to }).await?;
                    let _ = self.steps.send(Step { room, stage: Stage::Sending { id, retries } });
                }
                if self.tell_at.is_some_and(|at| now >= at) {
                    self.tell_at = None;
                    let untold = std::mem::take(&mut self.untold);
                    // Noted first: it is told again if this socket is going.
                    for (room, (received, read)) in &untold {
                        raise(&mut self.told, *room, *received, *read);
                    }
                    for (room, (received, read)) in untold {
                        let frame = match read {
                            Seq::ZERO => ClientFrame::Delivered { room, seq: received },
                            read => ClientFrame::Read { room, seq: read },
                        };
                        socket.send(&frame).await?;
                        if read > Seq::ZERO && received > read {
                            socket.send(&ClientFrame::Delivered { room, seq: received }).await?;
                        }
                    }
                }
                socket.flush().await?;
            }
        }
        Ok(())
    }

    fn open(&self) -> BoxFuture<'static, Result<Socket, Error>> {
        let (deps, rest) = (self.deps.clone(), self.rest.clone());
        let mut resume = self.inbox.cursors().clone();
        if let Some(only) = &self.only {
            resume.retain(|room, _| only.contains(room));
        }
        let hello = Hello { device: self.settings.device, resume, rooms: self.only.clone(), ..Hello::default() };
        Box::pin(async move {
            let token = rest.token().await?;
            let stream = timeout(STEP_TIMEOUT, deps.connector.connect())
                .await
                .map_err(|_| Error::Unreachable("no connection in time".into()))?
                .map_err(Error::connecting)?;
            Socket::open(stream, rest.authority(), Hello { token: Some(token), ..hello }).await
        })
    }

    async fn opened(&mut self, user: UserId, time: Timestamp) -> Result<(), Error> {
        self.me = user;
        self.clock_offset_ms = time.0 - self.deps.clock.now().0;
        // Made while this device's clock was wrong, and never sent: the server would not take them.
        let latest = time.after(AHEAD_MAX).0;
        let (deps, offset) = (self.deps.clone(), self.clock_offset_ms);
        let renamed =
            self.outbox.rename(|id| id.unix_ms().is_none_or(|made| made > latest), || fresh_id(&deps, offset));
        for (from, to) in renamed {
            self.deps.journal.rename(from, to).await?;
            if let Some(waiting) = self.waiting.remove(&from) {
                self.waiting.insert(to, waiting);
            }
        }
        Ok(())
    }

    fn heard(&self, link: &mut Link) {
        if let Link::Up(up) = link {
            up.heard = self.now();
        }
    }

    /// The socket is gone, or did not come about.
    async fn lose(
        &mut self,
        link: &mut Link,
        retry_after: Option<Duration>,
        error: &Error,
        listener: &dyn Listener,
    ) -> Result<(), Error> {
        match error {
            Error::SentAway { code, reason } => {
                return Err(Error::SentAway { code: *code, reason: reason.clone() });
            }
            Error::SignedOut(why) => return Err(Error::SignedOut(why.clone())),
            // Where the server was known before, a renewal went wrong or a network asks to sign in first: it is away.
            Error::Untrusted(why) if self.me == UserId::NIL => return Err(Error::Untrusted(why.clone())),
            Error::Journal { path, reason } => {
                return Err(Error::Journal { path: path.clone(), reason: reason.clone() });
            }
            _ => {}
        }
        let was_live = matches!(link, Link::Up(up) if up.live);
        let asked = match error {
            Error::Refused { retry_after_ms: Some(ms), .. } => Some(Duration::from_millis(*ms)),
            _ => retry_after,
        };
        let failures = link.failures() + 1;
        let pause = backoff::pause(failures, asked, &*self.deps.entropy);
        tracing::info!(%error, failures, pause_ms = pause.as_millis(), "offline");
        self.outbox.lost();
        self.repeated.clear();
        for (room, (received, read)) in std::mem::take(&mut self.told) {
            self.untold_to(room, received, read);
        }
        *link = Link::Down { until: self.now() + pause, failures };
        if was_live {
            listener.on_signal(Signal::Offline).await;
        }
        Ok(())
    }

    async fn authenticate(&self, link: &mut Link, token: String) {
        if let Link::Up(up) = link
            && let Err(error) = up.socket.send(&ClientFrame::Authenticate { token }).await
        {
            tracing::debug!(%error, "the socket is going");
        }
    }

    /// Requests of the handles: one write to the journal for all of them.
    async fn take(&mut self, requests: Vec<Request>, link: &mut Link) -> Result<(), Error> {
        let mut new = Vec::new();
        let mut answers = Vec::new();
        for request in requests {
            match request {
                Request::Send(_, _, _, answer) if self.outbox.len() + new.len() >= self.settings.queue_max => {
                    drop(answer.send(Err(Error::QueueFull)));
                }
                Request::Send(content, room, reply_to, answer) => {
                    let id = fresh_id(&self.deps, self.clock_offset_ms);
                    self.tell(room, Stage::Created { id });
                    new.push(Queued { id, room, content, reply_to, tried: false });
                    answers.push(answer);
                }
                Request::Read(room, seq) => self.untold_to(room, Seq::ZERO, seq),
                Request::Typing(room) => {
                    if let Link::Up(up) = link {
                        // It is shed first: a socket that does not take it is about to be found out.
                        drop(up.socket.send(&ClientFrame::Typing { room }).await);
                    }
                }
            }
        }
        if new.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.deps.journal.queue(new.clone()).await {
            // Not queued, and said so: the program may try again when there is room.
            let Error::Journal { path, reason } = error else { return Err(error) };
            for answer in answers {
                let (path, reason) = (path.clone(), reason.clone());
                drop(answer.send(Err(Error::Journal { path, reason })));
            }
            return Ok(());
        }
        for (queued, answer) in new.into_iter().zip(answers) {
            let (done, outcome) = oneshot::channel();
            self.waiting.insert(queued.id, done);
            self.tell(queued.room, Stage::Queued { id: queued.id });
            // Who asked may have gone; the message is queued all the same.
            drop(answer.send(Ok(Sending { id: queued.id, outcome })));
            self.outbox.push(queued);
        }
        Ok(())
    }

    fn untold_to(&mut self, room: RoomId, received: Seq, read: Seq) {
        raise(&mut self.untold, room, received, read);
        let at = self.now() + TELL_AFTER;
        self.tell_at.get_or_insert(at);
    }

    async fn handle(&mut self, frame: ServerFrame, link: &mut Link, listener: &dyn Listener) -> Result<(), Error> {
        let control = match frame {
            ServerFrame::Event(event) => return self.collect(event).await,
            ServerFrame::Control(control) => control,
        };
        match control {
            Control::Accepted { client_msg_id, room, seq, id, sent_at, duplicate } => {
                let stored = Stored { seq, id, sent_at };
                let queued = self.settle(room, client_msg_id, stored).await?;
                // It stands in place of our own message. A repetition stands outside, and something comes at its seq: the
                // message, or if it was sent over this very socket, this frame once more.
                if !duplicate {
                    if let Some(queued) = queued.or_else(|| self.repeated.remove(&client_msg_id)) {
                        self.collect(own_message(queued, self.me, stored)).await?;
                    }
                } else if let Some(queued) = queued
                    && self.inbox.cursors().get(&room).is_none_or(|cursor| *cursor < seq)
                {
                    self.repeated.insert(client_msg_id, queued);
                }
            }
            Control::Rejected { client_msg_id, room, code, detail, retry_after_ms } => {
                self.rejected(room, client_msg_id, code, detail, retry_after_ms).await?;
            }
            Control::Gap { room, from_seq, to_seq, readable } => self.fill(room, from_seq, to_seq, readable).await?,
            Control::Receipt { room, user, delivered_seq: delivered, read_seq: read, .. } => {
                self.tell(room, Stage::Monitored { user, delivered, read });
            }
            Control::Typing { room, user } => listener.on_signal(Signal::Typing(room, user)).await,
            Control::Presence { user, online, .. } => listener.on_signal(Signal::Presence(user, online)).await,
            Control::Live {} => {
                if let Link::Up(up) = link {
                    (up.live, up.failures) = (true, 0);
                }
                listener.on_signal(Signal::Live).await;
            }
            Control::TokenExpiring { .. } => {
                if let Link::Up(up) = link {
                    let rest = self.rest.clone();
                    up.renewal = Some(Box::pin(async move { rest.token().await }));
                }
            }
            Control::Ping {} => {
                if let Link::Up(up) = link {
                    up.socket.send(&ClientFrame::Pong {}).await?;
                }
            }
            Control::Error { code, detail } => tracing::warn!(code, detail, "the server did not understand a frame"),
            Control::Welcome { .. } | Control::ReadMarker { .. } | Control::Closing { .. } => {}
        }
        Ok(())
    }

    /// A message has its outcome: it leaves queue and journal.
    async fn settle(&mut self, room: RoomId, id: CommandId, stored: Stored) -> Result<Option<Queued>, Error> {
        let Some(queued) = self.outbox.settle(room, id) else { return Ok(None) };
        self.deps.journal.settle(id).await?;
        let Stored { seq, id: event, sent_at } = stored;
        self.tell(room, Stage::Annotated { id, seq, event, sent_at });
        self.tell(room, Stage::Stored { id });
        if let Some(waiting) = self.waiting.remove(&id) {
            drop(waiting.send(Ok(stored)));
        }
        Ok(Some(queued))
    }

    async fn rejected(
        &mut self,
        room: RoomId,
        id: CommandId,
        code: RejectCode,
        detail: String,
        retry_after_ms: Option<u32>,
    ) -> Result<(), Error> {
        let passes = matches!(code, RejectCode::RateLimited | RejectCode::Unavailable) || retry_after_ms.is_some();
        if passes {
            let asked = retry_after_ms.map(|ms| Duration::from_millis(ms.into()));
            let (now, entropy) = (self.now(), &*self.deps.entropy);
            self.outbox.failed(room, id, now, |failures| backoff::pause(failures, asked, entropy));
            return Ok(());
        }
        if self.outbox.settle(room, id).is_none() {
            return Ok(());
        }
        self.deps.journal.settle(id).await?;
        self.tell(room, Stage::Failed { id, code });
        if let Some(waiting) = self.waiting.remove(&id) {
            drop(waiting.send(Err(Error::Rejected { code, detail })));
        }
        Ok(())
    }

    /// An event has come, from wherever.
    async fn collect(&mut self, event: EventView) -> Result<(), Error> {
        let (room, seq) = (event.room(), event.seq());
        self.tell(room, Stage::Retrieved { seq });
        // One's own message says by its id that it is stored, also where `accepted` was lost with a socket.
        if let EventView::Message { client_msg_id: Some(id), sender, id: event_id, sent_at, .. } = &event
            && *sender == self.me
        {
            let stored = Stored { seq, id: *event_id, sent_at: *sent_at };
            self.settle(room, *id, stored).await?;
        }
        if self.inbox.collect(event) {
            self.tell(room, Stage::Collected { seq });
        }
        Ok(())
    }

    /// Events that are not streamed: fetched here, or not for us.
    async fn fill(&mut self, room: RoomId, from: Seq, to: Seq, readable: bool) -> Result<(), Error> {
        let mut after = from.prev();
        while readable && after < to {
            let page = self.rest.history_after(room, after, PAGE).await?;
            let events = page.items.into_iter().take_while(|event| event.seq() <= to);
            let mut last = None;
            for event in events {
                last = Some(event.seq());
                self.collect(event).await?;
            }
            match last {
                Some(seq) => after = seq,
                None => break,
            }
        }
        self.inbox.skip(room, to);
        Ok(())
    }

    /// Hands the next event to the listener, past stretches that are not for this person.
    async fn receive(
        &mut self,
        listener: &Arc<dyn Listener>,
    ) -> Result<Option<BoxFuture<'static, Result<(), Retry>>>, Error> {
        while let Some(item) = self.inbox.first() {
            match item {
                Item::Event(event) => {
                    let (listener, event) = (Arc::clone(listener), event.clone());
                    return Ok(Some(Box::pin(async move { listener.on_receive(&event).await })));
                }
                Item::Skip(room, to) => {
                    let (room, to) = (*room, *to);
                    self.deps.journal.advance(room, to).await?;
                    self.inbox.done();
                }
            }
        }
        Ok(None)
    }

    /// The listener has returned.
    async fn received(
        &mut self,
        done: Result<(), Retry>,
        listener: &Arc<dyn Listener>,
    ) -> Result<Option<BoxFuture<'static, Result<(), Retry>>>, Error> {
        let Some(Item::Event(event)) = self.inbox.first() else { return Ok(None) };
        let (room, seq) = (event.room(), event.seq());
        match done {
            Ok(()) => {
                self.deps.journal.advance(room, seq).await?;
                self.inbox.done();
                self.untold_to(room, seq, Seq::ZERO);
                self.tell(room, Stage::Received { seq });
                Ok(None)
            }
            Err(Retry(pause)) => {
                let (listener, event) = (Arc::clone(listener), event.clone());
                Ok(Some(Box::pin(async move {
                    sleep(pause).await;
                    listener.on_receive(&event).await
                })))
            }
        }
    }
}

/// Both are maxima.
fn raise(told: &mut HashMap<RoomId, (Seq, Seq)>, room: RoomId, received: Seq, read: Seq) {
    let known = told.entry(room).or_default();
    *known = (known.0.max(received), known.1.max(read));
}

/// What comes over the link. Cancel safe.
async fn on_link(link: &mut Link, may_read: bool) -> News {
    match link {
        Link::Down { .. } => pending().await,
        Link::Opening(opening, _) => News::Opened(opening.await),
        Link::Up(up) => {
            let Up { socket, renewal, .. } = &mut **up;
            let renewed = poll_fn(|cx| renewal.as_mut().map_or(Poll::Pending, |it| it.as_mut().poll(cx)));
            tokio::select! {
                biased;
                token = renewed => {
                    *renewal = None;
                    News::Renewed(token)
                }
                incoming = socket.next(), if may_read => News::Incoming(incoming),
            }
        }
    }
}

/// An id of now, on the server's clock as far as it is known.
fn fresh_id(deps: &Deps, offset_ms: i64) -> CommandId {
    let mut random = [0; 10];
    deps.entropy.fill(&mut random);
    CommandId(uuid_v7(deps.clock.now().0 + offset_ms, random))
}

fn own_message(queued: Queued, sender: UserId, stored: Stored) -> EventView {
    let Queued { id, room, content, reply_to, .. } = queued;
    let Stored { seq, id: event, sent_at } = stored;
    let content: Option<Content> = Some(content);
    EventView::Message { room, seq, id: event, sender, sent_at, content, reply_to, client_msg_id: Some(id) }
}
