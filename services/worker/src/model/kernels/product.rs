//! Products of activations with matrices, of all formats.

use rayon::prelude::*;

use super::{
    ALONE, Format, Weights,
    activations::{Rows, TILE, Tile},
    dispatch::{Kernel, dispatch},
    formats::{self, BLOCK, each_block},
    isa::Isa,
    total,
};

/// Weight rows multiplied together.
const GROUP: usize = 4;
/// Activation rows multiplied together: as many sums as fit the registers.
const ROWS: usize = 3;
/// Activation rows for which a tile is unpacked once.
const CHUNK: usize = 48;
/// Blocks of a tile.
const PER_TILE: usize = TILE / BLOCK;

/// `x · Wᵀ` for `x` of `m` rows and every matrix W of as many columns as `x`
/// has; a result has `m` rows of `out_width`.
///
/// # Panics
/// If the lengths do not fit together: a mistake of the caller's.
pub(in crate::model) fn products(x: &[f32], m: usize, matrices: &[Weights<'_>]) -> Vec<Vec<f32>> {
    let k = x.len() / m;
    for weights in matrices {
        assert_eq!(x.len(), m * weights.in_width);
        assert_eq!(weights.bytes.len(), weights.out_width * weights.bytes_of(k));
    }
    let rows = Rows::new(x, k);
    let empty = |w: &Weights<'_>| vec![0.0; m * w.out_width];
    let mut results: Vec<_> = matrices.iter().map(empty).collect();
    let mut tasks = Vec::new();
    for (weights, result) in matrices.iter().zip(&mut results) {
        tasks.extend(split(&rows, weights, result));
    }
    let work: usize = matrices.iter().map(|w| m * k * w.out_width).sum();
    if work < ALONE {
        tasks.into_iter().for_each(dispatch);
    } else {
        tasks.into_par_iter().for_each(dispatch);
    }
    results
}

/// Cuts a product by columns of the result.
pub(super) fn split<'a>(
    x: &'a Rows,
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
    x: &'a Rows,
    weights: &'a Weights<'a>,
    first: usize,
    /// This part of every row of the result.
    out: Vec<&'a mut [f32]>,
}

impl Kernel for Columns<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self, isa: impl Isa) {
        match self.weights.format {
            Format::F32 => self.compute::<formats::F32>(isa),
            Format::F16 => self.compute::<formats::F16>(isa),
            Format::Bf16 => self.compute::<formats::Bf16>(isa),
            Format::Q4_0 => self.compute::<formats::Q4_0>(isa),
            Format::Q4_1 => self.compute::<formats::Q4_1>(isa),
            Format::Q5_0 => self.compute::<formats::Q5_0>(isa),
            Format::Q5_1 => self.compute::<formats::Q5_1>(isa),
            Format::Q8_0 => self.compute::<formats::Q8_0>(isa),
            Format::Q4K => self.compute::<formats::Q4K>(isa),
            Format::Q5K => self.compute::<formats::Q5K>(isa),
            Format::Q6K => self.compute::<formats::Q6K>(isa),
        }
    }
}

impl Columns<'_> {
    #[inline(always)]
    fn compute<F: formats::Format>(mut self, isa: impl Isa) {
        let row_bytes = self.weights.bytes_of(self.weights.in_width);
        let weights = &self.weights.bytes[self.first * row_bytes..];
        if let [out] = &mut self.out[..] {
            let x = self.x.only_row();
            let (groups, rest) = out.as_chunks_mut::<GROUP>();
            let mut rows = weights.chunks_exact(row_bytes);
            for (i, out) in groups.iter_mut().enumerate() {
                isa.prefetch(ahead(weights, i + 2, GROUP * row_bytes));
                let group = [(); GROUP].map(|()| rows.next().unwrap_or_default());
                for (out, sum) in out.iter_mut().zip(row_sums::<F, _, _>(isa, group, x)) {
                    *out = total(isa.array(sum));
                }
            }
            for (out, row) in rest.iter_mut().zip(rows) {
                let [sum] = row_sums::<F, _, _>(isa, [row], x);
                *out = total(isa.array(sum));
            }
            return;
        }
        let mut tiles = [Tile::EMPTY; GROUP];
        let mut sums = vec![[isa.splat(0.0); GROUP]; self.out.len().min(CHUNK)];
        for (chunk, out) in self.out.chunks_mut(CHUNK).enumerate() {
            let sums = &mut sums[..out.len()];
            for (i, column) in (0..out[0].len()).step_by(GROUP).enumerate() {
                isa.prefetch(ahead(weights, i + 1, GROUP * row_bytes));
                let group = GROUP.min(out[0].len() - column);
                let rows = &weights[column * row_bytes..(column + group) * row_bytes];
                sums.fill([isa.splat(0.0); GROUP]);
                for tile in 0..self.weights.in_width.div_ceil(TILE) {
                    for (unpacked, row) in tiles.iter_mut().zip(rows.chunks_exact(row_bytes)) {
                        unpack::<F>(isa, row, tile, unpacked);
                    }
                    let width = TILE.min(self.weights.in_width - tile * TILE);
                    tile_sums(
                        isa,
                        (&tiles, width),
                        self.x.tiles(tile, chunk * CHUNK),
                        sums,
                    );
                }
                for (out, sums) in out.iter_mut().zip(&*sums) {
                    for (out, sum) in out[column..column + group].iter_mut().zip(sums) {
                        *out = total(isa.array(*sum));
                    }
                }
            }
        }
    }
}

