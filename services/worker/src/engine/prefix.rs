//! Keys and values of prompts that were read before, for prompts that begin in
//! the same way.
//!
//! What is shared is decided by a chain of hashes: the hash at position p covers
//! every token before p *and* what was done to it. Two sequences with the same
//! hash have the same keys and values, bit for bit, so steering cannot leak: a
//! beginning that was edited in any other way has another hash.

use sha2::{Digest, Sha256};
use steering_proto::intervention::Token;

use crate::{
    model::KvSnapshot,
    steering::{Program, SteeringMemory},
};

/// Beginnings shorter than this are computed again.
const MIN_TOKENS: usize = 8;

/// Hash of the first p tokens and what was done to them, for p = 0, 1, …
#[derive(Debug, Clone)]
pub(super) struct Chain {
    hashes: Vec<[u8; 32]>,
}

impl Default for Chain {
    fn default() -> Self {
        Self {
            hashes: vec![[0; 32]],
        }
    }
}

impl Chain {
    /// Tokens covered.
    pub(super) fn len(&self) -> usize {
        self.hashes.len() - 1
    }

    /// Forgets all but the first `len` tokens.
    pub(super) fn truncate(&mut self, len: usize) {
        self.hashes.truncate(len + 1);
    }

    /// Adds a token under a program.
    pub(super) fn push(&mut self, program: &Program, token: Token) {
        let mut hasher = Sha256::new_with_prefix(self.hashes[self.len()]);
        hasher.update(token.id.to_le_bytes());
        program.hash_token(token, &mut hasher);
        self.hashes.push(hasher.finalize().into());
    }

    /// Length of the longest common beginning. Hashes of a chain are equal up
    /// to it and differ behind it.
    fn common(&self, other: &Self) -> usize {
        let pairs = self.hashes.iter().zip(&other.hashes);
        let differ = |&i: &usize| self.hashes[i] != other.hashes[i];
        let most = pairs.len() - 1;
        // Most entries share nothing, or all there is.
        if !differ(&most) {
            return most;
        }
        let (mut same, mut other_side) = (0, most);
        while other_side - same > 1 {
            let middle = usize::midpoint(same, other_side);
            if differ(&middle) {
                other_side = middle;
            } else {
                same = middle;
            }
        }
        same
    }
}

/// A beginning that was read before.
#[derive(Debug)]
pub(super) struct Prefix {
    pub(super) chain: Chain,
    pub(super) cache: KvSnapshot,
    pub(super) memory: SteeringMemory,
}

/// Beginnings, least recently used first, within a bound of bytes.
#[derive(Debug)]
pub(super) struct PrefixCache {
    entries: Vec<Prefix>,
    max_bytes: usize,
}

impl PrefixCache {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            entries: Vec::new(),
            max_bytes,
        }
    }

    /// Bytes of keys and values held.
    pub(super) fn bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.cache.bytes()).sum()
    }

    /// The entry with the longest beginning of `chain`, `at_most` tokens long,
    /// and its length.
    pub(super) fn find(&mut self, chain: &Chain, at_most: usize) -> Option<(usize, &Prefix)> {
        let usable = |entry: &Prefix| {
            let len = entry.chain.common(chain).min(at_most);
            (len >= MIN_TOKENS && entry.cache.covers(len)).then_some(len)
        };
        let (index, len) = self
            .entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| usable(entry).map(|len| (index, len)))
            .max_by_key(|&(_, len)| len)?;
        let entry = self.entries.remove(index);
        self.entries.push(entry);
        self.entries.last().map(|entry| (len, entry))
    }

    /// Whether a chain's first `len` tokens can be had already.
    pub(super) fn has(&self, chain: &Chain, len: usize) -> bool {
        let mut entries = self.entries.iter();
        entries.any(|entry| entry.chain.common(chain) >= len && entry.cache.covers(len))
    }

    /// Keeps a beginning, and drops those it makes superfluous, and the least
    /// recently used ones above the bound.
    pub(super) fn insert(&mut self, prefix: Prefix) {
        if prefix.chain.len() < MIN_TOKENS || prefix.cache.bytes() > self.max_bytes {
            return;
        }
        self.entries.retain(|old| {
            let len = old.chain.len();
            let superfluous = old.chain.common(&prefix.chain) == len && prefix.cache.covers(len);
            !superfluous
        });
        self.entries.push(prefix);
        while self.bytes() > self.max_bytes {
            self.entries.remove(0);
        }
    }
}
