//! What must survive the process: messages that have no outcome yet, how far the listener has got in each room, and the
//! sign-in. On disk with [`SqliteJournal`]; [`MemoryJournal`] is for programs that may forget, and for tests.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use schemas::message::Content;
use schemas::{CommandId, RoomId, Seq};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// A message that waits for its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queued {
    /// Its id, the same at every try.
    pub id: CommandId,
    /// Where it goes.
    pub room: RoomId,
    /// What it holds.
    pub content: Content,
    /// The message that it answers.
    pub reply_to: Option<Seq>,
    /// Whether it was ever put on a socket: its id may be known to the server.
    pub tried: bool,
}

/// A sign-in that can go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// For the next access token.
    pub refresh_token: String,
}

/// Everything that a journal holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Saved {
    /// In the order in which they were queued.
    pub queue: Vec<Queued>,
    /// The last event of each room for which the listener has returned.
    pub cursors: HashMap<RoomId, Seq>,
    /// The sign-in.
    pub session: Option<Session>,
}

/// Keeps what must survive. One client at a time.
#[async_trait]
pub trait Journal: Send + Sync {
    /// Everything.
    async fn load(&self) -> Result<Saved, Error>;
    /// Adds messages at the end, all or none. Durable against a power cut when it returns.
    async fn queue(&self, messages: Vec<Queued>) -> Result<(), Error>;
    /// Notes that these have been put on a socket.
    async fn tried(&self, ids: Vec<CommandId>) -> Result<(), Error>;
    /// Gives a message that was never tried another id; its place stays.
    async fn rename(&self, from: CommandId, to: CommandId) -> Result<(), Error>;
    /// Removes a message that has its outcome.
    async fn settle(&self, id: CommandId) -> Result<(), Error>;
    /// Moves a room's cursor; it never goes back. Survives a crash of the process; after a power cut the last ones may
    /// be missing, so that the listener hears of those events again.
    async fn advance(&self, room: RoomId, seq: Seq) -> Result<(), Error>;
    /// Keeps the sign-in, or forgets it.
    async fn remember(&self, session: Option<Session>) -> Result<(), Error>;
}

/// A journal that ends with the process.
#[derive(Default)]
pub struct MemoryJournal(Mutex<Saved>);

#[async_trait]
impl Journal for MemoryJournal {
    async fn load(&self) -> Result<Saved, Error> {
        Ok(self.0.lock().clone())
    }

    async fn queue(&self, messages: Vec<Queued>) -> Result<(), Error> {
        self.0.lock().queue.extend(messages);
        Ok(())
    }

    async fn tried(&self, ids: Vec<CommandId>) -> Result<(), Error> {
        let mut saved = self.0.lock();
        saved.queue.iter_mut().filter(|queued| ids.contains(&queued.id)).for_each(|queued| queued.tried = true);
        Ok(())
    }

    async fn rename(&self, from: CommandId, to: CommandId) -> Result<(), Error> {
        let mut saved = self.0.lock();
        saved.queue.iter_mut().filter(|queued| queued.id == from).for_each(|queued| queued.id = to);
        Ok(())
    }

    async fn settle(&self, id: CommandId) -> Result<(), Error> {
        self.0.lock().queue.retain(|queued| queued.id != id);
        Ok(())
    }

    async fn advance(&self, room: RoomId, seq: Seq) -> Result<(), Error> {
        let mut saved = self.0.lock();
        let cursor = saved.cursors.entry(room).or_default();
        *cursor = seq.max(*cursor);
        Ok(())
    }

    async fn remember(&self, session: Option<Session>) -> Result<(), Error> {
        self.0.lock().session = session;
        Ok(())
    }
}

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS queue (
        place INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, tried INTEGER NOT NULL, message TEXT NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS cursors (room BLOB PRIMARY KEY, seq INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS session (one INTEGER PRIMARY KEY CHECK (one = 1), session TEXT NOT NULL) STRICT;
    PRAGMA user_version = 1;";

/// The form that this program writes.
const FORM: i64 = 1;

/// A journal in a file of its own, readable by its owner alone.
pub struct SqliteJournal {
    path: PathBuf,
    connection: Arc<Mutex<Connection>>,
}

impl SqliteJournal {
    /// Opens or makes the journal of a directory, and keeps it for this client alone.
    ///
    /// # Errors
    /// Where the directory can't be used, another client uses it, or a newer program has.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("client.db");
        let failed = |reason: String| Error::Journal { path: path.display().to_string(), reason };
        make_private(dir, &path).map_err(|error| failed(error.to_string()))?;
        let open = || -> rusqlite::Result<(Connection, i64)> {
            let connection = Connection::open(&path)?;
            // One client: the lock is taken with the first write and kept.
            connection.execute_batch("PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL;")?;
            let form = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
            if form <= FORM {
                connection.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} COMMIT;"))?;
            }
            Ok((connection, form))
        };
        let (connection, form) = open().map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => failed("another client uses it".into()),
            _ => failed(error.to_string()),
        })?;
        if form > FORM {
            return Err(failed(format!("it has form {form}, this program knows up to {FORM}")));
        }
        Ok(Self { path, connection: Arc::new(Mutex::new(connection)) })
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, Error> {
        let connection = Arc::clone(&self.connection);
        let done = tokio::task::spawn_blocking(move || work(&mut connection.lock())).await;
        let failed = |reason: String| Error::Journal { path: self.path.display().to_string(), reason };
        done.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }
}

