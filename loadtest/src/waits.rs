//! What was waited for while the load ran, and after which mark: an accept by anybody, the outcome of each send, its
//! delivery. Pure. What the marks are is known only at the end, so each tenth of a second keeps the longest wait of each
//! kind that began in it, with its exact ends: 64 bytes a slot, 2.3 MB an hour, whatever the load.

/// Length of a slot, µs.
const SLOT_US: u64 = 100_000;

/// A wait that was under way at a mark is put down to it if it had lasted no longer than this, µs. Far above what a wait
/// takes without a fault, and far below what one costs.
const ALREADY_MAX_US: u64 = 1_000_000;

/// From when to when something was waited for, µs on the timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wait {
    /// Its beginning.
    pub from_us: u64,
    /// Its end.
    pub to_us: u64,
}

impl Wait {
    /// How long, µs.
    pub fn micros(self) -> u64 {
        self.to_us.saturating_sub(self.from_us)
    }

    fn keep(&mut self, other: Self) {
        if other.micros() > self.micros() {
            *self = other;
        }
    }

    /// The mark that it is put down to, as the number of marks up to it: the last one that came while it lasted or before,
    /// but not after its first second. So a send that was under way when a process was killed is that kill's, although
    /// it was due before; and what a kill has delayed past the next mark stays its own.
    fn owner(self, marks: &[u64]) -> usize {
        let slot = self.from_us - self.from_us % SLOT_US;
        let until = self.to_us.min(slot.saturating_add(ALREADY_MAX_US));
        marks.partition_point(|mark| *mark <= until)
    }
}

/// What was waited for in one stretch of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Sends that were due in it.
    pub sends: u64,
    /// Of these: accepted, whenever that was.
    pub accepted: u64,
    /// The longest time in which a send was owed its outcome, and none of anybody was accepted.
    pub no_accept: Wait,
    /// Due → `accepted` of the slowest send.
    pub ack: Wait,
    /// Due → `message` at another member of the slowest one.
    pub delivery: Wait,
}

/// All of a run.
#[derive(Debug, Default)]
pub struct Ledger {
    slots: Vec<Waits>,
    owed: u64,
    /// Since when a send is owed its outcome and none was accepted.
    since_us: Option<u64>,
    /// When that ended last.
    turned_us: u64,
}

impl Ledger {
    /// Sends without a final outcome.
    pub fn owed(&self) -> u64 {
        self.owed
    }

    /// A send is due, and owed its outcome from now on.
    pub fn due(&mut self, due_us: u64) {
        self.owed += 1;
        self.slot(due_us).sends += 1;
        // Not before the accept that was seen last: whoever makes sends due may be late with this one.
        self.since_us.get_or_insert(due_us.max(self.turned_us));
    }

    /// A send was accepted.
    pub fn accepted(&mut self, due_us: u64, at_us: u64) {
        self.owed = self.owed.saturating_sub(1);
        let (slot, wait) = (self.slot(due_us.min(at_us)), Wait { from_us: due_us, to_us: at_us });
        slot.accepted += 1;
        slot.ack.keep(wait);
        self.turn(at_us);
    }

    /// A send was given up: nobody waits for it any more.
    pub fn refused(&mut self, at_us: u64) {
        self.owed = self.owed.saturating_sub(1);
        if self.owed == 0 {
            self.turn(at_us);
        }
    }

    /// A message that was due then has come to a member.
    pub fn delivered(&mut self, due_us: u64, at_us: u64) {
        // What a message says of its time is from outside: later than now is no time at all.
        if due_us <= at_us {
            self.slot(due_us).delivery.keep(Wait { from_us: due_us, to_us: at_us });
        }
    }

    /// Nothing is tried any more: what has waited for an accept until now has done so in vain.
    pub fn give_up(&mut self, at_us: u64) {
        self.turn(at_us);
        self.since_us = None;
    }

