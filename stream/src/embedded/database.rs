//! What stands in the file and how it is read: one row for each batch of records, as Kafka keeps its log. Every row
//! carries a checksum over its place as well, and places must join: damage is an error, never a hole or a wrong record.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::{Buf, Bytes};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};
use schemas::{Offset, Partition, Topic};

use super::OpenError;
use crate::broker::{LaneId, size_of_record};
use crate::{Error, Fetched, Placed, Record};

/// Form of the database that this program writes.
const FORM: i64 = 1;

/// `batch.place` is topic (4 bits), partition (12 bits), offset of the first record (47 bits): one integer key keeps a
/// partition's rows together and in order, and SQLite stores large rows best under an integer key.
const OFFSET_BITS: u32 = 47;
const PARTITION_BITS: u32 = 12;
pub(super) const PARTITIONS_MAX: u32 = 1 << PARTITION_BITS;
const OFFSET_MAX: u64 = (1 << OFFSET_BITS) - 1;

/// Records are gathered into rows of about this size: small beside a read, large beside a row's cost.
pub(super) const ROW_BYTES: usize = 256 * 1024;

/// Largest record: one must fit a row of SQLite (1 GB) many times over, and memory.
pub(super) const RECORD_MAX_BYTES: usize = 64 * 1024 * 1024;

const SCHEMA: &str = "
    CREATE TABLE number (name TEXT PRIMARY KEY, value INTEGER NOT NULL, sum INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE batch (
        place INTEGER PRIMARY KEY, count INTEGER NOT NULL, sum INTEGER NOT NULL, records BLOB NOT NULL
    );
    CREATE TABLE start (lane INTEGER PRIMARY KEY, first INTEGER NOT NULL, sum INTEGER NOT NULL);
    CREATE TABLE committed (
        name TEXT, lane INTEGER, position INTEGER NOT NULL, sum INTEGER NOT NULL, PRIMARY KEY (name, lane)
    ) WITHOUT ROWID;
    PRAGMA user_version = 1;
";

/// What an opened database holds.
pub(super) struct Found {
    pub partitions: u32,
    pub starts: u64,
    pub lanes: Vec<(LaneId, Offset, Offset)>,
    pub committed: Vec<(String, LaneId, Offset)>,
}

/// A topic's number in the file; fixed for ever.
fn code(topic: Topic) -> i64 {
    match topic {
        Topic::Commands => 0,
        Topic::Events => 1,
        Topic::UserEvents => 2,
        Topic::Receipts => 3,
        Topic::Signals => 4,
        Topic::DeadLetters => 5,
        Topic::Cluster => 6,
    }
}

/// A partition's number in the file.
pub(super) fn lane_number((topic, partition): LaneId) -> i64 {
    code(topic) << PARTITION_BITS | i64::from(partition.0)
}

/// The place of an offset; too large an offset stands after everything in its partition.
pub(super) fn place(id: LaneId, offset: Offset) -> i64 {
    lane_number(id) << OFFSET_BITS | offset.0.min(OFFSET_MAX).cast_signed()
}

fn offset_of(place: i64) -> Offset {
    Offset(place.cast_unsigned() & OFFSET_MAX)
}

/// The checksum of a row over all that it says.
pub(super) fn sum(numbers: &[i64], bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for number in numbers {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(bytes);
    hasher.finalize()
}

/// The records of a row: for each its length (4 bytes, little endian), key (16 bytes) and value.
pub(super) fn encode(records: &[Placed]) -> Vec<u8> {
    let mut blob = Vec::with_capacity(records.iter().map(|placed| placed.record.value.len() + 20).sum());
    for Placed { record, .. } in records {
        #[expect(clippy::cast_possible_truncation, reason = "a record has RECORD_MAX_BYTES at most")]
        let length = record.value.len() as u32;
        blob.extend_from_slice(&length.to_le_bytes());
        blob.extend_from_slice(&record.key);
        blob.extend_from_slice(&record.value);
    }
    blob
}

/// A row as it came from the file.
struct Row<'a> {
    place: i64,
    count: i64,
    sum: i64,
    records: &'a [u8],
}

impl<'a> Row<'a> {
    fn of(row: &'a rusqlite::Row<'_>) -> Result<Self, Error> {
        let typed = |error: rusqlite::types::FromSqlError| Error::Broken(format!("a damaged row: {error}"));
        let number = |column| row.get::<_, i64>(column).map_err(|error| read_error(&error));
        let records = row.get_ref(3).map_err(|error| read_error(&error))?.as_blob().map_err(typed)?;
        Ok(Self { place: number(0)?, count: number(1)?, sum: number(2)?, records })
    }

    /// The records, if the row is whole.
    fn decode(&self) -> Result<Vec<Placed>, Error> {
        let damaged = || Error::Broken(format!("a damaged row at {}", self.place));
        if i64::from(sum(&[self.place, self.count], self.records)) != self.sum {
            return Err(damaged());
        }
        let base = offset_of(self.place).0;
        let mut rest = Bytes::copy_from_slice(self.records);
        let mut records = Vec::new();
        while rest.has_remaining() {
            let length = rest.try_get_u32_le().map_err(|_| damaged())? as usize;
            let mut key = [0; 16];
            rest.try_copy_to_slice(&mut key).map_err(|_| damaged())?;
            if rest.len() < length {
                return Err(damaged());
            }
            let record = Record { key, value: rest.split_to(length) };
            records.push(Placed { offset: Offset(base + records.len() as u64), record });
        }
        if records.is_empty() || i64::try_from(records.len()) != Ok(self.count) {
            return Err(damaged());
        }
        Ok(records)
    }
}

/// An error of a read: what may pass, and what doesn't.
pub(super) fn read_error(error: &rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen | ErrorCode::OutOfMemory | ErrorCode::DatabaseBusy) => {
            Error::Unavailable(error.to_string())
        }
        _ => Error::Broken(error.to_string()),
    }
}

