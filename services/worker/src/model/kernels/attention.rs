//! Causal attention on the CPU.
//!
//! What a token gets is the same bit for bit however its sequence is cut into
//! chunks and whatever else is in the batch: every sum over positions runs from
//! the token's first visible position to its own, in that order, and every dot
//! product in the same lanes. Several query rows share each pass over the keys;
//! that changes no row's order.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    dispatch::{Kernel, dispatch},
    math::{exp, fma, tanh},
};

/// Partial sums of a dot product.
const LANES: usize = 8;
/// Components of a value row that are summed in registers.
const WIDE: usize = 16;
/// Query vectors that share a pass over keys and values.
const TILE: usize = 16;
/// Positions whose values are summed before the next vectors' turn.
const BLOCK: usize = 64;
/// Multiplications below which other threads are not worth waking.
const ALONE: usize = 1 << 17;

/// Sizes and rules of one layer's attention.
#[derive(Debug, Clone, Copy)]
pub(in crate::model) struct Rules {
    pub(in crate::model) n_heads: usize,
    pub(in crate::model) n_kv_heads: usize,
    pub(in crate::model) head_dim: usize,
    pub(in crate::model) scale: f32,
    pub(in crate::model) softcap: Option<f32>,
    pub(in crate::model) window: Option<usize>,
}

/// Consecutive tokens of one sequence and what they see.
#[derive(Debug, Clone, Copy)]
pub(in crate::model) struct Sequence<'a> {
    /// `[n, n_heads, head_dim]`.
    pub(in crate::model) queries: &'a [f32],
    /// Position of the first query.
    pub(in crate::model) start: usize,
    /// `[n_kv_heads, capacity, head_dim]`, the queries' own positions included.
    pub(in crate::model) keys: &'a [f32],
    /// As the keys.
    pub(in crate::model) values: &'a [f32],
    /// Position of the first row of keys and values.
    pub(in crate::model) first: usize,
}

impl Rules {
    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Positions that the token at `position` sees.
    pub(in crate::model) fn visible(&self, position: usize) -> Range<usize> {
        let end = position + 1;
        self.window.map_or(0, |window| end.saturating_sub(window))..end
    }
}

/// Attention of all sequences, `[n, n_heads * head_dim]`, sequence after sequence.
///
/// # Panics
/// If the lengths do not fit together: a mistake of the caller's.
pub(in crate::model) fn attention(rules: &Rules, sequences: &[Sequence<'_>]) -> Vec<f32> {
    let width = rules.n_heads * rules.head_dim;
    let rows_per_tile = (TILE / rules.group()).max(1);
    let mut tiles = Vec::new();
    let (mut first_row, mut work) = (0, 0);
    for sequence in sequences {
        let n = sequence.queries.len() / width;
        for start in (0..n).step_by(rows_per_tile) {
            let rows = start..n.min(start + rows_per_tile);
            let seen = rules.visible(sequence.start + rows.end - 1).len();
            work += seen * rows.len() * width;
            tiles.extend((0..rules.n_kv_heads).map(|kv_head| Tile {
                rules,
                sequence,
                kv_head,
                rows: rows.clone(),
                out_row: first_row + start,
            }));
        }
        first_row += n;
    }
    let outputs: Vec<Vec<f32>> = if work < ALONE || tiles.len() == 1 {
        tiles.iter().map(Tile::compute).collect()
    } else {
        tiles.par_iter().map(Tile::compute).collect()
    };
    let mut out = vec![0.0; first_row * width];
    let head_width = rules.group() * rules.head_dim;
    for (tile, output) in tiles.iter().zip(&outputs) {
        for (row, output) in output.chunks_exact(head_width).enumerate() {
            let at = (tile.out_row + row) * width + tile.kv_head * head_width;
            out[at..at + head_width].copy_from_slice(output);
        }
    }
    out
}

/// Some tokens' query heads that share a key head: its vectors, token by token.
struct Tile<'a> {
    rules: &'a Rules,
    sequence: &'a Sequence<'a>,
    kv_head: usize,
    rows: Range<usize>,
    out_row: usize,
}

impl Tile<'_> {
    /// `[rows, group * head_dim]`.
    fn compute(&self) -> Vec<f32> {
        let (group, head_dim) = (self.rules.group(), self.rules.head_dim);
        let (width, head_width) = (self.rules.n_heads * head_dim, group * head_dim);
        let mut queries = Vec::with_capacity(self.rows.len() * head_width);
        for row in self.rows.clone() {
            let at = row * width + self.kv_head * head_width;
            queries.extend_from_slice(&self.sequence.queries[at..at + head_width]);
        }
        let visible: Vec<Range<usize>> = self
            .rows
            .clone()
            .flat_map(|row| {
                let range = self.rules.visible(self.sequence.start + row);
                std::iter::repeat_n(range, group)
            })
            .collect();
        // Ranges start and end later from row to row.
        let seen = visible[0].start..visible[visible.len() - 1].end;
        let capacity = self.sequence.keys.len() / self.rules.n_kv_heads;
        let at = self.kv_head * capacity + (seen.start - self.sequence.first) * head_dim;
        let rows = at..at + seen.len() * head_dim;
        let relative = |range: &Range<usize>| range.start - seen.start..range.end - seen.start;
        let mut out = vec![0.0; queries.len()];
        dispatch(Attend {
            rules: self.rules,
            queries: &queries,
            keys: &self.sequence.keys[rows.clone()],
            values: &self.sequence.values[rows],
            visible: visible.iter().map(relative).collect(),
            out: &mut out,
        });
        out
    }
}

