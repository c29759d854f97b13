//! Integers whose scales are integers too, under one scale for all 256 of a
//! super-block: ggml's K formats (layouts as in its `ggml-quants.c`). An element
//! is `d · scale · q + d_offset · offset`, where a block of 32 has one scale and
//! one offset, or each of its halves has.

use super::{BLOCK, Isa, piece};

/// Elements of a matrix that are integers, in whole super-blocks.
pub(in crate::model::kernels) trait SuperBlocks {
    /// A super-block.
    type Stored: AsRef<[u8]>;

    /// Parts of a block that have a scale each: 1 or 2.
    const PARTS: usize;
    /// Sums of two products of an integer and one of 7 bits and a sign that
    /// may be added in 16 bits.
    const SUMS: usize;
    /// Where d is stored, in half precision.
    const D: usize;
    /// Where −d_offset is; without, it is d.
    const D_MIN: Option<usize>;

    fn stored(row: &[u8]) -> &[Self::Stored];
    /// Scales and offsets: of the eight blocks' first halves, then of their second ones.
    fn parts<I: Isa>(isa: I, stored: &Self::Stored) -> [I::Words; 2];
    /// The integers of one block; none is negative.
    fn integers<I: Isa, const BLOCK: usize>(isa: I, stored: &Self::Stored) -> I::Bytes;

    /// d and d_offset of eight super-blocks.
    #[inline(always)]
    fn multiples<I: Isa>(isa: I, stored: &[&Self::Stored; 8]) -> [I::Floats; 2] {
        let d = halves::<Self, I>(isa, stored, Self::D);
        match Self::D_MIN {
            Some(at) => {
                let d_min = halves::<Self, I>(isa, stored, at);
                [d, isa.multiply(d_min, isa.splat(-1.0))]
            }
            None => [d, d],
        }
    }
}

/// Does something for every block of a super-block, each with code of its own.
macro_rules! each_block {
    ($block:ident => $do:expr) => {
        each_block!(@ $block, $do, 0 1 2 3 4 5 6 7);
    };
    (@ $block:ident, $do:expr, $($value:literal)*) => {$({
        const $block: usize = $value;
        $do;
    })*};
}
pub(in crate::model::kernels) use each_block;

pub(in crate::model::kernels) struct Q4K;
pub(in crate::model::kernels) struct Q5K;
pub(in crate::model::kernels) struct Q6K;

impl SuperBlocks for Q4K {
    type Stored = [u8; 144];

    const PARTS: usize = 1;
    const SUMS: usize = 8;
    const D: usize = 0;
    const D_MIN: Option<usize> = Some(2);

    #[inline(always)]
    fn stored(row: &[u8]) -> &[Self::Stored] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn parts<I: Isa>(isa: I, stored: &Self::Stored) -> [I::Words; 2] {
        isa.six_bits(piece(stored, 0))
    }

    #[inline(always)]
    fn integers<I: Isa, const BLOCK: usize>(isa: I, stored: &Self::Stored) -> I::Bytes {
        nibbles::<I, BLOCK>(isa, piece(stored, 16 + BLOCK / 2 * 32))
    }
}

impl SuperBlocks for Q5K {
    type Stored = [u8; 176];

    const PARTS: usize = 1;
    const SUMS: usize = 4;
    const D: usize = 0;
    const D_MIN: Option<usize> = Some(2);

    #[inline(always)]
    fn stored(row: &[u8]) -> &[Self::Stored] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn parts<I: Isa>(isa: I, stored: &Self::Stored) -> [I::Words; 2] {
        isa.six_bits(piece(stored, 0))
    }

    #[inline(always)]
    fn integers<I: Isa, const BLOCK: usize>(isa: I, stored: &Self::Stored) -> I::Bytes {
        let low = nibbles::<I, BLOCK>(isa, piece(stored, 48 + BLOCK / 2 * 32));
        let bits = isa.bytes(piece(stored, 16));
        let high = match BLOCK {
            0 => isa.bits::<0>(bits, 1),
            1 => isa.bits::<1>(bits, 1),
            2 => isa.bits::<2>(bits, 1),
            3 => isa.bits::<3>(bits, 1),
            4 => isa.bits::<4>(bits, 1),
            5 => isa.bits::<5>(bits, 1),
            6 => isa.bits::<6>(bits, 1),
            _ => isa.bits::<7>(bits, 1),
        };
        isa.join::<4>(low, high)
    }
}

impl SuperBlocks for Q6K {
    type Stored = [u8; 210];

    const PARTS: usize = 2;
    const SUMS: usize = 2;
    const D: usize = 208;
    const D_MIN: Option<usize> = None;

    #[inline(always)]
    fn stored(row: &[u8]) -> &[Self::Stored] {
        row.as_chunks().0
    }

    #[inline(always)]
    fn parts<I: Isa>(isa: I, stored: &Self::Stored) -> [I::Words; 2] {
        // Halves of a block are neighbours here.
        let scales = isa.even_and_odd(piece(stored, 192));
        [scales, isa.multiply_words(scales, -32)]
    }

    #[inline(always)]
    fn integers<I: Isa, const BLOCK: usize>(isa: I, stored: &Self::Stored) -> I::Bytes {
        let bytes = isa.bytes(piece(stored, BLOCK / 4 * 64 + BLOCK % 2 * 32));
        let low = match BLOCK % 4 / 2 {
            0 => isa.bits::<0>(bytes, 15),
            _ => isa.bits::<4>(bytes, 15),
        };
        let bits = isa.bytes(piece(stored, 128 + BLOCK / 4 * 32));
        let high = match BLOCK % 4 {
            0 => isa.bits::<0>(bits, 3),
            1 => isa.bits::<2>(bits, 3),
            2 => isa.bits::<4>(bits, 3),
            _ => isa.bits::<6>(bits, 3),
        };
        isa.join::<4>(low, high)
    }
}

/// The low halves of 32 bytes for an even block, the high ones for an odd one.
#[inline(always)]
fn nibbles<I: Isa, const B: usize>(isa: I, stored: &[u8; BLOCK]) -> I::Bytes {
    let bytes = isa.bytes(stored);
    match B % 2 {
        0 => isa.bits::<0>(bytes, 15),
        _ => isa.bits::<4>(bytes, 15),
    }
}

/// The half-precision numbers at `at` of eight super-blocks.
#[inline(always)]
fn halves<F: SuperBlocks + ?Sized, I: Isa>(
    isa: I,
    stored: &[&F::Stored; 8],
    at: usize,
) -> I::Floats {
    let mut bits = [0; 8];
    for (bits, stored) in bits.iter_mut().zip(stored) {
        *bits = u16::from_le_bytes(*piece(stored.as_ref(), at));
    }
    isa.halves(&bits)
}
