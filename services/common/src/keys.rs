//! API keys: a file of hashes, and the check of a request's header against it.

use std::{path::PathBuf, time::SystemTime};

use http::{HeaderMap, HeaderValue, header::AUTHORIZATION};
use steering_proto::access::{Access, KeyEntry, Scope, key_digest, key_entries};
use subtle::ConstantTimeEq;

use crate::{
    refusal::Refusal,
    watch::{Latest, follow},
};

/// Longest key looked at.
const KEY_LEN_MAX: usize = 256;

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
    /// As [`key_entries`].
    pub(crate) fn parse(file: &[u8]) -> Result<Self, String> {
        let entries = key_entries(file)?.into_iter();
        Ok(Self(entries.map(Key::try_from).collect::<Result<_, _>>()?))
    }

    /// The key that a request shows.
    pub(crate) fn find(&self, headers: &HeaderMap) -> Result<&Key, Refusal> {
        let secret = bearer(headers)?;
        let digest = key_digest(secret);
        // Every key is compared, to its end: how long that takes tells nothing.
        let mut found = None;
        for key in &self.0 {
            if bool::from(key.digest.ct_eq(&digest)) {
                found = Some(key);
            }
        }
        found.ok_or(Refusal::UnknownKey)
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
    let key = ring.find(&headers);
    Ok(key.and_then(|key| key.check(Access::AnyKey)).is_ok())
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
    /// Whether it allows what is asked for, now.
    pub(crate) fn check(&self, access: Access) -> Result<(), Refusal> {
        if self.expires.is_some_and(|at| at <= SystemTime::now()) {
            return Err(Refusal::ExpiredKey);
        }
        match access {
            Access::Scope(scope) if !self.allows(scope) => Err(Refusal::MissingScope(scope)),
            Access::Open | Access::AnyKey | Access::Scope(_) => Ok(()),
        }
    }

    fn allows(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }
}

impl TryFrom<KeyEntry> for Key {
    type Error = String;

    fn try_from(entry: KeyEntry) -> Result<Self, String> {
        Ok(Self {
            digest: entry.digest()?,
            expires: entry.expiry()?,
            id: entry.id,
            scopes: entry.scopes,
            requests_per_minute: entry.requests_per_minute,
            concurrent_requests: entry.concurrent_requests,
        })
    }
}
