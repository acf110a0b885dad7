//! Limits: token buckets in maps that are bounded, and counts of sockets held, keyed by person, account or address
//! prefix. All of them are settings; without settings everything is allowed.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use schemas::{Clock, UserId};

use crate::config::LimitsConfig;

/// Most buckets in one map: at some 64 bytes each a few MiB. A full bucket need not be kept, and the others fill in
/// minutes, so that only an attack from very many addresses meets this bound.
const BUCKETS_MAX: usize = 65_536;

/// Whoever holds as many sockets as they may is asked to come back after this: a place comes free when one of their
/// sockets ends, and a dead one ends within two heartbeats.
const PLACE_RETRY: Duration = Duration::from_secs(5);

/// The limits in force.
pub struct Limits {
    clock: Arc<dyn Clock>,
    rules: Option<Rules>,
}

struct Rules {
    sends: Buckets<UserId>,
    sign_ups: Buckets<IpAddr>,
    failures_by_address: Buckets<IpAddr>,
    failures_by_account: Buckets<UserId>,
    sockets_by_address: Arc<Counts<IpAddr>>,
    sockets_by_user: Arc<Counts<UserId>>,
}

impl Limits {
    /// These limits, or none.
    pub fn new(config: Option<&LimitsConfig>, clock: Arc<dyn Clock>) -> Self {
        let rules = config.map(|config| Rules {
            sends: Buckets::new(config.send_burst, config.sends_per_s),
            sign_ups: Buckets::new(config.sign_up_burst, config.sign_ups_per_s),
            failures_by_address: Buckets::new(config.failed_sign_in_burst, config.failed_sign_ins_per_s),
            failures_by_account: Buckets::new(config.failed_account_burst, config.failed_accounts_per_s),
            sockets_by_address: Counts::new(config.sockets_per_address),
            sockets_by_user: Counts::new(config.sockets_per_user),
        });
        Self { clock, rules }
    }

    /// Takes one send from a person's allowance.
    ///
    /// # Errors
    /// How long to wait for the next one.
    pub fn send_allowed(&self, user: UserId) -> Result<(), Duration> {
        self.check(|rules, now| rules.sends.take(user, now))
    }

    /// Takes one sign-up from an address's allowance.
    ///
    /// # Errors
    /// How long to wait for the next one.
    pub fn sign_up_allowed(&self, from: IpAddr) -> Result<(), Duration> {
        self.check(|rules, now| rules.sign_ups.take(prefix(from), now))
    }

    /// Whether this address, and this account if there is one, may still try a password. Right ones cost nothing.
    ///
    /// # Errors
    /// How long to wait for the next try.
    pub fn sign_in_allowed(&self, from: IpAddr, account: Option<UserId>) -> Result<(), Duration> {
        self.check(|rules, now| {
            rules.failures_by_address.peek(&prefix(from), now)?;
            account.map_or(Ok(()), |account| rules.failures_by_account.peek(&account, now))
        })
    }

    /// Counts a wrong password.
    pub fn sign_in_failed(&self, from: IpAddr, account: Option<UserId>) {
        if let Some(rules) = &self.rules {
            let now = self.clock.elapsed();
            rules.failures_by_address.take(prefix(from), now).ok();
            if let Some(account) = account {
                rules.failures_by_account.take(account, now).ok();
            }
        }
    }

    /// Takes a place for one more socket from an address; it is free again once the answer is dropped.
    ///
    /// # Errors
    /// When to try again.
    pub fn socket_from(&self, from: IpAddr) -> Result<Place<IpAddr>, Duration> {
        self.rules.as_ref().map_or(Ok(Place(None)), |rules| rules.sockets_by_address.take(prefix(from)))
    }

    /// Takes a place for one more socket of a person; it is free again once the answer is dropped.
    ///
    /// # Errors
    /// When to try again.
    pub fn socket_of(&self, user: UserId) -> Result<Place<UserId>, Duration> {
        self.rules.as_ref().map_or(Ok(Place(None)), |rules| rules.sockets_by_user.take(user))
    }

    fn check(&self, rule: impl FnOnce(&Rules, Duration) -> Result<(), Duration>) -> Result<(), Duration> {
        self.rules.as_ref().map_or(Ok(()), |rules| rule(rules, self.clock.elapsed()))
    }
}

