//! Passes over the logits of one token: a quarter of a million numbers, for every
//! token of every sequence.

use super::{
    dispatch::{Kernel, dispatch},
    isa::Isa,
    math::exp,
};

/// Partial results of a pass.
const LANES: usize = 16;
/// Numbers that are summed in f32 before they join an f64.
const RUN: usize = 4096;

/// ln Σ exp.
pub(crate) fn log_sum_exp(logits: &[f32]) -> f32 {
    let most = largest(logits);
    let mut sum = 0.0;
    dispatch(SumExp {
        logits,
        most,
        sum: &mut sum,
    });
    (f64::from(most) + sum.ln()) as f32
}

/// The first of the largest logits, as `torch.argmax`.
pub fn argmax(logits: &[f32]) -> u32 {
    let most = largest(logits);
    logits.iter().position(|&l| l == most).unwrap_or(0) as u32
}

/// The logits that are at least as large as the `k`th largest, by id; with 0, all.
pub(crate) fn at_least_kth(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    /// Few enough blocks to sort, small enough to search.
    const BLOCK: usize = 64;
    let all = (0..).zip(logits.iter().copied());
    if k == 0 || k >= logits.len() {
        return all.collect();
    }
    if k * BLOCK >= logits.len() {
        let mut sorted = logits.to_vec();
        let least = *sorted
            .select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a))
            .1;
        return all.filter(|(_, logit)| *logit >= least).collect();
    }
    // At least k logits reach the k-th largest of the blocks' largest.
    let mut tops = vec![0.0; logits.len().div_ceil(BLOCK)];
    dispatch(BlockTops {
        logits,
        block: BLOCK,
        tops: &mut tops,
    });
    let mut sorted = tops.clone();
    let bound = *sorted
        .select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a))
        .1;
    let mut found: Vec<(u32, f32)> = Vec::new();
    for (block, _) in tops.iter().enumerate().filter(|(_, top)| **top >= bound) {
        let first = block * BLOCK;
        let logits = &logits[first..logits.len().min(first + BLOCK)];
        let here = (first as u32..).zip(logits.iter().copied());
        found.extend(here.filter(|(_, logit)| *logit >= bound));
    }
    if found.len() > k {
        let mut values: Vec<f32> = found.iter().map(|(_, logit)| *logit).collect();
        let least = *values
            .select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a))
            .1;
        found.retain(|(_, logit)| *logit >= least);
    }
    found
}

/// The largest; −∞ of none. NaN is passed over.
fn largest(logits: &[f32]) -> f32 {
    let mut top = [0.0];
    dispatch(BlockTops {
        logits,
        block: logits.len().max(1),
        tops: &mut top,
    });
    top[0]
}

/// The largest of every block.
struct BlockTops<'a> {
    logits: &'a [f32],
    block: usize,
    tops: &'a mut [f32],
}

impl Kernel for BlockTops<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self, _: impl Isa) {
        self.tops.fill(f32::NEG_INFINITY);
        for (block, most) in self.logits.chunks(self.block).zip(self.tops) {
            let (lanes, rest) = block.as_chunks::<LANES>();
            let mut tops = [f32::NEG_INFINITY; LANES];
            for lanes in lanes {
                for (top, logit) in tops.iter_mut().zip(lanes) {
                    *top = if *logit > *top { *logit } else { *top };
                }
            }
            for logit in tops.iter().chain(rest) {
                *most = if *logit > *most { *logit } else { *most };
            }
        }
    }
}

/// Σ exp(logit − most).
struct SumExp<'a> {
    logits: &'a [f32],
    most: f32,
    sum: &'a mut f64,
}

impl Kernel for SumExp<'_> {
    #[inline(always)]
    fn run<const FMA: bool>(self, _: impl Isa) {
        for run in self.logits.chunks(RUN) {
            let (lanes, rest) = run.as_chunks::<LANES>();
            let mut sums = [0.0f32; LANES];
            for lanes in lanes {
                for (sum, logit) in sums.iter_mut().zip(lanes) {
                    *sum += exp::<FMA>(*logit - self.most);
                }
            }
            for (sum, logit) in sums.iter_mut().zip(rest) {
                *sum += exp::<FMA>(*logit - self.most);
            }
            *self.sum += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn passes_equal_what_they_are_defined_as(
            logits in prop::collection::vec(-40i32..40, 1..3000), k in 1usize..60,
        ) {
            // Eighths: many ties.
            let logits: Vec<f32> = logits.iter().map(|l| *l as f32 / 8.0).collect();
            let mut sorted = logits.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            let first = logits.iter().position(|l| *l == sorted[0]).expect("not empty");
            prop_assert_eq!(argmax(&logits), first as u32);
            let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
            prop_assert!((f64::from(log_sum_exp(&logits)) - sum.ln()).abs() < 1e-6);
            let least = sorted[k.min(sorted.len()) - 1];
            let expected: Vec<_> =
                (0..).zip(logits.iter().copied()).filter(|(_, l)| *l >= least).collect();
            prop_assert_eq!(at_least_kth(&logits, k), expected);
        }
    }

    #[test]
    fn what_is_not_a_number_is_never_chosen() {
        assert_eq!(argmax(&[f32::NAN, 1.0, f32::NAN, 2.0]), 3);
        assert_eq!(argmax(&[]), 0);
    }
}
