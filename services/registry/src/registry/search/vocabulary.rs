//! All words of all labels, in memory: there are few, as labels repeat them.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::Mutex;

use super::query::{Match, typos, typos_max};
use crate::{error::Result, store::LabelReader};

/// Words held. Labels are not found by words beyond these.
const WORDS_MAX: usize = 4 << 20;
/// Words read at once.
const WORDS_READ: u32 = 50_000;
/// Words that one word of a query may mean for labels to be looked up by it.
const MEANT_MAX: usize = 500;

/// The words, as far as they were read.
#[derive(Debug, Clone, Default)]
pub(super) struct Vocabulary {
    /// By text.
    words: Vec<Word>,
    /// Largest id.
    last: i64,
}

/// What the words of a query mean.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Meant {
    /// Ids of the words that are meant, for each word of the query that labels are looked up by. A
    /// word that means too many is not among these, and is left to the look at each label.
    pub(super) words: Vec<Vec<i64>>,
    /// Whether there are labels that these do not lead to: all words of the query mean too many,
    /// and the one that starts the fewest is taken for the first that it means.
    pub(super) cut: bool,
}

/// With what tells quickly that it is not meant.
#[derive(Debug, Clone)]
struct Word {
    text: Arc<str>,
    id: i64,
    letters: u64,
    /// How many letters.
    len: usize,
}

/// Which letters a word has, as bits; different letters may share one.
fn letters(word: &str) -> u64 {
    word.chars()
        .fold(0, |bits, letter| bits | 1 << (u32::from(letter) & 63))
}

impl Vocabulary {
    fn add(&mut self, words: Vec<(i64, String)>) {
        self.words.extend(words.into_iter().map(|(id, text)| {
            self.last = self.last.max(id);
            Word {
                letters: letters(&text),
                len: text.chars().count(),
                text: text.into(),
                id,
            }
        }));
        // What was there is sorted already, which this makes use of.
        self.words.sort_by(|a, b| a.text.cmp(&b.text));
    }

    /// What the words of a query mean. None if one means nothing, or all mean no more than in
    /// better kinds of matches.
    pub(super) fn meant(&self, kind: Match, asked: &[String]) -> Option<Meant> {
        let mut gains = kind == Match::Words;
        let mut words = Vec::with_capacity(asked.len());
        let mut too_many = Vec::new();
        for asked in asked {
            let starting = self.starting(asked);
            let ids = starting.iter().take(MEANT_MAX + 1).map(|word| word.id);
            let mut ids: Vec<i64> = ids.collect();
            let others = match kind {
                Match::Exact | Match::Prefix | Match::Words => Vec::new(),
                Match::Part => self.containing(asked),
                Match::Near => self.near(asked),
            };
            gains |= !others.is_empty();
            ids.extend(others);
            match ids.len() {
                0 => return None,
                1..=MEANT_MAX => words.push(ids),
                _ => too_many.push((starting.len(), ids)),
            }
        }
        // Words beyond those that are held lead to labels, too.
        let mut cut = self.words.len() >= WORDS_MAX;
        let fewest = too_many.into_iter().min_by_key(|(starting, _)| *starting);
        if words.is_empty()
            && let Some((_, mut ids)) = fewest
        {
            ids.truncate(MEANT_MAX);
            words.push(ids);
            cut = true;
        }
        (gains && !words.is_empty()).then_some(Meant { words, cut })
    }

    fn starting(&self, asked: &str) -> &[Word] {
        let start = self.words.partition_point(|word| &*word.text < asked);
        let from = &self.words[start..];
        &from[..from.partition_point(|word| word.text.starts_with(asked))]
    }

    /// Words that contain it, but do not start with it.
    fn containing(&self, asked: &str) -> Vec<i64> {
        let wanted = letters(asked);
        self.words
            .iter()
            .filter(|word| word.letters & wanted == wanted)
            .filter(|word| !word.text.starts_with(asked) && Match::Part.means(asked, &word.text))
            .take(MEANT_MAX + 1)
            .map(|word| word.id)
            .collect()
    }

