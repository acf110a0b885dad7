//! People: their clients (the SDK as it is), their calls, and what the programs on top have heard. A client's journal is
//! its disk: it outlives the client's process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use checker::frame::{Frame, text_digest};
use checker::{ClientId, Reader, Step};
use client::{
    Client, Credentials, Deps, Error, Event, Journal, Listener, MemoryJournal, Method, Queued, Rest, Retry, Saved,
    Session, Settings, TokenSource,
};
use ed25519_dalek::{Signer, SigningKey};
use parking_lot::Mutex;
use schemas::ids::uuid_v7;
use schemas::outcome::RejectCode;
use schemas::{Clock, CommandId, DeviceId, Entropy, RoomId, Seq, UserId};
use serde_json::{Value, json};
use testkit::clock::Seeded;
use tokio::sync::watch;
use tokio::time::sleep;
use uuid::Uuid;

use crate::network::Network;
use crate::record::Record;
use crate::surroundings::Surroundings;
use crate::tasks::ProcessId;
use crate::time::ProcessClock;

/// The issuer that everybody's tokens come from.
pub const ISSUER: &str = "simulation";

/// From here on connections are those of people apart from their devices: their reads they note themselves.
pub const FIRST_CALLER: u32 = 1_000;

/// Tries of a call before it is left as it is.
const TRIES: u32 = 12;

/// The issuer's key, the same in all schedules.
fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// The issuer's keys as an edge is told them.
pub fn jwks() -> String {
    let public = URL_SAFE_NO_PAD.encode(key().verifying_key().as_bytes());
    json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": "one", "x": public}]})
        .to_string()
}

/// Signs tokens of one person, by the time that is.
struct Tokens {
    subject: String,
    clock: ProcessClock,
}

#[async_trait]
impl TokenSource for Tokens {
    async fn token(&self) -> Result<String, Error> {
        let now = self.clock.now().0.div_euclid(1_000);
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = part(json!({"alg": "EdDSA", "typ": "JWT", "kid": "one"}));
        let claims = part(json!({
            "iss": ISSUER, "aud": "posthaste", "sub": self.subject, "iat": now, "exp": now + 3_000,
        }));
        let signed = format!("{header}.{claims}");
        let signature = URL_SAFE_NO_PAD.encode(key().sign(signed.as_bytes()).to_bytes());
        Ok(format!("{signed}.{signature}"))
    }
}

/// A device's disk: it takes a while, and whoever is killed meanwhile does not know what became of it.
struct Disk {
    kept: Arc<MemoryJournal>,
    around: Arc<Surroundings>,
}

#[async_trait]
impl Journal for Disk {
    async fn load(&self) -> Result<Saved, Error> {
        self.around.delay().await;
        self.kept.load().await
    }

    async fn queue(&self, messages: Vec<Queued>) -> Result<(), Error> {
        self.around.delay().await;
        self.kept.queue(messages).await?;
        self.around.delay().await;
        Ok(())
    }

    async fn tried(&self, ids: Vec<CommandId>) -> Result<(), Error> {
        self.around.delay().await;
        self.kept.tried(ids).await?;
        self.around.delay().await;
        Ok(())
    }

    async fn rename(&self, from: CommandId, to: CommandId) -> Result<(), Error> {
        self.around.delay().await;
        self.kept.rename(from, to).await
    }

    async fn settle(&self, id: CommandId) -> Result<(), Error> {
        self.around.delay().await;
        self.kept.settle(id).await
    }

    async fn advance(&self, room: RoomId, seq: Seq) -> Result<(), Error> {
        self.around.delay().await;
        self.kept.advance(room, seq).await
    }

    async fn remember(&self, session: Option<Session>) -> Result<(), Error> {
        self.around.delay().await;
        self.kept.remember(session).await
    }
}

/// What people share.
pub struct People {
    pub around: Arc<Surroundings>,
    pub network: Arc<Network>,
    pub record: Arc<Record>,
    /// A clock that is right.
    pub clock: ProcessClock,
    seed: u64,
}

/// One installation of a client.
pub struct Device {
    /// Its number for the judge.
    pub id: ClientId,
    /// Whose it is.
    pub user: UserId,
    subject: String,
    journal: Arc<MemoryJournal>,
    clock: ProcessClock,
    starts: Mutex<u64>,
    heard: Arc<Heard>,
    now: Mutex<Option<(ProcessId, Client)>>,
}

/// What the program on top has heard.
#[derive(Default)]
struct Heard(Mutex<BTreeMap<RoomId, Seq>>);

struct Ear {
    heard: Arc<Heard>,
    around: Arc<Surroundings>,
    client: ClientId,
    /// The event under way when the process before this one ended may come again.
    fresh: Mutex<BTreeMap<RoomId, bool>>,
}

