//! What runs on the CPU: matrix products here, attention and the small layers
//! below. The only module with `unsafe`, and that in `dispatch` and `isa` alone.
//!
//! Weights stay as they are stored: a tile of them is unpacked to f32 once for
//! a block of activation rows, and multiplied with unrounded f32 activations.
//! So a quantised matrix gives exactly what its dequantised self gives, and a
//! row's result is the same bit for bit whatever other rows are in the batch:
//! each element is summed in the same lanes in the same order.

mod activations;
mod attention;
mod dispatch;
mod formats;
mod isa;
mod math;
mod rows;

use std::cell::RefCell;

use candle_core::quantized::GgmlDType;
use rayon::prelude::*;

use activations::{Rows, TILE, Tile};
pub(super) use attention::{Rules, Sequence, attention};
use dispatch::{Kernel, dispatch};
use formats::BLOCK;
use isa::Isa;
pub(super) use rows::{Gate, Norm, add, gated, normed, rotated, softcapped};

/// Weight rows multiplied together.
const GROUP: usize = 4;
/// Activation rows multiplied together: as many sums as fit the registers.
const ROWS: usize = 3;
/// Activation rows for which a tile is unpacked once.
const CHUNK: usize = 96;
/// Multiplications below which other threads are not worth waking.
const ALONE: usize = 1 << 17;

/// Makes the calling thread one of those that compute, as it is best for the one
/// that runs the model: otherwise every product would be handed over to other
/// threads and waited for. What it can't have (the thread belongs to a pool
/// already, or the system has no more threads), it does without.
pub fn compute_on_this_thread() {
    thread_local! {
        /// The pool ends with the thread.
        static POOL: RefCell<Option<rayon::ThreadPool>> = const { RefCell::new(None) };
    }
    if rayon::current_thread_index().is_some() {
        return;
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("compute-{i}"))
        .use_current_thread()
        .build();
    match pool {
        Ok(pool) => POOL.set(Some(pool)),
        Err(e) => tracing::warn!("products are handed over to other threads: {e}"),
    }
}

/// How the elements of a matrix are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl Format {
    /// The format of a GGML type, if there is a product for it.
    pub(super) fn of_ggml(dtype: GgmlDType) -> Option<Self> {
        Some(match dtype {
            GgmlDType::Q4_0 => Self::Q4_0,
            GgmlDType::Q4_1 => Self::Q4_1,
            GgmlDType::Q5_0 => Self::Q5_0,
            GgmlDType::Q5_1 => Self::Q5_1,
            GgmlDType::Q8_0 => Self::Q8_0,
            GgmlDType::Q4K => Self::Q4K,
            GgmlDType::Q5K => Self::Q5K,
            GgmlDType::Q6K => Self::Q6K,
            _ => return None,
        })
    }

    /// Elements and bytes of a block.
    fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }
}

/// A matrix `[out, in]`, row after row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weights<'a> {
    pub(super) format: Format,
    pub(super) bytes: &'a [u8],
    pub(super) out_width: usize,
    pub(super) in_width: usize,
}

impl Weights<'_> {
    /// Bytes of `n` elements of a row.
    fn bytes_of(&self, n: usize) -> usize {
        let (elements, bytes) = self.format.block();
        n / elements * bytes
    }

    fn row(&self, row: usize) -> &[u8] {
        let len = self.bytes_of(self.in_width);
        &self.bytes[row * len..(row + 1) * len]
    }
}

