//! What watches over processes, with real ones: they come back after their pause, all end when the folder asks, and a folder
//! has one supervisor.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use engines::process::{LOOK_EVERY, Process, now};
use engines::supervisor::{self, Change, Folder, Restarts};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PAUSE: Duration = Duration::from_millis(300);
/// Whatever is waited for is there by then, however loaded the machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(now() < end, "not in time: {what}");
        thread::sleep(LOOK_EVERY);
    }
}

fn sleeper(dir: &Path, name: &str) -> Process {
    Process::start(name, "sleep", &["1000".to_owned()], &dir.join(format!("{name}.log"))).unwrap()
}

fn kill(process: &Process) -> u32 {
    let id = process.id().unwrap();
    kill_process(Pid::from_raw(i32::try_from(id).unwrap()).unwrap(), Signal::KILL).unwrap();
    id
}

fn is_gone(id: u32) -> bool {
    !PathBuf::from(format!("/proc/{id}")).exists()
}

/// What happens next.
fn next(restarts: &mut Restarts, processes: &mut [&mut Process]) -> (String, Change) {
    until("a change", || restarts.look(processes).unwrap().pop())
}

#[test]
fn what_is_killed_comes_back_after_the_pause_and_the_others_stay() {
    let dir = TempDir::new().unwrap();
    let (mut one, mut other) = (sleeper(dir.path(), "one"), sleeper(dir.path(), "other"));
    let stays = other.id();
    let mut restarts = Restarts::new(Some(PAUSE));
    assert!(restarts.look(&mut [&mut one, &mut other]).unwrap().is_empty());
    for _ in 0..2 {
        let before = kill(&one);
        let (name, change) = next(&mut restarts, &mut [&mut one, &mut other]);
        assert!(name == "one" && matches!(change, Change::Ended(_)), "{name} {change:?}");
        let ended = now();
        assert!(is_gone(before) && one.id().is_none());
        let (name, change) = next(&mut restarts, &mut [&mut one, &mut other]);
        assert!(name == "one" && matches!(change, Change::Started), "{name} {change:?}");
        // It was noticed to have ended a moment before this test heard so.
        assert!(ended.elapsed() + LOOK_EVERY >= PAUSE, "after {:?}", ended.elapsed());
        assert!(one.id().is_some_and(|id| id != before && !is_gone(id)));
        assert_eq!(other.id(), stays);
    }
}

#[test]
fn what_cannot_run_is_tried_again_and_its_log_keeps_each_try() {
    let dir = TempDir::new().unwrap();
    let arguments = ["-c", "echo tried; exit 3"].map(str::to_owned);
    let mut process = Process::start("it", "sh", &arguments, &dir.path().join("it.log")).unwrap();
    let mut restarts = Restarts::new(Some(Duration::from_millis(10)));
    for _ in 0..3 {
        let (_, change) = next(&mut restarts, &mut [&mut process]);
        assert!(matches!(change, Change::Ended(status) if status.code() == Some(3)), "{change:?}");
        assert_eq!(process.last_lines(), "tried", "of the last try alone");
        assert!(matches!(next(&mut restarts, &mut [&mut process]).1, Change::Started));
    }
    drop(process);
    assert!(fs::read_to_string(dir.path().join("it.log")).unwrap().matches("tried").count() >= 3);
}

#[test]
fn without_restarts_the_dead_stay_dead() {
    let dir = TempDir::new().unwrap();
    let mut process = sleeper(dir.path(), "it");
    kill(&process);
    let mut restarts = Restarts::new(None);
    assert!(matches!(next(&mut restarts, &mut [&mut process]).1, Change::Ended(_)));
    let begin = now();
    while begin.elapsed() < PAUSE {
        assert!(restarts.look(&mut [&mut process]).unwrap().is_empty());
        thread::sleep(LOOK_EVERY);
    }
    assert_eq!(process.id(), None);
}

