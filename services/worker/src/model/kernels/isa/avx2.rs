//! AVX2 with FMA and F16C, and AVX-512's VNNI.

#![allow(unsafe_code)]

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _MM_HINT_T0, _mm_add_ps, _mm_movehl_ps, _mm_movelh_ps, _mm_prefetch,
    _mm_slli_epi16, _mm_srai_epi16, _mm_srli_epi16, _mm_srli_si128, _mm_unpackhi_ps,
    _mm_unpacklo_ps, _mm256_abs_epi8, _mm256_add_epi16, _mm256_add_epi32, _mm256_and_si256,
    _mm256_broadcastsi128_si256, _mm256_castps256_ps128, _mm256_castsi256_si128, _mm256_cmpeq_epi8,
    _mm256_cvtepi8_epi32, _mm256_cvtepi32_ps, _mm256_cvtph_ps, _mm256_dpbusd_epi32,
    _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_hadd_epi32,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_mullo_epi16, _mm256_mullo_epi32,
    _mm256_or_si256, _mm256_permute2x128_si256, _mm256_set_m128i, _mm256_set1_epi8,
    _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32, _mm256_setzero_si256,
    _mm256_shuffle_epi8, _mm256_shuffle_epi32, _mm256_sign_epi8, _mm256_slli_epi16,
    _mm256_srli_epi16, _mm256_srli_epi32, _mm256_srlv_epi32, _mm256_unpackhi_epi8,
    _mm256_unpackhi_epi16, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64, _mm256_unpacklo_epi8,
    _mm256_unpacklo_epi16, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64, _mm256_xor_si256,
};

use super::{Isa, in_steps};

/// AVX2, FMA and F16C; `VNNI`: AVX-512's VNNI and VL too.
#[derive(Clone, Copy)]
pub(in crate::model::kernels) struct Avx2<const VNNI: bool>(());

impl<const VNNI: bool> Avx2<VNNI> {
    /// # Safety
    /// The machine must have all of it.
    #[inline(always)]
    pub(in crate::model::kernels) unsafe fn new() -> Self {
        Self(())
    }
}

// SAFETY, for every block below: `self` proves that the machine has the
// instructions. Nothing else is asked of the caller: vectors are made from
// arrays of their size and become such.
impl<const VNNI: bool> Isa for Avx2<VNNI> {
    const DOTS: bool = VNNI;

