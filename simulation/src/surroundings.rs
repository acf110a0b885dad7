//! What surrounds the processes: which of them live, what troubles their calls at the moment, and what was seen of all
//! that. The faulty ports ask here before they do anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use stream::{Consumer, GroupMember};
use tokio::time::{Instant, sleep};

use crate::dice::Dice;
use crate::inside::Commands;
use crate::log::Silent;
use crate::tasks::{ProcessId, Tasks, step};

/// A kind of call to an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// A record outside of transactions.
    Append,
    /// A new transactional producer.
    Producer,
    /// A transaction.
    Commit,
    /// Joining a group.
    Consumer,
    /// The next records.
    Poll,
    /// A group's positions.
    CommitOffsets,
    /// Any read of the log.
    Read,
    /// Any read of the store.
    StoreRead,
    /// Any write to the store.
    StoreWrite,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is made.
    Fine,
    /// It fails, and nothing was done.
    NotDone,
    /// It is made, and fails: nobody hears what became of it.
    Unheard,
}

/// Something that troubles calls for a while.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// Whose calls; `None`: everybody's.
    pub who: Option<ProcessId>,
    /// Which calls.
    pub calls: Vec<Call>,
    /// How many of a thousand.
    pub per_mille: u64,
    /// Of those that fail, how many of a thousand are made all the same.
    pub unheard_per_mille: u64,
    /// Up to then.
    pub until: Instant,
    /// What it is called where it is counted.
    pub name: &'static str,
}

/// A link between two processes that is broken for a while.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    /// Who asks.
    pub from: ProcessId,
    /// Who is asked.
    pub to: ProcessId,
    /// Only answers are lost: what was asked is done.
    pub answers_alone: bool,
    /// Up to then.
    pub until: Instant,
}

/// What surrounds the processes.
pub struct Surroundings {
    /// Who is ready.
    pub tasks: Arc<Tasks>,
    /// Chance of delays and failures.
    pub dice: Dice,
    state: Mutex<State>,
    /// Commands that the log has taken.
    pub commands: Mutex<Commands>,
    silent: Silent,
    seen: Mutex<BTreeMap<String, u64>>,
    broken: Mutex<Vec<String>>,
    /// Processes that have begun so far.
    births: AtomicU64,
}

#[derive(Default)]
struct State {
    alive: BTreeSet<ProcessId>,
    troubles: Vec<Trouble>,
    cuts: Vec<Cut>,
    slow_until: Option<Instant>,
    healed: bool,
    members: Vec<(ProcessId, GroupMember)>,
}

impl Surroundings {
    /// Nothing is wrong yet.
    pub fn new(seed: u64, tasks: Arc<Tasks>) -> Arc<Self> {
        Arc::new(Self {
            tasks,
            dice: Dice::new(seed, "surroundings"),
            state: Mutex::default(),
            commands: Mutex::default(),
            silent: Silent::default(),
            seen: Mutex::default(),
            broken: Mutex::default(),
            births: AtomicU64::new(0),
        })
    }

    /// Counts that something happened.
    pub fn saw(&self, what: &str) {
        self.saw_times(what, 1);
    }

    /// Counts that something happened so many times.
    pub fn saw_times(&self, what: &str, times: u64) {
        if times > 0 {
            *self.seen.lock().entry(what.to_owned()).or_default() += times;
        }
    }

    /// What happened, and how often.
    pub fn seen(&self) -> BTreeMap<String, u64> {
        self.seen.lock().clone()
    }

    /// Something that must never be.
    pub fn broken(&self, what: impl Into<String>) {
        self.broken.lock().push(what.into());
    }

    /// All that must never be.
    pub fn all_broken(&self) -> Vec<String> {
        self.broken.lock().clone()
    }

    /// A process lives from now on.
    pub fn born(&self, process: ProcessId) {
        self.births.fetch_add(1, Ordering::Relaxed);
        self.state.lock().alive.insert(process);
    }

