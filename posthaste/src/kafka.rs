//! Settings of a log on Kafka, as people write them.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use stream::kafka::{Config, Protocol};

use crate::config;

/// Where the log is, if it is on Kafka.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Brokers to begin with: `host:port,…`.
    pub bootstrap: String,
    /// Before the name of each topic, group and transactional id.
    pub prefix: String,
    /// Copies of each partition, and how many must have a record before it counts; for topics that are made.
    pub replication: u16,
    /// See `replication`.
    pub min_in_sync: u16,
    /// How long the brokers keep records, seconds; for topics that are made.
    pub keep_s: u64,
    /// PEM file of who signs the brokers' certificates; without it there is no TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Name for SCRAM-SHA-512.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// File with the password for `user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// Whether groups are kept by the older protocol, for brokers whose `group.consumer.*` settings can't be changed.
    pub classic_groups: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let Config { bootstrap, prefix, kept, .. } = Config::new("");
        Self {
            bootstrap,
            prefix,
            replication: 3,
            min_in_sync: 2,
            keep_s: kept.as_secs(),
            ca: None,
            user: None,
            password_file: None,
            classic_groups: false,
        }
    }
}

impl Settings {
    /// What is wrong with these settings, for people.
    pub fn validate(&self) -> Result<(), String> {
        if self.bootstrap.is_empty() {
            return Err("bootstrap is empty: name the brokers, host:port,…".to_owned());
        }
        if self.min_in_sync == 0 || self.min_in_sync > self.replication {
            return Err(format!("min_in_sync must be from 1 to replication, {}", self.replication));
        }
        if self.user.is_some() != self.password_file.is_some() {
            return Err("user and password_file belong together".to_owned());
        }
        if self.user.is_some() && self.ca.is_none() {
            return Err("user needs ca: without TLS whoever listens could guess the password".to_owned());
        }
        Ok(())
    }

    /// The engine's settings. Reads the password.
    pub fn config(&self) -> anyhow::Result<Config> {
        let user = match (&self.user, &self.password_file) {
            (Some(user), Some(file)) => Some((user.clone(), config::secret(file)?)),
            _ => None,
        };
        Ok(Config {
            prefix: self.prefix.clone(),
            replication: i32::from(self.replication),
            min_in_sync: u32::from(self.min_in_sync),
            kept: Duration::from_secs(self.keep_s),
            ca: self.ca.clone(),
            user,
            protocol: if self.classic_groups { Protocol::Classic } else { Protocol::Consumer },
            ..Config::new(&self.bootstrap)
        })
    }
}
