//! What a socket is promised (protocol.md), seen from outside: real TCP, real frames, the roles wired as in one process.

use anyhow::{Context, Result, ensure};
use hyper::Method;
use schemas::Entropy;
use schemas::limits::FRAME_MAX_BYTES;
use serde_json::{Value, json};
use testkit::client::{Person, Wire, new_id};
use testkit::clock::Seeded;
use testkit::cluster::Cluster;
use tokio_tungstenite::tungstenite::Error as WsError;

/// A server and two members of one room.
async fn two_in_a_room(cluster: &Cluster) -> Result<(Person, Person, String)> {
    let ann = cluster.api().sign_up("ann").await?;
    let bob = cluster.api().sign_up("bob").await?;
    let room = ann.create_room(json!({"name": "tea", "visibility": "private", "history": "all"}), &[&bob]).await?;
    Ok((ann, bob, room))
}

/// Seqs of a room's durable events among frames.
fn seqs(frames: &[Value], room: &str) -> Vec<u64> {
    frames
        .iter()
        .filter(|frame| frame["room"] == room && frame["type"] != "receipt" && frame["type"] != "gap")
        .filter_map(|frame| frame["seq"].as_u64())
        .collect()
}

async fn head(person: &Person, room: &str) -> Result<u64> {
    let page = person.api.get(&format!("/v1/rooms/{room}/messages")).await?.expect(200)?;
    page["head_seq"].as_u64().context("a head")
}

#[tokio::test]
async fn a_message_reaches_everyone_once_and_its_sender_as_accepted_in_its_place() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, bob, room) = two_in_a_room(&cluster).await?;
    let (mut phone, _) = ann.connect(json!({})).await?;
    let (mut laptop, _) = ann.connect(json!({})).await?;
    let (mut other, _) = bob.connect(json!({})).await?;

    let id = phone.send_message(&room, "hello").await?;
    let accepted = phone.first("accepted").await?;
    ensure!(accepted["client_msg_id"] == id && accepted["duplicate"] == false, "{accepted}");
    let mine = laptop.first("message").await?;
    ensure!(mine["client_msg_id"] == id && mine["seq"] == accepted["seq"], "{mine}");
    let theirs = other.first("message").await?;
    ensure!(theirs["client_msg_id"].is_null() && theirs["content"]["body"] == "hello", "{theirs}");
    ensure!(theirs["sender"] == ann.id && theirs["id"] == accepted["id"], "{theirs}");
    ensure!(theirs["sent_at"] == accepted["sent_at"], "{theirs}");

    let page = bob.api.get(&format!("/v1/rooms/{room}/messages")).await?.expect(200)?;
    let last = page["items"].as_array().and_then(|items| items.last()).context("a page")?;
    ensure!(last == &theirs, "history and socket agree: {last} {theirs}");
    cluster.stop().await
}

#[tokio::test]
async fn whoever_comes_back_gets_exactly_what_they_missed() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, bob, room) = two_in_a_room(&cluster).await?;
    let (wire, _) = bob.connect(json!({})).await?;
    let cursor = head(&bob, &room).await?;
    drop(wire);
    for n in 0..5 {
        ann.post(&room, &format!("missed {n}")).await?;
    }
    let (mut wire, missed) = bob.connect(json!({"resume": {room.clone(): cursor}})).await?;
    ensure!(seqs(&missed, &room) == (cursor + 1..=cursor + 5).collect::<Vec<_>>(), "{missed:?}");
    ann.post(&room, "live").await?;
    ensure!(wire.first("message").await?["seq"] == cursor + 6);
    cluster.stop().await
}

