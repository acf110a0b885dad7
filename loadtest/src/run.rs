//! A run from its beginning to its verdict: people, rooms, sockets, load, settling, audit.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use checker::{ClientId, Listed, Reader, Step, Verdict};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use schemas::{RoomId, Seq, UserId};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, sleep};

use crate::api::{Api, Login};
use crate::body;
use crate::book::Book;
use crate::client::{Client, Due, Phase, Shared, read_page};
use crate::clock::{self, Timeline};
use crate::http::{Http, Target};
use crate::keys::Issuer;
use crate::marks::{self, Marks};
use crate::plan::{self, Scenario};
use crate::progress::Progress;
use crate::report::{Outcome, Report, Storm};
use crate::setup::{self, Room, User};
use checker::frame::text_digest;

/// Sockets that connect at a time; all at once would be a storm, which is a scenario of its own.
const CONNECTING_MAX: usize = 64;

/// The same in a storm: what one address may well open at once.
const STORM_CONNECTING_MAX: usize = 1_024;

/// All sockets must be live within this, and a thousandth of it more for each.
const CONNECT_PATIENCE: Duration = Duration::from_secs(60);

/// After the load, everything must have its outcome and have arrived: at most this without another accept or delivery,
/// and no longer than the load took beyond it.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);

/// What still has no outcome then is not tried again; a copy of it on its way is void after this (a command's deadline
/// and a little).
const VOID_AFTER: Duration = Duration::from_secs(12);

/// A storm must be over within this.
const STORM_PATIENCE: Duration = Duration::from_secs(120);

/// Messages that each room gets while everyone is away in a storm.
const STORM_MISSED: usize = 5;

/// Sends that wait in a client's queue while it is cut off; more are dropped, and counted.
const QUEUE: usize = 256;

/// How often the run looks how things stand.
const LOOK: Duration = Duration::from_millis(100);

/// Newest events that someone looks at who looks in passing.
const LOOK_EVENTS: u64 = 5;

/// Patience with receipts to be known: they are paced, in large rooms by seconds.
const RECEIPTS_PATIENCE: Duration = Duration::from_secs(30);

/// Rooms that are audited at a time.
const AUDITS: usize = 8;

/// Members whose view of a room's history is audited.
const AUDITORS: usize = 2;

/// What to run.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// The server, as http://host:port or https://host:port
    #[arg(long)]
    pub target: String,
    /// Certificate authorities to trust in place of the system's (PEM)
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// What kind of load
    #[arg(long, value_enum, default_value = "rooms")]
    pub scenario: Scenario,
    /// How many users, each with one socket
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub users: u32,
    /// How many rooms (rooms, storm)
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rooms: u32,
    /// Sends per second, over all users
    #[arg(long, default_value_t = 100.0, value_parser = rate)]
    pub rate: f64,
    /// How long to send, as 500ms, 30s or 2m
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub duration: Duration,
    /// Check every promise; exit 1 if one is broken
    #[arg(long)]
    pub verify: bool,
    /// Write the results as JSON
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Write a report with plots into this directory
    #[arg(long)]
    pub report: Option<PathBuf>,
    /// Lines `<unix ms> <what happened>` that another program writes while the load runs: for each the report tells the
    /// longest time without an accept, and the slowest accept and delivery, until the next. Made when the load begins
    #[arg(long, value_name = "FILE")]
    pub marks: Option<PathBuf>,
    /// Sign tokens as this issuer in place of signing users up
    #[arg(long, requires = "issuer_key")]
    pub issuer: Option<String>,
    /// The issuer's private key, see `loadtest keygen`
    #[arg(long, requires = "issuer")]
    pub issuer_key: Option<PathBuf>,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(rate),
        _ => Err("a number above 0, at most a million".into()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let factor = match unit {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("a number and ms, s, m or h".into()),
    };
    let number: f64 = text[..text.len() - unit.len()].parse().map_err(|_| "a number and ms, s, m or h")?;
    Duration::try_from_secs_f64(number * factor).map_err(|error| error.to_string())
}

/// The parts of a run that is set up.
struct Run {
    options: Options,
    users: Vec<User>,
    rooms: Vec<Room>,
    shared: Arc<Shared>,
    queues: Vec<mpsc::Sender<Due>>,
    phase: watch::Sender<Phase>,
    progress: Progress,
}

