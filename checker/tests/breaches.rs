//! One honest story, and one spoiled copy of it for every breach: each is caught by its own name.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod common;

use checker::{AskId, ClientId, Event, Fact, Kind, Listed, Reader, Step};
use common::{Op, World, judge, room, user};
use schemas::message::MemberChange;
use schemas::{EventId, Seq, SessionId};
use uuid::Uuid;

/// Three people in a room. Seqs: 1 created, 2–4 joins, 5 and 6 by person 0 over one socket, 7 by person 1; person 2 is
/// away after 5 and comes back with cursor 5 for 6 and 7; person 2's own 8 is accepted there.
fn story() -> Vec<Step> {
    let mut world = World::new();
    let everyone = |world: &mut World| (0..3).for_each(|who| world.apply(Op::Pump { who }));
    world.apply(Op::Send { who: 0, room: 0 });
    everyone(&mut world);
    world.apply(Op::Drop { who: 2 });
    world.apply(Op::Send { who: 0, room: 0 });
    world.apply(Op::Send { who: 1, room: 0 });
    everyone(&mut world);
    world.apply(Op::Return { who: 2 });
    world.apply(Op::Send { who: 2, room: 0 });
    everyone(&mut world);
    world.finish()
}

const A: ClientId = ClientId(0);
const B: ClientId = ClientId(1);
const C: ClientId = ClientId(2);

/// Where `client` got `seq` as an event.
fn delivered(steps: &[Step], client: ClientId, seq: u64) -> usize {
    let found = steps.iter().position(|step| {
        matches!(step, Step::Delivered { client: to, event } if *to == client && event.seq == Seq(seq) && event.room == room(0))
    });
    found.unwrap()
}

/// Where `client` was told that its message stands at `seq`.
fn accepted(steps: &[Step], client: ClientId, seq: u64) -> usize {
    let found = steps.iter().position(
        |step| matches!(step, Step::Accepted { client: Some(to), seq: at, .. } if *to == client && *at == Seq(seq)),
    );
    found.unwrap()
}

fn event(steps: &mut [Step], client: ClientId, seq: u64) -> &mut Event {
    let at = delivered(steps, client, seq);
    match &mut steps[at] {
        Step::Delivered { event, .. } => event,
        _ => unreachable!(),
    }
}

fn audited(steps: &mut [Step], mut each: impl FnMut(&mut Vec<Event>)) {
    for step in steps {
        if let Step::Page { reader: Reader::Audit(_), room: of, events, .. } = step
            && *of == room(0)
        {
            each(events);
        }
    }
}

/// The head of history with it, so that only what is missing above it is missing.
fn cut_history(steps: &mut Vec<Step>, after: u64) {
    steps.retain(|step| !matches!(step, Step::Receipt { .. } | Step::ReceiptShown { .. } | Step::Rooms { .. }));
    for step in steps {
        if let Step::Page { reader: Reader::Audit(_), room: of, head_seq, events, .. } = step
            && *of == room(0)
        {
            *head_seq = Seq(after);
            events.retain(|event| event.seq <= Seq(after));
        }
    }
}

fn forged(event: Event) -> Event {
    let fact = Fact::Message { sender: user(0), body: Some(99), client_msg_id: None };
    Event { id: EventId(Uuid::from_u128(99)), fact, ..event }
}

/// The kinds that the spoiled story is charged with.
fn charges(spoil: impl FnOnce(&mut Vec<Step>)) -> Vec<Kind> {
    let mut steps = story();
    spoil(&mut steps);
    judge(&steps).counts.into_keys().collect()
}

#[test]
fn the_story_itself_is_clean() {
    assert_eq!(charges(|_| {}), []);
}

#[test]
fn an_accepted_message_that_history_lacks_is_lost() {
    let kinds = charges(|steps| cut_history(steps, 7));
    assert_eq!(kinds, [Kind::Lost, Kind::ReadWentBack]);
}

#[test]
fn a_connected_socket_that_never_gets_the_newest_is_owed_it() {
    let kinds = charges(|steps| {
        let at = delivered(steps, B, 8);
        steps.remove(at);
    });
    assert_eq!(kinds, [Kind::Undelivered]);
}

