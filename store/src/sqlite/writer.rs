//! The one thread that writes: what waits shares a transaction and its fsync (group commit), each write in a savepoint
//! of its own. Answers leave after the commit only (I10).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::{fs, io, thread};

use rusqlite::Connection;
use tokio::sync::{Semaphore, oneshot};

use super::metrics::Metrics;
use super::{Config, connect_writer, rows, stopped};
use crate::Error;

/// Most writes of one transaction, so that the first of them does not wait for a whole queue.
const GROUP_MAX_WRITES: usize = 256;

/// What one write counts for at least in the queue's bound: its closure and its place in the queue.
const WRITE_MIN_BYTES: usize = 1024;

/// Runs one write on the group's connection, or learns why there is none; returns the way to answer it.
type Write = Box<dyn FnOnce(Result<&Connection, Error>) -> Answer + Send>;
/// Answers a write once the outcome of its group is known.
type Answer = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// The writer's handle; dropping it ends the thread after what is queued.
pub(super) struct Writer {
    queue: Option<Sender<Write>>,
    // In units of WRITE_MIN_BYTES.
    room: Arc<Semaphore>,
    room_units: usize,
    metrics: Metrics,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(path: PathBuf, connection: Connection, config: &Config, metrics: Metrics) -> io::Result<Self> {
        let (queue, writes) = mpsc::channel();
        let room_units = (config.queue_max_bytes / WRITE_MIN_BYTES).min(Semaphore::MAX_PERMITS);
        let mut worker = Worker {
            wal: path.with_extension("db-wal"),
            path,
            connection: Some(connection),
            wal_max_bytes: config.wal_max_bytes,
            metrics: metrics.clone(),
        };
        let thread = thread::Builder::new().name("store-writer".to_owned()).spawn(move || worker.run(&writes))?;
        let room = Arc::new(Semaphore::new(room_units));
        Ok(Self { queue: Some(queue), room, room_units, metrics, thread: Some(thread) })
    }

    /// Runs a write of about `bytes` and answers when it is durable. A caller that stops waiting has an unknown
    /// outcome, as after `Unavailable`.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        bytes: usize,
        run: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let units = (bytes / WRITE_MIN_BYTES + 1).min(self.room_units);
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        // I9: callers wait while the queue is full.
        let room = self.room.clone().acquire_many_owned(units).await.map_err(|_| stopped())?;
        let (answer, answered) = oneshot::channel();
        let write: Write = Box::new(move |connection| {
            let result = connection.and_then(|connection| in_savepoint(connection, run));
            Box::new(move |group: Result<(), Error>| {
                drop(room);
                // Nobody may be waiting any more.
                let _ = answer.send(group.and(result));
            })
        });
        self.metrics.queued.inc();
        self.queue.as_ref().and_then(|queue| queue.send(write).ok()).ok_or_else(stopped)?;
        answered.await.map_err(|_| stopped())?
    }
}

#[cfg(test)]
impl Writer {
    /// Writes that wait for the writer.
    pub(super) fn queued(&self) -> i64 {
        self.metrics.queued.get()
    }

    /// Groups so far.
    pub(super) fn groups(&self) -> u64 {
        self.metrics.group.get_sample_count()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic over there has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

struct Worker {
    path: PathBuf,
    wal: PathBuf,
    // None after a failed group, until it can be opened again.
    connection: Option<Connection>,
    wal_max_bytes: u64,
    metrics: Metrics,
}

impl Worker {
    fn run(&mut self, writes: &Receiver<Write>) {
        while let Ok(first) = writes.recv() {
            let mut group = vec![first];
            group.extend(writes.try_iter().take(GROUP_MAX_WRITES - 1));
            self.metrics.queued.sub(rows::count(group.len()));
            self.metrics.group.observe(group.len() as f64);
            let timer = self.metrics.write.start_timer();
            let mut answers = Vec::with_capacity(group.len());
            let mut group = group.into_iter();
            let outcome = self.commit(&mut group, &mut answers);
            timer.observe_duration();
            if let Err(error) = &outcome {
                tracing::error!(%error, "a group of writes has failed");
                // A connection that failed to write or to sync is not trusted again: what it holds in memory may be
                // other than what is on disk. The new one reads the committed state.
                self.connection = None;
                answers.extend(group.map(|write| write(Err(error.clone()))));
            }
            for answer in answers {
                answer(outcome.clone());
            }
            self.bound_wal();
        }
    }

    /// Runs writes in one transaction. What `Ok` has come back for is durable.
    fn commit(&mut self, group: &mut impl Iterator<Item = Write>, answers: &mut Vec<Answer>) -> Result<(), Error> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            closed => closed.insert(connect_writer(&self.path)?),
        };
        rows::change(connection, "BEGIN IMMEDIATE", [])?;
        for write in group {
            answers.push(write(Ok(connection)));
            // On a full disk SQLite may end the whole transaction by itself: then what came before is gone, and what
            // comes now would be committed piece by piece.
            if connection.is_autocommit() {
                return Err(Error::Unavailable("the transaction was rolled back".to_owned()));
            }
        }
        rows::change(connection, "COMMIT", [])?;
        Ok(())
    }

    /// Empties a WAL that has grown too large. SQLite's own checkpoints start it over only at a
    /// moment without readers; this one waits for such a moment, and new readers need the WAL no longer.
    fn bound_wal(&mut self) {
        let bytes = fs::metadata(&self.wal).map_or(0, |file| file.len());
        self.metrics.wal_bytes.set(rows::integer(bytes));
        let Some(connection) = self.connection.as_ref().filter(|_| bytes > self.wal_max_bytes) else { return };
        match connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0)) {
            Ok(false) => self.metrics.wal_bytes.set(0),
            // Tried again after the next group: that slows writing down as long as it is needed.
            Ok(true) => tracing::warn!(bytes, "a slow reader keeps the store's WAL from being emptied"),
            Err(error) => {
                tracing::error!(%error, "the store's WAL could not be emptied");
                self.connection = None;
            }
        }
    }
}

/// Runs a write so that it leaves nothing behind if it fails.
fn in_savepoint<T>(sql: &Connection, run: impl FnOnce(&Connection) -> Result<T, Error>) -> Result<T, Error> {
    rows::change(sql, "SAVEPOINT one", [])?;
    let result = run(sql).and_then(|value| rows::change(sql, "RELEASE one", []).map(|_| value));
    if result.is_err() {
        let undone = rows::change(sql, "ROLLBACK TO one", []).and_then(|_| rows::change(sql, "RELEASE one", []));
        if undone.is_err() {
            // Nothing of the group may be committed with half a write in it; the group sees that it has ended.
            let _ = sql.execute_batch("ROLLBACK");
        }
    }
    result
}
