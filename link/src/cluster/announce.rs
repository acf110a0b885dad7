//! Saying that one lives: every second, at once when one's ownership changes, and a last time when one goes.

use std::sync::Arc;
use std::time::Duration;

use schemas::cluster::{Instance, Owned, Role, Used};
use schemas::ids::InstanceId;
use schemas::link::UsagePort;
use schemas::{Clock, Record as _, Timestamp, Topic};
use stream::{Log, Record};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::PARTITION;
use crate::stopped;

/// Four of them to a lease.
const BEAT: Duration = Duration::from_secs(1);

/// A log that takes longer over one record will be asked again: what is said then is newer.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who one is.
#[derive(Clone, Debug)]
pub struct Me {
    /// New at each start.
    pub id: InstanceId,
    /// What one does.
    pub role: Role,
    /// Where one's link listens, `host:port` as others reach it; empty where nobody calls.
    pub address: String,
    /// Since when.
    pub started_at: Timestamp,
}

/// What one says beside.
pub struct News {
    /// What one owns; what it held last is said when its sender is gone.
    pub owned: watch::Receiver<Vec<Owned>>,
    /// Of an edge, the limits of people that all edges share.
    pub usage: Option<Arc<dyn UsagePort>>,
}

impl News {
    /// Of a role that owns partitions.
    pub fn owning(owned: watch::Receiver<Vec<Owned>>) -> Self {
        Self { owned, usage: None }
    }

    /// Of an edge.
    pub fn counting(usage: Arc<dyn UsagePort>) -> Self {
        Self { owned: watch::channel(Vec::new()).1, usage: Some(usage) }
    }
}

/// Says so until `shutdown` turns true or its sender is gone. A log that can't be written is tried again at the next beat:
/// until then others go by what they have heard. What was used is then not told at all: such a log takes no commands either.
pub async fn announce(
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    me: Me,
    news: News,
    mut shutdown: watch::Receiver<bool>,
) {
    let News { mut owned, usage } = news;
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut knows = true;
    while !*shutdown.borrow() {
        tokio::select! {
            _ = beat.tick() => {}
            changed = owned.changed(), if knows => knows = changed.is_ok(),
            () = stopped(&mut shutdown) => break,
        }
        let now_owned = owned.borrow_and_update().clone();
        let used = usage.as_ref().map(|usage| usage.take_used()).unwrap_or_default();
        say(&*log, &*clock, &me, (now_owned, used), false).await;
    }
    say(&*log, &*clock, &me, Default::default(), true).await;
}

async fn say(log: &dyn Log, clock: &dyn Clock, me: &Me, (owned, used): (Vec<Owned>, Vec<Used>), leaving: bool) {
    let Me { id, role, address, started_at } = me.clone();
    let value = Instance { id, role, address, started_at, at: clock.now(), owned, used, leaving }.encode();
    let record = Record { key: *id.as_bytes(), value };
    match timeout(PATIENCE, log.append(Topic::Cluster, PARTITION, vec![record])).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "others can't be told that this process lives"),
        Err(_) => tracing::warn!("others can't be told that this process lives: the log does not answer"),
    }
}
