//! TLS to the server under load, and whom to trust for it. Of its own, as everything here: the judge shares no code with
//! the SDK.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// A connection, whatever carries it.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// How to speak TLS to one host.
#[derive(Clone)]
pub struct Tls {
    name: ServerName<'static>,
    connector: TlsConnector,
}

impl Tls {
    /// To this host, trusting the authorities of a PEM file in place of the system's.
    pub fn new(host: &str, authorities: Option<&Path>) -> Result<Self> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots(authorities)?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let name =
            ServerName::try_from(host.to_owned()).with_context(|| format!("no certificate can be for {host}"))?;
        Ok(Self { name, connector: Arc::new(config).into() })
    }

    /// Does the handshake.
    pub async fn wrap(&self, stream: TcpStream) -> std::io::Result<Box<dyn Stream>> {
        Ok(Box::new(self.connector.connect(self.name.clone(), stream).await?))
    }
}

fn roots(authorities: Option<&Path>) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(path) => {
            let wrong = || format!("--ca {} can't be read", path.display());
            for certificate in CertificateDer::pem_file_iter(path).with_context(wrong)? {
                roots.add(certificate.with_context(wrong)?).with_context(wrong)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        bail!("there is no certificate authority to trust: name some with --ca");
    }
    Ok(roots)
}
