//! Answers for history: what is unarchived, then the hot cache, then the store (I7), as one person may see it at the
//! position of the data (I8). Owns the state that the worker feeds and the bounds on reading; writes nothing.
//!
//! A page takes two steps. First the room and the standing at one position P at or after the one asked for; the seqs
//! of the page follow from them alone. Then the events of those seqs, from wherever they are by then: they never
//! change. Cached buckets are named by their first and last seq, so a bucket that grew has another name, and a fill
//! of what it was can't be taken for what it is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use moka::future::Cache;
use parking_lot::Mutex;
use schemas::cluster::Owned;
use schemas::limits::{BATCH_MAX_BYTES, STREAM_MAX_MISSED};
use schemas::link::{HistoryPort, Lane, Page, PageFrom, PageQuery, RoomOfUser, Unavailable};
use schemas::room::{Member, RoomInfo};
use schemas::{Event, Offset, Partition, RoomId, Seq, Topic, UserId};
use store::archive::Watermarks;
use tokio::sync::{Notify, Semaphore, watch};
use tracing::{error, warn};

use crate::plan::{self, Flight, Known, Positions, Tail};
use crate::visible::{self, Range};
use crate::{Config, Deps, Metrics};

/// How often the store is asked for the progress of a partition that another archiver owns.
const PROGRESS_POLL: Duration = Duration::from_millis(20);

/// How many loads of cold rooms may run side by side, each room's once.
const TURNS: usize = 64;

/// Part of a bucket: a room's events from the first to the last of these seqs.
type SpanKey = (RoomId, Seq, Seq);

/// Archived events as they are kept; `None`: the read failed, so that all who waited for it hear of it.
type Span = Option<Arc<Cached>>;

struct Cached {
    events: Vec<Arc<Event>>,
    /// On the clock's own scale.
    since: Duration,
}

/// Up to where a partition is known and archived.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reached {
    pub consumed: Positions,
    pub archived: Positions,
}

/// A partition; without a tail while another archiver owns it.
struct Slot {
    tail: Mutex<Option<Tail>>,
    reached: watch::Sender<Option<Reached>>,
}

/// The worker looks at the store's progress every second; after twice that readers look themselves. A store is away for
/// longer when it comes back with less.
const SURE_FOR: Duration = Duration::from_secs(2);

/// What history and worker share.
pub(crate) struct History {
    pub deps: Deps,
    pub config: Config,
    pub metrics: Metrics,
    slots: Vec<Slot>,
    /// What is this archiver's, as others find it by it.
    held: watch::Sender<Vec<Owned>>,
    pages: Cache<SpanKey, Span>,
    turns: Vec<tokio::sync::Mutex<()>>,
    hasher: RandomState,
    reads: Semaphore,
    ownerships: AtomicU64,
    settlers: AtomicUsize,
    /// There is something to write.
    pub dirty: Notify,
    /// It should be written now.
    pub hurry: Notify,
    /// Something was written.
    pub landed: Notify,
    /// The store has come back without its newest rows: to be taken over again at its progress (I5).
    pub rewind: Notify,
    /// How often partitions were given up, or found to be lacking in the store: what was found out before may not fit to
    /// what is read after.
    breaks: AtomicU64,
    /// Calls to the store that have failed so far: after each the store may come back as another.
    failures: AtomicU64,
    /// As many of them as there had been when its progress was last found to be as it should.
    cleared: AtomicU64,
    /// When that was, ms on the monotonic clock: a process that stands still for a while does not see calls fail.
    sure_ms: AtomicU64,
}

/// A room on its way into an answer.
struct Seen {
    room: RoomId,
    partition: Partition,
    known: Known,
    /// Whether what is read from the store may be kept.
    owned: bool,
}

impl Seen {
    fn is_complete(&self) -> bool {
        matches!(&self.known.info, Some(None)) || self.known.info.is_some() && self.known.member.is_some()
    }

    /// The room and the person's standing, both at the room's head.
    fn answer(self) -> Option<(Arc<RoomInfo>, Member, Watermarks)> {
        let info = self.known.info.flatten()?;
        let member = visible::at(self.known.member.flatten()?, info.head_seq)?;
        Some((info, member, self.known.marks))
    }
}