#[tokio::test]
async fn without_a_cursor_a_socket_goes_on_at_the_delivered_watermark() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, bob, room) = two_in_a_room(&cluster).await?;
    let (mut first, missed) = bob.connect(json!({})).await?;
    let joined = seqs(&missed, &room);
    ensure!(joined.first() == Some(&3), "it starts with the join's own event: {missed:?}");
    let seq = ann.post(&room, "one").await?["seq"].as_u64().context("a seq")?;
    first.first("message").await?;
    let (mut watcher, _) = ann.connect(json!({})).await?;
    first.send(json!({"type": "delivered", "room": room, "seq": seq})).await?;
    let receipt = watcher.first("receipt").await?;
    ensure!(receipt["user"] == bob.id && receipt["delivered_seq"] == seq, "{receipt}");
    drop(first);
    ann.post(&room, "two").await?;
    let (_second, missed) = bob.connect(json!({})).await?;
    ensure!(seqs(&missed, &room) == [seq + 1], "{missed:?}");
    cluster.stop().await
}

#[tokio::test]
async fn a_send_before_what_was_missed_is_accepted_once_and_in_its_place() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, bob, room) = two_in_a_room(&cluster).await?;
    let cursor = head(&ann, &room).await?;
    for n in 0..20 {
        for m in 0..3 {
            bob.post(&room, &format!("missed {n} {m}")).await?;
        }
        let before = cursor + 4 * n;
        let mut wire = Wire::open(cluster.address()).await?;
        wire.send(json!({"type": "hello", "token": ann.api.token, "resume": {room.clone(): before}})).await?;
        wire.send_message(&room, "in a hurry").await?;
        let mut stream = Vec::new();
        while stream.len() < 4 {
            let frame = wire.next().await?;
            if frame["type"] == "message" || frame["type"] == "accepted" {
                stream.push((frame["seq"].as_u64(), frame["type"] == "accepted"));
            }
        }
        let expected: Vec<_> = (1..=4).map(|step| (Some(before + step), step == 4)).collect();
        ensure!(stream == expected, "{stream:?}, expected {expected:?}");
    }
    cluster.stop().await
}

#[tokio::test]
async fn one_id_makes_one_message_over_any_socket_and_rest() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, bob, room) = two_in_a_room(&cluster).await?;
    let (mut phone, _) = ann.connect(json!({})).await?;
    let (mut laptop, _) = ann.connect(json!({})).await?;
    let id = phone.send_message(&room, "once").await?;
    let first = phone.first("accepted").await?;
    laptop.resend_message(&room, &id, "another body").await?;
    let second = laptop.first("accepted").await?;
    ensure!(second["duplicate"] == true, "{second}");
    for field in ["seq", "id", "sent_at", "client_msg_id"] {
        ensure!(first[field] == second[field], "{first} {second}");
    }
    let body = json!({"client_msg_id": id, "content": {"type": "text/plain", "body": "a third body"}});
    let third = ann.api.post(&format!("/v1/rooms/{room}/messages"), body).await?.expect(200)?;
    ensure!(third["seq"] == first["seq"] && third["content"]["body"] == "once", "{third}");
    // The id is the sender's own: another person's same id is another message.
    let body = json!({"client_msg_id": id, "content": {"type": "text/plain", "body": "bob's"}});
    let bobs = bob.api.post(&format!("/v1/rooms/{room}/messages"), body).await?.expect(201)?;
    ensure!(bobs["seq"].as_u64() > first["seq"].as_u64());
    cluster.stop().await
}

#[tokio::test]
async fn more_than_a_thousand_missed_are_a_gap_that_history_fills() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, bob, room) = two_in_a_room(&cluster).await?;
    let cursor = head(&bob, &room).await?;
    let (mut wire, _) = ann.connect(json!({})).await?;
    for n in 0..1_100 {
        wire.send_message(&room, &format!("message {n}")).await?;
        if n % 100 == 99 {
            // In steps, so that the limits of a burst are not what is tested.
            for _ in 0..100 {
                wire.first("accepted").await?;
            }
        }
    }
    let (_bob, missed) = bob.connect(json!({"resume": {room.clone(): cursor}})).await?;
    let gaps: Vec<&Value> = missed.iter().filter(|frame| frame["type"] == "gap").collect();
    ensure!(gaps.len() == 1 && gaps[0]["from_seq"] == cursor + 1 && gaps[0]["readable"] == true, "{gaps:?}");
    ensure!(gaps[0]["to_seq"] == cursor + 1_100, "{gaps:?}");
    let mut next = cursor;
    while next < cursor + 1_100 {
        let page = bob.api.get(&format!("/v1/rooms/{room}/messages?after={next}&limit=100")).await?.expect(200)?;
        for item in page["items"].as_array().context("items")? {
            next += 1;
            ensure!(item["seq"] == next, "{item}");
        }
    }
    cluster.stop().await
}

