//! The laws of the log port on the engine in memory, and its end by a crash.
#![expect(clippy::unwrap_used, reason = "a test stops where something goes wrong")]

mod laws;

use std::sync::Arc;

use async_trait::async_trait;
use laws::{Engine, PARTITIONS, VOLATILE_MAX_BYTES, laws};
use schemas::{Partition, Topic};
use stream::memory::MemoryLog;
use stream::{Error, Log};

struct Memory(MemoryLog);

#[async_trait]
impl Engine for Memory {
    async fn start() -> Self {
        let log = MemoryLog::bounded(VOLATILE_MAX_BYTES);
        log.create(PARTITIONS).await.unwrap();
        Self(log)
    }

    fn log(&self) -> Arc<dyn Log> {
        Arc::new(self.0.clone())
    }

    async fn restart(self) -> Self {
        Self(self.0.crash())
    }
}

laws!(Memory);

#[tokio::test]
async fn a_crash_ends_every_handle_and_whoever_waits_hears_it() {
    let log = MemoryLog::new();
    log.create(1).await.unwrap();
    let mut member = log.consumer("g", &[Topic::Events]).await.unwrap();
    let mut producer = log.producer("t").await.unwrap();
    member.poll().await.unwrap();
    let (heard, _) = tokio::join!(member.poll(), async { log.crash() });
    assert!(matches!(heard, Err(Error::Unavailable(_))));
    assert!(matches!(producer.commit(stream::Transaction::default()).await, Err(Error::Unavailable(_))));
    let appended = log.append(Topic::Events, Partition(0), Vec::new()).await;
    assert!(matches!(appended, Err(Error::Unavailable(_))));
}