/// The refresh token is a secret.
fn make_private(dir: &Path, file: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    let mut options = std::fs::OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
        builder.mode(0o700);
        options.mode(0o600);
    }
    builder.create(dir)?;
    options.open(file).map(drop)
}

/// Runs a transaction; `synced`: it is on the disk when it returns.
fn transact(
    connection: &mut Connection,
    synced: bool,
    work: impl FnOnce(&Connection) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    connection.execute_batch(if synced { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" })?;
    let transaction = connection.transaction()?;
    work(&transaction)?;
    transaction.commit()
}

fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

fn json(value: &impl Serialize) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

#[async_trait]
impl Journal for SqliteJournal {
    async fn load(&self) -> Result<Saved, Error> {
        self.with(|connection| {
            let mut statement = connection.prepare("SELECT message, id, tried FROM queue ORDER BY place")?;
            let queue = statement.query_map([], |row| {
                let mut queued: Queued =
                    serde_json::from_str(row.get_ref(0)?.as_str()?).map_err(|error| unreadable(0, error))?;
                (queued.id, queued.tried) = (CommandId(uuid(row.get(1)?)), row.get(2)?);
                Ok(queued)
            })?;
            let queue = queue.collect::<rusqlite::Result<_>>()?;
            let mut statement = connection.prepare("SELECT room, seq FROM cursors")?;
            let cursors = statement
                .query_map([], |row| Ok((RoomId(uuid(row.get(0)?)), Seq(row.get::<_, i64>(1)?.cast_unsigned()))))?;
            let cursors = cursors.collect::<rusqlite::Result<_>>()?;
            let session = connection.query_row("SELECT session FROM session", [], |row| {
                serde_json::from_str(row.get_ref(0)?.as_str()?).map_err(|error| unreadable(0, error))
            });
            Ok(Saved { queue, cursors, session: session.optional()? })
        })
        .await
    }

    async fn queue(&self, messages: Vec<Queued>) -> Result<(), Error> {
        self.with(move |connection| {
            transact(connection, true, |transaction| {
                let mut insert =
                    transaction.prepare_cached("INSERT INTO queue (id, tried, message) VALUES (?1, ?2, ?3)")?;
                messages.iter().try_for_each(|queued| {
                    insert.execute(params![queued.id.as_bytes(), queued.tried, json(queued)?]).map(drop)
                })
            })
        })
        .await
    }

    async fn tried(&self, ids: Vec<CommandId>) -> Result<(), Error> {
        self.with(move |connection| {
            // Before the first byte leaves: else a power cut could let a message get a second id.
            transact(connection, true, |transaction| {
                let mut mark = transaction.prepare_cached("UPDATE queue SET tried = 1 WHERE id = ?1")?;
                ids.iter().try_for_each(|id| mark.execute([id.as_bytes()]).map(drop))
            })
        })
        .await
    }

    async fn rename(&self, from: CommandId, to: CommandId) -> Result<(), Error> {
        self.with(move |connection| {
            transact(connection, true, |transaction| {
                let rename = "UPDATE queue SET id = ?2 WHERE id = ?1 AND tried = 0";
                transaction.execute(rename, [from.as_bytes(), to.as_bytes()]).map(drop)
            })
        })
        .await
    }

    async fn settle(&self, id: CommandId) -> Result<(), Error> {
        self.with(move |connection| {
            transact(connection, false, |transaction| {
                transaction.prepare_cached("DELETE FROM queue WHERE id = ?1")?.execute([id.as_bytes()]).map(drop)
            })
        })
        .await
    }

    async fn advance(&self, room: RoomId, seq: Seq) -> Result<(), Error> {
        self.with(move |connection| {
            transact(connection, false, |transaction| {
                let upsert = "INSERT INTO cursors (room, seq) VALUES (?1, ?2)
                    ON CONFLICT (room) DO UPDATE SET seq = max(seq, excluded.seq)";
                let mut upsert = transaction.prepare_cached(upsert)?;
                upsert.execute(params![room.as_bytes(), seq.0.cast_signed()]).map(drop)
            })
        })
        .await
    }

    async fn remember(&self, session: Option<Session>) -> Result<(), Error> {
        self.with(move |connection| {
            transact(connection, true, |transaction| match &session {
                Some(session) => {
                    let keep = "INSERT OR REPLACE INTO session (one, session) VALUES (1, ?1)";
                    transaction.execute(keep, [json(session)?]).map(drop)
                }
                None => transaction.execute("DELETE FROM session", []).map(drop),
            })
        })
        .await
    }
}

fn uuid(bytes: [u8; 16]) -> uuid::Uuid {
    uuid::Uuid::from_bytes(bytes)
}
