//! The tables, as the list of changes that led to them. A change that has been released is never edited.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::{OpenError, connect_reader, connect_writer};

/// Version n of a database (`PRAGMA user_version`) is what the first n changes made.
const MIGRATIONS: &[&str] = &[FIRST, ENDED_TOKENS, SHUT_OUTS];

/// Keys are what a partitioned store would have as well: rooms' rows by room, people's lists by person.
const FIRST: &str = "
CREATE TABLE accounts (
    id BLOB PRIMARY KEY,
    username TEXT NOT NULL UNIQUE,      -- folded
    email TEXT UNIQUE,                  -- folded
    password_hash TEXT,
    profile TEXT NOT NULL,              -- JSON
    display_key TEXT NOT NULL,          -- the display name, folded
    created_at INTEGER NOT NULL,
    last_seen INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX accounts_by_display_name ON accounts (display_key, username);

CREATE TABLE devices (
    id BLOB PRIMARY KEY,
    user BLOB NOT NULL,
    name TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    last_seen INTEGER NOT NULL,
    revoked INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX devices_by_user ON devices (user, created_at, id);

CREATE TABLE refresh_tokens (
    hash BLOB PRIMARY KEY,
    device BLOB NOT NULL REFERENCES devices (id),
    user BLOB NOT NULL,
    expires_at INTEGER NOT NULL,
    spent_at INTEGER,
    successor BLOB
) STRICT, WITHOUT ROWID;

-- AUTOINCREMENT: a number is never given twice, or an edge that polls after it would miss an entry.
CREATE TABLE revocations (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    user BLOB NOT NULL,
    device BLOB,
    at INTEGER NOT NULL,
    reason TEXT NOT NULL
) STRICT;
CREATE INDEX revocations_by_device ON revocations (user, device, at);

CREATE TABLE signing_keys (
    id TEXT PRIMARY KEY,
    seed BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    retired_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE rooms (
    id BLOB PRIMARY KEY,
    head_seq INTEGER NOT NULL,          -- the row's version (I5)
    body TEXT NOT NULL,                 -- JSON of RoomInfo; what follows is drawn from it
    listed INTEGER NOT NULL,            -- in the directory: public and living
    name_key TEXT NOT NULL,             -- folded
    handle_key TEXT,                    -- folded; none when deleted
    last_activity_at INTEGER NOT NULL,
    member_count INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX rooms_by_activity ON rooms (last_activity_at DESC, id) WHERE listed = 1;
CREATE INDEX rooms_by_popularity ON rooms (member_count DESC, id) WHERE listed = 1;
CREATE INDEX rooms_by_name ON rooms (name_key, id) WHERE listed = 1;
CREATE INDEX rooms_by_creation ON rooms (created_at DESC, id) WHERE listed = 1;
CREATE INDEX rooms_by_handle ON rooms (handle_key, created_at, id) WHERE handle_key IS NOT NULL;

CREATE TABLE handle_claims (
    handle TEXT PRIMARY KEY,            -- folded
    room BLOB NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX handle_claims_by_room ON handle_claims (room);

CREATE TABLE members (
    room BLOB NOT NULL,
    user BLOB NOT NULL,
    version INTEGER NOT NULL,           -- seq (I5)
    is_in INTEGER NOT NULL,
    body TEXT NOT NULL,                 -- JSON of Member, intervals and all
    PRIMARY KEY (room, user)
) STRICT, WITHOUT ROWID;

CREATE TABLE listings (
    user BLOB NOT NULL,
    room BLOB NOT NULL,
    version INTEGER NOT NULL,           -- seq of the room (I5)
    listed INTEGER NOT NULL,
    PRIMARY KEY (user, room)
) STRICT, WITHOUT ROWID;

CREATE TABLE events (
    room BLOB NOT NULL,
    seq INTEGER NOT NULL,
    body BLOB NOT NULL,                 -- Avro single object
    PRIMARY KEY (room, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE commands (
    room BLOB NOT NULL,
    user BLOB NOT NULL,
    command BLOB NOT NULL,
    seq INTEGER NOT NULL,
    event BLOB NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (room, user, command)
) STRICT, WITHOUT ROWID;

CREATE TABLE largest_commands (
    room BLOB PRIMARY KEY,
    command BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Only steps that no other makes needless: of one person and kind a higher seq has a later time.
CREATE TABLE receipt_steps (
    room BLOB NOT NULL,
    user BLOB NOT NULL,
    kind INTEGER NOT NULL,              -- 0 delivered, 1 read
    seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (room, user, kind, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE watermarks (
    room BLOB NOT NULL,
    user BLOB NOT NULL,
    delivered_seq INTEGER NOT NULL,
    read_seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (room, user)
) STRICT, WITHOUT ROWID;

CREATE TABLE progress (
    topic TEXT NOT NULL,
    partition INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    PRIMARY KEY (topic, partition)
) STRICT, WITHOUT ROWID;
";

/// Tokens are forgotten by their end, and devices with the last of theirs. Rows are as they were.
const ENDED_TOKENS: &str = "
CREATE INDEX refresh_tokens_by_end ON refresh_tokens (expires_at);
CREATE INDEX refresh_tokens_by_device ON refresh_tokens (device);
";

/// AUTOINCREMENT: a number is never given twice, or an edge that polls after it would miss a change.
const SHUT_OUTS: &str = "
CREATE TABLE shut_outs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    subject TEXT NOT NULL UNIQUE,       -- a network or an account's id
    reason TEXT NOT NULL,
    since INTEGER NOT NULL,
    until INTEGER NOT NULL,
    times INTEGER NOT NULL,
    lifted_at INTEGER
) STRICT;
";

/// Says whether a database is of the newest version; changes nothing.
pub(super) fn check(path: &Path) -> Result<(), OpenError> {
    let sqlite_error = |error| OpenError::Sqlite(path.to_owned(), error);
    let found = connect_reader(path).and_then(|connection| version(&connection)).map_err(sqlite_error)?;
    let known = MIGRATIONS.len();
    match usize::try_from(found) {
        Ok(found) if found == known => Ok(()),
        Ok(older) if older < known => Err(OpenError::Older { path: path.to_owned(), found, known }),
        _ => Err(OpenError::Newer { path: path.to_owned(), found, known }),
    }
}

/// Brings a database to the newest version, each change in a transaction of its own; leaves a newer one untouched.
pub(super) fn migrate(path: &Path) -> Result<(), OpenError> {
    let sqlite_error = |error| OpenError::Sqlite(path.to_owned(), error);
    // Looked at before it is opened for good: that already writes.
    let found = Connection::open(path).and_then(|connection| version(&connection)).map_err(sqlite_error)?;
    let known = MIGRATIONS.len();
    let Some(missing) = usize::try_from(found).ok().and_then(|done| MIGRATIONS.get(done..)) else {
        return Err(OpenError::Newer { path: path.to_owned(), found, known });
    };
    if missing.is_empty() {
        return Ok(());
    }
    let mut connection = connect_writer(path).map_err(sqlite_error)?;
    for (version, change) in (found + 1..).zip(missing) {
        apply(&mut connection, version, change).map_err(sqlite_error)?;
    }
    Ok(())
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn apply(connection: &mut Connection, version: i64, change: &str) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(change)?;
    transaction.pragma_update(None, "user_version", version)?;
    transaction.commit()
}