#[test]
fn one_client_msg_id_at_two_seqs_acted_twice() {
    let twice = |steps: &mut Vec<Step>| {
        let at = delivered(steps, B, 8);
        let Step::Delivered { event, .. } = &steps[at] else { unreachable!() };
        let again = Event { seq: Seq(9), id: EventId(Uuid::from_u128(99)), ..*event };
        steps.insert(at + 1, Step::Delivered { client: B, event: again });
    };
    assert!(charges(twice).contains(&Kind::ActedTwice));
    let told_twice = |steps: &mut Vec<Step>| {
        let at = accepted(steps, A, 6);
        let mut again = steps[at].clone();
        if let Step::Accepted { seq, duplicate, .. } = &mut again {
            (*seq, *duplicate) = (Seq(7), true);
        }
        steps.insert(at + 1, again);
    };
    assert!(charges(told_twice).contains(&Kind::ActedTwice));
}

#[test]
fn one_seq_twice_on_a_socket_is_doubled() {
    let kinds = charges(|steps| {
        let at = delivered(steps, B, 5);
        steps.insert(at, steps[at].clone());
    });
    assert_eq!(kinds, [Kind::Doubled]);
}

#[test]
fn what_is_below_the_resume_cursor_comes_again_as_redelivered() {
    let kinds = charges(|steps| {
        let again = steps[delivered(steps, C, 5)].clone();
        let at = delivered(steps, C, 6);
        steps.insert(at, again);
    });
    assert_eq!(kinds, [Kind::Redelivered]);
}

#[test]
fn two_events_swapped_are_out_of_order() {
    let kinds = charges(|steps| {
        let five = steps[delivered(steps, B, 5)].clone();
        let six = delivered(steps, B, 6);
        steps.insert(six + 1, five);
        let at = delivered(steps, B, 5);
        steps.remove(at);
    });
    assert_eq!(kinds, [Kind::OutOfOrder]);
}

#[test]
fn an_event_left_out_is_a_hole() {
    let kinds = charges(|steps| {
        let at = delivered(steps, B, 6);
        steps.remove(at);
    });
    assert_eq!(kinds, [Kind::Hole]);
}

#[test]
fn an_event_left_out_where_a_stream_resumes_is_a_hole() {
    let first_after = charges(|steps| {
        let at = delivered(steps, C, 6);
        steps.remove(at);
    });
    assert_eq!(first_after, [Kind::Hole]);
    let last_before = charges(|steps| {
        let at = delivered(steps, C, 5);
        steps.remove(at);
    });
    assert_eq!(last_before, [Kind::Hole]);
}

#[test]
fn a_newcomers_stream_without_the_own_join_is_a_hole() {
    let kinds = charges(|steps| {
        let at = delivered(steps, B, 3);
        steps.remove(at);
    });
    assert_eq!(kinds, [Kind::Hole]);
}

#[test]
fn a_newcomers_stream_with_what_was_before_starts_early() {
    let kinds = charges(|steps| {
        let at = delivered(steps, B, 3);
        let earlier = *event(steps, A, 2);
        steps.insert(at, Step::Delivered { client: B, event: earlier });
    });
    assert_eq!(kinds, [Kind::StartsEarly]);
}

#[test]
fn what_nobody_sent_is_a_phantom_live_and_in_history() {
    let live = |steps: &mut Vec<Step>| {
        let last = *event(steps, B, 8);
        steps.push(Step::Delivered { client: B, event: forged(Event { seq: Seq(9), ..last }) });
    };
    assert_eq!(charges(live), [Kind::Phantom]);
    let in_history = |steps: &mut Vec<Step>| {
        audited(steps, |events| {
            if let Some(last) = events.last().copied().filter(|last| last.seq == Seq(8)) {
                events.push(forged(Event { seq: Seq(9), ..last }));
            }
        });
    };
    assert!(charges(in_history).contains(&Kind::Phantom));
}

#[test]
fn a_changed_content_is_a_wrong_body() {
    let kinds = charges(|steps| {
        if let Fact::Message { body: Some(body), .. } = &mut event(steps, B, 5).fact {
            *body ^= 1;
        }
    });
    assert_eq!(kinds, [Kind::WrongBody]);
}

