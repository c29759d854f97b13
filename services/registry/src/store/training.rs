//! How a CAV was trained, as it is kept: JSON whose keys are those of the contract.

use serde::{Deserialize, Serialize};
use steering_proto::{
    Invalid,
    cav_training::{CavDataSource, CavMethod},
    invalid::{required, short},
    v1,
};

use crate::concept::{Estimate, Spread};

const DIGEST_LEN_MAX: usize = 64;

/// See [`v1::CavTraining`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CavTraining {
    /// How it was found.
    #[serde(with = "Method")]
    pub method: CavMethod,
    /// What the client said about the data.
    #[serde(with = "Source")]
    pub source: CavDataSource,
    /// SHA-256 (hex) of labels and activations.
    pub activations_digest: String,
    /// Seed of everything random.
    pub seed: u64,
    /// Examples of all labels.
    pub example_count: u64,
    /// Examples of this label.
    pub positive_count: u64,
    /// Held-out examples of all labels.
    pub held_out_count: u64,
    /// Held-out examples of this label.
    pub held_out_positive_count: u64,
    /// Of all labels together.
    #[serde(with = "EstimateJson")]
    pub accuracy: Estimate,
    /// Of naming the most frequent label.
    pub chance_accuracy: f64,
    /// With permuted labels.
    #[serde(with = "SpreadJson")]
    pub null_accuracy: Spread,
    /// Of this label.
    #[serde(with = "EstimateJson")]
    pub auc: Estimate,
    /// With permuted labels.
    #[serde(with = "SpreadJson")]
    pub null_auc: Spread,
    /// Of random directions.
    #[serde(with = "SpreadJson")]
    pub random_direction_auc: Spread,
    /// Of such an AUC by chance.
    pub p_value: Option<f64>,
    /// Not told from noise.
    pub noise: bool,
}

impl CavTraining {
    /// Whether another is of the same examples, split and trials, and so says the same.
    pub fn repeats(&self, other: &Self) -> bool {
        let recipe = |it: &Self| {
            let trials = (it.null_auc.trials, it.held_out_count, it.seed);
            (it.method, it.activations_digest.clone(), trials)
        };
        recipe(self) == recipe(other) && self.source == other.source
    }
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "CavMethod", rename_all = "snake_case")]
enum Method {
    Svm,
    MeanDifference,
    Logistic,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "CavDataSource")]
struct Source {
    origin: String,
    data_digest: String,
    model_digest: String,
    max_tokens: u32,
    skip_tokens: u32,
    text_count: u64,
    dropped_count: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Estimate")]
struct EstimateJson {
    value: f64,
    low: f64,
    high: f64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Spread")]
struct SpreadJson {
    trials: u32,
    mean: f64,
    p95: f64,
    max: f64,
}

impl TryFrom<v1::CavTraining> for CavTraining {
    type Error = Invalid;

    /// As an export says it.
    fn try_from(wire: v1::CavTraining) -> Result<Self, Invalid> {
        let v1::CavTraining {
            method,
            source,
            activations_digest,
            seed,
            example_count,
            positive_count,
            held_out_count,
            held_out_positive_count,
            accuracy,
            chance_accuracy,
            null_accuracy,
            auc,
            null_auc,
            random_direction_auc,
            p_value,
            noise,
        } = wire;
        short(&activations_digest, "activations_digest", DIGEST_LEN_MAX)?;
        let source = CavDataSource::try_from(required(source, "source")?);
        Ok(Self {
            method: CavMethod::from_wire(method, "method")?,
            source: source.map_err(|invalid| invalid.within("source"))?,
            activations_digest,
            seed,
            example_count,
            positive_count,
            held_out_count,
            held_out_positive_count,
            accuracy: estimate(accuracy, "accuracy")?,
            chance_accuracy: finite(chance_accuracy, "chance_accuracy")?,
            null_accuracy: spread(null_accuracy, "null_accuracy")?,
            auc: estimate(auc, "auc")?,
            null_auc: spread(null_auc, "null_auc")?,
            random_direction_auc: spread(random_direction_auc, "random_direction_auc")?,
            p_value: p_value.map(|p| finite(p, "p_value")).transpose()?,
            noise,
        })
    }
}

fn estimate(wire: Option<v1::Estimate>, field: &str) -> Result<Estimate, Invalid> {
    let v1::Estimate { value, low, high } = required(wire, field)?;
    Ok(Estimate {
        value: finite(value, field)?,
        low: finite(low, field)?,
        high: finite(high, field)?,
    })
}

fn spread(wire: Option<v1::Spread>, field: &str) -> Result<Spread, Invalid> {
    let v1::Spread {
        trial_count,
        mean,
        p95,
        max,
    } = required(wire, field)?;
    Ok(Spread {
        trials: trial_count,
        mean: finite(mean, field)?,
        p95: finite(p95, field)?,
        max: finite(max, field)?,
    })
}

fn finite(value: f64, field: &str) -> Result<f64, Invalid> {
    if value.is_finite() {
        return Ok(value);
    }
    Err(Invalid::field(
        field,
        format!("is {value}; must be a finite number"),
    ))
}

impl CavTraining {
    /// The wire's message.
    pub fn into_wire(self) -> v1::CavTraining {
        let Self {
            method,
            source,
            activations_digest,
            seed,
            example_count,
            positive_count,
            held_out_count,
            held_out_positive_count,
            accuracy,
            chance_accuracy,
            null_accuracy,
            auc,
            null_auc,
            random_direction_auc,
            p_value,
            noise,
        } = self;
        v1::CavTraining {
            method: method.to_wire().into(),
            source: Some(source_to_wire(source)),
            activations_digest,
            seed,
            example_count,
            positive_count,
            held_out_count,
            held_out_positive_count,
            accuracy: Some(estimate_to_wire(accuracy)),
            chance_accuracy,
            null_accuracy: Some(spread_to_wire(null_accuracy)),
            auc: Some(estimate_to_wire(auc)),
            null_auc: Some(spread_to_wire(null_auc)),
            random_direction_auc: Some(spread_to_wire(random_direction_auc)),
            p_value,
            noise,
        }
    }
}

fn source_to_wire(source: CavDataSource) -> v1::CavDataSource {
    let CavDataSource {
        origin,
        data_digest,
        model_digest,
        max_tokens,
        skip_tokens,
        text_count,
        dropped_count,
    } = source;
    v1::CavDataSource {
        origin,
        data_digest,
        model_digest,
        max_tokens,
        skip_tokens,
        text_count,
        dropped_count,
    }
}

fn estimate_to_wire(Estimate { value, low, high }: Estimate) -> v1::Estimate {
    v1::Estimate { value, low, high }
}

fn spread_to_wire(spread: Spread) -> v1::Spread {
    let Spread {
        trials,
        mean,
        p95,
        max,
    } = spread;
    v1::Spread {
        trial_count: trials,
        mean,
        p95,
        max,
    }
}
