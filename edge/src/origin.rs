//! Which pages may open a socket. A browser names the page's origin; anything else names none. Pure.

use axum::http::{HeaderMap, header};

use crate::config::Scheme;

/// Whether a request comes from a page of its own origin, from one on the list, or from no page at all. Compared as
/// whole strings (RFC 6454 section 5): no prefix, suffix or pattern is ever enough.
pub(crate) fn allowed(headers: &HeaderMap, scheme: Scheme, list: &[String]) -> bool {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let (origin, more) = (origins.next(), origins.next());
    let Some(origin) = origin else { return true };
    let (Ok(origin), None) = (origin.to_str(), more) else { return false };
    if list.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin)) {
        return true;
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(Ok(host)), None) = (hosts.next().map(|host| host.to_str()), hosts.next()) else { return false };
    let own = origin.strip_prefix(scheme.as_str()).and_then(|rest| rest.strip_prefix("://"));
    !host.is_empty() && own.is_some_and(|own| own.eq_ignore_ascii_case(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(origin: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "chat.example.org:8080".parse().expect("a header"));
        headers.insert(header::ORIGIN, origin.parse().expect("a header"));
        allowed(&headers, Scheme::Http, &["https://app.example.org".to_owned()])
    }

    #[test]
    fn no_page_its_own_page_and_a_listed_page_may() {
        assert!(allowed(&HeaderMap::new(), Scheme::Http, &[]));
        assert!(from("http://chat.example.org:8080"));
        assert!(from("http://Chat.Example.org:8080"));
        assert!(from("https://app.example.org"));
    }

    #[test]
    fn look_alikes_may_not() {
        for origin in [
            "null",
            "",
            "http://",
            "https://chat.example.org:8080",
            "http://chat.example.org",
            "http://chat.example.org:80801",
            "http://chat.example.org:808",
            "http://evil-chat.example.org:8080",
            "http://chat.example.org:8080.evil.example",
            "http://chat.example.org:8080/",
            "http://chat.example.org:8080@evil.example",
            "http://user@chat.example.org:8080",
            "chat.example.org:8080",
            "http://app.example.org",
            "https://app.example.org:443",
            "https://app.example.org.evil.example",
            "https://sub.app.example.org",
            "*",
        ] {
            assert!(!from(origin), "{origin:?}");
        }
    }

    #[test]
    fn two_origins_are_none_and_without_a_host_there_is_no_own_origin() {
        let mut headers = HeaderMap::new();
        headers.append(header::ORIGIN, "http://a.example".parse().expect("a header"));
        assert!(!allowed(&headers, Scheme::Http, &[]));
        headers.append(header::HOST, "a.example".parse().expect("a header"));
        assert!(allowed(&headers, Scheme::Http, &[]));
        headers.append(header::ORIGIN, "http://evil.example".parse().expect("a header"));
        assert!(!allowed(&headers, Scheme::Http, &[]));
    }

    #[test]
    fn behind_tls_the_own_origin_is_https() {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "chat.example.org".parse().expect("a header"));
        headers.insert(header::ORIGIN, "https://chat.example.org".parse().expect("a header"));
        assert!(allowed(&headers, Scheme::Https, &[]));
        assert!(!allowed(&headers, Scheme::Http, &[]));
    }
}
