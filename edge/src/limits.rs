//! Limits: token buckets in maps that are bounded, and counts of what is held, keyed by person, room or network of
//! addresses. All of them are settings; without settings everything is allowed. What is done about those who keep
//! breaking them: [`crate::blocks`].

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use schemas::cluster::{PersonLimit, USED_MAX, Used};
use schemas::link::UsagePort;
use schemas::{Clock, InstanceId, RoomId, UserId};
use store::shut_outs::Network;

use crate::config::LimitsConfig;

/// Most buckets in one map: at some 64 bytes each a few MiB. A full bucket need not be kept, and the others fill in
/// minutes, so that only an attack from very many addresses meets this bound.
const BUCKETS_MAX: usize = 65_536;

/// Whoever holds as many sockets as they may is asked to come back after this: a place comes free when one of their
/// sockets ends, and a dead one ends within two heartbeats.
const PLACE_RETRY: Duration = Duration::from_secs(5);

/// What another edge has said of the sockets that people hold there counts for so long: it speaks every second, and where
/// it has gone without a word they are free.
const HELD_FOR: Duration = Duration::from_secs(5);

/// Of what an edge says of people at once, at most so much is of the sockets that they hold.
const HELD_MAX: usize = USED_MAX / 4;

/// The longest that anybody is told to wait for a turn of their own.
const TURN_MAX: Duration = Duration::from_secs(60);

/// The limits in force.
pub struct Limits {
    clock: Arc<dyn Clock>,
    rules: Option<Rules>,
}

struct Rules {
    bits: (u8, u8),
    frames: Rate,
    sends: Buckets<UserId>,
    room_sends: Buckets<RoomId>,
    sign_ups: Buckets<Network>,
    failures_by_address: Buckets<Network>,
    failures_by_account: Buckets<UserId>,
    connections: Buckets<Network>,
    sockets: Buckets<UserId>,
    connections_by_address: Arc<Counts<Network>>,
    handshakes_by_address: Arc<Counts<Network>>,
    handshakes: Arc<Counts<()>>,
    sockets_by_address: Arc<Counts<Network>>,
    sockets_by_user: Arc<Counts<UserId>>,
    sockets_elsewhere: Mutex<HashMap<InstanceId, Elsewhere>>,
}

/// The sockets that people hold at another edge.
struct Elsewhere {
    /// When it has said so.
    at: Duration,
    held: HashMap<UserId, u32>,
}

/// What of a limit has been reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// This person's, or this address's: how long to wait.
    Own(Duration),
    /// One that others have used up as well: how long to wait.
    Shared(Duration),
}

impl Refused {
    /// How long to wait.
    pub fn wait(self) -> Duration {
        match self {
            Self::Own(wait) | Self::Shared(wait) => wait,
        }
    }
}

/// Why a connection is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crowded {
    /// Too many in too short a time.
    Rate,
    /// Too many at once.
    Connections,
    /// Too many at once that have said nothing yet.
    Handshakes,
}

impl Crowded {
    /// A label for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Connections => "connections",
            Self::Handshakes => "handshakes",
        }
    }
}

/// The places of a connection: one until it is a socket or ends, the other until it has brought a whole request.
#[derive(Default)]
pub struct Places {
    /// The first.
    pub connection: Option<Place<Network>>,
    /// The second.
    pub handshake: Option<(Place<Network>, Place<()>)>,
}

