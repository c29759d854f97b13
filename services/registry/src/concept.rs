//! Concept activation vectors from labelled activations, and whether they are more than
//! noise. Numbers only: no files, no wire, no store.
//!
//! A CAV is trained on all examples. What is said of it comes from directions trained in
//! the same way on a part of them and tested on the rest:
//!
//! - the accuracy of all labels together, and each label's AUC, with intervals;
//! - the same of trainings on permuted labels: what the recipe makes of no signal at all;
//! - AUCs of random directions: what any direction gets, because activations spread more
//!   along some axes than along others.
//!
//! Equal activations are never in both parts, and permuted labels are the same for all of them:
//! texts that are in the data several times would let noise pass for a signal.

// Array views are references already.
#![allow(clippy::needless_pass_by_value)]

mod cholesky;
mod newton;
mod statistics;
mod trial;

use ndarray::{Array1, Array2, ArrayView2, Axis};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

pub use statistics::{Estimate, Spread};
use statistics::{chance_error, proportion};
use trial::{Outcome, Split, evaluate, random_directions};

/// Fewest examples of a label: one to test on, and some to train on.
pub const EXAMPLES_MIN: usize = 5;
/// Fewest trials that can put a p-value below 0.05, however many labels there are.
pub const NULL_TRIALS_MIN: u32 = 20;
/// p-value above which a concept is called noise.
const SIGNIFICANT: f64 = 0.05;
const RANDOM_DIRECTIONS: usize = 100;

/// How a direction is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// L2-regularised squared hinge, C = 1.
    Svm,
    /// Mean of the label's examples − mean of the others.
    MeanDifference,
    /// L2-regularised logistic loss, C = 1.
    Logistic,
}

/// How to train and test.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Config {
    /// How a direction is found.
    pub method: Method,
    /// Share of each label's examples to test on.
    pub held_out: f64,
    /// Trainings on permuted labels.
    pub null_trials: u32,
    /// Of everything random.
    pub seed: u64,
}

/// Labelled activations.
#[derive(Debug, Clone, Copy)]
pub struct Examples<'a> {
    /// Row-major, a row of `width` for each label; all finite.
    pub values: &'a [f32],
    /// Components of a row.
    pub width: usize,
    /// Of each row, below `label_count`; of each at least [`EXAMPLES_MIN`], not all the same.
    pub labels: &'a [u32],
    /// How many labels there are; at least two.
    pub label_count: usize,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Training {
    /// One per label.
    pub concepts: Vec<Concept>,
    /// Held-out examples.
    pub held_out: usize,
    /// Share of held-out examples whose best label is theirs.
    pub accuracy: Estimate,
    /// Share of the most frequent label among them.
    pub chance_accuracy: f64,
    /// Accuracies with permuted labels.
    pub null_accuracy: Spread,
}

/// One label's direction.
#[derive(Debug, Clone, PartialEq)]
pub struct Concept {
    /// Of norm 1, from all examples.
    pub direction: Vec<f64>,
    /// Examples of the label.
    pub positives: usize,
    /// Of these, held out.
    pub held_out_positives: usize,
    /// Held-out AUC.
    pub auc: Estimate,
    /// With permuted labels.
    pub null_auc: Spread,
    /// Of random directions.
    pub random_auc: Spread,
    /// Probability of such an AUC by chance, corrected for the number of labels.
    pub p_value: Option<f64>,
    /// Not told from noise.
    pub noise: bool,
}

/// Why there are no directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// `stopped` said so.
    Stopped,
    /// A label's examples and the others have the same mean, or numbers too large for f64.
    NoDirection {
        /// The label.
        label: usize,
    },
    /// A label's examples are all the same, or the same as others': none can be held out.
    TooAlike {
        /// The label.
        label: usize,
    },
}

