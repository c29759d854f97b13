//! The decoder stack.

use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Result, Tensor};
use steering_proto::{HookPoint, Site};

use super::{
    Batch, Hook, ModelConfig, SMALL, Scores, Top,
    attention::Attention,
    gpu::GpuDecoder,
    kernels::{at_least_kth, log_sum_exp},
    kv_cache::{KvCache, KvShape},
    layers::{Linear, Mlp, RmsNorm, add},
    matrix::Matrix,
    rope::{Rope, Rotation},
    step::{Span, Step},
};

/// A loaded model. Immutable; state lives in the [`KvCache`].
#[derive(Debug)]
pub struct Model {
    pub(super) config: ModelConfig,
    pub(super) digest: String,
    pub(super) quantization: String,
    pub(super) dtype: DType,
    pub(super) device: Device,
    pub(super) embedding: Matrix,
    pub(super) ropes: Vec<Rope>,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: RmsNorm,
    pub(super) head: Linear,
    /// Instead of all this, where there is one. One step at a time.
    pub(super) gpu: Option<Mutex<GpuDecoder>>,
}

/// One decoder layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) attention_norm: RmsNorm,
    pub(super) attention: Attention,
    /// On what attention adds (sandwich norms).
    pub(super) attention_post_norm: Option<RmsNorm>,
    pub(super) mlp_norm: RmsNorm,
    pub(super) mlp: Mlp,
    /// On what the MLP adds (sandwich norms).
    pub(super) mlp_post_norm: Option<RmsNorm>,
}

impl Model {
    /// The architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// SHA-256 (hex) over the configuration and the weight files' headers and sizes.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Name of the weights' quantisation; empty if none.
    pub fn quantization(&self) -> &str {
        &self.quantization
    }

    /// Type of activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the model runs.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// An empty cache for this model.
    pub fn new_cache(&self, n_slots: usize) -> KvCache {
        KvCache::new(self.kv_shape(), n_slots)
    }

    /// Bytes of keys and values that a sequence of `tokens` tokens holds at most
    /// between steps.
    pub fn kv_bytes(&self, tokens: usize) -> usize {
        self.kv_shape().bytes(tokens)
    }

    fn kv_shape(&self) -> KvShape {
        KvShape::new(&self.config, self.dtype, &self.device)
    }

    /// Width of the activation at a hook point.
    pub fn width(&self, site: Site) -> usize {
        match site {
            Site::Z => self.config.z_width(),
            Site::ResidPre | Site::AttnOut | Site::MlpOut | Site::ResidPost => self.config.d_model,
        }
    }

    /// Whether [`super::Logits::Top`] is cheaper than all logits: where they would have to
    /// be copied from a device.
    pub fn prefers_top(&self) -> bool {
        self.gpu.is_some()
    }

    /// Prompt tokens that cost hardly more than one beside sequences that decode: on a
    /// GPU, more rows than a few take another kind of product.
    pub fn prompt_grain(&self) -> usize {
        const ON_A_GPU: usize = 128;
        if self.gpu.is_some() { ON_A_GPU } else { 1 }
    }

    /// Into how many parts a step is best cut, by sequences, each with a thread of its
    /// own: more than one where every thread finds all weights in a cache, so that it is
    /// not worth sharing out each product. Asked for on a thread that computes.
    pub fn parts(&self) -> usize {
        match self.weight_bytes() {
            Ok(bytes) if bytes <= SMALL => rayon::current_num_threads(),
            _ => 1,
        }
    }

    /// Bytes of the matrices that every token meets; fails anywhere but on the CPU.
    fn weight_bytes(&self) -> Result<usize> {
        let maps = self.layers.iter().flat_map(|Layer { attention, mlp, .. }| {
            let Attention { q, k, v, o, .. } = attention;
            [q, k, v, o, &mlp.gate, &mlp.up, &mlp.down]
        });
        maps.chain([&self.head])
            .map(|map| Ok(map.weight.stored()?.weights()?.bytes.len()))
            .sum()
    }

    /// Reads a batch of tokens. `scores` is overwritten; a step's are megabytes, so
    /// that its memory is worth keeping for the next.
    pub fn forward(
        &self,
        batch: &Batch,
        cache: &mut KvCache,
        hook: &mut dyn Hook,
        scores: &mut Scores,
    ) -> Result<()> {
        if let Some(gpu) = &self.gpu {
            let mut gpu = gpu.lock().unwrap_or_else(PoisonError::into_inner);
            return gpu.forward(self, batch, cache, hook, scores);
        }
        let step = Step::new(batch, self.layers.len())?;
        let mut pass = Pass {
            rotations: self.rotations(&step)?,
            model: self,
            step,
            cache,
            hook,
        };
        let mut x = self.embed(&pass.step)?;
        for index in 0..self.layers.len() {
            x = pass.layer(index, x)?;
        }
        scores.top.clear();
        let top = batch.top_rows();
        if !top.is_empty() {
            self.logits(&x, &top, &mut scores.logits)?;
            let rows = scores.logits.chunks_exact(self.config.vocab_size);
            let counts = batch.top_counts();
            scores.top.extend(rows.zip(counts).map(|(row, n)| Top {
                candidates: at_least_kth(row, n as usize),
                log_sum_exp: log_sum_exp(row),
            }));
        }
        self.logits(&x, &batch.logit_rows(), &mut scores.logits)
    }

