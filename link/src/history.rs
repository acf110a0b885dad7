//! [`HistoryPort`] over links: each question goes to whoever owns the partition. Where nobody does, or does not answer, the
//! store is read, once its archive has come as far as the question demands: the archiver's own code does that, so that the
//! answer is authorised at the position of its data all the same (I8).

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::try_join_all;
use schemas::cluster::Role;
use schemas::ids::InstanceId;
use schemas::link::{HistoryPort, Lane, Page, PageQuery, RoomOfUser, Unavailable};
use schemas::{Offset, Partition, RoomId, UserId};
use uuid::Uuid;

use crate::client::{Links, NoAnswer, Peer};
use crate::words::{self, Answer, Pieces, Question};

/// History over links.
pub struct RemoteHistory {
    links: Arc<Links>,
    store: Arc<dyn HistoryPort>,
}

/// Part of a question: who is to answer it, and where its parts stand in the whole.
struct Share<T> {
    peer: Option<Arc<Peer>>,
    places: Vec<usize>,
    parts: Vec<T>,
}

impl RemoteHistory {
    pub(crate) fn new(links: Arc<Links>, store: Arc<dyn HistoryPort>) -> Self {
        Self { links, store }
    }

    /// One for each owner, and one for those parts that nobody owns.
    fn shares<T: Copy>(&self, parts: &[T], key: impl Fn(&T) -> RoomId) -> Vec<Share<T>> {
        let mut shares: BTreeMap<Option<InstanceId>, Share<T>> = BTreeMap::new();
        for (place, part) in parts.iter().enumerate() {
            let peer = self.owner(self.links.partition(key(part).as_bytes()));
            let share = shares.entry(peer.as_ref().map(|peer| peer.id));
            let share = share.or_insert_with(|| Share { peer, places: Vec::new(), parts: Vec::new() });
            share.places.push(place);
            share.parts.push(*part);
        }
        shares.into_values().collect()
    }

    fn owner(&self, partition: Partition) -> Option<Arc<Peer>> {
        self.links.owner(Role::Archiver, partition)
    }

    /// Asks an archiver. `Ok(None)`: there is none or it does not answer, so that the store is to be read.
    async fn ask(&self, peer: Option<&Arc<Peer>>, question: Question) -> Result<Option<Pieces>, Unavailable> {
        let answer = match peer {
            Some(peer) => peer.ask(question, Vec::new()).await,
            None => Err(NoAnswer::Lost),
        };
        match answer {
            Ok(pieces) => Ok(Some(pieces)),
            Err(NoAnswer::Unavailable) => Err(Unavailable),
            Err(NoAnswer::Lost) => {
                self.links.metrics.from_store.inc();
                Ok(None)
            }
        }
    }

    async fn pages_of(
        &self,
        peer: Option<&Arc<Peer>>,
        queries: &[PageQuery],
    ) -> Result<Vec<Option<Page>>, Unavailable> {
        let question = Question::Pages { queries: queries.iter().map(|query| (*query).into()).collect() };
        let pages = match self.ask(peer, question).await? {
            Some(pieces) => words::as_pages(pieces).ok_or(Unavailable)?,
            None => self.store.pages(queries).await?,
        };
        if pages.len() == queries.len() { Ok(pages) } else { Err(Unavailable) }
    }
}

#[async_trait]
impl HistoryPort for RemoteHistory {
    async fn page(&self, query: PageQuery) -> Result<Option<Page>, Unavailable> {
        let peer = self.owner(self.links.partition(query.room.as_bytes()));
        match self.ask(peer.as_ref(), Question::Pages { queries: vec![query.into()] }).await? {
            Some(pieces) => match words::as_pages(pieces).as_deref_mut() {
                Some([page]) => Ok(page.take()),
                _ => Err(Unavailable),
            },
            None => self.store.page(query).await,
        }
    }

    async fn pages(&self, queries: &[PageQuery]) -> Result<Vec<Option<Page>>, Unavailable> {
        let shares = self.shares(queries, |query| query.room);
        let asked = shares.iter().map(|share| self.pages_of(share.peer.as_ref(), &share.parts));
        let mut pages: Vec<Option<Page>> = queries.iter().map(|_| None).collect();
        for (share, answers) in shares.iter().zip(try_join_all(asked).await?) {
            for (place, answer) in share.places.iter().zip(answers) {
                if let Some(page) = pages.get_mut(*place) {
                    *page = answer;
                }
            }
        }
        Ok(pages)
    }

    async fn rooms(&self, user: UserId, rooms: &[(RoomId, Offset)]) -> Result<Vec<RoomOfUser>, Unavailable> {
        let shares = self.shares(rooms, |(room, _)| *room);
        let asked = shares.iter().map(|share| async move {
            let question = Question::Rooms { user, rooms: share.parts.clone() };
            match self.ask(share.peer.as_ref(), question).await? {
                Some(pieces) => words::as_rooms(pieces).ok_or(Unavailable),
                None => self.store.rooms(user, &share.parts).await,
            }
        });
        Ok(try_join_all(asked).await?.into_iter().flatten().collect())
    }

    async fn rooms_of(&self, user: UserId, min_offset: Offset) -> Result<Vec<RoomId>, Unavailable> {
        let peer = self.owner(self.links.partition(user.as_bytes()));
        match self.ask(peer.as_ref(), Question::RoomsOf { user, min_offset }).await? {
            Some(pieces) => {
                let ids = words::as_id_list(&pieces).ok_or(Unavailable)?;
                Ok(ids.into_iter().map(|id| RoomId(Uuid::from_bytes(id))).collect())
            }
            None => self.store.rooms_of(user, min_offset).await,
        }
    }

    async fn settle(&self, lane: Lane, partition: Partition, min_offset: Offset) -> Result<(), Unavailable> {
        let peer = self.owner(partition);
        let question = Question::Settle { lane: lane.into(), partition, min_offset };
        match self.ask(peer.as_ref(), question).await? {
            Some(pieces) => match pieces[..] {
                [(Answer::Done {}, _)] => Ok(()),
                _ => Err(Unavailable),
            },
            None => self.store.settle(lane, partition, min_offset).await,
        }
    }
}
