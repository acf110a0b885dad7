//! Who sees what at a position (I8): a person's standing as it was at a room's head, and which seqs a page holds.
//! Pure; density (I2) makes it possible to know a page's seqs before a single event is read.

use schemas::Seq;
use schemas::link::PageFrom;
use schemas::room::Member;

/// Seqs from the first to the second, both included.
pub(crate) type Range = (Seq, Seq);

/// The standing as it was when `head` was the room's newest event; `None` where the person had not come yet. A row
/// may be newer than the position at which it is asked for; the role is then the newer one, and never decides a read.
pub(crate) fn at(mut member: Member, head: Seq) -> Option<Member> {
    if member.version > head {
        member.intervals.retain(|stay| stay.joined <= head);
        for stay in &mut member.intervals {
            stay.until = stay.until.filter(|until| *until <= head);
        }
        member.version = head;
    }
    (!member.intervals.is_empty()).then_some(member)
}

/// Whether they were in the room when `head` was its newest event.
pub(crate) fn is_in_at(member: &Member, head: Seq) -> bool {
    member.intervals.iter().any(|stay| stay.joined <= head && stay.until.is_none_or(|until| until > head))
}

/// The seqs of a page: those that the person may see, at the end that was asked for, at most `limit`; ascending.
pub(crate) fn page(member: &Member, head: Seq, from: PageFrom, limit: usize) -> Vec<Range> {
    let (after, before) = match from {
        PageFrom::After(seq) => (seq, head.next()),
        PageFrom::Before(seq) => (Seq::ZERO, seq.min(head.next())),
        PageFrom::Newest => (Seq::ZERO, head.next()),
    };
    let mut stays: Vec<Range> = member
        .intervals
        .iter()
        .map(|stay| (stay.visible_from.max(after.next()), stay.until.unwrap_or(head).min(before.prev())))
        .filter(|(first, last)| first <= last)
        .collect();
    stays.sort_unstable();
    let mut ranges: Vec<Range> = Vec::with_capacity(stays.len());
    for (first, last) in stays {
        match ranges.last_mut() {
            Some(range) if first <= range.1.next() => range.1 = range.1.max(last),
            _ => ranges.push((first, last)),
        }
    }
    let mut left = limit as u64;
    let mut take = |(first, last): &mut Range, newest: bool| {
        let count = (last.0 - first.0 + 1).min(left);
        left -= count;
        if newest {
            first.0 = last.0 + 1 - count;
        } else {
            last.0 = first.0 + count - 1;
        }
        count > 0
    };
    if matches!(from, PageFrom::After(_)) {
        ranges.retain_mut(|range| take(range, false));
    } else {
        ranges.reverse();
        ranges.retain_mut(|range| take(range, true));
        ranges.reverse();
    }
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::message::{MemberChange, Membership, Role, RoomHistory};

    use super::*;

    /// A standing by its changes: at each of these seqs in or out, in turn.
    fn standing(turns: &[(u64, bool)]) -> Member {
        let mut member = None;
        for (index, (seq, all)) in turns.iter().enumerate() {
            let change = if index % 2 == 0 { MemberChange::Joined } else { MemberChange::Left };
            let history = if *all { RoomHistory::All } else { RoomHistory::SinceJoined };
            let change = Membership { user: schemas::UserId::NIL, change, role: Role::Member };
            member = Some(Member::fold(member, Seq(*seq), change, history));
        }
        member.unwrap()
    }

    fn turns() -> impl Strategy<Value = Vec<(u64, bool)>> {
        prop::collection::btree_map(1..60_u64, any::<bool>(), 1..7).prop_map(|turns| turns.into_iter().collect())
    }

    fn from() -> impl Strategy<Value = PageFrom> {
        prop_oneof![
            Just(PageFrom::Newest),
            (0..70_u64).prop_map(|seq| PageFrom::After(Seq(seq))),
            (0..70_u64).prop_map(|seq| PageFrom::Before(Seq(seq))),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_page_is_the_visible_seqs_at_the_end_asked_for(
            turns in turns(), spare in 0..9_u64, from in from(), limit in 0..70_usize,
        ) {
            let member = standing(&turns);
            let head = Seq(member.version.0 + spare);
            let mut expected: Vec<u64> = (1..=head.0)
                .filter(|seq| member.sees(Seq(*seq)))
                .filter(|seq| match from {
                    PageFrom::After(after) => *seq > after.0,
                    PageFrom::Before(before) => *seq < before.0,
                    PageFrom::Newest => true,
                })
                .collect();
            if matches!(from, PageFrom::After(_)) {
                expected.truncate(limit);
            } else {
                expected.drain(..expected.len().saturating_sub(limit));
            }
            let got: Vec<u64> =
                page(&member, head, from, limit).into_iter().flat_map(|(first, last)| first.0..=last.0).collect();
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn a_newer_standing_tells_the_older_one(turns in turns(), head in 0..70_u64) {
            let earlier: Vec<_> = turns.iter().copied().filter(|(seq, _)| *seq <= head).collect();
            let then = (!earlier.is_empty()).then(|| standing(&earlier));
            let got = at(standing(&turns), Seq(head));
            prop_assert_eq!(is_in_at(&standing(&turns), Seq(head)), then.as_ref().is_some_and(Member::is_in));
            prop_assert_eq!(got.map(|member| member.intervals), then.map(|member| member.intervals));
        }
    }
}
