//! The decoder on an NVIDIA GPU in bf16, by kernels of our own (`gpu/kernels/`) and
//! cuBLAS: a handful of launches for each layer, in memory that is kept, edits where
//! the activations are, and of sequences that need no more only the greatest logits
//! come back.
//!
//! Models that [do not fit](weights::fits) run by the tensor library, operation by
//! operation. Both round where transformers rounds, but here scores, attention
//! weights and logits are not rounded at all, and a bias is rounded with its sum
//! where there are few rows. In steps of up to [`FEW_ROWS`] rows, none of which sees
//! more than [`SPLIT`] · [`MOST_SPLITS`] positions, a token's numbers are the same bit
//! for bit whatever the other rows are.

mod between;
mod launch;
mod parameters;
mod pass;
mod products;
mod room;
mod scores;
mod tables;
mod weights;

use candle_core::{Device, Result, Tensor};

use super::{
    Batch, Hook, KvCache, Model, ModelConfig, Scores,
    config::{Activation, RopePairing},
    step::Step,
};
pub(super) use launch::address;
pub use launch::device;
use launch::{Address, Gpu, Kernel};
use pass::Pass;
use room::Buffers;
use weights::LayerWeights;

/// Rows of a step that are multiplied by our own kernels, 8 or 16 at a time.
const FEW_ROWS: usize = 16;
/// Rows of a step: what a grid takes.
const MOST_ROWS: usize = 65_535;
/// Rows of a step whose attention is shared among blocks: more fill the GPU.
const SPLIT_ROWS: usize = 64;
/// Positions of one such block.
const SPLIT: usize = 128;
/// Most such blocks for a row and head: those of longer sequences take more positions.
const MOST_SPLITS: usize = 64;

/// The GPU path of one model.
#[derive(Debug)]
pub(super) struct GpuDecoder {
    gpu: Gpu,
    kernels: Kernels,
    layers: Vec<LayerWeights>,
    final_norm: Address,
    embedding: Address,
    head: Address,
    /// Of each rotary embedding.
    frequencies: Vec<Tensor>,
    buffers: Buffers,
}

#[derive(Debug)]
struct Kernels {
    gather: Kernel,
    boundary: Kernel,
    /// For 8 and 16 rows.
    plain: [Kernel; 2],
    gated: [Kernel; 2],
    logits: [Kernel; 2],
    add_bias: Kernel,
    gate: Kernel,
    cap_logits: Kernel,
    rotate: Kernel,
    attention: Kernel,
    best_of_parts: Kernel,
    best: Kernel,
    candidates: Kernel,
}

impl GpuDecoder {
    /// The GPU path of a model that has just been loaded, if it is on a GPU and fits.
    pub(super) fn of(model: &mut Model) -> Result<Option<Self>> {
        let Device::Cuda(device) = &model.device else {
            return Ok(None);
        };
        if !weights::fits(model) {
            tracing::warn!("this model runs on the GPU by the tensor library, which is slower");
            return Ok(None);
        }
        let ready = Gpu::new(device).and_then(|gpu| {
            let ready = gpu.map(|gpu| Ok((Kernels::new(&gpu, model.config.head_dim)?, gpu)));
            ready.transpose()
        });
        let (kernels, gpu) = match ready {
            Ok(Some(ready)) => ready,
            Ok(None) => {
                tracing::warn!("kernels need compute capability 8.0; using the tensor library");
                return Ok(None);
            }
            Err(e) => {
                tracing::warn!("using the tensor library, which is slower: {e}");
                return Ok(None);
            }
        };
        let mut layers = Vec::with_capacity(model.layers.len());
        for (layer, config) in model.layers.iter_mut().zip(&model.config.layers) {
            layers.push(LayerWeights::of(layer, config.window, config.rope)?);
        }
        let frequencies = model.ropes.iter().map(|rope| {
            let frequencies = rope.inverse_frequencies();
            Tensor::from_slice(frequencies, frequencies.len(), &model.device)
        });
        Ok(Some(Self {
            kernels,
            layers,
            final_norm: weights::located(model.norm.weight())?,
            embedding: weights::located(weights::dense(&model.embedding)?)?,
            head: weights::located(weights::dense(&model.head.weight)?)?,
            frequencies: frequencies.collect::<Result<_>>()?,
            buffers: Buffers::default(),
            gpu,
        }))
    }

    /// [`Model::forward`].
    pub(super) fn forward(
        &mut self,
        model: &Model,
        batch: &Batch,
        cache: &mut KvCache,
        hook: &mut dyn Hook,
        scores: &mut Scores,
    ) -> Result<()> {
        self.gpu.bind()?;
        let n_layers = self.layers.len();
        let step = Step::new(batch, n_layers)?;
        if batch.n_tokens() > MOST_ROWS {
            candle_core::bail!("{} rows; a step may have {MOST_ROWS}", batch.n_tokens());
        }
        let vocabulary = model.config.vocab_size as u32;
        let mut ids = batch.chunks.iter().flat_map(|chunk| &chunk.tokens);
        if let Some(id) = ids.find(|&&id| id >= vocabulary) {
            candle_core::bail!("no token {id} among {vocabulary}");
        }
        let spans = tables::spans(batch, cache, n_layers)?;
        Pass::new(self, &model.config, batch, step, &spans)?.run(hook, scores)?;
        // Steps that read nothing back are over too: they are timed, and fail as themselves.
        self.gpu.wait()?;
        for chunk in &batch.chunks {
            for layer in 0..n_layers {
                cache.trim(chunk.slot, layer)?;
            }
        }
        Ok(())
    }
}

impl Kernels {
    fn new(gpu: &Gpu, head_dim: usize) -> Result<Self> {
        let both = |name: &str| -> Result<[Kernel; 2]> {
            Ok([
                gpu.kernel(&format!("{name}_8"))?,
                gpu.kernel(&format!("{name}_16"))?,
            ])
        };
        let attention = match head_dim {
            0..=64 => "attention_64",
            65..=128 => "attention_128",
            _ => "attention_256",
        };
        Ok(Self {
            gather: gpu.kernel("gather")?,
            boundary: gpu.kernel("boundary")?,
            plain: both("plain")?,
            gated: both("gated")?,
            logits: both("logits")?,
            add_bias: gpu.kernel("add_bias")?,
            gate: gpu.kernel("gate")?,
            cap_logits: gpu.kernel("cap_logits")?,
            rotate: gpu.kernel("rotate")?,
            attention: gpu.kernel(attention)?,
            best_of_parts: gpu.kernel("best_of_parts")?,
            best: gpu.kernel("best")?,
            candidates: gpu.kernel("candidates")?,
        })
    }
}

/// The kernels' number for an activation.
fn activation(config: &ModelConfig) -> u32 {
    match config.activation {
        Activation::Silu => 0,
        Activation::GeluTanh => 1,
        Activation::GeluErf => 2,
    }
}

fn is_interleaved(config: &ModelConfig, rope: usize) -> u32 {
    u32::from(matches!(
        config.ropes[rope].pairing,
        RopePairing::Interleaved
    ))
}