impl Limits {
    /// These limits, or none.
    pub fn new(config: Option<&LimitsConfig>, clock: Arc<dyn Clock>) -> Self {
        let rules = config.map(|config| Rules {
            bits: (config.ipv4_prefix_bits, config.ipv6_prefix_bits),
            frames: Rate::new(config.frame_burst, config.frames_per_s),
            sends: Buckets::new(config.send_burst, config.sends_per_s),
            room_sends: Buckets::new(config.room_send_burst, config.room_sends_per_s),
            sign_ups: Buckets::new(config.sign_up_burst, config.sign_ups_per_s),
            failures_by_address: Buckets::new(config.failed_sign_in_burst, config.failed_sign_ins_per_s),
            failures_by_account: Buckets::new(config.failed_account_burst, config.failed_accounts_per_s),
            connections: Buckets::new(config.connection_burst, config.connections_per_s),
            sockets: Buckets::new(config.socket_burst, config.sockets_per_s),
            connections_by_address: Counts::new(config.connections_per_address),
            handshakes_by_address: Counts::new(config.handshakes_per_address),
            handshakes: Counts::new(config.handshakes_max),
            sockets_by_address: Counts::new(config.sockets_per_address),
            sockets_by_user: Counts::new(config.sockets_per_user),
            sockets_elsewhere: Mutex::default(),
        });
        Self { clock, rules }
    }

    /// The same, of which other edges are told ([`UsagePort`]).
    #[must_use]
    pub fn told(mut self) -> Self {
        if let Some(rules) = &mut self.rules {
            for buckets in [&mut rules.sends, &mut rules.sockets, &mut rules.failures_by_account] {
                buckets.taken = Some(Mutex::default());
            }
        }
        self
    }

    /// What counts as one address with this one.
    pub fn network(&self, address: IpAddr) -> Network {
        let (v4, v6) = self.rules.as_ref().map_or((32, 128), |rules| rules.bits);
        Network::around(address, v4, v6)
    }

    /// Takes a place for one more connection from an address; it is free again once the answer is dropped.
    ///
    /// # Errors
    /// Why it is not to be taken.
    pub fn connection_from(&self, from: Network) -> Result<Places, Crowded> {
        let Some(rules) = &self.rules else { return Ok(Places::default()) };
        rules.connections.take(from, self.clock.elapsed()).map_err(|_| Crowded::Rate)?;
        let connection = rules.connections_by_address.take(from).map_err(|_| Crowded::Connections)?;
        let handshake = rules.handshakes_by_address.take(from).map_err(|_| Crowded::Handshakes)?;
        let of_all = rules.handshakes.take(()).map_err(|_| Crowded::Handshakes)?;
        Ok(Places { connection: Some(connection), handshake: Some((handshake, of_all)) })
    }

    /// Takes one frame from a socket's own allowance.
    ///
    /// # Errors
    /// How long to wait for the next one.
    pub fn frame_allowed(&self, allowance: &mut Option<Bucket>) -> Result<(), Duration> {
        self.check(|rules, now| rules.frames.take(allowance.get_or_insert(rules.frames.full(now)), now))
    }

    /// Takes one send from a person's allowance, and from the room's.
    ///
    /// # Errors
    /// How long to wait for the next one.
    pub fn send_allowed(&self, user: UserId, room: RoomId) -> Result<(), Refused> {
        let Some(rules) = &self.rules else { return Ok(()) };
        let now = self.clock.elapsed();
        rules.sends.take(user, now).map_err(Refused::Own)?;
        rules.room_sends.take(room, now).map_err(Refused::Shared)
    }

    /// Takes one sign-up from an address's allowance.
    ///
    /// # Errors
    /// How long to wait for the next one.
    pub fn sign_up_allowed(&self, from: Network) -> Result<(), Duration> {
        self.check(|rules, now| rules.sign_ups.take(from, now))
    }

    /// Takes one try of a password from what this address, and this account if there is one, may get wrong. It is taken
    /// before the password is looked at, or many tries at once would all pass; a right one is given back. An account's
    /// tries may have been used up by somebody else, from elsewhere.
    ///
    /// # Errors
    /// How long to wait for the next try.
    pub fn sign_in_allowed(&self, from: Network, account: Option<UserId>) -> Result<(), Refused> {
        let Some(rules) = &self.rules else { return Ok(()) };
        let now = self.clock.elapsed();
        rules.failures_by_address.take(from, now).map_err(Refused::Own)?;
        let of_account = account.map_or(Ok(()), |account| rules.failures_by_account.take(account, now));
        of_account.map_err(|wait| {
            rules.failures_by_address.give_back(&from, now);
            Refused::Shared(wait)
        })
    }

