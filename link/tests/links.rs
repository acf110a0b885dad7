//! Links over real connections with TLS, between real fanouts and archivers and edges that write down what they take.

#![expect(clippy::unwrap_used, reason = "the helpers of a test may fail as it does")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use link::{Tls, TlsError};
use parking_lot::Mutex;
use schemas::cluster::{Owned, Role};
use schemas::link::{Batch, EdgePort, FanoutPort, Item, Lane, PageFrom, PageQuery, Registered, Unavailable};
use schemas::message::{
    Content, MemberChange, Membership, Message, Role as MemberRole, RoomHistory, RoomKind, RoomVisibility, Settings,
};
use schemas::receipt::Receipt;
use schemas::{
    CommandId, EdgeId, Event, EventId, EventKind, Offset, Partition, Record, RoomId, Seq, SessionId, Timestamp, Topic,
    UserId,
};
use store::Store;
use stream::Log;
use testkit::network::{Authority, Bare, Network, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

const PARTITIONS: u32 = 4;

/// Nothing here takes so long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(15);

/// An edge that writes down what it takes.
struct Recorder {
    id: EdgeId,
    batches: Mutex<Vec<Batch>>,
    anew: Mutex<Vec<Vec<Partition>>>,
    stuck: AtomicBool,
}

impl Recorder {
    fn new(n: u128) -> Arc<Self> {
        let (batches, anew) = (Mutex::default(), Mutex::default());
        Arc::new(Self { id: EdgeId(Uuid::from_u128(n)), batches, anew, stuck: AtomicBool::new(false) })
    }

    /// The seqs of a room's events, as they have come.
    fn seqs(&self, room: RoomId) -> Vec<u64> {
        let batches = self.batches.lock();
        let items = batches.iter().flat_map(|batch| &batch.items);
        items
            .filter_map(|item| match item {
                Item::Event(event) if event.room == room => Some(event.seq.0),
                _ => None,
            })
            .collect()
    }

    fn epoch(&self, partition: Partition) -> u64 {
        let batches = self.batches.lock();
        batches.iter().filter(|batch| batch.partition == partition).map(|batch| batch.epoch).max().unwrap_or(0)
    }
}

#[async_trait]
impl EdgePort for Recorder {
    fn id(&self) -> EdgeId {
        self.id
    }

    async fn deliver(&self, batch: Batch) -> Result<(), Unavailable> {
        if self.stuck.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        self.batches.lock().push(batch);
        Ok(())
    }

    fn register_anew(&self, partitions: &[Partition]) {
        self.anew.lock().push(partitions.to_vec());
    }
}

/// Links with an edge at their end.
struct Attached {
    bare: Bare,
    edge: Arc<Recorder>,
}

impl Attached {
    async fn new(network: &Network, n: u128) -> Self {
        let (bare, edge) = (network.links().unwrap(), Recorder::new(n));
        bare.fanout.attach(Arc::clone(&edge) as _).await.unwrap();
        Self { bare, edge }
    }

    /// Registers rooms of a partition, however often it has to ask.
    async fn register(&self, partition: Partition, rooms: &[RoomId]) -> Registered {
        let keys: Vec<[u8; 16]> = rooms.iter().map(|room| *room.as_bytes()).collect();
        eventually("a registration", async || {
            self.bare.fanout.register(self.edge.id, Lane::Rooms, partition, &keys).await.ok()
        })
        .await
    }
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{what} has not come about"))
}

/// A room in each partition.
fn rooms() -> BTreeMap<Partition, RoomId> {
    let rooms = (1..1_000).map(|n| RoomId(Uuid::from_u128(n)));
    rooms.map(|room| (partition_of(room), room)).collect()
}

fn partition_of(room: RoomId) -> Partition {
    Partition::of(room.as_bytes(), PARTITIONS)
}

const WRITER: UserId = UserId(Uuid::from_u128(77));

fn event(room: RoomId, seq: u64, kind: EventKind) -> Event {
    let id = Uuid::from_u128(room.0.as_u128() << 64 | u128::from(seq));
    Event {
        room,
        seq: Seq(seq),
        id: EventId(id),
        at: Timestamp(1),
        by: WRITER,
        command: CommandId(id),
        reply_to: None,
        received_us: 0,
        decided_us: 0,
        salt: [0; 16],
        hash: [0; 32],
        kind,
    }
}

/// What a room's event with this seq says: it is made, joined, and then talked in.
fn kind(seq: u64) -> EventKind {
    match seq {
        1 => EventKind::Created(Settings {
            kind: RoomKind::Group,
            name: "room".into(),
            handle: None,
            description: String::new(),
            icon: String::new(),
            visibility: RoomVisibility::Private,
            history: RoomHistory::All,
        }),
        2 => EventKind::Member(Membership { user: WRITER, change: MemberChange::Joined, role: MemberRole::Owner }),
        n => EventKind::Message(Message { content: Content::text(format!("message {n}")), reply_to: None }),
    }
}

/// The position after it.
async fn happen(log: &dyn Log, room: RoomId, seq: u64) -> Offset {
    let value = event(room, seq, kind(seq)).encode();
    let record = stream::Record { key: *room.as_bytes(), value };
    log.append(Topic::Events, partition_of(room), vec![record]).await.unwrap()
}

/// Two of a role, each of which owns some partitions.
async fn two_fanouts(network: &Network) -> [Server; 2] {
    [network.fanout().await.unwrap(), network.fanout().await.unwrap()]
}

/// Waits until every partition of a role has an owner who is one of these, and each of these owns some.
async fn owned_by(bare: &Bare, role: Role, servers: &[&Server]) {
    eventually("an owner for each partition", async || {
        let living = bare.directory.living();
        let owners: Option<Vec<_>> = (0..PARTITIONS).map(|at| Some(living.owner(role, Partition(at))?.id)).collect();
        let owners = owners?;
        let all_own = servers.iter().all(|server| owners.contains(&server.process.id));
        let none_else = owners.iter().all(|owner| servers.iter().any(|server| server.process.id == *owner));
        (all_own && none_else).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_reach_every_edge_once_and_in_order_whoever_owns_their_partition() {
    let network = Network::new(PARTITIONS).await.unwrap();
    let fanouts = two_fanouts(&network).await;
    let edges = [Attached::new(&network, 1).await, Attached::new(&network, 2).await];
    for edge in &edges {
        owned_by(&edge.bare, Role::Fanout, &[&fanouts[0], &fanouts[1]]).await;
        for (partition, room) in rooms() {
            let registered = edge.register(partition, &[room]).await;
            // Before the answer the edge has taken an empty batch that ends there.
            let batches = edge.edge.batches.lock();
            let last = batches.iter().rev().find(|batch| (batch.lane, batch.partition) == (Lane::Rooms, partition));
            let last = last.unwrap();
            assert_eq!((last.epoch, last.to, last.items.len()), (registered.epoch, registered.at, 0));
        }
    }
    for seq in 1..=50 {
        for room in rooms().into_values() {
            happen(&*network.log, room, seq).await;
        }
    }
    let expected: Vec<u64> = (1..=50).collect();
    for edge in &edges {
        for room in rooms().into_values() {
            eventually("the last event", async || edge.edge.seqs(room).last().filter(|last| **last == 50).map(drop))
                .await;
            assert_eq!(edge.edge.seqs(room), expected);
        }
        // Positions join: nothing was missed on the way.
        for partition in rooms().into_keys() {
            let batches = edge.edge.batches.lock();
            let of_partition: Vec<&Batch> =
                batches.iter().filter(|batch| (batch.lane, batch.partition) == (Lane::Rooms, partition)).collect();
            assert!(of_partition.windows(2).all(|pair| pair[0].epoch < pair[1].epoch || pair[0].to == pair[1].from));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_that_may_ride_in_a_batch_arrives_as_it_was() {
    let network = Network::new(PARTITIONS).await.unwrap();
    let _fanout = network.fanout().await.unwrap();
    let edge = Attached::new(&network, 1).await;
    let (partition, room) = rooms().into_iter().next().unwrap();
    edge.register(partition, &[room]).await;
    let receipt = Receipt {
        room,
        user: WRITER,
        session: SessionId(Uuid::from_u128(5)),
        delivered_seq: Seq(9),
        read_seq: Seq(8),
        at: Timestamp(7),
    };
    let record = stream::Record { key: *room.as_bytes(), value: receipt.encode() };
    network.log.append(Topic::Receipts, partition, vec![record]).await.unwrap();
    for seq in 1..=3 {
        happen(&*network.log, room, seq).await;
    }
    let items = eventually("all items", async || {
        let batches = edge.edge.batches.lock();
        let items: Vec<Item> = batches.iter().flat_map(|batch| batch.items.clone()).collect();
        (items.len() == 4).then_some(items)
    })
    .await;
    let mut seen = 0;
    for item in items {
        match item {
            Item::Event(seen_event) => {
                seen += 1;
                assert_eq!(*seen_event, event(room, seen, kind(seen)));
            }
            Item::Receipt(seen) => assert_eq!(*seen, receipt),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_cut_comes_back_and_the_edge_hears_what_to_register_anew() {
    let network = Network::new(PARTITIONS).await.unwrap();
    let fanout = network.fanout().await.unwrap();
    let edge = Attached::new(&network, 1).await;
    let (partition, room) = rooms().into_iter().next().unwrap();
    let before = edge.register(partition, &[room]).await;
    happen(&*network.log, room, 1).await;
    eventually("the first event", async || (edge.edge.seqs(room) == [1]).then_some(())).await;

    edge.edge.anew.lock().clear();
    fanout.relay.cut();
    let anew = eventually("the link again", async || edge.edge.anew.lock().first().cloned()).await;
    assert_eq!(anew, (0..PARTITIONS).map(Partition).collect::<Vec<_>>(), "all that the fanout owns");
    // What happens before the edge has registered again is not sent, and can be asked for.
    happen(&*network.log, room, 2).await;
    let after = edge.register(partition, &[room]).await;
    assert_eq!(after.epoch, before.epoch);
    let changed = edge.bare.fanout.changed(partition, before.at, after.at).await.unwrap().unwrap();
    let missed = changed.into_iter().find(|(of, _)| *of == room).unwrap().1;
    happen(&*network.log, room, 3).await;
    eventually("the third event", async || (edge.edge.seqs(room).last() == Some(&3)).then_some(())).await;
    let came = edge.edge.seqs(room);
    // Whether the second came live or was missed depends on when it was read; it is one of the two.
    assert!(came == [1, 3] && missed == Seq(2) || came == [1, 2, 3], "{came:?}, missed up to {missed}");
    assert!(edge.bare.process.metric("posthaste_link_lost_total") >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_over_which_nothing_comes_is_noticed_at_both_ends_within_three_seconds() {
    let network = Network::new(PARTITIONS).await.unwrap();
    let fanout = network.fanout().await.unwrap();
    let edge = Attached::new(&network, 1).await;
    let (partition, room) = rooms().into_iter().next().unwrap();
    edge.register(partition, &[room]).await;
    let frozen = Instant::now();
    fanout.relay.freeze(true);
    let lost =
        || edge.bare.process.metric("posthaste_link_up") == 0.0 && fanout.process.metric("posthaste_link_up") == 0.0;
    eventually("the loss", async || lost().then_some(())).await;
    let took = frozen.elapsed();
    assert!(took > Duration::from_millis(1_400) && took < Duration::from_secs(3), "{took:?}");
    eventually("the edge's leave", async || (fanout.process.metric("posthaste_fanout_edges") == 0.0).then_some(()))
        .await;
    assert!(edge.bare.fanout.register(edge.edge.id, Lane::Rooms, partition, &[]).await.is_err());
    fanout.relay.freeze(false);
    edge.register(partition, &[room]).await;
    happen(&*network.log, room, 1).await;
    eventually("an event", async || (edge.edge.seqs(room) == [1]).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_that_stops_taking_is_cut_off_and_others_go_on() {
    let network = Network::new(PARTITIONS).await.unwrap();
    let _fanout = network.fanout().await.unwrap();
    let (good, bad) = (Attached::new(&network, 1).await, Attached::new(&network, 2).await);
    let (partition, room) = rooms().into_iter().next().unwrap();
    for edge in [&good, &bad] {
        edge.register(partition, &[room]).await;
    }
    bad.edge.stuck.store(true, Ordering::SeqCst);
    let began = Instant::now();
    for seq in 1..=20 {
        happen(&*network.log, room, seq).await;
    }
    eventually("the last event", async || (good.edge.seqs(room).len() == 20).then_some(())).await;
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    eventually("the cut", async || (bad.bare.process.metric("posthaste_link_lost_total") >= 1.0).then_some(())).await;
    assert_eq!(good.edge.seqs(room), (1..=20).collect::<Vec<_>>());
    // It has come to itself: it is told to register anew, and hears again.
    bad.edge.stuck.store(false, Ordering::SeqCst);
    bad.register(partition, &[room]).await;
    happen(&*network.log, room, 21).await;
    eventually("an event again", async || (bad.edge.seqs(room).last() == Some(&21)).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_fanout_takes_over_and_says_so_to_every_edge() {
    let network = Network::new(PARTITIONS).await.unwrap();
    let [first, second] = two_fanouts(&network).await;
    let edge = Attached::new(&network, 1).await;
    owned_by(&edge.bare, Role::Fanout, &[&first, &second]).await;
    let mut before = BTreeMap::new();
    for (partition, room) in rooms() {
        before.insert(partition, edge.register(partition, &[room]).await.epoch);
    }
    let owner_of = |at: &Partition| edge.bare.directory.living().owner(Role::Fanout, *at).map(|owner| owner.id);
    let firsts: Vec<Partition> = before.keys().copied().filter(|at| owner_of(at) == Some(first.process.id)).collect();
    assert!(!firsts.is_empty());
    first.process.kill().await;
    for partition in firsts {
        let room = rooms()[&partition];
        eventually("a batch of the new owner", async || {
            (edge.edge.epoch(partition) > before[&partition]).then_some(())
        })
        .await;
        let registered = edge.register(partition, &[room]).await;
        assert!(registered.epoch > before[&partition]);
        happen(&*network.log, room, 1).await;
        eventually("an event", async || (edge.edge.seqs(room) == [1]).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_are_online_in_whom_an_edge_of_any_fanout_has_interest() {
    let network = Network::new(PARTITIONS).await.unwrap();
    let [first, second] = two_fanouts(&network).await;
    let (here, there) = (Attached::new(&network, 1).await, Attached::new(&network, 2).await);
    for edge in [&here, &there] {
        owned_by(&edge.bare, Role::Fanout, &[&first, &second]).await;
    }
    let users: Vec<UserId> = (1..=20).map(|n| UserId(Uuid::from_u128(n << 32))).collect();
    for (at, user) in users.iter().enumerate().take(15) {
        let edge = if at % 2 == 0 { &here } else { &there };
        let partition = Partition::of(user.as_bytes(), PARTITIONS);
        eventually("a registration", async || {
            edge.bare.fanout.register(edge.edge.id, Lane::Users, partition, &[*user.as_bytes()]).await.ok()
        })
        .await;
    }
    let mut online = here.bare.fanout.online(&users).await.unwrap();
    online.sort_unstable();
    assert_eq!(online, users[..15]);
    let gone = users[1];
    there.bare.fanout.unregister(
        there.edge.id,
        Lane::Users,
        Partition::of(gone.as_bytes(), PARTITIONS),
        &[*gone.as_bytes()],
    );
    eventually("the leave", async || here.bare.fanout.online(&[gone]).await.unwrap().is_empty().then_some(())).await;
}

async fn refused(network: &Network, tls: Arc<Tls>) {
    let edge = Recorder::new(9);
    let bare = network.links_with(tls).unwrap();
    bare.fanout.attach(Arc::clone(&edge) as _).await.unwrap();
    eventually("some tries", async || (bare.process.metric("posthaste_link_connects_total") >= 2.0).then_some(()))
        .await;
    eventually("an owner", async || bare.directory.living().owner(Role::Fanout, Partition(0)).map(drop)).await;
    assert!(bare.fanout.register(edge.id, Lane::Rooms, Partition(0), &[]).await.is_err());
    assert!(edge.batches.lock().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_another_authority_or_role_is_refused() {
    let network = Network::new(PARTITIONS).await.unwrap();
    let fanout = network.fanout().await.unwrap();
    let strangers = Authority::new().unwrap();
    let (certificate, key) = strangers.certificate(&[Role::Edge]).unwrap();
    // It trusts whom it should, and is trusted by nobody.
    let of_strangers =
        Tls::new(Role::Edge, network.authority.pem().as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap();
    refused(&network, of_strangers).await;
    let (certificate, key) = network.authority.certificate(&[Role::Ingest, Role::Fanout]).unwrap();
    let of_ingest =
        Tls::new(Role::Ingest, network.authority.pem().as_bytes(), certificate.as_bytes(), key.as_bytes()).unwrap();
    refused(&network, of_ingest).await;
    assert_eq!(fanout.process.metric("posthaste_fanout_edges"), 0.0);
    assert!(fanout.process.metric("posthaste_link_connects_total") >= 4.0);

    let (certificate, key) = network.authority.certificate(&[Role::Ingest]).unwrap();
    let wrong = Tls::new(Role::Edge, network.authority.pem().as_bytes(), certificate.as_bytes(), key.as_bytes());
    assert!(matches!(wrong, Err(TlsError::Role(Role::Edge))));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_speaks_with_no_fanout_that_has_another_roles_certificate() {
    let network = Network::new(PARTITIONS).await.unwrap();
    // An archiver's certificate, and says that it is a fanout.
    let owned = (0..PARTITIONS).map(|at| Owned { epoch: 9, partition: Partition(at) }).collect();
    let impostor = network.impostor(Role::Fanout, Role::Archiver, Arc::new(Hanging::default()), owned).await.unwrap();
    let edge = Attached::new(&network, 1).await;
    eventually("some tries", async || (edge.bare.process.metric("posthaste_link_connects_total") >= 2.0).then_some(()))
        .await;
    assert_eq!(edge.bare.process.metric("posthaste_link_up"), 0.0);
    assert!(edge.bare.fanout.register(edge.edge.id, Lane::Rooms, Partition(0), &[]).await.is_err());
    drop(impostor);
}

/// What a connection to a server says, as far as it says anything before it ends.
async fn answer_to(network: &Network, server: &Server, certificate: bool, said: &[u8]) -> Vec<u8> {
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::pem::PemObject as _;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(network.authority.pem().as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = if certificate {
        let (certificate, key) = network.authority.certificate(&[Role::Edge]).unwrap();
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
    } else {
        config.with_no_client_auth()
    };
    let stream = tokio::net::TcpStream::connect(server.relay.address).await.unwrap();
    let name = ServerName::try_from("fanout.posthaste.internal").unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let Ok(mut stream) = connector.connect(name, stream).await else { return Vec::new() };
    // The other end may have closed it already.
    let _ = stream.write_all(said).await;
    let mut answer = Vec::new();
    timeout(PATIENCE, async {
        let mut bytes = [0; 4_096];
        while let Ok(count) = stream.read(&mut bytes).await {
            if count == 0 {
                return;
            }
            answer.extend_from_slice(&bytes[..count]);
        }
    })
    .await
    .unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn no_certificate_garbage_or_a_frame_that_is_too_large_closes_the_link_and_nothing_else() {
    let network = Network::new(PARTITIONS).await.unwrap();
    let fanout = network.fanout().await.unwrap();
    let edge = Attached::new(&network, 1).await;
    let (partition, room) = rooms().into_iter().next().unwrap();
    edge.register(partition, &[room]).await;
    assert_eq!(answer_to(&network, &fanout, false, b"").await, b"", "not even hello");
    let framed = |head: &[u8]| {
        let length = u32::try_from(head.len()).unwrap();
        [&(length + 4).to_be_bytes()[..], &length.to_be_bytes(), head].concat()
    };
    let hello =
        framed(br#"{"is":"hello","protocol":1,"instance":"00000000-0000-0000-0000-000000000009","role":"edge"}"#);
    for said in [
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        u32::MAX.to_be_bytes().to_vec(),
        framed(b"{}"),
        framed(br#"{"is":"hello","protocol":0,"instance":"00000000-0000-0000-0000-000000000009","role":"edge"}"#),
        framed(br#"{"is":"hello","protocol":1,"instance":"00000000-0000-0000-0000-000000000009","role":"fanout"}"#),
        [&hello[..], &(64 * 1024 * 1024_u32).to_be_bytes()].concat(),
        [&hello[..], &framed(br#"{"is":"unregister","lane":"rooms","partition":0}"#)].concat(),
        [&hello[..], &framed(b"\xff\xff")].concat(),
    ] {
        let answer = answer_to(&network, &fanout, true, &said).await;
        assert!(String::from_utf8_lossy(&answer).contains("fanout"), "it says who it is: {answer:?}");
    }
    // What a newer version may say beside it changes nothing.
    let newer = [
        &hello[..],
        &framed(br#"{"is":"news_of_tomorrow","x":1}"#),
        &framed(br#"{"is":"ask","number":1,"wait_ms":9,"x":[],"question":{"about":"tomorrow"}}"#),
    ]
    .concat();
    let answer = answer_to(&network, &fanout, true, &newer).await;
    assert!(String::from_utf8_lossy(&answer).contains("unavailable"), "{answer:?}");

    happen(&*network.log, room, 1).await;
    eventually("an event", async || (edge.edge.seqs(room) == [1]).then_some(())).await;
}

/// A fanout that is asked what has changed and never says; and knows how many wait.
#[derive(Default)]
struct Hanging {
    waiting: Arc<AtomicUsize>,
}

struct Waits(Arc<AtomicUsize>);

impl Drop for Waits {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl FanoutPort for Hanging {
    async fn attach(&self, _: Arc<dyn EdgePort>) -> Result<(), Unavailable> {
        Ok(())
    }
    fn detach(&self, _: EdgeId) {}
    async fn register(&self, _: EdgeId, _: Lane, _: Partition, _: &[[u8; 16]]) -> Result<Registered, Unavailable> {
        Ok(Registered { epoch: 1, at: Offset(0) })
    }
    fn unregister(&self, _: EdgeId, _: Lane, _: Partition, _: &[[u8; 16]]) {}
    async fn changed(&self, _: Partition, _: Offset, _: Offset) -> Result<Option<Vec<(RoomId, Seq)>>, Unavailable> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _waits = Waits(Arc::clone(&self.waiting));
        std::future::pending().await
    }
    async fn online(&self, _: &[UserId]) -> Result<Vec<UserId>, Unavailable> {
        Ok(Vec::new())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_bounded_and_whoever_gives_up_leaves_nothing_behind() {
    let mut network = Network::new(PARTITIONS).await.unwrap();
    network.config.asks_max = 8;
    network.config.ask_ms = 1_000;
    let hanging = Arc::new(Hanging::default());
    let waiting = Arc::clone(&hanging.waiting);
    let owned = (0..PARTITIONS).map(|at| Owned { epoch: 1, partition: Partition(at) }).collect();
    let _fanout = network.fanout_of(hanging, owned).await.unwrap();
    let edge = Attached::new(&network, 1).await;
    edge.register(Partition(0), &[]).await;
    let ask = || {
        let fanout = Arc::clone(&edge.bare.fanout);
        tokio::spawn(async move { fanout.changed(Partition(0), Offset(0), Offset(9)).await })
    };
    let asked: Vec<_> = (0..8).map(|_| ask()).collect();
    eventually("all questions", async || (waiting.load(Ordering::SeqCst) == 8).then_some(())).await;
    let began = Instant::now();
    assert!(ask().await.unwrap().is_err(), "one too many");
    assert!(began.elapsed() < Duration::from_millis(500), "at once");
    for asked in asked.iter().take(4) {
        asked.abort();
    }
    eventually("four left", async || (waiting.load(Ordering::SeqCst) <= 4).then_some(())).await;
    for asked in asked.into_iter().skip(4) {
        assert!(asked.await.unwrap().is_err(), "its time is over");
    }
    eventually("none left", async || (waiting.load(Ordering::SeqCst) == 0).then_some(())).await;
    edge.register(Partition(0), &[]).await;
}

fn query(room: RoomId, min_offset: Offset) -> PageQuery {
    PageQuery { user: WRITER, room, from: PageFrom::After(Seq::ZERO), limit: 100, min_offset }
}

#[tokio::test(flavor = "multi_thread")]
async fn history_comes_from_the_owner_then_from_the_store_and_never_from_before_its_position() {
    let network = Network::new(PARTITIONS).await.unwrap();
    let archivers = [network.archiver().await.unwrap(), network.archiver().await.unwrap()];
    let bare = network.links().unwrap();
    owned_by(&bare, Role::Archiver, &[&archivers[0], &archivers[1]]).await;
    let mut ends = BTreeMap::new();
    for room in rooms().into_values() {
        for seq in 1..=5 {
            ends.insert(room, happen(&*network.log, room, seq).await);
        }
    }
    let queries: Vec<PageQuery> = ends.iter().map(|(room, end)| query(*room, *end)).collect();
    let read = async |what: &str| {
        let pages = eventually(what, async || bare.history.pages(&queries).await.ok()).await;
        for (query, page) in queries.iter().zip(&pages) {
            let page = page.as_ref().unwrap();
            assert_eq!(page.info.id, query.room, "in their order");
            let expected: Vec<Event> = (1..=5).map(|seq| event(query.room, seq, kind(seq))).collect();
            assert!(page.events.iter().map(|event| &**event).eq(&expected));
            assert_eq!((page.head_seq, page.member.joined_seq()), (Seq(5), Seq(2)));
        }
        let one = bare.history.page(queries[0]).await.unwrap().unwrap();
        assert_eq!(one.events.len(), 5);
        let stranger = PageQuery { user: UserId(Uuid::from_u128(1)), ..queries[0] };
        assert!(bare.history.page(stranger).await.unwrap().is_none(), "was never in it");
        let wanted: Vec<(RoomId, Offset)> = ends.iter().map(|(room, end)| (*room, *end)).collect();
        assert_eq!(bare.history.rooms(WRITER, &wanted).await.unwrap().len(), wanted.len());
    };
    eventually("links with both", async || (bare.process.metric("posthaste_link_up") == 2.0).then_some(())).await;
    read("pages of the owners").await;
    assert_eq!(bare.process.metric("posthaste_link_history_from_store_total"), 0.0);
    for partition in rooms().into_keys() {
        bare.history.settle(Lane::Rooms, partition, ends[&rooms()[&partition]]).await.unwrap();
    }
    for archiver in archivers {
        archiver.process.kill().await;
    }
    read("pages of the store").await;
    assert!(bare.process.metric("posthaste_link_history_from_store_total") > 0.0);
    // What nobody has archived nobody answers for.
    let (room, _) = ends.pop_first().unwrap();
    let end = happen(&*network.log, room, 6).await;
    assert!(bare.history.page(query(room, end)).await.is_err());
    assert!(bare.history.pages(&[query(room, end), queries[1]]).await.is_err(), "all of it or nothing");
    assert!(bare.history.settle(Lane::Rooms, partition_of(room), end).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_fails_leaves_the_last_view_and_an_end_takes_a_process_out_of_it() {
    let log: Arc<dyn Log> = Arc::new(stream::memory::MemoryLog::new());
    let faulty = Arc::new(testkit::faulty::FaultyLog::new(log));
    let store: Arc<dyn Store> = Arc::new(store::memory::MemoryStore::new());
    let network = Network::on(Arc::clone(&faulty) as _, store, PARTITIONS).await.unwrap();
    let fanout = network.fanout().await.unwrap();
    let bare = network.links().unwrap();
    owned_by(&bare, Role::Fanout, &[&fanout]).await;
    // For longer than a lease.
    for nth in 1..=30 {
        let broken = stream::Error::Unavailable("planned".into());
        faulty.fail(testkit::faulty::Call::Read, nth, testkit::faulty::When::Before, broken);
    }
    eventually("that it is stale", async || (bare.process.metric("posthaste_cluster_view_stale") == 1.0).then_some(()))
        .await;
    eventually("that it is not", async || {
        assert!(bare.directory.living().owner(Role::Fanout, Partition(0)).is_some(), "the last view is kept");
        (bare.process.metric("posthaste_cluster_view_stale") == 0.0).then_some(())
    })
    .await;
    let members = bare.directory.members();
    let member = members.iter().find(|member| member.instance.id == fanout.process.id).unwrap();
    assert_eq!((member.instance.owned.len(), member.instance.address.clone()), (4, fanout.relay.address.to_string()));
    let killed = Instant::now();
    fanout.process.kill().await;
    eventually("the end of its lease", async || {
        bare.directory.living().owner(Role::Fanout, Partition(0)).is_none().then_some(())
    })
    .await;
    let took = killed.elapsed();
    assert!(took > Duration::from_millis(2_500) && took < Duration::from_secs(6), "{took:?}");
}
