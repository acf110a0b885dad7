//! A consumer group: who its members are, which partition is whose since when, and what was committed. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use schemas::{Offset, Partition, Topic};
use tokio::sync::Notify;

use super::LaneId;
use crate::{Error, GroupMember};

/// Whose a partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Owner {
    member: u64,
    /// Epoch of the change that made it theirs.
    since: u64,
}

/// A consumer group; it outlives its members, for its offsets.
#[derive(Debug, Default)]
pub(crate) struct Group {
    topics: Vec<Topic>,
    members: BTreeMap<u64, Arc<Notify>>,
    /// By partition.
    owners: Vec<Option<Owner>>,
    /// Rises with each change of members.
    pub(crate) epoch: u64,
    /// Positions to go on from.
    pub(crate) committed: HashMap<LaneId, Offset>,
}

impl Group {
    /// Takes a member in and shares the partitions out anew; what wakes it. Epochs start above `base`.
    pub(super) fn join(
        &mut self,
        member: u64,
        topics: &[Topic],
        partitions: u32,
        base: u64,
    ) -> Result<Arc<Notify>, Error> {
        let mut topics = topics.to_vec();
        topics.sort_unstable();
        topics.dedup();
        if !self.members.is_empty() && self.topics != topics {
            return Err(Error::Broken("members of one group must consume the same topics".into()));
        }
        self.topics = topics;
        self.owners.resize(partitions as usize, None);
        self.epoch = self.epoch.max(base);
        let waiting = Arc::new(Notify::new());
        self.members.insert(member, Arc::clone(&waiting));
        self.share_out();
        Ok(waiting)
    }

    /// Lets a member go and shares its partitions out; what wakes it, for it may be waiting all the same.
    pub(super) fn leave(&mut self, member: u64) -> Option<Arc<Notify>> {
        let waiting = self.members.remove(&member)?;
        self.share_out();
        Some(waiting)
    }

    /// Gives every member the same number of partitions, give or take one, and moves no more than that takes: members
    /// keep what they have up to their share, those with most first.
    fn share_out(&mut self) {
        self.epoch += 1;
        let mut held: BTreeMap<u64, usize> = self.members.keys().map(|member| (*member, 0)).collect();
        for slot in &mut self.owners {
            match slot.map(|owner| held.get_mut(&owner.member)) {
                Some(Some(count)) => *count += 1,
                _ => *slot = None,
            }
        }
        if held.is_empty() {
            return;
        }
        let mut by_most: Vec<(u64, usize)> = held.into_iter().collect();
        by_most.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let (share, over) = (self.owners.len() / by_most.len(), self.owners.len() % by_most.len());
        let mut room: BTreeMap<u64, usize> =
            by_most.iter().enumerate().map(|(at, (member, _))| (*member, share + usize::from(at < over))).collect();
        for slot in &mut self.owners {
            let left = slot.and_then(|owner| room.get_mut(&owner.member));
            match left {
                Some(left) if *left > 0 => *left -= 1,
                _ => *slot = None,
            }
        }
        let since = self.epoch;
        let mut free = room.into_iter().flat_map(|(member, left)| std::iter::repeat_n(member, left));
        for slot in self.owners.iter_mut().filter(|slot| slot.is_none()) {
            *slot = free.next().map(|member| Owner { member, since });
        }
    }

    /// Whether it is a member.
    pub(super) fn has(&self, member: u64) -> bool {
        self.members.contains_key(&member)
    }

    /// What wakes each member.
    pub(super) fn members(&self) -> impl Iterator<Item = &Arc<Notify>> {
        self.members.values()
    }

    /// Its topics.
    pub(super) fn topics(&self) -> &[Topic] {
        &self.topics
    }

    /// Whether it has ever consumed this topic.
    pub(super) fn consumes(&self, topic: Topic) -> bool {
        self.topics.contains(&topic)
    }

    /// What wakes the member that reads this partition of this topic.
    pub(super) fn owner_of(&self, (topic, partition): LaneId) -> Option<&Arc<Notify>> {
        let owner = self.owners.get(partition.0 as usize).copied().flatten()?;
        if self.consumes(topic) { self.members.get(&owner.member) } else { None }
    }

    /// A member's partitions, each with the epoch since when it is theirs.
    pub(super) fn of_member(&self, member: u64) -> impl Iterator<Item = (Partition, u64)> {
        (0..).zip(&self.owners).filter_map(move |(partition, owner)| {
            owner.filter(|owner| owner.member == member).map(|owner| (Partition(partition), owner.since))
        })
    }

    /// Whether the partition is this member's, and has been since a change that it knows of: one that lost a partition
    /// and got it back unawares may not commit for it (law 5).
    pub(super) fn owns(&self, member: &GroupMember, partition: Partition) -> bool {
        self.owners
            .get(partition.0 as usize)
            .copied()
            .flatten()
            .is_some_and(|owner| owner.member == member.member && owner.since <= member.epoch)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owned(group: &Group, member: u64) -> Vec<u32> {
        group.of_member(member).map(|(partition, _)| partition.0).collect()
    }

    #[test]
    fn a_second_member_takes_half_and_the_first_keeps_the_rest() {
        let mut group = Group::default();
        group.join(1, &[Topic::Events], 8, 0).unwrap();
        assert_eq!(owned(&group, 1), [0, 1, 2, 3, 4, 5, 6, 7]);
        group.join(2, &[Topic::Events], 8, 0).unwrap();
        assert_eq!(owned(&group, 1), [0, 1, 2, 3]);
        assert_eq!(owned(&group, 2), [4, 5, 6, 7]);
        group.leave(1);
        assert_eq!(owned(&group, 2), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_member_that_lost_a_partition_and_got_it_back_unawares_does_not_own_it() {
        let mut group = Group::default();
        group.join(1, &[Topic::Events], 2, 0).unwrap();
        let unaware = GroupMember { group: String::new(), member: 1, epoch: group.epoch };
        group.join(2, &[Topic::Events], 2, 0).unwrap();
        group.leave(2);
        assert!(group.owns(&unaware, Partition(0)), "kept all the time");
        assert!(!group.owns(&unaware, Partition(1)), "lost and got back");
    }

    #[test]
    fn members_of_a_group_cannot_differ_in_topics() {
        let mut group = Group::default();
        group.join(1, &[Topic::Events], 2, 0).unwrap();
        assert!(matches!(group.join(2, &[Topic::Receipts], 2, 0), Err(Error::Broken(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn every_partition_has_one_owner_shares_are_even_and_little_moves(
            partitions in 1_u32..20,
            changes in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..30),
        ) {
            let mut group = Group::default();
            let mut members: Vec<u64> = Vec::new();
            for (number, (joins, which)) in (1..).zip(changes) {
                let (epoch, before) = (group.epoch, group.owners.clone());
                let count_before = members.len();
                if joins || members.is_empty() {
                    group.join(number, &[Topic::Events], partitions, 0).unwrap();
                    members.push(number);
                } else {
                    group.leave(members.swap_remove(which.index(members.len())));
                }
                prop_assert!(group.epoch > epoch);
                if members.is_empty() {
                    continue;
                }
                let shares: Vec<usize> = members.iter().map(|member| owned(&group, *member).len()).collect();
                prop_assert_eq!(shares.iter().sum::<usize>(), partitions as usize);
                prop_assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1);
                if count_before > 0 {
                    let moved = before.iter().zip(&group.owners).filter(|(old, new)| old != new).count();
                    let fewest = count_before.min(members.len());
                    prop_assert!(moved <= partitions as usize / fewest + 1, "moved {}", moved);
                }
            }
        }
    }
}
