//! How the elements of a matrix are stored, format by format (layouts as in
//! ggml's `ggml-quants.c`), and how they become f32: 32 at a time.

use super::isa::Isa;

/// Elements that are unpacked together.
pub(super) const BLOCK: usize = 32;

/// A storage format.
pub(super) trait Format {
    /// What is stored together: [`Self::BLOCKS`] blocks.
    type Stored;
    /// Scales and offsets of all of them.
    type Scales: Copy;

    /// 1 or 8.
    const BLOCKS: usize;

    /// Whole blocks of a row, and the bytes of a last block that isn't.
    fn stored(row: &[u8]) -> (&[Self::Stored], &[u8]);
    fn scales(isa: impl Isa, stored: &Self::Stored) -> Self::Scales;
    /// The elements of one block.
    fn unpack<I: Isa, const BLOCK: usize>(
        isa: I,
        stored: &Self::Stored,
        scales: &Self::Scales,
    ) -> [I::Floats; 4];
    /// Elements of a block that isn't whole; zeros behind them.
    fn unpack_rest<I: Isa>(isa: I, _: &[u8]) -> [I::Floats; 4] {
        [isa.splat(0.0); 4]
    }
}

/// Does something for every block of a format, each with code of its own.
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
pub(super) use each_block;

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;
pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Q8_0;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;

/// `scale · q`.
#[inline(always)]
fn scaled<I: Isa>(isa: I, q: [I::Floats; 4], scale: f32) -> [I::Floats; 4] {
    let scale = isa.splat(scale);
    let mut values = q;
    for value in &mut values {
        *value = isa.multiply(*value, scale);
    }
    values
}

/// `scale · q + offset`.
#[inline(always)]
fn shifted<I: Isa>(isa: I, q: [I::Floats; 4], scale: f32, offset: f32) -> [I::Floats; 4] {
    let (scale, offset) = (isa.splat(scale), isa.splat(offset));
    let mut values = q;
    for value in &mut values {
        *value = isa.fma(*value, scale, offset);
    }
    values
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

/// Floats: any number of elements, so that a row may end within a block.
macro_rules! floats {
    ($format:ident, $bytes:literal, |$isa:ident, $eight:ident| $read:expr) => {
        impl Format for $format {
            type Stored = [[u8; 8 * $bytes]; 4];
            type Scales = ();

            const BLOCKS: usize = 1;

            #[inline(always)]
            fn stored(row: &[u8]) -> (&[Self::Stored], &[u8]) {
                let (eights, _) = row.as_chunks::<{ 8 * $bytes }>();
                let blocks = eights.as_chunks::<4>().0;
                (blocks, &row[blocks.len() * BLOCK * $bytes..])
            }

            #[inline(always)]
            fn scales(_: impl Isa, _: &Self::Stored) {}

            #[inline(always)]
            fn unpack<I: Isa, const BLOCK: usize>(
                $isa: I,
                stored: &Self::Stored,
                (): &(),
            ) -> [I::Floats; 4] {
                let mut values = [$isa.splat(0.0); 4];
                for (value, $eight) in values.iter_mut().zip(stored) {
                    *value = $read;
                }
                values
            }

            #[inline(always)]
            fn unpack_rest<I: Isa>(isa: I, rest: &[u8]) -> [I::Floats; 4] {
                let mut padded = [[0; 8 * $bytes]; 4];
                padded.as_flattened_mut()[..rest.len()].copy_from_slice(rest);
                Self::unpack::<_, 0>(isa, &padded, &())
            }
        }
    };
}

floats!(F32, 4, |isa, eight| {
    let mut values = [0.0; 8];
    for (value, bytes) in values.iter_mut().zip(eight.as_chunks().0) {
        *value = f32::from_le_bytes(*bytes);
    }
    isa.floats(&values)
});
floats!(F16, 2, |isa, eight| {
    let mut halves = [0; 8];
    for (half, bytes) in halves.iter_mut().zip(eight.as_chunks().0) {
        *half = u16::from_le_bytes(*bytes);
    }
    isa.halves(&halves)
});
floats!(Bf16, 2, |isa, eight| {
    let mut values = [0.0; 8];
    for (value, bytes) in values.iter_mut().zip(eight.as_chunks().0) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
    }
    isa.floats(&values)
});

/// Whole blocks of integers with scales.
macro_rules! quantized {
    (
        $format:ident, $bytes:literal, $blocks:literal, $scales:ty,
        |$isa:ident, $stored:ident| $read:expr,
        |$scale:pat_param, $block:ident| $unpack:expr $(,)?
    ) => {
        impl Format for $format {
            type Stored = [u8; $bytes];
            type Scales = $scales;

            const BLOCKS: usize = $blocks;

            #[inline(always)]
            fn stored(row: &[u8]) -> (&[Self::Stored], &[u8]) {
                row.as_chunks()
            }

            #[inline(always)]
            fn scales($isa: impl Isa, $stored: &Self::Stored) -> $scales {
                $read
            }

            #[inline(always)]
            fn unpack<I: Isa, const $block: usize>(
                $isa: I,
                $stored: &Self::Stored,
                $scale: &$scales,
            ) -> [I::Floats; 4] {
                $unpack
            }
        }
    };
}

