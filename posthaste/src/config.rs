//! Settings: flags over `POSTHASTE_…` variables over a TOML file over defaults. The only reader of the environment and
//! of settings files; knows nothing of what the settings are for beyond whether they can be right.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use edge::config::{Scheme, TrustedIssuer};
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use schemas::cluster::Role;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::{cassandra, cluster, kafka, retention};

/// Prefix of the variables. `POSTHASTE_ADMIN_LISTEN` is `admin_listen`; two underscores step into a table.
const PREFIX: &str = "POSTHASTE_";

/// Most partitions: each costs a transactional producer and its tasks at all times, in one process for nothing.
const PARTITIONS_MAX: u32 = 256;

/// `aud` of other issuers' tokens for us (protocol.md).
const AUDIENCE: &str = "posthaste";

/// What can be said on the command line. What is absent leaves the word to the environment, the file, the defaults.
#[derive(Args, Serialize, Clone, Debug, Default)]
pub struct Flags {
    /// Settings file (TOML). Also POSTHASTE_CONFIG.
    #[arg(long, value_name = "FILE", env = "POSTHASTE_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Directory of all data that is neither on Kafka nor in Cassandra; made if missing. Default: data
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Address for clients. Port 0 takes a free one. Default: 127.0.0.1:8080
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<SocketAddr>,
    /// Address for health and metrics. Default: 127.0.0.1:9090
    #[arg(long, value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub admin_listen: Option<SocketAddr>,
    /// Certificate of the address for clients, with its chain (PEM); read again when it changes and on SIGHUP.
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Lets addresses beyond loopback be served without TLS: a proxy in front does it.
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure_http: bool,
    /// Trusts another issuer's keys: those in a file (a JWKS), or behind an https:// URL, where they may change. May be
    /// repeated.
    #[arg(long, value_name = "NAME=JWKS", value_parser = issuer)]
    #[serde(rename = "issuers", serialize_with = "as_map", skip_serializing_if = "Vec::is_empty")]
    pub issuer: Vec<(String, String)>,
    /// Turns off all rate limits: for load tests.
    #[arg(long)]
    #[serde(rename = "rate_limits", serialize_with = "as_false", skip_serializing_if = "std::ops::Not::not")]
    pub no_rate_limits: bool,
}

fn issuer(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, jwks)) if !name.is_empty() && !jwks.is_empty() => Ok((name.to_owned(), jwks.to_owned())),
        _ => Err("expected NAME=JWKS_FILE or NAME=URL".to_owned()),
    }
}

fn as_map<S: serde::Serializer>(pairs: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, jwks)| (name, jwks)))
}

fn as_false<S: serde::Serializer>(_: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bool(false)
}

/// Everything that can be set.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Directory of all data.
    pub data: PathBuf,
    /// Address for clients.
    pub listen: SocketAddr,
    /// Address for health and metrics.
    pub admin_listen: SocketAddr,
    /// Certificate of the address for clients, with its chain (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Whether addresses beyond loopback may be served without TLS.
    pub insecure_http: bool,
    /// Whether rate limits hold; off for load tests only.
    pub rate_limits: bool,
    /// Partitions of each topic, fixed when they are made (I2). Rooms of one partition are decided one batch
    /// after the other; more than there are cores brings nothing.
    pub partitions: u32,
    /// How long a stop may take before the process ends all the same, milliseconds.
    pub grace_ms: u64,
    /// What is logged, as `tracing` filter directives.
    pub log: String,
    /// How it is logged.
    pub log_format: LogFormat,
    /// Other issuers whose tokens are taken: name to JWKS file or URL. `edge.issuers` takes the audience as well.
    pub issuers: BTreeMap<String, String>,
    /// The log on Kafka; without this it is in the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kafka: Option<kafka::Settings>,
    /// The store in Cassandra; without this it is in the directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cassandra: Option<cassandra::Settings>,
    /// Links between roles in processes of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<cluster::Settings>,
    /// How much of the log is kept, where it is in the directory.
    pub retention: retention::Config,
    /// The store's own, where it is in the directory.
    pub store: store::sqlite::Config,
    /// Ingest's own.
    pub ingest: ingest::Config,
    /// The archiver's own.
    pub archiver: archiver::Config,
    /// Fanout's own.
    pub fanout: fanout::Config,
    /// The edge's own.
    pub edge: edge::Config,
}

/// How lines of the log look.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// For people.
    Text,
    /// For machines: one object a line.
    Json,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data: "data".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            admin_listen: SocketAddr::from(([127, 0, 0, 1], 9090)),
            tls_cert: None,
            tls_key: None,
            insecure_http: false,
            rate_limits: true,
            partitions: 4,
            grace_ms: 10_000,
            log: "info".to_owned(),
            log_format: LogFormat::Auto,
            issuers: BTreeMap::new(),
            kafka: None,
            cassandra: None,
            link: None,
            retention: retention::Config::default(),
            store: store::sqlite::Config::default(),
            ingest: ingest::Config::default(),
            archiver: archiver::Config::default(),
            fanout: fanout::Config::default(),
            edge: edge::Config::default(),
        }
    }
}

/// Why the settings can't be used, with what would mend it.
#[derive(Debug, thiserror::Error)]
#[error("settings: {0}")]
pub struct Error(String);