#[tokio::test]
async fn a_removed_member_gets_the_removal_and_nothing_after_it_and_a_gap_when_added_again() -> Result<()> {
    let cluster = Cluster::start().await?;
    let ann = cluster.api().sign_up("ann").await?;
    let bob = cluster.api().sign_up("bob").await?;
    let settings = json!({"name": "tea", "visibility": "private", "history": "since_joined"});
    let room = ann.create_room(settings, &[&bob]).await?;
    let (mut wire, _) = bob.connect(json!({})).await?;
    let membership = format!("/v1/rooms/{room}/members/{}", bob.id);
    ann.api.delete(&membership).await?.expect(204)?;
    let removed = wire.first("member").await?;
    ensure!(removed["change"] == "removed" && removed["user"] == bob.id, "{removed}");
    let at = removed["seq"].as_u64().context("a seq")?;
    ann.post(&room, "secret").await?;
    ann.api.call(Method::PUT, &membership, Some(json!({"role": "member"}))).await?;
    let between = wire.until(|frame| frame["type"] == "member").await?;
    ensure!(!between.iter().any(|frame| frame["type"] == "message"), "{between:?}");
    let gap = between.iter().find(|frame| frame["type"] == "gap").context("a gap")?;
    ensure!(gap["from_seq"] == at + 1 && gap["to_seq"] == at + 1 && gap["readable"] == false, "{gap}");
    let page = bob.api.get(&format!("/v1/rooms/{room}/messages")).await?.expect(200)?;
    let shown: Vec<u64> = page["items"].as_array().context("items")?.iter().filter_map(|e| e["seq"].as_u64()).collect();
    ensure!(!shown.contains(&(at + 1)) && shown.contains(&at) && shown.contains(&(at + 2)), "{shown:?}");
    cluster.stop().await
}

#[tokio::test]
async fn whoever_was_removed_while_away_is_told_up_to_the_removal() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, bob, room) = two_in_a_room(&cluster).await?;
    ann.post(&room, "seen").await?;
    ann.api.delete(&format!("/v1/rooms/{room}/members/{}", bob.id)).await?.expect(204)?;
    ann.post(&room, "secret").await?;
    let (_wire, missed) = bob.connect(json!({})).await?;
    ensure!(seqs(&missed, &room) == [3, 4, 5], "the join, a message, the removal: {missed:?}");
    ensure!(!missed.iter().any(|frame| frame["content"]["body"] == "secret"), "{missed:?}");
    cluster.stop().await
}

#[tokio::test]
async fn a_room_joined_while_connected_starts_with_the_join() -> Result<()> {
    let cluster = Cluster::start().await?;
    let ann = cluster.api().sign_up("ann").await?;
    let bob = cluster.api().sign_up("bob").await?;
    let room = ann.create_room(json!({"name": "tea", "visibility": "public", "history": "all"}), &[]).await?;
    ann.post(&room, "before").await?;
    let (mut wire, _) = bob.connect(json!({})).await?;
    bob.api.put(&format!("/v1/rooms/{room}/members/me")).await?;
    ann.post(&room, "after").await?;
    let first = wire.first("member").await?;
    ensure!(first["change"] == "joined" && first["user"] == bob.id, "{first}");
    let second = wire.first("message").await?;
    ensure!(second["content"]["body"] == "after", "{second}");
    ensure!(second["seq"].as_u64() == first["seq"].as_u64().map(|seq| seq + 1));
    cluster.stop().await
}

