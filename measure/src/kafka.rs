//! The raw engine: librdkafka with the settings of our own clients, one record a transaction at a steady rate. How long until
//! the transaction is committed, and until a reader of committed records has the record.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use clap::Args;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};
use stream::kafka::{Config, consumer_settings, producer_settings};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use crate::ground;
use crate::report::{Table, Times, number, progress};

/// Transactions before those that count.
const WARM_UP: Duration = Duration::from_secs(2);
/// Between two looks at whether a record is delivered. `BaseProducer::poll` with a time waits all of it, at least 1 ms.
const LOOK_EVERY: Duration = Duration::from_micros(100);
/// A broker that has not answered by then is away.
const PATIENCE: Duration = Duration::from_secs(20);
/// Our own readers have it as well.
const FETCH_WAIT_MS: u32 = 50;

/// What is run.
#[derive(Args)]
pub struct Options {
    /// A cluster that runs, `host:port,…`; a topic of its own is made and removed there. Without it a broker is started.
    #[arg(long)]
    bootstrap: Option<String>,
    /// Transactions a second.
    #[arg(long, default_value_t = 50)]
    rate: u32,
    /// For how long.
    #[arg(long, default_value = "20s", value_parser = crate::seconds)]
    duration: Duration,
    /// Size of a record, bytes.
    #[arg(long, default_value_t = 250)]
    bytes: usize,
}

/// Measures.
pub async fn measure(options: Options) -> anyhow::Result<Table> {
    let (engine, bootstrap) = match &options.bootstrap {
        Some(bootstrap) => (None, bootstrap.clone()),
        None => {
            let kafka = ground::kafka().await?;
            let bootstrap = kafka.bootstrap();
            (Some(kafka), bootstrap)
        }
    };
    let config = Config::new(bootstrap);
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &config.bootstrap).create()?;
    let brokers = admin.inner().fetch_metadata(None, PATIENCE)?.brokers().len();
    let copies = brokers.min(3);
    let topic = format!("measure-{}", std::process::id());
    let (copies_setting, in_sync) = (i32::try_from(copies)?, if copies == 3 { "2" } else { "1" });
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(copies_setting)).set("min.insync.replicas", in_sync);
    for made in admin.create_topics([&new], &AdminOptions::new()).await? {
        made.map_err(|(topic, error)| anyhow!("{topic} could not be made: {error}"))?;
    }
    let (of_thread, rate) = (topic.clone(), options.rate);
    let stop = Stop::default();
    let stopped = stop.0.clone();
    let measured = spawn_blocking(move || run(&config, &of_thread, &options, &stopped)).await?;
    drop(stop);
    for removed in admin.delete_topics(&[&topic], &AdminOptions::new()).await? {
        removed.map_err(|(topic, error)| anyhow!("{topic} could not be removed: {error}"))?;
    }
    drop(engine);

    let Measured { committed, read, late, seconds } = measured?;
    let mut table = Table::new("raw Kafka", &["p50 ms", "p99 ms", "max ms", "count", "a second"]);
    for (name, times) in [("produce → commit", &committed), ("produce → read_committed", &read)] {
        let rate = times.count() / seconds;
        table.row(name, [times.ms(0.5), times.ms(0.99), times.ms(1.0), times.count(), rate]);
    }
    table.note(format!("{brokers} brokers, {copies} copies; one record a transaction, {rate} asked for a second"));
    table.note(format!("{late} transactions began late, for the one before was not committed"));
    Ok(table)
}

/// Tells the threads to end when whoever asked has gone.
#[derive(Default)]
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

struct Measured {
    committed: Times,
    read: Times,
    late: u64,
    seconds: f64,
}

