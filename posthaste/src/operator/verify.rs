//! `posthaste admin verify`: reads the archive through and says what of it can't be as it stands. Changes nothing; the
//! judgements are the archiver's (`archiver::audit`).

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use archiver::audit::{self, Audit};
use indicatif::{ProgressBar, ProgressStyle};
use store::sqlite::walk::Walk;
use stream::embedded::OpenError;

/// What was found.
#[derive(Default)]
struct Found {
    rooms: u64,
    events: u64,
    breaches: u64,
}

/// Reads all of it. Exit status 0: nothing is wrong; 1: something is, and each breach was printed; 2: it could not be
/// read.
pub fn run(data: &Path) -> ExitCode {
    match verify(data) {
        Ok(Found { rooms, events, breaches: 0 }) => {
            println!("clean: {rooms} rooms, {events} events");
            ExitCode::SUCCESS
        }
        Ok(Found { rooms, events, breaches }) => {
            println!("broken: {breaches} breaches in {rooms} rooms, {events} events");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("posthaste: {error:#}");
            ExitCode::from(crate::EXIT_USAGE)
        }
    }
}

fn verify(data: &Path) -> anyhow::Result<Found> {
    let archive = Walk::open(data).with_context(|| format!("no archive can be read in {}", data.display()))?;
    let bar = ProgressBar::new(archive.expected().unwrap_or_default()); // Nothing where that is not a terminal.
    if let Ok(style) = ProgressStyle::with_template("[{bar:40}] {human_pos}/{human_len} events, {eta} left") {
        bar.set_style(style);
    }
    let mut found = Found::default();
    let read = read(data, &archive, &bar, &mut found);
    bar.finish_and_clear();
    match read {
        Ok(()) => Ok(found),
        Err(error) if is_damage(&error) => {
            println!("{error:#}");
            found.breaches += 1;
            Ok(found)
        }
        Err(error) => Err(error),
    }
}

fn read(data: &Path, archive: &Walk, bar: &ProgressBar, found: &mut Found) -> anyhow::Result<()> {
    let Found { rooms, events, breaches } = found;
    let mut report = |breach: String| {
        *breaches += 1;
        bar.suspend(|| println!("{breach}"));
    };
    let before = stream::embedded::extents(data)?;
    let progress = archive.progress().context("progress")?;
    for breach in audit::progress(&progress, &before, &stream::embedded::extents(data)?) {
        report(breach);
    }
    let mut room = None;
    while let Some(id) = archive.next_room(room).context("rooms")? {
        let begin = |stored| Audit::begin(id, stored);
        let audit = archive.room(id, begin, |audit, row| {
            audit.event(row, &mut |breach| report(breach.to_string()));
            *events += 1;
            bar.inc(1);
        });
        audit.with_context(|| format!("room {id}"))?.end(&mut |breach| report(breach.to_string()));
        *rooms += 1;
        room = Some(id);
    }
    Ok(())
}

/// Whether it is the files that are wrong, and not that they can't be had.
fn is_damage(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(store::Error::Broken(_)))
        || matches!(error.downcast_ref(), Some(OpenError::Damaged { .. }))
}
