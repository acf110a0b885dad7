//! The command line as an operator meets it: settings, their order, and what is refused with which exit status.

#![expect(clippy::unwrap_used, reason = "what a test can not do without ends it")]

use std::process::{Command, Output};

fn posthaste(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_posthaste"))
        .args(arguments)
        .env_clear()
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn printed(arguments: &[&str], variables: &[(&str, &str)]) -> toml::Table {
    let output = posthaste(&[&["config", "--print"], arguments].concat(), variables);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

/// Asserts that the arguments are refused with exit status 2 and a message that has all of `words`.
fn refused(arguments: &[&str], variables: &[(&str, &str)], words: &[&str]) {
    let output = posthaste(arguments, variables);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
}

fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("posthaste.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path.to_str().unwrap().to_owned())
}

#[test]
fn flags_go_over_variables_over_the_file_over_defaults() {
    let (_dir, path) = file("listen = '127.0.0.1:1'\npartitions = 7\ngrace_ms = 8\n");
    let flags = ["--config", path.as_str(), "--listen", "127.0.0.1:3"];
    let settings = printed(&flags, &[("POSTHASTE_LISTEN", "127.0.0.1:2"), ("POSTHASTE_GRACE_MS", "9")]);
    assert_eq!(settings["listen"].as_str(), Some("127.0.0.1:3"), "flag");
    assert_eq!(settings["grace_ms"].as_integer(), Some(9), "variable");
    assert_eq!(settings["partitions"].as_integer(), Some(7), "file");
    assert_eq!(settings["admin_listen"].as_str(), Some("127.0.0.1:9090"), "default");
}

#[test]
fn the_file_may_be_named_by_a_variable() {
    let (_dir, path) = file("partitions = 7\n");
    assert_eq!(printed(&[], &[("POSTHASTE_CONFIG", &path)])["partitions"].as_integer(), Some(7));
}

#[test]
fn printed_settings_are_a_file_with_the_same_outcome() {
    let first = printed(&["--issuer", "acme=keys=1.json", "--no-rate-limits"], &[]);
    assert_eq!(first["rate_limits"].as_bool(), Some(false));
    assert_eq!(first["issuers"]["acme"].as_str(), Some("keys=1.json"));
    let (_dir, path) = file(&first.to_string());
    assert_eq!(printed(&["--config", &path], &[]), first);
}

#[test]
fn an_issuer_on_the_command_line_joins_those_of_the_file() {
    let (_dir, path) = file("[issuers]\nacme = 'a.json'\n");
    let settings = printed(&["--config", &path, "--issuer", "other=b.json"], &[]);
    assert_eq!(settings["issuers"].as_table().unwrap().len(), 2);
    let (_dir, path) = file(
        "[[edge.issuers]]\nissuer = 'acme'\njwks_url = 'https://acme.example/jwks.json'\naudience = 'acme-chat'\n",
    );
    let settings = printed(&["--config", &path, "--issuer", "other=https://id.example/jwks.json"], &[]);
    assert_eq!(settings["edge"]["issuers"][0]["audience"].as_str(), Some("acme-chat"));
    assert_eq!(settings["issuers"]["other"].as_str(), Some("https://id.example/jwks.json"));
}

#[test]
fn an_unknown_key_is_refused_and_named() {
    let (_dir, path) = file("lisen = '127.0.0.1:1'\n");
    refused(&["serve", "--config", &path], &[], &["lisen", "posthaste.toml"]);
    refused(&["serve"], &[("POSTHASTE_LISEN", "127.0.0.1:1")], &["lisen", "`POSTHASTE_`"]);
}

#[test]
fn variables_that_kubernetes_adds_for_a_service_of_our_name_are_no_settings() {
    let added = [("POSTHASTE_SERVICE_HOST", "10.0.0.1"), ("POSTHASTE_PORT_8080_TCP_ADDR", "10.0.0.1")];
    assert_eq!(printed(&[], &added), printed(&[], &[]));
}

#[test]
fn an_address_beyond_loopback_needs_insecure_http() {
    refused(&["serve", "--listen", "0.0.0.0:0"], &[], &["0.0.0.0:0", "--insecure-http"]);
    refused(&["serve", "--admin-listen", "[::]:0"], &[], &["admin_listen", "--insecure-http"]);
    printed(&["--listen", "0.0.0.0:0", "--insecure-http"], &[]);
    let tls = ["--tls-cert", "cert.pem", "--tls-key", "key.pem"];
    let settings = printed(&[&["--listen", "0.0.0.0:0"][..], &tls].concat(), &[]);
    assert_eq!(settings["tls_key"].as_str(), Some("key.pem"));
    refused(&[&["serve", "--admin-listen", "0.0.0.0:0"][..], &tls].concat(), &[], &["admin_listen"]);
    refused(&["serve", "--tls-cert", "cert.pem"], &[], &["tls_key"]);
}

#[test]
fn what_can_not_be_right_is_refused_before_anything_is_made() {
    refused(&["serve", "--config", "/nowhere/posthaste.toml"], &[], &["/nowhere/posthaste.toml"]);
    refused(&["serve", "--listen", "here"], &[], &["--listen"]);
    refused(&["serve", "--issuer", "acme"], &[], &["NAME=JWKS_FILE or NAME=URL"]);
    refused(&["serve", "--issuer", "acme=http://acme.example/jwks.json"], &[], &["no https:// URL"]);
    refused(&["serve"], &[("POSTHASTE_PARTITIONS", "0")], &["partitions = 0"]);
    refused(&["serve"], &[("POSTHASTE_PARTITIONS", "many")], &["PARTITIONS", "many"]);
    refused(&["serve"], &[("POSTHASTE_LOG", "info,=")], &["log = "]);
    refused(&["frobnicate"], &[], &["frobnicate"]);
}

#[test]
fn sections_choose_the_engines_and_no_password_is_printed() {
    let settings = printed(&[], &[]);
    assert!(!settings.contains_key("kafka") && !settings.contains_key("cassandra"));
    let (dir, path) = file("[kafka]\nbootstrap = 'kafka:9093'\n[cassandra]\ncontact_points = 'one:9042, other:9042'\n");
    let password = dir.path().join("password");
    std::fs::write(&password, "kanarienvogel\n").unwrap();
    let password = password.to_str().unwrap();
    let mut variables = Vec::new();
    for (user, file, ca) in [
        ("POSTHASTE_KAFKA__USER", "POSTHASTE_KAFKA__PASSWORD_FILE", "POSTHASTE_KAFKA__CA"),
        ("POSTHASTE_CASSANDRA__USER", "POSTHASTE_CASSANDRA__PASSWORD_FILE", "POSTHASTE_CASSANDRA__CA"),
    ] {
        variables.extend([(user, "posthaste"), (file, password)]);
        refused(&["serve", "--config", &path], &variables, &["user needs ca"]);
        variables.push((ca, "ca.pem"));
    }
    let settings = printed(&["--config", &path], &variables);
    assert_eq!(settings["kafka"]["password_file"].as_str(), Some(password));
    assert_eq!(settings["cassandra"]["password_file"].as_str(), Some(password));
    assert_eq!(settings["cassandra"]["keyspace"].as_str(), Some("posthaste"));
    assert!(!settings.to_string().contains("kanarienvogel"));

    refused(&["serve"], &[("POSTHASTE_CASSANDRA__KEYSPACE", "chat")], &["contact_points is empty"]);
    let named = ("POSTHASTE_CASSANDRA__CONTACT_POINTS", "one:9042");
    refused(&["serve"], &[named, ("POSTHASTE_CASSANDRA__KEYSPACE", "a; DROP")], &["keyspace is"]);
    refused(&["serve"], &[named, ("POSTHASTE_CASSANDRA__USER", "ada")], &["password_file"]);
}

#[test]
fn in_a_directory_there_is_nothing_to_make() {
    let dir = tempfile::tempdir().unwrap();
    for command in ["topics", "tables"] {
        let output = posthaste(&["admin", command, "--data", dir.path().join("data").to_str().unwrap()], &[]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("there is nothing to do"), "{output:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was made");
}

#[test]
fn a_role_alone_needs_what_it_shares_with_others_and_says_so() {
    let kafka = ("POSTHASTE_KAFKA__BOOTSTRAP", "127.0.0.1:1");
    let cassandra = ("POSTHASTE_CASSANDRA__CONTACT_POINTS", "127.0.0.1:1");
    for role in ["edge", "ingest", "fanout", "archiver"] {
        refused(&[role], &[cassandra], &["kafka is missing", "posthaste serve"]);
        refused(&[role], &[kafka], &["cassandra is missing"]);
        if role != "ingest" {
            refused(&[role], &[kafka, cassandra], &["link is missing", "certificate"]);
        }
    }
}

#[test]
fn links_need_certificates_and_an_address_that_others_can_reach() {
    let (_dir, path) = file("[link]\nlisten = '127.0.0.1:0'\nca = 'ca.pem'\ncertificate = 'one.pem'\n");
    refused(&["fanout", "--config", &path], &[], &["link", "key is missing"]);
    let (_dir, path) = file("[link]\nlisten = '0.0.0.0:1'\nca = 'ca.pem'\ncertificate = 'one.pem'\nkey = 'one.key'\n");
    refused(&["fanout", "--config", &path], &[], &["0.0.0.0:1", "advertise"]);
}
