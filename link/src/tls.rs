//! Who may speak: TLS 1.3 with certificates on both sides, signed by the cluster's own authority. The names in a
//! certificate (`<role>.posthaste.internal`, RFC 6125) say which roles its holder may play. Is handed texts; reads no file.

use std::sync::Arc;

use parking_lot::RwLock;
use schemas::cluster::Role;
use tokio_rustls::rustls::client::verify_server_name;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig, version};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Why certificates can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The text of the authority holds no PEM certificate.
    #[error("the cluster's authority is no PEM certificate")]
    Authority,
    /// The certificate's text is no PEM with a certificate in it.
    #[error("the certificate is no PEM certificate")]
    Certificate,
    /// The key's text is no PEM with a private key in it.
    #[error("the key is no PEM private key")]
    Key,
    /// No name in the certificate is of this form for the role.
    #[error("the certificate is not for {0}.posthaste.internal")]
    Role(Role),
    /// They are not for one another, or of a kind that is not known.
    #[error("certificate, key and authority can't be used together")]
    Pair(#[from] rustls::Error),
    /// The authority can't vouch for anyone.
    #[error("the cluster's authority can't be used")]
    Verifier(#[from] VerifierBuilderError),
}

/// The certificates in force.
pub struct Tls {
    role: Role,
    configs: RwLock<Configs>,
}

#[derive(Clone)]
struct Configs {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Tls {
    /// For a process of this role: the authority's certificates, the process's own (its chain after it) and its key, all
    /// PEM. Where the certificate says how it may be used, an edge's must say `clientAuth` and all others' `serverAuth`.
    ///
    /// # Errors
    /// They can't be used, or the certificate is not for this role.
    pub fn new(role: Role, authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Arc<Self>, TlsError> {
        let configs = RwLock::new(configs(role, authority, certificate, key)?);
        Ok(Arc::new(Self { role, configs }))
    }

    /// From now on with these; links that are up live on. Where they can't be used, nothing changes.
    ///
    /// # Errors
    /// As [`Tls::new`].
    pub fn replace(&self, authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<(), TlsError> {
        *self.configs.write() = configs(self.role, authority, certificate, key)?;
        Ok(())
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.configs.read().server.clone().into()
    }

    pub(crate) fn connector(&self) -> TlsConnector {
        self.configs.read().client.clone().into()
    }
}

/// The name of a role in certificates.
pub(crate) fn name(role: Role) -> ServerName<'static> {
    let name = match role {
        Role::Edge => "edge.posthaste.internal",
        Role::Ingest => "ingest.posthaste.internal",
        Role::Fanout => "fanout.posthaste.internal",
        Role::Archiver => "archiver.posthaste.internal",
    };
    #[expect(clippy::expect_used, reason = "the names above are names")]
    ServerName::try_from(name).expect("a DNS name")
}

/// Whether the holder of this certificate may play a role.
pub(crate) fn may_play(certificate: &CertificateDer<'_>, role: Role) -> bool {
    ParsedCertificate::try_from(certificate).is_ok_and(|parsed| verify_server_name(&parsed, &name(role)).is_ok())
}

fn configs(role: Role, authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Configs, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(authority) {
        roots.add(root.map_err(|_| TlsError::Authority)?).map_err(|_| TlsError::Authority)?;
    }
    if roots.is_empty() {
        return Err(TlsError::Authority);
    }
    let roots = Arc::new(roots);
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    let chain = chain.map_err(|_| TlsError::Certificate)?;
    let own = chain.first().ok_or(TlsError::Certificate)?;
    if !may_play(own, role) {
        return Err(TlsError::Role(role));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsError::Key)?;
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build()?;
    let server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain.clone(), key.clone_key())?;
    let client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    Ok(Configs { client: Arc::new(client), server: Arc::new(server) })
}
