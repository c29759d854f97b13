//! Where a model's weights are on the GPU.

use candle_core::{DType, Result, Tensor};

use super::launch::{Address, address};
use crate::model::{
    Model,
    decoder::Layer,
    layers::{Linear, RmsNorm},
    matrix::Matrix,
};

/// Widest row of activations that the kernels take: eight elements for each of
/// 1,024 threads.
const WIDEST: usize = 8192;

/// A linear map, or several of the same input, one below the other.
#[derive(Debug)]
pub(super) struct Map {
    pub(super) weights: Address,
    pub(super) bias: Address,
    /// Keeps `bias` alive, if it is not the model's.
    _bias: Option<Tensor>,
}

impl Map {
    pub(super) fn without_bias(weights: Address) -> Self {
        Self {
            weights,
            bias: 0,
            _bias: None,
        }
    }
}

/// One layer's weights. Norms' are f32.
#[derive(Debug)]
pub(super) struct LayerWeights {
    pub(super) qkv: Map,
    pub(super) o: Map,
    pub(super) gate_up: Map,
    pub(super) down: Map,
    pub(super) attention_norm: Address,
    pub(super) attention_post_norm: Address,
    pub(super) mlp_norm: Address,
    pub(super) mlp_post_norm: Address,
    pub(super) q_norm: Address,
    pub(super) k_norm: Address,
    pub(super) window: u32,
    pub(super) rope: usize,
}

/// Whether the kernels take a model: bf16 throughout, and shapes whose rows are
/// whole reads of 16 bytes.
pub(super) fn fits(model: &Model) -> bool {
    let c = &model.config;
    let widths = [c.d_model, c.z_width()];
    let head = match c.head_dim {
        0..=64 => 2,
        65..=128 => 4,
        129..=256 => 8,
        _ => return false,
    };
    let dense = |map: &Linear| matches!(map.weight, Matrix::Dense(_));
    let layer = |layer: &Layer| {
        let (a, m) = (&layer.attention, &layer.mlp);
        [&a.q, &a.k, &a.v, &a.o, &m.gate, &m.up, &m.down]
            .into_iter()
            .all(dense)
    };
    model.dtype == DType::BF16
        && widths.iter().all(|w| w.is_multiple_of(8) && *w <= WIDEST)
        && c.d_mlp.is_multiple_of(8)
        && c.head_dim.is_multiple_of(head)
        && matches!(model.embedding, Matrix::Dense(_))
        && dense(&model.head)
        && model.head.bias.is_none()
        && model.layers.iter().all(layer)
}

impl LayerWeights {
    /// Puts maps of the same input below each other, so that they are one product.
    /// The model's own become views of that.
    pub(super) fn of(layer: &mut Layer, window: Option<usize>, rope: usize) -> Result<Self> {
        let norm = |norm: Option<&RmsNorm>| match norm {
            None => Ok(0),
            Some(norm) => located(norm.weight()),
        };
        let attention = &mut layer.attention;
        let mlp = &mut layer.mlp;
        Ok(Self {
            qkv: stacked([&mut attention.q, &mut attention.k, &mut attention.v])?,
            o: stacked([&mut attention.o])?,
            gate_up: stacked([&mut mlp.gate, &mut mlp.up])?,
            down: stacked([&mut mlp.down])?,
            attention_norm: norm(Some(&layer.attention_norm))?,
            attention_post_norm: norm(layer.attention_post_norm.as_ref())?,
            mlp_norm: norm(Some(&layer.mlp_norm))?,
            mlp_post_norm: norm(layer.mlp_post_norm.as_ref())?,
            q_norm: norm(layer.attention.q_norm.as_ref())?,
            k_norm: norm(layer.attention.k_norm.as_ref())?,
            window: window.unwrap_or(0) as u32,
            rope,
        })
    }
}

fn stacked<const N: usize>(maps: [&mut Linear; N]) -> Result<Map> {
    let mut weights = Vec::with_capacity(N);
    for map in &maps {
        weights.push(dense(&map.weight)?.clone());
    }
    let biases: Vec<Tensor> = maps.iter().filter_map(|map| map.bias.clone()).collect();
    if !biases.is_empty() && biases.len() != N {
        candle_core::bail!("some of the maps of one input have a bias, and some have none");
    }
    let all = match &weights[..] {
        [one] => one.clone(),
        several => Tensor::cat(several, 0)?,
    };
    let mut from = 0;
    for map in maps {
        let rows = dense(&map.weight)?.dim(0)?;
        map.weight = Matrix::Dense(all.narrow(0, from, rows)?);
        from += rows;
    }
    let bias = match &biases[..] {
        [] => None,
        biases => Some(Tensor::cat(biases, 0)?),
    };
    Ok(Map {
        weights: located(&all)?,
        bias: bias.as_ref().map_or(Ok(0), located)?,
        _bias: bias,
    })
}

/// [`address`] of what has to be on the GPU.
pub(super) fn located(tensor: &Tensor) -> Result<Address> {
    match address(tensor) {
        0 => candle_core::bail!("{tensor:?} is not on the GPU, or of another type"),
        address => Ok(address),
    }
}

pub(super) fn dense(matrix: &Matrix) -> Result<&Tensor> {
    match matrix {
        Matrix::Dense(tensor) => Ok(tensor),
        _ => candle_core::bail!("these weights are quantised"),
    }
}
