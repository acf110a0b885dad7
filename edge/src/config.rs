//! The edge's settings: units in the names, a reason for each default. Reads no file and no environment.

use std::time::Duration;

use schemas::Timestamp;
use serde::{Deserialize, Serialize};
use store::shut_outs::Network;

use crate::auth::keys::overlap;

/// The edge's settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `iss` of our own access tokens.
    pub issuer: String,
    /// `aud` of our own access tokens.
    pub audience: String,
    /// How long an access token lives: a quarter of an hour bounds what a stolen one is worth.
    pub access_ttl_s: u64,
    /// How long a refresh token lives unused: a month away from the product without signing in again.
    pub refresh_ttl_s: u64,
    /// How long a lost answer of a refresh may be asked again (protocol.md).
    pub refresh_grace_ms: u64,
    /// How often ended refresh tokens and old revocations are looked for, in s. They are in nobody's way; only their
    /// tables must not grow for ever.
    pub purge_interval_s: u64,
    /// A new signing key is made when the newest is so old, in s: a month bounds what a stolen one is worth, and costs
    /// nothing, for no valid token fails.
    pub signing_key_age_max_s: u64,
    /// Signing keys made before this time (once it has come) are withdrawn, and their tokens are dead at once: for when one
    /// has leaked. Clients refresh and go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signing_keys_since: Option<Timestamp>,
    /// Other issuers whose tokens are taken.
    pub issuers: Vec<TrustedIssuer>,
    /// Scheme under which browsers reach this edge: `https` where TLS ends here or in a proxy before it.
    pub public_scheme: Scheme,
    /// Further origins, exact, whose pages may open sockets.
    pub allowed_origins: Vec<String>,
    /// Proxies (addresses or networks, `10.0.0.0/8`) that say for whom they ask; limits then count that address.
    pub trusted_proxies: Vec<String>,
    /// The header in which they say it. Only one is read: another one, which they pass on, is anybody's.
    pub forwarded_header: ForwardedHeader,
    /// Hashing of passwords.
    pub password: PasswordConfig,
    /// Rate limits; `None`: none at all (for load tests).
    pub limits: Option<LimitsConfig>,
    /// Most connections at once: beyond it new ones wait to be accepted. Above the most sockets that one edge is
    /// meant to hold.
    pub connections_max: usize,
    /// Time for a TLS handshake, for a request's header from the moment that it is waited for, and again for its body, in
    /// ms, however many bytes come meanwhile: a slow client must not hold a place for ever.
    pub request_read_timeout_ms: u64,
    /// Time from the upgrade to a whole hello, in ms (protocol.md).
    pub hello_timeout_ms: u64,
    /// Largest header of a request, bytes, at least 8,192: tokens take the most of it, some 1,000.
    pub header_max_bytes: usize,
    /// Most fields of a request's header; browsers and proxies send some twenty.
    pub header_fields_max: usize,
    /// At a stop sockets are closed one after the other within this time, in ms, so that they do not come back in one
    /// wave; with fewer than 1,000 it is quicker.
    pub drain_ms: u64,
    /// Over how long the sockets of a stop are told to come back, in ms: each costs a handshake and a catching up.
    pub drain_retry_spread_ms: u64,
    /// How often the revocation table is read, in ms: a sign-out is known everywhere within 2 s (protocol.md).
    pub revocation_poll_ms: u64,
    /// Revocations not read for so long, in ms: the edge trusts no token any more (protocol.md).
    pub revocation_stale_ms: u64,
    /// How long a claimed handle waits for its room, in s: far above any delay of the archive.
    pub handle_claim_s: u64,
}

/// A scheme of origins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Plain.
    #[default]
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// As in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// A header in which a proxy says for whom it asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`.
    #[default]
    XForwardedFor,
    /// `Forwarded` (RFC 7239).
    Forwarded,
}

/// Another issuer whose tokens are taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustedIssuer {
    /// Its `iss`.
    #[serde(alias = "issuer")]
    pub name: String,
    /// Its keys: the text of a JWKS (RFC 7517), read from its file by the binary. Either this or `jwks_url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<String>,
    /// Where its keys are: an https URL, or an http one on this machine. Anywhere else in the clear, whoever is on the
    /// way could name keys of their own and be anybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks_url: Option<String>,
    /// The `aud` that its tokens for us have.
    #[serde(default = "posthaste")]
    pub audience: String,
}

fn posthaste() -> String {
    "posthaste".to_owned()
}