/// Someone waits for the archive: writes don't wait for company.
struct Settler<'a>(&'a History);

impl Drop for Settler<'_> {
    fn drop(&mut self) {
        self.0.settlers.fetch_sub(1, Ordering::Relaxed);
    }
}

impl History {
    pub(crate) fn new(deps: Deps, config: Config, metrics: Metrics) -> Self {
        let slot = || Slot { tail: Mutex::new(None), reached: watch::Sender::new(None) };
        Self {
            slots: (0..deps.log.partitions()).map(|_| slot()).collect(),
            held: watch::Sender::new(Vec::new()),
            pages: Cache::builder()
                .max_capacity(config.page_cache_max_bytes)
                .weigher(|_, span: &Span| {
                    let bytes = span.as_ref().map_or(0, |cached| cached.events.iter().map(|e| plan::weight(e)).sum());
                    u32::try_from(bytes).unwrap_or(u32::MAX).saturating_add(64)
                })
                // Frees memory; whether an entry may be used is decided by our own clock.
                .time_to_live(config.page_cache_window())
                .build(),
            turns: (0..TURNS).map(|_| tokio::sync::Mutex::new(())).collect(),
            hasher: RandomState::new(),
            reads: Semaphore::new(config.store_reads_max),
            ownerships: AtomicU64::new(0),
            settlers: AtomicUsize::new(0),
            dirty: Notify::new(),
            hurry: Notify::new(),
            landed: Notify::new(),
            rewind: Notify::new(),
            breaks: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            cleared: AtomicU64::new(0),
            sure_ms: AtomicU64::new(0),
            deps,
            config,
            metrics,
        }
    }

    // The worker's side.

    /// The partition is this archiver's from now on, by this generation of the group; its archive stands at `archived`.
    pub(crate) fn open(&self, epoch: u64, partition: Partition, archived: Positions) {
        // A stamp of one ownership is never one of another.
        let stamp = self.ownerships.fetch_add(1, Ordering::Relaxed) << 32;
        let budget = self.config.room_cache_max_bytes / self.slots.len().max(1);
        let Some(slot) = self.slots.get(partition.0 as usize) else { return };
        let mut tail = slot.tail.lock();
        *tail = Some(Tail::new(archived, stamp, budget));
        slot.reached.send_replace(Some(Reached { consumed: archived, archived }));
        drop(tail);
        self.held.send_modify(|held| {
            held.retain(|owned| owned.partition != partition);
            held.push(Owned { epoch, partition });
        });
    }

    /// The partition is another's: what is unarchived here is theirs to consume.
    pub(crate) fn close(&self, partition: Partition) {
        let Some(slot) = self.slots.get(partition.0 as usize) else { return };
        let mut tail = slot.tail.lock();
        *tail = None;
        self.breaks.fetch_add(1, Ordering::Relaxed);
        slot.reached.send_replace(None);
        drop(tail);
        self.held.send_modify(|held| held.retain(|owned| owned.partition != partition));
    }

    /// What is this archiver's, as it changes.
    pub(crate) fn held(&self) -> watch::Receiver<Vec<Owned>> {
        self.held.subscribe()
    }

    /// Every partition is another's.
    pub(crate) fn close_all(&self) {
        for (partition, _) in self.owned() {
            self.close(partition);
        }
    }

    /// The partitions that are this archiver's, and up to where each is known and archived.
    pub(crate) fn owned(&self) -> Vec<(Partition, Reached)> {
        let reached = |slot: &Slot| *slot.reached.borrow();
        (0..).map(Partition).zip(&self.slots).filter_map(|(p, slot)| Some((p, reached(slot)?))).collect()
    }

    /// Works on a partition's tail, then tells those who wait for its positions. `None`: it is another's.
    pub(crate) fn with<T>(&self, partition: Partition, work: impl FnOnce(&mut Tail) -> T) -> Option<T> {
        let slot = self.slots.get(partition.0 as usize)?;
        let mut guard = slot.tail.lock();
        let tail = guard.as_mut()?;
        let result = work(tail);
        let now = Some(Reached { consumed: tail.consumed(), archived: tail.archived() });
        slot.reached.send_if_modified(|reached| std::mem::replace(reached, now) != now);
        Some(result)
    }

