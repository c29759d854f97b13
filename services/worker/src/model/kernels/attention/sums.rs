//! Dot products with keys, and weighted sums of values.

use std::ops::Range;

use crate::model::kernels::isa::{Isa, total};

/// Partial sums of a dot product.
const LANES: usize = 8;

/// `q · k` of every vector with every position, `[n, positions]`.
#[inline(always)]
pub(super) fn all_scores(
    isa: impl Isa,
    queries: &[f32],
    keys: &[f32],
    head_dim: usize,
    scores: &mut [f32],
) {
    let n = queries.len() / head_dim;
    let positions = keys.len() / head_dim;
    for position in (0..positions).step_by(2) {
        let pair = &keys[position * head_dim..(position + 2).min(positions) * head_dim];
        for i in (0..n).step_by(4) {
            let few = &queries[i * head_dim..(i + 4).min(n) * head_dim];
            let at = i * positions + position;
            match (few.len() / head_dim, pair.len() / head_dim) {
                (4, 2) => dots::<4, 2, _>(isa, few, pair, &mut scores[at..], positions),
                (4, _) => dots::<4, 1, _>(isa, few, pair, &mut scores[at..], positions),
                (2, 2) => dots::<2, 2, _>(isa, few, pair, &mut scores[at..], positions),
                (_, keys) => {
                    for (j, query) in few.chunks_exact(head_dim).enumerate() {
                        let scores = &mut scores[at + j * positions..];
                        match keys {
                            2 => dots::<1, 2, _>(isa, query, pair, scores, positions),
                            _ => dots::<1, 1, _>(isa, query, pair, scores, positions),
                        }
                    }
                }
            }
        }
    }
}

/// Dot products of each query with each key, written `stride` apart.
// Iterators over these arrays keep them in memory rather than in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn dots<const Q: usize, const K: usize, I: Isa>(
    isa: I,
    queries: &[f32],
    keys: &[f32],
    scores: &mut [f32],
    stride: usize,
) {
    let head_dim = queries.len() / Q;
    let mut sums = [[isa.splat(0.0); K]; Q];
    for at in (0..head_dim).step_by(LANES) {
        let mut k = [isa.splat(0.0); K];
        for j in 0..K {
            k[j] = load(isa, &keys[j * head_dim..][..head_dim], at);
        }
        for i in 0..Q {
            let q = load(isa, &queries[i * head_dim..][..head_dim], at);
            for j in 0..K {
                sums[i][j] = isa.fma(q, k[j], sums[i][j]);
            }
        }
    }
    let mut values = [[0.0; K]; Q];
    let (fours, rest) = sums.as_flattened().as_chunks::<4>();
    let (to_fours, to_rest) = values.as_flattened_mut().as_chunks_mut::<4>();
    for i in 0..fours.len() {
        to_fours[i] = isa.totals(fours[i]);
    }
    for i in 0..rest.len() {
        to_rest[i] = total(isa.array(rest[i]));
    }
    for i in 0..Q {
        scores[i * stride..][..K].copy_from_slice(&values[i]);
    }
}

