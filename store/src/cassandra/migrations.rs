//! The tables, as the list of changes that led to them. A change that has been released is never edited. Every statement of
//! one may run again, and two programs may run them at once: nothing is made twice, since a table's id follows from its
//! name.

use scylla::client::session::Session;
use uuid::Uuid;

use super::{Config, OpenError};

/// Version n of a keyspace is what the first n changes made: tables by name, with their columns and how they are kept.
const MIGRATIONS: &[&[(&str, &str, Kept)]] = &[FIRST];

/// What is done to a table's rows decides how they are kept (docs/decisions/0017).
#[derive(Clone, Copy)]
enum Kept {
    /// Rows are added and seldom read again: few rewrites.
    Added,
    /// Rows are written over and over: few places to look in for one.
    Replaced,
    /// Rows come and go, and a table of many deletions is read from its beginning: what is deleted is forgotten after a
    /// day. A row that comes back from a node that was away for longer is deleted once more.
    Queued,
}

impl Kept {
    fn options(self) -> &'static str {
        match self {
            Self::Added => "compaction = {'class': 'UnifiedCompactionStrategy', 'scaling_parameters': 'T4'}",
            Self::Replaced => "compaction = {'class': 'UnifiedCompactionStrategy', 'scaling_parameters': 'L4'}",
            Self::Queued => {
                "compaction = {'class': 'UnifiedCompactionStrategy', 'scaling_parameters': 'L4'}
                 AND gc_grace_seconds = 86400"
            }
        }
    }
}

/// Ids are `uuid` in partition keys and `blob` in clustering keys, whose order is that of bytes. Times are milliseconds.
/// "Conditional" tables are changed by conditional statements alone; the others' write timestamp is said for each.
const FIRST: &[(&str, &str, Kept)] = &[
    // Conditional.
    (
        "accounts",
        "id uuid PRIMARY KEY, version bigint, username text, email text, password_hash text, profile text,
         created_at bigint",
        Kept::Replaced,
    ),
    // Timestamp: `last_seen`.
    ("accounts_seen", "id uuid PRIMARY KEY, last_seen bigint", Kept::Replaced),
    // Conditional. A claim is for a minute; without end once the account has the name.
    ("usernames", "username text PRIMARY KEY, id uuid", Kept::Replaced),
    ("emails", "email text PRIMARY KEY, id uuid", Kept::Replaced),
    // Timestamp: the account's version.
    (
        "accounts_by_prefix",
        "prefix text, shard int, username text, id uuid, PRIMARY KEY ((prefix, shard), username)",
        Kept::Replaced,
    ),
    // Conditional. A device and its refresh tokens: one partition, so that a rotation is one change.
    (
        "families",
        "device uuid, hash blob, user uuid STATIC, name text STATIC, created_at bigint STATIC, last_seen bigint STATIC,
         revoked boolean STATIC, expires_at bigint, spent_at bigint, successor blob, PRIMARY KEY (device, hash)",
        Kept::Replaced,
    ),
    ("tokens", "hash blob PRIMARY KEY, device uuid", Kept::Added),
    (
        "tokens_by_end",
        "slice bigint, expires_at bigint, hash blob, device uuid, PRIMARY KEY (slice, expires_at, hash)",
        Kept::Queued,
    ),
    ("token_slices", "log text, slice bigint, PRIMARY KEY (log, slice)", Kept::Queued),
    ("devices_by_user", "user uuid, device blob, PRIMARY KEY (user, device)", Kept::Replaced),
    // Conditional, as the others with a `log`: one partition, in which a number is given with the row that it is of.
    (
        "revocations",
        "log text, number bigint, head bigint STATIC, user uuid, device uuid, at bigint, reason text,
         PRIMARY KEY (log, number)",
        Kept::Queued,
    ),
    // Timestamp: `at`.
    ("revocations_by_device", "user uuid, device uuid, at bigint, PRIMARY KEY ((user, device))", Kept::Replaced),
    (
        "shut_outs",
        "log text, number bigint, head bigint STATIC, subject text, reason text, since bigint, until bigint, times bigint,
         lifted_at bigint, PRIMARY KEY (log, number)",
        Kept::Queued,
    ),
    // Timestamp: the number.
    ("shut_out_numbers", "subject text PRIMARY KEY, number bigint", Kept::Queued),
    (
        "signing_keys",
        "log text, id text, version bigint STATIC, seed blob, created_at bigint, retired_at bigint, PRIMARY KEY (log, id)",
        Kept::Queued,
    ),
    // Timestamp: `head_seq`, also of the next two.
    ("rooms", "id uuid PRIMARY KEY, head_seq bigint, body text", Kept::Replaced),
    (
        "directory",
        "shard int, room blob, name_key text, handle_key text, created_at bigint, last_activity_at bigint,
         member_count bigint, PRIMARY KEY (shard, room)",
        Kept::Replaced,
    ),
    ("handles", "handle text, room blob, PRIMARY KEY (handle, room)", Kept::Replaced),
    // Conditional.
    ("handle_claims", "handle text PRIMARY KEY, room uuid, expires_at bigint", Kept::Queued),
    // Timestamp: `version`, also of the next two.
    ("members", "room uuid, user blob, body text, PRIMARY KEY (room, user)", Kept::Replaced),
    ("members_in", "room uuid, user blob, body text, PRIMARY KEY (room, user)", Kept::Replaced),
    ("listings", "user uuid, room blob, version bigint, listed boolean, PRIMARY KEY (user, room)", Kept::Replaced),
    // Timestamp: falls as time goes by, so that what is there stays.
    ("events", "room uuid, bucket bigint, seq bigint, body blob, PRIMARY KEY ((room, bucket), seq)", Kept::Added),
    // Timestamp: falls with the seq, so that the first event stays.
    (
        "commands",
        "room uuid, slice bigint, user blob, command blob, seq bigint, event uuid, at bigint,
         PRIMARY KEY ((room, slice), user, command)",
        Kept::Added,
    ),
    // Timestamp: the value itself, or its beginning, as in `watermarks_…` and `progress`: the largest stays.
    ("room_heads", "room uuid PRIMARY KEY, command blob, seq bigint", Kept::Replaced),
    (
        "watermarks_by_room",
        "room uuid, user blob, delivered_seq bigint, read_seq bigint, at bigint, PRIMARY KEY (room, user)",
        Kept::Replaced,
    ),
    (
        "watermarks_by_user",
        "user uuid, room blob, delivered_seq bigint, read_seq bigint, at bigint, PRIMARY KEY (user, room)",
        Kept::Replaced,
    ),
    // Timestamp: falls as `at` rises, so that the earliest stays. Kind: 0 delivered, 1 read.
    (
        "receipt_steps",
        "room uuid, user uuid, kind int, seq bigint, at bigint, PRIMARY KEY ((room, user), kind, seq)",
        Kept::Added,
    ),
    ("progress", "topic text, number int, position bigint, PRIMARY KEY ((topic, number))", Kept::Replaced),
];

