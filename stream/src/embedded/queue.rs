//! A queue from async callers to threads, bounded in bytes: who finds it full waits for room (I9).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The queue takes nothing in any more.
pub(super) struct Closed;

pub(super) struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    news: Condvar,
    room: Arc<Semaphore>,
    room_max: u32,
}

struct Waiting<T> {
    items: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    /// With room for so many bytes.
    pub(super) fn new(max_bytes: usize) -> Self {
        let room_max = u32::try_from(max_bytes.min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        Self {
            waiting: Mutex::new(Waiting { items: VecDeque::new(), closed: false }),
            news: Condvar::new(),
            room: Arc::new(Semaphore::new(room_max as usize)),
            room_max,
        }
    }

    /// Waits for room, first come first served, and queues what `item` makes: it keeps the room until it is dropped.
    /// What alone is larger than the queue takes all of it.
    pub(super) async fn push(&self, bytes: usize, item: impl FnOnce(OwnedSemaphorePermit) -> T) -> Result<(), Closed> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.room_max);
        let room = Arc::clone(&self.room).acquire_many_owned(bytes).await.map_err(|_| Closed)?;
        let mut waiting = self.waiting.lock();
        if waiting.closed {
            return Err(Closed);
        }
        waiting.items.push_back(item(room));
        drop(waiting);
        self.news.notify_one();
        Ok(())
    }

    /// Everything that waits, or nothing after `patience`; `None` once closed and empty.
    pub(super) fn take_all(&self, patience: Duration) -> Option<VecDeque<T>> {
        let mut waiting = self.waiting.lock();
        if waiting.items.is_empty() && !waiting.closed {
            self.news.wait_for(&mut waiting, patience);
        }
        if waiting.items.is_empty() && waiting.closed { None } else { Some(std::mem::take(&mut waiting.items)) }
    }

    /// The first that waits; `None` once closed and empty.
    pub(super) fn take(&self) -> Option<T> {
        let mut waiting = self.waiting.lock();
        while waiting.items.is_empty() && !waiting.closed {
            self.news.wait(&mut waiting);
        }
        waiting.items.pop_front()
    }

    /// Takes nothing more in; what waits is still taken out.
    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.room.close();
        self.news.notify_all();
    }
}
