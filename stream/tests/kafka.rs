//! The laws of the log port on a real Kafka: one node for all of them, and another one that is killed. Both are started
//! by this program and end with it. Each law has topics, groups and transactional ids of its own.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where something goes wrong")]

#[expect(dead_code, reason = "the law of a bound that this engine does not have")]
mod laws;

use std::future::Future;
use std::pin::Pin;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use engines::kafka::Kafka;
use laws::{Engine, PARTITIONS, each_law};
use libtest_mimic::{Arguments, Trial};
use schemas::{Offset, Partition, Topic};
use stream::kafka::{Config, KafkaLog};
use stream::{Error, Log};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

/// A law takes no longer than this, several at a time on a small machine, and those waited for that kill.
const PATIENCE: Duration = Duration::from_secs(180);

/// Laws at a time: they wait more than they work.
const AT_A_TIME: usize = 4;

/// A node that is started by the first law that needs it, and stopped by `main`: what is static is never dropped, so
/// its server would be killed only with this process, and leave its data.
type Node = std::sync::Mutex<Option<Arc<Mutex<Kafka>>>>;
/// The node that stays.
static SHARED: Node = Node::new(None);
/// The node that is killed, by one law at a time.
static VICTIM: Node = Node::new(None);

fn started(node: &Node) -> Arc<Mutex<Kafka>> {
    // Poisoned by a law that could not start it: the others can't either.
    let mut node = node.lock().expect("there is no Kafka");
    let kafka = node.get_or_insert_with(|| Arc::new(Mutex::new(Kafka::start(1).expect("there is no Kafka"))));
    Arc::clone(kafka)
}

fn fresh(bootstrap: String) -> Config {
    static LAWS: AtomicU64 = AtomicU64::new(0);
    let prefix = format!("law-{}-", LAWS.fetch_add(1, Ordering::Relaxed));
    // A loaded machine is not a fault.
    let patient = Duration::from_secs(60);
    let shipped = Config::new(bootstrap);
    Config { prefix, replication: 1, min_in_sync: 1, transaction_timeout: patient, append_timeout: patient, ..shipped }
}

async fn connect(config: &Config) -> Arc<KafkaLog> {
    Arc::new(KafkaLog::connect(config.clone()).await.unwrap())
}

/// Its process is the client's.
struct Steady {
    config: Config,
    log: Arc<KafkaLog>,
}

#[async_trait]
impl Engine for Steady {
    const THRIFT: usize = 8;
    const TRAILS: bool = true;

    async fn start() -> Self {
        let config = fresh(started(&SHARED).lock().await.bootstrap());
        let log = connect(&config).await;
        log.create(PARTITIONS).await.unwrap();
        Self { config, log }
    }

    fn log(&self) -> Arc<dyn Log> {
        Arc::clone(&self.log) as _
    }

    async fn restart(self) -> Self {
        let Self { config, log } = self;
        drop(Arc::into_inner(log).expect("a test still holds the log"));
        Self { log: connect(&config).await, config }
    }
}

/// Its process is the broker's, which is killed with -9.
struct Killed {
    config: Config,
    log: Arc<KafkaLog>,
    node: tokio::sync::OwnedMutexGuard<Kafka>,
}

#[async_trait]
impl Engine for Killed {
    const THRIFT: usize = 8;
    const TRAILS: bool = true;

    async fn start() -> Self {
        let node = started(&VICTIM).lock_owned().await;
        let config = fresh(node.bootstrap());
        let log = connect(&config).await;
        log.create(PARTITIONS).await.unwrap();
        Self { config, log, node }
    }

    fn log(&self) -> Arc<dyn Log> {
        Arc::clone(&self.log) as _
    }

    async fn restart(self) -> Self {
        let Self { config, log, node } = self;
        drop(log);
        let node = tokio::task::spawn_blocking(move || {
            let mut node = node;
            node.kill(0);
            node.start_node(0).unwrap();
            node
        });
        let node = node.await.unwrap();
        Self { log: connect(&config).await, config, node }
    }
}

/// How long one of three nodes is frozen: longer than its session with the controller (9 s), which gives it up, so that the
/// partitions of which it has the only copy have no leader.
const FROZEN: Duration = Duration::from_secs(14);

