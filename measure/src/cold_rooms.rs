//! Rooms that exist and that nobody uses, and an ingest that takes their partitions over: how long after the broker has
//! assigned them until it serves, and what memory it takes. The processes are `posthaste ingest` as an operator runs it; each
//! round starts a new one, which gets half of the partitions, and kills (-9) the one before it. Commands for rooms that have
//! rested come all the while.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use crate::surroundings::SystemClock;
use anyhow::{Context, ensure};
use clap::Args;
use engines::cassandra::Cassandra;
use engines::kafka::Kafka;
use engines::ports;
use engines::process::Process;
use parking_lot::Mutex;
use schemas::limits::COMMAND_DEADLINE;
use schemas::{Clock as _, Event, Partition, Record as _, Timestamp, Topic};
use serde_json::Value;
use stream::{Log, Polled};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::commands::{Maker, Place};
use crate::ground;
use crate::report::{Table, median, number, progress};

/// As `make cluster` has it.
const PARTITIONS: u32 = 8;
/// Between two commands for a partition.
const PROBE_EVERY: Duration = Duration::from_millis(200);
/// After the first commands were served, before memory is looked at.
const SETTLE: Duration = Duration::from_secs(2);
/// Whatever is waited for here comes within this time, or something is wrong.
const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Rooms over which a tail is spread.
const TAIL_ROOMS: usize = 100;

/// What is run.
#[derive(Args)]
pub struct Options {
    /// Numbers of rooms that nobody uses.
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 100_000])]
    rooms: Vec<usize>,
    /// Take-overs with each.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// With the last number of rooms, take-overs also with so many events that the archive lacks; 0: none.
    #[arg(long, default_value_t = 50_000)]
    tail: usize,
}

/// One take-over, times in ms.
struct Round {
    /// From the kill until the broker had assigned the partitions to the other one.
    rebalance: f64,
    /// From there until the last of them was ready.
    ready: f64,
    /// From there until a reader of committed records had the first event that was made after it.
    first: f64,
    /// The same for the partition that was last to make one.
    last: f64,
    /// Events that the archive lacked of these partitions.
    unarchived: f64,
    /// Memory of the process before and after, MiB.
    before: f64,
    after: f64,
}

/// Measures.
pub async fn measure(options: Options) -> anyhow::Result<Table> {
    let (kafka, cassandra) = tokio::try_join!(ground::kafka(), ground::cassandra())?;
    let columns = [
        "first ms",
        "first max",
        "all ms",
        "all max",
        "ready ms",
        "rebalance ms",
        "unarchived",
        "MiB before",
        "MiB after",
        "log events",
    ];
    let mut table = Table::new("cold rooms", &columns);
    for (nth, rooms) in options.rooms.iter().enumerate() {
        let begun = Instant::now();
        let mut trial = Trial::new(&kafka, &cassandra, *rooms).await?;
        table.note(format!("{rooms} rooms were made, decided and archived in {:.0} s", begun.elapsed().as_secs_f64()));
        trial.rounds(&format!("{rooms} rooms"), options.rounds, &mut table).await?;
        if options.tail > 0 && nth + 1 == options.rooms.len() {
            trial.make_tail(options.tail).await?;
            trial.rounds(&format!("{rooms} rooms, a tail"), options.rounds, &mut table).await?;
        }
        table.note(format!("{rooms} rooms: {} commands were rejected", trial.watched.lock().rejected));
    }
    table.note(format!(
        "medians of {} take-overs, from the assignment on: until a reader has the first event of any partition (goal 2,000), \
         of each; all partitions ready",
        options.rounds
    ));
    table.note("there is no snapshot and no compaction: a take-over reads what the archive lacks, a room its rows when asked for");
    Ok(table)
}

/// What a reader of committed events has seen.
#[derive(Default)]
struct Watched {
    /// When events came that a command had made, of each partition, ms since 1970.
    accepted: BTreeMap<Partition, Vec<i64>>,
    rejected: u64,
}

