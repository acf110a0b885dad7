//! Shut-outs: addresses and accounts that the edges turn away for a time, because they kept breaking limits. Every edge
//! polls them, as it does revocations, so that who is shut out at one is so at all. (Not the blocks that people set
//! against one another.)

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use async_trait::async_trait;
use schemas::{Timestamp, UserId};

use crate::Error;

/// Most entries that one poll brings.
pub const SHUT_OUTS_MAX: usize = 1_000;

/// Addresses that share so many leading bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    base: IpAddr,
    bits: u8,
}

impl Network {
    /// The network of so many bits (fewer where the address has fewer) that an address is in. An IPv4 address in the
    /// clothes of IPv6 is an IPv4 address.
    pub fn around(address: IpAddr, bits_v4: u8, bits_v6: u8) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                let bits = bits_v4.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
                Self { base: Ipv4Addr::from_bits(v4.to_bits() & mask).into(), bits }
            }
            IpAddr::V6(v6) => {
                let bits = bits_v6.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
                Self { base: Ipv6Addr::from_bits(v6.to_bits() & mask).into(), bits }
            }
        }
    }

    /// Whether an address is in it.
    pub fn contains(self, address: IpAddr) -> bool {
        let around = |address| Self::around(address, self.bits, self.bits);
        self.base.is_ipv4() == address.to_canonical().is_ipv4() && around(address).base == around(self.base).base
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

impl FromStr for Network {
    type Err = ();

    /// `10.0.0.0/8`, `fd00::/8`, or a single address.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (base, bits) = match text.split_once('/') {
            Some((base, bits)) => (base, Some(bits.parse().map_err(|_| ())?)),
            None => (text, None),
        };
        let base: IpAddr = base.parse().map_err(|_| ())?;
        let width = if base.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(width);
        if bits > width { Err(()) } else { Ok(Self { base, bits }) }
    }
}

/// Who is shut out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// Everybody at these addresses.
    Address(Network),
    /// A person, wherever they are.
    Account(UserId),
}

impl fmt::Display for Subject {
    /// As it is stored, listed and named on the command line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(network) => network.fmt(f),
            Self::Account(user) => user.fmt(f),
        }
    }
}

impl FromStr for Subject {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        text.parse().map(Self::Address).or_else(|()| text.parse().map(Self::Account).map_err(|_| ()))
    }
}

/// One subject's last shut-out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShutOut {
    /// Of its last change: dense enough to poll "after". The store gives it.
    pub number: u64,
    /// Who.
    pub subject: Subject,
    /// For what, in the edge's words.
    pub reason: String,
    /// From then on.
    pub since: Timestamp,
    /// Up to then.
    pub until: Timestamp,
    /// How often in a row.
    pub times: u32,
    /// What began at or before this time has been lifted.
    pub lifted_at: Option<Timestamp>,
}

impl ShutOut {
    /// Whether it holds.
    pub fn is_in_force(&self, now: Timestamp) -> bool {
        now < self.until && !self.is_lifted()
    }

    /// Whether it has been lifted.
    pub fn is_lifted(&self) -> bool {
        self.lifted_at.is_some_and(|at| self.since <= at)
    }

    /// What one row says after another: of two, the one that began later, or ends later. Lifting is never forgotten, so
    /// that an entry that comes late does not bring back what was lifted.
    pub(crate) fn merged(self, other: Self) -> Self {
        let lifted_at = self.lifted_at.max(other.lifted_at);
        let key = |entry: &Self| (entry.since, entry.until, entry.times, entry.reason.clone());
        let last = if key(&self) >= key(&other) { self } else { other };
        Self { lifted_at, ..last }
    }
}

/// The shut-outs.
#[async_trait]
pub trait ShutOuts: Send + Sync + 'static {
    /// Enters shut-outs, one row for each subject: of several the one that began last stays. What changes a row gives it a
    /// new number; the numbers in `entries` count for nothing.
    async fn shut_out(&self, entries: Vec<ShutOut>) -> Result<(), Error>;
    /// Lifts what has begun up to `at`, of one subject or of all. `Ok` brings how many were in force then.
    async fn lift_shut_outs(&self, subject: Option<Subject>, at: Timestamp) -> Result<usize, Error>;
    /// Rows that have changed after `number`, in order, at most [`SHUT_OUTS_MAX`].
    async fn shut_outs(&self, after: u64) -> Result<Vec<ShutOut>, Error>;
    /// Forgets at most `limit` that ended before `before`, and `Ok` brings how many. Numbers are not given again.
    async fn purge_shut_outs(&self, before: Timestamp, limit: usize) -> Result<usize, Error>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_an_address_and_a_number_of_bits() {
        for bad in ["", "10.0.0.0/33", "fd00::/129", "10.0.0/8", "10.0.0.0/", "example.org"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
        let any: Network = "0.0.0.0/0".parse().unwrap();
        assert!(any.contains([1, 2, 3, 4].into()) && !any.contains(IpAddr::V6(1.into())));
        let ten: Network = "10.1.0.0/8".parse().unwrap();
        assert!(ten.contains([10, 9, 9, 9].into()) && !ten.contains([11, 0, 0, 0].into()));
        assert!(ten.contains("::ffff:10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn the_addresses_around_one_are_its_network() {
        let around = |text: &str| Network::around(text.parse().unwrap(), 24, 64).to_string();
        assert_eq!(around("192.0.2.7"), "192.0.2.0/24");
        assert_eq!(around("::ffff:192.0.2.7"), "192.0.2.0/24");
        assert_eq!(around("2001:db8:1:2:ffff::9"), "2001:db8:1:2::/64");
        assert_eq!(Network::around([192, 0, 2, 7].into(), 0, 0).to_string(), "0.0.0.0/0");
        assert_eq!(Network::around([192, 0, 2, 7].into(), 32, 128).to_string(), "192.0.2.7/32");
    }

    #[test]
    fn a_subject_is_read_as_it_is_written() {
        for text in ["192.0.2.0/24", "2001:db8:1:2::/64", "0195b2a4-0000-7000-8000-000000000001"] {
            assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
        }
        assert!("ada".parse::<Subject>().is_err());
    }
}
