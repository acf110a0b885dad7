//! Devices, refresh tokens and revocations in Cassandra. A family of tokens is one partition with its device, so that a
//! rotation is one conditional change of it; revocations are one partition as well, whose numbers are given in the change
//! that enters them, so that nobody sees a later one before an earlier one.

use async_trait::async_trait;
use schemas::{DeviceId, Timestamp, UserId};
use uuid::Uuid;

use super::CassandraStore;
use super::cql::{
    CAS_TRIES, Cas, Ordered, Write, broken, contended, id, integer, limit, side_by_side, unsigned, values,
};
use crate::Error;
use crate::devices::{
    Device, Devices, REVOCATIONS_MAX, RefreshToken, Revocation, RevocationReason, Rotation, TokenHash,
};

/// Tokens by their end are in partitions of ten minutes: what a thousand rotations a second end in is half a million rows.
const SLICE_MS: i64 = 10 * 60 * 1_000;
/// Deletions of one conditional change.
const PURGE_PART: usize = 50;

/// A row of a family, with what stands once for all of them.
struct Member {
    device: Device,
    token: RefreshToken,
}

fn hash(bytes: Vec<u8>) -> Result<TokenHash, Error> {
    bytes.try_into().map_err(|_| broken("a token's hash of another length"))
}

fn name(reason: RevocationReason) -> &'static str {
    match reason {
        RevocationReason::SignedOut => "signed_out",
        RevocationReason::Banned => "banned",
        RevocationReason::Reused => "reused",
    }
}

fn reason(name: &str) -> Result<RevocationReason, Error> {
    let all = [RevocationReason::SignedOut, RevocationReason::Banned, RevocationReason::Reused];
    let known = all.into_iter().find(|reason| self::name(*reason) == name);
    known.ok_or_else(|| broken(format!("an unknown reason of a revocation: {name}")))
}

impl CassandraStore {
    async fn family_of(&self, hash: TokenHash) -> Result<Option<DeviceId>, Error> {
        let device = self.cql.row::<(Uuid,)>("SELECT device FROM tokens WHERE hash = ?", values![hash]).await?;
        Ok(device.map(|(device,)| DeviceId(device)))
    }

    async fn token(&self, device: DeviceId, of: TokenHash) -> Result<Option<Member>, Error> {
        type Columns = (
            Option<Uuid>,
            Option<String>,
            Option<i64>,
            Option<i64>,
            Option<bool>,
            Option<i64>,
            Option<i64>,
            Option<Vec<u8>>,
        );
        let query = "SELECT user, name, created_at, last_seen, revoked, expires_at, spent_at, successor
            FROM families WHERE device = ? AND hash = ?";
        let row = self.cql.row::<Columns>(query, values![device, of]).await?;
        let Some((Some(user), Some(name), Some(created_at), Some(last_seen), Some(revoked), expires_at, spent, next)) =
            row
        else {
            return Ok(None);
        };
        let Some(expires_at) = expires_at else { return Ok(None) };
        let user = UserId(user);
        let (created_at, last_seen) = (Timestamp(created_at), Timestamp(last_seen));
        let spent = match (spent, next) {
            (Some(at), Some(next)) => Some((Timestamp(at), hash(next)?)),
            _ => None,
        };
        Ok(Some(Member {
            device: Device { id: device, user, name, created_at, last_seen, revoked },
            token: RefreshToken { hash: of, device, user, expires_at: Timestamp(expires_at), spent },
        }))
    }

    /// What finds a token, by hash and by end. Written before the token itself: what leads nowhere does no harm.
    async fn lead_to(&self, token: &RefreshToken) -> Result<(), Error> {
        let slice = token.expires_at.0.div_euclid(SLICE_MS);
        let by_hash = Write("INSERT INTO tokens (hash, device) VALUES (?, ?)", values![token.hash, token.device]);
        let by_end = "INSERT INTO tokens_by_end (slice, expires_at, hash, device) VALUES (?, ?, ?, ?)";
        let by_end = Write(by_end, values![slice, token.expires_at, token.hash, token.device]);
        let slice = Write("INSERT INTO token_slices (log, slice) VALUES ('tokens', ?)", values![slice]);
        self.cql.write_partitions(vec![vec![by_hash], vec![by_end], vec![slice]]).await
    }

