//! Stored elements to f32, format by format (layouts as in ggml's `ggml-quants.c`).

/// Reads stored elements.
pub(super) trait Unpack {
    /// Unpacks whole blocks to `out`, as many elements as it has.
    fn unpack(packed: &[u8], out: &mut [f32]);
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

#[inline(always)]
fn half(bytes: &[u8]) -> f32 {
    half_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]))
}

/// IEEE half precision to f32, in integer steps that vectorise. (The `half`
/// crate asks the processor for its features at every call.)
#[inline(always)]
fn half_to_f32(half: u16) -> f32 {
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23); // 2^112
    let magnitude = u32::from(half & 0x7fff);
    let finite = f32::from_bits(magnitude << 13) * REBIAS; // subnormals too
    let bits = if magnitude >= 0x7c00 {
        (magnitude << 13) | 0x7f80_0000
    } else {
        finite.to_bits()
    };
    f32::from_bits(bits | u32::from(half & 0x8000) << 16)
}

impl Unpack for F32 {
    #[inline(always)]
    fn unpack(packed: &[u8], out: &mut [f32]) {
        for (out, bytes) in out.iter_mut().zip(packed.as_chunks().0) {
            *out = f32::from_le_bytes(*bytes);
        }
    }
}

impl Unpack for F16 {
    #[inline(always)]
    fn unpack(packed: &[u8], out: &mut [f32]) {
        for (out, bytes) in out.iter_mut().zip(packed.as_chunks().0) {
            *out = half_to_f32(u16::from_le_bytes(*bytes));
        }
    }
}

impl Unpack for Bf16 {
    #[inline(always)]
    fn unpack(packed: &[u8], out: &mut [f32]) {
        for (out, bytes) in out.iter_mut().zip(packed.as_chunks().0) {
            *out = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
        }
    }
}

/// Blocks of 32: a header, perhaps a fifth bit per element, nibbles. Low nibbles
/// are elements 0..16, high nibbles 16..32. An element is `scale · q + offset`.
#[inline(always)]
fn nibble_blocks<const BYTES: usize>(
    packed: &[u8],
    out: &mut [f32],
    fifth_bits: impl Fn(&[u8; BYTES]) -> u32,
    scale_and_offset: impl Fn(&[u8; BYTES]) -> (f32, f32),
) {
    let blocks = packed.as_chunks::<BYTES>().0;
    for (block, out) in blocks.iter().zip(out.as_chunks_mut::<32>().0) {
        let nibbles = &block[BYTES - 16..];
        let fifth = fifth_bits(block);
        let (scale, offset) = scale_and_offset(block);
        let (low, high) = out.split_at_mut(16);
        for i in 0..16 {
            let byte = u32::from(nibbles[i]);
            let q = (byte & 15) | (((fifth >> i) & 1) << 4);
            low[i] = scale * q as f32 + offset;
            let q = (byte >> 4) | (((fifth >> (i + 16)) & 1) << 4);
            high[i] = scale * q as f32 + offset;
        }
    }
}

#[inline(always)]
fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

impl Unpack for Q4_0 {
    #[inline(always)]
    fn unpack(packed: &[u8], out: &mut [f32]) {
        nibble_blocks::<18>(packed, out, |_| 0, |b| (half(b), -8.0 * half(b)));
    }
}

impl Unpack for Q4_1 {
    #[inline(always)]
    fn unpack(packed: &[u8], out: &mut [f32]) {
        nibble_blocks::<20>(packed, out, |_| 0, |b| (half(b), half(&b[2..])));
    }
}

impl Unpack for Q5_0 {
    #[inline(always)]
    fn unpack(packed: &[u8], out: &mut [f32]) {
        nibble_blocks::<22>(
            packed,
            out,
            |b| word(&b[2..]),
            |b| (half(b), -16.0 * half(b)),
        );
    }
}

impl Unpack for Q5_1 {
    #[inline(always)]
    fn unpack(packed: &[u8], out: &mut [f32]) {
        nibble_blocks::<24>(packed, out, |b| word(&b[4..]), |b| (half(b), half(&b[2..])));
    }
}

