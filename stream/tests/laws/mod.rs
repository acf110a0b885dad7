//! The laws of the log port, each once, for every engine: `laws!(Engine)` makes a test of each. An engine's own
//! doings (files, faults, bounds of its memory) are tested beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use schemas::{Offset, Partition, Topic};
use stream::{Consumer, Error, Fetched, Log, Polled, Producer, Record, Transaction};

/// An engine under test.
#[async_trait]
pub trait Engine: Sized + Send + 'static {
    /// Starts an empty log with [`PARTITIONS`], whose volatile topics hold [`VOLATILE_MAX_BYTES`].
    async fn start() -> Self;
    /// The log.
    fn log(&self) -> Arc<dyn Log>;
    /// Ends the process of the log, as far as it can, and starts it anew on what is left.
    async fn restart(self) -> Self;
    /// Where a law repeats itself only to be more certain: one of how many rounds is enough. More than 1 where each
    /// costs a server something.
    const THRIFT: usize = 1;
    /// Whether a transaction that is seen in one topic may be seen a moment later in another (law 3).
    const TRAILS: bool = false;
}

/// Of every topic.
pub const PARTITIONS: u32 = 4;
/// Of the volatile topics together.
pub const VOLATILE_MAX_BYTES: usize = 64 * 1024;

/// A law takes no longer than this, or something waits for ever.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Hands the laws that hold on every engine to a macro, after the engine.
macro_rules! each_law {
    ($take:ident, $engine:ty) => {
        $take! { $engine:
            records_stand_in_the_order_of_their_append_each_once,
            a_reader_by_small_steps_sees_the_same_as_one_by_large_steps,
            an_append_of_nothing_changes_nothing,
            many_appenders_each_keep_their_own_order,
            the_end_covers_what_was_answered,
            a_transaction_is_visible_as_a_whole_or_not_at_all,
            a_transaction_answers_with_the_positions_after_its_records,
            an_older_producer_is_fenced_and_leaves_nothing,
            a_new_producer_waits_until_the_older_ones_are_decided,
            producers_of_other_ids_do_not_fence_each_other,
            a_member_alone_gets_every_partition_at_its_start,
            a_member_that_joins_takes_partitions_over_and_the_former_owner_is_fenced,
            a_member_that_leaves_hands_over_where_it_committed,
            a_hand_over_never_doubles_nor_loses_what_transactions_consumed,
            groups_do_not_disturb_each_other,
            epochs_rise_with_every_change_and_over_a_restart,
            a_waiting_member_is_woken_by_what_arrives,
            a_cancelled_poll_loses_nothing,
            a_member_that_starts_late_reads_everything_once_while_more_arrives,
            a_member_that_seeks_back_reads_again,
            a_member_passes_what_is_no_record,
            a_position_out_of_range_is_an_error_and_not_a_reset,
            trim_forgets_what_is_below_and_nothing_else,
            a_partition_trimmed_to_its_end_goes_on_counting,
            signals_never_fail_for_want_of_room,
            a_restart_keeps_what_was_promised,
            a_restart_loses_a_volatile_topic_as_a_whole_or_not_at_all,
            the_number_of_partitions_is_fixed_for_ever,
            a_partition_that_is_not_there_is_an_error,
            any_calls_agree_with_a_naive_model,
        }
    };
}
pub(crate) use each_law;

/// Makes a test of each law; for engines that keep volatile topics in memory, of the law of their bound too.
#[allow(unused_macros, reason = "an engine with a server to start makes its tests itself")]
macro_rules! laws {
    ($engine:ty) => {
        crate::laws::each_law!(laws, $engine);
        laws! { $engine: a_full_volatile_topic_is_unavailable_until_it_is_consumed, }
    };
    ($engine:ty: $($law:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $law() {
            tokio::time::timeout(crate::laws::PATIENCE, crate::laws::$law::<$engine>()).await.expect("waits for ever");
        }
    )*};
}
#[allow(unused_imports, reason = "as above")]
pub(crate) use laws;

const EVENTS: Topic = Topic::Events;
const P0: Partition = Partition(0);

pub fn record(text: impl ToString) -> Record {
    Record { key: [7; 16], value: text.to_string().into_bytes().into() }
}

fn records(texts: impl IntoIterator<Item = impl ToString>) -> Vec<Record> {
    texts.into_iter().map(record).collect()
}

fn texts(fetched: &Fetched) -> Vec<String> {
    fetched.records.iter().map(|placed| String::from_utf8_lossy(&placed.record.value).into_owned()).collect()
}

/// Reads a partition to its end in steps of `max_bytes`; checks what holds for every reader.
pub async fn read_all(log: &dyn Log, topic: Topic, partition: Partition, max_bytes: usize) -> Vec<String> {
    let mut at = log.start(topic, partition).await.unwrap();
    let mut all = Vec::new();
    loop {
        let fetched = log.read(topic, partition, at, max_bytes).await.unwrap();
        assert_eq!((fetched.topic, fetched.partition, fetched.from), (topic, partition, at));
        let mut before = None;
        for placed in fetched.records.iter() {
            assert!(placed.offset >= at && placed.offset < fetched.next, "outside of what was fetched");
            assert!(Some(placed.offset) > before, "offsets must rise");
            before = Some(placed.offset);
        }
        all.extend(texts(&fetched));
        if fetched.next == at {
            return all;
        }
        at = fetched.next;
    }
}

async fn contents(log: &dyn Log, topic: Topic, partition: Partition) -> Vec<String> {
    read_all(log, topic, partition, 1 << 20).await
}

