//! The description of what is sent without being asked for, AsyncAPI 3.0, from the code: the socket with its frames and close
//! codes, and the topics of the log with their Avro records. `docs/asyncapi.yaml` is this document; a test compares them.

use std::collections::{BTreeMap, BTreeSet};

use schemas::cluster::Instance;
use schemas::command::Command;
use schemas::dead_letter::DeadLetter;
use schemas::frame::{SUBPROTOCOL, close};
use schemas::limits::{FRAME_MAX_BYTES, HEARTBEAT, HELLO_TIMEOUT};
use schemas::outcome::Outcome;
use schemas::receipt::Receipt;
use schemas::signal::Signal;
use schemas::user_event::UserEvent;
use schemas::{Event, Record, Topic};
use serde_json::{Map, Value, json};

/// What a reference to a form begins with, in OpenAPI as in AsyncAPI.
const FORMS: &str = "#/components/schemas/";

/// Every record, by its name: its Avro schema.
const RECORDS: [(&str, &str); 8] = [
    (Command::NAME, Command::SCHEMA),
    (Event::NAME, Event::SCHEMA),
    (Outcome::NAME, Outcome::SCHEMA),
    (UserEvent::NAME, UserEvent::SCHEMA),
    (Receipt::NAME, Receipt::SCHEMA),
    (Signal::NAME, Signal::SCHEMA),
    (DeadLetter::NAME, DeadLetter::SCHEMA),
    (Instance::NAME, Instance::SCHEMA),
];

/// The whole description.
///
/// # Errors
/// A form or a schema is not JSON, which none is.
pub fn document() -> Result<Value, serde_json::Error> {
    let forms = serde_json::to_value(crate::openapi::document())?["components"]["schemas"].take();
    let mut messages = Map::new();
    let client = frames(&forms, "client", &["ClientFrame"], &mut messages);
    let server = frames(&forms, "server", &["EventView", "Control"], &mut messages);
    let mut used = BTreeSet::new();
    for message in messages.values() {
        gather(&forms, message, &mut used);
    }
    let used: Map<String, Value> = used.into_iter().map(|name| (name.clone(), forms[&name].clone())).collect();

    let mut channels = Map::new();
    channels.insert("socket".into(), socket(client.iter().chain(&server)));
    let mut records: BTreeMap<Topic, Vec<String>> = BTreeMap::new();
    for (name, schema) in RECORDS {
        let schema: Value = serde_json::from_str(schema)?;
        let about = schema["doc"].as_str().unwrap_or_default().to_owned();
        // Each schema says where its records go and what they are keyed by.
        let topics = Topic::ALL.into_iter().filter(|topic| about.ends_with(&format!(" Topic: {}.", topic.name())));
        for topic in topics {
            records.entry(topic).or_default().push(name.to_owned());
        }
        let payload = json!({ "schemaFormat": "application/vnd.apache.avro+json;version=1.9.0", "schema": schema });
        let message = json!({
            "name": name, "summary": about, "contentType": "application/avro",
            "description": "An Avro single object: C3 01, the schema's CRC-64-AVRO fingerprint, the datum.",
            "payload": payload,
        });
        messages.insert(name.into(), message);
    }
    for (topic, records) in records {
        channels.insert(topic.name().into(), channel(topic, &records));
    }

    let of_socket = |names: &[String]| -> Vec<Value> {
        names.iter().map(|name| reference(&format!("#/channels/socket/messages/{name}"))).collect()
    };
    Ok(json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Posthaste",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Self-hosted real-time messaging that never loses, doubles or reorders a message, and proves \
                it. Here: the live connection, and the log between the roles. The calls stand in openapi.json.",
            "license": { "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0" },
        },
        "defaultContentType": "application/json",
        "servers": {
            "edge": {
                "host": "127.0.0.1:8080", "protocol": "ws", "protocolVersion": "13",
                "description": "The listener for clients (RFC 6455); `wss` where TLS ends here or in a proxy before it.",
                "security": [reference("#/components/securitySchemes/bearer")],
            },
            "log": {
                "host": "localhost", "protocol": "embedded",
                "description": "The log inside of the process; its durable topics are in log.db of the data directory. No \
                    client reaches it.",
            },
        },
        "channels": channels,
        "operations": {
            "hear": {
                "action": "receive", "channel": reference("#/channels/socket"), "messages": of_socket(&client),
                "summary": "What a client says.",
            },
            "tell": {
                "action": "send", "channel": reference("#/channels/socket"), "messages": of_socket(&server),
                "summary": "What a client is told.",
            },
        },
        "components": {
            "schemas": used,
            "messages": messages,
            "securitySchemes": {
                "bearer": {
                    "type": "http", "scheme": "bearer", "bearerFormat": "JWT",
                    "description": "An access token, in the Authorization header or in `hello`; never in the URL.",
                },
            },
        },
    }))
}

