//! What edges, fanouts and archivers say to each other over links that are slow, break, and lose answers. Knows which
//! process is where, as a cluster's directory does; brings edges in again after a break, as both ends of a link do.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use edge::hub::Hub;
use parking_lot::Mutex;
use schemas::link::{
    Batch, EdgePort, FanoutPort, HistoryPort, Lane, Page, PageQuery, Registered, RoomOfUser, Unavailable,
};
use schemas::{EdgeId, Offset, Partition, RoomId, Seq, UserId};
use tokio::time::{sleep, timeout};

use crate::surroundings::Surroundings;
use crate::tasks::{ProcessId, WORLD};

/// An answer that takes longer is given up.
const PATIENCE: Duration = Duration::from_secs(3);

/// Pause between two tries to bring an edge in.
const ATTACH_AGAIN: Duration = Duration::from_millis(100);

/// Who is where.
pub struct Links {
    around: Arc<Surroundings>,
    state: Mutex<Directory>,
}

#[derive(Default)]
struct Directory {
    fanouts: BTreeMap<ProcessId, Arc<fanout::Handle>>,
    histories: BTreeMap<ProcessId, Arc<dyn HistoryPort>>,
    edges: BTreeMap<ProcessId, Arc<Hub>>,
    /// Edges that are being brought in at a fanout, and whether a batch was lost since the last try began.
    coming: BTreeMap<(ProcessId, ProcessId), bool>,
}

impl Links {
    /// Nobody is anywhere yet.
    pub fn new(around: Arc<Surroundings>) -> Arc<Self> {
        Arc::new(Self { around, state: Mutex::default() })
    }

    /// What an edge is handed for its ports.
    pub fn of(self: &Arc<Self>, edge: ProcessId) -> Arc<EdgeLinks> {
        Arc::new(EdgeLinks { links: Arc::clone(self), edge })
    }

    /// An edge has begun.
    pub fn edge_began(self: &Arc<Self>, process: ProcessId, hub: &Arc<Hub>) {
        let fanouts: Vec<ProcessId> = {
            let mut state = self.state.lock();
            state.edges.insert(process, Arc::clone(hub));
            state.fanouts.keys().copied().collect()
        };
        fanouts.into_iter().for_each(|fanout| self.bring_in(fanout, process, false));
    }

    /// A fanout has begun.
    pub fn fanout_began(self: &Arc<Self>, process: ProcessId, handle: Arc<fanout::Handle>) {
        let edges: Vec<ProcessId> = {
            let mut state = self.state.lock();
            state.fanouts.insert(process, handle);
            state.edges.keys().copied().collect()
        };
        edges.into_iter().for_each(|edge| self.bring_in(process, edge, false));
    }

    /// An archiver has begun.
    pub fn archiver_began(&self, process: ProcessId, history: Arc<dyn HistoryPort>) {
        self.state.lock().histories.insert(process, history);
    }

    /// A process has ended.
    pub fn ended(&self, process: ProcessId) {
        let gone = {
            let mut state = self.state.lock();
            (state.fanouts.remove(&process), state.histories.remove(&process), state.edges.remove(&process))
        };
        drop(gone);
    }

    /// Brings an edge in at a fanout, as soon as the way between them is free.
    fn bring_in(self: &Arc<Self>, fanout: ProcessId, edge: ProcessId, again: bool) {
        if self.state.lock().coming.insert((fanout, edge), true).is_some() {
            return;
        }
        let links = Arc::clone(self);
        self.around.tasks.spawn(WORLD, async move {
            while let Some((handle, hub)) = links.next_try(fanout, edge) {
                let port = LinkedEdge { links: Arc::clone(&links), fanout, edge, hub: Arc::clone(&hub) };
                if links.call(edge, fanout, handle.attach(Arc::new(port))).await.is_ok() {
                    if again {
                        links.around.saw("link: edge attached again");
                    }
                    hub.link_was_lost();
                    if links.is_in(fanout, edge) {
                        return;
                    }
                }
                sleep(ATTACH_AGAIN).await;
            }
        });
    }