fn transaction(records: impl IntoIterator<Item = (Topic, Partition, &'static str)>) -> Transaction {
    let records = records.into_iter().map(|(topic, partition, text)| (topic, partition, record(text))).collect();
    Transaction { records, consumed: None }
}

/// Polls until partitions come.
async fn assigned(member: &mut dyn Consumer) -> (u64, Vec<Partition>) {
    loop {
        if let Polled::Assigned { epoch, partitions } = member.poll().await.unwrap() {
            return (epoch, partitions);
        }
    }
}

/// Polls two members until each has its half: what each has.
async fn share(first: &mut dyn Consumer, second: &mut dyn Consumer) -> (Vec<Partition>, Vec<Partition>) {
    let mut has: [BTreeSet<Partition>; 2] = Default::default();
    while has[0].len() != PARTITIONS as usize / 2 || has[1].len() != PARTITIONS as usize / 2 {
        let (who, polled) = tokio::select! {
            polled = first.poll() => (0, polled.unwrap()),
            polled = second.poll() => (1, polled.unwrap()),
        };
        match polled {
            Polled::Assigned { partitions, .. } => has[who].extend(partitions),
            Polled::Revoked(partitions) => has[who].retain(|partition| !partitions.contains(partition)),
            Polled::Records(_) => panic!("there are none"),
        }
    }
    assert!(has[0].is_disjoint(&has[1]));
    let [first, second] = has;
    (first.into_iter().collect(), second.into_iter().collect())
}

/// Polls until records come.
async fn fetched(member: &mut dyn Consumer) -> Vec<Fetched> {
    loop {
        if let Polled::Records(fetched) = member.poll().await.unwrap() {
            return fetched;
        }
    }
}

/// Polls until so many records have come; their texts by partition.
async fn take(member: &mut dyn Consumer, count: usize) -> BTreeMap<(Topic, Partition), Vec<String>> {
    let mut taken: BTreeMap<(Topic, Partition), Vec<String>> = BTreeMap::new();
    while taken.values().map(Vec::len).sum::<usize>() < count {
        for fetched in fetched(member).await {
            taken.entry((fetched.topic, fetched.partition)).or_default().extend(texts(&fetched));
        }
    }
    taken
}

pub async fn records_stand_in_the_order_of_their_append_each_once<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    let mut ends = Vec::new();
    for step in 0..10 {
        let end = log.append(EVENTS, P0, records((0..5).map(|n| step * 5 + n))).await.unwrap();
        ends.push(end);
        log.append(EVENTS, Partition(1), records([format!("other {step}")])).await.unwrap();
    }
    assert!(ends.windows(2).all(|pair| pair[0] < pair[1]), "{ends:?}");
    let expected: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    assert_eq!(contents(&*log, EVENTS, P0).await, expected);
    assert_eq!(contents(&*log, EVENTS, Partition(2)).await, Vec::<String>::new());
}

pub async fn a_reader_by_small_steps_sees_the_same_as_one_by_large_steps<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    for step in 0..20 {
        log.append(EVENTS, P0, records((0..step).map(|n| format!("{step}.{n}")))).await.unwrap();
    }
    let expected = contents(&*log, EVENTS, P0).await;
    assert_eq!(expected.len(), 190);
    for max_bytes in [0, 1, 300, 5_000] {
        assert_eq!(read_all(&*log, EVENTS, P0, max_bytes).await, expected, "by {max_bytes}");
    }
}

pub async fn an_append_of_nothing_changes_nothing<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    log.append(EVENTS, P0, records(["one"])).await.unwrap();
    let end = log.end(EVENTS, P0).await.unwrap();
    assert_eq!(log.append(EVENTS, P0, Vec::new()).await.unwrap(), end);
    log.producer("t").await.unwrap().commit(Transaction::default()).await.unwrap();
    assert_eq!(contents(&*log, EVENTS, P0).await, ["one"]);
}