    /// How many processes have begun so far: whoever sees it risen has lived through a take-over.
    pub fn births(&self) -> u64 {
        self.births.load(Ordering::Relaxed)
    }

    /// It does no longer.
    pub fn died(&self, process: ProcessId) {
        let mut state = self.state.lock();
        state.alive.remove(&process);
        state.members.retain(|(of, _)| *of != process);
    }

    /// Whether it lives.
    pub fn is_alive(&self, process: ProcessId) -> bool {
        self.state.lock().alive.contains(&process)
    }

    /// A process has joined a group.
    pub fn joined(&self, process: ProcessId, member: GroupMember) {
        self.state.lock().members.push((process, member));
    }

    /// Its memberships.
    pub fn memberships(&self, process: ProcessId) -> Vec<GroupMember> {
        let state = self.state.lock();
        state.members.iter().filter(|(of, _)| *of == process).map(|(_, member)| member.clone()).collect()
    }

    /// A member that crashed: its group finds out later.
    pub fn silent(self: &Arc<Self>, member: Box<dyn Consumer>) {
        self.silent.add(member);
        let this = Arc::clone(self);
        let later = Duration::from_millis(self.dice.between(50, 1_500));
        self.tasks.spawn(crate::tasks::WORLD, async move {
            sleep(later).await;
            this.silent.give_up();
        });
    }

    /// Adds a trouble.
    pub fn trouble(&self, trouble: Trouble) {
        self.state.lock().troubles.push(trouble);
    }

    /// Breaks a link.
    pub fn cut(&self, cut: Cut) {
        self.state.lock().cuts.push(cut);
    }

    /// Everything takes long up to then.
    pub fn slow(&self, until: Instant) {
        self.state.lock().slow_until = Some(until);
    }

    /// All is well from now on.
    pub fn heal(&self) {
        let mut state = self.state.lock();
        state.healed = true;
        state.troubles.clear();
        state.cuts.clear();
        state.slow_until = None;
    }

    /// Whether nothing goes wrong any more.
    pub fn is_healed(&self) -> bool {
        self.state.lock().healed
    }

    /// The state of the way from one process to another: whether what is asked arrives, and whether the answer does.
    pub fn way(&self, from: ProcessId, to: ProcessId) -> (bool, bool) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.cuts.retain(|cut| cut.until > now);
        let on_way = |cut: &&Cut| cut.from == from && cut.to == to;
        let there = !state.cuts.iter().filter(on_way).any(|cut| !cut.answers_alone);
        let back = !state.cuts.iter().any(|cut| on_way(&cut));
        (there, back)
    }

    /// Lets some time pass, or at least others go first.
    pub async fn delay(&self) {
        let slow = self.state.lock().slow_until.is_some_and(|until| until > Instant::now());
        match self.dice.below(100) {
            _ if slow => sleep(Duration::from_millis(self.dice.between(1, 400))).await,
            0..55 => {}
            55..90 => {
                for _ in 0..self.dice.between(1, 3) {
                    step().await;
                }
            }
            90..97 => sleep(Duration::from_millis(self.dice.between(1, 4))).await,
            _ => sleep(Duration::from_millis(self.dice.between(1, 30))).await,
        }
    }

    /// Decides a call, after a while.
    pub async fn fate(&self, process: ProcessId, call: Call) -> Fate {
        self.delay().await;
        let mut state = self.state.lock();
        if !state.alive.contains(&process) {
            return Fate::NotDone;
        }
        let now = Instant::now();
        state.troubles.retain(|trouble| trouble.until > now);
        for trouble in &state.troubles {
            let concerned = trouble.who.is_none_or(|who| who == process) && trouble.calls.contains(&call);
            if concerned && self.dice.per_mille(trouble.per_mille) {
                let unheard = self.dice.per_mille(trouble.unheard_per_mille);
                self.saw(&format!("{}: {}", trouble.name, if unheard { "unheard" } else { "not done" }));
                return if unheard { Fate::Unheard } else { Fate::NotDone };
            }
        }
        Fate::Fine
    }
}
