//! Who is shut out for what they keep doing: offences weigh points, points are forgiven with time, and whoever has too
//! many is shut out, for twice as long each time that it goes on. Pure: told of offences and the time, it decides; who
//! is turned away where, and writing it down for other edges, is the app's.
//!
//! An offence is what a client that keeps to the protocol does not do, or does by mistake now and then: the weights are
//! such that a few hundred people behind one address may each make a mistake, and that backing off as told never adds
//! up. During a shut-out nothing more counts: a client that knocks in vain makes nothing worse.

use std::collections::HashMap;
use std::time::Duration;

use schemas::Timestamp;
use store::shut_outs::{ShutOut, Subject};

use crate::config::BlocksConfig;

/// Most subjects that are known at once, some 100 bytes each (I9).
const SUBJECTS_MAX: usize = 65_536;

/// Shut-outs that wait to be written down; beyond it they hold here alone. A subject waits once at most.
const UNWRITTEN_MAX: usize = 4_096;

/// How often those that are forgiven are forgotten at most, where there is no room for others.
const SWEEP: Duration = Duration::from_secs(1);

/// What somebody has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offence {
    /// Went on above a rate: a frame, a send, a connection or a socket was refused.
    Flood,
    /// Tried a password or a sign-up above the rate.
    Credentials,
    /// Came with a token that was never valid.
    Forged,
    /// Sent what is no HTTP, no JSON, no WebSocket frame.
    Malformed,
    /// Sent more than any message can be.
    Oversized,
    /// Broke off a TLS handshake, or spoke something else.
    Handshake,
    /// Began to say something and did not finish it in time.
    Slow,
    /// Connected and said nothing, as browsers do that connect ahead of need.
    Silent,
}

impl Offence {
    /// Points that it weighs; with 100 (see [`BlocksConfig::points`]) somebody is shut out.
    fn weight(self) -> f64 {
        match self {
            // 2,000 of them: twice what one socket may have on its way when it first hears of a limit.
            Self::Flood => 0.05,
            // Beside the hundreds that the limit itself allows.
            Self::Credentials => 1.0,
            // After a change of keys many honest clients come once with an old token each.
            Self::Forged => 0.5,
            Self::Malformed | Self::Oversized => 5.0,
            // A client that does not trust our certificate breaks off too.
            Self::Handshake => 0.5,
            // Phones lose their network in the middle of anything.
            Self::Slow => 2.0,
            Self::Silent => 0.2,
        }
    }

    /// For logs, metrics, and the list of shut-outs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Flood => "flood",
            Self::Credentials => "credentials",
            Self::Forged => "forged_token",
            Self::Malformed => "malformed",
            Self::Oversized => "oversized",
            Self::Handshake => "handshake",
            Self::Slow => "slow",
            Self::Silent => "silent",
        }
    }
}

/// What is known of all who have offended lately.
#[derive(Debug)]
pub struct Blocks {
    config: BlocksConfig,
    known: HashMap<Subject, Standing>,
    unwritten: HashMap<Subject, ShutOut>,
    /// When those that are forgiven were last forgotten.
    swept: Timestamp,
}

/// What is known of one of them.
#[derive(Clone, Copy, Debug)]
struct Standing {
    points: f64,
    /// When the points were counted.
    at: Timestamp,
    /// When the last shut-out began and ends.
    since: Timestamp,
    until: Timestamp,
    /// Shut-outs in a row.
    times: u32,
}

impl Blocks {
    /// Nobody has offended yet.
    pub fn new(config: BlocksConfig) -> Self {
        Self { config, known: HashMap::new(), unwritten: HashMap::new(), swept: Timestamp(0) }
    }

    /// How long somebody is shut out yet.
    pub fn shut_out(&self, subject: &Subject, now: Timestamp) -> Option<Duration> {
        let left = self.known.get(subject)?.until.since(now);
        (!left.is_zero()).then_some(left)
    }

    /// How many are shut out.
    pub fn count(&self, now: Timestamp) -> usize {
        self.known.values().filter(|standing| now < standing.until).count()
    }

    /// Counts an offence; brings the shut-out that begins with it.
    pub fn offended(&mut self, subject: Subject, offence: Offence, now: Timestamp) -> Option<ShutOut> {
        if !self.known.contains_key(&subject) && !self.has_room(now) {
            return None;
        }
        let standing = self.known.entry(subject).or_insert(Standing::new(now));
        if now < standing.until {
            return None;
        }
        standing.points = standing.points(&self.config, now) + offence.weight();
        standing.at = now;
        if standing.points < self.config.points {
            return None;
        }
        if standing.has_been_quiet(&self.config, now) {
            standing.times = 0;
        }
        // Half of it is kept: whoever goes on is known sooner than whoever begins.
        standing.points = self.config.points / 2.0;
        standing.times = standing.times.saturating_add(1);
        standing.since = now;
        standing.until = now.after(self.config.duration(standing.times));
        let entry = standing.entry(subject, offence);
        if self.unwritten.len() < UNWRITTEN_MAX || self.unwritten.contains_key(&subject) {
            self.unwritten.insert(subject, entry.clone());
        }
        Some(entry)
    }

