//! The log as one process sees it: slow, failing, with outcomes that nobody hears of. Around the engine in memory, whose
//! laws hold; what a broker does with members that died or fell silent is done here.

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::{Command, Offset, Partition, Record as _, Topic};
use stream::{Consumer, Error, Fetched, GroupMember, Log, Polled, Producer, Record, Transaction};

use crate::surroundings::{Call, Fate, Surroundings};
use crate::tasks::{ProcessId, WORLD};

/// The log as one process sees it.
pub struct ProcessLog {
    inner: Arc<dyn Log>,
    around: Arc<Surroundings>,
    process: ProcessId,
}

impl ProcessLog {
    /// This process's view.
    pub fn new(inner: Arc<dyn Log>, around: Arc<Surroundings>, process: ProcessId) -> Self {
        Self { inner, around, process }
    }

    async fn call<T>(&self, call: Call, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        match self.around.fate(self.process, call).await {
            Fate::Fine => {}
            Fate::NotDone => return Err(Error::Unavailable(format!("{call:?} as planned"))),
            Fate::Unheard => {
                let done = work.await;
                self.around.delay().await;
                return done.and_then(|_| Err(Error::Unknown(format!("{call:?} as planned"))));
            }
        }
        let done = work.await;
        self.around.delay().await;
        done
    }
}

#[async_trait]
impl Log for ProcessLog {
    async fn create(&self, partitions: u32) -> Result<(), Error> {
        self.inner.create(partitions).await
    }

    fn partitions(&self) -> u32 {
        self.inner.partitions()
    }

    async fn append(&self, topic: Topic, partition: Partition, records: Vec<Record>) -> Result<Offset, Error> {
        let commands: Vec<_> = records.iter().filter_map(|record| Command::decode(&record.value).ok()).collect();
        let work = async {
            let end = self.inner.append(topic, partition, records).await?;
            if topic == Topic::Commands {
                self.around.commands.lock().appended(partition, end, &commands);
            }
            Ok(end)
        };
        self.call(Call::Append, work).await
    }

    async fn producer(&self, transactional_id: &str) -> Result<Box<dyn Producer>, Error> {
        let inner = self.call(Call::Producer, self.inner.producer(transactional_id)).await?;
        Ok(Box::new(ProcessProducer { inner: Some(inner), around: Arc::clone(&self.around), process: self.process }))
    }

    async fn consumer(&self, group: &str, topics: &[Topic]) -> Result<Box<dyn Consumer>, Error> {
        let inner = self.call(Call::Consumer, self.inner.consumer(group, topics)).await?;
        self.around.joined(self.process, inner.member());
        Ok(Box::new(ProcessConsumer {
            inner: Some(inner),
            ready: None,
            around: Arc::clone(&self.around),
            process: self.process,
        }))
    }

    async fn read(&self, topic: Topic, partition: Partition, from: Offset, max_bytes: usize) -> Result<Fetched, Error> {
        self.call(Call::Read, self.inner.read(topic, partition, from, max_bytes)).await
    }

    async fn start(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.call(Call::Read, self.inner.start(topic, partition)).await
    }

    async fn end(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        self.call(Call::Read, self.inner.end(topic, partition)).await
    }

    async fn committed(&self, group: &str, topic: Topic, partition: Partition) -> Result<Option<Offset>, Error> {
        self.call(Call::Read, self.inner.committed(group, topic, partition)).await
    }

    async fn trim(&self, topic: Topic, partition: Partition, before: Offset) -> Result<(), Error> {
        self.inner.trim(topic, partition, before).await
    }
}

struct ProcessProducer {
    /// `None` after an error: whoever commits with it all the same has broken I2.
    inner: Option<Box<dyn Producer>>,
    around: Arc<Surroundings>,
    process: ProcessId,
}

