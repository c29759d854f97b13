//! The vector operations that the compiler doesn't find by itself, once per
//! instruction set. Everything else is written on arrays and vectorised by it.

#[cfg(target_arch = "x86_64")]
mod avx2;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;

/// Operations on vectors of 8 floats and of 32 small integers.
///
/// Values of this type exist only where the machine has the instructions:
/// [`super::dispatch`] makes them.
pub(super) trait Isa: Copy + Send + Sync {
    /// Whether [`Self::dot`] is one instruction.
    const DOTS: bool;

    /// 8 × f32.
    type Floats: Copy;
    /// 32 × i8.
    type Bytes: Copy;
    /// 16 × i16.
    type Words: Copy;
    /// 8 × i32.
    type Ints: Copy;

    fn floats(self, values: &[f32; 8]) -> Self::Floats;
    fn array(self, floats: Self::Floats) -> [f32; 8];
    fn splat(self, value: f32) -> Self::Floats;
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
    /// Sums of two neighbours' products each; `a` isn't negative, and no sum
    /// leaves 16 bits.
    fn pairs(self, a: Self::Bytes, b: Self::Bytes) -> Self::Words;
    /// [`Self::pairs`] of any `a`.
    fn signed_pairs(self, a: Self::Bytes, b: Self::Bytes) -> Self::Words;
    fn add_words(self, a: Self::Words, b: Self::Words) -> Self::Words;
    /// Sums of two neighbours each.
    fn add_neighbours(self, words: Self::Words) -> Self::Ints;
    fn words(self, values: &[i16; 16]) -> Self::Words;
    fn word_array(self, words: Self::Words) -> [i16; 16];
    fn word_bytes(self, words: Self::Words) -> Self::Bytes;
    /// Each of the first eight words twice, then each of the other eight.
    fn twice(self, words: Self::Words) -> [Self::Bytes; 2];
    fn multiply_words(self, words: Self::Words, by: i16) -> Self::Words;
    /// Bytes with a sign: those at even places, then those at odd ones.
    fn even_and_odd(self, bytes: &[u8; 16]) -> Self::Words;
    /// Eight scales and eight minima of 6 bits, each in both halves, of the last 12
    /// bytes: the first four scales are in the low bits of the first four, the first
    /// four minima in those of the next; of the others, the low 4 bits come then, the
    /// high 2 are in the high bits of the first ones.
    fn six_bits(self, bytes: &[u8; 16]) -> [Self::Words; 2];
    /// One word, eight times, of the first eight, then one of the other eight.
    fn spread<const INDEX: usize>(self, words: Self::Words) -> Self::Words;
    /// Two words, eight times.
    fn repeat_words(self, two: &[i16; 2]) -> Self::Words;
    /// Sums of two neighbours' products each.
    fn word_pairs(self, a: Self::Words, b: Self::Words) -> Self::Ints;
    /// The sum of all lanes of each.
    fn int_totals(self, eight: [Self::Ints; 8]) -> Self::Ints;
    /// One value, eight times.
    fn ints(self, value: i32) -> Self::Ints;
    fn add_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    fn multiply_ints(self, a: Self::Ints, b: Self::Ints) -> Self::Ints;
    /// Every byte plus 128: what had a sign has none then.
    fn lifted(self, bytes: Self::Bytes) -> Self::Bytes;
    /// Adds to `sums` those of four neighbours' products each; `a` has no sign.
    fn dot(self, sums: Self::Ints, a: Self::Bytes, b: Self::Bytes) -> Self::Ints;
    fn ints_to_floats(self, ints: Self::Ints) -> Self::Floats;
    /// Four bytes, eight times.
    fn repeat(self, four: &[i8; 4]) -> Self::Bytes;
    /// The rows of a matrix of 8 × 8 pieces of four bytes, from its columns.
    fn transpose(self, rows: [Self::Bytes; 8]) -> [Self::Bytes; 8];
    fn store(self, bytes: Self::Bytes) -> [u8; 32];
    /// Integers to floats.
    fn widen(self, bytes: Self::Bytes) -> [Self::Floats; 4];
    /// IEEE half precision to f32.
    fn halves(self, bits: &[u16; 8]) -> Self::Floats;
    /// 16 where an element's bit is 1, 0 where it is 0.
    fn sixteens(self, bits: u32) -> Self::Bytes;
    /// Asks for bytes to be brought to the cache. Several rows are read at a
    /// time, which the processor doesn't foresee by itself.
    fn prefetch(self, _: &[u8]) {}
    /// The [total] of each.
    #[inline(always)]
    fn totals(self, four: [Self::Floats; 4]) -> [f32; 4] {
        four.map(|lanes| total(self.array(lanes)))
    }
}

/// [`Isa::dot`] of other operations. The eighth bit goes apart: with it, sums of two
/// products would leave 16 bits.
#[inline(always)]
fn in_steps<I: Isa>(isa: I, sums: I::Ints, a: I::Bytes, b: I::Bytes) -> I::Ints {
    let low = isa.pairs(isa.bits::<0>(a, 0x7f), b);
    let high = isa.multiply_words(isa.pairs(isa.bits::<7>(a, 1), b), 128);
    let both = isa.add_ints(isa.add_neighbours(low), isa.add_neighbours(high));
    isa.add_ints(sums, both)
}

/// The sum of all lanes, in one fixed order.
#[inline(always)]
pub(super) fn total(lanes: [f32; 8]) -> f32 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// Any machine. `FMA`: whether it has a fused multiply-add.
#[derive(Clone, Copy)]
pub(super) struct Portable<const FMA: bool>;

impl<const FMA: bool> Isa for Portable<FMA> {
    const DOTS: bool = true;

