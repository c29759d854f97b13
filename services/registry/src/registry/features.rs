//! Features: by index or label, complete; and their labels, listed and searched.

use std::collections::HashMap;

use steering_proto::{Invalid, payload::Activation, v1};

use super::{Registry, nearest};
use crate::{
    canonical::FeatureNumbers,
    error::{Error, Result},
    serve::SEND_BYTES_MAX,
    store::{FeatureNotes, LabelPage, LabelRecord, SaeRecord},
};

/// Most features of one request.
pub const FEATURES_MAX: usize = 256;
/// Features named by an ambiguous label that are listed.
const AMBIGUOUS_LISTED: u32 = 11;
/// Room for everything but the rows.
const RESPONSE_RESERVE: usize = 1 << 20;

/// How a request names a feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeatureName {
    /// By index.
    Index(u32),
    /// By label, exact.
    Label(String),
}

/// A parsed [`v1::FeatureRef`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureRef {
    /// The SAE; empty = the only one.
    pub sae_id: String,
    /// The feature.
    pub feature: FeatureName,
}

impl TryFrom<v1::FeatureRef> for FeatureRef {
    type Error = Invalid;

    fn try_from(wire: v1::FeatureRef) -> Result<Self, Invalid> {
        use v1::feature_ref::Feature;
        let v1::FeatureRef { sae_id, feature } = wire;
        let feature = match feature {
            Some(Feature::FeatureIndex(index)) => FeatureName::Index(index),
            Some(Feature::Label(label)) if label.is_empty() => {
                return Err(Invalid::field("label", "is empty"));
            }
            Some(Feature::Label(label)) => FeatureName::Label(label),
            None => {
                return Err(Invalid::field(
                    "feature",
                    "is required: an index or a label",
                ));
            }
        };
        Ok(Self { sae_id, feature })
    }
}

/// The references of a request that go to one SAE.
struct Group {
    sae: SaeRecord,
    /// Position in the request, index, and the label asked for.
    wanted: Vec<(usize, u32, Option<String>)>,
}

