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
    ALONE,
    dispatch::{Kernel, dispatch},
    isa::{Isa, total},
    math::{exp, tanh},
};
use sums::{all_scores, weighted_values};

mod sums;

/// Partial sums of weights.
const LANES: usize = 8;
/// Query vectors that share a pass over keys and values.
const TILE: usize = 16;
/// Positions whose values are summed before the next vectors' turn.
const BLOCK: usize = 128;

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
    let seen = |sequence: &Sequence<'_>, row| rules.visible(sequence.start + row).len();
    let rows_of = |sequence: &Sequence<'_>| sequence.queries.len() / width;
    let work = |sequence: &Sequence<'_>| {
        let n = rows_of(sequence);
        seen(sequence, n - 1) * n * width
    };
    let all: usize = sequences.iter().map(work).sum();
    // A tile is one thread's: of a few rows that see much, no thread should get most.
    let fair = all / (2 * rayon::current_num_threads());
    let mut tiles = Vec::new();
    let mut first_row = 0;
    for sequence in sequences {
        let n = rows_of(sequence);
        let fair = fair * n / work(sequence).max(1);
        let rows_per_tile = (TILE / rules.group()).min(fair).max(1);
        for start in (0..n).step_by(rows_per_tile) {
            tiles.extend((0..rules.n_kv_heads).map(|kv_head| Tile {
                rules,
                sequence,
                kv_head,
                rows: start..n.min(start + rows_per_tile),
                out_row: first_row + start,
            }));
        }
        first_row += n;
    }
    let outputs: Vec<Vec<f32>> = if all < ALONE || tiles.len() == 1 {
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
    fn run<const FMA: bool>(self, isa: impl Isa) {
        let head_dim = self.rules.head_dim;
        let positions = self.keys.len() / head_dim;
        let mut scores = vec![0.0; self.visible.len() * positions];
        all_scores(isa, self.queries, self.keys, head_dim, &mut scores);
        let mut totals = Vec::with_capacity(self.visible.len());
        for (scores, visible) in scores.chunks_exact_mut(positions).zip(&self.visible) {
            totals.push(weights::<FMA>(self.rules, &mut scores[visible.clone()]));
        }
        for start in (0..positions).step_by(BLOCK) {
            let block = start..positions.min(start + BLOCK);
            weighted_values(isa, &scores, self.values, block, &self.visible, self.out);
        }
        for (out, total) in self.out.chunks_exact_mut(head_dim).zip(totals) {
            out.iter_mut().for_each(|v| *v /= total);
        }
    }
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

#[cfg(test)]
mod tests;
