//! The calls of the REST API from outside, with the real roles behind them: what each does, and who may not make it.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use common::{World, ids, person};
use edge::Config;
use edge::config::LimitsConfig;
use futures_util::future::join_all;
use schemas::Clock as _;
use serde_json::{Value, json};
use store::keys::Keys;

#[tokio::test(start_paused = true)]
async fn signing_up_gives_tokens_and_takes_the_name() {
    let w = World::new().await;
    let body = json!({"username": "Ada", "password": "difference engine", "email": "Ada@Example.org", "more": 1});
    let tokens = w.call("", "POST", "/v1/auth/sign-up", body).await.is(201);
    assert_eq!((tokens["token_type"].as_str(), tokens["expires_in"].as_u64()), (Some("Bearer"), Some(900)));
    let me = w.get(&person(&tokens), "/v1/me").await.is(200);
    assert_eq!(me["id"], tokens["user"]["id"]);
    assert_eq!((me["username"].as_str(), me["email"].as_str()), (Some("ada"), Some("ada@example.org")));
    let again = |username: &str, email: &str| json!({"username": username, "password": "long enough", "email": email});
    w.call("", "POST", "/v1/auth/sign-up", again("ADA", "x@example.org")).await.fails(409, "username_taken");
    w.call("", "POST", "/v1/auth/sign-up", again("eve", "ADA@example.org")).await.fails(409, "email_taken");
}

#[tokio::test(start_paused = true)]
async fn invalid_input_is_told_by_field() {
    let w = World::new().await;
    for (body, pointer) in [
        (json!({"password": "long enough"}), "#/username"),
        (json!({"username": "a b", "password": "long enough"}), "#/username"),
        (json!({"username": "ada", "password": "short"}), "#/password"),
        (json!({"username": "ada", "password": "x".repeat(1_025)}), "#/password"),
        (json!({"username": "ada", "password": 5}), "#/password"),
        (json!({"username": "ada", "password": "long enough", "email": "nobody"}), "#/email"),
        (json!([]), "#"),
        (json!(["ada", "long enough"]), "#"),
    ] {
        let problem = w.call("", "POST", "/v1/auth/sign-up", body.clone()).await.fails(422, "invalid");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{body}");
    }
    let broken = Request::post("/v1/auth/sign-up").body(Body::from("{\"username\": ")).unwrap();
    w.send(broken).await.fails(422, "invalid");
    let huge = Request::post("/v1/auth/sign-up").body(Body::from(vec![b' '; 300_000])).unwrap();
    w.send(huge).await.fails(413, "too_large");
    w.call("", "GET", "/v1/nowhere", Value::Null).await.fails(404, "not_found");
    w.call("", "PUT", "/v1/auth/sign-up", Value::Null).await.fails(405, "method_not_allowed");
}

#[tokio::test(start_paused = true)]
async fn signing_in_knows_the_password_and_signs_up_who_is_unknown() {
    let w = World::new().await;
    let sign_in = |body: Value| w.call("", "POST", "/v1/auth/sign-in", body);
    let first = sign_in(json!({"email": "ada.l@example.org", "password": "difference engine"})).await.is(201);
    assert_eq!(first["user"]["username"], "ada.l");
    let again = sign_in(json!({"email": "ADA.L@example.org", "password": "difference engine"})).await.is(200);
    assert_eq!(again["user"]["id"], first["user"]["id"]);
    assert_ne!(again["device"], first["device"]);
    sign_in(json!({"username": "ada.l", "password": "difference engine"})).await.is(200);
    let wrong = sign_in(json!({"username": "ada.l", "password": "wrong engine"})).await;
    let wrong = wrong.fails(401, "invalid_credentials");
    let unknown = sign_in(json!({"username": "nobody", "password": "wrong engine"})).await;
    let unknown = unknown.fails(401, "invalid_credentials");
    assert_eq!(wrong["detail"], unknown["detail"], "who exists is not told");
    // The same local part elsewhere is another person, with another name.
    let other = sign_in(json!({"email": "ada.l@example.com", "password": "another engine"})).await.is(201);
    assert_ne!(other["user"]["username"], "ada.l");
    sign_in(json!({"password": "difference engine"})).await.fails(422, "invalid");
    sign_in(json!({"email": "new@example.org", "password": "short"})).await.fails(422, "invalid");
}

