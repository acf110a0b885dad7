//! TLS of the public listener: the certificate in force, and exchanging it while connections live on. Is handed the
//! texts of certificate and key; reads no file.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};

/// Why a certificate can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// The certificate's text is no PEM with a certificate in it.
    #[error("the certificate is no PEM certificate")]
    Certificate,
    /// The key's text is no PEM with a private key in it.
    #[error("the key is no PEM private key")]
    Key,
    /// They are not for one another, or of a kind that is not known.
    #[error("certificate and key can't be used")]
    Pair(#[from] rustls::Error),
}

/// The certificate in force.
pub struct Tls(RwLock<Arc<ServerConfig>>);

impl Tls {
    /// With this certificate (its chain after it) and its key, both PEM.
    pub fn new(certificate: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        config(certificate, key).map(|config| Self(RwLock::new(config)))
    }

    /// From now on with these; connections that are open live on. Where they can't be used, nothing changes.
    pub fn replace(&self, certificate: &[u8], key: &[u8]) -> Result<(), CertificateError> {
        *self.0.write() = config(certificate, key)?;
        Ok(())
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.0.read().clone().into()
    }
}

fn config(certificate: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>, CertificateError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty()).ok_or(CertificateError::Certificate)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| CertificateError::Key)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // Whoever comes back after a stop or a lost network is spared half of the handshake; nothing is kept here for it.
    config.ticketer = ring::Ticketer::new()?;
    Ok(Arc::new(config))
}