#[test]
fn a_content_changed_before_it_was_stored_is_a_wrong_body_too() {
    let kinds = charges(|steps| {
        let spoil = |event: &mut Event| {
            if let Event { seq: Seq(8), fact: Fact::Message { body: Some(body), .. }, .. } = event {
                *body = 77;
            }
        };
        audited(steps, |events| events.iter_mut().for_each(spoil));
        steps.iter_mut().for_each(|step| {
            if let Step::Delivered { event, .. } = step {
                spoil(event);
            }
        });
    });
    assert!(kinds.contains(&Kind::WrongBody), "{kinds:?}");
}

#[test]
fn one_seq_with_two_ids_is_reused() {
    let kinds = charges(|steps| event(steps, B, 5).id = EventId(Uuid::from_u128(99)));
    assert_eq!(kinds, [Kind::SeqReused]);
}

#[test]
fn one_seq_with_two_messages_is_reused() {
    let kinds = charges(|steps| {
        let five = *event(steps, B, 5);
        *event(steps, B, 6) = Event { seq: Seq(6), ..five };
    });
    assert!(kinds.contains(&Kind::SeqReused), "{kinds:?}");
}

#[test]
fn history_that_shows_another_id_or_content_differs() {
    let id = charges(|steps| {
        audited(steps, |events| {
            events.iter_mut().filter(|event| event.seq == Seq(6)).for_each(|event| event.id = EventId::NIL);
        });
    });
    assert!(id.contains(&Kind::HistoryDiffers), "{id:?}");
    let content = charges(|steps| {
        audited(steps, |events| {
            for event in events.iter_mut().filter(|event| event.seq == Seq(6)) {
                event.fact = forged(*event).fact;
            }
        });
    });
    assert!(content.contains(&Kind::HistoryDiffers), "{content:?}");
    let time = charges(|steps| {
        audited(steps, |events| events.iter_mut().filter(|event| event.seq == Seq(6)).for_each(|event| event.at = 1));
    });
    assert!(time.contains(&Kind::HistoryDiffers), "{time:?}");
}

#[test]
fn what_was_delivered_but_not_accepted_must_be_in_history() {
    let kinds = charges(|steps| {
        let at = accepted(steps, C, 8);
        steps.remove(at);
        cut_history(steps, 7);
    });
    assert!(kinds.contains(&Kind::NotInHistory) && !kinds.contains(&Kind::Lost), "{kinds:?}");
}

#[test]
fn a_seq_left_out_of_history_is_a_hole_there() {
    let kinds = charges(|steps| audited(steps, |events| events.retain(|event| event.seq != Seq(3))));
    assert!(kinds.contains(&Kind::HistoryHole), "{kinds:?}");
    let page = charges(|steps| audited(steps, Vec::clear));
    assert!(page.contains(&Kind::HistoryHole), "{page:?}");
}

#[test]
fn a_seq_twice_in_history_is_disordered() {
    let kinds = charges(|steps| audited(steps, |events| events.push(events[events.len() - 1])));
    assert_eq!(kinds, [Kind::HistoryDisordered]);
}

#[test]
fn accepted_after_a_later_event_is_misplaced() {
    let kinds = charges(|steps| {
        let (own, next) = (accepted(steps, A, 6), delivered(steps, A, 7));
        steps.swap(own, next);
    });
    assert_eq!(kinds, [Kind::AcceptedMisplaced]);
}

#[test]
fn accepted_before_an_earlier_event_is_misplaced() {
    let kinds = charges(|steps| {
        let own = accepted(steps, C, 8);
        let own = steps.remove(own);
        // Person 2 sends at once on coming back, and is told before the 7 that it still misses.
        let sending = steps.iter().rposition(|step| matches!(step, Step::Sending { .. })).unwrap();
        let sending = steps.remove(sending);
        let at = delivered(steps, C, 7);
        steps.splice(at..at, [sending, own]);
    });
    assert_eq!(kinds, [Kind::AcceptedMisplaced]);
}

