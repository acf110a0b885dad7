//! Where a request comes from when proxies stand before the edge: what they say is believed as far as they are known.
//! Pure.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, header};

use store::shut_outs::Network;

use crate::config::ForwardedHeader;

/// The proxies that are believed.
#[derive(Clone, Debug)]
pub(crate) struct Proxies {
    trusted: Vec<Network>,
    header: ForwardedHeader,
}

impl Proxies {
    /// What can't be read as a network is none: the settings were checked.
    pub fn new(trusted: &[String], header: ForwardedHeader) -> Self {
        Self { trusted: trusted.iter().filter_map(|text| text.parse().ok()).collect(), header }
    }

    /// Whether what this address says of others is believed.
    pub fn trusts(&self, address: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.contains(address))
    }

    /// Who has asked: the last one before the proxies that are believed. Whatever stands further to the left could have
    /// been written by anybody.
    pub fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut nearest = peer.to_canonical();
        if !self.trusts(nearest) {
            return nearest;
        }
        let name = match self.header {
            ForwardedHeader::XForwardedFor => HeaderName::from_static("x-forwarded-for"),
            ForwardedHeader::Forwarded => header::FORWARDED,
        };
        let values: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?")).collect();
        for hop in values.iter().rev().flat_map(|value| value.rsplit(',')) {
            let address = match self.header {
                ForwardedHeader::XForwardedFor => address(hop.trim()),
                ForwardedHeader::Forwarded => forwarded_for(hop),
            };
            // What can't be read was written by the proxy that is named so far, or passed on by it: it stands for both.
            let Some(address) = address else { break };
            nearest = address;
            if !self.trusts(nearest) {
                break;
            }
        }
        nearest
    }
}

/// An address, with or without brackets and port.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(text, |(bare, _)| bare);
    let parsed = bare.parse().ok().or_else(|| bare.rsplit_once(':')?.0.parse().ok().filter(IpAddr::is_ipv4));
    parsed.map(|address: IpAddr| address.to_canonical())
}

/// The `for` of one element (RFC 7239 section 4).
fn forwarded_for(element: &str) -> Option<IpAddr> {
    let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
    let (_, value) = pairs.into_iter().find(|(name, _)| name.trim().eq_ignore_ascii_case("for"))?;
    address(value.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn client(header: ForwardedHeader, peer: &str, values: &[&'static str]) -> String {
        let proxies = Proxies::new(&["10.0.0.0/8".into(), "fd00::/8".into(), "192.0.2.7".into()], header);
        let mut headers = HeaderMap::new();
        for value in values {
            let name = if header == ForwardedHeader::Forwarded { "forwarded" } else { "x-forwarded-for" };
            headers.append(name, HeaderValue::from_static(value));
        }
        proxies.client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn the_last_address_before_the_trusted_proxies_counts() {
        let of = |peer, values| client(ForwardedHeader::XForwardedFor, peer, values);
        assert_eq!(of("203.0.113.1", &["198.51.100.9"]), "203.0.113.1", "nobody's word but a trusted proxy's");
        assert_eq!(of("10.0.0.1", &[]), "10.0.0.1");
        assert_eq!(of("10.0.0.1", &["198.51.100.9"]), "198.51.100.9");
        assert_eq!(of("::ffff:10.0.0.1", &["198.51.100.9"]), "198.51.100.9");
        assert_eq!(of("10.0.0.1", &["1.2.3.4, 198.51.100.9"]), "198.51.100.9", "the left part is the client's own");
        assert_eq!(of("10.0.0.1", &["198.51.100.9, 10.9.9.9, 192.0.2.7"]), "198.51.100.9");
        assert_eq!(of("10.0.0.1", &["198.51.100.9", "10.9.9.9"]), "198.51.100.9", "several lines are one list");
        assert_eq!(of("10.0.0.1", &["10.1.1.1, 10.2.2.2"]), "10.1.1.1");
        assert_eq!(of("10.0.0.1", &["198.51.100.9, nonsense, 10.2.2.2"]), "10.2.2.2");
        assert_eq!(of("192.0.2.8", &["198.51.100.9"]), "192.0.2.8", "one address is one address");
        assert_eq!(of("fd12::1", &["[2001:db8::1]:4711"]), "2001:db8::1");
        assert_eq!(of("10.0.0.1", &["198.51.100.9:4711"]), "198.51.100.9");
    }

    #[test]
    fn forwarded_is_read_where_it_is_the_header_that_the_proxy_writes() {
        let of = |values| client(ForwardedHeader::Forwarded, "10.0.0.1", values);
        assert_eq!(of(&["for=198.51.100.9;proto=https;by=10.0.0.1"]), "198.51.100.9");
        assert_eq!(of(&["for=1.2.3.4, proto=https;For=\"[2001:db8::1]:4711\""]), "2001:db8::1");
        assert_eq!(of(&["for=_hidden"]), "10.0.0.1");
    }
}
