//! Attacks on the real server, on loopback, one kind after the other: each is spotted and shut out, takes a bounded amount
//! of memory, and is hardly felt by honest people, who send at a steady rate all the while. An operator sees it and lifts it.
//!
//! Attackers come from one /24 of loopback for each kind, honest people from one of their own. Times and limits are those
//! of the defaults made ten to a hundred times smaller, so that a minute does for what takes an attacker many; what they
//! are made of is the same.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::Server;
use serde_json::json;
use testkit::client::{Api, Person, Wire, dial, new_id};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep, timeout};

const SETTINGS: [(&str, &str); 11] = [
    ("POSTHASTE_EDGE__REQUEST_READ_TIMEOUT_MS", "1000"),
    ("POSTHASTE_EDGE__HELLO_TIMEOUT_MS", "1000"),
    ("POSTHASTE_EDGE__LIMITS__HANDSHAKES_PER_ADDRESS", "80"),
    ("POSTHASTE_EDGE__LIMITS__CONNECTIONS_PER_ADDRESS", "200"),
    ("POSTHASTE_EDGE__LIMITS__CONNECTION_BURST", "500"),
    ("POSTHASTE_EDGE__LIMITS__CONNECTIONS_PER_S", "50"),
    ("POSTHASTE_EDGE__LIMITS__FAILED_SIGN_IN_BURST", "10"),
    ("POSTHASTE_EDGE__LIMITS__FRAME_BURST", "200"),
    ("POSTHASTE_EDGE__LIMITS__FRAMES_PER_S", "100"),
    ("POSTHASTE_EDGE__LIMITS__BLOCKS__POINTS", "20"),
    // So long that a test sees it, and what comes of it.
    ("POSTHASTE_EDGE__LIMITS__BLOCKS__FIRST_MS", "60000"),
];

/// Before each attack so long without one, and then so long with it: side by side, for the machine has other work at times.
const QUIET: Duration = Duration::from_millis(1_500);
const ATTACK: Duration = Duration::from_millis(2_500);

/// Honest people, and the pause between two messages of one.
const PEOPLE: usize = 4;
const PAUSE: Duration = Duration::from_millis(50);

/// Attackers of a kind at once, each of whom comes back ten times a second: more would only show how much of this machine
/// they take themselves.
const ATTACKERS: usize = 100;

/// Below this p99 a factor says nothing: a commit waits for a disk, and a message for its turn on a processor that the
/// attackers use too, being on the same machine. That alone is several milliseconds either way.
const NOISE: Duration = Duration::from_millis(20);

/// What all attacks together may add to the server's memory: two password hashes at once are 38 MiB of it.
const MEMORY_MAX_BYTES: f64 = 128.0 * 1024.0 * 1024.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    Silence,
    SlowHeader,
    SlowBody,
    SlowHello,
    SlowFrame,
    HugeFrame,
    EndlessFragments,
    Flood,
    BrokenJson,
    Guessing,
    Storm,
}

impl Attack {
    const ALL: [Self; 11] = [
        Self::Silence,
        Self::SlowHeader,
        Self::SlowBody,
        Self::SlowHello,
        Self::SlowFrame,
        Self::HugeFrame,
        Self::EndlessFragments,
        Self::Flood,
        Self::BrokenJson,
        Self::Guessing,
        Self::Storm,
    ];

    /// For what it is shut out, and whether the address is, or the account that attacks. A frame of one byte a second has its
    /// half-minute like any other: it takes a few bytes, and is not shut out for it here.
    fn shut_out(self) -> Option<(&'static str, &'static str)> {
        Some(match self {
            Self::Silence => ("address", "silent"),
            Self::SlowHeader | Self::SlowBody | Self::SlowHello => ("address", "slow"),
            Self::SlowFrame => return None,
            Self::HugeFrame | Self::EndlessFragments => ("account", "oversized"),
            Self::Flood => ("account", "flood"),
            Self::BrokenJson => ("address", "malformed"),
            Self::Guessing => ("address", "credentials"),
            Self::Storm => ("address", "flood"),
        })
    }

