//! Laws of signing keys.

use store::keys::SigningKey;

use crate::Engine;
use crate::forms::at;

fn key(n: u8) -> SigningKey {
    SigningKey { id: format!("key-{n}"), seed: [n; 32], created_at: at(i64::from(n)), retired_at: None }
}

pub async fn of_many_first_keys_one_stays(engine: impl Engine) {
    let adding: Vec<_> = (0..16)
        .map(|n| {
            let store = engine.store();
            tokio::spawn(async move { store.add_signing_key(key(n), None).await.unwrap() })
        })
        .collect();
    let stayed = engine.store().signing_keys().await;
    for added in adding {
        assert_eq!(added.await.unwrap().len(), 1);
    }
    // Whoever came first, all saw the same one from then on.
    let keys = engine.store().signing_keys().await.unwrap();
    assert_eq!(keys.len(), 1);
    assert!(stayed.unwrap().iter().all(|early| *early == keys[0]));
}

pub async fn keys_come_oldest_first_and_once_each(engine: impl Engine) {
    let store = engine.store();
    store.add_signing_key(key(5), None).await.unwrap();
    let newest = || Some(key(5).id);
    let retired = SigningKey { retired_at: Some(at(9)), ..key(2) };
    store.add_signing_key(retired.clone(), newest()).await.unwrap();
    let all = store.add_signing_key(SigningKey { seed: [0; 32], ..key(5) }, newest()).await.unwrap();
    assert_eq!(all, [retired, key(5)]);
    assert_eq!(store.signing_keys().await.unwrap(), all);
}

pub async fn of_many_next_keys_one_stays(engine: impl Engine) {
    engine.store().add_signing_key(key(1), None).await.unwrap();
    let adding: Vec<_> = (2..18)
        .map(|n| {
            let store = engine.store();
            tokio::spawn(async move { store.add_signing_key(key(n), Some(key(1).id)).await.unwrap() })
        })
        .collect();
    for added in adding {
        assert_eq!(added.await.unwrap().len(), 2);
    }
    assert_eq!(engine.store().signing_keys().await.unwrap().len(), 2);
}

pub async fn a_key_is_retired_at_the_earliest_time_that_anybody_said(engine: impl Engine) {
    let store = engine.store();
    store.add_signing_key(key(1), None).await.unwrap();
    for (said, holds) in [(20, 20), (30, 20), (10, 10)] {
        let keys = store.retire_signing_key(key(1).id, at(said)).await.unwrap();
        assert_eq!(keys, [SigningKey { retired_at: Some(at(holds)), ..key(1) }]);
    }
    assert_eq!(store.retire_signing_key(key(2).id, at(1)).await.unwrap().len(), 1, "nobody's");
    assert_eq!(store.signing_keys().await.unwrap()[0].retired_at, Some(at(10)));
}

pub async fn keys_are_removed_once_they_have_been_retired_for_long_but_for_the_newest(engine: impl Engine) {
    let store = engine.store();
    for n in 1..=4 {
        store.add_signing_key(key(n), (n > 1).then(|| key(n - 1).id)).await.unwrap();
    }
    store.retire_signing_key(key(1).id, at(10)).await.unwrap();
    store.retire_signing_key(key(2).id, at(20)).await.unwrap();
    store.retire_signing_key(key(4).id, at(10)).await.unwrap();
    let ids = |keys: Vec<SigningKey>| keys.into_iter().map(|key| key.id).collect::<Vec<_>>();
    assert_eq!(store.remove_retired_keys(at(10)).await.unwrap().len(), 4, "not yet");
    let left = [key(2).id, key(3).id, key(4).id];
    assert_eq!(ids(store.remove_retired_keys(at(11)).await.unwrap()), left);
    assert_eq!(ids(store.remove_retired_keys(at(11)).await.unwrap()), left, "again");
    assert_eq!(ids(store.remove_retired_keys(at(100)).await.unwrap()), [key(3).id, key(4).id]);
    assert_eq!(store.signing_keys().await.unwrap().len(), 2);
    assert_eq!(
        store.add_signing_key(key(5), Some(key(4).id)).await.unwrap().len(),
        3,
        "the next one follows the newest"
    );
    assert_eq!(ids(store.remove_retired_keys(at(100)).await.unwrap()), [key(3).id, key(5).id]);
}
