//! One training and its test: which examples are held out, labels in any order, and what
//! the directions found are worth.

use std::collections::HashMap;

use ndarray::{Array2, ArrayView2, Axis};
use rand::{RngExt, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::{
    Examples,
    statistics::{Estimate, auc},
};

/// Examples with the same activation, in the order of the data: copies of one text, say. One of
/// them in training would tell the label of another in the test, so that they stay together.
type Group = Vec<usize>;

/// Which examples train and which test; in both, in the order of the data.
#[derive(Debug)]
pub(super) struct Split {
    pub(super) train: Vec<usize>,
    pub(super) test: Vec<usize>,
    /// Those of each part, by their first examples.
    groups: [Vec<Group>; 2],
}

impl Split {
    /// Holds out `share` of each label's examples, or a little more where groups are large; at
    /// least one group, and keeps at least one. A group counts for the label of its first
    /// example. An error is a label that has fewer than two groups.
    pub(super) fn stratified(
        examples: Examples<'_>,
        share: f64,
        rng: &mut ChaCha8Rng,
    ) -> Result<Self, usize> {
        let mut by_label: Vec<Vec<Group>> = vec![Vec::new(); examples.label_count];
        for group in groups(examples) {
            by_label[examples.labels[group[0]] as usize].push(group);
        }
        let (mut train, mut test) = (Vec::new(), Vec::new());
        for (label, mut members) in by_label.into_iter().enumerate() {
            if members.len() < 2 {
                return Err(label);
            }
            members.shuffle(rng);
            let count = members.iter().map(Vec::len).sum::<usize>();
            let wanted = ((count as f64 * share).round() as usize).max(1);
            let mut held_out = 0;
            let kept = members.split_off(members.len() - 1);
            for group in members {
                if held_out < wanted {
                    held_out += group.len();
                    test.push(group);
                } else {
                    train.push(group);
                }
            }
            train.extend(kept);
        }
        let rows = |part: &mut Vec<Group>| {
            part.sort_unstable();
            let mut rows: Vec<usize> = part.iter().flatten().copied().collect();
            rows.sort_unstable();
            rows
        };
        Ok(Self {
            train: rows(&mut train),
            test: rows(&mut test),
            groups: [train, test],
        })
    }

    /// Labels of no meaning: those of the groups, shuffled within each part. If no two examples
    /// are the same, each part keeps its counts.
    pub(super) fn permuted(&self, labels: &[u32], rng: &mut ChaCha8Rng) -> Vec<u32> {
        let mut permuted = labels.to_vec();
        for part in &self.groups {
            let mut shuffled: Vec<u32> = part.iter().map(|group| labels[group[0]]).collect();
            shuffled.shuffle(rng);
            for (group, label) in part.iter().zip(shuffled) {
                for &i in group {
                    permuted[i] = label;
                }
            }
        }
        permuted
    }
}

/// All examples, by their first.
fn groups(examples: Examples<'_>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut known: HashMap<Vec<u32>, usize> = HashMap::new();
    for (i, row) in examples.values.chunks_exact(examples.width).enumerate() {
        let bits = row.iter().map(|value| value.to_bits()).collect();
        let group = *known.entry(bits).or_insert(groups.len());
        match groups.get_mut(group) {
            Some(group) => group.push(i),
            None => groups.push(vec![i]),
        }
    }
    groups
}

/// What held-out examples say of one direction per label.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Examples whose largest score is their own label's.
    pub(super) right: usize,
    /// Of each label.
    pub(super) aucs: Vec<Estimate>,
}

/// Scores `test` examples; row c of `directions` is label c's.
pub(super) fn evaluate(
    test: ArrayView2<'_, f64>,
    labels: &[u32],
    directions: ArrayView2<'_, f64>,
) -> Outcome {
    let scores = test.dot(&directions.t());
    let right = scores.outer_iter().zip(labels).filter(|(row, label)| {
        let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        best.is_some_and(|(c, _)| c == **label as usize)
    });
    let aucs = scores.axis_iter(Axis(1)).enumerate().map(|(c, column)| {
        let of = |own: bool| -> Vec<f64> {
            let pairs = column.iter().zip(labels);
            pairs
                .filter(|(_, label)| (**label as usize == c) == own)
                .map(|(score, _)| *score)
                .collect()
        };
        auc(&of(true), &of(false))
    });
    Outcome {
        right: right.count(),
        aucs: aucs.collect(),
    }
}

