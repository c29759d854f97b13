//! How the elements of a matrix are stored, format by format (layouts as in
//! ggml's `ggml-quants.c`), and how they become f32: 32 at a time.

use super::isa::{Eights, Isa};

/// Elements that are unpacked together.
pub(super) const BLOCK: usize = 32;

/// A storage format.
pub(super) trait Format {
    /// What is stored together: [`Self::BLOCKS`] blocks.
    type Stored;

    const BLOCKS: usize;

    /// Whole blocks of a row, and the bytes of a last block that isn't.
    fn stored(row: &[u8]) -> (&[Self::Stored], &[u8]);
    /// The elements of one block.
    fn unpack<I: Isa>(isa: I, stored: &Self::Stored, block: usize) -> [I::Floats; 4];
    /// Elements of a block that isn't whole; zeros behind them.
    fn unpack_rest<I: Isa>(isa: I, _: &[u8]) -> [I::Floats; 4] {
        [isa.splat(0.0); 4]
    }
}

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

/// `scale · q` of 32 integers; `scales` are those of the two halves.
#[inline(always)]
fn scaled<I: Isa>(isa: I, q: &Eights, scales: [f32; 2]) -> [I::Floats; 4] {
    let scales = [isa.splat(scales[0]), isa.splat(scales[1])];
    [
        isa.multiply(isa.widen(&q[0]), scales[0]),
        isa.multiply(isa.widen(&q[1]), scales[0]),
        isa.multiply(isa.widen(&q[2]), scales[1]),
        isa.multiply(isa.widen(&q[3]), scales[1]),
    ]
}

