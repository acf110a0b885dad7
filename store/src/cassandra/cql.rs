//! Between Rust and CQL: the few ways in which the aggregates ask, and the forms of their values. Statements are prepared
//! once and go to a replica of their partition. What does not parse is an error of the row, never a panic.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use schemas::{CommandId, DeviceId, EventId, Offset, RoomId, Seq, Timestamp, UserId};
use scylla::client::caching_session::CachingSession;
use scylla::client::session::Session;
use scylla::deserialize::row::DeserializeRow;
use scylla::errors::{DbError, ExecutionError, PrepareError, RequestAttemptError};
use scylla::response::query_result::QueryResult;
use scylla::response::{PagingState, PagingStateResponse};
use scylla::statement::batch::{Batch, BatchType};
use scylla::statement::unprepared::Statement;
use scylla::value::{CqlValue, Row};
use tokio::sync::{Mutex, MutexGuard, Semaphore};
use uuid::Uuid;

use super::metrics::{Calls, Metrics};
use crate::Error;

/// Statements that are under way at once for one call. More only wait in the nodes.
const SIDE_BY_SIDE: usize = 32;
/// Batches that one process writes at once. More would take no less time: they wait in the nodes, until they are late, and
/// keep those waiting who read.
const BATCHES_AT_ONCE: usize = 16;
/// Statements of one batch. All are of one partition, so that a batch is one write of a node; this bounds its size.
const BATCH_STATEMENTS: usize = 64;
/// Bytes of one batch, for the same reason: far below the size of a commit log segment, half of which a write must fit.
const BATCH_BYTES: usize = 512 * 1024;
/// Between two tries; twice as long each time. All together outlast the loss of a node: the driver tries others at once,
/// but fails at once as well while it connects again.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];
/// Tries of a conditional change that others get ahead of.
pub(super) const CAS_TRIES: usize = 24;
/// Conditional changes of one process to the same thing come one after the other, as far as these tell things apart:
/// at once they would only make one another fail (Paxos).
const LANES: usize = 64;

/// Values of a statement.
pub(super) type Values = Vec<Option<CqlValue>>;

/// A statement with its values.
pub(super) struct Write(pub(super) &'static str, pub(super) Values);

/// What became of a conditional change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cas {
    /// It was made.
    Applied,
    /// Its condition did not hold; nothing was changed.
    Refused,
    /// Nobody said. A read tells, since conditions are chosen so that the outcome shows.
    Unknown,
}

/// What can be a value.
pub(super) trait Cell {
    fn cell(&self) -> Option<CqlValue>;
}

macro_rules! cells {
    ($($type:ty => |$value:ident| $cell:expr;)*) => {$(
        impl Cell for $type {
            fn cell(&self) -> Option<CqlValue> {
                let $value = self;
                Some($cell)
            }
        }
    )*};
}

cells! {
    i32 => |value| CqlValue::Int(*value);
    i64 => |value| CqlValue::BigInt(*value);
    bool => |value| CqlValue::Boolean(*value);
    str => |value| CqlValue::Text(value.to_owned());
    String => |value| CqlValue::Text(value.clone());
    Uuid => |value| CqlValue::Uuid(*value);
    [u8; 32] => |value| CqlValue::Blob(value.to_vec());
    Bytes => |value| CqlValue::Blob(value.to_vec());
    Vec<u8> => |value| CqlValue::Blob(value.clone());
    RoomId => |value| CqlValue::Uuid(value.0);
    UserId => |value| CqlValue::Uuid(value.0);
    DeviceId => |value| CqlValue::Uuid(value.0);
    EventId => |value| CqlValue::Uuid(value.0);
    Timestamp => |value| CqlValue::BigInt(value.0);
    Seq => |value| CqlValue::BigInt(integer(value.0));
    Offset => |value| CqlValue::BigInt(integer(value.0));
    Ordered => |value| CqlValue::Blob(value.0.as_bytes().to_vec());
    [Ordered] => |value| CqlValue::List(value.iter().filter_map(Cell::cell).collect());
}

impl<T: Cell> Cell for Option<T> {
    fn cell(&self) -> Option<CqlValue> {
        self.as_ref().and_then(Cell::cell)
    }
}

impl<T: Cell + ?Sized> Cell for &T {
    fn cell(&self) -> Option<CqlValue> {
        (**self).cell()
    }
}

/// An id in a clustering key: a blob, since its order is that of bytes, as in the other engines, and that of `uuid` is not.
pub(super) struct Ordered(pub(super) Uuid);

impl From<UserId> for Ordered {
    fn from(id: UserId) -> Self {
        Self(id.0)
    }
}

impl From<RoomId> for Ordered {
    fn from(id: RoomId) -> Self {
        Self(id.0)
    }
}