#[test]
fn the_own_message_in_place_of_accepted_is_misplaced() {
    let kinds = charges(|steps| {
        let seen = *event(steps, B, 6);
        let at = accepted(steps, A, 6);
        steps[at] = Step::Delivered { client: A, event: seen };
    });
    assert_eq!(kinds, [Kind::AcceptedMisplaced]);
}

#[test]
fn an_outcome_that_another_socket_asked_for_is_unasked() {
    let kinds = charges(|steps| {
        let at = accepted(steps, A, 6);
        let mut other = steps[at].clone();
        if let Step::Accepted { client, .. } = &mut other {
            *client = Some(B);
        }
        let at = delivered(steps, B, 6);
        steps[at] = other;
    });
    assert_eq!(kinds, [Kind::OutcomeUnasked]);
}

#[test]
fn an_outcome_of_what_was_never_sent_is_unasked() {
    let kinds = charges(|steps| {
        let at = steps.iter().position(|step| matches!(step, Step::Sending { .. })).unwrap();
        steps.remove(at);
    });
    assert!(kinds.contains(&Kind::OutcomeUnasked), "{kinds:?}");
}

#[test]
fn sends_placed_otherwise_than_sent_are_disordered() {
    let mut world = World::new();
    world.apply(Op::Send { who: 0, room: 0 });
    world.apply(Op::Send { who: 0, room: 0 });
    let mut steps = world.finish();
    assert!(judge(&steps).is_clean());
    let first = steps.iter().position(|step| matches!(step, Step::Sending { .. })).unwrap();
    steps.swap(first, first + 1);
    let kinds: Vec<Kind> = judge(&steps).counts.into_keys().collect();
    assert_eq!(kinds, [Kind::SendDisordered]);
}

#[test]
fn what_was_rejected_for_good_must_not_be_stored() {
    let kinds = charges(|steps| {
        let at = accepted(steps, C, 8);
        let Step::Accepted { user, client, room, client_msg_id, .. } = steps[at] else { unreachable!() };
        let code = schemas::outcome::RejectCode::TooLarge;
        steps[at] = Step::Rejected { user, client, room, client_msg_id, code };
    });
    assert!(kinds.contains(&Kind::RejectedStored), "{kinds:?}");
}

#[test]
fn an_unknown_send_may_be_stored_or_not() {
    for stored in [false, true] {
        let mut world = World::new();
        world.apply(Op::SendLost { who: 1, room: 0, stored });
        let mut steps = world.finish();
        // The retry and what came of it never happened.
        let retry = steps.iter().rposition(|step| matches!(step, Step::Sending { .. })).unwrap();
        if stored {
            steps.drain(retry..=retry + 1);
            let verdict = judge(&steps);
            assert!(verdict.is_clean(), "{:?}", verdict.breaches);
            assert_eq!((verdict.unknown_stored, verdict.unknown_absent), (1, 0));
        } else {
            let cut = |step: &Step| match step {
                Step::Delivered { event, .. } => event.seq <= Seq(4),
                Step::Accepted { .. } => false,
                _ => true,
            };
            steps.retain(cut);
            cut_history(&mut steps, 4);
            let verdict = judge(&steps);
            assert!(verdict.is_clean(), "{:?}", verdict.breaches);
            assert_eq!((verdict.unknown_stored, verdict.unknown_absent), (0, 1));
        }
    }
}

#[test]
fn live_before_what_was_missed_is_early() {
    let kinds = charges(|steps| {
        let live = steps.iter().rposition(|step| matches!(step, Step::Live { client } if *client == C)).unwrap();
        let live = steps.remove(live);
        let at = delivered(steps, C, 6);
        steps.insert(at, live);
    });
    assert_eq!(kinds, [Kind::LiveEarly]);
}

#[test]
fn a_gap_over_nothing_is_false() {
    let kinds = charges(|steps| {
        let (from, to) = (Seq(9), Seq(12));
        steps.push(Step::Gap { client: B, room: room(0), from, to, readable: true });
    });
    assert!(kinds.contains(&Kind::FalseGap), "{kinds:?}");
}

#[test]
fn a_gap_that_hides_what_may_be_read_is_false() {
    let kinds = charges(|steps| {
        let at = delivered(steps, B, 6);
        steps[at] = Step::Gap { client: B, room: room(0), from: Seq(6), to: Seq(6), readable: false };
    });
    assert_eq!(kinds, [Kind::FalseGap]);
}