    /// Sums a measure of events and bytes over the partitions.
    pub(crate) fn total(&self, measure: impl Fn(&Tail) -> (usize, usize)) -> (usize, usize) {
        self.slots.iter().fold((0, 0), |sum, slot| {
            let (events, bytes) = slot.tail.lock().as_ref().map_or((0, 0), &measure);
            (sum.0 + events, sum.1 + bytes)
        })
    }

    /// What the next write consists of.
    pub(crate) fn flights(&self) -> Vec<Arc<Flight>> {
        let partitions = (0..).map(Partition).zip(&self.slots);
        partitions.filter_map(|(partition, slot)| slot.tail.lock().as_mut()?.flight(partition)).collect()
    }

    /// Whether someone waits for the archive.
    pub(crate) fn is_awaited(&self) -> bool {
        self.settlers.load(Ordering::Relaxed) > 0
    }

    /// The hot cache takes over what memory hands over.
    pub(crate) async fn keep(&self, whole: Vec<Vec<Arc<Event>>>) {
        for events in whole {
            if let (Some(first), Some(last)) = (events.first(), events.last()) {
                let key = (first.room, first.seq, last.seq);
                self.pages.insert(key, Some(Arc::new(Cached { events, since: self.deps.clock.elapsed() }))).await;
            }
        }
        self.metrics.cache_bytes.set(i64::try_from(self.pages.weighted_size()).unwrap_or(i64::MAX));
    }

    // The readers' side.

    fn partition(&self, key: &[u8; 16]) -> Partition {
        Partition::of(key, self.deps.log.partitions())
    }

    /// An answer, if it comes in time and out of one piece.
    async fn answer<T>(&self, work: impl Future<Output = Result<T, Unavailable>>) -> Result<T, Unavailable> {
        let breaks = self.breaks.load(Ordering::Relaxed);
        let answer = tokio::time::timeout(self.config.wait_max(), work).await.unwrap_or(Err(Unavailable))?;
        if self.breaks.load(Ordering::Relaxed) == breaks { Ok(answer) } else { Err(Unavailable) }
    }

    /// A call to the store has failed: it may come back as another.
    pub(crate) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// The store lacks what was archived: all of it is to be taken over again, and nothing is read before that is sure.
    pub(crate) fn lacks_rows(&self) {
        self.failed();
        self.breaks.fetch_add(1, Ordering::Relaxed);
        self.rewind.notify_one();
    }

    /// A read of the store on behalf of a reader (I9: so many at a time).
    async fn read<T>(
        &self,
        rows: &'static str,
        work: impl Future<Output = Result<T, store::Error>>,
    ) -> Result<T, Unavailable> {
        let _permit = self.reads.acquire().await.map_err(|_| Unavailable)?;
        let failed = self.cleared.load(Ordering::Relaxed) < self.failures.load(Ordering::Relaxed);
        if failed || !self.was_sure_within(SURE_FOR) {
            self.make_sure().await?;
        }
        self.metrics.store_reads.with_label_values(&[rows]).inc();
        work.await.map_err(|error| {
            warn!(rows, %error, "history could not read the store");
            self.failed();
            Unavailable
        })
    }

    /// Whether the store holds what was archived. One that was away may have come back with less: what was let go of
    /// here would be missing in answers.
    pub(crate) async fn make_sure(&self) -> Result<(), Unavailable> {
        // What fails meanwhile is not cleared by this look.
        let (failures, looked) = (self.failures.load(Ordering::Relaxed), self.deps.clock.elapsed());
        let owned = self.owned();
        let all = owned.iter().flat_map(|(partition, reached)| plan::TOPICS.map(|topic| (topic, *partition, reached)));
        let is_there = all.map(async |(topic, partition, reached)| {
            let progress = self.deps.store.progress(topic, partition).await?;
            Ok::<_, store::Error>(progress >= reached.archived.of(topic))
        });
        let are_there = try_join_all(is_there).await.map_err(|_| {
            self.failed();
            Unavailable
        })?;
        if are_there.contains(&false) {
            self.lacks_rows();
            return Err(Unavailable);
        }
        self.cleared.fetch_max(failures, Ordering::Relaxed);
        self.sure_at(looked);
        Ok(())
    }

