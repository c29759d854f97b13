//! The JSON form of how a CAV was trained, and what people are shown of it.

use serde::Serialize;
use steering_client::v1;

/// How a CAV was trained, and whether it is more than noise.
#[derive(Debug, Serialize)]
pub(super) struct TrainingView {
    method: &'static str,
    source: SourceView,
    activations_digest: String,
    seed: u64,
    example_count: u64,
    positive_count: u64,
    held_out_count: u64,
    held_out_positive_count: u64,
    accuracy: EstimateView,
    chance_accuracy: f64,
    null_accuracy: SpreadView,
    auc: EstimateView,
    null_auc: SpreadView,
    random_direction_auc: SpreadView,
    p_value: Option<f64>,
    noise: bool,
}

#[derive(Debug, Serialize)]
struct SourceView {
    origin: String,
    data_digest: String,
    model_digest: String,
    max_tokens: u32,
    skip_tokens: u32,
    text_count: u64,
    dropped_count: u64,
}

#[derive(Debug, Serialize)]
struct EstimateView {
    value: f64,
    low: f64,
    high: f64,
}

#[derive(Debug, Serialize)]
struct SpreadView {
    trial_count: u32,
    mean: f64,
    p95: f64,
    max: f64,
}

impl From<v1::CavTraining> for TrainingView {
    fn from(training: v1::CavTraining) -> Self {
        let method = match training.method() {
            v1::CavMethod::Unspecified => "unspecified",
            v1::CavMethod::Svm => "svm",
            v1::CavMethod::MeanDifference => "mean-difference",
            v1::CavMethod::Logistic => "logistic",
        };
        let v1::CavTraining {
            method: _, // above, by name
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
        } = training;
        Self {
            method,
            source: source.unwrap_or_default().into(),
            activations_digest,
            seed,
            example_count,
            positive_count,
            held_out_count,
            held_out_positive_count,
            accuracy: accuracy.unwrap_or_default().into(),
            chance_accuracy,
            null_accuracy: null_accuracy.unwrap_or_default().into(),
            auc: auc.unwrap_or_default().into(),
            null_auc: null_auc.unwrap_or_default().into(),
            random_direction_auc: random_direction_auc.unwrap_or_default().into(),
            p_value,
            noise,
        }
    }
}

impl From<v1::CavDataSource> for SourceView {
    fn from(source: v1::CavDataSource) -> Self {
        let v1::CavDataSource {
            origin,
            data_digest,
            model_digest,
            max_tokens,
            skip_tokens,
            text_count,
            dropped_count,
        } = source;
        Self {
            origin,
            data_digest,
            model_digest,
            max_tokens,
            skip_tokens,
            text_count,
            dropped_count,
        }
    }
}

impl From<v1::Estimate> for EstimateView {
    fn from(v1::Estimate { value, low, high }: v1::Estimate) -> Self {
        Self { value, low, high }
    }
}

impl From<v1::Spread> for SpreadView {
    fn from(spread: v1::Spread) -> Self {
        let v1::Spread {
            trial_count,
            mean,
            p95,
            max,
        } = spread;
        Self {
            trial_count,
            mean,
            p95,
            max,
        }
    }
}

impl EstimateView {
    fn interval(&self) -> String {
        format!("{:.3} to {:.3}", self.low, self.high)
    }
}

impl SpreadView {
    /// Empty without trials.
    fn up_to(&self) -> String {
        if self.trial_count == 0 {
            return String::new();
        }
        format!("{:.3}", self.p95)
    }
}

impl TrainingView {
    /// Cells of a table: name, examples, AUC, its interval, with permuted labels, of random
    /// directions, p, verdict.
    pub(super) fn cells(&self, name: &str) -> [String; 8] {
        [
            name.to_owned(),
            self.positive_count.to_string(),
            format!("{:.3}", self.auc.value),
            self.auc.interval(),
            self.null_auc.up_to(),
            self.random_direction_auc.up_to(),
            self.p_value.map(|p| format!("{p:.3}")).unwrap_or_default(),
            self.verdict().to_owned(),
        ]
    }

    /// What is said of all labels together.
    pub(super) fn summary(&self) -> String {
        let null = match self.null_accuracy.trial_count {
            0 => "no trials with permuted labels".to_owned(),
            trials => format!(
                "{trials} trainings on permuted labels {:.3}, at most {:.3}",
                self.null_accuracy.mean, self.null_accuracy.max
            ),
        };
        format!(
            "accuracy {:.3} ({}) on {} held-out of {} examples; most frequent label {:.3}; {null}",
            self.accuracy.value,
            self.accuracy.interval(),
            self.held_out_count,
            self.example_count,
            self.chance_accuracy
        )
    }

    /// Names and values for a card.
    pub(super) fn card(&self) -> Vec<(&'static str, String)> {
        let spread = |spread: &SpreadView| match spread.trial_count {
            0 => String::new(),
            trials => format!(
                "mean {:.3}, 95 % below {:.3}, largest {:.3} of {trials}",
                spread.mean, spread.p95, spread.max
            ),
        };
        let source = &self.source;
        vec![
            ("method", self.method.to_owned()),
            (
                "examples",
                format!("{} of {}", self.positive_count, self.example_count),
            ),
            (
                "held_out",
                format!(
                    "{} of {}",
                    self.held_out_positive_count, self.held_out_count
                ),
            ),
            (
                "auc",
                format!("{:.3} (95 %: {})", self.auc.value, self.auc.interval()),
            ),
            ("null_auc", spread(&self.null_auc)),
            ("random_auc", spread(&self.random_direction_auc)),
            (
                "p_value",
                self.p_value.map(|p| format!("{p:.4}")).unwrap_or_default(),
            ),
            ("verdict", self.verdict().to_owned()),
            ("all_labels", self.summary()),
            (
                "texts",
                format!(
                    "{}, {} dropped, tokens {} to {}",
                    source.text_count, source.dropped_count, source.skip_tokens, source.max_tokens
                ),
            ),
            ("data_digest", source.data_digest.clone()),
            ("model_digest", source.model_digest.clone()),
        ]
    }

    fn verdict(&self) -> &'static str {
        if self.noise { "noise" } else { "signal" }
    }
}