/// `x · Wᵀ` for `x` of `m` rows and every matrix W of as many columns as `x`
/// has; a result has `m` rows of `out_width`.
///
/// # Panics
/// If the lengths do not fit together: a mistake of the caller's.
pub(super) fn products(x: &[f32], m: usize, matrices: &[Weights<'_>]) -> Vec<Vec<f32>> {
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
fn split<'a>(x: &'a Rows, weights: &'a Weights<'a>, out: &'a mut [f32]) -> Vec<Columns<'a>> {
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
struct Columns<'a> {
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
            let x = self.x.row(0);
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
        let mut sums = [[isa.splat(0.0); GROUP]; CHUNK];
        for (chunk, out) in self.out.chunks_mut(CHUNK).enumerate() {
            let sums = &mut sums[..out.len()];
            for column in (0..out[0].len()).step_by(GROUP) {
                let group = GROUP.min(out[0].len() - column);
                let weights = &weights[column * row_bytes..(column + group) * row_bytes];
                isa.prefetch(ahead(
                    &self.weights.bytes[self.first * row_bytes..],
                    column / GROUP + 1,
                    GROUP * row_bytes,
                ));
                sums.fill([isa.splat(0.0); GROUP]);
                group_sums::<F, _>(isa, (weights, row_bytes), self.x, chunk * CHUNK, sums);
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
#[inline(always)]
fn row_sums<F: formats::Format, I: Isa, const G: usize>(
    isa: I,
    weights: [&[u8]; G],
    x: &[Tile],
) -> [I::Floats; G] {
    let mut sums = [isa.splat(0.0); G];
    let mut stored = [(&[][..], &[][..]); G];
    for (stored, row) in stored.iter_mut().zip(weights) {
        *stored = F::stored(row);
    }
    let n = stored[0].0.len();
    for i in 0..n {
        for block in 0..F::BLOCKS {
            let x = eights(x, i * F::BLOCKS + block);
            for (sum, (stored, _)) in sums.iter_mut().zip(stored) {
                for (w, x) in F::unpack(isa, &stored[i], block).into_iter().zip(x) {
                    *sum = isa.fma(w, isa.floats(x), *sum);
                }
            }
        }
    }
    if !stored[0].1.is_empty() {
        let x = eights(x, n * F::BLOCKS);
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

/// A block of a row.
#[inline(always)]
fn eights(x: &[Tile], block: usize) -> &[[f32; 8]; 4] {
    const PER_TILE: usize = TILE / BLOCK;
    &x[block / PER_TILE].0.as_chunks().0[block % PER_TILE]
}

/// Sums of at most [`GROUP`] weight rows with activation rows from `first` on.
/// The same numbers in the same order as [`row_sums`].
#[inline(always)]
fn group_sums<F: formats::Format, I: Isa>(
    isa: I,
    (weights, row_bytes): (&[u8], usize),
    x: &Rows,
    first: usize,
    sums: &mut [[I::Floats; GROUP]],
) {
    let mut tiles = [Tile::EMPTY; GROUP];
    for tile in 0..x.row(first).len() {
        for (unpacked, row) in tiles.iter_mut().zip(weights.chunks_exact(row_bytes)) {
            unpack::<F>(isa, row, tile, unpacked);
        }
        let (whole, rest) = sums.as_chunks_mut::<ROWS>();
        let mut row = first;
        for sums in whole {
            let x = [
                x.tile(row, tile),
                x.tile(row + 1, tile),
                x.tile(row + 2, tile),
            ];
            multiply(isa, &tiles, x, sums);
            row += ROWS;
        }
        for sums in rest {
            multiply(isa, &tiles, [x.tile(row, tile)], std::array::from_mut(sums));
            row += 1;
        }
    }
}

/// Unpacks a tile of a weight row; zeros behind the row's end.
#[inline(always)]
fn unpack<F: formats::Format>(isa: impl Isa, row: &[u8], tile: usize, unpacked: &mut Tile) {
    let per_tile = TILE / BLOCK / F::BLOCKS;
    let (stored, rest) = F::stored(row);
    let here = &stored[tile * per_tile..stored.len().min((tile + 1) * per_tile)];
    let mut to = unpacked.0.as_chunks_mut::<4>().0.iter_mut();
    for stored in here {
        for (block, to) in (0..F::BLOCKS).zip(&mut to) {
            for (to, w) in to.iter_mut().zip(F::unpack(isa, stored, block)) {
                *to = isa.array(w);
            }
        }
    }
    if !rest.is_empty()
        && let Some(to) = to.next()
    {
        for (to, w) in to.iter_mut().zip(F::unpack_rest(isa, rest)) {
            *to = isa.array(w);
        }
    }
    to.for_each(|to| *to = [[0.0; 8]; 4]);
}

/// Adds the products of tiles of weights and activations to their sums.
#[inline(always)]
fn multiply<I: Isa, const R: usize>(
    isa: I,
    tiles: &[Tile; GROUP],
    rows: [&Tile; R],
    sums: &mut [[I::Floats; GROUP]; R],
) {
    let mut local = *sums;
    for v in 0..TILE / 8 {
        for g in 0..GROUP {
            let w = isa.floats(&tiles[g].0[v]);
            for r in 0..R {
                local[r][g] = isa.fma(w, isa.floats(&rows[r].0[v]), local[r][g]);
            }
        }
    }
    *sums = local;
}

/// Rows of a matrix by index, in f32, one after the other.
///
/// # Panics
/// If a row does not exist: a mistake of the caller's.
pub(super) fn unpacked_rows(weights: &Weights<'_>, rows: &[u32]) -> Vec<f32> {
    let width = weights.in_width;
    let mut out = vec![0.0; rows.len() * width];
    for (row, out) in rows.iter().zip(out.chunks_exact_mut(width)) {
        let row = weights.row(*row as usize);
        dispatch(Unpacked {
            format: weights.format,
            row,
            out,
        });
    }
    out
}

struct Unpacked<'a> {
    format: Format,
    row: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for Unpacked<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self, isa: impl Isa) {
        match self.format {
            Format::F32 => self.unpack::<formats::F32>(isa),
            Format::F16 => self.unpack::<formats::F16>(isa),
            Format::Bf16 => self.unpack::<formats::Bf16>(isa),
            Format::Q4_0 => self.unpack::<formats::Q4_0>(isa),
            Format::Q4_1 => self.unpack::<formats::Q4_1>(isa),
            Format::Q5_0 => self.unpack::<formats::Q5_0>(isa),
            Format::Q5_1 => self.unpack::<formats::Q5_1>(isa),
            Format::Q8_0 => self.unpack::<formats::Q8_0>(isa),
            Format::Q4K => self.unpack::<formats::Q4K>(isa),
            Format::Q5K => self.unpack::<formats::Q5K>(isa),
            Format::Q6K => self.unpack::<formats::Q6K>(isa),
        }
    }
}

impl Unpacked<'_> {
    #[inline(always)]
    fn unpack<F: formats::Format>(self, isa: impl Isa) {
        let mut tile = Tile::EMPTY;
        for (i, out) in self.out.chunks_mut(TILE).enumerate() {
            unpack::<F>(isa, self.row, i, &mut tile);
            out.copy_from_slice(&tile.0.as_flattened()[..out.len()]);
        }
    }
}

/// The sum of all lanes, in one fixed order.
#[inline(always)]
fn total(lanes: [f32; 8]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

#[cfg(test)]
mod tests;
