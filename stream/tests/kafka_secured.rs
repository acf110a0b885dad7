//! The log on a Kafka that wants TLS, a name with its password, and permission for everything: each role has what it
//! needs and no more.

use engines::kafka::Kafka;
use schemas::{Offset, Partition, Topic};
use stream::kafka::{Config, KafkaLog};
use stream::{Error, Log, Polled, Record, Transaction};

const P0: Partition = Partition(0);

/// What roles may. Each may see every topic, for the number of partitions is checked.
const RULES: [&str; 10] = [
    "User:edge DESCRIBE TOPIC LITERAL *",
    "User:edge WRITE TOPIC LITERAL commands",
    "User:ingest DESCRIBE TOPIC LITERAL *",
    "User:ingest READ TOPIC LITERAL commands",
    "User:ingest READ TOPIC LITERAL events",
    "User:ingest WRITE TOPIC LITERAL events",
    "User:ingest WRITE TOPIC LITERAL user-events",
    "User:ingest READ GROUP LITERAL ingest",
    // Reading outside of groups names one.
    "User:ingest READ GROUP LITERAL readers",
    "User:ingest WRITE TRANSACTIONAL_ID PREFIXED ingest-",
];

fn record(text: &str) -> Record {
    Record { key: [7; 16], value: text.as_bytes().to_vec().into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roles_come_by_tls_and_scram_and_may_only_what_is_theirs() {
    let users = [("operator", "over-all"), ("edge", "of-the-sea"), ("ingest", "in-order")];
    let kafka = Kafka::start_secured(&users, &RULES).unwrap();
    let settings = |name: &str, password: &str| Config {
        ca: Some(kafka.authority()),
        user: Some((name.to_owned(), password.to_owned())),
        replication: 1,
        min_in_sync: 1,
        ..Config::new(kafka.bootstrap())
    };
    let operator = KafkaLog::connect(settings("operator", "over-all")).await.unwrap();
    operator.create(2).await.unwrap();

    let edge = KafkaLog::connect(settings("edge", "of-the-sea")).await.unwrap();
    assert_eq!(edge.partitions(), 2);
    edge.append(Topic::Commands, P0, vec![record("say")]).await.unwrap();
    let forbidden = edge.append(Topic::Events, P0, vec![record("forged")]).await;
    assert!(matches!(forbidden, Err(Error::Broken(_))), "{forbidden:?}");
    let forbidden = edge.producer("ingest-0").await.map(drop);
    assert!(matches!(forbidden, Err(Error::Broken(_))), "{forbidden:?}");
    let forbidden = edge.read(Topic::Commands, P0, Offset(0), 1).await.map(drop);
    assert!(matches!(forbidden, Err(Error::Broken(_))), "{forbidden:?}");

    let ingest = KafkaLog::connect(settings("ingest", "in-order")).await.unwrap();
    let mut producer = ingest.producer("ingest-0").await.unwrap();
    let mut member = ingest.consumer("ingest", &[Topic::Commands]).await.unwrap();
    let consumed = loop {
        if let Polled::Records(fetched) = member.poll().await.unwrap() {
            break (member.member(), vec![(Topic::Commands, P0, fetched[0].next)]);
        }
    };
    let records = vec![(Topic::Events, P0, record("said")), (Topic::UserEvents, P0, record("heard"))];
    producer.commit(Transaction { records, consumed: Some(consumed) }).await.unwrap();
    assert_eq!(ingest.read(Topic::Events, P0, Offset(0), 1_000).await.unwrap().records.len(), 1);
    assert_eq!(ingest.committed("ingest", Topic::Commands, P0).await.unwrap(), Some(Offset(1)));
    let forbidden = ingest.append(Topic::Commands, P0, vec![record("from nobody")]).await;
    assert!(matches!(forbidden, Err(Error::Broken(_))), "{forbidden:?}");
    assert_eq!(operator.end(Topic::Commands, P0).await.unwrap(), Offset(1));

    // Who can't be known, and a node that can't be: each with its reason.
    let stranger = tempfile::NamedTempFile::new().unwrap();
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(stranger.path(), made.cert.pem()).unwrap();
    let distrusted = Config { ca: Some(stranger.path().to_owned()), ..settings("ingest", "in-order") };
    let refused = tokio::join!(KafkaLog::connect(settings("ingest", "out-of-order")), KafkaLog::connect(distrusted));
    for (refused, reason) in [(refused.0, "refuse this user and password"), (refused.1, "no TLS with the brokers")] {
        let Err(Error::Broken(told)) = refused.map(drop) else { panic!("let in, or told that it may pass") };
        assert!(told.contains(reason), "{told}");
    }
}