    /// The store held all that was archived when the clock showed this.
    pub(crate) fn sure_at(&self, looked: Duration) {
        self.sure_ms.fetch_max(in_ms(looked), Ordering::Relaxed);
    }

    /// Whether that was looked at so recently.
    pub(crate) fn was_sure_within(&self, time: Duration) -> bool {
        let since_ms = in_ms(self.deps.clock.elapsed()).saturating_sub(self.sure_ms.load(Ordering::Relaxed));
        since_ms <= in_ms(time)
    }

    /// Waits until a position is reached: `true` by this archiver, `false` by the store, when another owns it.
    async fn reach(
        &self,
        topic: Topic,
        partition: Partition,
        min_offset: Offset,
        part: fn(&Reached) -> &Positions,
    ) -> Result<bool, Unavailable> {
        let slot = self.slots.get(partition.0 as usize).ok_or(Unavailable)?;
        let mut reached = slot.reached.subscribe();
        loop {
            let now = *reached.borrow_and_update();
            match now {
                Some(now) if part(&now).of(topic) >= min_offset => return Ok(true),
                Some(_) => reached.changed().await.map_err(|_| Unavailable)?,
                None => {
                    let progress = self.read("progress", self.deps.store.progress(topic, partition)).await?;
                    if progress >= min_offset {
                        return Ok(false);
                    }
                    tokio::select! {
                        _ = reached.changed() => {}
                        () = tokio::time::sleep(PROGRESS_POLL) => {}
                    }
                }
            }
        }
    }

    /// Reads a tail at or after a position; `None` where the store is to be asked instead.
    async fn at<T>(
        &self,
        topic: Topic,
        partition: Partition,
        min_offset: Offset,
        read: impl Fn(&mut Tail) -> T,
    ) -> Result<Option<T>, Unavailable> {
        let slot = self.slots.get(partition.0 as usize).ok_or(Unavailable)?;
        loop {
            if let Some(tail) = slot.tail.lock().as_mut()
                && tail.consumed().of(topic) >= min_offset
            {
                return Ok(Some(read(tail)));
            }
            if !self.reach(topic, partition, min_offset, |reached| &reached.consumed).await? {
                return Ok(None);
            }
        }
    }

    /// What memory knows of rooms of one partition, all at one position.
    async fn seen(
        &self,
        user: UserId,
        partition: Partition,
        min_offset: Offset,
        rooms: &[RoomId],
    ) -> Result<Vec<Seen>, Unavailable> {
        let known = |tail: &mut Tail| {
            let seen = |room: &RoomId| Seen { room: *room, partition, known: tail.known(*room, user), owned: true };
            rooms.iter().map(seen).collect()
        };
        let unknown = |room: &RoomId| {
            let known = Known { stamp: 0, info: None, member: None, marks: Watermarks::default() };
            Seen { room: *room, partition, known, owned: false }
        };
        let seen = self.at(Topic::Events, partition, min_offset, known).await?;
        Ok(seen.unwrap_or_else(|| rooms.iter().map(unknown).collect()))
    }

