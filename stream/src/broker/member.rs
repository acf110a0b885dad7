//! A member of a group, for every engine: waits for news, keeps its reading positions, leaves when dropped.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use schemas::limits::BATCH_MAX_BYTES;
use schemas::{Offset, Partition, Topic};
use tokio::sync::Notify;

use super::{Depths, LaneId, State};
use crate::{Consumer, Error, Fetched, GroupMember, Polled};

/// A member of a group.
pub(crate) struct Member {
    depths: Arc<dyn Depths>,
    this: GroupMember,
    waiting: Arc<Notify>,
    /// What it was told is its own, with the epoch of that change.
    owned: BTreeMap<Partition, u64>,
    /// Where it reads on. The first is looked at first, and each poll starts with another one.
    positions: Vec<(LaneId, Offset)>,
    turn: usize,
}

/// What there is for a member.
enum News {
    Nothing,
    Revoked(Vec<Partition>),
    /// Partitions are to be taken over.
    Gained,
    /// What memory holds, and one partition that must be read from beneath, up to the end it has.
    Records(Vec<Fetched>, Option<(LaneId, Offset, Offset)>),
}

impl Member {
    /// Joins a group.
    pub(crate) fn join(depths: Arc<dyn Depths>, group: &str, topics: &[Topic]) -> Result<Self, Error> {
        let (member, waiting) = depths.broker().with(|state| state.join(group, topics))?;
        let this = GroupMember { group: group.to_owned(), member, epoch: 0 };
        Ok(Self { depths, this, waiting, owned: BTreeMap::new(), positions: Vec::new(), turn: 0 })
    }

    /// Looks for news; changes nothing.
    fn look(&self, state: &State) -> Result<News, Error> {
        state.opened()?;
        let group = state.groups.get(&self.this.group).filter(|group| group.has(self.this.member));
        // The group has given this member up: it has to join anew.
        let group = group.ok_or(Error::Fenced)?;
        let current: BTreeMap<Partition, u64> = group.of_member(self.this.member).collect();
        if current != self.owned {
            let gone = self.owned.iter().filter(|(partition, since)| current.get(partition) != Some(since));
            let gone: Vec<Partition> = gone.map(|(partition, _)| *partition).collect();
            return Ok(if gone.is_empty() { News::Gained } else { News::Revoked(gone) });
        }
        let mut hot = Vec::new();
        let mut cold = None;
        let mut room = BATCH_MAX_BYTES;
        for at in 0..self.positions.len() {
            let (id, position) = self.positions[(self.turn + at) % self.positions.len()];
            let lane = state.lane(id)?;
            // Signals are shed by design: who is behind goes on at the oldest kept, and sees it by `from`.
            let position = if id.0 == Topic::Signals { position.max(lane.start) } else { position };
            if position == lane.end || room == 0 {
                continue;
            }
            lane.check(id, position)?;
            match lane.fetch(id, position, room) {
                Some(fetched) => {
                    let bytes: usize = fetched.records.iter().map(|placed| super::size_of_record(&placed.record)).sum();
                    room = room.saturating_sub(bytes);
                    hot.push(fetched);
                }
                None => cold = cold.or(Some((id, position, lane.end))),
            }
        }
        Ok(if hot.is_empty() && cold.is_none() { News::Nothing } else { News::Records(hot, cold) })
    }

    /// Takes over what it has gained, at the group's committed positions.
    fn take_over(&mut self) -> Option<Polled> {
        let Self { depths, this, owned, positions, .. } = self;
        depths.broker().with(|state| {
            let group = state.groups.get(&this.group)?;
            let current: BTreeMap<Partition, u64> = group.of_member(this.member).collect();
            if owned.iter().any(|(partition, since)| current.get(partition) != Some(since)) {
                return None; // Lost some meanwhile: that has to be told first.
            }
            let partitions: Vec<Partition> = current.keys().filter(|p| !owned.contains_key(p)).copied().collect();
            if partitions.is_empty() {
                return None;
            }
            for partition in &partitions {
                for topic in group.topics() {
                    let id = (*topic, *partition);
                    let start = state.lane(id).map(|lane| lane.start).unwrap_or_default();
                    positions.push((id, group.committed.get(&id).copied().unwrap_or(start)));
                }
            }
            *owned = current;
            this.epoch = group.epoch;
            Some(Polled::Assigned { epoch: group.epoch, partitions })
        })
    }
}

#[async_trait]
impl Consumer for Member {
    async fn poll(&mut self) -> Result<Polled, Error> {
        loop {
            // Everything may be ready at once: without this a member's loop would starve a runtime of one thread.
            tokio::task::consume_budget().await;
            // Cancel safe: nothing of this member changes before the last await of a round.
            match self.depths.broker().with(|state| self.look(state))? {
                News::Nothing => self.waiting.notified().await,
                News::Revoked(partitions) => {
                    self.owned.retain(|partition, _| !partitions.contains(partition));
                    self.positions.retain(|((_, partition), _)| !partitions.contains(partition));
                    return Ok(Polled::Revoked(partitions));
                }
                News::Gained => {
                    // The former owner's last transaction may be on its way to the disk, checked before this member
                    // took over: its positions count, so they are waited for. Later ones are fenced.
                    self.depths.settle().await?;
                    if let Some(assigned) = self.take_over() {
                        return Ok(assigned);
                    }
                }
                News::Records(mut fetched, cold) => {
                    if let Some((id, from, until)) = cold {
                        fetched.push(self.depths.read_cold(id, from, until, BATCH_MAX_BYTES / 2).await?);
                    }
                    for Fetched { topic, partition, next, .. } in &fetched {
                        self.seek(*topic, *partition, *next);
                    }
                    self.turn = self.turn.wrapping_add(1);
                    return Ok(Polled::Records(fetched));
                }
            }
        }
    }

    fn member(&self) -> GroupMember {
        self.this.clone()
    }

    fn seek(&mut self, topic: Topic, partition: Partition, to: Offset) {
        if let Some((_, position)) = self.positions.iter_mut().find(|(id, _)| *id == (topic, partition)) {
            *position = to;
        }
    }

    async fn commit(&mut self, positions: Vec<(Topic, Partition, Offset)>) -> Result<(), Error> {
        self.depths.broker().with(|state| {
            state.opened()?;
            state.owns(&self.this, &positions)?;
            for (topic, partition, offset) in positions.iter().filter(|(topic, ..)| topic.is_durable()) {
                state.unsaved.insert((self.this.group.clone(), (*topic, *partition)), *offset);
            }
            state.commit_offsets(&self.this.group, &positions);
            Ok(())
        })
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.depths.broker().with(|state| state.leave(&self.this.group, self.this.member));
    }
}
