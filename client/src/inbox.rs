//! What has come and waits for the listener: of each room every event once, in order. Pure, but for the trait that
//! programs implement.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use schemas::frame::EventView;
use schemas::{RoomId, Seq, UserId};

/// Events that may wait for the listener; beyond it nothing is read from the socket.
const WAITING_MAX: usize = 256;

/// The listener could not do it now: the same event comes again after this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry(pub Duration);

/// Someone is there, or types. Not kept anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// For some seconds.
    Typing(RoomId, UserId),
    /// Came or went.
    Presence(UserId, bool),
    /// Everything missed has been received, all that follows is live.
    Live,
    /// The socket is gone; it will be back.
    Offline,
}

/// What a program does with what it gets.
#[async_trait::async_trait]
pub trait Listener: Send + Sync + 'static {
    /// The next event of a room: each once, in order; one's own messages are among them. When this has returned `Ok`
    /// the event is acknowledged and will not come again, not even after a crash. A listener that takes longer than
    /// the others send holds up reading; the server then serves it from history.
    async fn on_receive(&self, event: &EventView) -> Result<(), Retry>;

    /// Something that passes.
    async fn on_signal(&self, signal: Signal) {
        let _ = signal;
    }
}

/// What waits for the listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// An event.
    Event(EventView),
    /// Events up to here are not for this person: nothing to hear, but the cursor moves.
    Skip(RoomId, Seq),
}

/// Events of all rooms, in the order in which they came.
#[derive(Default)]
pub(crate) struct Inbox {
    collected: HashMap<RoomId, Seq>,
    waiting: VecDeque<Item>,
}

impl Inbox {
    /// Goes on where the listener stopped.
    pub(crate) fn new(cursors: HashMap<RoomId, Seq>) -> Self {
        Self { collected: cursors, waiting: VecDeque::new() }
    }

    /// The last event of each room that is here: where a new socket goes on.
    pub(crate) fn cursors(&self) -> &HashMap<RoomId, Seq> {
        &self.collected
    }

    /// Whether more may be read.
    pub(crate) fn has_room(&self) -> bool {
        self.waiting.len() < WAITING_MAX
    }

    /// Takes an event in; `false`: it has been here before.
    pub(crate) fn collect(&mut self, event: EventView) -> bool {
        let is_new = self.moved(event.room(), event.seq());
        if is_new {
            self.waiting.push_back(Item::Event(event));
        }
        is_new
    }

    /// Events up to `to` will not come.
    pub(crate) fn skip(&mut self, room: RoomId, to: Seq) {
        if self.moved(room, to) {
            self.waiting.push_back(Item::Skip(room, to));
        }
    }

    fn moved(&mut self, room: RoomId, to: Seq) -> bool {
        let cursor = self.collected.entry(room).or_default();
        let is_new = to > *cursor;
        *cursor = to.max(*cursor);
        is_new
    }

    /// The next for the listener; it stays until [`Inbox::done`].
    pub(crate) fn first(&self) -> Option<&Item> {
        self.waiting.front()
    }

    /// The first has been received.
    pub(crate) fn done(&mut self) {
        self.waiting.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use schemas::{EventId, Timestamp};
    use uuid::Uuid;

    use super::*;

    fn event(room: u128, seq: u64) -> EventView {
        EventView::Message {
            room: RoomId(Uuid::from_u128(room)),
            seq: Seq(seq),
            id: EventId::NIL,
            sender: UserId::NIL,
            sent_at: Timestamp(0),
            content: None,
            reply_to: None,
            client_msg_id: None,
        }
    }

    #[test]
    fn what_comes_again_is_not_collected_again() {
        let room = RoomId(Uuid::from_u128(1));
        let mut inbox = Inbox::new([(room, Seq(2))].into());
        assert!(!inbox.collect(event(1, 2)));
        assert!(inbox.collect(event(1, 3)));
        assert!(!inbox.collect(event(1, 3)));
        assert!(inbox.collect(event(2, 1)), "another room");
        inbox.skip(room, Seq(7));
        assert!(!inbox.collect(event(1, 7)));
        assert_eq!(inbox.cursors()[&room], Seq(7));
        let mut order = Vec::new();
        while let Some(item) = inbox.first() {
            order.push(match item {
                Item::Event(event) => event.seq().0,
                Item::Skip(_, to) => to.0,
            });
            inbox.done();
        }
        assert_eq!(order, [3, 1, 7]);
    }
}