    /// Logit lens of a direction: `W_U · norm(direction)` with the final norm
    /// and without softcap, one number per token id.
    pub fn project(&self, direction: &[f32]) -> Result<Vec<f32>> {
        let x = Tensor::from_slice(direction, (1, direction.len()), &self.device)?;
        let x = self.norm.forward(&x.to_dtype(self.dtype)?)?;
        let logits = self.head.forward(&x)?.to_dtype(DType::F32)?;
        logits.flatten_all()?.to_vec1()
    }

    fn embed(&self, step: &Step<'_>) -> Result<Tensor> {
        let ids: Vec<u32> = step
            .spans()
            .iter()
            .flat_map(|span| span.chunk.tokens.iter().copied())
            .collect();
        let n = ids.len();
        let ids = Tensor::from_vec(ids, n, &self.device)?;
        let x = self.embedding.rows(&ids, self.dtype)?;
        if !self.config.scale_embeddings {
            return Ok(x);
        }
        // The factor is rounded to the model's dtype first, as transformers does.
        let scale = Tensor::new((self.config.d_model as f64).sqrt() as f32, &self.device)?;
        x.broadcast_mul(&scale.to_dtype(self.dtype)?)
    }

    /// One rotation per rotary embedding, for the tokens that have rows.
    fn rotations(&self, step: &Step<'_>) -> Result<Vec<Rotation>> {
        let positions: Vec<u32> = step
            .spans()
            .iter()
            .flat_map(|Span { chunk, .. }| chunk.start..chunk.start + chunk.tokens.len())
            .map(|position| position as u32)
            .collect();
        self.ropes
            .iter()
            .map(|rope| rope.at(&positions, self.dtype, &self.device))
            .collect()
    }

    fn logits(&self, x: &Tensor, rows: &[u32], out: &mut Vec<f32>) -> Result<()> {
        if rows.is_empty() {
            out.clear();
            return Ok(());
        }
        let rows = Tensor::new(rows, &self.device)?;
        let x = self.norm.forward(&x.index_select(&rows, 0)?)?;
        self.head.write_capped(&x, self.config.final_softcap, out)
    }
}

/// One batch's way through the layers.
struct Pass<'a> {
    model: &'a Model,
    step: Step<'a>,
    rotations: Vec<Rotation>,
    cache: &'a mut KvCache,
    hook: &'a mut dyn Hook,
}

impl Pass<'_> {
    fn layer(&mut self, index: usize, x: Tensor) -> Result<Tensor> {
        let model = self.model;
        let layer = &model.layers[index];
        let x = self.hooked(index, Site::ResidPre, x)?;

        let normed = layer.attention_norm.forward(&x)?;
        let rotation = &self.rotations[model.config.layers[index].rope];
        let attention = &layer.attention;
        let config = &model.config;
        let z = attention.z(&normed, &self.step, index, config, rotation, self.cache)?;
        let z = self.hooked(index, Site::Z, z)?;
        let added = post_norm(layer.attention_post_norm.as_ref(), attention.o.forward(&z)?)?;
        let x = add(&x, &self.hooked(index, Site::AttnOut, added)?)?;

        let added = layer.mlp.forward(&layer.mlp_norm.forward(&x)?)?;
        let added = post_norm(layer.mlp_post_norm.as_ref(), added)?;
        let x = add(&x, &self.hooked(index, Site::MlpOut, added)?)?;
        let x = self.join(index + 1, x)?;
        self.hooked(index, Site::ResidPost, x)
    }

    fn hooked(&mut self, layer: usize, site: Site, x: Tensor) -> Result<Tensor> {
        let point = HookPoint { layer, site };
        if !self.hook.wants(point) {
            return Ok(x);
        }
        let edited = self.hook.apply(point, &x, self.step.active())?;
        Ok(edited.unwrap_or(x))
    }

    /// Gives chunks that share `layers` layers their rows: copies of the leaders'.
    fn join(&mut self, layers: usize, x: Tensor) -> Result<Tensor> {
        let Some(rows) = self.step.join(layers) else {
            return Ok(x);
        };
        self.rotations = self.model.rotations(&self.step)?;
        let n = rows.len();
        x.index_select(&Tensor::from_vec(rows, n, x.device())?, 0)
    }
}

fn post_norm(norm: Option<&RmsNorm>, x: Tensor) -> Result<Tensor> {
    match norm {
        None => Ok(x),
        Some(norm) => norm.forward(&x),
    }
}
