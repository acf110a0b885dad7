//! How far each partition has been read and each edge has been told: what stands in the next batch's `from` and `to`,
//! and what may be committed (I6). Pure.

use std::collections::{BTreeMap, BTreeSet};

use schemas::cluster::Owned;
use schemas::link::{Batch, Item, Lane, Registered};
use schemas::{EdgeId, Offset, Partition, Topic};

/// A batch and the edge that it is for.
pub type Addressed = (EdgeId, Batch);

/// Whether an edge can register in a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The partition is not ours.
    Foreign,
    /// It is, but what was acknowledged under the owner before us has not been read yet.
    CatchingUp,
    /// Yes.
    Live,
}

/// How far all is.
#[derive(Debug, Default)]
pub struct Delivery {
    attached: BTreeSet<EdgeId>,
    slices: BTreeMap<(Lane, Partition), Slice>,
    uncommitted: BTreeMap<(Topic, Partition), Offset>,
}

/// One lane of one partition that is ours.
#[derive(Debug)]
struct Slice {
    epoch: u64,
    /// Everything before has been stamped for those who want it.
    position: Offset,
    /// The log's end when we took over. Only from there on may an edge register: what was acknowledged under the
    /// owner before us lies below it (I7).
    settled_at: Offset,
    live: bool,
    places: BTreeMap<EdgeId, Place>,
}

/// How far an edge has been told of a slice.
#[derive(Clone, Copy, Debug)]
struct Place {
    to: Offset,
    /// It has registered since it was attached. Before that it may want what it has not named yet, so its place stays
    /// where it is: the first registration then looks like the miss that it may be.
    registered: bool,
}

impl Delivery {
    /// Brings an edge in, as if it had never been here. Who owns the live slices it hears at once: it may have come
    /// after they went live, and be registered with the owner before us.
    pub fn attach(&mut self, edge: EdgeId) -> Vec<Addressed> {
        self.detach(edge);
        self.attached.insert(edge);
        let live = self.slices.iter_mut().filter(|(_, slice)| slice.live);
        live.map(|((lane, partition), slice)| slice.announce(edge, *lane, *partition)).collect()
    }

    /// Takes an edge out.
    pub fn detach(&mut self, edge: EdgeId) {
        self.attached.remove(&edge);
        for slice in self.slices.values_mut() {
            slice.places.remove(&edge);
        }
    }

    /// How many edges are in.
    pub fn edge_count(&self) -> usize {
        self.attached.len()
    }

    /// Takes a slice over at the group's position. It goes live when it has come to `end`.
    pub fn take_over(&mut self, lane: Lane, partition: Partition, epoch: u64, position: Offset, end: Offset) {
        let slice = Slice { epoch, position, settled_at: end, live: false, places: BTreeMap::new() };
        self.slices.insert((lane, partition), slice);
    }

    /// Forgets a partition: it is another's now, and so is what may be committed of it.
    pub fn forget(&mut self, partition: Partition) {
        self.slices.retain(|(_, of), _| *of != partition);
        self.uncommitted.retain(|(_, of), _| *of != partition);
    }

    /// The partitions that are ours.
    pub fn partitions(&self) -> BTreeSet<Partition> {
        self.slices.keys().map(|(_, partition)| *partition).collect()
    }

    /// The same with the epoch of each.
    pub fn owned(&self) -> Vec<Owned> {
        let rooms = self.slices.iter().filter(|((lane, _), _)| *lane == Lane::Rooms);
        rooms.map(|((_, partition), slice)| Owned { epoch: slice.epoch, partition: *partition }).collect()
    }

    /// Slices still catching up: where they are, and where they must come to.
    pub fn catching_up(&self) -> Vec<(Lane, Partition, Offset)> {
        let late = self.slices.iter().filter(|(_, slice)| !slice.live);
        late.map(|((lane, partition), slice)| (*lane, *partition, slice.position)).collect()
    }

    /// Nothing but control records is left before the end that a slice has to come to.
    pub fn caught_up(&mut self, lane: Lane, partition: Partition) {
        if let Some(slice) = self.slices.get_mut(&(lane, partition)) {
            slice.position = slice.position.max(slice.settled_at);
        }
    }

    /// Slices that have caught up go live. Every edge hears of it by an empty batch of the new epoch, so that those
    /// who had registered with the owner before us register again.
    pub fn go_live(&mut self) -> Vec<Addressed> {
        let mut news = Vec::new();
        for ((lane, partition), slice) in &mut self.slices {
            if !slice.live && slice.position >= slice.settled_at {
                slice.live = true;
                news.extend(self.attached.iter().map(|edge| slice.announce(*edge, *lane, *partition)));
            }
        }
        news
    }

