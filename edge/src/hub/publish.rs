//! Commands on their way to the log: of each partition one append at a time, with everything that has come meanwhile. So
//! no session waits for an append, a slow log gets fewer and larger ones, and sends keep their order.
//!
//! A partition that has owed an answer for half of a command's deadline takes no more until it answers: what comes to
//! ingest too late is work for nothing, and its retries are more of it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use schemas::frame::Control;
use schemas::limits::{BATCH_MAX_BYTES, COMMAND_DEADLINE};
use schemas::outcome::RejectCode;
use schemas::{Command, CommandId, Partition, RoomId, Topic};
use tokio::sync::watch;

use super::{Call, Hub};
use crate::socket::outbox::Socket;
use crate::socket::wire;

/// Commands that wait for their append, bytes, of all partitions together.
const WAITING_MAX_BYTES: usize = 64 * 1_024 * 1_024;

/// Most of one append, bytes: a poll of ingest takes it whole.
const APPEND_MAX_BYTES: usize = BATCH_MAX_BYTES / 2;

/// How long a partition may owe an answer before it takes no more.
const OWED_MAX: Duration = Duration::from_secs(COMMAND_DEADLINE.as_secs() / 2);

/// When who was refused shall come back, ms: the first, and how much is added at random.
const RETRY_MS: (u32, u32) = (1_000, 2_000);

/// Why a command was not taken: when to try it again, ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// Advice to the client.
    pub retry_after_ms: u32,
}

/// Who hears that a command could not be published.
pub(crate) enum Asker {
    /// A socket, of its send into a room.
    Socket(Arc<Socket>, RoomId, CommandId),
    /// A REST call.
    Call(Call),
}

struct Waiting {
    record: stream::Record,
    received_us: i64,
    asker: Asker,
}

/// What waits for its append, and what is owed an answer.
#[derive(Default)]
pub(super) struct Commands {
    waiting: HashMap<Partition, VecDeque<Waiting>>,
    bytes: usize,
    owed: HashMap<Partition, Owed>,
}

/// How long a partition has owed this edge an answer, by the times at which its commands were received, µs. They are
/// decided in their order: what is owed came after the newest one that was answered.
#[derive(Clone, Copy, Debug, Default)]
struct Owed {
    since_us: Option<i64>,
    newest_us: i64,
}

impl Owed {
    fn handed_over(&mut self, received_us: i64) {
        self.newest_us = self.newest_us.max(received_us);
        self.since_us.get_or_insert(received_us);
    }

    fn answered(&mut self, received_us: i64) {
        if received_us >= self.newest_us {
            self.since_us = None;
        } else if let Some(since_us) = &mut self.since_us {
            *since_us = received_us.max(*since_us);
        }
    }

    /// What is void by now is owed no longer: so the next one tries whether there is an answer again.
    fn is_late(&mut self, now_us: i64) -> bool {
        let owed_for = |since_us: i64| Duration::from_micros(u64::try_from(now_us - since_us).unwrap_or_default());
        if self.since_us.is_some_and(|since_us| owed_for(since_us) > COMMAND_DEADLINE) {
            self.since_us = None;
        }
        self.since_us.is_some_and(|since_us| owed_for(since_us) > OWED_MAX)
    }
}

impl Commands {
    /// The next append of each partition that has none under way.
    fn due(&mut self, under_way: &HashSet<Partition>) -> Vec<(Partition, Vec<Waiting>)> {
        let mut due = Vec::new();
        self.waiting.retain(|partition, waiting| {
            if under_way.contains(partition) {
                return true;
            }
            let mut bytes = 0;
            let fits = |one: &&Waiting| {
                bytes += one.record.value.len();
                bytes <= APPEND_MAX_BYTES
            };
            let count = waiting.iter().take_while(fits).count().max(1).min(waiting.len());
            let batch: Vec<Waiting> = waiting.drain(..count).collect();
            self.bytes -= batch.iter().map(|one| one.record.value.len()).sum::<usize>();
            if !batch.is_empty() {
                due.push((*partition, batch));
            }
            !waiting.is_empty()
        });
        due
    }
}

impl Hub {
    /// Hands a command over to be published. `Ok` means only that it is on its way.
    pub(crate) fn publish(&self, command: &Command, record: stream::Record, asker: Asker) -> Result<(), Busy> {
        let partition = self.partition(&record.key);
        let mut commands = self.commands.lock();
        let is_late = commands.owed.entry(partition).or_default().is_late(command.received_us);
        if is_late || commands.bytes + record.value.len() > WAITING_MAX_BYTES {
            drop(commands);
            self.metrics.turned_away.inc();
            return Err(self.busy());
        }
        commands.bytes += record.value.len();
        commands.owed.entry(partition).or_default().handed_over(command.received_us);
        let waiting = Waiting { record, received_us: command.received_us, asker };
        commands.waiting.entry(partition).or_default().push_back(waiting);
        drop(commands);
        self.publish.notify_one();
        Ok(())
    }

    /// A partition has answered, for what was received up to then.
    pub(super) fn answered(&self, partition: Partition, received_us: i64) {
        if let Some(owed) = self.commands.lock().owed.get_mut(&partition) {
            owed.answered(received_us);
        }
    }

    /// Spread, so that they do not come back in one wave.
    fn busy(&self) -> Busy {
        let mut random = [0; 4];
        self.deps.entropy.fill(&mut random);
        Busy { retry_after_ms: RETRY_MS.0 + u32::from_be_bytes(random) % RETRY_MS.1 }
    }

