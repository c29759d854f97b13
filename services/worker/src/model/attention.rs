//! Causal self-attention over the slotted cache.

use candle_core::{D, DType, Device, Result, Tensor};

use super::{
    Batch, ModelConfig,
    config::LayerConfig,
    kv_cache::KvCache,
    layers::{Linear, RmsNorm, softcap},
    rope::Rotation,
};

/// Projections of one layer's attention.
#[derive(Debug)]
pub(super) struct Attention {
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) o: Linear,
    pub(super) q_norm: Option<RmsNorm>,
    pub(super) k_norm: Option<RmsNorm>,
}

impl Attention {
    /// Attention output per head, `[n_tokens, n_heads * head_dim]`: the value
    /// of `attn.hook_z`. `x` is the normed input, `[n_tokens, d_model]`.
    pub(super) fn z(
        &self,
        x: &Tensor,
        batch: &Batch,
        layer: usize,
        config: &ModelConfig,
        rotation: &Rotation,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let n = x.dim(0)?;
        let heads = |linear: &Linear, norm: Option<&RmsNorm>, n_heads: usize| {
            let y = linear.forward(x)?.reshape((n, n_heads, config.head_dim))?;
            norm.map_or(Ok(y.clone()), |norm| norm.forward(&y))
        };
        let q = heads(&self.q, self.q_norm.as_ref(), config.n_heads)?;
        let k = heads(&self.k, self.k_norm.as_ref(), config.n_kv_heads)?;
        let v = heads(&self.v, None, config.n_kv_heads)?;
        let (q, k) = (rotation.apply(&q)?, rotation.apply(&k)?);

        let mut outputs = Vec::with_capacity(batch.chunks.len());
        let mut first = 0;
        for chunk in &batch.chunks {
            let len = chunk.tokens.len();
            let rows = |t: &Tensor| t.narrow(0, first, len)?.transpose(0, 1);
            cache.store(chunk.slot, layer, chunk.start, &rows(&k)?, &rows(&v)?)?;
            let visible = Visible::new(chunk.start, len, config.layers[layer]);
            let keys_values = cache.view(chunk.slot, layer, visible.first..visible.end)?;
            outputs.push(attend(&rows(&q)?, keys_values, &visible, config)?);
            first += len;
        }
        Tensor::cat(&outputs, 0)
    }
}

/// Which cached positions the tokens of a chunk see.
struct Visible {
    /// Position of the chunk's first token.
    start: usize,
    /// First position that any of them sees.
    first: usize,
    /// Position behind the chunk's last token.
    end: usize,
    window: Option<usize>,
}

impl Visible {
    fn new(start: usize, len: usize, layer: LayerConfig) -> Self {
        let window = layer.window;
        Self {
            start,
            first: window.map_or(0, |window| (start + 1).saturating_sub(window)),
            end: start + len,
            window,
        }
    }

    /// 0 where a token sees a position, −∞ where not; `[n, end − first]`.
    /// None where every token sees all.
    fn mask(&self, device: &Device) -> Result<Option<Tensor>> {
        let len = self.end - self.start;
        if len == 1 {
            return Ok(None);
        }
        let sees = |token: usize, position: usize| {
            position <= token && self.window.is_none_or(|window| token - position < window)
        };
        let values: Vec<f32> = (self.start..self.end)
            .flat_map(|token| {
                (self.first..self.end).map(move |position| {
                    if sees(token, position) {
                        0.0
                    } else {
                        f32::NEG_INFINITY
                    }
                })
            })
            .collect();
        Tensor::from_vec(values, (len, self.end - self.first), device).map(Some)
    }
}

/// Softmax attention of one chunk. `q` is `[n_heads, n, head_dim]`, keys and
/// values `[n_kv_heads, m, head_dim]`; the result `[n, n_heads * head_dim]`.
/// Query heads that share a key head become rows of one product, so nothing is
/// repeated.
fn attend(
    q: &Tensor,
    (keys, values): (Tensor, Tensor),
    visible: &Visible,
    config: &ModelConfig,
) -> Result<Tensor> {
    let (n_heads, n, head_dim) = q.dims3()?;
    let group = n_heads / config.n_kv_heads;
    let grouped = q
        .contiguous()?
        .reshape((config.n_kv_heads, group * n, head_dim))?;
    let scores = (grouped.matmul(&keys.transpose(1, 2)?)? * config.attention_scale)?;
    let scores = softcap(scores, config.attention_softcap)?.to_dtype(DType::F32)?;
    let scores = match visible.mask(q.device())? {
        None => scores,
        Some(mask) => {
            let m = visible.end - visible.first;
            scores
                .reshape((n_heads, n, m))?
                .broadcast_add(&mask)?
                .reshape((config.n_kv_heads, group * n, m))?
        }
    };
    let weights = softmax(&scores)?.to_dtype(values.dtype())?;
    weights
        .matmul(&values)?
        .reshape((n_heads, n, head_dim))?
        .transpose(0, 1)?
        .reshape((n, n_heads * head_dim))
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    let max = scores.max_keepdim(D::Minus1)?;
    let weights = scores.broadcast_sub(&max)?.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
}
