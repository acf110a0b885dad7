//! The checked-in description of socket and topics is the one that the code gives.

use std::collections::BTreeSet;
use std::path::Path;

use schemas::Topic;
use serde_json::Value;

/// With UPDATE set it is written anew.
#[test]
fn docs_asyncapi_yaml_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/asyncapi.yaml");
    let said = serde_norway::to_string(&edge::asyncapi::document().unwrap()).unwrap();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &said).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(checked_in == said, "docs/asyncapi.yaml is out of date: UPDATE=1 cargo test -p edge --test asyncapi");
}

#[test]
fn every_reference_leads_somewhere() {
    let api = edge::asyncapi::document().unwrap();
    let text = api.to_string();
    let mut seen = 0;
    for rest in text.split("\"$ref\":\"#").skip(1) {
        let to = rest.split('"').next().unwrap();
        assert!(api.pointer(to).is_some_and(Value::is_object), "{to}");
        seen += 1;
    }
    assert!(seen > 100, "{seen}");
}

#[test]
fn every_frame_every_topic_and_every_close_code_is_described() {
    let api = edge::asyncapi::document().unwrap();
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let frames = names(&api["channels"]["socket"]["messages"]);
    for frame in [
        "client-hello",
        "client-send",
        "client-delivered",
        "client-read",
        "client-typing",
        "client-pong",
        "client-authenticate",
        "server-welcome",
        "server-message",
        "server-member",
        "server-room",
        "server-accepted",
        "server-rejected",
        "server-receipt",
        "server-typing",
        "server-presence",
        "server-gap",
        "server-live",
        "server-token_expiring",
        "server-read_marker",
        "server-ping",
        "server-error",
        "server-closing",
    ] {
        assert!(frames.contains(frame), "{frame} of {frames:?}");
    }
    let records: usize = Topic::ALL.iter().map(|topic| names(&api["channels"][topic.name()]["messages"]).len()).sum();
    assert_eq!(records, 8);
    assert_eq!(names(&api["channels"]["events"]["messages"]), BTreeSet::from(["Event".into(), "Outcome".into()]));
    let codes = names(&api["channels"]["socket"]["x-close-codes"]);
    for code in ["1009", "1012", "1013", "4001", "4003", "4004", "4008", "4500", "4501", "4503", "4504"] {
        assert!(codes.contains(code), "{code}");
    }
}
