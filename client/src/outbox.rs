//! What waits to be stored: a queue for each room, its first message alone on its way, so that no later one can overtake
//! it whatever is rejected or lost. Pure; the journal has the same on disk.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use schemas::{CommandId, RoomId};

use crate::journal::Queued;

/// A message without any outcome is sent again after this: past the server's own deadline for a command (10 s).
const OUTCOME_TIMEOUT: Duration = Duration::from_secs(15);

/// Messages that wait, by room.
#[derive(Default)]
pub(crate) struct Outbox {
    rooms: BTreeMap<RoomId, Lane>,
    len: usize,
}

#[derive(Default)]
struct Lane {
    queue: VecDeque<Queued>,
    /// The first one is on its way until this, or may not go out before.
    until: Option<Duration>,
    in_flight: bool,
    retries: u32,
    failures: u32,
}

impl Outbox {
    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds one at the end of its room.
    pub(crate) fn push(&mut self, queued: Queued) {
        self.rooms.entry(queued.room).or_default().queue.push_back(queued);
        self.len += 1;
    }

    /// Takes the messages that may go out now: the first of each room that has none on its way.
    pub(crate) fn due(&mut self, now: Duration) -> Vec<(Queued, u32)> {
        let mut due = Vec::new();
        for lane in self.rooms.values_mut() {
            let Some(first) = lane.queue.front_mut() else { continue };
            if lane.until.is_some_and(|until| now < until) {
                continue;
            }
            due.push((first.clone(), lane.retries));
            first.tried = true;
            lane.retries += 1;
            (lane.in_flight, lane.until) = (true, Some(now + OUTCOME_TIMEOUT));
        }
        due
    }

    /// When the next one may go out.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.rooms.values().filter(|lane| !lane.queue.is_empty()).map(|lane| lane.until.unwrap_or_default()).min()
    }

    /// The socket is gone: what was on its way has an unknown outcome, and goes out again with the next one.
    pub(crate) fn lost(&mut self) {
        for lane in self.rooms.values_mut().filter(|lane| lane.in_flight) {
            (lane.in_flight, lane.until) = (false, None);
        }
    }

    /// A message has its outcome and leaves; `None` if it is not the first of its room.
    pub(crate) fn settle(&mut self, room: RoomId, id: CommandId) -> Option<Queued> {
        let lane = self.rooms.get_mut(&room)?;
        lane.queue.front().filter(|first| first.id == id)?;
        let settled = lane.queue.pop_front();
        self.len -= 1;
        (lane.in_flight, lane.until, lane.retries, lane.failures) = (false, None, 0, 0);
        if lane.queue.is_empty() {
            self.rooms.remove(&room);
        }
        settled
    }

    /// A try has failed; `pause` tells how long to wait after so many failures.
    pub(crate) fn failed(&mut self, room: RoomId, id: CommandId, now: Duration, pause: impl FnOnce(u32) -> Duration) {
        let Some(lane) = self.rooms.get_mut(&room) else { return };
        if lane.queue.front().is_some_and(|first| first.id == id) {
            lane.failures += 1;
            (lane.in_flight, lane.until) = (false, Some(now + pause(lane.failures)));
        }
    }

    /// Messages that were never tried and whose id `is_wrong` names: they get another one.
    pub(crate) fn rename(
        &mut self,
        is_wrong: impl Fn(CommandId) -> bool,
        mut fresh: impl FnMut() -> CommandId,
    ) -> Vec<(CommandId, CommandId)> {
        let mut renamed = Vec::new();
        for queued in self.rooms.values_mut().flat_map(|lane| &mut lane.queue) {
            if !queued.tried && is_wrong(queued.id) {
                let id = fresh();
                renamed.push((queued.id, id));
                queued.id = id;
            }
        }
        renamed
    }
}

#[cfg(test)]
mod tests {
    use schemas::message::Content;
    use uuid::Uuid;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn id(n: u128) -> CommandId {
        CommandId(Uuid::from_u128(n))
    }

    fn outbox(messages: &[(u128, u128)]) -> Outbox {
        let mut outbox = Outbox::default();
        for (room, n) in messages {
            let (room, content) = (RoomId(Uuid::from_u128(*room)), Content::text("x"));
            outbox.push(Queued { id: id(*n), room, content, reply_to: None, tried: false });
        }
        outbox
    }

    fn ids(due: &[(Queued, u32)]) -> Vec<u128> {
        due.iter().map(|(queued, _)| queued.id.0.as_u128()).collect()
    }

    #[test]
    fn one_of_each_room_is_on_its_way_and_the_next_follows_its_outcome() {
        let mut outbox = outbox(&[(1, 1), (1, 2), (2, 3)]);
        let room = RoomId(Uuid::from_u128(1));
        assert_eq!(ids(&outbox.due(MS)), [1, 3]);
        assert!(outbox.due(2 * MS).is_empty());
        assert!(outbox.settle(room, id(2)).is_none(), "not the first");
        assert!(outbox.settle(room, id(1)).is_some());
        assert_eq!(ids(&outbox.due(3 * MS)), [2]);
        assert_eq!(outbox.len(), 2);
    }

    #[test]
    fn after_a_failure_the_first_goes_again_before_all_later_ones() {
        let mut outbox = outbox(&[(1, 1), (1, 2)]);
        let room = RoomId(Uuid::from_u128(1));
        outbox.due(MS);
        outbox.failed(room, id(1), MS, |failures| failures * 10 * MS);
        assert_eq!(outbox.next_due(), Some(11 * MS));
        assert!(outbox.due(10 * MS).is_empty());
        let again = outbox.due(11 * MS);
        assert_eq!((ids(&again), again[0].1), (vec![1], 1));
    }

    #[test]
    fn a_lost_socket_and_a_silent_server_bring_it_back() {
        let mut outbox = outbox(&[(1, 1)]);
        outbox.due(MS);
        outbox.lost();
        assert_eq!(ids(&outbox.due(2 * MS)), [1]);
        assert!(outbox.due(OUTCOME_TIMEOUT).is_empty());
        assert_eq!(ids(&outbox.due(2 * MS + OUTCOME_TIMEOUT)), [1]);
    }

    #[test]
    fn only_what_was_never_tried_gets_another_id() {
        let mut outbox = outbox(&[(1, 1), (1, 2)]);
        outbox.due(MS);
        assert_eq!(outbox.rename(|_| true, || id(9)), [(id(2), id(9))]);
    }
}
