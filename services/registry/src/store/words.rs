//! Words of labels, and lists of the labels that have a word: the index that labels are
//! found by, whatever database keeps it.

use std::collections::HashMap;

/// Letters by which a word is known.
const WORD_LETTERS_MAX: usize = 32;
/// Bytes gathered before they are written.
const GATHERED_BYTES_MAX: usize = 48 << 20;
/// What a word takes besides its list.
const WORD_BYTES: usize = 100;

/// The words of a text in lower case: runs of letters and digits, by their first 32.
pub fn words(folded: &str) -> impl Iterator<Item = &str> {
    folded
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(|word| match word.char_indices().nth(WORD_LETTERS_MAX) {
            Some((end, _)) => &word[..end],
            None => word,
        })
}

/// Labels of one SAE that have a word.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Posting {
    /// The SAE.
    pub sae: i64,
    /// The word's id.
    pub word: i64,
    /// Smallest id.
    pub first: i64,
    /// The ids: distances from one to the next, the first's from itself.
    pub labels: Vec<u8>,
}

impl Posting {
    /// The ids.
    pub fn ids(&self) -> LabelIds<'_> {
        LabelIds {
            at: self.first,
            bytes: &self.labels,
        }
    }
}

/// Lists being made.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    lists: HashMap<Box<str>, List>,
    bytes: usize,
}

/// One word's list.
#[derive(Debug)]
pub(super) struct List {
    pub(super) first: i64,
    pub(super) labels: Vec<u8>,
    last: i64,
}

impl Gathered {
    /// Adds a label; ids must ascend.
    pub(super) fn add(&mut self, id: i64, folded: &str) {
        for word in words(folded) {
            let Some(list) = self.lists.get_mut(word) else {
                self.bytes += WORD_BYTES;
                let mut list = List {
                    first: id,
                    labels: Vec::new(),
                    last: id,
                };
                push_number(&mut list.labels, 0);
                self.lists.insert(word.into(), list);
                continue;
            };
            if list.last < id {
                let before = list.labels.len();
                push_number(&mut list.labels, id.abs_diff(list.last));
                self.bytes += list.labels.len() - before;
                list.last = id;
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lists.is_empty()
    }

    /// Whether it is time to write what there is.
    pub(super) fn is_full(&self) -> bool {
        self.bytes >= GATHERED_BYTES_MAX
    }

    /// All lists by word.
    pub(super) fn into_sorted(self) -> Vec<(Box<str>, List)> {
        let mut lists: Vec<_> = self.lists.into_iter().collect();
        lists.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        lists
    }
}

/// LEB128: seven bits a byte, lowest first.
pub fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Ids of labels, ascending. A damaged list ends early.
#[derive(Debug, Clone)]
pub struct LabelIds<'a> {
    at: i64,
    bytes: &'a [u8],
}

impl<'a> LabelIds<'a> {
    /// Reads distances, the first id's from 0.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { at: 0, bytes }
    }
}

impl Iterator for LabelIds<'_> {
    type Item = i64;

    fn next(&mut self) -> Option<i64> {
        // Most are near: lists of frequent words are read in full, this is what takes the time.
        if let Some((&byte, rest)) = self.bytes.split_first()
            && byte < 0x80
        {
            self.bytes = rest;
            self.at = self.at.checked_add(i64::from(byte))?;
            return Some(self.at);
        }
        let mut distance = 0_u64;
        for (i, &byte) in self.bytes.iter().enumerate().take(9) {
            distance |= u64::from(byte & 0x7f) << (7 * i);
            if byte < 0x80 {
                self.bytes = &self.bytes[i + 1..];
                self.at = self.at.checked_add_unsigned(distance)?;
                return Some(self.at);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_runs_of_letters_and_digits() {
        let found: Vec<_> = words("ice-hockey: the 2nd \"ärger\"_").collect();
        assert_eq!(found, ["ice", "hockey", "the", "2nd", "ärger"]);
        assert_eq!(words("% -").count(), 0);
        let long = "ü".repeat(40);
        assert_eq!(
            words(&long).next().map(|word| word.chars().count()),
            Some(32)
        );
    }

    #[test]
    fn lists_come_back_as_they_were_gathered() {
        let mut gathered = Gathered::default();
        let ids = [3, 4, 200, 20_000, 5_000_000_000];
        for id in ids {
            gathered.add(id, "a b a");
        }
        gathered.add(6_000_000_000, "b");
        let lists = gathered.into_sorted();
        assert_eq!(lists.len(), 2);
        for ((word, list), more) in lists.into_iter().zip([None, Some(6_000_000_000)]) {
            let posting = Posting {
                sae: 1,
                word: 1,
                first: list.first,
                labels: list.labels,
            };
            let found: Vec<_> = posting.ids().collect();
            let expected: Vec<_> = ids.into_iter().chain(more).collect();
            assert_eq!(found, expected, "{word}");
        }
    }

    #[test]
    fn a_damaged_list_ends() {
        let posting = Posting {
            sae: 1,
            word: 1,
            first: i64::MAX,
            labels: vec![0, 5, 0xff, 0xff],
        };
        assert_eq!(posting.ids().collect::<Vec<_>>(), [i64::MAX]);
    }
}
