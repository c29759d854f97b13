//! Products of activations with matrices, of all formats.

use rayon::prelude::*;

use super::{
    ALONE, Format, Weights,
    activations::Activations,
    dispatch::{Kernel, dispatch},
    formats,
    isa::Isa,
};

pub(super) mod floats;
pub(super) mod integers;
pub(super) mod super_blocks;

/// Columns of a result come in multiples of this: so many weight rows are
/// multiplied together at most.
const GROUP: usize = 8;

/// `x · Wᵀ` for `x` of `m` rows and every matrix W of as many columns as `x`
/// has; a result has `m` rows of `out_width`.
///
/// # Panics
/// If the lengths do not fit together: a mistake of the caller's.
pub(in crate::model) fn products(x: &[f32], m: usize, matrices: &[Weights<'_>]) -> Vec<Vec<f32>> {
    let empty = |w: &Weights<'_>| vec![0.0; m * w.out_width];
    let mut results: Vec<_> = matrices.iter().map(empty).collect();
    let each = matrices.iter().zip(&mut results);
    write(x, m, each.map(|(w, y)| (w, &mut y[..])).collect());
    results
}

/// `x · Wᵀ` as [`products`], to where it belongs.
///
/// # Panics
/// If the lengths do not fit together: a mistake of the caller's.
pub(in crate::model) fn product(x: &[f32], m: usize, weights: &Weights<'_>, y: &mut [f32]) {
    write(x, m, vec![(weights, y)]);
}

fn write(x: &[f32], m: usize, products: Vec<(&Weights<'_>, &mut [f32])>) {
    let k = x.len() / m;
    let formats: Vec<_> = products.iter().map(|(w, _)| w.format).collect();
    let rows = Activations::new(x, k, &formats);
    let mut work = 0;
    let mut tasks = Vec::new();
    for (weights, y) in products {
        assert_eq!(x.len(), m * weights.in_width);
        assert_eq!(y.len(), m * weights.out_width);
        assert_eq!(weights.bytes.len(), weights.out_width * weights.bytes_of(k));
        work += m * k * weights.out_width;
        tasks.extend(split(&rows, weights, y));
    }
    if work < ALONE {
        tasks.into_iter().for_each(dispatch);
    } else {
        tasks.into_par_iter().for_each(dispatch);
    }
}

/// Cuts a product by columns of the result.
pub(super) fn split<'a>(
    x: &'a Activations,
    weights: &'a Weights<'a>,
    out: &'a mut [f32],
) -> Vec<Columns<'a>> {
    let n = weights.out_width;
    let tasks = 4 * rayon::current_num_threads();
    let width = n.div_ceil(tasks).next_multiple_of(GROUP);
    let mut columns: Vec<_> = (0..n)
        .step_by(width)
        .map(|first| Columns {
            x,
            weights,
            first,
            out: Vec::with_capacity(out.len() / n),
        })
        .collect();
    for row in out.chunks_mut(n) {
        for (columns, piece) in columns.iter_mut().zip(row.chunks_mut(width)) {
            columns.out.push(piece);
        }
    }
    columns
}

/// Some columns of a product, from weight row `first` on.
pub(super) struct Columns<'a> {
    x: &'a Activations,
    weights: &'a Weights<'a>,
    first: usize,
    /// This part of every row of the result.
    out: Vec<&'a mut [f32]>,
}

impl Kernel for Columns<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self, isa: impl Isa) {
        match self.weights.format {
            Format::F32 => floats::compute::<formats::F32>(self, isa),
            Format::F16 => floats::compute::<formats::F16>(self, isa),
            Format::Bf16 => floats::compute::<formats::Bf16>(self, isa),
            Format::Q4_0 => by_eights(self, isa, integers::Tile::<formats::Q4_0>::EMPTY),
            Format::Q4_1 => by_eights(self, isa, integers::Tile::<formats::Q4_1>::EMPTY),
            Format::Q5_0 => by_eights(self, isa, integers::Tile::<formats::Q5_0>::EMPTY),
            Format::Q5_1 => by_eights(self, isa, integers::Tile::<formats::Q5_1>::EMPTY),
            Format::Q8_0 => by_eights(self, isa, integers::Tile::<formats::Q8_0>::EMPTY),
            Format::Q4K => by_eights(self, isa, super_blocks::Tile::<formats::Q4K>::EMPTY),
            Format::Q5K => by_eights(self, isa, super_blocks::Tile::<formats::Q5K>::EMPTY),
            Format::Q6K => by_eights(self, isa, super_blocks::Tile::<formats::Q6K>::EMPTY),
        }
    }
}

/// Products with eight weight rows at a time, each in a lane of its own, so that
/// a row's sum does not depend on what is multiplied beside it.
trait Eights {
    /// Adds the products of eight rows and of activation rows from `first` on, as many
    /// as there are sums. What comes after the rows is asked for little by little: all
    /// at once would have to wait.
    ///
    /// Must be `#[inline(always)]`.
    fn add<I: Isa>(
        &mut self,
        isa: I,
        weights: (&[&[u8]; GROUP], &[u8]),
        x: (&Activations, usize),
        sums: &mut [I::Floats],
    );
}

#[inline(always)]
fn by_eights<I: Isa>(mut columns: Columns<'_>, isa: I, mut tile: impl Eights) {
    /// Activation rows for which weights are unpacked once.
    const CHUNK: usize = 64;
    let row_bytes = columns.weights.bytes_of(columns.weights.in_width);
    let weights = &columns.weights.bytes[columns.first * row_bytes..];
    let mut sums = vec![isa.splat(0.0); columns.out.len().min(CHUNK)];
    for (chunk, out) in columns.out.chunks_mut(CHUNK).enumerate() {
        let sums = &mut sums[..out.len()];
        let last = out[0].len() - 1;
        for column in (0..=last).step_by(GROUP) {
            // Where there are fewer than eight rows, the last stands in.
            let mut rows = [&[][..]; GROUP];
            for (g, row) in rows.iter_mut().enumerate() {
                let at = last.min(column + g) * row_bytes;
                *row = &weights[at..at + row_bytes];
            }
            let next = weights
                .get((column + GROUP) * row_bytes..)
                .unwrap_or_default();
            sums.fill(isa.splat(0.0));
            tile.add(isa, (&rows, next), (columns.x, chunk * CHUNK), sums);
            for (out, sums) in out.iter_mut().zip(&*sums) {
                let out = &mut out[column..=last.min(column + GROUP - 1)];
                match out.as_mut_array() {
                    Some(out) => *out = isa.array(*sums),
                    None => out.copy_from_slice(&isa.array(*sums)[..out.len()]),
                }
            }
        }
    }
}

/// The `index`th of some pieces of weights; nothing behind the end.
#[inline(always)]
fn ahead(weights: &[u8], index: usize, len: usize) -> &[u8] {
    weights
        .get(index * len..(index + 1) * len)
        .unwrap_or_default()
}