/// Runs, and says what came of it.
///
/// # Errors
/// When it could not run: exit 2.
pub async fn run(options: Options) -> Result<Report> {
    let issuer = match (&options.issuer, &options.issuer_key) {
        (Some(name), Some(path)) => Some(Arc::new(Issuer::read(name.clone(), path)?)),
        _ => None,
    };
    // Better now than after the load; it is read for good at the end.
    options.marks.as_deref().map(marks::read).transpose()?;
    let target = Target::find(&options.target, options.ca.as_deref()).await?;
    let progress = Progress::new();
    let api = Api { http: Http::new(target.clone()) };
    let (user_count, room_count) = (options.users as usize, options.rooms as usize);
    let users = setup::users(&api, issuer, user_count, &progress).await?;
    let plan = plan::rooms(options.scenario, user_count, room_count);
    let rooms = setup::rooms(&api, &users, plan, options.scenario, &progress).await?;
    let (locals, memberships) = setup::memberships(user_count, &rooms);
    let book = Book::new(options.verify, rooms.len(), memberships)?;
    let connecting = if options.scenario == Scenario::Storm { STORM_CONNECTING_MAX } else { CONNECTING_MAX };
    let timeline = Timeline::begin();
    let shared = Arc::new(Shared { target, api, book, timeline, connecting: Semaphore::new(connecting) });
    let (phase, phases) = watch::channel(Phase::On);
    let mut queues = Vec::with_capacity(users.len());
    for (number, (user, rooms)) in users.iter().zip(locals).enumerate() {
        let (queue, due) = mpsc::channel(QUEUE);
        let id = ClientId(u32::try_from(number)?);
        let (login, shared) = (Arc::clone(&user.login), Arc::clone(&shared));
        let client = Client::new(id, user.id, user.device, login, rooms, shared, due, phases.clone());
        tokio::spawn(client.run());
        queues.push(queue);
    }
    drop(phases);
    let run = Run { options, users, rooms, shared, queues, phase, progress };
    run.whole().await
}

impl Run {
    async fn whole(self) -> Result<Report> {
        self.connected().await?;
        let looking = self.options.verify.then(|| tokio::spawn(look_around(self.places(), Arc::clone(&self.shared))));
        let mut storm = None;
        self.options.marks.as_deref().map(marks::make).transpose()?;
        let began_us = self.shared.timeline.micros();
        match self.options.scenario {
            Scenario::Idle => self.idle().await?,
            Scenario::Storm => storm = Some(self.storm().await?),
            Scenario::Rooms | Scenario::Fanout | Scenario::Pairs => tokio::task::block_in_place(|| self.load())?,
        }
        let load_s = seconds(self.shared.timeline.micros() - began_us);
        let settled = self.settled().await?;
        let live = self.shared.book.open().live;
        if !settled {
            // What is still accepted is heard by nobody then: a server that is far behind may commit after a page was read,
            // which is no loss, and what was heard before must be in it (I8).
            self.drop_all().await?;
        }
        if let Some(looking) = looking {
            looking.abort();
        }
        if settled && self.options.verify {
            self.tell_again().await?;
        }
        let verdict = if self.options.verify { Some(self.audit().await?) } else { None };
        self.progress.end();
        let marks = self.options.marks.as_deref().map(marks::read).unwrap_or_else(|| Ok(Marks::default()));
        // A whole run is not thrown away for that.
        let marks = marks.unwrap_or_else(|error| Marks { wrong: vec![format!("{error:#}")], ..Marks::default() });
        let book = self.shared.book.open();
        let clean = verdict.as_ref().is_none_or(Verdict::is_clean);
        if clean && live < self.users.len() {
            let trouble = book.trouble.clone().unwrap_or_default();
            bail!("at the end {live} of {} sockets were live: {trouble}", self.users.len());
        }
        if clean && book.counts.sent > 0 && book.counts.accepted == 0 {
            bail!("nothing was accepted, so nothing was tested: {}", book.trouble.clone().unwrap_or_default());
        }
        let outcome = Outcome { rooms: self.rooms.len(), began_us, load_s, settled, storm, verdict, marks };
        Ok(Report::new(&self.options, self.shared.timeline, &book, outcome))
    }

