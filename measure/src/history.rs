//! Pages of history from Cassandra: by the archiver's own answers, out of the hot cache and past it, beside the driver
//! reading the same rows by the same prepared statement. All in turn, on the same data, in the same minute.

use std::sync::Arc;
use std::time::Duration;

use crate::surroundings::OsEntropy;
use anyhow::{Context, anyhow, ensure};
use async_trait::async_trait;
use clap::Args;
use futures_util::future::try_join_all;
use schemas::link::{HistoryPort, PageFrom, PageQuery};
use schemas::{Entropy as _, Offset, Record as _, Seq};
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::Consistency;
use scylla::statement::prepared::PreparedStatement;
use store::Store;
use store::cassandra::OLDEST_EVENTS;
use stream::Log;
use tokio::time::{Instant, sleep};

use crate::commands::Place;
use crate::ground::{self, Role, counted};
use crate::report::{Table, Times, number, progress};

/// Partitions of the log behind it.
const PARTITIONS: u32 = 4;
/// Events of a page.
const PAGE: usize = 50;
/// An archiver has its partitions within this time.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What is run.
#[derive(Args)]
pub struct Options {
    /// Rooms.
    #[arg(long, default_value_t = 20)]
    rooms: usize,
    /// Messages in each; fewer than 4,090, so that they are in one bucket of the store.
    #[arg(long, default_value_t = 2_560, value_parser = clap::value_parser!(u64).range(100..4_090))]
    messages: u64,
    /// For how long pages are read of each kind and each number of readers, altogether.
    #[arg(long, default_value = "9s", value_parser = crate::seconds)]
    duration: Duration,
    /// How many read at a time.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8])]
    readers: Vec<usize>,
    /// In how many turns.
    #[arg(long, default_value_t = 3)]
    turns: u32,
}

/// Reads a page of a room: the oldest events after this one.
#[async_trait]
trait Reads: Send + Sync {
    async fn page(&self, place: Place, after: Seq) -> anyhow::Result<usize>;
}

/// The archiver's answers.
struct Ours(Arc<dyn HistoryPort>);

#[async_trait]
impl Reads for Ours {
    async fn page(&self, Place { room, owner }: Place, after: Seq) -> anyhow::Result<usize> {
        let (from, min_offset) = (PageFrom::After(after), Offset(0));
        let page = self.0.page(PageQuery { user: owner, room, from, limit: PAGE, min_offset }).await?;
        Ok(page.context("no such room")?.events.len())
    }
}

/// The driver, and nothing else.
struct Driver {
    session: Session,
    statement: PreparedStatement,
    /// Whether rows are made events, as the archiver must.
    decodes: bool,
}

#[async_trait]
impl Reads for Driver {
    async fn page(&self, Place { room, .. }: Place, after: Seq) -> anyhow::Result<usize> {
        let values = (room.0, 0_i64, i64::try_from(after.0)?, i64::MAX, i32::try_from(PAGE)?);
        let rows = self.session.execute_unpaged(&self.statement, values).await?.into_rows_result()?;
        let mut count = 0;
        for row in rows.rows::<(Vec<u8>,)>()? {
            let (body,) = row?;
            if self.decodes {
                schemas::Event::decode(&body)?;
            }
            count += 1;
        }
        Ok(count)
    }
}

/// What is read, with what has come of it so far.
struct Kind {
    name: &'static str,
    reads: Arc<dyn Reads>,
    /// One for each number of readers, with the seconds for which they read.
    times: Vec<(Times, f64)>,
}

