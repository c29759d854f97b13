//! The architecture, with every family switch.
//!
//! One decoder serves all families; this is the only place where they differ.
//! Every field of a model's own configuration is used or refused, so that no
//! model is ever served as something slightly else.

mod fields;
mod gguf;
mod hf;

use std::f64::consts::PI;

pub use fields::ConfigError;

/// Architecture of a decoder-only transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Family name as Hugging Face's `model_type`: `gemma2`, `gemma3_text`,
    /// `llama`, `qwen2`, `qwen3`.
    pub family: String,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of the MLP's inner activation.
    pub d_mlp: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Width of one head; not always `d_model / n_heads`.
    pub head_dim: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Positions the model was made for.
    pub context_length: usize,
    /// One entry per layer.
    pub layers: Vec<LayerConfig>,
    /// Rotary embeddings that layers refer to by index.
    pub ropes: Vec<RopeConfig>,
    /// Epsilon of every RMS norm.
    pub norm_eps: f64,
    /// Norm weights are stored as `w − 1` (Gemma's safetensors).
    pub norm_weight_offset: bool,
    /// Norms after attention and after the MLP too (Gemma 2 and 3).
    pub sandwich_norms: bool,
    /// RMS norm of every query and key head (Gemma 3, Qwen 3).
    pub qk_norm: bool,
    /// Biases on the query, key and value projections.
    pub qkv_bias: bool,
    /// Bias on attention's output projection.
    pub o_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// Gate activation of the MLP.
    pub activation: Activation,
    /// Embeddings are multiplied by `√d_model` (Gemma).
    pub scale_embeddings: bool,
    /// Factor on `q · k`: `1/√head_dim`, or `1/√query_pre_attn_scalar`.
    pub attention_scale: f64,
    /// `c · tanh(score / c)` on attention scores (Gemma 2).
    pub attention_softcap: Option<f64>,
    /// `c · tanh(logit / c)` on the logits (Gemma 2).
    pub final_softcap: Option<f64>,
    /// The output head is the embedding matrix.
    pub tied_embeddings: bool,
    /// End-of-sequence tokens the configuration names.
    pub eos_token_ids: Vec<u32>,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerConfig {
    /// Sliding window: a token sees itself and `window − 1` tokens before it.
    pub window: Option<usize>,
    /// Index into [`ModelConfig::ropes`].
    pub rope: usize,
}

/// Gate activation of the MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(x)`.
    Silu,
    /// GELU, tanh approximation.
    GeluTanh,
    /// GELU, exact.
    GeluErf,
}

/// A rotary position embedding (Su et al. 2021).
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Change of the frequencies for longer contexts.
    pub scaling: RopeScaling,
    /// Which components form a pair.
    pub pairing: RopePairing,
}

/// Change of rotary frequencies for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// Every frequency divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a ramp between.
    Llama3 {
        /// Divides the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high` are kept.
        high_freq_factor: f64,
        /// Context before the change.
        original_context: f64,
    },
    /// Each frequency divided by its own factor (GGUF's `rope_freqs`).
    Factors(Vec<f32>),
}

/// Which components of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairing {
    /// `(i, i + head_dim/2)`: Hugging Face, GPT-NeoX.
    Halves,
    /// `(2i, 2i + 1)`: Llama as GGUF stores it.
    Interleaved,
}

impl ModelConfig {
    /// Parses a Hugging Face `config.json`.
    pub(crate) fn from_hf(json: &str) -> Result<Self, ConfigError> {
        hf::parse(json)?.checked()
    }

    /// Reads the metadata of a GGUF file.
    pub(crate) fn from_gguf(
        content: &candle_core::quantized::gguf_file::Content,
    ) -> Result<Self, ConfigError> {
        gguf::parse(content)?.checked()
    }

    /// Width of all query heads together: the width of `attn.hook_z`.
    pub fn z_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all key heads together.
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Refuses shapes that no model has, before anything is allocated by them.
    fn checked(self) -> Result<Self, ConfigError> {
        let bounds = [
            ("hidden size", self.d_model, 1 << 16),
            ("intermediate size", self.d_mlp, 1 << 18),
            ("number of attention heads", self.n_heads, 1 << 10),
            ("number of key-value heads", self.n_kv_heads, 1 << 10),
            ("head dimension", self.head_dim, 1 << 12),
            ("vocabulary size", self.vocab_size, 1 << 22),
            ("number of layers", self.layers.len(), 1 << 10),
            ("context length", self.context_length, 1 << 28),
        ];
        for (name, value, most) in bounds {
            if value == 0 || value > most {
                return Err(ConfigError::invalid(
                    name,
                    format!("is {value}; must be 1 to {most}"),
                ));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let text = format!(
                "is {}, not divisible by the {} key-value heads",
                self.n_heads, self.n_kv_heads
            );
            return Err(ConfigError::invalid("number of attention heads", text));
        }
        if !self.head_dim.is_multiple_of(2) {
            let text = format!("is {}; rotary embeddings need an even one", self.head_dim);
            return Err(ConfigError::invalid("head dimension", text));
        }
        let numbers = [
            ("attention scale", Some(self.attention_scale)),
            ("attention softcap", self.attention_softcap),
            ("final softcap", self.final_softcap),
            ("norm epsilon", Some(self.norm_eps)),
        ];
        for (name, value) in numbers {
            if value.is_some_and(|v| !v.is_finite() || v <= 0.0) {
                return Err(ConfigError::invalid(name, "must be finite and above 0"));
            }
        }
        Ok(self)
    }
}

impl RopeConfig {
    /// Rotation per position for each pair of components, shape `[head_dim / 2]`.
    pub(crate) fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                // In f32 where transformers computes in f32.
                let exponent = (2 * i) as f32 / head_dim as f32;
                let frequency = 1.0 / (self.theta as f32).powf(exponent);
                self.scaling.scale(frequency, i)
            })
            .collect()
    }
}

impl RopeScaling {
    fn scale(&self, frequency: f32, pair: usize) -> f32 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / *factor as f32,
            Self::Factors(factors) => frequency / factors[pair],
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                let exact = f64::from(frequency);
                let wavelength = 2.0 * PI / exact;
                if wavelength > original_context / low_freq_factor {
                    return (exact / factor) as f32;
                }
                if wavelength < original_context / high_freq_factor {
                    return frequency;
                }
                let smooth = (original_context / wavelength - low_freq_factor)
                    / (high_freq_factor - low_freq_factor);
                ((1.0 - smooth) * exact / factor + smooth * exact) as f32
            }
        }
    }
}

#[cfg(test)]
mod tests;
