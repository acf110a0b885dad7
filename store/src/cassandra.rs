//! Cassandra: the same rows in tables that are keyed by what is asked for (docs/decisions/0017). The only place in this
//! crate that names scylla. Its files have the names of the aggregates. Decides nothing; makes no tables when it opens,
//! since several programs open at once and one person says when.

mod accounts;
mod archive;
mod cql;
mod devices;
mod keys;
mod metrics;
mod migrations;
mod receipts;
mod rooms;
mod shut_outs;
mod trail;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::Registry;
use schemas::Clock;
use scylla::client::execution_profile::ExecutionProfile;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use scylla::errors::{ExecutionError, NewSessionError};
use scylla::policies::load_balancing::{DefaultPolicy, NodeIdentifier, SingleTargetLoadBalancingPolicy};
use scylla::policies::speculative_execution::SimpleSpeculativeExecutionPolicy;
use scylla::statement::unprepared::Statement;
use scylla::statement::{Consistency, SerialConsistency};
use serde::{Deserialize, Serialize};
use tracing::warn;

pub use archive::OLDEST_EVENTS;
use cql::Cql;
use metrics::Metrics;
use trail::Trail;

/// A statement that may run twice is sent to another replica as well when the first is silent for so long: well above a
/// quiet node's slowest answers, well below what people notice.
const SPECULATE_AFTER: Duration = Duration::from_millis(100);
/// A node that says nothing for so long is taken for gone; frozen ones keep their connections open. The driver advises
/// against a second and less.
const KEEPALIVE: Duration = Duration::from_millis(1_250);

