//! What a held-out part says of a direction.

/// Standard normal quantile of a 95 % interval.
const Z95: f64 = 1.959_963_984_540_054;

/// An estimate and its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// What repeated trials gave.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Spread {
    /// How many there were.
    pub trials: u32,
    /// Their mean.
    pub mean: f64,
    /// Their 95th percentile, nearest rank.
    pub p95: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    pub(super) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let Some(&max) = sorted.last() else {
            return Self::default();
        };
        let rank = (sorted.len() * 95).div_ceil(100);
        Self {
            trials: u32::try_from(sorted.len()).unwrap_or(u32::MAX),
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
            p95: sorted[rank - 1],
            max,
        }
    }
}

/// A share of `count`, with Wilson's interval.
pub(super) fn proportion(successes: usize, count: usize) -> Estimate {
    wilson(successes as f64 / count as f64, count as f64)
}

/// The probability that a positive scores above a negative (ties count half).
///
/// The interval is Wilson's with as many examples as would give a share DeLong's variance
/// (Mee 1990): unlike the normal one it stays within 0 and 1, and does not vanish where
/// every pair is in order.
pub(super) fn auc(positives: &[f64], negatives: &[f64]) -> Estimate {
    let (above, below) = (
        placements(positives, negatives),
        placements(negatives, positives),
    );
    let value = mean(&above);
    let variance =
        variance(&above) / positives.len() as f64 + variance(&below) / negatives.len() as f64;
    let fewest = positives.len().min(negatives.len()) as f64;
    let count = if variance > 0.0 {
        // Never more than there are pairs of distinct examples.
        (value * (1.0 - value) / variance)
            .clamp(fewest.min(1.0), (positives.len() + negatives.len()) as f64)
    } else {
        fewest
    };
    wilson(value, count)
}

/// Standard error of the AUC of scores that know nothing of the labels (Mann and Whitney).
pub(super) fn chance_error(positives: usize, negatives: usize) -> f64 {
    let (p, n) = (positives as f64, negatives as f64);
    ((p + n + 1.0) / (12.0 * p * n)).sqrt()
}

/// For each of `these`, the share of `others` below it, ties counting half.
fn placements(these: &[f64], others: &[f64]) -> Vec<f64> {
    let mut sorted = others.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = |score: &f64| {
        let below = sorted.partition_point(|other| other < score);
        let not_above = sorted.partition_point(|other| other <= score);
        (below + not_above) as f64 / (2 * sorted.len()) as f64
    };
    these.iter().map(place).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Unbiased; 0 of one value.
fn variance(values: &[f64]) -> f64 {
    let mean = mean(values);
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    squares / (values.len().max(2) - 1) as f64
}

fn wilson(value: f64, count: f64) -> Estimate {
    let z2 = Z95 * Z95;
    let center = (value + z2 / (2.0 * count)) / (1.0 + z2 / count);
    let half = Z95 / (1.0 + z2 / count)
        * (value * (1.0 - value) / count + z2 / (4.0 * count * count)).sqrt();
    Estimate {
        value,
        low: (center - half).max(0.0),
        high: (center + half).min(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auc_counts_pairs_in_order() {
        assert_eq!(auc(&[2.0, 3.0], &[0.0, 1.0]).value, 1.0);
        assert_eq!(auc(&[0.0], &[1.0, 2.0]).value, 0.0);
        assert_eq!(auc(&[1.0, 3.0], &[1.0, 2.0]).value, 0.625);
    }

    #[test]
    fn a_perfect_ranking_of_few_is_no_certainty() {
        let few = auc(&[2.0, 3.0], &[0.0, 1.0]);
        assert!(few.low < 0.5 && few.high == 1.0, "{few:?}");
        let high: Vec<f64> = (100..200).map(f64::from).collect();
        let low: Vec<f64> = (0..100).map(f64::from).collect();
        assert!(auc(&high, &low).low > 0.95);
    }

    #[test]
    fn delongs_variance_is_what_pen_and_paper_give() {
        // Placements: positives 0.5, 1 (variance 1/8), negatives 0.5, 0 (variance 1/8):
        // variance 1/16 + 1/16 = 1/8, AUC 0.75, so 0.75 · 0.25 / (1/8) = 1.5 examples.
        let estimate = auc(&[1.0, 3.0], &[2.0, 0.0]);
        let expected = wilson(0.75, 1.5);
        assert_eq!(estimate, expected);
    }

    #[test]
    fn wilsons_interval_is_the_textbooks() {
        // 8 of 10: 0.4902 to 0.9433.
        let share = proportion(8, 10);
        assert!((share.low - 0.4902).abs() < 1e-4 && (share.high - 0.9433).abs() < 1e-4);
    }

    #[test]
    fn spreads_use_nearest_ranks() {
        let values: Vec<f64> = (1..=20).map(f64::from).collect();
        let spread = Spread::of(&values);
        assert_eq!((spread.trials, spread.p95, spread.max), (20, 19.0, 20.0));
        assert_eq!(Spread::of(&[]), Spread::default());
    }
}