    /// Gives a try back: the password was right, or was not looked at.
    pub fn sign_in_was_none(&self, from: Network, account: Option<UserId>) {
        if let Some(rules) = &self.rules {
            let now = self.clock.elapsed();
            rules.failures_by_address.give_back(&from, now);
            if let Some(account) = account {
                rules.failures_by_account.give_back(&account, now);
            }
        }
    }

    /// Takes a place for one more socket from an address; it is free again once the answer is dropped.
    ///
    /// # Errors
    /// When to try again.
    pub fn socket_from(&self, from: Network) -> Result<Place<Network>, Duration> {
        self.rules.as_ref().map_or(Ok(Place(None)), |rules| rules.sockets_by_address.take(from))
    }

    /// Takes a place for one more socket of a person; it is free again once the answer is dropped.
    ///
    /// # Errors
    /// When to try again.
    pub fn socket_of(&self, user: UserId) -> Result<Place<UserId>, Duration> {
        let Some(rules) = &self.rules else { return Ok(Place(None)) };
        let now = self.clock.elapsed();
        rules.sockets.take(user, now)?;
        rules.sockets_by_user.take_beside(user, rules.held_elsewhere(user, now))
    }

    fn check(&self, rule: impl FnOnce(&Rules, Duration) -> Result<(), Duration>) -> Result<(), Duration> {
        self.rules.as_ref().map_or(Ok(()), |rules| rule(rules, self.clock.elapsed()))
    }
}

impl Rules {
    /// The limits that a person has on all edges together.
    fn of_persons(&self) -> [(PersonLimit, &Buckets<UserId>); 3] {
        [
            (PersonLimit::Sends, &self.sends),
            (PersonLimit::Sockets, &self.sockets),
            (PersonLimit::SignIns, &self.failures_by_account),
        ]
    }

    /// Those who hold most sockets here: whoever holds less than a [`TOLD_PART`] of what they may is not told of.
    fn held(&self) -> Vec<Used> {
        let counts = &self.sockets_by_user;
        let crumbs = f64::from(counts.max) * TOLD_PART;
        let held = counts.held.lock();
        let told = held.iter().filter(|(_, count)| f64::from(**count) >= crumbs);
        let told = told.map(|(user, times)| Used { user: *user, limit: PersonLimit::SocketsHeld, times: *times });
        largest(told.collect(), HELD_MAX)
    }

    /// How many sockets a person holds at other edges, by what these have said.
    fn held_elsewhere(&self, user: UserId, now: Duration) -> u32 {
        let edges = self.sockets_elsewhere.lock();
        let heard = edges.values().filter(|edge| now.saturating_sub(edge.at) < HELD_FOR);
        heard.filter_map(|edge| edge.held.get(&user)).fold(0, |sum, count| sum.saturating_add(*count))
    }
}

/// Where there are too many, those who use most matter most.
fn largest(mut used: Vec<Used>, count: usize) -> Vec<Used> {
    if used.len() > count {
        used.select_nth_unstable_by_key(count, |used| std::cmp::Reverse(used.times));
        used.truncate(count);
    }
    used
}

impl UsagePort for Limits {
    fn take_used(&self) -> Vec<Used> {
        let Some(rules) = &self.rules else { return Vec::new() };
        let mut used = rules.held();
        let taken = rules.of_persons().into_iter().flat_map(|(limit, buckets)| {
            buckets.taken().into_iter().map(move |(user, times)| Used { user, limit, times })
        });
        used.extend(largest(taken.collect(), USED_MAX - used.len()));
        used
    }

    fn used_elsewhere(&self, edge: InstanceId, used: &[Used]) {
        let Some(rules) = &self.rules else { return };
        let now = self.clock.elapsed();
        let held = used.iter().filter(|used| used.limit == PersonLimit::SocketsHeld);
        let held: HashMap<UserId, u32> = held.map(|used| (used.user, used.times)).collect();
        let mut edges = rules.sockets_elsewhere.lock();
        edges.retain(|_, edge| now.saturating_sub(edge.at) < HELD_FOR);
        if held.is_empty() {
            edges.remove(&edge);
        } else {
            edges.insert(edge, Elsewhere { at: now, held });
        }
        drop(edges);
        for (limit, buckets) in rules.of_persons() {
            for used in used.iter().filter(|used| used.limit == limit) {
                buckets.used_elsewhere(used.user, used.times, now);
            }
        }
    }
}

