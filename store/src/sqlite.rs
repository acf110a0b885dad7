//! The embedded engine: one SQLite database in the data directory, written by one thread, read by a few. The only
//! place in this crate that names rusqlite. Its files have the names of the aggregates. Does not guard the directory
//! against a second process: whoever opens the directory as a whole does.

mod accounts;
mod archive;
mod devices;
mod keys;
mod metrics;
mod migrations;
mod readers;
mod rooms;
mod rows;
mod shut_outs;
pub mod walk;
mod writer;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde::{Deserialize, Serialize};

use crate::Error;
use metrics::Metrics;
use readers::Readers;
use writer::Writer;

/// Name of the database inside the data directory.
pub const FILE_NAME: &str = "store.db";

/// The oldest SQLite that does not lose committed pages when a checkpoint races a reset of the WAL
/// (sqlite.org/wal.html, "WAL-reset bug").
const SQLITE_VERSION_MIN: i32 = 3_051_003;

/// Pages of the WAL (4 KiB each) from which on a commit moves them into the database. Four times SQLite's default: a
/// page of a busy room is written in one commit after the other, but moved only once.
const CHECKPOINT_PAGES: i64 = 4_000;

/// How long a checkpoint that must shrink the WAL waits for readers. Our own reads are bounded in size and take
/// milliseconds.
const CHECKPOINT_WAIT: Duration = Duration::from_secs(1);

/// Settings of the embedded store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Threads that read, each with a connection and a page cache of [`READ_CACHE_KIB`]. More than the disk and the
    /// cores can serve at once only wait elsewhere.
    pub readers: usize,
    /// What may wait to be written, bytes; callers wait beyond it (I9). Room for a few of the archiver's batches.
    pub queue_max_bytes: usize,
    /// The WAL is emptied when it is larger, bytes; readers search it, and a start reads it through.
    pub wal_max_bytes: u64,
}

/// Page cache of a reader, KiB: the inner pages of every index of a few million rows.
pub const READ_CACHE_KIB: usize = 8 * 1024;
/// Page cache of the writer, KiB.
const WRITE_CACHE_KIB: usize = 16 * 1024;

impl Default for Config {
    fn default() -> Self {
        Self { readers: 3, queue_max_bytes: 32 * 1024 * 1024, wal_max_bytes: 64 * 1024 * 1024 }
    }
}