pub async fn many_appenders_each_keep_their_own_order<E: Engine>() {
    const APPENDERS: usize = 16;
    const EACH: usize = 25;
    let engine = E::start().await;
    for topic in [EVENTS, Topic::Commands] {
        let tasks: Vec<_> = (0..APPENDERS)
            .map(|who| {
                let log = engine.log();
                tokio::spawn(async move {
                    for n in 0..EACH {
                        log.append(topic, P0, records([format!("{who}:{n}")])).await.unwrap();
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let all = contents(&*engine.log(), topic, P0).await;
        assert_eq!(all.len(), APPENDERS * EACH);
        for who in 0..APPENDERS {
            let mine: Vec<&String> = all.iter().filter(|text| text.starts_with(&format!("{who}:"))).collect();
            let expected: Vec<String> = (0..EACH).map(|n| format!("{who}:{n}")).collect();
            assert!(mine.into_iter().eq(&expected), "order of appender {who}");
        }
    }
}

pub async fn the_end_covers_what_was_answered<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    for topic in [EVENTS, Topic::Commands] {
        for n in 0..20 {
            let after = log.append(topic, P0, records([n])).await.unwrap();
            assert!(log.end(topic, P0).await.unwrap() >= after);
            assert_eq!(contents(&*log, topic, P0).await.len(), n + 1);
        }
    }
}

/// How many records there are of a topic, or without one how many commands were consumed; asked again until it is as
/// many as that where parts of a transaction may trail.
async fn seen(log: &dyn Log, topic: Option<Topic>, least: u64, may_trail: bool) -> u64 {
    loop {
        let number = match topic {
            Some(topic) => contents(log, topic, P0).await.len() as u64,
            None => log.committed("g", Topic::Commands, P0).await.unwrap().map_or(0, |offset| offset.0),
        };
        if number >= least || !may_trail {
            return number;
        }
        tokio::task::yield_now().await;
    }
}

pub async fn a_transaction_is_visible_as_a_whole_or_not_at_all<E: Engine>() {
    let rounds = (60 / E::THRIFT) as u64;
    let engine = E::start().await;
    let log = engine.log();
    log.append(Topic::Commands, P0, records(0..rounds)).await.unwrap();
    let mut member = log.consumer("g", &[Topic::Commands]).await.unwrap();
    assigned(&mut *member).await;
    let watched = engine.log();
    let watcher = tokio::spawn(async move {
        let parts = [Some(Topic::UserEvents), Some(EVENTS), None];
        loop {
            // What is seen first may be older than what is seen next, never newer: in any order.
            for (first, second) in [(0, 1), (1, 0), (0, 2), (2, 0)] {
                let before = seen(&*watched, parts[first], 0, false).await;
                let after = seen(&*watched, parts[second], before, E::TRAILS).await;
                assert!(before <= after, "{:?} before {:?}: {before} > {after}", parts[first], parts[second]);
            }
            let offset = seen(&*watched, None, 0, false).await;
            if offset == rounds {
                return;
            }
            tokio::task::yield_now().await;
        }
    });
    let mut producer = log.producer("t").await.unwrap();
    for n in 0..rounds {
        let mut transaction = transaction([(EVENTS, P0, "event"), (Topic::UserEvents, P0, "user")]);
        transaction.consumed = Some((member.member(), vec![(Topic::Commands, P0, Offset(n + 1))]));
        producer.commit(transaction).await.unwrap();
    }
    watcher.await.unwrap();
}

pub async fn a_transaction_answers_with_the_positions_after_its_records<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    let mut producer = log.producer("t").await.unwrap();
    let touched = [(EVENTS, P0), (EVENTS, Partition(3)), (Topic::Signals, Partition(1))];
    for _ in 0..3 {
        let mut answer = producer
            .commit(transaction(touched.into_iter().chain([touched[0]]).map(|(topic, p)| (topic, p, "x"))))
            .await
            .unwrap();
        answer.sort();
        let answered: Vec<_> = answer.iter().map(|(topic, partition, _)| (*topic, *partition)).collect();
        let mut expected = touched;
        expected.sort();
        assert_eq!(answered, expected);
        for (topic, partition, position) in answer {
            assert!(position <= log.end(topic, partition).await.unwrap(), "what was answered is below the end");
            let rest = log.read(topic, partition, position, 1 << 20).await.unwrap();
            assert!(rest.records.is_empty(), "a record after the position after the last one");
            let last = log.read(topic, partition, Offset(position.0 - 1), 1 << 20).await.unwrap();
            assert_eq!(texts(&last), ["x"]);
        }
    }
    assert_eq!(contents(&*log, EVENTS, P0).await.len(), 6);
}

pub async fn an_older_producer_is_fenced_and_leaves_nothing<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    log.append(Topic::Commands, P0, records(["command"])).await.unwrap();
    let mut member = log.consumer("g", &[Topic::Commands]).await.unwrap();
    assigned(&mut *member).await;
    let mut older = log.producer("t").await.unwrap();
    older.commit(transaction([(EVENTS, P0, "before")])).await.unwrap();
    let mut newer = log.producer("t").await.unwrap();
    let mut late = transaction([(EVENTS, P0, "zombie"), (Topic::Signals, P0, "zombie")]);
    late.consumed = Some((member.member(), vec![(Topic::Commands, P0, Offset(1))]));
    for _ in 0..2 {
        assert!(matches!(older.commit(late.clone()).await, Err(Error::Fenced)));
    }
    newer.commit(transaction([(EVENTS, P0, "after")])).await.unwrap();
    assert_eq!(contents(&*log, EVENTS, P0).await, ["before", "after"]);
    assert_eq!(contents(&*log, Topic::Signals, P0).await, Vec::<String>::new());
    assert_eq!(log.committed("g", Topic::Commands, P0).await.unwrap(), None);
}

pub async fn a_new_producer_waits_until_the_older_ones_are_decided<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    for round in 0..40 / E::THRIFT {
        let mut older = log.producer("t").await.unwrap();
        let under_way = tokio::spawn(async move { older.commit(transaction([(EVENTS, P0, "x")])).await });
        if round % 2 == 0 {
            tokio::task::yield_now().await;
        }
        log.producer("t").await.unwrap();
        let end = log.end(EVENTS, P0).await.unwrap();
        match under_way.await.unwrap() {
            Ok(positions) => assert!(positions[0].2 <= end, "committed after it was fenced"),
            // Fenced between its records and its commit, a broker may not be able to say.
            Err(error) => assert!(matches!(error, Error::Fenced | Error::Unknown(_)), "{error}"),
        }
        assert_eq!(log.end(EVENTS, P0).await.unwrap(), end);
    }
}

pub async fn producers_of_other_ids_do_not_fence_each_other<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    let mut tasks = Vec::new();
    for who in 0..8 {
        let log = engine.log();
        tasks.push(tokio::spawn(async move {
            let mut producer = log.producer(&format!("t{who}")).await.unwrap();
            for _ in 0..10 {
                producer.commit(transaction([(EVENTS, Partition(who % 4), "x")])).await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    for partition in 0..4 {
        assert_eq!(contents(&*log, EVENTS, Partition(partition)).await.len(), 20);
    }
}

pub async fn a_member_alone_gets_every_partition_at_its_start<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    for partition in (0..PARTITIONS).map(Partition) {
        log.append(EVENTS, partition, records([format!("e{partition}")])).await.unwrap();
        log.append(Topic::Receipts, partition, records([format!("r{partition}")])).await.unwrap();
    }
    let mut member = log.consumer("g", &[EVENTS, Topic::Receipts]).await.unwrap();
    let (epoch, partitions) = assigned(&mut *member).await;
    assert_eq!(partitions, (0..PARTITIONS).map(Partition).collect::<Vec<_>>());
    assert_eq!(member.member().epoch, epoch);
    let taken = take(&mut *member, 2 * PARTITIONS as usize).await;
    for partition in (0..PARTITIONS).map(Partition) {
        assert_eq!(taken[&(EVENTS, partition)], [format!("e{partition}")]);
        assert_eq!(taken[&(Topic::Receipts, partition)], [format!("r{partition}")]);
    }
}

pub async fn a_member_that_joins_takes_partitions_over_and_the_former_owner_is_fenced<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    let mut first = log.consumer("g", &[EVENTS]).await.unwrap();
    assigned(&mut *first).await;
    let unaware = first.member();
    let mut second = log.consumer("g", &[EVENTS]).await.unwrap();
    let (epoch, gained) = assigned(&mut *second).await;
    assert!(epoch > unaware.epoch);
    assert_eq!(gained.len(), PARTITIONS as usize / 2);

    let lost = vec![(EVENTS, gained[0], Offset(0))];
    assert!(matches!(first.commit(lost.clone()).await, Err(Error::Fenced)));
    let mut producer = log.producer("t").await.unwrap();
    let mut late = transaction([(EVENTS, gained[0], "zombie")]);
    late.consumed = Some((unaware, lost.clone()));
    assert!(matches!(producer.commit(late).await, Err(Error::Fenced)));
    assert_eq!(log.end(EVENTS, gained[0]).await.unwrap(), Offset(0));

    let Polled::Revoked(revoked) = first.poll().await.unwrap() else { panic!("not told of its loss") };
    assert_eq!(revoked, gained);
    let kept = (0..PARTITIONS).map(Partition).find(|partition| !gained.contains(partition)).unwrap();
    first.commit(vec![(EVENTS, kept, Offset(0))]).await.unwrap();
    second.commit(lost).await.unwrap();
}

pub async fn a_member_that_leaves_hands_over_where_it_committed<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    let mut first = log.consumer("g", &[EVENTS]).await.unwrap();
    let mut second = log.consumer("g", &[EVENTS]).await.unwrap();
    let (of_first, _) = share(&mut *first, &mut *second).await;
    for partition in (0..PARTITIONS).map(Partition) {
        log.append(EVENTS, partition, records(["done", "seen"])).await.unwrap();
    }
    take(&mut *first, 2 * of_first.len()).await;
    let done = log.read(EVENTS, of_first[0], Offset(0), 1).await.unwrap().next;
    first.commit(of_first.iter().map(|partition| (EVENTS, *partition, done)).collect()).await.unwrap();
    drop(first);
    let mut taken: BTreeMap<Partition, Vec<String>> = BTreeMap::new();
    let mut gained = Vec::new();
    while taken.len() < PARTITIONS as usize {
        match second.poll().await.unwrap() {
            Polled::Assigned { partitions, .. } => gained.extend(partitions),
            Polled::Revoked(partitions) => panic!("lost {partitions:?}"),
            Polled::Records(all) => {
                for fetched in all {
                    taken.entry(fetched.partition).or_default().extend(texts(&fetched));
                }
            }
        }
    }
    assert_eq!(gained, of_first);
    assert!(of_first.iter().all(|partition| taken[partition] == ["seen"]), "{taken:?}");
}

/// Members come and go while each copies commands to events in transactions, as ingest does.
pub async fn a_hand_over_never_doubles_nor_loses_what_transactions_consumed<E: Engine>() {
    const COMMANDS: usize = 120;
    let engine = E::start().await;
    let log = engine.log();
    let feeder = {
        let log = engine.log();
        tokio::spawn(async move {
            for n in 0..COMMANDS {
                log.append(Topic::Commands, Partition(n as u32 % PARTITIONS), records([n])).await.unwrap();
                tokio::task::yield_now().await;
            }
        })
    };
    async fn copy(log: Arc<dyn Log>) -> Result<(), Error> {
        let mut member = log.consumer("ingest", &[Topic::Commands]).await?;
        let mut producers: BTreeMap<Partition, Box<dyn Producer>> = BTreeMap::new();
        loop {
            match member.poll().await? {
                Polled::Assigned { partitions, .. } => {
                    for partition in partitions {
                        producers.insert(partition, log.producer(&format!("slot-{partition}")).await?);
                        // I2: the older owner is fenced first, and only then are offsets read.
                        let at = log.committed("ingest", Topic::Commands, partition).await?;
                        member.seek(Topic::Commands, partition, at.unwrap_or_default());
                    }
                }
                Polled::Revoked(partitions) => producers.retain(|partition, _| !partitions.contains(partition)),
                Polled::Records(all) => {
                    for fetched in all {
                        let copied =
                            fetched.records.iter().map(|placed| (EVENTS, fetched.partition, placed.record.clone()));
                        let consumed = vec![(Topic::Commands, fetched.partition, fetched.next)];
                        let transaction =
                            Transaction { records: copied.collect(), consumed: Some((member.member(), consumed)) };
                        producers.get_mut(&fetched.partition).unwrap().commit(transaction).await?;
                    }
                }
            }
        }
    }
    let total = async || {
        let mut total = 0;
        for partition in 0..PARTITIONS {
            total += contents(&*log, EVENTS, Partition(partition)).await.len();
        }
        total
    };
    let mut workers: Vec<tokio::task::JoinHandle<Result<(), Error>>> = Vec::new();
    let (mut copied, mut copied_before) = (0, 0);
    while copied < COMMANDS {
        workers.retain(|worker| !worker.is_finished());
        if workers.len() < 3 {
            workers.push(tokio::spawn(copy(engine.log())));
        } else if copied > copied_before {
            // Only after some progress: where joining takes long, none would ever come to work.
            workers.remove(0).abort();
            copied_before = copied;
        }
        copied = total().await;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    feeder.await.unwrap();
    workers.iter().for_each(tokio::task::JoinHandle::abort);
    for partition in 0..PARTITIONS {
        let expected: Vec<String> =
            (0..COMMANDS).filter(|n| *n as u32 % PARTITIONS == partition).map(|n| n.to_string()).collect();
        assert_eq!(contents(&*log, EVENTS, Partition(partition)).await, expected);
    }
}

pub async fn groups_do_not_disturb_each_other<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    log.append(EVENTS, P0, records(["one", "two"])).await.unwrap();
    for group in ["a", "b"] {
        let mut member = log.consumer(group, &[EVENTS]).await.unwrap();
        assert_eq!(take(&mut *member, 2).await[&(EVENTS, P0)], ["one", "two"]);
        let end = log.end(EVENTS, P0).await.unwrap();
        member.commit(vec![(EVENTS, P0, end)]).await.unwrap();
        assert_eq!(log.committed(group, EVENTS, P0).await.unwrap(), Some(end));
    }
    assert_eq!(log.committed("c", EVENTS, P0).await.unwrap(), None);
}

pub async fn epochs_rise_with_every_change_and_over_a_restart<E: Engine>() {
    let mut engine = E::start().await;
    let mut highest = 0;
    for _ in 0..3 - E::THRIFT.min(2) / 2 {
        let log = engine.log();
        for _ in 0..3 {
            let mut member = log.consumer("g", &[EVENTS]).await.unwrap();
            let (epoch, _) = assigned(&mut *member).await;
            assert!(epoch > highest, "{epoch} after {highest}");
            highest = epoch;
        }
        drop(log);
        engine = engine.restart().await;
    }
}

pub async fn a_waiting_member_is_woken_by_what_arrives<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    let mut member = log.consumer("g", &[EVENTS, Topic::Signals]).await.unwrap();
    assigned(&mut *member).await;
    let mut producer = log.producer("t").await.unwrap();
    for round in 0..30 {
        let waiting = tokio::spawn(async move {
            let taken = take(&mut *member, 1).await;
            (member, taken)
        });
        let topic = if round % 3 == 2 { Topic::Signals } else { EVENTS };
        if round % 3 == 1 {
            producer.commit(transaction([(topic, Partition(1), "news")])).await.unwrap();
        } else {
            log.append(topic, Partition(1), records(["news"])).await.unwrap();
        }
        let (back, taken) = waiting.await.unwrap();
        assert_eq!(taken[&(topic, Partition(1))], ["news"]);
        member = back;
    }
}

pub async fn a_cancelled_poll_loses_nothing<E: Engine>() {
    const COUNT: usize = 200;
    let engine = E::start().await;
    let log = engine.log();
    let mut member = log.consumer("g", &[EVENTS]).await.unwrap();
    let feeder = {
        let log = engine.log();
        tokio::spawn(async move {
            for n in 0..COUNT {
                log.append(EVENTS, Partition(n as u32 % 2), records([n])).await.unwrap();
            }
        })
    };
    let mut seen: Vec<usize> = Vec::new();
    let mut patience = 0;
    while seen.len() < COUNT {
        // A poll that is dropped after `patience` turns: at every point that it can wait at.
        patience = (patience + 1) % 7;
        let cancelled = async {
            for _ in 0..patience {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            biased;
            polled = member.poll() => if let Polled::Records(all) = polled.unwrap() {
                seen.extend(all.iter().flat_map(texts).map(|text| text.parse::<usize>().unwrap()));
            },
            () = cancelled => {}
        }
    }
    feeder.await.unwrap();
    for parity in 0..2 {
        let got: Vec<usize> = seen.iter().copied().filter(|n| n % 2 == parity).collect();
        assert_eq!(got, (0..COUNT).filter(|n| n % 2 == parity).collect::<Vec<_>>());
    }
}

pub async fn a_member_that_starts_late_reads_everything_once_while_more_arrives<E: Engine>() {
    const OLD: usize = 300;
    const NEW: usize = 60;
    let engine = E::start().await;
    let log = engine.log();
    let large = "x".repeat(2_000);
    for step in 0..OLD / 10 {
        let batch = records((0..10).map(|n| format!("{}:{large}", step * 10 + n)));
        log.append(EVENTS, P0, batch).await.unwrap();
    }
    drop(log);
    let engine = engine.restart().await;
    let feeder = {
        let log = engine.log();
        tokio::spawn(async move {
            for n in OLD..OLD + NEW {
                log.append(EVENTS, P0, records([format!("{n}:")])).await.unwrap();
            }
        })
    };
    let log = engine.log();
    let mut member = log.consumer("g", &[EVENTS]).await.unwrap();
    let taken = take(&mut *member, OLD + NEW).await;
    let numbers: Vec<usize> =
        taken[&(EVENTS, P0)].iter().map(|text| text.split(':').next().unwrap().parse().unwrap()).collect();
    assert_eq!(numbers, (0..OLD + NEW).collect::<Vec<_>>());
    feeder.await.unwrap();
}

pub async fn a_member_that_seeks_back_reads_again<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    let second = log.append(EVENTS, P0, records(["one"])).await.unwrap();
    log.append(EVENTS, P0, records(["two"])).await.unwrap();
    let mut member = log.consumer("g", &[EVENTS]).await.unwrap();
    take(&mut *member, 2).await;
    member.seek(EVENTS, P0, second);
    assert_eq!(take(&mut *member, 1).await[&(EVENTS, P0)], ["two"]);
}

pub async fn a_member_passes_what_is_no_record<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    let mut member = log.consumer("g", &[EVENTS]).await.unwrap();
    assigned(&mut *member).await;
    let mut producer = log.producer("t").await.unwrap();
    let (mut at, mut seen) = (Offset(0), Vec::new());
    for round in ["one", "two"] {
        producer.commit(transaction([(EVENTS, P0, round)])).await.unwrap();
        let end = log.end(EVENTS, P0).await.unwrap();
        while at < end {
            for fetched in fetched(&mut *member).await.iter().filter(|fetched| fetched.partition == P0) {
                assert_eq!(fetched.from, at);
                at = fetched.next;
                seen.extend(texts(fetched));
            }
        }
    }
    assert_eq!(seen, ["one", "two"]);
    assert_eq!(at, log.end(EVENTS, P0).await.unwrap());
}