/// Attention of some query vectors, `[n, head_dim]`, over one key head.
struct Attend<'a> {
    rules: &'a Rules,
    queries: &'a [f32],
    /// `[positions, head_dim]`.
    keys: &'a [f32],
    values: &'a [f32],
    /// Positions that each vector sees.
    visible: Vec<Range<usize>>,
    out: &'a mut [f32],
}

impl Kernel for Attend<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let head_dim = self.rules.head_dim;
        let positions = self.keys.len() / head_dim;
        let mut scores = vec![0.0; self.visible.len() * positions];
        all_scores::<FMA>(self.queries, self.keys, head_dim, &mut scores);
        let mut totals = Vec::with_capacity(self.visible.len());
        for (scores, visible) in scores.chunks_exact_mut(positions).zip(&self.visible) {
            totals.push(weights::<FMA>(self.rules, &mut scores[visible.clone()]));
        }
        for start in (0..positions).step_by(BLOCK) {
            let block = start..positions.min(start + BLOCK);
            weighted_values::<FMA>(&scores, self.values, block, &self.visible, self.out);
        }
        for (out, total) in self.out.chunks_exact_mut(head_dim).zip(totals) {
            out.iter_mut().for_each(|v| *v /= total);
        }
    }
}

/// `q · k` of every vector with every position, `[n, positions]`.
#[inline(always)]
fn all_scores<const FMA: bool>(queries: &[f32], keys: &[f32], head_dim: usize, scores: &mut [f32]) {
    let n = queries.len() / head_dim;
    let positions = keys.len() / head_dim;
    let query = |i: usize| &queries[i * head_dim..(i + 1) * head_dim];
    let key = |i: usize| &keys[i * head_dim..(i + 1) * head_dim];
    let mut store = |first: usize, position: usize, dots: &[&[f32]]| {
        for (i, dots) in dots.iter().enumerate() {
            let at = (first + i) * positions + position;
            scores[at..at + dots.len()].copy_from_slice(dots);
        }
    };
    for position in (0..positions).step_by(2) {
        let pair = position + 1 < positions;
        let mut i = 0;
        while i < n {
            match (pair, n - i >= 4) {
                (true, true) => {
                    let q = [query(i), query(i + 1), query(i + 2), query(i + 3)];
                    let dots = dots::<4, 2, FMA>(q, [key(position), key(position + 1)]);
                    store(i, position, &[&dots[0], &dots[1], &dots[2], &dots[3]]);
                    i += 4;
                }
                (true, false) => {
                    let keys = [key(position), key(position + 1)];
                    store(i, position, &[&dots::<1, 2, FMA>([query(i)], keys)[0]]);
                    i += 1;
                }
                (false, _) => {
                    let keys = [key(position)];
                    store(i, position, &[&dots::<1, 1, FMA>([query(i)], keys)[0]]);
                    i += 1;
                }
            }
        }
    }
}

/// Dot products of each query with each key.
#[inline(always)]
fn dots<const Q: usize, const K: usize, const FMA: bool>(
    q: [&[f32]; Q],
    k: [&[f32]; K],
) -> [[f32; K]; Q] {
    let whole = q[0].len() / LANES;
    let rest = whole * LANES;
    let (q_lanes, k_lanes) = (
        q.map(|q| &q.as_chunks::<LANES>().0[..whole]),
        k.map(|k| &k.as_chunks::<LANES>().0[..whole]),
    );
    let mut sums = [[[0.0f32; LANES]; K]; Q];
    for at in 0..whole {
        multiply::<Q, K, FMA>(q_lanes.map(|q| q[at]), k_lanes.map(|k| k[at]), &mut sums);
    }
    if rest < q[0].len() {
        multiply::<Q, K, FMA>(
            q.map(|q| padded(&q[rest..])),
            k.map(|k| padded(&k[rest..])),
            &mut sums,
        );
    }
    sums.map(|sums| sums.map(total))
}

