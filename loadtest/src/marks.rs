//! What was done to the server, and when: lines that another program appends to a file while the load runs.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Largest file of marks, bytes: some twenty thousand of them.
const FILE_MAX_BYTES: u64 = 1024 * 1024;

/// A mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// When: Unix time, ms.
    pub unix_ms: u64,
    /// What happened.
    pub what: String,
}

/// The marks of a file in the order of their times, and of each line that is none what is wrong with it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Those of one time as they were written.
    pub marks: Vec<Mark>,
    /// What is wrong.
    pub wrong: Vec<String>,
}

/// Makes the file if it is not there: whoever is to write marks sees by it that the load begins.
///
/// # Errors
/// Where it can't be made.
pub fn make(path: &Path) -> Result<()> {
    match File::create_new(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("can't make {} for marks", path.display()))
        }
        _ => Ok(()),
    }
}

/// Reads a file of marks. One that does not exist has none yet.
///
/// # Errors
/// Where it is no file, is larger than a mebibyte, or can't be read.
pub fn read(path: &Path) -> Result<Marks> {
    let reading = || {
        // Looked at first: opening a pipe would wait for its other end.
        match std::fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Marks::default()),
            Err(error) => return Err(error.into()),
            Ok(metadata) if !metadata.is_file() => bail!("it is no file"),
            Ok(_) => {}
        }
        let mut bytes = Vec::new();
        File::open(path)?.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > FILE_MAX_BYTES {
            bail!("it is larger than {FILE_MAX_BYTES} bytes");
        }
        Ok(parse(&bytes))
    };
    reading().with_context(|| format!("can't read the marks of {}", path.display()))
}

fn parse(text: &[u8]) -> Marks {
    let mut marks = Marks::default();
    for (number, line) in (1..).zip(text.split(|byte| *byte == b'\n')) {
        if line.trim_ascii().is_empty() {
            continue;
        }
        match mark(line) {
            Some(mark) => marks.marks.push(mark),
            None => marks.wrong.push(format!("line {number} is no mark: {}", line.escape_ascii())),
        }
    }
    marks.marks.sort_by_key(|mark| mark.unix_ms);
    marks
}

/// `<unix ms> <what happened>`, of which a terminal can show all.
fn mark(line: &[u8]) -> Option<Mark> {
    let (unix_ms, what) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let what = what.trim();
    let fit = !what.is_empty() && !what.contains(char::is_control);
    fit.then_some(Mark { unix_ms: unix_ms.parse().ok()?, what: what.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(unix_ms: u64, what: &str) -> Mark {
        Mark { unix_ms, what: what.to_owned() }
    }

    #[test]
    fn marks_are_put_in_order_and_lines_that_are_none_are_named() {
        let text = b"1763790002000 ingest-1 killed\r\n\n1763790001000 edge-1 killed\n1763790001000 again\nsoon x\n7\n8 \n9 \x1b[2J\n\xff x\n3 end";
        let read = parse(text);
        let expected = [
            mark(3, "end"),
            mark(1_763_790_001_000, "edge-1 killed"),
            mark(1_763_790_001_000, "again"),
            mark(1_763_790_002_000, "ingest-1 killed"),
        ];
        assert_eq!(read.marks, expected);
        let wrong = [
            "line 5 is no mark: soon x",
            "line 6 is no mark: 7",
            "line 7 is no mark: 8 ",
            "line 8 is no mark: 9 \\x1b[2J",
            "line 9 is no mark: \\xff x",
        ];
        assert_eq!(read.wrong, wrong);
    }

    #[test]
    fn a_file_that_is_not_there_yet_has_none_and_one_that_is_too_large_or_no_file_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marks");
        assert_eq!(read(&path).unwrap(), Marks::default());
        make(&path).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        let fits = usize::try_from(FILE_MAX_BYTES).unwrap();
        let mut text = b"5 ".to_vec();
        text.resize(fits, b'x');
        std::fs::write(&path, &text).unwrap();
        make(&path).unwrap();
        assert_eq!(read(&path).unwrap().marks.len(), 1, "what is there already is left alone");
        text.push(b'x');
        std::fs::write(&path, &text).unwrap();
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("larger than"));
        assert!(format!("{:#}", read(dir.path()).unwrap_err()).contains("no file"));
        assert!(format!("{:#}", make(&dir.path().join("no/marks")).unwrap_err()).contains("can't make"));
    }
}
