//! A server as a child process: its output in a file, ended with -9 when it is dropped and by the kernel when this
//! process ends.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// Lines of its output that an error shows.
const SHOWN_LINES: usize = 20;
/// Between two looks at what a server has written, or whether it has ended.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A server, running or not.
#[derive(Debug)]
pub struct Process {
    name: String,
    program: String,
    arguments: Vec<String>,
    log: PathBuf,
    /// Bytes of the log that are of runs before this one.
    written_before: u64,
    child: Option<Child>,
}

impl Process {
    /// Starts a program whose output is appended to the file `log`.
    ///
    /// # Errors
    /// If the file can't be written, or there is no `setpriv`. That the program itself is missing shows in its log.
    pub fn start(name: &str, program: &str, arguments: &[String], log: &Path) -> anyhow::Result<Self> {
        let mut this = Self {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: arguments.to_owned(),
            log: log.to_owned(),
            written_before: 0,
            child: None,
        };
        this.start_again()?;
        Ok(this)
    }

    /// Starts it once more, after its end.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        self.kill();
        let output = File::options().create(true).append(true).open(&self.log);
        let output = output.with_context(|| format!("{}", self.log.display()))?;
        self.written_before = output.metadata()?.len();
        // The kernel kills it with the thread that started it (below). Should this process have ended before the
        // kernel knew that, the shell sees another parent.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sh", "-c", r#"[ "$PPID" = "$0" ] && exec "$@""#]);
        command.arg(std::process::id().to_string()).arg(&self.program).args(&self.arguments);
        command.stdin(Stdio::null()).stderr(output.try_clone()?).stdout(output);
        let child =
            spawn(command).with_context(|| format!("could not start {} by setpriv (util-linux)", self.program))?;
        self.child = Some(child);
        Ok(())
    }

    /// What people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits until `is_ready` says so of what the server has written so far.
    ///
    /// # Errors
    /// With the last lines of its output, if it ends or is not ready in time.
    pub(crate) fn ready(&mut self, patience: Duration, is_ready: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let until = now() + patience;
        loop {
            let ended = self.ended()?;
            if is_ready(&self.written()?) {
                return Ok(());
            }
            if let Some(status) = ended {
                bail!("{} ended ({status}):\n{}", self.name, self.last_lines());
            }
            if now() > until {
                bail!("{} is not ready after {patience:?}:\n{}", self.name, self.last_lines());
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    /// Its process id, while it runs or has not been looked at since.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How it has ended, if it has by itself.
    ///
    /// # Errors
    /// If the system does not tell.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.as_mut().map_or(Ok(None), Child::try_wait)?)
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&mut self) {
        // Only of a child that has not been waited for is the id surely its own.
        if let Some(child) = &mut self.child
            && matches!(child.try_wait(), Ok(None))
        {
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
        }
    }

    /// Ends it with -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Only a child that has ended already can't be killed.
            drop(child.kill());
            drop(child.wait());
        }
    }

    /// The last lines of its output, for people.
    pub fn last_lines(&self) -> String {
        let written = self.written().unwrap_or_else(|error| format!("(its log can't be read: {error:#})"));
        let lines: Vec<&str> = written.lines().collect();
        lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
    }

    /// What this run of it has written.
    fn written(&self) -> anyhow::Result<String> {
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.written_before))?;
        let mut written = Vec::new();
        file.read_to_end(&mut written)?;
        Ok(String::from_utf8_lossy(&written).into_owned())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The moment, for waiting.
#[expect(clippy::disallowed_methods, reason = "waits for real processes in real time")]
pub fn now() -> Instant {
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
