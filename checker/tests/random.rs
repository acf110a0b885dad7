//! Random histories: honest ones pass, and every spoiled one is noticed.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod common;

use checker::{Event, Fact, Reader, Step};
use common::{CLIENTS, Op, ROOMS, World, judge};
use proptest::prelude::*;
use schemas::{EventId, Seq};
use uuid::Uuid;

fn op() -> impl Strategy<Value = Op> {
    let who = || 0..CLIENTS;
    let room = || 0..ROOMS;
    prop_oneof![
        8 => (who(), room()).prop_map(|(who, room)| Op::Send { who, room }),
        2 => (who(), room(), any::<bool>()).prop_map(|(who, room, stored)| Op::SendLost { who, room, stored }),
        1 => (who(), room()).prop_map(|(who, room)| Op::Refuse { who, room }),
        2 => who().prop_map(|who| Op::Drop { who }),
        3 => who().prop_map(|who| Op::Return { who }),
        4 => who().prop_map(|who| Op::Pump { who }),
        1 => (who(), room()).prop_map(|(who, room)| Op::Receipt { who, room }),
        1 => (who(), room()).prop_map(|(who, room)| Op::Leave { who, room }),
        1 => (who(), room()).prop_map(|(who, room)| Op::Add { who, room }),
    ]
}

fn history() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(op(), 0..60).prop_map(|ops| {
        let mut world = World::new();
        ops.into_iter().for_each(|op| world.apply(op));
        world.finish()
    })
}

/// Each makes one step wrong in a way that breaks a promise.
#[derive(Clone, Copy, Debug)]
enum Spoil {
    Drop,
    Double,
    Swap,
    Renumber,
    Corrupt,
    Forge,
    OtherId,
}

/// The steps that stand in a socket's sequence.
fn placed(step: &Step) -> Option<(checker::ClientId, schemas::RoomId)> {
    match step {
        Step::Delivered { client, event } => Some((*client, event.room)),
        Step::Accepted { client: Some(client), room, duplicate: false, .. } => Some((*client, *room)),
        _ => None,
    }
}

fn spoil_event(event: &mut Event, spoil: Spoil) {
    match spoil {
        Spoil::Renumber => event.seq = Seq(event.seq.0 + 1),
        Spoil::OtherId => event.id = EventId(Uuid::from_u128(u128::MAX)),
        _ => match &mut event.fact {
            Fact::Message { body, .. } => *body = body.map(|body| body ^ 1),
            Fact::Member { rest, .. } => *rest ^= 1,
            Fact::Other(digest) => *digest ^= 1,
        },
    }
}

/// Spoils the history at or after `at`; false where nothing fits.
fn spoil(steps: &mut Vec<Step>, at: usize, spoil: Spoil) -> bool {
    let at = at % steps.len();
    let Some(at) = (at..steps.len()).find(|index| {
        let step = &steps[*index];
        let audit = matches!(step, Step::Page { reader: Reader::Audit(_), .. });
        match spoil {
            // Whether an `accepted` inside a gap stands in the sequence does not matter: lost outcomes are allowed.
            Spoil::Drop => matches!(step, Step::Delivered { .. }) || audit,
            Spoil::Double | Spoil::Corrupt | Spoil::Forge => matches!(step, Step::Delivered { .. }) || audit,
            Spoil::Swap => {
                let next = steps.get(index + 1);
                placed(step).is_some()
                    && next.and_then(placed) == placed(step)
                    && matches!((step, next), (Step::Delivered { .. }, _) | (_, Some(Step::Delivered { .. })))
            }
            Spoil::Renumber | Spoil::OtherId => placed(step).is_some() || audit,
        }
    }) else {
        return false;
    };
    match (spoil, &mut steps[at]) {
        (Spoil::Swap, _) => steps.swap(at, at + 1),
        (Spoil::Drop, Step::Page { events, .. }) => drop(events.remove(0)),
        (Spoil::Double, Step::Page { events, .. }) => events.push(events[events.len() - 1]),
        (Spoil::Forge, Step::Page { events, head_seq, .. }) => {
            let mut forged = events[events.len() - 1];
            forged.seq = head_seq.next();
            forged.id = EventId(Uuid::from_u128(u128::MAX));
            forged.fact = Fact::Message { sender: common::user(0), body: Some(u64::MAX), client_msg_id: None };
            events.push(forged);
        }
        (_, Step::Page { events, .. }) => spoil_event(&mut events[0], spoil),
        (Spoil::Drop, _) => drop(steps.remove(at)),
        (Spoil::Double, step) => {
            let step = step.clone();
            steps.insert(at, step);
        }
        (Spoil::Forge, Step::Delivered { event, .. }) => {
            event.fact = Fact::Message { sender: common::user(0), body: Some(u64::MAX), client_msg_id: None };
        }
        (_, Step::Delivered { event, .. }) => spoil_event(event, spoil),
        (Spoil::OtherId, Step::Accepted { id, .. }) => *id = EventId(Uuid::from_u128(u128::MAX)),
        (Spoil::Renumber, Step::Accepted { seq, .. }) => *seq = Seq(seq.0 + 1),
        _ => unreachable!("picked above"),
    }
    true
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1_500) })]

    #[test]
    fn an_honest_history_passes(steps in history()) {
        let verdict = judge(&steps);
        prop_assert!(verdict.is_clean(), "{:#?}", verdict.breaches);
    }

    #[test]
    fn a_spoiled_history_is_noticed(
        steps in history(),
        at in any::<prop::sample::Index>(),
        how in prop::sample::select(vec![
            Spoil::Drop, Spoil::Double, Spoil::Swap, Spoil::Renumber, Spoil::Corrupt, Spoil::Forge, Spoil::OtherId,
        ]),
    ) {
        let mut steps = steps;
        let at = at.index(steps.len());
        prop_assume!(spoil(&mut steps, at, how));
        prop_assert!(!judge(&steps).is_clean(), "{how:?} at {at} went unnoticed: {:?}", steps.get(at));
    }
}