    /// What there was before the first mark, and after each; of marks in the order of their times, µs on the timeline.
    /// Sends are counted by the slot in which they were due, and a slot with a mark in it is the mark's. Every wait of a
    /// second or more is told: those that began in one slot have one owner, and the longest was kept. Of shorter ones the
    /// other side of a mark may miss one.
    pub fn after(&self, marks: &[u64]) -> Vec<Waits> {
        let mut after = vec![Waits::default(); marks.len() + 1];
        for (number, slot) in (0..).zip(&self.slots) {
            let counted = marks.partition_point(|mark| mark / SLOT_US <= number);
            after[counted].sends += slot.sends;
            after[counted].accepted += slot.accepted;
            after[slot.no_accept.owner(marks)].no_accept.keep(slot.no_accept);
            after[slot.ack.owner(marks)].ack.keep(slot.ack);
            after[slot.delivery.owner(marks)].delivery.keep(slot.delivery);
        }
        after
    }

    /// What there was in the whole run.
    pub fn whole(&self) -> Waits {
        self.after(&[])[0]
    }

    fn turn(&mut self, at_us: u64) {
        self.turned_us = at_us.max(self.turned_us);
        let to_us = self.turned_us;
        if let Some(from_us) = self.since_us.take() {
            self.slot(from_us).no_accept.keep(Wait { from_us, to_us });
        }
        self.since_us = (self.owed > 0).then_some(to_us);
    }