#[async_trait]
impl Producer for ProcessProducer {
    async fn commit(&mut self, transaction: Transaction) -> Result<Vec<(Topic, Partition, Offset)>, Error> {
        let Some(mut inner) = self.inner.take() else {
            self.around.broken("a producer is used after an error of its transaction (I2)");
            return Err(Error::Fenced);
        };
        let unheard = || Error::Unknown("commit as planned".into());
        match self.around.fate(self.process, Call::Commit).await {
            Fate::NotDone => return Err(unheard()),
            Fate::Unheard if self.around.dice.per_mille(500) => {
                // The end of the transaction is still on its way: it comes when its producer may have been replaced.
                let around = Arc::clone(&self.around);
                let late = self.around.dice.between(1, if self.around.dice.per_mille(500) { 60 } else { 3_000 });
                self.around.tasks.spawn(WORLD, async move {
                    tokio::time::sleep(std::time::Duration::from_millis(late)).await;
                    match inner.commit(transaction).await {
                        Ok(_) => around.saw("late end: committed"),
                        Err(_) => around.saw("late end: fenced"),
                    }
                });
                return Err(unheard());
            }
            Fate::Unheard => {
                let done = inner.commit(transaction).await;
                return done.and_then(|_| Err(unheard()));
            }
            Fate::Fine => {}
        }
        let done = inner.commit(transaction).await;
        if done.is_ok() {
            self.inner = Some(inner);
        }
        self.around.delay().await;
        done
    }
}

struct ProcessConsumer {
    inner: Option<Box<dyn Consumer>>,
    /// What was polled, and is on its way to the process.
    ready: Option<Polled>,
    around: Arc<Surroundings>,
    process: ProcessId,
}

impl ProcessConsumer {
    fn inner(&self) -> Result<&dyn Consumer, Error> {
        self.inner.as_deref().ok_or(Error::Fenced)
    }
}

#[async_trait]
impl Consumer for ProcessConsumer {
    async fn poll(&mut self) -> Result<Polled, Error> {
        match self.around.fate(self.process, Call::Poll).await {
            Fate::Fine => {}
            Fate::NotDone | Fate::Unheard => return Err(Error::Unavailable("poll as planned".into())),
        }
        // Cancel safe: what was taken waits here until it is taken for good.
        if self.ready.is_none() {
            self.ready = Some(self.inner.as_mut().ok_or(Error::Fenced)?.poll().await?);
        }
        self.around.delay().await;
        self.ready.take().ok_or(Error::Fenced)
    }

    fn member(&self) -> GroupMember {
        self.inner().map_or(GroupMember { group: String::new(), member: 0, epoch: 0 }, Consumer::member)
    }

    fn seek(&mut self, topic: Topic, partition: Partition, to: Offset) {
        if let Some(inner) = &mut self.inner {
            inner.seek(topic, partition, to);
        }
        // What was taken before and is on its way would come from where it was.
        if let Some(Polled::Records(fetched)) = &mut self.ready {
            fetched.retain(|fetched| (fetched.topic, fetched.partition) != (topic, partition));
            if fetched.is_empty() {
                self.ready = None;
            }
        }
    }

    async fn commit(&mut self, positions: Vec<(Topic, Partition, Offset)>) -> Result<(), Error> {
        match self.around.fate(self.process, Call::CommitOffsets).await {
            Fate::Fine => {}
            Fate::NotDone => return Err(Error::Unavailable("commit as planned".into())),
            // They are a hint: what was answered may be lost.
            Fate::Unheard => return Ok(()),
        }
        self.inner.as_mut().ok_or(Error::Fenced)?.commit(positions).await
    }
}

impl Drop for ProcessConsumer {
    fn drop(&mut self) {
        // Who crashes says no goodbye: the group waits until it has been silent for too long.
        if let Some(inner) = self.inner.take()
            && !self.around.is_alive(self.process)
        {
            self.around.silent(inner);
        }
    }
}

/// Members that crashed, until their time is over.
#[derive(Default)]
pub struct Silent(Mutex<Vec<Box<dyn Consumer>>>);

impl Silent {
    /// One more.
    pub fn add(&self, member: Box<dyn Consumer>) {
        self.0.lock().push(member);
    }

    /// The group gives the oldest up.
    pub fn give_up(&self) {
        let mut members = self.0.lock();
        let first = (!members.is_empty()).then(|| members.remove(0));
        drop(members);
        drop(first);
    }
}