/// The newest version that this program knows.
pub(super) const KNOWN: usize = MIGRATIONS.len();

/// Makes the keyspace and its tables, or brings them to the newest version; leaves a newer one untouched. What the version
/// is then.
pub(super) async fn migrate(session: &Session, config: &Config) -> Result<usize, OpenError> {
    let Config { keyspace, datacenter, replication, .. } = config;
    let replicas = format!("{{'class': 'NetworkTopologyStrategy', '{datacenter}': {replication}}}");
    run(session, format!("CREATE KEYSPACE IF NOT EXISTS {keyspace} WITH replication = {replicas}")).await?;
    create(session, keyspace, "schema_version", "what text PRIMARY KEY, version int", Kept::Replaced).await?;
    let found = version(session, keyspace).await?;
    let Some(missing) = MIGRATIONS.get(found..) else { return Err(OpenError::Newer { found, known: KNOWN }) };
    for (version, tables) in (found + 1..).zip(missing) {
        for (name, columns, kept) in *tables {
            create(session, keyspace, name, columns, *kept).await?;
        }
        // The version as the timestamp: of two programs the newer one's stays.
        let raise = "INSERT INTO {keyspace}.schema_version (what, version) VALUES ('tables', {version})
            USING TIMESTAMP {version}";
        run(session, raise.replace("{keyspace}", keyspace).replace("{version}", &version.to_string())).await?;
    }
    Ok(KNOWN)
}

/// Says whether a keyspace is of the newest version; changes nothing.
pub(super) async fn check(session: &Session, keyspace: &str) -> Result<(), OpenError> {
    match version(session, keyspace).await? {
        found if found == KNOWN => Ok(()),
        found if found < KNOWN => Err(OpenError::Older { found, known: KNOWN }),
        found => Err(OpenError::Newer { found, known: KNOWN }),
    }
}

async fn create(session: &Session, keyspace: &str, name: &str, columns: &str, kept: Kept) -> Result<(), OpenError> {
    let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("posthaste {keyspace}.{name}").as_bytes());
    let options = kept.options();
    run(session, format!("CREATE TABLE IF NOT EXISTS {keyspace}.{name} ({columns}) WITH id = {id} AND {options}")).await
}

async fn version(session: &Session, keyspace: &str) -> Result<usize, OpenError> {
    let query = format!("SELECT version FROM {keyspace}.schema_version WHERE what = 'tables'");
    let rows = session.query_unpaged(query, ()).await?.into_rows_result().map_err(OpenError::row)?;
    let version = rows.maybe_first_row::<(i32,)>().map_err(OpenError::row)?;
    Ok(version.and_then(|(version,)| usize::try_from(version).ok()).unwrap_or_default())
}

async fn run(session: &Session, statement: String) -> Result<(), OpenError> {
    Ok(session.query_unpaged(statement, ()).await.map(drop)?)
}
