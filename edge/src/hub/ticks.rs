//! What the hub does by itself: publishing receipts and signs of life, heartbeats, ends of tokens, commands without an
//! outcome, and mending what was missed (I6). One coarse tick for all sockets in place of a timer for each.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use schemas::frame::{Control, close};
use schemas::limits::{HEARTBEAT, RECEIPT_MEMBERS_MAX};
use schemas::link::Lane;
use schemas::receipt::Receipt;
use schemas::signal::{Signal, SignalKind};
use schemas::{Offset, Partition, Record, RoomId, Seq, SessionId, Topic, UserId};
use tokio::sync::watch;

use super::Hub;
use crate::socket::outbox::Socket;
use crate::socket::wire;

/// How often receipts are published, and frames that woke nobody are written at the latest.
const TICK: Duration = Duration::from_millis(100);

/// Ticks between two steps of one person in one room: in a busy room each message would otherwise cause as many
/// receipts as it has receivers, each of them a record, a row and a frame for everyone. The first step after a rest
/// waits for nothing but the tick; where each one is followed by another, the pause doubles up to `STEP_TICKS_MAX`. They
/// are counted in beats of so many ticks, so that what waits in many rooms goes out together.
const STEP_TICKS: u64 = 10;
const STEP_TICKS_MAX: u64 = 40;

/// The same where the step says that something was read, in a small room: a person did that, and another one waits
/// to see it.
const READ_STEP_TICKS: u64 = 2;

/// The longest that a step waits for the next one in a large room, ticks.
const LARGE_ROOM_STEP_TICKS_MAX: u64 = 100;

/// Ticks to a second, the beat of heartbeats and deadlines.
const TICKS_PER_S: u64 = 10;

/// A person is shown as gone when no socket of theirs has come back within this time.
const GRACE_S: u64 = 5;

/// Rooms of a person that hear that they came or went.
const PRESENCE_ROOMS_MAX: usize = 50;

/// Receipts that wait to be published; beyond it they are published at once.
const RECEIPTS_MAX: usize = 50_000;

/// Commands published again in one append: with the largest contents about half of a batch.
const AGAIN_AT_ONCE: usize = 32;

/// Signs of life that wait to be published; more are shed.
const SIGNALS_MAX: usize = 10_000;

/// Receipts and signs of life on their way out, and people whose last socket has gone.
#[derive(Default)]
pub(super) struct Receipts {
    steps: HashMap<(RoomId, UserId), Step>,
    signals: Vec<stream::Record>,
    gone: Vec<(UserId, Vec<RoomId>, u64)>,
    ticks: u64,
}

/// One person's receipts in one room: what has not been published, and when the last step was.
#[derive(Clone, Copy, Debug)]
struct Step {
    session: SessionId,
    delivered: Seq,
    read: Seq,
    published: Option<u64>,
    /// How many steps there have been without a rest.
    streak: u32,
}

impl Step {
    fn waits(&self) -> bool {
        self.delivered.max(self.read) > Seq::ZERO
    }

    /// Whether it may go out, or be forgotten where nothing waits, at this tick.
    fn is_due(&self, tick: u64, members: u32) -> bool {
        let Some(published) = self.published else { return true };
        let pause = match members.div_ceil(RECEIPT_MEMBERS_MAX) {
            0 | 1 if self.read > Seq::ZERO => return tick >= published + READ_STEP_TICKS,
            // So a sender hears about as many a second of a large room as of a small one.
            0 | 1 => (STEP_TICKS << self.streak.saturating_sub(1).min(8)).min(STEP_TICKS_MAX),
            hundreds => (STEP_TICKS * u64::from(hundreds)).min(LARGE_ROOM_STEP_TICKS_MAX),
        };
        tick / STEP_TICKS >= (published + pause) / STEP_TICKS
    }

    /// Takes what waits.
    fn publish(&mut self, tick: u64) -> (Seq, Seq) {
        self.published = Some(tick);
        self.streak = self.streak.saturating_add(1);
        (std::mem::take(&mut self.delivered), std::mem::take(&mut self.read))
    }
}

impl Hub {
    /// Runs until `shutdown` turns true.
    pub async fn run(self: Arc<Self>, shutdown: watch::Receiver<bool>) {
        // Beside one another: an owner or a log that does not answer must not hold up heartbeats.
        tokio::join!(
            self.tick(shutdown.clone()),
            self.keep_telling(shutdown.clone()),
            self.keep_publishing(shutdown.clone()),
            self.keep_mended(shutdown),
        );
    }

