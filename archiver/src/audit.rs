//! Judging an archive by its rows alone: whether each room is dense and chained, whether its commands are indexed, and
//! whether the rows of rooms and members are what its events come to. Pure: reads nothing, mends nothing.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use schemas::event::{EventKind, Hash};
use schemas::room::{Member, RoomInfo};
use schemas::{CommandId, Event, Offset, Partition, RoomId, Seq, Topic, UserId};
use store::stored::{StoredEvent, StoredRoom};

use crate::plan::TOPICS;

/// Something that can't be as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breach {
    /// In which room.
    pub room: RoomId,
    /// At which event; `None`: in the room's own rows.
    pub seq: Option<Seq>,
    /// What was expected, and what is there.
    pub what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seq {
            Some(seq) => write!(f, "room {} seq {seq}: {}", self.room, self.what),
            None => write!(f, "room {}: {}", self.room, self.what),
        }
    }
}

/// A room that is being judged, event by event.
pub struct Audit {
    room: RoomId,
    stored: StoredRoom,
    next: Seq,
    /// The hash that the next event goes on from; `None` after an event that is missing or can't be read.
    hash: Option<Hash>,
    /// Everything so far could be read, so that what it comes to is known.
    whole: bool,
    info: Option<RoomInfo>,
    members: HashMap<UserId, Member>,
    /// Whose command the last event came of, and the first event of that command.
    command: Option<(UserId, CommandId, Seq)>,
    commands: u64,
    largest_command: Option<CommandId>,
}

impl Audit {
    /// Begins with what is stored of a room but for its events.
    pub fn begin(room: RoomId, stored: StoredRoom) -> Self {
        Self {
            room,
            stored,
            next: Seq(1),
            hash: Some([0; 32]),
            whole: true,
            info: None,
            members: HashMap::new(),
            command: None,
            commands: 0,
            largest_command: None,
        }
    }

    /// Judges the next event's row; rows come by rising seq.
    pub fn event(&mut self, row: StoredEvent, report: &mut dyn FnMut(Breach)) {
        let (room, seq) = (self.room, row.seq);
        let mut breach = |what| report(Breach { room, seq: Some(seq), what });
        if seq != self.next {
            breach(format!("expected seq {} here: what is between is missing", self.next));
            self.lose();
        }
        self.next = seq.next();
        let event = match row.event {
            Ok(event) if (event.room, event.seq) == (room, seq) => event,
            Ok(event) => {
                breach(format!("expected this event, found seq {} of room {}", event.seq, event.room));
                return self.lose();
            }
            Err(reason) => {
                breach(format!("expected an event, found what can't be read: {reason}"));
                return self.lose();
            }
        };
        // Of what a newer version wrote the content is not known, so neither is its hash nor what it does.
        let known = event.kind != EventKind::Unknown;
        if let Some(previous) = self.hash.filter(|_| known) {
            let expected = Event::chain(&previous, seq, &event.salt, &event.kind);
            if expected != event.hash {
                breach(format!("expected the hash {}, found {}", hex(&expected), hex(&event.hash)));
            }
        }
        self.hash = Some(event.hash);
        let command = format_args!("its command {} of {}", event.command, event.by).to_string();
        match row.acted {
            None => breach(format!("{command} is not in the index")),
            Some(acted) if acted.seq == seq => {
                self.commands += 1;
                if (acted.id, acted.at) != (event.id, event.at) {
                    breach(format!(
                        "expected {command} in the index with event {} at {}, found {} at {}",
                        event.id, event.at, acted.id, acted.at
                    ));
                }
                self.command = Some((event.by, event.command, seq));
            }
            Some(acted) if self.command.is_none() && acted.seq < seq => {}
            Some(acted) if self.command == Some((event.by, event.command, acted.seq)) => {}
            Some(acted) => breach(format!("{command} is in the index with seq {}", acted.seq)),
        }
        self.largest_command = self.largest_command.max(Some(event.command));
        self.whole &= known;
        if self.whole {
            self.fold(&event);
        }
    }

