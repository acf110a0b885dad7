//! What one more socket costs while nothing happens: all heap that is live for it, in the edge and in the roles behind
//! it.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
#![expect(unsafe_code, reason = "an allocator that counts, and hands every call to the system's")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Person, World};
use edge::Config;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Live bytes, as the system's allocator counts them.
static LIVE_BYTES: AtomicUsize = AtomicUsize::new(0);

/// What one socket may cost, bytes. Ten thousand of them are 30 MB. It is the task and its future (768), the kernel's
/// readiness (256), the socket that hub and session share (368), its one room (212), its queue (128), and its entries in
/// the tables of hub and fanout; the rest of the way is for tables that have just doubled. A buffer for each socket, or a
/// future that holds the handshake's state, would not fit.
const SOCKET_MAX_BYTES: usize = 3 * 1_024;

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

/// A socket that is live, and has no heap on the client's side.
fn live(address: SocketAddr, who: &Person) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let handshake = "GET /v1/socket HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(handshake.as_bytes()).unwrap();
    read_until(&mut stream, "\r\n\r\n");
    let hello = json!({"type": "hello", "token": who.token}).to_string();
    let mut frame = vec![0x81, 0xFE];
    frame.extend_from_slice(&u16::try_from(hello.len()).unwrap().to_be_bytes());
    // A mask of zeros changes nothing.
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(hello.as_bytes());
    stream.write_all(&frame).unwrap();
    read_until(&mut stream, "{\"type\":\"live\"}");
    stream
}

fn read_until(stream: &mut TcpStream, end: &str) {
    let mut read = Vec::new();
    let mut piece = [0; 1_024];
    while !read.ends_with(end.as_bytes()) {
        let length = stream.read(&mut piece).unwrap();
        assert!(length > 0, "{}", String::from_utf8_lossy(&read));
        read.extend_from_slice(&piece[..length]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn an_idle_socket_is_small() {
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
    tokio::spawn(edge::server::serve(world.app.clone(), listener, stop));

    // Every second one brings with it what all share: rooms, tables, caches.
    let (first, second): (Vec<_>, Vec<_>) = people.iter().enumerate().partition(|(n, _)| n % 2 == 0);
    let mut sockets: Vec<TcpStream> = first.iter().map(|(_, who)| live(address, who)).collect();
    // What the handshakes needed goes with their tasks.
    let only_sockets = async |count: i64| {
        while world.app.metrics.connections.get() != count {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, only_sockets(300)).await.unwrap();
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    sockets.extend(second.iter().map(|(_, who)| live(address, who)));
    tokio::time::timeout(PATIENCE, only_sockets(600)).await.unwrap();
    let each = || LIVE_BYTES.load(Ordering::Relaxed).saturating_sub(before) / second.len();
    let small = async {
        while each() > SOCKET_MAX_BYTES {
            tokio::task::yield_now().await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, small).await;
    println!("{} bytes a socket", each());
    assert!(in_time.is_ok(), "{} bytes a socket", each());
    assert_eq!(world.app.hub.socket_count(), sockets.len());
}
