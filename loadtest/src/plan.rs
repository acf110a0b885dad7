//! Who is in which room, by scenario. Pure.

use clap::ValueEnum;

/// What kind of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Rooms of about ten; each user in one to three of them.
    Rooms,
    /// One room with everyone in it.
    Fanout,
    /// Pairs of two in direct rooms.
    Pairs,
    /// Sockets that do nothing.
    Idle,
    /// All sockets drop at once, miss five messages, and come back at once.
    Storm,
}

impl Scenario {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rooms => "rooms",
            Self::Fanout => "fanout",
            Self::Pairs => "pairs",
            Self::Idle => "idle",
            Self::Storm => "storm",
        }
    }
}

/// A room's members, by the users' numbers; the first is the owner.
pub type Members = Vec<usize>;

/// Members of an ordinary room.
const ROOM_MEMBERS: usize = 10;

/// Most rooms of a user.
const USER_ROOMS_MAX: usize = 3;

/// The rooms of a scenario.
pub fn rooms(scenario: Scenario, users: usize, rooms: usize) -> Vec<Members> {
    match scenario {
        Scenario::Idle => Vec::new(),
        Scenario::Fanout => vec![(0..users).collect()],
        Scenario::Pairs => (0..users / 2).map(|pair| vec![2 * pair, 2 * pair + 1]).collect(),
        Scenario::Storm => spread(users, rooms, 1),
        Scenario::Rooms => spread(users, rooms, USER_ROOMS_MAX),
    }
}

/// Spreads users over rooms so that rooms have about [`ROOM_MEMBERS`] members and users one to `most` rooms.
fn spread(users: usize, rooms: usize, most: usize) -> Vec<Members> {
    let mut members = vec![Members::new(); rooms];
    let places = (ROOM_MEMBERS * rooms).clamp(users, most.min(rooms) * users);
    let stride = (rooms / USER_ROOMS_MAX).max(1);
    for place in 0..places {
        let (user, turn) = (place % users, place / users);
        members[(user + turn * stride) % rooms].push(user);
    }
    members.retain(|members| !members.is_empty());
    members
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_is_in_one_to_three_rooms_and_nowhere_twice() {
        for users in [1, 2, 3, 10, 200, 999] {
            for count in [1, 2, 3, 4, 7, 50, 200] {
                let rooms = rooms(Scenario::Rooms, users, count);
                let mut of = vec![0; users];
                for members in &rooms {
                    let mut unique = members.clone();
                    unique.sort_unstable();
                    unique.dedup();
                    assert_eq!(unique.len(), members.len(), "{users} users, {count} rooms");
                    members.iter().for_each(|user| of[*user] += 1);
                }
                assert!(of.iter().all(|of| (1..=3).contains(of)), "{users} users, {count} rooms: {of:?}");
            }
        }
    }

    #[test]
    fn the_usual_rooms_have_about_ten_members() {
        let rooms = rooms(Scenario::Rooms, 200, 50);
        assert_eq!(rooms.len(), 50);
        assert!(rooms.iter().all(|members| (8..=12).contains(&members.len())));
    }

    #[test]
    fn a_storm_has_everyone_in_one_room() {
        let rooms = rooms(Scenario::Storm, 100, 10);
        assert_eq!(rooms.iter().map(Vec::len).sum::<usize>(), 100);
    }
}
