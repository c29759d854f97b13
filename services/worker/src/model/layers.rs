//! Small layers: linear maps, norms, embeddings, the MLP.

use std::sync::Arc;

use candle_core::{
    CpuStorage, D, DType, Layout, Module, Result, Storage, StorageRef, Tensor,
    quantized::{QMatMul, QTensor},
};

use super::{
    config::Activation,
    kernels::{self, Format, Weights},
};

/// `x · Wᵀ + b`, with W `[out, in]` dense or quantised.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) weight: Matrix,
    pub(super) bias: Option<Tensor>,
}

/// A matrix `[out, in]`.
#[derive(Debug, Clone)]
pub(super) enum Matrix {
    /// In the model's dtype, contiguous.
    Dense(Tensor),
    /// In a GGML block format.
    Quantized(Arc<QMatMul>, Arc<QTensor>),
}

impl Matrix {
    pub(super) fn dense(tensor: &Tensor) -> Result<Self> {
        Ok(Self::Dense(tensor.contiguous()?))
    }

    /// On the CPU, formats without a product of their own are expanded.
    pub(super) fn quantized(tensor: QTensor, dtype: DType) -> Result<Self> {
        let device = tensor.device();
        if device.is_cpu() && Format::of_ggml(tensor.dtype()).is_none() {
            return Self::dense(&tensor.dequantize(&device)?.to_dtype(dtype)?);
        }
        let tensor = Arc::new(tensor);
        Ok(Self::Quantized(
            Arc::new(QMatMul::from_arc(tensor.clone())?),
            tensor,
        ))
    }

    /// `x · Wᵀ` for x `[n, in]`; the result is of x's type.
    pub(super) fn product(&self, x: &Tensor) -> Result<Tensor> {
        if x.device().is_cpu() {
            return self.product_on_cpu(x);
        }
        match self {
            Self::Dense(weight) => x.matmul(&weight.t()?),
            Self::Quantized(product, _) => {
                let y = product.forward(&x.to_dtype(DType::F32)?.contiguous()?)?;
                y.to_dtype(x.dtype())
            }
        }
    }

    fn product_on_cpu(&self, x: &Tensor) -> Result<Tensor> {
        let (m, in_width) = x.dims2()?;
        let values = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let run = |format, bytes: &[u8], out_width| {
            let weights = Weights {
                format,
                bytes,
                out_width,
                in_width,
            };
            let y = kernels::product(&values, m, &weights);
            Tensor::from_vec(y, (m, out_width), x.device())?.to_dtype(x.dtype())
        };
        match self {
            Self::Quantized(_, tensor) => {
                let (out_width, _) = tensor.shape().dims2()?;
                let Some(format) = Format::of_ggml(tensor.dtype()) else {
                    candle_core::bail!("no product for {:?}", tensor.dtype());
                };
                run(format, &tensor.data()?, out_width)
            }
            Self::Dense(weight) => {
                let (storage, _) = weight.storage_and_layout();
                let Storage::Cpu(storage) = &*storage else {
                    candle_core::bail!("weights are not on the CPU");
                };
                let out_width = weight.dim(0)?;
                match storage {
                    CpuStorage::F32(w) => run(Format::F32, bytemuck::cast_slice(w), out_width),
                    CpuStorage::F16(w) => run(Format::F16, bytemuck::cast_slice(w), out_width),
                    CpuStorage::BF16(w) => run(Format::Bf16, bytemuck::cast_slice(w), out_width),
                    _ => candle_core::bail!("weights have type {:?}", weight.dtype()),
                }
            }
        }
    }

    /// Rows by index, `[n, in]`, in `dtype`.
    pub(super) fn rows(&self, ids: &Tensor, dtype: DType) -> Result<Tensor> {
        match self {
            Self::Dense(weight) => weight.index_select(ids, 0)?.to_dtype(dtype),
            Self::Quantized(_, tensor) => tensor.embedding(ids)?.to_dtype(dtype),
        }
    }
}

impl Linear {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.weight.product(x)?;
        match &self.bias {
            None => Ok(y),
            Some(bias) => y.broadcast_add(bias),
        }
    }
}

/// Root-mean-square norm (Zhang & Sennrich 2019), in f32.
#[derive(Debug)]
pub(super) struct RmsNorm {
    weight: Tensor,
    eps: f64,
    /// Gemma multiplies by the weight before casting back; Llama and Qwen after.
    scale_in_f32: bool,
}

impl RmsNorm {
    /// `weight` as stored; with `offset`, Gemma's `1 + weight`.
    pub(super) fn new(weight: &Tensor, eps: f64, offset: bool) -> Result<Self> {
        let weight = weight.to_dtype(DType::F32)?;
        Ok(Self {
            weight: if offset { (weight + 1.0)? } else { weight },
            eps,
            scale_in_f32: offset,
        })
    }

    /// Normalises the last dimension.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let dtype = x.dtype();
        let x = x.to_dtype(DType::F32)?;
        let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = x.broadcast_div(&(mean_square + self.eps)?.sqrt()?)?;
        if self.scale_in_f32 || dtype == DType::F32 {
            return normed.broadcast_mul(&self.weight)?.to_dtype(dtype);
        }
        normed
            .to_dtype(dtype)?
            .broadcast_mul(&self.weight.to_dtype(dtype)?)
    }
}

/// Gated MLP: `down(act(gate(x)) · up(x))`.
#[derive(Debug)]
pub(super) struct Mlp {
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
    pub(super) activation: Activation,
}

impl Mlp {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gate = self.gate.forward(x)?;
        let gate = match self.activation {
            Activation::Silu => gate.silu()?,
            Activation::GeluTanh => gate.gelu()?,
            Activation::GeluErf => gate.gelu_erf()?,
        };
        self.down.forward(&(gate * self.up.forward(x)?)?)
    }
}

/// `c · tanh(x / c)`.
pub(super) fn softcap(x: Tensor, cap: Option<f64>) -> Result<Tensor> {
    match cap {
        None => Ok(x),
        Some(cap) => (x / cap)?.tanh()? * cap,
    }
}

/// The numbers of a contiguous f32 tensor on the CPU, where they are.
pub(super) struct Floats<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Floats<'a> {
    pub(super) fn of(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout }
    }

    pub(super) fn slice(&self) -> Result<&[f32]> {
        match (&*self.storage, self.layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => Ok(&values[start..end]),
            _ => candle_core::bail!("not a contiguous f32 tensor on the CPU"),
        }
    }
}