/// Hashing of passwords: Argon2id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PasswordConfig {
    /// Memory of one hash, KiB. OWASP's first choice for Argon2id: 19 MiB, two passes, one lane.
    pub memory_kib: u32,
    /// Passes.
    pub passes: u32,
    /// Hashes at once: each takes a core, and sends come first.
    pub threads: usize,
    /// Hashes that may wait; beyond it sign-ins get 503. At about 30 ms each nobody waits over a few seconds.
    pub queue_max: usize,
}

/// Limits: so many in a burst, then so many a second; and how many may be open at once. "An address" is a network of the
/// sizes set here: whoever has one address mostly has more of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Bits that the IPv4 addresses counted as one have in common; 32 tells all apart.
    pub ipv4_prefix_bits: u8,
    /// The same with IPv6, where a subscriber has a whole /64.
    pub ipv6_prefix_bits: u8,
    /// Connections of an address in a burst: as many as it may have sockets, twice over, all back after a restart.
    pub connection_burst: u32,
    /// Connections of an address a second afterwards.
    pub connections_per_s: f64,
    /// Connections of an address at once that are no sockets.
    pub connections_per_address: u32,
    /// Of these, how many have not brought a whole request yet: TLS and header cost the most and tell the least.
    pub handshakes_per_address: u32,
    /// The same of all addresses together: under TLS some 40 KiB each, 240 MiB at worst.
    pub handshakes_max: u32,
    /// Sockets that a person opens in a burst: twice as many as they may have.
    pub socket_burst: u32,
    /// Sockets that a person opens a second afterwards.
    pub sockets_per_s: f64,
    /// Frames of a socket in a burst, of every kind. A client in a busy room answers each message with a receipt.
    pub frame_burst: u32,
    /// Frames of a socket a second.
    pub frames_per_s: f64,
    /// Sends into a room in a burst, of all its members at this edge: one room must not take what its partition has.
    pub room_send_burst: u32,
    /// Sends into a room a second.
    pub room_sends_per_s: f64,
    /// Sends of a person in a burst (protocol.md).
    pub send_burst: u32,
    /// Sends of a person a second (protocol.md).
    pub sends_per_s: f64,
    /// Sign-ups of an address in a burst (protocol.md).
    pub sign_up_burst: u32,
    /// Sign-ups of an address a second afterwards: one in two minutes.
    pub sign_ups_per_s: f64,
    /// Failed sign-ins of an address in a burst: many people share one.
    pub failed_sign_in_burst: u32,
    /// Failed sign-ins of an address a second afterwards.
    pub failed_sign_ins_per_s: f64,
    /// Failed sign-ins for one account in a burst, from wherever.
    pub failed_account_burst: u32,
    /// Failed sign-ins for one account a second afterwards: some 8,600 guesses a day.
    pub failed_accounts_per_s: f64,
    /// Sockets of an address at once (protocol.md): a company or a campus behind one address.
    pub sockets_per_address: u32,
    /// Sockets of a person at once (protocol.md): a few devices, or the many workers of a bot.
    pub sockets_per_user: u32,
    /// When somebody is shut out.
    pub blocks: BlocksConfig,
}

/// When an address or an account that keeps breaking limits is shut out, and for how long. What an offence weighs:
/// [`crate::blocks::Offence`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BlocksConfig {
    /// So many points, and one is shut out. 20 pieces of nonsense, or 2,000 frames above the rate.
    pub points: f64,
    /// Points forgiven a second: the mistakes of the many people behind one address.
    pub forgiven_per_s: f64,
    /// The first shut-out, in ms; each further one is twice as long.
    pub first_ms: u64,
    /// The longest shut-out, in ms.
    pub longest_ms: u64,
    /// So long after its last shut-out somebody begins anew, in s.
    pub quiet_s: u64,
}

impl BlocksConfig {
    /// How long the shut-out of this number in a row is.
    pub(crate) fn duration(&self, times: u32) -> Duration {
        let doubled = 1_u64.checked_shl(times.saturating_sub(1)).unwrap_or(u64::MAX);
        Duration::from_millis(self.first_ms.saturating_mul(doubled).min(self.longest_ms))
    }

    /// See [`BlocksConfig::quiet_s`].
    pub(crate) fn quiet(&self) -> Duration {
        Duration::from_secs(self.quiet_s)
    }
}

