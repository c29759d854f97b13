//! CAVs trained from labelled activations.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use sha2::{Digest, Sha256};
use steering_proto::{
    Invalid,
    cav_training::{CavMethod, CavTrainingConfig, LabelledActivation},
    payload::hex,
};
use tokio::sync::SemaphorePermit;

use super::Registry;
use crate::{
    blocking::blocking,
    cavs::{CavContext, check_name, record},
    concept::{self, Concept, EXAMPLES_MIN, Examples, Failure, Method, Training},
    error::{Error, Result},
    store::{CavRecord, CavTraining},
};

/// Trainings at once: each holds up to 1 GB and uses all cores.
pub(super) const TRAININGS_MAX: usize = 1;
/// Most numbers of all examples together; in f64, and once more split in two: 1 GB.
const VALUES_MAX: usize = 1 << 26;
const LABELS_MAX: usize = 1000;

/// CAVs that were trained, as they are stored.
#[derive(Debug)]
pub struct TrainedCavs {
    /// By label, without numbers.
    pub cavs: Vec<CavRecord>,
    /// Names of those that were there before and keep another training.
    pub trained_before: Vec<String>,
}

/// Labelled activations, as they arrive.
#[derive(Debug, Default)]
pub struct LabelledActivations {
    values: Vec<f32>,
    width: usize,
    /// In order of arrival, numbers of `names`.
    labels: Vec<u32>,
    /// Each label's number.
    names: BTreeMap<String, u32>,
    hasher: Sha256,
}

impl LabelledActivations {
    /// Adds one.
    pub fn push(&mut self, example: LabelledActivation) -> Result<(), Invalid> {
        let LabelledActivation { label, values } = example;
        if self.labels.is_empty() {
            self.width = values.len();
        }
        if values.len() != self.width {
            let text = format!(
                "has {} components; the examples before have {}",
                values.len(),
                self.width
            );
            return Err(Invalid::field("values", text));
        }
        if self.values.len() + values.len() > VALUES_MAX {
            let text = format!("makes more than {VALUES_MAX} numbers in all; send fewer examples");
            return Err(Invalid::field("values", text));
        }
        self.hasher.update((label.len() as u64).to_le_bytes());
        self.hasher.update(&label);
        for value in &values {
            self.hasher.update(value.to_le_bytes());
        }
        let next = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        let number = match self.names.get(&label) {
            Some(&number) => number,
            None if self.names.len() == LABELS_MAX => {
                let text =
                    format!("{label:?} is one label more than the {LABELS_MAX} that are allowed");
                return Err(Invalid::field("label", text));
            }
            None => {
                check_name(&label).map_err(|invalid| renamed(&invalid, "label"))?;
                self.names.insert(label, next);
                next
            }
        };
        self.labels.push(number);
        self.values.extend(values);
        Ok(())
    }

    /// Labels have enough examples, and there is something to tell apart.
    fn check(&self) -> Result<(), Invalid> {
        if self.names.len() < 2 {
            let text = format!("have {} labels; at least two are needed", self.names.len());
            return Err(Invalid::field("example", text));
        }
        let mut counts = vec![0; self.names.len()];
        for &label in &self.labels {
            counts[label as usize] += 1;
        }
        let few = self
            .names
            .iter()
            .find(|(_, number)| counts[**number as usize] < EXAMPLES_MIN);
        few.map_or(Ok(()), |(name, &number)| {
            let text = format!(
                "has {} examples of label {name:?}; at least {EXAMPLES_MIN} are needed",
                counts[number as usize]
            );
            Err(Invalid::field("example", text))
        })
    }
}

fn renamed(invalid: &Invalid, field: &str) -> Invalid {
    Invalid::field(field, invalid.violations[0].description.clone())
}

