//! Small layers: linear maps, norms, embeddings, the MLP.

use candle_core::{CpuStorage, D, DType, Device, Layout, Result, Storage, StorageRef, Tensor};

use super::{
    config::Activation,
    kernels::{self, Gate, Norm},
    matrix::Matrix,
};

/// `x · Wᵀ + b`, with W `[out, in]` dense or quantised.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) weight: Matrix,
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let [y] = Self::forward_all([self], x)?;
        Ok(y)
    }

    /// Several maps of one input.
    pub(super) fn forward_all<const N: usize>(maps: [&Self; N], x: &Tensor) -> Result<[Tensor; N]> {
        let mut results = match x.device().is_cpu() {
            true => Self::products_on_cpu(maps, x)?,
            false => maps
                .iter()
                .map(|map| map.weight.product(x))
                .collect::<Result<_>>()?,
        };
        for (map, y) in maps.iter().zip(&mut results) {
            if let Some(bias) = &map.bias {
                *y = y.broadcast_add(bias)?;
            }
        }
        let n = results.len();
        results
            .try_into()
            .map_err(|_| candle_core::Error::Msg(format!("{n} products of {N} maps")))
    }

    /// [`Self::forward`] of few rows to very many columns and a [`softcap`], to `out`
    /// in f32.
    pub(super) fn write_capped(
        &self,
        x: &Tensor,
        cap: Option<f64>,
        out: &mut Vec<f32>,
    ) -> Result<()> {
        if is_native(x) && self.bias.is_none() {
            let x = x.contiguous()?;
            let stored = self.weight.stored()?;
            let weights = stored.weights()?;
            let m = x.dim(0)?;
            out.resize(m * weights.out_width, 0.0);
            kernels::product(Floats::of(&x).slice()?, m, &weights, out);
            if let Some(cap) = cap {
                kernels::softcapped(out, cap as f32);
            }
            return Ok(());
        }
        let y = softcap(self.forward(x)?, cap)?.to_dtype(DType::F32)?;
        let y = y.to_device(&Device::Cpu)?.contiguous()?;
        out.clear();
        out.extend_from_slice(Floats::of(&y).slice()?);
        Ok(())
    }

    fn products_on_cpu<const N: usize>(maps: [&Self; N], x: &Tensor) -> Result<Vec<Tensor>> {
        let m = x.dim(0)?;
        let floats = x.to_dtype(DType::F32)?.contiguous()?;
        let floats = Floats::of(&floats);
        let stored = maps.map(|map| map.weight.stored());
        let mut weights = Vec::with_capacity(N);
        for stored in &stored {
            match stored {
                Ok(stored) => weights.push(stored.weights()?),
                Err(e) => candle_core::bail!("{e}"),
            }
        }
        kernels::products(floats.slice()?, m, &weights)
            .into_iter()
            .zip(&weights)
            .map(|(y, w)| Tensor::from_vec(y, (m, w.out_width), x.device())?.to_dtype(x.dtype()))
            .collect()
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

    /// What the normalised is multiplied by, in f32.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "what GPUs read"))]
    pub(super) fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Normalises the last dimension.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if is_native(x) {
            let weight = Floats::of(&self.weight);
            let norm = Norm {
                weight: weight.slice()?,
                eps: self.eps as f32,
            };
            return native(x, |x| Ok(kernels::normed(x, &norm)));
        }
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
        let [gate, up] = Linear::forward_all([&self.gate, &self.up], x)?;
        self.down.forward(&self.gated(&gate, &up)?)
    }

    fn gated(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let kind = match self.activation {
            Activation::Silu => Some(Gate::Silu),
            Activation::GeluTanh => Some(Gate::GeluTanh),
            Activation::GeluErf => None,
        };
        if let Some(kind) = kind
            && is_native(gate)
        {
            let up = Floats::of(up);
            return native(gate, |gate| Ok(kernels::gated(kind, gate, up.slice()?)));
        }
        let gate = match self.activation {
            Activation::Silu => gate.silu()?,
            Activation::GeluTanh => gate.gelu()?,
            Activation::GeluErf => gate.gelu_erf()?,
        };
        gate * up
    }
}

/// `c · tanh(x / c)`.
pub(super) fn softcap(x: Tensor, cap: Option<f64>) -> Result<Tensor> {
    let Some(cap) = cap else {
        return Ok(x);
    };
    if is_native(&x) {
        return native(&x, |x| {
            let mut values = x.to_vec();
            kernels::softcapped(&mut values, cap as f32);
            Ok(values)
        });
    }
    (x / cap)?.tanh()? * cap
}

/// `x + y`, of one shape.
pub(super) fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if !is_native(x) {
        return x + y;
    }
    let y = Floats::of(y);
    native(x, |x| Ok(kernels::add(x, y.slice()?)))
}

/// Whether the kernels compute on this tensor themselves. Other types than f32
/// are rounded after every operation, as the reference does it.
pub(super) fn is_native(x: &Tensor) -> bool {
    x.device().is_cpu() && x.dtype() == DType::F32
}

/// A tensor of x's shape with the numbers that `f` makes of x's.
pub(super) fn native(x: &Tensor, f: impl FnOnce(&[f32]) -> Result<Vec<f32>>) -> Result<Tensor> {
    let contiguous = x.contiguous()?;
    let values = f(Floats::of(&contiguous).slice()?)?;
    Tensor::from_vec(values, x.shape(), x.device())
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
