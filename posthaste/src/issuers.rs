//! Keys of other issuers, over HTTP: one GET on a connection of its own. Whom it trusts is the system's matter
//! (`SSL_CERT_FILE` names others); when it asks is the edge's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use async_trait::async_trait;
use bytes::Bytes;
use client::Connector;
use edge::auth::issuers::{FetchError, Fetched, JwksPort};
use edge::config::TrustedIssuer;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CACHE_CONTROL, HOST, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;

/// Largest JWKS, bytes: those of large issuers, certificates and all, are a quarter of it.
const JWKS_MAX_BYTES: usize = 128 * 1024;

/// The way to one URL.
struct Way {
    connector: Arc<dyn Connector>,
    authority: String,
    path: String,
}

/// The URLs of the settings.
pub struct HttpJwks(HashMap<String, Way>);

impl HttpJwks {
    /// Connects to none of them yet.
    pub fn new(issuers: &[TrustedIssuer]) -> anyhow::Result<Self> {
        let ways = issuers.iter().filter_map(|issuer| issuer.jwks_url.as_ref()).map(|url| {
            let uri: Uri = url.parse().with_context(|| format!("jwks_url {url}"))?;
            let origin = format!(
                "{}://{}",
                uri.scheme_str().unwrap_or_default(),
                uri.authority().map_or("", |authority| authority.as_str())
            );
            let (connector, authority) = client::connector(&origin, None).with_context(|| format!("jwks_url {url}"))?;
            let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
            Ok((url.clone(), Way { connector, authority, path }))
        });
        ways.collect::<anyhow::Result<_>>().map(Self)
    }
}

#[async_trait]
impl JwksPort for HttpJwks {
    async fn fetch(&self, url: &str) -> Result<Fetched, FetchError> {
        let way = self.0.get(url).ok_or_else(|| FetchError("not a URL of the settings".into()))?;
        way.get().await.map_err(|error| FetchError(format!("{error:#}")))
    }
}

impl Way {
    async fn get(&self) -> anyhow::Result<Fetched> {
        let stream = self.connector.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get(&self.path)
            .header(HOST, &self.authority)
            .header(ACCEPT, "application/jwk-set+json, application/json")
            .header(USER_AGENT, concat!("posthaste/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())?;
        let answered = async {
            let response = sender.send_request(request).await?;
            if response.status() != StatusCode::OK {
                bail!("status {}", response.status().as_u16());
            }
            let max_age = response.headers().get(CACHE_CONTROL).and_then(|value| max_age(value.to_str().ok()?));
            let body = Limited::new(response.into_body(), JWKS_MAX_BYTES).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("the answer broke off: {error}"))?;
            Ok(Fetched { jwks: body.to_bytes().into(), max_age })
        };
        // Its end, and why, reaches us through the answer. Both here: whoever drops this fetch drops its connection.
        let moved = async {
            let _ = connection.await;
            std::future::pending().await
        };
        tokio::select! {
            answered = answered => answered,
            never = moved => never,
        }
    }
}

/// `max-age` of a Cache-Control header (RFC 9111 section 5.2.2.1).
fn max_age(header: &str) -> Option<Duration> {
    header.split(',').find_map(|directive| {
        let (name, value) = directive.split_once('=')?;
        let seconds = value.trim().trim_matches('"').parse().ok()?;
        name.trim().eq_ignore_ascii_case("max-age").then(|| Duration::from_secs(seconds))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_age_is_read_as_servers_write_it() {
        for (header, seconds) in [
            ("max-age=600", Some(600)),
            ("public, Max-Age=\"60\", must-revalidate", Some(60)),
            ("s-maxage=5, max-age=7", Some(7)),
            ("no-store", None),
            ("max-age=", None),
            ("max-age=-1", None),
        ] {
            assert_eq!(max_age(header), seconds.map(Duration::from_secs), "{header}");
        }
    }
}
