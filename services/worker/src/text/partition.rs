//! Cutting the special tokens out of a text, before anything is tokenised.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
};

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fragment {
    /// Ordinary text, as a byte range.
    Text(Range<usize>),
    /// A token that stood in the text.
    Token(u32),
}

/// The tokens that are found in a text as they are written. The longest are
/// cut out first, wherever they stand, then the next shorter, as llama.cpp
/// does.
#[derive(Debug, Default)]
pub(super) struct Partition {
    by_length: BTreeMap<usize, HashMap<Box<[u8]>, u32>>,
    /// Lengths of the tokens that start with each byte: most bytes start none.
    first_bytes: HashMap<u8, usize>,
}

impl Partition {
    /// Adds a token; of two with one text the first stays.
    pub(super) fn insert(&mut self, text: &str, id: u32) {
        let Some(&first) = text.as_bytes().first() else {
            return;
        };
        *self.first_bytes.entry(first).or_default() += 1;
        self.by_length
            .entry(text.len())
            .or_default()
            .entry(text.as_bytes().into())
            .or_insert(id);
    }

    /// Cuts a text.
    pub(super) fn split(&self, text: &str) -> Vec<Fragment> {
        if text.is_empty() {
            return Vec::new();
        }
        let mut fragments = vec![Fragment::Text(0..text.len())];
        let bytes = text.as_bytes();
        if !bytes.iter().any(|byte| self.first_bytes.contains_key(byte)) {
            return fragments;
        }
        let starts: [bool; 256] =
            std::array::from_fn(|byte| self.first_bytes.contains_key(&(byte as u8)));
        for (&length, tokens) in self.by_length.iter().rev() {
            if length > bytes.len() {
                continue;
            }
            let mut next = Vec::with_capacity(fragments.len());
            for fragment in fragments {
                match fragment {
                    Fragment::Text(range) => cut(bytes, range, length, tokens, &starts, &mut next),
                    token @ Fragment::Token(_) => next.push(token),
                }
            }
            fragments = next;
        }
        fragments
    }
}

fn cut(
    bytes: &[u8],
    range: Range<usize>,
    length: usize,
    tokens: &HashMap<Box<[u8]>, u32>,
    starts: &[bool; 256],
    out: &mut Vec<Fragment>,
) {
    let mut text_start = range.start;
    let mut at = range.start;
    while at + length <= range.end {
        let found = if starts[usize::from(bytes[at])] {
            tokens.get(&bytes[at..at + length])
        } else {
            None
        };
        match found {
            None => at += 1,
            Some(&id) => {
                if text_start < at {
                    out.push(Fragment::Text(text_start..at));
                }
                out.push(Fragment::Token(id));
                at += length;
                text_start = at;
            }
        }
    }
    if text_start < range.end {
        out.push(Fragment::Text(text_start..range.end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_tokens_go_first() {
        let mut partition = Partition::default();
        for (id, text) in ["<s>", "\n\n", "\n\n\n", "<s><s>", ""].iter().enumerate() {
            partition.insert(text, id as u32);
        }
        let text = "a<s><s><s>\n\n\n\n\né";
        assert_eq!(
            partition.split(text),
            [
                Fragment::Text(0..1),
                Fragment::Token(3),
                Fragment::Token(0),
                Fragment::Token(2),
                Fragment::Token(1),
                Fragment::Text(15..17),
            ]
        );
        assert!(partition.split("").is_empty());
        assert_eq!(partition.split("é"), [Fragment::Text(0..2)]);
    }
}
