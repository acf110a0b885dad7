//! The files of the certificate: read at the start, and again when they change or a SIGHUP says so. A pair that can't
//! be used is logged and the one before goes on: renewals are written one file after the other.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
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

/// What changes when a file does, however it is replaced.
type Stamp = Option<(u64, u64, i64, i64)>;

impl Certificate {
    /// Reads both files.
    pub fn open(certificate: PathBuf, key: PathBuf) -> anyhow::Result<Self> {
        let (certificate_text, key_text) = read(&certificate, &key)?;
        let tls = Tls::new(&certificate_text, &key_text)
            .with_context(|| format!("{} and {}", certificate.display(), key.display()))?;
        Ok(Self { certificate, key, tls: Arc::new(tls) })
    }

    /// What the listener needs.
    pub fn tls(&self) -> Arc<Tls> {
        self.tls.clone()
    }

    /// Follows the files. Never ends.
    pub async fn watch(self) -> anyhow::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut known = self.stamps();
        loop {
            let asked = tokio::select! {
                _ = hangup.recv() => true,
                () = tokio::time::sleep(LOOK) => false,
            };
            let stamps = self.stamps();
            if asked || stamps != known {
                known = stamps;
                match self.reload() {
                    Ok(()) => tracing::info!("the certificate is exchanged"),
                    Err(error) => tracing::error!("the old certificate goes on, the new one can't be used: {error:#}"),
                }
            }
        }
    }

    fn reload(&self) -> anyhow::Result<()> {
        let (certificate, key) = read(&self.certificate, &self.key)?;
        Ok(self.tls.replace(&certificate, &key)?)
    }

    fn stamps(&self) -> [Stamp; 2] {
        let stamp = |file: Metadata| (file.ino(), file.size(), file.mtime(), file.mtime_nsec());
        [&self.certificate, &self.key].map(|path| std::fs::metadata(path).ok().map(stamp))
    }
}

fn read(certificate: &PathBuf, key: &PathBuf) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("can't read {}", path.display()));
    Ok((read(certificate)?, read(key)?))
}