#[test]
fn who_does_not_end_when_asked_is_killed_after_the_grace() {
    let dir = TempDir::new().unwrap();
    let deaf = ["-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done"].map(str::to_owned);
    let log = dir.path().join("deaf.log");
    let (mut deaf, mut polite) = (Process::start("deaf", "sh", &deaf, &log).unwrap(), sleeper(dir.path(), "polite"));
    until("the trap", || fs::read_to_string(&log).unwrap().contains("deaf").then_some(()));
    let ids = [deaf.id().unwrap(), polite.id().unwrap()];
    let begin = now();
    supervisor::end(&mut [&mut deaf, &mut polite], PAUSE);
    assert!(begin.elapsed() >= PAUSE, "the deaf one had its grace");
    assert!(ids.into_iter().all(is_gone));
    let mut polite = sleeper(dir.path(), "polite");
    let begin = now();
    supervisor::end(&mut [&mut polite], PATIENCE);
    assert!(begin.elapsed() < PATIENCE, "nobody is waited for in vain");
}

#[test]
fn a_folder_has_one_supervisor_and_ends_what_it_has_when_asked() {
    let dir = TempDir::new().unwrap();
    let folder = Folder::take(dir.path()).unwrap();
    assert!(supervisor::is_running(dir.path()).unwrap());
    let second = Folder::take(dir.path()).err().expect("it is taken").to_string();
    assert!(second.starts_with("one runs already"), "{second}");

    let mut process = sleeper(dir.path(), "sleeper");
    let id = process.id().unwrap();
    let notes = [("", "ports"), ("sleeper", "none")].map(|(name, note)| (name.to_owned(), note.to_owned()));
    folder.show(&[&mut process], &notes.into()).unwrap();
    assert_eq!(fs::read_to_string(dir.path().join("pids/sleeper")).unwrap(), format!("{id}\n"));
    assert_eq!(
        fs::read_to_string(dir.path().join("processes")).unwrap(),
        format!("process        pid      ports\nsleeper        {id:<8} none\n")
    );
    folder.set_ready().unwrap();
    let is_ready = |id| supervisor::is_ready(dir.path(), id);
    assert!(is_ready(std::process::id()) && !is_ready(id), "of this supervisor, not of one before it");
    folder.clear().unwrap();
    assert!(!is_ready(std::process::id()) && !dir.path().join("processes").exists());

    // As `make cluster-stop` does, which is no child of the supervisor and so does not have the lock itself.
    let apart = r#"for fd in /proc/$$/fd/*; do [ ${fd##*/} -le 2 ] || eval "exec ${fd##*/}>&-"; done; exec "$0" "$@""#;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/cluster-stop.sh");
    let mut stop = Command::new("bash");
    stop.args(["-c", apart, script]).arg(dir.path()).stderr(Stdio::piped());
    let mut stopping = stop.spawn().unwrap();
    until("the request", || folder.is_stop_asked().then_some(()));
    drop(folder);
    assert!(supervisor::is_running(dir.path()).unwrap(), "a process of it still runs");
    assert!(stopping.try_wait().unwrap().is_none(), "it waits for that one too");
    supervisor::end(&mut [&mut process], PATIENCE);
    let stopped = stopping.wait_with_output().unwrap();
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    assert!(is_gone(id));

    assert!(!supervisor::is_running(dir.path()).unwrap());
    let again = stop.output().unwrap();
    assert!(again.status.success() && String::from_utf8_lossy(&again.stderr).contains("no cluster runs"));
    drop(Folder::take(dir.path()).unwrap());
    assert!(!dir.path().join("stop").exists(), "what others left is gone");
}

#[test]
fn a_directory_of_something_else_is_not_touched() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("letters"), "dear").unwrap();
    let error = Folder::take(dir.path()).err().expect("it is not ours").to_string();
    assert!(error.contains("none of a cluster"), "{error}");
    assert_eq!(fs::read_to_string(dir.path().join("letters")).unwrap(), "dear");
}