    /// Both ends, if they still live: then what is lost from now on counts.
    fn next_try(&self, fanout: ProcessId, edge: ProcessId) -> Option<(Arc<fanout::Handle>, Arc<Hub>)> {
        let mut state = self.state.lock();
        let ends = state.fanouts.get(&fanout).cloned().zip(state.edges.get(&edge).cloned());
        match ends {
            Some(_) => state.coming.insert((fanout, edge), false),
            None => state.coming.remove(&(fanout, edge)),
        };
        ends
    }

    /// Whether nothing was lost since the last try began, which then is the last one.
    fn is_in(&self, fanout: ProcessId, edge: ProcessId) -> bool {
        let mut state = self.state.lock();
        let is_in = state.coming.get(&(fanout, edge)) == Some(&false);
        if is_in {
            state.coming.remove(&(fanout, edge));
        }
        is_in
    }

    /// A call from one process to another.
    async fn call<T>(
        &self,
        from: ProcessId,
        to: ProcessId,
        work: impl Future<Output = Result<T, Unavailable>>,
    ) -> Result<T, Unavailable> {
        let (there, _) = self.around.way(from, to);
        if !there || !self.around.is_alive(to) {
            self.around.saw("link: call not arrived");
            return Err(Unavailable);
        }
        // What is asked is in the other's queue at once, in order; its answer takes a while.
        let answer = timeout(PATIENCE, work).await.map_err(|_| Unavailable)??;
        self.around.delay().await;
        let (_, back) = self.around.way(from, to);
        if !back || !self.around.is_alive(to) {
            self.around.saw("link: answer lost");
            return Err(Unavailable);
        }
        Ok(answer)
    }

    /// What all archivers that live answer from.
    pub fn histories(&self) -> Vec<Arc<dyn HistoryPort>> {
        self.state.lock().histories.values().cloned().collect()
    }
}

/// An edge's ports: asks whoever may answer, one after the other.
pub struct EdgeLinks {
    links: Arc<Links>,
    edge: ProcessId,
}

impl EdgeLinks {
    fn fanouts(&self) -> Vec<(ProcessId, Arc<fanout::Handle>)> {
        self.beginning_anywhere(|directory| &directory.fanouts)
    }

    fn histories(&self) -> Vec<(ProcessId, Arc<dyn HistoryPort>)> {
        self.beginning_anywhere(|directory| &directory.histories)
    }

    /// All of a role, begun with any of them.
    fn beginning_anywhere<T: ?Sized>(
        &self,
        of_role: impl Fn(&Directory) -> &BTreeMap<ProcessId, Arc<T>>,
    ) -> Vec<(ProcessId, Arc<T>)> {
        let state = self.links.state.lock();
        let mut all: Vec<_> = of_role(&state).iter().map(|(process, port)| (*process, Arc::clone(port))).collect();
        if let Some(first) = self.links.around.dice.number().checked_rem(all.len() as u64) {
            all.rotate_left(usize::try_from(first).unwrap_or(0));
        }
        all
    }
}

#[async_trait]
impl FanoutPort for EdgeLinks {
    async fn attach(&self, _: Arc<dyn EdgePort>) -> Result<(), Unavailable> {
        Ok(()) // The directory has brought it in.
    }

    fn detach(&self, edge: EdgeId) {
        self.fanouts().iter().for_each(|(_, fanout)| fanout.detach(edge));
    }

    async fn register(
        &self,
        edge: EdgeId,
        lane: Lane,
        partition: Partition,
        keys: &[[u8; 16]],
    ) -> Result<Registered, Unavailable> {
        for (process, fanout) in self.fanouts() {
            let asked = self.links.call(self.edge, process, fanout.register(edge, lane, partition, keys));
            if let Ok(registered) = asked.await {
                return Ok(registered);
            }
        }
        Err(Unavailable)
    }

