//! Two edges, two fanouts, two archivers and two ingests, each on its own, with links between them: what is promised of a
//! server holds on whichever edge one happens to be. Real TCP and TLS, real frames; engines in memory.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use edge::config::{BlocksConfig, LimitsConfig};
use schemas::frame::close;
use serde_json::{Value, json};
use testkit::client::{Api, Person, Wire, dial, new_id};
use testkit::cluster::test_config;
use testkit::faulty::FaultyStore;
use testkit::network::{Edge, Network, Process, Server};
use tokio::io::AsyncWriteExt as _;
use tokio::time::{Instant, sleep, timeout};

/// Nothing here takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

struct World {
    network: Network,
    here: Edge,
    there: Edge,
    fanouts: Vec<Server>,
    archivers: Vec<Server>,
    ingests: Vec<Process>,
}

impl World {
    async fn new() -> Result<Self> {
        Self::with(test_config()).await
    }

    async fn with(config: edge::config::Config) -> Result<Self> {
        let network = Network::new(4).await?;
        let ingests = vec![network.ingest()?, network.ingest()?];
        let archivers = vec![network.archiver().await?, network.archiver().await?];
        let fanouts = vec![network.fanout().await?, network.fanout().await?];
        let (here, there) = (network.edge(config.clone()).await?, network.edge(config).await?);
        Ok(Self { network, here, there, fanouts, archivers, ingests })
    }

    /// The same person at the other edge.
    fn at(edge: &Edge, person: &Person) -> Person {
        let mut person = person.clone();
        person.api.address = edge.address;
        person
    }

    /// Ann here, Bob there, and their room.
    async fn two_in_a_room(&self) -> Result<(Person, Person, String)> {
        let ann = self.here.api().sign_up("ann").await?;
        let bob = self.there.api().sign_up("bob").await?;
        let room = ann.create_room(json!({"name": "tea", "visibility": "private", "history": "all"}), &[&bob]).await?;
        Ok((ann, bob, room))
    }
}

