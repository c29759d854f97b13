//! The decoder stack.

use candle_core::{DType, Device, Result, Tensor};
use steering_proto::{HookPoint, Site};

use super::{
    Batch, Hook, ModelConfig,
    attention::Attention,
    kv_cache::KvCache,
    layers::{Linear, Matrix, Mlp, RmsNorm, softcap},
    rope::{Rope, Rotation},
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

    /// stub
    pub fn kv_bytes(&self, tokens: usize) -> usize {
        tokens
    }
    /// stub
    pub fn project(&self, _: &[f32]) -> Result<Vec<f32>> {
        Ok(Vec::new())
    }
    /// An empty cache for this model.
    pub fn new_cache(&self, n_slots: usize) -> KvCache {
        KvCache::new(&self.config, n_slots, self.dtype, &self.device)
    }

    /// Width of the activation at a hook point.
    pub fn width(&self, site: Site) -> usize {
        match site {
            Site::Z => self.config.z_width(),
            Site::ResidPre | Site::AttnOut | Site::MlpOut | Site::ResidPost => self.config.d_model,
        }
    }

    /// Reads a batch of tokens. Returns logits in f32, `[rows, vocab_size]`,
    /// one row per token whose logits the batch asks for; `None` if none.
    pub fn forward(
        &self,
        batch: &Batch,
        cache: &mut KvCache,
        hook: &mut dyn Hook,
    ) -> Result<Option<Tensor>> {
        let positions: Vec<u32> = batch
            .chunks
            .iter()
            .flat_map(|chunk| (chunk.start..chunk.start + chunk.tokens.len()).map(|p| p as u32))
            .collect();
        let rotations = self
            .ropes
            .iter()
            .map(|rope| rope.at(&positions, self.dtype, &self.device))
            .collect::<Result<Vec<_>>>()?;
        let mut x = self.embed(batch)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let rotation = &rotations[self.config.layers[index].rope];
            x = self.layer(layer, index, x, batch, rotation, cache, hook)?;
        }
        self.logits(&x, &batch.logit_rows())
    }

    fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let ids: Vec<u32> = batch
            .chunks
            .iter()
            .flat_map(|chunk| chunk.tokens.iter().copied())
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

    #[allow(clippy::too_many_arguments)] // one call site; a struct would only rename them
    fn layer(
        &self,
        layer: &Layer,
        index: usize,
        x: Tensor,
        batch: &Batch,
        rotation: &Rotation,
        cache: &mut KvCache,
        hook: &mut dyn Hook,
    ) -> Result<Tensor> {
        let mut at = |site, x: Tensor| {
            let point = HookPoint { layer: index, site };
            if !hook.wants(point) {
                return Ok(x);
            }
            Ok::<_, candle_core::Error>(hook.apply(point, &x, &[])?.unwrap_or(x))
        };
        let x = at(Site::ResidPre, x)?;

        let normed = layer.attention_norm.forward(&x)?;
        let attention = &layer.attention;
        let z = attention.z(&normed, batch, index, &self.config, rotation, cache)?;
        let z = at(Site::Z, z)?;
        let added = post_norm(layer.attention_post_norm.as_ref(), attention.o.forward(&z)?)?;
        let x = (x + at(Site::AttnOut, added)?)?;

        let added = layer.mlp.forward(&layer.mlp_norm.forward(&x)?)?;
        let added = post_norm(layer.mlp_post_norm.as_ref(), added)?;
        let x = (x + at(Site::MlpOut, added)?)?;
        at(Site::ResidPost, x)
    }

    fn logits(&self, x: &Tensor, rows: &[u32]) -> Result<Option<Tensor>> {
        if rows.is_empty() {
            return Ok(None);
        }
        let rows = Tensor::new(rows, &self.device)?;
        let x = self.norm.forward(&x.index_select(&rows, 0)?)?;
        let logits = softcap(self.head.forward(&x)?, self.config.final_softcap)?;
        logits.to_dtype(DType::F32).map(Some)
    }
}

fn post_norm(norm: Option<&RmsNorm>, x: Tensor) -> Result<Tensor> {
    match norm {
        None => Ok(x),
        Some(norm) => norm.forward(&x),
    }
}
