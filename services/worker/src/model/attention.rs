//! Causal self-attention over the slotted cache.

use std::ops::Range;

use candle_core::{D, DType, Device, Result, Tensor};

use super::{
    ModelConfig,
    kernels::{self, Rules, Sequence},
    kv_cache::KvCache,
    layers::{Floats, Linear, RmsNorm, softcap},
    rope::Rotation,
    step::{Span, Step},
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
    /// Attention output per head, `[n_rows, n_heads * head_dim]`: the value
    /// of `attn.hook_z`. `x` is the normed input, `[n_rows, d_model]`.
    pub(super) fn z(
        &self,
        x: &Tensor,
        step: &Step<'_>,
        layer: usize,
        config: &ModelConfig,
        rotation: &Rotation,
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let n = x.dim(0)?;
        let heads = |y: Tensor, norm: Option<&RmsNorm>, n_heads: usize| {
            let y = y.reshape((n, n_heads, config.head_dim))?;
            norm.map_or(Ok(y.clone()), |norm| norm.forward(&y))
        };
        let [q, k, v] = Linear::forward_all([&self.q, &self.k, &self.v], x)?;
        let q = heads(q, self.q_norm.as_ref(), config.n_heads)?;
        let k = heads(k, self.k_norm.as_ref(), config.n_kv_heads)?;
        let v = heads(v, None, config.n_kv_heads)?;
        let (q, k) = (rotation.apply(&q)?, rotation.apply(&k)?);

        let spans = step.spans();
        let followers = step.followers();
        for Span { chunk, rows } in spans.iter().chain(&followers) {
            let rows = |t: &Tensor| t.narrow(0, rows.start, rows.len())?.transpose(0, 1);
            cache.store(chunk.slot, layer, chunk.start, &rows(&k)?, &rows(&v)?)?;
        }
        let rules = rules(config, layer);
        let z = if x.device().is_cpu() {
            on_cpu(&q, &spans, layer, &rules, cache)
        } else {
            let one = |span: &Span<'_>| attend(&q, span, layer, &rules, cache);
            let outputs: Vec<_> = spans.iter().map(one).collect::<Result<_>>()?;
            Tensor::cat(&outputs, 0)
        };
        for Span { chunk, .. } in spans.iter().chain(&followers) {
            cache.trim(chunk.slot, layer)?;
        }
        z
    }
}

fn rules(config: &ModelConfig, layer: usize) -> Rules {
    Rules {
        n_heads: config.n_heads,
        n_kv_heads: config.n_kv_heads,
        head_dim: config.head_dim,
        scale: config.attention_scale as f32,
        softcap: config.attention_softcap.map(|cap| cap as f32),
        window: config.layers[layer].window,
    }
}

/// Attention of all chunks by our own kernel. Keys and values are read where
/// they are; only other types than f32 are converted.
fn on_cpu(
    q: &Tensor,
    spans: &[Span<'_>],
    layer: usize,
    rules: &Rules,
    cache: &KvCache,
) -> Result<Tensor> {
    let (n, width) = (q.dim(0)?, rules.n_heads * rules.head_dim);
    let mut tensors = Vec::with_capacity(spans.len());
    for Span { chunk, .. } in spans {
        let (keys, values, held) = cache.layer(chunk.slot, layer);
        if keys.dtype() == DType::F32 {
            tensors.push((keys.clone(), values.clone(), held.start));
            continue;
        }
        let first = rules.visible(chunk.start).start;
        let seen = |t: &Tensor| {
            t.narrow(1, first - held.start, held.end - first)?
                .to_dtype(DType::F32)?
                .contiguous()
        };
        tensors.push((seen(keys)?, seen(values)?, first));
    }
    let queries = q.to_dtype(DType::F32)?.contiguous()?;
    let queries = Floats::of(&queries);
    let floats: Vec<_> = tensors
        .iter()
        .map(|(keys, values, first)| (Floats::of(keys), Floats::of(values), *first))
        .collect();
    let mut sequences = Vec::with_capacity(spans.len());
    for (span, (keys, values, first)) in spans.iter().zip(&floats) {
        sequences.push(Sequence {
            queries: &queries.slice()?[span.rows.start * width..span.rows.end * width],
            start: span.chunk.start,
            keys: keys.slice()?,
            values: values.slice()?,
            first: *first,
        });
    }
    let z = kernels::attention(rules, &sequences);
    Tensor::from_vec(z, (n, width), q.device())?.to_dtype(q.dtype())
}

/// 0 where a token sees a position, −∞ where not; `[n, positions]`. None where
/// every token sees all.
fn mask(
    tokens: Range<usize>,
    positions: Range<usize>,
    rules: &Rules,
    device: &Device,
) -> Result<Option<Tensor>> {
    if tokens.len() == 1 {
        return Ok(None);
    }
    let shape = (tokens.len(), positions.len());
    let row = |token| {
        let seen = rules.visible(token);
        positions.clone().map(move |position| {
            if seen.contains(&position) {
                0.0
            } else {
                f32::NEG_INFINITY
            }
        })
    };
    let values: Vec<f32> = tokens.flat_map(row).collect();
    Tensor::from_vec(values, shape, device).map(Some)
}

/// Attention of one chunk by the tensor library, `[n, n_heads * head_dim]`.
/// Query heads that share a key head become rows of one product, so nothing is
/// repeated.
fn attend(
    q: &Tensor,
    span: &Span<'_>,
    layer: usize,
    rules: &Rules,
    cache: &KvCache,
) -> Result<Tensor> {
    let (n_heads, n_kv_heads, head_dim) = (rules.n_heads, rules.n_kv_heads, rules.head_dim);
    let (n, start) = (span.rows.len(), span.chunk.start);
    let (keys, values, held) = cache.layer(span.chunk.slot, layer);
    let positions = rules.visible(start).start..start + n;
    let seen = |t: &Tensor| t.narrow(1, positions.start - held.start, positions.len());
    let grouped = q
        .narrow(0, span.rows.start, n)?
        .transpose(0, 1)?
        .contiguous()?
        .reshape((n_kv_heads, n_heads / n_kv_heads * n, head_dim))?;
    let scores = (grouped.matmul(&seen(keys)?.transpose(1, 2)?)? * f64::from(rules.scale))?;
    let scores = softcap(scores, rules.softcap.map(f64::from))?.to_dtype(DType::F32)?;
    let scores = match mask(start..start + n, positions.clone(), rules, q.device())? {
        None => scores,
        Some(mask) => scores
            .reshape((n_heads, n, positions.len()))?
            .broadcast_add(&mask)?
            .reshape(scores.shape())?,
    };
    let weights = softmax(&scores)?.to_dtype(values.dtype())?;
    weights
        .matmul(&seen(values)?)?
        .reshape((n_heads, n, head_dim))?
        .transpose(0, 1)?
        .reshape((n, n_heads * head_dim))
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    let max = scores.max_keepdim(D::Minus1)?;
    let weights = scores.broadcast_sub(&max)?.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
}
