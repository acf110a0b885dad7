//! Whether a directory, and the SQLite in this program, can be trusted with promises. Owns the directory's lock.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, statfs};
use rustix::io::Errno;

/// Why a log can't be opened; the texts are for whoever runs it.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The linked SQLite may lose commits.
    #[error(
        "SQLite {0} can lose committed records when a checkpoint meets a reset of its log (sqlite.org/wal.html#walresetbug): \
         build with SQLite 3.51.3 or newer"
    )]
    OldSqlite(String),
    /// SQLite's locks and shared memory don't work there.
    #[error("{} is on a network file system ({kind}), where nothing can be promised: use a directory of a local disk", dir.display())]
    Network {
        /// The data directory.
        dir: PathBuf,
        /// Which file system.
        kind: &'static str,
    },
    /// Another process has it.
    #[error("{} is in use by another process: stop that one, or use another directory", dir.display())]
    InUse {
        /// The data directory.
        dir: PathBuf,
    },
    /// Written by a newer program.
    #[error(
        "{} has form {found} and this program knows up to {known}: start the version that wrote it, or a newer one",
        file.display()
    )]
    Newer {
        /// The database.
        file: PathBuf,
        /// Its form.
        found: i64,
        /// The newest form known here.
        known: i64,
    },
    /// What is in it can't be.
    #[error("{} is damaged ({reason}): restore it from a backup", file.display())]
    Damaged {
        /// The database.
        file: PathBuf,
        /// What was found.
        reason: String,
    },
    /// SQLite says no.
    #[error("cannot open {}: is there room, and may this user write there?", file.display())]
    Sqlite {
        /// The database.
        file: PathBuf,
        /// What it says.
        source: rusqlite::Error,
    },
    /// The operating system says no.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// What it says.
        source: io::Error,
    },
}

/// A data directory held for this process alone, until dropped. The kernel lets go of it when the process dies.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the directory, which must exist.
    ///
    /// # Errors
    /// `InUse` if someone has it, `Io` if it can't be told.
    pub fn take(dir: &Path) -> Result<Self, OpenError> {
        let path = dir.join("lock");
        let io = |source| OpenError::Io { what: format!("lock {}", path.display()), source };
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(io)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { _file: file }),
            Err(Errno::WOULDBLOCK) => Err(OpenError::InUse { dir: dir.to_owned() }),
            Err(errno) => Err(io(errno.into())),
        }
    }
}

/// Makes the directory if there is none, and refuses one that is not on a disk of this machine.
pub(super) fn prepare(dir: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { what: format!("use the directory {}", dir.display()), source };
    if !dir.exists() {
        std::fs::create_dir_all(dir).map_err(io)?;
        // Its name must outlast a power cut as well. `parent` of a bare name is the empty path.
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(io)?;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "magic numbers have 32 bits")]
    let magic = statfs(dir).map_err(|errno| io(errno.into()))?.f_type as u32;
    match network_file_system(magic) {
        Some(kind) => Err(OpenError::Network { dir: dir.to_owned(), kind }),
        None => Ok(()),
    }
}

/// The name of a file system that lives elsewhere (or in a program that may), by statfs(2)'s magic number.
fn network_file_system(magic: u32) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "nfs",
        0x517b => "smb",
        0xff53_4d42 => "cifs",
        0xfe53_4d42 => "smb2",
        0x0102_1997 => "9p",
        0x6573_5546 => "fuse",
        0x5346_414f | 0x6b41_4653 => "afs",
        0x7375_7245 => "coda",
        0x00c3_6400 => "ceph",
        0x0bd0_0bd0 => "lustre",
        0x4750_4653 => "gpfs",
        0x0116_1970 => "gfs2",
        0x7461_636f => "ocfs2",
        0x1983_0326 => "beegfs",
        _ => return None,
    })
}

/// Refuses a SQLite with the WAL-reset bug; `number` is major · 1,000,000 + minor · 1,000 + patch.
pub(super) fn check_sqlite(number: i32, name: &str) -> Result<(), OpenError> {
    if number >= 3_051_003 { Ok(()) } else { Err(OpenError::OldSqlite(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sqlite_that_loses_commits_is_refused_with_the_mend() {
        for (number, name) in [(3_051_002, "3.51.2"), (3_045_000, "3.45.0"), (2_099_999, "2.99.999")] {
            let error = check_sqlite(number, name).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains("build with SQLite 3.51.3 or newer"), "{error}");
        }
        for number in [3_051_003, 3_052_000, 4_000_000] {
            check_sqlite(number, "").unwrap();
        }
        check_sqlite(rusqlite::version_number(), rusqlite::version()).unwrap();
    }

    #[test]
    fn network_file_systems_are_known_by_their_magic_numbers() {
        for (magic, kind) in
            [(0x6969, "nfs"), (0xff53_4d42, "cifs"), (0xfe53_4d42, "smb2"), (0x0102_1997, "9p"), (0x6573_5546, "fuse")]
        {
            assert_eq!(network_file_system(magic), Some(kind));
        }
        let local = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x2fc1_2fc1, 0x794c_7630];
        assert!(
            local.into_iter().all(|magic| network_file_system(magic).is_none()),
            "ext4 xfs btrfs tmpfs zfs overlay"
        );
    }

    #[test]
    fn a_directory_has_one_holder_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::take(dir.path()).unwrap();
        let refused = DirLock::take(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("in use by another process: stop that one"), "{refused}");
        drop(first);
        DirLock::take(dir.path()).unwrap();
    }
}
