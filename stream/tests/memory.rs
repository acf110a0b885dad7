//! The laws of the log port on the engine in memory, and its end by a crash.
#![expect(clippy::unwrap_used, reason = "a test stops where something goes wrong")]

mod laws;

use std::sync::Arc;

use async_trait::async_trait;
use laws::{Engine, PARTITIONS, VOLATILE_MAX_BYTES, laws};
use schemas::{Offset, Partition, Topic};
use stream::memory::MemoryLog;
use stream::{Error, Log, Polled};

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

#[tokio::test]
async fn a_member_that_was_given_up_hears_it_and_its_partitions_are_anothers() {
    let log = MemoryLog::new();
    log.create(2).await.unwrap();
    let mut silent = log.consumer("g", &[Topic::Events]).await.unwrap();
    assert!(matches!(silent.poll().await, Ok(Polled::Assigned { partitions, .. }) if partitions.len() == 2));
    let mut other = log.consumer("g", &[Topic::Events]).await.unwrap();
    log.expel(&silent.member());
    assert!(matches!(silent.commit(vec![(Topic::Events, Partition(0), Offset(0))]).await, Err(Error::Fenced)));
    assert!(matches!(silent.poll().await, Err(Error::Fenced)));
    assert!(matches!(other.poll().await, Ok(Polled::Assigned { partitions, .. }) if partitions.len() == 2));
}