    /// Publishes what is handed over until `shutdown` turns true, and then what is left.
    pub(super) async fn keep_publishing(&self, mut shutdown: watch::Receiver<bool>) {
        let (mut appends, mut under_way) = (FuturesUnordered::new(), HashSet::new());
        let mut is_ending = false;
        loop {
            for (partition, batch) in self.commands.lock().due(&under_way) {
                under_way.insert(partition);
                appends.push(self.append(partition, batch));
            }
            if is_ending && appends.is_empty() {
                return;
            }
            tokio::select! {
                Some(partition) = appends.next() => drop(under_way.remove(&partition)),
                () = self.publish.notified() => {}
                // A sender that is gone can't call for a stop any more: stop.
                _ = shutdown.wait_for(|stop| *stop), if !is_ending => is_ending = true,
            }
        }
    }

    async fn append(&self, partition: Partition, batch: Vec<Waiting>) -> Partition {
        let records = batch.iter().map(|waiting| waiting.record.clone()).collect();
        match self.log().append(Topic::Commands, partition, records).await {
            Ok(_) => {
                let now_us = self.deps.clock.micros();
                batch.iter().for_each(|waiting| self.metrics.appended(now_us - waiting.received_us));
            }
            Err(error) => {
                tracing::warn!(%error, commands = batch.len(), "commands could not be published");
                batch.into_iter().for_each(|waiting| self.not_published(waiting));
            }
        }
        partition
    }

    /// Says that a message has not been taken.
    pub fn reject(
        &self,
        socket: &Socket,
        (room, client_msg_id): (RoomId, CommandId),
        code: RejectCode,
        detail: &str,
        retry_after_ms: Option<u32>,
    ) {
        self.metrics.refused.with_label_values(&[code.as_str()]).inc();
        let detail = detail.to_owned();
        socket.push(wire::control(Control::Rejected { client_msg_id, room, code, detail, retry_after_ms }), false);
    }

    /// It may have come into the log all the same: for its sender that is as unknown as an outcome that never comes.
    fn not_published(&self, Waiting { received_us, asker, .. }: Waiting) {
        match asker {
            Asker::Socket(socket, room, client_msg_id) => {
                socket.send_failed(client_msg_id);
                let detail = "it could not be published, send again under the same id";
                let retry_after_ms = Some(self.busy().retry_after_ms);
                self.reject(&socket, (room, client_msg_id), RejectCode::Unavailable, detail, retry_after_ms);
            }
            Asker::Call(call) => {
                let mut calls = self.calls.lock();
                if calls.get(&call).is_some_and(|waiting| waiting.received_us == received_us) {
                    // Who waits hears that nobody will answer.
                    calls.remove(&call);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: i64 = 1_000_000;

    #[test]
    fn a_partition_is_late_while_it_has_owed_an_answer_for_too_long() {
        let mut owed = Owed::default();
        assert!(!owed.is_late(100 * S), "nothing is owed");
        owed.handed_over(100 * S);
        owed.handed_over(104 * S);
        assert!(!owed.is_late(105 * S));
        assert!(owed.is_late(105 * S + 1));
        owed.answered(100 * S);
        assert!(owed.is_late(106 * S), "the newest answer is as old");
        owed.answered(102 * S);
        assert!(!owed.is_late(106 * S), "the one of 104 may still come in time");
        assert!(owed.is_late(108 * S));
        owed.answered(104 * S);
        assert!(!owed.is_late(200 * S), "nothing is owed");
    }

    #[test]
    fn what_is_void_is_owed_no_longer_and_the_next_one_is_tried() {
        let mut owed = Owed::default();
        owed.handed_over(100 * S);
        assert!(owed.is_late(110 * S));
        assert!(!owed.is_late(110 * S + 1));
        owed.handed_over(111 * S);
        assert!(!owed.is_late(115 * S));
        assert!(owed.is_late(117 * S), "still no answer");
    }

    #[test]
    fn one_append_of_a_partition_at_a_time_takes_what_fits_in_order() {
        let mut commands = Commands::default();
        let room = |n: u8| [n; 16];
        let mut put = |partition: u32, n: u8, bytes: usize| {
            let record = stream::Record { key: room(n), value: vec![n; bytes].into() };
            let call = (RoomId::NIL, schemas::UserId::NIL, CommandId::NIL);
            commands.bytes += bytes;
            let waiting = Waiting { record, received_us: 0, asker: Asker::Call(call) };
            commands.waiting.entry(Partition(partition)).or_default().push_back(waiting);
        };
        put(1, 1, APPEND_MAX_BYTES - 10);
        put(1, 2, 10);
        put(1, 3, 1);
        put(2, 4, APPEND_MAX_BYTES + 1);
        let keys = |due: Vec<(Partition, Vec<Waiting>)>| -> Vec<Vec<u8>> {
            due.iter().map(|(_, batch)| batch.iter().map(|waiting| waiting.record.key[0]).collect()).collect()
        };
        let busy = HashSet::from([Partition(2)]);
        assert_eq!(keys(commands.due(&busy)), [vec![1, 2]]);
        assert_eq!(keys(commands.due(&HashSet::from([Partition(1)]))), [vec![4]], "the largest goes alone");
        assert_eq!(keys(commands.due(&HashSet::new())), [vec![3]]);
        assert_eq!((commands.bytes, commands.waiting.len()), (0, 0));
    }
}
