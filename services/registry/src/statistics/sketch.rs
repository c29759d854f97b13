//! Percentiles of positive numbers from a histogram whose bins grow with the numbers.

/// Relative error of a percentile: 2 %, with room for rounding.
const ERROR: f64 = 0.0195;
/// Bins of one sketch: they cover a factor of 20,000 below the largest number.
const BINS_MAX: i32 = 256;

/// Counts by size. A bin holds the numbers in (γ^(i−1), γ^i] with γ = (1 + ε) / (1 − ε), so
/// that 2 γ^i / (γ + 1) is within a share ε of each of them (Masson, Rim and Lee 2019,
/// "DDSketch"). Numbers below the smallest bin are counted in it. Bins are the same
/// everywhere and do not depend on the order of the numbers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sketch {
    /// Number of the first bin.
    first: i32,
    counts: Vec<u32>,
}

impl Sketch {
    /// Counts a positive, finite number.
    pub fn add(&mut self, value: f32) {
        let bin = bin(value);
        if self.counts.is_empty() {
            self.first = bin;
        }
        let last = self.first + self.counts.len().max(1) as i32 - 1;
        let lowest = bin.max(last) - (BINS_MAX - 1);
        self.raise(lowest);
        let bin = bin.max(lowest);
        // Room is taken exactly: a feature's spread is settled early.
        if bin < self.first {
            let more = (self.first - bin) as usize;
            let mut grown = Vec::with_capacity(more + self.counts.len());
            grown.resize(more, 0);
            grown.extend_from_slice(&self.counts);
            (self.first, self.counts) = (bin, grown);
        }
        let place = (bin - self.first) as usize;
        if place >= self.counts.len() {
            self.counts.reserve_exact(place + 1 - self.counts.len());
            self.counts.resize(place + 1, 0);
        }
        self.counts[place] += 1;
    }

    /// Counts what is in lower bins in this one.
    fn raise(&mut self, lowest: i32) {
        if lowest <= self.first {
            return;
        }
        let excess = ((lowest - self.first) as usize).min(self.counts.len());
        let small = self.counts.drain(..excess).sum::<u32>();
        match self.counts.first_mut() {
            Some(first) => *first += small,
            None => self.counts.push(small),
        }
        self.first = lowest;
    }

    /// The number at a share of all, by nearest rank; 0 if there are none.
    pub fn percentile(&self, share: f64) -> f32 {
        let total: u64 = self.counts.iter().map(|&count| u64::from(count)).sum();
        let rank = ((share * total as f64).ceil() as u64).max(1);
        let mut below = 0;
        for (bin, &count) in (self.first..).zip(&self.counts) {
            below += u64::from(count);
            if below >= rank {
                return (2.0 * gamma().powi(bin) / (gamma() + 1.0)) as f32;
            }
        }
        0.0
    }
}

fn gamma() -> f64 {
    (1.0 + ERROR) / (1.0 - ERROR)
}

/// The smallest i with `value` ≤ γ^i.
fn bin(value: f32) -> i32 {
    (f64::from(value).ln() / gamma().ln()).ceil() as i32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sketch(values: &[f32]) -> Sketch {
        let mut sketch = Sketch::default();
        values.iter().for_each(|&value| sketch.add(value));
        sketch
    }

    fn exact(values: &[f32], share: f64) -> f32 {
        let mut sorted = values.to_vec();
        sorted.sort_by(f32::total_cmp);
        let rank = (share * values.len() as f64).ceil() as usize;
        sorted[rank.max(1) - 1]
    }

    proptest! {
        #[test]
        fn percentiles_are_within_two_percent(
            scale in -30.0_f32..30.0,
            exponents in prop::collection::vec(0.0_f32..9.0, 1..400),
        ) {
            let values: Vec<f32> = exponents.iter().map(|e| (scale + e).exp()).collect();
            let found = sketch(&values);
            for share in [0.0, 0.01, 0.5, 0.9, 0.99, 1.0] {
                let (own, true_one) = (found.percentile(share), exact(&values, share));
                prop_assert!((own / true_one - 1.0).abs() <= 0.02, "{share}: {own} {true_one}");
            }
        }

        #[test]
        fn order_does_not_matter(mut values in prop::collection::vec(1e-12_f32..1e12, 1..200)) {
            let forwards = sketch(&values);
            values.reverse();
            prop_assert_eq!(forwards, sketch(&values));
        }
    }

    #[test]
    fn room_is_bounded_and_small_numbers_are_not_lost() {
        let mut found = sketch(&[f32::MIN_POSITIVE, 1e-20, f32::MAX, 1.0]);
        for _ in 0..1000 {
            found.add(f32::MAX);
        }
        assert!(found.counts.len() <= BINS_MAX as usize);
        assert_eq!(found.counts.iter().sum::<u32>(), 1004);
        let smallest = found.percentile(0.0);
        assert!((f32::MAX / 30_000.0..f32::MAX / 10_000.0).contains(&smallest));
        assert_eq!(Sketch::default().percentile(0.5), 0.0);
    }
}