impl Config {
    /// What is wrong with these settings, for people.
    pub fn validate(&self) -> Result<(), String> {
        if !(1..=64).contains(&self.readers) {
            return Err(format!("readers is {}, must be from 1 to 64", self.readers));
        }
        if self.queue_max_bytes < schemas::limits::BATCH_MAX_BYTES {
            return Err(format!("queue_max_bytes is {}, less than one batch", self.queue_max_bytes));
        }
        Ok(())
    }
}

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The settings make no sense.
    #[error("settings of the store: {0}")]
    Config(String),
    /// A version of Posthaste newer than this one has been here.
    #[error("{path} has version {found}, this program knows up to {known}: start the newer one again")]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The newest that we know.
        known: usize,
    },
    /// A store that this program would have to change before it can use it, while another one may be using it.
    #[error("{path} has version {found}, this program needs {known}: start the server of this version once")]
    Older {
        /// The database.
        path: PathBuf,
        /// Its version.
        found: i64,
        /// The one that we need.
        known: usize,
    },
    /// A library that may lose what it has promised.
    #[error("SQLite {0} can lose committed data (WAL-reset bug), 3.51.3 or newer is needed")]
    OldSqlite(&'static str),
    /// The file or a thread can't be had.
    #[error("{0} can't be opened")]
    Io(PathBuf, #[source] io::Error),
    /// SQLite refuses.
    #[error("{0} can't be opened")]
    Sqlite(PathBuf, #[source] rusqlite::Error),
    /// Another store has registered with this registry.
    #[error("the store's metrics can't be registered")]
    Metrics(#[from] prometheus::Error),
}

/// A store in a directory.
pub struct SqliteStore {
    // In this order: the last connection to close is the writer's, which then empties the WAL.
    readers: Readers,
    writer: Writer,
}

impl SqliteStore {
    /// Opens the store of a data directory, or makes one.
    ///
    /// # Errors
    /// [`OpenError`] where it must not or can't be opened; nothing has been changed then, except that a migration may
    /// have been finished.
    pub fn open(dir: &Path, config: &Config, registry: &prometheus::Registry) -> Result<Self, OpenError> {
        config.validate().map_err(OpenError::Config)?;
        check_sqlite()?;
        let path = dir.join(FILE_NAME);
        create_private(&path).map_err(|error| OpenError::Io(path.clone(), error))?;
        migrations::migrate(&path)?;
        Self::connect(path, config, registry)
    }

    /// Opens the store of a data directory beside the process that serves it, for a few short reads and writes: makes
    /// nothing and migrates nothing. SQLite keeps the two from one another; a write here waits for the other's commit.
    ///
    /// # Errors
    /// [`OpenError`] where there is none of this version, or it can't be opened.
    pub fn open_beside(dir: &Path) -> Result<Self, OpenError> {
        check_sqlite()?;
        let path = dir.join(FILE_NAME);
        std::fs::metadata(&path).map_err(|error| OpenError::Io(path.clone(), error))?;
        migrations::check(&path)?;
        Self::connect(path, &Config { readers: 1, ..Config::default() }, &prometheus::Registry::new())
    }

    fn connect(path: PathBuf, config: &Config, registry: &prometheus::Registry) -> Result<Self, OpenError> {
        let io_error = |error| OpenError::Io(path.clone(), error);
        let sqlite_error = |error| OpenError::Sqlite(path.clone(), error);
        let metrics = Metrics::new(registry)?;
        let connection = connect_writer(&path).map_err(sqlite_error)?;
        let reading = (0..config.readers).map(|_| connect_reader(&path)).collect::<Result<_, _>>();
        Ok(Self {
            readers: Readers::start(reading.map_err(sqlite_error)?).map_err(io_error)?,
            writer: Writer::start(path.clone(), connection, config, metrics).map_err(io_error)?,
        })
    }
}

fn check_sqlite() -> Result<(), OpenError> {
    if rusqlite::version_number() < SQLITE_VERSION_MIN {
        return Err(OpenError::OldSqlite(rusqlite::version()));
    }
    Ok(())
}

/// Creates the file for its owner alone, since it holds signing keys and password hashes. SQLite gives the files that
/// go with it the same mode.
fn create_private(path: &Path) -> io::Result<()> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

fn connect_writer(path: &Path) -> rusqlite::Result<Connection> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, WRITE_CACHE_KIB)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    // I10: a commit has been fsynced when it returns.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // What is deleted is overwritten, as far as that costs no further page: the seed of a signing key goes with its row.
    connection.pragma_update(None, "secure_delete", "fast")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    Ok(connection)
}

fn connect_reader(path: &Path) -> rusqlite::Result<Connection> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY, READ_CACHE_KIB)
}

fn connect(path: &Path, access: OpenFlags, cache_kib: usize) -> rusqlite::Result<Connection> {
    // Each connection stays with one thread, so that SQLite needs no locks around it.
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(CHECKPOINT_WAIT)?;
    // Else a bound value may change the plan, and each new value has its statement parsed and planned again.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(None, "cache_size", -rows::integer(cache_kib as u64))?;
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        use ErrorCode::{
            CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, FileLockingProtocolFailed, OperationInterrupted,
            OutOfMemory, PermissionDenied, ReadOnly, SystemIoFailure,
        };
        match error.sqlite_error_code() {
            Some(
                DiskFull
                | SystemIoFailure
                | CannotOpen
                | DatabaseBusy
                | DatabaseLocked
                | OutOfMemory
                | ReadOnly
                | PermissionDenied
                | OperationInterrupted
                | FileLockingProtocolFailed,
            ) => Self::Unavailable(error.to_string()),
            _ => Self::Broken(error.to_string()),
        }
    }
}

/// The engine's threads have ended: the store is being closed, or one of them has met a fault.
fn stopped() -> Error {
    Error::Unavailable("the store has stopped".to_owned())
}

#[cfg(test)]
mod tests;