/// Asks until it is so.
async fn eventually(what: &str, mut look: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let looking = async {
        while !look().await? {
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    timeout(PATIENCE, looking).await.with_context(|| format!("{what} has not come about"))?
}

/// Reads until so many messages have come; their texts.
async fn texts(wire: &mut Wire, count: usize) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    while texts.len() < count {
        let message = wire.first("message").await?;
        texts.push(message["content"]["body"].as_str().context("a text")?.to_owned());
    }
    Ok(texts)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_at_one_edge_is_heard_at_the_other_once_and_in_order() -> Result<()> {
    let world = World::new().await?;
    let (ann, bob, room) = world.two_in_a_room().await?;
    let (mut anns, _) = ann.connect(json!({})).await?;
    let (mut bobs, _) = bob.connect(json!({})).await?;
    let said: Vec<String> = (0..40).map(|n| format!("message {n}")).collect();
    for text in &said {
        anns.send_message(&room, text).await?;
    }
    ensure!(texts(&mut bobs, 40).await? == said);
    for _ in 0..40 {
        anns.first("accepted").await?;
    }
    Ok(())
}

/// The seqs that the sockets of a room see while links are cut and a fanout dies must be dense all the same.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_doubled_while_links_are_cut_and_a_fanout_dies() -> Result<()> {
    let mut world = World::new().await?;
    let (ann, bob, _) = world.two_in_a_room().await?;
    // Rooms of every partition.
    let mut rooms = Vec::new();
    for n in 0..8 {
        let settings = json!({"name": format!("room {n}"), "visibility": "private", "history": "all"});
        rooms.push(ann.create_room(settings, &[&bob]).await?);
    }
    let (mut bobs, _) = bob.connect(json!({})).await?;
    let speaker = ann.clone();
    let spoken_in = rooms.clone();
    let speaking = tokio::spawn(async move {
        let mut accepted = 0;
        let mut unknown = Vec::new();
        for n in 0..60 {
            let room = &spoken_in[n % spoken_in.len()];
            let id = testkit::client::new_id();
            let body = json!({"client_msg_id": id, "content": {"type": "text/plain", "body": format!("{n}")}});
            // As a client does: the same id until there is an outcome.
            let said = timeout(PATIENCE, async {
                loop {
                    let reply = speaker.api.post(&format!("/v1/rooms/{room}/messages"), body.clone()).await?;
                    if [200, 201].contains(&reply.status.as_u16()) {
                        return anyhow::Ok(());
                    }
                    ensure!(reply.status == 503, "{} {}", reply.status, reply.body);
                    sleep(Duration::from_millis(50)).await;
                }
            });
            match said.await {
                Ok(said) => {
                    said?;
                    accepted += 1;
                }
                Err(_) => unknown.push(n),
            }
            sleep(Duration::from_millis(30)).await;
        }
        ensure!(unknown.is_empty(), "{accepted} accepted, no outcome of {unknown:?}");
        anyhow::Ok(())
    });
    sleep(Duration::from_millis(300)).await;
    world.fanouts[0].relay.cut();
    world.fanouts[1].relay.cut();
    sleep(Duration::from_millis(400)).await;
    let dying = world.fanouts.remove(0);
    dying.process.kill().await;
    sleep(Duration::from_millis(400)).await;
    world.archivers.remove(0).process.kill().await;
    world.fanouts.push(world.network.fanout().await?);
    world.archivers.push(world.network.archiver().await?);
    speaking.await??;
    let mut heard: Vec<usize> = Vec::new();
    for text in texts(&mut bobs, 60).await? {
        heard.push(text.parse()?);
    }
    // Each room's in order; all once.
    for n in 0..rooms.len() {
        let of_room: Vec<usize> = heard.iter().copied().filter(|m| m % rooms.len() == n).collect();
        ensure!(of_room.is_sorted() && of_room.windows(2).all(|pair| pair[0] < pair[1]), "{of_room:?}");
    }
    let mut all = heard.clone();
    all.sort_unstable();
    ensure!(all == (0..60).collect::<Vec<_>>(), "{heard:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_that_dies_costs_nothing_that_was_accepted() -> Result<()> {
    let mut world = World::new().await?;
    let (ann, bob, room) = world.two_in_a_room().await?;
    let (mut bobs, _) = bob.connect(json!({})).await?;
    for n in 0..10 {
        let id = testkit::client::new_id();
        if n == 5 {
            world.ingests.remove(0).kill().await;
        }
        eventually("an answer", async || {
            let body = json!({"client_msg_id": id, "content": {"type": "text/plain", "body": format!("{n}")}});
            let reply = ann.api.post(&format!("/v1/rooms/{room}/messages"), body).await?;
            ensure!([200, 201, 503].contains(&reply.status.as_u16()), "{} {}", reply.status, reply.body);
            Ok(reply.status != 503)
        })
        .await?;
    }
    let expected: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    ensure!(texts(&mut bobs, 10).await? == expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn signing_out_at_one_edge_closes_the_sockets_at_the_other_within_two_seconds() -> Result<()> {
    let world = World::new().await?;
    let ann = world.here.api().sign_up("ann").await?;
    let there = World::at(&world.there, &ann);
    let (mut socket, _) = there.connect(json!({})).await?;
    let began = Instant::now();
    let reply = ann.api.post("/v1/auth/sign-out", json!(null)).await?;
    ensure!(reply.status == 204, "{} {}", reply.status, reply.body);
    let code = socket.close_code().await?;
    let took = began.elapsed();
    ensure!(code == close::SIGNED_OUT, "{code}");
    ensure!(took < Duration::from_secs(2), "{took:?}");
    there.api.get("/v1/me").await?.refused(401, "token_revoked")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_can_not_read_what_was_taken_back_trusts_nobody_and_says_so() -> Result<()> {
    let network = Network::new(2).await?;
    let _ingest = network.ingest()?;
    let _archiver = network.archiver().await?;
    let _fanout = network.fanout().await?;
    let store = Arc::new(FaultyStore::new(Arc::clone(&network.store)));
    let (near, far) = (network.edge(test_config()).await?, network.edge_on(test_config(), store.clone()).await?);
    let ann = near.api().sign_up("ann").await?;
    let there = World::at(&far, &ann);
    let (mut socket, _) = there.connect(json!({})).await?;
    ensure!(there.api.get("/v1/me").await?.status == 200);
    store.cut_off(true);
    let began = Instant::now();
    let code = socket.close_code().await?;
    let took = began.elapsed();
    ensure!(code == 1013, "{code}");
    ensure!(took > Duration::from_secs(4) && took < Duration::from_secs(7), "{took:?}");
    ensure!(there.api.get("/v1/me").await?.status == 503);
    ensure!(ann.api.get("/v1/me").await?.status == 200, "the other edge goes on");
    store.cut_off(false);
    eventually("trust", async || Ok(there.api.get("/v1/me").await?.status == 200)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_at_one_edge_is_read_at_the_other() -> Result<()> {
    let world = World::new().await?;
    let (ann, bob, room) = world.two_in_a_room().await?;
    for n in 0..20 {
        let said = ann.post(&room, &format!("{n}")).await?;
        let page = bob.api.get(&format!("/v1/rooms/{room}/messages")).await?.expect(200)?;
        let last = page["items"].as_array().and_then(|items| items.last()).context("a page")?.clone();
        ensure!(last["seq"] == said["seq"] && page["head_seq"] == said["seq"], "{n}: {last}");
    }
    let made = ann.create_room(json!({"name": "new", "visibility": "private", "history": "all"}), &[&bob]).await?;
    let listed = bob.api.get("/v1/rooms").await?.expect(200)?.to_string();
    ensure!(listed.contains(&made), "{listed}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_and_the_list_of_those_online_know_both_edges() -> Result<()> {
    let world = World::new().await?;
    let (ann, bob, room) = world.two_in_a_room().await?;
    let (mut anns, _) = ann.connect(json!({})).await?;
    let (bobs, _) = bob.connect(json!({})).await?;
    let is_of_bob = |frame: &Value, online: bool| {
        frame["type"] == "presence" && frame["user"] == bob.id && frame["online"] == online
    };
    anns.until(|frame| is_of_bob(frame, true)).await?;
    let online = async |person: &Person, who: &str| -> Result<bool> {
        let members = person.api.get(&format!("/v1/rooms/{room}/online")).await?.expect(200)?;
        Ok(members["items"].as_array().context("members")?.iter().any(|member| member["user"] == who))
    };
    for person in [&ann, &bob] {
        eventually("both online", async || Ok(online(person, &ann.id).await? && online(person, &bob.id).await?))
            .await?;
    }
    drop(bobs);
    eventually("one online", async || Ok(!online(&ann, &bob.id).await? && online(&ann, &ann.id).await?)).await?;
    anns.until(|frame| is_of_bob(frame, false)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_one_edge_begins_to_sign_with_the_other_knows() -> Result<()> {
    let world = World::new().await?;
    let keys = async |edge: &Edge| -> Result<Vec<String>> {
        let set = edge.api().get("/.well-known/jwks.json").await?.expect(200)?;
        let mut ids: Vec<String> =
            set["keys"].as_array().into_iter().flatten().map(|key| key["kid"].to_string()).collect();
        ids.sort();
        Ok(ids)
    };
    ensure!(!keys(&world.here).await?.is_empty());
    eventually("the same keys", async || Ok(keys(&world.here).await? == keys(&world.there).await?)).await?;
    let ann = world.here.api().sign_up("ann").await?;
    ensure!(World::at(&world.there, &ann).api.get("/v1/me").await?.status == 200);
    let bob = world.there.api().sign_up("bob").await?;
    ensure!(World::at(&world.here, &bob).api.get("/v1/me").await?.status == 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_uses_up_at_one_edge_is_used_up_at_the_other() -> Result<()> {
    let limits = Some(LimitsConfig { send_burst: 6, sends_per_s: 0.01, ..LimitsConfig::default() });
    let world = World::with(edge::Config { limits, ..test_config() }).await?;
    let (ann, bob, room) = world.two_in_a_room().await?;
    let send = async |who: &Person| -> Result<u16> {
        let body = json!({"client_msg_id": new_id(), "content": {"type": "text/plain", "body": "hello"}});
        Ok(who.api.post(&format!("/v1/rooms/{room}/messages"), body).await?.status.as_u16())
    };
    for _ in 0..6 {
        ensure!(send(&ann).await? == 201);
    }
    ensure!(send(&ann).await? == 429);
    let ann = World::at(&world.there, &ann);
    // Each look takes one, should they not have heard there: the six would be used up after the sixth.
    for look in 0..5 {
        sleep(Duration::from_secs(1 << look)).await;
        if send(&ann).await? == 429 {
            ensure!(send(&bob).await? == 201, "nobody else is short of any");
            return Ok(());
        }
    }
    anyhow::bail!("the other edge does not know")
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_that_a_person_holds_at_one_edge_take_their_places_at_the_other() -> Result<()> {
    let limits = Some(LimitsConfig { sockets_per_user: 2, ..LimitsConfig::default() });
    let world = World::with(edge::Config { limits, ..test_config() }).await?;
    let (ann, bob, _) = world.two_in_a_room().await?;
    let there = World::at(&world.there, &ann);
    let is_full = async || {
        sleep(Duration::from_millis(200)).await;
        match there.connect(json!({})).await {
            Ok(_) => Ok(false),
            Err(error) if error.to_string().starts_with("closed: 4003 ") => Ok(true),
            Err(error) => Err(error),
        }
    };
    let held = (ann.connect(json!({})).await?, ann.connect(json!({})).await?);
    eventually("no place there", is_full).await?;
    bob.connect(json!({})).await.context("others have places of their own")?;
    drop(held);
    eventually("a place there", async || Ok(!is_full().await?)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_one_edge_shuts_out_the_other_shuts_out_too() -> Result<()> {
    let blocks = BlocksConfig { first_ms: 60_000, forgiven_per_s: 0.0, ..BlocksConfig::default() };
    let limits = Some(LimitsConfig { blocks, ..LimitsConfig::default() });
    let world = World::with(edge::Config { limits, ..test_config() }).await?;
    let get = |edge: &Edge, from: [u8; 4]| {
        let api = Api { from: Some(IpAddr::from(from)), ..edge.api() };
        async move { api.get("/.well-known/jwks.json").await }
    };
    ensure!(get(&world.there, [127, 0, 9, 1]).await?.status == 200);
    eventually("being shut out here", async || {
        let mut stream = dial(world.here.address, Some(IpAddr::from([127, 0, 9, 1]))).await?;
        // Whoever is turned away may find the connection reset.
        let _ = stream.write_all(b"nonsense\r\n\r\n").await;
        Ok(get(&world.here, [127, 0, 9, 1]).await.is_err())
    })
    .await?;
    eventually("being shut out there", async || Ok(get(&world.there, [127, 0, 9, 1]).await.is_err())).await?;
    ensure!(get(&world.there, [127, 0, 8, 1]).await?.status == 200, "nobody else is");
    Ok(())
}
