//! What the embedded engine keeps when the disk fails, the power is cut, or the process is killed: this program starts
//! itself anew, under a shim that makes the n-th call on the log's files fail (call 1, then 2, …) and knows what was
//! synced, or as a process to be killed.
#![expect(clippy::unwrap_used, reason = "a test stops where something goes wrong")]

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use prometheus::Registry;
use schemas::{Offset, Partition, Topic};
use stream::embedded::{Config, EmbeddedLog, Metrics, OpenError};
use stream::{Error, Log, Polled, Record, Transaction};
use tempfile::TempDir;

const P0: Partition = Partition(0);
const EIO: i64 = 5;
const ENOSPC: i64 = 28;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--as-victim", dir, run] => runtime.block_on(victim(Path::new(dir), run)),
        ["--under-faults", control, name] => {
            let (_, test) = UNDER_FAULTS.iter().find(|(known, _)| *known == name).unwrap();
            test(&runtime, &Control(File::options().read(true).write(true).open(control).unwrap()));
        }
        _ => return suite(&arguments),
    }
    ExitCode::SUCCESS
}

type Test = fn(&tokio::runtime::Runtime, &Control);
const UNDER_FAULTS: [(&str, Test); 5] = [
    ("a_failing_sync_loses_nothing_that_was_acknowledged", |runtime, control| {
        each_nth(|nth| runtime.block_on(write_under_fault(control, Fault { call: 1, error: EIO, nth })));
    }),
    ("a_failing_write_loses_nothing_that_was_acknowledged", |runtime, control| {
        each_nth(|nth| runtime.block_on(write_under_fault(control, Fault { call: 2, error: EIO, nth })));
    }),
    ("a_full_disk_refuses_and_service_resumes_with_room", |runtime, control| {
        each_nth(|nth| runtime.block_on(write_under_fault(control, Fault { call: 2, error: ENOSPC, nth })));
    }),
    ("a_disk_that_differs_from_memory_after_a_fault_closes_the_log", |runtime, control| {
        runtime.block_on(differ_after_a_fault(control));
    }),
    ("a_fault_while_opening_is_an_error_and_harms_nothing", |runtime, control| {
        for (call, error) in [(1, EIO), (2, EIO), (2, ENOSPC)] {
            each_nth(|nth| runtime.block_on(open_under_fault(control, Fault { call, error, nth })));
        }
    }),
];