#[async_trait]
impl Listener for Ear {
    async fn on_receive(&self, event: &Event) -> Result<(), Retry> {
        self.around.delay().await;
        if self.around.dice.per_mille(10) {
            self.around.saw("client: listener asks for a retry");
            return Err(Retry(Duration::from_millis(self.around.dice.between(1, 300))));
        }
        let (room, seq) = (event.room(), event.seq());
        let first = self.fresh.lock().insert(room, true).is_none();
        let last = self.heard.0.lock().insert(room, seq);
        match last {
            Some(last) if seq == last && first => self.around.saw("client: heard again after a crash"),
            Some(last) if seq <= last => {
                let client = self.client.0;
                self.around.broken(format!("client {client} heard {room} {seq} after {last}"));
            }
            _ => {}
        }
        Ok(())
    }
}

impl People {
    /// Nobody yet.
    pub fn new(
        around: Arc<Surroundings>,
        network: Arc<Network>,
        record: Arc<Record>,
        clock: ProcessClock,
        seed: u64,
    ) -> Arc<Self> {
        Arc::new(Self { around, network, record, clock, seed })
    }

    /// A person's id, as the edges derive it.
    pub fn user(number: usize) -> UserId {
        UserId::external(ISSUER, &format!("person-{number}"))
    }

    /// A device that has not been started.
    pub fn device(&self, number: usize, user: usize, clock: ProcessClock) -> Device {
        Device {
            id: ClientId(u32::try_from(number).unwrap_or(u32::MAX)),
            user: Self::user(user),
            subject: format!("person-{user}"),
            journal: Arc::default(),
            clock,
            starts: Mutex::new(0),
            heard: Arc::default(),
            now: Mutex::default(),
        }
    }

    fn open(
        &self,
        id: ClientId,
        user: UserId,
        subject: &str,
        clock: ProcessClock,
        journal: Arc<MemoryJournal>,
        start: u64,
    ) -> (Client, client::Worker) {
        let entropy = Seeded::new(checker::digest(&[
            &self.seed.to_be_bytes(),
            b"client",
            &id.0.to_be_bytes(),
            &start.to_be_bytes(),
        ]));
        let deps = Deps {
            clock: Arc::new(clock),
            entropy: Arc::new(entropy),
            connector: self.network.of(id, user),
            journal: Arc::new(Disk { kept: journal, around: Arc::clone(&self.around) }),
        };
        let settings = Settings {
            device: Some(DeviceId(Uuid::from_u128(u128::from(id.0) + 1))),
            ..Settings::new("http://posthaste", "unused")
        };
        let tokens = Tokens { subject: subject.to_owned(), clock: self.clock.clone() };
        Client::with(deps, "posthaste".into(), settings, Credentials::Issuer(Arc::new(tokens)))
    }

    /// Calls of a person, apart from their devices.
    pub fn caller(&self, user: usize) -> Rest {
        let id = ClientId(FIRST_CALLER + u32::try_from(user).unwrap_or(0));
        let subject = format!("person-{user}");
        let (client, _) = self.open(id, Self::user(user), &subject, self.clock.clone(), Arc::default(), 0);
        client.rest().clone()
    }

    /// Starts a device's client as a process.
    pub fn start(&self, device: &Device, process: ProcessId) {
        let start = {
            let mut starts = device.starts.lock();
            *starts += 1;
            *starts
        };
        let (client, worker) = self.open(
            device.id,
            device.user,
            &device.subject,
            device.clock.clone(),
            Arc::clone(&device.journal),
            start,
        );
        self.around.born(process);
        *device.now.lock() = Some((process, client));
        let ear = Ear {
            heard: Arc::clone(&device.heard),
            around: Arc::clone(&self.around),
            client: device.id,
            fresh: Mutex::default(),
        };
        let (around, id) = (Arc::clone(&self.around), device.id.0);
        self.around.tasks.spawn(process, async move {
            let (_stop, stopped) = watch::channel(false);
            if let Err(error) = worker.run(ear, stopped).await {
                around.broken(format!("client {id} gave up: {error}"));
            }
        });
    }

    /// A message through a device; it is queued before this person does anything else.
    pub fn send(&self, device: &Device, room: RoomId, body: String) {
        let Some((process, client)) = device.now.lock().clone() else { return };
        let around = Arc::clone(&self.around);
        self.around.tasks.spawn(process, async move {
            if let Ok(sending) = client.send(room, schemas::message::Content::text(body)).await {
                match sending.stored().await {
                    Ok(_) => around.saw("client: stored"),
                    Err(_) => around.saw("client: rejected for good"),
                }
            }
        });
    }

    /// Tells what was read.
    pub fn read(&self, device: &Device, room: RoomId) {
        let Some((process, client)) = device.now.lock().clone() else { return };
        let seq = device.heard.0.lock().get(&room).copied();
        if let Some(seq) = seq {
            self.around.tasks.spawn(process, async move {
                drop(client.read(room, seq).await);
            });
        }
    }