impl Registry {
    /// Features, complete, in the order asked for.
    pub async fn features(&self, references: Vec<FeatureRef>) -> Result<Vec<v1::SaeFeature>> {
        let count = references.len();
        let groups = self.resolve(references).await?;
        let bytes: usize = groups
            .values()
            .map(|group| group.wanted.len() * 2 * size_of::<f32>() * group.sae.layout.d_in as usize)
            .sum();
        if bytes > SEND_BYTES_MAX - RESPONSE_RESERVE {
            let message = format!("make a response of {bytes} bytes; ask for fewer at once");
            return Err(Invalid::field("features", message).into());
        }
        let mut features: Vec<Option<v1::SaeFeature>> = vec![None; count];
        for Group { sae, wanted } in groups.into_values() {
            let indices: Vec<u32> = wanted.iter().map(|&(_, index, _)| index).collect();
            let notes = self.store.feature_notes(sae.key, &indices).await?;
            let numbers = self.numbers(&sae, &indices).await?;
            for ((position, index, label), numbers) in wanted.into_iter().zip(numbers) {
                let mut notes = notes.get(&index).cloned().unwrap_or_default();
                // The name it was asked for by, rather than its best one.
                notes.label = label.or(notes.label);
                features[position] = Some(to_wire(&sae, index, notes, numbers));
            }
        }
        features
            .into_iter()
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::DataLoss("a feature is missing".to_owned()))
    }

    /// Directions of an SAE's features, in the order asked for.
    pub(super) async fn numbers(
        &self,
        sae: &SaeRecord,
        indices: &[u32],
    ) -> Result<Vec<FeatureNumbers>> {
        match self.vectors.read(&sae.digest, &sae.layout, indices).await {
            Err(error) => Err(self.unreadable(sae, error).await),
            numbers => numbers,
        }
    }

    /// Looks every reference up, grouped by the name of the SAE.
    async fn resolve(&self, references: Vec<FeatureRef>) -> Result<HashMap<String, Group>> {
        let mut groups: HashMap<String, Group> = HashMap::new();
        for (position, FeatureRef { sae_id, feature }) in references.into_iter().enumerate() {
            let within = |error| in_field(error, &format!("features[{position}]"));
            if !groups.contains_key(&sae_id) {
                let sae = self.sae(&sae_id).await.map_err(within)?;
                groups.insert(
                    sae_id.clone(),
                    Group {
                        sae,
                        wanted: Vec::new(),
                    },
                );
            }
            let Some(group) = groups.get_mut(&sae_id) else {
                continue;
            };
            let (index, label) = match feature {
                FeatureName::Index(index) => {
                    check_index(&group.sae, index).map_err(|error| within(error.into()))?;
                    (index, None)
                }
                FeatureName::Label(label) => (
                    self.index_of(&group.sae, &label).await.map_err(within)?,
                    Some(label),
                ),
            };
            group.wanted.push((position, index, label));
        }
        Ok(groups)
    }

    /// The SAE and the index of one feature.
    pub(super) async fn locate_feature(&self, reference: FeatureRef) -> Result<(SaeRecord, u32)> {
        let FeatureRef { sae_id, feature } = reference;
        let sae = self.sae(&sae_id).await?;
        let index = match feature {
            FeatureName::Index(index) => {
                check_index(&sae, index)?;
                index
            }
            FeatureName::Label(label) => self.index_of(&sae, &label).await?,
        };
        Ok((sae, index))
    }

    async fn index_of(&self, sae: &SaeRecord, label: &str) -> Result<u32> {
        let found = self
            .store
            .features_labelled(sae.key, label, false, AMBIGUOUS_LISTED)
            .await?;
        match found.as_slice() {
            [index] => Ok(*index),
            [] => Err(self.label_not_found(sae, label).await?),
            several => {
                let indices: Vec<String> = several.iter().map(ToString::to_string).collect();
                let message = format!(
                    "{label:?} names more than one feature of SAE {:?}; use feature_index, one of {}",
                    sae.name,
                    indices.join(", ")
                );
                Err(Invalid::field("label", message).into())
            }
        }
    }

    async fn label_not_found(&self, sae: &SaeRecord, label: &str) -> Result<Error> {
        let candidates = self
            .store
            .features_labelled(sae.key, label, true, AMBIGUOUS_LISTED)
            .await?;
        if !candidates.is_empty() {
            let indices: Vec<String> = candidates.iter().map(ToString::to_string).collect();
            let message = format!(
                "{label:?} is a candidate label of SAE {:?}: it failed its source's checks, so it \
                 is no name; use feature_index {}",
                sae.name,
                indices.join(" or ")
            );
            return Ok(Invalid::field("label", message).into());
        }
        let names = self.store.label_candidates(sae.key, label).await?;
        Ok(Error::LabelNotFound {
            sae_id: sae.name.clone(),
            label: label.to_owned(),
            nearest: nearest(label, names),
        })
    }

    /// One page of labels by feature.
    pub async fn list_labels(&self, page: LabelPage<'_>) -> Result<Vec<LabelRecord>> {
        self.store.list_labels(page).await
    }
}

/// Checks that an SAE has a feature.
pub fn check_index(sae: &SaeRecord, index: u32) -> Result<(), Invalid> {
    let d_sae = sae.layout.d_sae;
    if index < d_sae {
        return Ok(());
    }
    let message = format!(
        "is {index}; SAE {:?} has {d_sae} features, 0 to {}",
        sae.name,
        d_sae - 1
    );
    Err(Invalid::field("feature_index", message))
}

/// Puts the reference's place in front of the fields of an error.
fn in_field(error: Error, field: &str) -> Error {
    match error {
        Error::Invalid(invalid) => invalid.within(field).into(),
        other => other,
    }
}

fn to_wire(
    sae: &SaeRecord,
    index: u32,
    notes: FeatureNotes,
    numbers: FeatureNumbers,
) -> v1::SaeFeature {
    use v1::sae_feature::Activation as Wire;
    let FeatureNumbers {
        encoder,
        encoder_bias,
        decoder,
        activation,
    } = numbers;
    let activation = match activation {
        Activation::Relu => Wire::Relu(v1::ReluActivation {}),
        Activation::JumpRelu { threshold } => Wire::JumpRelu(v1::JumpReluActivation { threshold }),
        Activation::Gated {
            gate_bias,
            magnitude_scale,
            magnitude_bias,
        } => Wire::Gated(v1::GatedActivation {
            gate_bias,
            magnitude_scale,
            magnitude_bias,
        }),
    };
    v1::SaeFeature {
        sae_id: sae.name.clone(),
        sae_digest: sae.digest.clone(),
        feature_index: index,
        label: notes.label.unwrap_or_default(),
        hook_name: sae.hook_name.clone(),
        model_id: sae.model_id.clone(),
        encoder,
        encoder_bias,
        decoder,
        activation: Some(activation),
        input_normalization: sae.normalization.to_wire().into(),
        max_activation: notes.max_activation,
    }
}