#[tokio::test]
async fn sends_that_may_not_be_are_rejected_by_name() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, _bob, room) = two_in_a_room(&cluster).await?;
    let eve = cluster.api().sign_up("eve").await?;
    let (mut stranger, _) = eve.connect(json!({})).await?;
    for room in [room.as_str(), new_id().as_str()] {
        stranger.send_message(room, "let me in").await?;
        let rejected = stranger.first("rejected").await?;
        ensure!(rejected["code"] == "not_a_member" && rejected["room"] == room, "{rejected}");
    }
    let (mut wire, _) = ann.connect(json!({})).await?;
    wire.send_message(&room, &"x".repeat(64 * 1024 + 1)).await?;
    ensure!(wire.first("rejected").await?["code"] == "too_large");
    wire.resend_message(&room, "00000000-0000-4000-8000-000000000000", "not a v7").await?;
    ensure!(wire.first("rejected").await?["code"] == "invalid");
    let far_ahead = "0fffffff-ffff-7000-8000-000000000000";
    wire.resend_message(&room, far_ahead, "from the future").await?;
    ensure!(wire.first("rejected").await?["code"] == "invalid");
    cluster.stop().await
}

#[tokio::test]
async fn a_bad_first_frame_or_token_closes_with_its_code() -> Result<()> {
    let cluster = Cluster::start().await?;
    let address = cluster.address();
    for (first, code) in [
        ("not json", 4500),
        ("{\"type\":\"send\"}", 4500),
        ("{\"type\":\"hello\"}", 4501),
        ("{\"type\":\"hello\",\"token\":\"abc.def.ghi\"}", 4501),
    ] {
        let mut wire = Wire::open(address).await?;
        wire.send_text(first).await?;
        ensure!(wire.close_code().await? == code, "{first}");
    }
    cluster.stop().await
}

#[tokio::test]
async fn an_unknown_frame_is_answered_and_one_that_is_no_json_ends_the_socket() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, _bob, room) = two_in_a_room(&cluster).await?;
    let (mut wire, _) = ann.connect(json!({})).await?;
    wire.send(json!({"type": "dance"})).await?;
    wire.first("error").await?;
    wire.send(json!({"type": "delivered", "room": 5})).await?;
    wire.first("error").await?;
    wire.send_message(&room, "still here").await?;
    wire.first("accepted").await?;
    wire.send_text("{").await?;
    ensure!(wire.close_code().await? == 4500);
    cluster.stop().await
}

#[tokio::test]
async fn a_frame_over_the_limit_closes_and_its_sender_reads_why() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, ..) = two_in_a_room(&cluster).await?;
    // Several times: a connection closed with bytes unread would be reset, and whether the code is read before that
    // is chance.
    for _ in 0..10 {
        let (mut wire, _) = ann.connect(json!({})).await?;
        drop(wire.send_text(&"x".repeat(3 * FRAME_MAX_BYTES)).await);
        ensure!(wire.close_code().await? == 1009);
    }
    cluster.stop().await
}

#[tokio::test]
async fn a_page_of_another_origin_gets_no_socket() -> Result<()> {
    let cluster = Cluster::start().await?;
    let own = format!("http://{}", cluster.address());
    drop(Wire::open_with(cluster.address(), &[("origin", &own)]).await?);
    for origin in ["http://evil.example", "null", "https://127.0.0.1", &format!("{own}.evil.example")] {
        match Wire::open_with(cluster.address(), &[("origin", origin)]).await {
            Err(WsError::Http(response)) => ensure!(response.status().as_u16() == 403, "{origin}"),
            other => anyhow::bail!("{origin}: {:?}", other.err()),
        }
    }
    cluster.stop().await
}

