//! Functions of one number that vectorise: no branches, no library calls.

/// `a · b + c`.
#[inline(always)]
pub(super) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` to about an ulp (Cephes' `expf`): `x = n·ln 2 + r`, a polynomial in r,
/// and n added to the exponent. 0 below −87.3, where results are subnormal.
#[inline(always)]
pub(super) fn exp<const FMA: bool>(x: f32) -> f32 {
    /// Added to a number, leaves its nearest integer in the low bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23
    const LN2_HIGH: f32 = 0.693_359_4; // exact in 10 bits, so that n · it is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -LN2_LOW, fma::<FMA>(n, -LN2_HIGH, x));
    let mut p = 1.987_569_1e-4;
    for coefficient in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        0.166_666_66,
        0.5,
    ] {
        p = fma::<FMA>(p, r, coefficient);
    }
    let y = fma::<FMA>(p, r * r, r) + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000));
    let y = y * scale;
    // Comparisons are false for NaN, which has passed through.
    let y = if x < -87.3 { 0.0 } else { y };
    if x > 88.3 { f32::INFINITY } else { y }
}

/// `tanh x` to about an ulp (Cephes' `tanhf`).
#[inline(always)]
pub(super) fn tanh<const FMA: bool>(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    for coefficient in [2.063_909e-2, -5.373_971_6e-2, 0.133_314_42, -0.333_332_8] {
        p = fma::<FMA>(p, z, coefficient);
    }
    let near = fma::<FMA>(p * z, x, x);
    let magnitude = x.abs();
    let far = (1.0 - 2.0 / (exp::<FMA>(2.0 * magnitude) + 1.0)).copysign(x);
    if magnitude < 0.625 { near } else { far }
}

#[cfg(test)]
mod tests;