/// Records of `from..until`, at least one: the caller knows that they were committed, and not trimmed.
pub(super) fn read(
    connection: &Connection,
    id: LaneId,
    from: Offset,
    until: Offset,
    max_bytes: usize,
) -> Result<Fetched, Error> {
    let (mut next, mut bytes) = (from, 0);
    let mut records: Vec<Placed> = Vec::new();
    let mut run = || -> Result<(), Error> {
        let sql = |error: rusqlite::Error| read_error(&error);
        let mut statement = connection
            .prepare_cached(
                "SELECT place, count, sum, records FROM batch
                 WHERE place >= (SELECT max(place) FROM batch WHERE place BETWEEN ?1 AND ?2) AND place < ?3
                 ORDER BY place",
            )
            .map_err(sql)?;
        let bounds = params![place(id, Offset(0)), place(id, from), place(id, until)];
        let mut rows = statement.query(bounds).map_err(sql)?;
        while let Some(row) = rows.next().map_err(sql)? {
            let row = Row::of(row)?;
            let base = offset_of(row.place);
            if base > next || (!records.is_empty() && base != next) {
                return Ok(()); // A hole: what was found before it is whole.
            }
            for placed in row.decode()? {
                if placed.offset < next || placed.offset >= until {
                    continue;
                }
                bytes += size_of_record(&placed.record);
                if bytes > max_bytes && !records.is_empty() {
                    return Ok(());
                }
                next = Offset(placed.offset.0 + 1);
                records.push(placed);
            }
        }
        Ok(())
    };
    run()?;
    if records.is_empty() {
        return Err(Error::Broken(format!("offset {from} of {}/{} is missing", id.0, id.1)));
    }
    Ok(Fetched { topic: id.0, partition: id.1, from, next, records: records.into() })
}

/// Where a partition's last row ends; `None` if it has none. The row is checked.
fn last_end(connection: &Connection, id: LaneId) -> Result<Option<Offset>, Error> {
    let sql = |error: rusqlite::Error| read_error(&error);
    let mut statement = connection
        .prepare_cached(
            "SELECT place, count, sum, records FROM batch WHERE place BETWEEN ?1 AND ?2 ORDER BY place DESC LIMIT 1",
        )
        .map_err(sql)?;
    let mut rows = statement.query([place(id, Offset(0)), place(id, Offset(OFFSET_MAX))]).map_err(sql)?;
    let Some(row) = rows.next().map_err(sql)? else { return Ok(None) };
    let records = Row::of(row)?.decode()?;
    Ok(records.last().map(|placed| Offset(placed.offset.0 + 1)))
}