#[tokio::test]
async fn receipts_reach_others_are_lowered_to_what_was_sent_and_mark_own_devices() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, bob, room) = two_in_a_room(&cluster).await?;
    let (mut watcher, _) = ann.connect(json!({})).await?;
    let (mut phone, _) = bob.connect(json!({})).await?;
    let (mut laptop, _) = bob.connect(json!({})).await?;
    let seq = ann.post(&room, "read me").await?["seq"].as_u64().context("a seq")?;
    phone.first("message").await?;
    phone.send(json!({"type": "read", "room": room, "seq": seq + 50})).await?;
    let receipt = watcher.first("receipt").await?;
    ensure!(receipt["read_seq"] == seq && receipt["delivered_seq"] == seq && receipt["user"] == bob.id, "{receipt}");
    let marker = laptop.first("read_marker").await?;
    ensure!(marker["read_seq"] == seq && marker["room"] == room, "{marker}");
    // A newcomer's socket is told how far the others are.
    let (_again, frames) = ann.connect(json!({})).await?;
    ensure!(
        frames.iter().any(|frame| frame["type"] == "receipt" && frame["user"] == bob.id && frame["read_seq"] == seq),
        "{frames:?}"
    );
    // Receipts are written behind, and nothing was promised about when.
    let mut page = Value::Null;
    for _ in 0..200 {
        page = ann.api.get(&format!("/v1/rooms/{room}/messages/{seq}/receipts")).await?.expect(200)?;
        if page["items"][0]["read_at"].is_string() {
            break;
        }
    }
    ensure!(page["items"][0]["user"] == bob.id && page["items"][0]["read_at"].is_string(), "{page}");
    cluster.stop().await
}

#[tokio::test]
async fn typing_and_presence_reach_the_others_in_the_room() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, bob, room) = two_in_a_room(&cluster).await?;
    let (mut watcher, _) = ann.connect(json!({})).await?;
    let (mut other, _) = bob.connect(json!({})).await?;
    let presence = watcher.first("presence").await?;
    ensure!(presence["user"] == bob.id && presence["online"] == true, "{presence}");
    other.send(json!({"type": "typing", "room": room})).await?;
    ensure!(watcher.first("typing").await?["user"] == bob.id);
    let online = ann.api.get(&format!("/v1/rooms/{room}/online")).await?.expect(200)?;
    ensure!(online.to_string().contains(&bob.id), "{online}");
    cluster.stop().await
}

#[tokio::test]
async fn signing_out_closes_the_sockets_of_that_device_alone() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, bob, room) = two_in_a_room(&cluster).await?;
    let (mut own, _) = ann.connect(json!({})).await?;
    let (mut other, _) = bob.connect(json!({})).await?;
    ann.api.call(Method::POST, "/v1/auth/sign-out", None).await?.expect(204)?;
    ensure!(own.close_code().await? == 4504);
    bob.post(&room, "still on").await?;
    other.first("message").await?;
    ann.api.get("/v1/me").await?.expect(401)?;
    let mut again = Wire::open(cluster.address()).await?;
    again.send(json!({"type": "hello", "token": ann.api.token})).await?;
    ensure!(again.close_code().await? == 4501);
    cluster.stop().await
}

#[tokio::test]
async fn a_socket_that_reads_slowly_misses_nothing() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, bob, room) = two_in_a_room(&cluster).await?;
    let (mut slow, missed) = bob.connect(json!({})).await?;
    let mut next = seqs(&missed, &room).last().copied().context("the join")?;
    let (mut fast, _) = ann.connect(json!({})).await?;
    // Far more than the kernel's buffers and the outbox hold together.
    let body = "x".repeat(60_000);
    for _ in 0..300 {
        fast.send_message(&room, &body).await?;
        fast.first("accepted").await?;
    }
    let end = head(&ann, &room).await?;
    while next < end {
        let frame = slow.next().await?;
        if frame["type"] == "message" {
            next += 1;
            ensure!(frame["seq"] == next, "expected {next}, got {}", frame["seq"]);
        }
        ensure!(frame["type"] != "gap", "300 missed events are no gap: {frame}");
    }
    cluster.stop().await
}

#[tokio::test]
async fn a_socket_limited_to_rooms_hears_of_these_alone() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, bob, tea) = two_in_a_room(&cluster).await?;
    let coffee = ann.create_room(json!({"name": "coffee", "visibility": "private", "history": "all"}), &[&bob]).await?;
    let (mut wire, missed) = bob.connect(json!({"rooms": [tea]})).await?;
    ensure!(seqs(&missed, &coffee).is_empty(), "{missed:?}");
    ann.post(&coffee, "unheard").await?;
    ann.post(&tea, "heard").await?;
    ensure!(wire.first("message").await?["content"]["body"] == "heard");
    cluster.stop().await
}