pub async fn a_position_out_of_range_is_an_error_and_not_a_reset<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    let first = log.append(EVENTS, P0, records(["one"])).await.unwrap();
    let end = log.append(EVENTS, P0, records(["two"])).await.unwrap();
    let mut member = log.consumer("g", &[EVENTS]).await.unwrap();
    take(&mut *member, 2).await;
    member.commit(vec![(EVENTS, P0, Offset(0))]).await.unwrap();
    log.trim(EVENTS, P0, first).await.unwrap();
    for asked in [Offset(0), Offset(end.0 + 1), Offset(u64::MAX)] {
        for error in [log.read(EVENTS, P0, asked, 1_000).await.unwrap_err(), {
            member.seek(EVENTS, P0, asked);
            member.poll().await.unwrap_err()
        }] {
            let Error::OutOfRange { asked: got, start, end: until, .. } = error else { panic!("{error}") };
            assert_eq!((got, start, until), (asked, first, end));
        }
    }
    member.seek(EVENTS, P0, first);
    assert_eq!(take(&mut *member, 1).await[&(EVENTS, P0)], ["two"]);
    drop(member);
    let mut heir = log.consumer("g", &[EVENTS]).await.unwrap();
    assigned(&mut *heir).await;
    assert!(matches!(heir.poll().await, Err(Error::OutOfRange { .. })), "what it committed is gone");
}

