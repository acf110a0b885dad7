//! `posthaste admin verify`: reads the archive through and says what of it can't be as it stands. Changes nothing; the
//! judgements are the archiver's (`archiver::audit`).

mod port;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use archiver::audit::{self, Audit};
use indicatif::{ProgressBar, ProgressStyle};
use store::sqlite::walk::Walk;
use stream::embedded::OpenError;

use crate::config::Settings;
use crate::engines::{self, Reach};
use crate::telemetry::SystemClock;

/// What was found.
#[derive(Default)]
struct Found {
    rooms: u64,
    events: u64,
    breaches: u64,
}

/// Reads all of it. Exit status 0: nothing is wrong; 1: something is, and each breach was printed; 2: it could not be
/// read.
pub fn run(settings: &Settings) -> ExitCode {
    match super::wait(verify(settings)) {
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

async fn verify(settings: &Settings) -> anyhow::Result<Found> {
    if settings.cassandra.is_some() {
        let store = engines::open_store_beside(settings, Arc::new(SystemClock::new())).await?;
        return port::read(&*store, &Reach::new(settings).await?).await;
    }
    let data: &Path = &settings.data;
    let archive = Walk::open(data).with_context(|| format!("no archive can be read in {}", data.display()))?;
    let log = Reach::new(settings).await?;
    let bar = bar(archive.expected().unwrap_or_default(), "events");
    let mut found = Found::default();
    let read = read(&log, &archive, &bar, &mut found).await;
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

/// How far it has come; nothing where that is not a terminal.
fn bar(expected: u64, of: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(expected);
    let template = format!("[{{bar:40}}] {{human_pos}}/{{human_len}} {of}, {{eta}} left");
    match ProgressStyle::with_template(&template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

async fn read(log: &Reach, archive: &Walk, bar: &ProgressBar, found: &mut Found) -> anyhow::Result<()> {
    let Found { rooms, events, breaches } = found;
    let mut report = |breach: String| {
        *breaches += 1;
        bar.suspend(|| println!("{breach}"));
    };
    let before = log.extents().await?;
    let progress = archive.progress().context("progress")?;
    for breach in audit::progress(&progress, &before, &log.extents().await?) {
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
