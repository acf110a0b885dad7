//! A bot that answers each "ping" in its room with "pong", once: what it had not answered when it was killed it answers
//! when it is back.
//!
//! `cargo run -p client --example bot -- http://127.0.0.1:8080 ./bot`

use std::sync::OnceLock;
use std::time::Duration;

use client::{Client, Credentials, Event, Listener, Retry, Settings};
use schemas::UserId;
use schemas::message::Content;

struct Bot {
    client: Client,
    me: OnceLock<UserId>,
}

#[async_trait::async_trait]
impl Listener for Bot {
    async fn on_receive(&self, event: &Event) -> Result<(), Retry> {
        let Event::Message { room, seq, sender, content: Some(content), .. } = event else { return Ok(()) };
        if Some(sender) == self.me.get() || content.body.as_deref() != Some("ping") {
            return Ok(());
        }
        // Durable on our side before we say that we are done with the ping. Where it can't be kept the ping comes again.
        match self.client.reply(*room, Content::text("pong"), Some(*seq)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Retry(Duration::from_secs(1))),
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(server), Some(dir)) = (arguments.next(), arguments.next()) else {
        anyhow::bail!("usage: bot SERVER DIRECTORY");
    };
    let me = Credentials::Password { username: "bot".into(), password: "a long secret of the bot".into() };
    let (client, worker) = Client::open(Settings::new(server, dir), me)?;
    let bot = Bot { client: client.clone(), me: OnceLock::from(client.rest().me().await?.id) };
    client.rest().join_or_create("lobby").await?;
    let (_stop, stopped) = tokio::sync::watch::channel(false);
    Ok(worker.run(bot, stopped).await?)
}