pub async fn trim_forgets_what_is_below_and_nothing_else<E: Engine>() {
    let mut engine = E::start().await;
    for partition in [P0, Partition(1)] {
        for step in 0..6 {
            let batch = records((0..3).map(|n| step * 3 + n));
            engine.log().append(EVENTS, partition, batch).await.unwrap();
        }
    }
    let all: Vec<String> = (0..18).map(|n| n.to_string()).collect();
    for before in [0, 1, 4, 4, 2, 9, 17] {
        let log = engine.log();
        log.trim(EVENTS, P0, Offset(before)).await.unwrap();
        let start = log.start(EVENTS, P0).await.unwrap();
        assert!(start >= Offset(before));
        assert_eq!(contents(&*log, EVENTS, P0).await, all[start.0 as usize..]);
        drop(log);
        engine = engine.restart().await;
        assert_eq!(engine.log().start(EVENTS, P0).await.unwrap(), start);
        assert_eq!(contents(&*engine.log(), EVENTS, P0).await, all[start.0 as usize..]);
    }
    assert_eq!(contents(&*engine.log(), EVENTS, Partition(1)).await, all);
}

pub async fn a_partition_trimmed_to_its_end_goes_on_counting<E: Engine>() {
    let engine = E::start().await;
    let end = engine.log().append(EVENTS, P0, records(["one", "two"])).await.unwrap();
    engine.log().trim(EVENTS, P0, Offset(1_000)).await.unwrap();
    let engine = engine.restart().await;
    let log = engine.log();
    assert_eq!(log.start(EVENTS, P0).await.unwrap(), end);
    assert_eq!(log.end(EVENTS, P0).await.unwrap(), end);
    assert!(log.append(EVENTS, P0, records(["three"])).await.unwrap() > end);
    assert_eq!(contents(&*log, EVENTS, P0).await, ["three"]);
}

