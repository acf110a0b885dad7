//! A whole installation in memory behind one edge's router; time stands still but for timers.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use edge::auth::issuers::{FetchError, Fetched, JwksPort};
use edge::auth::password::{PasswordHasher, Verdict};
use edge::hub::Hub;
use edge::metrics::HubMetrics;
use edge::{App, Config, Deps};
use parking_lot::Mutex;
use prometheus::Registry;
use schemas::link::{HistoryPort, Lane, Page, PageQuery, RoomOfUser, Unavailable};
use schemas::{Clock, EdgeId, Entropy, Offset, Partition, RoomId, Timestamp, Topic, UserId};
use serde_json::{Value, json};
use store::Store;
use store::memory::MemoryStore;
use stream::memory::MemoryLog;
use stream::{Consumer, Log, Producer};
use tokio::sync::watch;
use tower::ServiceExt as _;

pub const PARTITIONS: u32 = 4;

/// Tokio's time, which tests pause; the wall clock can be put forward.
pub struct TestClock {
    start: tokio::time::Instant,
    ahead_ms: AtomicU64,
}

impl TestClock {
    /// The wall clock shows so much more from now on.
    pub fn put_forward(&self, by: Duration) {
        self.ahead_ms.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let ahead = Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed));
        Timestamp(1_763_715_600_000).after(self.elapsed() + ahead)
    }
    fn micros(&self) -> i64 {
        self.now().0 * 1_000
    }
    fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A log that takes commands only while it is not held, and notes how many came at a time.
pub struct Holding {
    inner: MemoryLog,
    held: watch::Sender<bool>,
    appends: Mutex<Vec<usize>>,
}

impl Holding {
    /// Keeps appends of commands waiting from now on, or lets them through.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// How many commands came in each append since this was asked last.
    pub fn take_appends(&self) -> Vec<usize> {
        std::mem::take(&mut self.appends.lock())
    }
}

#[async_trait]
impl Log for Holding {
    async fn create(&self, partitions: u32) -> Result<(), stream::Error> {
        self.inner.create(partitions).await
    }
    fn partitions(&self) -> u32 {
        self.inner.partitions()
    }
    async fn append(
        &self,
        topic: Topic,
        partition: Partition,
        records: Vec<stream::Record>,
    ) -> Result<Offset, stream::Error> {
        if topic == Topic::Commands {
            self.appends.lock().push(records.len());
            self.held.subscribe().wait_for(|held| !held).await.unwrap();
        }
        self.inner.append(topic, partition, records).await
    }
    async fn producer(&self, transactional_id: &str) -> Result<Box<dyn Producer>, stream::Error> {
        self.inner.producer(transactional_id).await
    }
    async fn consumer(&self, group: &str, topics: &[Topic]) -> Result<Box<dyn Consumer>, stream::Error> {
        self.inner.consumer(group, topics).await
    }
    async fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        max_bytes: usize,
    ) -> Result<stream::Fetched, stream::Error> {
        self.inner.read(topic, partition, from, max_bytes).await
    }
    async fn start(&self, topic: Topic, partition: Partition) -> Result<Offset, stream::Error> {
        self.inner.start(topic, partition).await
    }
    async fn end(&self, topic: Topic, partition: Partition) -> Result<Offset, stream::Error> {
        self.inner.end(topic, partition).await
    }
    async fn committed(
        &self,
        group: &str,
        topic: Topic,
        partition: Partition,
    ) -> Result<Option<Offset>, stream::Error> {
        self.inner.committed(group, topic, partition).await
    }
    async fn trim(&self, topic: Topic, partition: Partition, before: Offset) -> Result<(), stream::Error> {
        self.inner.trim(topic, partition, before).await
    }
}

/// History that counts what it is asked.
pub struct Counted {
    inner: Arc<dyn HistoryPort>,
    calls: Mutex<BTreeMap<&'static str, usize>>,
}

impl Counted {
    /// Calls since the last time.
    pub fn take_calls(&self) -> BTreeMap<&'static str, usize> {
        std::mem::take(&mut *self.calls.lock())
    }

    fn called(&self, name: &'static str) -> &Arc<dyn HistoryPort> {
        *self.calls.lock().entry(name).or_default() += 1;
        &self.inner
    }
}

