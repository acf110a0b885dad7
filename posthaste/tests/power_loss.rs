//! What the server keeps when the power fails: the real binary runs under load on a disk that loses, or tears, whatever
//! was not synced (`shim/power.c`, `power_loss/disk.rs`), again and again on the same directory. After each cut
//! everything that was accepted must be there, once, at its place, and files and archive must be whole.
//!
//! POINTS (20) says how many cuts, SEED repeats their choices. `make power-loss` does 200.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
#![expect(clippy::cast_possible_truncation, reason = "small numbers")]

mod common;
#[path = "power_loss/disk.rs"]
mod disk;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use disk::{Cut, Random};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::client::{Api, Person, new_id};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// Cuts of one directory; then a new one is made, for what happens only once.
const CUTS_OF_A_DIRECTORY: u32 = 10;

const PEOPLE: usize = 4;
const ROOMS: usize = 3;
/// Sockets that send, each into one room.
const WRITERS: usize = 6;
/// Messages that a socket has under way.
const UNDER_WAY: usize = 4;

/// A power cut that has not come by then comes now.
const LONGEST_RUN: Duration = Duration::from_secs(4);

/// A start or a stop takes no longer.
const PATIENCE: Duration = Duration::from_secs(20);

#[expect(clippy::disallowed_methods, reason = "a failed run is replayed from its seed")]
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_loses_nothing_that_was_accepted() {
    let points = number("POINTS").unwrap_or(20) as u32;
    let seed = number("SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish() % 1_000_000);
    eprintln!("power cuts: {points}, seed {seed}");
    let began = Instant::now();
    let mut random = Random(seed);
    let mut world = World::new();
    let (mut accepted, mut unsynced) = (0, 0);
    for point in 1..=points {
        if point > 1 && point % CUTS_OF_A_DIRECTORY == 1 {
            accepted += world.accepted();
            world = World::new();
        }
        let end = world.any_end(&mut random);
        let cut = world.run_until_cut(end, None, &mut random).await.unwrap();
        unsynced += cut.unsynced();
        let judged = world.judge().await;
        let ready = if world.was_ready { "" } else { ", never ready" };
        eprintln!("cut {point}/{points} {cut}{ready}; {} accepted, {} s", world.accepted(), began.elapsed().as_secs());
        judged.unwrap_or_else(|error| panic!("cut {point}, seed {seed}: {error:#}\n{}", world.said()));
    }
    accepted += world.accepted();
    eprintln!(
        "power cuts: {points} in {} s, {accepted} messages accepted, {unsynced} writes unsynced, seed {seed}",
        began.elapsed().as_secs()
    );
    // A few points may all be at the start.
    assert!(points < 20 || (accepted >= 20 && unsynced >= 20), "too little was at stake to show anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_lies_about_syncing_is_found_out() {
    let seed = number("SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish() % 1_000_000);
    let mut random = Random(seed);
    let mut lost = 0;
    for _ in 0..5 {
        let mut world = World::new();
        // The first is honest: people and rooms are there then.
        world.run_until_cut(End::AtCall(2_000), None, &mut random).await.unwrap();
        world.judge().await.unwrap();
        world.run_until_cut(End::AtCall(2_000), Some(300), &mut random).await.unwrap();
        // By chance it may have kept everything.
        if let Err(found) = world.judge().await {
            eprintln!("a disk that lies, seed {seed}: {found:#}");
            lost += usize::from(format!("{found:#}").contains("and is lost"));
        }
    }
    assert!(lost > 0, "no accepted message was seen to be lost, seed {seed}");
}

/// When the power fails.
#[derive(Clone, Copy)]
enum End {
    /// In place of the n-th call that changes or syncs something.
    AtCall(u64),
    /// The server serves for so long and is told to stop; and so much later at most.
    AtStop(Duration, Duration),
}

/// A message, and what the server said to it.
struct Sent {
    id: String,
    text: String,
    /// The seq; `None`: nobody has heard.
    accepted: Option<u64>,
}

/// A directory, and everything that its servers have promised.
struct World {
    dir: TempDir,
    was_ready: bool,
    people: Vec<Person>,
    rooms: Vec<String>,
    /// Of each writer.
    sent: Vec<Vec<Sent>>,
    /// What the room's history was when it was last read: text of each seq from 1, empty for what is no message.
    history: HashMap<String, Vec<String>>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let sent = (0..WRITERS).map(|_| Vec::new()).collect();
        Self { dir, was_ready: false, people: Vec::new(), rooms: Vec::new(), sent, history: HashMap::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn accepted(&self) -> usize {
        self.sent.iter().flatten().filter(|sent| sent.accepted.is_some()).count()
    }

    /// What servers have said on standard error.
    fn said(&self) -> String {
        std::fs::read_to_string(self.path("said")).unwrap_or_default()
    }

    fn command(&self, data: &Path) -> Command {
        let said = std::fs::File::options().create(true).append(true).open(self.path("said")).unwrap();
        let mut command = common::command(data);
        command.arg("--no-rate-limits").stderr(Stdio::from(said));
        command
    }

    /// When the power fails next: mostly under load, now and then at the start, while files are made, or at a stop.
    fn any_end(&self, random: &mut Random) -> End {
        match random.below(8) {
            0..4 if !self.was_ready => End::AtCall(1 + random.below(150)),
            0 => End::AtCall(1 + random.below(250)),
            1 => End::AtStop(Duration::from_millis(200 + random.below(800)), Duration::from_millis(random.below(300))),
            _ => End::AtCall(200 + random.below(4_000)),
        }
    }

    /// Serves under load until the power fails, and cuts the directory to what could be left. From that call on the disk
    /// lies about syncing.
    async fn run_until_cut(&mut self, end: End, lies: Option<u64>, random: &mut Random) -> Result<Cut> {
        let beside = self.path("beside");
        let _ = std::fs::remove_dir_all(&beside);
        std::fs::create_dir(&beside)?;
        let mut command = self.command(&self.path("data"));
        command
            .env("LD_PRELOAD", shim())
            .env("POWER_SHIM_DATA", self.path("data"))
            .env("POWER_SHIM_JOURNAL", &beside)
            .env("POWER_SHIM_CUT", if let End::AtCall(call) = end { call } else { 0 }.to_string())
            .env("POWER_SHIM_LIES", lies.unwrap_or(0).to_string());
        let mut server = Running::start(command).await?;
        let mut load = JoinSet::new();
        if let Some(address) = server.address {
            self.was_ready = true;
            self.people.iter_mut().for_each(|person| person.api.address = address);
            // Everything may end at any moment; what was promised before is kept.
            if self.settle_in(address).await.is_ok() {
                for (number, sent) in self.sent.iter_mut().enumerate() {
                    let person = self.people[number % PEOPLE].clone();
                    let room = self.rooms[number % ROOMS].clone();
                    let seq = self.history.get(&room).map_or(0, Vec::len);
                    let writer =
                        Writer { person, room, seq, sent: std::mem::take(sent), random: Random(random.next()) };
                    load.spawn(async move { (number, writer.run().await) });
                }
            }
        }
        let status = match end {
            End::AtCall(_) => server.end(LONGEST_RUN).await?,
            End::AtStop(after, later) => {
                sleep(after).await;
                server.stop();
                server.end(later).await?
            }
        };
        while let Some(ended) = timeout(PATIENCE, load.join_next()).await.context("a writer goes on")? {
            let (number, sent) = ended?;
            self.sent[number] = sent?;
        }
        let stopped = matches!(end, End::AtStop(..)) && status.success();
        ensure!(stopped || status.signal() == Some(9), "the server ended by itself, {status}: {}", self.said());
        Ok(disk::cut(&self.path("data"), &beside, random))
    }

    /// Makes the people and rooms that are not there yet.
    async fn settle_in(&mut self, address: SocketAddr) -> Result<()> {
        while self.people.len() < PEOPLE {
            // Unheard, the name may be taken.
            let name = format!("p{}", &new_id().replace('-', "")[4..28]);
            self.people.push(Api::new(address).sign_up(&name).await?);
        }
        while self.rooms.len() < ROOMS {
            let others: Vec<&Person> = self.people[1..].iter().collect();
            let room = self.people[0].create_room(json!({"name": "Power"}), &others).await?;
            self.rooms.push(room);
        }
        Ok(())
    }

    /// Whether everything that was promised is there, by the files and by a server on a copy of them.
    async fn judge(&mut self) -> Result<()> {
        let copy = self.copy()?;
        for name in ["log.db", "store.db"] {
            let file = copy.path().join(name);
            ensure!(file.exists() || !self.was_ready, "{name} was lost");
            if file.exists() {
                integrity(&file).with_context(|| format!("integrity of {name}"))?;
            }
        }
        if self.was_ready {
            verify(copy.path())?;
        }
        let copy = self.copy()?;
        let mut server = Running::start(self.command(copy.path())).await?;
        let address = server.address.context("it does not start again")?;
        let mut events = 0;
        for person in &self.people {
            let me = Api { address, ..person.api.clone() }.get("/v1/me").await?.expect(200).context("an account")?;
            ensure!(me["id"] == person.id, "{me} in place of {}", person.id);
        }
        if let Some(reader) = self.people.first() {
            let reader = Api { address, ..reader.api.clone() };
            for room in self.rooms.clone() {
                let history = read(&reader, &room).await.with_context(|| format!("room {room}"))?;
                self.compare(&room, &history)?;
                events += history.len();
                self.history.insert(room, history);
            }
        }
        server.stop();
        ensure!(server.end(PATIENCE).await?.success(), "it does not stop");
        // Now the archive has everything.
        let said = verify(copy.path())?;
        let (rooms, found) = counts(&said).with_context(|| format!("no counts in {said:?}"))?;
        // A room of which nobody has heard may be there as well.
        ensure!(found >= events && rooms >= self.rooms.len(), "{said:?}, but history has {events} events");
        Ok(())
    }

    fn compare(&self, room: &str, history: &[String]) -> Result<()> {
        let before = self.history.get(room).map_or(&[][..], Vec::as_slice);
        ensure!(history.starts_with(before), "history up to seq {} has changed", before.len());
        let mut texts = HashSet::new();
        for text in history.iter().filter(|text| !text.is_empty()) {
            ensure!(texts.insert(text), "{} is there twice", id_of(text));
        }
        let mut known = HashSet::new();
        for sent in self.sent.iter().skip(self.rooms.iter().position(|id| id == room).unwrap()).step_by(ROOMS).flatten()
        {
            known.insert(&sent.text);
            let Some(seq) = sent.accepted else { continue };
            let found = history.get(seq as usize - 1).map(String::as_str);
            ensure!(
                found == Some(&sent.text),
                "message {} was accepted as seq {seq} of {}, and is lost: found {:?}",
                sent.id,
                history.len(),
                found.map(id_of)
            );
        }
        match texts.iter().find(|text| !known.contains(*text)) {
            Some(text) => bail!("{} was never sent", id_of(text)),
            None => Ok(()),
        }
    }

    fn copy(&self) -> Result<TempDir> {
        let copy = tempfile::tempdir_in(self.dir.path())?;
        for entry in std::fs::read_dir(self.path("data"))? {
            let entry = entry?;
            std::fs::copy(entry.path(), copy.path().join(entry.file_name()))?;
        }
        Ok(copy)
    }
}

/// The beginning of a text, which is its id.
fn id_of(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

/// A room's whole history: the text of each seq from 1.
async fn read(reader: &Api, room: &str) -> Result<Vec<String>> {
    let mut all = Vec::new();
    loop {
        let page =
            reader.get(&format!("/v1/rooms/{room}/messages?after={}&limit=100", all.len())).await?.expect(200)?;
        let items = page["items"].as_array().context("items")?;
        for item in items {
            let seq = all.len() as u64 + 1;
            ensure!(item["seq"] == seq, "expected seq {seq}, found {}", item["seq"]);
            all.push(item["content"]["body"].as_str().unwrap_or_default().to_owned());
        }
        if items.is_empty() {
            ensure!(
                page["head_seq"] == all.len() as u64,
                "history ends at {}, head_seq is {}",
                all.len(),
                page["head_seq"]
            );
            return Ok(all);
        }
    }
}

fn integrity(file: &Path) -> Result<()> {
    let said: String = rusqlite::Connection::open(file)?.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
    ensure!(said == "ok", "{said}");
    Ok(())
}

/// What `posthaste admin verify` says of a directory, if it is clean.
fn verify(data: &Path) -> Result<String> {
    let output =
        Command::new(env!("CARGO_BIN_EXE_posthaste")).args(["admin", "verify", "--data"]).arg(data).output()?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "verify: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(said)
}

/// Rooms and events of "clean: R rooms, E events".
fn counts(said: &str) -> Option<(usize, usize)> {
    let (rooms, events) = said.trim().strip_prefix("clean: ")?.strip_suffix(" events")?.split_once(" rooms, ")?;
    Some((rooms.parse().ok()?, events.parse().ok()?))
}

/// Someone who sends into one room until the connection ends.
struct Writer {
    person: Person,
    room: String,
    /// The last seq that they hold.
    seq: usize,
    sent: Vec<Sent>,
    random: Random,
}

impl Writer {
    /// What was sent before and now. An error is a broken promise; that the connection ends is none.
    async fn run(mut self) -> Result<Vec<Sent>> {
        match self.send().await {
            Err(error) if error.is::<Broken>() => Err(error),
            _ => Ok(self.sent),
        }
    }

    async fn send(&mut self) -> Result<()> {
        let hello = json!({"rooms": [self.room], "resume": {self.room.as_str(): self.seq}});
        let (mut wire, _) = self.person.connect(hello).await?;
        // What nobody has heard of goes first, under the same id.
        let mut under_way: Vec<usize> = (0..self.sent.len()).filter(|n| self.sent[*n].accepted.is_none()).collect();
        for number in &under_way {
            wire.resend_message(&self.room, &self.sent[*number].id, &self.sent[*number].text).await?;
        }
        loop {
            while under_way.len() < UNDER_WAY {
                let id = new_id();
                let length = if self.random.below(16) == 0 { 8_000 } else { self.random.below(300) };
                let text = format!("{id} {}", "x".repeat(length as usize));
                wire.resend_message(&self.room, &id, &text).await?;
                under_way.push(self.sent.len());
                self.sent.push(Sent { id, text, accepted: None });
            }
            let frame: Value = wire.next().await?;
            let Some(id) = frame["client_msg_id"].as_str() else { continue };
            let Some(place) = under_way.iter().position(|number| self.sent[*number].id == id) else { continue };
            match frame["type"].as_str() {
                Some("accepted") => {
                    let seq = frame["seq"].as_u64();
                    ensure!(seq.is_some_and(|seq| seq > 0), Broken(frame));
                    self.sent[under_way.remove(place)].accepted = seq;
                }
                // Nobody knows: it is sent again after the next start.
                Some("rejected") if frame["code"] == "unavailable" => drop(under_way.remove(place)),
                Some("rejected") => bail!(Broken(frame)),
                _ => {}
            }
        }
    }
}

/// What a server must not say.
#[derive(Debug, thiserror::Error)]
#[error("it said {0}")]
struct Broken(Value);

/// A server that may end at any moment.
struct Running {
    process: Child,
    /// `None`: it ended before it was ready.
    address: Option<SocketAddr>,
}

impl Running {
    async fn start(mut command: Command) -> Result<Self> {
        let mut process = command.spawn()?;
        let stdout = process.stdout.take().context("standard output")?;
        let mut this = Self { process, address: None };
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line = timeout(PATIENCE, line).await.context("it does not become ready")???;
        if let Some((_, rest)) = line.split_once("://") {
            this.address = Some(rest.split(' ').next().unwrap_or_default().parse()?);
        }
        Ok(this)
    }

    fn stop(&self) {
        // It may have ended.
        let _ = kill_process(Pid::from_child(&self.process), Signal::TERM);
    }

    /// Waits for its end; what has not ended in time is killed.
    async fn end(&mut self, within: Duration) -> Result<std::process::ExitStatus> {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > until {
                self.process.kill()?;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Whatever a failed test leaves.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The shim, built once.
fn shim() -> &'static Path {
    static SHIM: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    SHIM.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shim/power.c");
        let shim = Path::new(env!("CARGO_TARGET_TMPDIR")).join("power.so");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-o"]).arg(&shim).arg(source).arg("-ldl");
        assert!(cc.status().unwrap().success(), "cc can't build the shim");
        shim
    })
}
