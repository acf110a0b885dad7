//! [`FanoutPort`] over links: each call goes to whoever owns the partition.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use schemas::cluster::Role;
use schemas::ids::InstanceId;
use schemas::link::{EdgePort, FanoutPort, Lane, Registered, Unavailable};
use schemas::{EdgeId, Offset, Partition, RoomId, Seq, UserId};
use uuid::Uuid;

use crate::client::{Links, Peer};
use crate::frame;
use crate::words::{self, Answer, Head, Question};

/// Fanout over links.
pub struct RemoteFanout {
    links: Arc<Links>,
}

impl RemoteFanout {
    pub(crate) fn new(links: Arc<Links>) -> Self {
        Self { links }
    }

    fn owner(&self, partition: Partition) -> Result<Arc<Peer>, Unavailable> {
        self.links.owner(Role::Fanout, partition).ok_or(Unavailable)
    }
}

#[async_trait]
impl FanoutPort for RemoteFanout {
    /// Returns at once: each link attaches the edge when it is up, and has it register anew then. A registration in a
    /// partition succeeds only where the edge is attached.
    async fn attach(&self, edge: Arc<dyn EdgePort>) -> Result<(), Unavailable> {
        self.links.set_edge(Some(edge));
        Ok(())
    }

    fn detach(&self, _: EdgeId) {
        self.links.set_edge(None);
        for peer in self.links.all(Role::Fanout) {
            peer.tell(Head::Detach {}, Vec::new());
        }
    }

    async fn register(
        &self,
        _: EdgeId,
        lane: Lane,
        partition: Partition,
        keys: &[[u8; 16]],
    ) -> Result<Registered, Unavailable> {
        let question = Question::Register { lane: lane.into(), partition };
        let answer = self.owner(partition)?.ask(question, vec![frame::ids(keys)]).await?;
        match answer[..] {
            [(Answer::Registered { epoch, at }, _)] => Ok(Registered { epoch, at }),
            _ => Err(Unavailable),
        }
    }

    fn unregister(&self, _: EdgeId, lane: Lane, partition: Partition, keys: &[[u8; 16]]) {
        // To all: which of them holds it is not known for sure while owners change.
        for peer in self.links.all(Role::Fanout) {
            peer.tell(Head::Unregister { lane: lane.into(), partition }, vec![frame::ids(keys)]);
        }
    }

    /// Any fanout reads the log; the owner first.
    async fn changed(
        &self,
        partition: Partition,
        from: Offset,
        to: Offset,
    ) -> Result<Option<Vec<(RoomId, Seq)>>, Unavailable> {
        let peer = self.owner(partition).or_else(|_| self.links.all(Role::Fanout).pop().ok_or(Unavailable))?;
        let answer = peer.ask(Question::Changed { partition, from, to }, Vec::new()).await?;
        words::as_changed(&answer).ok_or(Unavailable)
    }

    async fn online(&self, users: &[UserId]) -> Result<Vec<UserId>, Unavailable> {
        let mut by_owner: BTreeMap<InstanceId, (Arc<Peer>, Vec<UserId>)> = BTreeMap::new();
        for user in users {
            let peer = self.owner(self.links.partition(user.as_bytes()))?;
            by_owner.entry(peer.id).or_insert_with(|| (peer, Vec::new())).1.push(*user);
        }
        let asked = by_owner.values().map(|(peer, users)| async {
            let answer = peer.ask(Question::Online {}, vec![frame::ids(users.iter().map(UserId::as_bytes))]).await?;
            words::as_id_list(&answer).ok_or(Unavailable)
        });
        let online = try_join_all(asked).await?.concat();
        Ok(online.into_iter().map(|id| UserId(Uuid::from_bytes(id))).collect())
    }
}
