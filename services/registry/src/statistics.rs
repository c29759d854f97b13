//! What features do on a corpus, gathered token by token in bounded memory: numbers and
//! places only; no wire, no store.
//!
//! Memory for a feature: at most 1.2 KB, most of it a [`Sketch`] that is as wide as the
//! feature's activations are spread. Texts are on disk while they are read ([`Corpus`]): a
//! feature remembers where it fired, not what was written there.

mod accumulator;
mod corpus;
mod sketch;

use std::io;

use sha2::{Digest, Sha256};

pub use accumulator::{Accumulator, CONTEXTS_MAX, Place};
pub use corpus::{Context, Corpus};
pub use sketch::Sketch;

/// What one feature did.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureStatistics {
    /// The feature.
    pub feature_index: u32,
    /// Tokens on which it fires.
    pub active_count: u64,
    /// Largest activation.
    pub max_activation: f32,
    /// Mean of the activations above 0.
    pub mean_activation: f32,
    /// 50th, 90th and 99th percentile of the activations above 0.
    pub percentiles: [f32; 3],
    /// Where it fires most strongly, strongest first.
    pub contexts: Vec<Context>,
}

impl FeatureStatistics {
    /// A feature that never fired.
    pub fn silent(feature_index: u32) -> Self {
        Self {
            feature_index,
            active_count: 0,
            max_activation: 0.0,
            mean_activation: 0.0,
            percentiles: [0.0; 3],
            contexts: Vec::new(),
        }
    }

    /// What was gathered of a feature; none if it never fired.
    pub fn of(
        feature_index: u32,
        gathered: &Accumulator,
        corpus: &Corpus,
    ) -> io::Result<Option<Self>> {
        if gathered.count() == 0 {
            return Ok(None);
        }
        let contexts = gathered.places().iter().map(|place| corpus.context(*place));
        Ok(Some(Self {
            feature_index,
            active_count: gathered.count(),
            max_activation: gathered.max(),
            mean_activation: gathered.mean(),
            percentiles: [0.5, 0.9, 0.99].map(|share| gathered.percentile(share)),
            contexts: contexts.collect::<io::Result<_>>()?,
        }))
    }

    /// Adds everything to a digest.
    pub fn add_to(&self, hasher: &mut Sha256) {
        let Self {
            feature_index,
            active_count,
            max_activation,
            mean_activation,
            percentiles,
            contexts,
        } = self;
        hasher.update(feature_index.to_le_bytes());
        hasher.update(active_count.to_le_bytes());
        for number in [*max_activation, *mean_activation]
            .iter()
            .chain(percentiles)
        {
            hasher.update(number.to_le_bytes());
        }
        hasher.update((contexts.len() as u64).to_le_bytes());
        for Context {
            activation,
            before,
            token,
            after,
        } in contexts
        {
            hasher.update(activation.to_le_bytes());
            for text in [before, token, after] {
                hasher.update((text.len() as u64).to_le_bytes());
                hasher.update(text);
            }
        }
    }
}