pub async fn a_full_volatile_topic_is_unavailable_until_it_is_consumed<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    let large = "x".repeat(1_000);
    let mut accepted = 0;
    let refused = loop {
        match log.append(Topic::Commands, P0, records([&large])).await {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
        assert!(accepted < VOLATILE_MAX_BYTES, "no bound");
    };
    assert!(matches!(refused, Error::Unavailable(_)), "{refused}");
    let mut producer = log.producer("t").await.unwrap();
    let refused = producer.commit(transaction([(EVENTS, P0, "x")])).await;
    assert!(refused.is_ok(), "durable topics have room");
    let mut over = transaction([(EVENTS, P0, "never")]);
    over.records.push((Topic::Commands, P0, record(&large)));
    assert!(matches!(producer.commit(over).await, Err(Error::Unavailable(_))));
    assert_eq!(contents(&*log, EVENTS, P0).await, ["x"]);

    let mut member = log.consumer("g", &[Topic::Commands]).await.unwrap();
    assert_eq!(take(&mut *member, accepted).await[&(Topic::Commands, P0)].len(), accepted, "nothing accepted is lost");
    assert!(log.append(Topic::Commands, P0, records([&large])).await.is_err(), "read, but not committed");
    let next = log.end(Topic::Commands, P0).await.unwrap();
    let mut producer = log.producer("t").await.unwrap();
    let consumed = Some((member.member(), vec![(Topic::Commands, P0, next)]));
    producer.commit(Transaction { records: Vec::new(), consumed }).await.unwrap();
    log.append(Topic::Commands, P0, records([&large])).await.unwrap();
    assert_eq!(take(&mut *member, 1).await[&(Topic::Commands, P0)], [large]);
}