/// What counts as one address: with IPv6 a subscriber has a whole /64.
fn prefix(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

/// Token buckets of one size. A bucket that is not in the map is full.
struct Buckets<K> {
    burst: f64,
    per_s: f64,
    held: Mutex<HashMap<K, Bucket>>,
}

#[derive(Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Duration,
}

impl<K: Eq + Hash> Buckets<K> {
    fn new(burst: u32, per_s: f64) -> Self {
        Self { burst: f64::from(burst), per_s, held: Mutex::default() }
    }

    fn level(&self, bucket: Option<&Bucket>, now: Duration) -> f64 {
        let filled = bucket.map(|b| b.tokens + now.saturating_sub(b.at).as_secs_f64() * self.per_s);
        filled.map_or(self.burst, |tokens| tokens.min(self.burst))
    }

    fn wait(&self, level: f64) -> Duration {
        // A rate of 0 never fills: an hour is as good an answer as any.
        Duration::try_from_secs_f64((1.0 - level) / self.per_s).unwrap_or(Duration::from_secs(3_600))
    }

    fn peek(&self, key: &K, now: Duration) -> Result<(), Duration> {
        let level = self.level(self.held.lock().get(key), now);
        if level < 1.0 { Err(self.wait(level)) } else { Ok(()) }
    }

    fn take(&self, key: K, now: Duration) -> Result<(), Duration> {
        let mut held = self.held.lock();
        let level = self.level(held.get(&key), now);
        if level < 1.0 {
            return Err(self.wait(level));
        }
        if held.len() >= BUCKETS_MAX && !held.contains_key(&key) {
            held.retain(|_, bucket| self.level(Some(bucket), now) < self.burst);
            if held.len() >= BUCKETS_MAX {
                // Memory is bounded before limits are exact (I9): all begin anew.
                held.clear();
            }
        }
        held.insert(key, Bucket { tokens: level - 1.0, at: now });
        Ok(())
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
        let mut held = self.held.lock();
        let count = held.entry(key).or_default();
        if *count >= self.max {
            return Err(PLACE_RETRY);
        }
        *count += 1;
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

    #[test]
    fn a_burst_passes_then_the_rate_counts_for_each_person_apart() {
        let clock = Arc::new(ManualClock::default());
        let limits = Limits::new(Some(&LimitsConfig::default()), clock.clone());
        assert_eq!((0..600).filter(|_| limits.send_allowed(user(1)).is_ok()).count(), 500);
        assert_eq!(limits.send_allowed(user(1)), Err(Duration::from_millis(20)));
        assert_eq!(limits.send_allowed(user(2)), Ok(()));
        clock.advance(Duration::from_secs(1));
        assert_eq!((0..600).filter(|_| limits.send_allowed(user(1)).is_ok()).count(), 50);
    }

    #[test]
    fn without_limits_everything_is_allowed() {
        let limits = Limits::new(None, Arc::new(ManualClock::default()));
        assert!((0..10_000).all(|_| limits.send_allowed(user(1)).is_ok()));
        let places: Vec<_> = (0..1_000).map(|_| limits.socket_of(user(1))).collect();
        assert!(places.iter().all(Result::is_ok));
    }

    #[test]
    fn the_addresses_of_one_subscriber_count_as_one() {
        let p = |text: &str| prefix(text.parse().expect("an address"));
        assert_eq!(p("2001:db8:1:2::1"), p("2001:db8:1:2:ffff::9"));
        assert_ne!(p("2001:db8:1:2::1"), p("2001:db8:1:3::1"));
        assert_eq!(p("::ffff:192.0.2.1"), p("192.0.2.1"));
        assert_ne!(p("192.0.2.1"), p("192.0.2.2"));
    }

    #[test]
    fn only_wrong_passwords_are_counted() {
        let limits = Limits::new(Some(&LimitsConfig::default()), Arc::new(ManualClock::default()));
        let from = "192.0.2.1".parse().expect("an address");
        assert!((0..1_000).all(|_| limits.sign_in_allowed(from, Some(user(1))).is_ok()));
        for _ in 0..50 {
            limits.sign_in_failed(from, Some(user(1)));
        }
        assert!(limits.sign_in_allowed(from, Some(user(1))).is_err());
        assert!(limits.sign_in_allowed(from, Some(user(2))).is_ok());
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
        let limits = Limits::new(Some(&config), Arc::new(ManualClock::default()));
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