#[tokio::test]
async fn a_deleted_room_says_so_and_is_gone() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (ann, bob, room) = two_in_a_room(&cluster).await?;
    let (mut wire, missed) = bob.connect(json!({})).await?;
    let cursor = seqs(&missed, &room).last().copied().context("the join")?;
    ann.api.delete(&format!("/v1/rooms/{room}")).await?.expect(204)?;
    let gone = wire.first("room").await?;
    ensure!(gone["changed"]["deleted"] == true && gone["seq"] == cursor + 1, "{gone}");
    bob.api.get(&format!("/v1/rooms/{room}")).await?.refused(404, "not_found")?;
    bob.api.get(&format!("/v1/rooms/{room}/messages")).await?.refused(404, "not_found")?;
    let (_late, missed) = bob.connect(json!({"resume": {room.clone(): cursor}})).await?;
    ensure!(missed.iter().any(|frame| frame["changed"]["deleted"] == true), "{missed:?}");
    cluster.stop().await
}

#[tokio::test]
async fn everything_accepted_is_there_after_a_restart_and_the_stream_goes_on() -> Result<()> {
    let mut cluster = Cluster::start_embedded().await?;
    let (ann, bob, room) = two_in_a_room(&cluster).await?;
    let cursor = head(&bob, &room).await?;
    let (mut wire, _) = ann.connect(json!({})).await?;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(wire.send_message(&room, &format!("before {n}")).await?);
        wire.first("accepted").await?;
    }
    drop(wire);
    cluster.restart().await?;
    let (ann, bob) = (cluster.again(&ann), cluster.again(&bob));
    let (mut wire, missed) = bob.connect(json!({"resume": {room.clone(): cursor}})).await?;
    ensure!(seqs(&missed, &room) == (cursor + 1..=cursor + 20).collect::<Vec<_>>(), "{missed:?}");
    let (mut sender, _) = ann.connect(json!({})).await?;
    sender.resend_message(&room, &ids[3], "again").await?;
    let accepted = sender.first("accepted").await?;
    ensure!(accepted["duplicate"] == true && accepted["seq"] == cursor + 4, "{accepted}");
    sender.send_message(&room, "after").await?;
    ensure!(wire.first("message").await?["seq"] == cursor + 21);
    cluster.stop().await
}

#[tokio::test]
async fn whatever_bytes_a_client_sends_the_server_serves_on() -> Result<()> {
    let seed = std::process::id().into();
    println!("seed {seed}");
    let random = Seeded::new(seed);
    let cluster = Cluster::start().await?;
    let (ann, bob, room) = two_in_a_room(&cluster).await?;
    let valid = json!({"type": "send", "room": room, "client_msg_id": new_id(), "content": {"type": "text/plain"}});
    let valid = valid.to_string();
    for _ in 0..200 {
        // Something valid with bytes of it changed, cut or lengthened: it gets further than plain noise.
        let mut noise = [0_u8; 8];
        random.fill(&mut noise);
        let mut text = valid.clone().into_bytes();
        let (at, length) = (usize::from(noise[0]) % text.len(), usize::from(noise[1]) % text.len());
        match noise[2] % 4 {
            0 => text[at] = noise[3],
            1 => text.truncate(length),
            2 => text.extend_from_slice(&noise),
            _ => text = noise[..at % 8].to_vec(),
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        let (mut wire, _) = ann.connect(json!({})).await?;
        // The server may close at any of these: that is an answer too.
        drop(wire.send_text(&text).await);
        let mut first = Wire::open(cluster.address()).await?;
        drop(first.send_text(&text).await);
        let mut stranger = cluster.api();
        stranger.token = Some(text.chars().filter(|c| c.is_ascii_graphic()).collect());
        stranger.get("/v1/me").await?.expect(401)?;
        let path = format!("/v1/rooms/{room}/messages");
        let reply = bob.api.call_raw(Method::POST, &path, text.into_bytes()).await?;
        ensure!(reply.status.is_client_error() || reply.status.is_success(), "{}: {}", reply.status, reply.body);
    }
    ann.post(&room, "still here").await?;
    cluster.stop().await
}