pub async fn signals_never_fail_for_want_of_room<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    let mut member = log.consumer("g", &[Topic::Signals]).await.unwrap();
    assigned(&mut *member).await;
    let large = "x".repeat(1_000);
    let count = 2 * VOLATILE_MAX_BYTES / large.len();
    for n in 0..count {
        log.append(Topic::Signals, P0, records([format!("{n}:{large}")])).await.unwrap();
    }
    log.append(Topic::Commands, P0, records([&large])).await.unwrap();
    let mut seen: Vec<usize> = Vec::new();
    while seen.last() != Some(&(count - 1)) {
        for fetched in fetched(&mut *member).await {
            seen.extend(texts(&fetched).iter().map(|text| text.split(':').next().unwrap().parse::<usize>().unwrap()));
        }
    }
    assert!(seen.windows(2).all(|pair| pair[0] < pair[1]), "in order, each once, with holes at most: {seen:?}");
}

pub async fn a_restart_keeps_what_was_promised<E: Engine>() {
    let mut engine = E::start().await;
    let mut expected = Vec::new();
    for round in 0..(4 / E::THRIFT.min(2)) as u64 {
        let log = engine.log();
        let mut member = log.consumer("g", &[Topic::Receipts]).await.unwrap();
        assigned(&mut *member).await;
        let mut producer = log.producer("t").await.unwrap();
        let mut committed = transaction([(EVENTS, P0, "event"), (Topic::UserEvents, Partition(2), "user")]);
        log.append(Topic::Receipts, P0, records(["receipt"])).await.unwrap();
        committed.consumed = Some((member.member(), vec![(Topic::Receipts, P0, Offset(round + 1))]));
        producer.commit(committed).await.unwrap();
        expected.push("event");
        // Read back, as before every acknowledgement (I10): what has been seen once is seen for ever.
        let check = async |log: Arc<dyn Log>| {
            assert_eq!(log.partitions(), PARTITIONS);
            assert_eq!(contents(&*log, EVENTS, P0).await, expected);
            assert_eq!(contents(&*log, Topic::UserEvents, Partition(2)).await.len(), expected.len());
            assert_eq!(log.committed("g", Topic::Receipts, P0).await.unwrap(), Some(Offset(round + 1)));
        };
        check(log).await;
        drop((member, producer));
        engine = engine.restart().await;
        check(engine.log()).await;
    }
}

pub async fn a_restart_loses_a_volatile_topic_as_a_whole_or_not_at_all<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    log.append(Topic::Commands, P0, records(["one", "two"])).await.unwrap();
    let mut member = log.consumer("g", &[Topic::Commands]).await.unwrap();
    assigned(&mut *member).await;
    member.commit(vec![(Topic::Commands, P0, Offset(1))]).await.unwrap();
    assert_eq!(log.committed("g", Topic::Commands, P0).await.unwrap(), Some(Offset(1)));
    let end = log.end(Topic::Commands, P0).await.unwrap();
    drop((log, member));
    let engine = engine.restart().await;
    let log = engine.log();
    let committed = log.committed("g", Topic::Commands, P0).await.unwrap();
    if log.end(Topic::Commands, P0).await.unwrap() == end {
        assert_eq!(committed, Some(Offset(1)));
    } else {
        assert_eq!(log.end(Topic::Commands, P0).await.unwrap(), Offset(0));
        assert_eq!(committed, None);
        log.append(Topic::Commands, P0, records(["three"])).await.unwrap();
        let mut member = log.consumer("g", &[Topic::Commands]).await.unwrap();
        assert_eq!(take(&mut *member, 1).await[&(Topic::Commands, P0)], ["three"]);
    }
}

pub async fn the_number_of_partitions_is_fixed_for_ever<E: Engine>() {
    let mut engine = E::start().await;
    for _ in 0..2 {
        let log = engine.log();
        assert_eq!(log.partitions(), PARTITIONS, "also of what an earlier life has made");
        log.create(PARTITIONS).await.unwrap();
        let error = log.create(PARTITIONS + 1).await.unwrap_err();
        assert!(matches!(error, Error::Broken(_)), "{error}");
        assert_eq!(log.partitions(), PARTITIONS);
        drop(log);
        engine = engine.restart().await;
    }
}