    /// Completes them from the store: rooms first, so that standings are at least as new and can be told as they were
    /// at the room's head.
    async fn complete(&self, user: UserId, seen: &mut [Seen]) -> Result<(), Unavailable> {
        let cold: Vec<RoomId> = seen.iter().filter(|seen| seen.known.info.is_none()).map(|seen| seen.room).collect();
        if !cold.is_empty() {
            let infos = self.read("rooms", self.deps.store.rooms(&cold)).await?;
            let infos: HashMap<_, _> = infos.into_iter().map(|info| (info.id, Arc::new(info))).collect();
            for seen in seen.iter_mut().filter(|seen| seen.known.info.is_none()) {
                seen.known.info = Some(infos.get(&seen.room).cloned());
            }
        }
        let strange: Vec<RoomId> = seen.iter().filter(|seen| !seen.is_complete()).map(|seen| seen.room).collect();
        if strange.is_empty() {
            return Ok(());
        }
        let standings = self.read("standings", self.deps.store.standings(user, &strange)).await?;
        let mut standings: HashMap<_, _> = standings.into_iter().collect();
        for seen in seen.iter_mut().filter(|seen| !seen.is_complete()) {
            let member = standings.remove(&seen.room);
            if let (true, Some(Some(info)), Some(slot)) =
                (seen.owned, &seen.known.info, self.slots.get(seen.partition.0 as usize))
                && let Some(tail) = slot.tail.lock().as_mut()
            {
                tail.learn(seen.known.stamp, info, user, member.as_ref());
            }
            seen.known.member = Some(member);
        }
        Ok(())
    }

    /// A room and a person's standing in it at one position; a cold room is loaded once, whoever else asks.
    async fn look(
        &self,
        user: UserId,
        room: RoomId,
        min_offset: Offset,
    ) -> Result<Option<(Arc<RoomInfo>, Member)>, Unavailable> {
        let partition = self.partition(room.as_bytes());
        let mut seen = self.seen(user, partition, min_offset, &[room]).await?;
        if !seen.iter().all(Seen::is_complete) {
            let by = seen.iter().all(|seen| seen.known.info.is_some()).then_some(user);
            #[expect(clippy::cast_possible_truncation, reason = "only spreads")]
            let turn = self.hasher.hash_one((room, by)) as usize % TURNS;
            let _turn = self.turns[turn].lock().await;
            seen = self.seen(user, partition, min_offset, &[room]).await?;
            self.complete(user, &mut seen).await?;
        }
        Ok(seen.pop().and_then(Seen::answer).map(|(info, member, _)| (info, member)))
    }

    /// Archived events `first..=last` of a room, part of one bucket, out of the hot cache or else read once.
    async fn span(&self, key: SpanKey) -> Result<Arc<Cached>, Unavailable> {
        let now = self.deps.clock.elapsed();
        let window = self.config.page_cache_window();
        let is_stale = |span: &Span| span.as_ref().is_none_or(|cached| now.saturating_sub(cached.since) >= window);
        let entry = self.pages.entry(key).or_insert_with_if(self.fill(key), is_stale).await;
        let counter = if entry.is_fresh() { &self.metrics.cache_misses } else { &self.metrics.cache_hits };
        counter.inc();
        entry.into_value().ok_or(Unavailable)
    }

    async fn fill(&self, (room, first, last): SpanKey) -> Span {
        let count = usize::try_from(last.0 - first.0 + 1).ok()?;
        let read = self.deps.store.events(room, first.prev(), last.next(), count, false);
        let events: Vec<_> = self.read("events", read).await.ok()?.into_iter().map(Arc::new).collect();
        // I7: a page with a hole is no answer.
        if !events.iter().map(|event| event.seq.0).eq(first.0..=last.0) {
            self.metrics.holes.inc();
            error!(%room, %first, %last, found = events.len(), "the archive has a hole");
            return None;
        }
        Some(Arc::new(Cached { events, since: self.deps.clock.elapsed() }))
    }

