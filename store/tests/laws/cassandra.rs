//! Cassandra under the laws: one real node for all of them, killed with -9 where a law restarts its store. Each law has a
//! keyspace of its own while it runs; what the last one left there is truncated.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use engines::cassandra::{Cassandra as Server, Options};
use parking_lot::Mutex;
use prometheus::Registry;
use schemas::{Clock, Timestamp};
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::errors::ExecutionError;
use scylla::response::query_result::QueryResult;
use store::Store;
use store::cassandra::{CassandraStore, Config};
use tokio::runtime::Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::Engine;

/// Laws that run at once. Thirty tables take a node ten seconds.
const LAWS: usize = 2;
/// Tries to reach a node that has just come back.
const TRIES: usize = 100;

/// The node and what goes with it, for as long as the tests run.
struct Shared {
    // Sessions live on it, whichever law's own runtime has ended.
    runtime: Runtime,
    server: Mutex<Server>,
    contact_points: Vec<String>,
    free: (mpsc::UnboundedSender<Keyspace>, tokio::sync::Mutex<mpsc::UnboundedReceiver<Keyspace>>),
    /// One for each law; all of them where the node is killed, since other laws take that for a fault.
    permits: Arc<Semaphore>,
}

struct Keyspace {
    name: String,
    admin: Session,
    tables: Vec<String>,
}

static SHARED: LazyLock<Shared> = LazyLock::new(|| {
    let server = Server::start(Options::default()).unwrap();
    let contact_points = server.contact_points();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (sender, receiver) = mpsc::unbounded_channel();
    let free = (sender, tokio::sync::Mutex::new(receiver));
    let permits = Arc::new(Semaphore::new(LAWS));
    let shared = Shared { runtime, server: Mutex::new(server), contact_points, free, permits };
    for n in 0..LAWS {
        let keyspace = shared.run(make(&shared.config(&format!("laws_{n}"))));
        shared.free.0.send(keyspace).unwrap();
    }
    shared
});

impl Shared {
    fn config(&self, keyspace: &str) -> Config {
        let (contact_points, keyspace) = (self.contact_points.clone(), keyspace.to_owned());
        Config { contact_points, keyspace, replication: 1, request_timeout_ms: 10_000, ..Config::default() }
    }

    /// Runs this on the shared runtime, whatever runtime the caller is on.
    fn run<T: Send>(&self, work: impl Future<Output = T> + Send) -> T {
        std::thread::scope(|scope| scope.spawn(|| self.runtime.block_on(work)).join().unwrap())
    }
}

async fn make(config: &Config) -> Keyspace {
    CassandraStore::tables(config).await.unwrap();
    let admin = SessionBuilder::new().known_nodes(&config.contact_points).build().await.unwrap();
    let query = "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?";
    let rows = admin.query_unpaged(query, (&config.keyspace,)).await.unwrap().into_rows_result().unwrap();
    let tables: HashSet<String> = rows.rows::<(String,)>().unwrap().map(|row| row.unwrap().0).collect();
    let tables = tables.into_iter().filter(|table| table != "schema_version").collect();
    Keyspace { name: config.keyspace.clone(), admin, tables }
}

impl Keyspace {
    /// Also of tables without rows: deleted ones leave their versions behind, which rows of the next law would lose to.
    async fn clear(&self) {
        for table in &self.tables {
            self.ask(&format!("TRUNCATE {}.{table}", self.name)).await;
        }
    }

    /// The node may have been killed since this session asked last.
    async fn ask(&self, query: &str) -> QueryResult {
        for _ in 0..TRIES {
            match self.admin.query_unpaged(query, ()).await {
                Ok(result) => return result,
                Err(ExecutionError::ConnectionPoolError(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(error) => panic!("{query}: {error}"),
            }
        }
        panic!("{query}: the node does not come back")
    }
}

/// System time: what a store asks its clock for are write timestamps, which no law compares.
struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.micros() / 1_000)
    }

    fn micros(&self) -> i64 {
        std::time::UNIX_EPOCH.elapsed().unwrap().as_micros() as i64
    }

    fn elapsed(&self) -> Duration {
        Duration::from_micros(self.micros() as u64)
    }
}

/// A store in a keyspace of its own.
pub struct Cassandra {
    keyspace: Option<Keyspace>,
    store: Arc<CassandraStore>,
    permit: Option<OwnedSemaphorePermit>,
}

async fn open(keyspace: &str) -> Arc<CassandraStore> {
    let config = SHARED.config(keyspace);
    Arc::new(CassandraStore::open(&config, Arc::new(SystemClock), &Registry::new()).await.unwrap())
}

impl Engine for Cassandra {
    fn start() -> Self {
        SHARED.run(async {
            // In this order: who waits for a keyspace is in nobody's way who waits for all permits.
            let keyspace = SHARED.free.1.lock().await.recv().await.unwrap();
            let permit = SHARED.permits.clone().acquire_owned().await.unwrap();
            keyspace.clear().await;
            let store = open(&keyspace.name).await;
            Self { keyspace: Some(keyspace), store, permit: Some(permit) }
        })
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    fn other(&self) -> Arc<dyn Store> {
        let name = self.keyspace.as_ref().unwrap().name.clone();
        SHARED.run(async move { open(&name).await })
    }

    fn restart(mut self) -> Self {
        self.permit = None;
        let name = self.keyspace.as_ref().unwrap().name.clone();
        SHARED.run(async {
            let all = SHARED.permits.clone().acquire_many_owned(LAWS as u32).await.unwrap();
            {
                let mut server = SHARED.server.lock();
                server.kill(0);
                server.start_node(0).unwrap();
            }
            self.store = open(&name).await;
            let mut all = all;
            self.permit = all.split(1);
        });
        self
    }
}

impl Drop for Cassandra {
    fn drop(&mut self) {
        SHARED.free.0.send(self.keyspace.take().unwrap()).unwrap();
    }
}
