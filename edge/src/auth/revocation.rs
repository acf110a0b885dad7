//! What takes tokens back before their time: the revocation table of the store, read again and again by every edge. It
//! must not wait for a rebalance, so it does not come by the log. An edge that has not read it for too long trusts no
//! token any more.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::RwLock;
use schemas::frame::close;
use schemas::{Clock, DeviceId, Timestamp, UserId};
use store::devices::{Devices, Revocation, RevocationReason};

use super::Identity;

/// The revocations that can still matter.
pub struct Revocations {
    /// No device's tokens live longer, so that older entries may go.
    ttl: Duration,
    stale_after: Duration,
    table: RwLock<Table>,
    was_stale: AtomicBool,
}

#[derive(Default)]
struct Table {
    entries: HashMap<(UserId, Option<DeviceId>), Timestamp>,
    /// The number of the last entry read.
    position: u64,
    /// When the store was last read up to its end; `None`: never yet.
    read_at: Option<Duration>,
}

impl Revocations {
    /// An empty table, stale until it is read.
    pub fn new(ttl: Duration, stale_after: Duration) -> Self {
        Self { ttl, stale_after, table: RwLock::default(), was_stale: AtomicBool::new(false) }
    }

    /// Whether the token was taken back.
    pub fn revoked(&self, identity: &Identity) -> bool {
        let table = self.table.read();
        // Tokens count whole seconds: one issued later in the second of a revocation dies with it, never the reverse.
        let dead = |device| table.entries.get(&(identity.user, device)).is_some_and(|at| identity.issued_at <= *at);
        dead(None) || (identity.device.is_some() && dead(identity.device))
    }

    /// Whether the table is too old to trust any token.
    pub fn is_stale(&self, clock: &dyn Clock) -> bool {
        let read_at = self.table.read().read_at;
        read_at.is_none_or(|at| clock.elapsed().saturating_sub(at) >= self.stale_after)
    }

    /// Whether the table has become too old since the last call.
    pub(crate) fn has_become_stale(&self, clock: &dyn Clock) -> bool {
        let stale = self.is_stale(clock);
        let was = self.was_stale.swap(stale, Ordering::Relaxed);
        stale && !was
    }

    /// Enters one revocation at once, ahead of the table.
    pub(crate) fn enter(&self, user: UserId, device: Option<DeviceId>, at: Timestamp) {
        let mut table = self.table.write();
        let entry = table.entries.entry((user, device)).or_insert(at);
        *entry = (*entry).max(at);
    }

    /// Reads what is new in the table, up to its end. Answers with it, in order.
    pub(crate) async fn read<S: Devices + ?Sized>(
        &self,
        store: &S,
        clock: &dyn Clock,
    ) -> Result<Vec<Revocation>, store::Error> {
        let mut news = Vec::new();
        loop {
            // Taken before the read: what is entered while it lasts may be missing from it.
            let began = clock.elapsed();
            let after = self.table.read().position;
            let page = store.revocations(after).await?;
            let Some(last) = page.last() else {
                let ttl_ms = i64::try_from(self.ttl.as_millis()).unwrap_or(i64::MAX);
                let oldest = Timestamp(clock.now().0.saturating_sub(ttl_ms));
                let mut table = self.table.write();
                table.read_at = Some(began);
                // Those of whole persons count for other issuers' tokens too, whose life we do not set.
                table.entries.retain(|(_, device), at| device.is_none() || *at >= oldest);
                return Ok(news);
            };
            self.table.write().position = last.number;
            for entry in &page {
                self.enter(entry.user, entry.device, entry.at);
            }
            news.extend(page);
        }
    }
}

/// The close code of the sockets that a revocation ends.
pub(crate) fn close_code(reason: RevocationReason) -> u16 {
    match reason {
        RevocationReason::SignedOut => close::SIGNED_OUT,
        RevocationReason::Banned => close::BANNED,
        RevocationReason::Reused => close::TOKEN_INVALID,
    }
}

#[cfg(test)]
mod tests {
    use store::memory::MemoryStore;
    use uuid::Uuid;

    use super::*;
    use crate::testing::ManualClock;

    const TTL: Duration = Duration::from_secs(900);
    const STALE: Duration = Duration::from_secs(5);

    fn identity(device: u128, issued_at: Timestamp) -> Identity {
        Identity {
            user: UserId(Uuid::from_u128(1)),
            device: Some(DeviceId(Uuid::from_u128(device))),
            issued_at,
            expires_at: issued_at.after(TTL),
            external: false,
        }
    }

    #[tokio::test]
    async fn what_another_edge_revoked_is_dead_after_a_read() {
        let (clock, store) = (ManualClock::default(), MemoryStore::new());
        let here = Revocations::new(TTL, STALE);
        let token = identity(2, clock.now());
        let device = DeviceId(Uuid::from_u128(2));
        store.revoke_device(token.user, device, clock.now(), RevocationReason::SignedOut).await.expect("a store");
        assert!(!here.revoked(&token));
        let news = here.read(&store, &clock).await.expect("a store");
        assert_eq!(news.len(), 1);
        assert!(here.revoked(&token));
        assert!(!here.revoked(&identity(3, clock.now())), "another device lives on");
        assert!(here.read(&store, &clock).await.expect("a store").is_empty(), "each entry is news once");
    }

    #[tokio::test]
    async fn a_token_issued_after_a_ban_was_lifted_is_alive() {
        let clock = ManualClock::default();
        let here = Revocations::new(TTL, STALE);
        here.enter(UserId(Uuid::from_u128(1)), None, clock.now());
        assert!(here.revoked(&identity(2, clock.now())));
        assert!(!here.revoked(&identity(2, clock.now().after(Duration::from_secs(1)))));
    }

    #[tokio::test]
    async fn a_table_that_is_not_read_grows_stale() {
        let (clock, store) = (ManualClock::default(), MemoryStore::new());
        let here = Revocations::new(TTL, STALE);
        assert!(here.is_stale(&clock), "nothing was read yet");
        here.read(&store, &clock).await.expect("a store");
        clock.advance(STALE - Duration::from_millis(1));
        assert!(!here.has_become_stale(&clock));
        clock.advance(Duration::from_millis(1));
        assert!(here.has_become_stale(&clock));
        assert!(!here.has_become_stale(&clock), "it is said once");
        here.read(&store, &clock).await.expect("a store");
        assert!(!here.is_stale(&clock));
    }

    #[tokio::test]
    async fn entries_are_forgotten_once_no_token_can_be_so_old() {
        let (clock, store) = (ManualClock::default(), MemoryStore::new());
        let here = Revocations::new(TTL, STALE);
        here.enter(UserId(Uuid::from_u128(1)), Some(DeviceId(Uuid::from_u128(2))), clock.now());
        clock.advance(TTL);
        here.read(&store, &clock).await.expect("a store");
        assert_eq!(here.table.read().entries.len(), 1);
        clock.advance(Duration::from_millis(1));
        here.read(&store, &clock).await.expect("a store");
        assert!(here.table.read().entries.is_empty());
    }
}
