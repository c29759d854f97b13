//! JSON forms of the registry's messages. Their keys are a promise to scripts.

use serde::Serialize;
use steering_client::v1;

mod label;
mod statistics;
mod training;

pub(crate) use label::FeatureLabelView;
pub(crate) use statistics::{FeatureStatisticsView, StatisticsVersionView};
use training::TrainingView;

/// An SAE.
#[derive(Debug, Serialize)]
pub(crate) struct SaeView {
    sae_id: String,
    digest: String,
    hook_name: String,
    model_id: String,
    d_in: u32,
    d_sae: u32,
    architecture: String,
    input_normalization: &'static str,
    format: String,
    origin: String,
    created_at: Option<String>,
    label_count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) delete_time: Option<String>,
}

impl From<v1::Sae> for SaeView {
    fn from(sae: v1::Sae) -> Self {
        let input_normalization = normalization(sae.input_normalization());
        let v1::Sae {
            sae_id,
            digest,
            hook_name,
            model_id,
            d_in,
            d_sae,
            architecture,
            input_normalization: _, // above, by name
            format,
            origin,
            created_at,
            label_count,
            delete_time,
        } = sae;
        Self {
            sae_id,
            digest,
            hook_name,
            model_id,
            d_in,
            d_sae,
            architecture,
            input_normalization,
            format,
            origin,
            created_at: created_at.map(|time| time.to_string()),
            label_count,
            delete_time: delete_time.map(|time| time.to_string()),
        }
    }
}

impl SaeView {
    /// Cells of a table: name, hook point, model, sizes, architecture, labels.
    pub(crate) fn cells(&self) -> [String; 7] {
        [
            self.sae_id.clone(),
            self.hook_name.clone(),
            self.model_id.clone(),
            self.d_in.to_string(),
            self.d_sae.to_string(),
            self.architecture.clone(),
            self.label_count.to_string(),
        ]
    }

    /// Cells of a table of versions: name, digest, when it was stored, when it was deleted,
    /// labels.
    pub(crate) fn version_cells(&self) -> [String; 5] {
        [
            self.sae_id.clone(),
            self.digest.chars().take(12).collect(),
            self.created_at.clone().unwrap_or_default(),
            self.delete_time.clone().unwrap_or_default(),
            self.label_count.to_string(),
        ]
    }

    /// Names and values for a card.
    pub(crate) fn card(&self) -> Vec<(&'static str, String)> {
        vec![
            ("sae", self.sae_id.clone()),
            ("digest", self.digest.clone()),
            ("hook", self.hook_name.clone()),
            ("model", self.model_id.clone()),
            ("d_in", self.d_in.to_string()),
            ("d_sae", self.d_sae.to_string()),
            ("architecture", self.architecture.clone()),
            ("normalization", self.input_normalization.to_owned()),
            ("format", self.format.clone()),
            ("origin", self.origin.clone()),
            ("created", self.created_at.clone().unwrap_or_default()),
            ("labels", self.label_count.to_string()),
        ]
    }
}

/// A feature; its vectors only where asked for.
#[derive(Debug, Serialize)]
pub(crate) struct FeatureView {
    sae_id: String,
    sae_digest: String,
    feature_index: u32,
    label: String,
    hook_name: String,
    model_id: String,
    d_in: usize,
    encoder_bias: f32,
    activation: ActivationView,
    input_normalization: &'static str,
    max_activation: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoder: Option<Vec<f32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decoder: Option<Vec<f32>>,
}

/// How a feature's pre-activation becomes its activation.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum ActivationView {
    Unspecified,
    Relu,
    JumpRelu {
        threshold: f32,
    },
    Gated {
        gate_bias: f32,
        magnitude_scale: f32,
        magnitude_bias: f32,
    },
}

impl FeatureView {
    pub(crate) fn new(feature: v1::SaeFeature, with_vectors: bool) -> Self {
        let input_normalization = normalization(feature.input_normalization());
        let v1::SaeFeature {
            sae_id,
            sae_digest,
            feature_index,
            label,
            hook_name,
            model_id,
            encoder,
            encoder_bias,
            decoder,
            activation,
            input_normalization: _, // above, by name
            max_activation,
        } = feature;
        Self {
            sae_id,
            sae_digest,
            feature_index,
            label,
            hook_name,
            model_id,
            d_in: encoder.len(),
            encoder_bias,
            activation: activation_view(activation),
            input_normalization,
            max_activation,
            encoder: with_vectors.then_some(encoder),
            decoder: with_vectors.then_some(decoder),
        }
    }

