//! A label and what it rests on.

use serde::{Serialize, Serializer};
use steering_client::v1::{self, label_evidence};

/// A label of a feature.
#[derive(Debug, Serialize)]
pub(crate) struct FeatureLabelView {
    sae_id: String,
    feature_index: u32,
    label: String,
    source: String,
    score: Option<f32>,
    candidate: bool,
    strength: Option<f32>,
    max_activation: Option<f32>,
    #[serde(serialize_with = "in_order")]
    evidence: Vec<(String, EvidenceView)>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum EvidenceView {
    Number(f64),
    Text(String),
    /// A value of a kind that this version does not know.
    Unknown(()),
}

/// An object whose keys keep the source's order.
fn in_order<S: Serializer>(
    evidence: &[(String, EvidenceView)],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(evidence.iter().map(|(name, value)| (name, value)))
}

impl From<v1::FeatureLabel> for FeatureLabelView {
    fn from(label: v1::FeatureLabel) -> Self {
        let v1::FeatureLabel {
            sae_id,
            feature_index,
            label,
            source,
            score,
            candidate,
            strength,
            max_activation,
            evidence,
        } = label;
        let evidence = evidence
            .into_iter()
            .map(|v1::LabelEvidence { name, value }| {
                let value = match value {
                    Some(label_evidence::Value::Number(number)) => EvidenceView::Number(number),
                    Some(label_evidence::Value::Text(text)) => EvidenceView::Text(text),
                    None => EvidenceView::Unknown(()),
                };
                (name, value)
            });
        Self {
            sae_id,
            feature_index,
            label,
            source,
            score,
            candidate,
            strength,
            max_activation,
            evidence: evidence.collect(),
        }
    }
}

impl FeatureLabelView {
    /// Cells of a table: index, label, status, source, score, strength, SAE.
    pub(crate) fn cells(&self) -> [String; 7] {
        let score = self.score.map(|score| format!("{score:.3}"));
        [
            self.feature_index.to_string(),
            self.label.clone(),
            if self.candidate { "candidate" } else { "" }.to_owned(),
            self.source.clone(),
            score.unwrap_or_default(),
            self.strength.map(short).unwrap_or_default(),
            self.sae_id.clone(),
        ]
    }

    /// A heading, and names and values of what the label rests on.
    pub(crate) fn evidence(&self) -> (String, Vec<(&str, String)>) {
        let status = if self.candidate {
            ", a candidate: failed its source's checks"
        } else {
            ""
        };
        let heading = format!("{:?} by {}{status}", self.label, self.source);
        let facts = [
            ("score", self.score.map(short)),
            ("strength", self.strength.map(short)),
        ];
        // Where the evidence says the same, it is said once.
        let said = |name: &str| self.evidence.iter().any(|(other, _)| other == name);
        let facts = facts.into_iter().filter(|(name, _)| !said(name));
        let facts = facts.filter_map(|(name, v)| Some((name, v?)));
        let evidence = self.evidence.iter().map(|(name, value)| {
            let value = match value {
                EvidenceView::Number(number) => short(*number),
                EvidenceView::Text(text) => text.clone(),
                EvidenceView::Unknown(()) => "?".to_owned(),
            };
            (name.as_str(), value)
        });
        (heading, facts.chain(evidence).collect())
    }
}

/// A number with about four digits that count, whole numbers in full.
pub(super) fn short(number: impl Into<f64>) -> String {
    let number: f64 = number.into();
    let magnitude = number.abs();
    if number.fract() == 0.0 && magnitude < 1e9 {
        format!("{number}")
    } else if (0.001..10_000.0).contains(&magnitude) {
        let text = match magnitude {
            m if m < 1.0 => format!("{number:.4}"),
            m if m < 100.0 => format!("{number:.3}"),
            _ => format!("{number:.1}"),
        };
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{number:.3e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.8, "0.8"),
            (12.0, "12"),
            (0.12345, "0.1235"),
            (12.34567, "12.346"),
            (1234.56, "1234.6"),
            (-3.5, "-3.5"),
            (0.000_012_3, "1.230e-5"),
        ];
        for (number, text) in cases {
            assert_eq!(short(number), text);
        }
    }

    #[test]
    fn evidence_keeps_its_order_in_json() {
        let entry = |name: &str, value| v1::LabelEvidence {
            name: name.to_owned(),
            value: Some(value),
        };
        let view = FeatureLabelView::from(v1::FeatureLabel {
            label: "sea".to_owned(),
            evidence: vec![
                entry("z", label_evidence::Value::Number(0.5)),
                entry("a", label_evidence::Value::Text("x".to_owned())),
            ],
            ..v1::FeatureLabel::default()
        });
        let json = serde_json::to_string(&view).expect("json");
        assert!(json.ends_with(r#""evidence":{"z":0.5,"a":"x"}}"#), "{json}");
    }
}
