//! Which names, addresses and passwords an account may have, and how names are derived. Pure.

use schemas::{Timestamp, UserId};
use store::accounts::{Account, Profile};

use crate::auth::password::{PASSWORD_MAX_BYTES, PASSWORD_MIN_CHARS};
use crate::error::{Error, Result};

/// Shortest and longest username and handle, characters.
pub(crate) const NAME_CHARS: std::ops::RangeInclusive<usize> = 3..=32;
/// Longest display name, characters.
pub(crate) const DISPLAY_NAME_MAX_CHARS: usize = 100;
/// Longest e-mail address, bytes (RFC 5321 section 4.5.3.1.3 less its angle brackets).
pub(crate) const EMAIL_MAX_BYTES: usize = 254;

/// An account without e-mail address and password.
pub(crate) fn new(id: UserId, username: String, display_name: String, now: Timestamp) -> Account {
    let profile = Profile { display_name, ..Profile::default() };
    Account { id, username, email: None, password_hash: None, profile, created_at: now, last_seen: None }
}

/// A username as it is kept: lower case; letters, digits, `-`, `_`, and inside also `.`.
pub(crate) fn username(text: &str) -> Result<String> {
    let name = text.to_ascii_lowercase();
    let inside = name.trim_matches('.').len() == name.len();
    if NAME_CHARS.contains(&name.len()) && inside && name.bytes().all(|b| is_name_byte(b) || b == b'.') {
        Ok(name)
    } else {
        Err(Error::invalid("username", "3 to 32 letters a-z, digits, hyphens, underscores or, inside, dots"))
    }
}

/// A handle as it is kept, without its `@`.
pub(crate) fn handle(text: &str) -> Result<String> {
    if NAME_CHARS.contains(&text.len()) && text.bytes().all(is_name_byte) {
        Ok(text.to_owned())
    } else {
        Err(Error::invalid("handle", "3 to 32 lower-case letters a-z, digits, hyphens or underscores"))
    }
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_')
}

/// An e-mail address as it is kept: lower case. Whether it exists only a message to it could tell.
pub(crate) fn email(text: &str) -> Result<String> {
    let address = text.trim().to_lowercase();
    let sound = address.len() <= EMAIL_MAX_BYTES
        && !address.contains(|c: char| c.is_whitespace() || c.is_control())
        && address.rsplit_once('@').is_some_and(|(local, domain)| {
            let inside = !domain.starts_with('.') && !domain.ends_with('.');
            !local.is_empty() && !domain.is_empty() && inside && !local.contains('@')
        });
    if sound { Ok(address) } else { Err(Error::invalid("email", "not an e-mail address")) }
}

/// A password that may be set.
pub(crate) fn password(text: String) -> Result<String> {
    if text.len() > PASSWORD_MAX_BYTES {
        Err(Error::invalid("password", "at most 1,024 bytes"))
    } else if text.chars().count() < PASSWORD_MIN_CHARS {
        Err(Error::invalid("password", "at least 8 characters"))
    } else {
        Ok(text)
    }
}

/// A text of people: no control characters, at most so long.
pub(crate) fn text(at: &str, text: &str, max_chars: usize) -> Result<String> {
    if text.chars().count() > max_chars {
        return Err(Error::invalid(at, format!("at most {max_chars} characters")));
    }
    if text.contains(|c: char| c.is_control() && c != '\n') {
        return Err(Error::invalid(at, "no control characters"));
    }
    Ok(text.trim().to_owned())
}

/// A display name that another issuer gives; `None` where it can't be one.
pub(crate) fn display_name(wish: &str) -> Option<String> {
    text("name", wish, DISPLAY_NAME_MAX_CHARS).ok().filter(|name| !name.is_empty())
}

/// A username after what someone is called elsewhere: an e-mail address's local part, a name.
pub(crate) fn derived_username(wish: &str) -> String {
    let local = wish.split('@').next().unwrap_or_default().to_ascii_lowercase();
    let mapped = local.chars().map(|c| if c.is_ascii() && is_name_byte(c as u8) || c == '.' { c } else { '-' });
    let mapped: String = mapped.take(*NAME_CHARS.end()).collect();
    let name = mapped.trim_matches(['-', '.']);
    if name.len() < *NAME_CHARS.start() {
        format!("user-{name}").trim_end_matches('-').to_owned()
    } else {
        name.to_owned()
    }
}

/// A username with an ending that makes it unique.
pub(crate) fn suffixed(base: &str, ending: &str) -> String {
    let ending = &ending[..ending.len().min(*NAME_CHARS.end())];
    let room = NAME_CHARS.end().saturating_sub(ending.len() + 1);
    match base[..base.len().min(room)].trim_end_matches(['-', '.']) {
        "" => ending.to_owned(),
        kept => format!("{kept}-{ending}"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::*;

    #[test]
    fn handles_are_lower_case_and_short() {
        for good in ["abc", "a-b_c", "123", &"x".repeat(32)] {
            assert_eq!(handle(good).as_deref(), Ok(good));
        }
        for bad in ["ab", "", "Abc", "a.b.c", "@abc", "a b", "äbc", &"x".repeat(33)] {
            assert!(handle(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses_have_one_at_sign_and_two_sides() {
        assert_eq!(email(" Ada@Example.ORG ").as_deref(), Ok("ada@example.org"));
        for bad in ["", "@", "ada", "ada@", "@example.org", "a b@example.org", "a@b@c", "ada@.org", "ada@org."] {
            assert!(email(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_derived_from_addresses() {
        assert_eq!(derived_username("Ada.Lovelace+x@example.org"), "ada.lovelace-x");
        assert_eq!(derived_username("é"), "user");
        assert_eq!(derived_username("al@example.org"), "user-al");
        assert_eq!(suffixed("ada", "0f3a"), "ada-0f3a");
    }

    proptest! {
        #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]
        #[test]
        fn every_derived_name_is_valid(wish in any::<String>(), ending in "[0-9a-f]{4,32}") {
            let base = derived_username(&wish);
            assert_eq!(username(&base).ok(), Some(base.clone()));
            let unique = suffixed(&base, &ending);
            assert_eq!(username(&unique).ok(), Some(unique));
        }
    }
}
