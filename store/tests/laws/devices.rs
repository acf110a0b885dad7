//! Laws of devices, refresh tokens and revocations.

use schemas::Timestamp;
use store::devices::{Device, RefreshToken, Revocation, RevocationReason, Rotation, TokenHash};

use crate::Engine;
use crate::forms::{at, device, user};

fn phone(n: u128, owner: u128, created: i64) -> Device {
    let (created_at, last_seen) = (at(created), at(created));
    Device { id: device(n), user: user(owner), name: format!("Phone {n}"), created_at, last_seen, revoked: false }
}

fn token(n: u8, of: u128, owner: u128) -> RefreshToken {
    RefreshToken { hash: hash(n), device: device(of), user: user(owner), expires_at: at(1_000), spent: None }
}

fn hash(n: u8) -> TokenHash {
    [n; 32]
}

const NEVER: Timestamp = Timestamp(1_000_000);

pub async fn a_person_sees_their_live_devices_newest_first(engine: impl Engine) {
    let store = engine.store();
    store.create_device(phone(1, 1, 10), token(1, 1, 1)).await.unwrap();
    store.create_device(phone(2, 1, 20), token(2, 2, 1)).await.unwrap();
    store.create_device(phone(3, 1, 15), token(3, 3, 1)).await.unwrap();
    store.create_device(phone(4, 2, 30), token(4, 4, 2)).await.unwrap();
    store.revoke_device(user(1), device(3), at(40), RevocationReason::SignedOut).await.unwrap();
    assert_eq!(store.devices_of(user(1)).await.unwrap(), [phone(2, 1, 20), phone(1, 1, 10)]);
    assert_eq!(store.device(device(4)).await.unwrap(), Some(phone(4, 2, 30)));
    assert_eq!(store.device(device(3)).await.unwrap(), Some(Device { revoked: true, ..phone(3, 1, 15) }));
    assert_eq!(store.device(device(9)).await.unwrap(), None);
}

pub async fn the_same_sign_in_again_changes_nothing(engine: impl Engine) {
    let store = engine.store();
    store.create_device(phone(1, 1, 10), token(1, 1, 1)).await.unwrap();
    store.rotate(hash(1), hash(2), NEVER, at(20)).await.unwrap();
    store.create_device(phone(1, 1, 10), token(1, 1, 1)).await.unwrap();
    assert!(matches!(store.rotate(hash(1), hash(3), NEVER, at(21)).await.unwrap(), Rotation::Spent { .. }));
    assert_eq!(store.device(device(1)).await.unwrap(), Some(Device { last_seen: at(20), ..phone(1, 1, 10) }));
}

pub async fn a_rotated_token_is_spent_and_its_successor_live(engine: impl Engine) {
    let store = engine.store();
    let rotated = Rotation::Rotated { user: user(1), device: device(1) };
    store.create_device(phone(1, 1, 10), token(1, 1, 1)).await.unwrap();
    assert_eq!(store.rotate(hash(1), hash(2), at(2_000), at(20)).await.unwrap(), rotated);
    let spent = RefreshToken { spent: Some((at(20), hash(2))), ..token(1, 1, 1) };
    assert_eq!(store.rotate(hash(1), hash(3), NEVER, at(30)).await.unwrap(), Rotation::Spent { token: spent });
    let successor = RefreshToken { hash: hash(2), expires_at: at(2_000), ..token(1, 1, 1) };
    assert_eq!(store.refresh_token(hash(2)).await.unwrap(), Some(successor));
    assert_eq!(store.refresh_token(hash(3)).await.unwrap(), None);
    // The loser's successor was never made, the winner's lives until its own time.
    assert_eq!(store.rotate(hash(3), hash(4), NEVER, at(30)).await.unwrap(), Rotation::Unknown);
    assert_eq!(store.rotate(hash(2), hash(5), NEVER, at(2_000)).await.unwrap(), rotated);
    assert_eq!(store.device(device(1)).await.unwrap().unwrap().last_seen, at(2_000));
}

