//! The one writer: takes all that waits, makes it one SQLite transaction with one sync, makes it visible, answers.
//!
//! When the disk fails. A transaction whose writing failed before its COMMIT, or whose COMMIT found no room, has not
//! happened: `Unavailable`. A COMMIT whose sync failed may or may not be on the disk: `Unknown`. After a failed sync
//! the system may call pages clean that never reached the disk, so that a second sync proves nothing. SQLite's view of
//! the commits is untouched by the failure, though, and every one of them was synced when it was made. So the engine
//! *mends* before it writes again: a checkpoint writes every page of those commits anew into the database, syncs it,
//! and empties the write-ahead log, and with it whatever the failed commit left there; then the ends of all partitions
//! must be those that memory has. Until that succeeds everything is answered `Unavailable`; if the ends differ, or the
//! database is damaged, the log closes with `Broken`.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, params};
use schemas::{Offset, Partition, Topic};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{Inner, Metrics, database, tail_max_bytes};
use crate::broker::{Batch, Fence, LaneId, State, by_lane, size_of_record};
use crate::{Error, Positions, Record, Transaction};

/// How long committed positions of groups may wait for a write to ride along with.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);
/// Rows that one transaction deletes at most: a trim must not hold up what people wait for.
const TRIM_ROWS: i64 = 1_000;
/// A page and its header in the write-ahead log.
const WAL_FRAME_BYTES: usize = 4096 + 24;

pub(super) struct Job {
    pub work: Work,
    pub answer: Answer,
}

/// Whom to answer, and the room in the queue that is held until then.
pub(super) struct Answer {
    pub reply: oneshot::Sender<Result<Positions, Error>>,
    pub _room: OwnedSemaphorePermit,
}

impl Answer {
    fn send(self, answer: Result<Positions, Error>) {
        // Whoever asked may have gone; what was done is done.
        let _ = self.reply.send(answer);
    }
}

pub(super) enum Work {
    Append(LaneId, Vec<Record>),
    Commit(Fence, Transaction),
    Create(u32),
    Trim(LaneId, Offset),
    /// Answered when all before it is decided.
    Settle,
}

/// Requests that were admitted, and what becomes of them.
#[derive(Default)]
struct Group {
    gathered: BTreeMap<LaneId, Gathered>,
    create: Option<u32>,
    trims: Vec<Trim>,
    /// Positions that were committed outside transactions.
    unsaved: HashMap<(String, LaneId), Offset>,
    requests: Vec<Request>,
}

/// Durable records of one partition.
struct Gathered {
    base: Offset,
    records: Vec<Record>,
}

struct Request {
    answer: Answer,
    /// Positions after its durable records.
    ends: Positions,
    /// The rest of a transaction: its volatile records, and what it consumed.
    rest: Transaction,
}

struct Trim {
    id: LaneId,
    before: Offset,
    /// No row is left to delete.
    done: bool,
    answer: Answer,
}

impl Group {
    /// Takes a request in, if it may be done now.
    fn admit(&mut self, state: &State, Job { work, answer }: Job) -> Result<(), (Answer, Error)> {
        match self.check(state, &work) {
            Ok(()) => self.add(state, work, answer),
            Err(error) => return Err((answer, error)),
        }
        Ok(())
    }

    fn check(&self, state: &State, work: &Work) -> Result<(), Error> {
        let small = |record: &Record| match record.value.len() {
            0..=database::RECORD_MAX_BYTES => Ok(()),
            bytes => Err(Error::Broken(format!("a record of {bytes} bytes is too large"))),
        };
        match work {
            Work::Append(id, records) => {
                state.opened()?;
                state.lane(*id)?;
                records.iter().try_for_each(small)
            }
            Work::Commit(fence, transaction) => {
                state.admit(fence, transaction)?;
                transaction.records.iter().try_for_each(|(_, _, record)| small(record))
            }
            Work::Create(partitions) => match self.create {
                Some(other) if other != *partitions => Err(Error::Broken("created twice at once".into())),
                _ => state.may_create(*partitions),
            },
            Work::Trim(id, _) => state.opened().and_then(|()| state.lane(*id).map(drop)),
            Work::Settle => Ok(()),
        }
    }

