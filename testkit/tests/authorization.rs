//! Who may do what. Every call of the API and every frame of a client is tried by everyone, from nobody to the owner,
//! each time with new people in a new room. The tables are written by hand, from protocol.md; what the server's own
//! description has and the tables have not fails by its name, and so does a row for what is no longer there.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use hyper::Method;
use serde_json::{Value, json};
use testkit::client::{Api, Person, Wire, new_id};
use testkit::cluster::Cluster;

/// The columns of the tables. `removed` was a member and is none any more.
const CALLERS: [&str; 6] = ["anonymous", "stranger", "removed", "member", "admin", "owner"];

/// What each of them gets: a status, with a problem's code after it; of lists also whether the room is in it.
type Outcomes = [&'static str; 6];

const UNAUTHORIZED: &str = "401 unauthorized";
const NOT_FOUND: &str = "404 not_found";
const NOT_A_MEMBER: &str = "403 not_a_member";
const FORBIDDEN: &str = "403 forbidden";

struct Row {
    /// As the description names it.
    call: &'static str,
    /// Which use of it, where there are several.
    case: &'static str,
    /// What stands for `{user}`, `{id}` and `{device}`; after a `?` the query.
    target: &'static str,
    body: Value,
    private: Outcomes,
    /// Where the room is public, if that makes a difference.
    public: Option<Outcomes>,
}

fn row(call: &'static str, private: Outcomes) -> Row {
    Row { call, case: "", target: "", body: Value::Null, private, public: None }
}

impl Row {
    fn case(self, case: &'static str) -> Self {
        Self { case, ..self }
    }
    fn of(self, target: &'static str) -> Self {
        Self { target, ..self }
    }
    fn body(self, body: Value) -> Self {
        Self { body, ..self }
    }
    fn public(self, public: Outcomes) -> Self {
        Self { public: Some(public), ..self }
    }
}

fn calls() -> Vec<Row> {
    let everyone = |outcome| [outcome; 6];
    let signed_in = |outcome| [UNAUTHORIZED, outcome, outcome, outcome, outcome, outcome];
    let message = json!({"client_msg_id": "{new}", "content": {"type": "text/plain", "body": "hello"}});
    vec![
        row("GET /.well-known/jwks.json", everyone("200")),
        row("POST /v1/auth/sign-up", everyone("201"))
            .body(json!({"username": "{new}", "password": "correct horse battery"})),
        row("POST /v1/auth/sign-in", everyone("200"))
            .body(json!({"username": "{outsider_name}", "password": "correct horse battery"})),
        row("POST /v1/auth/refresh", everyone("200")).body(json!({"refresh_token": "{outsider_refresh}"})),
        row("POST /v1/auth/sign-out", signed_in("204")),
        row("GET /v1/me", signed_in("200")),
        row("PATCH /v1/me", signed_in("200")).body(json!({"about": "me"})),
        row("GET /v1/me/devices", signed_in("200")),
        row("DELETE /v1/me/devices/{device}", signed_in("204")).case("one's own").of("{own_device}"),
        row("DELETE /v1/me/devices/{device}", signed_in(NOT_FOUND)).case("another's").of("{outsider_device}"),
        row("GET /v1/users", signed_in("200")).of("?q=p"),
        row("GET /v1/users/{id}", signed_in("200")).of("{outsider}"),
        row("GET /v1/socket", everyone("426 upgrade_required"))
            .case("no handshake; the frames have a table of their own"),
        row("PUT /v1/direct/{user}", signed_in("200")).of("{outsider}"),
        row("POST /v1/rooms", signed_in("201")).body(json!({"name": "Another room"})),
        row("GET /v1/rooms", [UNAUTHORIZED, "200 no", "200 no", "200 yes", "200 yes", "200 yes"]).case("one's own"),
        row("GET /v1/rooms", signed_in("200 no"))
            .case("the directory")
            .of("?scope=public&limit=100&q={name}")
            .public(signed_in("200 yes")),
        row("GET /v1/rooms/{room}", [UNAUTHORIZED, NOT_FOUND, "200", "200", "200", "200"]).public(signed_in("200")),
        row("PATCH /v1/rooms/{room}", [UNAUTHORIZED, NOT_FOUND, NOT_FOUND, FORBIDDEN, "200", "200"])
            .body(json!({"description": "changed"}))
            .public([UNAUTHORIZED, NOT_A_MEMBER, NOT_A_MEMBER, FORBIDDEN, "200", "200"]),
        row("PATCH /v1/rooms/{room}", [UNAUTHORIZED, NOT_FOUND, NOT_A_MEMBER, FORBIDDEN, "200", "200"])
            .case("with a handle")
            .body(json!({"handle": "{handle}"}))
            .public([UNAUTHORIZED, NOT_A_MEMBER, NOT_A_MEMBER, FORBIDDEN, "200", "200"]),
        row("DELETE /v1/rooms/{room}", [UNAUTHORIZED, NOT_FOUND, NOT_FOUND, FORBIDDEN, FORBIDDEN, "204"]).public([
            UNAUTHORIZED,
            NOT_A_MEMBER,
            NOT_A_MEMBER,
            FORBIDDEN,
            FORBIDDEN,
            "204",
        ]),
        row("PUT /v1/rooms/{room}/members/me", [UNAUTHORIZED, NOT_FOUND, NOT_FOUND, "200", "200", "200"])
            .public(signed_in("200")),
        row("DELETE /v1/rooms/{room}/members/me", [UNAUTHORIZED, NOT_FOUND, "204", "204", "204", "409 conflict"])
            .public([UNAUTHORIZED, "204", "204", "204", "204", "409 conflict"]),
        row("PUT /v1/rooms/{room}/members/{user}", [UNAUTHORIZED, NOT_FOUND, NOT_FOUND, FORBIDDEN, "200", "200"])
            .case("adds someone")
            .of("{outsider}")
            .public([UNAUTHORIZED, NOT_A_MEMBER, NOT_A_MEMBER, FORBIDDEN, "200", "200"]),
        row("PUT /v1/rooms/{room}/members/{user}", [UNAUTHORIZED, NOT_FOUND, NOT_FOUND, FORBIDDEN, FORBIDDEN, "200"])
            .case("adds an admin")
            .of("{outsider}")
            .body(json!({"role": "admin"})),
        row("PUT /v1/rooms/{room}/members/{user}", [UNAUTHORIZED, NOT_FOUND, NOT_FOUND, FORBIDDEN, FORBIDDEN, "200"])
            .case("makes a member an admin")
            .of("{peer}")
            .body(json!({"role": "admin"})),
        row("PUT /v1/rooms/{room}/members/{user}", [UNAUTHORIZED, NOT_FOUND, NOT_FOUND, FORBIDDEN, FORBIDDEN, "200"])
            .case("makes an admin a member")
            .of("{deputy}")
            .body(json!({"role": "member"})),
        row("PUT /v1/rooms/{room}/members/{user}", [UNAUTHORIZED, NOT_FOUND, NOT_FOUND, FORBIDDEN, FORBIDDEN, "200"])
            .case("raises oneself")
            .of("{caller}")
            .body(json!({"role": "owner"})),
        row("DELETE /v1/rooms/{room}/members/{user}", [UNAUTHORIZED, NOT_FOUND, NOT_FOUND, FORBIDDEN, "204", "204"])
            .case("removes a member")
            .of("{peer}")
            .public([UNAUTHORIZED, NOT_A_MEMBER, NOT_A_MEMBER, FORBIDDEN, "204", "204"]),
        row(
            "DELETE /v1/rooms/{room}/members/{user}",
            [UNAUTHORIZED, NOT_FOUND, NOT_FOUND, FORBIDDEN, FORBIDDEN, "204"],
        )
        .case("removes an admin")
        .of("{deputy}"),
        row("GET /v1/rooms/{room}/members", [UNAUTHORIZED, NOT_FOUND, NOT_A_MEMBER, "200", "200", "200"]).public([
            UNAUTHORIZED,
            NOT_A_MEMBER,
            NOT_A_MEMBER,
            "200",
            "200",
            "200",
        ]),
        row("GET /v1/rooms/{room}/online", [UNAUTHORIZED, NOT_FOUND, NOT_A_MEMBER, "200", "200", "200"]).public([
            UNAUTHORIZED,
            NOT_A_MEMBER,
            NOT_A_MEMBER,
            "200",
            "200",
            "200",
        ]),
        row("POST /v1/rooms/{room}/messages", [UNAUTHORIZED, NOT_FOUND, NOT_A_MEMBER, "201", "201", "201"])
            .body(message)
            .public([UNAUTHORIZED, NOT_A_MEMBER, NOT_A_MEMBER, "201", "201", "201"]),
        row("GET /v1/rooms/{room}/messages", [UNAUTHORIZED, NOT_FOUND, "200", "200", "200", "200"]).public([
            UNAUTHORIZED,
            NOT_A_MEMBER,
            "200",
            "200",
            "200",
            "200",
        ]),
        row("GET /v1/rooms/{room}/messages/{seq}/receipts", [UNAUTHORIZED, NOT_FOUND, "200", "200", "200", "200"])
            .case("of what was before the removal")
            .public([UNAUTHORIZED, NOT_A_MEMBER, "200", "200", "200", "200"]),
    ]
}

/// Rows of frames: the type, the case, and what comes of it in a private and in a public room alike.
const FRAMES: [(&str, &str, Outcomes); 9] = [
    ("hello", "events of the room", ["closed 4501", "none", "up to the removal", "all", "all", "all"]),
    ("send", "", ["closed 4500", "rejected not_a_member", "rejected not_a_member", "accepted", "accepted", "accepted"]),
    ("delivered", "", ["closed 4500", "ignored", "ignored", "seen", "seen", "seen"]),
    ("read", "", ["closed 4500", "ignored", "ignored", "seen", "seen", "seen"]),
    ("typing", "", ["closed 4500", "ignored", "ignored", "seen", "seen", "seen"]),
    ("pong", "", ["closed 4500", "open", "open", "open", "open", "open"]),
    ("authenticate", "own token", ["closed 4500", "open", "open", "open", "open", "open"]),
    (
        "authenticate",
        "another's",
        ["closed 4500", "closed 4501", "closed 4501", "closed 4501", "closed 4501", "closed 4501"],
    ),
    (
        "authenticate",
        "no token",
        ["closed 4500", "closed 4501", "closed 4501", "closed 4501", "closed 4501", "closed 4501"],
    ),
];

/// New people and a room of theirs.
struct Scene {
    people: [Option<Person>; 6],
    /// Another admin, another member, and someone who is not in it.
    deputy: Person,
    peer: Person,
    outsider: Person,
    room: String,
    name: String,
    /// A message that all but strangers may read, and the event that removed someone.
    message: u64,
    removal: u64,
}

/// Names that nobody had before.
static NAMES: AtomicU64 = AtomicU64::new(0);

fn new_name() -> String {
    format!("p{}", 100 + NAMES.fetch_add(1, Ordering::Relaxed))
}

impl Scene {
    async fn new(api: &Api, visibility: &str) -> Result<Self> {
        let names: Vec<String> = (0..8).map(|_| new_name()).collect();
        let people = try_join_all(names.iter().map(|name| api.sign_up(name))).await?;
        let [stranger, removed, member, admin, owner, deputy, peer, outsider] =
            <[Person; 8]>::try_from(people).ok().context("eight people")?;
        let name = format!("The room {}", new_name());
        let settings = json!({"name": name, "visibility": visibility, "history": "all"});
        let room = owner.create_room(settings, &[&removed, &member, &admin, &deputy, &peer]).await?;
        for whom in [&admin, &deputy] {
            let path = format!("/v1/rooms/{room}/members/{}", whom.id);
            owner.api.call(Method::PUT, &path, Some(json!({"role": "admin"}))).await?.expect(200)?;
        }
        let message = owner.post(&room, "for all").await?["seq"].as_u64().context("a seq")?;
        owner.api.delete(&format!("/v1/rooms/{room}/members/{}", removed.id)).await?.expect(204)?;
        let removal = message + 1;
        owner.post(&room, "after it").await?;
        // Waits until the store has it all, for the directory.
        owner.api.get(&format!("/v1/rooms/{room}/members")).await?.expect(200)?;
        let people = [None, Some(stranger), Some(removed), Some(member), Some(admin), Some(owner)];
        Ok(Self { people, deputy, peer, outsider, room, name, message, removal })
    }

    /// A text with the names of this scene in it.
    fn fill(&self, text: &str, room: &str, caller: usize) -> String {
        let person = self.people[caller].as_ref().unwrap_or(&self.outsider);
        let said = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        text.replace("{room}", room)
            .replace("{seq}", &self.message.to_string())
            .replace("{caller}", &person.id)
            .replace("{own_device}", &said(&person.tokens["device"]))
            .replace("{outsider_device}", &said(&self.outsider.tokens["device"]))
            .replace("{outsider}", &self.outsider.id)
            .replace("{peer}", &self.peer.id)
            .replace("{deputy}", &self.deputy.id)
            .replace("{name}", &self.name.replace(' ', "+"))
            .replace("{outsider_name}", &said(&self.outsider.tokens["user"]["username"]))
            .replace("{outsider_refresh}", &said(&self.outsider.tokens["refresh_token"]))
            .replace("{handle}", &new_name())
    }

    async fn call(&self, nobody: &Api, row: &Row, room: &str, caller: usize) -> Result<(String, Value)> {
        let (method, path) = row.call.split_once(' ').context("method and path")?;
        let (target, query) =
            row.target.split_once('?').map_or((row.target, String::new()), |(at, q)| (at, format!("?{q}")));
        let path = path.replace("{user}", target).replace("{id}", target).replace("{device}", target) + &query;
        let fresh = if row.call.ends_with("sign-up") { new_name() } else { new_id() };
        let body = (!row.body.is_null()).then(|| row.body.to_string().replace("{new}", &fresh));
        let body = body.map(|body| serde_json::from_str(&self.fill(&body, room, caller))).transpose()?;
        let api = self.people[caller].as_ref().map_or(nobody, |person| &person.api);
        let reply = api.call(Method::from_bytes(method.as_bytes())?, &self.fill(&path, room, caller), body).await?;
        let mut outcome = reply.status.as_u16().to_string();
        if let Some(code) = reply.body["code"].as_str() {
            outcome = format!("{outcome} {code}");
        }
        if let Some(items) = reply.body["items"].as_array().filter(|_| row.call == "GET /v1/rooms") {
            let listed = items.iter().any(|item| item["id"] == *room);
            outcome += if listed { " yes" } else { " no" };
        }
        Ok((outcome, reply.body))
    }
}

/// What makes two refusals the same to whoever gets them.
fn less_request_id(mut problem: Value) -> Value {
    problem["request_id"] = Value::Null;
    problem
}

async fn try_call(nobody: &Api, row: &Row, visibility: &str, caller: usize, expected: &str) -> Result<Option<String>> {
    let scene = Scene::new(nobody, visibility).await?;
    let (outcome, body) = scene.call(nobody, row, &scene.room, caller).await?;
    let cell = format!("{} ({}), {} in a {visibility} room", row.call, row.case, CALLERS[caller]);
    if outcome != expected {
        return Ok(Some(format!("{cell}: expected {expected}, got {outcome}: {body}")));
    }
    if outcome == NOT_FOUND && row.call.contains("{room}") {
        let (nowhere, its_body) = scene.call(nobody, row, &new_id(), caller).await?;
        if nowhere != outcome || less_request_id(its_body.clone()) != less_request_id(body.clone()) {
            return Ok(Some(format!("{cell}: {body}, but of a room that does not exist: {nowhere} {its_body}")));
        }
    }
    Ok(None)
}

/// Fails with all that is wrong, not only the first.
fn no_faults(faults: &[String]) -> Result<()> {
    ensure!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
    Ok(())
}

fn same_names(described: &BTreeSet<String>, in_table: &BTreeSet<String>) -> Result<()> {
    let missing: Vec<_> = described.difference(in_table).collect();
    let gone: Vec<_> = in_table.difference(described).collect();
    ensure!(missing.is_empty(), "no row says who may do this: {missing:?}");
    ensure!(gone.is_empty(), "rows of what is not there: {gone:?}");
    ensure!(!described.is_empty(), "the description is empty");
    Ok(())
}

#[tokio::test]
async fn every_call_is_for_those_alone_who_may_make_it() -> Result<()> {
    let cluster = Cluster::start().await?;
    let nobody = cluster.api();
    let description = nobody.get("/openapi.json").await?.expect(200)?;
    let mut described = BTreeSet::new();
    for (path, item) in description["paths"].as_object().context("paths")? {
        for method in item.as_object().context("a path")?.keys().filter(|key| *key != "parameters") {
            described.insert(format!("{} {path}", method.to_uppercase()));
        }
    }
    let rows = calls();
    same_names(&described, &rows.iter().map(|row| row.call.to_owned()).collect())?;

    let mut faults = Vec::new();
    for row in &rows {
        for (visibility, outcomes) in [("private", Some(row.private)), ("public", row.public)] {
            let Some(outcomes) = outcomes else { continue };
            let cells = outcomes.iter().enumerate();
            let tried = cells.map(|(caller, expected)| try_call(&nobody, row, visibility, caller, expected));
            faults.extend(try_join_all(tried).await.with_context(|| row.call)?.into_iter().flatten());
        }
    }
    no_faults(&faults)?;
    cluster.stop().await
}

/// The types of a schema's frames: `enum`s of one, wherever they stand in it.
fn types_of(schema: &Value, found: &mut BTreeSet<String>) {
    if let Some(kind) = schema["properties"]["type"]["enum"][0].as_str() {
        found.insert(kind.to_owned());
    }
    for part in ["oneOf", "allOf"].iter().filter_map(|key| schema[key].as_array()).flatten() {
        types_of(part, found);
    }
}

fn frame(kind: &str, room: &str, seq: u64) -> Value {
    match kind {
        "hello" => json!({"type": "hello", "resume": {room: 0}, "rooms": [room]}),
        "send" => {
            let content = json!({"type": "text/plain", "body": "hello"});
            json!({"type": kind, "room": room, "client_msg_id": new_id(), "content": content})
        }
        "delivered" | "read" => json!({"type": kind, "room": room, "seq": seq}),
        "typing" => json!({"type": kind, "room": room}),
        kind => json!({"type": kind}),
    }
}

/// What became of a send.
async fn outcome_of_send(wire: &mut Wire, room: &str) -> Result<(String, Value)> {
    wire.send(frame("send", room, 0)).await?;
    loop {
        let answer = wire.next().await?;
        match answer["type"].as_str() {
            Some("accepted") => return Ok(("accepted".into(), answer)),
            Some("rejected") => {
                let code = answer["code"].as_str().context("a code")?;
                return Ok((format!("rejected {code}"), answer));
            }
            _ => {}
        }
    }
}

async fn try_frame(
    nobody: &Api,
    (kind, case): (&str, &str),
    visibility: &str,
    caller: usize,
    expected: &str,
) -> Result<Option<String>> {
    let scene = Scene::new(nobody, visibility).await?;
    let room = scene.room.as_str();
    let outcome = match &scene.people[caller] {
        None => {
            let mut wire = Wire::open(nobody.address).await?;
            wire.send(match kind {
                "authenticate" => json!({"type": kind, "token": scene.outsider.api.token}),
                _ => frame(kind, room, scene.message),
            })
            .await?;
            format!("closed {}", wire.close_code().await?)
        }
        Some(person) => frame_of(person, &scene, (kind, case), expected).await?,
    };
    let cell = format!("{kind} ({case}), {} in a {visibility} room", CALLERS[caller]);
    Ok((outcome != expected).then(|| format!("{cell}: expected {expected}, got {outcome}")))
}

async fn frame_of(person: &Person, scene: &Scene, (kind, case): (&str, &str), expected: &str) -> Result<String> {
    let room = scene.room.as_str();
    // A room that both are in, to see there that what comes later has come.
    let aside = person.create_room(json!({"name": "Aside"}), &[&scene.deputy]).await?;
    if kind == "hello" {
        let (_, missed) = person.connect(frame("hello", room, 0)).await?;
        let events = missed.iter().filter(|frame| frame["room"] == room && frame["type"] != "receipt");
        let last = events.filter(|frame| frame["type"] != "gap").filter_map(|frame| frame["seq"].as_u64()).max();
        return Ok(match last {
            None => "none".into(),
            Some(last) if last == scene.removal => "up to the removal".into(),
            Some(last) if last == scene.removal + 1 => "all".into(),
            Some(last) => format!("up to {last}"),
        });
    }
    let (mut observer, _) = scene.deputy.connect(json!({})).await?;
    let (mut wire, _) = person.connect(json!({})).await?;
    match kind {
        "send" => {
            let (outcome, answer) = outcome_of_send(&mut wire, room).await?;
            if outcome != "accepted" {
                let (nowhere, its_answer) = outcome_of_send(&mut wire, &new_id()).await?;
                ensure!((&outcome, &answer["detail"]) == (&nowhere, &its_answer["detail"]), "{answer} {its_answer}");
            }
            Ok(outcome)
        }
        "delivered" | "read" | "typing" => {
            wire.send(frame(kind, room, scene.message)).await?;
            if expected != "seen" {
                wire.send(frame(kind, &aside, 1)).await?;
            }
            let told = if kind == "typing" { "typing" } else { "receipt" };
            let reached = if kind == "read" { "read_seq" } else { "delivered_seq" };
            loop {
                let frame = observer.next().await?;
                if frame["type"] != told || frame["user"] != *person.id {
                    continue;
                }
                let least = if frame["room"] == room { scene.message } else { 1 };
                if told == "receipt" && frame[reached].as_u64() < Some(least) {
                    continue;
                }
                if frame["room"] == room {
                    return Ok("seen".into());
                }
                if expected != "seen" && frame["room"] == *aside {
                    return Ok("ignored".into());
                }
            }
        }
        _ => {
            let token = match case {
                "another's" => scene.outsider.api.token.clone(),
                "no token" => Some("none".into()),
                _ => person.api.token.clone(),
            };
            wire.send(json!({"type": kind, "token": token})).await?;
            if expected == "open" {
                // It still does what it did.
                let (outcome, _) = outcome_of_send(&mut wire, &aside).await?;
                ensure!(outcome == "accepted", "{outcome}");
                return Ok("open".into());
            }
            Ok(format!("closed {}", wire.close_code().await?))
        }
    }
}

#[tokio::test]
async fn every_frame_acts_for_those_alone_who_may_send_it() -> Result<()> {
    let cluster = Cluster::start().await?;
    let nobody = cluster.api();
    let description = nobody.get("/openapi.json").await?.expect(200)?;
    let mut described = BTreeSet::new();
    types_of(&description["components"]["schemas"]["ClientFrame"], &mut described);
    same_names(&described, &FRAMES.iter().map(|(kind, ..)| (*kind).to_owned()).collect())?;

    let mut faults = Vec::new();
    for (kind, case, outcomes) in FRAMES {
        for visibility in ["private", "public"] {
            let cells = outcomes.iter().enumerate();
            let tried = cells.map(|(caller, expected)| try_frame(&nobody, (kind, case), visibility, caller, expected));
            faults.extend(try_join_all(tried).await.with_context(|| format!("{kind} {case}"))?.into_iter().flatten());
        }
    }
    no_faults(&faults)?;
    cluster.stop().await
}
