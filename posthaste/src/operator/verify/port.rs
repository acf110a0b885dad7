//! Reading an archive through its port, where the store is no file: row after row, while a server may be writing. The rows of
//! one write come one after the other, so that what is wrong must still be wrong a while later.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Context;
use archiver::audit::{self, Audit};
use indicatif::ProgressBar;
use schemas::{RoomId, Seq};
use store::stored::{StoredEvent, StoredRoom};
use store::{Error, Store};

use super::{Found, bar};
use crate::engines::Reach;

/// Rooms that are listed at once.
const ROOMS: usize = 1_000;
/// Events that are read at once.
const EVENTS: usize = 500;
/// Before a room that does not add up is read again. A write takes milliseconds, and one that is tried again seconds.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
    Duration::from_millis(1_600),
];

/// Reads all of it.
pub async fn read(store: &dyn Store, log: &Reach) -> anyhow::Result<Found> {
    let mut found = Found::default();
    let before = log.extents().await?;
    let mut progress = Vec::new();
    for (topic, partition) in before.keys().copied().filter(|(topic, _)| archiver::TOPICS.contains(topic)) {
        let position = store.progress(topic, partition).await.context("progress")?;
        progress.push((topic.name().to_owned(), u64::from(partition.0), position));
    }
    for breach in audit::progress(&progress, &before, &log.extents().await?) {
        println!("{breach}");
        found.breaches += 1;
    }
    let bar = bar(count(store).await?, "rooms");
    let mut after = None;
    loop {
        let page = store.all_rooms(after, ROOMS).await.context("rooms")?;
        for room in &page {
            let (events, breaches) = judge(store, *room, &bar).await.with_context(|| format!("room {room}"))?;
            found.rooms += 1;
            found.events += events;
            found.breaches += breaches;
            bar.inc(1);
        }
        match page.last() {
            Some(last) if page.len() == ROOMS => after = Some(*last),
            _ => break,
        }
    }
    bar.finish_and_clear();
    Ok(found)
}

async fn count(store: &dyn Store) -> Result<u64, Error> {
    let (mut count, mut after) = (0, None);
    loop {
        let page = store.all_rooms(after, ROOMS).await?;
        count += page.len() as u64;
        match page.last() {
            Some(last) if page.len() == ROOMS => after = Some(*last),
            _ => return Ok(count),
        }
    }
}

/// A room's events and breaches; the latter have been printed.
async fn judge(store: &dyn Store, room: RoomId, bar: &ProgressBar) -> Result<(u64, u64), Error> {
    for pause in PAUSES {
        let mut is_clean = true;
        match look(store, room, &mut |_| is_clean = false).await {
            Ok(events) if is_clean => return Ok((events, 0)),
            Ok(_) | Err(Error::Broken(_)) => tokio::time::sleep(pause).await,
            Err(error) => return Err(error),
        }
    }
    let mut breaches = 0;
    let mut report = |breach: String| {
        breaches += 1;
        bar.suspend(|| println!("{breach}"));
    };
    match look(store, room, &mut report).await {
        Ok(events) => Ok((events, breaches)),
        Err(Error::Broken(reason)) => {
            report(format!("room {room}: can't be read: {reason}"));
            Ok((0, breaches))
        }
        Err(error) => Err(error),
    }
}

/// Judges a room up to the head that its row has; how many events it has. What comes while it is read is for another time.
async fn look(store: &dyn Store, room: RoomId, report: &mut dyn FnMut(String)) -> Result<u64, Error> {
    let rooms = [room];
    let (info, members, largest_command) =
        tokio::try_join!(store.rooms(&rooms), store.members(room), store.largest_command(room))?;
    let info = info.into_iter().next();
    let head = info.as_ref().map(|info| info.head_seq);
    let members = members.into_iter().map(|(user, member)| (user, Ok(member))).collect();
    // The index is in partitions by time: how many ids it has of a room can't be asked.
    let mut audit = Audit::begin(room, StoredRoom { info: info.map(Ok), members, commands: None, largest_command });
    let mut report = |breach: audit::Breach| report(breach.to_string());
    let (mut events, mut after, mut before) = (0, Seq::ZERO, head.map_or(Seq(u64::MAX), Seq::next));
    loop {
        let page = store.events(room, after, before, EVENTS, false).await?;
        let keys: Vec<_> = page.iter().map(|event| (room, event.by, event.command)).collect();
        let acted: HashMap<_, _> = store.acted(&keys).await?.into_iter().collect();
        let (len, from) = (page.len(), after);
        for (event, key) in page.into_iter().zip(&keys) {
            let (seq, acted) = (event.seq, acted.get(key).copied());
            audit.event(StoredEvent { seq, event: Ok(event), acted }, &mut report);
            after = after.max(seq);
            events += 1;
        }
        if len == EVENTS && after > from {
            continue;
        }
        // A row that does not follow its events would hide those after it.
        let is_behind = before != Seq(u64::MAX) && {
            let row = store.rooms(&rooms).await?.into_iter().next();
            row.map(|info| info.head_seq) == head
        };
        if !is_behind {
            break;
        }
        before = Seq(u64::MAX);
    }
    audit.end(&mut report);
    Ok(events)
}