#[test]
fn a_readable_gap_that_history_does_not_fill_is_a_breach() {
    let gap = |steps: &mut Vec<Step>| {
        let at = delivered(steps, B, 6);
        let event = *event(steps, A, 7);
        steps[at] = Step::Gap { client: B, room: room(0), from: Seq(6), to: Seq(6), readable: true };
        (at, event)
    };
    let unfilled = charges(|steps| {
        gap(steps);
    });
    assert_eq!(unfilled, [Kind::GapUnfilled]);
    let filled = charges(|steps| {
        let six = *event(steps, B, 6);
        let (at, _) = gap(steps);
        let (ask, reader, room) = (AskId(0), Reader::Refill(B), room(0));
        let page =
            Step::Page { ask, reader, room, after: Seq(5), first_seq: Seq(1), head_seq: Seq(7), events: vec![six] };
        steps.insert(at + 1, page);
    });
    assert_eq!(filled, []);
}

#[test]
fn accepted_may_stand_outside_the_sequence_on_either_side_of_its_gap() {
    let mut world = World::new();
    (0..8).for_each(|_| world.apply(Op::Send { who: 0, room: 0 }));
    let mut steps = world.finish();
    assert!(judge(&steps).is_clean());
    let gap = steps.iter().position(|step| matches!(step, Step::Gap { client, .. } if *client == A)).unwrap();
    // Seqs 5 to 11 are in the gap; 12 comes at its place.
    for at in gap..gap + 7 {
        assert!(matches!(steps[at + 1], Step::Accepted { .. }));
        steps.swap(at, at + 1);
        let verdict = judge(&steps);
        assert!(verdict.is_clean(), "{:?}", verdict.breaches);
    }
}

#[test]
fn what_comes_after_the_own_going_is_leaked() {
    let mut world = World::new();
    world.apply(Op::Leave { who: 1, room: 0 });
    world.apply(Op::Send { who: 0, room: 0 });
    let mut steps = world.finish();
    assert!(judge(&steps).is_clean());
    let six = *event(&mut steps, C, 6);
    let at = delivered(&steps, B, 5);
    steps.insert(at + 1, Step::Delivered { client: B, event: six });
    let kinds: Vec<Kind> = judge(&steps).counts.into_keys().collect();
    assert_eq!(kinds, [Kind::ReadWentBack, Kind::Leaked], "history ends before it, as it should");
}

#[test]
fn who_went_and_came_back_hears_of_the_time_between_by_a_gap() {
    let mut world = World::new();
    world.apply(Op::Leave { who: 1, room: 0 });
    world.apply(Op::Pump { who: 1 });
    world.apply(Op::Send { who: 0, room: 0 });
    world.apply(Op::Add { who: 1, room: 0 });
    let mut steps = world.finish();
    assert!(judge(&steps).is_clean());
    let six = *event(&mut steps, C, 6);
    let gap = steps.iter().position(|step| matches!(step, Step::Gap { client, .. } if *client == B)).unwrap();
    steps[gap] = Step::Delivered { client: B, event: six };
    let kinds: Vec<Kind> = judge(&steps).counts.into_keys().collect();
    assert_eq!(kinds, [Kind::Leaked]);
}

#[test]
fn a_breach_names_room_seq_socket_and_what_was_expected() {
    let mut steps = story();
    let at = delivered(&steps, B, 6);
    steps.remove(at);
    let session = SessionId(Uuid::from_u128(101));
    let text = judge(&steps).breaches[0].to_string();
    let start = format!("hole: room {} seq 6 socket {session} user {}: ", room(0), user(1));
    assert!(text.starts_with(&start), "{text}");
}

#[test]
fn membership_changes_take_seqs_as_well() {
    let kinds = charges(|steps| {
        let at = delivered(steps, B, 4);
        let Fact::Member { change, .. } = event(steps, B, 4).fact else { unreachable!() };
        assert_eq!(change, MemberChange::Added);
        steps.remove(at);
    });
    assert_eq!(kinds, [Kind::Hole]);
}