    /// One attacker, once: until the server ends it.
    async fn run(self, target: SocketAddr, from: IpAddr, mallory: &Person) -> anyhow::Result<()> {
        match self {
            Self::Silence => until_closed(dial(target, Some(from)).await?).await,
            Self::SlowHeader => {
                let head = format!("GET /v1/me HTTP/1.1\r\nX: {}", "x".repeat(1_000));
                trickle(dial(target, Some(from)).await?, head.as_bytes()).await
            }
            Self::SlowBody => {
                let mut stream = dial(target, Some(from)).await?;
                let head = "POST /v1/auth/sign-in HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n";
                stream.write_all(head.as_bytes()).await?;
                trickle(stream, &[b' '; 1_000]).await
            }
            Self::SlowHello => {
                let stream = upgraded(target, from).await?;
                trickle(stream, &frame(0x81, &[b' '; 100])).await
            }
            Self::SlowFrame => {
                let stream = live(target, from, mallory).await?;
                trickle(stream, &frame(0x81, &[b' '; 1_000])).await
            }
            Self::HugeFrame => {
                let mut stream = live(target, from, mallory).await?;
                // A text frame of a GiB, and as much of it as is taken.
                stream.write_all(&[0x81, 0xFF, 0, 0, 0, 0, 0x40, 0, 0, 0, 1, 2, 3, 4]).await?;
                stream.write_all(&vec![b'x'; 1 << 20]).await?;
                until_closed(stream).await
            }
            Self::EndlessFragments => {
                let mut stream = live(target, from, mallory).await?;
                stream.write_all(&frame(0x01, b"")).await?;
                let more = frame(0x00, b"").repeat(100);
                loop {
                    stream.write_all(&more).await?;
                    sleep(Duration::from_millis(2)).await;
                }
            }
            Self::Flood => {
                let mut stream = live(target, from, mallory).await?;
                let typing = json!({"type": "typing", "room": new_id()}).to_string();
                let many = frame(0x81, typing.as_bytes()).repeat(50);
                loop {
                    stream.write_all(&many).await?;
                    sleep(Duration::from_millis(20)).await;
                }
            }
            Self::BrokenJson => {
                let api = Api { from: Some(from), ..Api::new(target) };
                api.call_raw("POST".parse()?, "/v1/auth/sign-in", b"{\"email\": \"".to_vec()).await.map(drop)
            }
            Self::Guessing => {
                let api = Api { from: Some(from), ..Api::new(target) };
                let body = json!({"username": "honest-0", "password": format!("guess {}", new_id())});
                api.post("/v1/auth/sign-in", body).await.map(drop)
            }
            Self::Storm => dial(target, Some(from)).await.map(drop).map_err(Into::into),
        }
    }
}

/// A client's frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).ok().filter(|length| *length < 126);
    let mut frame = match length {
        Some(length) => vec![first, 0x80 | length],
        None => [&[first, 0xFE][..], &u16::try_from(payload.len()).unwrap().to_be_bytes()].concat(),
    };
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

async fn until_closed(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut some = [0; 1_024];
    while stream.read(&mut some).await? > 0 {}
    Ok(())
}

/// A byte every 100 ms until the other end has enough.
async fn trickle(mut stream: TcpStream, bytes: &[u8]) -> anyhow::Result<()> {
    let mut some = [0; 1_024];
    for byte in bytes {
        stream.write_all(&[*byte]).await?;
        if let Ok(read) = timeout(Duration::from_millis(100), stream.read(&mut some)).await
            && read? == 0
        {
            break;
        }
    }
    Ok(())
}

async fn upgraded(target: SocketAddr, from: IpAddr) -> anyhow::Result<TcpStream> {
    let mut stream = dial(target, Some(from)).await?;
    let head = "GET /v1/socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await?);
    }
    anyhow::ensure!(answer.starts_with(b"HTTP/1.1 101 "), "no socket");
    Ok(stream)
}

/// A socket that has said hello.
async fn live(target: SocketAddr, from: IpAddr, who: &Person) -> anyhow::Result<TcpStream> {
    let mut stream = upgraded(target, from).await?;
    let hello = json!({"type": "hello", "token": who.api.token}).to_string();
    stream.write_all(&frame(0x81, hello.as_bytes())).await?;
    stream.read_exact(&mut [0; 16]).await?;
    Ok(stream)
}

/// What honest people see: how long each message took to be accepted.
struct Honest {
    tasks: JoinSet<Vec<(Instant, Duration)>>,
    stop: watch::Sender<bool>,
}