fn run(config: &Config, topic: &str, options: &Options, stop: &AtomicBool) -> anyhow::Result<Measured> {
    let begun = Instant::now();
    let expected = AtomicU64::new(u64::MAX);
    // Transactional ids in turn, as ours: one alone would wait for the markers of its last transaction.
    let producers =
        (0..config.instances).map(|k| producer(config, &format!("{topic}-{k}"))).collect::<anyhow::Result<Vec<_>>>()?;
    let consumer: BaseConsumer = consumer_settings(config, topic, FETCH_WAIT_MS).create()?;
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(topic, 0, Offset::Beginning)?;
    consumer.assign(&place)?;
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(&consumer, begun, &expected, stop));
        let produced = produce(&producers, topic, options, begun, stop);
        // Those that count are numbered from 1 on.
        expected.store(produced.as_ref().map_or(0, |(_, _, count, _)| *count), Ordering::Release);
        let read = reader.join().map_err(|_| anyhow!("a panic of the reader"))??;
        let (committed, late, count, seconds) = produced?;
        ensure!(read.count() == number(count), "{} of {count} records were read", read.count());
        Ok(Measured { committed, read, late, seconds })
    })
}

fn producer(config: &Config, id: &str) -> anyhow::Result<BaseProducer> {
    let timeout_ms = config.transaction_timeout.as_millis().to_string();
    let mut settings = producer_settings(config);
    settings.set("transactional.id", id);
    settings.set("transaction.timeout.ms", &timeout_ms).set("delivery.timeout.ms", timeout_ms);
    let producer: BaseProducer = settings.create()?;
    producer.init_transactions(PATIENCE)?;
    Ok(producer)
}

/// One transaction after the other. Each record says its number, 0 in the warm-up, and when it was made. Brings the times
/// until commits, how many began late, how many count, and for how many seconds they were sent.
fn produce(
    producers: &[BaseProducer],
    topic: &str,
    options: &Options,
    begun: Instant,
    stop: &AtomicBool,
) -> anyhow::Result<(Times, u64, u64, f64)> {
    let step = Duration::from_secs(1) / options.rate.max(1);
    let (whole, mut times) = (WARM_UP + options.duration, Times::new()?);
    let bar = progress("raw Kafka", whole.as_secs());
    let (mut late, mut count) = (0, 0);
    let start = Instant::now();
    for (turn, producer) in (0..).zip(producers.iter().cycle()) {
        let due = step * turn;
        if due >= whole || stop.load(Ordering::Relaxed) {
            break;
        }
        let counts = due >= WARM_UP;
        match due.checked_sub(start.elapsed()) {
            Some(wait) => thread::sleep(wait),
            None => late += u64::from(counts),
        }
        count += u64::from(counts);
        let number = if counts { count } else { 0 };
        let at = begun.elapsed();
        let mut value = [number.to_be_bytes(), u64::try_from(at.as_nanos())?.to_be_bytes()].concat();
        value.resize(options.bytes.max(value.len()), b'm');
        producer.begin_transaction()?;
        let record = BaseRecord::to(topic).partition(0).key(&[0; 16][..]).payload(&value);
        producer.send(record).map_err(|(error, _)| error)?;
        // Else the commit waits by 100 ms for it.
        while producer.in_flight_count() > 0 {
            ensure!(begun.elapsed() - at < PATIENCE, "a record was not delivered");
            thread::sleep(LOOK_EVERY);
            producer.poll(Duration::ZERO);
        }
        producer.commit_transaction(PATIENCE)?;
        if counts {
            times.add(begun.elapsed() - at);
        }
        bar.set_position(due.as_secs());
    }
    bar.finish_and_clear();
    let seconds = start.elapsed().saturating_sub(WARM_UP).as_secs_f64();
    Ok((times, late, count, seconds))
}

/// Reads until all are read that are expected, and no longer than a while.
fn read(consumer: &BaseConsumer, begun: Instant, expected: &AtomicU64, stop: &AtomicBool) -> anyhow::Result<Times> {
    let (mut times, mut last) = (Times::new()?, Instant::now());
    while times.count() < number(expected.load(Ordering::Acquire)) && !stop.load(Ordering::Relaxed) {
        ensure!(last.elapsed() < PATIENCE, "no record was read for {PATIENCE:?}");
        let Some(message) = consumer.poll(Duration::from_millis(50)) else { continue };
        let (message, now) = (message?, begun.elapsed());
        last = Instant::now();
        let value = message.payload().context("a record without a value")?;
        let (number, at) = value.split_at_checked(8).context("a record of somebody else")?;
        let at = at.first_chunk().context("a record of somebody else")?;
        if number != [0; 8] {
            times.add(now.saturating_sub(Duration::from_nanos(u64::from_be_bytes(*at))));
        }
    }
    Ok(times)
}