/// Runs what the arguments select, as libtest would.
fn suite(arguments: &[String]) -> ExitCode {
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let selected = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let mut failed = 0;
    let mut verdict = |name: &str, ok: bool| {
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        failed += usize::from(!ok);
    };
    let faults: Vec<&str> = UNDER_FAULTS.iter().map(|(name, _)| *name).filter(|name| selected(name)).collect();
    if !faults.is_empty() {
        let shim = build_shim();
        for name in faults {
            verdict(name, run_under_shim(&shim, name));
        }
    }
    let name = "a_killed_process_loses_nothing_that_was_acknowledged";
    if selected(name) {
        verdict(name, std::panic::catch_unwind(kill_again_and_again).is_ok());
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn build_shim() -> PathBuf {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shim/faults.c");
    let shim = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults.so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-o"]).arg(&shim).arg(source).arg("-ldl");
    assert!(cc.status().unwrap().success(), "cc cannot build the shim");
    shim
}

fn run_under_shim(shim: &Path, name: &str) -> bool {
    let control = tempfile::NamedTempFile::new().unwrap();
    control.as_file().set_len(40).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.arg("--under-faults").arg(control.path()).arg(name);
    child.env("LD_PRELOAD", shim).env("POSTHASTE_FAULTS", control.path());
    child.status().unwrap().success()
}

/// What the shim shares with this program: five numbers.
struct Control(File);

#[derive(Clone, Copy, Debug)]
struct Fault {
    call: i64,
    error: i64,
    nth: Nth,
}

/// Which calls fail.
#[derive(Clone, Copy, Debug)]
struct Nth {
    skip: i64,
    times: i64,
}

impl Control {
    fn arm(&self, fault: Fault) {
        for (at, number) in (0..).zip([0, fault.error, fault.nth.skip, fault.nth.times, 0]) {
            self.set(at, number);
        }
        self.set(0, fault.call);
    }

    fn disarm(&self) {
        self.set(0, 0);
    }

    fn set(&self, at: u64, number: i64) {
        self.0.write_all_at(&number.to_ne_bytes(), at * 8).unwrap();
    }

    fn has_fired(&self) -> bool {
        let mut number = [0; 8];
        self.0.read_exact_at(&mut number, 4 * 8).unwrap();
        i64::from_ne_bytes(number) > 0
    }
}

/// Lets the first call fail, then the second … until none is left to fail; each alone and each with all that follow.
fn each_nth(mut test: impl FnMut(Nth) -> bool) {
    for times in [1, i64::MAX] {
        let mut skip = 0;
        while test(Nth { skip, times }) {
            skip += 1;
        }
        assert!(skip > 0, "no call ever failed: the shim is not at work");
    }
}

/// The shim is the disk: memory will do, and the loops are long.
fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// A write-ahead log so small that checkpoints happen all the time.
fn open(dir: &Path) -> Result<EmbeddedLog, OpenError> {
    let config = Config { wal_max_bytes: 160 * 1024, queue_max_bytes: 64 * 1024, ..Config::default() };
    EmbeddedLog::open(dir, config, Metrics::new(&Registry::new()).unwrap())
}

/// What would be left if the power failed now: the shim keeps what was synced.
fn power_cut(dir: &Path) -> TempDir {
    let left = directory();
    for name in ["log.db", "log.db-wal"] {
        std::fs::copy(dir.join(format!("{name}.synced")), left.path().join(name)).unwrap();
    }
    left
}

fn record(text: &str) -> Record {
    Record { key: [1; 16], value: text.to_owned().into_bytes().into() }
}

async fn texts(log: &EmbeddedLog, topic: Topic) -> Vec<String> {
    let mut all = Vec::new();
    let mut at = log.start(topic, P0).await.unwrap();
    loop {
        let fetched = log.read(topic, P0, at, 100_000).await.unwrap();
        all.extend(fetched.records.iter().map(|p| String::from_utf8(p.record.value.to_vec()).unwrap()));
        if fetched.next == at {
            return all;
        }
        at = fetched.next;
    }
}

/// What was answered.
#[derive(Clone, Default)]
struct Answers {
    all: Vec<(String, Result<(), Error>)>,
}

impl Answers {
    /// In every topic: all that was acknowledged, nothing that was refused, in order, each once, whole transactions.
    async fn check(&self, log: &EmbeddedLog, context: &str) {
        let found = texts(log, Topic::Events).await;
        let mut rest = found.iter();
        for (text, answer) in &self.all {
            match answer {
                Ok(()) => assert!(rest.any(|other| other == text), "{context}: {text} was lost"),
                Err(Error::Unavailable(_)) => assert!(!found.contains(text), "{context}: {text} was refused"),
                Err(_) => {}
            }
        }
        let known = |text: &String| self.all.iter().filter(|(known, _)| known == text).count() == 1;
        assert!(found.iter().all(known), "{context}: {found:?}");
        assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "{context}: order of {found:?}");
        assert_eq!(texts(log, Topic::UserEvents).await, found, "{context}: half a transaction");
        let consumed = log.committed("g", Topic::Receipts, P0).await.unwrap();
        let last = found.last().and_then(|text| text[..3].parse::<u64>().ok());
        assert_eq!(consumed.map(|offset| offset.0), last, "{context}: consumed with another transaction");
    }
}

/// Writes while one call fails; whether any did.
async fn write_under_fault(control: &Control, fault: Fault) -> bool {
    let context = format!("{fault:?}");
    let dir = directory();
    let log = open(dir.path()).unwrap();
    log.create(1).await.unwrap();
    let mut member = log.consumer("g", &[Topic::Receipts]).await.unwrap();
    assert!(matches!(member.poll().await, Ok(Polled::Assigned { .. })));
    let mut answers = Answers::default();
    let write = async |log: &EmbeddedLog, number: u64| {
        let text = format!("{number:03}:{}", "x".repeat(if number % 4 == 3 { 30_000 } else { 100 }));
        let transaction = Transaction {
            records: vec![(Topic::Events, P0, record(&text)), (Topic::UserEvents, P0, record(&text))],
            consumed: Some((member.member(), vec![(Topic::Receipts, P0, Offset(number))])),
        };
        let answer = match log.producer("t").await {
            Ok(mut producer) => producer.commit(transaction).await.map(drop),
            Err(error) => panic!("{context}: a producer must be had without the disk: {error}"),
        };
        (text, answer)
    };
    control.arm(fault);
    for number in 1..=9 {
        let (text, answer) = write(&log, number).await;
        match &answer {
            Ok(()) | Err(Error::Unavailable(_)) => {}
            Err(Error::Unknown(_)) if fault.error == EIO => {}
            Err(error) => panic!("{context}: {error}"),
        }
        answers.all.push((text, answer));
        answers.check(&log, &context).await;
    }
    let fired = control.has_fired();
    let left = power_cut(dir.path());
    let answers_before = answers.clone();
    if fault.nth.skip % 2 == 0 {
        // The process ends while the fault lasts.
        drop(log);
        control.disarm();
    } else {
        control.disarm();
        for number in 10..=12 {
            let (text, answer) = write(&log, number).await;
            assert!(answer.is_ok(), "{context}: no recovery: {answer:?}");
            answers.all.push((text, answer));
            answers.check(&log, &context).await;
            let left = power_cut(dir.path());
            answers.check(&open(left.path()).unwrap(), &format!("{context}, power cut after recovery")).await;
        }
        drop(log);
    }
    answers_before.check(&open(left.path()).unwrap(), &format!("{context}, power cut")).await;
    let log = open(dir.path()).unwrap_or_else(|error| panic!("{context}: {error}"));
    answers.check(&log, &context).await;
    log.append(Topic::Receipts, P0, vec![record("r")]).await.unwrap();
    // What this process has shown and acknowledged is there after a power cut as well, whatever the former one left.
    let left = power_cut(dir.path());
    let cut = open(left.path()).unwrap();
    assert_eq!(texts(&cut, Topic::Events).await, texts(&log, Topic::Events).await, "{context}, power cut");
    assert_eq!(texts(&cut, Topic::Receipts).await, ["r"], "{context}, power cut");
    fired
}

/// Takes a committed record out of the file behind the engine's back, and lets a sync fail.
async fn differ_after_a_fault(control: &Control) {
    let dir = directory();
    let log = open(dir.path()).unwrap();
    log.create(1).await.unwrap();
    log.append(Topic::Events, P0, vec![record("one")]).await.unwrap();
    log.append(Topic::Events, P0, vec![record("two")]).await.unwrap();
    let thief = rusqlite::Connection::open(dir.path().join("log.db")).unwrap();
    thief.execute("DELETE FROM batch WHERE place = (SELECT max(place) FROM batch)", []).unwrap();
    control.arm(Fault { call: 1, error: EIO, nth: Nth { skip: 0, times: 1 } });
    let failed = log.append(Topic::Events, P0, vec![record("three")]).await;
    assert!(matches!(failed, Err(Error::Unknown(_))), "{failed:?}");
    control.disarm();
    for _ in 0..2 {
        let refused = log.append(Topic::Events, P0, vec![record("four")]).await;
        assert!(
            matches!(&refused, Err(Error::Broken(reason)) if reason.contains("0..1 in place of 0..2")),
            "{refused:?}"
        );
    }
    assert!(matches!(log.read(Topic::Events, P0, Offset(0), 1).await, Err(Error::Broken(_))));
}

/// Opens while one call fails; whether any did.
async fn open_under_fault(control: &Control, fault: Fault) -> bool {
    let dir = directory();
    let append = async |log: EmbeddedLog| {
        log.create(1).await?;
        log.append(Topic::Events, P0, vec![record("kept")]).await
    };
    // A new directory and one with something in it.
    let mut kept = 0;
    let mut fired = false;
    for _ in 0..2 {
        control.arm(fault);
        if let Ok(log) = open(dir.path()) {
            let before = kept;
            kept += usize::from(append(log).await.is_ok());
            assert!(control.has_fired() || kept > before, "{fault:?}: refused without a reason");
        }
        fired |= control.has_fired();
        control.disarm();
        append(open(dir.path()).unwrap_or_else(|error| panic!("{fault:?}: {error}"))).await.unwrap();
        kept += 1;
        let log = open(dir.path()).unwrap();
        let found = texts(&log, Topic::Events).await.len();
        assert!(found >= kept, "{fault:?}: {found} of {kept}");
    }
    fired
}

const WRITERS: usize = 6;

/// Writes until it is killed, and says what was acknowledged.
async fn victim(dir: &Path, run: &str) {
    let log = std::sync::Arc::new(open(dir).unwrap());
    log.create(1).await.unwrap();
    let writers = (0..WRITERS).map(|writer| {
        let (log, run) = (std::sync::Arc::clone(&log), run.to_owned());
        tokio::spawn(async move {
            let mut producer = log.producer(&format!("t{writer}")).await.unwrap();
            for number in 0.. {
                let text = format!("{run}:{writer}:{number}");
                let records = vec![(Topic::Events, P0, record(&text)), (Topic::UserEvents, P0, record(&text))];
                producer.commit(Transaction { records, consumed: None }).await.unwrap();
                let mut out = std::io::stdout().lock();
                writeln!(out, "{text} durable").unwrap();
                out.flush().unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

fn kill_again_and_again() {
    const KILLS: u64 = 20;
    let seed = RandomState::new().build_hasher().finish();
    println!("seed {seed}");
    let mut random = seed;
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: Vec<String> = Vec::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for run in 0..KILLS {
        let mut program = Command::new(std::env::current_exe().unwrap());
        program.arg("--as-victim").arg(dir.path()).arg(run.to_string()).stdout(Stdio::piped());
        let mut victim = program.spawn().unwrap();
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut take = |line: std::io::Result<String>| {
            let line = line.unwrap();
            // Without the end mark the last line may be cut short by the kill.
            if let Some(text) = line.strip_suffix(" durable") {
                acknowledged.push(text.to_owned());
            }
        };
        for line in lines.by_ref().take(1 + (random >> 33) as usize % 120) {
            take(line);
        }
        victim.kill().unwrap(); // SIGKILL
        victim.wait().unwrap();
        lines.for_each(take);

        let log = open(dir.path()).unwrap();
        let found = runtime.block_on(texts(&log, Topic::Events));
        assert_eq!(runtime.block_on(texts(&log, Topic::UserEvents)), found, "half a transaction, seed {seed}");
        let known: HashSet<&String> = found.iter().collect();
        for text in &acknowledged {
            assert!(known.contains(text), "{text} was lost, seed {seed}");
        }
        assert_eq!(known.len(), found.len(), "doubled, seed {seed}");
        for writer in 0..WRITERS {
            let mine = format!("{run}:{writer}:");
            let numbers: Vec<usize> = found.iter().filter_map(|text| text.strip_prefix(&mine)?.parse().ok()).collect();
            assert!(numbers.iter().copied().eq(0..numbers.len()), "order of {mine}{numbers:?}, seed {seed}");
        }
    }
    assert!(acknowledged.len() as u64 >= KILLS, "too little was written to show anything");
}