impl Honest {
    fn start(people: Vec<(Wire, String)>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        for (mut wire, room) in people {
            let stopped = stopped.clone();
            tasks.spawn(async move {
                let mut took = Vec::new();
                let mut ticks = interval(PAUSE);
                while !*stopped.borrow() {
                    ticks.tick().await;
                    let sent = Instant::now();
                    let id = wire.send_message(&room, "as always").await.expect("an honest socket stays open");
                    let accepted = wire.until(|frame| {
                        assert_ne!(frame["type"], "rejected", "{frame}");
                        frame["client_msg_id"] == *id && frame["type"] == "accepted"
                    });
                    accepted.await.expect("an honest message is accepted");
                    took.push((sent, sent.elapsed()));
                }
                took
            });
        }
        Self { tasks, stop }
    }

    async fn end(mut self) -> Vec<(Instant, Duration)> {
        self.stop.send_replace(true);
        let mut all = Vec::new();
        while let Some(took) = self.tasks.join_next().await {
            all.extend(took.unwrap());
        }
        all
    }
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort_unstable();
    took[(took.len() * 99).div_ceil(100) - 1]
}

fn admin(data: &std::path::Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthaste"));
    let Output { status, stdout, stderr } =
        command.env_clear().args(["admin", "blocks", "--data"]).arg(data).args(arguments).output().unwrap();
    (status.code(), String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned())
}

async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let so = async {
        while !is_so().await {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(10), so).await.unwrap_or_else(|_| panic!("{what}"));
}

/// A disk that stands still for seconds, as right after a build, is slower than any attack: what was slow must be so twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attackers_are_shut_out_and_honest_people_hardly_notice() {
    if let Some(slow) = attacked().await {
        println!("{slow}: once more");
        assert_eq!(attacked().await, None);
    }
}

