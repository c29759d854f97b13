//! Labels of features, and what they rest on.

use serde::{Deserialize, Serialize};
use steering_proto::v1;

/// A label, on its way in.
#[derive(Debug, Clone, PartialEq)]
pub struct NewLabel {
    /// The feature; below d_sae.
    pub feature_index: u32,
    /// Its label.
    pub label: String,
    /// Who gave it.
    pub source: String,
    /// What else the source says.
    pub facts: LabelFacts,
}

/// What a source says of its label, beyond the name.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LabelFacts {
    /// Quality, if the source gives one.
    pub score: Option<f32>,
    /// Whether the label failed its source's checks: kept, but no name.
    pub candidate: bool,
    /// Value to set the feature to at which it was seen to steer.
    pub strength: Option<f32>,
    /// Largest activation seen.
    pub max_activation: Option<f32>,
    /// What the label rests on, in the source's order.
    pub evidence: Vec<Evidence>,
}

/// One thing a source measured or noted; stored as a pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence(pub String, pub EvidenceValue);

/// A number or a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EvidenceValue {
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

/// A label that is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelRecord {
    /// Key in the store, growing with every label.
    pub key: i64,
    /// Key of the SAE.
    pub sae: i64,
    /// Name of the SAE.
    pub sae_id: String,
    /// The feature.
    pub feature_index: u32,
    /// Its label.
    pub label: String,
    /// The label in lower case.
    pub folded: String,
    /// Who gave it.
    pub source: String,
    /// What else the source says.
    pub facts: LabelFacts,
}

/// What a feature's labels tell of it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FeatureNotes {
    /// Its best label that is no candidate.
    pub label: Option<String>,
    /// Largest activation seen, by the best label that says so.
    pub max_activation: Option<f32>,
}

impl LabelRecord {
    /// The wire's message.
    pub fn into_wire(self) -> v1::FeatureLabel {
        let LabelFacts {
            score,
            candidate,
            strength,
            max_activation,
            evidence,
        } = self.facts;
        v1::FeatureLabel {
            sae_id: self.sae_id,
            feature_index: self.feature_index,
            label: self.label,
            source: self.source,
            score,
            candidate,
            strength,
            max_activation,
            evidence: evidence.into_iter().map(Evidence::into_wire).collect(),
        }
    }
}

impl Evidence {
    fn into_wire(self) -> v1::LabelEvidence {
        use v1::label_evidence::Value;
        let Self(name, value) = self;
        let value = match value {
            EvidenceValue::Number(number) => Value::Number(number),
            EvidenceValue::Text(text) => Value::Text(text),
        };
        v1::LabelEvidence {
            name,
            value: Some(value),
        }
    }
}
