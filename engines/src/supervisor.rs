//! Watches over processes: starts again what has ended, says in a folder what runs, and ends all of it when the folder
//! asks. Knows nothing of what they do. Whoever holds the folder's lock is the supervisor or one of its processes, so the
//! lock is free exactly when all have ended, however that happened; `scripts/cluster-stop.sh` waits for it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::io::{FdFlags, fcntl_setfd};

use crate::process::{LOOK_EVERY, Process, now};

/// Held by whoever runs; has the process id of the supervisor.
const LOCK: &str = "lock";
/// Its being there asks for the end.
const STOP: &str = "stop";
/// Has the process id of a supervisor whose processes are all ready. One that was killed leaves it.
const READY: &str = "ready";
/// The supervisor's own output, which whoever starts it opens.
pub const LOG: &str = "supervisor.log";

/// The folder of processes that are watched over.
pub struct Folder {
    dir: PathBuf,
    _lock: File,
}

impl Folder {
    /// Takes a folder, made if missing, for this process and its children, and empties it of what others have left.
    ///
    /// # Errors
    /// If somebody has it already, or if it is a directory of something else.
    pub fn take(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("{}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let names = fs::read_dir(&dir)?.map(|entry| Ok(entry?.file_name())).collect::<std::io::Result<Vec<_>>>()?;
        if !names.iter().all(|name| name == LOG) && !names.iter().any(|name| name == LOCK) {
            bail!("{} holds something that is none of a cluster: name another folder", dir.display());
        }
        let mut lock = File::options().create(true).write(true).truncate(false).open(dir.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => bail!("one runs already in {}", dir.display()),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        for name in names.iter().filter(|name| *name != LOG && *name != LOCK) {
            let path = dir.join(name);
            if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
        }
        // Inherited by each process that is started from here on.
        fcntl_setfd(&lock, FdFlags::empty())?;
        lock.set_len(0)?;
        writeln!(lock, "{}", std::process::id())?;
        Ok(Self { dir, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Whether all are to end.
    pub fn is_stop_asked(&self) -> bool {
        is_stop_asked(&self.dir)
    }

    /// Says that all are ready.
    ///
    /// # Errors
    /// If that can't be written.
    pub fn set_ready(&self) -> anyhow::Result<()> {
        self.replace(READY, &std::process::id().to_string())
    }

    /// Writes down what runs: `processes`, a table for people, with a note on each process by its name (that of "" is the
    /// notes' heading), and `pids/NAME`.
    ///
    /// # Errors
    /// If that can't be written.
    pub fn show(&self, processes: &[&mut Process], notes: &BTreeMap<String, String>) -> anyhow::Result<()> {
        let pids = self.dir.join("pids");
        fs::create_dir_all(&pids)?;
        let mut table = String::new();
        writeln!(table, "{:<14} {:<8} {}", "process", "pid", notes.get("").map_or("", String::as_str))?;
        for process in processes {
            let (name, pid) = (process.name(), process.id().map_or_else(|| "dead".to_owned(), |id| id.to_string()));
            writeln!(table, "{name:<14} {pid:<8} {}", notes.get(name).map_or("", String::as_str))?;
            self.replace(&format!("pids/{name}"), &format!("{pid}\n"))?;
        }
        self.replace("processes", &table)
    }

    /// Takes back what [`Folder::show`] and [`Folder::set_ready`] have said. Logs stay.
    ///
    /// # Errors
    /// If that can't be done.
    pub fn clear(&self) -> anyhow::Result<()> {
        for name in [READY, "processes"] {
            fs::remove_file(self.dir.join(name))?;
        }
        Ok(fs::remove_dir_all(self.dir.join("pids"))?)
    }

    /// Writes a file that readers see whole: the old one or the new one.
    fn replace(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let part = self.dir.join(".part");
        fs::write(&part, text)?;
        Ok(fs::rename(part, self.dir.join(name))?)
    }
}

/// Whether the folder asks for the end.
pub fn is_stop_asked(dir: &Path) -> bool {
    dir.join(STOP).exists()
}

/// Whether all processes of the folder's supervisor are ready, which is process `id`.
pub fn is_ready(dir: &Path, id: u32) -> bool {
    fs::read_to_string(dir.join(READY)).is_ok_and(|ready| ready == id.to_string())
}

/// Whether processes of this folder run: the supervisor, or one that it has started.
///
/// # Errors
/// If the system does not tell.
pub fn is_running(dir: &Path) -> anyhow::Result<bool> {
    let Ok(lock) = File::open(dir.join(LOCK)) else { return Ok(false) };
    match lock.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// What has become of a process.
#[derive(Debug)]
pub enum Change {
    /// It has ended by itself, or somebody has killed it.
    Ended(ExitStatus),
    /// It was started again.
    Started,
    /// It could not be started; the next try is after another pause.
    Failed(anyhow::Error),
}

/// Starts processes that have ended again, each after a pause.
pub struct Restarts {
    pause: Option<Duration>,
    due: BTreeMap<String, Instant>,
}

impl Restarts {
    /// After this pause; without one, what has ended stays so.
    pub fn new(pause: Option<Duration>) -> Self {
        Self { pause, due: BTreeMap::new() }
    }

    /// Looks at each process once, and returns the names of those of which there is something to say.
    ///
    /// # Errors
    /// If the system does not tell whether a process runs.
    pub fn look(&mut self, processes: &mut [&mut Process]) -> anyhow::Result<Vec<(String, Change)>> {
        let mut changes = Vec::new();
        for process in processes {
            let name = process.name().to_owned();
            let change = if let Some(status) = process.ended()? {
                process.kill(); // forgets it: its id may be another's from now on
                Change::Ended(status)
            } else if self.due.get(&name).is_some_and(|due| *due <= now()) {
                self.due.remove(&name);
                process.start_again().map_or_else(Change::Failed, |()| Change::Started)
            } else {
                continue;
            };
            if let (Change::Ended(_) | Change::Failed(_), Some(pause)) = (&change, self.pause) {
                self.due.insert(name.clone(), now() + pause);
            }
            changes.push((name, change));
        }
        Ok(changes)
    }
}

/// Asks processes to end, and kills those that have not within `grace`.
pub fn end(processes: &mut [&mut Process], grace: Duration) {
    let until = now() + grace;
    processes.iter_mut().for_each(|process| process.terminate());
    // One that can't be asked how it is gets killed like one that is late.
    while now() < until
        && processes.iter_mut().any(|process| process.id().is_some() && matches!(process.ended(), Ok(None)))
    {
        thread::sleep(LOOK_EVERY);
    }
    processes.iter_mut().for_each(|process| process.kill());
}
