//! TLS to one host: whom this client trusts to say which server is which. What a connection is for is another's matter.

use std::io;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, CertificateError, ClientConfig, RootCertStore};

use crate::deps::{Connector, Stream, TcpConnector};
use crate::error::Error;

/// TLS to one host, whose certificate must be for the name by which it is called (RFC 9525).
pub struct TlsConnector {
    tcp: TcpConnector,
    name: ServerName<'static>,
    tls: tokio_rustls::TlsConnector,
}

impl TlsConnector {
    /// Trusts the authorities of this PEM file; without one those of the system (of `SSL_CERT_FILE` and
    /// `SSL_CERT_DIR`, where they are set).
    ///
    /// # Errors
    /// [`Error::Untrusted`] where there is nobody to trust, [`Error::Address`] where no certificate can be for the host.
    pub fn new(tcp: TcpConnector, authorities: Option<&Path>) -> Result<Self, Error> {
        let name = ServerName::try_from(tcp.host.clone())
            .map_err(|_| Error::Address(format!("{:?} is no name that a certificate can be for", tcp.host)))?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Untrusted(error.to_string()))?
            .with_root_certificates(roots(authorities)?)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tcp, name, tls: Arc::new(config).into() })
    }
}

#[async_trait]
impl Connector for TlsConnector {
    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        let stream = self.tcp.dial().await?;
        match self.tls.connect(self.name.clone(), stream).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(distrust(&error, &self.tcp.host).map_or(error, io::Error::other)),
        }
    }
}

fn roots(authorities: Option<&Path>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = authorities {
        let wrong = |why: String| Error::Untrusted(format!("the authorities in {}: {why}", path.display()));
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))? {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
        }
        return if roots.is_empty() { Err(wrong("no PEM certificate is in it".into())) } else { Ok(roots) };
    }
    let found = rustls_native_certs::load_native_certs();
    // Systems carry some that are too odd to be read; one that is missing shows when a server needs it.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map_or_else(String::new, |error| format!(": {error}"));
        return Err(Error::Untrusted(format!("this system names no certificate authority{why}")));
    }
    Ok(roots)
}

/// Whether a handshake failed because the server is not who it claims to be: no further try mends that.
fn distrust(error: &io::Error, host: &str) -> Option<Error> {
    let rustls::Error::InvalidCertificate(why) = error.get_ref()?.downcast_ref()? else { return None };
    let why = match why {
        // The latter: it names an authority that is trusted, but somebody else has signed it.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "no authority that is trusted here has signed it".into()
        }
        why => why.to_string(),
    };
    Some(Error::Untrusted(format!("the certificate of {host} can't be trusted: {why}")))
}
