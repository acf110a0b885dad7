//! Refresh tokens: opaque, 256 bits, kept as hashes, rotated at each use; a device is a family. A spent one that comes
//! back is theft, and its family dies, except that a lost answer may be asked again for 10 s. The successor is derived
//! from the spent token with a secret of ours, so that the same answer can be given again though it is not kept.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemas::{DeviceId, Timestamp, UserId};
use sha2::{Digest, Sha256};
use store::devices::{Devices, RevocationReason, Rotation, TokenHash};

use super::keys::{Key, Keys};

/// Characters of 32 bytes in base64url.
const TEXT_CHARS: usize = 43;

/// A refresh token as its owner holds it.
#[derive(Clone, PartialEq, Eq)]
pub struct RefreshToken([u8; 32]);

impl RefreshToken {
    /// The first one of a family, from 32 bytes of randomness.
    pub fn first(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// As it was sent; `None` where it can't be one of ours.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != TEXT_CHARS {
            return None;
        }
        URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok().map(Self)
    }

    /// As it is sent.
    pub fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// As it is kept. One round suffices: 256 random bits can't be guessed back.
    pub fn hash(&self) -> TokenHash {
        Sha256::digest(self.0).into()
    }

    fn successor(&self, key: &Key) -> Self {
        Self(key.refresh_mac(&self.0))
    }
}

/// What became of a refresh.
pub enum Refreshed {
    /// Here is the successor.
    Next {
        /// Whose.
        user: UserId,
        /// Of which device.
        device: DeviceId,
        /// The new token.
        token: RefreshToken,
    },
    /// Spent before: its family has been revoked.
    Reused {
        /// Whose.
        user: UserId,
        /// Which family.
        device: DeviceId,
    },
    /// Past its time, or its device is signed out.
    Dead,
    /// Not one of ours.
    Unknown,
}

