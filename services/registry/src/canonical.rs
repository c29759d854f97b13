//! The one form in which SAEs are kept: a safetensors file, feature-major.
//!
//! | tensor | shape, f32 | what |
//! |---|---|---|
//! | `decoder` | `[d_sae, d_in]` | row i is d_i, what feature i writes |
//! | `encoder` | `[d_sae, d_in]` | row i is W_enc[:, i], what feature i reads |
//! | `scalars` | `[d_sae, 1..=3]` | see [`Architecture::scalar_count`] |
//! | `b_dec` | `[d_in]` | the decoder's bias |
//!
//! Everything that an import can fold (b_dec in front of the encoder, scales,
//! decoder norms) is folded, so a feature is its rows and its scalars. The
//! matrices are apart, not interleaved: a search over the decoder then reads
//! half the bytes, and three small reads of one file cost little more than
//! one. The decoder comes first because its norms may scale the encoder.

use std::ops::Range;

use serde_json::json;
use steering_proto::payload::{Activation, InputNormalization};

/// Rows begin at a multiple of this, for readers that map the file.
const ALIGNMENT: usize = 64;
/// The form's name, in the file's metadata.
pub const FORMAT: &str = "steer.sae.v1";
const F32: u64 = size_of::<f32>() as u64;

/// How a pre-activation becomes an activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `max(z, 0)`.
    Relu,
    /// `max(z, 0) · 1[z > threshold]`.
    JumpRelu,
    /// A gate and a magnitude on one direction.
    Gated,
}

impl Architecture {
    /// Its name in the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Relu => "relu",
            Self::JumpRelu => "jumprelu",
            Self::Gated => "gated",
        }
    }

    /// The architecture of that name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Relu, Self::JumpRelu, Self::Gated]
            .into_iter()
            .find(|architecture| architecture.as_str() == name)
    }

    /// Numbers per feature in `scalars`: relu `[bias]`; jumprelu `[bias,
    /// threshold]`; gated `[gate_bias, magnitude_scale, magnitude_bias]`.
    pub fn scalar_count(self) -> usize {
        match self {
            Self::Relu => 1,
            Self::JumpRelu => 2,
            Self::Gated => 3,
        }
    }
}

/// Name of a normalisation in stored metadata.
pub fn normalization_name(normalization: InputNormalization) -> &'static str {
    match normalization {
        InputNormalization::None => "none",
        InputNormalization::ConstantNormRescale => "constant_norm_rescale",
        InputNormalization::LayerNorm => "layer_norm",
    }
}

/// The normalisation of that name.
pub fn parse_normalization(name: &str) -> Option<InputNormalization> {
    [
        InputNormalization::None,
        InputNormalization::ConstantNormRescale,
        InputNormalization::LayerNorm,
    ]
    .into_iter()
    .find(|&normalization| normalization_name(normalization) == name)
}

/// Where things are in a canonical file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Decides how many scalars a feature has.
    pub architecture: Architecture,
    /// Components of a row.
    pub d_in: u32,
    /// Number of features.
    pub d_sae: u32,
    /// Offset of the first tensor, in bytes.
    pub data_start: u64,
}

/// A feature's numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureNumbers {
    /// Shape `[d_in]`.
    pub encoder: Vec<f32>,
    /// Added to x · encoder.
    pub encoder_bias: f32,
    /// Shape `[d_in]`.
    pub decoder: Vec<f32>,
    /// From pre-activation to activation.
    pub activation: Activation,
}

impl Layout {
    /// The layout of a new file and its header (everything in front of the tensors).
    pub fn new(
        architecture: Architecture,
        normalization: InputNormalization,
        d_in: u32,
        d_sae: u32,
    ) -> (Self, Vec<u8>) {
        let mut layout = Self {
            architecture,
            d_in,
            d_sae,
            data_start: 0,
        };
        let ends = layout.tensor_ends();
        let scalar_count = architecture.scalar_count();
        let header = json!({
            "__metadata__": {
                "format": FORMAT,
                "architecture": architecture.as_str(),
                "input_normalization": normalization_name(normalization),
            },
            "decoder": {"dtype": "F32", "shape": [d_sae, d_in], "data_offsets": [0, ends[0]]},
            "encoder": {"dtype": "F32", "shape": [d_sae, d_in], "data_offsets": [ends[0], ends[1]]},
            "scalars": {"dtype": "F32", "shape": [d_sae, scalar_count], "data_offsets": [ends[1], ends[2]]},
            "b_dec": {"dtype": "F32", "shape": [d_in], "data_offsets": [ends[2], ends[3]]},
        });
        let mut json = header.to_string().into_bytes();
        json.resize((8 + json.len()).next_multiple_of(ALIGNMENT) - 8, b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json);
        layout.data_start = bytes.len() as u64;
        (layout, bytes)
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.data_start + self.tensor_ends()[3]
    }