impl Default for BlocksConfig {
    fn default() -> Self {
        Self { points: 100.0, forgiven_per_s: 1.0, first_ms: 1_000, longest_ms: 15 * 60 * 1_000, quiet_s: 15 * 60 }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            issuer: posthaste(),
            audience: posthaste(),
            access_ttl_s: 15 * 60,
            refresh_ttl_s: 30 * 24 * 60 * 60,
            refresh_grace_ms: 10_000,
            signing_key_age_max_s: 30 * 24 * 60 * 60,
            signing_keys_since: None,
            purge_interval_s: 60 * 60,
            issuers: Vec::new(),
            public_scheme: Scheme::Http,
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::default(),
            password: PasswordConfig::default(),
            limits: Some(LimitsConfig::default()),
            connections_max: 20_000,
            request_read_timeout_ms: 10_000,
            hello_timeout_ms: 10_000,
            header_max_bytes: 16 * 1024,
            header_fields_max: 100,
            drain_ms: 4_000,
            drain_retry_spread_ms: 5_000,
            revocation_poll_ms: 500,
            revocation_stale_ms: 5_000,
            handle_claim_s: 10 * 60,
        }
    }
}

impl Default for PasswordConfig {
    fn default() -> Self {
        Self { memory_kib: 19_456, passes: 2, threads: 2, queue_max: 128 }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            ipv4_prefix_bits: 24,
            ipv6_prefix_bits: 64,
            connection_burst: 20_000,
            connections_per_s: 1_000.0,
            connections_per_address: 3_000,
            handshakes_per_address: 1_500,
            handshakes_max: 6_000,
            socket_burst: 1_000,
            sockets_per_s: 10.0,
            frame_burst: 5_000,
            frames_per_s: 1_000.0,
            room_send_burst: 10_000,
            room_sends_per_s: 2_000.0,
            send_burst: 500,
            sends_per_s: 50.0,
            sign_up_burst: 500,
            sign_ups_per_s: 1.0 / 120.0,
            failed_sign_in_burst: 300,
            failed_sign_ins_per_s: 1.0,
            failed_account_burst: 50,
            failed_accounts_per_s: 0.1,
            sockets_per_address: 10_000,
            sockets_per_user: 500,
            blocks: BlocksConfig::default(),
        }
    }
}

/// A setting that can't be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("edge.{setting}: {reason}")]
pub struct ConfigError {
    /// Which.
    pub setting: &'static str,
    /// Why not.
    pub reason: String,
}

impl Config {
    /// Says what can't be, before anything binds.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |setting, reason: &str| Err(ConfigError { setting, reason: reason.to_owned() });
        if self.access_ttl_s == 0 || self.refresh_ttl_s < self.access_ttl_s {
            return refuse("refresh_ttl_s", "a refresh token must outlive an access token, and that one live at all");
        }
        if self.signing_key_age_max() <= overlap(self.access_ttl()) {
            return refuse("signing_key_age_max_s", "a key must outlive the tokens of the one before, and 210 s more");
        }
        if self.password.memory_kib < 8 || self.password.passes == 0 || self.password.threads == 0 {
            return refuse("password", "Argon2 needs at least 8 KiB, one pass and one thread");
        }
        if self.revocation_poll_ms == 0 || self.revocation_stale_ms <= self.revocation_poll_ms {
            return refuse("revocation_stale_ms", "must be above revocation_poll_ms, and that one above 0");
        }
        if self.purge_interval_s == 0 {
            return refuse("purge_interval_s", "must be above 0");
        }
        if self.connections_max == 0 {
            return refuse("connections_max", "must be above 0");
        }
        // Less is more than hyper can do, and would not hold our own tokens.
        if self.header_max_bytes < 8_192 || self.header_fields_max == 0 {
            return refuse("header_max_bytes", "must be 8192 or more, and header_fields_max above 0");
        }
        if let Some(limits) = &self.limits {
            limits.validate()?;
        }
        if let Some(bad) = self.allowed_origins.iter().find(|origin| !is_origin(origin)) {
            return refuse("allowed_origins", &format!("{bad:?} is no origin: scheme://host or scheme://host:port"));
        }
        if let Some(bad) = self.trusted_proxies.iter().find(|text| text.parse::<Network>().is_err()) {
            return refuse("trusted_proxies", &format!("{bad:?} is neither an address nor a network like 10.0.0.0/8"));
        }
        if self.issuers.iter().any(|issuer| issuer.name == self.issuer) {
            return refuse("issuers", "another issuer can't have our own name");
        }
        for TrustedIssuer { name, jwks, jwks_url, .. } in &self.issuers {
            if jwks.is_some() == jwks_url.is_some() {
                return refuse("issuers", &format!("{name} needs either jwks or jwks_url"));
            }
            if let Some(bad) = jwks_url.as_deref().filter(|url| !is_safe_url(url)) {
                return refuse("issuers", &format!("{bad:?} is no https:// URL, nor an http:// one of this machine"));
            }
        }
        Ok(())
    }

    /// See [`Config::access_ttl_s`].
    pub(crate) fn access_ttl(&self) -> Duration {
        Duration::from_secs(self.access_ttl_s)
    }

    /// See [`Config::signing_key_age_max_s`].
    pub(crate) fn signing_key_age_max(&self) -> Duration {
        Duration::from_secs(self.signing_key_age_max_s)
    }

    /// See [`Config::drain_ms`].
    pub fn drain(&self) -> Duration {
        Duration::from_millis(self.drain_ms)
    }

    /// See [`Config::drain_retry_spread_ms`].
    pub fn drain_retry_spread(&self) -> Duration {
        Duration::from_millis(self.drain_retry_spread_ms)
    }

    /// See [`Config::refresh_ttl_s`].
    pub(crate) fn refresh_ttl(&self) -> Duration {
        Duration::from_secs(self.refresh_ttl_s)
    }

    /// See [`Config::hello_timeout_ms`].
    pub(crate) fn hello_timeout(&self) -> Duration {
        Duration::from_millis(self.hello_timeout_ms)
    }

    /// See [`Config::request_read_timeout_ms`].
    pub(crate) fn request_read_timeout(&self) -> Duration {
        Duration::from_millis(self.request_read_timeout_ms)
    }
}

