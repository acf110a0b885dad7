//! What the SDK promises, against a whole server: stored once whatever is cut or killed, in the order of the room, and
//! every event once to the listener.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use async_trait::async_trait;
use client::{
    Client, Connector, Credentials, Deps, Error, Event, Journal, Listener, Retry, Settings, SqliteJournal, Stage,
    Stream, SystemClock, SystemEntropy, Worker,
};
use parking_lot::Mutex;
use schemas::message::Content;
use schemas::{Entropy, RoomId, Seq};
use testkit::clock::Seeded;
use testkit::cluster::Cluster;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// A network that can be away, and whose connections end after some bytes.
struct Network {
    server: Mutex<SocketAddr>,
    up: AtomicBool,
    /// Bytes of each connection: below this, by chance; 0: no end.
    cut_below: u64,
    chance: Seeded,
}

impl Network {
    fn to(server: SocketAddr) -> Arc<Self> {
        Self::cutting(server, 0, 0)
    }

    fn cutting(server: SocketAddr, cut_below: u64, seed: u64) -> Arc<Self> {
        let (server, chance) = (Mutex::new(server), Seeded::new(seed));
        Arc::new(Self { server, up: AtomicBool::new(true), cut_below, chance })
    }

    fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
    }
}

struct Shared(Arc<Network>);

#[async_trait]
impl Connector for Shared {
    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        if !self.0.up.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::NetworkUnreachable.into());
        }
        let server = *self.0.server.lock();
        let stream = TcpStream::connect(server).await?;
        let mut random = [0; 8];
        self.0.chance.fill(&mut random);
        let left = match self.0.cut_below {
            0 => u64::MAX,
            below => u64::from_le_bytes(random) % below,
        };
        Ok(Box::new(Wire { stream, left, network: Arc::clone(&self.0) }))
    }
}

struct Wire {
    stream: TcpStream,
    left: u64,
    network: Arc<Network>,
}

impl Wire {
    fn use_up(&mut self, bytes: usize) -> io::Result<()> {
        self.left = self.left.saturating_sub(bytes as u64);
        if self.left == 0 || !self.network.up.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let bytes = buf.filled().len() - before;
        match read {
            Poll::Ready(Ok(())) => Poll::Ready(self.use_up(bytes)),
            other => other,
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.use_up(bytes.len())?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Seqs, and the texts of messages.
type Heard = Arc<Mutex<Vec<(u64, Option<String>)>>>;

/// Notes what it has received, and can be made to take its time.
#[derive(Clone, Default)]
struct Notes {
    begun: Heard,
    done: Heard,
    stuck: Arc<AtomicBool>,
}

impl Notes {
    fn texts(&self) -> Vec<String> {
        self.done.lock().iter().filter_map(|(_, text)| text.clone()).collect()
    }
}

#[async_trait]
impl Listener for Notes {
    async fn on_receive(&self, event: &Event) -> Result<(), Retry> {
        let text = match event {
            Event::Message { content, .. } => content.as_ref().and_then(|content| content.body.clone()),
            _ => None,
        };
        self.begun.lock().push((event.seq().0, text.clone()));
        if self.stuck.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.done.lock().push((event.seq().0, text));
        Ok(())
    }
}

/// A client as one process has it: killing it drops everything but its directory.
struct Process {
    client: Client,
    running: JoinHandle<Result<(), Error>>,
    _stop: watch::Sender<bool>,
}

impl Process {
    fn start(name: &str, dir: &std::path::Path, network: &Arc<Network>, notes: &Notes) -> Result<Self> {
        let settings = Settings::new("http://posthaste.test", dir);
        let me = Credentials::Password { username: name.into(), password: "correct horse battery".into() };
        let (client, worker): (Client, Worker) = Client::with(
            Deps {
                clock: Arc::new(SystemClock::start()),
                entropy: Arc::new(SystemEntropy),
                connector: Arc::new(Shared(Arc::clone(network))),
                journal: Arc::new(SqliteJournal::open(dir)?),
            },
            "posthaste.test".into(),
            settings,
            me,
        );
        let (stop, stopped) = watch::channel(false);
        Ok(Self { client, running: tokio::spawn(worker.run(notes.clone(), stopped)), _stop: stop })
    }

    async fn kill(self) {
        self.running.abort();
        drop(self.running.await);
        drop(self.client);
    }

    async fn say(&self, room: RoomId, text: &str) -> Result<client::Sending> {
        Ok(self.client.send(room, Content::text(text)).await?)
    }
}

/// `SEED` of the environment, or another one each time.
#[expect(clippy::disallowed_methods, reason = "a failed run is replayed from its seed")]
fn seed() -> u64 {
    std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let mut random = [0; 8];
        SystemEntropy.fill(&mut random);
        u64::from_le_bytes(random)
    })
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    let looked = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, looked).await.with_context(|| format!("never: {what}"))
}

