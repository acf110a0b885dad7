//! What one more socket costs while nothing happens: all heap that is live for it, in the edge and in the roles behind
//! it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
#![expect(unsafe_code, reason = "an allocator that counts, and hands every call to the system's")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Person, World};
use edge::Config;
use edge::tls::Tls;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, Stream};

/// Live bytes, as the system's allocator counts them.
static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// What one socket may cost, bytes. Ten thousand of them are 30 MB. It is the task and its future (768), the kernel's
/// readiness (256), the socket that hub and session share (368), its one room (212), its queue (128), and its entries in
/// the tables of hub and fanout; the rest of the way is for tables that have just doubled. A buffer for each socket, or a
/// future that holds the handshake's state, would not fit.
const SOCKET_MAX_BYTES: usize = 3 * 1_024;

/// What TLS may add to that, bytes. A rustls connection that waits takes 7.5 KiB whatever we do: a buffer to read into
/// (4,096), itself (1,168), and the keys of both directions. A handshake that stays, or a second buffer, would not fit.
const TLS_MAX_BYTES: usize = 8 * 1_024 + 512;

/// Nothing here takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(10);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What an allocation takes: its size and a word, in steps of two words.
fn taken_bytes(layout: Layout) -> usize {
    (layout.size() + 8).next_multiple_of(16).max(32)
}

// SAFETY: every call is the system's own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE_BYTES.fetch_add(taken_bytes(layout), Ordering::Relaxed);
        // SAFETY: as asked of us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(taken_bytes(layout), Ordering::Relaxed);
        // SAFETY: as asked of us.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// A socket that is live, and has no heap on the client's side: the connection alone is kept, TLS or not.
fn live(address: SocketAddr, who: &Person, tls: Option<&Arc<ClientConfig>>) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    match tls {
        Some(config) => {
            let name = ServerName::try_from("localhost").unwrap();
            let mut connection = ClientConnection::new(config.clone(), name).unwrap();
            become_live(&mut Stream::new(&mut connection, &mut stream), who);
        }
        None => become_live(&mut stream, who),
    }
    stream
}

fn become_live(stream: &mut (impl Read + Write), who: &Person) {
    let handshake = "GET /v1/socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(handshake.as_bytes()).unwrap();
    read_until(stream, "\r\n\r\n");
    let hello = json!({"type": "hello", "token": who.token}).to_string();
    let mut frame = vec![0x81, 0xFE];
    frame.extend_from_slice(&u16::try_from(hello.len()).unwrap().to_be_bytes());
    // A mask of zeros changes nothing.
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(hello.as_bytes());
    stream.write_all(&frame).unwrap();
    read_until(stream, "{\"type\":\"live\"}");
}

fn read_until(stream: &mut impl Read, end: &str) {
    let mut read = Vec::new();
    let mut piece = [0; 1_024];
    while !read.ends_with(end.as_bytes()) {
        let length = stream.read(&mut piece).unwrap();
        assert!(length > 0, "{}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&piece[..length]);
    }
}

/// Certificate and key for the server, and a client that trusts it.
fn tls() -> (Arc<Tls>, Arc<ClientConfig>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let server = Tls::new(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Tickets would be kept.
    client.resumption = Resumption::disabled();
    (Arc::new(server), Arc::new(client))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_idle_socket_is_small() {
    // One after the other: the bytes that are counted are the process's.
    is_small("plain", None, SOCKET_MAX_BYTES).await;
    is_small("over TLS", Some(tls()), SOCKET_MAX_BYTES + TLS_MAX_BYTES).await;
}

async fn is_small(how: &str, tls: Option<(Arc<Tls>, Arc<ClientConfig>)>, max_bytes: usize) {
    let world = World::with(Config { limits: None, ..Config::default() }).await;
    let mut people = Vec::new();
    for n in 0..600 {
        people.push(world.person(&format!("person_{n}")).await);
    }
    for group in people.chunks(50) {
        let members: Vec<&Person> = group[1..].iter().collect();
        world.room(&group[0], &members, Value::Null).await;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (_shutdown, stop) = watch::channel(false);
    let client = match tls {
        Some((server, client)) => {
            tokio::spawn(edge::server::serve_tls(world.app.clone(), listener, server, stop));
            Some(client)
        }
        None => {
            tokio::spawn(edge::server::serve(world.app.clone(), listener, stop));
            None
        }
    };
    let live = |who: &Person| live(address, who, client.as_ref());

    // Every second one brings with it what all share: rooms, tables, caches.
    let (first, second): (Vec<_>, Vec<_>) = people.iter().enumerate().partition(|(n, _)| n % 2 == 0);
    let mut sockets: Vec<TcpStream> = first.iter().map(|(_, who)| live(who)).collect();
    // What the handshakes needed goes with their tasks.
    let only_sockets = async |count: i64| {
        while world.app.metrics.connections.get() != count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, only_sockets(300)).await.unwrap();
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    sockets.extend(second.iter().map(|(_, who)| live(who)));
    tokio::time::timeout(PATIENCE, only_sockets(600)).await.unwrap();
    let each = || LIVE_BYTES.load(Ordering::Relaxed).saturating_sub(before) / second.len();
    let small = async {
        while each() > max_bytes {
            tokio::task::yield_now().await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, small).await;
    println!("{} bytes a socket {how}", each());
    assert!(in_time.is_ok(), "{} bytes a socket {how}", each());
    assert_eq!(world.app.hub.socket_count(), sockets.len());
}