    /// Enters a revocation under the next number.
    async fn append(&self, entry: &Revocation) -> Result<(), Error> {
        let _turn = self.cql.lane("revocations").await;
        let mut unknown = None;
        for _ in 0..CAS_TRIES {
            if let Some(number) = unknown.take() {
                let there = "SELECT user, device, at FROM revocations WHERE log = 'revocations' AND number = ?";
                let there = self.cql.row::<(Uuid, Option<Uuid>, i64)>(there, values![number]).await?;
                if there == Some((entry.user.0, entry.device.map(|device| device.0), entry.at.0)) {
                    return Ok(());
                }
            }
            let head = self.head("SELECT DISTINCT log, head FROM revocations WHERE log = 'revocations'").await?;
            let number = head.unwrap_or_default() + 1;
            let step = "UPDATE revocations SET head = ? WHERE log = 'revocations' IF head = ?";
            let insert = "INSERT INTO revocations (log, number, user, device, at, reason)
                VALUES ('revocations', ?, ?, ?, ?, ?)";
            let row = values![number, entry.user, entry.device, entry.at, name(entry.reason)];
            match self.cql.cas(vec![Write(step, values![number, head]), Write(insert, row)]).await? {
                Cas::Applied => return Ok(()),
                Cas::Refused => {}
                Cas::Unknown => unknown = Some(number),
            }
        }
        Err(contended())
    }

    /// The last number that a log has given.
    pub(super) async fn head(&self, query: &'static str) -> Result<Option<i64>, Error> {
        Ok(self.cql.row::<(String, Option<i64>)>(query, values![]).await?.and_then(|(_, head)| head))
    }

    /// Forgets a device that has no tokens left.
    async fn forget_without_tokens(&self, device: DeviceId) -> Result<(), Error> {
        let rows = "SELECT hash, user FROM families WHERE device = ? LIMIT 1";
        let Some((None, Some(user))) = self.cql.row::<(Option<Vec<u8>>, Option<Uuid>)>(rows, values![device]).await?
        else {
            return Ok(());
        };
        let delete = "DELETE user, name, created_at, last_seen, revoked FROM families WHERE device = ? IF user = ?";
        self.cql.cas(vec![Write(delete, values![device, user])]).await?;
        let listed = "DELETE FROM devices_by_user WHERE user = ? AND device = ?";
        self.cql.write(listed, values![user, Ordered::from(device)]).await
    }
}

#[async_trait]
impl Devices for CassandraStore {
    async fn create_device(&self, device: Device, token: RefreshToken) -> Result<(), Error> {
        let _turn = self.cql.lane(("family", device.id)).await;
        self.lead_to(&token).await?;
        let listed = "INSERT INTO devices_by_user (user, device) VALUES (?, ?)";
        self.cql.write(listed, values![device.user, Ordered::from(device.id)]).await?;
        let create = "UPDATE families SET user = ?, name = ?, created_at = ?, last_seen = ?, revoked = ?
            WHERE device = ? IF user = null";
        let Device { id, user, name, created_at, last_seen, revoked } = &device;
        let row = || values![user, name, created_at, last_seen, revoked, id];
        let first = "INSERT INTO families (device, hash, expires_at) VALUES (?, ?, ?) IF NOT EXISTS";
        for (statement, row) in [(create, row()), (first, values![token.device, token.hash, token.expires_at])] {
            let mut tries = 0;
            // Refused: it is there already.
            while self.cql.cas(vec![Write(statement, row.clone())]).await? == Cas::Unknown {
                tries += 1;
                if tries == CAS_TRIES {
                    return Err(contended());
                }
            }
        }
        Ok(())
    }

    async fn device(&self, id: DeviceId) -> Result<Option<Device>, Error> {
        type Columns = (Option<Uuid>, Option<String>, Option<i64>, Option<i64>, Option<bool>);
        let query = "SELECT user, name, created_at, last_seen, revoked FROM families WHERE device = ? LIMIT 1";
        let row = self.cql.row::<Columns>(query, values![id]).await?;
        let Some((Some(user), Some(name), Some(created_at), Some(last_seen), Some(revoked))) = row else {
            return Ok(None);
        };
        let (created_at, last_seen) = (Timestamp(created_at), Timestamp(last_seen));
        Ok(Some(Device { id, user: UserId(user), name, created_at, last_seen, revoked }))
    }