pub async fn of_many_rotations_of_one_token_one_wins(engine: impl Engine) {
    let store = engine.store();
    store.create_device(phone(1, 1, 10), token(1, 1, 1)).await.unwrap();
    let rotations: Vec<_> = (100..150)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { (hash(n), store.rotate(hash(1), hash(n), NEVER, at(20)).await.unwrap()) })
        })
        .collect();
    let (mut won, mut told) = (Vec::new(), Vec::new());
    for rotation in rotations {
        match rotation.await.unwrap() {
            (next, Rotation::Rotated { .. }) => won.push(next),
            (_, Rotation::Spent { token }) => told.push(token.spent.unwrap().1),
            (_, other) => panic!("{other:?}"),
        }
    }
    assert_eq!(won.len(), 1);
    assert_eq!(told, vec![won[0]; 49]);
}

pub async fn a_token_past_its_time_or_of_a_revoked_device_is_dead(engine: impl Engine) {
    let store = engine.store();
    store.create_device(phone(1, 1, 10), token(1, 1, 1)).await.unwrap();
    store.create_device(phone(2, 1, 10), token(2, 2, 1)).await.unwrap();
    assert_eq!(store.rotate(hash(1), hash(9), NEVER, at(1_001)).await.unwrap(), Rotation::Dead);
    assert!(matches!(store.rotate(hash(2), hash(3), NEVER, at(20)).await.unwrap(), Rotation::Rotated { .. }));
    store.revoke_device(user(1), device(2), at(30), RevocationReason::Reused).await.unwrap();
    // The whole family, the spent one too: its grace ends with it.
    assert_eq!(store.rotate(hash(2), hash(9), NEVER, at(31)).await.unwrap(), Rotation::Dead);
    assert_eq!(store.rotate(hash(3), hash(9), NEVER, at(31)).await.unwrap(), Rotation::Dead);
    assert_eq!(store.rotate(hash(9), hash(8), NEVER, at(31)).await.unwrap(), Rotation::Unknown);
}

pub async fn a_revocation_is_entered_once_and_in_order(engine: impl Engine) {
    let store = engine.store();
    let revoke = async |n: u128, time, reason| store.revoke_device(user(1), device(n), at(time), reason).await.unwrap();
    for n in 1..=3 {
        store.create_device(phone(n, 1, 10), token(n as u8, n, 1)).await.unwrap();
    }
    revoke(1, 20, RevocationReason::SignedOut).await;
    revoke(2, 20, RevocationReason::Banned).await;
    revoke(1, 30, RevocationReason::Reused).await;
    revoke(3, 30, RevocationReason::Reused).await;
    let all = store.revocations(0).await.unwrap();
    let entries: Vec<_> = all.iter().map(|entry| (entry.device.unwrap(), entry.at, entry.reason)).collect();
    assert_eq!(
        entries,
        [
            (device(1), at(20), RevocationReason::SignedOut),
            (device(2), at(20), RevocationReason::Banned),
            (device(3), at(30), RevocationReason::Reused)
        ]
    );
    assert!(all.is_sorted_by(|a, b| a.number < b.number) && all[0].number > 0);
    assert_eq!(store.revocations(all[1].number).await.unwrap(), all[2..]);
    assert_eq!(store.revocations(all[2].number).await.unwrap(), []);
}

pub async fn nobody_revokes_the_device_of_another(engine: impl Engine) {
    let store = engine.store();
    store.create_device(phone(1, 1, 10), token(1, 1, 1)).await.unwrap();
    store.revoke_device(user(2), device(1), at(20), RevocationReason::SignedOut).await.unwrap();
    assert_eq!(store.devices_of(user(1)).await.unwrap(), [phone(1, 1, 10)]);
    assert_eq!(store.revocations(0).await.unwrap(), []);
}

pub async fn a_foreign_device_can_be_revoked_again_later(engine: impl Engine) {
    // Of another issuer: no row of ours tells that it was revoked, and newer tokens of it may come.
    let store = engine.store();
    for time in [20, 20, 10, 30] {
        store.revoke_device(user(1), device(7), at(time), RevocationReason::SignedOut).await.unwrap();
    }
    let times: Vec<_> = store.revocations(0).await.unwrap().iter().map(|entry: &Revocation| entry.at).collect();
    assert_eq!(times, [at(20), at(30)]);
}

