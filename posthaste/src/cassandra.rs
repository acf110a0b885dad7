//! Settings of a store in Cassandra, as people write them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use store::cassandra::Config;

use crate::config;

/// Where the store is, if it is in Cassandra.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Nodes to begin with: `host:port,…`.
    pub contact_points: String,
    /// Where the tables are: letters, digits and `_`.
    pub keyspace: String,
    /// The datacenter that is asked, and in which the keyspace is made.
    pub datacenter: String,
    /// Copies of each row; for a keyspace that is made.
    pub replication: u32,
    /// PEM file of who signs the nodes' certificates; without it there is no TLS. Their names are not compared: it
    /// should be an authority that signs Cassandra nodes alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Who signs in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// File with the password for `user`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<PathBuf>,
    /// An answer takes no longer, milliseconds, or the call fails.
    pub request_timeout_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        let Config { keyspace, datacenter, replication, request_timeout_ms, .. } = Config::default();
        Self {
            contact_points: String::new(),
            keyspace,
            datacenter,
            replication,
            ca: None,
            user: None,
            password_file: None,
            request_timeout_ms,
        }
    }
}

impl Settings {
    /// What is wrong with these settings, for people.
    pub fn validate(&self) -> Result<(), String> {
        if self.user.is_some() != self.password_file.is_some() {
            return Err("user and password_file belong together".to_owned());
        }
        if self.user.is_some() && self.ca.is_none() {
            return Err("user needs ca: without TLS the password would cross the network in the clear".to_owned());
        }
        // The password is read when it is needed.
        self.with_password(self.user.as_ref().map(|_| String::new())).validate()
    }

    /// The engine's settings. Reads the password.
    pub fn config(&self) -> anyhow::Result<Config> {
        let password = self.password_file.as_deref().map(config::secret).transpose()?;
        Ok(self.with_password(password))
    }

    fn with_password(&self, password: Option<String>) -> Config {
        let named = self.contact_points.split(',').map(str::trim).filter(|point| !point.is_empty());
        Config {
            contact_points: named.map(str::to_owned).collect(),
            keyspace: self.keyspace.clone(),
            datacenter: self.datacenter.clone(),
            replication: self.replication,
            user: self.user.clone(),
            password,
            ca_file: self.ca.clone(),
            request_timeout_ms: self.request_timeout_ms,
        }
    }
}
