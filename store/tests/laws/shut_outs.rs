//! Laws of the shut-outs.

use schemas::{Timestamp, UserId};
use store::shut_outs::{ShutOut, ShutOuts, Subject};
use uuid::Uuid;

use super::Engine;

fn entry(subject: &str, since: i64, until: i64, times: u32) -> ShutOut {
    let subject = subject.parse().unwrap_or(Subject::Account(UserId(Uuid::from_u128(1))));
    let (since, until) = (Timestamp(since), Timestamp(until));
    ShutOut { number: 0, subject, reason: "flood".into(), since, until, times, lifted_at: None }
}

const HOME: &str = "192.0.2.0/24";
const V6: &str = "2001:db8:1:2::/64";
const ADA: &str = "ada";

/// Rows without their numbers, by subject.
async fn rows<S: ShutOuts + ?Sized>(store: &S) -> Vec<ShutOut> {
    let mut rows = store.shut_outs(0).await.unwrap();
    rows.iter_mut().for_each(|row| row.number = 0);
    rows.sort_by_key(|row| row.subject);
    rows
}

pub async fn a_subject_has_its_last_shut_out_alone_whatever_the_order(engine: impl Engine) {
    let all = [
        entry(HOME, 10, 20, 1),
        entry(HOME, 30, 50, 2),
        entry(HOME, 30, 60, 2),
        entry(V6, 5, 6, 1),
        entry(ADA, 1, 2, 9),
    ];
    let store = engine.store();
    for entry in all.iter().rev() {
        store.shut_out(vec![entry.clone()]).await.unwrap();
    }
    let there = rows(&*store).await;
    assert_eq!(there, [entry(HOME, 30, 60, 2), entry(V6, 5, 6, 1), entry(ADA, 1, 2, 9)]);
    store.shut_out(all.to_vec()).await.unwrap();
    assert_eq!(rows(&*store).await, there);
}

pub async fn a_poll_sees_what_has_changed_since_the_last_one(engine: impl Engine) {
    let store = engine.store();
    store.shut_out(vec![entry(HOME, 10, 20, 1), entry(V6, 10, 20, 1)]).await.unwrap();
    let first = store.shut_outs(0).await.unwrap();
    assert!(first[0].number > 0 && first[0].number < first[1].number);
    let after = first[1].number;
    store.shut_out(vec![entry(HOME, 10, 20, 1)]).await.unwrap();
    assert_eq!(store.shut_outs(after).await.unwrap(), [], "the same again changes nothing");
    store.shut_out(vec![entry(HOME, 30, 50, 2)]).await.unwrap();
    let changed = store.shut_outs(after).await.unwrap();
    assert_eq!((changed.len(), changed[0].until), (1, Timestamp(50)));
    assert!(changed[0].number > after);
}

pub async fn what_is_lifted_does_not_come_back_by_itself(engine: impl Engine) {
    let store = engine.store();
    store.shut_out(vec![entry(HOME, 10, 90, 3), entry(V6, 10, 20, 1), entry(ADA, 10, 90, 1)]).await.unwrap();
    let after = store.shut_outs(0).await.unwrap().last().map(|row| row.number).unwrap();
    let home = HOME.parse().unwrap();
    assert_eq!(store.lift_shut_outs(Some(home), Timestamp(40)).await.unwrap(), 1);
    assert_eq!(store.lift_shut_outs(Some(home), Timestamp(41)).await.unwrap(), 0, "once");
    assert_eq!(store.lift_shut_outs(Some("198.51.100.0/24".parse().unwrap()), Timestamp(41)).await.unwrap(), 0);
    let told = store.shut_outs(after).await.unwrap();
    assert!(told.iter().all(|row| row.subject == home && row.is_lifted()) && told.len() == 1, "{told:?}");
    store.shut_out(vec![entry(HOME, 35, 95, 4)]).await.unwrap();
    let late = store.shut_outs(after).await.unwrap().pop().unwrap();
    assert!(!late.is_in_force(Timestamp(42)), "it was on its way when it was lifted");
    store.shut_out(vec![entry(HOME, 50, 60, 1)]).await.unwrap();
    let anew = store.shut_outs(after).await.unwrap().pop().unwrap();
    assert!(anew.is_in_force(Timestamp(55)) && !anew.is_in_force(Timestamp(60)));
    assert_eq!(store.lift_shut_outs(None, Timestamp(55)).await.unwrap(), 2, "the ended one does not count");
    assert!(store.shut_outs(0).await.unwrap().iter().all(|row| !row.is_in_force(Timestamp(56))));
}

pub async fn ended_shut_outs_go_and_their_numbers_are_not_given_again(engine: impl Engine) {
    let store = engine.store();
    store.shut_out(vec![entry(HOME, 10, 20, 1), entry(V6, 10, 21, 1), entry(ADA, 10, 90, 1)]).await.unwrap();
    assert_eq!(store.purge_shut_outs(Timestamp(21), 10).await.unwrap(), 1);
    assert_eq!(store.purge_shut_outs(Timestamp(90), 10).await.unwrap(), 1);
    let last = store.shut_outs(0).await.unwrap().pop().unwrap();
    assert_eq!(last.until, Timestamp(90));
    assert_eq!(store.purge_shut_outs(Timestamp(91), 10).await.unwrap(), 1);
    drop(store);
    let engine = engine.restart();
    let store = engine.store();
    store.shut_out(vec![entry(HOME, 100, 120, 1)]).await.unwrap();
    assert!(store.shut_outs(last.number).await.unwrap().len() == 1, "a poll after the last number sees it");
}
