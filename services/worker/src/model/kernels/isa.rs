//! The vector operations that the compiler doesn't find by itself, once per
//! instruction set. Everything else is written on arrays and vectorised by it.

/// 32 small integers in eights.
pub(super) type Eights = [[i8; 8]; 4];

/// Operations on vectors of 8 floats.
///
/// Values of this type exist only where the machine has the instructions:
/// [`super::dispatch`] makes them.
pub(super) trait Isa: Copy + Send + Sync {
    /// 8 × f32.
    type Floats: Copy;

    fn floats(self, values: &[f32; 8]) -> Self::Floats;
    fn array(self, floats: Self::Floats) -> [f32; 8];
    fn splat(self, value: f32) -> Self::Floats;
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn multiply(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a · b + c`.
    fn fma(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// Integers to floats.
    fn widen(self, values: &[i8; 8]) -> Self::Floats;
    /// IEEE half precision to f32.
    fn halves(self, bits: &[u16; 8]) -> Self::Floats;
    /// IEEE half precision to f32.
    fn half(self, bits: u16) -> f32;
    /// −1 where an element's bit is 0, 0 where it is 1.
    fn clear_bits(self, bits: u32) -> Eights;
    /// Asks for bytes to be brought to the cache. Several rows are read at a
    /// time, which the processor doesn't foresee by itself.
    fn prefetch(self, _: &[u8]) {}
}

/// Any machine. `FMA`: whether it has a fused multiply-add.
#[derive(Clone, Copy)]
pub(super) struct Portable<const FMA: bool>;

impl<const FMA: bool> Isa for Portable<FMA> {
    type Floats = [f32; 8];

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
    fn widen(self, values: &[i8; 8]) -> [f32; 8] {
        values.map(f32::from)
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
    fn clear_bits(self, bits: u32) -> Eights {
        let clear = |i: usize| -i8::from(bits >> i & 1 == 0);
        std::array::from_fn(|eight| std::array::from_fn(|i| clear(8 * eight + i)))
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
        __m256, __m256i, _MM_HINT_T0, _mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtsi64_si128,
        _mm_cvtss_f32, _mm_prefetch, _mm256_add_ps, _mm256_and_si256, _mm256_cmpeq_epi8,
        _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_mul_ps,
        _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_si256, _mm256_shuffle_epi8,
    };

    use super::{Eights, Isa};

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
        fn widen(self, values: &[i8; 8]) -> __m256 {
            let bytes = i64::from_le_bytes(bytemuck::cast(*values));
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
        fn clear_bits(self, bits: u32) -> Eights {
            // Each byte of the word eight times, then one bit of each.
            const BYTES: [[i8; 8]; 4] = [[0; 8], [1; 8], [2; 8], [3; 8]];
            const BITS: [[u8; 8]; 4] = [[1, 2, 4, 8, 16, 32, 64, 128]; 4];
            let (bytes, each): (__m256i, __m256i) = (bytemuck::cast(BYTES), bytemuck::cast(BITS));
            let clear = unsafe {
                let spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), bytes);
                _mm256_cmpeq_epi8(_mm256_and_si256(spread, each), _mm256_setzero_si256())
            };
            bytemuck::cast(clear)
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
