//! Every schema reads what every release wrote, and every release reads what it writes (full, transitive: nodes of two
//! versions work side by side while they are replaced). Released schemas and what they wrote never change.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use apache_avro::Schema;
use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};
use schemas::Record;
use schemas::cluster::Instance;
use schemas::codec::CodecError;
use schemas::command::Command;
use schemas::dead_letter::DeadLetter;
use schemas::event::Event;
use schemas::outcome::Outcome;
use schemas::receipt::Receipt;
use schemas::signal::Signal;
use schemas::user_event::UserEvent;

/// A record: its file's name, its schema, what releases wrote it with, and how data are read and written anew.
struct Form {
    file: &'static str,
    schema: &'static str,
    released: &'static [&'static str],
    rewritten: fn(&[u8]) -> Result<Vec<u8>, CodecError>,
}

fn form<T: Record>(file: &'static str) -> Form {
    let rewritten = |bytes: &[u8]| T::decode(bytes).map(|value| value.encode().to_vec());
    Form { file, schema: T::SCHEMA, released: T::RELEASED, rewritten }
}

fn forms() -> Vec<Form> {
    vec![
        form::<Command>("command"),
        form::<Event>("event"),
        form::<Outcome>("outcome"),
        form::<UserEvent>("user_event"),
        form::<Receipt>("receipt"),
        form::<Signal>("signal"),
        form::<DeadLetter>("dead_letter"),
        form::<Instance>("instance"),
    ]
}

/// Whether each can read all that the other writes.
fn agree(one: &Schema, other: &Schema) -> Result<(), String> {
    match SchemaCompatibility::mutual_read(one, other) {
        Ok(Compatibility::Full) => Ok(()),
        Ok(Compatibility::Partial) => Err("some of what one writes the other can't read".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn parse(text: &str) -> Schema {
    Schema::parse_str(text).unwrap()
}

fn here(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[test]
fn present_and_released_schemas_read_each_other() {
    for form in forms() {
        let mut versions: Vec<Schema> = form.released.iter().map(|text| parse(text)).collect();
        versions.push(parse(form.schema));
        for one in &versions {
            for other in &versions {
                agree(one, other).unwrap_or_else(|why| panic!("{}: {why}", form.file));
            }
        }
    }
}

#[test]
fn every_release_is_read() {
    for (number, release) in (0..).zip(releases()) {
        let files = fs::read_dir(&release).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let schemas: BTreeSet<String> = files.filter_map(|name| Some(name.strip_suffix(".avsc")?.to_owned())).collect();
        let known: BTreeSet<String> = forms().iter().map(|form| form.file.to_owned()).collect();
        assert!(schemas.is_subset(&known), "{schemas:?} of {}", release.display());
        for form in forms().iter().filter(|form| schemas.contains(form.file)) {
            let text = fs::read_to_string(release.join(format!("{}.avsc", form.file))).unwrap();
            assert_eq!(form.released.get(number), Some(&text.as_str()), "{} of {}", form.file, release.display());
        }
    }
}

/// The folders of the releases, in their order.
fn releases() -> Vec<std::path::PathBuf> {
    let folders: Vec<_> = (1..).map(|n| here(&format!("released/{n}"))).take_while(|folder| folder.is_dir()).collect();
    assert_eq!(folders.len(), fs::read_dir(here("released")).unwrap().count(), "releases are numbered from 1");
    folders
}

#[test]
fn what_releases_wrote_is_read() {
    for release in releases() {
        let golden = fs::read_to_string(release.join("golden.txt")).unwrap();
        assert!(!golden.is_empty());
        for (name, hex) in golden.lines().map(|line| line.split_once(' ').unwrap()) {
            let bytes: Vec<u8> =
                (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()).collect();
            let form = forms().into_iter().find(|form| form.file == name).unwrap();
            let rewritten =
                (form.rewritten)(&bytes).unwrap_or_else(|why| panic!("{name} of {}: {why}", release.display()));
            // Written anew it says the same, by the present schema.
            assert_eq!((form.rewritten)(&rewritten).unwrap(), rewritten, "{name}");
            if rewritten[..10] == bytes[..10] {
                assert_eq!(rewritten, bytes, "{name}");
            }
        }
    }
}

#[test]
fn incompatible_changes_are_refused() {
    let released = parse(Event::RELEASED[0]);
    let mut seen = 0;
    for entry in fs::read_dir(here("tests/incompatible")).unwrap() {
        let path = entry.unwrap().path();
        let changed = parse(&fs::read_to_string(&path).unwrap());
        assert!(agree(&released, &changed).is_err(), "{} is taken for compatible", path.display());
        seen += 1;
    }
    assert!(seen >= 8, "only {seen} fixtures");
    let compatible = parse(&fs::read_to_string(here("tests/compatible.avsc")).unwrap());
    agree(&released, &compatible).unwrap();
}