    type Floats = __m256;
    type Bytes = __m256i;
    type Words = __m256i;
    type Ints = __m256i;

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
    fn pairs(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_maddubs_epi16(a, b) }
    }

    #[inline(always)]
    fn signed_pairs(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a)) }
    }

    #[inline(always)]
    fn add_words(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi16(a, b) }
    }

    #[inline(always)]
    fn add_neighbours(self, words: __m256i) -> __m256i {
        unsafe { _mm256_madd_epi16(words, _mm256_set1_epi16(1)) }
    }

    #[inline(always)]
    fn words(self, values: &[i16; 16]) -> __m256i {
        bytemuck::cast(*values)
    }

    #[inline(always)]
    fn word_array(self, words: __m256i) -> [i16; 16] {
        bytemuck::cast(words)
    }

    #[inline(always)]
    fn word_bytes(self, words: __m256i) -> __m256i {
        words
    }

    #[inline(always)]
    fn twice(self, words: __m256i) -> [__m256i; 2] {
        unsafe {
            let low = _mm256_unpacklo_epi16(words, words);
            let high = _mm256_unpackhi_epi16(words, words);
            [
                _mm256_permute2x128_si256::<0x20>(low, high),
                _mm256_permute2x128_si256::<0x31>(low, high),
            ]
        }
    }

    #[inline(always)]
    fn multiply_words(self, words: __m256i, by: i16) -> __m256i {
        unsafe { _mm256_mullo_epi16(words, _mm256_set1_epi16(by)) }
    }

    #[inline(always)]
    fn even_and_odd(self, bytes: &[u8; 16]) -> __m256i {
        let pairs: __m128i = bytemuck::cast(*bytes);
        unsafe {
            let even = _mm_srai_epi16::<8>(_mm_slli_epi16::<8>(pairs));
            _mm256_set_m128i(_mm_srai_epi16::<8>(pairs), even)
        }
    }

    #[inline(always)]
    fn six_bits(self, bytes: &[u8; 16]) -> [__m256i; 2] {
        const LOW: i32 = 0x3f3f_3f3f;
        const HALF: i32 = 0x0f0f_0f0f;
        const HIGH: i32 = 0x3030_3030;
        unsafe {
            let both = _mm256_broadcastsi128_si256(bytemuck::cast(*bytes));
            // Scales and minima, the first four and the others of each.
            let low = _mm256_srlv_epi32(
                _mm256_shuffle_epi32::<0b11_10_11_01>(both),
                _mm256_setr_epi32(0, 0, 0, 4, 0, 0, 0, 4),
            );
            let masks = _mm256_setr_epi32(LOW, HALF, LOW, HALF, LOW, HALF, LOW, HALF);
            let high = _mm256_srli_epi32::<2>(_mm256_shuffle_epi32::<0b10_10_01_01>(both));
            let others = _mm256_setr_epi32(0, HIGH, 0, HIGH, 0, HIGH, 0, HIGH);
            let bytes =
                _mm256_or_si256(_mm256_and_si256(low, masks), _mm256_and_si256(high, others));
            [
                _mm256_unpacklo_epi8(bytes, _mm256_setzero_si256()),
                _mm256_unpackhi_epi8(bytes, _mm256_setzero_si256()),
            ]
        }
    }

    #[inline(always)]
    fn spread<const INDEX: usize>(self, words: __m256i) -> __m256i {
        let at = const { [2 * INDEX as u8, 2 * INDEX as u8 + 1] };
        unsafe { _mm256_shuffle_epi8(words, _mm256_set1_epi16(i16::from_le_bytes(at))) }
    }

    #[inline(always)]
    fn repeat_words(self, two: &[i16; 2]) -> __m256i {
        unsafe { _mm256_set1_epi32(bytemuck::cast(*two)) }
    }

    #[inline(always)]
    fn word_pairs(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_madd_epi16(a, b) }
    }

    #[inline(always)]
    fn int_totals(self, eight: [__m256i; 8]) -> __m256i {
        let [a, b, c, d, e, f, g, h] = eight;
        unsafe {
            let (ab, cd) = (_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
            let (ef, gh) = (_mm256_hadd_epi32(e, f), _mm256_hadd_epi32(g, h));
            let (top, bottom) = (_mm256_hadd_epi32(ab, cd), _mm256_hadd_epi32(ef, gh));
            _mm256_add_epi32(
                _mm256_permute2x128_si256::<0x20>(top, bottom),
                _mm256_permute2x128_si256::<0x31>(top, bottom),
            )
        }
    }

    #[inline(always)]
    fn ints(self, value: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(value) }
    }

    #[inline(always)]
    fn multiply_ints(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_mullo_epi32(a, b) }
    }

    #[inline(always)]
    fn lifted(self, bytes: __m256i) -> __m256i {
        unsafe { _mm256_xor_si256(bytes, _mm256_set1_epi8(i8::MIN)) }
    }

    #[inline(always)]
    fn dot(self, sums: __m256i, a: __m256i, b: __m256i) -> __m256i {
        match VNNI {
            true => unsafe { _mm256_dpbusd_epi32(sums, a, b) },
            false => in_steps(self, sums, a, b),
        }
    }

    #[inline(always)]
    fn add_ints(self, a: __m256i, b: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(a, b) }
    }

    #[inline(always)]
    fn ints_to_floats(self, ints: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(ints) }
    }

    #[inline(always)]
    fn repeat(self, four: &[i8; 4]) -> __m256i {
        unsafe { _mm256_set1_epi32(i32::from_ne_bytes(bytemuck::cast(*four))) }
    }

    #[inline(always)]
    fn transpose(self, rows: [__m256i; 8]) -> [__m256i; 8] {
        let [a, b, c, d, e, f, g, h] = rows;
        unsafe {
            // Within the halves of each vector: 1 × 2, 2 × 4, then halves change places.
            let (ab, ab_) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
            let (cd, cd_) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
            let (ef, ef_) = (_mm256_unpacklo_epi32(e, f), _mm256_unpackhi_epi32(e, f));
            let (gh, gh_) = (_mm256_unpacklo_epi32(g, h), _mm256_unpackhi_epi32(g, h));
            let (top, bottom) = (
                [
                    _mm256_unpacklo_epi64(ab, cd),
                    _mm256_unpackhi_epi64(ab, cd),
                    _mm256_unpacklo_epi64(ab_, cd_),
                    _mm256_unpackhi_epi64(ab_, cd_),
                ],
                [
                    _mm256_unpacklo_epi64(ef, gh),
                    _mm256_unpackhi_epi64(ef, gh),
                    _mm256_unpacklo_epi64(ef_, gh_),
                    _mm256_unpackhi_epi64(ef_, gh_),
                ],
            );
            [
                _mm256_permute2x128_si256::<0x20>(top[0], bottom[0]),
                _mm256_permute2x128_si256::<0x20>(top[1], bottom[1]),
                _mm256_permute2x128_si256::<0x20>(top[2], bottom[2]),
                _mm256_permute2x128_si256::<0x20>(top[3], bottom[3]),
                _mm256_permute2x128_si256::<0x31>(top[0], bottom[0]),
                _mm256_permute2x128_si256::<0x31>(top[1], bottom[1]),
                _mm256_permute2x128_si256::<0x31>(top[2], bottom[2]),
                _mm256_permute2x128_si256::<0x31>(top[3], bottom[3]),
            ]
        }
    }

    #[inline(always)]
    fn totals(self, four: [__m256; 4]) -> [f32; 4] {
        unsafe {
            // Neither by a closure nor by `map`: those stay calls.
            let [a, b, c, d] = four;
            let (a, a_) = (_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
            let (b, b_) = (_mm256_castps256_ps128(b), _mm256_extractf128_ps::<1>(b));
            let (c, c_) = (_mm256_castps256_ps128(c), _mm256_extractf128_ps::<1>(c));
            let (d, d_) = (_mm256_castps256_ps128(d), _mm256_extractf128_ps::<1>(d));
            let (a, b) = (_mm_add_ps(a, a_), _mm_add_ps(b, b_));
            let (c, d) = (_mm_add_ps(c, c_), _mm_add_ps(d, d_));
            let (ab, ab_) = (_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
            let (cd, cd_) = (_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
            let even = _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movelh_ps(ab_, cd_));
            let odd = _mm_add_ps(_mm_movehl_ps(cd, ab), _mm_movehl_ps(cd_, ab_));
            bytemuck::cast(_mm_add_ps(even, odd))
        }
    }

    #[inline(always)]
    fn store(self, bytes: __m256i) -> [u8; 32] {
        bytemuck::cast(bytes)
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
    fn halves(self, bits: &[u16; 8]) -> __m256 {
        unsafe { _mm256_cvtph_ps(bytemuck::cast(*bits)) }
    }

    #[inline(always)]
    fn sixteens(self, bits: u32) -> __m256i {
        // Each byte of the word eight times, then one bit of each.
        const BYTES: [[i8; 8]; 4] = [[0; 8], [1; 8], [2; 8], [3; 8]];
        const BITS: [[u8; 8]; 4] = [[1, 2, 4, 8, 16, 32, 64, 128]; 4];
        let (bytes, each): (__m256i, __m256i) = (bytemuck::cast(BYTES), bytemuck::cast(BITS));
        unsafe {
            let spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), bytes);
            let set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, each), each);
            _mm256_and_si256(set, _mm256_set1_epi8(16))
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