    /// Moves a slice to `next`, where the log was read on, and stamps what was read for each edge. Edges without items
    /// stay behind: the `from` of their next batch says so. Receipts and signals have no positions and move nobody,
    /// nor does the outcome of a command move an edge that has not registered.
    pub fn stamp(
        &mut self,
        lane: Lane,
        partition: Partition,
        next: Option<Offset>,
        routed: BTreeMap<EdgeId, Vec<Item>>,
    ) -> Vec<Addressed> {
        let Some(slice) = self.slices.get_mut(&(lane, partition)) else { return Vec::new() };
        let before = slice.position;
        slice.position = next.map_or(before, |next| next.max(before));
        let mut stamped = Vec::with_capacity(routed.len());
        for (edge, items) in routed {
            if !self.attached.contains(&edge) {
                continue;
            }
            let place = slice.places.entry(edge).or_insert(Place { to: before, registered: false });
            let from = place.to;
            if place.registered && items.iter().any(has_position) {
                place.to = slice.position;
            }
            let to = place.to;
            stamped.push((edge, slice.batch(lane, partition, from, to, items)));
        }
        stamped
    }

    /// Whether an edge can register.
    pub fn standing(&self, lane: Lane, partition: Partition) -> Standing {
        match self.slices.get(&(lane, partition)) {
            None => Standing::Foreign,
            Some(slice) if !slice.live => Standing::CatchingUp,
            Some(_) => Standing::Live,
        }
    }

    /// Registers an edge in a live slice: the answer, and the empty batch that it takes before. `None` where the slice
    /// is not live or the edge not attached.
    pub fn register(&mut self, edge: EdgeId, lane: Lane, partition: Partition) -> Option<(Registered, Batch)> {
        let slice = self.slices.get_mut(&(lane, partition)).filter(|slice| slice.live)?;
        if !self.attached.contains(&edge) {
            return None;
        }
        let at = slice.position;
        let before = slice.places.insert(edge, Place { to: at, registered: true });
        let from = before.filter(|place| place.registered).map_or(at, |place| place.to);
        Some((Registered { epoch: slice.epoch, at }, slice.batch(lane, partition, from, at, Vec::new())))
    }

    /// Empty batches for the registered edges that are behind.
    pub fn advance(&mut self) -> Vec<Addressed> {
        let mut news = Vec::new();
        for ((lane, partition), slice) in &mut self.slices {
            let (epoch, to) = (slice.epoch, slice.position);
            for (edge, place) in slice.places.iter_mut().filter(|(_, place)| place.registered && place.to < to) {
                let from = std::mem::replace(&mut place.to, to);
                let (lane, partition) = (*lane, *partition);
                news.push((*edge, Batch { epoch, lane, partition, from, to, items: Vec::new() }));
            }
        }
        news
    }

    /// Every edge has taken what was stamped, or is out: the group need not read it again.
    pub fn taken(&mut self, topic: Topic, partition: Partition, next: Offset) {
        if self.slices.keys().any(|(_, ours)| *ours == partition) {
            self.uncommitted.insert((topic, partition), next);
        }
    }

    /// Whether there is anything to commit.
    pub fn is_commit_due(&self) -> bool {
        !self.uncommitted.is_empty()
    }

    /// What may be committed since the last call.
    pub fn to_commit(&mut self) -> Vec<(Topic, Partition, Offset)> {
        let positions = std::mem::take(&mut self.uncommitted);
        positions.into_iter().map(|((topic, partition), next)| (topic, partition, next)).collect()
    }
}

impl Slice {
    /// Tells an edge of our epoch by an empty batch.
    fn announce(&mut self, edge: EdgeId, lane: Lane, partition: Partition) -> Addressed {
        let at = self.position;
        self.places.insert(edge, Place { to: at, registered: false });
        (edge, self.batch(lane, partition, at, at, Vec::new()))
    }

    fn batch(&self, lane: Lane, partition: Partition, from: Offset, to: Offset, items: Vec<Item>) -> Batch {
        Batch { epoch: self.epoch, lane, partition, from, to, items }
    }
}

fn has_position(item: &Item) -> bool {
    !matches!(item, Item::Receipt(_) | Item::Signal(_))
}