/// Spends a token for its successor, or answers again for a lost answer.
pub async fn refresh<S: Devices + ?Sized>(
    store: &S,
    keys: &Keys,
    token: &RefreshToken,
    now: Timestamp,
    expires_at: Timestamp,
    grace: Duration,
) -> Result<Refreshed, store::Error> {
    let Some(next) = keys.with_signing(|key| token.successor(key)) else { return Ok(Refreshed::Dead) };
    let spent = match store.rotate(token.hash(), next.hash(), expires_at, now).await? {
        Rotation::Rotated { user, device } => return Ok(Refreshed::Next { user, device, token: next }),
        Rotation::Dead => return Ok(Refreshed::Dead),
        Rotation::Unknown => return Ok(Refreshed::Unknown),
        Rotation::Spent { token } => token,
    };
    let (user, device) = (spent.user, spent.device);
    if let Some((spent_at, hash)) = spent.spent
        && now.since(spent_at) < grace
        // Another key may have signed then.
        && let Some(same) = keys.all().iter().map(|key| token.successor(key)).find(|next| next.hash() == hash)
        // Whoever spends the successor has had the answer.
        && store.refresh_token(hash).await?.is_some_and(|row| row.spent.is_none())
    {
        return Ok(Refreshed::Next { user, device, token: same });
    }
    store.revoke_device(user, device, now, RevocationReason::Reused).await?;
    Ok(Refreshed::Reused { user, device })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use futures_util::future::join_all;
    use schemas::Clock;
    use store::Store;
    use store::devices::{Device, RefreshToken as Row};
    use store::keys::SigningKey;
    use store::memory::MemoryStore;
    use uuid::Uuid;

    use super::*;
    use crate::testing::ManualClock;

    const GRACE: Duration = Duration::from_secs(10);
    const TTL: Duration = Duration::from_secs(3_600);

    struct Fixture {
        clock: Arc<ManualClock>,
        store: Arc<MemoryStore>,
        keys: Keys,
        first: RefreshToken,
        device: DeviceId,
    }

    async fn fixture() -> Fixture {
        let clock = Arc::new(ManualClock::default());
        let store = Arc::new(MemoryStore::new());
        let keys = Keys::open(store.clone() as Arc<dyn Store>, clock.clone(), [7; 32]).await.expect("a store");
        let (user, id, now) = (UserId(Uuid::from_u128(1)), DeviceId(Uuid::from_u128(2)), clock.now());
        let first = RefreshToken::first([5; 32]);
        let device = Device { id, user, name: String::new(), created_at: now, last_seen: now, revoked: false };
        let row = Row { hash: first.hash(), device: id, user, expires_at: now.after(TTL), spent: None };
        store.create_device(device, row).await.expect("a store");
        Fixture { clock, store, keys, first, device: id }
    }

    impl Fixture {
        async fn refresh(&self, token: &RefreshToken) -> Refreshed {
            let now = self.clock.now();
            refresh(&*self.store, &self.keys, token, now, now.after(TTL), GRACE).await.expect("a store")
        }

        async fn next(&self, token: &RefreshToken) -> RefreshToken {
            match self.refresh(token).await {
                Refreshed::Next { token, .. } => token,
                Refreshed::Reused { .. } | Refreshed::Dead | Refreshed::Unknown => panic!("the token is live"),
            }
        }

        async fn is_revoked(&self) -> bool {
            self.store.device(self.device).await.expect("a store").expect("a device").revoked
        }
    }

    #[tokio::test]
    async fn each_token_brings_another_one() {
        let f = fixture().await;
        let second = f.next(&f.first).await;
        let third = f.next(&second).await;
        let all: HashSet<String> = [&f.first, &second, &third].map(RefreshToken::text).into();
        assert_eq!(all.len(), 3);
        assert!(!f.is_revoked().await);
    }

    #[tokio::test]
    async fn fifty_refreshes_at_once_are_one_lineage() {
        let f = fixture().await;
        let answers = join_all((0..50).map(|_| f.next(&f.first))).await;
        let lineage: HashSet<String> = answers.iter().map(RefreshToken::text).collect();
        assert_eq!(lineage.len(), 1);
        assert!(!f.is_revoked().await);
    }

    #[tokio::test]
    async fn a_lost_answer_may_be_asked_again_for_ten_seconds() {
        let f = fixture().await;
        let second = f.next(&f.first).await;
        f.clock.advance(GRACE - Duration::from_millis(1));
        assert_eq!(f.next(&f.first).await.text(), second.text());
        f.clock.advance(Duration::from_millis(1));
        assert!(matches!(f.refresh(&f.first).await, Refreshed::Reused { .. }));
        assert!(f.is_revoked().await);
        assert!(matches!(f.refresh(&second).await, Refreshed::Dead), "the family is dead");
    }

    #[tokio::test]
    async fn an_answer_that_was_used_is_not_lost() {
        let f = fixture().await;
        let second = f.next(&f.first).await;
        let third = f.next(&second).await;
        assert!(matches!(f.refresh(&f.first).await, Refreshed::Reused { .. }));
        assert!(matches!(f.refresh(&third).await, Refreshed::Dead));
    }

    #[tokio::test]
    async fn the_same_answer_comes_even_after_a_change_of_signing_keys() {
        let f = fixture().await;
        let second = f.next(&f.first).await;
        f.clock.advance(Duration::from_secs(2));
        let key = SigningKey { id: "new".into(), seed: [8; 32], created_at: f.clock.now(), retired_at: None };
        store::keys::Keys::add_signing_key(&*f.store, key, false).await.expect("a store");
        f.keys.reload().await.expect("a store");
        assert_eq!(f.next(&f.first).await.text(), second.text());
    }

    #[tokio::test]
    async fn an_ended_or_unknown_token_is_neither_reuse_nor_good() {
        let f = fixture().await;
        assert!(matches!(f.refresh(&RefreshToken::first([6; 32])).await, Refreshed::Unknown));
        f.clock.advance(TTL + Duration::from_millis(1));
        assert!(matches!(f.refresh(&f.first).await, Refreshed::Dead));
        assert!(!f.is_revoked().await);
    }

    #[test]
    fn only_its_own_form_is_parsed() {
        let token = RefreshToken::first([5; 32]);
        assert!(RefreshToken::parse(&token.text()).is_some_and(|parsed| parsed == token));
        for bad in ["", "abc", &"=".repeat(43), &"ä".repeat(21), &token.text()[1..], &(token.text() + "A")] {
            assert!(RefreshToken::parse(bad).is_none(), "{bad:?}");
        }
    }
}
