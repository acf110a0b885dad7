//! A process as one of many: its settings for links with others, and how it is found and reached.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use link::Tls;
use schemas::cluster::Role;
use serde::{Deserialize, Serialize};

use crate::tls::{follow, read};

/// How roles in processes of their own reach one another.
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Address for links of edges; a fanout and an archiver have one. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// `host:port` as edges reach `listen`, where that is not the address itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<String>,
    /// PEM file of the cluster's own authority, which signs the certificates of its processes and no others.
    pub ca: PathBuf,
    /// PEM file of this process's certificate: for `<role>.posthaste.internal`, where the role is edge, ingest, fanout or
    /// archiver.
    pub certificate: PathBuf,
    /// PEM file of its private key.
    pub key: PathBuf,
    /// Times and bounds.
    pub limits: link::Config,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            ca: PathBuf::new(),
            certificate: PathBuf::new(),
            key: PathBuf::new(),
            limits: link::Config::default(),
        }
    }
}

impl Settings {
    /// What is wrong with these settings, for people.
    pub fn validate(&self) -> Result<(), String> {
        for (name, file) in [("ca", &self.ca), ("certificate", &self.certificate), ("key", &self.key)] {
            if file.as_os_str().is_empty() {
                return Err(format!(
                    "{name} is missing: links between processes are TLS with certificates on both sides"
                ));
            }
        }
        if self.listen.ip().is_unspecified() && self.advertise.is_none() {
            return Err(format!("listen = {} is no address to be reached at: name one in advertise", self.listen));
        }
        self.limits.validate()
    }

    /// The certificates for a role.
    pub fn tls(&self, role: Role) -> anyhow::Result<Arc<Tls>> {
        let (ca, certificate, key) = self.texts()?;
        Tls::new(role, &ca, &certificate, &key).with_context(|| {
            format!("{}, {} and {}", self.ca.display(), self.certificate.display(), self.key.display())
        })
    }

    /// Follows the files of the certificates. Never ends.
    pub async fn watch(self, tls: Arc<Tls>) -> anyhow::Result<()> {
        let files = [self.ca.clone(), self.certificate.clone(), self.key.clone()];
        let reload = || {
            let (ca, certificate, key) = self.texts()?;
            Ok(tls.replace(&ca, &certificate, &key)?)
        };
        follow(&files, reload).await
    }

    fn texts(&self) -> anyhow::Result<(Vec<u8>, Vec<u8>, Vec<u8>)> {
        Ok((read(&self.ca)?, read(&self.certificate)?, read(&self.key)?))
    }

    /// Where others reach what listens there.
    pub fn address(&self, listening: SocketAddr) -> String {
        self.advertise.clone().unwrap_or_else(|| listening.to_string())
    }
}
