//! Validated payloads: SAE features and vectors.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use crate::{
    HookPoint, Invalid,
    invalid::{finite, finite_vector, required},
    v1,
};

/// How a feature's pre-activation `z` becomes its activation `f`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// `max(z, 0)`.
    Relu,
    /// `max(z, 0) · 1[z > threshold]`.
    JumpRelu {
        /// Strict lower bound of `z` for the feature to fire.
        threshold: f32,
    },
    /// `1[z + gate_bias > 0] · max(z · magnitude_scale + magnitude_bias, 0)`.
    Gated {
        /// Added to `z` in the gate.
        gate_bias: f32,
        /// Factor of `z` in the magnitude.
        magnitude_scale: f32,
        /// Added in the magnitude.
        magnitude_bias: f32,
    },
}

impl Activation {
    /// The activation `f` for a pre-activation `z`.
    pub fn apply(self, z: f32) -> f32 {
        match self {
            Self::Relu => z.max(0.0),
            Self::JumpRelu { threshold } if z > threshold => z.max(0.0),
            Self::JumpRelu { .. } => 0.0,
            Self::Gated {
                gate_bias,
                magnitude_scale,
                magnitude_bias,
            } if z + gate_bias > 0.0 => (z * magnitude_scale + magnitude_bias).max(0.0),
            Self::Gated { .. } => 0.0,
        }
    }
}

/// Normalisation of the activation in front of an SAE's encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputNormalization {
    /// `x` as it is.
    None,
    /// `x · √d / ‖x‖`.
    ConstantNormRescale,
    /// `(x − mean) / (std + 1e-5)`, unbiased std.
    LayerNorm,
}

impl InputNormalization {
    /// The wire's value.
    pub fn to_wire(self) -> v1::InputNormalization {
        match self {
            Self::None => v1::InputNormalization::None,
            Self::ConstantNormRescale => v1::InputNormalization::ConstantNormRescale,
            Self::LayerNorm => v1::InputNormalization::LayerNorm,
        }
    }

    /// Parses the wire's value; unspecified and unknown values are refused.
    pub fn from_wire(value: i32, field: &str) -> Result<Self, Invalid> {
        match v1::InputNormalization::try_from(value) {
            Ok(v1::InputNormalization::None) => Ok(Self::None),
            Ok(v1::InputNormalization::ConstantNormRescale) => Ok(Self::ConstantNormRescale),
            Ok(v1::InputNormalization::LayerNorm) => Ok(Self::LayerNorm),
            Ok(v1::InputNormalization::Unspecified) | Err(_) => Err(Invalid::field(
                field,
                format!("is {value}; must be NONE, CONSTANT_NORM_RESCALE or LAYER_NORM"),
            )),
        }
    }
}

/// One SAE feature, checked: finite numbers, encoder and decoder of one width.
#[derive(Debug, Clone, PartialEq)]
pub struct SaeFeature {
    /// SAE's name, informative.
    pub sae_id: String,
    /// Row of `W_dec`.
    pub feature_index: u32,
    /// Best label, or empty.
    pub label: String,
    /// Model the SAE was trained on, or empty.
    pub model_id: String,
    /// Where it reads and writes.
    pub hook: HookPoint,
    /// `W_enc[:, i]`, shape `[d_in]`.
    pub encoder: Vec<f32>,
    /// `b_enc[i]`.
    pub encoder_bias: f32,
    /// `W_dec[i, :]`, shape `[d_in]`.
    pub decoder: Vec<f32>,
    /// `f(z)`.
    pub activation: Activation,
    /// Normalisation in front of the encoder.
    pub input_normalization: InputNormalization,
}

impl SaeFeature {
    /// What a report calls the feature: its label, else its index.
    pub fn display_name(&self) -> String {
        if self.label.is_empty() {
            format!("feature {}", self.feature_index)
        } else {
            self.label.clone()
        }
    }

    /// SHA-256 (hex) of everything that decides what the feature does.
    pub fn digest(&self) -> String {
        let mut numbers = vec![self.encoder_bias];
        let kind = match self.activation {
            Activation::Relu => "relu",
            Activation::JumpRelu { threshold } => {
                numbers.push(threshold);
                "jump_relu"
            }
            Activation::Gated {
                gate_bias,
                magnitude_scale,
                magnitude_bias,
            } => {
                numbers.extend([gate_bias, magnitude_scale, magnitude_bias]);
                "gated"
            }
        };
        let header = format!("{} {kind} {:?}", self.hook, self.input_normalization);
        digest(&header, &[&numbers, &self.encoder, &self.decoder])
    }
}

impl TryFrom<v1::SaeFeature> for SaeFeature {
    type Error = Invalid;

