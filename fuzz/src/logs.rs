//! Files of the embedded log that were damaged while nobody looked: what is read of them is what was written, or an error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bytes::Bytes;
use prometheus::Registry;
use schemas::{Offset, Partition, Topic};
use stream::embedded::{Config, EmbeddedLog, Metrics};
use stream::{Error, Log, Record};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::input::Input;

const PARTITIONS: u32 = 2;
const PAGE_BYTES: usize = 4_096;
/// A page in the write-ahead log, with its header (sqlite.org/fileformat2.html#walformat).
const FRAME_BYTES: usize = PAGE_BYTES + 24;
const MEBIBYTE: usize = 1 << 20;

type Lanes = BTreeMap<(Topic, Partition), BTreeMap<Offset, Record>>;

/// A log as it stands on disk, and what was written to it.
struct Written {
    /// Closed in order: the database alone.
    closed: Vec<u8>,
    /// As a crash leaves it: the database and its write-ahead log.
    crashed: (Vec<u8>, Vec<u8>),
    lanes: Lanes,
}

/// In memory where there is such a place: nothing here is about the disk itself.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("posthaste-fuzz-").tempdir_in(place).unwrap()
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn open(dir: &Path) -> Result<EmbeddedLog, stream::embedded::OpenError> {
    let config = Config {
        volatile_max_bytes: MEBIBYTE,
        // Nothing in memory: everything that is read comes from the file.
        tail_max_bytes: 0,
        queue_max_bytes: MEBIBYTE,
        wal_max_bytes: 16 * MEBIBYTE,
        readers: 1,
    };
    EmbeddedLog::open(dir, config, Metrics::new(&Registry::new()).unwrap())
}

static WRITTEN: LazyLock<Written> = LazyLock::new(|| {
    let (dir, runtime) = (directory(), runtime());
    let log = open(dir.path()).unwrap();
    let mut lanes = Lanes::new();
    let crashed = runtime.block_on(async {
        log.create(PARTITIONS).await.unwrap();
        // Rows of one record and of several, small ones and one over some pages; a trimmed beginning.
        for n in 0..12_u8 {
            let lane =
                ([Topic::Events, Topic::UserEvents, Topic::Receipts][usize::from(n % 3)], Partition(u32::from(n / 6)));
            let size = if n == 4 { 3 * PAGE_BYTES } else { usize::from(n) * 40 };
            let record = |k| Record { key: [n; 16], value: Bytes::from(vec![n ^ k; size + usize::from(k)]) };
            let records: Vec<Record> = (0..=n % 4).map(record).collect();
            let base = log.end(lane.0, lane.1).await.unwrap();
            log.append(lane.0, lane.1, records.clone()).await.unwrap();
            let placed = records.into_iter().enumerate().map(|(n, record)| (Offset(base.0 + n as u64), record));
            lanes.entry(lane).or_default().extend(placed);
        }
        let mut consumer = log.consumer("readers", &[Topic::Events]).await.unwrap();
        while !matches!(consumer.poll().await.unwrap(), stream::Polled::Assigned { .. }) {}
        consumer.commit(vec![(Topic::Events, Partition(0), Offset(1))]).await.unwrap();
        log.trim(Topic::Events, Partition(0), Offset(1)).await.unwrap();
        let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        (read("log.db"), read("log.db-wal"))
    });
    drop(log);
    let closed = std::fs::read(dir.path().join("log.db")).unwrap();
    let written = Written { closed, crashed, lanes };
    // Untouched, all of it is there.
    let (dir, crashed) = (directory(), directory());
    lay(dir.path(), &written.closed, &[]);
    lay(crashed.path(), &written.crashed.0, &written.crashed.1);
    for dir in [dir, crashed] {
        let log = open(dir.path()).unwrap();
        let ends = runtime.block_on(judge(&log, &written.lanes)).unwrap();
        let all = written.lanes.iter().map(|(lane, records)| (*lane, records.keys().next_back().unwrap().0 + 1));
        assert_eq!(ends, all.collect());
    }
    written
});

fn lay(dir: &Path, database: &[u8], wal: &[u8]) {
    std::fs::write(dir.join("log.db"), database).unwrap();
    if !wal.is_empty() {
        std::fs::write(dir.join("log.db-wal"), wal).unwrap();
    }
}

/// The first byte says what is damaged: the file of a log that was closed, a file of one that crashed, or a row, whose
/// checksum is right.
///
/// # Panics
/// Where a law is broken.
pub fn check(data: &[u8]) {
    let written = &*WRITTEN;
    let mut input = Input(data);
    let what = input.byte() % 4;
    let dir = directory();
    let (mut database, mut wal) = match what {
        2 | 3 => written.crashed.clone(),
        _ => (written.closed.clone(), Vec::new()),
    };
    match what {
        1 => {
            lay(dir.path(), &database, &wal);
            put_row(dir.path().join("log.db"), &mut input);
            let log = open(dir.path());
            if let Ok(log) = &log {
                runtime().block_on(read_through(log));
            }
            return;
        }
        2 => damage(&mut wal, FRAME_BYTES, &mut input),
        _ => damage(&mut database, PAGE_BYTES, &mut input),
    }
    lay(dir.path(), &database, &wal);
    let log = match open(dir.path()) {
        Ok(log) => log,
        Err(error) => {
            assert!(error.to_string().contains(&*dir.path().to_string_lossy()), "says what is damaged: {error}");
            return;
        }
    };
    if let Err(error) = runtime().block_on(judge(&log, &written.lanes)) {
        assert!(!error.to_string().contains("a thread of the log has ended"), "{error}");
    }
}

