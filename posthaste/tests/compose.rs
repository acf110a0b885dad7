//! docker-compose.yml against what it starts: its variables are settings of ours and come out as it says them, its commands
//! exist, its images are pinned, to the engines' versions that the tests run.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_norway::{Mapping, Value};
use tempfile::TempDir;

/// A file of the repository.
fn file(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)).unwrap()
}

/// What `--env-file` says: lines `NAME=value`.
fn env_file(name: &str) -> BTreeMap<String, String> {
    let text = file(name);
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split_once('=').unwrap()).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Puts values in the place of `${NAME:-default}`, the one form that the file uses.
fn interpolate(text: &str, values: &BTreeMap<String, String>) -> String {
    let mut parts = text.split("${");
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        let (inside, rest) = part.split_once('}').unwrap();
        let (name, default) = inside.split_once(":-").unwrap();
        out += values.get(name).map_or(default, String::as_str);
        out += rest;
    }
    assert!(!out.contains('$'), "another form of variable");
    out
}

/// The services as compose sees them.
fn services(values: &BTreeMap<String, String>) -> Mapping {
    let mut document: Value = serde_norway::from_str(&interpolate(&file("docker-compose.yml"), values)).unwrap();
    // What is merged in may have merges itself.
    loop {
        let before = document.clone();
        document.apply_merge().unwrap();
        if document == before {
            break;
        }
    }
    document["services"].as_mapping().unwrap().clone()
}

/// Those that run our program: name, arguments, variables.
fn ours(values: &BTreeMap<String, String>) -> Vec<(String, Vec<String>, BTreeMap<String, String>)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let scalar = |value: &Value| value.as_str().map_or_else(|| serde_norway::to_string(value).unwrap(), str::to_owned);
    let services = services(values);
    let ours =
        services.iter().filter(|(_, service)| service["image"] == "posthaste" && service.get("entrypoint").is_none());
    ours.map(|(name, service)| {
        let command = service["command"].as_sequence().unwrap().iter().map(text).collect();
        let variables = service["environment"].as_mapping().unwrap();
        let variables = variables.iter().map(|(name, value)| (text(name), scalar(value).trim().to_owned())).collect();
        (text(name), command, variables)
    })
    .collect()
}

fn posthaste(arguments: &[&str], variables: &BTreeMap<String, String>) -> Output {
    let dir = TempDir::new().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthaste"));
    command.args(arguments).env_clear().envs(variables).current_dir(dir.path()).output().unwrap()
}

#[test]
fn each_variable_is_a_setting_and_comes_out_as_it_is_written() {
    for values in [BTreeMap::new(), env_file("deploy/compose/full.env")] {
        let ours = ours(&values);
        assert_eq!(ours.len(), 2 + 4 * 2, "two jobs, two of each role");
        for (name, _, variables) in ours {
            let output = posthaste(&["config", "--print"], &variables);
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            let printed: toml::Value = toml::from_str(std::str::from_utf8(&output.stdout).unwrap()).unwrap();
            for (variable, value) in variables {
                let path = variable.strip_prefix("POSTHASTE_").expect("a variable of ours").to_lowercase();
                let setting = path.split("__").fold(&printed, |table, key| &table[key]);
                let setting = setting.as_str().map_or_else(|| setting.to_string(), str::to_owned);
                assert_eq!(setting, value, "{name}: {variable}");
            }
        }
    }
    let misspelt = [("POSTHASTE_KAFKA__BOOTSTRAPS".to_owned(), "kafka-1:9092".to_owned())].into();
    assert_eq!(posthaste(&["config", "--print"], &misspelt).status.code(), Some(2), "this would see a wrong one");
}

#[test]
fn each_command_exists() {
    let nothing = BTreeMap::new();
    for (name, command, _) in ours(&nothing) {
        let arguments: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let output = posthaste(&arguments, &nothing);
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn images_are_pinned_and_engines_are_those_that_the_tests_run() {
    let services = services(&BTreeMap::new());
    let tag = |name: &str| services[name]["image"].as_str().unwrap().split_once(':').unwrap().1.to_owned();
    for (name, service) in &services {
        let image = service["image"].as_str().unwrap();
        let version = image.split_once(':').map_or("", |(_, tag)| tag).trim_start_matches('v');
        let is_pinned =
            version.split('.').take(3).filter(|part| part.starts_with(|c: char| c.is_ascii_digit())).count() == 3;
        assert!(is_pinned || image == "posthaste", "{name:?}: {image}");
    }
    for (engine, artifact) in
        [("kafka", "org.apache.kafka:kafka_2.13:"), ("cassandra", "org.apache.cassandra:cassandra-all:")]
    {
        let jars = file(&format!("engines/{engine}.jars"));
        let version = jars.lines().find_map(|line| line.split_once(artifact)).unwrap().1;
        for n in 1..=3 {
            assert_eq!(tag(&format!("{engine}-{n}")), version);
        }
    }
    let (dockerfile, toolchain) = (file("Dockerfile"), file("rust-toolchain.toml"));
    let rust = toolchain.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
    assert!(dockerfile.contains(&format!("FROM rust:{rust}-slim-")), "the toolchain is {rust}");
    let user = dockerfile.lines().filter_map(|line| line.strip_prefix("USER ")).next_back().unwrap();
    assert!(!user.starts_with('0') && !user.starts_with("root"), "{user}");
}

#[test]
fn files_that_are_mounted_are_there() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut mounted = 0;
    for (name, service) in &services(&BTreeMap::new()) {
        let volumes = service.get("volumes").and_then(Value::as_sequence).into_iter().flatten();
        for volume in volumes.filter_map(Value::as_str).filter(|volume| volume.starts_with("./")) {
            let path = volume.split(':').next().unwrap();
            assert!(root.join(path).is_file(), "{name:?}: {path}");
            mounted += 1;
        }
    }
    assert_eq!(mounted, 4);
}