    /// The events of these seqs, as many as one answer may hold, from the end that was asked for.
    async fn events(
        &self,
        room: RoomId,
        head: Seq,
        from: PageFrom,
        ranges: &[Range],
    ) -> Result<Vec<Arc<Event>>, Unavailable> {
        let slot = self.slots.get(self.partition(room.as_bytes()).0 as usize).ok_or(Unavailable)?;
        let in_memory = slot.tail.lock().as_ref().map(|tail| tail.recent(room, head, ranges));
        let (archived, recent) = in_memory.unwrap_or((head, Vec::new()));
        let mut spans: Vec<(Range, Range)> = Vec::new(); // part of a bucket, and what is wanted of it
        for (first, last) in ranges {
            let (mut first, last) = (*first, (*last).min(archived));
            while first <= last {
                let (start, end) = plan::bucket(first);
                spans.push(((start, end.min(archived)), (first, end.min(last))));
                first = end.next();
            }
        }
        let mut page = Answer::default();
        if matches!(from, PageFrom::After(_)) {
            for (bucket, wanted) in spans {
                let span = self.span((room, bucket.0, bucket.1)).await?;
                if !page.take(within(&span.events, bucket, wanted).iter()) {
                    return Ok(page.events);
                }
            }
            page.take(recent.iter());
        } else {
            let mut open = page.take(recent.iter().rev());
            while let (true, Some((bucket, wanted))) = (open, spans.pop()) {
                let span = self.span((room, bucket.0, bucket.1)).await?;
                open = page.take(within(&span.events, bucket, wanted).iter().rev());
            }
            page.events.reverse();
        }
        Ok(page.events)
    }

    async fn page_of(&self, query: PageQuery) -> Result<Option<Page>, Unavailable> {
        let seen = self.look(query.user, query.room, query.min_offset).await?;
        self.page_in(query, seen).await
    }

    /// The page of a question, once the room and the standing are known.
    async fn page_in(
        &self,
        query: PageQuery,
        seen: Option<(Arc<RoomInfo>, Member)>,
    ) -> Result<Option<Page>, Unavailable> {
        let Some((info, member)) = seen.filter(|(info, _)| !info.deleted) else {
            return Ok(None);
        };
        let head_seq = info.head_seq;
        let limit = query.limit.min(usize::try_from(STREAM_MAX_MISSED).unwrap_or(usize::MAX));
        let ranges = visible::page(&member, head_seq, query.from, limit);
        let events = self.events(query.room, head_seq, query.from, &ranges).await?;
        Ok(Some(Page {
            events,
            first_seq: member.visible_first(),
            visible_head: member.visible_head(head_seq),
            head_seq,
            member,
            info,
        }))
    }

    /// Rooms and a person's standing in each: memory is looked at once for each partition, and the store asked once for
    /// all that memory lacks. Each room once, in no order.
    async fn look_at_all(
        &self,
        user: UserId,
        rooms: impl Iterator<Item = (RoomId, Offset)>,
    ) -> Result<Vec<Seen>, Unavailable> {
        let mut wanted: BTreeMap<Partition, (Offset, BTreeSet<RoomId>)> = BTreeMap::new();
        for (room, min_offset) in rooms {
            let (offset, of_partition) = wanted.entry(self.partition(room.as_bytes())).or_default();
            *offset = min_offset.max(*offset);
            of_partition.insert(room);
        }
        let mut seen = Vec::new();
        for (partition, (min_offset, of_partition)) in wanted {
            let of_partition: Vec<RoomId> = of_partition.into_iter().collect();
            seen.extend(self.seen(user, partition, min_offset, &of_partition).await?);
        }
        self.complete(user, &mut seen).await?;
        Ok(seen)
    }

    async fn pages_of(&self, queries: &[PageQuery]) -> Result<Vec<Option<Page>>, Unavailable> {
        let users: BTreeSet<UserId> = queries.iter().map(|query| query.user).collect();
        let mut known = HashMap::new();
        for user in users {
            let of_user = queries.iter().filter(|query| query.user == user);
            let seen = self.look_at_all(user, of_user.map(|query| (query.room, query.min_offset))).await?;
            let answers = seen.into_iter().filter_map(Seen::answer);
            known.extend(answers.map(|(info, member, _)| ((user, info.id), (info, member))));
        }
        // I9: how many of them read the store at a time is bounded in `read`.
        let page = |query: &PageQuery| self.page_in(*query, known.get(&(query.user, query.room)).cloned());
        try_join_all(queries.iter().map(page)).await
    }