    /// Whether somebody new can be known. With so many at once those that are known stay so, and whoever comes anew is
    /// bounded by the limits alone.
    fn has_room(&mut self, now: Timestamp) -> bool {
        // Not at each offence: looking through them all is work.
        if self.known.len() >= SUBJECTS_MAX && now.since(self.swept) >= SWEEP {
            self.swept = now;
            self.known.retain(|_, standing| standing.matters(&self.config, now));
        }
        self.known.len() < SUBJECTS_MAX
    }

    /// Takes what is to be written down, at most so many.
    pub fn take_unwritten(&mut self, limit: usize) -> Vec<ShutOut> {
        let subjects: Vec<Subject> = self.unwritten.keys().take(limit).copied().collect();
        subjects.iter().filter_map(|subject| self.unwritten.remove(subject)).collect()
    }

    /// Gives back what could not be written down; what is newer stays.
    pub fn not_written(&mut self, entries: Vec<ShutOut>) {
        for entry in entries {
            self.unwritten.entry(entry.subject).or_insert(entry);
        }
    }

    /// Enters what is written down, perhaps by another edge or by the operator. Brings how long it holds yet where that
    /// was not known here.
    pub fn apply(&mut self, entry: &ShutOut, now: Timestamp) -> Option<Duration> {
        if entry.is_lifted() {
            let known = self.known.get(&entry.subject);
            if known.is_some_and(|known| Some(known.since) <= entry.lifted_at) {
                // With all that led to it.
                self.known.remove(&entry.subject);
                self.unwritten.remove(&entry.subject);
            }
            return None;
        }
        if entry.until.after(self.config.quiet()) <= now {
            return None;
        }
        if !self.known.contains_key(&entry.subject) && !self.has_room(now) {
            return None;
        }
        let standing = self.known.entry(entry.subject).or_insert(Standing::new(now));
        if entry.until <= standing.until {
            return None;
        }
        let points = self.config.points / 2.0;
        *standing = Standing { points, at: now, since: entry.since, until: entry.until, times: entry.times };
        self.shut_out(&entry.subject, now)
    }
}

impl Standing {
    fn new(now: Timestamp) -> Self {
        Self { points: 0.0, at: now, since: Timestamp(0), until: Timestamp(0), times: 0 }
    }

    /// Points after what has been forgiven; a shut-out forgives nothing.
    fn points(&self, config: &BlocksConfig, now: Timestamp) -> f64 {
        let forgiven = now.since(self.at.max(self.until)).as_secs_f64() * config.forgiven_per_s;
        (self.points - forgiven).max(0.0)
    }

    fn has_been_quiet(&self, config: &BlocksConfig, now: Timestamp) -> bool {
        now >= self.until.after(config.quiet())
    }

    fn matters(&self, config: &BlocksConfig, now: Timestamp) -> bool {
        self.points(config, now) > 0.0 || (self.times > 0 && !self.has_been_quiet(config, now))
    }

    fn entry(&self, subject: Subject, offence: Offence) -> ShutOut {
        let (since, until, times) = (self.since, self.until, self.times);
        ShutOut { number: 0, subject, reason: offence.as_str().to_owned(), since, until, times, lifted_at: None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use store::shut_outs::Network;

    use super::*;

    const START: Timestamp = Timestamp(1_763_715_600_000);

    fn at(ms: u64) -> Timestamp {
        START.after(Duration::from_millis(ms))
    }

    fn address(n: u32) -> Subject {
        Subject::Address(Network::around(std::net::Ipv4Addr::from_bits(n << 8).into(), 24, 64))
    }

    fn blocks() -> Blocks {
        Blocks::new(BlocksConfig::default())
    }

    /// Offends until shut out; for how long.
    fn until_shut_out(blocks: &mut Blocks, offence: Offence, now: Timestamp) -> Duration {
        (0..10_000).find_map(|_| blocks.offended(address(1), offence, now)).expect("at last").until.since(now)
    }

    #[test]
    fn whoever_goes_on_is_shut_out_for_twice_as_long_up_to_a_quarter_of_an_hour() {
        let (mut blocks, mut now) = (blocks(), START);
        let mut seconds = Vec::new();
        for _ in 0..12 {
            let shut_out = until_shut_out(&mut blocks, Offence::Malformed, now);
            assert_eq!(blocks.shut_out(&address(1), now), Some(shut_out));
            seconds.push(shut_out.as_secs());
            now = now.after(shut_out);
            assert_eq!(blocks.shut_out(&address(1), now), None);
        }
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]);
        now = now.after(BlocksConfig::default().quiet());
        assert_eq!(until_shut_out(&mut blocks, Offence::Malformed, now).as_secs(), 1, "forgotten");
    }

    #[test]
    fn what_is_done_while_shut_out_makes_nothing_worse() {
        let mut blocks = blocks();
        until_shut_out(&mut blocks, Offence::Malformed, START);
        assert!((0..1_000).all(|_| blocks.offended(address(1), Offence::Malformed, at(500)).is_none()));
        assert_eq!(blocks.shut_out(&address(1), at(1_000)), None);
        assert_eq!(blocks.offended(address(1), Offence::Malformed, at(1_000)), None, "half of it is free again");
    }

