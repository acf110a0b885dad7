//! Shut-outs in Cassandra: one partition, changed only where its last number is still what the change was made from.

use std::collections::BTreeMap;

use async_trait::async_trait;
use schemas::Timestamp;

use super::CassandraStore;
use super::cql::{CAS_TRIES, Cas, Write, broken, contended, integer, limit, unsigned, values};
use crate::Error;
use crate::shut_outs::{SHUT_OUTS_MAX, ShutOut, ShutOuts, Subject};

/// Subjects that one conditional change is about.
const PART: usize = 50;

const HEAD: &str = "SELECT DISTINCT log, head FROM shut_outs WHERE log = 'shut_outs'";
const STEP: &str = "UPDATE shut_outs SET head = ? WHERE log = 'shut_outs' IF head = ?";
const DELETE: &str = "DELETE FROM shut_outs WHERE log = 'shut_outs' AND number = ?";
const DELETE_NUMBER: &str = "DELETE FROM shut_out_numbers USING TIMESTAMP ? WHERE subject = ?";

type Columns = (i64, String, String, i64, i64, i64, Option<i64>);

fn form((number, subject, reason, since, until, times, lifted_at): Columns) -> Result<ShutOut, Error> {
    Ok(ShutOut {
        number: unsigned(number)?,
        subject: subject.parse().map_err(|()| broken(format!("not a subject of a shut-out: {subject}")))?,
        reason,
        since: Timestamp(since),
        until: Timestamp(until),
        times: u32::try_from(times).map_err(broken)?,
        lifted_at: lifted_at.map(Timestamp),
    })
}

impl CassandraStore {
    /// The row of a subject. Its number is written down before the row is, so that without a number there is no row; a
    /// number that leads to another one is of a change that did not come about.
    async fn shut_out_of(&self, subject: Subject) -> Result<Option<ShutOut>, Error> {
        let number = "SELECT number FROM shut_out_numbers WHERE subject = ?";
        let number = self.cql.row::<(i64,)>(number, values![subject.to_string()]).await?;
        let Some((number,)) = number else { return Ok(None) };
        let row = "SELECT number, subject, reason, since, until, times, lifted_at FROM shut_outs
            WHERE log = 'shut_outs' AND number = ?";
        let row = self.cql.row::<Columns>(row, values![number]).await?.map(form).transpose()?;
        if let Some(row) = row.filter(|row| row.subject == subject) {
            return Ok(Some(row));
        }
        let mut after = 0;
        loop {
            let page = self.shut_outs(after).await?;
            let Some(last) = page.last() else { return Ok(None) };
            after = last.number;
            if let Some(row) = page.into_iter().find(|row| row.subject == subject) {
                return Ok(Some(row));
            }
        }
    }

    /// Changes rows; `change` says what becomes of one, `None`: nothing.
    async fn change_shut_outs(
        &self,
        subjects: &[Subject],
        change: impl Fn(Subject, Option<ShutOut>) -> Option<ShutOut> + Send + Sync,
    ) -> Result<Vec<ShutOut>, Error> {
        let _turn = self.cql.lane("shut_outs").await;
        for _ in 0..CAS_TRIES {
            let head = self.head(HEAD).await?;
            let (mut writes, mut numbers, mut before) = (Vec::new(), Vec::new(), Vec::new());
            let mut number = head.unwrap_or_default();
            for subject in subjects {
                let known = self.shut_out_of(*subject).await?;
                let old = known.as_ref().map(|known| integer(known.number));
                let Some(entry) = change(*subject, known.clone()) else { continue };
                before.extend(known);
                number += 1;
                let name = entry.subject.to_string();
                let insert = "INSERT INTO shut_out_numbers (subject, number) VALUES (?, ?) USING TIMESTAMP ?";
                numbers.push(vec![Write(insert, values![name, number, number])]);
                writes.extend(old.map(|old| Write(DELETE, values![old])));
                let insert = "INSERT INTO shut_outs (log, number, subject, reason, since, until, times, lifted_at)
                    VALUES ('shut_outs', ?, ?, ?, ?, ?, ?, ?)";
                let times = i64::from(entry.times);
                let row = values![number, name, entry.reason, entry.since, entry.until, times, entry.lifted_at];
                writes.push(Write(insert, row));
            }
            if writes.is_empty() {
                return Ok(before);
            }
            self.cql.write_partitions(numbers).await?;
            writes.push(Write(STEP, values![number, head]));
            if self.cql.cas(writes).await? == Cas::Applied {
                return Ok(before);
            }
        }
        Err(contended())
    }
}