/// `count` directions, all equally likely.
pub(super) fn random_directions(count: usize, width: usize, rng: &mut ChaCha8Rng) -> Array2<f64> {
    let normal = |rng: &mut ChaCha8Rng| {
        // Box and Muller; 1 − u is never 0.
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
    };
    Array2::from_shape_simple_fn((count, width), || normal(rng))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn counts(labels: &[u32], indices: &[usize]) -> [usize; 3] {
        [0, 1, 2].map(|c| indices.iter().filter(|&&i| labels[i] == c).count())
    }

    fn split(values: &[f32], labels: &[u32], rng: &mut ChaCha8Rng) -> Result<Split, usize> {
        let examples = Examples {
            values,
            width: 1,
            labels,
            label_count: 3,
        };
        Split::stratified(examples, 0.2, rng)
    }

    #[test]
    fn every_label_is_in_both_parts_and_permutations_keep_the_counts() {
        let labels: Vec<u32> = [0; 10].into_iter().chain([1; 5]).chain([2; 100]).collect();
        let values: Vec<f32> = (0_u16..115).map(f32::from).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let split = split(&values, &labels, &mut rng).expect("split");
        assert_eq!(counts(&labels, &split.test), [2, 1, 20]);
        assert_eq!(counts(&labels, &split.train), [8, 4, 80]);
        let permuted = split.permuted(&labels, &mut rng);
        assert_eq!(counts(&permuted, &split.test), [2, 1, 20]);
        assert_eq!(counts(&permuted, &split.train), [8, 4, 80]);
        assert_ne!(permuted, labels);
    }

    #[test]
    fn equal_examples_stay_together_and_are_permuted_together() {
        // Each value one to four times, here and there; the same value has the same label.
        let values: Vec<f32> = (0_u16..300).map(|i| f32::from(i * i % 121)).collect();
        let labels: Vec<u32> = values.iter().map(|value| *value as u32 % 3).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let split = split(&values, &labels, &mut rng).expect("split");
        let part = |rows: &[usize]| rows.iter().map(|&i| values[i]).collect::<Vec<_>>();
        let (train, test) = (part(&split.train), part(&split.test));
        assert!(!test.iter().any(|value| train.contains(value)));
        assert_eq!(train.len() + test.len(), 300);
        assert!((60..90).contains(&test.len()), "{}", test.len());
        let permuted = split.permuted(&labels, &mut rng);
        let one = |value: &f32| values.iter().position(|other| other == value).expect("it");
        assert!((0..300).all(|i| permuted[i] == permuted[one(&values[i])]));
        assert_ne!(permuted, labels);
    }

    #[test]
    fn a_label_without_two_of_its_own_is_told() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let labels = [0, 0, 1, 1, 2, 2];
        assert!(split(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], &labels, &mut rng).is_ok());
        let same = split(&[0.0, 1.0, 2.0, 2.0, 4.0, 5.0], &labels, &mut rng);
        assert_eq!(same.expect_err("one"), 1);
        let taken = split(&[0.0, 1.0, 2.0, 3.0, 0.0, 5.0], &labels, &mut rng);
        assert_eq!(taken.expect_err("another's"), 2);
    }

    #[test]
    fn scores_decide_the_label() {
        let test = ndarray::array![[1.0, 0.0], [0.0, 1.0], [0.9, 1.0]];
        let outcome = evaluate(test.view(), &[0, 1, 0], Array2::eye(2).view());
        assert_eq!(outcome.right, 2);
        assert_eq!(outcome.aucs[0].value, 1.0);
        assert_eq!(outcome.aucs[1].value, 0.75);
    }
}