#[async_trait]
impl HistoryPort for Counted {
    async fn page(&self, query: PageQuery) -> Result<Option<Page>, Unavailable> {
        self.called("page").page(query).await
    }
    async fn pages(&self, queries: &[PageQuery]) -> Result<Vec<Option<Page>>, Unavailable> {
        self.called("pages").pages(queries).await
    }
    async fn rooms(&self, user: UserId, rooms: &[(RoomId, Offset)]) -> Result<Vec<RoomOfUser>, Unavailable> {
        self.called("rooms").rooms(user, rooms).await
    }
    async fn rooms_of(&self, user: UserId, min_offset: Offset) -> Result<Vec<RoomId>, Unavailable> {
        self.called("rooms_of").rooms_of(user, min_offset).await
    }
    async fn settle(&self, lane: Lane, partition: Partition, min_offset: Offset) -> Result<(), Unavailable> {
        self.called("settle").settle(lane, partition, min_offset).await
    }
}

/// A network with nothing behind it.
pub struct NoNetwork;

#[async_trait]
impl JwksPort for NoNetwork {
    async fn fetch(&self, _: &str) -> Result<Fetched, FetchError> {
        Err(FetchError("no network".into()))
    }
}

/// Different bytes at each call.
#[derive(Default)]
pub struct TestEntropy(AtomicU64);

impl Entropy for TestEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
            let mixed = (count.wrapping_mul(0x9e37_79b9_7f4a_7c15)).rotate_left(29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            chunk.copy_from_slice(&mixed.to_be_bytes()[..chunk.len()]);
        }
    }
}

/// No hash at all: Argon2 has its own tests, and threads would end the standstill of time.
pub struct PlainHasher;

#[async_trait]
impl PasswordHasher for PlainHasher {
    async fn hash(&self, password: String, _: [u8; 16]) -> Result<String, Unavailable> {
        Ok(password)
    }
    async fn verify(&self, password: String, phc: Option<String>) -> Result<Verdict, Unavailable> {
        Ok(if phc == Some(password) { Verdict::Right } else { Verdict::Wrong })
    }
    fn depth(&self) -> usize {
        0
    }
}

pub struct World {
    pub app: Arc<App>,
    pub router: axum::Router,
    pub log: Arc<Holding>,
    pub store: Arc<MemoryStore>,
    pub history: Arc<Counted>,
    pub clock: Arc<TestClock>,
    entropy: Arc<TestEntropy>,
    _shutdown: watch::Sender<bool>,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: axum::http::HeaderMap,
    pub body: Value,
}