    type Floats = [f32; 8];
    type Bytes = [i8; 32];
    type Words = [i16; 16];
    type Ints = [i32; 8];

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
    fn pairs(self, a: [i8; 32], b: [i8; 32]) -> [i16; 16] {
        let product = |i: usize| i16::from(a[i]) * i16::from(b[i]);
        std::array::from_fn(|i| product(2 * i) + product(2 * i + 1))
    }

    #[inline(always)]
    fn signed_pairs(self, a: [i8; 32], b: [i8; 32]) -> [i16; 16] {
        self.pairs(a, b)
    }

    #[inline(always)]
    fn add_words(self, a: [i16; 16], b: [i16; 16]) -> [i16; 16] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn add_neighbours(self, words: [i16; 16]) -> [i32; 8] {
        std::array::from_fn(|i| i32::from(words[2 * i]) + i32::from(words[2 * i + 1]))
    }

    #[inline(always)]
    fn words(self, values: &[i16; 16]) -> [i16; 16] {
        *values
    }

    #[inline(always)]
    fn word_array(self, words: [i16; 16]) -> [i16; 16] {
        words
    }

    #[inline(always)]
    fn word_bytes(self, words: [i16; 16]) -> [i8; 32] {
        bytemuck::cast(words)
    }

    #[inline(always)]
    fn twice(self, words: [i16; 16]) -> [[i8; 32]; 2] {
        let half = |half: usize| -> [i16; 16] { std::array::from_fn(|i| words[8 * half + i / 2]) };
        [bytemuck::cast(half(0)), bytemuck::cast(half(1))]
    }

    #[inline(always)]
    fn multiply_words(self, words: [i16; 16], by: i16) -> [i16; 16] {
        words.map(|word| word * by)
    }

    #[inline(always)]
    fn even_and_odd(self, bytes: &[u8; 16]) -> [i16; 16] {
        std::array::from_fn(|i| i16::from(bytes[i % 8 * 2 + i / 8] as i8))
    }

    #[inline(always)]
    fn six_bits(self, bytes: &[u8; 16]) -> [[i16; 16]; 2] {
        let value = |first: usize, shift: usize, i: usize| match i % 8 {
            i @ ..4 => i16::from(bytes[first + i] & 63),
            i => i16::from(bytes[8 + i] >> shift & 15 | bytes[first + i - 4] >> 6 << 4),
        };
        [
            std::array::from_fn(|i| value(4, 0, i)),
            std::array::from_fn(|i| value(8, 4, i)),
        ]
    }

    #[inline(always)]
    fn spread<const INDEX: usize>(self, words: [i16; 16]) -> [i16; 16] {
        std::array::from_fn(|i| words[i / 8 * 8 + INDEX])
    }

    #[inline(always)]
    fn repeat_words(self, two: &[i16; 2]) -> [i16; 16] {
        std::array::from_fn(|i| two[i % 2])
    }

    #[inline(always)]
    fn word_pairs(self, a: [i16; 16], b: [i16; 16]) -> [i32; 8] {
        let product = |i: usize| i32::from(a[i]) * i32::from(b[i]);
        std::array::from_fn(|i| product(2 * i) + product(2 * i + 1))
    }

    #[inline(always)]
    fn int_totals(self, eight: [[i32; 8]; 8]) -> [i32; 8] {
        eight.map(|lanes| lanes.iter().sum())
    }

    #[inline(always)]
    fn ints(self, value: i32) -> [i32; 8] {
        [value; 8]
    }

    #[inline(always)]
    fn multiply_ints(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn lifted(self, bytes: [i8; 32]) -> [i8; 32] {
        bytes.map(|byte| byte ^ i8::MIN)
    }

    #[inline(always)]
    fn dot(self, sums: [i32; 8], a: [i8; 32], b: [i8; 32]) -> [i32; 8] {
        let product = |i: usize| i32::from(a[i] as u8) * i32::from(b[i]);
        std::array::from_fn(|i| sums[i] + (4 * i..4 * i + 4).map(product).sum::<i32>())
    }

    #[inline(always)]
    fn add_ints(self, a: [i32; 8], b: [i32; 8]) -> [i32; 8] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn ints_to_floats(self, ints: [i32; 8]) -> [f32; 8] {
        ints.map(|int| int as f32)
    }

    #[inline(always)]
    fn repeat(self, four: &[i8; 4]) -> [i8; 32] {
        std::array::from_fn(|i| four[i % 4])
    }

    #[inline(always)]
    fn transpose(self, rows: [[i8; 32]; 8]) -> [[i8; 32]; 8] {
        std::array::from_fn(|i| std::array::from_fn(|j| rows[j / 4][4 * i + j % 4]))
    }

    #[inline(always)]
    fn store(self, bytes: [i8; 32]) -> [u8; 32] {
        bytes.map(|byte| byte as u8)
    }

    #[inline(always)]
    fn widen(self, bytes: [i8; 32]) -> [[f32; 8]; 4] {
        std::array::from_fn(|i| std::array::from_fn(|j| f32::from(bytes[8 * i + j])))
    }

    #[inline(always)]
    fn halves(self, bits: &[u16; 8]) -> [f32; 8] {
        bits.map(half_to_f32)
    }

    #[inline(always)]
    fn sixteens(self, bits: u32) -> [i8; 32] {
        std::array::from_fn(|i| 16 * (bits >> i & 1) as i8)
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

#[cfg(test)]
mod tests {
    use super::{Isa, Portable};

    #[test]
    fn every_half_converts() {
        for bits in 0..=u16::MAX {
            let theirs = half::f16::from_bits(bits).to_f32();
            let ours = Portable::<false>.halves(&[bits; 8])[7];
            let both_nan = ours.is_nan() && theirs.is_nan();
            assert!(ours == theirs || both_nan, "{bits:#x}");
        }
    }
}
