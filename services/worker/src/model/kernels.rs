//! What runs on the CPU: matrix products here, attention and the small layers
//! below. The only module with `unsafe`, and that in `dispatch` and `isa::avx2` alone.
//!
//! Weights stay as they are stored: a tile of them is unpacked once for a block
//! of activation rows. Floats are multiplied with the activations as they are;
//! integers with activations in 8 bits, with a scale for as many of a row as the
//! weights have one for (32 or 256), as llama.cpp does. A row's result is the same bit for bit whatever other rows
//! are in the batch: each element is summed in the same lanes in the same order.

mod activations;
mod attention;
mod dispatch;
mod formats;
mod isa;
mod mapped;
mod math;
mod product;
mod rows;
mod vocabulary;

use std::cell::RefCell;

use candle_core::quantized::GgmlDType;

use activations::{Piece, TILE, Tile};
pub(super) use attention::{Rules, Sequence, attention};
use dispatch::{Kernel, dispatch};
use formats::each_block;
use isa::Isa;
pub(super) use mapped::Mapped;
pub(super) use product::{product, products};
pub(super) use rows::{Gate, Norm, add, gated, normed, rotated, softcapped};
pub use vocabulary::argmax;
pub(crate) use vocabulary::{at_least_kth, log_sum_exp};

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
            GgmlDType::F32 => Self::F32,
            GgmlDType::F16 => Self::F16,
            GgmlDType::BF16 => Self::Bf16,
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

    fn kind(self) -> Kind {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => Kind::Floats,
            Self::Q4K | Self::Q5K | Self::Q6K => Kind::SuperBlocks,
            _ => Kind::Integers,
        }
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

/// What is multiplied in the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Floats,
    /// With a scale for every block.
    Integers,
    /// With a scale for every super-block, and integers for its blocks.
    SuperBlocks,
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
            Format::F32 => self.floats::<formats::F32>(isa),
            Format::F16 => self.floats::<formats::F16>(isa),
            Format::Bf16 => self.floats::<formats::Bf16>(isa),
            Format::Q4_0 => self.integers::<formats::Q4_0, _>(isa),
            Format::Q4_1 => self.integers::<formats::Q4_1, _>(isa),
            Format::Q5_0 => self.integers::<formats::Q5_0, _>(isa),
            Format::Q5_1 => self.integers::<formats::Q5_1, _>(isa),
            Format::Q8_0 => self.integers::<formats::Q8_0, _>(isa),
            Format::Q4K => self.super_blocks::<formats::Q4K, _>(isa),
            Format::Q5K => self.super_blocks::<formats::Q5K, _>(isa),
            Format::Q6K => self.super_blocks::<formats::Q6K, _>(isa),
        }
    }
}

impl Unpacked<'_> {
    #[inline(always)]
    fn floats<F: formats::Floats>(self, isa: impl Isa) {
        let mut tile = Tile::EMPTY;
        for (i, out) in self.out.chunks_mut(TILE).enumerate() {
            product::floats::unpack::<F>(isa, self.row, i, &mut tile);
            out.copy_from_slice(&tile.0.as_flattened()[..out.len()]);
        }
    }

    #[inline(always)]
    fn integers<F: formats::Quantized, I: Isa>(self, isa: I) {
        let (eights, _) = self.out.as_chunks_mut::<8>();
        for (stored, out) in F::stored(self.row).iter().zip(eights.chunks_mut(4)) {
            let all = F::scales(isa, std::slice::from_ref(stored));
            let (scale, offset) = (isa.splat(all.scales[0]), isa.splat(all.offsets[0]));
            for (out, q) in out.iter_mut().zip(isa.widen(F::integers(isa, stored))) {
                *out = isa.array(isa.fma(q, scale, offset));
            }
        }
    }

    #[inline(always)]
    fn super_blocks<F: formats::SuperBlocks, I: Isa>(self, isa: I) {
        let (eights, _) = self.out.as_chunks_mut::<8>();
        for (stored, out) in F::stored(self.row).iter().zip(eights.chunks_mut(32)) {
            let [d, d_offset] = F::multiples(isa, &[stored; 8]).map(|all| isa.array(all)[0]);
            let [scales, offsets] = F::parts(isa, stored).map(|all| isa.word_array(all));
            each_block!(OF => {
                let q = isa.widen(F::integers::<I, OF>(isa, stored));
                for (i, (out, q)) in out[4 * OF..].iter_mut().zip(q).enumerate() {
                    let at = OF + i / 2 * 8;
                    let scale = isa.splat(d * f32::from(scales[at]));
                    let offset = isa.splat(d_offset * f32::from(offsets[at]));
                    *out = isa.array(isa.fma(q, scale, offset));
                }
            });
        }
    }
}

#[cfg(test)]
mod tests;
