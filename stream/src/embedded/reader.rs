//! The threads that read what memory no longer holds. Each read is one short statement of bounded size: no reader
//! holds a snapshot that would keep the write-ahead log from being reset.

use schemas::Offset;
use tokio::sync::oneshot;

use super::database;
use super::queue::Queue;
use crate::broker::LaneId;
use crate::{Error, Fetched};

pub(super) struct ReadJob {
    pub id: LaneId,
    pub from: Offset,
    pub until: Offset,
    pub max_bytes: usize,
    pub reply: oneshot::Sender<Result<Fetched, Error>>,
}

pub(super) fn run(jobs: &Queue<ReadJob>, connection: &rusqlite::Connection) {
    while let Some(ReadJob { id, from, until, max_bytes, reply }) = jobs.take() {
        if reply.is_closed() {
            continue; // The reader went away meanwhile.
        }
        let read = database::read(connection, id, from, until, max_bytes);
        if let Err(error) = &read {
            tracing::error!(topic = id.0.name(), partition = id.1.0, offset = from.0, %error, "cannot read the log");
        }
        let _ = reply.send(read);
    }
}