#[test]
fn who_comes_back_without_a_cursor_goes_on_after_the_told_watermark() {
    let mut world = World::new();
    world.apply(Op::Refuse { who: 1, room: 0 });
    world.apply(Op::Send { who: 0, room: 0 });
    world.apply(Op::Receipt { who: 1, room: 0 });
    world.apply(Op::Drop { who: 1 });
    world.apply(Op::Send { who: 0, room: 0 });
    let mut steps = world.finish();
    let hello = steps.iter().rposition(|step| matches!(step, Step::Hello { client, .. } if *client == B)).unwrap();
    if let Step::Hello { resume, .. } = &mut steps[hello] {
        resume.clear();
    }
    steps.retain(|step| !matches!(step, Step::Delivered { client, event } if *client == B && event.room == room(1)));
    let kinds = |steps: &[Step]| judge(steps).counts.into_keys().collect::<Vec<_>>();
    assert_eq!(kinds(&steps), [Kind::Undelivered], "the other room was cut out of this story");
    let at = delivered(&steps, B, 6);
    let mut later = *event(&mut steps, B, 6);
    later.seq = Seq(7);
    steps[at] = Step::Delivered { client: B, event: later };
    assert!(kinds(&steps).contains(&Kind::Hole));
}

/// Person 1's list of rooms, and where it stands.
fn list(steps: &mut [Step]) -> &mut Vec<Listed> {
    let found = steps.iter_mut().find_map(|step| match step {
        Step::Rooms { user: whose, rooms, .. } if *whose == user(1) => Some(rooms),
        _ => None,
    });
    found.unwrap()
}

/// A read of history by person 1 right after `at`, that ends with `head`.
fn look(steps: &mut Vec<Step>, at: usize, head: u64) {
    let (ask, reader, room) = (AskId(0), Reader::Look(user(1)), room(0));
    let page =
        Step::Page { ask, reader, room, after: Seq(head), first_seq: Seq(1), head_seq: Seq(head), events: vec![] };
    steps.splice(at + 1..at + 1, [Step::Asking { ask, user: user(1) }, page]);
}

#[test]
fn what_was_rejected_for_good_and_is_shown_all_the_same_is_an_aborted_read() {
    let kinds = charges(|steps| {
        cut_history(steps, 7);
        let at = accepted(steps, C, 8);
        let Step::Accepted { user, client, room, client_msg_id, .. } = steps[at] else { unreachable!() };
        let code = schemas::outcome::RejectCode::TooLarge;
        steps[at] = Step::Rejected { user, client, room, client_msg_id, code };
    });
    assert!(kinds.contains(&Kind::AbortedRead) && !kinds.contains(&Kind::RejectedStored), "{kinds:?}");
}

#[test]
fn history_without_the_own_accepted_message_is_a_write_unread() {
    // Person 1's own is 7; what they ask for before they are told may lack it.
    for (told_before, expected) in [(true, vec![Kind::OwnWriteUnread]), (false, vec![])] {
        let kinds = charges(|steps| {
            let at = accepted(steps, B, 7);
            look(steps, if told_before { at } else { at - 1 }, 6);
        });
        assert_eq!(kinds, expected);
    }
}

#[test]
fn history_that_ends_before_what_was_seen_went_back() {
    for (head, expected) in [(5, vec![Kind::ReadWentBack]), (6, vec![])] {
        assert_eq!(charges(|steps| look(steps, delivered(steps, B, 6), head)), expected);
    }
}

#[test]
fn history_that_ends_before_what_history_showed_went_back() {
    let kinds = charges(|steps| {
        let at = delivered(steps, B, 5);
        look(steps, at, 5);
        look(steps, at, 6);
    });
    assert_eq!(kinds, [Kind::ReadWentBack]);
}

#[test]
fn a_list_without_a_room_that_its_reader_is_in_lacks_it() {
    let kinds = charges(|steps| list(steps).truncate(1));
    assert!(kinds.contains(&Kind::RoomUnlisted), "{kinds:?}");
}