impl Unpack for Q8_0 {
    #[inline(always)]
    fn unpack(packed: &[u8], out: &mut [f32]) {
        let blocks = packed.as_chunks::<34>().0;
        for (block, out) in blocks.iter().zip(out.as_chunks_mut::<32>().0) {
            let scale = half(block);
            for (out, &q) in out.iter_mut().zip(&block[2..]) {
                *out = scale * f32::from(q as i8);
            }
        }
    }
}

/// 6-bit scales and minima of the 8 groups of a Q4_K or Q5_K block.
#[inline(always)]
fn scale_and_min(scales: &[u8], group: usize) -> (f32, f32) {
    let (scale, min) = if group < 4 {
        (scales[group] & 63, scales[group + 4] & 63)
    } else {
        (
            (scales[group + 4] & 15) | ((scales[group - 4] >> 6) << 4),
            (scales[group + 4] >> 4) | ((scales[group] >> 6) << 4),
        )
    };
    (f32::from(scale), f32::from(min))
}

impl Unpack for Q4K {
    #[inline(always)]
    fn unpack(packed: &[u8], out: &mut [f32]) {
        let blocks = packed.as_chunks::<144>().0;
        for (block, out) in blocks.iter().zip(out.as_chunks_mut::<256>().0) {
            let (d, dmin) = (half(block), half(&block[2..]));
            let (scales, quants) = (&block[4..16], &block[16..]);
            for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let (scale, min) = scale_and_min(scales, group);
                let (scale, min) = (d * scale, dmin * min);
                let bytes = &quants[group / 2 * 32..][..32];
                let shift = 4 * (group % 2);
                for (out, &byte) in out.iter_mut().zip(bytes) {
                    *out = scale * f32::from((byte >> shift) & 15) - min;
                }
            }
        }
    }
}

impl Unpack for Q5K {
    #[inline(always)]
    fn unpack(packed: &[u8], out: &mut [f32]) {
        let blocks = packed.as_chunks::<176>().0;
        for (block, out) in blocks.iter().zip(out.as_chunks_mut::<256>().0) {
            let (d, dmin) = (half(block), half(&block[2..]));
            let (scales, high, quants) = (&block[4..16], &block[16..48], &block[48..]);
            for (group, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let (scale, min) = scale_and_min(scales, group);
                let (scale, min) = (d * scale, dmin * min);
                let bytes = &quants[group / 2 * 32..][..32];
                let shift = 4 * (group % 2);
                for ((out, &byte), &bits) in out.iter_mut().zip(bytes).zip(high) {
                    let fifth = ((bits >> group) & 1) << 4;
                    *out = scale * f32::from((byte >> shift) & 15 | fifth) - min;
                }
            }
        }
    }
}

impl Unpack for Q6K {
    #[inline(always)]
    fn unpack(packed: &[u8], out: &mut [f32]) {
        let blocks = packed.as_chunks::<210>().0;
        for (block, out) in blocks.iter().zip(out.as_chunks_mut::<256>().0) {
            let d = half(&block[208..]);
            for (part, out) in out.as_chunks_mut::<128>().0.iter_mut().enumerate() {
                let low = &block[64 * part..][..64];
                let high = &block[128 + 32 * part..][..32];
                let scales = &block[192 + 8 * part..][..8];
                for (quarter, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                    let low = &low[quarter % 2 * 32..][..32];
                    let (low_shift, high_shift) = (quarter / 2 * 4, quarter * 2);
                    for (half_row, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                        let scale = d * f32::from(scales[2 * quarter + half_row] as i8);
                        let at = 16 * half_row;
                        for (i, out) in out.iter_mut().enumerate() {
                            let low = (low[at + i] >> low_shift) & 15;
                            let high = ((high[at + i] >> high_shift) & 3) << 4;
                            *out = scale * (f32::from(low | high) - 32.0);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_half_converts() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (
                super::half_to_f32(bits),
                half::f16::from_bits(bits).to_f32(),
            );
            assert!(
                ours == theirs || (ours.is_nan() && theirs.is_nan()),
                "{bits:#x}"
            );
        }
    }
}
