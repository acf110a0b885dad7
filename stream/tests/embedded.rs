//! The laws of the log port on the engine inside the process, and what that engine alone promises.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test stops where something goes wrong")]

mod laws;

use std::sync::Arc;

use async_trait::async_trait;
use laws::{Engine, PARTITIONS, VOLATILE_MAX_BYTES, laws};
use prometheus::Registry;
use stream::Log;
use stream::embedded::{Config, EmbeddedLog, Metrics};
use tempfile::TempDir;

struct Embedded {
    log: Arc<EmbeddedLog>,
    dir: TempDir,
}

fn open(dir: &TempDir, config: Config) -> Arc<EmbeddedLog> {
    let metrics = Metrics::new(&Registry::new()).unwrap();
    Arc::new(EmbeddedLog::open(dir.path(), config, metrics).unwrap())
}

/// Memory so small that most reads go to the database.
fn small() -> Config {
    Config { volatile_max_bytes: VOLATILE_MAX_BYTES, tail_max_bytes: 16 * 2_000, ..Config::default() }
}

#[async_trait]
impl Engine for Embedded {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = open(&dir, small());
        log.create(PARTITIONS).await.unwrap();
        Self { log, dir }
    }

    fn log(&self) -> Arc<dyn Log> {
        Arc::clone(&self.log) as _
    }

    async fn restart(self) -> Self {
        let Self { log, dir } = self;
        drop(Arc::into_inner(log).expect("a test still holds the log"));
        Self { log: open(&dir, small()), dir }
    }
}

laws!(Embedded);
