//! API keys: a file of hashes, and the check of a request's header against it.

use std::{path::PathBuf, time::SystemTime};

use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use prost_types::Timestamp;
use steering_proto::access::{Access, KeyEntry, Scope, key_digest};
use subtle::ConstantTimeEq;

use crate::{
    refusal::Refusal,
    watch::{Latest, follow},
};

/// Most keys of one file; a request is compared with all of them.
const KEYS_MAX: usize = 10_000;
/// Longest key looked at.
const KEY_LEN_MAX: usize = 256;
/// Longest name of a key.
const ID_LEN_MAX: usize = 64;

/// Keys that are let in.
#[derive(Debug, Default)]
pub(crate) struct KeyRing(Vec<Key>);

/// A key, without its secret.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) id: String,
    digest: [u8; 32],
    scopes: Vec<Scope>,
    expires: Option<SystemTime>,
    pub(crate) requests_per_minute: Option<u32>,
    pub(crate) concurrent_requests: Option<u32>,
}

/// The keys of a file, following it.
///
/// # Errors
/// If it cannot be read or a line is not a key.
pub(crate) fn configured(file: PathBuf) -> Result<Latest<KeyRing>, String> {
    follow(vec![file], |files| {
        KeyRing::parse(&files.concat()).map_err(|error| format!("--api-keys: {error}"))
    })
    .map_err(|error| {
        let named = error.starts_with("--");
        if named {
            error
        } else {
            format!("--api-keys: {error}")
        }
    })
}

impl KeyRing {
    /// One JSON object per line; empty lines and lines that begin with `#` are left out.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(text).map_err(|_| "is not UTF-8".to_owned())?;
        let mut keys: Vec<Key> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let at = |error: String| format!("line {}: {error}", number + 1);
            let entry: KeyEntry = serde_json::from_str(line).map_err(|e| at(e.to_string()))?;
            let key = Key::try_from(entry).map_err(at)?;
            if keys.iter().any(|other| other.id == key.id) {
                return Err(at(format!("id: {:?} is used twice", key.id)));
            }
            if keys.len() == KEYS_MAX {
                return Err(at(format!("there are more than {KEYS_MAX} keys")));
            }
            keys.push(key);
        }
        Ok(Self(keys))
    }

    /// The key that a request shows, if it allows what is asked for.
    pub(crate) fn check(&self, headers: &HeaderMap, access: Access) -> Result<&Key, Refusal> {
        let secret = bearer(headers)?;
        let digest = key_digest(secret);
        // Every key is compared, to its end: how long that takes tells nothing.
        let mut found = None;
        for key in &self.0 {
            if bool::from(key.digest.ct_eq(&digest)) {
                found = Some(key);
            }
        }
        let key = found.ok_or(Refusal::UnknownKey)?;
        if key.expires.is_some_and(|at| at <= SystemTime::now()) {
            return Err(Refusal::ExpiredKey);
        }
        match access {
            Access::Open | Access::AnyKey => Ok(key),
            Access::Scope(scope) if key.allows(scope) => Ok(key),
            Access::Scope(scope) => Err(Refusal::MissingScope(scope)),
        }
    }
}

/// Whether a file of keys lets in a request with this header: what a fuzz target tries.
///
/// # Errors
/// If the file has a line that is not a key.
pub fn admits(file: &[u8], authorization: &[u8]) -> Result<bool, String> {
    let ring = KeyRing::parse(file)?;
    let mut headers = HeaderMap::new();
    if let Ok(value) = HeaderValue::from_bytes(authorization) {
        headers.insert(AUTHORIZATION, value);
    }
    Ok(ring.check(&headers, Access::AnyKey).is_ok())
}

/// The secret of `authorization: Bearer SECRET`, which must be there once.
fn bearer(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Refusal::NoKey)?;
    if values.next().is_some() {
        return Err(Refusal::MalformedKey("it is there more than once"));
    }
    let not_text = Refusal::MalformedKey("it is not plain text");
    let text = value.to_str().map_err(|_| not_text)?;
    let (scheme, secret) = text
        .split_once(' ')
        .ok_or(Refusal::MalformedKey("it has no key behind \"Bearer \""))?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Refusal::MalformedKey("its scheme is not \"Bearer\""));
    }
    if secret.is_empty() || secret.len() > KEY_LEN_MAX || secret.contains(char::is_whitespace) {
        let text = "behind \"Bearer \" must be one key of at most 256 characters";
        return Err(Refusal::MalformedKey(text));
    }
    Ok(secret)
}