    async fn devices_of(&self, user: UserId) -> Result<Vec<Device>, Error> {
        let ids = "SELECT device FROM devices_by_user WHERE user = ?";
        let ids = self.cql.rows::<(Vec<u8>,)>(ids, values![user]).await?;
        let read = |(device,): (Vec<u8>,)| async move { self.device(DeviceId(id(&device)?)).await };
        let devices = side_by_side(ids.into_iter().map(read)).await?;
        let is_live = |device: &Device| device.user == user && !device.revoked;
        let mut live: Vec<Device> = devices.into_iter().flatten().filter(is_live).collect();
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
        let Some(id) = self.family_of(hash).await? else { return Ok(Rotation::Unknown) };
        let _turn = self.cql.lane(("family", id)).await;
        let mut unknown = false;
        for _ in 0..CAS_TRIES {
            let Some(Member { device, token }) = self.token(id, hash).await? else { return Ok(Rotation::Unknown) };
            let rotated = Rotation::Rotated { user: token.user, device: token.device };
            // Its own change, of which it had not heard.
            if unknown && token.spent == Some((now, next)) {
                return Ok(rotated);
            }
            if device.revoked || token.expires_at < now {
                return Ok(Rotation::Dead);
            }
            if token.spent.is_some() {
                return Ok(Rotation::Spent { token });
            }
            self.lead_to(&RefreshToken { hash: next, expires_at, ..token.clone() }).await?;
            let spend = "UPDATE families SET spent_at = ?, successor = ? WHERE device = ? AND hash = ?
                IF spent_at = null AND expires_at = ?";
            let touch = "UPDATE families SET last_seen = ? WHERE device = ? IF revoked = false";
            let insert = "INSERT INTO families (device, hash, expires_at) VALUES (?, ?, ?)";
            let change = vec![
                Write(spend, values![now, next, id, hash, token.expires_at]),
                Write(touch, values![device.last_seen.max(now), id]),
                Write(insert, values![id, next, expires_at]),
            ];
            match self.cql.cas(change).await? {
                Cas::Applied => return Ok(rotated),
                Cas::Refused => {}
                Cas::Unknown => unknown = true,
            }
        }
        Err(contended())
    }

    async fn refresh_token(&self, hash: TokenHash) -> Result<Option<RefreshToken>, Error> {
        let Some(device) = self.family_of(hash).await? else { return Ok(None) };
        Ok(self.token(device, hash).await?.map(|member| member.token))
    }

    async fn revoke_device(
        &self,
        user: UserId,
        device: DeviceId,
        at: Timestamp,
        reason: RevocationReason,
    ) -> Result<(), Error> {
        let _turn = self.cql.lane(("revoke", user, device)).await;
        let known = self.device(device).await?;
        if known.as_ref().is_some_and(|known| known.user != user || known.revoked) {
            return Ok(());
        }
        let entered = "SELECT at FROM revocations_by_device WHERE user = ? AND device = ?";
        let entered = self.cql.row::<(i64,)>(entered, values![user, device]).await?;
        if entered.is_none_or(|(before,)| before < at.0) {
            // First the table that every edge reads: who dies after it is asked again.
            self.append(&Revocation { number: 0, user, device: Some(device), at, reason }).await?;
            let enter = "INSERT INTO revocations_by_device (user, device, at) VALUES (?, ?, ?) USING TIMESTAMP ?";
            self.cql.write(enter, values![user, device, at, at]).await?;
        }
        if known.is_none() {
            return Ok(());
        }
        for _ in 0..CAS_TRIES {
            let revoke = "UPDATE families SET revoked = true WHERE device = ? IF user = ?";
            if self.cql.cas(vec![Write(revoke, values![device, user])]).await? != Cas::Unknown {
                return Ok(());
            }
        }
        Err(contended())
    }

