//! What an SAE finds in activations: all features, by blocked matrix products.

// Array views are references already.
#![allow(clippy::needless_pass_by_value)]

use std::io;

use ndarray::{Array2, ArrayView2, linalg::general_mat_mul};
use steering_proto::payload::{Activation, InputNormalization};

use super::{SaeFile, top::Top};
use crate::canonical::Architecture;

/// Bytes of encoder rows multiplied at once.
pub(super) const BLOCK_BYTES: usize = 2 << 20;
/// Added to the standard deviation, as SAELens does.
const LAYER_NORM_EPSILON: f32 = 1e-5;

/// What to encode.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Row-major, as wide as the SAE's rows.
    pub activations: &'a [f32],
    /// In front of the encoder.
    pub normalization: InputNormalization,
    /// Most features to return of each row.
    pub top_k: usize,
}

/// What was found in one row.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Encoded {
    /// Index and activation, strongest first.
    pub features: Vec<(u32, f32)>,
    /// Features that are active in all.
    pub active: u32,
}

/// What a block of features finds in every row.
pub(super) struct Block<'a> {
    /// Index of its first feature.
    pub(super) first: u32,
    products: ArrayView2<'a, f32>,
    features: &'a [(f32, Activation)],
}

impl Block<'_> {
    /// For every row, the place in the block and the activation of each feature that fires.
    pub(super) fn rows(&self) -> impl Iterator<Item = impl Iterator<Item = (usize, f32)>> {
        self.products.outer_iter().map(|row| {
            let products = row.into_iter().zip(self.features).enumerate();
            products.filter_map(|(place, (product, (bias, activation)))| {
                let value = activation.apply(product + bias);
                (value > 0.0).then_some((place, value))
            })
        })
    }
}

#[derive(Default)]
struct Room<S> {
    checking: Vec<u8>,
    products: Vec<f32>,
    state: S,
}

/// Encodes rows and calls `visit` with every block of features on some thread, with that
/// thread's state. Returns the states.
pub(super) fn encode_blocks<S: Default + Send>(
    sae: &SaeFile,
    activations: &[f32],
    normalization: InputNormalization,
    visit: impl Fn(&mut S, &Block<'_>) + Sync,
) -> io::Result<Vec<S>> {
    let width = sae.width();
    let normalized: Vec<f32> = activations
        .chunks_exact(width)
        .flat_map(|row| normalize(row, normalization))
        .collect();
    let count = normalized.len() / width;
    let x = ArrayView2::from_shape((count, width), &normalized).map_err(io::Error::other)?;
    let rooms = sae.visit(BLOCK_BYTES, |room: &mut Room<S>, block| {
        let first = block.start;
        let [encoder, scalars] = sae.layout.encoder_ranges(block);
        let rows = sae.floats(&encoder, &mut room.checking)?;
        let scalars = sae.floats(&scalars, &mut room.checking)?;
        let rows =
            ArrayView2::from_shape((rows.len() / width, width), rows).map_err(io::Error::other)?;
        let products = std::mem::take(&mut room.products);
        let mut products = with_shape(products, (count, rows.nrows()))?;
        general_mat_mul(1.0, &x, &rows.t(), 0.0, &mut products);
        let features: Vec<(f32, Activation)> = scalars
            .chunks_exact(sae.scalar_count())
            .map(|scalars| activation(sae.architecture(), scalars))
            .collect();
        let block = Block {
            first,
            products: products.view(),
            features: &features,
        };
        visit(&mut room.state, &block);
        room.products = products.into_raw_vec_and_offset().0;
        Ok(())
    })?;
    Ok(rooms.into_iter().map(|room| room.state).collect())
}

/// The strongest features of each row.
pub fn encode(sae: &SaeFile, input: Input<'_>) -> io::Result<Vec<Encoded>> {
    let Input {
        activations,
        normalization,
        top_k,
    } = input;
    let count = activations.len() / sae.width();
    type Rows = Vec<(Top<u32>, u32)>;
    let states = encode_blocks(sae, activations, normalization, |rows: &mut Rows, block| {
        rows.resize_with(count, || (Top::new(top_k), 0));
        for (row, (top, active)) in block.rows().zip(rows) {
            for (place, value) in row {
                *active += 1;
                top.push(value, block.first + place as u32);
            }
        }
    })?;
    let mut merged: Rows = vec![(Top::new(top_k), 0); count];
    for (row, part) in states
        .into_iter()
        .flat_map(|rows| rows.into_iter().enumerate())
    {
        merged[row].0.merge(part.0);
        merged[row].1 += part.1;
    }
    let encoded = merged.into_iter().map(|(top, active)| Encoded {
        features: top
            .into_sorted()
            .into_iter()
            .map(|(value, index)| (index, value))
            .collect(),
        active,
    });
    Ok(encoded.collect())
}

fn with_shape(mut room: Vec<f32>, (rows, columns): (usize, usize)) -> io::Result<Array2<f32>> {
    room.resize(rows * columns, 0.0);
    Array2::from_shape_vec((rows, columns), room).map_err(io::Error::other)
}

/// What is added to a feature's product, and what becomes of the sum.
fn activation(architecture: Architecture, scalars: &[f32]) -> (f32, Activation) {
    match architecture {
        Architecture::Relu => (scalars[0], Activation::Relu),
        Architecture::JumpRelu => (
            scalars[0],
            Activation::JumpRelu {
                threshold: scalars[1],
            },
        ),
        Architecture::Gated => (
            0.0,
            Activation::Gated {
                gate_bias: scalars[0],
                magnitude_scale: scalars[1],
                magnitude_bias: scalars[2],
            },
        ),
    }
}

/// n(x); its numbers are computed in f64.
fn normalize(x: &[f32], normalization: InputNormalization) -> Vec<f32> {
    let d = x.len() as f64;
    let sum = |f: &dyn Fn(f64) -> f64| x.iter().map(|&v| f(f64::from(v))).sum::<f64>();
    match normalization {
        InputNormalization::None => x.to_vec(),
        InputNormalization::ConstantNormRescale => {
            let norm = sum(&|v| v * v).sqrt();
            let scale = if norm > 0.0 { d.sqrt() / norm } else { 0.0 };
            x.iter().map(|&v| (f64::from(v) * scale) as f32).collect()
        }
        InputNormalization::LayerNorm => {
            let mean = sum(&|v| v) / d;
            let variance = sum(&|v| (v - mean).powi(2)) / (d - 1.0).max(1.0);
            let scale = 1.0 / (variance.sqrt() + f64::from(LAYER_NORM_EPSILON));
            x.iter()
                .map(|&v| ((f64::from(v) - mean) * scale) as f32)
                .collect()
        }
    }
}
