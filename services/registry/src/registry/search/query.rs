//! What is asked for, and how well a label answers.

use serde::{Deserialize, Serialize};

use crate::store::words;

/// Letters from which a word of the query is looked for within words.
const PART_LETTERS_MIN: usize = 3;

/// Kinds of matches, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Match {
    /// The label is the query, but for case.
    Exact,
    /// The label starts with the query.
    Prefix,
    /// Every word of the query starts a word of the label.
    Words,
    /// Every word of the query is in a word of the label; if it has fewer than three
    /// letters, it starts one.
    Part,
    /// Every word of the query is a word of the label but for typing errors, or starts
    /// one. Only where nothing else matches.
    Near,
}

impl Match {
    /// All kinds, best first.
    pub const ALL: [Self; 5] = [
        Self::Exact,
        Self::Prefix,
        Self::Words,
        Self::Part,
        Self::Near,
    ];

    /// Whether a word of a query can mean a word of a label, in matches of this kind.
    pub(super) fn means(self, asked: &str, word: &str) -> bool {
        word.starts_with(asked)
            || match self {
                Self::Exact | Self::Prefix | Self::Words => false,
                Self::Part => {
                    asked.chars().nth(PART_LETTERS_MIN - 1).is_some() && word.contains(asked)
                }
                Self::Near => typos(asked, word).is_some(),
            }
    }
}

/// Typing errors allowed in a word.
pub(super) fn typos_max(asked: &str) -> usize {
    match asked.chars().count() {
        0..4 => 0,
        4..8 => 1,
        _ => 2,
    }
}

/// Typing errors that make one word of the other, if they are not too many: a letter too
/// few or too many, a wrong one, two swapped.
pub(super) fn typos(asked: &str, word: &str) -> Option<usize> {
    let typos = strsim::osa_distance(asked, word);
    (typos <= typos_max(asked)).then_some(typos)
}

/// A text to look for.
pub(super) struct Query {
    text: String,
    words: Vec<String>,
}

impl Query {
    /// Of a text in lower case.
    pub(super) fn new(folded: &str) -> Self {
        let mut words: Vec<String> = words(folded).map(str::to_owned).collect();
        words.sort_unstable();
        words.dedup();
        Self {
            text: folded.to_owned(),
            words,
        }
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn words(&self) -> &[String] {
        &self.words
    }

    /// The best kind of match with a label in lower case.
    pub(super) fn best(&self, folded: &str) -> Option<Match> {
        if folded == self.text {
            return Some(Match::Exact);
        }
        if folded.starts_with(&self.text) {
            return Some(Match::Prefix);
        }
        if self.words.is_empty() {
            return None;
        }
        let of_label: Vec<&str> = words(folded).collect();
        [Match::Words, Match::Part, Match::Near]
            .into_iter()
            .find(|kind| {
                self.words
                    .iter()
                    .all(|asked| of_label.iter().any(|word| kind.means(asked, word)))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_has_its_best_kind() {
        let query = Query::new("ball ga");
        for (label, expected) in [
            ("ball ga", Some(Match::Exact)),
            ("ball games", Some(Match::Prefix)),
            ("games with a ball", Some(Match::Words)),
            ("baseball games", Some(Match::Part)),
            ("bell games", Some(Match::Near)),
            ("blal games", Some(Match::Near)),
            ("ball tennis", None),
            ("baseball big", None),
        ] {
            assert_eq!(query.best(label), expected, "{label}");
        }
        assert_eq!(Query::new("%").best("100%"), None);
        assert_eq!(Query::new("a%").best("a%b"), Some(Match::Prefix));
    }

    #[test]
    fn long_words_may_have_two_typing_errors_and_short_ones_none() {
        for (asked, word, expected) in [
            ("cat", "cut", None),
            ("hokey", "hockey", Some(1)),
            ("hcokey", "hockey", Some(1)),
            ("hoke", "hockey", None),
            ("basktebll", "basketball", Some(2)),
            ("baskbll", "basketball", None),
            ("ärger", "arger", Some(1)),
        ] {
            assert_eq!(typos(asked, word), expected, "{asked} {word}");
        }
    }
}