#[test]
fn a_list_with_a_room_that_its_reader_never_was_in_leaks_it() {
    let kinds = charges(|steps| {
        let rooms = list(steps);
        rooms.push(Listed { room: room(9), ..rooms[0] });
    });
    assert_eq!(kinds, [Kind::HistoryLeaked]);
}

#[test]
fn a_list_that_shows_an_old_newest_event_went_back() {
    assert_eq!(charges(|steps| list(steps)[0].head_seq = Seq(7)), [Kind::ReadWentBack]);
}

#[test]
fn history_shows_nothing_from_after_the_own_going() {
    let mut world = World::new();
    world.apply(Op::Leave { who: 1, room: 0 });
    world.apply(Op::Send { who: 0, room: 0 });
    let mut steps = world.finish();
    assert!(judge(&steps).is_clean());
    let six = *event(&mut steps, C, 6);
    for step in &mut steps {
        if let Step::Page { reader: Reader::Audit(who), room: of, head_seq, events, .. } = step
            && (*who, *of, events.last().map(|event| event.seq)) == (user(1), room(0), Some(Seq(5)))
        {
            *head_seq = Seq(6);
            events.push(six);
        }
    }
    assert_eq!(judge(&steps).counts.into_keys().collect::<Vec<_>>(), [Kind::HistoryLeaked]);
}

#[test]
fn a_secretive_room_shows_nothing_from_before_the_own_coming_and_everything_since() {
    let secretive = |steps: &mut Vec<Step>| steps.insert(0, Step::Secretive { room: room(0) });
    let from_own_coming = |steps: &mut Vec<Step>, left_out: u64| {
        secretive(steps);
        for step in steps {
            if let Step::Page { reader: Reader::Audit(who), room: of, events, .. } = step
                && *of == room(0)
            {
                let first = if *who == user(0) { 2 } else { 3 };
                events.retain(|event| event.seq >= Seq(first) && event.seq != Seq(left_out));
            }
        }
    };
    assert!(charges(|steps| from_own_coming(steps, 0)).iter().all(|kind| *kind == Kind::NotInHistory));
    assert!(charges(|steps| from_own_coming(steps, 5)).contains(&Kind::HistoryHole));
    assert!(charges(secretive).contains(&Kind::HistoryLeaked));
}

#[test]
fn a_watermark_beyond_the_newest_event_is_past_the_head() {
    let kinds = charges(|steps| {
        let shown =
            Step::ReceiptShown { client: A, room: room(0), user: user(1), delivered_seq: Seq(9), read_seq: Seq(0) };
        steps.push(shown);
    });
    assert_eq!(kinds, [Kind::ReceiptPastHead]);
}

#[test]
fn a_watermark_beyond_what_reached_the_person_is_unfounded() {
    let mut world = World::new();
    world.apply(Op::Leave { who: 1, room: 0 });
    world.apply(Op::Send { who: 0, room: 0 });
    let mut steps = world.finish();
    let shown = |delivered_seq, read_seq| Step::ReceiptShown {
        client: A,
        room: room(0),
        user: user(1),
        delivered_seq: Seq(delivered_seq),
        read_seq: Seq(read_seq),
    };
    steps.push(shown(5, 5));
    assert!(judge(&steps).is_clean(), "their own going is the last that they get");
    steps.push(shown(5, 6));
    assert_eq!(judge(&steps).counts.into_keys().collect::<Vec<_>>(), [Kind::ReceiptUnfounded]);
}

#[test]
fn a_watermark_below_what_was_told_once_nothing_breaks_is_lost() {
    assert_eq!(charges(|steps| list(steps)[0].delivered_seq = Seq(7)), [Kind::ReceiptLost]);
    assert_eq!(charges(|steps| list(steps)[0].read_seq = Seq(7)), [Kind::ReceiptLost]);
    let before = charges(|steps| {
        steps.retain(|step| *step != Step::Calm);
        list(steps)[0].read_seq = Seq(7);
    });
    assert_eq!(before, [], "what is told while things break may be lost with whoever took it");
}

#[test]
fn every_breach_has_a_story_that_is_charged_with_it() {
    let here = include_str!("breaches.rs");
    for kind in Kind::ALL {
        assert!(here.contains(&format!("Kind::{kind:?}")), "no story is charged with {kind}");
    }
}
