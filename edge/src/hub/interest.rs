//! Interest: what local sockets follow, and telling fanout about it. A key is registered while at least one socket
//! here wants it; asking twice is harmless, so nobody waits for another's registration.

use std::collections::HashMap;
use std::sync::Arc;

use schemas::frame::close;
use schemas::ids::{RoomId, UserId};
use schemas::link::{Lane, Registered, Unavailable};
use schemas::{Offset, Partition, Seq};

use super::Hub;
use crate::socket::outbox::Socket;

impl Hub {
    /// Brings a socket in: its person is online from now on. Answers the position that their list of rooms must be
    /// read at (I7).
    pub async fn enter(&self, socket: &Arc<Socket>) -> Result<Offset, Unavailable> {
        {
            let mut state = self.state.lock();
            if state.sessions.insert(socket.session, Arc::clone(socket)).is_none() {
                state.users.entry(socket.user).or_default().sockets.push(Arc::clone(socket));
                self.metrics.sockets.inc();
            }
            if let Some(drain) = state.drain {
                socket.close(close::RESTART, Some(drain.retry_ms(&self.deps)));
            }
        }
        let key = *socket.user.as_bytes();
        let partition = self.partition(&key);
        let registered = self.register(Lane::Users, partition, &[key]).await?;
        Ok(registered.at)
    }

    /// Takes a socket out, with everything that it followed.
    pub fn leave(&self, socket: &Arc<Socket>) {
        let rooms = socket.rooms();
        let small_rooms = self.small_rooms(&rooms);
        for room in rooms {
            self.unsubscribe(socket, room);
        }
        {
            let mut state = self.state.lock();
            if state.sessions.remove(&socket.session).is_none() {
                return;
            }
            self.metrics.sockets.dec();
            let Some(user) = state.users.get_mut(&socket.user) else { return };
            user.sockets.retain(|other| other.session != socket.session);
            if !user.sockets.is_empty() {
                return;
            }
            state.users.remove(&socket.user);
            // Under the lock, so that a registration that follows is told after this.
            let key = *socket.user.as_bytes();
            self.fanout().unregister(self.deps.edge, Lane::Users, self.partition(&key), &[key]);
        }
        self.gone(socket.user, small_rooms);
    }

    /// Lets a socket follow rooms, each not yet compared with history. Answers for each the position that history
    /// must be read at: every event from there on is offered to the socket (I7).
    pub async fn subscribe(
        &self,
        socket: &Arc<Socket>,
        rooms: &[RoomId],
    ) -> Result<Vec<(RoomId, Offset)>, Unavailable> {
        let mut new: HashMap<Partition, Vec<[u8; 16]>> = HashMap::new();
        {
            let mut state = self.state.lock();
            for room in rooms {
                if socket.follow(*room) {
                    let entry = state.rooms.entry(*room).or_default();
                    if entry.sockets.is_empty() || !entry.described {
                        new.entry(self.partition(room.as_bytes())).or_default().push(*room.as_bytes());
                    }
                    Arc::make_mut(&mut entry.sockets).push(Arc::clone(socket));
                }
            }
        }
        for (partition, keys) in &new {
            if let Err(unavailable) = self.register(Lane::Rooms, *partition, keys).await {
                for room in rooms {
                    self.unsubscribe(socket, *room);
                }
                return Err(unavailable);
            }
        }
        Ok(rooms.iter().map(|room| (*room, self.position_of(*room))).collect())
    }

    /// Ends a socket's following of a room.
    pub fn unsubscribe(&self, socket: &Arc<Socket>, room: RoomId) {
        socket.end(room);
        let mut state = self.state.lock();
        let Some(entry) = state.rooms.get_mut(&room) else { return };
        Arc::make_mut(&mut entry.sockets).retain(|other| other.session != socket.session);
        if entry.sockets.is_empty() {
            state.rooms.remove(&room);
            // Under the lock, so that a registration that follows is told after this.
            let partition = self.partition(room.as_bytes());
            self.fanout().unregister(self.deps.edge, Lane::Rooms, partition, &[*room.as_bytes()]);
        }
    }

    /// How far this edge has heard of a room's partition: history must know at least that.
    pub fn position_of(&self, room: RoomId) -> Offset {
        let lane = (Lane::Rooms, self.partition(room.as_bytes()));
        self.state.lock().lanes.get(&lane).map_or(Offset(0), |heard| heard.watermark)
    }

    /// Tells fanout of interest.
    pub(super) async fn register(
        &self,
        lane: Lane,
        partition: Partition,
        keys: &[[u8; 16]],
    ) -> Result<Registered, Unavailable> {
        // The empty batch that comes before the answer has moved the watermark already.
        let registered = self.fanout().register(self.deps.edge, lane, partition, keys).await?;
        // An owner that has been replaced may not know it yet: what it promises nobody keeps (I6).
        let heard = self.state.lock().lanes.get(&(lane, partition)).map_or(0, |heard| heard.epoch);
        if registered.epoch < heard { Err(Unavailable) } else { Ok(registered) }
    }

    /// A link to fanout has broken and is back, or is new: what stood at its other end of this edge's interest may be
    /// gone, so all of it is registered anew, and what came meanwhile is asked for (I6).
    pub fn link_was_lost(&self) {
        self.register_again(|_| true);
    }

    pub(super) fn register_again(&self, concerns: impl Fn(Partition) -> bool) {
        let mut state = self.state.lock();
        let lanes = state.lanes.iter().filter(|((_, at), _)| concerns(*at));
        let heard: Vec<_> = lanes.map(|((lane, at), heard)| (*lane, *at, heard.watermark)).collect();
        let known = |list: &[(Lane, Partition, Offset)], lane, at| list.iter().any(|it| (it.0, it.1) == (lane, at));
        for (lane, at, watermark) in heard {
            if !known(&state.unregistered, lane, at) {
                state.unregistered.push((lane, at, watermark));
            }
        }
        drop(state);
        self.mend.notify_one();
    }

    /// What is known of a followed room: how many are in, and how far each of a small room's members has got.
    pub fn describe(&self, room: RoomId, member_count: u32, receipts: impl IntoIterator<Item = (UserId, (Seq, Seq))>) {
        let mut state = self.state.lock();
        let Some(entry) = state.rooms.get_mut(&room) else { return };
        entry.member_count = member_count;
        entry.described = true;
        for (user, (delivered, read)) in receipts {
            let known = entry.receipts.entry(user).or_default();
            *known = (known.0.max(delivered), known.1.max(read));
        }
    }

    /// Whether a followed room has yet to be described.
    pub fn is_undescribed(&self, room: RoomId) -> bool {
        self.state.lock().rooms.get(&room).is_some_and(|entry| !entry.described)
    }

    /// Everyone's receipts in a small room, as far as known here.
    pub fn receipts_of(&self, room: RoomId) -> Vec<(UserId, (Seq, Seq))> {
        let state = self.state.lock();
        match state.rooms.get(&room) {
            Some(entry) if entry.is_small() => entry.receipts.iter().map(|(user, at)| (*user, *at)).collect(),
            _ => Vec::new(),
        }
    }
}