    fn add(&mut self, state: &State, work: Work, answer: Answer) {
        let mut request = Request { answer, ends: Vec::new(), rest: Transaction::default() };
        match work {
            Work::Append(id, records) => request.ends.push(self.gather(state, id, records)),
            Work::Commit(_, transaction) => {
                for (id, records) in by_lane(transaction.records) {
                    if id.0.is_durable() {
                        request.ends.push(self.gather(state, id, records));
                    } else {
                        request.rest.records.extend(records.into_iter().map(|record| (id.0, id.1, record)));
                    }
                }
                request.rest.consumed = transaction.consumed;
            }
            // Only the first time there is something to write.
            Work::Create(partitions) => self.create = (state.partitions == 0).then_some(partitions),
            Work::Trim(id, before) => {
                let before = state.lane(id).map_or(before, |lane| before.min(lane.end).max(lane.start));
                self.trims.push(Trim { id, before, done: false, answer: request.answer });
                return;
            }
            Work::Settle => {}
        }
        self.requests.push(request);
    }

    /// Adds records to their partition; the position after them.
    fn gather(&mut self, state: &State, id: LaneId, records: Vec<Record>) -> (Topic, Partition, Offset) {
        let end = state.lane(id).map(|lane| lane.end).unwrap_or_default();
        let gathered = self.gathered.entry(id).or_insert(Gathered { base: end, records: Vec::new() });
        gathered.records.extend(records);
        (id.0, id.1, Offset(gathered.base.0 + gathered.records.len() as u64))
    }

    /// Positions in durable topics that its transactions have consumed.
    fn consumed(&self) -> impl Iterator<Item = (&str, LaneId, Offset)> {
        let consumed = self.requests.iter().filter_map(|request| request.rest.consumed.as_ref());
        consumed.flat_map(|(member, positions)| {
            let durable = positions.iter().filter(|(topic, ..)| topic.is_durable());
            durable.map(|(topic, partition, offset)| (member.group.as_str(), (*topic, *partition), *offset))
        })
    }

    /// Whether anything of it must survive a crash.
    fn is_durable(&self) -> bool {
        self.gathered.values().any(|gathered| !gathered.records.is_empty())
            || self.create.is_some()
            || !self.trims.is_empty()
            || self.consumed().next().is_some()
    }

    /// Its durable records in batches of about a row.
    fn batches(&mut self) -> Vec<(LaneId, Batch)> {
        let mut batches = Vec::new();
        for (id, Gathered { mut base, records }) in std::mem::take(&mut self.gathered) {
            let (mut row, mut bytes) = (Vec::new(), 0);
            for record in records {
                bytes += size_of_record(&record);
                row.push(record);
                if bytes >= database::ROW_BYTES {
                    let batch = Batch::new(base, std::mem::take(&mut row));
                    bytes = 0;
                    batches.extend(batch.map(|batch| {
                        base = batch.next();
                        (id, batch)
                    }));
                }
            }
            batches.extend(Batch::new(base, row).map(|batch| (id, batch)));
        }
        batches
    }
}

/// How a group failed.
enum Failure {
    /// It has not happened.
    Nothing(rusqlite::Error),
    /// It may have happened.
    Perhaps(rusqlite::Error),
}

impl Failure {
    /// What to answer.
    fn error(&self) -> Error {
        match self {
            Self::Nothing(error) if is_broken(error) => Error::Broken(error.to_string()),
            Self::Nothing(error) => Error::Unavailable(error.to_string()),
            Self::Perhaps(error) => Error::Unknown(error.to_string()),
        }
    }
}

/// Whether no retry and no free room would help.
fn is_broken(error: &rusqlite::Error) -> bool {
    !matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::CannotOpen
                | ErrorCode::ReadOnly
                | ErrorCode::OutOfMemory
                | ErrorCode::DatabaseBusy
        )
    )
}