#[async_trait]
impl ShutOuts for CassandraStore {
    async fn shut_out(&self, entries: Vec<ShutOut>) -> Result<(), Error> {
        let mut of: BTreeMap<Subject, ShutOut> = BTreeMap::new();
        for entry in entries {
            let merged = match of.remove(&entry.subject) {
                Some(other) => other.merged(entry),
                None => entry,
            };
            of.insert(merged.subject, merged);
        }
        let subjects: Vec<Subject> = of.keys().copied().collect();
        let change = |subject: Subject, known: Option<ShutOut>| {
            let entry = of.get(&subject)?.clone();
            let Some(known) = known else { return Some(entry) };
            let merged = known.clone().merged(ShutOut { number: known.number, ..entry });
            (merged != known).then_some(merged)
        };
        for part in subjects.chunks(PART) {
            self.change_shut_outs(part, change).await?;
        }
        Ok(())
    }

    async fn lift_shut_outs(&self, subject: Option<Subject>, at: Timestamp) -> Result<usize, Error> {
        let subjects = match subject {
            Some(subject) => vec![subject],
            None => {
                let (mut all, mut after) = (Vec::new(), 0);
                loop {
                    let page = self.shut_outs(after).await?;
                    let Some(last) = page.last() else { break all };
                    after = last.number;
                    all.extend(page.into_iter().map(|row| row.subject));
                }
            }
        };
        let lift = |_, known: Option<ShutOut>| {
            let known = known.filter(|known| known.lifted_at < Some(at))?;
            Some(ShutOut { lifted_at: Some(at), ..known })
        };
        let mut lifted = 0;
        for part in subjects.chunks(PART) {
            let before = self.change_shut_outs(part, lift).await?;
            lifted += before.iter().filter(|entry| entry.since <= at && entry.is_in_force(at)).count();
        }
        Ok(lifted)
    }

    async fn shut_outs(&self, after: u64) -> Result<Vec<ShutOut>, Error> {
        let query = "SELECT number, subject, reason, since, until, times, lifted_at FROM shut_outs
            WHERE log = 'shut_outs' AND number > ? LIMIT ?";
        let rows = self.cql.rows::<Columns>(query, values![integer(after), limit(SHUT_OUTS_MAX)]).await?;
        rows.into_iter().map(form).collect()
    }

    async fn purge_shut_outs(&self, before: Timestamp, limit_to: usize) -> Result<usize, Error> {
        let (mut after, mut gone) = (0, Vec::new());
        while gone.len() < limit_to {
            let page = self.shut_outs(after).await?;
            let Some(last) = page.last() else { break };
            after = last.number;
            let room = limit_to - gone.len();
            gone.extend(page.into_iter().filter(|entry| entry.until < before).take(room));
        }
        let _turn = self.cql.lane("shut_outs").await;
        for part in gone.chunks(PART) {
            let deletions = || part.iter().map(|entry| Write(DELETE, values![integer(entry.number)]));
            self.purge_log(HEAD, STEP, deletions).await?;
            // As of its own number: a later one's stays.
            let number = |entry: &ShutOut| values![integer(entry.number), entry.subject.to_string()];
            let numbers = part.iter().map(|entry| vec![Write(DELETE_NUMBER, number(entry))]);
            self.cql.write_partitions(numbers.collect()).await?;
        }
        Ok(gone.len())
    }
}
