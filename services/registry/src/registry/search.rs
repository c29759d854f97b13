//! Labels by text: ranked, in pages, with bounded work.
//!
//! Texts and their beginnings are ranges of an index. For words, the vocabulary (all words
//! of all labels, kept in memory) says which words are meant; lists of the labels that
//! have them are intersected; and each label found is looked at once more, so that a list
//! may name labels that are gone, and words that mean too many others need no lists.

mod held;
mod lists;
mod page;
mod query;
#[cfg(test)]
mod tests;
mod vocabulary;

use std::{collections::HashMap, sync::Arc};

use serde::{Deserialize, Serialize};

use self::{
    held::SaeLists,
    lists::{AnyOf, in_all},
    page::{EXAMINED_MAX, Page},
    query::Query,
    vocabulary::{Meant, Vocabulary},
};
use super::Registry;
use crate::{
    error::Result,
    store::{LabelReader, LabelRecord, LabelTexts, Posting, SaeFilter},
};

pub(super) use held::SharedLists;
pub use query::Match;
pub(super) use vocabulary::SharedVocabulary;

/// SAEs looked into at first, and how many times as many in each further step: a frequent
/// word fills a page from the first few, a rare one takes few steps.
const SAES_AT_FIRST: usize = 4;

/// What to look for.
#[derive(Debug, Clone)]
pub struct LabelSearch {
    /// Lower-case text.
    pub text: String,
    /// Where to look.
    pub saes: SaeFilter,
    /// Only labels of this source.
    pub source: Option<String>,
    /// Continue behind this place.
    pub behind: Option<Place>,
    /// Most labels to return.
    pub limit: usize,
}

/// Where a search stopped: the label that it saw last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    kind: Match,
    sae: i64,
    folded: String,
    key: i64,
    /// Whether any label was found so far.
    found: bool,
}

/// One page.
#[derive(Debug)]
pub struct FoundLabels {
    /// Best first.
    pub labels: Vec<LabelRecord>,
    /// Where to continue; None at the end.
    pub next: Option<Place>,
    /// Whether there may be labels that were not looked at, and are on no page.
    pub cut: bool,
}

/// A search at work.
struct Search {
    reader: Box<dyn LabelReader>,
    query: Query,
    /// Keys of SAEs, ascending.
    saes: Vec<i64>,
    /// Lists of words that are in memory, by SAE.
    lists: HashMap<i64, Arc<SaeLists>>,
    /// Those of them in which a text may start with the one looked for, and whether one may be it.
    with_text: Vec<(i64, bool)>,
    page: Page,
    /// See [`FoundLabels::cut`].
    cut: bool,
}

impl Registry {
    /// One page of labels, best first.
    pub async fn search_labels(&self, search: LabelSearch) -> Result<FoundLabels> {
        let mut reader = self.store.label_reader().await?;
        let saes = reader.saes(&search.saes).await?;
        let lists = self.lists.of(&saes);
        if lists.len() < saes.len() {
            self.refresh_lists();
        }
        let saes: Vec<i64> = saes.iter().map(|sae| sae.key).collect();
        let query = Query::new(&search.text);
        let first = search
            .behind
            .as_ref()
            .map_or(Match::Exact, |place| place.kind);
        let with_text = match first {
            Match::Exact | Match::Prefix => reader.saes_with_text(&saes, query.text()).await?,
            Match::Words | Match::Part | Match::Near => Vec::new(),
        };
        let mut work = Search {
            reader,
            query,
            saes,
            lists,
            with_text,
            page: Page::new(&search),
            cut: false,
        };
        let mut behind = search.behind;
        let mut vocabulary = None;
        for kind in Match::ALL.into_iter().filter(|kind| *kind >= first) {
            let behind = behind.take();
            if kind == Match::Near && behind.is_none() && work.page.found() {
                break;
            }
            match kind {
                Match::Exact | Match::Prefix => work.by_text(kind, behind).await?,
                Match::Words | Match::Part | Match::Near => {
                    let known = match vocabulary.take() {
                        Some(known) => known,
                        None => self.vocabulary.get(&mut *work.reader).await?,
                    };
                    work.by_words(kind, behind, &known).await?;
                    vocabulary = Some(known);
                }
            }
            if work.page.is_done() {
                break;
            }
        }
        Ok(work.page.into_found(work.cut))
    }

    /// Behind the searches, which do without until then.
    fn refresh_lists(&self) {
        let (lists, store) = (Arc::clone(&self.lists), Arc::clone(&self.store));
        tokio::spawn(async move {
            if let Err(error) = lists.refresh(&*store).await {
                tracing::warn!(%error, "lists of words could not be read");
            }
        });
    }
}