/// A burst, and what comes back of it a second.
#[derive(Clone, Copy)]
struct Rate {
    burst: f64,
    per_s: f64,
}

/// What is left of a burst, and up to when those who were refused have been given their turns.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: f64,
    at: Duration,
    promised: Duration,
}

impl Rate {
    fn new(burst: u32, per_s: f64) -> Self {
        Self { burst: f64::from(burst), per_s }
    }

    fn full(&self, now: Duration) -> Bucket {
        Bucket { tokens: self.burst, at: now, promised: now }
    }

    fn level(&self, bucket: &Bucket, now: Duration) -> f64 {
        (bucket.tokens + now.saturating_sub(bucket.at).as_secs_f64() * self.per_s).min(self.burst)
    }

    /// How long so many take to come back.
    fn time(&self, tokens: f64) -> Duration {
        // A rate of 0 never fills: an hour is as good an answer as any.
        Duration::try_from_secs_f64(tokens / self.per_s).unwrap_or(Duration::from_secs(3_600))
    }

    /// Takes one, or says when to come back. Each who is refused is given a turn of their own, one after the other:
    /// if all were told the same time, all but one would be refused again, and would have done as they were told.
    fn take(&self, bucket: &mut Bucket, now: Duration) -> Result<(), Duration> {
        let level = self.level(bucket, now);
        if level >= 1.0 {
            *bucket = Bucket { tokens: level - 1.0, at: now, ..*bucket };
            return Ok(());
        }
        let wait = self.time(1.0 - level);
        let turn = (bucket.promised + self.time(1.0)).max(now + wait);
        // Not further ahead: whoever floods must not put off for long those who share the limit.
        if turn <= now + TURN_MAX {
            bucket.promised = turn;
        }
        Err((turn - now).min(TURN_MAX).max(wait))
    }
}

/// Token buckets of one size. A bucket that is not in the map is full.
struct Buckets<K> {
    rate: Rate,
    held: Mutex<HashMap<K, Bucket>>,
    /// What was taken since others were last told, where they are.
    taken: Option<Mutex<HashMap<K, u32>>>,
}

/// Whoever takes less than this part of what comes back in a second is not told of: so many edges it takes before what is
/// left out comes to the whole limit.
const TOLD_PART: f64 = 1.0 / 16.0;

impl<K: Copy + Eq + Hash> Buckets<K> {
    fn new(burst: u32, per_s: f64) -> Self {
        Self { rate: Rate::new(burst, per_s), held: Mutex::default(), taken: None }
    }

    /// What was taken since this was last asked, crumbs left out.
    fn taken(&self) -> Vec<(K, u32)> {
        let taken = self.taken.as_ref().map(|taken| std::mem::take(&mut *taken.lock())).unwrap_or_default();
        taken.into_iter().filter(|(_, times)| *times > 0 && f64::from(*times) >= self.rate.per_s * TOLD_PART).collect()
    }

    /// Another edge has given so much. What it gave before it was heard of becomes a debt here, of one burst at most.
    fn used_elsewhere(&self, key: K, times: u32, now: Duration) {
        self.with(key, now, |bucket| {
            let tokens = (self.rate.level(bucket, now) - f64::from(times)).max(-self.rate.burst);
            *bucket = Bucket { tokens, at: now, ..*bucket };
        });
    }

    fn give_back(&self, key: &K, now: Duration) {
        if let Some(taken) = &self.taken
            && let Some(times) = taken.lock().get_mut(key)
        {
            *times = times.saturating_sub(1);
        }
        // A bucket that is not there is full.
        if let Some(bucket) = self.held.lock().get_mut(key) {
            let tokens = (self.rate.level(bucket, now) + 1.0).min(self.rate.burst);
            *bucket = Bucket { tokens, at: now, ..*bucket };
        }
    }