    fn try_from(wire: v1::SaeFeature) -> Result<Self, Invalid> {
        let v1::SaeFeature {
            sae_id,
            sae_digest: _, // informative: the worker reports its own digest of the numbers
            feature_index,
            label,
            hook_name,
            model_id,
            encoder,
            encoder_bias,
            decoder,
            activation,
            input_normalization,
            max_activation: _, // informative: strengths are resolved by the client
        } = wire;
        let hook = hook_name.parse()?;
        let encoder = finite_vector(encoder, "encoder")?;
        let decoder = finite_vector(decoder, "decoder")?;
        if encoder.len() != decoder.len() {
            return Err(Invalid::field(
                "decoder",
                format!(
                    "has {} components and encoder has {}; an SAE that writes where it reads has \
                     as many in both",
                    decoder.len(),
                    encoder.len()
                ),
            ));
        }
        Ok(Self {
            sae_id,
            feature_index,
            label,
            model_id,
            hook,
            encoder,
            encoder_bias: finite(encoder_bias, "encoder_bias")?,
            decoder,
            activation: parse_activation(required(activation, "activation")?)?,
            input_normalization: InputNormalization::from_wire(
                input_normalization,
                "input_normalization",
            )?,
        })
    }
}

fn parse_activation(wire: v1::sae_feature::Activation) -> Result<Activation, Invalid> {
    Ok(match wire {
        v1::sae_feature::Activation::Relu(v1::ReluActivation {}) => Activation::Relu,
        v1::sae_feature::Activation::JumpRelu(v1::JumpReluActivation { threshold }) => {
            Activation::JumpRelu {
                threshold: finite(threshold, "jump_relu.threshold")?,
            }
        }
        v1::sae_feature::Activation::Gated(v1::GatedActivation {
            gate_bias,
            magnitude_scale,
            magnitude_bias,
        }) => Activation::Gated {
            gate_bias: finite(gate_bias, "gated.gate_bias")?,
            magnitude_scale: finite(magnitude_scale, "gated.magnitude_scale")?,
            magnitude_bias: finite(magnitude_bias, "gated.magnitude_bias")?,
        },
    })
}

/// A vector in activation space, checked: at least one finite component.
#[derive(Debug, Clone, PartialEq)]
pub struct Vector {
    /// Name for reports, or empty.
    pub name: String,
    /// Components.
    pub values: Vec<f32>,
}

impl Vector {
    /// Euclidean norm, accumulated in f64.
    pub fn norm(&self) -> f64 {
        self.values
            .iter()
            .map(|&v| f64::from(v).powi(2))
            .sum::<f64>()
            .sqrt()
    }

    /// SHA-256 (hex) of the components.
    pub fn digest(&self) -> String {
        digest("vector", &[&self.values])
    }
}

impl TryFrom<v1::Vector> for Vector {
    type Error = Invalid;

    fn try_from(wire: v1::Vector) -> Result<Self, Invalid> {
        let v1::Vector { name, values } = wire;
        Ok(Self {
            name,
            values: finite_vector(values, "values")?,
        })
    }
}

/// SHA-256 (hex) of a header and lists of numbers, each list preceded by its
/// length, all little-endian.
pub fn digest(header: &str, lists: &[&[f32]]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(header.as_bytes());
    for list in lists {
        hasher.update((list.len() as u64).to_le_bytes());
        for value in *list {
            hasher.update(value.to_le_bytes());
        }
    }
    hex(&hasher.finalize())
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> v1::SaeFeature {
        v1::SaeFeature {
            hook_name: "blocks.1.hook_resid_post".to_owned(),
            encoder: vec![1.0, 2.0],
            decoder: vec![3.0, 4.0],
            activation: Some(v1::sae_feature::Activation::JumpRelu(
                v1::JumpReluActivation { threshold: 0.5 },
            )),
            input_normalization: v1::InputNormalization::None.into(),
            ..Default::default()
        }
    }

    #[test]
    fn jump_relu_is_strict_and_never_negative() {
        let at = |threshold, z| Activation::JumpRelu { threshold }.apply(z);
        assert_eq!(at(0.5, 0.5), 0.0);
        assert_eq!(at(0.5, 0.75), 0.75);
        assert_eq!(at(-1.0, -0.5), 0.0);
    }

    #[test]
    fn gate_and_magnitude_have_their_own_biases() {
        let gated = Activation::Gated {
            gate_bias: -1.0,
            magnitude_scale: 2.0,
            magnitude_bias: 0.5,
        };
        assert_eq!(gated.apply(1.0), 0.0);
        assert_eq!(gated.apply(2.0), 4.5);
    }

    #[test]
    fn features_are_checked_field_by_field() {
        assert!(SaeFeature::try_from(wire()).is_ok());
        type Spoil = fn(&mut v1::SaeFeature);
        let cases: [(&str, Spoil); 6] = [
            ("hook_name", |w| w.hook_name = "nowhere".to_owned()),
            ("encoder[1]", |w| w.encoder[1] = f32::INFINITY),
            ("decoder", |w| w.decoder.push(0.0)),
            ("encoder_bias", |w| w.encoder_bias = f32::NAN),
            ("activation", |w| w.activation = None),
            ("input_normalization", |w| w.input_normalization = 0),
        ];
        for (field, spoil) in cases {
            let mut feature = wire();
            spoil(&mut feature);
            let err = SaeFeature::try_from(feature).expect_err(field);
            assert_eq!(err.violations[0].field, field);
        }
    }

    #[test]
    fn digests_see_every_number() {
        let base = SaeFeature::try_from(wire()).expect("valid");
        let mut other = base.clone();
        other.activation = Activation::JumpRelu { threshold: 0.25 };
        assert_ne!(base.digest(), other.digest());
        other.clone_from(&base);
        other.label = "only a name".to_owned();
        assert_eq!(base.digest(), other.digest());
    }
}
