//! What features do on a corpus.

use console::style;
use serde::Serialize;
use steering_client::v1;

use super::label::short;
use crate::output;

/// One computation of statistics.
#[derive(Debug, Serialize)]
pub(crate) struct StatisticsVersionView {
    digest: String,
    sae_id: String,
    sae_digest: String,
    source: SourceView,
    include_special_tokens: bool,
    text_count: u64,
    dropped_count: u64,
    token_count: u64,
    active_feature_count: u32,
    created_at: Option<String>,
}

#[derive(Debug, Serialize)]
struct SourceView {
    origin: String,
    data_digest: String,
    model_id: String,
    model_digest: String,
    max_tokens: u32,
}

impl From<v1::FeatureStatisticsVersion> for StatisticsVersionView {
    fn from(version: v1::FeatureStatisticsVersion) -> Self {
        let v1::FeatureStatisticsVersion {
            digest,
            sae_id,
            sae_digest,
            source,
            include_special_tokens,
            text_count,
            dropped_count,
            token_count,
            active_feature_count,
            created_at,
        } = version;
        let v1::CorpusSource {
            origin,
            data_digest,
            model_id,
            model_digest,
            max_tokens,
        } = source.unwrap_or_default();
        Self {
            digest,
            sae_id,
            sae_digest,
            source: SourceView {
                origin,
                data_digest,
                model_id,
                model_digest,
                max_tokens,
            },
            include_special_tokens,
            text_count,
            dropped_count,
            token_count,
            active_feature_count,
            created_at: created_at.map(|time| time.to_string()),
        }
    }
}

impl StatisticsVersionView {
    /// Names and values for a card.
    pub(crate) fn card(&self) -> Vec<(&'static str, String)> {
        let special = if self.include_special_tokens {
            ", special ones included"
        } else {
            ""
        };
        vec![
            ("statistics", self.digest.clone()),
            ("sae", self.sae_id.clone()),
            (
                "texts",
                format!(
                    "{}, {} without activations",
                    self.text_count, self.dropped_count
                ),
            ),
            ("tokens", format!("{}{special}", self.token_count)),
            ("fired", format!("{} features", self.active_feature_count)),
            ("data", self.source.origin.clone()),
            ("data_digest", self.source.data_digest.clone()),
            ("model", self.source.model_id.clone()),
            ("model_digest", self.source.model_digest.clone()),
            ("max_tokens", self.source.max_tokens.to_string()),
        ]
    }

    /// Cells of a table: digest, stored, texts, tokens, features that fired, data, model.
    pub(crate) fn cells(&self) -> [String; 7] {
        [
            self.digest.chars().take(12).collect(),
            self.created_at.clone().unwrap_or_default(),
            self.text_count.to_string(),
            self.token_count.to_string(),
            self.active_feature_count.to_string(),
            self.source.origin.clone(),
            self.source.model_id.clone(),
        ]
    }
}

/// What one feature did.
#[derive(Debug, Serialize)]
pub(crate) struct FeatureStatisticsView {
    digest: String,
    active_count: u64,
    density: f64,
    max_activation: f32,
    mean_activation: f32,
    p50_activation: f32,
    p90_activation: f32,
    p99_activation: f32,
    top_contexts: Vec<ContextView>,
    version: Option<StatisticsVersionView>,
}

#[derive(Debug, Serialize)]
struct ContextView {
    activation: f32,
    before: String,
    token: String,
    after: String,
}

impl FeatureStatisticsView {
    pub(crate) fn new(
        statistics: v1::FeatureStatistics,
        version: Option<v1::FeatureStatisticsVersion>,
    ) -> Self {
        let v1::FeatureStatistics {
            feature_index: _, // the feature is shown beside it
            digest,
            active_count,
            density,
            max_activation,
            mean_activation,
            p50_activation,
            p90_activation,
            p99_activation,
            top_contexts,
        } = statistics;
        let context = |context: v1::FeatureContext| {
            let v1::FeatureContext {
                activation,
                before,
                token,
                after,
            } = context;
            ContextView {
                activation,
                before,
                token,
                after,
            }
        };
        Self {
            digest,
            active_count,
            density,
            max_activation,
            mean_activation,
            p50_activation,
            p90_activation,
            p99_activation,
            top_contexts: top_contexts.into_iter().map(context).collect(),
            version: version.map(Into::into),
        }
    }

    /// What the statistics are of.
    pub(crate) fn heading(&self) -> String {
        match &self.version {
            Some(version) => format!(
                "on {}, {} tokens of {} texts",
                version.source.origin, version.token_count, version.text_count
            ),
            None => format!("statistics {}", self.digest),
        }
    }

    /// Names and values for a card.
    pub(crate) fn card(&self) -> Vec<(&'static str, String)> {
        let density = format!("{}, {} tokens", short(self.density), self.active_count);
        let mut card = vec![("density", density)];
        if self.active_count > 0 {
            card.extend([
                ("max", short(self.max_activation)),
                ("mean", short(self.mean_activation)),
                ("p50", short(self.p50_activation)),
                ("p90", short(self.p90_activation)),
                ("p99", short(self.p99_activation)),
            ]);
        }
        card
    }

    /// Lines of contexts: the activation, and the token in its text.
    pub(crate) fn contexts(&self) -> impl Iterator<Item = String> {
        self.top_contexts.iter().map(|context| {
            let clean = |text: &str| output::printable(text).replace(['\n', '\t'], " ");
            let activation = short(context.activation);
            let (before, after) = (clean(&context.before), clean(&context.after));
            let token = style(format!("«{}»", clean(&context.token))).bold();
            format!("{activation:>8}  {before}{token}{after}")
        })
    }
}
