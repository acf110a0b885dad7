//! Reading the archive through, row by row, as it stands in the file: for whoever judges it. Judges nothing, writes
//! nothing, and takes no row for readable.

use std::path::Path;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};
use schemas::room::{Member, RoomInfo};
use schemas::{CommandId, Event, Offset, Record, RoomId, UserId};
use serde::de::DeserializeOwned;

use super::archive::acted;
use super::rooms::next_room;
use super::rows::{all, one, seq, unsigned, uuid};
use super::{FILE_NAME, OpenError, check_sqlite, connect_reader, migrations};
use crate::Error;
use crate::stored::{Found, StoredEvent, StoredRoom};

/// An archive that is read through.
pub struct Walk {
    sql: Connection,
}

impl Walk {
    /// Opens the store of a data directory; a process that serves it may go on meanwhile.
    ///
    /// # Errors
    /// [`OpenError`] where there is none of this version, or it can't be opened.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        check_sqlite()?;
        let path = dir.join(FILE_NAME);
        std::fs::metadata(&path).map_err(|error| OpenError::Io(path.clone(), error))?;
        migrations::check(&path)?;
        let sql = connect_reader(&path).map_err(|error| OpenError::Sqlite(path, error))?;
        Ok(Self { sql })
    }

    /// Events that there should be, by the rows of their rooms.
    pub fn expected(&self) -> Result<u64, Error> {
        let sum = one(&self.sql, "SELECT coalesce(sum(head_seq), 0) FROM rooms", [], |row| row.get::<_, i64>(0))?;
        Ok(u64::try_from(sum.unwrap_or_default()).unwrap_or_default())
    }

    /// The room after this one, by id, of which anything is kept.
    pub fn next_room(&self, after: Option<RoomId>) -> Result<Option<RoomId>, Error> {
        next_room(&self.sql, after)
    }

    /// Hands over a room, then its events by seq. All of it is of one moment.
    ///
    /// # Errors
    /// `Broken` where the file itself is damaged.
    pub fn room<S>(
        &self,
        room: RoomId,
        begin: impl FnOnce(StoredRoom) -> S,
        mut event: impl FnMut(&mut S, StoredEvent),
    ) -> Result<S, Error> {
        let snapshot = self.sql.unchecked_transaction()?;
        let id = room.as_bytes();
        let info = one(&snapshot, "SELECT body FROM rooms WHERE id = ?1", [id], |row| Ok(json::<RoomInfo>(row, 0)))?;
        let members = "SELECT user, body FROM members WHERE room = ?1";
        let members = all(&snapshot, members, [id], |row| Ok((UserId(uuid(row, 0)?), json::<Member>(row, 1))))?;
        let commands = "SELECT count(*) FROM commands WHERE room = ?1";
        let commands = one(&snapshot, commands, [id], |row| unsigned(row, 0))?.unwrap_or_default();
        let largest = "SELECT command FROM largest_commands WHERE room = ?1";
        let largest_command = one(&snapshot, largest, [id], |row| uuid(row, 0).map(CommandId))?;
        let mut state = begin(StoredRoom { info, members, commands: Some(commands), largest_command });

        let mut rows = snapshot.prepare_cached("SELECT seq, body FROM events WHERE room = ?1 ORDER BY seq")?;
        let mut rows = rows.query([id])?;
        while let Some(row) = rows.next()? {
            let found = blob(row, 1).and_then(|body| Event::decode(body).map_err(|error| error.to_string()));
            let acted = match &found {
                Ok(event) => acted(&snapshot, (room, event.by, event.command))?,
                Err(_) => None,
            };
            event(&mut state, StoredEvent { seq: seq(row, 0)?, event: found, acted });
        }
        Ok(state)
    }

    /// How far the archive says that it has come: topic, partition, position.
    pub fn progress(&self) -> Result<Vec<(String, u64, Offset)>, Error> {
        let query = "SELECT topic, partition, offset FROM progress ORDER BY topic, partition";
        all(&self.sql, query, [], |row| Ok((row.get(0)?, unsigned(row, 1)?, Offset(unsigned(row, 2)?))))
    }
}

fn blob<'a>(row: &'a Row<'_>, column: usize) -> Found<&'a [u8]> {
    match row.get_ref(column) {
        Ok(ValueRef::Blob(bytes)) => Ok(bytes),
        Ok(other) => Err(format!("{:?} in place of a blob", other.data_type())),
        Err(error) => Err(error.to_string()),
    }
}

fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> Found<T> {
    let text = row.get_ref(column).map_err(|error| error.to_string())?;
    let text = text.as_str().map_err(|error| error.to_string())?;
    serde_json::from_str(text).map_err(|error| error.to_string())
}