    fn take(&self, key: K, now: Duration) -> Result<(), Duration> {
        let taken = self.with(key, now, |bucket| self.rate.take(bucket, now));
        if let (Ok(()), Some(told)) = (taken, &self.taken) {
            let mut told = told.lock();
            // Where nobody asks, nobody is told (I9).
            if told.len() < BUCKETS_MAX || told.contains_key(&key) {
                *told.entry(key).or_default() += 1;
            }
        }
        taken
    }

    fn with<T>(&self, key: K, now: Duration, change: impl FnOnce(&mut Bucket) -> T) -> T {
        let mut held = self.held.lock();
        if held.len() >= BUCKETS_MAX && !held.contains_key(&key) {
            held.retain(|_, bucket| self.rate.level(bucket, now) < self.rate.burst);
            if held.len() >= BUCKETS_MAX {
                // Memory is bounded before limits are exact (I9): all begin anew.
                held.clear();
            }
        }
        change(held.entry(key).or_insert(self.rate.full(now)))
    }
}

/// How many places each key holds. A key that holds none is not in the map, so that it is never larger than what is
/// counted with it (I9).
struct Counts<K> {
    max: u32,
    held: Mutex<HashMap<K, u32>>,
}

/// A place, free again once this is dropped.
#[must_use = "the place is free again as soon as this is dropped"]
pub struct Place<K: Copy + Eq + Hash>(Option<(K, Arc<Counts<K>>)>);

impl<K: Copy + Eq + Hash> Counts<K> {
    fn new(max: u32) -> Arc<Self> {
        Arc::new(Self { max, held: Mutex::default() })
    }

    fn take(self: &Arc<Self>, key: K) -> Result<Place<K>, Duration> {
        self.take_beside(key, 0)
    }

    /// Takes one beside so many that are held elsewhere.
    fn take_beside(self: &Arc<Self>, key: K, elsewhere: u32) -> Result<Place<K>, Duration> {
        let mut held = self.held.lock();
        let here = held.get(&key).copied().unwrap_or_default();
        if here.saturating_add(elsewhere) >= self.max {
            return Err(PLACE_RETRY);
        }
        held.insert(key, here + 1);
        Ok(Place(Some((key, Arc::clone(self)))))
    }
}

