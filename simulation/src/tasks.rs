//! The scheduler: which of the tasks that are ready goes on is chance of the seed. A task belongs to a process, and a
//! process can be stopped for a while (a long pause: what it holds is as it was) or for good, between any two polls.
//! Time is tokio's, paused: it moves when nothing is ready.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Wake, Waker};

use parking_lot::Mutex;

use crate::dice::Dice;

/// Polls before the runtime has its turn: connections of the HTTP clients are tasks of its own.
const BURST: usize = 32;

/// A schedule that has not ended after so many polls turns in circles: some thousands are usual.
const POLLS_MAX: u64 = 20_000_000;

/// A process, by number; 0 is the world around them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub u32);

/// The world itself: it neither crashes nor stops.
pub const WORLD: ProcessId = ProcessId(0);

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The tasks of a schedule.
pub struct Tasks {
    state: Mutex<State>,
    dice: Dice,
}

struct State {
    tasks: BTreeMap<u64, Entry>,
    ready: Vec<u64>,
    paused: BTreeSet<ProcessId>,
    /// Processes to be stopped after so many more polls.
    doomed: BTreeMap<ProcessId, u64>,
    next: u64,
    polls: u64,
    /// Folds the order of all polls: two runs with the same value went the same way.
    trace: u64,
    root: Option<Waker>,
}

struct Entry {
    process: ProcessId,
    /// `None` while it is being polled.
    task: Option<Task>,
    waker: Waker,
    queued: bool,
}

struct Wakes {
    id: u64,
    tasks: Weak<Tasks>,
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        if let Some(tasks) = self.tasks.upgrade() {
            tasks.ready(self.id);
        }
    }
}

impl Tasks {
    /// No tasks yet.
    pub fn new(seed: u64) -> Arc<Self> {
        let state = State {
            tasks: BTreeMap::new(),
            ready: Vec::new(),
            paused: BTreeSet::new(),
            doomed: BTreeMap::new(),
            next: 0,
            polls: 0,
            trace: 0,
            root: None,
        };
        Arc::new(Self { state: Mutex::new(state), dice: Dice::new(seed, "tasks") })
    }

    /// Adds a task to a process.
    pub fn spawn(self: &Arc<Self>, process: ProcessId, task: impl Future<Output = ()> + Send + 'static) {
        let mut state = self.state.lock();
        let id = state.next;
        state.next += 1;
        let waker = Waker::from(Arc::new(Wakes { id, tasks: Arc::downgrade(self) }));
        state.tasks.insert(id, Entry { process, task: Some(Box::pin(task)), waker, queued: true });
        state.ready.push(id);
        if let Some(root) = state.root.take() {
            root.wake();
        }
    }

    fn ready(&self, id: u64) {
        let mut state = self.state.lock();
        let Some(entry) = state.tasks.get_mut(&id) else { return };
        if !std::mem::replace(&mut entry.queued, true) {
            state.ready.push(id);
            if let Some(root) = state.root.take() {
                root.wake();
            }
        }
    }

    /// Ends a process: its tasks are dropped where they stand.
    pub fn end(&self, process: ProcessId) {
        let dropped: Vec<Entry> = {
            let mut state = self.state.lock();
            state.paused.remove(&process);
            state.doomed.remove(&process);
            state.tasks.extract_if(.., |_, entry| entry.process == process).map(|(_, entry)| entry).collect()
        };
        drop(dropped);
    }

    /// Lets it go on.
    pub fn go_on(&self, process: ProcessId) {
        let mut state = self.state.lock();
        state.paused.remove(&process);
        state.doomed.remove(&process);
        if let Some(root) = state.root.take() {
            root.wake();
        }
    }

    /// Whether it is stopped.
    pub fn is_paused(&self, process: ProcessId) -> bool {
        self.state.lock().paused.contains(&process)
    }

    /// Stops a process after so many more polls of its tasks: somewhere between two steps.
    pub fn pause_after(&self, process: ProcessId, polls: u64) {
        self.state.lock().doomed.insert(process, polls);
    }

    /// How many polls there were, and what stands for their order.
    pub fn trace(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.polls, state.trace)
    }

    /// Runs the tasks until `until` has come to an end.
    pub async fn run<T>(self: &Arc<Self>, until: impl Future<Output = T>) -> T {
        let mut until = std::pin::pin!(until);
        // The scheduler is fair by itself: tokio's own budget would only make tasks spin.
        tokio::task::unconstrained(poll_fn(|cx| {
            if let Poll::Ready(done) = until.as_mut().poll(cx) {
                return Poll::Ready(done);
            }
            for _ in 0..BURST {
                if !self.poll_one(cx) {
                    return Poll::Pending;
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }))
        .await
    }

    /// Polls one of those that are ready; `false`: none is.
    fn poll_one(&self, cx: &Context<'_>) -> bool {
        let (id, mut task, waker) = {
            let mut state = self.state.lock();
            let free: Vec<usize> = state
                .ready
                .iter()
                .enumerate()
                .filter(|(_, id)| {
                    state
                        .tasks
                        .get(id)
                        .is_some_and(|entry| entry.task.is_some() && !state.paused.contains(&entry.process))
                })
                .map(|(at, _)| at)
                .collect();
            let Some(at) = self.dice.pick(&free) else {
                // Of those that ended nothing is left.
                let State { ready, tasks, .. } = &mut *state;
                ready.retain(|id| tasks.contains_key(id));
                state.root = Some(cx.waker().clone());
                return false;
            };
            let id = state.ready.swap_remove(*at);
            state.polls += 1;
            assert!(state.polls <= POLLS_MAX, "no end after {POLLS_MAX} polls");
            state.trace = checker::digest(&[&state.trace.to_be_bytes(), &id.to_be_bytes()]);
            let Some(entry) = state.tasks.get_mut(&id) else { return true };
            entry.queued = false;
            let process = entry.process;
            let taken = (id, entry.task.take(), entry.waker.clone());
            if let Some(left) = state.doomed.get_mut(&process) {
                *left = left.saturating_sub(1);
                if *left == 0 {
                    state.doomed.remove(&process);
                    state.paused.insert(process);
                }
            }
            taken
        };
        let Some(polled) = &mut task else { return true };
        let done = polled.as_mut().poll(&mut Context::from_waker(&waker)).is_ready();
        let left = {
            let mut state = self.state.lock();
            if done {
                state.tasks.remove(&id);
            }
            match state.tasks.get_mut(&id) {
                Some(entry) => {
                    entry.task = task.take();
                    None
                }
                // It has ended, or its process has meanwhile.
                None => task.take(),
            }
        };
        drop(left);
        true
    }
}

/// Lets others go first.
pub async fn step() {
    let mut waited = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