/// Start and end of every durable partition, as the file has them.
pub(super) fn lanes(connection: &Connection, partitions: u32) -> Result<Vec<(LaneId, Offset, Offset)>, Error> {
    let sql = |error: rusqlite::Error| read_error(&error);
    let mut starts: BTreeMap<i64, i64> = BTreeMap::new();
    let mut statement = connection.prepare_cached("SELECT lane, first, sum FROM start").map_err(sql)?;
    let mut rows = statement.query([]).map_err(sql)?;
    while let Some(row) = rows.next().map_err(sql)? {
        let [lane, first, stored] = numbers(row)?;
        if i64::from(sum(&[lane, first], &[])) != stored {
            return Err(Error::Broken(format!("a damaged start of partition {lane}")));
        }
        starts.insert(lane, first);
    }
    let mut lanes = Vec::new();
    for topic in Topic::ALL.into_iter().filter(|topic| topic.is_durable()) {
        for partition in (0..partitions).map(Partition) {
            let id = (topic, partition);
            let start = Offset(starts.get(&lane_number(id)).map_or(0, |first| first.cast_unsigned()));
            // What was trimmed to its end has no row left and still goes on counting there.
            lanes.push((id, start, last_end(connection, id)?.unwrap_or_default().max(start)));
        }
    }
    Ok(lanes)
}

fn numbers<const N: usize>(row: &rusqlite::Row<'_>) -> Result<[i64; N], Error> {
    let mut numbers = [0; N];
    for (column, number) in numbers.iter_mut().enumerate() {
        *number = row.get(column).map_err(|error| read_error(&error))?;
    }
    Ok(numbers)
}

fn committed(connection: &Connection, lanes: &[LaneId]) -> Result<Vec<(String, LaneId, Offset)>, Error> {
    let sql = |error: rusqlite::Error| read_error(&error);
    let by_number: BTreeMap<i64, LaneId> = lanes.iter().map(|id| (lane_number(*id), *id)).collect();
    let mut statement = connection.prepare("SELECT lane, position, sum, name FROM committed").map_err(sql)?;
    let mut rows = statement.query([]).map_err(sql)?;
    let mut all = Vec::new();
    while let Some(row) = rows.next().map_err(sql)? {
        let [lane, position, stored] = numbers(row)?;
        let name: String = row.get(3).map_err(sql)?;
        let whole = i64::from(sum(&[lane, position], name.as_bytes())) == stored;
        match by_number.get(&lane) {
            Some(id) if whole => all.push((name, *id, Offset(position.cast_unsigned()))),
            _ => return Err(Error::Broken(format!("a damaged position of group {name:?}"))),
        }
    }
    Ok(all)
}

/// A number that the log keeps of itself; `None` if it was never set.
fn number(connection: &Connection, name: &str) -> Result<Option<u32>, Error> {
    let query = "SELECT value, sum FROM number WHERE name = ?1";
    let found = connection.query_row(query, [name], |row| Ok(numbers(row))).optional();
    let Some([value, stored]) = found.map_err(|error| read_error(&error))?.transpose()? else { return Ok(None) };
    let damaged = || Error::Broken(format!("the number of {name} is damaged"));
    if i64::from(sum(&[value], name.as_bytes())) != stored {
        return Err(damaged());
    }
    u32::try_from(value).map(Some).map_err(|_| damaged())
}

/// Sets a number that the log keeps of itself.
pub(super) fn set_number(connection: &Connection, name: &str, value: u32) -> Result<(), rusqlite::Error> {
    let sum = sum(&[i64::from(value)], name.as_bytes());
    connection.execute("INSERT OR REPLACE INTO number VALUES (?1, ?2, ?3)", params![name, value, sum]).map(drop)
}

