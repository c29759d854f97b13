//! Integers with scales (layouts as in ggml's `ggml-quants.c`): an element is
//! `scale · q + offset`.

use super::Isa;

/// Elements of a matrix that are integers, in whole blocks of 32.
pub(in crate::model::kernels) trait Quantized {
    /// What is stored together: [`Self::BLOCKS`] blocks.
    type Stored;

    /// 1 or 8.
    const BLOCKS: usize;
    /// Parts of a block that have a scale each: 1 or 2.
    const PARTS: usize = 1;
    /// Whether integers may be negative; then there are no offsets.
    const SIGNED: bool = false;
    /// Sums of two products of an integer and one of 7 bits and a sign that
    /// may be added in 16 bits.
    const SUMS: usize;

    fn stored(row: &[u8]) -> &[Self::Stored];
    /// Of as many blocks as there are, eight at most.
    fn scales(isa: impl Isa, stored: &[Self::Stored]) -> Scales;
    /// The integers of one block.
    fn integers<I: Isa, const BLOCK: usize>(isa: I, stored: &Self::Stored) -> I::Bytes;
}

/// Of eight blocks, part by part; zeros where blocks are missing.
pub(in crate::model::kernels) struct Scales {
    pub(in crate::model::kernels) scales: [[f32; 8]; 2],
    pub(in crate::model::kernels) offsets: [[f32; 8]; 2],
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
            scales: [isa.array(scales), [0.0; 8]],
            offsets: [isa.array(offsets), [0.0; 8]],
        }
    }
}

/// Does something for every block of what is stored together, each with code of its own.
macro_rules! each_block {
    ($format:ident, $block:ident => $do:expr) => {
        each_block!(@ $block, $do, 0);
        if $format::BLOCKS == 8 {
            each_block!(@ $block, $do, 1);
            each_block!(@ $block, $do, 2);
            each_block!(@ $block, $do, 3);
            each_block!(@ $block, $do, 4);
            each_block!(@ $block, $do, 5);
            each_block!(@ $block, $do, 6);
            each_block!(@ $block, $do, 7);
        }
    };
    (@ $block:ident, $do:expr, $value:literal) => {{
        const $block: usize = $value;
        $do;
    }};
}
pub(in crate::model::kernels) use each_block;

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
fn half(isa: impl Isa, bytes: &[u8]) -> f32 {
    isa.half(u16::from_le_bytes([bytes[0], bytes[1]]))
}

#[inline(always)]
fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// `N` bytes from `at` on.
#[inline(always)]
fn piece<const N: usize>(stored: &[u8], at: usize) -> &[u8; N] {
    stored[at..].first_chunk().expect("within a block")
}

/// A format: its bytes and blocks, its constants, its scales and its integers.
macro_rules! quantized {
    (
        $format:ident, $bytes:literal, $blocks:literal,
        { $($constant:ident: $type:ty = $value:expr;)* }
        |$isa:ident, $blocks_stored:ident| $scales:expr,
        |$stored:ident, $block:ident| $integers:expr $(,)?
    ) => {
        pub(in crate::model::kernels) struct $format;

        impl Quantized for $format {
            type Stored = [u8; $bytes];

            const BLOCKS: usize = $blocks;
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
            fn integers<I: Isa, const $block: usize>($isa: I, $stored: &Self::Stored) -> I::Bytes {
                $integers
            }
        }
    };
}

quantized!(
    Q4_0, 18, 1,
    { SUMS: usize = 8; }
    |isa, blocks| Scales::multiples(isa, halves(isa, blocks, 0), -8.0),
    |stored, BLOCK| isa.nibbles(piece(stored, 2)),
);
quantized!(
    Q4_1, 20, 1,
    { SUMS: usize = 8; }
    |isa, blocks| Scales::new(isa, halves(isa, blocks, 0), halves(isa, blocks, 2)),
    |stored, BLOCK| isa.nibbles(piece(stored, 4)),
);
quantized!(
    Q5_0, 22, 1,
    { SUMS: usize = 4; }
    |isa, blocks| Scales::multiples(isa, halves(isa, blocks, 0), -16.0),
    |stored, BLOCK| {
        isa.join::<0>(isa.nibbles(piece(stored, 6)), isa.sixteens(word(&stored[2..])))
    },
);
quantized!(
    Q5_1, 24, 1,
    { SUMS: usize = 4; }
    |isa, blocks| Scales::new(isa, halves(isa, blocks, 0), halves(isa, blocks, 2)),
    |stored, BLOCK| {
        isa.join::<0>(isa.nibbles(piece(stored, 8)), isa.sixteens(word(&stored[4..])))
    },
);
quantized!(
    Q8_0, 34, 1,
    { SIGNED: bool = true; SUMS: usize = 1; }
    |isa, blocks| Scales::multiples(isa, halves(isa, blocks, 0), 0.0),
    |stored, BLOCK| isa.bytes(piece(stored, 2)),
);
quantized!(
    Q4K, 144, 8,
    { SUMS: usize = 8; }
    |isa, blocks| k_scales(isa, &blocks[0]),
    |stored, BLOCK| {
        let bytes = isa.bytes(piece(stored, 16 + BLOCK / 2 * 32));
        match BLOCK % 2 {
            0 => isa.bits::<0>(bytes, 15),
            _ => isa.bits::<4>(bytes, 15),
        }
    },
);
quantized!(
    Q5K, 176, 8,
    { SUMS: usize = 4; }
    |isa, blocks| k_scales(isa, &blocks[0]),
    |stored, BLOCK| {
        let bytes = isa.bytes(piece(stored, 48 + BLOCK / 2 * 32));
        let low = match BLOCK % 2 {
            0 => isa.bits::<0>(bytes, 15),
            _ => isa.bits::<4>(bytes, 15),
        };
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
    },
);
quantized!(
    Q6K, 210, 8,
    { PARTS: usize = 2; SUMS: usize = 2; }
    |isa, blocks| {
        let stored = &blocks[0];
        let (d, offset) = (isa.splat(half(isa, &stored[208..])), isa.splat(-32.0));
        let first = isa.multiply(isa.widen_eight(piece(stored, 192)), d);
        let second = isa.multiply(isa.widen_eight(piece(stored, 200)), d);
        Scales {
            scales: [isa.array(first), isa.array(second)],
            offsets: [
                isa.array(isa.multiply(first, offset)),
                isa.array(isa.multiply(second, offset)),
            ],
        }
    },
    |stored, BLOCK| {
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
    },
);

/// Scales and offsets of the blocks of a Q4_K or Q5_K: twelve bytes hold eight
/// scales and eight minima of 6 bits, the first four of each in the low bits
/// of a byte, the others in what is left.
#[inline(always)]
fn k_scales(isa: impl Isa, stored: &[u8]) -> Scales {
    let (a, b, c) = (word(&stored[4..]), word(&stored[8..]), word(&stored[12..]));
    let scales = [
        a & 0x3f3f_3f3f,
        c & 0x0f0f_0f0f | (a >> 6 & 0x0303_0303) << 4,
    ];
    let minima = [
        b & 0x3f3f_3f3f,
        c >> 4 & 0x0f0f_0f0f | (b >> 6 & 0x0303_0303) << 4,
    ];
    let d = isa.splat(half(isa, stored));
    let minus_d_min = isa.splat(-half(isa, &stored[2..]));
    Scales::new(
        isa,
        isa.multiply(isa.widen_eight(&bytemuck::cast(scales)), d),
        isa.multiply(isa.widen_eight(&bytemuck::cast(minima)), minus_d_min),
    )
}
