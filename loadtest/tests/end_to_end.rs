//! The binary against a small server and its mutants: exit codes, results, and that it finds what is wrong.

#![expect(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod server;

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
    let cases: [(Vec<String>, &str); 3] = [
        (vec!["--target".into(), format!("http://{free}")], "can't connect"),
        (vec!["--target".into(), format!("ftp://{free}")], "only http:// and https://"),
        (vec!["--target".into(), format!("http://{free}"), "--rate".into(), "0".into()], "above 0"),
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
