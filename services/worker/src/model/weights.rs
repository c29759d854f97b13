//! Weights by name, from safetensors or GGUF, dense or quantised.

mod gguf;
mod names;
mod safetensors;

use std::{collections::BTreeSet, str::FromStr};

use candle_core::{DType, Device, Tensor, quantized::GgmlDType, quantized::QTensor};

use super::{
    layers::Linear,
    matrix::{Matrix, Packed},
};

pub(super) use gguf::GgufFile;
pub(super) use names::{LayerPart, Part, Scheme};
pub(super) use safetensors::SafetensorsFiles;

/// Weights that cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// A tensor is not in the files.
    #[error("the weights have no tensor {0:?}, which the configuration calls for")]
    Missing(String),
    /// A tensor has another shape than the configuration says.
    #[error("tensor {name:?} has shape {found:?}; the configuration calls for {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by the configuration.
        expected: Vec<usize>,
    },
    /// A tensor has a type that cannot be used.
    #[error("tensor {name:?} has type {dtype}; supported are F32, F16, BF16, F64")]
    DType {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// Tensors that nothing uses: the configuration is for another model.
    #[error("the weights have tensors that the configuration does not call for: {0}")]
    Unused(String),
    /// A file is malformed.
    #[error("{file}: {problem}")]
    File {
        /// The file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// From the tensor library.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// A block format to quantise weights to when they are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantization(GgmlDType);

impl Quantization {
    const NAMES: [(&'static str, GgmlDType); 8] = [
        ("q4_0", GgmlDType::Q4_0),
        ("q4_1", GgmlDType::Q4_1),
        ("q5_0", GgmlDType::Q5_0),
        ("q5_1", GgmlDType::Q5_1),
        ("q8_0", GgmlDType::Q8_0),
        ("q4k", GgmlDType::Q4K),
        ("q5k", GgmlDType::Q5K),
        ("q6k", GgmlDType::Q6K),
    ];

    /// Name, e.g. `q4k`.
    pub fn name(self) -> &'static str {
        let known = Self::NAMES.iter().find(|(_, dtype)| *dtype == self.0);
        known.map_or("unknown", |(name, _)| name)
    }

    /// The format for a matrix whose rows have `width` elements: this one, or
    /// q8_0 where its blocks do not fit, or none. llama.cpp falls back alike.
    fn for_width(self, width: usize) -> Option<GgmlDType> {
        [self.0, GgmlDType::Q8_0]
            .into_iter()
            .find(|dtype| width.is_multiple_of(dtype.block_size()))
    }
}

impl FromStr for Quantization {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let canonical = name.to_ascii_lowercase().replace("_k", "k");
        Self::NAMES
            .iter()
            .find(|(known, _)| *known == canonical)
            .map(|(_, dtype)| Self(*dtype))
            .ok_or_else(|| {
                let known: Vec<_> = Self::NAMES.iter().map(|(known, _)| *known).collect();
                format!("{name:?} is not known; supported are {}", known.join(", "))
            })
    }
}

/// How weights become tensors of the model.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) dtype: DType,
    pub(super) device: Device,
    /// Quantise matrices on load.
    pub(super) quantize: Option<Quantization>,
    /// Expand matrices that are stored quantised.
    pub(super) dequantize: bool,
    /// Leave matrices of 16-bit floats so, for activations in f32.
    pub(super) halves: bool,
}

/// A set of weight files.
pub(super) trait Source {
    /// A tensor as stored; `None` if there is none of that name.
    fn load(&self, name: &str, device: &Device) -> Result<Option<Stored>, WeightsError>;

    /// Numbers in all tensors.
    fn elements(&self) -> usize;

    /// Names of all tensors.
    fn names(&self) -> Vec<String>;
}

/// Numbers in tensors of these shapes, which nobody has checked yet.
fn elements<'a>(shapes: impl Iterator<Item = &'a [usize]>) -> usize {
    let count = |shape: &[usize]| shape.iter().fold(1, |n: usize, dim| n.saturating_mul(*dim));
    shapes.map(count).fold(0, usize::saturating_add)
}

/// A tensor as a file has it.
pub(super) enum Stored {
    Dense(Tensor),
    /// For the CPU, of a type that has a product there.
    Packed(Packed),
    Quantized(QTensor),
}

impl Stored {
    fn dims(&self) -> &[usize] {
        match self {
            Self::Dense(tensor) => tensor.dims(),
            Self::Packed(packed) => packed.dims(),
            Self::Quantized(tensor) => tensor.shape().dims(),
        }
    }

    fn dense(self) -> candle_core::Result<Tensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor),
            Self::Packed(packed) => packed.dequantized(),
            Self::Quantized(tensor) => tensor.dequantize(&tensor.device()),
        }
    }
}

/// Loads tensors and keeps account of them.
pub(super) struct Loader<'a> {
    source: &'a dyn Source,
    scheme: Scheme,
    target: Target,
    used: BTreeSet<String>,
    /// Matrices that `--quantize` left in another format than asked for.
    fallbacks: usize,
}