impl Registry {
    /// Leave to send labelled activations. Errors at once while others do.
    pub fn admit_training(&self) -> Result<SemaphorePermit<'_>> {
        let busy = || {
            Error::Busy("CAVs are being trained already; one training runs at a time".to_owned())
        };
        self.trainings.try_acquire().map_err(|_| busy())
    }

    /// Trains a CAV per label and stores them, all or none. Gives up soon after the caller has.
    pub async fn train_cavs(
        &self,
        config: CavTrainingConfig,
        data: LabelledActivations,
    ) -> Result<TrainedCavs> {
        data.check()?;
        let stop = StopOnDrop(Arc::default());
        let stopped = Arc::clone(&stop.0);
        let records = blocking(move || {
            let settings = concept::Config {
                method: method(config.method),
                held_out: config.held_out,
                null_trials: config.null_trials,
                seed: config.seed,
            };
            let examples = Examples {
                values: &data.values,
                width: data.width,
                labels: &data.labels,
                label_count: data.names.len(),
            };
            let names: Vec<&str> = names_by_number(&data.names);
            let trained = concept::train(examples, &settings, &|| stopped.load(Ordering::Relaxed))
                .map_err(|failure| failed(failure, &names))?;
            records(&config, data, trained)
        })
        .await?;
        let cavs = self.add_cavs(&records).await?;
        let differs =
            |stored: &CavRecord, made: &CavRecord| match (&stored.training, &made.training) {
                (Some(stored), Some(made)) => !made.repeats(stored),
                _ => false,
            };
        let pairs = cavs.iter().zip(&records);
        let trained_before = pairs.filter(|(stored, made)| differs(stored, made));
        Ok(TrainedCavs {
            trained_before: trained_before
                .map(|(stored, _)| stored.name.clone())
                .collect(),
            cavs,
        })
    }
}

/// Tells a training whose caller has gone to stop.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn names_by_number(names: &BTreeMap<String, u32>) -> Vec<&str> {
    let mut ordered = vec![""; names.len()];
    for (name, &number) in names {
        ordered[number as usize] = name;
    }
    ordered
}

fn failed(failure: Failure, names: &[&str]) -> Error {
    match failure {
        Failure::Stopped => Error::Cancelled,
        Failure::NoDirection { label } => Invalid::field(
            "example",
            format!(
                "activations of label {:?} cannot be told from the others: no direction was found",
                names[label]
            ),
        )
        .into(),
        Failure::TooAlike { label } => Invalid::field(
            "example",
            format!(
                "has fewer than two different activations of label {:?} (one that several labels have \
                 counts for the first): none can be held out",
                names[label]
            ),
        )
        .into(),
    }
}

fn method(method: CavMethod) -> Method {
    match method {
        CavMethod::Svm => Method::Svm,
        CavMethod::MeanDifference => Method::MeanDifference,
        CavMethod::Logistic => Method::Logistic,
    }
}

fn records(
    config: &CavTrainingConfig,
    data: LabelledActivations,
    trained: Training,
) -> Result<Vec<CavRecord>> {
    let activations_digest = hex(&data.hasher.finalize());
    let example_count = data.labels.len() as u64;
    let context = CavContext {
        hook: None,
        model_id: config.model_id.clone(),
        origin: config.source.origin.clone(),
    };
    let Training {
        concepts,
        held_out,
        accuracy,
        chance_accuracy,
        null_accuracy,
    } = trained;
    let mut concepts: Vec<Option<Concept>> = concepts.into_iter().map(Some).collect();
    let mut records = Vec::with_capacity(concepts.len());
    for (name, number) in data.names {
        let Some(concept) = concepts[number as usize].take() else {
            continue;
        };
        let values = concept
            .direction
            .iter()
            .map(|&value| value as f32)
            .collect();
        let mut record = record(name, vec![(config.hook, values)], &context)?;
        record.training = Some(CavTraining {
            method: config.method,
            source: config.source.clone(),
            activations_digest: activations_digest.clone(),
            seed: config.seed,
            example_count,
            positive_count: concept.positives as u64,
            held_out_count: held_out as u64,
            held_out_positive_count: concept.held_out_positives as u64,
            accuracy,
            chance_accuracy,
            null_accuracy,
            auc: concept.auc,
            null_auc: concept.null_auc,
            random_direction_auc: concept.random_auc,
            p_value: concept.p_value,
            noise: concept.noise,
        });
        records.push(record);
    }
    Ok(records)
}