impl Settings {
    /// How long a stop may take.
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }

    /// The files of the certificate and its key, where clients come over TLS.
    pub fn tls(&self) -> Option<(&Path, &Path)> {
        self.tls_cert.as_deref().zip(self.tls_key.as_deref())
    }

    /// Whether a process of a cluster can run with these, in this role.
    pub fn suits(&self, role: Role) -> Result<(), Error> {
        let needed = [("kafka", self.kafka.is_some()), ("cassandra", self.cassandra.is_some())];
        if let Some((missing, _)) = needed.iter().find(|(_, there)| !there) {
            return Err(Error(format!(
                "{missing} is missing: a role in a process of its own shares log and store with others. `posthaste serve` runs \
                 all of them in one process"
            )));
        }
        // Nobody calls an ingest, and it calls nobody.
        if role == Role::Ingest { Ok(()) } else { self.link().map(drop) }
    }

    /// How processes of a cluster reach one another.
    pub fn link(&self) -> Result<&cluster::Settings, Error> {
        self.link.as_ref().ok_or_else(|| Error("link is missing: name ca, certificate and key".to_owned()))
    }

    fn validate(&self) -> Result<(), Error> {
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err(Error("tls_cert and tls_key belong together: name both files".to_owned()));
        }
        let listeners = [("listen", self.listen, self.tls().is_some()), ("admin_listen", self.admin_listen, false)];
        for (key, address, has_tls) in listeners {
            if !address.ip().is_loopback() && !has_tls && !self.insecure_http {
                return Err(Error(format!(
                    "{key} = {address} can be reached from other machines, and without TLS passwords and tokens would \
                     cross the network in the clear. Listen on 127.0.0.1, or (for clients) name --tls-cert and \
                     --tls-key, or put a proxy that does TLS in front and \
                     add --insecure-http"
                )));
            }
        }
        if self.data.as_os_str().is_empty() {
            return Err(Error("data is empty: name a directory".to_owned()));
        }
        if !(1..=PARTITIONS_MAX).contains(&self.partitions) {
            return Err(Error(format!("partitions = {}: must be 1 to {PARTITIONS_MAX}", self.partitions)));
        }
        if let Err(error) = EnvFilter::try_new(&self.log) {
            return Err(Error(format!("log = {:?}: {error}", self.log)));
        }
        if let Some(kafka) = &self.kafka {
            kafka.validate().map_err(|error| Error(format!("kafka: {error}")))?;
        }
        if let Some(cassandra) = &self.cassandra {
            cassandra.validate().map_err(|error| Error(format!("cassandra: {error}")))?;
        }
        if let Some(link) = &self.link {
            link.validate().map_err(|error| Error(format!("link: {error}")))?;
        }
        self.retention.validate().map_err(|error| Error(format!("retention: {error}")))?;
        self.store.validate().map_err(|error| Error(format!("store: {error}")))?;
        self.ingest.validate().map_err(|error| Error(format!("ingest: {error}")))?;
        self.archiver.validate().map_err(|error| Error(format!("archiver: {error}")))?;
        self.fanout.validate().map_err(|error| Error(format!("fanout: {error}")))?;
        self.edge.validate().map_err(|error| Error(format!("edge: {error}")))
    }

    /// The edge's settings with what others of ours mean for it: the keys of other issuers, read from their files, and
    /// no limits where there are to be none.
    pub fn edge(&self) -> Result<edge::Config, Error> {
        let mut edge = self.edge.clone();
        if !self.rate_limits {
            edge.limits = None;
        }
        if self.tls().is_some() {
            edge.public_scheme = Scheme::Https;
        }
        for (name, from) in &self.issuers {
            let (jwks, jwks_url) = if from.contains("://") {
                (None, Some(from.clone()))
            } else {
                let jwks = std::fs::read_to_string(from)
                    .map_err(|error| Error(format!("issuer {name}: can't read {from}: {error}")))?;
                (Some(jwks), None)
            };
            edge.issuers.push(TrustedIssuer { name: name.clone(), jwks, jwks_url, audience: AUDIENCE.to_owned() });
        }
        edge.validate().map_err(|error| Error(format!("edge: {error}")))?;
        Ok(edge)
    }
}

/// Loads the settings and checks them.
pub fn load(flags: &Flags) -> Result<Settings, Error> {
    let mut figment = Figment::from(Serialized::defaults(Settings::default()));
    if let Some(file) = &flags.config {
        if !file.is_file() {
            return Err(Error(format!("no such file: {}", file.display())));
        }
        figment = figment.merge(Toml::file_exact(file));
    }
    let variables = Env::prefixed(PREFIX)
        // Read by clap above; and what Kubernetes puts into every pod beside a Service that is named posthaste.
        .filter(|key| key != "config" && !key.starts_with("service_") && !key.starts_with("port"))
        .split("__");
    let settings: Settings = figment
        .merge(variables)
        .merge(Serialized::defaults(flags))
        .extract()
        .map_err(|error| Error(error.to_string()))?;
    settings.validate()?;
    Ok(settings)
}

/// The secret that a file holds, without the end of its line.
pub fn secret(file: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("can't read {}", file.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// The settings as a TOML file that would bring them about, secrets masked.
pub fn print(settings: &Settings) -> String {
    toml::to_string(settings).unwrap_or_else(|error| format!("# can't be shown: {error}\n"))
}