/// Settings of the store in Cassandra.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Nodes to begin with, `host:port`; the others are learned from them.
    pub contact_points: Vec<String>,
    /// Where the tables are. Letters, digits and `_`.
    pub keyspace: String,
    /// The datacenter that is asked (`LOCAL_QUORUM`), and in which the keyspace is made.
    pub datacenter: String,
    /// Copies of each row, where the keyspace has still to be made. 3 outlive the loss of a node; 1 is for trials.
    pub replication: u32,
    /// Who signs in, with `password`; nobody where Cassandra does not ask.
    pub user: Option<String>,
    /// The password of `user`.
    #[serde(skip_serializing)]
    pub password: Option<String>,
    /// Certificates (PEM) of which one must have signed the nodes'; with it connections are TLS. The names in the nodes'
    /// certificates are not compared, so it should be an authority that signs Cassandra nodes alone.
    pub ca_file: Option<PathBuf>,
    /// An answer takes no longer, ms, or the call fails.
    pub request_timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            contact_points: vec!["127.0.0.1:9042".to_owned()],
            keyspace: "posthaste".to_owned(),
            datacenter: "datacenter1".to_owned(),
            replication: 3,
            user: None,
            password: None,
            ca_file: None,
            request_timeout_ms: 4_000,
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("contact_points", &self.contact_points)
            .field("keyspace", &self.keyspace)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// What is wrong with these settings, for people.
    pub fn validate(&self) -> Result<(), String> {
        // Both become part of statements.
        let is_name = |name: &str| {
            let is_first = name.starts_with(|first: char| first.is_ascii_alphabetic());
            is_first && name.len() <= 48 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        };
        if !is_name(&self.keyspace) || self.keyspace.contains('-') {
            return Err(format!("keyspace is {:?}, must be letters, digits and _, at most 48", self.keyspace));
        }
        if !is_name(&self.datacenter) {
            return Err(format!("datacenter is {:?}, must be letters, digits, _ and -", self.datacenter));
        }
        if self.contact_points.is_empty() {
            return Err("contact_points is empty".to_owned());
        }
        if !(1..=9).contains(&self.replication) {
            return Err(format!("replication is {}, must be from 1 to 9", self.replication));
        }
        if self.user.is_some() != self.password.is_some() {
            return Err("user and password go together".to_owned());
        }
        if self.request_timeout_ms < 100 {
            return Err(format!("request_timeout_ms is {}, must be 100 or more", self.request_timeout_ms));
        }
        Ok(())
    }
}

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The settings make no sense.
    #[error("settings of the store: {0}")]
    Config(String),
    /// A version of Posthaste newer than this one has been here.
    #[error("the tables have version {found}, this program knows up to {known}: use the newer one")]
    Newer {
        /// The tables' version.
        found: usize,
        /// The newest that we know.
        known: usize,
    },
    /// The tables have still to be made or changed.
    #[error("the tables have version {found}, this program needs {known}: they have to be made first")]
    Older {
        /// The tables' version; 0: there are none.
        found: usize,
        /// The one that we need.
        known: usize,
    },
    /// The certificates can't be read.
    #[error("the certificates of {0} can't be used")]
    Certificates(PathBuf, #[source] openssl::error::ErrorStack),
    /// No node answers, or none lets us in.
    #[error("Cassandra can't be reached")]
    Connect(#[from] Box<NewSessionError>),
    /// A statement fails.
    #[error("Cassandra refuses")]
    Refused(#[from] Box<ExecutionError>),
    /// Another store has registered with this registry.
    #[error("the store's metrics can't be registered")]
    Metrics(#[from] prometheus::Error),
    /// An answer is not what it should be.
    #[error("Cassandra answers in an unknown form: {0}")]
    Row(String),
}

impl OpenError {
    fn row(error: impl std::fmt::Display) -> Self {
        Self::Row(error.to_string())
    }
}

impl From<ExecutionError> for OpenError {
    fn from(error: ExecutionError) -> Self {
        Self::Refused(Box::new(error))
    }
}

/// A store in Cassandra.
pub struct CassandraStore {
    cql: Cql,
    first_wins: FirstWins,
    forgetful: Vec<String>,
    trail: Mutex<Trail>,
}

impl CassandraStore {
    /// Makes the keyspace and the tables, or brings them to the newest version, and says which that is. Running it again
    /// changes nothing; two may at once.
    ///
    /// # Errors
    /// [`OpenError`]; what has been made by then stays, and another run goes on with it.
    pub async fn tables(config: &Config) -> Result<usize, OpenError> {
        let session = connect(config, None).await?;
        migrations::migrate(&session, config).await
    }

    /// Opens a store whose tables have been made.
    ///
    /// # Errors
    /// [`OpenError`]; nothing has been changed then.
    pub async fn open(config: &Config, clock: Arc<dyn Clock>, registry: &Registry) -> Result<Self, OpenError> {
        let metrics = Metrics::new(registry)?;
        // Asked for without a keyspace first: that it is missing shall be said as such.
        let session = connect(config, None).await?;
        let known = "SELECT keyspace_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?";
        let rows = session.query_unpaged(known, (&config.keyspace, "schema_version")).await?;
        if rows.into_rows_result().map_err(OpenError::row)?.rows_num() == 0 {
            return Err(OpenError::Older { found: 0, known: migrations::KNOWN });
        }
        migrations::check(&session, &config.keyspace).await?;
        let forgetful = forgetful_nodes(&session).await;
        let session = connect(config, Some(&config.keyspace)).await?;
        let first_wins = FirstWins { clock, last: AtomicI64::new(i64::MAX) };
        Ok(Self { cql: Cql::new(session, metrics), first_wins, forgetful, trail: Mutex::default() })
    }

    /// The nodes that lose what they have acknowledged when they are killed, as far as they said so when this opened.
    pub fn forgetful_nodes(&self) -> &[String] {
        &self.forgetful
    }
}

async fn connect(config: &Config, keyspace: Option<&str>) -> Result<Session, OpenError> {
    config.validate().map_err(OpenError::Config)?;
    let policy = DefaultPolicy::builder().prefer_datacenter(config.datacenter.clone()).token_aware(true).build();
    let profile = ExecutionProfile::builder()
        .consistency(Consistency::LocalQuorum)
        .serial_consistency(Some(SerialConsistency::LocalSerial))
        .request_timeout(Some(Duration::from_millis(config.request_timeout_ms)))
        .load_balancing_policy(policy)
        .speculative_execution_policy(Some(Arc::new(SimpleSpeculativeExecutionPolicy {
            max_retry_count: 1,
            retry_interval: SPECULATE_AFTER,
        })))
        .build();
    let mut builder = SessionBuilder::new()
        .known_nodes(&config.contact_points)
        .default_execution_profile_handle(profile.into_handle())
        .keepalive_interval(KEEPALIVE)
        .keepalive_timeout(KEEPALIVE)
        .tls_context(tls(config)?);
    if let (Some(user), Some(password)) = (&config.user, &config.password) {
        builder = builder.user(user, password);
    }
    if let Some(keyspace) = keyspace {
        builder = builder.use_keyspace(keyspace, false);
    }
    builder.build().await.map_err(|error| OpenError::Connect(Box::new(error)))
}

fn tls(config: &Config) -> Result<Option<openssl::ssl::SslContext>, OpenError> {
    use openssl::ssl::{SslContextBuilder, SslMethod, SslVerifyMode, SslVersion};
    let Some(ca_file) = &config.ca_file else { return Ok(None) };
    let build = || {
        let mut context = SslContextBuilder::new(SslMethod::tls_client())?;
        context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
        context.set_ca_file(ca_file)?;
        context.set_verify(SslVerifyMode::PEER);
        Ok(Some(context.build()))
    };
    build().map_err(|error| OpenError::Certificates(ca_file.clone(), error))
}

/// The nodes that lose what they have acknowledged when they are killed (I10): those whose `commitlog_sync` is `periodic`. A
/// quorum of three hides that for as long as one is killed at a time. Each is warned of.
async fn forgetful_nodes(session: &Session) -> Vec<String> {
    let mut forgetful = Vec::new();
    for node in session.get_cluster_state().get_nodes_info() {
        let mut query = Statement::new("SELECT value FROM system_views.settings WHERE name = 'commitlog_sync'");
        let target = NodeIdentifier::Node(node.clone());
        query.set_load_balancing_policy(Some(SingleTargetLoadBalancingPolicy::new(target, None)));
        query.set_consistency(Consistency::One);
        let value = async {
            let rows = session.query_unpaged(query, ()).await.ok()?.into_rows_result().ok()?;
            rows.maybe_first_row::<(String,)>().ok()?.map(|(value,)| value)
        };
        match value.await.as_deref() {
            Some("batch" | "group") => {}
            Some(other) => {
                warn!(
                    node = %node.address, commitlog_sync = other,
                    "THIS CASSANDRA NODE LOSES WHAT IT HAS ACKNOWLEDGED WHEN IT IS KILLED: set commitlog_sync to batch or group"
                );
                forgetful.push(node.address.to_string());
            }
            None => warn!(node = %node.address, "whether this Cassandra node syncs what it acknowledges can't be seen"),
        }
    }
    forgetful
}

/// Write timestamps of rows that never change: each is lower than those before, so that of two writes the first one
/// stays, without a read.
struct FirstWins {
    clock: Arc<dyn Clock>,
    last: AtomicI64,
}

impl FirstWins {
    /// Microseconds before 1970, as many as it is after: below whatever Cassandra would give a row itself, so that a person
    /// can still delete one. Rows that share a turn of this share its timestamp.
    fn timestamp(&self) -> i64 {
        let now = -self.clock.micros();
        let turn = |last: i64| Some(now.min(last.saturating_sub(1)));
        let last = self.last.fetch_update(Ordering::Relaxed, Ordering::Relaxed, turn).unwrap_or_else(|last| last);
        now.min(last.saturating_sub(1))
    }
}
