//! A sensor that reports once a second, through whatever network it has: each reading is on its disk before it is sent,
//! and reaches the server once and in order, though the device is switched off in between.
//!
//! `cargo run -p client --example sensor -- http://127.0.0.1:8080 ./sensor-7`

use std::time::Duration;

use client::{Client, Credentials, Event, Listener, Retry, Settings};
use schemas::message::Content;

/// A sensor only talks.
struct Deaf;

#[async_trait::async_trait]
impl Listener for Deaf {
    async fn on_receive(&self, _event: &Event) -> Result<(), Retry> {
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(server), Some(dir)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: sensor SERVER DIRECTORY");
    };
    let me = Credentials::Password { username: "sensor-7".into(), password: "a long secret of the device".into() };
    let (client, worker) = Client::open(Settings::new(server, dir), me)?;
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    let mut running = tokio::spawn(worker.run(Deaf, stopped));

    let room = client.rest().join_or_create("greenhouse").await?.id;
    let mut every_second = tokio::time::interval(Duration::from_secs(1));
    for reading in 0_u64.. {
        tokio::select! {
            _ = every_second.tick() => {}
            ended = &mut running => return Ok(ended??),
        }
        // Returns as soon as it is on this device's disk.
        let json = format!("{{\"reading\":{reading},\"celsius\":{}}}", 20 + reading % 5);
        let content = Content { mime: "application/json".into(), body: Some(json), data: None, media: None };
        let sending = client.send(room, content).await?;
        println!("reading {reading} is queued as {}", sending.id);
    }
    Ok(())
}
