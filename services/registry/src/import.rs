//! Import of SAEs: every format becomes an [`SaeSource`], and every source is
//! written in the canonical form of [`crate::canonical`].
//!
//! One file per format decides what the format's numbers mean; [`convert`] is
//! the only place that folds and transposes. What cannot be served exactly is
//! refused with the reason (TopK, transcoders, …), never approximated.

pub mod access;
pub mod config_file;
pub mod convert;
pub mod detect;
pub mod dictionary_learning;
pub mod gemma_scope;
pub mod gemma_scope2;
pub mod hub;
pub mod options;
pub mod saelens;
pub mod steer;
pub mod tensors;

use std::path::Path;

use steering_proto::{HookPoint, payload::InputNormalization};

use crate::{
    canonical::Architecture,
    format::{FormatError, features::Matrix, malformed, unservable},
    progress::Progress,
};
use detect::{Found, Kind};

/// Largest d_in: wider than any published residual stream or MLP.
const WIDTH_MAX: usize = 1 << 17;
/// Largest d_sae.
const FEATURES_MAX: usize = 1 << 24;

/// An SAE as its files describe it: weights still in the files, meaning decided.
#[derive(Debug)]
pub struct SaeSource {
    /// Name of the format.
    pub format: &'static str,
    /// Hook point, if the files say or suggest one.
    pub hook: Option<HookHint>,
    /// Model, if the files say or suggest one.
    pub model_id: Option<String>,
    /// W_enc.
    pub encoder: Matrix,
    /// W_dec.
    pub decoder: Matrix,
    /// Biases and thresholds.
    pub activation: ActivationSource,
    /// Shape `[d_in]`.
    pub b_dec: Vec<f32>,
    /// Whether b_dec is subtracted from the (normalised) input: z = (n(x) − b_dec) · W_enc + b_enc.
    pub subtracts_b_dec: bool,
    /// Normalisation in front of the encoder.
    pub normalization: InputNormalization,
    /// Whether it was trained on activations scaled to an expected average
    /// norm, with the scale not folded in ("expected_average_only_in").
    pub expects_average_norm: bool,
    /// Whether activations are counted as z‖d_i‖ and written along d_i/‖d_i‖.
    pub rescales_by_decoder_norm: bool,
}

/// A hook point from the files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookHint {
    /// Stated: a request that says otherwise is refused.
    Stated(HookPoint),
    /// Stated, but no hook point that is known.
    Unknown(String),
    /// Suggested by a folder's name or by convention: a request may say otherwise.
    Implied(HookPoint),
}

/// Biases and thresholds per feature, each of shape `[d_sae]`.
#[derive(Debug)]
pub enum ActivationSource {
    /// `f = max(z, 0)`.
    Relu {
        /// Encoder's bias.
        b_enc: Vec<f32>,
    },
    /// `f = max(z, 0) · 1[z > threshold]`.
    JumpRelu {
        /// Encoder's bias.
        b_enc: Vec<f32>,
        /// Strict lower bounds.
        threshold: Vec<f32>,
    },
    /// `f = 1[z + b_gate > 0] · max(e^r_mag · z + b_mag, 0)`.
    Gated {
        /// Bias of the gate.
        b_gate: Vec<f32>,
        /// Logarithm of the magnitude's factor.
        r_mag: Vec<f32>,
        /// Bias of the magnitude.
        b_mag: Vec<f32>,
    },
    /// Scalars as they are stored, everything folded in.
    Stored {
        /// Which ones.
        architecture: Architecture,
        /// Shape `[d_sae, scalar_count]`.
        scalars: Vec<f32>,
    },
}

impl ActivationSource {
    /// The canonical architecture.
    pub fn architecture(&self) -> Architecture {
        match self {
            Self::Relu { .. } => Architecture::Relu,
            Self::JumpRelu { .. } => Architecture::JumpRelu,
            Self::Gated { .. } => Architecture::Gated,
            Self::Stored { architecture, .. } => *architecture,
        }
    }
}

impl SaeSource {
    /// Reads what `found` is made of. `scratch` takes inflated copies.
    pub fn read(found: &Found, scratch: &Path, progress: &Progress) -> Result<Self, FormatError> {
        let source = match found.kind {
            Kind::GemmaScope => gemma_scope::read(found, scratch, progress),
            Kind::GemmaScope2 => gemma_scope2::read(found),
            Kind::SaeLens => saelens::read(found),
            Kind::Steer => steer::read(found),
            Kind::DictionaryLearning => dictionary_learning::read(found, scratch, progress),
        };
        let source = source.map_err(|error| error.within(found.weights.name()))?;
        source.check_shapes()?;
        Ok(source)
    }

    fn check_shapes(&self) -> Result<(), FormatError> {
        let Self {
            encoder, decoder, ..
        } = self;
        if (encoder.features(), encoder.width()) != (decoder.features(), decoder.width()) {
            return Err(malformed(format!(
                "{} is for {} features of width {}, {} for {} of width {}; an SAE that writes where it \
                 reads has the same in both",
                encoder.name(),
                encoder.features(),
                encoder.width(),
                decoder.name(),
                decoder.features(),
                decoder.width()
            )));
        }
        if encoder.width() > WIDTH_MAX || encoder.features() > FEATURES_MAX {
            return Err(unservable(format!(
                "{} features of width {} are more than this registry holds ({FEATURES_MAX}, {WIDTH_MAX})",
                encoder.features(),
                encoder.width()
            )));
        }
        Ok(())
    }
}