/// Measures.
pub async fn measure(options: Options) -> anyhow::Result<Table> {
    let (kafka, cassandra) = tokio::try_join!(ground::kafka(), ground::cassandra())?;
    let log = ground::log(&kafka.bootstrap(), "", PARTITIONS).await?;
    let store = ground::store(&cassandra, "history").await?;
    let places = ground::fill(&log, &store, options.rooms, usize::try_from(options.messages)?).await?;

    let hot = archiver::Config::default();
    // Nothing is kept, so that each page is read from the store, with the room and the standing.
    let cold = archiver::Config { page_cache_max_bytes: 0, room_cache_max_bytes: 0, ..hot.clone() };
    // One at a time: they are of one group.
    let bar = progress("history", u64::from(options.turns));
    let mut kinds = Vec::new();
    for (name, decodes) in [("driver", false), ("driver, decoded", true)] {
        let (session, statement) = connect(&ground::store_config(&cassandra, "history")).await?;
        kinds.push(Kind::new(name, Arc::new(Driver { session, statement, decodes }), &options)?);
    }
    let mut reads_per_page = 0.0;
    for _ in 0..options.turns {
        for kind in &mut kinds {
            kind.read(&places, &options).await?;
        }
        for (name, config) in [("hot", hot.clone()), ("cold", cold.clone())] {
            let (archiver, history) = owner(&log, &store, config).await?;
            let known = kinds.iter().position(|kind| kind.name == name);
            let at = match known {
                Some(at) => at,
                None => {
                    kinds.push(Kind::new(name, Arc::new(Ours(history.clone())), &options)?);
                    kinds.len() - 1
                }
            };
            kinds[at].reads = Arc::new(Ours(history));
            if name == "hot" {
                // All of it, once.
                for place in &places {
                    for page in 0..=options.messages.div_ceil(PAGE as u64) {
                        kinds[at].reads.page(*place, Seq(page * PAGE as u64)).await?;
                    }
                }
            }
            let count = |name| counted(&archiver.registry, name, None);
            let (hits, misses) = ("posthaste_archiver_cache_hits_total", "posthaste_archiver_cache_misses_total");
            let reads = "posthaste_archiver_store_reads_total";
            let before = (count(hits), count(misses), count(reads), kinds[at].count());
            kinds[at].read(&places, &options).await?;
            let (hits, misses) = (count(hits) - before.0, count(misses) - before.1);
            if name == "hot" {
                ensure!(misses == 0, "{misses} of {} buckets were not in the hot cache", hits + misses);
            } else {
                ensure!(hits * 20 < misses, "{hits} of {} buckets were in a cache that keeps none", hits + misses);
                reads_per_page = number(count(reads) - before.2) / (kinds[at].count() - before.3);
            }
            archiver.stop().await?;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();

    let mut table = Table::new("history", &["pages/s", "p50 ms", "p99 ms", "max ms"]);
    for kind in &kinds {
        for (readers, (times, seconds)) in options.readers.iter().zip(&kind.times) {
            let name = format!("{}, {readers} at a time", kind.name);
            table.row(name, [times.count() / seconds, times.ms(0.5), times.ms(0.99), times.ms(1.0)]);
        }
    }
    table.note(format!("pages of {PAGE} events, {} rooms of {} events", options.rooms, options.messages + 2));
    table.note("driver: the same rows by the same prepared statement at LOCAL_QUORUM; decoded: made events as well");
    table.note(format!(
        "cold: {reads_per_page:.1} reads of the store a page: the room, the standing, and buckets of 128 events whole"
    ));
    Ok(table)
}

impl Kind {
    fn new(name: &'static str, reads: Arc<dyn Reads>, options: &Options) -> anyhow::Result<Self> {
        let none = || Ok::<_, anyhow::Error>((Times::new()?, 0.0));
        Ok(Self { name, reads, times: options.readers.iter().map(|_| none()).collect::<Result<_, _>>()? })
    }

    fn count(&self) -> f64 {
        self.times.iter().map(|(times, _)| times.count()).sum()
    }

    /// A turn with each number of readers.
    async fn read(&mut self, places: &[Place], options: &Options) -> anyhow::Result<()> {
        let places: Arc<[Place]> = places.into();
        for (readers, (times, seconds)) in options.readers.iter().zip(&mut self.times) {
            let begun = Instant::now();
            let until = begun + options.duration / options.turns;
            let tasks = (0..*readers).map(|_| {
                let (reads, places, messages) = (self.reads.clone(), places.clone(), options.messages);
                tokio::spawn(async move { reader(reads.as_ref(), &places, messages, until).await })
            });
            for task in try_join_all(tasks).await? {
                times.add_all(&task?)?;
            }
            *seconds += begun.elapsed().as_secs_f64();
        }
        Ok(())
    }
}

/// One page after the other, anywhere.
async fn reader(reads: &dyn Reads, places: &[Place], messages: u64, until: Instant) -> anyhow::Result<Times> {
    let mut times = Times::new()?;
    while Instant::now() < until {
        let mut random = [[0; 8]; 2];
        random.iter_mut().for_each(|random| OsEntropy.fill(random));
        let [place, after] = random.map(u64::from_be_bytes);
        let place = places[usize::try_from(place % places.len() as u64)?];
        let begun = Instant::now();
        let count = reads.page(place, Seq(after % (messages - PAGE as u64))).await?;
        times.add(begun.elapsed());
        ensure!(count == PAGE, "a page has {count} events");
    }
    Ok(times)
}

/// An archiver that owns all partitions.
async fn owner(
    log: &Arc<dyn Log>,
    store: &Arc<store::cassandra::CassandraStore>,
    config: archiver::Config,
) -> anyhow::Result<(Role, Arc<dyn HistoryPort>)> {
    let store: Arc<dyn Store> = store.clone();
    let (archiver, history) = Role::archiver(log.clone(), store, config)?;
    let until = Instant::now() + PATIENCE;
    while archiver.owned() < PARTITIONS as usize {
        archiver.check()?;
        ensure!(Instant::now() < until, "the archiver has no partitions after {PATIENCE:?}");
        sleep(LOOK_EVERY).await;
    }
    Ok((archiver, history))
}

async fn connect(config: &store::cassandra::Config) -> anyhow::Result<(Session, PreparedStatement)> {
    let profile = ExecutionProfile::builder().consistency(Consistency::LocalQuorum).build();
    let session = SessionBuilder::new()
        .known_nodes(&config.contact_points)
        .default_execution_profile_handle(profile.into_handle())
        .use_keyspace(&config.keyspace, false)
        .build()
        .await?;
    let statement = session.prepare(OLDEST_EVENTS).await.map_err(|error| anyhow!(error))?;
    Ok((session, statement))
}