    /// Fails where a client was told to stay away.
    fn go_on(&self) -> Result<()> {
        match &self.shared.book.open().fatal {
            Some(fatal) => bail!("{fatal}"),
            None => Ok(()),
        }
    }

    /// Waits until all sockets are live.
    async fn connected(&self) -> Result<()> {
        let total = self.users.len();
        self.progress.begin("connecting", total);
        let end = Instant::now() + CONNECT_PATIENCE + CONNECT_PATIENCE / 1000 * self.options.users;
        loop {
            self.go_on()?;
            let (live, trouble) = {
                let book = self.shared.book.open();
                (book.live, book.trouble.clone())
            };
            self.progress.at(live as u64, String::new);
            if live == total {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("only {live} of {total} sockets are live: {}", trouble.unwrap_or_default());
            }
            sleep(LOOK).await;
        }
    }

    /// Each member of each room: the user's number and the room's.
    fn memberships(&self) -> Vec<(usize, usize)> {
        let rooms = self.rooms.iter().enumerate();
        rooms.flat_map(|(room, of)| of.members.iter().map(move |user| (*user, room))).collect()
    }

    fn places(&self) -> Vec<Place> {
        let place = |(user, number): (usize, usize)| {
            let (user, room) = (&self.users[user], &self.rooms[number]);
            Place { user: user.id, login: Arc::clone(&user.login), room: room.id, number }
        };
        self.memberships().into_iter().map(place).collect()
    }

    /// Everyone tells once more how far everything has come, for a server that was killed may have lost it; then each
    /// one's list of rooms must show it, and all of the rooms.
    async fn tell_again(&self) -> Result<()> {
        self.progress.begin("receipts", self.users.len());
        self.shared.book.open().note(|| Step::Calm);
        self.phase.send_replace(Phase::Telling);
        let rooms: HashMap<RoomId, usize> = self.rooms.iter().enumerate().map(|(at, room)| (room.id, at)).collect();
        let end = Instant::now() + RECEIPTS_PATIENCE;
        let lists = self.users.iter().map(|user| async {
            loop {
                let listed = list_rooms(&self.shared, user.id, &user.login, &rooms).await?;
                let told = {
                    let book = self.shared.book.open();
                    listed.iter().all(|listed| listed.delivered_seq >= book.heads[rooms[&listed.room]])
                };
                if told || Instant::now() > end {
                    self.progress.step();
                    return anyhow::Ok(());
                }
                sleep(LOOK).await;
            }
        });
        let lists = stream::iter(lists).buffer_unordered(AUDITS);
        lists.try_collect::<()>().await.context("can't read the lists of rooms")
    }

    /// The open loop: a fixed schedule, whatever the server does. Latency counts from the scheduled time, so this waits
    /// as finely as the system can, in a thread of its own; the runtime's timers are rounded up to a millisecond.
    fn load(&self) -> Result<()> {
        let places = self.memberships();
        let total = count(self.options.duration.as_secs_f64() * self.options.rate);
        self.progress.begin("sending", usize::try_from(total)?);
        let timeline = self.shared.timeline;
        // Not all at the first instant: the sender needs a moment to be there.
        let first = timeline.micros() + 10_000;
        let mut second = first + 1_000_000;
        let mut picks = u64::from_le_bytes(clock::random()) | 1;
        for number in 0..total {
            let scheduled_us = first + count(number_as_f64(number) * 1e6 / self.options.rate);
            std::thread::sleep(Duration::from_micros(scheduled_us.saturating_sub(timeline.micros())));
            if scheduled_us >= second {
                self.turn(second - first, number);
                second += 1_000_000;
                self.go_on()?;
            }
            // xorshift64: which member writes need not be unpredictable.
            picks ^= picks << 13;
            picks ^= picks >> 7;
            picks ^= picks << 17;
            let (user, room) = places[usize::try_from(picks % places.len() as u64)?];
            let due = Due { room: self.rooms[room].id, scheduled_us };
            let mut book = self.shared.book.open();
            book.counts.scheduled += 1;
            match self.queues[user].try_send(due) {
                Ok(()) => book.waits.due(scheduled_us),
                Err(_) => book.counts.overflowed += 1,
            }
        }
        self.turn(timeline.micros() - first, total);
        Ok(())
    }