impl Search {
    async fn by_text(&mut self, kind: Match, mut behind: Option<Place>) -> Result<()> {
        let saes = self.with_text.iter();
        let saes = saes.filter(|(_, may_be_it)| *may_be_it || kind == Match::Prefix);
        let saes: Vec<i64> = saes.map(|(sae, _)| *sae).collect();
        // SAEs that were not begun yet.
        let mut rest = match &behind {
            Some(place) => saes.partition_point(|&sae| sae <= place.sae),
            None => 0,
        };
        while behind.is_some() || rest < saes.len() {
            let within = behind.as_ref().map(|place| [place.sae]);
            let limit = self.page.wanted();
            let labels = self
                .reader
                .labels_by_text(LabelTexts {
                    saes: within.as_ref().map_or(&saes[rest..], |sae| &sae[..]),
                    text: self.query.text(),
                    exact: kind == Match::Exact,
                    after: behind.as_ref().map(|place| (&*place.folded, place.key)),
                    limit: u32::try_from(limit).unwrap_or(u32::MAX),
                })
                .await?;
            let is_last = labels.len() < limit;
            let last = labels.last().map(|label| self.page.place(kind, label));
            for label in labels {
                if self.page.offer(&self.query, kind, label) {
                    return Ok(());
                }
            }
            behind = match (is_last, within) {
                (true, None) => return Ok(()),
                (true, Some(_)) => None,
                (false, _) => last,
            };
            if let Some(place) = &behind {
                rest = saes.partition_point(|&sae| sae <= place.sae);
            }
        }
        Ok(())
    }

    async fn by_words(
        &mut self,
        kind: Match,
        behind: Option<Place>,
        vocabulary: &Vocabulary,
    ) -> Result<()> {
        let meant = vocabulary.meant(kind, self.query.words());
        let Some(Meant {
            words: mut meant,
            cut,
        }) = meant
        else {
            return Ok(());
        };
        // An SAE is left as soon as it has none of those for one word of the query.
        meant.sort_by_key(Vec::len);
        self.cut |= cut;
        let start = match &behind {
            Some(place) => self.saes.partition_point(|&sae| sae < place.sae),
            None => 0,
        };
        let saes = self.saes[start..].to_vec();
        let (mut rest, mut size) = (saes.as_slice(), SAES_AT_FIRST);
        while !rest.is_empty() {
            let batch;
            (batch, rest) = rest.split_at(size.min(rest.len()));
            size *= SAES_AT_FIRST;
            let mut keys = self.having(batch, &meant, behind.as_ref()).await?;
            keys.retain(|&key| !self.page.has_seen(key));
            let mut keys = keys.into_iter();
            while keys.len() > 0 {
                let chunk: Vec<i64> = keys.by_ref().take(self.page.wanted()).collect();
                let labels = self.reader.labels_by_key(&chunk).await?;
                let mut labels: HashMap<i64, LabelRecord> =
                    labels.into_iter().map(|label| (label.key, label)).collect();
                for label in chunk.iter().filter_map(|key| labels.remove(key)) {
                    if self.page.offer(&self.query, kind, label) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Keys of labels that have, for each list of words, one of its words; by SAE and key.
    async fn having(
        &mut self,
        saes: &[i64],
        meant: &[Vec<i64>],
        behind: Option<&Place>,
    ) -> Result<Vec<i64>> {
        let postings = self.postings(saes, meant).await?;
        let mut read: HashMap<(i64, i64), Vec<&Posting>> = HashMap::new();
        for posting in &postings {
            let key = (posting.sae, posting.word);
            read.entry(key).or_default().push(posting);
        }
        let mut found = Vec::new();
        for &sae in saes {
            let held = self.lists.get(&sae);
            let of_word = |word: &i64| {
                let read = read.get(&(sae, *word)).into_iter().flatten();
                let held = held.map(|lists| lists.of(*word)).into_iter().flatten();
                held.chain(read.map(|posting| posting.ids()))
            };
            let any = meant.iter().map(|words| {
                let any = AnyOf::new(words.iter().flat_map(of_word));
                (!any.is_empty()).then_some(any)
            });
            let Some(mut any) = any.collect::<Option<Vec<AnyOf<'_>>>>() else {
                continue;
            };
            let after = behind.filter(|place| place.sae == sae);
            let after = after.map_or(0, |place| place.key);
            // One more than may be looked at says that there are more.
            in_all(&mut any, after, EXAMINED_MAX + 1, &mut found);
            tokio::task::consume_budget().await;
        }
        Ok(found)
    }

    /// Lists of those SAEs that are not in memory.
    async fn postings(&mut self, saes: &[i64], meant: &[Vec<i64>]) -> Result<Vec<Posting>> {
        let saes = saes.iter().filter(|sae| !self.lists.contains_key(sae));
        let saes: Vec<i64> = saes.copied().collect();
        if saes.is_empty() {
            return Ok(Vec::new());
        }
        let mut words: Vec<i64> = meant.iter().flatten().copied().collect();
        words.sort_unstable();
        words.dedup();
        self.reader.postings(&saes, &words).await
    }
}
