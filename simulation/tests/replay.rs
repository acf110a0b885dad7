//! One seed gives one history, and a fault that is left out leaves the others as they are.
#![expect(clippy::unwrap_used, reason = "a test stops where something goes wrong")]

use std::process::Command;

use serde_json::Value;

fn run(seed: u64, more: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulate"));
    let output = command.args(["--child", "--seed", &seed.to_string()]).args(more).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn one_seed_gives_one_history() {
    for seed in 1..=12 {
        let first = run(seed, &[]);
        assert_eq!(first, run(seed, &[]), "seed {seed}");
        assert!(first["steps"].as_u64() > Some(20), "seed {seed} saw next to nothing: {first}");
    }
    assert_ne!(run(1, &[])["trace"], run(2, &[])["trace"]);
}

#[test]
fn a_fault_that_is_left_out_does_not_happen_and_the_others_do() {
    let faults = |run: &Value| -> u64 {
        let seen = run["seen"].as_object().unwrap();
        seen.iter().filter(|(name, _)| name.starts_with("fault: ")).map(|(_, times)| times.as_u64().unwrap()).sum()
    };
    let seed = (1..).find(|seed| faults(&run(*seed, &[])) >= 3).unwrap();
    assert_eq!(faults(&run(seed, &["--without", "0"])), faults(&run(seed, &[])) - 1, "seed {seed}");
}