impl<K: Copy + Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let Some((key, counts)) = &self.0 else { return };
        let mut held = counts.held.lock();
        if let Some(count) = held.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                held.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::ManualClock;

    fn user(n: u128) -> UserId {
        UserId(uuid::Uuid::from_u128(n))
    }

    fn room(n: u128) -> RoomId {
        RoomId(uuid::Uuid::from_u128(n))
    }

    const EDGES: [InstanceId; 2] = [InstanceId(uuid::Uuid::from_u128(1)), InstanceId(uuid::Uuid::from_u128(2))];

    fn home() -> Network {
        "192.0.2.0/24".parse().expect("a network")
    }

    #[test]
    fn a_burst_passes_then_the_rate_counts_for_each_person_apart() {
        let clock = Arc::new(ManualClock::default());
        let limits = Limits::new(Some(&LimitsConfig::default()), clock.clone());
        let passing = |user| (0..600).filter(|_| limits.send_allowed(user, room(1)).is_ok()).count();
        assert_eq!(passing(user(1)), 500);
        assert_eq!(limits.send_allowed(user(2), room(1)), Ok(()));
        clock.advance(Duration::from_secs(1));
        assert_eq!(passing(user(1)), 50);
    }

    /// Someone who goes to two edges in turn, for a minute: what passes in all is what would pass at one, give or take what
    /// both give before they hear of one another.
    #[test]
    fn a_limit_is_one_limit_on_two_edges_that_tell_one_another() {
        let passing = |told: bool| {
            let clock = Arc::new(ManualClock::default());
            let edges = [(); 2].map(|()| Limits::new(Some(&LimitsConfig::default()), clock.clone()).told());
            let mut passed = 0;
            for _ in 0..60 {
                for edge in &edges {
                    passed += (0..1_000).filter(|n| edge.send_allowed(user(1), room(*n)).is_ok()).count();
                }
                let [here, there] = edges.each_ref().map(|edge| edge.take_used());
                if told {
                    edges[1].used_elsewhere(EDGES[0], &here);
                    edges[0].used_elsewhere(EDGES[1], &there);
                }
                clock.advance(Duration::from_secs(1));
            }
            passed
        };
        let one_edge = 500 + 59 * 50;
        assert_eq!(passing(false), 2 * one_edge);
        let told = passing(true);
        assert!((one_edge..=one_edge + 550).contains(&told), "{told} passed");
    }

    #[test]
    fn places_that_a_person_holds_at_another_edge_count_until_it_says_otherwise_or_is_silent() {
        let config = LimitsConfig { sockets_per_user: 3, ..LimitsConfig::default() };
        let clock = Arc::new(ManualClock::default());
        let [here, there] = [(); 2].map(|()| Limits::new(Some(&config), clock.clone()).told());
        let tell = || here.used_elsewhere(EDGES[1], &there.take_used());
        let places: Vec<_> = (0..2).map(|_| there.socket_of(user(1))).collect();
        assert!(places.iter().all(Result::is_ok));
        tell();
        let place = here.socket_of(user(1));
        assert!(place.is_ok() && here.socket_of(user(2)).is_ok());
        assert_eq!(here.socket_of(user(1)).err(), Some(PLACE_RETRY));
        tell();
        assert!(here.socket_of(user(1)).is_err(), "said again, but not held twice");
        clock.advance(HELD_FOR);
        let more = here.socket_of(user(1));
        assert!(more.is_ok(), "an edge that has gone without a word holds nothing");
        drop(more);
        tell();
        assert!(here.socket_of(user(1)).is_err());
        drop(places);
        tell();
        assert!(here.socket_of(user(1)).is_ok());
        let rules = here.rules.as_ref().expect("limits");
        assert!(rules.sockets_elsewhere.lock().is_empty(), "and nothing is remembered of it");
    }

    #[test]
    fn of_those_who_hold_sockets_the_ones_with_most_are_told_and_leave_place_for_the_rest() {
        let config = LimitsConfig { sockets_per_user: 32, ..LimitsConfig::default() };
        let limits = Limits::new(Some(&config), Arc::new(ManualClock::default())).told();
        let hold = |person, count| (0..count).map(|_| limits.socket_of(user(person)).ok()).collect::<Vec<_>>();
        let places: Vec<_> = (0..2 * USED_MAX as u128).map(|n| hold(n, if n == 7 { 4 } else { 2 })).collect();
        let _one = hold(1 << 64, 1);
        let of = |used: &[Used], limit| used.iter().filter(|used| used.limit == limit).count();
        let used = limits.take_used();
        assert_eq!((used.len(), of(&used, PersonLimit::SocketsHeld)), (USED_MAX, HELD_MAX));
        assert!(used.contains(&Used { user: user(7), limit: PersonLimit::SocketsHeld, times: 4 }));
        assert_eq!(of(&limits.take_used(), PersonLimit::SocketsHeld), HELD_MAX, "as long as they hold them");
        drop(places);
        assert_eq!(limits.take_used(), [], "a sixteenth of 32 is more than one");
    }

    #[test]
    fn what_is_told_is_bounded_and_leaves_crumbs_and_what_was_given_back_out() {
        let clock = Arc::new(ManualClock::default());
        let limits = Limits::new(Some(&LimitsConfig::default()), clock).told();
        assert!((0..3).all(|_| limits.send_allowed(user(1), room(1)).is_ok()));
        assert_eq!(limits.take_used(), [], "a sixteenth of 50 a second is more");
        assert!((0..4).all(|_| limits.send_allowed(user(1), room(1)).is_ok()));
        assert_eq!(limits.sign_in_allowed(home(), Some(user(1))), Ok(()));
        assert_eq!(limits.sign_in_allowed(home(), Some(user(2))), Ok(()));
        limits.sign_in_was_none(home(), Some(user(2)));
        let mut used = limits.take_used();
        used.sort_unstable_by_key(|used| used.times);
        let by = |limit, times| Used { user: user(1), limit, times };
        assert_eq!(used, [by(PersonLimit::SignIns, 1), by(PersonLimit::Sends, 4)]);
        assert_eq!(limits.take_used(), [], "once");
        for n in 0..2 * USED_MAX as u128 {
            assert!((0..if n == 7 { 5 } else { 4 }).all(|i| limits.send_allowed(user(n), room(n * 10 + i)).is_ok()));
        }
        let used = limits.take_used();
        assert_eq!(used.len(), USED_MAX);
        assert!(used.iter().any(|used| used.user == user(7)), "who uses most is among them");
    }

    #[test]
    fn a_room_has_a_limit_that_its_members_share() {
        let config = LimitsConfig { room_send_burst: 3, ..LimitsConfig::default() };
        let limits = Limits::new(Some(&config), Arc::new(ManualClock::default()));
        assert!((1..=3).all(|n| limits.send_allowed(user(n), room(1)).is_ok()));
        assert!(matches!(limits.send_allowed(user(4), room(1)), Err(Refused::Shared(_))));
        assert_eq!(limits.send_allowed(user(4), room(2)), Ok(()), "other rooms have their own");
    }

    /// Whoever comes back when told is let in: of a whole crowd that was refused at once everybody, at the first try.
    #[test]
    fn each_who_is_refused_has_a_turn_of_their_own() {
        let rate = Rate::new(10, 50.0);
        let mut bucket = rate.full(Duration::ZERO);
        let waits: Vec<Duration> = (0..1_000).filter_map(|_| rate.take(&mut bucket, Duration::ZERO).err()).collect();
        assert_eq!(waits.len(), 990);
        assert_eq!((waits[0], waits[1]), (Duration::from_millis(20), Duration::from_millis(40)));
        // In whole milliseconds, rounded up, as they are told.
        let told = |wait: &Duration| Duration::from_millis(wait.as_micros().div_ceil(1_000) as u64);
        assert!(waits.iter().all(|wait| rate.take(&mut bucket, told(wait)).is_ok()));
    }

    #[test]
    fn nobody_is_told_to_wait_for_longer_than_a_minute_for_those_before_them() {
        let rate = Rate::new(1, 10.0);
        let mut bucket = rate.full(Duration::ZERO);
        let longest = (0..10_000).filter_map(|_| rate.take(&mut bucket, Duration::ZERO).err()).max();
        assert_eq!(longest, Some(TURN_MAX));
    }

    #[test]
    fn a_socket_has_an_allowance_of_frames_of_its_own() {
        let clock = Arc::new(ManualClock::default());
        let limits = Limits::new(Some(&LimitsConfig::default()), clock.clone());
        let (mut one, mut other) = (None, None);
        assert_eq!((0..6_000).filter(|_| limits.frame_allowed(&mut one).is_ok()).count(), 5_000);
        assert_eq!(limits.frame_allowed(&mut other), Ok(()));
        clock.advance(Duration::from_secs(1));
        assert_eq!((0..6_000).filter(|_| limits.frame_allowed(&mut one).is_ok()).count(), 1_000);
    }

    #[test]
    fn an_address_has_so_many_connections_and_handshakes() {
        let config = LimitsConfig {
            connections_per_address: 3,
            handshakes_per_address: 2,
            handshakes_max: 3,
            connection_burst: 9,
            connections_per_s: 0.0,
            ..LimitsConfig::default()
        };
        let limits = Limits::new(Some(&config), Arc::new(ManualClock::default()));
        let (home, other): (Network, Network) = (home(), "198.51.100.0/24".parse().expect("a network"));
        let mut first = limits.connection_from(home).expect("the first");
        let second = limits.connection_from(home).expect("the second");
        assert_eq!(limits.connection_from(home).err(), Some(Crowded::Handshakes));
        first.handshake = None;
        let third = limits.connection_from(home).expect("the first has brought a request");
        assert_eq!(limits.connection_from(home).err(), Some(Crowded::Connections));
        let _elsewhere = limits.connection_from(other).expect("others have places of their own");
        assert_eq!(limits.connection_from(other).err(), Some(Crowded::Handshakes), "of all together");
        drop((second, third));
        assert!((0..4).all(|_| limits.connection_from(home).is_ok()));
        assert_eq!(limits.connection_from(home).err(), Some(Crowded::Rate));
    }

    #[test]
    fn without_limits_everything_is_allowed() {
        let limits = Limits::new(None, Arc::new(ManualClock::default()));
        assert!((0..10_000).all(|_| limits.send_allowed(user(1), room(1)).is_ok()));
        let places: Vec<_> = (0..1_000).map(|_| limits.socket_of(user(1))).collect();
        assert!(places.iter().all(Result::is_ok));
    }

    #[test]
    fn the_addresses_of_one_subscriber_count_as_one() {
        let limits = Limits::new(Some(&LimitsConfig::default()), Arc::new(ManualClock::default()));
        let p = |text: &str| limits.network(text.parse().expect("an address"));
        assert_eq!(p("2001:db8:1:2::1"), p("2001:db8:1:2:ffff::9"));
        assert_ne!(p("2001:db8:1:2::1"), p("2001:db8:1:3::1"));
        assert_eq!(p("::ffff:192.0.2.1"), p("192.0.2.1"));
        assert_eq!(p("192.0.2.1"), p("192.0.2.2"));
        assert_ne!(p("192.0.2.1"), p("192.0.3.1"));
    }

    #[test]
    fn only_wrong_passwords_are_counted_and_none_slips_through_beside_others() {
        let limits = Limits::new(Some(&LimitsConfig::default()), Arc::new(ManualClock::default()));
        let from = home();
        for _ in 0..1_000 {
            assert_eq!(limits.sign_in_allowed(from, Some(user(1))), Ok(()));
            limits.sign_in_was_none(from, Some(user(1)));
        }
        // A hundred at once: none has been looked at when the last one asks.
        let passing = (0..100).filter(|_| limits.sign_in_allowed(from, Some(user(1))).is_ok()).count();
        assert_eq!(passing, 50);
        assert!(matches!(limits.sign_in_allowed(from, Some(user(1))), Err(Refused::Shared(_))));
        let passing = (0..600).filter(|n| limits.sign_in_allowed(from, Some(user(100 + n))).is_ok()).count();
        assert_eq!(passing, 250, "what the account refused cost the address nothing");
        assert!(matches!(limits.sign_in_allowed(from, None), Err(Refused::Own(_))));
    }

    #[test]
    fn the_map_stays_bounded() {
        let buckets = Buckets::new(2, 0.0);
        for n in 0..BUCKETS_MAX * 2 + 1 {
            buckets.take(n, Duration::ZERO).ok();
            assert!(buckets.held.lock().len() <= BUCKETS_MAX);
        }
    }
    #[test]
    fn a_place_is_free_again_once_it_is_dropped() {
        let config = LimitsConfig { sockets_per_user: 2, ..LimitsConfig::default() };
        let clock = Arc::new(ManualClock::default());
        let limits = Limits::new(Some(&config), clock);
        let first = limits.socket_of(user(1));
        let second = limits.socket_of(user(1));
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(limits.socket_of(user(1)).err(), Some(PLACE_RETRY));
        assert!(limits.socket_of(user(2)).is_ok(), "others have places of their own");
        drop(first);
        assert!(limits.socket_of(user(1)).is_ok());
    }

    #[test]
    fn who_holds_no_place_takes_no_memory() {
        let counts = Counts::new(1);
        let places: Vec<_> = (0..100).map(|n| counts.take(n)).collect();
        assert!(counts.take(0).is_err());
        assert_eq!(counts.held.lock().len(), 100);
        drop(places);
        assert_eq!(counts.held.lock().len(), 0);
    }
}