/// `scale · q + offset` of 32 integers.
#[inline(always)]
fn shifted<I: Isa>(isa: I, q: &Eights, scale: f32, offset: f32) -> [I::Floats; 4] {
    let offset = isa.splat(offset);
    let mut values = scaled(isa, q, [scale; 2]);
    for value in &mut values {
        *value = isa.add(*value, offset);
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

/// A block of 32 nibbles, the last 16 bytes: low ones are elements 0..16, high
/// ones 16..32.
#[inline(always)]
fn nibbles(stored: &[u8]) -> Eights {
    let mut q = [[0; 8]; 4];
    let bytes = &stored[stored.len() - 16..];
    let (low, high) = q.as_flattened_mut().split_at_mut(16);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = ((byte & 15) as i8, (byte >> 4) as i8);
    }
    q
}

/// Nibbles with a fifth bit each, less 16 where the bit is 0.
#[inline(always)]
fn signed_by(isa: impl Isa, nibbles: Eights, bits: u32) -> Eights {
    let mut q = nibbles;
    let clear = isa.clear_bits(bits);
    for (q, clear) in q.as_flattened_mut().iter_mut().zip(clear.as_flattened()) {
        *q |= clear & -16;
    }
    q
}

#[inline(always)]
fn plus(q: Eights, more: i8) -> Eights {
    let mut q = q;
    for q in q.as_flattened_mut() {
        *q += more;
    }
    q
}

/// Floats: any number of elements, so that a row may end within a block.
macro_rules! floats {
    ($format:ident, $bytes:literal, |$isa:ident, $eight:ident| $read:expr) => {
        impl Format for $format {
            type Stored = [[u8; 8 * $bytes]; 4];

            const BLOCKS: usize = 1;

            #[inline(always)]
            fn stored(row: &[u8]) -> (&[Self::Stored], &[u8]) {
                let (eights, _) = row.as_chunks::<{ 8 * $bytes }>();
                let blocks = eights.as_chunks::<4>().0;
                (blocks, &row[blocks.len() * BLOCK * $bytes..])
            }

            #[inline(always)]
            fn unpack<I: Isa>($isa: I, stored: &Self::Stored, _: usize) -> [I::Floats; 4] {
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
                Self::unpack(isa, &padded, 0)
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
    ($format:ident, $bytes:literal, $blocks:literal, |$isa:ident, $stored:ident, $block:pat_param| $unpack:expr) => {
        impl Format for $format {
            type Stored = [u8; $bytes];

            const BLOCKS: usize = $blocks;

            #[inline(always)]
            fn stored(row: &[u8]) -> (&[Self::Stored], &[u8]) {
                row.as_chunks()
            }

            #[inline(always)]
            fn unpack<I: Isa>($isa: I, $stored: &Self::Stored, $block: usize) -> [I::Floats; 4] {
                $unpack
            }
        }
    };
}

quantized!(Q4_0, 18, 1, |isa, stored, _| {
    let q = plus(nibbles(stored), -8);
    scaled(isa, &q, [half(isa, stored); 2])
});
quantized!(Q4_1, 20, 1, |isa, stored, _| {
    let (scale, offset) = (half(isa, stored), half(isa, &stored[2..]));
    shifted(isa, &nibbles(stored), scale, offset)
});
quantized!(Q5_0, 22, 1, |isa, stored, _| {
    let q = signed_by(isa, nibbles(stored), word(&stored[2..]));
    scaled(isa, &q, [half(isa, stored); 2])
});
quantized!(Q5_1, 24, 1, |isa, stored, _| {
    let (scale, offset) = (half(isa, stored), half(isa, &stored[2..]));
    let q = signed_by(isa, nibbles(stored), word(&stored[4..]));
    shifted(isa, &plus(q, 16), scale, offset)
});
quantized!(Q8_0, 34, 1, |isa, stored, _| {
    let mut q = [[0; 8]; 4];
    for (q, byte) in q.as_flattened_mut().iter_mut().zip(&stored[2..]) {
        *q = *byte as i8;
    }
    scaled(isa, &q, [half(isa, stored); 2])
});
quantized!(Q4K, 144, 8, |isa, stored, block| {
    let (scale, offset) = scale_and_offset(isa, stored, block);
    let mut q = [[0; 8]; 4];
    let shift = 4 * (block % 2);
    let bytes = &stored[16 + block / 2 * 32..][..32];
    for (q, byte) in q.as_flattened_mut().iter_mut().zip(bytes) {
        *q = ((byte >> shift) & 15) as i8;
    }
    shifted(isa, &q, scale, offset)
});
quantized!(Q5K, 176, 8, |isa, stored, block| {
    let (scale, offset) = scale_and_offset(isa, stored, block);
    let mut q = [[0; 8]; 4];
    let shift = 4 * (block % 2);
    let bytes = stored[48 + block / 2 * 32..][..32]
        .iter()
        .zip(&stored[16..48]);
    for (q, (byte, bits)) in q.as_flattened_mut().iter_mut().zip(bytes) {
        *q = ((byte >> shift) & 15 | ((bits >> block) & 1) << 4) as i8;
    }
    shifted(isa, &q, scale, offset)
});
quantized!(Q6K, 210, 8, |isa, stored, block| {
    let (part, quarter) = (block / 4, block % 4);
    let low = &stored[64 * part + quarter % 2 * 32..][..32];
    let high = &stored[128 + 32 * part..][..32];
    let (low_shift, high_shift) = (quarter / 2 * 4, quarter * 2);
    let mut q = [[0; 8]; 4];
    for (q, (low, high)) in q.as_flattened_mut().iter_mut().zip(low.iter().zip(high)) {
        *q = ((low >> low_shift) & 15 | ((high >> high_shift) & 3) << 4) as i8 - 32;
    }
    let d = half(isa, &stored[208..]);
    let scale = |half: usize| d * f32::from(stored[192 + 2 * block + half] as i8);
    scaled(isa, &q, [scale(0), scale(1)])
});

/// Scale and offset of a block in Q4_K or Q5_K: 6 bits each.
#[inline(always)]
fn scale_and_offset(isa: impl Isa, stored: &[u8], block: usize) -> (f32, f32) {
    let (d, dmin) = (half(isa, stored), half(isa, &stored[2..]));
    let packed = &stored[4..16];
    let (scale, min) = if block < 4 {
        (packed[block] & 63, packed[block + 4] & 63)
    } else {
        (
            packed[block + 4] & 15 | (packed[block - 4] >> 6) << 4,
            packed[block + 4] >> 4 | (packed[block] >> 6) << 4,
        )
    };
    (d * f32::from(scale), -(dmin * f32::from(min)))
}
