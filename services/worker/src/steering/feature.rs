//! The activation of one SAE feature on one activation vector, in f32.

use steering_proto::payload::{InputNormalization, SaeFeature};

use super::math::{dot, mean_and_std, norm};

/// A feature's activation, and what undoes the input normalisation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Activated {
    /// `f(x)`.
    pub(super) f: f32,
    /// Factor of a delta along the decoder; none where `x` cannot be
    /// normalised, and nothing must be written.
    pub(super) undo: Option<f32>,
}

/// `f(x) = act(n(x) · e + b)`.
pub(super) fn activate(feature: &SaeFeature, x: &[f32]) -> Activated {
    let projection = dot(x, &feature.encoder);
    let (normalized, undo) = match feature.input_normalization {
        InputNormalization::None => (projection, Some(1.0)),
        InputNormalization::ConstantNormRescale => {
            let scale = (x.len() as f32).sqrt() / norm(x);
            if scale.is_finite() {
                (projection * scale, Some(scale.recip()))
            } else {
                (0.0, None) // the zero vector has no direction to rescale
            }
        }
        InputNormalization::LayerNorm => {
            let (mean, std) = mean_and_std(x);
            let centred = projection - mean * feature.encoder.iter().sum::<f32>();
            (centred / (std + 1e-5), Some(std))
        }
    };
    Activated {
        f: feature.activation.apply(normalized + feature.encoder_bias),
        undo,
    }
}
