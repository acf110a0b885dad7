//! The server with a certificate, as people have it: the SDK and `posthaste chat` over https, who is refused, and a
//! certificate that is renewed under them.

#![expect(clippy::unwrap_used, reason = "what a test can not do without ends it")]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use client::{Client, Credentials, Error, Event, Listener, Retry, Settings, Signal};
use common::Server;
use parking_lot::Mutex;
use rustix::process::Signal as ProcessSignal;
use schemas::RoomId;
use schemas::message::Content;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Nothing here takes so long unless it hangs; the server looks at its files every 2 s.
const PATIENCE: Duration = Duration::from_secs(20);

/// A certificate of its own authority, as files.
struct Pair {
    certificate: String,
    key: String,
}

fn pair(name: &str) -> Pair {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    Pair { certificate: made.cert.pem(), key: made.signing_key.serialize_pem() }
}

/// A server with a certificate, and what it logs.
struct Served {
    dir: TempDir,
    server: Server,
}

impl Served {
    fn start(pair: &Pair) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let served = |name: &str| dir.path().join(name);
        std::fs::write(served("cert.pem"), &pair.certificate).unwrap();
        std::fs::write(served("key.pem"), &pair.key).unwrap();
        let mut command = common::command(&served("data"));
        command
            .env("POSTHASTE_TLS_CERT", served("cert.pem"))
            .env("POSTHASTE_TLS_KEY", served("key.pem"))
            .env("POSTHASTE_LOG", "info")
            .stderr(std::fs::File::create(served("log")).unwrap());
        let server = Server::spawn(command);
        Self { dir, server }
    }

    fn url(&self, host: &str) -> String {
        format!("https://{host}:{}", self.server.address.port())
    }

    /// A file to trust this certificate by.
    fn trust(&self, name: &str, pair: &Pair) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, &pair.certificate).unwrap();
        path
    }

    /// Puts a file in place of another, as programs that renew certificates do.
    fn replace(&self, name: &str, text: &str) {
        let fresh = self.dir.path().join("fresh");
        std::fs::write(&fresh, text).unwrap();
        std::fs::rename(fresh, self.dir.path().join(name)).unwrap();
    }

    async fn connects(&self, authorities: &Path) -> bool {
        client::connector(&self.url("localhost"), Some(authorities)).unwrap().0.connect().await.is_ok()
    }

    /// Waits until the log has so many lines with these words.
    async fn logs(&self, words: &str, times: usize) {
        let so = async {
            while self.log().matches(words).count() < times {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, so).await.unwrap_or_else(|_| panic!("{words:?} {times} times: {}", self.log()));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

/// Notes what is said, and how often the socket was lost.
#[derive(Clone, Default)]
struct Notes {
    texts: Arc<Mutex<Vec<String>>>,
    lost: Arc<AtomicUsize>,
}

#[async_trait]
impl Listener for Notes {
    async fn on_receive(&self, event: &Event) -> Result<(), Retry> {
        if let Event::Message { content: Some(content), .. } = event {
            self.texts.lock().extend(content.body.clone());
        }
        Ok(())
    }

    async fn on_signal(&self, signal: Signal) {
        if matches!(signal, Signal::Offline) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Person {
    client: Client,
    notes: Notes,
    running: JoinHandle<Result<(), Error>>,
    _stop: watch::Sender<bool>,
}

impl Person {
    fn open(served: &Served, name: &str, url: &str, authorities: &Path) -> Self {
        let settings = Settings::new(url, served.dir.path().join(name)).trusting(authorities);
        let me = Credentials::Password { username: name.into(), password: "correct horse battery".into() };
        let (client, worker) = Client::open(settings, me).unwrap();
        let (stop, stopped) = watch::channel(false);
        let notes = Notes::default();
        Self { client, notes: notes.clone(), running: tokio::spawn(worker.run(notes, stopped)), _stop: stop }
    }

    async fn says(&self, room: RoomId, text: &str) {
        let sending = self.client.send(room, Content::text(text)).await.unwrap();
        tokio::time::timeout(PATIENCE, sending.stored()).await.unwrap().unwrap();
    }

    async fn has_heard(&self, texts: &[&str]) {
        let so = async {
            while *self.notes.texts.lock() != texts {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let so = tokio::time::timeout(PATIENCE, so).await;
        so.unwrap_or_else(|_| panic!("{texts:?}: {:?}", self.notes.texts.lock()));
    }
}

#[tokio::test]
async fn the_sdk_chats_over_tls_and_stays_away_from_whoever_it_can_not_trust() {
    let (own, other) = (pair("localhost"), pair("localhost"));
    let served = Served::start(&own);
    let (right, wrong) = (served.trust("right.pem", &own), served.trust("wrong.pem", &other));
    let url = served.url("localhost");
    let ada = Person::open(&served, "ada", &url, &right);
    let ben = Person::open(&served, "ben", &url, &right);
    let room = ada.client.rest().join_or_create("tea").await.unwrap().id;
    ben.client.rest().join_or_create("tea").await.unwrap();
    ada.says(room, "hello").await;
    ben.says(room, "hello, ada").await;
    ada.has_heard(&["hello", "hello, ada"]).await;
    ben.has_heard(&["hello", "hello, ada"]).await;

    // 127.0.0.1 is the same server, by a name that its certificate is not for.
    for (url, authorities, why) in [(&url, &wrong, "signed"), (&served.url("127.0.0.1"), &right, "not valid for name")]
    {
        let eve = Person::open(&served, why, url, authorities);
        for told in [eve.client.rest().me().await.err(), eve.running.await.unwrap().err()] {
            assert!(matches!(&told, Some(Error::Untrusted(told)) if told.contains(why)), "{told:?}");
        }
    }
    // Nobody to trust, or no file: said at once.
    served.replace("empty.pem", "");
    for name in ["empty.pem", "none.pem"] {
        let settings =
            Settings::new(url.as_str(), served.dir.path().join("eve")).trusting(served.dir.path().join(name));
        assert!(matches!(Client::open(settings, Credentials::Saved).err(), Some(Error::Untrusted(_))), "{name}");
    }
}

#[test]
fn a_chat_trusts_the_authorities_of_the_system_or_those_it_is_told_and_nobody_else() {
    let own = pair("localhost");
    let served = Served::start(&own);
    let trusted = served.trust("right.pem", &own);
    let chat = |name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_posthaste"));
        let dir = served.dir.path().join(name);
        command.args(["chat", "--server", &served.url("localhost"), "--room", "@tea", "--user", name, "--data"]);
        command.arg(dir).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let ended = |mut command: Command| {
        let mut process = command.spawn().unwrap();
        std::io::Write::write_all(&mut process.stdin.take().unwrap(), b"correct horse battery\nhello\n").unwrap();
        let output = process.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let mut told = chat("ann");
    told.arg("--ca").arg(&trusted);
    let mut by_the_system = chat("bob");
    by_the_system.env("SSL_CERT_FILE", &trusted);
    for command in [told, by_the_system] {
        let (code, said) = ended(command);
        assert_eq!(code, Some(0), "{said}");
    }
    let (code, said) = ended(chat("eve"));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("the certificate of localhost can't be trusted"), "{said}");
}

#[tokio::test]
async fn a_renewed_certificate_is_for_new_connections_old_ones_live_on_and_a_broken_one_changes_nothing() {
    let (first, second, third) = (pair("localhost"), pair("localhost"), pair("localhost"));
    let served = Served::start(&first);
    let trust = |name: &str, pair: &Pair| served.trust(name, pair);
    let trusted = [trust("1.pem", &first), trust("2.pem", &second), trust("3.pem", &third)];
    let ada = Person::open(&served, "ada", &served.url("localhost"), &trusted[0]);
    let room = ada.client.rest().join_or_create("tea").await.unwrap().id;
    ada.says(room, "before").await;

    // A broken one, found by itself: the old one goes on, and the log says so.
    served.replace("cert.pem", "-----BEGIN CERTIFICATE-----\nnonsense\n");
    served.logs("the old certificate goes on", 1).await;
    assert!(served.connects(&trusted[0]).await);
    // Half of a pair, on demand.
    served.replace("cert.pem", &second.certificate);
    served.server.signal(ProcessSignal::HUP);
    served.logs("the old certificate goes on", 2).await;
    assert!(served.connects(&trusted[0]).await);
    // The other half, found by itself.
    served.replace("key.pem", &second.key);
    served.logs("the certificate is exchanged", 1).await;
    assert!(served.connects(&trusted[1]).await && !served.connects(&trusted[0]).await);
    // Both, on demand: it need not be noticed first.
    served.replace("cert.pem", &third.certificate);
    served.replace("key.pem", &third.key);
    served.server.signal(ProcessSignal::HUP);
    served.logs("the certificate is exchanged", 2).await;
    assert!(served.connects(&trusted[2]).await && !served.connects(&trusted[1]).await);

    ada.says(room, "after").await;
    ada.has_heard(&["before", "after"]).await;
    assert_eq!(ada.notes.lost.load(Ordering::Relaxed), 0, "the socket from before lives on");
}
