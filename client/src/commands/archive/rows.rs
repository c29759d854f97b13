//! Lines of an export. Single-precision numbers are written widened: read as doubles, they
//! come back bit for bit.

use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use steering_client::v1::{self, label_evidence};

/// A label, as the registry's import reads it.
#[derive(Debug, Serialize)]
pub(super) struct LabelRow {
    index: u32,
    label: String,
    source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    score: Option<f64>,
    /// Only of candidates: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    passed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strength: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_activation: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "in_order")]
    evidence: Vec<v1::LabelEvidence>,
}

fn in_order<S: Serializer>(
    evidence: &[v1::LabelEvidence],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(evidence.len()))?;
    for v1::LabelEvidence { name, value } in evidence {
        match value {
            Some(label_evidence::Value::Number(number)) => map.serialize_entry(name, number)?,
            Some(label_evidence::Value::Text(text)) => map.serialize_entry(name, text)?,
            None => return Err(serde::ser::Error::custom("evidence of an unknown kind")),
        }
    }
    map.end()
}

impl From<v1::FeatureLabel> for LabelRow {
    fn from(label: v1::FeatureLabel) -> Self {
        let v1::FeatureLabel {
            sae_id: _, // the manifest says it
            feature_index,
            label,
            source,
            score,
            candidate,
            strength,
            max_activation,
            evidence,
        } = label;
        Self {
            index: feature_index,
            label,
            source,
            score: score.map(f64::from),
            passed: candidate.then_some(false),
            strength: strength.map(f64::from),
            max_activation: max_activation.map(f64::from),
            evidence,
        }
    }
}

/// Statistics of one feature.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatisticsRow {
    feature_index: u32,
    active_count: u64,
    density: f64,
    max_activation: f64,
    mean_activation: f64,
    p50_activation: f64,
    p90_activation: f64,
    p99_activation: f64,
    top_contexts: Vec<ContextRow>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ContextRow {
    activation: f64,
    before: String,
    token: String,
    after: String,
}

impl From<v1::FeatureStatistics> for StatisticsRow {
    fn from(statistics: v1::FeatureStatistics) -> Self {
        let v1::FeatureStatistics {
            feature_index,
            digest: _, // the manifest says it
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
            ContextRow {
                activation: activation.into(),
                before,
                token,
                after,
            }
        };
        Self {
            feature_index,
            active_count,
            density,
            max_activation: max_activation.into(),
            mean_activation: mean_activation.into(),
            p50_activation: p50_activation.into(),
            p90_activation: p90_activation.into(),
            p99_activation: p99_activation.into(),
            top_contexts: top_contexts.into_iter().map(context).collect(),
        }
    }
}

impl StatisticsRow {
    /// The message; what the registry computes itself is left out.
    pub(super) fn into_wire(self) -> v1::FeatureStatistics {
        let context = |context: ContextRow| v1::FeatureContext {
            activation: context.activation as f32,
            before: context.before,
            token: context.token,
            after: context.after,
        };
        v1::FeatureStatistics {
            feature_index: self.feature_index,
            digest: String::new(),
            active_count: self.active_count,
            density: self.density,
            max_activation: self.max_activation as f32,
            mean_activation: self.mean_activation as f32,
            p50_activation: self.p50_activation as f32,
            p90_activation: self.p90_activation as f32,
            p99_activation: self.p99_activation as f32,
            top_contexts: self.top_contexts.into_iter().map(context).collect(),
        }
    }
}