/// All attacks on one server, which holds out. Says how long honest people waited, where that was too long.
async fn attacked() -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start_with(dir.path(), &SETTINGS);
    let target = server.address;
    let home: IpAddr = Ipv4Addr::new(127, 0, 1, 1).into();
    let api = Api { from: Some(home), ..Api::new(target) };
    let mut people = Vec::new();
    for n in 0..PEOPLE {
        people.push(api.sign_up(&format!("honest-{n}")).await.unwrap());
    }
    let room =
        people[0].create_room(json!({"name": "Room"}), &people.iter().skip(1).collect::<Vec<_>>()).await.unwrap();
    let mut wires = Vec::new();
    for person in &people {
        wires.push((person.connect(json!({})).await.unwrap().0, room.clone()));
    }
    let mut mallories = Vec::new();
    for attack in Attack::ALL {
        mallories.push(Arc::new(api.sign_up(&format!("mallory-{}", attack as usize)).await.unwrap()));
    }
    let memory = || server.metric("process_resident_memory_bytes", "").unwrap();
    let (memory_before, mut memory_most) = (memory(), 0.0_f64);

    let honest = Honest::start(wires);
    let mut spans = Vec::new();
    for attack in Attack::ALL {
        sleep(QUIET).await;
        let began = Instant::now();
        let from: IpAddr = Ipv4Addr::new(127, 0, 10 + attack as u8, 1).into();
        let mallory = mallories[attack as usize].clone();
        let tries = Arc::new(AtomicUsize::new(0));
        let mut attackers = JoinSet::new();
        for _ in 0..ATTACKERS {
            let (mallory, tries) = (mallory.clone(), tries.clone());
            attackers.spawn(async move {
                loop {
                    tries.fetch_add(1, Ordering::Relaxed);
                    // However it ends, the next one begins: an attacker does not listen.
                    attack.run(target, from, &mallory).await.ok();
                    sleep(Duration::from_millis(100)).await;
                }
            });
        }
        while began.elapsed() < ATTACK {
            sleep(Duration::from_millis(250)).await;
            memory_most = memory_most.max(memory());
        }
        let me = people[0].api.get("/v1/me").await.unwrap();
        me.expect(200).unwrap();
        spans.push((attack, began, Instant::now()));
        if let Some((subject, offence)) = attack.shut_out() {
            let labels = format!("offence=\"{offence}\",subject=\"{subject}\"");
            eventually(&format!("{attack:?} is shut out"), async || {
                server.metric("posthaste_edge_shut_outs_total", &labels).unwrap_or(0.0) > 0.0
            })
            .await;
            let key =
                if subject == "account" { mallory.id.clone() } else { format!("127.0.{}.0/24", 10 + attack as u8) };
            eventually(&format!("{key} is listed for {attack:?}"), async || {
                let (status, list) = admin(dir.path(), &[]);
                assert_eq!(status, Some(0), "{list}");
                list.lines().any(|line| line.starts_with(&key) && line.contains(offence))
            })
            .await;
        }
        attackers.shutdown().await;
        println!("{attack:?}: {} tries", tries.load(Ordering::Relaxed));
    }
    let took = honest.end().await;

    let during = |sent: &Instant| spans.iter().find(|(_, began, ended)| began <= sent && sent <= ended);
    let (with, without): (Vec<_>, Vec<_>) = took.iter().partition(|(sent, _)| during(sent).is_some());
    let times = |some: &[(Instant, Duration)]| some.iter().map(|(_, took)| *took).collect::<Vec<_>>();
    for (attack, ..) in &spans {
        let its: Vec<_> = with.iter().filter(|(sent, _)| during(sent).unwrap().0 == *attack).copied().collect();
        println!("{attack:?}: p99 {:?} of {}", p99(times(&its)), its.len());
    }
    let (with, without) = (times(&with), times(&without));
    let (counts, with, without) = ((with.len(), without.len()), p99(with), p99(without));
    let memory_added = memory_most - memory_before;
    println!("p99 {with:?} with attackers, {without:?} without ({counts:?}); memory +{memory_added} bytes");
    let slow = (with > 2 * without.max(NOISE / 2)).then(|| format!("{with:?} with attackers, {without:?} without"));
    assert!(memory_added < MEMORY_MAX_BYTES, "{memory_added} bytes");

    let (_, list) = admin(dir.path(), &[]);
    assert!(!list.contains("127.0.1.0/24"), "honest people were shut out:\n{list}");
    assert!(people.iter().all(|person| !list.contains(&person.id)), "honest people were shut out:\n{list}");
    let shut_out = Ipv4Addr::new(127, 0, 10 + Attack::BrokenJson as u8, 77);
    let from_there = |ip: Ipv4Addr| Api { from: Some(ip.into()), ..Api::new(target) };
    assert!(from_there(shut_out).get("/.well-known/jwks.json").await.is_err(), "turned away");
    assert_eq!(admin(dir.path(), &["lift", &shut_out.to_string()]), (Some(0), "lifted: 1\n".to_owned()));
    eventually("one is let in again", async || from_there(shut_out).get("/.well-known/jwks.json").await.is_ok()).await;
    let other = Ipv4Addr::new(127, 0, 10 + Attack::Storm as u8, 77);
    assert!(from_there(other).get("/.well-known/jwks.json").await.is_err(), "that one alone");
    let (status, lifted) = admin(dir.path(), &["lift", "--all"]);
    assert!(status == Some(0) && lifted != "lifted: 0\n", "{lifted}");
    let mallory = &mallories[Attack::Flood as usize];
    eventually("all are", async || {
        let there = from_there(other).get("/.well-known/jwks.json").await.is_ok();
        there && mallory.api.get("/v1/me").await.is_ok_and(|me| me.status == 200)
    })
    .await;
    eventually("the gauge says so", async || server.metric("posthaste_edge_shut_outs", "") == Some(0.0)).await;
    slow
}

#[test]
fn only_whoever_may_use_the_data_directory_sees_and_lifts_shut_outs() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let server = Server::start(&data);
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o700, "its owner's alone");
    assert_eq!(std::fs::metadata(data.join("store.db")).unwrap().permissions().mode() & 0o777, 0o600);
    // Neither listener has anything of the kind.
    for path in ["/blocks", "/admin/blocks", "/v1/admin/blocks"] {
        assert!(server.get(path).starts_with("HTTP/1.1 404"), "{path}");
    }
    let (status, text) = admin(&data, &["lift", "no such thing"]);
    assert_eq!(status, Some(2), "{text}");
    assert_eq!(admin(&data, &["lift"]).0, Some(2));
    assert_eq!(admin(&data, &["lift", "192.0.2.0/24"]), (Some(0), "lifted: 0\n".to_owned()));
    let (status, text) = admin(dir.path(), &[]);
    assert!(status == Some(1) && text.contains("store.db"), "no server has been here: {text}");
    assert!(std::fs::metadata(dir.path().join("store.db")).is_err(), "and none is made");
}
