//! Rotary position embeddings (Su et al. 2021).

use candle_core::{DType, Device, Result, Tensor};

use super::{
    config::{RopeConfig, RopePairing},
    kernels,
    layers::{Floats, is_native, native},
};

/// Frequencies of one rotary embedding.
#[derive(Debug)]
pub(super) struct Rope {
    inverse_frequencies: Vec<f32>,
    pairing: RopePairing,
}

/// Cosines and sines of the tokens of one step, `[n_tokens, 1, head_dim / 2]`.
#[derive(Debug)]
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
    pairing: RopePairing,
}

impl Rope {
    pub(super) fn new(config: &RopeConfig, head_dim: usize) -> Self {
        Self {
            inverse_frequencies: config.inverse_frequencies(head_dim),
            pairing: config.pairing,
        }
    }

    /// Rotation per position of each pair of components.
    #[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "what GPUs read"))]
    pub(super) fn inverse_frequencies(&self) -> &[f32] {
        &self.inverse_frequencies
    }

    /// The rotation of tokens at `positions`. Computed per step: a table for
    /// the whole context would cost gigabytes and be mostly unused.
    pub(super) fn at(&self, positions: &[u32], dtype: DType, device: &Device) -> Result<Rotation> {
        let shape = (positions.len(), 1, self.inverse_frequencies.len());
        let angles: Vec<f32> = positions
            .iter()
            .flat_map(|&p| self.inverse_frequencies.iter().map(move |f| p as f32 * f))
            .collect();
        let table = |f: fn(f32) -> f32| {
            let values: Vec<f32> = angles.iter().copied().map(f).collect();
            Tensor::from_vec(values, shape, device)?.to_dtype(dtype)
        };
        Ok(Rotation {
            cos: table(f32::cos)?,
            sin: table(f32::sin)?,
            pairing: self.pairing,
        })
    }
}

impl Rotation {
    /// Rotates heads, shape `[n_tokens, n_heads, head_dim]`.
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let (n, heads, head_dim) = x.dims3()?;
        if is_native(x) {
            let (cos, sin) = (Floats::of(&self.cos), Floats::of(&self.sin));
            let table = (cos.slice()?, sin.slice()?);
            let interleaved = matches!(self.pairing, RopePairing::Interleaved);
            return native(x, |x| Ok(kernels::rotated(x, table, head_dim, interleaved)));
        }
        let half = head_dim / 2;
        let (a, b) = match self.pairing {
            RopePairing::Halves => (x.narrow(2, 0, half)?, x.narrow(2, half, half)?),
            RopePairing::Interleaved => {
                let pairs = x.reshape((n, heads, half, 2))?;
                let part = |i| pairs.narrow(3, i, 1)?.squeeze(3);
                (part(0)?, part(1)?)
            }
        };
        let rotated_a = (a.broadcast_mul(&self.cos)? - b.broadcast_mul(&self.sin)?)?;
        let rotated_b = (b.broadcast_mul(&self.cos)? + a.broadcast_mul(&self.sin)?)?;
        match self.pairing {
            RopePairing::Halves => Tensor::cat(&[rotated_a, rotated_b], 2),
            RopePairing::Interleaved => {
                Tensor::stack(&[rotated_a, rotated_b], 3)?.reshape((n, heads, head_dim))
            }
        }
    }
}