    fn turn(&self, at_us: u64, number: u64) {
        let mut book = self.shared.book.open();
        book.turn(seconds(at_us));
        let (counts, live) = (&book.counts, book.live);
        let message = || {
            format!(
                "accepted {} delivered {} live {live} reconnects {}",
                counts.accepted, counts.delivered, counts.reconnects
            )
        };
        self.progress.at(number, message);
    }

    async fn idle(&self) -> Result<()> {
        let duration = self.options.duration;
        self.progress.begin("idle", usize::try_from(duration.as_secs())?);
        let begin = Instant::now();
        while begin.elapsed() < duration {
            self.go_on()?;
            sleep(LOOK.min(duration)).await;
            let live = self.shared.book.open().live;
            self.progress.at(begin.elapsed().as_secs(), || format!("live {live}"));
        }
        Ok(())
    }

    /// Drops all sockets at once, has each room miss some messages, and lets all come back at once.
    async fn storm(&self) -> Result<Storm> {
        self.settled().await?;
        self.shared.book.open().connect.reset();
        self.drop_all().await?;
        self.progress.begin("missing", self.rooms.len() * STORM_MISSED);
        let posts = self.rooms.iter().enumerate().flat_map(|post| std::iter::repeat_n(post, STORM_MISSED));
        let posts = stream::iter(posts).map(|(number, room)| self.post(number, room));
        posts.buffer_unordered(AUDITS).try_collect::<()>().await?;
        let begin = Instant::now();
        self.phase.send_replace(Phase::On);
        let total = self.users.len();
        self.until("coming back", |book| (book.live == total, book.live)).await?;
        let live = begin.elapsed();
        self.until("catching up", |book| (book.is_settled() && book.live == total, book.live)).await?;
        Ok(Storm { live_s: live.as_secs_f64(), complete_s: begin.elapsed().as_secs_f64() })
    }

    /// Has all sockets dropped, and waits until they are.
    async fn drop_all(&self) -> Result<()> {
        self.phase.send_replace(Phase::Away);
        self.until("dropping", |book| (book.open == 0, self.users.len() - book.open)).await
    }

