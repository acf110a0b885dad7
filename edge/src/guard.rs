//! What is done about offences (see [`crate::blocks`]): counting them, turning away whoever is shut out, and sharing it
//! with the other edges by the store. Written behind, so that an attack is no load of writes: here it holds at once,
//! elsewhere with the next poll.

use std::net::IpAddr;
use std::time::Duration;

use schemas::frame::close;
use store::shut_outs::{SHUT_OUTS_MAX, ShutOut, Subject};

use crate::App;
use crate::blocks::Offence;
use crate::limits::{Crowded, Places};

/// Shut-outs written down with one poll at most.
const WRITE_MAX: usize = 256;

/// How often ended shut-outs are forgotten, in polls, and how many at once.
const PURGE_EVERY_POLLS: u32 = 120;
const PURGE_MAX: usize = 1_000;

/// Why a connection is turned away before anything is read of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnedAway {
    /// Its address is shut out.
    ShutOut,
    /// Its address, or all together, have as many as may be.
    Crowded(Crowded),
}

impl TurnedAway {
    /// A label for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ShutOut => "shut_out",
            Self::Crowded(crowded) => crowded.as_str(),
        }
    }
}

/// A wait as frames have it.
pub(crate) fn wait_ms(wait: Duration) -> u32 {
    u32::try_from(wait.as_micros().div_ceil(1_000).max(1)).unwrap_or(u32::MAX)
}

impl App {
    /// Those whom an address stands for in offences and shut-outs.
    pub fn at(&self, address: IpAddr) -> Subject {
        Subject::Address(self.limits.network(address))
    }

    /// How long somebody is shut out yet.
    pub fn shut_out(&self, subject: Subject) -> Option<Duration> {
        self.blocks.as_ref()?.lock().shut_out(&subject, self.deps.clock.now())
    }

    /// Takes a connection that has just been accepted, or turns it away. A proxy's own address stands for nobody: what
    /// comes through it is judged by request.
    pub(crate) fn admit(&self, peer: IpAddr) -> Result<Places, TurnedAway> {
        if self.blocks.is_none() || self.proxies.trusts(peer) {
            return Ok(Places::default());
        }
        let admitted = match self.shut_out(self.at(peer)) {
            Some(_) => Err(TurnedAway::ShutOut),
            None => self.limits.connection_from(self.limits.network(peer)).map_err(TurnedAway::Crowded),
        };
        if let Err(why) = &admitted {
            self.metrics.connections_refused.with_label_values(&[why.as_str()]).inc();
            if *why == TurnedAway::Crowded(Crowded::Rate) {
                self.offended(self.at(peer), Offence::Flood);
            }
        }
        admitted
    }

    /// The other end of a connection has offended, before any request says for whom it came.
    pub(crate) fn connection_offended(&self, peer: IpAddr, offence: Offence) {
        if !self.proxies.trusts(peer) {
            self.offended(self.at(peer), offence);
        }
    }

    /// Somebody has offended; it may have been once too often.
    pub fn offended(&self, subject: Subject, offence: Offence) {
        let Some(blocks) = &self.blocks else { return };
        self.metrics.offences.with_label_values(&[offence.as_str()]).inc();
        let now = self.deps.clock.now();
        let Some(entry) = blocks.lock().offended(subject, offence, now) else { return };
        let kind = match subject {
            Subject::Address(_) => "address",
            Subject::Account(_) => "account",
        };
        self.metrics.shut_outs.with_label_values(&[kind, offence.as_str()]).inc();
        let left = entry.until.since(now);
        tracing::warn!(%subject, reason = %entry.reason, times = entry.times, for_s = left.as_secs(), "shut out");
        self.send_away(subject, left);
    }

    /// Closes the sockets of an account that is shut out. Those of an address stay: their people have proved who they are
    /// and answer for themselves, and many may share the address with the one who offended.
    fn send_away(&self, subject: Subject, left: Duration) {
        if let Subject::Account(user) = subject {
            self.hub.close(user, None, close::RATE_LIMITED, Some(wait_ms(left)));
        }
    }

    /// Writes down and reads shut-outs with each poll. Never ends.
    pub(crate) async fn watch_shut_outs(&self) {
        let poll = Duration::from_millis(self.config.revocation_poll_ms);
        let mut polls: u32 = 0;
        loop {
            tokio::time::sleep(poll).await;
            // A store that hangs must not keep those here from being counted.
            let (written, read) = (self.write_shut_outs(poll * 2).await, self.read_shut_outs());
            let read = tokio::time::timeout(poll * 2, read).await;
            if !(written && matches!(read, Ok(Ok(())))) {
                tracing::warn!("shut-outs can't be shared with other edges now");
            }
            polls = polls.wrapping_add(1);
            if polls.is_multiple_of(PURGE_EVERY_POLLS) {
                self.purge_shut_outs().await;
            }
            if let Some(blocks) = &self.blocks {
                let count = blocks.lock().count(self.deps.clock.now());
                self.metrics.shut_outs_in_force.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }

    async fn write_shut_outs(&self, patience: Duration) -> bool {
        let Some(blocks) = &self.blocks else { return true };
        let entries = blocks.lock().take_unwritten(WRITE_MAX);
        if entries.is_empty() {
            return true;
        }
        let written = tokio::time::timeout(patience, self.deps.store.shut_out(entries.clone())).await;
        let written = matches!(written, Ok(Ok(())));
        if !written {
            blocks.lock().not_written(entries);
        }
        written
    }

    /// Enters what has changed in the store since the last time.
    pub(crate) async fn read_shut_outs(&self) -> Result<(), store::Error> {
        let Some(blocks) = &self.blocks else { return Ok(()) };
        loop {
            let after = *self.shut_outs_read.lock();
            let page: Vec<ShutOut> = self.deps.store.shut_outs(after).await?;
            for entry in &page {
                let now = self.deps.clock.now();
                let (was_out, began) = {
                    let mut blocks = blocks.lock();
                    (blocks.shut_out(&entry.subject, now).is_some(), blocks.apply(entry, now))
                };
                if let Some(left) = began {
                    self.send_away(entry.subject, left);
                }
                if was_out && entry.is_lifted() {
                    tracing::info!(subject = %entry.subject, "not shut out any more: lifted");
                }
            }
            if let Some(last) = page.last() {
                *self.shut_outs_read.lock() = last.number;
            }
            if page.len() < SHUT_OUTS_MAX {
                return Ok(());
            }
        }
    }

    async fn purge_shut_outs(&self) {
        let Some(limits) = &self.config.limits else { return };
        let quiet_ms = i64::try_from(limits.blocks.quiet().as_millis()).unwrap_or(i64::MAX);
        let before = schemas::Timestamp(self.deps.clock.now().0.saturating_sub(quiet_ms));
        if let Err(error) = self.deps.store.purge_shut_outs(before, PURGE_MAX).await {
            tracing::warn!(%error, "ended shut-outs can't be forgotten now");
        }
    }
}