#[tokio::test(start_paused = true)]
async fn one_unknown_address_at_many_doors_is_one_account() {
    let w = World::new().await;
    let body = json!({"email": "ada@example.org", "password": "difference engine"});
    let answers = join_all((0..10).map(|_| w.call("", "POST", "/v1/auth/sign-in", body.clone()))).await;
    let mut people: Vec<String> = answers.iter().map(|answer| answer.body["user"]["id"].to_string()).collect();
    people.sort();
    people.dedup();
    assert_eq!(people.len(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_spent_refresh_token_ends_the_whole_device() {
    let w = World::new().await;
    let ada = w.person("ada").await;
    let refresh = |token: &str| w.call("", "POST", "/v1/auth/refresh", json!({"refresh_token": token}));
    let answers = join_all((0..50).map(|_| refresh(&ada.refresh))).await;
    let second = person(&answers[0].body);
    for answer in answers {
        assert_eq!(answer.is(200)["refresh_token"], second.refresh);
    }
    w.get(&second, "/v1/me").await.is(200);
    tokio::time::sleep(Duration::from_secs(11)).await;
    refresh(&ada.refresh).await.fails(401, "token_reused");
    w.get(&second, "/v1/me").await.fails(401, "token_revoked");
    refresh(&second.refresh).await.fails(401, "token_expired");
    refresh("no token").await.fails(401, "unauthorized");
}

#[tokio::test(start_paused = true)]
async fn signing_out_kills_the_device_and_no_other() {
    let w = World::new().await;
    let phone = w.person("ada").await;
    let body = json!({"username": "ada", "password": "password of ada", "device_name": "laptop"});
    let laptop = person(&w.call("", "POST", "/v1/auth/sign-in", body).await.is(200));
    w.post(&phone, "/v1/auth/sign-out", Value::Null).await.is(204);
    w.get(&phone, "/v1/me").await.fails(401, "token_revoked");
    w.call("", "POST", "/v1/auth/refresh", json!({"refresh_token": phone.refresh})).await.fails(401, "token_expired");
    w.get(&laptop, "/v1/me").await.is(200);
}

#[tokio::test(start_paused = true)]
async fn a_person_sees_their_devices_and_signs_out_any_of_them_but_nobody_elses() {
    let w = World::new().await;
    let (phone, bob) = (w.person("ada").await, w.person("bob").await);
    let mut others = Vec::new();
    for name in ["laptop", "tablet"] {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let body = json!({"username": "ada", "password": "password of ada", "device_name": name});
        others.push(person(&w.call("", "POST", "/v1/auth/sign-in", body).await.is(200)));
    }
    let page = w.get(&phone, "/v1/me/devices").await.is(200);
    let items = page["items"].as_array().unwrap();
    let names: Vec<&str> = items.iter().map(|device| device["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["tablet", "laptop", ""], "newest first");
    let current: Vec<bool> = items.iter().map(|device| device["current"].as_bool().unwrap()).collect();
    assert_eq!(current, [false, false, true]);
    assert_eq!(items[2]["id"], phone.device.as_str());
    assert!(items[0]["created_at"].as_str() > items[1]["created_at"].as_str());
    assert!(items[0]["last_seen"].is_string());
    // The same, a page at a time.
    let first = w.get(&phone, "/v1/me/devices?limit=2").await.is(200);
    let next = first["next_cursor"].as_str().unwrap();
    let second = w.get(&phone, &format!("/v1/me/devices?limit=2&cursor={next}")).await.is(200);
    assert!(second["next_cursor"].is_null());
    assert_eq!([common::ids(&first), common::ids(&second)].concat(), common::ids(&page));

    let laptop = format!("/v1/me/devices/{}", others[0].device);
    w.call("", "GET", "/v1/me/devices", Value::Null).await.fails(401, "unauthorized");
    w.call("", "DELETE", &laptop, Value::Null).await.fails(401, "unauthorized");
    w.delete(&bob, &laptop).await.fails(404, "not_found");
    w.delete(&bob, &format!("/v1/me/devices/{}", w.v7())).await.fails(404, "not_found");
    w.delete(&bob, "/v1/me/devices/laptop").await.fails(404, "not_found");
    w.get(&others[0], "/v1/me").await.is(200);

    w.delete(&phone, &laptop).await.is(204);
    w.get(&others[0], "/v1/me").await.fails(401, "token_revoked");
    let body = json!({"refresh_token": others[0].refresh});
    w.call("", "POST", "/v1/auth/refresh", body).await.fails(401, "token_expired");
    w.delete(&phone, &laptop).await.is(204);
    w.get(&others[1], "/v1/me").await.is(200);
    assert_eq!(common::ids(&w.get(&phone, "/v1/me/devices").await.is(200)).len(), 2);
    w.delete(&phone, &format!("/v1/me/devices/{}", phone.device)).await.is(204);
    w.get(&phone, "/v1/me").await.fails(401, "token_revoked");
}

#[tokio::test(start_paused = true)]
async fn an_edge_that_cannot_read_the_revocations_trusts_no_token() {
    let w = World::cut_off().await;
    let ada = w.person("ada").await;
    tokio::time::sleep(Duration::from_millis(4_999)).await;
    w.get(&ada, "/v1/me").await.is(200);
    tokio::time::sleep(Duration::from_millis(2)).await;
    w.get(&ada, "/v1/me").await.fails(503, "unavailable");
}

#[tokio::test(start_paused = true)]
async fn tokens_are_needed_and_end() {
    let w = World::new().await;
    let ada = w.person("ada").await;
    let missing = w.call("", "GET", "/v1/me", Value::Null).await;
    assert_eq!(missing.headers["www-authenticate"], "Bearer");
    missing.fails(401, "unauthorized");
    w.call("nonsense", "GET", "/v1/me", Value::Null).await.fails(401, "unauthorized");
    let basic = Request::get("/v1/me").header("authorization", format!("Basic {}", ada.token));
    w.send(basic.body(Body::empty()).unwrap()).await.fails(401, "unauthorized");
    tokio::time::sleep(Duration::from_secs(901)).await;
    w.get(&ada, "/v1/me").await.fails(401, "token_expired");
}

#[tokio::test(start_paused = true)]
async fn the_published_keys_verify_our_tokens() {
    let w = World::new().await;
    let ada = w.person("ada").await;
    let jwks = w.call("", "GET", "/.well-known/jwks.json", Value::Null).await.is(200);
    let set: jsonwebtoken::jwk::JwkSet = serde_json::from_value(jwks).unwrap();
    let header = jsonwebtoken::decode_header(&ada.token).unwrap();
    let key = jsonwebtoken::DecodingKey::from_jwk(set.find(&header.kid.unwrap()).unwrap()).unwrap();
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::EdDSA);
    validation.set_audience(&["posthaste"]);
    validation.validate_exp = false;
    let claims = jsonwebtoken::decode::<Value>(&ada.token, &key, &validation).unwrap().claims;
    assert_eq!((&claims["sub"], &claims["device"]), (&json!(ada.id), &json!(ada.device)));
}

#[tokio::test(start_paused = true)]
async fn people_find_one_another_and_show_what_they_want() {
    let w = World::new().await;
    let (ada, bob) = (w.person("ada").await, w.person("bob").await);
    let change =
        json!({"display_name": "Ada L.", "about": "countess", "avatar": "👩", "visibility": {"about": "nobody"}});
    let me = w.patch(&ada, "/v1/me", change).await.is(200);
    assert_eq!((me["display_name"].as_str(), me["about"].as_str()), (Some("Ada L."), Some("countess")));
    let seen = w.get(&bob, &format!("/v1/users/{}", ada.id)).await.is(200);
    assert_eq!((seen["about"].as_str(), seen["avatar"].as_str()), (Some(""), Some("👩")));
    assert!(seen.get("email").is_none());
    let found = w.get(&bob, "/v1/users?q=AD").await.is(200);
    assert_eq!(ids(&found), [ada.id.as_str()]);
    w.patch(&bob, "/v1/me", json!({"username": "ADA"})).await.fails(409, "username_taken");
    w.patch(&bob, "/v1/me", json!({"username": "robert"})).await.is(200);
    w.get(&bob, "/v1/users").await.fails(422, "invalid");
    w.get(&bob, &format!("/v1/users/{}", w.v7())).await.fails(404, "not_found");
    w.get(&bob, "/v1/users/nobody").await.fails(404, "not_found");
}

#[tokio::test(start_paused = true)]
async fn a_created_room_is_there_at_once_and_a_retry_finds_it() {
    let w = World::new().await;
    let (ada, bob) = (w.person("ada").await, w.person("bob").await);
    let body = json!({"name": "Engines", "handle": "engines", "visibility": "public", "members": [bob.id, ada.id]});
    let key = w.v7();
    let room = w.keyed(&ada, "POST", "/v1/rooms", &key, body.clone()).await.is(201);
    assert_eq!((room["kind"].as_str(), room["handle"].as_str()), (Some("group"), Some("engines")));
    assert_eq!((room["member_count"].as_u64(), room["history"].as_str()), (Some(2), Some("all")));
    assert_eq!((room["me"]["role"].as_str(), room["me"]["joined_seq"].as_u64()), (Some("owner"), Some(2)));
    assert_eq!(room["me"]["read_seq"], 1);
    let again = w.keyed(&ada, "POST", "/v1/rooms", &key, body).await.is(200);
    assert_eq!(again["id"], room["id"]);
    assert_eq!(w.get(&bob, "/v1/rooms/@engines").await.is(200)["id"], room["id"]);
    let taken = json!({"name": "Other", "handle": "engines"});
    w.post(&bob, "/v1/rooms", taken).await.fails(409, "handle_taken");
    for bad in [
        json!({"name": ""}),
        json!({"name": "x", "handle": "No Handle"}),
        json!({"name": "x", "visibility": "secret"}),
        json!({"name": "x", "members": [w.v7()]}),
        json!({"name": "x".repeat(101)}),
    ] {
        w.post(&ada, "/v1/rooms", bad).await.fails(422, "invalid");
    }
    w.keyed(&ada, "POST", "/v1/rooms", "no uuid", json!({"name": "x"})).await.fails(422, "invalid");
}

#[tokio::test(start_paused = true)]
async fn a_private_room_and_no_room_look_the_same_to_a_stranger() {
    let w = World::new().await;
    let (ada, eve) = (w.person("ada").await, w.person("eve").await);
    let private = w.room(&ada, &[], json!({"handle": "hidden"})).await;
    let nowhere = w.v7();
    let mut told = Vec::new();
    for room in [private.as_str(), &nowhere, "@hidden", "@nobody"] {
        let path = format!("/v1/rooms/{room}");
        let mut answers = Vec::new();
        for (method, path, body) in [
            ("GET", path.clone(), Value::Null),
            ("PATCH", path.clone(), json!({"name": "mine"})),
            ("PATCH", path.clone(), json!({"handle": "mine"})),
            ("DELETE", path.clone(), Value::Null),
            ("PUT", format!("{path}/members/me"), Value::Null),
            ("DELETE", format!("{path}/members/me"), Value::Null),
            ("PUT", format!("{path}/members/{}", eve.id), json!({"role": "owner"})),
            ("DELETE", format!("{path}/members/{}", ada.id), Value::Null),
            ("GET", format!("{path}/members"), Value::Null),
            ("GET", format!("{path}/online"), Value::Null),
            ("GET", format!("{path}/messages"), Value::Null),
            ("POST", format!("{path}/messages"), w.message("hello?")),
            ("GET", format!("{path}/messages/1/receipts"), Value::Null),
        ] {
            answers.push(w.call(&eve.token, method, &path, body).await.fails(404, "not_found")["detail"].clone());
        }
        told.push(answers);
    }
    assert_eq!(told[0], told[1]);
    assert_eq!(told[2], told[3]);
    w.get(&ada, &format!("/v1/rooms/{private}")).await.is(200);
}

#[tokio::test(start_paused = true)]
async fn who_is_not_in_a_public_room_sees_it_but_neither_reads_nor_writes() {
    let w = World::new().await;
    let (ada, eve) = (w.person("ada").await, w.person("eve").await);
    let room = w.room(&ada, &[], json!({"visibility": "public"})).await;
    let path = format!("/v1/rooms/{room}");
    let seen = w.get(&eve, &path).await.is(200);
    assert!(seen.get("me").is_none());
    w.get(&eve, &format!("{path}/messages")).await.fails(403, "not_a_member");
    w.post(&eve, &format!("{path}/messages"), w.message("hello?")).await.fails(403, "not_a_member");
    w.get(&eve, &format!("{path}/members")).await.fails(403, "not_a_member");
    w.get(&eve, &format!("{path}/messages/1/receipts")).await.fails(403, "not_a_member");
    w.patch(&eve, &path, json!({"name": "mine"})).await.fails(403, "not_a_member");
    w.delete(&eve, &path).await.fails(403, "not_a_member");
    let joined = w.put(&eve, &format!("{path}/members/me"), Value::Null).await.is(200);
    assert_eq!(joined["me"]["role"], "member");
    w.put(&eve, &format!("{path}/members/me"), Value::Null).await.is(200);
    w.say(&eve, &room, "now I am in").await;
    w.patch(&eve, &path, json!({"name": "mine"})).await.fails(403, "forbidden");
    w.patch(&eve, &path, json!({"handle": "mine"})).await.fails(403, "forbidden");
    w.delete(&eve, &path).await.fails(403, "forbidden");
}

#[tokio::test(start_paused = true)]
async fn roles_are_given_and_taken_by_those_who_may() {
    let w = World::new().await;
    let (ada, bob, eve) = (w.person("ada").await, w.person("bob").await, w.person("eve").await);
    let room = w.room(&ada, &[&bob], json!({})).await;
    let member = |who: &str| format!("/v1/rooms/{room}/members/{who}");
    w.put(&bob, &member(&eve.id), json!({"role": "member"})).await.fails(403, "forbidden");
    let added = w.put(&ada, &member(&eve.id), json!({"role": "member"})).await.is(200);
    assert_eq!((added["user"].as_str(), added["role"].as_str()), (Some(eve.id.as_str()), Some("member")));
    let raised = w.put(&ada, &member(&bob.id), json!({"role": "admin"})).await.is(200);
    assert_eq!(raised["role"], "admin");
    w.put(&bob, &member(&bob.id), json!({"role": "owner"})).await.fails(403, "forbidden");
    w.put(&ada, &member(&w.v7()), json!({})).await.fails(404, "not_found");
    w.put(&ada, &member(&eve.id), json!({"role": "king"})).await.fails(422, "invalid");
    w.delete(&ada, &member("me")).await.fails(409, "conflict");
    w.delete(&bob, &member(&ada.id)).await.fails(403, "forbidden");
    w.delete(&bob, &member(&eve.id)).await.is(204);
    let members = w.get(&ada, &format!("/v1/rooms/{room}/members")).await.is(200);
    let mut roles: Vec<(String, String)> = members["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| (item["profile"]["username"].as_str().unwrap().into(), item["role"].as_str().unwrap().into()))
        .collect();
    roles.sort();
    assert_eq!(roles, [("ada".into(), "owner".into()), ("bob".into(), "admin".into())]);
    let online = w.get(&ada, &format!("/v1/rooms/{room}/online")).await.is(200);
    assert_eq!(online["items"], json!([]), "nobody has a socket");
}

#[tokio::test(start_paused = true)]
async fn a_removed_member_reads_up_to_the_removal_and_no_further() {
    let w = World::new().await;
    let (ada, bob) = (w.person("ada").await, w.person("bob").await);
    let room = w.room(&ada, &[&bob], json!({})).await;
    let messages = format!("/v1/rooms/{room}/messages");
    w.say(&ada, &room, "before").await;
    w.delete(&ada, &format!("/v1/rooms/{room}/members/{}", bob.id)).await.is(204);
    w.say(&ada, &room, "after").await;
    let page = w.get(&bob, &messages).await.is(200);
    let last = page["items"].as_array().unwrap().last().unwrap();
    assert_eq!((last["type"].as_str(), last["change"].as_str()), (Some("member"), Some("removed")));
    assert_eq!(page["head_seq"], last["seq"]);
    w.post(&bob, &messages, w.message("still here?")).await.fails(403, "not_a_member");
    assert!(ids(&w.get(&bob, "/v1/rooms").await.is(200)).is_empty());
    assert_eq!(w.get(&bob, &format!("/v1/rooms/{room}")).await.is(200)["head_seq"], page["head_seq"]);
}

#[tokio::test(start_paused = true)]
async fn what_goes_on_in_a_private_room_is_kept_from_who_was_removed() {
    let w = World::new().await;
    let (ada, bob, eve) = (w.person("ada").await, w.person("bob").await, w.person("eve").await);
    let room = w.room(&ada, &[&bob], json!({"visibility": "private"})).await;
    let path = format!("/v1/rooms/{room}");
    w.delete(&ada, &format!("{path}/members/{}", bob.id)).await.is(204);
    let removal = w.get(&bob, &format!("{path}/messages")).await.is(200)["items"].as_array().unwrap().last().cloned();
    let removed_at = removal.unwrap()["at"].clone();
    let then = w.get(&bob, &path).await.is(200);
    assert_eq!((&then["last_activity_at"], then["member_count"].as_u64()), (&removed_at, None), "{then}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    w.say(&ada, &room, "after").await;
    w.put(&ada, &format!("{path}/members/{}", eve.id), json!({})).await;
    assert_eq!(w.get(&bob, &path).await.is(200), then, "nothing of it shows");
    let seen = w.get(&ada, &path).await.is(200);
    assert_eq!(seen["member_count"], 2);
    assert_ne!(seen["last_activity_at"], removed_at);
    // What everyone may see, someone who was in it may see as well.
    w.patch(&ada, &path, json!({"visibility": "public"})).await.is(200);
    let open = w.get(&bob, &path).await.is(200);
    assert_eq!((open["member_count"].as_u64(), open["head_seq"] == then["head_seq"]), (Some(2), true), "{open}");
}

#[tokio::test(start_paused = true)]
async fn two_people_have_one_direct_room() {
    let w = World::new().await;
    let (ada, bob, eve) = (w.person("ada").await, w.person("bob").await, w.person("eve").await);
    let opened = w.put(&ada, &format!("/v1/direct/{}", bob.id), Value::Null).await.is(200);
    let found = w.put(&bob, &format!("/v1/direct/{}", ada.id), Value::Null).await.is(200);
    assert_eq!(opened["id"], found["id"]);
    assert_eq!((opened["kind"].as_str(), opened["member_count"].as_u64()), (Some("direct"), Some(2)));
    assert_eq!((opened["peer"]["username"].as_str(), found["peer"]["username"].as_str()), (Some("bob"), Some("ada")));
    let room = opened["id"].as_str().unwrap();
    w.get(&eve, &format!("/v1/rooms/{room}")).await.fails(404, "not_found");
    w.put(&ada, &format!("/v1/rooms/{room}/members/{}", eve.id), json!({})).await.fails(403, "forbidden");
    w.put(&ada, &format!("/v1/direct/{}", ada.id), Value::Null).await.fails(422, "invalid");
    w.put(&ada, &format!("/v1/direct/{}", w.v7()), Value::Null).await.fails(404, "not_found");
    let inbox = w.get(&bob, "/v1/rooms?scope=mine").await.is(200);
    assert_eq!(inbox["items"][0]["peer"]["id"], ada.id.as_str());
}

#[tokio::test(start_paused = true)]
async fn a_message_is_sent_once_however_often_it_is_tried() {
    let w = World::new().await;
    let (ada, bob) = (w.person("ada").await, w.person("bob").await);
    let room = w.room(&ada, &[&bob], json!({})).await;
    let path = format!("/v1/rooms/{room}/messages");
    let message = w.message("hello");
    let tries = join_all((0..20).map(|_| w.post(&ada, &path, message.clone()))).await;
    assert_eq!(tries.iter().filter(|answer| answer.status == 201).count(), 1);
    assert!(tries.iter().all(|answer| answer.status == 201 || answer.status == 200));
    let first = tries[0].body.clone();
    assert!(tries.iter().all(|answer| answer.body == first));
    assert_eq!(first["client_msg_id"], message["client_msg_id"]);
    let mut other = message.clone();
    other["content"]["body"] = json!("another body");
    assert_eq!(w.post(&ada, &path, other).await.is(200), first, "the first outcome");
    let key = w.v7();
    let keyed = json!({"content": {"type": "text/plain", "body": "by key"}, "reply_to": first["seq"]});
    let sent = w.keyed(&ada, "POST", &path, &key, keyed.clone()).await.is(201);
    assert_eq!((&sent["client_msg_id"], &sent["reply_to"]), (&json!(key), &first["seq"]));
    assert_eq!(w.keyed(&ada, "POST", &path, &key, keyed).await.is(200), sent);
    let read = w.get(&bob, &format!("{path}?limit=2")).await.is(200);
    let bodies: Vec<&Value> = read["items"].as_array().unwrap().iter().map(|event| &event["content"]["body"]).collect();
    assert_eq!(bodies, ["hello", "by key"]);
    assert!(read["items"][0].get("client_msg_id").is_none(), "only the sender sees it");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_message_is_refused() {
    let w = World::new().await;
    let ada = w.person("ada").await;
    let room = w.room(&ada, &[], json!({})).await;
    let path = format!("/v1/rooms/{room}/messages");
    let text = json!({"type": "text/plain", "body": "x"});
    let ahead = schemas::ids::uuid_v7(schemas::Clock::now(&*w.clock).0 + 25 * 3_600_000, [1; 10]);
    for bad in [
        json!({"content": text}),
        json!({"client_msg_id": "x", "content": text}),
        json!({"client_msg_id": uuid::Uuid::from_u128(5), "content": text}),
        json!({"client_msg_id": ahead, "content": text}),
        json!({"client_msg_id": w.v7()}),
        json!({"client_msg_id": w.v7(), "content": "x"}),
        json!({"client_msg_id": w.v7(), "content": {"body": "x"}}),
        json!({"client_msg_id": w.v7(), "content": {"type": "", "body": "x"}}),
        json!({"client_msg_id": w.v7(), "content": {"type": "text/plain"}}),
        json!({"client_msg_id": w.v7(), "content": {"type": "image/png", "data": "*"}}),
        json!({"client_msg_id": w.v7(), "content": text, "reply_to": 99}),
        json!({"client_msg_id": w.v7(), "content": text, "reply_to": -1}),
        json!({"client_msg_id": w.v7(), "content": ["text/plain", "x"]}),
    ] {
        w.post(&ada, &path, bad).await.fails(422, "invalid");
    }
    w.post(&ada, &path, w.message(&"x".repeat(65_537))).await.fails(413, "too_large");
    w.say(&ada, &room, &"x".repeat(65_536 - "text/plain".len())).await;
}

#[tokio::test(start_paused = true)]
async fn history_is_read_from_either_end_in_pages() {
    let w = World::new().await;
    let ada = w.person("ada").await;
    let room = w.room(&ada, &[], json!({})).await;
    for n in 0..60 {
        w.say(&ada, &room, &n.to_string()).await;
    }
    let path = format!("/v1/rooms/{room}/messages");
    let seqs = |page: &Value| -> Vec<u64> {
        page["items"].as_array().unwrap().iter().map(|event| event["seq"].as_u64().unwrap()).collect()
    };
    let newest = w.get(&ada, &path).await.is(200);
    assert_eq!(seqs(&newest), (13..=62).collect::<Vec<_>>(), "the newest 50");
    assert_eq!((newest["first_seq"].as_u64(), newest["head_seq"].as_u64()), (Some(1), Some(62)));
    assert_eq!(seqs(&w.get(&ada, &format!("{path}?before=13&limit=100")).await.is(200)), (1..=12).collect::<Vec<_>>());
    assert_eq!(seqs(&w.get(&ada, &format!("{path}?after=60&limit=5")).await.is(200)), [61, 62]);
    assert_eq!(seqs(&w.get(&ada, &format!("{path}?after=0&limit=1")).await.is(200)), [1]);
    assert!(seqs(&w.get(&ada, &format!("{path}?after=62")).await.is(200)).is_empty());
    for bad in ["limit=0", "limit=101", "limit=x", "before=-1", "before=1&after=2", "before=99999999999999999999"] {
        w.get(&ada, &format!("{path}?{bad}")).await.fails(422, "invalid");
    }
}

#[tokio::test(start_paused = true)]
async fn the_inbox_has_the_newest_event_of_each_room_by_activity() {
    let w = World::new().await;
    let (ada, bob) = (w.person("ada").await, w.person("bob").await);
    let mut rooms = Vec::new();
    for n in 0..5 {
        rooms.push(w.room(&ada, &[&bob], json!({"name": format!("Room {n}")})).await);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    w.say(&bob, &rooms[1], "newest of all").await;
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = w.get(&ada, &format!("/v1/rooms?scope=mine&limit=2&cursor={cursor}")).await.is(200);
        if seen.is_empty() {
            let first = &page["items"][0];
            assert_eq!(first["newest"]["content"]["body"], "newest of all");
            assert_eq!(first["newest"]["seq"], first["head_seq"]);
            assert_eq!((first["me"]["read_seq"].as_u64(), first["head_seq"].as_u64()), (Some(1), Some(4)));
        }
        seen.extend(ids(&page));
        match page["next_cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    assert_eq!(seen, [1, 4, 3, 2, 0].map(|n: usize| rooms[n].clone()));
    let named = w.get(&ada, "/v1/rooms?q=ROOM%203").await.is(200);
    assert_eq!(ids(&named), [rooms[3].clone()]);
    let by_name = w.get(&ada, "/v1/rooms?sort=name").await.is(200);
    assert_eq!(ids(&by_name), rooms);
    for bad in ["scope=all", "sort=size", "cursor=x", "limit=1000"] {
        w.get(&ada, &format!("/v1/rooms?{bad}")).await.fails(422, "invalid");
    }
}

#[tokio::test(start_paused = true)]
async fn the_inbox_asks_history_as_often_for_many_rooms_as_for_few() {
    let w = World::new().await;
    let ada = w.person("ada").await;
    let mut expected = BTreeMap::new();
    for n in 0..20 {
        let bob = w.person(&format!("bob{n}")).await;
        let direct = w.put(&ada, &format!("/v1/direct/{}", bob.id), Value::Null).await.is(200);
        let direct = direct["id"].as_str().unwrap().to_owned();
        let group = w.room(&ada, &[&bob], json!({})).await;
        for (room, peer) in [(direct, Some(bob.id.clone())), (group, None)] {
            let newest = w.say(&bob, &room, &format!("message {n}")).await;
            expected.insert(room, (newest["id"].clone(), peer));
        }
    }
    w.history.take_calls();
    let inbox = w.get(&ada, "/v1/rooms?scope=mine&limit=100").await.is(200);
    assert_eq!(w.history.take_calls(), BTreeMap::from([("rooms_of", 1), ("rooms", 1), ("pages", 1)]));
    let items = inbox["items"].as_array().unwrap();
    assert_eq!(items.len(), expected.len());
    for item in items {
        let (newest, peer) = &expected[item["id"].as_str().unwrap()];
        assert_eq!((&item["newest"]["id"], item["peer"]["id"].as_str()), (newest, peer.as_deref()), "{item}");
    }
    w.get(&ada, "/v1/rooms?scope=mine&limit=1").await.is(200);
    assert_eq!(w.history.take_calls(), BTreeMap::from([("rooms_of", 1), ("rooms", 1), ("pages", 1)]));
}

#[tokio::test(start_paused = true)]
async fn the_directory_has_public_rooms_alone() {
    let w = World::new().await;
    let (ada, bob) = (w.person("ada").await, w.person("bob").await);
    let public = w.room(&ada, &[], json!({"name": "Open", "visibility": "public", "handle": "open"})).await;
    w.room(&ada, &[], json!({"name": "Closed", "handle": "closed"})).await;
    let listed = w.get(&bob, "/v1/rooms?scope=public").await.is(200);
    assert_eq!(ids(&listed), [public]);
    assert!(listed["items"][0].get("me").is_none());
    assert_eq!(w.get(&ada, "/v1/rooms?scope=public&q=pen").await.is(200)["items"][0]["me"]["role"], "owner");
}

#[tokio::test(start_paused = true)]
async fn settings_change_and_a_handle_that_is_given_up_is_free() {
    let w = World::new().await;
    let (ada, bob) = (w.person("ada").await, w.person("bob").await);
    let room = w.room(&ada, &[&bob], json!({"handle": "first", "visibility": "public"})).await;
    let path = format!("/v1/rooms/{room}");
    let changed = w.patch(&ada, &path, json!({"handle": "second", "description": "new"})).await.is(200);
    assert_eq!((changed["handle"].as_str(), changed["description"].as_str()), (Some("second"), Some("new")));
    w.get(&bob, "/v1/rooms/@second").await.is(200);
    w.get(&bob, "/v1/rooms/@first").await.fails(404, "not_found");
    w.room(&bob, &[], json!({"handle": "first"})).await;
    w.patch(&ada, &path, json!({"handle": "first"})).await.fails(409, "handle_taken");
    assert!(w.patch(&ada, &path, json!({"handle": ""})).await.is(200)["handle"].is_null());
    w.patch(&ada, &path, json!({"handle": "Not A Handle"})).await.fails(422, "invalid");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_room_is_gone_for_everyone() {
    let w = World::new().await;
    let (ada, bob) = (w.person("ada").await, w.person("bob").await);
    let room = w.room(&ada, &[&bob], json!({"visibility": "public"})).await;
    let path = format!("/v1/rooms/{room}");
    let key = w.v7();
    w.keyed(&ada, "DELETE", &path, &key, Value::Null).await.is(204);
    w.keyed(&ada, "DELETE", &path, &key, Value::Null).await.is(204);
    for who in [&ada, &bob] {
        w.get(who, &path).await.fails(404, "not_found");
        w.get(who, &format!("{path}/messages")).await.fails(404, "not_found");
        w.post(who, &format!("{path}/messages"), w.message("hello?")).await.fails(404, "not_found");
        assert!(ids(&w.get(who, "/v1/rooms").await.is(200)).is_empty());
    }
    w.put(&bob, &format!("{path}/members/me"), Value::Null).await.fails(404, "not_found");
}

#[tokio::test(start_paused = true)]
async fn receipts_tell_who_has_got_and_seen_a_message() {
    let w = World::new().await;
    let (ada, bob) = (w.person("ada").await, w.person("bob").await);
    let room = w.room(&ada, &[&bob], json!({})).await;
    let seq = w.say(&ada, &room, "hello").await["seq"].as_u64().unwrap();
    let path = |seq: u64| format!("/v1/rooms/{room}/messages/{seq}/receipts");
    assert_eq!(w.get(&ada, &path(seq)).await.is(200), json!({"items": [], "next_cursor": null}));
    let receipt = schemas::receipt::Receipt {
        room: room.parse().unwrap(),
        user: bob.id.parse().unwrap(),
        session: schemas::SessionId::NIL,
        delivered_seq: schemas::Seq(seq),
        read_seq: schemas::Seq::ZERO,
        at: schemas::Timestamp(1_763_715_601_000),
    };
    let batch = store::archive::Batch { receipts: vec![receipt.into()], ..Default::default() };
    store::archive::Archive::archive(&*w.store, batch).await.unwrap();
    let page = w.get(&ada, &path(seq)).await.is(200);
    let expected = json!([{"user": bob.id, "delivered_at": "2025-11-21T09:00:01.000Z", "read_at": null}]);
    assert_eq!(page["items"], expected);
    w.get(&ada, &path(seq + 1)).await.fails(404, "not_found");
    w.get(&ada, &path(0)).await.fails(404, "not_found");
}

#[tokio::test(start_paused = true)]
async fn too_many_sends_are_told_when_to_come_back() {
    let limits = LimitsConfig { send_burst: 3, sends_per_s: 1.0, sign_up_burst: 2, ..LimitsConfig::default() };
    let w = World::with(Config { limits: Some(limits), ..Config::default() }).await;
    let (ada, bob) = (w.person("ada").await, w.person("bob").await);
    let room = w.room(&ada, &[&bob], json!({})).await;
    for n in 0..3 {
        w.say(&ada, &room, &n.to_string()).await;
    }
    let path = format!("/v1/rooms/{room}/messages");
    w.post(&ada, &path, w.message("too many")).await.fails(429, "rate_limited");
    w.say(&bob, &room, "mine are another matter").await;
    let eve = json!({"username": "eve", "password": "long enough"});
    w.call("", "POST", "/v1/auth/sign-up", eve).await.fails(429, "rate_limited");
    tokio::time::sleep(Duration::from_secs(2)).await;
    w.say(&ada, &room, "later").await;
}

#[tokio::test(start_paused = true)]
async fn the_root_leads_to_the_docs_and_they_are_served() {
    let w = World::new().await;
    let root = w.call("", "GET", "/", Value::Null).await;
    assert_eq!((root.status.as_u16(), root.headers["location"].to_str().unwrap()), (307, "/docs"));
    assert_eq!(w.call("", "GET", "/openapi.json", Value::Null).await.is(200)["info"]["title"], "Posthaste");
    assert_eq!(w.call("", "GET", "/docs/", Value::Null).await.status, 200);
    assert_eq!(w.call("", "GET", "/docs/swagger-ui-bundle.js", Value::Null).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn another_issuers_people_get_an_account_at_their_first_call() {
    use jsonwebtoken::{Algorithm, EncodingKey, Header};
    let seed = [3; 32];
    let mut pkcs8 = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    pkcs8.extend_from_slice(&seed);
    let key = EncodingKey::from_ed_der(&pkcs8);
    let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&key, Algorithm::EdDSA).unwrap();
    let mut jwk = serde_json::to_value(jwk).unwrap();
    jwk["kid"] = json!("k1");
    let issuer = edge::config::TrustedIssuer {
        name: "load".into(),
        jwks: Some(json!({"keys": [jwk]}).to_string()),
        jwks_url: None,
        audience: "posthaste".into(),
    };
    let w = World::with(Config { issuers: vec![issuer], ..Config::default() }).await;
    w.person("ada").await;
    let iat = schemas::Clock::now(&*w.clock).0 / 1_000;
    let token = |sub: &str| {
        let claims = json!({
            "iss": "load", "aud": "posthaste", "sub": sub, "exp": iat + 900, "iat": iat,
            "name": "Ada Other", "preferred_username": "ada",
        });
        let header = Header { kid: Some("k1".into()), ..Header::new(Algorithm::EdDSA) };
        jsonwebtoken::encode(&header, &claims, &key).unwrap()
    };
    let me = w.call(&token("u1"), "GET", "/v1/me", Value::Null).await.is(200);
    assert_eq!(me["id"], schemas::UserId::external("load", "u1").to_string());
    assert_eq!(me["display_name"], "Ada Other");
    assert!(me["username"].as_str().unwrap().starts_with("ada-"), "{me}");
    let again = w.call(&token("u1"), "GET", "/v1/me", Value::Null).await.is(200);
    assert_eq!(again["username"], me["username"]);
    w.call(&token("u2"), "GET", "/v1/me", Value::Null).await.is(200);
    w.call(&token("u1"), "POST", "/v1/auth/sign-out", Value::Null).await.fails(403, "forbidden");
}

#[tokio::test(start_paused = true)]
async fn signing_keys_change_by_age_and_nobody_notices() {
    let w = World::with(Config { signing_key_age_max_s: 1_800, ..Config::default() }).await;
    let mut ada = w.person("ada").await;
    let mut seen = std::collections::BTreeSet::new();
    for minute in 0..120 {
        let jwks = w.call("", "GET", "/.well-known/jwks.json", Value::Null).await.is(200);
        seen.extend(jwks["keys"].as_array().unwrap().iter().map(|key| key["kid"].as_str().unwrap().to_owned()));
        tokio::time::sleep(Duration::from_secs(60)).await;
        w.get(&ada, "/v1/me").await.is(200);
        if minute % 14 == 13 {
            let body = json!({"refresh_token": ada.refresh});
            ada = person(&w.call("", "POST", "/v1/auth/refresh", body).await.is(200));
        }
    }
    assert!(seen.len() >= 4, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn tokens_of_a_withdrawn_signing_key_are_dead_within_2_s_and_refreshing_goes_on() {
    let w = World::new().await;
    let ada = w.person("ada").await;
    w.get(&ada, "/v1/me").await.is(200);
    let key = Keys::signing_keys(&*w.store).await.unwrap().remove(0);
    w.store.retire_signing_key(key.id, w.clock.now()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    w.get(&ada, "/v1/me").await.fails(401, "unauthorized");
    let body = json!({"refresh_token": ada.refresh});
    let ada = person(&w.call("", "POST", "/v1/auth/refresh", body).await.is(200));
    w.get(&ada, "/v1/me").await.is(200);
}

#[tokio::test(start_paused = true)]
async fn every_answer_keeps_browsers_from_making_more_of_it() {
    let w = World::with(Config { public_scheme: edge::config::Scheme::Https, ..Config::default() }).await;
    let ada = w.person("ada").await;
    for path in ["/v1/me", "/v1/nothing", "/.well-known/jwks.json", "/openapi.json", "/docs/", "/v1/users"] {
        let answer = w.get(&ada, path).await;
        assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(answer.headers["x-frame-options"], "DENY", "{path}");
        assert_eq!(answer.headers["referrer-policy"], "no-referrer", "{path}");
        assert_eq!(answer.headers["strict-transport-security"], "max-age=31536000", "{path}");
        let policy = answer.headers["content-security-policy"].to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{path}");
        assert_eq!(policy.contains("script-src 'self'"), path == "/docs/", "{path}");
    }
    let plain = World::new().await;
    assert!(!plain.get(&ada, "/v1/me").await.headers.contains_key("strict-transport-security"), "without TLS");
    // The page has nothing inline that its policy would stop.
    let page = Request::get("/docs/").body(Body::empty()).unwrap();
    let page = tower::ServiceExt::oneshot(w.router.clone(), page).await.unwrap().into_body();
    let page = String::from_utf8(axum::body::to_bytes(page, 1 << 20).await.unwrap().to_vec()).unwrap();
    for script in page.split("<script").skip(1) {
        assert!(script.split('>').next().unwrap().contains("src="), "{page}");
    }
}

#[tokio::test(start_paused = true)]
async fn limits_count_the_address_that_a_trusted_proxy_names_and_nobody_elses_word() {
    let limits = LimitsConfig { sign_up_burst: 1, sign_ups_per_s: 0.0, ..LimitsConfig::default() };
    let trusted_proxies = vec!["10.0.0.0/8".to_owned()];
    let w = World::with(Config { limits: Some(limits), trusted_proxies, ..Config::default() }).await;
    let sign_up = async |peer: &str, says: &str, name: &str| {
        let body = json!({"username": name, "password": "difference engine"}).to_string();
        let request = Request::post("/v1/auth/sign-up").header("x-forwarded-for", says);
        let mut request = request.body(Body::from(body)).unwrap();
        request.extensions_mut().insert(edge::Peer(peer.parse().unwrap()));
        w.send(request).await
    };
    sign_up("10.0.0.1:5000", "198.51.100.1", "one").await.is(201);
    sign_up("10.0.0.2:5000", "198.51.101.2", "two").await.is(201);
    sign_up("10.0.0.1:5000", "1.2.3.4, 198.51.100.1", "three").await.fails(429, "rate_limited");
    sign_up("203.0.113.1:5000", "198.51.100.3", "four").await.is(201);
    sign_up("203.0.113.1:5000", "198.51.100.4", "five").await.fails(429, "rate_limited");
}