impl From<CommandId> for Ordered {
    fn from(id: CommandId) -> Self {
        Self(id.0)
    }
}

impl From<DeviceId> for Ordered {
    fn from(id: DeviceId) -> Self {
        Self(id.0)
    }
}

/// The values of a statement, each by its [`Cell`].
macro_rules! values {
    ($($value:expr),* $(,)?) => { vec![$($crate::cassandra::cql::Cell::cell(&$value)),*] };
}
pub(super) use values;

/// A connected session.
pub(super) struct Cql {
    session: CachingSession,
    lanes: [Mutex<()>; LANES],
    batches: Semaphore,
    metrics: Metrics,
}

impl Cql {
    pub(super) fn new(session: Session, metrics: Metrics) -> Self {
        // More than there are statements: none is prepared twice.
        let session = CachingSession::from(session, 1_000);
        Self {
            session,
            lanes: std::array::from_fn(|_| Mutex::new(())),
            batches: Semaphore::new(BATCHES_AT_ONCE),
            metrics,
        }
    }

    /// The rows that a query finds, page by page.
    pub(super) async fn rows<R>(&self, query: &'static str, values: Values) -> Result<Vec<R>, Error>
    where
        R: for<'a> DeserializeRow<'a, 'a>,
    {
        let mut rows = Vec::new();
        let mut at = PagingState::start();
        loop {
            let (result, next) = self.page(&self.metrics.read, query, &values, at).await?;
            let result = result.into_rows_result().map_err(broken)?;
            for row in result.rows::<R>().map_err(broken)? {
                rows.push(row.map_err(broken)?);
            }
            match next {
                PagingStateResponse::HasMorePages { state } => at = state,
                PagingStateResponse::NoMorePages => return Ok(rows),
            }
        }
    }

    /// The first row that a query finds.
    pub(super) async fn row<R>(&self, query: &'static str, values: Values) -> Result<Option<R>, Error>
    where
        R: for<'a> DeserializeRow<'a, 'a>,
    {
        let (result, _) = self.page(&self.metrics.read, query, &values, PagingState::start()).await?;
        result.into_rows_result().map_err(broken)?.maybe_first_row().map_err(broken)
    }

    /// Writes what may be written twice.
    pub(super) async fn write(&self, statement: &'static str, values: Values) -> Result<(), Error> {
        self.page(&self.metrics.write, statement, &values, PagingState::start()).await.map(drop)
    }

    /// Writes rows of one partition that may be written twice, each batch of them as one.
    pub(super) async fn write_partition(&self, writes: Vec<Write>) -> Result<(), Error> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for write in writes {
            bytes += size(&write.1);
            batch.push(write);
            if batch.len() == BATCH_STATEMENTS || bytes >= BATCH_BYTES {
                self.write_batch(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
        }
        self.write_batch(batch).await
    }

    /// Writes rows of several partitions, side by side.
    pub(super) async fn write_partitions(&self, partitions: Vec<Vec<Write>>) -> Result<(), Error> {
        side_by_side(partitions.into_iter().map(|writes| self.write_partition(writes))).await.map(drop)
    }

    async fn write_batch(&self, mut writes: Vec<Write>) -> Result<(), Error> {
        let _place = self.batches.acquire().await.map_err(broken)?;
        if writes.len() <= 1 {
            let Some(Write(statement, values)) = writes.pop() else { return Ok(()) };
            return self.write(statement, values).await;
        }
        let (batch, values) = batch(writes, true);
        tried(&self.metrics.write, || self.session.batch(&batch, &values)).await.map(drop)
    }

    /// Makes a conditional change of one partition. It is tried once.
    pub(super) async fn cas(&self, writes: Vec<Write>) -> Result<Cas, Error> {
        let (batch, values) = batch(writes, false);
        let timer = self.metrics.condition.seconds.start_timer();
        let result = match (batch.statements.len(), batch.statements.first(), values.first()) {
            (1, Some(scylla::statement::batch::BatchStatement::Query(statement)), Some(values)) => {
                self.session.execute_unpaged(statement.clone(), values).await
            }
            _ => self.session.batch(&batch, &values).await,
        };
        timer.observe_duration();
        if result.is_err() {
            self.metrics.condition.failed.inc();
        }
        match result {
            Ok(result) => {
                let result = result.into_rows_result().map_err(broken)?;
                let row = result.maybe_first_row::<Row>().map_err(broken)?;
                match row.and_then(|row| row.columns.into_iter().next().flatten()) {
                    Some(CqlValue::Boolean(true)) => Ok(Cas::Applied),
                    Some(CqlValue::Boolean(false)) => Ok(Cas::Refused),
                    other => Err(Error::Broken(format!("a condition was answered by {other:?}"))),
                }
            }
            Err(error) if is_passing(&error) => {
                tracing::debug!(%error, "a conditional change without an answer");
                tokio::time::sleep(PAUSES[0]).await;
                Ok(Cas::Unknown)
            }
            Err(error) => Err(failed(&error)),
        }
    }

    /// The turn to change something conditionally.
    pub(super) async fn lane(&self, of: impl Hash) -> MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        of.hash(&mut hasher);
        self.lanes[hasher.finish() as usize % LANES].lock().await
    }

    async fn page(
        &self,
        calls: &Calls,
        query: &'static str,
        values: &Values,
        at: PagingState,
    ) -> Result<(QueryResult, PagingStateResponse), Error> {
        let mut statement = Statement::new(query);
        statement.set_is_idempotent(true);
        tried(calls, || self.session.execute_single_page(statement.clone(), values, at.clone())).await
    }
}

/// Makes a call that may be made twice, again and again for as long as that may go better.
async fn tried<T, F: Future<Output = Result<T, ExecutionError>>>(
    calls: &Calls,
    call: impl Fn() -> F,
) -> Result<T, Error> {
    let _timer = calls.seconds.start_timer();
    let mut pauses = PAUSES.into_iter();
    loop {
        let error = match call().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let Some(pause) = pauses.next().filter(|_| is_quick(&error)) else {
            calls.failed.inc();
            return Err(failed(&error));
        };
        calls.retried.inc();
        tokio::time::sleep(pause).await;
    }
}

/// Runs what is independent of one another, so many at a time, and brings the results in order.
pub(super) async fn side_by_side<T>(
    calls: impl IntoIterator<Item = impl Future<Output = Result<T, Error>>>,
) -> Result<Vec<T>, Error> {
    // Made before the first is awaited, and so cheap: a call does nothing before it is polled.
    let calls: Vec<_> = calls.into_iter().collect();
    stream::iter(calls).buffered(SIDE_BY_SIDE).try_collect().await
}

/// Others were ahead each time, or nobody answered.
pub(super) fn contended() -> Error {
    Error::Unavailable("a conditional change did not come about".to_owned())
}

/// A number as CQL has it. Nothing that is stored reaches the largest; "without end" in a question becomes it.
pub(super) fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A limit as CQL has it.
pub(super) fn limit(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

pub(super) fn unsigned(number: i64) -> Result<u64, Error> {
    u64::try_from(number).map_err(broken)
}

/// The id in a clustering key.
pub(super) fn id(bytes: &[u8]) -> Result<Uuid, Error> {
    Uuid::from_slice(bytes).map_err(broken)
}

pub(super) fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(broken)
}

pub(super) fn to_json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string(value).map_err(broken)
}

pub(super) fn broken(error: impl std::fmt::Display) -> Error {
    Error::Broken(error.to_string())
}

fn batch(writes: Vec<Write>, is_idempotent: bool) -> (Batch, Vec<Values>) {
    let mut batch = Batch::new(BatchType::Unlogged);
    batch.set_is_idempotent(is_idempotent);
    let mut values = Vec::with_capacity(writes.len());
    for Write(statement, of) in writes {
        batch.append_statement(statement);
        values.push(of);
    }
    (batch, values)
}

fn size(values: &Values) -> usize {
    let size = |value: &CqlValue| match value {
        CqlValue::Blob(bytes) => bytes.len(),
        CqlValue::Text(text) => text.len(),
        _ => 16,
    };
    values.iter().flatten().map(size).sum()
}

fn failed(error: &ExecutionError) -> Error {
    if is_passing(error) { Error::Unavailable(error.to_string()) } else { Error::Broken(error.to_string()) }
}

/// Whether another try may go better, and this one has not taken all the time that a call has.
fn is_quick(error: &ExecutionError) -> bool {
    is_passing(error) && !matches!(error, ExecutionError::RequestTimeout(_))
}

/// Whether another try may go better.
fn is_passing(error: &ExecutionError) -> bool {
    match error {
        ExecutionError::BadQuery(_) | ExecutionError::UseKeyspaceError(_) => false,
        ExecutionError::LastAttemptError(attempt)
        | ExecutionError::PrepareError(PrepareError::AllAttemptsFailed { first_attempt: attempt }) => {
            is_passing_attempt(attempt)
        }
        _ => true,
    }
}

fn is_passing_attempt(error: &RequestAttemptError) -> bool {
    !matches!(
        error,
        RequestAttemptError::SerializationError(_)
            | RequestAttemptError::CqlRequestSerialization(_)
            | RequestAttemptError::DbError(
                DbError::SyntaxError
                    | DbError::Invalid
                    | DbError::AlreadyExists { .. }
                    | DbError::Unauthorized
                    | DbError::ConfigError
                    | DbError::ProtocolError,
                _
            )
    )
}