    fn unregister(&self, edge: EdgeId, lane: Lane, partition: Partition, keys: &[[u8; 16]]) {
        // Who has crashed says nothing any more.
        if self.links.around.is_alive(self.edge) {
            self.fanouts().iter().for_each(|(_, fanout)| fanout.unregister(edge, lane, partition, keys));
        }
    }

    async fn changed(
        &self,
        partition: Partition,
        from: Offset,
        to: Offset,
    ) -> Result<Option<Vec<(RoomId, Seq)>>, Unavailable> {
        let (process, fanout) = self.fanouts().into_iter().next().ok_or(Unavailable)?;
        self.links.call(self.edge, process, fanout.changed(partition, from, to)).await
    }

    async fn online(&self, users: &[UserId]) -> Result<Vec<UserId>, Unavailable> {
        let mut online = Vec::new();
        for (process, fanout) in self.fanouts() {
            online.extend(self.links.call(self.edge, process, fanout.online(users)).await?);
        }
        Ok(online)
    }
}

/// Asks one archiver; another one where that does not answer.
macro_rules! ask {
    ($self:ident, $history:ident => $question:expr) => {{
        for (process, $history) in $self.histories() {
            if let Ok(answer) = $self.links.call($self.edge, process, $question).await {
                return Ok(answer);
            }
        }
        Err(Unavailable)
    }};
}

#[async_trait]
impl HistoryPort for EdgeLinks {
    async fn page(&self, query: PageQuery) -> Result<Option<Page>, Unavailable> {
        ask!(self, history => history.page(query))
    }

    async fn pages(&self, queries: &[PageQuery]) -> Result<Vec<Option<Page>>, Unavailable> {
        ask!(self, history => history.pages(queries))
    }

    async fn rooms(&self, user: UserId, rooms: &[(RoomId, Offset)]) -> Result<Vec<RoomOfUser>, Unavailable> {
        ask!(self, history => history.rooms(user, rooms))
    }

    async fn rooms_of(&self, user: UserId, min_offset: Offset) -> Result<Vec<RoomId>, Unavailable> {
        ask!(self, history => history.rooms_of(user, min_offset))
    }

    async fn settle(&self, lane: Lane, partition: Partition, min_offset: Offset) -> Result<(), Unavailable> {
        ask!(self, history => history.settle(lane, partition, min_offset))
    }
}

/// An edge, as a fanout sees it.
struct LinkedEdge {
    links: Arc<Links>,
    fanout: ProcessId,
    edge: ProcessId,
    hub: Arc<Hub>,
}

/// A batch under way: if it does not arrive the link is broken, and both ends build it anew.
struct UnderWay<'a> {
    link: &'a LinkedEdge,
    arrived: bool,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let LinkedEdge { links, fanout, edge, .. } = self.link;
        if !self.arrived && links.around.is_alive(*fanout) && links.around.is_alive(*edge) {
            links.around.saw("link: batch lost");
            links.bring_in(*fanout, *edge, true);
        }
    }
}

#[async_trait]
impl EdgePort for LinkedEdge {
    fn id(&self) -> EdgeId {
        self.hub.id()
    }

    async fn deliver(&self, batch: Batch) -> Result<(), Unavailable> {
        let around = &self.links.around;
        let mut under_way = UnderWay { link: self, arrived: false };
        around.delay().await;
        // A process that stands still takes nothing.
        while around.tasks.is_paused(self.edge) {
            sleep(Duration::from_millis(10)).await;
        }
        if !around.way(self.edge, self.fanout).1 || !around.is_alive(self.edge) {
            return Err(Unavailable);
        }
        let taken = self.hub.deliver(batch).await;
        // Taken, and nobody hears of it.
        around.delay().await;
        if !around.way(self.edge, self.fanout).1 {
            return Err(Unavailable);
        }
        under_way.arrived = taken.is_ok();
        taken
    }
}