/// [`LANES`] numbers from `at` on; zeros behind the end.
#[inline(always)]
fn load<I: Isa>(isa: I, values: &[f32], at: usize) -> I::Floats {
    let rest = &values[at..];
    if let Some(lanes) = rest.first_chunk() {
        return isa.floats(lanes);
    }
    let mut lanes = [0.0; LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    isa.floats(&lanes)
}

/// Adds the weighted values of a block of positions to every vector's sum.
/// `weights` is `[n, positions]`.
#[inline(always)]
pub(super) fn weighted_values(
    isa: impl Isa,
    weights: &[f32],
    values: &[f32],
    block: Range<usize>,
    visible: &[Range<usize>],
    out: &mut [f32],
) {
    let n = visible.len();
    let (positions, head_dim) = (weights.len() / n, out.len() / n);
    for (tile, out) in out.chunks_mut(4 * head_dim).enumerate() {
        let first = 4 * tile;
        let vectors = out.len() / head_dim;
        let (mut starts, mut ends) = ([block.start; 4], [block.start; 4]);
        for i in 0..vectors {
            let range = &visible[first + i];
            starts[i] = range.start.clamp(block.start, block.end);
            ends[i] = range.end.clamp(starts[i], block.end);
        }
        let start = starts[..vectors].iter().fold(block.start, |a, b| a.max(*b));
        let end = ends[..vectors].iter().fold(block.end, |a, b| a.min(*b));
        // What all see in one pass, if they are four or two; what only some see, one by one.
        let together = matches!(vectors, 2 | 4) && start < end;
        let common = if together {
            start..end
        } else {
            block.end..block.end
        };
        for (i, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let range = starts[i]..ends[i].min(common.start);
            let at = (first + i) * positions;
            let weights = &weights[at + range.start..at + range.end];
            let values = &values[range.start * head_dim..range.end * head_dim];
            accumulate::<1, _>(isa, weights, positions, values, out);
        }
        if !together {
            continue;
        }
        let weights_of_all = &weights[first * positions + start..];
        let common = &values[start * head_dim..end * head_dim];
        match vectors {
            2 => accumulate::<2, _>(isa, weights_of_all, positions, common, out),
            _ => accumulate::<4, _>(isa, weights_of_all, positions, common, out),
        }
        for (i, out) in out.chunks_exact_mut(head_dim).enumerate() {
            let at = (first + i) * positions;
            let weights = &weights[at + end..at + ends[i].max(end)];
            let values = &values[end * head_dim..ends[i].max(end) * head_dim];
            accumulate::<1, _>(isa, weights, positions, values, out);
        }
    }
}

/// `out[r] += weights[r] · values`, position by position; `out` is `[R, head_dim]`,
/// and the rows of weights are `stride` apart.
#[inline(always)]
fn accumulate<const R: usize, I: Isa>(
    isa: I,
    weights: &[f32],
    stride: usize,
    values: &[f32],
    out: &mut [f32],
) {
    let head_dim = out.len() / R;
    let mut d = 0;
    // Eight sums at a time do not wait for each other; more would not fit the registers.
    while d + 4 * LANES <= head_dim && R <= 2 {
        columns::<R, 4, _>(isa, (weights, stride), (values, d), out);
        d += 4 * LANES;
    }
    while d + 2 * LANES <= head_dim {
        columns::<R, 2, _>(isa, (weights, stride), (values, d), out);
        d += 2 * LANES;
    }
    while d < head_dim {
        columns::<R, 1, _>(isa, (weights, stride), (values, d), out);
        d += LANES;
    }
}

/// [`accumulate`] for `W` times as many numbers as there are lanes, from `d` on.
// Iterators over these arrays keep them in memory rather than in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn columns<const R: usize, const W: usize, I: Isa>(
    isa: I,
    (weights, stride): (&[f32], usize),
    (values, d): (&[f32], usize),
    out: &mut [f32],
) {
    let head_dim = out.len() / R;
    let mut sums = [[isa.splat(0.0); W]; R];
    for r in 0..R {
        for w in 0..W {
            sums[r][w] = load(isa, &out[r * head_dim..][..head_dim], d + w * LANES);
        }
    }
    for (position, row) in values.chunks_exact(head_dim).enumerate() {
        let mut v = [isa.splat(0.0); W];
        for w in 0..W {
            v[w] = load(isa, row, d + w * LANES);
        }
        for r in 0..R {
            let weight = isa.splat(weights[r * stride + position]);
            for w in 0..W {
                sums[r][w] = isa.fma(weight, v[w], sums[r][w]);
            }
        }
    }
    for r in 0..R {
        for w in 0..W {
            let out = &mut out[r * head_dim..][..head_dim][d + w * LANES..];
            let sum = isa.array(sums[r][w]);
            match out.first_chunk_mut() {
                Some(out) => *out = sum,
                None => out.copy_from_slice(&sum[..out.len()]),
            }
        }
    }
}