    fn slot(&mut self, at_us: u64) -> &mut Waits {
        let number = usize::try_from(at_us / SLOT_US).unwrap_or(usize::MAX);
        if number >= self.slots.len() {
            self.slots.resize(number + 1, Waits::default());
        }
        &mut self.slots[number]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000;
    const MS: u64 = 1_000;

    fn wait(from_us: u64, to_us: u64) -> Wait {
        Wait { from_us, to_us }
    }

    /// A send every 50 ms, accepted 10 ms later, except that nothing is accepted in the outages: what is due in one is
    /// accepted at its end.
    fn run(end_us: u64, outages: &[Wait]) -> Ledger {
        let mut ledger = Ledger::default();
        let mut steps = Vec::new();
        for due in (0..end_us).step_by(50_000) {
            let answered = due + 10 * MS;
            let outage = outages.iter().find(|outage| (outage.from_us..outage.to_us).contains(&answered));
            steps.extend([(due, None), (outage.map_or(answered, |outage| outage.to_us), Some(due))]);
        }
        steps.sort_unstable();
        for (at, accepts) in steps {
            match accepts {
                None => ledger.due(at),
                Some(due) => ledger.accepted(due, at),
            }
        }
        ledger
    }

    #[test]
    fn without_marks_the_longest_of_the_run_is_told() {
        let after = run(10 * S, &[wait(2 * S, 3 * S), wait(5 * S, 7 * S)]).after(&[]);
        // The last accept before the outage has left nothing owed, so the wait is that of the first send in it.
        let longest = wait(5 * S, 7 * S);
        let expected = Waits { sends: 200, accepted: 200, no_accept: longest, ack: longest, delivery: Wait::default() };
        assert_eq!(after, [expected]);
    }

    #[test]
    fn a_wait_that_straddles_a_mark_is_the_marks_while_it_is_young() {
        let ledger = run(10 * S, &[wait(4 * S, 6 * S)]);
        let [before, kill] = ledger.after(&[4 * S + 990 * MS])[..] else { panic!("two stretches") };
        assert_eq!((kill.no_accept, kill.ack), (wait(4 * S, 6 * S), wait(4 * S, 6 * S)));
        assert_eq!(before.no_accept.micros(), 10 * MS, "it has none of it");
        // Older than a second it stays with what was before, and the mark has what was due near it.
        let [before, kill] = ledger.after(&[5 * S + 200 * MS])[..] else { panic!("two stretches") };
        assert_eq!((before.no_accept, before.ack), (wait(4 * S, 6 * S), wait(4 * S, 6 * S)));
        assert_eq!(kill.ack, wait(4 * S + 200 * MS, 6 * S));
        assert_eq!(kill.no_accept.micros(), 10 * MS);
    }

    #[test]
    fn what_a_kill_delays_past_the_next_one_stays_its_own() {
        let mut ledger = run(20 * S, &[]);
        ledger.delivered(5 * S, 19 * S);
        let [before, first, second] = ledger.after(&[5 * S + 1, 12 * S])[..] else { panic!("three stretches") };
        assert_eq!((before.delivery, first.delivery), (Wait::default(), wait(5 * S, 19 * S)));
        assert_eq!(second.delivery, Wait::default());
        assert_eq!((before.sends, first.sends, second.sends), (100, 140, 160));
    }

    #[test]
    fn a_wait_that_nobody_ends_counts_until_it_is_given_up() {
        let mut ledger = run(5 * S, &[]);
        ledger.due(6 * S);
        ledger.give_up(66 * S);
        ledger.give_up(99 * S);
        let [_, last] = ledger.after(&[5 * S])[..] else { panic!("two stretches") };
        assert_eq!(last, Waits { sends: 1, no_accept: wait(6 * S, 66 * S), ..Waits::default() });
        assert_eq!(ledger.owed(), 1);
    }

    #[test]
    fn a_time_in_which_nothing_is_owed_is_none_without_an_accept() {
        let mut ledger = Ledger::default();
        for second in 1..10 {
            ledger.due(second * S);
            ledger.accepted(second * S, second * S + second * MS);
        }
        assert_eq!(ledger.whole().no_accept, wait(9 * S, 9 * S + 9 * MS));
        // A refusal of the last one that is owed ends such a time; that of one of several does not.
        ledger.due(20 * S);
        ledger.due(21 * S);
        ledger.refused(22 * S);
        ledger.refused(23 * S);
        ledger.due(90 * S);
        ledger.accepted(90 * S, 90 * S + 1);
        assert_eq!(ledger.whole().no_accept, wait(20 * S, 23 * S));
        assert_eq!(ledger.owed(), 0);
    }

    #[test]
    fn a_send_that_is_made_due_late_does_not_reach_back_over_an_accept() {
        let mut ledger = Ledger::default();
        ledger.due(0);
        ledger.accepted(0, 500 * MS);
        ledger.due(100 * MS);
        ledger.accepted(100 * MS, 550 * MS);
        assert_eq!(ledger.whole().no_accept, wait(0, 500 * MS));
        assert_eq!(ledger.after(&[501 * MS])[1].no_accept, wait(500 * MS, 550 * MS));
    }

    #[test]
    fn a_mark_before_the_first_send_has_the_whole_load() {
        let mut ledger = Ledger::default();
        ledger.due(3 * S);
        ledger.accepted(3 * S, 4 * S);
        let whole =
            Waits { sends: 1, accepted: 1, no_accept: wait(3 * S, 4 * S), ack: wait(3 * S, 4 * S), ..Waits::default() };
        assert_eq!(ledger.after(&[S]), [Waits::default(), whole]);
        assert_eq!(ledger.after(&[9 * S]), [whole, Waits::default()]);
    }

    #[test]
    fn of_two_marks_at_once_the_later_one_has_all() {
        let ledger = run(10 * S, &[wait(4 * S, 6 * S)]);
        let [before, first, second] = ledger.after(&[4 * S, 4 * S])[..] else { panic!("three stretches") };
        assert_eq!((before.sends, first), (80, Waits::default()));
        assert_eq!((second.sends, second.no_accept), (120, wait(4 * S, 6 * S)));
    }

    #[test]
    fn long_waits_that_began_in_one_slot_have_one_owner() {
        // The slot keeps one of them, so no mark may divide them: this one would, by a second after their own beginnings.
        let marks = [3 * S + 50 * MS];
        let owners = [wait(2 * S + 10 * MS, 9 * S), wait(2 * S + 90 * MS, 8 * S)].map(|wait| wait.owner(&marks));
        assert_eq!(owners, [0, 0]);
    }

    #[test]
    fn a_message_that_claims_to_be_of_the_future_takes_no_room() {
        let mut ledger = Ledger::default();
        ledger.delivered(u64::MAX, 5);
        assert_eq!(ledger.slots.len(), 0);
    }
}
