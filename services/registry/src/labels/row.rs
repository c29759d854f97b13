//! One entry of rows.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Number, Value};

use crate::store::{Evidence, EvidenceValue, LabelFacts};

/// Most entries of a label's evidence.
const EVIDENCE_MAX: usize = 64;
/// Longest name of an entry in bytes.
const NAME_LEN_MAX: usize = 100;
/// Longest text of an entry in bytes.
const TEXT_LEN_MAX: usize = 1000;

/// One entry of rows; keys that other exporters add are no concern of ours.
#[derive(Deserialize)]
pub(super) struct Row {
    pub(super) index: Index,
    pub(super) label: Option<String>,
    pub(super) description: Option<String>,
    pub(super) source: Option<String>,
    score: Option<f64>,
    passed: Option<bool>,
    strength: Option<f64>,
    max_activation: Option<f64>,
    evidence: Option<Entries>,
    #[serde(rename = "modelId")]
    pub(super) model_id: Option<String>,
    pub(super) layer: Option<Value>,
}

/// Neuronpedia writes indices as text.
#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Index {
    Number(Number),
    Text(String),
}

impl Index {
    pub(super) fn into_text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

impl Row {
    /// What the source says beyond the name. The error goes on from "entry N has".
    pub(super) fn facts(&self) -> Result<LabelFacts, String> {
        let entries = self
            .evidence
            .as_ref()
            .map_or(&[][..], |Entries(entries)| entries);
        if entries.len() > EVIDENCE_MAX {
            let count = entries.len();
            return Err(format!(
                "{count} entries of evidence; at most {EVIDENCE_MAX} are kept"
            ));
        }
        let max_activation = narrow("max_activation", self.max_activation)?;
        if max_activation.is_some_and(|max| max < 0.0) {
            return Err("a max_activation below 0, which no activation is".to_owned());
        }
        Ok(LabelFacts {
            score: narrow("score", self.score)?,
            candidate: self.passed == Some(false),
            strength: narrow("strength", self.strength)?,
            max_activation,
            evidence: entries.iter().map(evidence).collect::<Result<_, _>>()?,
        })
    }
}

fn narrow(what: &str, number: Option<f64>) -> Result<Option<f32>, String> {
    let narrowed = number.map(|number| number as f32);
    match narrowed {
        Some(number) if !number.is_finite() => Err(format!(
            "a {what} that is no finite number in single precision"
        )),
        narrowed => Ok(narrowed),
    }
}

fn evidence((name, value): &(String, Value)) -> Result<Evidence, String> {
    if name.is_empty() || name.len() > NAME_LEN_MAX {
        return Err(format!(
            "evidence named {name:.40?}; a name of 1 to {NAME_LEN_MAX} bytes is needed"
        ));
    }
    let value = match value {
        Value::Number(number) => number.as_f64().map(EvidenceValue::Number),
        Value::String(text) if text.len() <= TEXT_LEN_MAX => {
            Some(EvidenceValue::Text(text.clone()))
        }
        _ => None,
    };
    let value = value.ok_or_else(|| {
        format!(
            "evidence {name:?} that is neither a number nor a text of at most {TEXT_LEN_MAX} bytes"
        )
    })?;
    Ok(Evidence(name.clone(), value))
}

/// An object's entries in the file's order.
struct Entries(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("evidence: an object of numbers and texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Entries(entries))
    }
}