    async fn rooms_with(&self, user: UserId, rooms: &[(RoomId, Offset)]) -> Result<Vec<RoomOfUser>, Unavailable> {
        let seen = self.look_at_all(user, rooms.iter().copied()).await?;
        let answers: Vec<_> = seen.into_iter().filter_map(Seen::answer).collect();
        if answers.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<RoomId> = answers.iter().map(|(info, ..)| info.id).collect();
        let stored = self.read("watermarks", self.deps.store.watermarks(user, &ids)).await?;
        let stored: HashMap<_, _> = stored.into_iter().collect();
        let answer = |(info, member, mut marks): (Arc<RoomInfo>, Member, Watermarks)| {
            if let Some(stored) = stored.get(&info.id) {
                plan::raise(&mut marks, stored);
            }
            let delivered_seq = marks.delivered_seq.max(member.joined_seq_after(marks.delivered_seq).prev());
            let read_seq = marks.read_seq.max(member.joined_seq().prev());
            RoomOfUser { info, member, delivered_seq, read_seq }
        };
        Ok(answers.into_iter().map(answer).collect())
    }

    async fn list_of(&self, user: UserId, min_offset: Offset) -> Result<Vec<RoomId>, Unavailable> {
        let partition = self.partition(user.as_bytes());
        let news = self.at(Topic::UserEvents, partition, min_offset, |tail| tail.listings(user)).await?;
        // Read after the news were taken: what is in neither was never there.
        let mut rooms = self.read("lists", self.deps.store.rooms_of(user)).await?;
        let mut newest = HashMap::new();
        for listing in news.unwrap_or_default() {
            let known = newest.entry(listing.room).or_insert(listing);
            if known.version < listing.version {
                *known = listing;
            }
        }
        rooms.retain(|room| newest.get(room).is_none_or(|listing| listing.listed));
        let listed: HashSet<RoomId> = rooms.iter().copied().collect();
        rooms.extend(newest.into_values().filter(|new| new.listed && !listed.contains(&new.room)).map(|new| new.room));
        Ok(rooms)
    }

    async fn settled(&self, lane: Lane, partition: Partition, min_offset: Offset) -> Result<(), Unavailable> {
        self.settlers.fetch_add(1, Ordering::Relaxed);
        let _settler = Settler(self);
        self.hurry.notify_one();
        self.reach(lane.topic(), partition, min_offset, |reached| &reached.archived).await.map(|_| ())
    }
}

/// The events of an answer, up to the bytes that one may hold, but at least one.
#[derive(Default)]
struct Answer {
    events: Vec<Arc<Event>>,
    bytes: usize,
}

impl Answer {
    /// Whether there is room for more.
    fn take<'a>(&mut self, events: impl Iterator<Item = &'a Arc<Event>>) -> bool {
        for event in events {
            self.bytes += plan::weight(event);
            if self.bytes > BATCH_MAX_BYTES && !self.events.is_empty() {
                return false;
            }
            self.events.push(Arc::clone(event));
        }
        true
    }
}

/// The wanted seqs out of a bucket's dense events.
fn within(events: &[Arc<Event>], (start, _): Range, (first, last): Range) -> &[Arc<Event>] {
    let index = |seq: Seq| usize::try_from(seq.0 - start.0).unwrap_or(usize::MAX);
    events.get(index(first)..=index(last)).unwrap_or_default()
}

#[async_trait]
impl HistoryPort for History {
    async fn page(&self, query: PageQuery) -> Result<Option<Page>, Unavailable> {
        self.answer(self.page_of(query)).await
    }

    async fn pages(&self, queries: &[PageQuery]) -> Result<Vec<Option<Page>>, Unavailable> {
        self.answer(self.pages_of(queries)).await
    }

    async fn rooms(&self, user: UserId, rooms: &[(RoomId, Offset)]) -> Result<Vec<RoomOfUser>, Unavailable> {
        self.answer(self.rooms_with(user, rooms)).await
    }

    async fn rooms_of(&self, user: UserId, min_offset: Offset) -> Result<Vec<RoomId>, Unavailable> {
        self.answer(self.list_of(user, min_offset)).await
    }

    async fn settle(&self, lane: Lane, partition: Partition, min_offset: Offset) -> Result<(), Unavailable> {
        self.answer(self.settled(lane, partition, min_offset)).await
    }
}

fn in_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
