//! Refresh tokens: opaque, 256 bits, kept as hashes, rotated at each use; a device is a family. A spent one that comes
//! back is theft, and its family dies, except that a lost answer may be asked again for 10 s. The successor is derived
//! from the spent token with a secret of ours, so that the same answer can be given again though it is not kept.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use schemas::{Clock, DeviceId, Timestamp, UserId};
use sha2::{Digest, Sha256};
use store::devices::{Devices, RevocationReason, Rotation, TokenHash};

use super::keys::{Key, Keys};

/// Characters of 32 bytes in base64url.
const TEXT_CHARS: usize = 43;

/// Rows that one write of a purge takes, and the pause after it: whoever sends or signs in comes first.
const PURGE_ROWS: usize = 500;
const PURGE_PAUSE: Duration = Duration::from_millis(50);

/// How long a row is kept beyond its use: edges' clocks differ by less, and for so long the owner of an ended token is
/// told that it has ended rather than that it is none of ours.
const PURGE_MARGIN: Duration = Duration::from_secs(24 * 60 * 60);

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
    let Some(next) = keys.with_signing(Duration::ZERO, |key| token.successor(key)) else { return Ok(Refreshed::Dead) };
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

/// Forgets what can't matter any more, again and again: tokens that have ended, with the last of them their device, and
/// revocations older than any access token. Never ends. A spent token of a living family stays until its own end, since
/// its reuse must be seen.
pub(crate) async fn purge_again_and_again<S: Devices + ?Sized>(
    store: &S,
    clock: &dyn Clock,
    access_ttl: Duration,
    pause: Duration,
) {
    loop {
        match purge(store, clock.now(), access_ttl).await {
            Ok((0, 0)) => {}
            Ok((tokens, revocations)) => tracing::info!(tokens, revocations, "what has ended is forgotten"),
            Err(error) => tracing::warn!(%error, "what has ended can't be forgotten for now"),
        }
        tokio::time::sleep(pause).await;
    }
}

/// All of it once, a few rows at a time: how many tokens and revocations went.
async fn purge<S: Devices + ?Sized>(
    store: &S,
    now: Timestamp,
    access_ttl: Duration,
) -> Result<(usize, usize), store::Error> {
    let before = |age: Duration| Timestamp(now.0.saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)));
    let (mut tokens, mut revocations) = (0, 0);
    loop {
        let gone = store.purge_tokens(before(PURGE_MARGIN), PURGE_ROWS).await?;
        tokens += gone;
        if gone < PURGE_ROWS {
            break;
        }
        tokio::time::sleep(PURGE_PAUSE).await;
    }
    loop {
        let gone = store.purge_revocations(before(access_ttl + PURGE_MARGIN), PURGE_ROWS).await?;
        revocations += gone;
        if gone < PURGE_ROWS {
            return Ok((tokens, revocations));
        }
        tokio::time::sleep(PURGE_PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::Arc;

    use futures_util::future::join_all;
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
        let old = f.keys.all()[0].id.clone();
        store::keys::Keys::add_signing_key(&*f.store, key, Some(old.clone())).await.expect("a store");
        store::keys::Keys::retire_signing_key(&*f.store, old, f.clock.now()).await.expect("a store");
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

    #[tokio::test]
    async fn a_purge_takes_ended_tokens_and_with_the_last_one_its_device() {
        let f = fixture().await;
        let purge = || purge(&*f.store, f.clock.now(), Duration::ZERO);
        let second = f.next(&f.first).await;
        f.clock.advance(TTL / 2);
        let third = f.next(&second).await;
        f.clock.advance(TTL / 2 + PURGE_MARGIN);
        assert_eq!(purge().await.expect("a store"), (0, 0), "one that has ended is known for a while");
        f.clock.advance(Duration::from_millis(1));
        assert_eq!(purge().await.expect("a store"), (2, 0), "the first and the second ended together");
        assert!(f.store.refresh_token(third.hash()).await.expect("a store").is_some());
        assert!(f.store.device(f.device).await.expect("a store").is_some());
        f.clock.advance(TTL);
        assert_eq!(purge().await.expect("a store"), (1, 0));
        assert_eq!(f.store.device(f.device).await.expect("a store"), None, "nobody can come back with it");
    }

    #[tokio::test]
    async fn after_a_purge_a_spent_token_of_a_living_family_is_still_caught() {
        let f = fixture().await;
        let mut tokens = vec![f.first.clone()];
        for at in 0..60 {
            f.clock.advance(TTL / 2);
            tokens.push(f.next(&tokens[at]).await);
        }
        assert_eq!(purge(&*f.store, f.clock.now(), TTL).await.expect("a store"), (10, 0));
        assert!(matches!(f.refresh(&tokens[0]).await, Refreshed::Unknown));
        f.clock.advance(GRACE);
        assert!(!f.is_revoked().await);
        assert!(matches!(f.refresh(&tokens[59]).await, Refreshed::Reused { .. }));
        assert!(f.is_revoked().await);
        assert!(matches!(f.refresh(&tokens[60]).await, Refreshed::Dead), "the family is dead");
    }

    #[tokio::test(start_paused = true)]
    async fn revocations_go_in_steps_once_no_access_token_is_so_old() {
        let f = fixture().await;
        let many = 2 * PURGE_ROWS + 1;
        for device in (0..many as u128).map(|n| DeviceId(Uuid::from_u128(100 + n))) {
            let (user, at) = (UserId::NIL, f.clock.now());
            f.store.revoke_device(user, device, at, RevocationReason::SignedOut).await.expect("a store");
        }
        let access_ttl = Duration::from_secs(900);
        f.clock.advance(access_ttl + PURGE_MARGIN);
        assert_eq!(purge(&*f.store, f.clock.now(), access_ttl).await.expect("a store"), (0, 0));
        f.clock.advance(Duration::from_millis(1));
        let gone = purge(&*f.store, f.clock.now(), access_ttl).await.expect("a store");
        assert_eq!(gone, (0, many));
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