    fn fold(&mut self, event: &Event) {
        self.info = RoomInfo::fold(self.info.take(), event);
        self.whole = self.info.is_some();
        if let (EventKind::Member(change), Some(info)) = (&event.kind, &self.info) {
            let before = self.members.remove(&change.user);
            let after = Member::fold(before, event.seq, *change, info.settings.history);
            self.members.insert(change.user, after);
        }
    }

    fn lose(&mut self) {
        (self.hash, self.command, self.whole) = (None, None, false);
    }

    /// Judges the room's own rows, after its last event.
    pub fn end(mut self, report: &mut dyn FnMut(Breach)) {
        let mut breach = |what| report(Breach { room: self.room, seq: None, what });
        let head = self.next.prev();
        match &self.stored.info {
            None => breach(format!("expected a row of a room with head {head}, found none")),
            Some(Err(reason)) => breach(format!("its row can't be read: {reason}")),
            Some(Ok(info)) if info.head_seq != head => {
                breach(format!("its row says that its head is {}, its events end with {head}", info.head_seq));
                self.whole = false;
            }
            Some(Ok(info)) if self.hash.is_some_and(|hash| hash != info.hash) => {
                breach(format!("its row says that its hash is {}, not that of event {head}", hex(&info.hash)));
            }
            Some(Ok(info)) => {
                if let Some(folded) = self.info.as_mut().filter(|_| self.whole) {
                    let members = self.members.values().filter(|member| member.is_in()).count();
                    folded.member_count = u32::try_from(members).unwrap_or(u32::MAX);
                    if folded != info {
                        breach(format!("its events come to {folded:?}, its row says {info:?}"));
                    }
                }
            }
        }
        for (user, member) in &self.stored.members {
            match member {
                Err(reason) => breach(format!("the standing of {user} can't be read: {reason}")),
                Ok(member) if self.whole && self.members.get(user) != Some(member) => {
                    let expected = self.members.get(user);
                    breach(format!("the standing of {user} comes to {expected:?}, its row says {member:?}"));
                }
                Ok(_) => {}
            }
        }
        if !self.whole {
            return;
        }
        for (user, _) in &self.stored.members {
            self.members.remove(user);
        }
        for user in self.members.keys() {
            breach(format!("the standing of {user} is missing"));
        }
        if let Some(found) = self.stored.commands.filter(|found| *found != self.commands) {
            breach(format!("expected {} commands in the index, found {found}", self.commands));
        }
        if self.stored.largest_command != self.largest_command {
            let (expected, found) = (self.largest_command, self.stored.largest_command);
            breach(format!("expected {expected:?} as its largest command, found {found:?}"));
        }
    }
}

/// What of the archive's progress can't be: positions that the log does not reach. `before` is how far it reached before
/// the progress was read, `after` afterwards, so that a server may go on meanwhile.
pub fn progress(
    rows: &[(String, u64, Offset)],
    before: &HashMap<(Topic, Partition), Range<Offset>>,
    after: &HashMap<(Topic, Partition), Range<Offset>>,
) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut left: HashMap<_, _> =
        rows.iter().map(|(topic, partition, at)| ((topic.as_str(), *partition), *at)).collect();
    for (id, extent) in before.iter().filter(|((topic, _), _)| TOPICS.contains(topic)) {
        let (topic, partition) = id;
        let (start, end) = (extent.start, after.get(id).unwrap_or(extent).end);
        let at = left.remove(&(topic.name(), u64::from(partition.0))).unwrap_or_default();
        if at < start || at > end {
            breaches.push(format!("the archive of {topic}/{partition} stands at {at}, the log has {start} to {end}"));
        }
    }
    breaches.extend(left.keys().map(|(topic, partition)| format!("the log has no {topic}/{partition} to archive")));
    breaches.sort();
    breaches
}

fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
