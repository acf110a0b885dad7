//! A server as a child process: its output in a file, killed with -9 when it is dropped and by the kernel when this
//! process ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// Lines of its output that an error shows.
const SHOWN_LINES: usize = 20;
/// Between two looks at what a server has written.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A running server.
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program whose output goes into the file `log`.
    pub(crate) fn start(program: &str, arguments: &[String], log: &Path) -> anyhow::Result<Self> {
        let output = File::create(log).with_context(|| format!("{}", log.display()))?;
        // The kernel kills it with the thread that started it (below). Should this process have ended before the
        // kernel knew that, the shell sees another parent.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sh", "-c", r#"[ "$PPID" = "$0" ] && exec "$@""#]);
        command.arg(std::process::id().to_string()).arg(program).args(arguments);
        command.stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output);
        let child = spawn(command).with_context(|| format!("could not start {program} by setpriv (util-linux)"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Waits until `is_ready` says so of what the server has written so far.
    ///
    /// # Errors
    /// With the last lines of its output, if it ends or is not ready in time.
    pub(crate) fn ready(&mut self, patience: Duration, is_ready: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let until = now() + patience;
        loop {
            let ended = self.child.try_wait()?;
            let written = String::from_utf8_lossy(&std::fs::read(&self.log)?).into_owned();
            if is_ready(&written) {
                return Ok(());
            }
            let last: Vec<&str> = written.lines().rev().take(SHOWN_LINES).collect();
            let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
            if let Some(status) = ended {
                bail!("the server ended ({status}):\n{last}");
            }
            if now() > until {
                bail!("the server is not ready after {patience:?}:\n{last}");
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Only a child that has ended already can't be killed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The moment, for waiting.
#[expect(clippy::disallowed_methods, reason = "waits for real processes in real time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

type Job = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts a child on a thread that lives as long as this process: a child is killed when the *thread* ends that
/// started it (prctl(2), PR_SET_PDEATHSIG), and those of tests end early.
fn spawn(command: Command) -> anyhow::Result<Child> {
    static SPAWNER: LazyLock<Mutex<mpsc::Sender<Job>>> = LazyLock::new(|| {
        let (jobs, waiting) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in waiting {
                // Whoever asked waits for the answer.
                drop(answer.send(command.spawn()));
            }
        });
        Mutex::new(jobs)
    });
    let (answer, answered) = mpsc::channel();
    SPAWNER.lock().map_err(|_| anyhow::anyhow!("a thread that started a child panicked"))?.send((command, answer))?;
    Ok(answered.recv()??)
}