/// Damage as disks and people do it: at one place a few bytes (a checksum of 32 bits finds every such burst), pages that are
/// lost, old, or somewhere else, an end that is missing. Nobody who writes checksums.
fn damage(file: &mut Vec<u8>, page_bytes: usize, input: &mut Input<'_>) {
    let header = file.len() % page_bytes;
    let pages = file.len() / page_bytes;
    for _ in 0..4 {
        if input.is_empty() || file.is_empty() {
            return;
        }
        let (kind, page, other) = (input.byte(), usize::from(input.byte()), usize::from(input.byte()));
        let start = |page: usize| header + page % pages.max(1) * page_bytes;
        let range = |page: usize| start(page)..start(page) + page_bytes;
        if file.len() < header + pages * page_bytes {
            return;
        }
        match kind % 6 {
            0 => {
                let at = start(page) + (other << 8 | usize::from(input.byte())) % page_bytes;
                for (place, byte) in file[at..].iter_mut().zip(input.take(4)) {
                    *place ^= byte;
                }
            }
            1 => file.copy_within(range(other), start(page)),
            2 => file[range(page)].fill(0),
            3 => {
                let (one, two) = (file[range(page)].to_vec(), file[range(other)].to_vec());
                file[range(page)].copy_from_slice(&two);
                file[range(other)].copy_from_slice(&one);
            }
            4 => file.truncate(start(page) + other * 16 % page_bytes),
            _ => {
                let at = page << 8 | other;
                for (place, byte) in file.iter_mut().skip(at).zip(input.take(4)) {
                    *place ^= byte;
                }
            }
        }
    }
}

/// A row whose checksum is right and which says whatever it says.
fn put_row(file: PathBuf, input: &mut Input<'_>) {
    let (topic, partition, offset) =
        (i64::from(input.byte() % 8), i64::from(input.byte() % 4), i64::from(input.byte()));
    let far = i64::from(input.byte()) << 40;
    let place = topic << 59 | partition << 47 | (offset | far) & ((1 << 47) - 1);
    let count = i64::from(input.byte().cast_signed());
    let records = input.0;
    let mut sum = crc32fast::Hasher::new();
    sum.update(&place.to_le_bytes());
    sum.update(&count.to_le_bytes());
    sum.update(records);
    let sum = i64::from(sum.finalize());
    let database = rusqlite::Connection::open(file).unwrap();
    let row = (place, count, sum, records);
    database.execute("INSERT OR REPLACE INTO batch (place, count, sum, records) VALUES (?, ?, ?, ?)", row).unwrap();
}

/// Reads everything that is there; what is read must be what was written, with no hole. Where each partition ends.
async fn judge(log: &EmbeddedLog, lanes: &Lanes) -> Result<BTreeMap<(Topic, Partition), u64>, Error> {
    let mut ends = BTreeMap::new();
    for (lane, written) in lanes {
        let (mut at, end) = (log.start(lane.0, lane.1).await?, log.end(lane.0, lane.1).await?);
        while at < end {
            let fetched = log.read(lane.0, lane.1, at, 1_000).await?;
            assert!(fetched.next > at && fetched.next <= end, "{lane:?}: from {at} to {}", fetched.next);
            let expected: Vec<(&Offset, &Record)> = written.range(at..fetched.next).collect();
            let read: Vec<(&Offset, &Record)> = fetched.records.iter().map(|it| (&it.offset, &it.record)).collect();
            assert!(read == expected, "{lane:?}: {read:?} where {expected:?} was written");
            assert_eq!(read.len() as u64, fetched.next.0 - at.0, "{lane:?}: records that never were");
            at = fetched.next;
        }
        ends.insert(*lane, end.0);
    }
    Ok(ends)
}

/// The same where nobody knows what should be there: places must join all the same.
async fn read_through(log: &EmbeddedLog) {
    for topic in Topic::ALL.into_iter().filter(|topic| topic.is_durable()) {
        for partition in (0..log.partitions()).map(Partition) {
            let (Ok(start), Ok(end)) = (log.start(topic, partition).await, log.end(topic, partition).await) else {
                continue;
            };
            let mut at = start;
            while at < end {
                match log.read(topic, partition, at, 1_000).await {
                    Ok(fetched) => {
                        let places: Vec<u64> = fetched.records.iter().map(|placed| placed.offset.0).collect();
                        let joined: Vec<u64> = (at.0..fetched.next.0).collect();
                        assert_eq!(places, joined);
                        at = fetched.next;
                    }
                    Err(error) => {
                        assert!(!error.to_string().contains("a thread of the log has ended"), "{error}");
                        break;
                    }
                }
            }
        }
    }
}