#[inline(always)]
fn multiply<const Q: usize, const K: usize, const FMA: bool>(
    q: [[f32; LANES]; Q],
    k: [[f32; LANES]; K],
    sums: &mut [[[f32; LANES]; K]; Q],
) {
    for (q, sums) in q.iter().zip(sums) {
        for (k, sums) in k.iter().zip(sums) {
            for lane in 0..LANES {
                sums[lane] = fma::<FMA>(q[lane], k[lane], sums[lane]);
            }
        }
    }
}

#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

#[inline(always)]
fn total(mut sums: [f32; LANES]) -> f32 {
    for half in [4, 2, 1] {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
    }
    sums[0]
}

/// Turns the scores of one vector into weights that are yet to be divided by
/// their sum, which is returned.
#[inline(always)]
fn weights<const FMA: bool>(rules: &Rules, scores: &mut [f32]) -> f32 {
    match rules.softcap {
        None => scores.iter_mut().for_each(|s| *s *= rules.scale),
        Some(cap) => scores
            .iter_mut()
            .for_each(|s| *s = tanh::<FMA>(*s * rules.scale / cap) * cap),
    }
    let (lanes, rest) = scores.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for lanes in lanes {
        for (most, s) in most.iter_mut().zip(lanes) {
            *most = if *s > *most { *s } else { *most };
        }
    }
    let most = most.iter().chain(rest).copied().fold(most[0], f32::max);
    let (lanes, rest) = scores.as_chunks_mut::<LANES>();
    let mut sums = [0.0; LANES];
    for lanes in lanes {
        for (sum, s) in sums.iter_mut().zip(lanes) {
            *s = exp::<FMA>(*s - most);
            *sum += *s;
        }
    }
    for (sum, s) in sums.iter_mut().zip(rest) {
        *s = exp::<FMA>(*s - most);
        *sum += *s;
    }
    total(sums)
}

/// Adds the weighted values of a block of positions to every vector's sum.
/// `weights` is `[n, positions]`.
#[inline(always)]
fn weighted_values<const FMA: bool>(
    weights: &[f32],
    values: &[f32],
    block: Range<usize>,
    visible: &[Range<usize>],
    out: &mut [f32],
) {
    let n = visible.len();
    let (positions, head_dim) = (weights.len() / n, out.len() / n);
    let weights = |i: usize, range: &Range<usize>| {
        &weights[i * positions + range.start..i * positions + range.end]
    };
    let values = |range: &Range<usize>| &values[range.start * head_dim..range.end * head_dim];
    for (tile, out) in out.chunks_mut(4 * head_dim).enumerate() {
        let first = 4 * tile;
        let seen = |i: usize| {
            let range = &visible[first + i];
            let start = range.start.clamp(block.start, block.end);
            start..range.end.clamp(start, block.end)
        };
        let alone = |i: usize, range: &Range<usize>, out: &mut [f32]| {
            let out = &mut out[i * head_dim..(i + 1) * head_dim];
            accumulate::<1, FMA>([weights(first + i, range)], values(range), out);
        };
        let vectors = out.len() / head_dim;
        let common = (1..vectors).fold(seen(0), |common, i| {
            let range = seen(i);
            common.start.max(range.start)..common.end.min(range.end)
        });
        if vectors < 4 || common.is_empty() {
            (0..vectors).for_each(|i| alone(i, &seen(i), out));
            continue;
        }
        (0..4).for_each(|i| alone(i, &(seen(i).start..common.start), out));
        let four = [0, 1, 2, 3].map(|i| weights(first + i, &common));
        accumulate::<4, FMA>(four, values(&common), out);
        (0..4).for_each(|i| alone(i, &(common.end..seen(i).end), out));
    }
}

/// `out[r] += weights[r] · values`, position by position; `out` is `[R, head_dim]`.
#[inline(always)]
fn accumulate<const R: usize, const FMA: bool>(
    weights: [&[f32]; R],
    values: &[f32],
    out: &mut [f32],
) {
    let head_dim = out.len() / R;
    let whole = head_dim / WIDE * WIDE;
    for d in (0..whole).step_by(WIDE) {
        let mut sums = [[0.0f32; WIDE]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            sums.copy_from_slice(&out[r * head_dim + d..r * head_dim + d + WIDE]);
        }
        for (position, row) in values.chunks_exact(head_dim).enumerate() {
            let row = &row[d..d + WIDE];
            for (weights, sums) in weights.iter().zip(&mut sums) {
                let weight = weights[position];
                for (sum, v) in sums.iter_mut().zip(row) {
                    *sum = fma::<FMA>(weight, *v, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            out[r * head_dim + d..r * head_dim + d + WIDE].copy_from_slice(sums);
        }
    }
    for (weights, out) in weights.iter().zip(out.chunks_exact_mut(head_dim)) {
        for (d, out) in out.iter_mut().enumerate().skip(whole) {
            for (weight, row) in weights.iter().zip(values.chunks_exact(head_dim)) {
                *out = fma::<FMA>(*weight, row[d], *out);
            }
        }
    }
}

#[cfg(test)]
mod tests;
