//! Between Rust and SQL: the few ways in which the aggregates ask, and the forms of their columns. What does not parse
//! is an error of the row, never a panic.

use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Params, Row};
use schemas::{Seq, Timestamp};
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::Error;

/// Runs a statement; the number of rows that it changed.
pub(super) fn change(sql: &Connection, statement: &str, params: impl Params) -> Result<usize, Error> {
    Ok(sql.prepare_cached(statement)?.execute(params)?)
}

/// The row that a query finds.
pub(super) fn one<T>(
    sql: &Connection,
    query: &str,
    params: impl Params,
    form: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Option<T>, Error> {
    Ok(sql.prepare_cached(query)?.query_row(params, form).optional()?)
}

/// The rows that a query finds.
pub(super) fn all<T>(
    sql: &Connection,
    query: &str,
    params: impl Params,
    form: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Result<Vec<T>, Error> {
    let mut statement = sql.prepare_cached(query)?;
    let rows = statement.query_map(params, form)?;
    Ok(rows.collect::<Result<_, _>>()?)
}

/// A number as SQL has it. Nothing that is stored reaches the largest; "without end" in a question becomes it.
pub(super) fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A limit or a count as SQL has it.
pub(super) fn count(number: usize) -> i64 {
    integer(number as u64)
}

pub(super) fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let number = row.get(column)?;
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, number))
}

pub(super) fn seq(row: &Row<'_>, column: usize) -> rusqlite::Result<Seq> {
    unsigned(row, column).map(Seq)
}

pub(super) fn uuid(row: &Row<'_>, column: usize) -> rusqlite::Result<Uuid> {
    row.get(column).map(Uuid::from_bytes)
}

pub(super) fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    row.get(column).map(Timestamp)
}

pub(super) fn optional_time(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Timestamp))
}

/// A form as JSON.
pub(super) fn to_json(value: &impl Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(|error| Error::Broken(error.to_string()))
}

pub(super) fn json<T: DeserializeOwned>(row: &Row<'_>, column: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    serde_json::from_str(text).map_err(|error| unreadable(column, Type::Text, error))
}

/// The error of a column that holds something else than it should.
pub(super) fn unreadable(
    column: usize,
    kind: Type,
    error: impl std::error::Error + Send + Sync + 'static,
) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, kind, Box::new(error))
}