    /// A message by a call, tried again under its id until it has an outcome.
    pub async fn post(&self, user: usize, room: RoomId, body: String) {
        let rest = self.caller(user);
        let mut random = [0; 10];
        Seeded::new(self.around.dice.number()).fill(&mut random);
        let id = CommandId(uuid_v7(self.clock.now().0, random));
        let (user, digest) = (Self::user(user), text_digest(&body));
        let content = json!({"type": "text/plain", "body": body});
        let request = json!({"client_msg_id": id, "content": content});
        for attempt in 0..TRIES {
            self.record.note(Step::Sending { user, client: None, room, client_msg_id: id, body: digest });
            let path = format!("/v1/rooms/{room}/messages");
            let answer: Result<Value, Error> = rest.call(Method::POST, &path, Some(&request)).await;
            let code = match answer {
                Ok(event) => {
                    let text = event.to_string();
                    if let Ok(frame) = Frame::parse(&text)
                        && let (Some(seq), Some(event)) = (frame.seq, frame.id)
                    {
                        self.around.saw(if attempt > 0 { "call: stored after retries" } else { "call: stored" });
                        let (at, duplicate) = (frame.at(), false);
                        let client = None;
                        let client_msg_id = id;
                        let id = event;
                        self.record.note(Step::Accepted { user, client, room, client_msg_id, seq, id, at, duplicate });
                    } else {
                        self.around.broken(format!("an answer without an event: {text}"));
                    }
                    return;
                }
                Err(Error::Refused { status: 403 | 404, .. }) => RejectCode::NotAMember,
                Err(_) => RejectCode::Unavailable,
            };
            self.record.note(Step::Rejected { user, client: None, room, client_msg_id: id, code });
            if code != RejectCode::Unavailable {
                return;
            }
            sleep(Duration::from_millis(200 + self.around.dice.below(1_000))).await;
        }
    }

    /// Any other call, tried again for a while. What it answers is for nobody.
    pub async fn call(&self, user: usize, method: Method, path: String, body: Option<Value>) {
        let rest = self.caller(user);
        for _ in 0..TRIES {
            match rest.call::<Value>(method.clone(), &path, body.as_ref()).await {
                Ok(_) => return self.around.saw("call: done"),
                Err(Error::Refused { status, .. }) if status < 429 => return self.around.saw("call: refused"),
                Err(_) => sleep(Duration::from_millis(200 + self.around.dice.below(1_000))).await,
            }
        }
    }

    /// One look at a room's history, over any edge.
    pub async fn look(&self, user: usize, room: RoomId) {
        let path = format!("/v1/rooms/{room}/messages?after=0&limit=100");
        let (rest, me) = (self.caller(user), Self::user(user));
        let ask = self.record.ask(me);
        if let Ok(page) = rest.call::<Value>(Method::GET, &path, None::<&Value>).await {
            self.around.saw("call: looked at history");
            let page = crate::record::page(ask, Reader::Look(me), room, Seq::ZERO, page.to_string().as_bytes());
            page.into_iter().for_each(|page| self.record.note(page));
        }
    }

    /// One look at the person's list of rooms, over any edge.
    pub async fn list(&self, user: usize) -> Result<(), Error> {
        let (rest, me) = (self.caller(user), Self::user(user));
        let ask = self.record.ask(me);
        // There are fewer rooms than a page of the list has.
        let answer: Value = rest.call(Method::GET, "/v1/rooms", None::<&Value>).await?;
        let rooms = answer["items"].as_array().and_then(|items| crate::record::rooms(items));
        let rooms = rooms.ok_or_else(|| Error::Protocol(format!("no list of rooms: {answer}")))?;
        self.around.saw("call: looked at rooms");
        self.record.note(Step::Rooms { ask, user: me, rooms });
        Ok(())
    }

    /// Reads all of a room's history as one person, for the judge. `None`: they may not.
    pub async fn audit(&self, user: usize, room: RoomId) -> Result<Option<Seq>, Error> {
        let rest = self.caller(user);
        let mut after = Seq::ZERO;
        loop {
            let path = format!("/v1/rooms/{room}/messages?after={after}&limit=100");
            let ask = self.record.ask(Self::user(user));
            let page: Value = match rest.call(Method::GET, &path, None::<&Value>).await {
                Err(Error::Refused { status: 403 | 404, .. }) => return Ok(None),
                page => page?,
            };
            let reader = Reader::Audit(Self::user(user));
            let page = crate::record::page(ask, reader, room, after, page.to_string().as_bytes());
            let Some(Step::Page { head_seq, events, .. }) = &page else {
                return Err(Error::Protocol(format!("{path} answers no page")));
            };
            let (head_seq, last) = (*head_seq, events.last().map(|event| event.seq));
            page.into_iter().for_each(|page| self.record.note(page));
            match last {
                Some(last) if last < head_seq => after = last,
                _ => return Ok(Some(head_seq)),
            }
        }
    }
}

impl Device {
    /// The process that it is now.
    pub fn process(&self) -> Option<ProcessId> {
        self.now.lock().as_ref().map(|(process, _)| *process)
    }

    /// It is none any more.
    pub fn ended(&self) {
        let gone = self.now.lock().take();
        drop(gone);
    }

    /// Its clock, to be set wrong.
    pub fn clock(&self) -> &ProcessClock {
        &self.clock
    }

    /// How many messages wait, and how far it has come in each room.
    pub async fn standing(&self) -> (usize, std::collections::HashMap<RoomId, Seq>) {
        self.journal.load().await.map_or((0, Default::default()), |saved| (saved.queue.len(), saved.cursors))
    }
}