impl LimitsConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |reason: &str| Err(ConfigError { setting: "limits", reason: reason.to_owned() });
        if self.sockets_per_address == 0 || self.sockets_per_user == 0 {
            return refuse("sockets_per_address and sockets_per_user must be above 0");
        }
        if self.connections_per_address == 0 || self.handshakes_per_address == 0 || self.handshakes_max == 0 {
            return refuse("connections_per_address, handshakes_per_address and handshakes_max must be above 0");
        }
        if self.ipv4_prefix_bits > 32 || self.ipv6_prefix_bits > 128 {
            return refuse("an IPv4 address has 32 bits, one of IPv6 128");
        }
        let blocks = &self.blocks;
        if !(blocks.points > 0.0 && blocks.forgiven_per_s >= 0.0) {
            return refuse("blocks.points must be above 0, and blocks.forgiven_per_s not below it");
        }
        if blocks.first_ms == 0 || blocks.longest_ms < blocks.first_ms {
            return refuse("blocks.first_ms must be above 0, and blocks.longest_ms not below it");
        }
        Ok(())
    }
}

fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@', '*', ' ']))
}

/// Whether nobody on the way can change what this URL answers.
fn is_safe_url(text: &str) -> bool {
    let Ok(url) = text.parse::<hyper::Uri>() else { return false };
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    let here = host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    let bare = url.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    bare && !host.is_empty() && (url.scheme_str() == Some("https") || url.scheme_str() == Some("http") && here)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_from_a_text_or_from_a_url_that_nobody_on_the_way_can_change() {
        let config = |jwks: Option<&str>, url: Option<&str>| Config {
            issuers: vec![TrustedIssuer {
                name: "other".into(),
                jwks: jwks.map(Into::into),
                jwks_url: url.map(Into::into),
                audience: posthaste(),
            }],
            ..Config::default()
        };
        assert!(config(Some("{}"), None).validate().is_ok());
        for good in
            ["https://id.example.org/jwks.json", "http://127.0.0.1:8090/j", "http://[::1]/j", "http://localhost/"]
        {
            assert_eq!(config(None, Some(good)).validate(), Ok(()));
        }
        for bad in [
            "http://id.example.org/j",
            "http://10.0.0.1/j",
            "ftp://x/",
            "file:///etc/keys",
            "/etc/keys",
            "",
            "https://u:p@x/j",
            "http://127.0.0.1.example.org/j",
        ] {
            assert!(config(None, Some(bad)).validate().is_err(), "{bad}");
        }
        assert!(config(None, None).validate().is_err());
        assert!(config(Some("{}"), Some("https://x/")).validate().is_err());
    }

    #[test]
    fn the_defaults_are_valid_and_a_wildcard_origin_is_not() {
        assert_eq!(Config::default().validate(), Ok(()));
        for bad in ["*", "https://*.example.org", "example.org", "https://example.org/", "null"] {
            let config = Config { allowed_origins: vec![bad.into()], ..Config::default() };
            assert!(config.validate().is_err(), "{bad}");
        }
    }
}
