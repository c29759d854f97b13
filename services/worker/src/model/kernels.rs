//! What runs on the CPU: matrix products here, attention below. The only module
//! with `unsafe`, and that in `dispatch` alone.
//!
//! Weights stay as they are stored: a tile of them is unpacked to f32 once for
//! a block of activation rows, and multiplied with unrounded f32 activations.
//! So a quantised matrix gives exactly what its dequantised self gives, and a
//! row's result is the same bit for bit whatever other rows are in the batch:
//! each element is summed in the same lanes in the same order.

mod attention;
mod dispatch;
mod math;
mod unpack;

use candle_core::quantized::GgmlDType;
use rayon::prelude::*;

pub(super) use attention::{Rules, Sequence, attention};
use dispatch::{Kernel, dispatch};
use unpack::Unpack;

/// Elements of a row that are unpacked at a time.
const TILE: usize = 256;
/// Partial sums per element of the result.
const LANES: usize = 16;
/// Weight rows multiplied together.
const GROUP: usize = 4;
/// Activation rows for which a tile is unpacked once.
const BLOCK: usize = 32;

type Tiles = [[f32; TILE]; GROUP];
/// Partial sums of one activation row with each weight row of a group.
type Sums = [[f32; LANES]; GROUP];

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
}

/// `x · Wᵀ` for `x` of `m` rows; the result has `m` rows of `out_width`.
///
/// # Panics
/// If the lengths do not fit together: a mistake of the caller's.
pub(super) fn product(x: &[f32], m: usize, weights: &Weights<'_>) -> Vec<f32> {
    let (n, k) = (weights.out_width, weights.in_width);
    assert_eq!(x.len(), m * k);
    assert_eq!(weights.bytes.len(), n * weights.bytes_of(k));
    let padded = pad_rows(x, k);
    let mut by_column = vec![0.0f32; n * m];
    let tasks = 4 * rayon::current_num_threads();
    let rows = n.div_ceil(tasks).next_multiple_of(GROUP);
    by_column
        .par_chunks_mut(rows * m)
        .enumerate()
        .for_each(|(task, out)| {
            dispatch(Columns {
                x: &padded,
                m,
                weights,
                first: task * rows,
                out,
            });
        });
    if m == 1 {
        return by_column;
    }
    transpose(&by_column, n, m)
}

/// Rows with zeros added up to a whole number of tiles.
fn pad_rows(x: &[f32], k: usize) -> Vec<f32> {
    let width = k.next_multiple_of(TILE);
    let mut padded = vec![0.0; x.len() / k * width];
    for (to, from) in padded.chunks_exact_mut(width).zip(x.chunks_exact(k)) {
        to[..k].copy_from_slice(from);
    }
    padded
}

fn transpose(by_column: &[f32], n: usize, m: usize) -> Vec<f32> {
    let mut out = vec![0.0; n * m];
    out.par_chunks_mut(n).enumerate().for_each(|(row, out)| {
        for (column, value) in out.iter_mut().enumerate() {
            *value = by_column[column * m + row];
        }
    });
    out
}

/// Some columns of the result, `m` values each, from weight row `first` on.
struct Columns<'a> {
    x: &'a [f32],
    m: usize,
    weights: &'a Weights<'a>,
    first: usize,
    out: &'a mut [f32],
}

impl Kernel for Columns<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self) {
        match self.weights.format {
            Format::F32 => columns_of::<unpack::F32, FMA>(self),
            Format::F16 => columns_of::<unpack::F16, FMA>(self),
            Format::Bf16 => columns_of::<unpack::Bf16, FMA>(self),
            Format::Q4_0 => columns_of::<unpack::Q4_0, FMA>(self),
            Format::Q4_1 => columns_of::<unpack::Q4_1, FMA>(self),
            Format::Q5_0 => columns_of::<unpack::Q5_0, FMA>(self),
            Format::Q5_1 => columns_of::<unpack::Q5_1, FMA>(self),
            Format::Q8_0 => columns_of::<unpack::Q8_0, FMA>(self),
            Format::Q4K => columns_of::<unpack::Q4K, FMA>(self),
            Format::Q5K => columns_of::<unpack::Q5K, FMA>(self),
            Format::Q6K => columns_of::<unpack::Q6K, FMA>(self),
        }
    }
}