/// What a client heard while partitions had no leaders it must not believe for minutes.
async fn a_broker_that_was_frozen_is_asked_again_as_soon_as_it_is_back() {
    let nodes = tokio::task::spawn_blocking(|| Kafka::start(3)).await.unwrap().unwrap();
    let log = connect(&fresh(nodes.bootstrap())).await;
    log.create(PARTITIONS).await.unwrap();
    let everywhere = || Topic::ALL.into_iter().flat_map(|topic| (0..PARTITIONS).map(move |at| (topic, Partition(at))));
    let stop = Arc::new(AtomicBool::new(false));
    // Asking all the while: whoever asks nothing hears nothing.
    let asking = (0..4).map(|_| {
        let (log, stop) = (Arc::clone(&log), Arc::clone(&stop));
        tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                for (topic, partition) in everywhere() {
                    let _ = log.end(topic, partition).await;
                    let _ = log.read(topic, partition, Offset(0), 1).await;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    });
    let asking: Vec<_> = asking.collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let frozen = nodes.processes()[1].to_string();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &frozen]).status().unwrap().success());
    signal("-STOP");
    tokio::time::sleep(FROZEN).await;
    signal("-CONT");
    let back = async {
        let mut rounds = 0;
        while rounds < 20 {
            rounds += 1;
            for (topic, partition) in everywhere() {
                if let Err(error) = log.end(topic, partition).await {
                    assert!(matches!(error, Error::Unavailable(_)), "{error}");
                    rounds = 0;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let is_back = tokio::time::timeout(Duration::from_secs(60), back).await;
    stop.store(true, Ordering::Relaxed);
    for task in asking {
        task.await.unwrap();
    }
    is_back.expect("partitions stay unknown");
}

/// What it would do next may wait for a broker that never comes back.
async fn a_producer_whose_connection_failed_while_it_was_idle_begins_no_other_transaction() {
    let Killed { log, mut node, .. } = Killed::start().await;
    let commit = async |producer: &mut Box<dyn stream::Producer>, n: u8| {
        let record = stream::Record { key: [n; 16], value: vec![n].into() };
        let records = vec![(Topic::Events, Partition(0), record)];
        producer.commit(stream::Transaction { records, consumed: None }).await
    };
    let mut producer = log.producer("idle").await.unwrap();
    commit(&mut producer, 1).await.unwrap();
    let node = tokio::task::spawn_blocking(move || {
        node.kill(0);
        // Every one of its instances has a connection that it tries again within a second.
        std::thread::sleep(Duration::from_secs(3));
        node.start_node(0).unwrap();
        node
    });
    let _node = node.await.unwrap();
    let answer = commit(&mut producer, 2).await;
    assert!(matches!(answer, Err(Error::Unavailable(_))), "{answer:?}");
    let mut next = log.producer("idle").await.unwrap();
    commit(&mut next, 3).await.unwrap();
    let read = log.read(Topic::Events, Partition(0), Offset(0), 1_000).await.unwrap();
    let values: Vec<_> = read.records.iter().map(|placed| placed.record.value[0]).collect();
    assert_eq!(values, [1, 3]);
}

type Law = fn() -> Pin<Box<dyn Future<Output = ()> + Send>>;

macro_rules! list {
    ($engine:ty: $($law:ident,)*) => {
        [$((stringify!($law), (|| Box::pin(laws::$law::<$engine>())) as Law),)*]
    };
}

fn trial(engine: &str, name: &str, law: Law) -> Trial {
    Trial::test(format!("{engine}::{name}"), move || {
        let runtime = Runtime::new()?;
        let done = runtime.block_on(async { tokio::time::timeout(PATIENCE, law()).await });
        // What a law has left to its threads ends with the clients.
        runtime.shutdown_timeout(Duration::from_secs(5));
        done.map_err(|_| "waits for ever".into())
    })
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(AT_A_TIME);
    let mut trials: Vec<Trial> =
        each_law!(list, Steady).into_iter().map(|(name, law)| trial("steady", name, law)).collect();
    let killed = list! { Killed:
        a_restart_keeps_what_was_promised,
        a_restart_loses_a_volatile_topic_as_a_whole_or_not_at_all,
        epochs_rise_with_every_change_and_over_a_restart,
        a_member_that_starts_late_reads_everything_once_while_more_arrives,
    };
    // First, for they wait for one another.
    let frozen: Law = || Box::pin(a_broker_that_was_frozen_is_asked_again_as_soon_as_it_is_back());
    trials.insert(0, trial("frozen", "a_broker_that_was_frozen_is_asked_again_as_soon_as_it_is_back", frozen));
    let idle: Law = || Box::pin(a_producer_whose_connection_failed_while_it_was_idle_begins_no_other_transaction());
    let name = "a_producer_whose_connection_failed_while_it_was_idle_begins_no_other_transaction";
    trials.insert(0, trial("killed", name, idle));
    trials.splice(0..0, killed.into_iter().map(|(name, law)| trial("killed", name, law)));
    let code = libtest_mimic::run(&arguments, trials).exit_code();
    for node in [&SHARED, &VICTIM] {
        drop(node.lock().map(|mut node| node.take()));
    }
    code
}
