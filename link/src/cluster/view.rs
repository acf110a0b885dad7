//! The fold of what processes say of themselves. Pure: told when a record has arrived and what time it is, by the reader's
//! own monotonic clock. Clocks of different machines are never compared.

use std::collections::BTreeMap;
use std::time::Duration;

use schemas::Partition;
use schemas::cluster::{Instance, Role};
use schemas::ids::InstanceId;

/// A process that has not been heard for this long lives no more. It speaks every second.
pub const LEASE: Duration = Duration::from_secs(4);

/// What has been heard.
#[derive(Clone, Debug, Default)]
pub struct View {
    heard: BTreeMap<InstanceId, (Instance, Duration)>,
}

/// A process that lives, for people: what it says, and how long ago.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it said last.
    pub instance: Instance,
    /// How much of its lease is used.
    pub age: Duration,
}

/// Who lives at a moment, and who owns what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Living {
    instances: BTreeMap<InstanceId, Instance>,
    owners: BTreeMap<(Role, Partition), (u64, InstanceId)>,
}

impl View {
    /// Takes a record that has arrived now. Who says that it leaves is gone at once.
    pub fn take(&mut self, instance: Instance, now: Duration) {
        if instance.leaving {
            self.heard.remove(&instance.id);
        } else {
            self.heard.insert(instance.id, (instance, now));
        }
    }

    /// Forgets whose lease has ended (I9: what is kept is what lives).
    pub fn expire(&mut self, now: Duration) {
        self.heard.retain(|_, (_, arrived)| now.saturating_sub(*arrived) < LEASE);
    }

    /// Who lives, in the order of their ids.
    pub fn members(&self, now: Duration) -> Vec<Member> {
        let ages = self.heard.values().map(|(instance, arrived)| (instance, now.saturating_sub(*arrived)));
        ages.filter(|(_, age)| *age < LEASE).map(|(instance, age)| Member { instance: instance.clone(), age }).collect()
    }

    /// Who lives and owns what.
    pub fn living(&self, now: Duration) -> Living {
        self.members(now).into_iter().map(|member| member.instance).collect()
    }
}

impl FromIterator<Instance> for Living {
    fn from_iter<I: IntoIterator<Item = Instance>>(instances: I) -> Self {
        let mut living = Self::default();
        for mut instance in instances {
            // Say nothing about who lives or owns what, and would make every beat look like a change.
            instance.at = instance.started_at;
            instance.used = Vec::new();
            instance.owned.sort_unstable();
            for owned in &instance.owned {
                let claim = (owned.epoch, instance.id);
                let owner = living.owners.entry((instance.role, owned.partition)).or_insert(claim);
                *owner = claim.max(*owner);
            }
            living.instances.insert(instance.id, instance);
        }
        living
    }
}

impl Living {
    /// Who owns a role's partition: the highest epoch among the living; of two with the same the larger id, so that all
    /// who have heard the same believe the same.
    pub fn owner(&self, role: Role, partition: Partition) -> Option<&Instance> {
        let (_, id) = self.owners.get(&(role, partition))?;
        self.instances.get(id)
    }

    /// Whether a process lives.
    pub fn get(&self, id: InstanceId) -> Option<&Instance> {
        self.instances.get(&id)
    }

    /// All of a role.
    pub fn of(&self, role: Role) -> impl Iterator<Item = &Instance> {
        self.instances.values().filter(move |instance| instance.role == role)
    }

