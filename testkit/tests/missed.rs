//! A batch that is lost on its way from fanout to an edge: whoever waits for an outcome in it gets it all the same (I6).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edge::config::{Config, PasswordConfig};
use schemas::link::{FanoutPort, Item};
use serde_json::{Value, json};
use testkit::client::{Person, new_id};
use testkit::cluster::{Between, Cluster};
use testkit::faulty::FaultyFanout;
use tokio::time::Instant;

/// The next batch that brings an event or an outcome shall be lost.
static LOSE: AtomicBool = AtomicBool::new(false);

/// Far below a command's deadline, after which its sender would be told that nothing is known.
const SOON: Duration = Duration::from_secs(4);

fn lossy(fanout: Arc<dyn FanoutPort>) -> Arc<dyn FanoutPort> {
    Arc::new(FaultyFanout::new(fanout, |batch| {
        let brings = batch.items.iter().any(|item| matches!(item, Item::Event(_) | Item::Outcome(_)));
        if brings && LOSE.swap(false, Ordering::SeqCst) {
            // As if it had not come: the next one begins where this one would have ended.
            batch.items.clear();
            batch.to = batch.from;
        }
    }))
}

/// Once a batch has been lost, lets the edge see it by the next one.
async fn reveal(bob: &Person, room: &str, text: &str) -> Result<()> {
    let lost = async {
        while LOSE.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(SOON, lost).await.context("nothing was lost")?;
    bob.post(room, text).await?;
    Ok(())
}

#[tokio::test]
async fn who_waits_for_an_outcome_that_was_lost_gets_it_and_nothing_acts_twice() -> Result<()> {
    let config = Config {
        limits: None,
        password: PasswordConfig { memory_kib: 64, passes: 1, ..PasswordConfig::default() },
        ..Config::default()
    };
    let between = Between { fanout: lossy, ..Between::default() };
    let cluster = Cluster::start_between(config, between, ([127, 0, 0, 1], 0).into()).await?;
    let (ann, bob, eve) =
        (cluster.api().sign_up("ann").await?, cluster.api().sign_up("bob").await?, cluster.api().sign_up("eve").await?);
    let settings = json!({"name": "tea", "visibility": "private", "history": "all"});
    let tea = ann.create_room(settings.clone(), &[&bob]).await?;
    let coffee = ann.create_room(settings, &[]).await?;
    let (mut follower, _) = ann.connect(json!({})).await?;
    let (mut elsewhere, _) = ann.connect(json!({"rooms": [coffee]})).await?;
    let (mut stranger, _) = eve.connect(json!({})).await?;

    // A socket that does not follow the room would hear of it in no other way.
    LOSE.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let id = elsewhere.send_message(&tea, "from elsewhere").await?;
    reveal(&bob, &tea, "one").await?;
    let accepted = elsewhere.first("accepted").await?;
    ensure!(accepted["client_msg_id"] == id && accepted["duplicate"] == true, "{accepted}");
    ensure!(began.elapsed() < SOON, "{:?}", began.elapsed());

    // A call.
    LOSE.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let body = json!({"client_msg_id": new_id(), "content": {"type": "text/plain", "body": "by a call"}});
    let path = format!("/v1/rooms/{tea}/messages");
    let (posted, revealed) = tokio::join!(ann.api.post(&path, body), reveal(&bob, &tea, "two"));
    revealed?;
    ensure!(posted?.expect(200)?["content"]["body"] == "by a call");
    ensure!(began.elapsed() < SOON, "{:?}", began.elapsed());

    // A rejection.
    LOSE.store(true, Ordering::SeqCst);
    let began = Instant::now();
    let id = stranger.send_message(&tea, "let me in").await?;
    reveal(&bob, &tea, "three").await?;
    let rejected = stranger.first("rejected").await?;
    ensure!(rejected["client_msg_id"] == id && rejected["code"] == "not_a_member", "{rejected}");
    ensure!(began.elapsed() < SOON, "{:?}", began.elapsed());

    // A socket that follows the room reads what it missed, its own message among it: it is told once, or once more as
    // of a repeat, but never that anything is unknown.
    follower.until(|frame| frame["content"]["body"] == "three").await?;
    LOSE.store(true, Ordering::SeqCst);
    let id = follower.send_message(&tea, "from within").await?;
    reveal(&bob, &tea, "four").await?;
    let mut seen = follower.until(|frame| frame["content"]["body"] == "four").await?;
    let last = follower.send_message(&tea, "the last").await?;
    seen.extend(follower.until(|frame| frame["client_msg_id"] == last).await?);
    let in_place = |frame: &&Value| frame["client_msg_id"] == id && frame["duplicate"] == false;
    ensure!(seen.iter().filter(in_place).count() == 1, "{seen:?}");
    ensure!(!seen.iter().any(|frame| frame["type"] == "rejected"), "{seen:?}");

    let page = bob.api.get(&format!("/v1/rooms/{tea}/messages?limit=100")).await?.expect(200)?;
    let said: Vec<&str> =
        page["items"].as_array().context("items")?.iter().filter_map(|item| item["content"]["body"].as_str()).collect();
    let once = ["from elsewhere", "one", "by a call", "two", "three", "from within", "four", "the last"];
    ensure!(said == once, "{said:?}");
    cluster.stop().await
}