/// Trains and tests. Asks `stopped` now and then whether to give up.
pub fn train(
    examples: Examples<'_>,
    config: &Config,
    stopped: &(dyn Fn() -> bool + Sync),
) -> Result<Training, Failure> {
    let shape = (examples.labels.len(), examples.width);
    let values: Vec<f64> = examples.values.iter().map(|&v| f64::from(v)).collect();
    let rows =
        Array2::from_shape_vec(shape, values).map_err(|_| Failure::NoDirection { label: 0 })?;
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let split = Split::stratified(examples, config.held_out, &mut rng)
        .map_err(|label| Failure::TooAlike { label })?;
    let bench = Bench {
        method: config.method,
        label_count: examples.label_count,
        train: rows.select(Axis(0), &split.train),
        test: rows.select(Axis(0), &split.test),
        split,
        stopped,
    };
    let directions = fit_all(rows.view(), examples.labels, &bench)?;
    let outcome = bench.run(examples.labels)?;
    let permuted: Vec<Vec<u32>> = (0..config.null_trials)
        .map(|_| bench.split.permuted(examples.labels, &mut rng))
        .collect();
    let nulls: Vec<Outcome> = permuted
        .par_iter()
        .map(|labels| bench.run(labels))
        .collect::<Result<_, _>>()?;
    let random = random_directions(RANDOM_DIRECTIONS, examples.width, &mut rng);
    let random = bench.random_aucs(examples.labels, &random);
    Ok(summarise(
        &bench,
        examples.labels,
        directions,
        &Trials {
            outcome,
            nulls,
            random,
        },
    ))
}

/// The two parts of the examples.
struct Bench<'a> {
    method: Method,
    label_count: usize,
    split: Split,
    train: Array2<f64>,
    test: Array2<f64>,
    stopped: &'a (dyn Fn() -> bool + Sync),
}

/// What was found on the held-out part.
struct Trials {
    outcome: Outcome,
    nulls: Vec<Outcome>,
    /// By label.
    random: Vec<Vec<f64>>,
}

impl Bench<'_> {
    /// Trains on one part and tests on the other.
    fn run(&self, labels: &[u32]) -> Result<Outcome, Failure> {
        let directions = fit_all(self.train.view(), &pick(labels, &self.split.train), self)?;
        Ok(evaluate(
            self.test.view(),
            &pick(labels, &self.split.test),
            directions.view(),
        ))
    }

    /// Held-out AUCs of directions, each turned to where a label's training examples point.
    fn random_aucs(&self, labels: &[u32], directions: &Array2<f64>) -> Vec<Vec<f64>> {
        let train = self.train.dot(&directions.t());
        let test = self.test.dot(&directions.t());
        let train_labels = pick(labels, &self.split.train);
        let test_labels = pick(labels, &self.split.test);
        let auc_of = |scores: &Array2<f64>, labels: &[u32], label: usize, direction: usize| {
            let column = scores.column(direction);
            let (own, others): (Vec<_>, Vec<_>) = column
                .iter()
                .zip(labels)
                .partition(|(_, l)| **l as usize == label);
            let scores =
                |part: Vec<(&f64, &u32)>| part.into_iter().map(|(s, _)| *s).collect::<Vec<_>>();
            statistics::auc(&scores(own), &scores(others)).value
        };
        (0..self.label_count)
            .into_par_iter()
            .map(|label| {
                let oriented = |direction| {
                    let auc = auc_of(&test, &test_labels, label, direction);
                    let along = auc_of(&train, &train_labels, label, direction) >= 0.5;
                    if along { auc } else { 1.0 - auc }
                };
                (0..directions.nrows()).map(oriented).collect()
            })
            .collect()
    }
}

fn pick(labels: &[u32], indices: &[usize]) -> Vec<u32> {
    indices.iter().map(|&i| labels[i]).collect()
}

