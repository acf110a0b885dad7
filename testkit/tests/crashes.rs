//! One role crashes while people write: everything accepted reaches everyone exactly once and in order, over sockets
//! that stay open.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use serde_json::json;
use testkit::cluster::{Cluster, Role};

const ROUNDS: usize = 4;
const SENDS: usize = 25;

async fn nothing_is_lost_or_doubled(mut cluster: Cluster, role: Role) -> Result<()> {
    let ann = cluster.api().sign_up("ann").await?;
    let bob = cluster.api().sign_up("bob").await?;
    let room = ann.create_room(json!({"name": "tea", "visibility": "private", "history": "all"}), &[&bob]).await?;
    let (mut sender, _) = ann.connect(json!({})).await?;
    let (mut reader, missed) = bob.connect(json!({})).await?;
    let mut last = missed.iter().filter_map(|frame| frame["seq"].as_u64()).max().unwrap_or(0);

    let mut open = BTreeSet::new();
    for round in 0..ROUNDS {
        for n in 0..SENDS {
            open.insert(sender.send_message(&room, &format!("{round}.{n}")).await?);
        }
        cluster.crash(role).await?;
    }
    // An outcome that the crashed one took along is unknown: tried again under the same id.
    for id in open.clone() {
        sender.resend_message(&room, &id, "again").await?;
    }
    while !open.is_empty() {
        let frame = sender.next().await?;
        let id = frame["client_msg_id"].as_str().unwrap_or_default();
        if frame["type"] == "accepted" {
            open.remove(id);
        } else if frame["type"] == "rejected" && open.contains(id) {
            ensure!(frame["code"] == "unavailable", "{frame}");
            sender.resend_message(&room, id, "again").await?;
        }
    }
    let mut seen = BTreeSet::new();
    while seen.len() < ROUNDS * SENDS {
        let frame = reader.first("message").await?;
        last += 1;
        ensure!(frame["seq"] == last, "{last} was due: {frame}");
        ensure!(seen.insert(frame["id"].to_string()), "twice: {frame}");
    }
    ann.post(&room, "the end").await?;
    let end = reader.first("message").await?;
    ensure!(end["seq"] == last + 1 && end["content"]["body"] == "the end", "{end}");
    cluster.stop().await
}

#[tokio::test]
async fn when_ingest_crashes() -> Result<()> {
    nothing_is_lost_or_doubled(Cluster::start().await?, Role::Ingest).await
}

#[tokio::test]
async fn when_fanout_crashes() -> Result<()> {
    nothing_is_lost_or_doubled(Cluster::start().await?, Role::Fanout).await
}

#[tokio::test]
async fn when_the_archiver_crashes() -> Result<()> {
    nothing_is_lost_or_doubled(Cluster::start().await?, Role::Archiver).await
}

#[tokio::test]
async fn when_ingest_crashes_on_the_embedded_engines() -> Result<()> {
    nothing_is_lost_or_doubled(Cluster::start_embedded().await?, Role::Ingest).await
}

#[tokio::test]
async fn when_fanout_crashes_on_the_embedded_engines() -> Result<()> {
    nothing_is_lost_or_doubled(Cluster::start_embedded().await?, Role::Fanout).await
}

#[tokio::test]
async fn when_the_archiver_crashes_on_the_embedded_engines() -> Result<()> {
    nothing_is_lost_or_doubled(Cluster::start_embedded().await?, Role::Archiver).await
}