/// Without this a bound value may change the plan, and each new value has its statement parsed and planned again.
fn keep_plans(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// Opens or makes the database for its one writer.
pub(super) fn open(file: &Path) -> Result<(Connection, Found), OpenError> {
    let sqlite = |source| OpenError::Sqlite { file: file.to_owned(), source };
    let opened = || -> Result<(Connection, i64), rusqlite::Error> {
        let connection = Connection::open_with_flags(
            file,
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        // Only a checkpoint ever waits, for a reader that holds an old snapshot; it is tried again later.
        connection.busy_timeout(Duration::from_millis(250))?;
        keep_plans(&connection)?;
        let form = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        Ok((connection, form))
    };
    let (connection, found) = opened().map_err(|error| refused(file, error))?;
    if found > FORM {
        return Err(OpenError::Newer { file: file.to_owned(), found, known: FORM });
    }
    let prepare = || -> Result<(), rusqlite::Error> {
        // fullfsync: on macOS fsync alone does not reach the disk. Checkpoints are the writer's, at moments it chooses.
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA fullfsync = ON;
             PRAGMA checkpoint_fullfsync = ON; PRAGMA wal_autocheckpoint = 0; PRAGMA cell_size_check = ON;
             PRAGMA trusted_schema = OFF;",
        )?;
        if found == 0 {
            connection.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} COMMIT;"))?;
        }
        // A process that died of a failing sync may have left commits that the system's cache shows and the disk
        // doesn't have: what is served from here on is first copied and synced anew.
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    };
    prepare().map_err(|error| refused(file, error))?;
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(sqlite)?;
    let damaged = |reason: String| OpenError::Damaged { file: file.to_owned(), reason };
    if mode != "wal" {
        return Err(damaged(format!("its journal mode is {mode}")));
    }
    let number = |name| number(&connection, name).map_err(|error| damaged(error.to_string()));
    let (partitions, starts) = (number("partitions")?.unwrap_or(0), number("starts")?.unwrap_or(0).saturating_add(1));
    if partitions > PARTITIONS_MAX {
        return Err(damaged("the number of partitions".into()));
    }
    set_number(&connection, "starts", starts).map_err(|error| refused(file, error))?;
    let load = || -> Result<Found, Error> {
        let lanes = lanes(&connection, partitions)?;
        let ids: Vec<LaneId> = lanes.iter().map(|(id, ..)| *id).collect();
        let committed = committed(&connection, &ids)?;
        Ok(Found { partitions, starts: u64::from(starts), lanes, committed })
    };
    let found = load().map_err(|error| damaged(error.to_string()))?;
    Ok((connection, found))
}

/// Opens the database for one reading thread.
pub(super) fn open_reader(file: &Path) -> Result<Connection, OpenError> {
    let open = || -> Result<Connection, rusqlite::Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(file, flags)?;
        connection.busy_timeout(Duration::from_secs(5))?;
        keep_plans(&connection)?;
        connection.execute_batch("PRAGMA cell_size_check = ON; PRAGMA trusted_schema = OFF;")?;
        Ok(connection)
    };
    open().map_err(|source| OpenError::Sqlite { file: file.to_owned(), source })
}

/// Start and end of every durable partition, read beside whoever holds the log.
pub(super) fn look(file: &Path) -> Result<Vec<(LaneId, Offset, Offset)>, OpenError> {
    let refused = |error: Error| match error {
        Error::Broken(reason) => OpenError::Damaged { file: file.to_owned(), reason },
        error => OpenError::Io { what: format!("read {}", file.display()), source: io::Error::other(error) },
    };
    let connection = open_reader(file)?;
    let look = || -> Result<_, Error> {
        let snapshot = connection.unchecked_transaction().map_err(|error| read_error(&error))?;
        lanes(&snapshot, number(&snapshot, "partitions")?.unwrap_or(0))
    };
    look().map_err(refused)
}

/// Whether SQLite refuses for damage or for its surroundings.
fn refused(file: &Path, source: rusqlite::Error) -> OpenError {
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown) | None => {
            OpenError::Damaged { file: file.to_owned(), reason: source.to_string() }
        }
        _ => OpenError::Sqlite { file: file.to_owned(), source },
    }
}