/// A direction of norm 1 per label, one a row.
fn fit_all(
    rows: ArrayView2<'_, f64>,
    labels: &[u32],
    bench: &Bench<'_>,
) -> Result<Array2<f64>, Failure> {
    let fitted: Vec<Array1<f64>> = (0..bench.label_count)
        .into_par_iter()
        .map(|label| {
            let positive: Vec<bool> = labels.iter().map(|&l| l as usize == label).collect();
            let direction = fit(rows, &positive, bench.method, bench.stopped);
            let direction = direction.and_then(unit);
            direction.ok_or_else(|| match (bench.stopped)() {
                true => Failure::Stopped,
                false => Failure::NoDirection { label },
            })
        })
        .collect::<Result<_, _>>()?;
    let width = rows.ncols();
    Ok(Array2::from_shape_fn((fitted.len(), width), |(c, i)| {
        fitted[c][i]
    }))
}

fn fit(
    rows: ArrayView2<'_, f64>,
    positive: &[bool],
    method: Method,
    stopped: &dyn Fn() -> bool,
) -> Option<Array1<f64>> {
    match method {
        Method::Svm => newton::minimise(rows, positive, newton::Loss::SquaredHinge, stopped),
        Method::Logistic => newton::minimise(rows, positive, newton::Loss::Logistic, stopped),
        Method::MeanDifference => {
            let own = positive.iter().filter(|&&p| p).count() as f64;
            let others = positive.len() as f64 - own;
            let weight = |&p: &bool| if p { 1.0 / own } else { -1.0 / others };
            let weights: Array1<f64> = positive.iter().map(weight).collect();
            Some(rows.t().dot(&weights))
        }
    }
}

fn unit(direction: Array1<f64>) -> Option<Array1<f64>> {
    let norm = direction.dot(&direction).sqrt();
    (norm > 0.0 && norm.is_finite()).then(|| direction / norm)
}

fn summarise(
    bench: &Bench<'_>,
    labels: &[u32],
    directions: Array2<f64>,
    trials: &Trials,
) -> Training {
    let held_out = pick(labels, &bench.split.test);
    let count =
        |labels: &[u32], label: usize| labels.iter().filter(|&&l| l as usize == label).count();
    let errors: Vec<f64> = (0..bench.label_count)
        .map(|label| {
            let positives = count(&held_out, label);
            chance_error(positives, held_out.len() - positives)
        })
        .collect();
    // In units of the standard error the null AUCs of all labels are of one distribution.
    let standardised = |aucs: &[Estimate]| -> Vec<f64> {
        aucs.iter()
            .zip(&errors)
            .map(|(auc, error)| (auc.value - 0.5) / error)
            .collect()
    };
    let null: Vec<f64> = trials
        .nulls
        .iter()
        .flat_map(|null| standardised(&null.aucs))
        .collect();
    let observed = standardised(&trials.outcome.aucs);
    let p_value = |label: usize| {
        let above = null.iter().filter(|&&z| z >= observed[label]).count();
        let share = (1 + above) as f64 / (1 + null.len()) as f64;
        (!null.is_empty()).then(|| (share * bench.label_count as f64).min(1.0))
    };
    let concepts = directions
        .outer_iter()
        .enumerate()
        .map(|(label, direction)| {
            let auc = trials.outcome.aucs[label];
            let p_value = p_value(label);
            let null_aucs: Vec<f64> = trials
                .nulls
                .iter()
                .map(|null| null.aucs[label].value)
                .collect();
            Concept {
                direction: direction.to_vec(),
                positives: count(labels, label),
                held_out_positives: count(&held_out, label),
                auc,
                null_auc: Spread::of(&null_aucs),
                random_auc: Spread::of(&trials.random[label]),
                p_value,
                noise: auc.low <= 0.5 || p_value.is_some_and(|p| p > SIGNIFICANT),
            }
        });
    let accuracy = |outcome: &Outcome| proportion(outcome.right, held_out.len());
    let null_accuracies: Vec<f64> = trials
        .nulls
        .iter()
        .map(|null| accuracy(null).value)
        .collect();
    let most = (0..bench.label_count)
        .map(|label| count(&held_out, label))
        .max();
    Training {
        concepts: concepts.collect(),
        held_out: held_out.len(),
        accuracy: accuracy(&trials.outcome),
        chance_accuracy: most.unwrap_or(0) as f64 / held_out.len() as f64,
        null_accuracy: Spread::of(&null_accuracies),
    }
}
