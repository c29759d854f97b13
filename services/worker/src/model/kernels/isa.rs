//! The vector operations that the compiler doesn't find by itself, once per
//! instruction set. Everything else is written on arrays and vectorised by it.

/// Operations on vectors of 8 floats and of 32 small integers.
///
/// Values of this type exist only where the machine has the instructions:
/// [`super::dispatch`] makes them.
pub(super) trait Isa: Copy + Send + Sync {
    /// 8 × f32.
    type Floats: Copy;
    /// 32 × i8.
    type Bytes: Copy;

    fn floats(self, values: &[f32; 8]) -> Self::Floats;
    fn array(self, floats: Self::Floats) -> [f32; 8];
    fn splat(self, value: f32) -> Self::Floats;
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`.
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    fn bytes(self, stored: &[u8; 32]) -> Self::Bytes;
    /// The low halves of 16 bytes, then the high ones.
    fn nibbles(self, stored: &[u8; 16]) -> Self::Bytes;
    /// Every byte's bits from `SHIFT` on, those that are in `mask`.
    fn bits<const SHIFT: i32>(self, bytes: Self::Bytes, mask: u8) -> Self::Bytes;
    /// `a | b << SHIFT`, where no bit is lost.
    fn join<const SHIFT: i32>(self, a: Self::Bytes, b: Self::Bytes) -> Self::Bytes;
    fn plus(self, bytes: Self::Bytes, more: i8) -> Self::Bytes;
    /// Integers to floats.
    fn widen(self, bytes: Self::Bytes) -> [Self::Floats; 4];
    /// Integers to floats.
    fn widen_eight(self, values: &[u8; 8]) -> Self::Floats;
    /// IEEE half precision to f32.
    fn halves(self, bits: &[u16; 8]) -> Self::Floats;
    /// IEEE half precision to f32.
    fn half(self, bits: u16) -> f32;
    /// −16 where an element's bit is 0, 0 where it is 1.
    fn less_16(self, bits: u32) -> Self::Bytes;
    /// Asks for bytes to be brought to the cache. Several rows are read at a
    /// time, which the processor doesn't foresee by itself.
    fn prefetch(self, _: &[u8]) {}
}

/// Any machine. `FMA`: whether it has a fused multiply-add.
#[derive(Clone, Copy)]
pub(super) struct Portable<const FMA: bool>;

impl<const FMA: bool> Isa for Portable<FMA> {
    type Floats = [f32; 8];
    type Bytes = [i8; 32];

    #[inline(always)]
    fn floats(self, values: &[f32; 8]) -> [f32; 8] {
        *values
    }

    #[inline(always)]
    fn array(self, floats: [f32; 8]) -> [f32; 8] {
        floats
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; 8] {
        [value; 8]
    }

    #[inline(always)]
    fn add(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn multiply(self, a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn fma(self, a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| super::math::fma::<FMA>(a[i], b[i], c[i]))
    }

    #[inline(always)]
    fn bytes(self, stored: &[u8; 32]) -> [i8; 32] {
        stored.map(|byte| byte as i8)
    }

    #[inline(always)]
    fn nibbles(self, stored: &[u8; 16]) -> [i8; 32] {
        std::array::from_fn(|i| (stored[i % 16] >> (i / 16 * 4) & 15) as i8)
    }

    #[inline(always)]
    fn bits<const SHIFT: i32>(self, bytes: [i8; 32], mask: u8) -> [i8; 32] {
        bytes.map(|byte| (byte as u8 >> SHIFT & mask) as i8)
    }

    #[inline(always)]
    fn join<const SHIFT: i32>(self, a: [i8; 32], b: [i8; 32]) -> [i8; 32] {
        std::array::from_fn(|i| a[i] | b[i] << SHIFT)
    }

    #[inline(always)]
    fn plus(self, bytes: [i8; 32], more: i8) -> [i8; 32] {
        bytes.map(|byte| byte + more)
    }

    #[inline(always)]
    fn widen(self, bytes: [i8; 32]) -> [[f32; 8]; 4] {
        std::array::from_fn(|i| std::array::from_fn(|j| f32::from(bytes[8 * i + j])))
    }

    #[inline(always)]
    fn widen_eight(self, values: &[u8; 8]) -> [f32; 8] {
        values.map(|value| f32::from(value as i8))
    }

    #[inline(always)]
    fn halves(self, bits: &[u16; 8]) -> [f32; 8] {
        bits.map(half_to_f32)
    }

    #[inline(always)]
    fn half(self, bits: u16) -> f32 {
        half_to_f32(bits)
    }

    #[inline(always)]
    fn less_16(self, bits: u32) -> [i8; 32] {
        std::array::from_fn(|i| -16 * i8::from(bits >> i & 1 == 0))
    }
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

#[cfg(target_arch = "x86_64")]
pub(super) use x86::Avx2;

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod x86 {
    use std::arch::x86_64::{
        __m128i, __m256, __m256i, _MM_HINT_T0, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtsi64_si128,
        _mm_cvtss_f32, _mm_prefetch, _mm_srli_epi16, _mm_srli_si128, _mm256_add_epi8,
        _mm256_add_ps, _mm256_and_si256, _mm256_andnot_si256, _mm256_castsi256_si128,
        _mm256_cmpeq_epi8, _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtph_ps,
        _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_mul_ps, _mm256_or_si256,
        _mm256_set_m128i, _mm256_set1_epi8, _mm256_set1_epi32, _mm256_set1_ps, _mm256_shuffle_epi8,
        _mm256_slli_epi16, _mm256_srli_epi16,
    };

    use super::Isa;

    /// AVX2, FMA and F16C.
    #[derive(Clone, Copy)]
    pub(in crate::model::kernels) struct Avx2(());

    impl Avx2 {
        /// # Safety
        /// The machine must have AVX2, FMA and F16C.
        #[inline(always)]
        pub(in crate::model::kernels) unsafe fn new() -> Self {
            Self(())
        }
    }

    // SAFETY, for every block below: `self` proves that the machine has the
    // instructions. Nothing else is asked of the caller: vectors are made from
    // arrays of their size and become such.
    impl Isa for Avx2 {
        type Floats = __m256;
        type Bytes = __m256i;

        #[inline(always)]
        fn floats(self, values: &[f32; 8]) -> __m256 {
            bytemuck::cast(*values)
        }

        #[inline(always)]
        fn array(self, floats: __m256) -> [f32; 8] {
            bytemuck::cast(floats)
        }

        #[inline(always)]
        fn splat(self, value: f32) -> __m256 {
            unsafe { _mm256_set1_ps(value) }
        }

        #[inline(always)]
        fn add(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }

        #[inline(always)]
        fn multiply(self, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }

        #[inline(always)]
        fn fma(self, a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        fn bytes(self, stored: &[u8; 32]) -> __m256i {
            bytemuck::cast(*stored)
        }

        #[inline(always)]
        fn nibbles(self, stored: &[u8; 16]) -> __m256i {
            let low: __m128i = bytemuck::cast(*stored);
            unsafe {
                let both = _mm256_set_m128i(_mm_srli_epi16::<4>(low), low);
                _mm256_and_si256(both, _mm256_set1_epi8(15))
            }
        }

        #[inline(always)]
        fn bits<const SHIFT: i32>(self, bytes: __m256i, mask: u8) -> __m256i {
            // Bits of the next byte come in above: the mask has none there.
            debug_assert!(u32::from(mask) < 256 >> SHIFT);
            unsafe {
                let shifted = _mm256_srli_epi16::<SHIFT>(bytes);
                _mm256_and_si256(shifted, _mm256_set1_epi8(mask as i8))
            }
        }

        #[inline(always)]
        fn join<const SHIFT: i32>(self, a: __m256i, b: __m256i) -> __m256i {
            unsafe { _mm256_or_si256(a, _mm256_slli_epi16::<SHIFT>(b)) }
        }

        #[inline(always)]
        fn plus(self, bytes: __m256i, more: i8) -> __m256i {
            unsafe { _mm256_add_epi8(bytes, _mm256_set1_epi8(more)) }
        }

        #[inline(always)]
        fn widen(self, bytes: __m256i) -> [__m256; 4] {
            unsafe {
                let low = _mm256_castsi256_si128(bytes);
                let high = _mm256_extracti128_si256::<1>(bytes);
                [
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(low))),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(high))),
                ]
            }
        }

        #[inline(always)]
        fn widen_eight(self, values: &[u8; 8]) -> __m256 {
            let bytes = i64::from_le_bytes(*values);
            unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes))) }
        }

        #[inline(always)]
        fn halves(self, bits: &[u16; 8]) -> __m256 {
            unsafe { _mm256_cvtph_ps(bytemuck::cast(*bits)) }
        }

        #[inline(always)]
        fn half(self, bits: u16) -> f32 {
            unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
        }

        #[inline(always)]
        fn less_16(self, bits: u32) -> __m256i {
            // Each byte of the word eight times, then one bit of each.
            const BYTES: [[i8; 8]; 4] = [[0; 8], [1; 8], [2; 8], [3; 8]];
            const BITS: [[u8; 8]; 4] = [[1, 2, 4, 8, 16, 32, 64, 128]; 4];
            let (bytes, each): (__m256i, __m256i) = (bytemuck::cast(BYTES), bytemuck::cast(BITS));
            unsafe {
                let spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), bytes);
                let set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, each), each);
                _mm256_andnot_si256(set, _mm256_set1_epi8(-16))
            }
        }

        #[inline(always)]
        fn prefetch(self, bytes: &[u8]) {
            for line in bytes.chunks(64) {
                // SAFETY: a prefetch reads nothing.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Isa, Portable};

    #[test]
    fn every_half_converts() {
        for bits in 0..=u16::MAX {
            let theirs = half::f16::from_bits(bits).to_f32();
            for ours in [
                Portable::<false>.half(bits),
                Portable::<false>.halves(&[bits; 8])[7],
            ] {
                let both_nan = ours.is_nan() && theirs.is_nan();
                assert!(ours == theirs || both_nan, "{bits:#x}");
            }
        }
    }
}
