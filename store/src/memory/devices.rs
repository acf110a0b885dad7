//! Devices, refresh tokens and revocations in memory.

use async_trait::async_trait;
use schemas::{DeviceId, Timestamp, UserId};

use super::MemoryStore;
use crate::Error;
use crate::devices::{
    Device, Devices, REVOCATIONS_MAX, RefreshToken, Revocation, RevocationReason, Rotation, TokenHash,
};

#[async_trait]
impl Devices for MemoryStore {
    async fn create_device(&self, device: Device, token: RefreshToken) -> Result<(), Error> {
        let mut tables = self.tables();
        tables.devices.entry(device.id).or_insert(device);
        tables.tokens.entry(token.hash).or_insert(token);
        Ok(())
    }

    async fn device(&self, id: DeviceId) -> Result<Option<Device>, Error> {
        Ok(self.tables().devices.get(&id).cloned())
    }

    async fn devices_of(&self, user: UserId) -> Result<Vec<Device>, Error> {
        let tables = self.tables();
        let live = tables.devices.values().filter(|device| device.user == user && !device.revoked);
        let mut live: Vec<Device> = live.cloned().collect();
        live.sort_by_key(|device| std::cmp::Reverse((device.created_at, device.id)));
        Ok(live)
    }

    async fn rotate(
        &self,
        hash: TokenHash,
        next: TokenHash,
        expires_at: Timestamp,
        now: Timestamp,
    ) -> Result<Rotation, Error> {
        let mut tables = self.tables();
        let Some(token) = tables.tokens.get(&hash).cloned() else { return Ok(Rotation::Unknown) };
        let Some(device) = tables.devices.get_mut(&token.device) else { return Ok(Rotation::Dead) };
        if device.revoked || token.expires_at < now {
            return Ok(Rotation::Dead);
        }
        if token.spent.is_some() {
            return Ok(Rotation::Spent { token });
        }
        device.last_seen = device.last_seen.max(now);
        let (user, device) = (token.user, token.device);
        tables.tokens.insert(next, RefreshToken { hash: next, expires_at, ..token.clone() });
        tables.tokens.insert(hash, RefreshToken { spent: Some((now, next)), ..token });
        Ok(Rotation::Rotated { user, device })
    }

    async fn refresh_token(&self, hash: TokenHash) -> Result<Option<RefreshToken>, Error> {
        Ok(self.tables().tokens.get(&hash).cloned())
    }

    async fn revoke_device(
        &self,
        user: UserId,
        device: DeviceId,
        at: Timestamp,
        reason: RevocationReason,
    ) -> Result<(), Error> {
        let mut tables = self.tables();
        match tables.devices.get_mut(&device) {
            Some(known) if known.user != user || known.revoked => return Ok(()),
            Some(known) => known.revoked = true,
            None => {}
        }
        let device = Some(device);
        if tables.revocations.iter().any(|entry| entry.user == user && entry.device == device && entry.at >= at) {
            return Ok(());
        }
        tables.last_revocation += 1;
        let number = tables.last_revocation;
        tables.revocations.push(Revocation { number, user, device, at, reason });
        Ok(())
    }

    async fn revocations(&self, after: u64) -> Result<Vec<Revocation>, Error> {
        let tables = self.tables();
        Ok(tables.revocations.iter().filter(|entry| entry.number > after).take(REVOCATIONS_MAX).cloned().collect())
    }

    async fn purge_tokens(&self, before: Timestamp, limit: usize) -> Result<usize, Error> {
        let mut tables = self.tables();
        let mut ended: Vec<RefreshToken> =
            tables.tokens.values().filter(|token| token.expires_at < before).cloned().collect();
        ended.sort_unstable_by_key(|token| (token.expires_at, token.hash));
        ended.truncate(limit);
        for token in &ended {
            tables.tokens.remove(&token.hash);
        }
        for token in &ended {
            if !tables.tokens.values().any(|other| other.device == token.device) {
                tables.devices.remove(&token.device);
            }
        }
        Ok(ended.len())
    }

    async fn purge_revocations(&self, before: Timestamp, limit: usize) -> Result<usize, Error> {
        let mut tables = self.tables();
        let mut gone = 0;
        tables.revocations.retain(|entry| {
            let goes = gone < limit && entry.at < before && entry.device.is_some();
            gone += usize::from(goes);
            !goes
        });
        Ok(gone)
    }
}
