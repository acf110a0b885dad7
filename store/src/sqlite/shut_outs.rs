//! Shut-outs in SQLite.

use async_trait::async_trait;
use rusqlite::types::{FromSqlError, Type};
use rusqlite::{Connection, Row, params};
use schemas::Timestamp;

use super::SqliteStore;
use super::rows::{all, change, count, integer, one, optional_time, time, unreadable, unsigned};
use crate::Error;
use crate::shut_outs::{SHUT_OUTS_MAX, ShutOut, ShutOuts, Subject};

const COLUMNS: &str = "number, subject, reason, since, until, times, lifted_at";

fn shut_out(row: &Row<'_>) -> rusqlite::Result<ShutOut> {
    let subject = row.get_ref(1)?.as_str()?;
    Ok(ShutOut {
        number: unsigned(row, 0)?,
        subject: subject.parse().map_err(|()| unreadable(1, Type::Text, FromSqlError::InvalidType))?,
        reason: row.get(2)?,
        since: time(row, 3)?,
        until: time(row, 4)?,
        times: row.get(5)?,
        lifted_at: optional_time(row, 6)?,
    })
}

/// The row of a subject from now on, under a new number.
fn put(sql: &Connection, entry: &ShutOut) -> Result<(), Error> {
    let subject = entry.subject.to_string();
    change(sql, "DELETE FROM shut_outs WHERE subject = ?1", [&subject])?;
    let insert = "INSERT INTO shut_outs (subject, reason, since, until, times, lifted_at)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let (since, until, lifted_at) = (entry.since.0, entry.until.0, entry.lifted_at.map(|at| at.0));
    change(sql, insert, params![subject, entry.reason, since, until, entry.times, lifted_at]).map(drop)
}

#[async_trait]
impl ShutOuts for SqliteStore {
    async fn shut_out(&self, entries: Vec<ShutOut>) -> Result<(), Error> {
        let enter = move |sql: &Connection| {
            let query = format!("SELECT {COLUMNS} FROM shut_outs WHERE subject = ?1");
            for entry in entries {
                match one(sql, &query, [entry.subject.to_string()], shut_out)? {
                    None => put(sql, &entry)?,
                    Some(known) => {
                        let merged = known.clone().merged(ShutOut { number: known.number, ..entry });
                        if merged != known {
                            put(sql, &merged)?;
                        }
                    }
                }
            }
            Ok(())
        };
        self.writer.write(0, enter).await
    }

    async fn lift_shut_outs(&self, subject: Option<Subject>, at: Timestamp) -> Result<usize, Error> {
        let lift = move |sql: &Connection| {
            let query = format!(
                "SELECT {COLUMNS} FROM shut_outs WHERE (?1 IS NULL OR subject = ?1)
                    AND (lifted_at IS NULL OR lifted_at < ?2) ORDER BY number"
            );
            let known = all(sql, &query, params![subject.map(|subject| subject.to_string()), at.0], shut_out)?;
            let lifted = known.iter().filter(|entry| entry.since <= at && entry.is_in_force(at)).count();
            for entry in known {
                put(sql, &ShutOut { lifted_at: Some(at), ..entry })?;
            }
            Ok(lifted)
        };
        self.writer.write(0, lift).await
    }

    async fn shut_outs(&self, after: u64) -> Result<Vec<ShutOut>, Error> {
        let query = format!("SELECT {COLUMNS} FROM shut_outs WHERE number > ?1 ORDER BY number LIMIT ?2");
        self.readers.read(move |sql| all(sql, &query, [integer(after), count(SHUT_OUTS_MAX)], shut_out)).await
    }

    async fn purge_shut_outs(&self, before: Timestamp, limit: usize) -> Result<usize, Error> {
        let purge = move |sql: &Connection| {
            let old = "DELETE FROM shut_outs WHERE number IN (
                SELECT number FROM shut_outs WHERE until < ?1 ORDER BY number LIMIT ?2)";
            change(sql, old, params![before.0, count(limit)])
        };
        self.writer.write(0, purge).await
    }
}
