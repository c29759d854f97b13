//! Files of API keys, as services read and `steer keys` writes them.

use std::time::SystemTime;

use prost_types::Timestamp;
use serde::{Deserialize, Serialize};

use super::Scope;

/// Most keys of one file; a request is compared with all of them.
const KEYS_MAX: usize = 10_000;
/// Longest name of a key.
const ID_LEN_MAX: usize = 64;

/// One line of a file of API keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyEntry {
    /// Whose it is; in logs, never in metrics.
    pub id: String,
    /// SHA-256 of the key, in hex.
    pub sha256: String,
    /// What it allows, at least one.
    pub scopes: Vec<Scope>,
    /// From when on it is refused (RFC 3339); absent = never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<String>,
    /// Requests per minute, at least 1; absent = any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Requests that run at the same time, at least 1; absent = any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrent_requests: Option<u32>,
}

/// The keys of a file: one JSON object per line; empty lines and lines that begin with `#`
/// are left out.
///
/// # Errors
/// If a line is not a key, or an id is used twice; the message has the line's number.
pub fn key_entries(file: &[u8]) -> Result<Vec<KeyEntry>, String> {
    let text = std::str::from_utf8(file).map_err(|_| "is not UTF-8".to_owned())?;
    let mut entries: Vec<KeyEntry> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = |error: String| format!("line {}: {error}", number + 1);
        let entry: KeyEntry = serde_json::from_str(line).map_err(|e| at(e.to_string()))?;
        entry.check().map_err(at)?;
        if entries.iter().any(|other| other.id == entry.id) {
            return Err(at(format!("id: {:?} is used twice", entry.id)));
        }
        if entries.len() == KEYS_MAX {
            return Err(at(format!("there are more than {KEYS_MAX} keys")));
        }
        entries.push(entry);
    }
    Ok(entries)
}

impl KeyEntry {
    /// Refuses what no service would take; the message begins with the field.
    ///
    /// # Errors
    /// If a field is not as it must be.
    pub fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
        let id = &self.id;
        if id.is_empty() || id.len() > ID_LEN_MAX || !id.chars().all(plain) {
            return Err(format!(
                "id: is {id:?}; must be 1 to {ID_LEN_MAX} letters, digits, '.', '_', '-' or '@'"
            ));
        }
        if self.scopes.is_empty() {
            return Err("scopes: is empty; a key without a scope is good for nothing".to_owned());
        }
        let quotas = [
            ("requests_per_minute", self.requests_per_minute),
            ("concurrent_requests", self.concurrent_requests),
        ];
        for (name, quota) in quotas {
            if quota == Some(0) {
                return Err(format!("{name}: is 0; must be at least 1, or left out"));
            }
        }
        self.expiry()?;
        self.digest().map(drop)
    }

    /// From when on it is refused.
    ///
    /// # Errors
    /// If `expires` is no time.
    pub fn expiry(&self) -> Result<Option<SystemTime>, String> {
        let Some(text) = &self.expires else {
            return Ok(None);
        };
        let time: Option<Timestamp> = text.parse().ok();
        let time = time.and_then(|time| time.try_into().ok());
        time.map(Some).ok_or_else(|| {
            format!("expires: is {text:?}; must be a time such as \"2027-01-31T00:00:00Z\"")
        })
    }

    /// The key's SHA-256.
    ///
    /// # Errors
    /// If `sha256` is none.
    pub fn digest(&self) -> Result<[u8; 32], String> {
        digest(&self.sha256).ok_or_else(|| {
            "sha256: must be 64 hexadecimal digits, as `steer keys new` prints them".to_owned()
        })
    }
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
    use super::super::{hex, key_digest};
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

    #[test]
    fn lines_are_keys_and_comments() {
        let text = format!(
            "# ours\n\n{}\n  {}\n",
            line(|_| {}),
            line(|e| e.id = "b".to_owned())
        );
        let entries = key_entries(text.as_bytes()).expect("keys");
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1].digest(), Ok(key_digest("secret")));
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
            let error = key_entries(text.as_bytes()).expect_err(&text);
            assert!(error.contains(blamed), "{text}: {error}");
        }
        assert!(key_entries(b"\xff").is_err());
    }
}