    /// All, in the order of their ids.
    pub fn all(&self) -> impl Iterator<Item = &Instance> {
        self.instances.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use schemas::Timestamp;
    use schemas::cluster::Owned;
    use uuid::Uuid;

    fn says(id: u128, owned: &[(u64, u32)]) -> Instance {
        Instance {
            id: InstanceId(Uuid::from_u128(id)),
            role: Role::Fanout,
            address: String::new(),
            started_at: Timestamp(0),
            at: Timestamp(0),
            owned: owned.iter().map(|(epoch, at)| Owned { epoch: *epoch, partition: Partition(*at) }).collect(),
            used: Vec::new(),
            leaving: false,
        }
    }

    fn owner(view: &View, now_ms: u64) -> Option<u128> {
        let living = view.living(Duration::from_millis(now_ms));
        living.owner(Role::Fanout, Partition(0)).map(|instance| instance.id.0.as_u128())
    }

    #[test]
    fn a_lease_lasts_four_seconds_from_the_last_record_that_arrived() {
        let mut view = View::default();
        view.take(says(1, &[(1, 0)]), Duration::from_millis(1_000));
        assert_eq!(owner(&view, 4_999), Some(1));
        assert_eq!(owner(&view, 5_000), None);
        view.take(says(1, &[(1, 0)]), Duration::from_millis(5_500));
        assert_eq!(owner(&view, 9_499), Some(1));
        view.expire(Duration::from_millis(9_500));
        assert_eq!(view.heard.len(), 0);
    }

    #[test]
    fn clocks_that_are_wrong_change_nothing() {
        let mut view = View::default();
        view.take(Instance { at: Timestamp(i64::MAX), ..says(1, &[(1, 0)]) }, Duration::ZERO);
        view.take(Instance { at: Timestamp(i64::MIN), ..says(1, &[(2, 0)]) }, Duration::from_secs(3));
        assert_eq!(owner(&view, 6_999), Some(1));
    }

    #[test]
    fn the_highest_epoch_among_the_living_is_believed_then_the_larger_id() {
        let mut view = View::default();
        view.take(says(9, &[(3, 0)]), Duration::ZERO);
        view.take(says(1, &[(4, 0)]), Duration::ZERO);
        assert_eq!(owner(&view, 0), Some(1));
        view.take(says(2, &[(4, 0)]), Duration::ZERO);
        assert_eq!(owner(&view, 0), Some(2));
        view.take(Instance { leaving: true, ..says(2, &[(4, 0)]) }, Duration::ZERO);
        assert_eq!(owner(&view, 0), Some(1), "who leaves is gone at once");
        view.take(says(9, &[(3, 0)]), Duration::from_secs(2));
        assert_eq!(owner(&view, 4_500), Some(9), "the epoch of the dead counts no more");
    }

    #[test]
    fn another_role_owns_nothing_here() {
        let mut view = View::default();
        view.take(Instance { role: Role::Archiver, ..says(1, &[(9, 0)]) }, Duration::ZERO);
        view.take(says(2, &[(1, 0)]), Duration::ZERO);
        assert_eq!(owner(&view, 0), Some(2));
    }

    #[test]
    fn a_beat_without_news_is_no_change() {
        let mut view = View::default();
        view.take(says(1, &[(1, 0), (1, 1)]), Duration::ZERO);
        let before = view.living(Duration::ZERO);
        view.take(Instance { at: Timestamp(5), ..says(1, &[(1, 1), (1, 0)]) }, Duration::from_secs(1));
        assert_eq!(view.living(Duration::from_secs(1)), before);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Says(u128, Vec<(u64, u32)>),
        Leaves(u128),
        Pass(u64),
        Expire,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..5_u128, prop::collection::vec((0..4_u64, 0..3_u32), 0..4)).prop_map(|(id, owned)| Step::Says(id, owned)),
            1 => (0..5_u128).prop_map(Step::Leaves),
            3 => (0..2_500_u64).prop_map(Step::Pass),
            1 => Just(Step::Expire),
        ]
    }

    proptest! {
        /// Beside a plain list of what was said and when.
        #[test]
        fn an_owner_is_whom_the_list_of_all_that_was_said_names(steps in prop::collection::vec(step(), 0..40)) {
            let mut view = View::default();
            let mut said: Vec<(u64, Instance)> = Vec::new();
            let mut now_ms = 0;
            for step in steps {
                let now = Duration::from_millis(now_ms);
                match step {
                    Step::Says(id, owned) => {
                        view.take(says(id, &owned), now);
                        said.push((now_ms, says(id, &owned)));
                    }
                    Step::Leaves(id) => {
                        let last = Instance { leaving: true, ..says(id, &[]) };
                        view.take(last.clone(), now);
                        said.push((now_ms, last));
                    }
                    Step::Pass(ms) => now_ms += ms,
                    Step::Expire => view.expire(now),
                }
                let living = view.living(Duration::from_millis(now_ms));
                for partition in (0..3).map(Partition) {
                    let mut claims = Vec::new();
                    for id in (0..5_u128).map(|id| InstanceId(Uuid::from_u128(id))) {
                        let last = said.iter().rev().find(|(_, instance)| instance.id == id);
                        let Some((at, last)) = last.filter(|(_, last)| !last.leaving) else { continue };
                        if now_ms - at < 4_000 {
                            let owned = last.owned.iter().filter(|owned| owned.partition == partition);
                            claims.extend(owned.map(|owned| (owned.epoch, id)));
                        }
                    }
                    let expected = claims.into_iter().max().map(|(_, id)| id);
                    prop_assert_eq!(living.owner(Role::Fanout, partition).map(|instance| instance.id), expected);
                }
            }
        }
    }
}
