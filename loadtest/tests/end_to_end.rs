//! The binary against a small server and its mutants: exit codes, results, and that it finds what is wrong.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod server;

use std::io::Write;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use server::{Mutant, Server, crash_again_and_again};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;

fn loadtest() -> Command {
    Command::new(env!("CARGO_BIN_EXE_loadtest"))
}

async fn finish(mut command: Command) -> (i32, String, String) {
    let output = tokio::task::spawn_blocking(move || command.output());
    let Output { status, stdout, stderr } = output.await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Runs against a mutant, with what the options add.
async fn run(mutant: Mutant, options: &[&str]) -> (i32, String, String) {
    let (server, listener) = Server::bind(mutant).await;
    let target = format!("http://{}", server.addr);
    let serving = tokio::spawn(server.serve(listener));
    let mut command = loadtest();
    command.args(["run", "--target", &target, "--verify"]).args(options);
    let result = finish(command).await;
    serving.abort();
    result
}

const SMALL: [&str; 8] = ["--users", "8", "--rooms", "2", "--rate", "200", "--duration", "1s"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_server_passes_in_every_scenario() {
    for scenario in ["rooms", "fanout", "pairs", "idle", "storm"] {
        let dir = tempfile::tempdir().unwrap();
        let json = dir.path().join("result.json");
        let mut options = SMALL.to_vec();
        options.extend(["--scenario", scenario, "--json", json.to_str().unwrap()]);
        let (code, out, err) = run(Mutant::Honest, &options).await;
        assert_eq!(code, 0, "{scenario}: {out}{err}");
        assert!(out.contains("every promise held"), "{out}");
        let result: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
        let sent = match scenario {
            "idle" => 0,
            "storm" => 10,
            _ => 200,
        };
        assert_eq!(result["counts"]["sent"], sent, "{scenario}");
        assert_eq!(result["counts"]["accepted"], sent, "{scenario}");
        if sent > 0 {
            assert!(result["delivery_ms"]["p99"].as_f64().unwrap() > 0.0);
            assert!(result["counts"]["delivered"].as_u64().unwrap() >= sent);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_mutant_is_found_and_named() {
    let mutants = [
        (Mutant::DropOne, "breach: hole: "),
        (Mutant::DoubleOne, "breach: doubled: "),
        // Where the later one is the own message of that socket, it is its `accepted` that came too early.
        (Mutant::SwapTwo, "breach: out_of_order: |breach: accepted_misplaced: "),
        (Mutant::CorruptOne, "breach: wrong_body: "),
        (Mutant::AcceptWithoutStoring, "breach: seq_reused: "),
        (Mutant::ForgetHistory, "breach: lost: "),
        (Mutant::ForgetRoom, "breach: room_unlisted: "),
    ];
    for (mutant, name) in mutants {
        let (code, out, err) = run(mutant, &SMALL).await;
        assert_eq!(code, 1, "{mutant:?}: {out}{err}");
        assert!(name.split('|').any(|name| out.contains(name)), "{mutant:?}: {out}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn crashes_in_between_break_nothing() {
    let (server, listener) = Server::bind(Mutant::Honest).await;
    let target = format!("http://{}", server.addr);
    let serving = tokio::spawn(crash_again_and_again(server, listener, Duration::from_millis(700), 4));
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("result.json");
    let mut command = loadtest();
    command.args(["run", "--target", &target, "--verify", "--json", json.to_str().unwrap()]);
    command.args(["--users", "20", "--rooms", "5", "--rate", "400", "--duration", "3s"]);
    let (code, out, err) = finish(command).await;
    serving.abort();
    assert_eq!(code, 0, "{out}{err}");
    let result: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert!(result["counts"]["reconnects"].as_u64().unwrap() >= 20, "{result}");
    assert_eq!(result["counts"]["accepted"], 1200, "{result}");
}

fn mark(path: &std::path::Path, what: &str) {
    let now = std::process::Command::new("date").arg("+%s%3N").output().unwrap();
    let mut file = std::fs::File::options().append(true).open(path).unwrap();
    writeln!(file, "{} {what}", String::from_utf8(now.stdout).unwrap().trim()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_waits_are_told_for_each_mark() {
    const DOWN: Duration = Duration::from_millis(900);
    const RATE: u32 = 100;
    let (server, listener) = Server::bind(Mutant::Honest).await;
    let addr = server.addr;
    let serving = tokio::spawn(Arc::clone(&server).serve(listener));
    let dir = tempfile::tempdir().unwrap();
    let [json, report, marks] = ["result.json", "report", "marks"].map(|name| dir.path().join(name));
    let mut command = loadtest();
    command.args(["run", "--verify", "--target", &format!("http://{addr}"), "--json"]).arg(&json);
    command.arg("--report").arg(&report).arg("--marks").arg(&marks);
    command.args(["--users", "8", "--rooms", "2", "--rate", &RATE.to_string(), "--duration", "4s"]);
    let loading = tokio::spawn(finish(command));
    while !marks.exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    mark(&marks, "the server <died>");
    serving.abort();
    let _ = serving.await;
    tokio::time::sleep(DOWN).await;
    let serving = tokio::spawn(server.serve(TcpListener::bind(addr).await.unwrap()));
    tokio::time::sleep(Duration::from_millis(1100)).await;
    mark(&marks, "nothing happened");
    let (code, out, err) = loading.await.unwrap();
    serving.abort();
    assert_eq!(code, 0, "{out}{err}");

    let result: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let [died, nothing] = &result["marks"].as_array().unwrap()[..] else { panic!("two marks: {result}") };
    assert_eq!((&died["what"], &nothing["what"]), (&"the server <died>".into(), &"nothing happened".into()));
    let number = |of: &Value, name: &str| of[name].as_f64().unwrap();
    // None of it is the other mark's, and what was under way when the server died is in it: all of the run's longest.
    // A wait begins when a send is due: up to one interval between sends after the server has died.
    let least_ms = (DOWN - Duration::from_secs(1) / RATE).as_secs_f64() * 1e3;
    for name in ["no_accept_ms", "ack_ms", "delivery_ms"] {
        assert!(number(died, name) >= least_ms, "{name}: {result}");
        assert_eq!(number(died, name), number(&result["longest"], name), "{name}: {result}");
        assert!(number(&result["before_marks"], name) > 0.0 && number(nothing, name) > 0.0, "{name}: {result}");
    }
    assert!(number(&result, "no_accept_at_s") <= number(died, "at_s") + 0.5, "{result}");
    for (name, total) in [("sends", "scheduled"), ("accepted", "accepted")] {
        let parts = [&result["before_marks"], died, nothing].map(|of| of[name].as_u64().unwrap());
        assert!(parts.iter().all(|part| *part > 0), "{result}");
        assert_eq!(parts.iter().sum::<u64>(), result["counts"][total].as_u64().unwrap(), "{result}");
    }
    assert!(out.lines().any(|line| line.starts_with("the server <died> ")), "{out}");
    let page = std::fs::read_to_string(report.join("index.html")).unwrap();
    assert!(page.contains("<td>the server &lt;died&gt;<td>") && !page.contains("<died>"), "{page}");
    assert_eq!(page.matches("class=\"mark\"").count(), 2 * 4, "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_is_no_mark_is_told_but_not_before_a_broken_promise() {
    for (mutant, status) in [(Mutant::Honest, 2), (Mutant::DropOne, 1)] {
        let dir = tempfile::tempdir().unwrap();
        let marks = dir.path().join("marks");
        std::fs::write(&marks, "1763790000123 edge-1 killed\nsoon edge-1 killed\n").unwrap();
        let mut options = SMALL.to_vec();
        options.extend(["--marks", marks.to_str().unwrap()]);
        let (code, out, err) = run(mutant, &options).await;
        assert_eq!(code, status, "{out}{err}");
        assert!(out.contains("line 2 is no mark: soon edge-1 killed"), "{out}");
        assert!(out.contains("\nedge-1 killed "), "the others are there: {out}");
        assert_eq!(err.contains("lacks marks"), mutant == Mutant::Honest, "{err}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_of_an_own_issuer_need_no_account_and_the_report_is_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let mut keygen = loadtest();
    keygen.arg("keygen").arg(&keys);
    assert_eq!(finish(keygen).await.0, 0);
    let (key, report) = (keys.join("key.pem"), dir.path().join("report"));
    let mut options = SMALL.to_vec();
    options.extend(["--issuer", "load", "--issuer-key", key.to_str().unwrap()]);
    options.extend(["--report", report.to_str().unwrap()]);
    let (code, out, err) = run(Mutant::Honest, &options).await;
    assert_eq!(code, 0, "{out}{err}");
    let page = std::fs::read_to_string(report.join("index.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 6);
    assert!(!page.contains("http-equiv") && !page.contains("src=") && !page.contains("NaN"));
}

/// Speaks TLS in front of a server. Answers where, with the certificate as text.
async fn speak_tls(to: std::net::SocketAddr) -> (u16, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = tokio_rustls::rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // Clients that do not trust us go away in the middle.
                let Ok(mut outside) = acceptor.accept(stream).await else { return };
                let mut inside = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    (port, made.cert.pem())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_loaded_over_tls_and_one_that_can_not_be_trusted_is_not() {
    let (server, listener) = Server::bind(Mutant::Honest).await;
    let (port, certificate) = speak_tls(server.addr).await;
    let serving = tokio::spawn(server.serve(listener));
    let dir = tempfile::tempdir().unwrap();
    let trusted = dir.path().join("ca.pem");
    std::fs::write(&trusted, certificate).unwrap();
    let run = |host: &str, trusted: Option<&std::path::Path>| {
        let mut command = loadtest();
        command.args(["run", "--verify", "--target", &format!("https://{host}:{port}")]).args(SMALL);
        command.args(trusted.map(|_| "--ca").into_iter()).args(trusted);
        finish(command)
    };
    let (code, out, err) = run("localhost", Some(&trusted)).await;
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("every promise held"), "{out}");
    for (host, trusted, why) in
        [("localhost", None, "UnknownIssuer"), ("127.0.0.1", Some(&*trusted), "not valid for name")]
    {
        let (code, out, err) = run(host, trusted).await;
        assert_eq!(code, 2, "{out}{err}");
        assert!(err.contains(why), "{err}");
    }
    serving.abort();
}

#[tokio::test]
async fn who_cannot_run_says_why_and_exits_2() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let cases: [(Vec<String>, &str); 4] = [
        (vec!["--target".into(), format!("http://{free}")], "can't connect"),
        (vec!["--target".into(), format!("ftp://{free}")], "only http:// and https://"),
        (vec!["--target".into(), format!("http://{free}"), "--rate".into(), "0".into()], "above 0"),
        (vec!["--target".into(), format!("http://{free}"), "--marks".into(), "/".into()], "it is no file"),
    ];
    for (options, reason) in cases {
        let mut command = loadtest();
        command.arg("run").args(options);
        let (code, _, err) = finish(command).await;
        assert_eq!(code, 2, "{err}");
        assert!(err.contains(reason), "{err}");
    }
    let (code, _, err) = run(Mutant::RejectEverything, &SMALL).await;
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("nothing was accepted"), "{err}");
}
