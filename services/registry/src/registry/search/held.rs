//! Lists of labels in memory, of the SAEs that there is room for. A word is looked up there ten
//! times as fast as in the database, and a search looks up hundreds of words in hundreds of SAEs.
//!
//! Memory is brought up to date behind the searches: what it lacks, they ask the database for.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockWriteGuard},
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

use crate::{
    error::Result,
    store::{LabelIds, LabelReader, Posting, SaeFilter, SearchedSae, Store, push_number},
};

/// Bytes of lists held from which on no more are read.
const HELD_BYTES_MAX: usize = 256 << 20;
/// Lists read at once.
const POSTINGS_READ: u32 = 10_000;
/// Time from one look for what changed to the next.
const REFRESH_EVERY: Duration = Duration::from_secs(1);

/// All lists of one SAE.
#[derive(Debug, Default)]
pub(super) struct SaeLists {
    /// The SAE's last import, when they were read.
    last_import: i64,
    /// Ascending; a word is there once for each of its lists.
    words: Vec<u32>,
    /// Where each list ends in `labels`.
    ends: Vec<u32>,
    /// See [`LabelIds`].
    labels: Vec<u8>,
}

impl SaeLists {
    /// None if there are more than fit here.
    async fn read(reader: &mut dyn LabelReader, sae: SearchedSae) -> Result<Option<Self>> {
        let mut lists = Self {
            last_import: sae.last_import,
            ..Self::default()
        };
        let mut after = (0, 0);
        loop {
            let postings = reader.postings_of(sae.key, after, POSTINGS_READ).await?;
            let Some(last) = postings.last() else {
                break;
            };
            after = (last.word, last.first);
            if postings.iter().any(|posting| lists.add(posting).is_none()) {
                return Ok(None);
            }
        }
        lists.words.shrink_to_fit();
        lists.ends.shrink_to_fit();
        lists.labels.shrink_to_fit();
        Ok(Some(lists))
    }

    fn add(&mut self, posting: &Posting) -> Option<()> {
        self.words.push(u32::try_from(posting.word).ok()?);
        let mut before = 0;
        for id in posting.ids() {
            push_number(&mut self.labels, id.abs_diff(before));
            before = id;
        }
        self.ends.push(u32::try_from(self.labels.len()).ok()?);
        Some(())
    }

    /// The lists of a word.
    pub(super) fn of(&self, word: i64) -> impl Iterator<Item = LabelIds<'_>> {
        let first = self.words.partition_point(|&known| i64::from(known) < word);
        let words = self.words[first..].iter();
        let count = words.take_while(|&&known| i64::from(known) == word).count();
        (first..first + count).map(|i| {
            let start = i.checked_sub(1).map_or(0, |before| self.ends[before]);
            LabelIds::new(&self.labels[start as usize..self.ends[i] as usize])
        })
    }

    fn bytes(&self) -> usize {
        size_of::<u32>() * (self.words.len() + self.ends.len()) + self.labels.len()
    }
}

type Held = HashMap<i64, Arc<SaeLists>>;

/// The lists that searches use.
#[derive(Debug, Default)]
pub(in crate::registry) struct SharedLists {
    held: RwLock<Held>,
    /// When what changed was read last; held by who reads it.
    refreshed: Mutex<Option<Instant>>,
}

impl SharedLists {
    /// Lists of those of some SAEs that are held as they are now.
    pub(super) fn of(&self, saes: &[SearchedSae]) -> Held {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let current = saes.iter().filter_map(|sae| {
            let lists = held.get(&sae.key)?;
            (lists.last_import == sae.last_import).then(|| (sae.key, Arc::clone(lists)))
        });
        current.collect()
    }

    /// Reads what is not held, unless somebody does or did a moment ago.
    pub(super) async fn refresh(&self, store: &dyn Store) -> Result<()> {
        let Ok(mut refreshed) = self.refreshed.try_lock() else {
            return Ok(());
        };
        if refreshed.is_some_and(|at| at.elapsed() < REFRESH_EVERY) {
            return Ok(());
        }
        let mut reader = store.label_reader().await?;
        let saes = reader.saes(&SaeFilter::default()).await?;
        drop(reader);
        let imports = saes.iter().map(|sae| (sae.key, sae.last_import));
        let mut bytes = self.drop_all_but(&imports.collect());
        let held = self.of(&saes);
        for sae in saes {
            if bytes >= HELD_BYTES_MAX {
                break;
            }
            if held.contains_key(&sae.key) {
                continue;
            }
            // Not one for all: a store that closes waits for those that are out.
            let mut reader = store.label_reader().await?;
            if let Some(lists) = SaeLists::read(&mut *reader, sae).await? {
                bytes += lists.bytes();
                self.change().insert(sae.key, Arc::new(lists));
            }
        }
        *refreshed = Some(Instant::now());
        Ok(())
    }

    /// Drops lists of SAEs that have others now, or are gone; returns the size of the rest.
    fn drop_all_but(&self, imports: &HashMap<i64, i64>) -> usize {
        let mut held = self.change();
        held.retain(|key, lists| imports.get(key) == Some(&lists.last_import));
        held.values().map(|lists| lists.bytes()).sum()
    }

    fn change(&self) -> RwLockWriteGuard<'_, Held> {
        self.held.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_back_by_word() {
        let posting = |word, first, labels: &[u8]| Posting {
            sae: 1,
            word,
            first,
            labels: labels.to_vec(),
        };
        let mut lists = SaeLists::default();
        for posting in [
            posting(3, 7, &[0, 2]),
            posting(3, 5_000_000_000, &[0, 0x80, 1]),
            posting(9, 1, &[0]),
        ] {
            lists.add(&posting).expect("fits");
        }
        let of = |word| {
            lists
                .of(word)
                .map(Iterator::collect)
                .collect::<Vec<Vec<i64>>>()
        };
        assert_eq!(of(3), [vec![7, 9], vec![5_000_000_000, 5_000_000_128]]);
        assert_eq!(of(9), [[1]]);
        for word in [0, 4, 10, i64::MAX] {
            assert!(of(word).is_empty(), "{word}");
        }
        assert_eq!(lists.add(&posting(1 << 32, 1, &[0])), None);
    }
}
