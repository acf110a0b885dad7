//! The threads that read, each with a connection of its own. A read is one short transaction: it sees one state, that
//! of the last commit (law 6), and never holds up a checkpoint for long.

use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::{io, thread};

use parking_lot::Mutex;
use rusqlite::Connection;
use tokio::sync::{Semaphore, oneshot};

use super::stopped;
use crate::Error;

/// Most reads that wait; callers wait beyond it (I9). A waiting read is a closure with a few ids.
const QUEUE_MAX_READS: usize = 4_096;

type Read = Box<dyn FnOnce(&Connection) + Send>;

/// The readers' handle; dropping it ends the threads after what is queued.
pub(super) struct Readers {
    queue: Option<Sender<Read>>,
    room: Arc<Semaphore>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    pub(super) fn start(connections: Vec<Connection>) -> io::Result<Self> {
        let (queue, reads) = mpsc::channel::<Read>();
        let reads = Arc::new(Mutex::new(reads));
        let mut threads = Vec::new();
        for connection in connections {
            let reads = reads.clone();
            let serve = move || {
                loop {
                    // One thread waits for the next read, the others for the lock.
                    let next = reads.lock().recv();
                    let Ok(read) = next else { break };
                    read(&connection);
                }
            };
            threads.push(thread::Builder::new().name("store-reader".to_owned()).spawn(serve)?);
        }
        Ok(Self { queue: Some(queue), room: Arc::new(Semaphore::new(QUEUE_MAX_READS)), threads })
    }

    /// Runs a read.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Connection) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let room = self.room.clone().acquire_owned().await.map_err(|_| stopped())?;
        let (answer, answered) = oneshot::channel();
        let read: Read = Box::new(move |connection| {
            drop(room);
            if !answer.is_closed() {
                let result = connection.unchecked_transaction().map_err(Error::from);
                // Nobody may be waiting any more.
                let _ = answer.send(result.and_then(|snapshot| run(&snapshot)));
            }
        });
        self.queue.as_ref().and_then(|queue| queue.send(read).ok()).ok_or_else(stopped)?;
        answered.await.map_err(|_| stopped())?
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.queue = None;
        for thread in self.threads.drain(..) {
            // A panic over there has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
