//! How far each consumer group is behind the end of what it reads. Looked at every few seconds, from outside: no message
//! waits for it. A group commits at its own pace (fanout and archiver about once a second), so that under load the lag
//! of one that keeps up is about what comes in that time.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use prometheus::{IntGaugeVec, Opts, Registry};
use schemas::{Partition, Topic};
use stream::Log;

use crate::readers::Group;

/// Pause between two looks: short beside the usual 15 s between two scrapes.
const INTERVAL: Duration = Duration::from_secs(2);

/// The duty of looking.
pub struct Lag {
    log: Arc<dyn Log>,
    groups: Vec<Group>,
    records: IntGaugeVec,
}

impl Lag {
    /// Registers the metric; drive [`Lag::run`].
    pub fn new(log: Arc<dyn Log>, groups: Vec<Group>, registry: &Registry) -> Result<Self, prometheus::Error> {
        let help = "Records between what a consumer group has committed and the end, by group and topic.";
        let records = IntGaugeVec::new(Opts::new("posthaste_log_lag_records", help), &["group", "topic"])?;
        registry.register(Box::new(records.clone()))?;
        Ok(Self { log, groups, records })
    }

    /// Looks again and again. Never ends.
    pub async fn run(self) {
        loop {
            for (group, topic) in pairs(&self.groups) {
                match of(&*self.log, group, topic).await {
                    Ok(lag) => {
                        let gauge = self.records.with_label_values(&[group, topic.name()]);
                        gauge.set(i64::try_from(lag).unwrap_or(i64::MAX));
                    }
                    Err(error) => tracing::warn!(group, %topic, %error, "the lag can't be told"),
                }
            }
            tokio::time::sleep(INTERVAL).await;
        }
    }
}

/// How far each group is behind in each of its topics, records.
pub async fn all(log: &dyn Log, groups: &[Group]) -> Result<Vec<(&'static str, Topic, u64)>, stream::Error> {
    let mut all = Vec::new();
    for (group, topic) in pairs(groups) {
        all.push((group, topic, of(log, group, topic).await?));
    }
    Ok(all)
}

fn pairs(groups: &[Group]) -> impl Iterator<Item = (&'static str, Topic)> {
    groups.iter().flat_map(|(group, topics)| topics.iter().map(|topic| (*group, *topic)))
}

/// Over all partitions.
async fn of(log: &dyn Log, group: &str, topic: Topic) -> Result<u64, stream::Error> {
    let of_one = |partition| async move {
        let position = match log.committed(group, topic, partition).await? {
            Some(position) => position,
            None => log.start(topic, partition).await?,
        };
        // Asked last: it may only have moved on since.
        Ok(log.end(topic, partition).await?.0.saturating_sub(position.0))
    };
    Ok(try_join_all((0..log.partitions()).map(Partition).map(of_one)).await?.into_iter().sum())
}