quantized!(
    Q4_0,
    18,
    1,
    f32,
    |isa, stored| half(isa, stored),
    |scale, BLOCK| {
        let q = isa.plus(isa.nibbles(piece(stored, 2)), -8);
        scaled(isa, isa.widen(q), *scale)
    },
);
quantized!(
    Q4_1,
    20,
    1,
    (f32, f32),
    |isa, stored| (half(isa, stored), half(isa, &stored[2..])),
    |(scale, offset), BLOCK| {
        let q = isa.nibbles(piece(stored, 4));
        shifted(isa, isa.widen(q), *scale, *offset)
    },
);
quantized!(
    Q5_0,
    22,
    1,
    f32,
    |isa, stored| half(isa, stored),
    |scale, BLOCK| {
        let nibbles = isa.nibbles(piece(stored, 6));
        let q = isa.join::<0>(nibbles, isa.less_16(word(&stored[2..])));
        scaled(isa, isa.widen(q), *scale)
    },
);
quantized!(
    Q5_1,
    24,
    1,
    (f32, f32),
    |isa, stored| (half(isa, stored), half(isa, &stored[2..])),
    |(scale, offset), BLOCK| {
        let nibbles = isa.nibbles(piece(stored, 8));
        let q = isa.join::<0>(nibbles, isa.less_16(word(&stored[4..])));
        shifted(isa, isa.widen(isa.plus(q, 16)), *scale, *offset)
    },
);
quantized!(
    Q8_0,
    34,
    1,
    f32,
    |isa, stored| half(isa, stored),
    |scale, BLOCK| {
        let q = [
            isa.widen_eight(piece(stored, 2)),
            isa.widen_eight(piece(stored, 10)),
            isa.widen_eight(piece(stored, 18)),
            isa.widen_eight(piece(stored, 26)),
        ];
        scaled(isa, q, *scale)
    },
);
quantized!(
    Q4K,
    144,
    8,
    KScales,
    |isa, stored| KScales::new(isa, stored),
    |KScales { scales, offsets }, BLOCK| {
        let bytes = isa.bytes(piece(stored, 16 + BLOCK / 2 * 32));
        let q = match BLOCK % 2 {
            0 => isa.bits::<0>(bytes, 15),
            _ => isa.bits::<4>(bytes, 15),
        };
        shifted(isa, isa.widen(q), scales[BLOCK], offsets[BLOCK])
    },
);
quantized!(
    Q5K,
    176,
    8,
    KScales,
    |isa, stored| KScales::new(isa, stored),
    |KScales { scales, offsets }, BLOCK| {
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
        let q = isa.join::<4>(low, high);
        shifted(isa, isa.widen(q), scales[BLOCK], offsets[BLOCK])
    },
);
quantized!(
    Q6K,
    210,
    8,
    [f32; 16],
    |isa, stored| {
        let d = isa.splat(half(isa, &stored[208..]));
        let mut scales = [0.0; 16];
        for (i, scales) in scales.as_chunks_mut().0.iter_mut().enumerate() {
            let eight = isa.widen_eight(piece(stored, 192 + 8 * i));
            *scales = isa.array(isa.multiply(eight, d));
        }
        scales
    },
    |scales, BLOCK| {
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
        let q = isa.plus(isa.join::<4>(low, high), -32);
        let [a, b, c, d] = isa.widen(q);
        let halves = [
            isa.splat(scales[2 * BLOCK]),
            isa.splat(scales[2 * BLOCK + 1]),
        ];
        [
            isa.multiply(a, halves[0]),
            isa.multiply(b, halves[0]),
            isa.multiply(c, halves[1]),
            isa.multiply(d, halves[1]),
        ]
    },
);

/// Scales and offsets of the blocks of a Q4_K or Q5_K.
#[derive(Debug, Clone, Copy)]
pub(super) struct KScales {
    scales: [f32; 8],
    offsets: [f32; 8],
}

impl KScales {
    /// Twelve bytes hold eight scales and eight minima of 6 bits: the first four of each
    /// in the low bits of a byte, the others in what is left.
    #[inline(always)]
    fn new(isa: impl Isa, stored: &[u8]) -> Self {
        let (a, b, c) = (word(&stored[4..]), word(&stored[8..]), word(&stored[12..]));
        let scales = [
            a & 0x3f3f_3f3f,
            c & 0x0f0f_0f0f | (a >> 6 & 0x0303_0303) << 4,
        ];
        let minima = [
            b & 0x3f3f_3f3f,
            c >> 4 & 0x0f0f_0f0f | (b >> 6 & 0x0303_0303) << 4,
        ];
        let (scales, minima) = (
            isa.widen_eight(&bytemuck::cast(scales)),
            isa.widen_eight(&bytemuck::cast(minima)),
        );
        let d = isa.splat(half(isa, stored));
        let minus_d_min = isa.splat(-half(isa, &stored[2..]));
        Self {
            scales: isa.array(isa.multiply(scales, d)),
            offsets: isa.array(isa.multiply(minima, minus_d_min)),
        }
    }
}
