//! The engine in memory: for tests and the simulator. Owns plain maps under one lock; nothing survives its end, so of
//! law 1 it keeps only what a restart of its users (not of itself) shows.

mod accounts;
mod archive;
mod devices;
mod keys;
mod receipts;
mod rooms;
mod shut_outs;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use schemas::room::{Member, RoomInfo};
use schemas::{CommandId, DeviceId, Event, Offset, Partition, RoomId, Seq, Timestamp, Topic, UserId};

use crate::accounts::Account;
use crate::archive::{Acted, Watermarks};
use crate::devices::{Device, RefreshToken, Revocation, TokenHash};
use crate::keys::SigningKey;
use crate::shut_outs::{ShutOut, Subject};
use receipts::Frontier;

/// A store in memory.
#[derive(Default)]
pub struct MemoryStore {
    // One lock for all: each call is one step, as a transaction is in the other engines.
    tables: Mutex<Tables>,
}

#[derive(Clone, Default)]
struct Tables {
    accounts: HashMap<UserId, Account>,
    devices: HashMap<DeviceId, Device>,
    tokens: HashMap<TokenHash, RefreshToken>,
    revocations: Vec<Revocation>,
    last_revocation: u64,
    shut_outs: HashMap<Subject, ShutOut>,
    last_shut_out: u64,
    signing_keys: Vec<SigningKey>,
    rooms: HashMap<RoomId, RoomInfo>,
    members: BTreeMap<(RoomId, UserId), Member>,
    listings: BTreeMap<(UserId, RoomId), (Seq, bool)>,
    handle_claims: HashMap<String, (RoomId, Timestamp)>,
    events: BTreeMap<(RoomId, Seq), Arc<Event>>,
    commands: HashMap<(RoomId, UserId, CommandId), Acted>,
    largest_commands: HashMap<RoomId, CommandId>,
    receipts: BTreeMap<(RoomId, UserId), Receipts>,
    progress: HashMap<(Topic, Partition), Offset>,
}

#[derive(Clone, Default)]
struct Receipts {
    watermarks: Watermarks,
    delivered: Frontier,
    read: Frontier,
}

/// What was archived at some time, see [`MemoryStore::archived`].
pub struct Archived(Tables);

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// What is archived by now.
    pub fn archived(&self) -> Archived {
        Archived(self.tables().clone())
    }

    /// Forgets what was archived since: what a machine may do that comes back without what it had not synced. Accounts
    /// and devices stay.
    pub fn lose_since(&self, Archived(then): Archived) {
        let mut tables = self.tables();
        let now = std::mem::take(&mut *tables);
        *tables = Tables {
            rooms: then.rooms,
            members: then.members,
            listings: then.listings,
            handle_claims: then.handle_claims,
            events: then.events,
            commands: then.commands,
            largest_commands: then.largest_commands,
            receipts: then.receipts,
            progress: then.progress,
            ..now
        };
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock()
    }
}
