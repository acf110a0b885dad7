//! What a disk could have kept when the power failed, told from the journal of `shim/power.c`: each write since the last
//! sync of its file whole, not at all, or some of its sectors; names that were made or removed since the last sync of
//! the directory up to one of them. Nothing is assumed about the order in which writes reached the disk.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// Numbers that follow from a seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }
}

/// An entry of the journal, as power.c writes it.
struct Entry {
    call: i64,
    at: u64,
    length: u64,
    before: u64,
    name: String,
    old: Vec<u8>,
}

const WRITE: i64 = 1;
const TRUNCATE: i64 = 2;
const SYNC: i64 = 3;
const CREATE: i64 = 4;
const UNLINK: i64 = 5;
const SYNC_DIR: i64 = 6;
const LIE: i64 = 7;

/// The entries that are whole: the last may have been cut off with everything else.
fn entries(mut journal: &[u8]) -> Vec<Entry> {
    let mut entries = Vec::new();
    while let Some((head, rest)) = journal.split_at_checked(48) {
        let number = |index: usize| u64::from_ne_bytes(head[index * 8..][..8].try_into().unwrap());
        let (name, old) = (usize::try_from(number(4)).unwrap(), usize::try_from(number(5)).unwrap());
        let Some((texts, rest)) = rest.split_at_checked(name + old) else { break };
        entries.push(Entry {
            call: number(0).cast_signed(),
            at: number(1),
            length: number(2),
            before: number(3),
            name: String::from_utf8(texts[..name].to_vec()).unwrap(),
            old: texts[name..].to_vec(),
        });
        journal = rest;
    }
    entries
}

/// A change that no sync has covered.
struct Change {
    /// The file, where it is now.
    file: PathBuf,
    entry: Entry,
    /// WRITE: what it wrote.
    new: Vec<u8>,
}

/// What became of the changes that no sync had covered.
#[derive(Default)]
pub struct Cut {
    pub calls: usize,
    kept: u32,
    torn: u32,
    lost: u32,
    names: u32,
    names_lost: u32,
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, kept, torn, lost, names, names_lost } = self;
        let writes = kept + torn + lost;
        write!(f, "after {calls} calls, {writes} writes unsynced: {kept} kept, {torn} torn, {lost} lost")?;
        if *names > 0 { write!(f, "; {names_lost} of {names} names lost") } else { Ok(()) }
    }
}

impl Cut {
    pub fn unsynced(&self) -> u32 {
        self.kept + self.torn + self.lost
    }
}

/// How a disk chooses.
enum Habit {
    /// Nothing unsynced is left.
    Forgets,
    /// Each write is there or not.
    Whole,
    /// Each sector is there or not.
    Sectors,
    /// In order, up to one that is torn.
    InOrder(u64),
}

/// Cuts the power: rewrites the data directory to what could be left of it.
pub fn cut(data: &Path, beside: &Path, random: &mut Random) -> Cut {
    let mut pending: HashMap<PathBuf, Vec<(usize, Entry)>> = HashMap::new();
    let mut names = Vec::new();
    let mut cut = Cut::default();
    for (number, entry) in entries(&std::fs::read(beside.join("journal")).unwrap()).into_iter().enumerate() {
        cut.calls = number + 1;
        let file = data.join(&entry.name);
        match entry.call {
            WRITE | TRUNCATE => pending.entry(file).or_default().push((number, entry)),
            SYNC => drop(pending.remove(&file)),
            SYNC_DIR => names.clear(),
            LIE => {}
            CREATE => names.push((file, None)),
            UNLINK => {
                let link = beside.join(format!("unlinked.{}", entry.at));
                if let Some(changes) = pending.remove(&file) {
                    pending.insert(link.clone(), changes);
                }
                names.push((file, Some(link)));
            }
            call => panic!("call {call}"),
        }
    }

    // Back to what is synced, keeping what was written since.
    let mut changes = Vec::new();
    for (path, entries) in pending {
        let file = File::options().read(true).write(true).open(&path).unwrap();
        for (number, entry) in entries.into_iter().rev() {
            let mut new = vec![0; if entry.call == WRITE { usize::try_from(entry.length).unwrap() } else { 0 }];
            if !new.is_empty() && file.read_exact_at(&mut new, entry.at).is_err() {
                new.clear(); // Killed between the journal and the write.
            }
            file.write_all_at(&entry.old, entry.at).unwrap();
            file.set_len(entry.before).unwrap();
            changes.push((number, Change { file: path.clone(), entry, new }));
        }
    }
    changes.sort_by_key(|(number, _)| *number);

    let habit = match random.below(10) {
        0..2 => Habit::Forgets,
        2..5 => Habit::Whole,
        5..8 => Habit::Sectors,
        _ => Habit::InOrder(random.below(changes.len() as u64 + 1)),
    };
    for (number, (_, change)) in (0..).zip(&changes) {
        let keep_all = match habit {
            Habit::Forgets => Some(false),
            Habit::Whole => Some(random.below(2) == 0),
            Habit::Sectors => None,
            Habit::InOrder(last) if number == last => None,
            Habit::InOrder(last) => Some(number < last),
        };
        let file = File::options().write(true).open(&change.file).unwrap();
        let (mut there, mut gone) = (false, false);
        let mut decide = |random: &mut Random| {
            let keep = keep_all.unwrap_or_else(|| random.below(2) == 0);
            there |= keep;
            gone |= !keep;
            keep
        };
        if change.entry.call == TRUNCATE {
            if decide(random) {
                file.set_len(change.entry.at).unwrap();
            }
        } else {
            let mut at = usize::try_from(change.entry.at).unwrap();
            let mut rest = &change.new[..];
            while !rest.is_empty() {
                let (sector, further) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
                if decide(random) {
                    file.write_all_at(sector, at as u64).unwrap();
                }
                (at, rest) = (at + sector.len(), further);
            }
        }
        match (there, gone) {
            (true, true) => cut.torn += 1,
            (_, false) => cut.kept += 1,
            (false, true) => cut.lost += 1,
        }
    }

    let survive = usize::try_from(random.below(names.len() as u64 + 1)).unwrap();
    (cut.names, cut.names_lost) = (names.len() as u32, (names.len() - survive) as u32);
    for (file, unlinked) in names.into_iter().skip(survive).rev() {
        match unlinked {
            Some(link) => std::fs::rename(link, file).unwrap(),
            None => remove(&file),
        }
    }
    // Shared memory is rebuilt: whatever of it is left must not matter.
    for name in ["log.db-shm", "store.db-shm"] {
        let file = data.join(name);
        match std::fs::metadata(&file) {
            Ok(found) if random.below(2) == 0 => {
                let garbage: Vec<u8> = (0..found.len()).map(|_| random.below(256) as u8).collect();
                std::fs::write(&file, garbage).unwrap();
            }
            _ => remove(&file),
        }
    }
    cut
}

fn remove(file: &Path) {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => panic!("{}: {error}", file.display()),
        _ => {}
    }
}
