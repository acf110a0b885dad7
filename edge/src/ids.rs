//! Fresh ids: UUIDv7 from a pool of randomness that is fetched ahead of need, so that no send waits for the operating
//! system. The time in an id is that of its handing out.

use std::sync::Arc;

use parking_lot::Mutex;
use schemas::{Clock, CommandId, Entropy, EventId};
use tokio::sync::Notify;
use uuid::Uuid;

/// Random bytes of one UUIDv7.
const RANDOM_BYTES: usize = 10;
/// Ids that a full pool gives: a second of a busy edge's sends in 40 KiB.
const POOL_FULL: usize = 4_096;
/// Below so many the pool is refilled.
const POOL_LOW: usize = POOL_FULL / 2;

/// The pool.
pub struct Ids {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    pool: Mutex<Vec<[u8; RANDOM_BYTES]>>,
    low: Notify,
}

impl Ids {
    /// A full pool.
    pub fn new(clock: Arc<dyn Clock>, entropy: Arc<dyn Entropy>) -> Self {
        let pool = Mutex::new(fetch(&*entropy));
        Self { clock, entropy, pool, low: Notify::new() }
    }

    /// A fresh UUIDv7.
    pub fn next(&self) -> Uuid {
        let random = loop {
            let (random, left) = {
                let mut pool = self.pool.lock();
                (pool.pop(), pool.len())
            };
            if left < POOL_LOW {
                self.low.notify_one();
            }
            match random {
                Some(random) => break random,
                // The refill did not get its turn in time: fetch here.
                None => self.refill(),
            }
        };
        schemas::ids::uuid_v7(self.clock.now().0, random)
    }

    /// A fresh id of an event.
    pub fn event(&self) -> EventId {
        EventId(self.next())
    }

    /// A fresh id of a command whose caller gave none.
    pub fn command(&self) -> CommandId {
        CommandId(self.next())
    }

    /// Fresh randomness for secrets; never from the pool, which is also in ids that people see.
    pub fn secret<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.entropy.fill(&mut bytes);
        bytes
    }

    /// Refills the pool whenever it runs low. Never ends.
    pub async fn run(&self) {
        loop {
            self.low.notified().await;
            if self.pool.lock().len() < POOL_LOW {
                self.refill();
            }
        }
    }

    fn refill(&self) {
        let fresh = fetch(&*self.entropy);
        let mut pool = self.pool.lock();
        let room = POOL_FULL.saturating_sub(pool.len());
        pool.extend(fresh.into_iter().take(room));
    }
}

fn fetch(entropy: &dyn Entropy) -> Vec<[u8; RANDOM_BYTES]> {
    let mut bytes = vec![0; POOL_FULL * RANDOM_BYTES];
    entropy.fill(&mut bytes);
    bytes.as_chunks::<RANDOM_BYTES>().0.to_vec()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::testing::{Counting, ManualClock};

    #[test]
    fn ids_outlast_the_pool_and_never_repeat() {
        let ids = Ids::new(Arc::new(ManualClock::default()), Arc::new(Counting::default()));
        let seen: HashSet<Uuid> = (0..POOL_FULL * 3).map(|_| ids.next()).collect();
        assert_eq!(seen.len(), POOL_FULL * 3);
        assert!(seen.iter().all(|id| id.get_version_num() == 7));
    }

    #[tokio::test(start_paused = true)]
    async fn the_pool_is_refilled_before_it_is_empty() {
        let ids = Ids::new(Arc::new(ManualClock::default()), Arc::new(Counting::default()));
        for _ in 0..=POOL_FULL - POOL_LOW {
            ids.next();
        }
        assert!(tokio::time::timeout(std::time::Duration::from_secs(1), ids.run()).await.is_err());
        assert_eq!(ids.pool.lock().len(), POOL_FULL);
    }
}