impl Key {
    fn allows(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
}

impl TryFrom<KeyEntry> for Key {
    type Error = String;

    fn try_from(entry: KeyEntry) -> Result<Self, String> {
        let KeyEntry {
            id,
            sha256,
            scopes,
            expires,
            requests_per_minute,
            concurrent_requests,
        } = entry;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
        if id.is_empty() || id.len() > ID_LEN_MAX || !id.chars().all(plain) {
            return Err(format!(
                "id: is {id:?}; must be 1 to {ID_LEN_MAX} letters, digits, '.', '_', '-' or '@'"
            ));
        }
        if scopes.is_empty() {
            return Err("scopes: is empty; a key without a scope is good for nothing".to_owned());
        }
        let quotas = [
            ("requests_per_minute", requests_per_minute),
            ("concurrent_requests", concurrent_requests),
        ];
        for (name, quota) in quotas {
            if quota == Some(0) {
                return Err(format!("{name}: is 0; must be at least 1, or left out"));
            }
        }
        let expires = expires.map(|text| expiry(&text)).transpose()?;
        Ok(Self {
            digest: digest(&sha256)
                .ok_or("sha256: must be 64 hexadecimal digits, as `steer keys new` prints them")?,
            id,
            scopes,
            expires,
            requests_per_minute,
            concurrent_requests,
        })
    }
}

fn expiry(text: &str) -> Result<SystemTime, String> {
    let time: Option<Timestamp> = text.parse().ok();
    time.and_then(|time| time.try_into().ok()).ok_or_else(|| {
        format!("expires: is {text:?}; must be a time such as \"2027-01-31T00:00:00Z\"")
    })
}

fn digest(hex: &str) -> Option<[u8; 32]> {
    let digits = hex.as_bytes();
    if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let pair = std::str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use steering_proto::access::hex;

    use super::*;

    fn line(change: impl FnOnce(&mut KeyEntry)) -> String {
        let mut entry = KeyEntry {
            id: "a".to_owned(),
            sha256: hex(&key_digest("secret")),
            scopes: vec![Scope::Generate],
            expires: None,
            requests_per_minute: None,
            concurrent_requests: None,
        };
        change(&mut entry);
        serde_json::to_string(&entry).expect("JSON")
    }

    fn error_of(text: &str) -> String {
        KeyRing::parse(text.as_bytes()).expect_err(text)
    }

    #[test]
    fn lines_are_keys_and_comments() {
        let text = format!(
            "# ours\n\n{}\n  {}\n",
            line(|_| {}),
            line(|e| e.id = "b".to_owned())
        );
        let ring = KeyRing::parse(text.as_bytes()).expect("keys");
        assert_eq!(ring.0.len(), 2);
        assert_eq!(ring.0[1].digest, key_digest("secret"));
    }

    #[test]
    fn what_is_no_key_is_named() {
        let cases = [
            (line(|e| e.id = String::new()), "line 1: id"),
            (line(|e| e.id = "a b".to_owned()), "line 1: id"),
            (line(|e| e.sha256 = "12".to_owned()), "sha256"),
            (line(|e| e.sha256 = "é".repeat(32)), "sha256"),
            (line(|e| e.scopes.clear()), "scopes"),
            (line(|e| e.expires = Some("tomorrow".to_owned())), "expires"),
            (
                line(|e| e.requests_per_minute = Some(0)),
                "requests_per_minute",
            ),
            (
                line(|e| e.concurrent_requests = Some(0)),
                "concurrent_requests",
            ),
            (line(|_| {}).replace("generate", "everything"), "everything"),
            (line(|_| {}).replace("\"id\"", "\"name\""), "name"),
            (format!("{}\n{}", line(|_| {}), line(|_| {})), "line 2: id"),
            ("steer_0123".to_owned(), "line 1"),
        ];
        for (text, blamed) in cases {
            let error = error_of(&text);
            assert!(error.contains(blamed), "{text}: {error}");
        }
        assert!(KeyRing::parse(b"\xff").is_err());
    }
}