fn reference(to: &str) -> Value {
    json!({ "$ref": to })
}

/// Makes a message of every frame of these forms; their names.
fn frames(forms: &Value, from: &str, kinds: &[&str], messages: &mut Map<String, Value>) -> Vec<String> {
    let mut names = Vec::new();
    for form in kinds.iter().filter_map(|kind| forms[kind]["oneOf"].as_array()).flatten() {
        let Some(kind) = tag(form) else { continue };
        let name = format!("{from}-{kind}");
        let summary = form["description"].as_str().unwrap_or_default();
        messages.insert(name.clone(), json!({ "name": kind, "summary": summary, "payload": form }));
        names.push(name);
    }
    names
}

/// The one value of a frame's `type`.
fn tag(form: &Value) -> Option<&str> {
    let parts = form["allOf"].as_array().into_iter().flatten();
    std::iter::once(form).chain(parts).find_map(|part| part["properties"]["type"]["enum"][0].as_str())
}

/// Adds the forms that are referred to in here, and those in them.
fn gather(forms: &Value, within: &Value, used: &mut BTreeSet<String>) {
    match within {
        Value::Object(fields) => {
            let name = fields.get("$ref").and_then(Value::as_str).and_then(|to| to.strip_prefix(FORMS));
            if let Some(name) = name
                && used.insert(name.to_owned())
            {
                gather(forms, &forms[name], used);
            }
            fields.values().for_each(|value| gather(forms, value, used));
        }
        Value::Array(values) => values.iter().for_each(|value| gather(forms, value, used)),
        _ => {}
    }
}

fn socket<'a>(frames: impl Iterator<Item = &'a String>) -> Value {
    let messages: Map<String, Value> =
        frames.map(|name| (name.clone(), reference(&format!("#/components/messages/{name}")))).collect();
    let codes: Map<String, Value> =
        close::ALL.iter().map(|(code, about)| (code.to_string(), json!(about.trim()))).collect();
    let text = |about: &str| json!({ "type": "string", "description": about });
    json!({
        "address": "/v1/socket",
        "title": "The live connection",
        "description": format!(
            "Text frames with one JSON object each, of at most {FRAME_MAX_BYTES} bytes. `hello` comes first, within {} s; a \
             `ping` comes every {} s, and two unanswered ones close the socket. For each room, from the socket's cursor on, \
             every event comes exactly once, by ascending seq, with no hole that a `gap` does not announce.",
            HELLO_TIMEOUT.as_secs(),
            HEARTBEAT.as_secs(),
        ),
        "servers": [reference("#/servers/edge")],
        "messages": messages,
        "bindings": {
            "ws": {
                "method": "GET",
                "headers": {
                    "type": "object",
                    "properties": {
                        "Authorization": text("`Bearer` and the access token, unless `hello` carries it."),
                        "Origin": text("Of a browser: the request's own origin, or one that the settings allow."),
                        "Sec-WebSocket-Protocol": { "type": "string", "enum": [SUBPROTOCOL] },
                    },
                },
                "bindingVersion": "0.1.0",
            },
        },
        "x-close-codes": codes,
        "x-close-reason": {
            "type": "object",
            "required": ["code"],
            "properties": { "code": { "type": "integer" }, "retry_after_ms": { "type": "integer", "minimum": 0 } },
        },
    })
}

fn channel(topic: Topic, records: &[String]) -> Value {
    let messages: Map<String, Value> =
        records.iter().map(|name| (name.clone(), reference(&format!("#/components/messages/{name}")))).collect();
    let kept = match topic.is_durable() {
        true => "Durable: an append returns when it is synced.",
        false => "In memory: nothing in it was promised, and a crash may lose it as a whole.",
    };
    json!({
        "address": topic.name(),
        "description": kept,
        "servers": [reference("#/servers/log")],
        "messages": messages,
        "x-durable": topic.is_durable(),
        "x-partitioning": "FNV-1a (64 bits) of the key's 16 bytes, its high half folded into the low one by XOR, modulo the \
            number of partitions, which is the same for every topic and never changes",
    })
}