    #[test]
    fn mistakes_of_many_at_one_address_are_forgiven() {
        let mut blocks = blocks();
        // 250 people, each with one piece of nonsense an hour, for a day.
        for n in 0..250 * 24 {
            let now = at(n * 3_600_000 / 250);
            assert_eq!(blocks.offended(address(1), Offence::Malformed, now), None, "{n}");
        }
        // 400 browsers that connect ahead of need, all at nine o'clock.
        assert!((0..400).all(|_| blocks.offended(address(2), Offence::Silent, START).is_none()));
    }

    #[test]
    fn whoever_backs_off_as_told_is_never_shut_out() {
        let mut blocks = blocks();
        // The first it hears of the limit is the refusal of all that it has on its way; then one a second too early.
        assert!((0..1_000).all(|_| blocks.offended(address(1), Offence::Flood, START).is_none()));
        assert!((0..100_000).all(|s| blocks.offended(address(1), Offence::Flood, at(s * 1_000)).is_none()));
    }

    #[test]
    fn others_are_not_shut_out() {
        let mut blocks = blocks();
        until_shut_out(&mut blocks, Offence::Credentials, START);
        assert_eq!((blocks.shut_out(&address(2), START), blocks.count(START)), (None, 1));
    }

    #[test]
    fn what_one_edge_decides_holds_at_another_until_it_is_lifted() {
        let (mut here, mut there) = (blocks(), blocks());
        until_shut_out(&mut here, Offence::Slow, START);
        let told = here.take_unwritten(10);
        assert!(here.take_unwritten(10).is_empty());
        assert_eq!(there.apply(&told[0], at(100)), Some(Duration::from_millis(900)));
        assert_eq!(there.apply(&told[0], at(100)), None, "known by now");
        let next = until_shut_out(&mut there, Offence::Slow, at(1_000));
        assert_eq!(next.as_secs(), 2, "it goes on where the other left off");
        let lifted = ShutOut { lifted_at: Some(at(1_000)), ..there.take_unwritten(10).remove(0) };
        for edge in [&mut here, &mut there] {
            edge.apply(&lifted, at(1_100));
            assert_eq!(edge.shut_out(&address(1), at(1_100)), None);
            assert_eq!(until_shut_out(edge, Offence::Slow, at(1_200)).as_secs(), 1, "all is forgiven");
        }
        here.apply(&lifted, at(1_300));
        assert!(here.shut_out(&address(1), at(1_300)).is_some(), "what came after the lifting stays");
    }

    #[test]
    fn what_could_not_be_written_is_kept_unless_there_is_something_newer() {
        let mut blocks = blocks();
        until_shut_out(&mut blocks, Offence::Slow, START);
        let taken = blocks.take_unwritten(10);
        until_shut_out(&mut blocks, Offence::Slow, at(1_000));
        blocks.not_written(taken);
        let again = blocks.take_unwritten(10);
        assert_eq!((again.len(), again[0].times), (1, 2));
    }

    #[test]
    fn very_many_take_no_more_memory_than_there_is_for_them() {
        let mut blocks = blocks();
        for n in 0..SUBJECTS_MAX as u32 * 2 {
            blocks.offended(address(n), Offence::Malformed, START);
        }
        assert_eq!(blocks.known.len(), SUBJECTS_MAX);
        blocks.offended(address(u32::MAX >> 8), Offence::Malformed, at(60_000));
        assert_eq!(blocks.known.len(), 1, "once forgiven they are forgotten");
        for n in 0..SUBJECTS_MAX as u32 {
            until_shut_out_of(&mut blocks, address(n), at(60_000));
        }
        assert!(blocks.unwritten.len() <= UNWRITTEN_MAX);
    }

    fn until_shut_out_of(blocks: &mut Blocks, subject: Subject, now: Timestamp) {
        (0..30).find_map(|_| blocks.offended(subject, Offence::Malformed, now));
    }

    proptest! {
        /// Whatever is done: a shut-out is as long as its place in the row says, and begins only with enough points.
        #[test]
        fn a_shut_out_has_its_reason_and_its_length(steps in prop::collection::vec((0..4_000_u64, 0..8_usize), 1..400)) {
            let kinds = [Offence::Flood, Offence::Credentials, Offence::Forged, Offence::Malformed,
                Offence::Oversized, Offence::Handshake, Offence::Slow, Offence::Silent];
            let config = BlocksConfig::default();
            let (mut blocks, mut now, mut weight) = (blocks(), 0, 0.0);
            for (pause, kind) in steps {
                now += pause;
                let was_out = blocks.shut_out(&address(1), at(now)).is_some();
                weight += if was_out { 0.0 } else { kinds[kind].weight() };
                if let Some(entry) = blocks.offended(address(1), kinds[kind], at(now)) {
                    prop_assert!(!was_out && weight >= config.points / 2.0);
                    prop_assert_eq!(entry.until.since(entry.since), config.duration(entry.times));
                    weight = 0.0;
                }
            }
        }
    }
}
