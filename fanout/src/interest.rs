//! Which edge has interest in which room or person, and which items of a batch are for which edge (I6). Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use schemas::link::{Item, Lane};
use schemas::{EdgeId, Partition, UserId};

/// Bytes of a room's or a person's id.
pub type Key = [u8; 16];

/// Who wants what. An edge counts its own sockets; here a key is wanted or not.
#[derive(Debug, Default)]
pub struct Interest {
    slices: BTreeMap<(Lane, Partition), HashMap<Key, BTreeSet<EdgeId>>>,
}

impl Interest {
    /// Notes that an edge wants these keys.
    pub fn add(&mut self, edge: EdgeId, lane: Lane, partition: Partition, keys: &[Key]) {
        let slice = self.slices.entry((lane, partition)).or_default();
        for key in keys {
            slice.entry(*key).or_default().insert(edge);
        }
    }

    /// Notes that it no longer does.
    pub fn remove(&mut self, edge: EdgeId, lane: Lane, partition: Partition, keys: &[Key]) {
        let Some(slice) = self.slices.get_mut(&(lane, partition)) else { return };
        for key in keys {
            if let Some(edges) = slice.get_mut(key) {
                edges.remove(&edge);
                if edges.is_empty() {
                    slice.remove(key);
                }
            }
        }
    }

    /// Forgets an edge.
    pub fn forget_edge(&mut self, edge: EdgeId) {
        for slice in self.slices.values_mut() {
            slice.retain(|_, edges| {
                edges.remove(&edge);
                !edges.is_empty()
            });
        }
    }

    /// Forgets a partition, in both lanes.
    pub fn forget_partition(&mut self, partition: Partition) {
        self.slices.retain(|(_, slice), _| *slice != partition);
    }

    /// Whether any edge wants this person.
    pub fn is_online(&self, user: UserId, partition: Partition) -> bool {
        self.edges(Lane::Users, partition, user.as_bytes()).is_some()
    }

    /// How many keys are wanted in a lane.
    pub fn key_count(&self, lane: Lane) -> usize {
        self.slices.iter().filter(|((of, _), _)| *of == lane).map(|(_, slice)| slice.len()).sum()
    }

    /// The items for each edge, in their order. An event goes to those who want its room and to the edge that waits
    /// for what became of its command; an outcome to the latter alone.
    pub fn route(&self, lane: Lane, partition: Partition, items: &[Item]) -> BTreeMap<EdgeId, Vec<Item>> {
        let mut routed: BTreeMap<EdgeId, Vec<Item>> = BTreeMap::new();
        for item in items {
            let (key, asked_by) = match item {
                Item::Event(event) => (Some(event.room.as_bytes()), event.reply_to.map(|to| to.edge)),
                Item::Outcome(outcome) => (None, Some(outcome.reply_to.edge)),
                Item::User(event) => (Some(event.user.as_bytes()), None),
                Item::Receipt(receipt) => (Some(receipt.room.as_bytes()), None),
                Item::Signal(signal) => (Some(signal.room.as_bytes()), None),
            };
            let wanted_by = key.and_then(|key| self.edges(lane, partition, key));
            let also = asked_by.filter(|edge| !wanted_by.is_some_and(|edges| edges.contains(edge)));
            for edge in wanted_by.into_iter().flatten().copied().chain(also) {
                routed.entry(edge).or_default().push(item.clone());
            }
        }
        routed
    }

    fn edges(&self, lane: Lane, partition: Partition, key: &Key) -> Option<&BTreeSet<EdgeId>> {
        self.slices.get(&(lane, partition))?.get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn nothing_is_left_of_what_is_taken_back_or_forgotten() {
        let (a, b) = (EdgeId(Uuid::from_u128(1)), EdgeId(Uuid::from_u128(2)));
        let (here, there) = (Partition(0), Partition(1));
        let mut interest = Interest::default();
        for edge in [a, b] {
            interest.add(edge, Lane::Users, here, &[[1; 16], [2; 16]]);
            interest.add(edge, Lane::Users, there, &[[3; 16]]);
        }
        assert_eq!((interest.key_count(Lane::Users), interest.key_count(Lane::Rooms)), (3, 0));
        interest.remove(a, Lane::Users, here, &[[1; 16]]);
        assert_eq!(interest.key_count(Lane::Users), 3, "the other edge still wants it");
        interest.remove(b, Lane::Users, here, &[[1; 16], [9; 16]]);
        assert_eq!(interest.key_count(Lane::Users), 2);
        interest.forget_partition(there);
        assert_eq!(interest.key_count(Lane::Users), 1);
        interest.forget_edge(a);
        assert_eq!(interest.key_count(Lane::Users), 1);
        interest.forget_edge(b);
        assert_eq!(interest.key_count(Lane::Users), 0);
    }
}