    /// Byte ranges of a feature's decoder row, encoder row and scalars.
    pub fn feature_ranges(&self, index: u32) -> [Range<u64>; 3] {
        let ends = self.tensor_ends();
        let scalars_len = self.architecture.scalar_count() as u64 * F32;
        let row_len = u64::from(self.d_in) * F32;
        let item = |tensor_start: u64, len: u64| {
            let start = self.data_start + tensor_start + u64::from(index) * len;
            start..start + len
        };
        [
            item(0, row_len),
            item(ends[0], row_len),
            item(ends[1], scalars_len),
        ]
    }

    /// Byte range of consecutive features' decoder rows.
    pub fn decoder_range(&self, features: Range<u32>) -> Range<u64> {
        self.rows_range(0, u64::from(self.d_in) * F32, features)
    }

    /// Byte ranges of consecutive features' encoder rows and scalars.
    pub fn encoder_ranges(&self, features: Range<u32>) -> [Range<u64>; 2] {
        let ends = self.tensor_ends();
        let scalars_len = self.architecture.scalar_count() as u64 * F32;
        [
            self.rows_range(ends[0], u64::from(self.d_in) * F32, features.clone()),
            self.rows_range(ends[1], scalars_len, features),
        ]
    }

    fn rows_range(&self, tensor_start: u64, row_len: u64, features: Range<u32>) -> Range<u64> {
        let at = |index: u32| self.data_start + tensor_start + u64::from(index) * row_len;
        at(features.start)..at(features.end)
    }

    /// Puts a feature together from the bytes of [`Layout::feature_ranges`].
    /// None if their lengths are wrong.
    pub fn decode_feature(
        &self,
        decoder: &[u8],
        encoder: &[u8],
        scalars: &[u8],
    ) -> Option<FeatureNumbers> {
        let floats = |bytes: &[u8], len: usize| {
            let (cells, rest) = bytes.as_chunks::<4>();
            (rest.is_empty() && cells.len() == len).then(|| {
                cells
                    .iter()
                    .map(|cell| f32::from_le_bytes(*cell))
                    .collect::<Vec<f32>>()
            })
        };
        let width = usize::try_from(self.d_in).ok()?;
        let scalars = floats(scalars, self.architecture.scalar_count())?;
        let (encoder_bias, activation) = match (self.architecture, scalars.as_slice()) {
            (Architecture::Relu, &[bias]) => (bias, Activation::Relu),
            (Architecture::JumpRelu, &[bias, threshold]) => {
                (bias, Activation::JumpRelu { threshold })
            }
            (Architecture::Gated, &[gate_bias, magnitude_scale, magnitude_bias]) => (
                0.0,
                Activation::Gated {
                    gate_bias,
                    magnitude_scale,
                    magnitude_bias,
                },
            ),
            _ => return None,
        };
        Some(FeatureNumbers {
            encoder: floats(encoder, width)?,
            encoder_bias,
            decoder: floats(decoder, width)?,
            activation,
        })
    }

    /// End of each tensor, counted from `data_start`.
    fn tensor_ends(&self) -> [u64; 4] {
        let matrix = u64::from(self.d_sae) * u64::from(self.d_in) * F32;
        let scalars = u64::from(self.d_sae) * self.architecture.scalar_count() as u64 * F32;
        let bias = u64::from(self.d_in) * F32;
        [
            matrix,
            2 * matrix,
            2 * matrix + scalars,
            2 * matrix + scalars + bias,
        ]
    }
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;

    #[test]
    fn other_readers_see_the_same_tensors() {
        let (layout, mut file) =
            Layout::new(Architecture::JumpRelu, InputNormalization::None, 3, 5);
        assert_eq!(layout.data_start % ALIGNMENT as u64, 0);
        let floats = 5 * 3 * 2 + 5 * 2 + 3;
        file.extend((0_u16..floats).flat_map(|i| f32::from(i).to_le_bytes()));
        assert_eq!(file.len() as u64, layout.file_len());
        let tensors = SafeTensors::deserialize(&file).expect("valid safetensors");
        for (i, name) in ["decoder", "encoder", "scalars"].into_iter().enumerate() {
            let view = tensors.tensor(name).expect("tensor");
            let row_len = view.data().len() / 5;
            let range = &layout.feature_ranges(4)[i];
            let range = usize::try_from(range.start).expect("small")
                ..usize::try_from(range.end).expect("small");
            assert_eq!(file[range], view.data()[4 * row_len..]);
        }
        assert_eq!(tensors.tensor("b_dec").expect("tensor").shape(), [3]);
    }
}
