//! Shut-outs in memory.

use async_trait::async_trait;
use schemas::Timestamp;

use super::{MemoryStore, Tables};
use crate::Error;
use crate::shut_outs::{SHUT_OUTS_MAX, ShutOut, ShutOuts, Subject};

impl Tables {
    fn put_shut_out(&mut self, entry: ShutOut) {
        self.last_shut_out += 1;
        let number = self.last_shut_out;
        self.shut_outs.insert(entry.subject, ShutOut { number, ..entry });
    }
}

#[async_trait]
impl ShutOuts for MemoryStore {
    async fn shut_out(&self, entries: Vec<ShutOut>) -> Result<(), Error> {
        let mut tables = self.tables();
        for entry in entries {
            let Some(known) = tables.shut_outs.get(&entry.subject).cloned() else {
                tables.put_shut_out(entry);
                continue;
            };
            let merged = known.clone().merged(ShutOut { number: known.number, ..entry });
            if merged != known {
                tables.put_shut_out(merged);
            }
        }
        Ok(())
    }

    async fn lift_shut_outs(&self, subject: Option<Subject>, at: Timestamp) -> Result<usize, Error> {
        let mut tables = self.tables();
        let of_it = |entry: &&ShutOut| subject.is_none_or(|subject| subject == entry.subject);
        let mut known: Vec<ShutOut> = tables.shut_outs.values().filter(of_it).cloned().collect();
        known.sort_unstable_by_key(|entry| entry.number);
        let lifted = known.iter().filter(|entry| entry.since <= at && entry.is_in_force(at)).count();
        for entry in known.into_iter().filter(|entry| entry.lifted_at < Some(at)) {
            tables.put_shut_out(ShutOut { lifted_at: Some(at), ..entry });
        }
        Ok(lifted)
    }

    async fn shut_outs(&self, after: u64) -> Result<Vec<ShutOut>, Error> {
        let tables = self.tables();
        let mut changed: Vec<ShutOut> =
            tables.shut_outs.values().filter(|entry| entry.number > after).cloned().collect();
        changed.sort_unstable_by_key(|entry| entry.number);
        changed.truncate(SHUT_OUTS_MAX);
        Ok(changed)
    }

    async fn purge_shut_outs(&self, before: Timestamp, limit: usize) -> Result<usize, Error> {
        let mut tables = self.tables();
        let mut ended: Vec<(u64, Subject)> = tables
            .shut_outs
            .values()
            .filter(|entry| entry.until < before)
            .map(|entry| (entry.number, entry.subject))
            .collect();
        ended.sort_unstable();
        ended.truncate(limit);
        for (_, subject) in &ended {
            tables.shut_outs.remove(subject);
        }
        Ok(ended.len())
    }
}
