//! What an SAE finds in activations: all features, by blocked matrix products.

// Array views are references already.
#![allow(clippy::needless_pass_by_value)]

use std::io;

use ndarray::{Array2, ArrayView2, linalg::general_mat_mul};
use steering_proto::payload::{Activation, InputNormalization};

use super::{Buffer, SaeFile, top::Top};
use crate::canonical::Architecture;

/// Bytes of encoder rows multiplied at once.
const BLOCK_BYTES: usize = 2 << 20;
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

#[derive(Default)]
struct State {
    encoder: Buffer,
    scalars: Buffer,
    products: Vec<f32>,
    rows: Vec<(Top<u32>, u32)>,
}

/// The strongest features of each row.
pub fn encode(sae: &SaeFile, input: Input<'_>) -> io::Result<Vec<Encoded>> {
    let width = sae.width();
    let normalized: Vec<f32> = input
        .activations
        .chunks_exact(width)
        .flat_map(|row| normalize(row, input.normalization))
        .collect();
    let count = normalized.len() / width;
    let x = ArrayView2::from_shape((count, width), &normalized).map_err(io::Error::other)?;
    let states = sae.visit(BLOCK_BYTES, |state: &mut State, block| {
        let first = block.start;
        let [encoder, scalars] = sae.layout.encoder_ranges(block);
        let rows = state.encoder.read(&sae.object, &encoder)?;
        let scalars = state.scalars.read(&sae.object, &scalars)?;
        let rows =
            ArrayView2::from_shape((rows.len() / width, width), rows).map_err(io::Error::other)?;
        let features = rows.nrows();
        state.rows.resize_with(count, || (Top::new(input.top_k), 0));
        let room = std::mem::take(&mut state.products);
        let mut products = with_shape(room, (count, features))?;
        general_mat_mul(1.0, &x, &rows.t(), 0.0, &mut products);
        let activations: Vec<(f32, Activation)> = scalars
            .chunks_exact(sae.scalar_count())
            .map(|scalars| activation(sae.architecture(), scalars))
            .collect();
        for (row, (top, active)) in products.outer_iter().zip(&mut state.rows) {
            for ((index, product), (bias, activation)) in (first..).zip(row).zip(&activations) {
                let value = activation.apply(product + bias);
                if value > 0.0 {
                    *active += 1;
                    top.push(value, index);
                }
            }
        }
        state.products = products.into_raw_vec_and_offset().0;
        Ok(())
    })?;
    let mut merged: Vec<(Top<u32>, u32)> = vec![(Top::new(input.top_k), 0); count];
    for (row, part) in states
        .into_iter()
        .flat_map(|state| state.rows.into_iter().enumerate())
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
