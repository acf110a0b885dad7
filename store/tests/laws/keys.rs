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
            tokio::spawn(async move { store.add_signing_key(key(n), true).await.unwrap() })
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
    store.add_signing_key(key(5), false).await.unwrap();
    let retired = SigningKey { retired_at: Some(at(9)), ..key(2) };
    store.add_signing_key(retired.clone(), false).await.unwrap();
    let all = store.add_signing_key(SigningKey { seed: [0; 32], ..key(5) }, false).await.unwrap();
    assert_eq!(all, [retired, key(5)]);
    assert_eq!(store.signing_keys().await.unwrap(), all);
}