impl Watched {
    /// When the first event came of each of these partitions at or after a time, once all have made one.
    fn firsts(&self, of: &BTreeMap<Partition, (Timestamp, u64)>, from: Timestamp) -> Option<Vec<i64>> {
        let first = |partition| self.accepted.get(partition)?.iter().find(|at| **at >= from.0).copied();
        of.keys().map(first).collect()
    }
}

/// A number of cold rooms, with all that runs on them.
struct Trial {
    log: Arc<dyn Log>,
    places: Vec<Place>,
    watched: Arc<Mutex<Watched>>,
    clock: SystemClock,
    program: String,
    settings: String,
    dir: tempfile::TempDir,
    started: usize,
    /// Who owns all partitions.
    owner: Option<Ingest>,
    /// Ends with this.
    _beside: JoinSet<anyhow::Result<()>>,
}

impl Trial {
    async fn new(kafka: &Kafka, cassandra: &Cassandra, rooms: usize) -> anyhow::Result<Self> {
        let (prefix, keyspace) = (format!("cold-{rooms}."), format!("cold_{rooms}"));
        let log = ground::log(&kafka.bootstrap(), &prefix, PARTITIONS).await?;
        let store = ground::store(cassandra, &keyspace).await?;
        let places = ground::fill(&log, &store, rooms, 1).await?;
        let settings = format!(
            "partitions = {PARTITIONS}
log_format = \"json\"
[kafka]
bootstrap = \"{}\"
prefix = \"{prefix}\"
[cassandra]
contact_points = \"{}\"
keyspace = \"{keyspace}\"
",
            kafka.bootstrap(),
            cassandra.contact_points().join(",")
        );
        let watched: Arc<Mutex<Watched>> = Arc::default();
        let mut beside = JoinSet::new();
        beside.spawn(watch(log.clone(), watched.clone()));
        beside.spawn(probe(log.clone(), places.clone()));
        let (clock, dir, program) = (SystemClock::new(), tempfile::tempdir()?, ground::posthaste()?);
        let mut this =
            Self { log, places, watched, clock, program, settings, dir, started: 0, owner: None, _beside: beside };
        let owner = this.start()?;
        owner.until(|said| said.owned == PARTITIONS as usize && said.ready.len() == said.owned).await?;
        this.owner = Some(owner);
        Ok(this)
    }

    fn start(&mut self) -> anyhow::Result<Ingest> {
        self.started += 1;
        let name = format!("ingest-{}", self.started);
        let port = ports::free(1)?[0];
        let (settings, output) = (self.dir.path().join(format!("{name}.toml")), self.dir.path().join(&name));
        // Keys of the whole come before those of tables.
        fs::write(&settings, format!("admin_listen = \"127.0.0.1:{port}\"\n{}", self.settings))?;
        let arguments = ["ingest".to_owned(), "--config".to_owned(), settings.display().to_string()];
        Ok(Ingest { process: Mutex::new(Process::start(&name, &self.program, &arguments, &output)?), output })
    }

