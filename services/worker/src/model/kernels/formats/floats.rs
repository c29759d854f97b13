//! Floats as they are stored.

use super::{BLOCK, Isa};

/// Elements of a matrix that are floats of some kind: any number in a row, so
/// that it may end within a block.
pub(in crate::model::kernels) trait Floats {
    /// A block, in pieces of eight elements.
    type Stored;

    /// A row as it is, where that is how the products need it.
    #[inline(always)]
    fn in_place(row: &[u8]) -> Option<&[[f32; 8]]> {
        let _ = row;
        None
    }
    /// Whole blocks of a row, and the bytes of a last block that isn't.
    fn stored(row: &[u8]) -> (&[Self::Stored], &[u8]);
    fn unpack<I: Isa>(isa: I, stored: &Self::Stored) -> [I::Floats; 4];
    /// Elements of a block that isn't whole; zeros behind them.
    fn unpack_rest<I: Isa>(isa: I, rest: &[u8]) -> [I::Floats; 4];
}

pub(in crate::model::kernels) struct F32;
pub(in crate::model::kernels) struct F16;
pub(in crate::model::kernels) struct Bf16;

macro_rules! floats {
    ($format:ident, $bytes:literal, |$isa:ident, $eight:ident| $read:expr $(, $in_place:item)?) => {
        impl Floats for $format {
            type Stored = [[u8; 8 * $bytes]; 4];

            $(#[inline(always)] $in_place)?

            #[inline(always)]
            fn stored(row: &[u8]) -> (&[Self::Stored], &[u8]) {
                let (eights, _) = row.as_chunks::<{ 8 * $bytes }>();
                let blocks = eights.as_chunks::<4>().0;
                (blocks, &row[blocks.len() * BLOCK * $bytes..])
            }

            #[inline(always)]
            fn unpack<I: Isa>($isa: I, stored: &Self::Stored) -> [I::Floats; 4] {
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
                Self::unpack(isa, &padded)
            }
        }
    };
}

floats!(
    F32,
    4,
    |isa, eight| {
        let mut values = [0.0; 8];
        for (value, bytes) in values.iter_mut().zip(eight.as_chunks().0) {
            *value = f32::from_le_bytes(*bytes);
        }
        isa.floats(&values)
    },
    fn in_place(row: &[u8]) -> Option<&[[f32; 8]]> {
        let whole = cfg!(target_endian = "little") && row.len().is_multiple_of(32);
        whole.then(|| bytemuck::try_cast_slice(row).ok()).flatten()
    }
);
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
