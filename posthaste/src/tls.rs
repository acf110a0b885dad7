//! The files of the certificate: read at the start, and again when they change or a SIGHUP says so. A pair that can't
//! be used is logged and the one before goes on: renewals are written one file after the other.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use edge::tls::Tls;
use tokio::signal::unix::{SignalKind, signal};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The certificate in force and where it comes from.
pub struct Certificate {
    certificate: PathBuf,
    key: PathBuf,
    tls: Arc<Tls>,
}

impl Certificate {
    /// Reads both files.
    pub fn open(certificate: PathBuf, key: PathBuf) -> anyhow::Result<Self> {
        let tls = Tls::new(&read(&certificate)?, &read(&key)?)
            .with_context(|| format!("{} and {}", certificate.display(), key.display()))?;
        Ok(Self { certificate, key, tls: Arc::new(tls) })
    }

    /// What the listener needs.
    pub fn tls(&self) -> Arc<Tls> {
        self.tls.clone()
    }

    /// Follows the files. Never ends.
    pub async fn watch(self) -> anyhow::Result<()> {
        let files = [self.certificate.clone(), self.key.clone()];
        follow(&files, || Ok(self.tls.replace(&read(&self.certificate)?, &read(&self.key)?)?)).await
    }
}

/// What changes when a file does, however it is replaced.
type Stamp = Option<(u64, u64, i64, i64)>;

fn stamp(file: &PathBuf) -> Stamp {
    let file: Metadata = std::fs::metadata(file).ok()?;
    Some((file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
}

/// Takes a certificate anew whenever one of its files has changed or a SIGHUP says so. Never ends.
pub async fn follow(files: &[PathBuf], reload: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let stamps = || files.iter().map(stamp).collect::<Vec<_>>();
    let mut hangup = signal(SignalKind::hangup())?;
    let mut known = stamps();
    loop {
        let asked = tokio::select! {
            _ = hangup.recv() => true,
            () = tokio::time::sleep(LOOK) => false,
        };
        let now = stamps();
        if asked || now != known {
            known = now;
            match reload() {
                Ok(()) => tracing::info!("the certificate is exchanged"),
                Err(error) => tracing::error!("the old certificate goes on, the new one can't be used: {error:#}"),
            }
        }
    }
}

/// What a file holds.
pub fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(file).with_context(|| format!("can't read {}", file.display()))
}
