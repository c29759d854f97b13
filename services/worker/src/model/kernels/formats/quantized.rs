//! Integers with a scale for every block of 32 (layouts as in ggml's
//! `ggml-quants.c`): an element is `scale · q + offset`.

use super::{Isa, piece};

/// Elements of a matrix that are integers, in whole blocks of 32.
pub(in crate::model::kernels) trait Quantized {
    /// A block.
    type Stored;

    /// Whether integers may be negative; then there are no offsets.
    const SIGNED: bool = false;
    /// Sums of two products of an integer and one of 7 bits and a sign that
    /// may be added in 16 bits.
    const SUMS: usize;

    fn stored(row: &[u8]) -> &[Self::Stored];
    /// Of as many blocks as there are, eight at most.
    fn scales(isa: impl Isa, stored: &[Self::Stored]) -> Scales;
    /// The integers of one block.
    fn integers<I: Isa>(isa: I, stored: &Self::Stored) -> I::Bytes;
}

/// Of eight blocks; zeros where blocks are missing.
pub(in crate::model::kernels) struct Scales {
    pub(in crate::model::kernels) scales: [f32; 8],
    pub(in crate::model::kernels) offsets: [f32; 8],
}

impl Scales {
    /// Scales of eight blocks, and how many of them an offset is.
    #[inline(always)]
    fn multiples<I: Isa>(isa: I, scales: I::Floats, offset: f32) -> Self {
        Self::new(isa, scales, isa.multiply(scales, isa.splat(offset)))
    }

    #[inline(always)]
    fn new<I: Isa>(isa: I, scales: I::Floats, offsets: I::Floats) -> Self {
        Self {
            scales: isa.array(scales),
            offsets: isa.array(offsets),
        }
    }
}

/// The half-precision numbers at `at` of eight blocks.
#[inline(always)]
fn halves<I: Isa, const N: usize>(isa: I, stored: &[[u8; N]], at: usize) -> I::Floats {
    let mut bits = [0; 8];
    for (bits, stored) in bits.iter_mut().zip(stored) {
        *bits = u16::from_le_bytes([stored[at], stored[at + 1]]);
    }
    isa.halves(&bits)
}

#[inline(always)]
fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// A format: the bytes of a block, its constants, its scales and its integers.
macro_rules! quantized {
    (
        $format:ident, $bytes:literal,
        { $($constant:ident: $type:ty = $value:expr;)* }
        |$isa:ident, $blocks_stored:ident| $scales:expr,
        |$stored:ident| $integers:expr $(,)?
    ) => {
        pub(in crate::model::kernels) struct $format;

        impl Quantized for $format {
            type Stored = [u8; $bytes];

            $(const $constant: $type = $value;)*

            #[inline(always)]
            fn stored(row: &[u8]) -> &[Self::Stored] {
                row.as_chunks().0
            }

            #[inline(always)]
            fn scales($isa: impl Isa, $blocks_stored: &[Self::Stored]) -> Scales {
                $scales
            }

            #[inline(always)]
            fn integers<I: Isa>($isa: I, $stored: &Self::Stored) -> I::Bytes {
                $integers
            }
        }
    };
}

quantized!(
    Q4_0, 18,
    { SUMS: usize = 8; }
    |isa, blocks| Scales::multiples(isa, halves(isa, blocks, 0), -8.0),
    |stored| isa.nibbles(piece(stored, 2)),
);
quantized!(
    Q4_1, 20,
    { SUMS: usize = 8; }
    |isa, blocks| Scales::new(isa, halves(isa, blocks, 0), halves(isa, blocks, 2)),
    |stored| isa.nibbles(piece(stored, 4)),
);
quantized!(
    Q5_0, 22,
    { SUMS: usize = 4; }
    |isa, blocks| Scales::multiples(isa, halves(isa, blocks, 0), -16.0),
    |stored| {
        isa.join::<0>(isa.nibbles(piece(stored, 6)), isa.sixteens(word(&stored[2..])))
    },
);
quantized!(
    Q5_1, 24,
    { SUMS: usize = 4; }
    |isa, blocks| Scales::new(isa, halves(isa, blocks, 0), halves(isa, blocks, 2)),
    |stored| {
        isa.join::<0>(isa.nibbles(piece(stored, 8)), isa.sixteens(word(&stored[4..])))
    },
);
quantized!(
    Q8_0, 34,
    { SIGNED: bool = true; SUMS: usize = 1; }
    |isa, blocks| Scales::multiples(isa, halves(isa, blocks, 0), 0.0),
    |stored| isa.bytes(piece(stored, 2)),
);