#[inline(always)]
fn columns_of<U: Unpack, const FMA: bool>(columns: Columns<'_>) {
    let Columns {
        x,
        m,
        weights,
        first,
        out,
    } = columns;
    let width = weights.in_width.next_multiple_of(TILE);
    let mut sums: [Sums; BLOCK] = [[[0.0; LANES]; GROUP]; BLOCK];
    let mut tiles: Tiles = [[0.0; TILE]; GROUP];
    for block in (0..m).step_by(BLOCK) {
        let rows = BLOCK.min(m - block);
        let x = &x[block * width..(block + rows) * width];
        for (group, out) in out.chunks_mut(GROUP * m).enumerate() {
            let row = first + group * GROUP;
            // Cleared row by row: clearing a whole block would cost more than
            // the products of a single row.
            let sums = &mut sums[..rows];
            sums.fill([[0.0; LANES]; GROUP]);
            group_sums::<U, FMA>(x, weights, row, &mut tiles, sums);
            for (column, out) in out.chunks_exact_mut(m).enumerate() {
                for (out, sums) in out[block..block + rows].iter_mut().zip(&*sums) {
                    *out = sums[column].iter().sum();
                }
            }
        }
    }
}

/// Sums of [`GROUP`] weight rows, from `row` on, with one activation row per sum.
#[inline(always)]
fn group_sums<U: Unpack, const FMA: bool>(
    x: &[f32],
    weights: &Weights<'_>,
    row: usize,
    tiles: &mut Tiles,
    sums: &mut [Sums],
) {
    let rows = sums.len();
    let k = weights.in_width;
    let width = k.next_multiple_of(TILE);
    let row_bytes = weights.bytes_of(k);
    let group = GROUP.min(weights.out_width - row);
    for start in (0..k).step_by(TILE) {
        let len = TILE.min(k - start);
        for (g, tile) in tiles.iter_mut().enumerate().take(group) {
            let at = (row + g) * row_bytes + weights.bytes_of(start);
            let packed = &weights.bytes[at..at + weights.bytes_of(len)];
            U::unpack(packed, &mut tile[..len]);
            tile[len..].fill(0.0);
        }
        let x_tile = |i: usize| {
            let tile = &x[i * width + start..i * width + start + TILE];
            tile.first_chunk::<TILE>().unwrap_or(&[0.0; TILE])
        };
        let mut i = 0;
        while i + 4 <= rows {
            let x = [x_tile(i), x_tile(i + 1), x_tile(i + 2), x_tile(i + 3)];
            if let Some(sums) = sums[i..].first_chunk_mut::<4>() {
                multiply::<4, FMA>(tiles, x, sums);
            }
            i += 4;
        }
        while i < rows {
            if let Some(sums) = sums[i..].first_chunk_mut::<1>() {
                multiply::<1, FMA>(tiles, [x_tile(i)], sums);
            }
            i += 1;
        }
    }
}

/// Adds the products of [`GROUP`] tiles of weights with `R` tiles of activations.
#[inline(always)]
fn multiply<const R: usize, const FMA: bool>(
    tiles: &Tiles,
    x: [&[f32; TILE]; R],
    sums: &mut [Sums; R],
) {
    let mut local = *sums;
    for start in (0..TILE).step_by(LANES) {
        for (x, sums) in x.iter().zip(&mut local) {
            for (tile, sums) in tiles.iter().zip(sums) {
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let (w, x) = (tile[start + lane], x[start + lane]);
                    *sum = if FMA {
                        w.mul_add(x, *sum)
                    } else {
                        w * x + *sum
                    };
                }
            }
        }
    }
    *sums = local;
}

#[cfg(test)]
mod tests;