impl Answer {
    #[track_caller]
    pub fn is(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    #[track_caller]
    pub fn fails(self, status: u16, code: &str) -> Value {
        assert_eq!((self.status.as_u16(), self.body["code"].as_str()), (status, Some(code)), "{}", self.body);
        assert_eq!(self.headers[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(self.headers["x-request-id"].to_str().ok(), self.body["request_id"].as_str());
        for field in ["type", "title", "detail"] {
            assert!(self.body[field].is_string(), "{field}: {}", self.body);
        }
        assert_eq!(self.headers.contains_key(header::RETRY_AFTER), status == 429 || status == 503);
        self.body
    }
}

/// Someone who has signed up.
#[derive(Clone)]
pub struct Person {
    pub id: String,
    pub token: String,
    pub refresh: String,
    pub device: String,
}

impl World {
    pub async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub async fn with(config: Config) -> Self {
        let world = Self::unattended(config).await;
        let app = world.app.clone();
        tokio::spawn(async move { app.run().await });
        world
    }

    /// An edge that reads no revocations after its start.
    pub async fn cut_off() -> Self {
        Self::unattended(Config::default()).await
    }

    async fn unattended(config: Config) -> Self {
        let (inner, held) = (MemoryLog::new(), watch::Sender::new(false));
        let holding = Arc::new(Holding { inner, held, appends: Mutex::default() });
        holding.create(PARTITIONS).await.unwrap();
        let store = Arc::new(MemoryStore::new());
        let clock = Arc::new(TestClock { start: tokio::time::Instant::now(), ahead_ms: AtomicU64::new(0) });
        let entropy = Arc::new(TestEntropy::default());
        let registry = Registry::new();
        let (shutdown, stop) = watch::channel(false);

        let ports = (holding.clone() as Arc<dyn Log>, store.clone() as Arc<dyn Store>, clock.clone() as Arc<dyn Clock>);
        let (log, shared, time) = ports;
        let deps =
            ingest::Deps { log: log.clone(), store: shared.clone(), clock: time.clone(), entropy: entropy.clone() };
        let metrics = ingest::Metrics::new(&registry).unwrap();
        tokio::spawn(ingest::run(deps, ingest::Config::default(), metrics, stop.clone()));
        let deps = archiver::Deps { log: log.clone(), store: shared.clone(), clock: time.clone() };
        let metrics = archiver::Metrics::new(&registry).unwrap();
        let (history, archive) = archiver::new(deps, archiver::Config::default(), metrics);
        tokio::spawn(archive.run(stop.clone()));
        let history = Arc::new(Counted { inner: history, calls: Mutex::default() });
        let deps = fanout::Deps { log: log.clone(), clock: time.clone() };
        let (fanout, worker) = fanout::new(deps, fanout::Config::default(), fanout::Metrics::new(&registry).unwrap());
        tokio::spawn(worker.run(stop.clone()));

        let edge = EdgeId(uuid::Uuid::from_u128(77));
        let deps = Deps {
            edge,
            log,
            store: shared,
            fanout,
            history: history.clone(),
            jwks: Arc::new(NoNetwork),
            clock: time,
            entropy: entropy.clone(),
        };
        let hub = Hub::new(deps.clone(), HubMetrics::new(&registry).unwrap());
        tokio::time::timeout(Duration::from_secs(10), hub.attach()).await.unwrap().unwrap();
        tokio::spawn(hub.clone().run(stop));
        let metrics = edge::Metrics::new(&registry).unwrap();
        let app = App::new(deps, hub, config, Arc::new(PlainHasher), metrics).await.unwrap();
        let router = edge::routes::router(app.clone());
        Self { app, router, log: holding, store, history, clock, entropy, _shutdown: shutdown }
    }

    /// A fresh UUIDv7.
    pub fn v7(&self) -> String {
        let mut random = [0; 10];
        self.entropy.fill(&mut random);
        schemas::ids::uuid_v7(self.clock.now().0, random).to_string()
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let bytes = axum::body::to_bytes(body, 16 << 20).await.unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub async fn call(&self, token: &str, method: &str, path: &str, body: Value) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if !token.is_empty() {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        self.send(request.body(body).unwrap()).await
    }

    pub async fn keyed(&self, who: &Person, method: &str, path: &str, key: &str, body: Value) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::AUTHORIZATION, format!("Bearer {}", who.token))
            .header("Idempotency-Key", key);
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        self.send(request.body(body).unwrap()).await
    }

    pub async fn get(&self, who: &Person, path: &str) -> Answer {
        self.call(&who.token, "GET", path, Value::Null).await
    }

    pub async fn post(&self, who: &Person, path: &str, body: Value) -> Answer {
        self.call(&who.token, "POST", path, body).await
    }

    pub async fn put(&self, who: &Person, path: &str, body: Value) -> Answer {
        self.call(&who.token, "PUT", path, body).await
    }

    pub async fn patch(&self, who: &Person, path: &str, body: Value) -> Answer {
        self.call(&who.token, "PATCH", path, body).await
    }

    pub async fn delete(&self, who: &Person, path: &str) -> Answer {
        self.call(&who.token, "DELETE", path, Value::Null).await
    }

    pub async fn person(&self, name: &str) -> Person {
        let body = json!({"username": name, "password": format!("password of {name}")});
        person(&self.call("", "POST", "/v1/auth/sign-up", body).await.is(201))
    }

    /// A room of its creator and these members; its id.
    pub async fn room(&self, creator: &Person, members: &[&Person], settings: Value) -> String {
        let mut body = json!({"name": "A room", "members": members.iter().map(|m| &m.id).collect::<Vec<_>>()});
        for (name, value) in settings.as_object().into_iter().flatten() {
            body[name] = value.clone();
        }
        self.post(creator, "/v1/rooms", body).await.is(201)["id"].as_str().unwrap().to_owned()
    }

    /// A message; its event.
    pub async fn say(&self, who: &Person, room: &str, text: &str) -> Value {
        self.post(who, &format!("/v1/rooms/{room}/messages"), self.message(text)).await.is(201)
    }

    pub fn message(&self, text: &str) -> Value {
        json!({"client_msg_id": self.v7(), "content": {"type": "text/plain", "body": text}})
    }
}

pub fn person(tokens: &Value) -> Person {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    Person {
        id: text(&tokens["user"]["id"]),
        token: text(&tokens["access_token"]),
        refresh: text(&tokens["refresh_token"]),
        device: text(&tokens["device"]),
    }
}

pub fn ids(page: &Value) -> Vec<String> {
    page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}
