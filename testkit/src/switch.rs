//! Ports whose other side can be replaced: when a role crashes and another one begins, the edge keeps its port.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use schemas::link::{EdgePort, FanoutPort, HistoryPort, Lane, Page, PageQuery, Registered, RoomOfUser, Unavailable};
use schemas::{EdgeId, Offset, Partition, RoomId, Seq, UserId};

/// Fanout, whichever it is at the time; none at first.
#[derive(Default)]
pub struct FanoutSwitch {
    now: Mutex<Option<Arc<dyn FanoutPort>>>,
    edges: Mutex<BTreeMap<EdgeId, Arc<dyn EdgePort>>>,
}

impl FanoutSwitch {
    /// Another one from now on. The edges are attached to it, as they would do themselves over a network.
    pub async fn replace(&self, port: Arc<dyn FanoutPort>) -> Result<(), Unavailable> {
        *self.now.lock() = Some(Arc::clone(&port));
        let edges: Vec<Arc<dyn EdgePort>> = self.edges.lock().values().cloned().collect();
        for edge in edges {
            port.attach(edge).await?;
        }
        Ok(())
    }

    /// Forgets fanout and the edges.
    pub fn let_go(&self) {
        self.now.lock().take();
        self.edges.lock().clear();
    }

    fn now(&self) -> Result<Arc<dyn FanoutPort>, Unavailable> {
        self.now.lock().clone().ok_or(Unavailable)
    }
}

#[async_trait]
impl FanoutPort for FanoutSwitch {
    async fn attach(&self, edge: Arc<dyn EdgePort>) -> Result<(), Unavailable> {
        self.edges.lock().insert(edge.id(), Arc::clone(&edge));
        self.now()?.attach(edge).await
    }

    fn detach(&self, edge: EdgeId) {
        self.edges.lock().remove(&edge);
        if let Ok(now) = self.now() {
            now.detach(edge);
        }
    }

    async fn register(
        &self,
        edge: EdgeId,
        lane: Lane,
        partition: Partition,
        keys: &[[u8; 16]],
    ) -> Result<Registered, Unavailable> {
        self.now()?.register(edge, lane, partition, keys).await
    }

    fn unregister(&self, edge: EdgeId, lane: Lane, partition: Partition, keys: &[[u8; 16]]) {
        if let Ok(now) = self.now() {
            now.unregister(edge, lane, partition, keys);
        }
    }

    async fn changed(
        &self,
        partition: Partition,
        from: Offset,
        to: Offset,
    ) -> Result<Option<Vec<(RoomId, Seq)>>, Unavailable> {
        self.now()?.changed(partition, from, to).await
    }

    async fn online(&self, users: &[UserId]) -> Result<Vec<UserId>, Unavailable> {
        self.now()?.online(users).await
    }
}

/// The archiver's history, whichever it is at the time; none at first.
#[derive(Default)]
pub struct HistorySwitch {
    now: Mutex<Option<Arc<dyn HistoryPort>>>,
}

impl HistorySwitch {
    /// Another one from now on.
    pub fn replace(&self, port: Arc<dyn HistoryPort>) {
        *self.now.lock() = Some(port);
    }

    fn now(&self) -> Result<Arc<dyn HistoryPort>, Unavailable> {
        self.now.lock().clone().ok_or(Unavailable)
    }
}

#[async_trait]
impl HistoryPort for HistorySwitch {
    async fn page(&self, query: PageQuery) -> Result<Option<Page>, Unavailable> {
        self.now()?.page(query).await
    }

    async fn pages(&self, queries: &[PageQuery]) -> Result<Vec<Option<Page>>, Unavailable> {
        self.now()?.pages(queries).await
    }

    async fn rooms(&self, user: UserId, rooms: &[(RoomId, Offset)]) -> Result<Vec<RoomOfUser>, Unavailable> {
        self.now()?.rooms(user, rooms).await
    }

    async fn rooms_of(&self, user: UserId, min_offset: Offset) -> Result<Vec<RoomId>, Unavailable> {
        self.now()?.rooms_of(user, min_offset).await
    }

    async fn settle(&self, lane: Lane, partition: Partition, min_offset: Offset) -> Result<(), Unavailable> {
        self.now()?.settle(lane, partition, min_offset).await
    }
}