pub async fn ended_tokens_go_a_few_at_a_time_and_devices_with_their_last(engine: impl Engine) {
    let store = engine.store();
    store.create_device(phone(1, 1, 10), token(1, 1, 1)).await.unwrap();
    store.create_device(phone(2, 1, 20), token(2, 2, 1)).await.unwrap();
    store.create_device(phone(3, 1, 30), token(3, 3, 1)).await.unwrap();
    // The first goes on with a token that has not ended, the second is signed out, the third never came back.
    store.rotate(hash(1), hash(11), at(2_000), at(20)).await.unwrap();
    store.revoke_device(user(1), device(2), at(30), RevocationReason::SignedOut).await.unwrap();
    assert_eq!(store.purge_tokens(at(1_000), 10).await.unwrap(), 0, "whoever ends then is alive until then");
    assert_eq!(store.purge_tokens(at(1_001), 2).await.unwrap(), 2);
    assert_eq!(store.purge_tokens(at(1_001), 2).await.unwrap(), 1);
    assert_eq!(store.purge_tokens(at(1_001), 2).await.unwrap(), 0);
    for n in 1..=3 {
        assert_eq!(store.refresh_token(hash(n)).await.unwrap(), None);
        assert_eq!(store.rotate(hash(n), hash(9), NEVER, at(1_002)).await.unwrap(), Rotation::Unknown);
    }
    assert_eq!(store.devices_of(user(1)).await.unwrap(), [Device { last_seen: at(20), ..phone(1, 1, 10) }]);
    assert_eq!(store.device(device(2)).await.unwrap(), None);
    assert_eq!(store.device(device(3)).await.unwrap(), None);
    let rotated = Rotation::Rotated { user: user(1), device: device(1) };
    assert_eq!(store.rotate(hash(11), hash(12), at(3_000), at(1_002)).await.unwrap(), rotated);
}

pub async fn a_spent_token_is_known_until_its_own_end(engine: impl Engine) {
    let store = engine.store();
    store.create_device(phone(1, 1, 10), token(1, 1, 1)).await.unwrap();
    store.rotate(hash(1), hash(2), at(2_000), at(20)).await.unwrap();
    store.rotate(hash(2), hash(3), at(3_000), at(900)).await.unwrap();
    assert_eq!(store.purge_tokens(at(1_000), 10).await.unwrap(), 0);
    assert!(matches!(store.rotate(hash(1), hash(9), NEVER, at(1_000)).await.unwrap(), Rotation::Spent { .. }));
    assert_eq!(store.purge_tokens(at(1_500), 10).await.unwrap(), 1);
    assert!(matches!(store.rotate(hash(2), hash(9), NEVER, at(1_500)).await.unwrap(), Rotation::Spent { .. }));
    // A purge does not make a token of a family that has been revoked anything but dead.
    store.revoke_device(user(1), device(1), at(1_600), RevocationReason::Reused).await.unwrap();
    assert_eq!(store.purge_tokens(at(1_700), 10).await.unwrap(), 0);
    assert_eq!(store.rotate(hash(3), hash(9), NEVER, at(1_700)).await.unwrap(), Rotation::Dead);
}

pub async fn old_revocations_go_and_their_numbers_are_not_given_again(engine: impl Engine) {
    let store = engine.store();
    let revoke = async |n: u128, time| {
        store.revoke_device(user(1), device(n), at(time), RevocationReason::SignedOut).await.unwrap();
    };
    for n in 1..=4 {
        revoke(n, 10 * n as i64).await;
    }
    let all = store.revocations(0).await.unwrap();
    assert_eq!(store.purge_revocations(at(40), 2).await.unwrap(), 2);
    assert_eq!(store.revocations(0).await.unwrap(), all[2..]);
    assert_eq!(store.purge_revocations(at(40), 2).await.unwrap(), 1);
    assert_eq!(store.purge_revocations(at(41), 2).await.unwrap(), 1);
    assert_eq!(store.purge_revocations(at(41), 2).await.unwrap(), 0);
    assert_eq!(store.revocations(0).await.unwrap(), []);
    revoke(5, 50).await;
    let later = store.revocations(all[3].number).await.unwrap();
    assert_eq!(later.len(), 1, "who has polled all of them sees the next: {later:?}");
}