    async fn revocations(&self, after: u64) -> Result<Vec<Revocation>, Error> {
        let query = "SELECT number, user, device, at, reason FROM revocations
            WHERE log = 'revocations' AND number > ? LIMIT ?";
        let values = values![integer(after), limit(REVOCATIONS_MAX)];
        let rows = self.cql.rows::<(i64, Uuid, Option<Uuid>, i64, String)>(query, values).await?;
        let form = |(number, user, device, at, name): (i64, Uuid, Option<Uuid>, i64, String)| {
            let (user, device, reason) = (UserId(user), device.map(DeviceId), reason(&name)?);
            Ok(Revocation { number: unsigned(number)?, user, device, at: Timestamp(at), reason })
        };
        rows.into_iter().map(form).collect()
    }

    async fn purge_tokens(&self, before: Timestamp, limit_to: usize) -> Result<usize, Error> {
        let slices = "SELECT slice FROM token_slices WHERE log = 'tokens' AND slice <= ?";
        let slices = self.cql.rows::<(i64,)>(slices, values![before.0.div_euclid(SLICE_MS)]).await?;
        let mut gone = 0;
        for (slice,) in slices {
            while gone < limit_to {
                let ended =
                    "SELECT expires_at, hash, device FROM tokens_by_end WHERE slice = ? AND expires_at < ? LIMIT ?";
                let part = limit(limit_to - gone);
                let ended = self.cql.rows::<(i64, Vec<u8>, Uuid)>(ended, values![slice, before, part]).await?;
                if ended.is_empty() {
                    break;
                }
                let forget = |(expires_at, hash, device): (i64, Vec<u8>, Uuid)| async move {
                    let delete = "DELETE FROM families WHERE device = ? AND hash = ? IF EXISTS";
                    let delete = self.cql.cas(vec![Write(delete, values![device, hash])]).await?;
                    if delete == Cas::Unknown {
                        return Err(contended());
                    }
                    self.cql.write("DELETE FROM tokens WHERE hash = ?", values![hash]).await?;
                    self.forget_without_tokens(DeviceId(device)).await?;
                    // What leads here last of all: who dies before it is led here again.
                    let by_end = "DELETE FROM tokens_by_end WHERE slice = ? AND expires_at = ? AND hash = ?";
                    self.cql.write(by_end, values![slice, expires_at, hash]).await?;
                    Ok(usize::from(delete == Cas::Applied))
                };
                gone += side_by_side(ended.into_iter().map(forget)).await?.into_iter().sum::<usize>();
            }
            if gone < limit_to && (slice + 1) * SLICE_MS <= before.0 {
                self.cql.write("DELETE FROM tokens_by_end WHERE slice = ?", values![slice]).await?;
                self.cql.write("DELETE FROM token_slices WHERE log = 'tokens' AND slice = ?", values![slice]).await?;
            }
        }
        Ok(gone)
    }

    async fn purge_revocations(&self, before: Timestamp, limit_to: usize) -> Result<usize, Error> {
        let (mut after, mut gone) = (0, Vec::new());
        while gone.len() < limit_to {
            let page = self.revocations(after).await?;
            let Some(last) = page.last() else { break };
            after = last.number;
            let old = page.iter().filter(|entry| entry.at < before && entry.device.is_some());
            gone.extend(old.map(|entry| integer(entry.number)).take(limit_to - gone.len()));
        }
        let _turn = self.cql.lane("revocations").await;
        for part in gone.chunks(PURGE_PART) {
            let delete = "DELETE FROM revocations WHERE log = 'revocations' AND number = ?";
            let deletions = || part.iter().map(|number| Write(delete, values![number]));
            let head = "SELECT DISTINCT log, head FROM revocations WHERE log = 'revocations'";
            let step = "UPDATE revocations SET head = ? WHERE log = 'revocations' IF head = ?";
            self.purge_log(head, step, deletions).await?;
        }
        Ok(gone.len())
    }
}

impl CassandraStore {
    /// Deletes rows of a log that is changed conditionally alone: the deletion must be one of the same kind, or an entry
    /// could be newer than its deletion.
    pub(super) async fn purge_log<I: Iterator<Item = Write>>(
        &self,
        head: &'static str,
        step: &'static str,
        deletions: impl Fn() -> I + Send,
    ) -> Result<(), Error> {
        for _ in 0..CAS_TRIES {
            let head = self.head(head).await?;
            let writes = std::iter::once(Write(step, values![head, head])).chain(deletions()).collect();
            if self.cql.cas(writes).await? == Cas::Applied {
                return Ok(());
            }
        }
        Err(contended())
    }
}
