//! Feature statistics, as they are kept.

use futures::stream::BoxStream;
use steering_proto::{feature_statistics::CorpusSource, v1};

use super::timestamp;
use crate::{
    error::{Error, Result},
    statistics::{Context, FeatureStatistics},
};

/// One version of an SAE's statistics.
#[derive(Debug, Clone, PartialEq)]
pub struct StatisticsVersion {
    /// Key in the store, and place in the order of storing; 0 before it is stored.
    pub key: i64,
    /// Grows with every store; the largest of an SAE is used.
    pub stored: i64,
    /// SHA-256 (hex) of the statistics and of what they are of.
    pub digest: String,
    /// What the client said about the texts.
    pub source: CorpusSource,
    /// Whether special tokens were counted.
    pub include_special_tokens: bool,
    /// Texts counted.
    pub text_count: u64,
    /// Texts without activations.
    pub dropped_count: u64,
    /// Tokens counted.
    pub token_count: u64,
    /// Features that fired.
    pub active_feature_count: u32,
    /// Milliseconds since 1970, UTC.
    pub created_at_ms: i64,
}

/// Statistics of features, in batches.
pub type StatisticsBatches<'a> = BoxStream<'a, Result<Vec<FeatureStatistics>>>;

/// Which version of an SAE's statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhichStatistics<'a> {
    /// The one stored last.
    Newest,
    /// The one whose digest starts with this; the newest of several.
    Digest(&'a str),
}

impl StatisticsVersion {
    /// The wire's message, of an SAE's name and digest.
    pub fn into_wire(self, sae_id: &str, sae_digest: &str) -> v1::FeatureStatisticsVersion {
        let Self {
            key: _,
            stored: _,
            digest,
            source,
            include_special_tokens,
            text_count,
            dropped_count,
            token_count,
            active_feature_count,
            created_at_ms,
        } = self;
        v1::FeatureStatisticsVersion {
            digest,
            sae_id: sae_id.to_owned(),
            sae_digest: sae_digest.to_owned(),
            source: Some(source.into_wire()),
            include_special_tokens,
            text_count,
            dropped_count,
            token_count,
            active_feature_count,
            created_at: Some(timestamp(created_at_ms)),
        }
    }

    /// The wire's message of a feature's statistics in this version.
    pub fn feature_to_wire(&self, feature: FeatureStatistics) -> v1::FeatureStatistics {
        let FeatureStatistics {
            feature_index,
            active_count,
            max_activation,
            mean_activation,
            percentiles: [p50_activation, p90_activation, p99_activation],
            contexts,
        } = feature;
        let context = |context: Context| {
            let Context {
                activation,
                before,
                token,
                after,
            } = context;
            v1::FeatureContext {
                activation,
                before,
                token,
                after,
            }
        };
        v1::FeatureStatistics {
            feature_index,
            digest: self.digest.clone(),
            active_count,
            density: active_count as f64 / self.token_count.max(1) as f64,
            max_activation,
            mean_activation,
            p50_activation,
            p90_activation,
            p99_activation,
            top_contexts: contexts.into_iter().map(context).collect(),
        }
    }
}

/// The column `contexts`. Numbers are widened, so that they come back bit for bit.
pub(super) fn contexts_to_json(contexts: &[Context]) -> Result<String> {
    let rows: Vec<(f64, &str, &str, &str)> = contexts
        .iter()
        .map(|context| {
            let Context {
                activation,
                before,
                token,
                after,
            } = context;
            (
                f64::from(*activation),
                before.as_str(),
                token.as_str(),
                after.as_str(),
            )
        })
        .collect();
    serde_json::to_string(&rows).map_err(|error| Error::Storage(Box::new(error)))
}

/// Reads the column `contexts`.
pub(super) fn contexts_from_json(json: &str) -> Result<Vec<Context>> {
    let rows: Vec<(f64, String, String, String)> = serde_json::from_str(json)
        .map_err(|error| Error::DataLoss(format!("feature_statistics.contexts: {error}")))?;
    let context = |(activation, before, token, after)| Context {
        activation: activation as f32,
        before,
        token,
        after,
    };
    Ok(rows.into_iter().map(context).collect())
}
