//! What only the inside shows: log and store agree, event by event; a room's events are dense and their hashes chain;
//! nothing is ahead of the work that it stands for.

use std::collections::{BTreeMap, BTreeSet};

use schemas::message::Membership;
use schemas::outcome::Outcome;
use schemas::{Event, EventKind, Partition, Record as _, RoomId, Seq, Topic, UserId};
use store::archive::Archive;
use store::memory::MemoryStore;
use stream::Log;
use stream::memory::MemoryLog;

use crate::people::Device;
use crate::surroundings::Surroundings;

/// All committed events, by room.
pub async fn events(log: &MemoryLog) -> Result<BTreeMap<RoomId, Vec<Event>>, stream::Error> {
    let mut rooms: BTreeMap<RoomId, Vec<Event>> = BTreeMap::new();
    for partition in (0..log.partitions()).map(Partition) {
        let fetched =
            log.read(Topic::Events, partition, log.start(Topic::Events, partition).await?, usize::MAX).await?;
        for placed in fetched.records.iter().filter(|placed| !Outcome::is(&placed.record.value)) {
            if let Ok(event) = Event::decode(&placed.record.value) {
                rooms.entry(event.room).or_default().push(event);
            }
        }
    }
    Ok(rooms)
}

/// What is still open: a message that waits, a client that has not heard everything.
pub async fn unsettled(log: &MemoryLog, devices: &[Device]) -> Option<String> {
    let rooms = match events(log).await {
        Ok(rooms) => rooms,
        Err(error) => return Some(error.to_string()),
    };
    let mut far: BTreeMap<(UserId, RoomId), Seq> = BTreeMap::new();
    for device in devices {
        for (room, seq) in device.standing().await.1 {
            let known = far.entry((device.user, room)).or_default();
            *known = seq.max(*known);
        }
    }
    for device in devices {
        let (queued, cursors) = device.standing().await;
        if queued > 0 {
            return Some(format!("client {} has {queued} messages waiting", device.id.0));
        }
        for (room, events) in &rooms {
            let due = last_for(events, device.user);
            // A device that has nothing of a room begins where another one of its person's has come to.
            let begins = || far.get(&(device.user, *room)).copied().unwrap_or_default();
            let has = cursors.get(room).copied().unwrap_or_else(begins);
            if has < due {
                return Some(format!("client {} has {room} up to {has} of {due}", device.id.0));
            }
        }
    }
    None
}

/// The last event that a person must hear of.
fn last_for(events: &[Event], user: UserId) -> Seq {
    let (mut is_in, mut last) = (false, Seq::ZERO);
    for event in events {
        let was_in = is_in;
        if let EventKind::Member(Membership { user: whose, change, .. }) = &event.kind
            && *whose == user
        {
            if change.begins() {
                is_in = true;
            } else if change.ends() {
                is_in = false;
            }
        }
        if was_in || is_in {
            last = event.seq;
        }
    }
    last
}

/// Looks at everything, once nothing moves any more.
pub async fn check(log: &MemoryLog, store: &MemoryStore, around: &Surroundings) -> anyhow::Result<()> {
    for (room, events) in events(log).await? {
        let mut previous = schemas::event::Hash::default();
        let mut commands = BTreeSet::new();
        for (seq, event) in (1..).zip(&events) {
            if event.seq != Seq(seq) {
                around.broken(format!("log: {room} has {} where {seq} is due", event.seq));
                break;
            }
            if event.reply_to.is_some() && !commands.insert((event.by, event.command)) {
                around.broken(format!("log: command {} of {} acted twice in {room}", event.command, event.by));
            }
            previous = Event::chain(&previous, event.seq, &event.salt, &event.kind);
            if previous != event.hash {
                around.broken(format!("log: the hash of {room} {} does not chain", event.seq));
            }
        }
        let end = Seq(events.len() as u64 + 2);
        let stored = store.events(room, Seq::ZERO, end, usize::MAX, false).await?;
        if stored != events {
            let at = stored.iter().zip(&events).take_while(|(stored, event)| stored == event).count() + 1;
            around.broken(format!("store and log differ in {room} at {at}: {} of {} rows", stored.len(), events.len()));
        }
    }
    for partition in (0..log.partitions()).map(Partition) {
        for topic in archiver::TOPICS {
            let (progress, end) = (store.progress(topic, partition).await?, log.end(topic, partition).await?);
            if progress > end {
                around.broken(format!("the archive of {topic}/{partition} is at {progress} of {end}"));
            }
        }
    }
    Ok(())
}

/// The archive's progress is never ahead of its rows, whenever one looks.
pub async fn check_progress(log: &MemoryLog, store: &MemoryStore, around: &Surroundings) -> anyhow::Result<()> {
    for partition in (0..log.partitions()).map(Partition) {
        let progress = store.progress(Topic::Events, partition).await?;
        let from = log.start(Topic::Events, partition).await?;
        let fetched = log.read(Topic::Events, partition, from, usize::MAX).await?;
        for placed in fetched.records.iter().take_while(|placed| placed.offset < progress) {
            if Outcome::is(&placed.record.value) {
                continue;
            }
            let Ok(event) = Event::decode(&placed.record.value) else { continue };
            let rows = store.events(event.room, event.seq.prev(), event.seq.next(), 1, false).await?;
            if rows.is_empty() {
                let (room, seq) = (event.room, event.seq);
                around.broken(format!("the archive of {partition} is at {progress} and lacks {room} {seq}"));
                return Ok(());
            }
        }
    }
    Ok(())
}
