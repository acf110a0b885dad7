//! The checked-in description of the API is the one that the code gives.

use std::path::Path;

#[test]
fn docs_openapi_json_is_what_the_code_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let checked_in = std::fs::read_to_string(path).unwrap_or_default();
    let said = edge::openapi::text().unwrap();
    assert!(
        checked_in == said,
        "docs/openapi.json is out of date: cargo run -p edge --example openapi > docs/openapi.json"
    );
}

#[test]
fn every_call_of_the_protocol_is_described_with_its_problems() {
    let api = serde_json::to_value(edge::openapi::document()).unwrap();
    assert_eq!(api["openapi"].as_str().map(|version| &version[..3]), Some("3.1"));
    assert_eq!(api["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    for (method, path) in CALLS {
        let call = &api["paths"][path][method];
        assert!(call.is_object(), "{method} {path}");
        let problem = &call["responses"]["default"]["content"]["application/problem+json"]["schema"]["$ref"];
        assert_eq!(problem, "#/components/schemas/Problem", "{method} {path}");
    }
    for frame in ["ClientFrame", "ServerFrame", "EventView", "Control"] {
        assert!(api["components"]["schemas"][frame].is_object(), "{frame}");
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let api = serde_json::to_value(edge::openapi::document()).unwrap();
    let text = api.to_string();
    for rest in text.split("\"$ref\":\"#/components/schemas/").skip(1) {
        let name = rest.split('"').next().unwrap();
        assert!(api["components"]["schemas"][name].is_object(), "{name}");
    }
}

const CALLS: [(&str, &str); 27] = [
    ("post", "/v1/auth/sign-in"),
    ("post", "/v1/auth/sign-up"),
    ("post", "/v1/auth/refresh"),
    ("post", "/v1/auth/sign-out"),
    ("get", "/v1/me"),
    ("patch", "/v1/me"),
    ("get", "/v1/me/devices"),
    ("delete", "/v1/me/devices/{device}"),
    ("get", "/v1/users/{id}"),
    ("get", "/v1/users"),
    ("post", "/v1/rooms"),
    ("get", "/v1/rooms"),
    ("get", "/v1/rooms/{room}"),
    ("patch", "/v1/rooms/{room}"),
    ("delete", "/v1/rooms/{room}"),
    ("put", "/v1/rooms/{room}/members/me"),
    ("delete", "/v1/rooms/{room}/members/me"),
    ("put", "/v1/rooms/{room}/members/{user}"),
    ("delete", "/v1/rooms/{room}/members/{user}"),
    ("get", "/v1/rooms/{room}/members"),
    ("get", "/v1/rooms/{room}/online"),
    ("put", "/v1/direct/{user}"),
    ("post", "/v1/rooms/{room}/messages"),
    ("get", "/v1/rooms/{room}/messages"),
    ("get", "/v1/rooms/{room}/messages/{seq}/receipts"),
    ("get", "/v1/socket"),
    ("get", "/.well-known/jwks.json"),
];