    async fn rounds(&mut self, name: &str, rounds: usize, table: &mut Table) -> anyhow::Result<()> {
        let bar = progress("take-overs", rounds as u64);
        let mut done = Vec::new();
        for _ in 0..rounds {
            done.push(self.round().await?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        let all = |of: fn(&Round) -> f64| done.iter().map(of).collect::<Vec<_>>();
        let of = |of: fn(&Round) -> f64| median(&all(of));
        let worst = |of: fn(&Round) -> f64| all(of).into_iter().fold(0.0, f64::max);
        let row = [
            of(|round| round.first),
            worst(|round| round.first),
            of(|round| round.last),
            worst(|round| round.last),
            of(|round| round.ready),
            of(|round| round.rebalance),
            of(|round| round.unarchived),
            of(|round| round.before),
            of(|round| round.after),
            number(ground::end(self.log.as_ref()).await?),
        ];
        table.row(name, row);
        Ok(())
    }

    async fn round(&mut self) -> anyhow::Result<Round> {
        let heir = self.start()?;
        let half = PARTITIONS as usize / 2;
        heir.until(|said| said.owned == half && said.ready.len() == half).await?;
        sleep(SETTLE).await;
        let before = heir.memory_mib()?;
        let mut owner = self.owner.take().context("nobody owns the partitions")?;
        owner.process.get_mut().kill();
        let killed = self.clock.now();
        let said = heir.until(|said| said.since(killed).len() == PARTITIONS as usize - half).await?;
        let taken = said.since(killed);
        let assigned = said.assigned.iter().find(|at| **at >= killed).context("nothing was assigned")?;
        let until = Instant::now() + PATIENCE;
        let firsts = loop {
            if let Some(firsts) = self.watched.lock().firsts(&taken, *assigned) {
                break firsts;
            }
            ensure!(Instant::now() < until, "a partition serves nobody: {}", heir.last_lines());
            sleep(LOOK_EVERY).await;
        };
        sleep(SETTLE).await;
        let after = heir.memory_mib()?;
        self.owner = Some(heir);
        #[expect(clippy::cast_precision_loss, reason = "a few seconds in ms")]
        let since = |at: Option<i64>, from: &Timestamp| (at.unwrap_or_default() - from.0) as f64;
        Ok(Round {
            rebalance: since(Some(assigned.0), &killed),
            ready: since(taken.values().map(|(at, _)| at.0).max(), assigned),
            first: since(firsts.iter().copied().min(), assigned),
            last: since(firsts.iter().copied().max(), assigned),
            unarchived: number(taken.values().map(|(_, unarchived)| unarchived).sum()),
            before,
            after,
        })
    }

    /// Has the owner decide this many messages, which no archiver takes.
    async fn make_tail(&self, count: usize) -> anyhow::Result<()> {
        let maker = Maker::new(PATIENCE);
        let before = ground::end(self.log.as_ref()).await?;
        let sends = self.places.iter().take(TAIL_ROOMS).cycle().take(count).map(|place| maker.send(*place));
        ground::append(self.log.as_ref(), sends.collect()).await?;
        let until = Instant::now() + PATIENCE;
        while ground::end(self.log.as_ref()).await? < before + count as u64 {
            ensure!(Instant::now() < until, "the tail was not decided within {PATIENCE:?}");
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

/// Sends to rooms that have rested, a message to each partition at a time.
async fn probe(log: Arc<dyn Log>, places: Vec<Place>) -> anyhow::Result<()> {
    let maker = Maker::new(COMMAND_DEADLINE);
    let mut of_partitions: BTreeMap<Partition, Vec<Place>> = BTreeMap::new();
    for place in places {
        of_partitions.entry(place.partition(PARTITIONS)).or_default().push(place);
    }
    let mut due = interval(PROBE_EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // From the end: a tail is in the first ones.
    for turn in 0.. {
        due.tick().await;
        for (partition, places) in &of_partitions {
            let place = places[places.len() - 1 - turn % places.len()];
            log.append(Topic::Commands, *partition, vec![maker.send(place)]).await?;
        }
    }
    Ok(())
}

/// Reads what is committed from here on.
async fn watch(log: Arc<dyn Log>, watched: Arc<Mutex<Watched>>) -> anyhow::Result<()> {
    let clock = SystemClock::new();
    let mut consumer = log.consumer("measure", &[Topic::Events]).await?;
    loop {
        match consumer.poll().await? {
            Polled::Assigned { partitions, .. } => {
                for partition in partitions {
                    consumer.seek(Topic::Events, partition, log.end(Topic::Events, partition).await?);
                }
            }
            Polled::Revoked(_) => {}
            Polled::Records(fetched) => {
                let now = clock.now();
                let mut watched = watched.lock();
                for fetched in fetched {
                    let events = fetched.records.iter().filter(|placed| Event::decode(&placed.record.value).is_ok());
                    let events = events.count();
                    watched.rejected += (fetched.records.len() - events) as u64;
                    let accepted = watched.accepted.entry(fetched.partition).or_default();
                    accepted.extend(std::iter::repeat_n(now.0, events));
                }
            }
        }
    }
}

/// A process of ingest.
struct Ingest {
    process: Mutex<Process>,
    output: PathBuf,
}

/// What an ingest has said of its partitions.
#[derive(Default)]
struct Said {
    /// When some were assigned.
    assigned: Vec<Timestamp>,
    /// How many it has.
    owned: usize,
    /// When each was ready, and how many events the archive lacked of it then.
    ready: BTreeMap<Partition, (Timestamp, u64)>,
}

impl Said {
    fn read(output: &Path) -> anyhow::Result<Self> {
        let mut said = Self::default();
        for line in fs::read_to_string(output)?.lines() {
            // The last one may still be written; some are for people.
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            let count = || line["partitions"].as_u64().and_then(|count| usize::try_from(count).ok());
            let at = || Timestamp::from_str(line["timestamp"].as_str().unwrap_or_default());
            match line["message"].as_str() {
                Some("assigned") => {
                    said.assigned.push(at()?);
                    said.owned += count().context("how many were assigned?")?;
                }
                Some("revoked") => said.owned -= count().context("how many were revoked?")?,
                Some("taken over") => {
                    let partition = line["partition"].as_str().context("which was taken over?")?.parse()?;
                    let unarchived = line["unarchived"].as_u64().context("what was unarchived?")?;
                    said.ready.insert(Partition(partition), (at()?, unarchived));
                }
                _ => {}
            }
        }
        Ok(said)
    }

    /// Those that have become ready since.
    fn since(&self, then: Timestamp) -> BTreeMap<Partition, (Timestamp, u64)> {
        self.ready.iter().filter(|(_, (at, _))| *at >= then).map(|(partition, ready)| (*partition, *ready)).collect()
    }
}

impl Ingest {
    async fn until(&self, is_so: impl Fn(&Said) -> bool) -> anyhow::Result<Said> {
        let until = Instant::now() + PATIENCE;
        loop {
            let said = Said::read(&self.output)?;
            if is_so(&said) {
                return Ok(said);
            }
            ensure!(self.process.lock().ended()?.is_none(), "an ingest has ended: {}", self.last_lines());
            ensure!(Instant::now() < until, "an ingest has not got its partitions: {}", self.last_lines());
            sleep(LOOK_EVERY).await;
        }
    }

    /// What of it is in memory.
    fn memory_mib(&self) -> anyhow::Result<f64> {
        let id = self.process.lock().id().context("it does not run")?;
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        Ok(number(kib.context("no VmRSS")?.parse()?) / 1024.0)
    }

    fn last_lines(&self) -> String {
        self.process.lock().last_lines()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_ingest_says_of_its_partitions_is_understood() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = |at: &str, rest: &str| format!("{{\"timestamp\":\"2026-11-22T05:00:0{at}.5Z\",{rest}}}\n");
        let lines = [
            line("1", r#""message":"assigned","epoch":2,"partitions":3"#),
            line("2", r#""message":"taken over","partition":"4","position":"7","unarchived":5"#),
            line("3", r#""message":"revoked","partitions":1"#),
            "posthaste is ready\n{\"mess".to_owned(),
        ];
        fs::write(file.path(), lines.concat()).unwrap();
        let said = Said::read(file.path()).unwrap();
        assert_eq!((said.owned, said.assigned.len(), said.ready[&Partition(4)].1), (2, 1, 5));
        assert_eq!(said.since(said.assigned[0]).len(), 1);
        assert!(said.since(Timestamp(said.assigned[0].0 + 1_001)).is_empty());
    }
}