pub(super) struct Writer {
    inner: Arc<Inner>,
    connection: Connection,
    metrics: Metrics,
    /// Pages in the write-ahead log after the last commit, told by SQLite.
    wal_pages: Arc<AtomicUsize>,
    /// At so many bytes the next checkpoint is due.
    checkpoint_at_bytes: usize,
    /// Whether commits are synced now.
    synced: bool,
    /// The disk has failed: nothing may be written before [`Writer::mend`] succeeds.
    failed: bool,
    /// A failure was told, and its end not yet.
    troubled: bool,
}

impl Writer {
    pub(super) fn new(
        inner: Arc<Inner>,
        mut connection: Connection,
        metrics: Metrics,
    ) -> Result<Self, rusqlite::Error> {
        let wal_pages = Arc::new(AtomicUsize::new(0));
        let told = Arc::clone(&wal_pages);
        connection.wal_hook(Some(move |_: &mut _, pages| {
            told.store(usize::try_from(pages).unwrap_or(0), Ordering::Relaxed);
            Ok(())
        }))?;
        connection.set_prepared_statement_cache_capacity(32);
        let checkpoint_at_bytes = inner.config.wal_max_bytes / 8;
        Ok(Self {
            inner,
            connection,
            metrics,
            wal_pages,
            checkpoint_at_bytes,
            synced: true,
            failed: false,
            troubled: false,
        })
    }

    pub(super) fn run(mut self) {
        // Trims that have rows left to delete.
        let mut unfinished = VecDeque::new();
        loop {
            let patience = if unfinished.is_empty() { FLUSH_INTERVAL } else { Duration::ZERO };
            let Some(mut jobs) = self.inner.work.take_all(patience) else { break };
            let idle = jobs.is_empty();
            jobs.append(&mut unfinished);
            unfinished = self.commit(jobs, idle);
            self.checkpoint_if_due();
        }
        self.commit(VecDeque::new(), true);
    }

    /// Commits one group; the trims that have rows left come back.
    fn commit(&mut self, jobs: VecDeque<Job>, idle: bool) -> VecDeque<Job> {
        self.metrics.queue_requests.set(i64::try_from(jobs.len()).unwrap_or(i64::MAX));
        let mended = self.mend();
        let mut group = Group::default();
        let mut refused = Vec::new();
        self.inner.broker.with(|state| {
            for job in jobs {
                let admitted = match &mended {
                    Err(error) if !matches!(job.work, Work::Settle) => Err((job.answer, error.clone())),
                    _ => group.admit(state, job),
                };
                refused.extend(admitted.err());
            }
            // Positions ride along with a write, or wait for an idle moment.
            if mended.is_ok() && (idle || group.is_durable()) {
                group.unsaved = std::mem::take(&mut state.unsaved);
            }
        });
        for (answer, error) in refused {
            answer.send(Err(error));
        }
        let batches = group.batches();
        let durable = !batches.is_empty() || group.is_durable();
        if durable || !group.unsaved.is_empty() {
            let timer = self.metrics.commit_seconds.start_timer();
            let written = self.write(&mut group, &batches, durable);
            timer.observe_duration();
            if let Err(failure) = written {
                self.fail(group, &failure);
                return VecDeque::new();
            }
            #[expect(clippy::cast_precision_loss, reason = "a count for a histogram")]
            self.metrics
                .commit_records
                .observe(batches.iter().map(|(_, batch)| batch.records.len()).sum::<usize>() as f64);
            if std::mem::take(&mut self.troubled) {
                tracing::info!("the log can be written again");
            }
        }
        self.publish(group, batches)
    }