impl<'a> Loader<'a> {
    pub(super) fn new(source: &'a dyn Source, scheme: Scheme, target: Target) -> Self {
        Self {
            source,
            scheme,
            target,
            used: BTreeSet::new(),
            fallbacks: 0,
        }
    }

    fn stored(&mut self, part: Part, shape: &[usize]) -> Result<Stored, WeightsError> {
        let name = self.scheme.name(part);
        let stored = self
            .source
            .load(&name, &self.target.device)?
            .ok_or_else(|| WeightsError::Missing(name.clone()))?;
        let found = stored.dims();
        if found != shape {
            return Err(WeightsError::Shape {
                name,
                found: found.to_vec(),
                expected: shape.to_vec(),
            });
        }
        self.used.insert(name);
        Ok(stored)
    }

    /// A vector, in f32 for norms (`keep_f32`) or in the model's dtype.
    pub(super) fn vector(
        &mut self,
        part: Part,
        len: usize,
        keep_f32: bool,
    ) -> Result<Tensor, WeightsError> {
        let dtype = if keep_f32 {
            DType::F32
        } else {
            self.target.dtype
        };
        Ok(self.stored(part, &[len])?.dense()?.to_dtype(dtype)?)
    }

    /// A matrix `[out, in]`, quantised to `quantize` if it is stored dense.
    fn matrix_as(
        &mut self,
        part: Part,
        shape: (usize, usize),
        quantize: Option<Quantization>,
    ) -> Result<Matrix, WeightsError> {
        let Target {
            dtype,
            device,
            dequantize,
            halves,
            quantize: _,
        } = self.target.clone();
        let tensor = match self.stored(part, &[shape.0, shape.1])? {
            Stored::Packed(packed) if packed.suits(dtype, dequantize, halves) => {
                return Ok(Matrix::packed(packed));
            }
            stored if dequantize => stored.dense()?,
            Stored::Packed(packed) => packed.dequantized()?,
            Stored::Quantized(tensor) => return Ok(Matrix::quantized(tensor, dtype)?),
            Stored::Dense(tensor) => tensor,
        };
        if let Some(wanted) = quantize {
            let fitting = wanted.for_width(shape.1);
            self.fallbacks += usize::from(fitting != Some(wanted.0));
            if let Some(format) = fitting {
                let quantized = QTensor::quantize(&tensor.to_dtype(DType::F32)?, format)?;
                if dequantize {
                    return Ok(Matrix::dense(
                        &quantized.dequantize(&device)?.to_dtype(dtype)?,
                    )?);
                }
                return Ok(Matrix::quantized(quantized, dtype)?);
            }
        }
        let half = matches!(tensor.dtype(), DType::F16 | DType::BF16);
        if halves && half && dtype == DType::F32 {
            return Ok(Matrix::dense(&tensor)?);
        }
        Ok(Matrix::dense(&tensor.to_dtype(dtype)?)?)
    }

    /// The embedding or the output head. Quantised no further than q8_0: they
    /// lose most, and GGUF files keep them finer than the rest too.
    pub(super) fn embedding(
        &mut self,
        part: Part,
        shape: (usize, usize),
    ) -> Result<Matrix, WeightsError> {
        let quantize = self.target.quantize.map(|_| Quantization(GgmlDType::Q8_0));
        self.matrix_as(part, shape, quantize)
    }

    /// A linear map `in → out`.
    pub(super) fn linear(
        &mut self,
        weight: Part,
        bias: Option<Part>,
        (in_width, out_width): (usize, usize),
    ) -> Result<Linear, WeightsError> {
        let weight = self.matrix_as(weight, (out_width, in_width), self.target.quantize)?;
        let bias = bias
            .map(|part| self.vector(part, out_width, false))
            .transpose()?;
        Ok(Linear { weight, bias })
    }

    /// An optional vector outside the layers, e.g. rotary factors.
    pub(super) fn optional_vector(
        &mut self,
        name: &str,
        len: usize,
    ) -> Result<Option<Vec<f32>>, WeightsError> {
        let Some(stored) = self.source.load(name, &Device::Cpu)? else {
            return Ok(None);
        };
        self.used.insert(name.to_owned());
        if stored.dims() != [len] {
            return Err(WeightsError::Missing(format!("{name} of length {len}")));
        }
        Ok(Some(stored.dense()?.to_dtype(DType::F32)?.to_vec1()?))
    }

    /// Refuses files that hold more than was used. Returns how many matrices
    /// could not take the quantisation asked for.
    pub(super) fn finish(self) -> Result<usize, WeightsError> {
        let unused: Vec<String> = self
            .source
            .names()
            .into_iter()
            .filter(|name| !self.used.contains(name) && !self.scheme.is_redundant(name))
            .take(5)
            .collect();
        if unused.is_empty() {
            Ok(self.fallbacks)
        } else {
            Err(WeightsError::Unused(unused.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests;