    async fn until(&self, what: &'static str, look: impl Fn(&crate::book::Pages) -> (bool, usize)) -> Result<()> {
        self.progress.begin(what, self.users.len());
        let end = Instant::now() + STORM_PATIENCE;
        loop {
            self.go_on()?;
            let (done, position) = look(&self.shared.book.open());
            self.progress.at(position as u64, String::new);
            if done {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("{what} took longer than {} s", STORM_PATIENCE.as_secs());
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// The owner writes by REST, for no socket is open.
    async fn post(&self, number: usize, room: &Room) -> Result<()> {
        let owner = &self.users[room.members[0]];
        let (id, scheduled_us) = (clock::command_id(), self.shared.timeline.micros());
        let text = body::text(id, scheduled_us);
        {
            let mut book = self.shared.book.open();
            book.counts.scheduled += 1;
            book.counts.sent += 1;
            book.waits.due(scheduled_us);
            let (user, client, room, body) = (owner.id, None, room.id, text_digest(&text));
            book.note(|| Step::Sending { user, client, room, client_msg_id: id, body });
        }
        let (posted, duplicate) = self.shared.api.post(&owner.login, room.id, id, &text).await?;
        let mut book = self.shared.book.open();
        book.accepted(scheduled_us, self.shared.timeline.micros());
        book.head(number, posted.seq);
        book.note(|| Step::Accepted {
            user: owner.id,
            client: None,
            room: room.id,
            client_msg_id: id,
            seq: posted.seq,
            id: posted.id,
            at: checker::digest(&[posted.sent_at.as_bytes()]),
            duplicate,
        });
        Ok(())
    }

    /// Waits until everything has its outcome and has arrived. False where patience ran out: then nothing is tried
    /// again any more, and what may still be on its way has become void.
    async fn settled(&self) -> Result<bool> {
        self.progress.begin("settling", 0);
        let latest = Instant::now() + SETTLE_PATIENCE + self.options.duration;
        let (mut heard, mut end) = (0, latest);
        loop {
            self.go_on()?;
            {
                let book = self.shared.book.open();
                if book.is_settled() && book.live == self.users.len() {
                    return Ok(true);
                }
                let (owed, behind, live) = (book.waits.owed(), book.behind(), book.live);
                self.progress.at(0, || format!("no outcome {owed} behind {behind} live {live}"));
                let now_heard = book.counts.accepted + book.counts.delivered;
                if now_heard > std::mem::replace(&mut heard, now_heard) {
                    end = latest.min(Instant::now() + SETTLE_PATIENCE);
                }
            }
            if Instant::now() > end {
                self.shared.book.open().waits.give_up(self.shared.timeline.micros());
                self.phase.send_replace(Phase::Quiet);
                sleep(VOID_AFTER).await;
                return Ok(false);
            }
            sleep(LOOK).await;
        }
    }

    /// Reads the whole history of every room, as two of its members see it, and judges.
    async fn audit(&self) -> Result<Verdict> {
        self.progress.begin("verifying", self.rooms.len());
        let audits = self.rooms.iter().map(|room| async move {
            let last = room.members.len() - 1;
            let readers = if last == 0 { vec![0] } else { vec![0, last] };
            for reader in readers.into_iter().take(AUDITORS) {
                let user = &self.users[room.members[reader]];
                self.audit_room(user, &user.login, room).await?;
            }
            self.progress.step();
            anyhow::Ok(())
        });
        let audits = stream::iter(audits).buffer_unordered(AUDITS);
        audits.try_collect::<()>().await.context("can't read history")?;
        let verdict = self.shared.book.open().judge();
        verdict.context("nothing was recorded")
    }

    async fn audit_room(&self, user: &User, login: &Login, room: &Room) -> Result<()> {
        let mut after = Seq::ZERO;
        loop {
            let reader = (user.id, Reader::Audit(user.id));
            let (last, head) = read_page(&self.shared, login, reader, room.id, after).await?;
            // A page that brings nothing on is a breach that the checker has noted.
            if last >= head || last <= after {
                return Ok(());
            }
            after = last;
        }
    }
}

/// Someone in a room.
struct Place {
    user: UserId,
    login: Arc<Login>,
    room: RoomId,
    number: usize,
}

/// Now and then someone looks at the end of a room or at their list of rooms while all is under way, also while servers
/// are killed: what they are shown, if they are shown anything, must hold what they knew before.
async fn look_around(places: Vec<Place>, shared: Arc<Shared>) {
    let rooms: HashMap<RoomId, usize> = places.iter().map(|place| (place.room, place.number)).collect();
    loop {
        sleep(LOOK).await;
        let Some(place) = places.get(usize::try_from(clock::below(places.len() as u64)).unwrap_or(0)) else { return };
        let after = Seq(shared.book.open().heads[place.number].0.saturating_sub(LOOK_EVENTS));
        let reader = (place.user, Reader::Look(place.user));
        // A list of several pages may change between them.
        let lists = rooms.len() <= schemas::limits::PAGE_MAX;
        let looked = match clock::below(2) {
            1 if lists => list_rooms(&shared, place.user, &place.login, &rooms).await.map(drop),
            _ => read_page(&shared, &place.login, reader, place.room, after).await.map(drop),
        };
        if let Err(error) = looked {
            shared.book.open().trouble = Some(format!("{error:#}"));
        }
    }
}

/// Reads a person's list of rooms into the record: of those of this run.
async fn list_rooms(
    shared: &Shared,
    user: UserId,
    login: &Login,
    rooms: &HashMap<RoomId, usize>,
) -> Result<Vec<Listed>> {
    let ask = shared.book.open().ask(user);
    let mut listed = shared.api.rooms(login).await?;
    listed.retain(|listed| rooms.contains_key(&listed.room));
    shared.book.open().note(|| Step::Rooms { ask, user, rooms: listed.clone() });
    Ok(listed)
}

#[expect(clippy::cast_precision_loss, reason = "shown to people")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "a count of sends is far below 2^52")]
fn number_as_f64(number: u64) -> f64 {
    number as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "of a checked rate: positive and bounded")]
fn count(number: f64) -> u64 {
    number as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert!(duration("soon").is_err() && duration("-3s").is_err() && duration("").is_err());
    }
}