    /// One SQLite transaction.
    fn write(&mut self, group: &mut Group, batches: &[(LaneId, Batch)], sync: bool) -> Result<(), Failure> {
        let steps = self.write_steps(group, batches, sync);
        if let Err(error) = steps {
            self.roll_back();
            // A spilled cache may have put pages into the write-ahead log, but no commit.
            return Err(Failure::Nothing(error));
        }
        self.connection.execute_batch("COMMIT").map_err(|error| {
            self.roll_back();
            match error.sqlite_error_code() {
                // The commit's last page, which makes it one, found no room; syncs report other errors.
                Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy) => Failure::Nothing(error),
                _ => Failure::Perhaps(error),
            }
        })
    }

    fn write_steps(
        &mut self,
        group: &mut Group,
        batches: &[(LaneId, Batch)],
        sync: bool,
    ) -> Result<(), rusqlite::Error> {
        let connection = &self.connection;
        if self.synced != sync {
            connection.execute_batch(if sync { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" })?;
            self.synced = sync;
        }
        connection.execute_batch("BEGIN IMMEDIATE")?;
        if let Some(partitions) = group.create {
            database::set_number(connection, "partitions", partitions)?;
        }
        let mut insert = connection.prepare_cached("INSERT INTO batch VALUES (?1, ?2, ?3, ?4)")?;
        for (id, batch) in batches {
            let (place, count) = (database::place(*id, batch.base), batch.records.len().cast_signed() as i64);
            let blob = database::encode(&batch.records);
            insert.execute(params![place, count, database::sum(&[place, count], &blob), blob])?;
        }
        let unsaved = group.unsaved.iter().map(|((name, id), offset)| (name.as_str(), *id, *offset));
        let mut save = connection.prepare_cached("INSERT OR REPLACE INTO committed VALUES (?1, ?2, ?3, ?4)")?;
        for (name, id, offset) in unsaved.chain(group.consumed()) {
            let (lane, position) = (database::lane_number(id), offset.0.cast_signed());
            save.execute(params![name, lane, position, database::sum(&[lane, position], name.as_bytes())])?;
        }
        for trim in &mut group.trims {
            let (lane, first) = (database::lane_number(trim.id), trim.before.0.cast_signed());
            connection.prepare_cached("INSERT OR REPLACE INTO start VALUES (?1, ?2, ?3)")?.execute(params![
                lane,
                first,
                database::sum(&[lane, first], &[])
            ])?;
            let deleted = connection
                .prepare_cached(
                    "DELETE FROM batch WHERE place IN (
                         SELECT place FROM batch WHERE place >= ?1 AND place < ?2 AND place + count <= ?2 LIMIT ?3
                     )",
                )?
                .execute(params![
                    database::place(trim.id, Offset(0)),
                    database::place(trim.id, trim.before),
                    TRIM_ROWS
                ])?;
            trim.done = deleted < TRIM_ROWS as usize;
        }
        Ok(())
    }

    fn roll_back(&self) {
        // It fails where SQLite has rolled back by itself; `mend` looks whether it has.
        let _ = self.connection.execute_batch("ROLLBACK");
    }

    /// Makes a committed group visible, and answers.
    fn publish(&mut self, group: Group, batches: Vec<(LaneId, Batch)>) -> VecDeque<Job> {
        let Group { create, trims, requests, .. } = group;
        let mut answers = Vec::with_capacity(requests.len());
        self.inner.broker.with(|state| {
            let apply = || -> Result<(), Error> {
                if let Some(partitions) = create {
                    state.create(partitions, tail_max_bytes(&self.inner.config, partitions))?;
                }
                for (id, batch) in batches {
                    state.publish(id, batch)?;
                }
                for trim in &trims {
                    state.lane_mut(trim.id)?.trim(trim.before);
                }
                Ok(())
            };
            if let Err(error) = apply() {
                state.close(error);
            }
            for Request { answer, mut ends, rest } in requests {
                let applied = state.apply(rest).map(|more| {
                    ends.extend(more);
                    ends
                });
                answers.push((answer, applied));
            }
        });
        for (answer, applied) in answers {
            answer.send(applied);
        }
        let mut unfinished = VecDeque::new();
        for Trim { id, before, done, answer } in trims {
            if done {
                answer.send(Ok(Vec::new()));
            } else {
                unfinished.push_back(Job { work: Work::Trim(id, before), answer });
            }
        }
        unfinished
    }

    /// Answers a group that failed.
    fn fail(&mut self, group: Group, failure: &Failure) {
        let error = failure.error();
        self.in_trouble(&error);
        match (failure, &error) {
            (_, Error::Broken(_)) => self.inner.stop(error.clone()),
            (Failure::Nothing(cause), _) if cause.sqlite_error_code() == Some(ErrorCode::DiskFull) => {}
            _ => self.failed = true,
        }
        self.inner.broker.with(|state| {
            for (key, offset) in group.unsaved {
                state.unsaved.entry(key).or_insert(offset);
            }
        });
        let trims = group.trims.into_iter().map(|trim| trim.answer);
        for answer in group.requests.into_iter().map(|request| request.answer).chain(trims) {
            answer.send(Err(error.clone()));
        }
    }

    /// Tells people, once until it is over.
    fn in_trouble(&mut self, error: &Error) {
        self.metrics.faults.inc();
        if !std::mem::replace(&mut self.troubled, true) {
            tracing::error!(%error, "the log cannot be written");
        }
    }

    /// After a failure: makes sure that the disk holds what memory says, before anything is written on top of it.
    fn mend(&mut self) -> Result<(), Error> {
        if !self.failed {
            return Ok(());
        }
        let unavailable = |error: &dyn std::fmt::Display| Error::Unavailable(format!("the disk fails: {error}"));
        if !self.connection.is_autocommit() {
            self.connection.execute_batch("ROLLBACK").map_err(|error| unavailable(&error))?;
        }
        match self.checkpoint("TRUNCATE") {
            Ok(true) => {}
            Ok(false) => return Err(unavailable(&"readers are in the way")),
            Err(error) => return Err(unavailable(&error)),
        }
        let partitions = self.inner.broker.with(|state| state.partitions);
        let verified = database::lanes(&self.connection, partitions).and_then(|lanes| {
            self.inner.broker.with(|state| {
                for (id, start, end) in lanes {
                    let lane = state.lane(id)?;
                    if (lane.start, lane.end) != (start, end) {
                        return Err(Error::Broken(format!(
                            "after a fault of the disk {}/{} has {start}..{end} in place of {}..{}",
                            id.0, id.1, lane.start, lane.end
                        )));
                    }
                }
                Ok(())
            })
        });
        match &verified {
            Ok(()) => self.failed = false,
            Err(error @ Error::Broken(_)) => self.inner.stop(error.clone()),
            Err(_) => {}
        }
        verified
    }

    /// Keeps the write-ahead log within its bound: copies it into the database from time to time, and waits for
    /// readers until it can be emptied where it has grown nonetheless.
    fn checkpoint_if_due(&mut self) {
        let step = self.inner.config.wal_max_bytes / 8;
        let used = self.wal_pages.load(Ordering::Relaxed) * WAL_FRAME_BYTES;
        self.metrics.wal_bytes.set(i64::try_from(used).unwrap_or(i64::MAX));
        if used < step {
            self.checkpoint_at_bytes = step; // It was begun anew.
        }
        if self.failed || used < self.checkpoint_at_bytes {
            return;
        }
        // A group is a quarter of the bound at most, and pages take more than records do.
        let full = used >= self.inner.config.wal_max_bytes / 2;
        match self.checkpoint(if full { "TRUNCATE" } else { "PASSIVE" }) {
            Ok(true) if full => self.checkpoint_at_bytes = step,
            Ok(_) => self.checkpoint_at_bytes = used + step,
            Err(error) => {
                // Nothing is lost, the write-ahead log has it all; but the disk must be looked after.
                self.failed = true;
                self.in_trouble(&Error::Unavailable(error.to_string()));
            }
        }
    }

    /// Runs a checkpoint; whether all of it could be done.
    fn checkpoint(&self, mode: &str) -> Result<bool, rusqlite::Error> {
        let timer = self.metrics.checkpoint_seconds.start_timer();
        let busy: i64 = self.connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |row| row.get(0))?;
        timer.observe_duration();
        if mode == "TRUNCATE" && busy == 0 {
            self.wal_pages.store(0, Ordering::Relaxed);
        }
        Ok(busy == 0)
    }
}