pub async fn a_partition_that_is_not_there_is_an_error<E: Engine>() {
    let engine = E::start().await;
    let log = engine.log();
    let beyond = Partition(PARTITIONS);
    for topic in [EVENTS, Topic::Commands] {
        assert!(matches!(log.append(topic, beyond, records(["x"])).await, Err(Error::Broken(_))));
        assert!(matches!(log.read(topic, beyond, Offset(0), 1).await, Err(Error::Broken(_))));
        assert!(matches!(log.end(topic, beyond).await, Err(Error::Broken(_))));
        assert!(matches!(log.trim(topic, beyond, Offset(0)).await, Err(Error::Broken(_))));
        let mut producer = log.producer("t").await.unwrap();
        let refused = producer.commit(transaction([(EVENTS, P0, "never"), (topic, beyond, "x")])).await;
        assert!(matches!(refused, Err(Error::Broken(_))));
    }
    assert_eq!(contents(&*log, EVENTS, P0).await, Vec::<String>::new());
}

/// One step of the model below.
#[derive(Clone, Debug)]
enum Step {
    Append(u32, usize),
    Commit(Vec<(u32, usize)>),
    Trim(u32, u64),
    Read(u32, prop::sample::Index, usize),
    Restart,
}

pub async fn any_calls_agree_with_a_naive_model<E: Engine>() {
    let partition = 0..2_u32;
    let step = prop_oneof![
        4 => (partition.clone(), 0..6_usize).prop_map(|(p, count)| Step::Append(p, count)),
        4 => prop::collection::vec((partition.clone(), 0..4_usize), 1..4).prop_map(Step::Commit),
        1 => (partition.clone(), 0..30_u64).prop_map(|(p, before)| Step::Trim(p, before)),
        4 => (partition, any::<prop::sample::Index>(), 0..2_000_usize).prop_map(|(p, at, max)| Step::Read(p, at, max)),
        1 => Just(Step::Restart),
    ];
    let config =
        ProptestConfig { failure_persistence: None, cases: (16 / E::THRIFT) as u32, ..ProptestConfig::default() };
    let runtime = tokio::runtime::Handle::current();
    let outcome = tokio::task::spawn_blocking(move || {
        TestRunner::new(config).run(&prop::collection::vec(step, 1..40), |steps| {
            runtime.block_on(agrees::<E>(steps));
            Ok(())
        })
    });
    outcome.await.unwrap().unwrap();
}

/// What is known of a partition: where it starts, and its records from there on.
#[derive(Default)]
struct Model {
    start: Offset,
    kept: Vec<(Option<Offset>, String)>,
}

impl Model {
    /// Holds it against what a reader sees, which also tells where new records stand.
    async fn compare(&mut self, log: &dyn Log, partition: Partition) {
        let mut seen = Vec::new();
        let mut at = log.start(EVENTS, partition).await.unwrap();
        assert_eq!(at, self.start);
        let end = log.end(EVENTS, partition).await.unwrap();
        while at < end {
            let fetched = log.read(EVENTS, partition, at, 1 << 20).await.unwrap();
            assert!(fetched.next > at);
            seen.extend(fetched.records.iter().map(|placed| placed.offset).zip(texts(&fetched)));
            at = fetched.next;
        }
        assert_eq!(at, end);
        assert_eq!(seen.len(), self.kept.len());
        for ((known, text), (offset, seen)) in self.kept.iter_mut().zip(seen) {
            assert_eq!(*text, seen);
            assert_eq!(*known.get_or_insert(offset), offset, "a record never moves");
        }
    }
}

async fn agrees<E: Engine>(steps: Vec<Step>) {
    let mut engine = E::start().await;
    let mut model: [Model; 2] = Default::default();
    let mut number = 0;
    let mut made = |count: usize| -> Vec<String> {
        number += count;
        (number - count..number).map(|n| n.to_string()).collect()
    };
    for step in steps {
        let log = engine.log();
        match step {
            Step::Append(partition, count) => {
                let texts = made(count);
                log.append(EVENTS, Partition(partition), records(&texts)).await.unwrap();
                model[partition as usize].kept.extend(texts.into_iter().map(|text| (None, text)));
            }
            Step::Commit(parts) => {
                let mut transaction = Transaction::default();
                for (partition, count) in parts {
                    for text in made(count) {
                        transaction.records.push((EVENTS, Partition(partition), record(&text)));
                        model[partition as usize].kept.push((None, text));
                    }
                }
                log.producer("t").await.unwrap().commit(transaction).await.unwrap();
            }
            Step::Trim(partition, before) => {
                log.trim(EVENTS, Partition(partition), Offset(before)).await.unwrap();
                let end = log.end(EVENTS, Partition(partition)).await.unwrap();
                let Model { start, kept } = &mut model[partition as usize];
                *start = log.start(EVENTS, Partition(partition)).await.unwrap();
                assert!(*start <= end && *start >= end.min(Offset(before)));
                kept.retain(|(offset, _)| offset.is_some_and(|offset| offset >= *start));
            }
            Step::Read(partition, at, max_bytes) => {
                let kept = &model[partition as usize].kept;
                let at = at.index(kept.len() + 1);
                let end = log.end(EVENTS, Partition(partition)).await.unwrap();
                let from = kept.get(at).and_then(|(offset, _)| *offset).unwrap_or(end);
                let got = log.read(EVENTS, Partition(partition), from, max_bytes).await.unwrap();
                let passed = kept[at..].iter().take_while(|(offset, _)| *offset < Some(got.next));
                assert!(texts(&got).iter().eq(passed.map(|(_, text)| text)));
                assert!(got.next > from || from == end);
            }
            Step::Restart => {
                drop(log);
                engine = engine.restart().await;
            }
        }
        for (partition, model) in (0..).map(Partition).zip(&mut model) {
            model.compare(&*engine.log(), partition).await;
        }
    }
}
