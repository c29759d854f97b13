//! One page as it fills.

use std::collections::HashSet;

use super::{FoundLabels, LabelSearch, Match, Place, Query};
use crate::store::LabelRecord;

/// Labels looked at for one page. A page that needs more is short.
pub(super) const EXAMINED_MAX: usize = 2000;
/// Fewest labels worth a question to the store.
const ASKED_MIN: usize = 16;

pub(super) struct Page {
    limit: usize,
    source: Option<String>,
    labels: Vec<LabelRecord>,
    /// Place of the last of `labels`.
    last: Option<Place>,
    /// How many labels were looked at.
    examined: usize,
    /// Keys of those that need not be looked at again.
    seen: HashSet<i64>,
    /// Whether pages before had labels.
    found_before: bool,
    next: Option<Place>,
}

impl Page {
    pub(super) fn new(search: &LabelSearch) -> Self {
        Self {
            limit: search.limit,
            source: search.source.clone(),
            labels: Vec::new(),
            last: None,
            examined: 0,
            seen: HashSet::new(),
            found_before: search.behind.as_ref().is_some_and(|place| place.found),
            next: None,
        }
    }

    /// Whether any label was found, here or on pages before.
    pub(super) fn found(&self) -> bool {
        self.found_before || !self.labels.is_empty()
    }

    pub(super) fn is_done(&self) -> bool {
        self.next.is_some()
    }

    /// How many labels to ask the store for: one more than fits says whether there is
    /// another page. As many as were looked at where few of these fitted.
    pub(super) fn wanted(&self) -> usize {
        let to_fill = self.limit + 1 - self.labels.len();
        let wanted = to_fill.max(ASKED_MIN).max(self.examined);
        wanted.min(EXAMINED_MAX - self.examined)
    }

    /// Whether a label was looked at, and fits as it was found or not at all: it may be found
    /// again in a worse kind of match.
    pub(super) fn has_seen(&self, key: i64) -> bool {
        self.seen.contains(&key)
    }

    pub(super) fn place(&self, kind: Match, label: &LabelRecord) -> Place {
        Place {
            kind,
            sae: label.sae,
            folded: label.folded.clone(),
            key: label.key,
            found: self.found(),
        }
    }

    /// Takes a label if it fits; says whether the page is done.
    pub(super) fn offer(&mut self, query: &Query, kind: Match, label: LabelRecord) -> bool {
        self.examined += 1;
        let best = query.best(&label.folded);
        if best.is_none_or(|best| best <= kind) {
            self.seen.insert(label.key);
        }
        let fits = !label.facts.candidate
            && self
                .source
                .as_ref()
                .is_none_or(|source| *source == label.source)
            && best == Some(kind);
        if fits && self.labels.len() == self.limit {
            self.next = self.last.take();
            return true;
        }
        let mut place = self.place(kind, &label);
        if fits {
            place.found = true;
            self.labels.push(label);
            self.last = Some(place.clone());
        }
        if self.examined == EXAMINED_MAX {
            self.next = Some(place);
        }
        self.is_done()
    }

    pub(super) fn into_found(self, cut: bool) -> FoundLabels {
        FoundLabels {
            labels: self.labels,
            next: self.next,
            cut,
        }
    }
}