/// All messages of a room as history has them.
async fn history(process: &Process, room: RoomId) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    let mut after = Seq::ZERO;
    loop {
        let page = process.client.rest().history_after(room, after, 100).await?;
        let Some(last) = page.items.last() else { return Ok(texts) };
        after = last.seq();
        texts.extend(page.items.iter().filter_map(|event| match event {
            Event::Message { content, .. } => content.as_ref().and_then(|content| content.body.clone()),
            _ => None,
        }));
    }
}

#[tokio::test]
async fn a_message_takes_every_step_of_its_life() -> Result<()> {
    let cluster = Cluster::start().await?;
    let network = Network::to(cluster.address());
    let (ada_dir, ben_dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (at_ada, at_ben) = (Notes::default(), Notes::default());
    let ada = Process::start("ada", ada_dir.path(), &network, &at_ada)?;
    let room = ada.client.rest().join_or_create("lobby").await?;
    let ben = Process::start("ben", ben_dir.path(), &network, &at_ben)?;
    ben.client.rest().join_or_create("lobby").await?;
    until("ben hears of the room", || !at_ben.done.lock().is_empty()).await?;

    let (mut sent, mut received) = (ada.client.steps(), ben.client.steps());
    let sending = ada.say(room.id, "hello").await?;
    let id = sending.id;
    let stored = timeout(PATIENCE, sending.stored()).await??;
    until("ben has it", || at_ben.texts() == ["hello"]).await?;
    until("ada's own copy", || at_ada.texts() == ["hello"]).await?;

    let mut stages = Vec::new();
    loop {
        let step = timeout(PATIENCE, sent.recv()).await??;
        let monitored = matches!(step.stage, Stage::Monitored { delivered, .. } if delivered >= stored.seq);
        stages.push(step.stage);
        if monitored {
            break;
        }
    }
    let wanted = [
        Stage::Created { id },
        Stage::Queued { id },
        Stage::Sending { id, retries: 0 },
        Stage::Annotated { id, seq: stored.seq, event: stored.id, sent_at: stored.sent_at },
        Stage::Stored { id },
    ];
    let own: Vec<&Stage> = stages.iter().filter(|stage| wanted.contains(stage)).collect();
    assert_eq!(own, wanted.iter().collect::<Vec<_>>(), "{stages:?}");

    let mut last = Vec::new();
    while last.len() < 3 {
        let step = timeout(PATIENCE, received.recv()).await??.stage;
        if matches!(step, Stage::Retrieved { seq } | Stage::Collected { seq } | Stage::Received { seq } if seq == stored.seq)
        {
            last.push(step);
        }
    }
    let seq = stored.seq;
    assert_eq!(last, [Stage::Retrieved { seq }, Stage::Collected { seq }, Stage::Received { seq }]);
    ada.kill().await;
    ben.kill().await;
    cluster.stop().await
}

#[tokio::test]
async fn what_was_queued_without_a_network_is_stored_once_though_the_client_was_killed() -> Result<()> {
    let cluster = Cluster::start().await?;
    let network = Network::to(cluster.address());
    let dir = tempfile::tempdir()?;
    let notes = Notes::default();
    let ada = Process::start("ada", dir.path(), &network, &notes)?;
    let room = ada.client.rest().join_or_create("lobby").await?;
    network.set_up(false);
    for n in 0..5 {
        ada.say(room.id, &format!("{n}")).await?;
    }
    ada.kill().await;
    let ada = Process::start("ada", dir.path(), &network, &notes)?;
    ada.say(room.id, "5").await?;
    network.set_up(true);
    until("all are heard", || notes.texts().len() >= 6).await?;
    assert_eq!(notes.texts(), ["0", "1", "2", "3", "4", "5"]);
    assert_eq!(history(&ada, room.id).await?, notes.texts());
    ada.kill().await;
    cluster.stop().await
}

#[tokio::test]
async fn what_the_listener_had_not_finished_comes_again_and_nothing_else() -> Result<()> {
    let cluster = Cluster::start().await?;
    let network = Network::to(cluster.address());
    let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (notes, unheard) = (Notes::default(), Notes::default());
    let bot = Process::start("bot", dir.path(), &network, &notes)?;
    let room = bot.client.rest().join_or_create("lobby").await?;
    let ada = Process::start("ada", other.path(), &network, &unheard)?;
    ada.client.rest().join_or_create("lobby").await?;
    ada.say(room.id, "one").await?.stored().await?;
    until("the first is done", || notes.texts() == ["one"]).await?;
    notes.stuck.store(true, Ordering::Relaxed);
    ada.say(room.id, "two").await?.stored().await?;
    ada.say(room.id, "three").await?.stored().await?;
    until("the second is begun", || notes.begun.lock().iter().any(|(_, text)| text.as_deref() == Some("two"))).await?;
    bot.kill().await;
    notes.stuck.store(false, Ordering::Relaxed);
    let bot = Process::start("bot", dir.path(), &network, &notes)?;
    until("the rest is done", || notes.texts().len() >= 3).await?;
    assert_eq!(notes.texts(), ["one", "two", "three"]);
    let begun: Vec<u64> = notes.begun.lock().iter().filter(|(_, text)| text.is_some()).map(|(seq, _)| *seq).collect();
    assert_eq!(begun.len(), 4, "only the unfinished one was begun twice: {begun:?}");
    bot.kill().await;
    ada.kill().await;
    cluster.stop().await
}

#[tokio::test]
async fn a_client_that_is_let_go_stores_and_hears_its_last_words() -> Result<()> {
    let cluster = Cluster::start().await?;
    let network = Network::to(cluster.address());
    let dir = tempfile::tempdir()?;
    let notes = Notes::default();
    let Process { client, running, _stop } = Process::start("ada", dir.path(), &network, &notes)?;
    let room = client.rest().join_or_create("lobby").await?;
    let sending = client.send(room.id, Content::text("last words")).await?;
    drop(client);
    timeout(PATIENCE, running).await???;
    assert_eq!(notes.texts(), ["last words"]);
    sending.stored().await?;
    cluster.stop().await
}

#[tokio::test]
async fn what_was_received_is_told_though_the_client_was_killed_before_it_said_so() -> Result<()> {
    let cluster = Cluster::start().await?;
    let network = Network::to(cluster.address());
    let (ada_dir, ben_dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let at_ben = Notes::default();
    let ada = Process::start("ada", ada_dir.path(), &network, &Notes::default())?;
    let room = ada.client.rest().join_or_create("lobby").await?;
    let ben = Process::start("ben", ben_dir.path(), &network, &at_ben)?;
    ben.client.rest().join_or_create("lobby").await?;
    until("ben hears of the room", || !at_ben.done.lock().is_empty()).await?;
    let mut steps = ada.client.steps();
    let stored = timeout(PATIENCE, ada.say(room.id, "hello").await?.stored()).await??;
    until("ben has it", || at_ben.texts() == ["hello"]).await?;
    ben.kill().await;
    let ben = Process::start("ben", ben_dir.path(), &network, &at_ben)?;
    let told = async {
        loop {
            if matches!(steps.recv().await?.stage, Stage::Monitored { delivered, .. } if delivered >= stored.seq) {
                return anyhow::Ok(());
            }
        }
    };
    timeout(PATIENCE, told).await.context("ada never hears that ben has it")??;
    ada.kill().await;
    ben.kill().await;
    cluster.stop().await
}

#[tokio::test]
async fn one_directory_is_one_clients() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let first = SqliteJournal::open(dir.path())?;
    let Err(error) = SqliteJournal::open(dir.path()) else { anyhow::bail!("two clients share a journal") };
    ensure!(error.to_string().contains("another client uses it"), "{error}");
    drop(first);
    SqliteJournal::open(dir.path())?.load().await?;
    Ok(())
}

#[tokio::test]
async fn a_message_that_is_refused_for_good_leaves_the_queue_and_says_why() -> Result<()> {
    let cluster = Cluster::start().await?;
    let network = Network::to(cluster.address());
    let dir = tempfile::tempdir()?;
    let ada = Process::start("ada", dir.path(), &network, &Notes::default())?;
    let room = ada.client.rest().join_or_create("lobby").await?;
    let nowhere = RoomId(uuid::Uuid::from_u128(7));
    let refused = timeout(PATIENCE, ada.say(nowhere, "psst").await?.stored()).await?;
    ensure!(matches!(refused, Err(Error::Rejected { .. })), "{refused:?}");
    timeout(PATIENCE, ada.say(room.id, "after it").await?.stored()).await??;
    ada.kill().await;
    ensure!(SqliteJournal::open(dir.path())?.load().await?.queue.is_empty());
    cluster.stop().await
}

/// Connections that end anywhere, a client that is killed anywhere: each message is stored once, in the order in which
/// it was sent, and the listener finishes each event once.
#[tokio::test]
async fn whatever_is_cut_or_killed_each_message_is_stored_once_and_in_order() -> Result<()> {
    let seed = seed();
    println!("SEED={seed}");
    let cluster = Cluster::start().await?;
    let calm = Network::to(cluster.address());
    let cutting = Network::cutting(cluster.address(), 6_000, seed);
    let dir = tempfile::tempdir()?;
    let notes = Notes::default();
    let ada = Process::start("ada", dir.path(), &calm, &notes)?;
    let room = ada.client.rest().join_or_create("lobby").await?;
    ada.kill().await;
    let mut said = Vec::new();
    let mut ada = Process::start("ada", dir.path(), &cutting, &notes)?;
    for n in 0..60_u64 {
        let text = format!("{n}");
        ada.say(room.id, &text).await?;
        said.push(text);
        let mut random = [0; 1];
        cutting.chance.fill(&mut random);
        if random[0] < 40 {
            ada.kill().await;
            ada = Process::start("ada", dir.path(), &cutting, &notes)?;
        } else if random[0] < 120 {
            tokio::time::sleep(Duration::from_millis(u64::from(random[0] % 16))).await;
        }
    }
    ada.kill().await;
    let ada = Process::start("ada", dir.path(), &calm, &notes)?;
    until("all are heard", || notes.texts().len() >= said.len()).await?;
    assert_eq!(history(&ada, room.id).await?, said, "stored, seed {seed}");
    // What was finished in the moment of a kill, and not noted yet, may come twice in a row; nothing else may.
    let mut heard = notes.texts();
    heard.dedup();
    assert_eq!(heard, said, "heard, seed {seed}");
    ada.kill().await;
    cluster.stop().await
}