    /// Names and values for a card.
    pub(crate) fn card(&self) -> Vec<(&'static str, String)> {
        let activation = match &self.activation {
            ActivationView::Unspecified => String::new(),
            ActivationView::Relu => "relu".to_owned(),
            ActivationView::JumpRelu { threshold } => format!("jump_relu, threshold {threshold}"),
            ActivationView::Gated {
                gate_bias,
                magnitude_scale,
                magnitude_bias,
            } => format!(
                "gated, gate_bias {gate_bias}, magnitude_scale {magnitude_scale}, \
                 magnitude_bias {magnitude_bias}"
            ),
        };
        let max = self.max_activation.map(|max| max.to_string());
        vec![
            ("sae", self.sae_id.clone()),
            ("index", self.feature_index.to_string()),
            ("label", self.label.clone()),
            ("hook", self.hook_name.clone()),
            ("model", self.model_id.clone()),
            ("d_in", self.d_in.to_string()),
            ("activation", activation),
            ("encoder_bias", self.encoder_bias.to_string()),
            ("normalization", self.input_normalization.to_owned()),
            (
                "max_activation",
                max.unwrap_or_else(|| "not known".to_owned()),
            ),
            ("sae_digest", self.sae_digest.clone()),
        ]
    }
}

fn activation_view(activation: Option<v1::sae_feature::Activation>) -> ActivationView {
    use v1::sae_feature::Activation;
    match activation {
        None => ActivationView::Unspecified,
        Some(Activation::Relu(v1::ReluActivation {})) => ActivationView::Relu,
        Some(Activation::JumpRelu(v1::JumpReluActivation { threshold })) => {
            ActivationView::JumpRelu { threshold }
        }
        Some(Activation::Gated(v1::GatedActivation {
            gate_bias,
            magnitude_scale,
            magnitude_bias,
        })) => ActivationView::Gated {
            gate_bias,
            magnitude_scale,
            magnitude_bias,
        },
    }
}

/// A CAV; its numbers only where asked for.
#[derive(Debug, Serialize)]
pub(crate) struct CavView {
    name: String,
    digest: String,
    model_id: String,
    directions: Vec<DirectionView>,
    origin: String,
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    training: Option<TrainingView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) delete_time: Option<String>,
}

#[derive(Debug, Serialize)]
struct DirectionView {
    hook_name: String,
    width: u32,
    norm: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    values: Option<Vec<f32>>,
}

impl CavView {
    pub(crate) fn new(cav: v1::Cav, with_vectors: bool) -> Self {
        let v1::Cav {
            name,
            digest,
            model_id,
            directions,
            origin,
            created_at,
            training,
            delete_time,
        } = cav;
        let direction = |direction: v1::CavDirection| {
            let v1::CavDirection {
                hook_name,
                width,
                norm,
                vector,
            } = direction;
            let values = vector.filter(|_| with_vectors).map(|vector| vector.values);
            DirectionView {
                hook_name,
                width,
                norm,
                values,
            }
        };
        Self {
            name,
            digest,
            model_id,
            directions: directions.into_iter().map(direction).collect(),
            origin,
            created_at: created_at.map(|time| time.to_string()),
            training: training.map(TrainingView::from),
            delete_time: delete_time.map(|time| time.to_string()),
        }
    }

    /// Cells of a table of versions: name, digest, when it was stored, when it was deleted.
    pub(crate) fn version_cells(&self) -> [String; 4] {
        [
            self.name.clone(),
            self.digest.chars().take(12).collect(),
            self.created_at.clone().unwrap_or_default(),
            self.delete_time.clone().unwrap_or_default(),
        ]
    }

    /// Cells of a table: name, hook points, width, norm, model, digest.
    pub(crate) fn cells(&self) -> [String; 6] {
        let join = |cell: fn(&DirectionView) -> String| {
            let cells: Vec<String> = self.directions.iter().map(cell).collect();
            cells.join(", ")
        };
        [
            self.name.clone(),
            join(|d| d.hook_name.clone()),
            join(|d| d.width.to_string()),
            join(|d| format!("{:.3}", d.norm)),
            self.model_id.clone(),
            self.digest.chars().take(12).collect(),
        ]
    }

    /// Cells of a table of what training says: name, examples, AUC, its interval, with
    /// permuted labels, of random directions, p, verdict. None if it was not trained here.
    pub(crate) fn training_cells(&self) -> Option<[String; 8]> {
        let training = self.training.as_ref()?;
        Some(training.cells(&self.name))
    }

    /// What training says of all labels together, if it was trained here.
    pub(crate) fn training_summary(&self) -> Option<String> {
        self.training.as_ref().map(TrainingView::summary)
    }

    /// Names and values for a card.
    pub(crate) fn card(&self) -> Vec<(&'static str, String)> {
        let mut card = vec![
            ("cav", self.name.clone()),
            ("digest", self.digest.clone()),
            ("model", self.model_id.clone()),
        ];
        for direction in &self.directions {
            let DirectionView {
                hook_name,
                width,
                norm,
                ..
            } = direction;
            let text = format!("{hook_name}, width {width}, norm {norm}");
            card.push(("direction", text));
        }
        card.push(("origin", self.origin.clone()));
        card.push(("created", self.created_at.clone().unwrap_or_default()));
        card.extend(self.training.iter().flat_map(TrainingView::card));
        card
    }
}

fn normalization(value: v1::InputNormalization) -> &'static str {
    match value {
        v1::InputNormalization::Unspecified => "unspecified",
        v1::InputNormalization::None => "none",
        v1::InputNormalization::ConstantNormRescale => "constant_norm_rescale",
        v1::InputNormalization::LayerNorm => "layer_norm",
    }
}