    async fn tick(&self, mut shutdown: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut count = 0_u64;
        while !*shutdown.borrow() {
            tokio::select! {
                _ = ticks.tick() => {
                    count += 1;
                    self.nudge();
                    if count.is_multiple_of(TICKS_PER_S) {
                        self.beat(count / TICKS_PER_S);
                    }
                }
                changed = shutdown.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Tells of receipts, signs of life and people who have gone.
    async fn keep_telling(&self, mut shutdown: watch::Receiver<bool>) {
        let began = tokio::time::Instant::now();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !*shutdown.borrow() {
            tokio::select! {
                now = ticks.tick() => {
                    // By the clock: an append may have taken many of them.
                    let tick = (now - began).as_millis() / TICK.as_millis();
                    self.tell(u64::try_from(tick).unwrap_or(u64::MAX)).await;
                }
                changed = shutdown.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn keep_mended(&self, mut shutdown: watch::Receiver<bool>) {
        while !*shutdown.borrow() {
            tokio::select! {
                () = tokio::time::sleep(TICK) => self.mend().await,
                () = self.mend.notified() => self.mend().await,
                changed = shutdown.changed() => if changed.is_err() { return },
            }
        }
    }

    /// A client says that a room has arrived, or was read, up to here.
    pub fn said(&self, socket: &Socket, room: RoomId, seq: Seq, read: bool) {
        if let Some(seq) = socket.receipt(room, seq, read) {
            // What has been read has arrived.
            self.receipt(socket, room, seq, if read { seq } else { Seq::ZERO });
        }
    }

    /// A person has got further in a room. Both are cumulative; zero says nothing.
    fn receipt(&self, socket: &Socket, room: RoomId, delivered: Seq, read: Seq) {
        let mut receipts = self.receipts.lock();
        let key = (room, socket.user);
        if receipts.steps.len() >= RECEIPTS_MAX && !receipts.steps.contains_key(&key) {
            // They are maxima: the client's next one says as much.
            return;
        }
        let step = receipts.steps.entry(key).or_insert(Step {
            session: socket.session,
            delivered: Seq::ZERO,
            read: Seq::ZERO,
            published: None,
            streak: 0,
        });
        step.session = socket.session;
        step.delivered = step.delivered.max(delivered);
        step.read = step.read.max(read);
    }

    async fn tell(&self, tick: u64) {
        self.say_who_is_gone(tick).await;
        let mut by_partition: HashMap<(Topic, Partition), Vec<stream::Record>> = HashMap::new();
        {
            let at = self.deps.clock.now();
            let state = self.state.lock();
            let mut receipts = self.receipts.lock();
            receipts.ticks = tick;
            for record in std::mem::take(&mut receipts.signals) {
                by_partition.entry((Topic::Signals, self.partition(&record.key))).or_default().push(record);
            }
            receipts.steps.retain(|(room, user), step| {
                if !step.is_due(tick, state.rooms.get(room).map_or(0, |room| room.member_count)) {
                    return true;
                }
                if !step.waits() {
                    return false;
                }
                let (session, (delivered_seq, read_seq)) = (step.session, step.publish(tick));
                let receipt = Receipt { room: *room, user: *user, session, delivered_seq, read_seq, at };
                let record = stream::Record { key: *room.as_bytes(), value: receipt.encode() };
                by_partition.entry((Topic::Receipts, self.partition(&record.key))).or_default().push(record);
                true
            });
        }
        // Side by side, so that the engine makes them durable together.
        let appends =
            by_partition.into_iter().map(|((topic, partition), records)| self.log().append(topic, partition, records));
        for appended in join_all(appends).await {
            if let Err(error) = appended {
                // Receipts are maxima: the client's next one says as much. Signs of life are shed first.
                tracing::warn!(%error, "receipts or signs of life could not be published");
            }
        }
    }

    /// Signs off people whose last socket has not been followed by another.
    async fn say_who_is_gone(&self, tick: u64) {
        let gone: Vec<(UserId, Vec<RoomId>)> = {
            let mut receipts = self.receipts.lock();
            receipts.gone.extract_if(.., |(.., due)| *due <= tick).map(|(user, rooms, _)| (user, rooms)).collect()
        };
        if gone.is_empty() {
            return;
        }
        let now = self.deps.clock.now();
        let seen: Vec<_> = gone.iter().map(|(user, _)| (*user, now)).collect();
        if let Err(error) = self.deps.store.touch_accounts(&seen).await {
            tracing::warn!(%error, "last-seen times could not be written");
        }
        for (user, rooms) in gone {
            self.signal(user, SessionId::NIL, SignalKind::Offline, &rooms);
        }
    }

    /// Wakes the sockets that hold frames which woke nobody.
    fn nudge(&self) {
        for socket in std::mem::take(&mut *self.drowsy.lock()) {
            socket.nudge();
        }
    }

    /// Has a sign of life in these rooms published with the next tick. It is shed first.
    pub fn signal(&self, user: UserId, session: SessionId, kind: SignalKind, rooms: &[RoomId]) {
        let at = self.deps.clock.now();
        let signals = &mut self.receipts.lock().signals;
        let space = SIGNALS_MAX.saturating_sub(signals.len());
        signals.extend(rooms.iter().take(PRESENCE_ROOMS_MAX.min(space)).map(|room| stream::Record {
            key: *room.as_bytes(),
            value: Signal { room: *room, user, session, kind, at }.encode(),
        }));
    }

    /// A socket has found its rooms: its person came online, unless they were already.
    pub fn came(&self, socket: &Socket) {
        let first = {
            let mut receipts = self.receipts.lock();
            let known = receipts.gone.len();
            receipts.gone.retain(|(user, ..)| *user != socket.user);
            known == receipts.gone.len()
        };
        let rooms = self.small_rooms(&socket.rooms());
        let alone = self.state.lock().users.get(&socket.user).is_some_and(|user| user.sockets.len() == 1);
        if first && alone {
            self.signal(socket.user, socket.session, SignalKind::Online, &rooms);
        }
    }

    /// The last socket of a person has gone; said to others when the grace is over.
    pub(super) fn gone(&self, user: UserId, rooms: Vec<RoomId>) {
        let mut receipts = self.receipts.lock();
        let due = receipts.ticks + GRACE_S * TICKS_PER_S;
        receipts.gone.push((user, rooms, due));
    }

    /// Those of these rooms in which everyone hears of everyone, at most [`PRESENCE_ROOMS_MAX`].
    pub(super) fn small_rooms(&self, rooms: &[RoomId]) -> Vec<RoomId> {
        let state = self.state.lock();
        let small = |room: &&RoomId| state.rooms.get(room).is_none_or(super::Room::is_small);
        rooms.iter().filter(small).take(PRESENCE_ROOMS_MAX).copied().collect()
    }

    /// Once a second: heartbeats, tokens that have ended, commands without an outcome.
    fn beat(&self, second: u64) {
        let now = self.deps.clock.now();
        let elapsed_s = self.elapsed_s();
        let heartbeat_s = HEARTBEAT.as_secs();
        let sockets: Vec<Arc<Socket>> = self.state.lock().sessions.values().cloned().collect();
        let ping = wire::control(Control::Ping {});
        for socket in sockets {
            socket.expire(now);
            socket.warn_of_end(now);
            if socket.expires_at() <= now {
                socket.close(close::TOKEN_ENDED, None);
            } else if u64::from(elapsed_s.saturating_sub(socket.heard_s())) > 2 * heartbeat_s {
                socket.close(close::HEARTBEAT_MISSED, None);
            } else if u64::from(socket.session.as_bytes()[15]) % heartbeat_s == second % heartbeat_s {
                // Spread over the interval by a byte of the id.
                socket.push(ping.clone(), false);
            }
        }
    }

    /// Seconds on the edge's monotonic clock.
    pub fn elapsed_s(&self) -> u32 {
        u32::try_from(self.deps.clock.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    /// Registers with new owners, and asks what happened in stretches that were missed. What fails is tried again.
    async fn mend(&self) {
        let (unregistered, missed) = {
            let mut state = self.state.lock();
            (std::mem::take(&mut state.unregistered), std::mem::take(&mut state.missed))
        };
        let mut missed = missed;
        // All at once: one owner that does not answer must not keep the others waiting.
        let registering = unregistered.into_iter().map(async |(lane, partition, heard)| {
            // A socket may have registered a room of its own meanwhile and so begun the count; all others were heard of
            // only up to the old watermark. So the stretch to be made up ends where *all* interest is registered.
            let keys = self.keys_of(lane, partition);
            (lane, partition, heard, self.register(lane, partition, &keys).await)
        });
        for (lane, partition, heard, registered) in join_all(registering).await {
            match registered {
                Ok(registered) => missed.push((lane, partition, heard, registered.at)),
                Err(_) => self.state.lock().unregistered.push((lane, partition, heard)),
            }
        }
        for (lane, partition, from, to) in missed.into_iter().filter(|(.., from, to)| from < to) {
            self.metrics.missed.inc();
            tracing::info!(?lane, %partition, %from, %to, "a stretch was missed");
            if !self.make_up(lane, partition, from, to).await {
                self.state.lock().missed.push((lane, partition, from, to));
            }
        }
    }

    async fn make_up(&self, lane: Lane, partition: Partition, from: Offset, to: Offset) -> bool {
        match lane {
            Lane::Rooms => match self.fanout().changed(partition, from, to).await {
                Ok(changed) => {
                    match changed {
                        Some(changed) => self.heard_of(&changed),
                        None => self.doubt(partition),
                    }
                    self.publish_again(partition).await
                }
                Err(_) => false,
            },
            Lane::Users => {
                let sockets: Vec<Arc<Socket>> = self.state.lock().sessions.values().cloned().collect();
                for socket in sockets.iter().filter(|socket| self.partition(socket.user.as_bytes()) == partition) {
                    socket.relist();
                }
                true
            }
        }
    }

    /// Publishes once more what is in flight in a partition (I6): its outcome may have been in a stretch that was missed.
    /// Id and deadline are the same, so that what has acted is answered as a repeat and acts no second time (I4).
    async fn publish_again(&self, partition: Partition) -> bool {
        let mut records = self.in_flight(partition);
        while !records.is_empty() {
            let rest = records.split_off(records.len().min(AGAIN_AT_ONCE));
            let some = std::mem::replace(&mut records, rest);
            self.metrics.published_again.inc_by(some.len() as u64);
            if let Err(error) = self.log().append(Topic::Commands, partition, some).await {
                tracing::warn!(%error, "commands in flight could not be published again");
                return false;
            }
        }
        true
    }

    /// The commands of this edge whose outcome in a partition is not known yet, each to be published once more.
    fn in_flight(&self, partition: Partition) -> Vec<stream::Record> {
        let is_here = |key: &[u8; 16]| self.partition(key) == partition;
        let sockets: Vec<Arc<Socket>> = self.state.lock().sessions.values().cloned().collect();
        let now_us = self.deps.clock.micros();
        let sent = sockets.iter().flat_map(|socket| socket.in_flight(now_us, |room| is_here(room.as_bytes())));
        let sent = sent.map(|(room, value)| stream::Record { key: *room.as_bytes(), value });
        let mut calls = self.calls.lock();
        let called = calls.values_mut().filter(|waiting| is_here(&waiting.record.key)).filter_map(|waiting| {
            (waiting.record.value, waiting.received_us) = Self::copy_of(&waiting.record.value, now_us)?;
            Some(waiting.record.clone())
        });
        sent.chain(called).collect()
    }

    /// Everything of a lane's partition that local sockets want.
    fn keys_of(&self, lane: Lane, partition: Partition) -> Vec<[u8; 16]> {
        let state = self.state.lock();
        let keys: Vec<[u8; 16]> = match lane {
            Lane::Rooms => state.rooms.keys().map(|room| *room.as_bytes()).collect(),
            Lane::Users => state.users.keys().map(|user| *user.as_bytes()).collect(),
        };
        keys.into_iter().filter(|key| self.partition(key) == partition).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(read: Seq, published: Option<u64>) -> Step {
        Step { session: SessionId::NIL, delivered: Seq(9), read, published, streak: 1 }
    }

    fn pause(members: u32, read: Seq) -> u64 {
        (0..1_000).find(|tick| step(read, Some(0)).is_due(*tick, members)).unwrap_or(u64::MAX)
    }

    #[test]
    fn the_first_step_after_a_rest_goes_out_at_once_whatever_the_room() {
        assert!(step(Seq::ZERO, None).is_due(1, 10));
        assert!(step(Seq::ZERO, None).is_due(1, 100_000));
    }

    #[test]
    fn later_steps_wait_longer_the_larger_the_room_and_less_where_something_was_read() {
        assert_eq!(pause(10, Seq::ZERO), STEP_TICKS);
        assert_eq!(pause(10, Seq(9)), READ_STEP_TICKS);
        assert_eq!(pause(101, Seq(9)), 2 * STEP_TICKS);
        assert_eq!(pause(1_000, Seq::ZERO), 10 * STEP_TICKS);
        assert_eq!(pause(1_000_000, Seq::ZERO), LARGE_ROOM_STEP_TICKS_MAX);
    }

    #[test]
    fn steps_that_follow_one_another_without_a_rest_come_ever_more_slowly() {
        let pauses = [1, 2, 3, 4, 400].map(|streak| {
            let step = Step { streak, ..step(Seq::ZERO, Some(0)) };
            (0..1_000).find(|tick| step.is_due(*tick, 10)).unwrap_or(u64::MAX)
        });
        assert_eq!(pauses, [STEP_TICKS, 2 * STEP_TICKS, 4 * STEP_TICKS, STEP_TICKS_MAX, STEP_TICKS_MAX]);
    }

    #[test]
    fn what_was_published_waits_no_more() {
        let mut step = step(Seq(8), None);
        assert_eq!(step.publish(7), (Seq(9), Seq(8)));
        assert!(!step.waits());
        assert_eq!(step.published, Some(7));
    }
}