/// Sums of some weight rows with one activation row, straight from what is
/// stored: several, since one row's sums wait for each other.
// Iterators over these arrays keep them in memory rather than in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
fn row_sums<F: formats::Format, I: Isa, const G: usize>(
    isa: I,
    weights: [&[u8]; G],
    x: &[[[f32; 8]; 4]],
) -> [I::Floats; G] {
    let mut sums = [isa.splat(0.0); G];
    let mut stored = [(&[][..], &[][..]); G];
    for (stored, row) in stored.iter_mut().zip(weights) {
        *stored = F::stored(row);
    }
    let n = stored[0].0.len();
    let (whole, rest) = x.split_at(n * F::BLOCKS);
    let mut pieces = [&[][..]; G];
    for (pieces, (stored, _)) in pieces.iter_mut().zip(stored) {
        *pieces = &stored[..n];
    }
    for (i, x) in whole.chunks_exact(F::BLOCKS).enumerate() {
        let mut scales = [F::scales(isa, &pieces[0][i]); G];
        for g in 1..G {
            scales[g] = F::scales(isa, &pieces[g][i]);
        }
        each_block!(F, BLOCK => for g in 0..G {
            let w = F::unpack::<I, BLOCK>(isa, &pieces[g][i], &scales[g]);
            for (w, x) in w.into_iter().zip(&x[BLOCK]) {
                sums[g] = isa.fma(w, isa.floats(x), sums[g]);
            }
        });
    }
    if let (false, [x, ..]) = (stored[0].1.is_empty(), rest) {
        for (sum, (_, rest)) in sums.iter_mut().zip(stored) {
            for (w, x) in F::unpack_rest(isa, rest).into_iter().zip(x) {
                *sum = isa.fma(w, isa.floats(x), *sum);
            }
        }
    }
    sums
}

/// The `index`th of some pieces of weights; nothing behind the end.
#[inline(always)]
fn ahead(weights: &[u8], index: usize, len: usize) -> &[u8] {
    weights
        .get(index * len..(index + 1) * len)
        .unwrap_or_default()
}

/// Adds the products of tiles of weights, `width` elements wide, with a tile of
/// every activation row. The same numbers in the same order as [`row_sums`].
#[inline(always)]
fn tile_sums<I: Isa>(
    isa: I,
    (weights, width): (&[Tile; GROUP], usize),
    x: &[Tile],
    sums: &mut [[I::Floats; GROUP]],
) {
    let mut row = 0;
    while row < sums.len() {
        let left = &mut sums[row..];
        // One row alone would wait for its own sums: better twice two than
        // three and one.
        let together = match left.len() {
            1 => 1,
            2 | 4 => 2,
            _ => ROWS,
        };
        if let (ROWS, Some(sums)) = (together, left.first_chunk_mut::<ROWS>()) {
            multiply(
                isa,
                (weights, width),
                [&x[row], &x[row + 1], &x[row + 2]],
                sums,
            );
        } else if let (2, Some(sums)) = (together, left.first_chunk_mut::<2>()) {
            multiply(isa, (weights, width), [&x[row], &x[row + 1]], sums);
        } else if let Some(sums) = left.first_chunk_mut::<1>() {
            multiply(isa, (weights, width), [&x[row]], sums);
        }
        row += together;
    }
}

/// Unpacks a tile of a weight row; zeros behind the row's end.
#[inline(always)]
pub(super) fn unpack<F: formats::Format>(
    isa: impl Isa,
    row: &[u8],
    tile: usize,
    unpacked: &mut Tile,
) {
    let per_tile = PER_TILE / F::BLOCKS;
    let (stored, rest) = F::stored(row);
    let here = &stored[tile * per_tile..stored.len().min((tile + 1) * per_tile)];
    let blocks = unpacked.0.as_chunks_mut::<4>().0;
    for (stored, to) in here.iter().zip(blocks.chunks_exact_mut(F::BLOCKS)) {
        let scales = F::scales(isa, stored);
        each_block!(F, BLOCK => {
            for (to, w) in to[BLOCK].iter_mut().zip(F::unpack::<_, BLOCK>(isa, stored, &scales)) {
                *to = isa.array(w);
            }
        });
    }
    let mut left = blocks[here.len() * F::BLOCKS..].iter_mut();
    if !rest.is_empty()
        && let Some(to) = left.next()
    {
        for (to, w) in to.iter_mut().zip(F::unpack_rest(isa, rest)) {
            *to = isa.array(w);
        }
    }
    left.for_each(|to| *to = [[0.0; 8]; 4]);
}

/// Adds the products of tiles of weights, `width` elements wide, and activations
/// to their sums.
#[inline(always)]
fn multiply<I: Isa, const R: usize>(
    isa: I,
    (weights, width): (&[Tile; GROUP], usize),
    rows: [&Tile; R],
    sums: &mut [[I::Floats; GROUP]; R],
) {
    let mut local = *sums;
    for v in 0..width.min(TILE).div_ceil(8) {
        for g in 0..GROUP {
            let w = isa.floats(&weights[g].0[v]);
            for r in 0..R {
                local[r][g] = isa.fma(w, isa.floats(&rows[r].0[v]), local[r][g]);
            }
        }
    }
    *sums = local;
}