    /// Words with the fewest typing errors, if not too many; the word itself has none.
    fn near(&self, asked: &str) -> Vec<i64> {
        let most = typos_max(asked);
        if most == 0 {
            return Vec::new();
        }
        let (wanted, len) = (letters(asked), asked.chars().count());
        let found: Vec<(usize, i64)> = self
            .words
            .iter()
            // A typing error changes two letters at most.
            .filter(|word| (word.letters ^ wanted).count_ones() as usize <= 2 * most)
            .filter(|word| word.len.abs_diff(len) <= most)
            .filter_map(|word| Some((typos(asked, &word.text)?, word.id)))
            .collect();
        let fewest = found.iter().map(|&(typos, _)| typos).min();
        found
            .into_iter()
            .filter(|&(typos, _)| Some(typos) == fewest && typos > 0)
            .map(|(_, id)| id)
            .collect()
    }
}

/// The vocabulary that searches use, brought up to date by each.
#[derive(Debug, Default)]
pub(in crate::registry) struct SharedVocabulary {
    current: RwLock<Arc<Vocabulary>>,
    /// Held by who reads new words.
    reading: Mutex<()>,
}

impl SharedVocabulary {
    /// With all words that the store has now.
    pub(super) async fn get(&self, reader: &mut dyn LabelReader) -> Result<Arc<Vocabulary>> {
        let known = self.current();
        if !Self::has_more(&known, reader).await? {
            return Ok(known);
        }
        let _reading = self.reading.lock().await;
        let mut vocabulary = (*self.current()).clone();
        while Self::has_more(&vocabulary, reader).await? {
            vocabulary.add(reader.vocabulary(vocabulary.last, WORDS_READ).await?);
        }
        let vocabulary = Arc::new(vocabulary);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&vocabulary);
        Ok(vocabulary)
    }

    fn current(&self) -> Arc<Vocabulary> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn has_more(known: &Vocabulary, reader: &mut dyn LabelReader) -> Result<bool> {
        Ok(known.words.len() < WORDS_MAX && !reader.vocabulary(known.last, 1).await?.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_what_they_start_contain_or_miss_by_a_letter() {
        let mut vocabulary = Vocabulary::default();
        let words = ["hockey", "ball", "baseball", "ballroom", "balls", "hookey"];
        let ids = (1..).zip(words.map(str::to_owned));
        vocabulary.add(ids.collect());
        vocabulary.add(vec![(7, "ball's".to_owned())]);
        let meant = |kind, asked: &str| {
            let meant = vocabulary.meant(kind, &[asked.to_owned()])?;
            assert!(!meant.cut);
            Some(meant.words)
        };
        assert_eq!(meant(Match::Words, "ball"), Some(vec![vec![2, 7, 4, 5]]));
        assert_eq!(meant(Match::Part, "ball"), Some(vec![vec![2, 7, 4, 5, 3]]));
        assert_eq!(meant(Match::Part, "ba"), None, "no more than words");
        assert_eq!(meant(Match::Words, "hokey"), None);
        assert_eq!(meant(Match::Near, "hokey"), Some(vec![vec![1, 6]]));
        assert_eq!(meant(Match::Near, "hoc"), None, "too short");
        assert_eq!(meant(Match::Near, "xxxxx"), None);
        let asked = ["ball".to_owned(), "hokey".to_owned()];
        assert_eq!(
            vocabulary
                .meant(Match::Near, &asked)
                .map(|meant| meant.words.len()),
            Some(2)
        );
    }

    #[test]
    fn a_word_that_means_too_many_is_left_to_others() {
        let mut vocabulary = Vocabulary::default();
        let many = (1..).zip((0..2000).map(|i| format!("9{i:04}")));
        vocabulary.add(many.collect());
        vocabulary.add(vec![
            (3001, "okapi".to_owned()),
            (3002, "okapis".to_owned()),
        ]);
        let meant = |asked: &[&str]| {
            let asked: Vec<String> = asked.iter().map(|&word| word.to_owned()).collect();
            vocabulary.meant(Match::Words, &asked).expect("meant")
        };
        let both = meant(&["9", "okapi"]);
        assert_eq!((both.words, both.cut), (vec![vec![3001, 3002]], false));
        // "91" starts 1,000 words, "9" twice as many.
        let broad = meant(&["9", "91"]);
        assert_eq!(broad.words, [(1001..=1500).collect::<Vec<_>>()]);
        assert!(broad.cut);
        let asked = ["9".to_owned(), "zebra".to_owned()];
        assert_eq!(vocabulary.meant(Match::Words, &asked), None);
    }
}
