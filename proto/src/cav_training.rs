//! Validated configuration of `TrainCavs`.

use crate::{
    HookPoint, Invalid,
    invalid::{finite_vector, required, short},
    v1,
};

const HELD_OUT: f64 = 0.2;
const HELD_OUT_MIN: f64 = 0.05;
const HELD_OUT_MAX: f64 = 0.5;
const NULL_TRIALS: u32 = 20;
const NULL_TRIALS_MIN: u32 = 20;
const NULL_TRIALS_MAX: u32 = 1000;
const TEXT_LEN_MAX: usize = 500;
const DIGEST_LEN_MAX: usize = 64;

/// How to train, and what to record about it.
#[derive(Debug, Clone, PartialEq)]
pub struct CavTrainingConfig {
    /// Where the activations come from.
    pub hook: HookPoint,
    /// Model they come from.
    pub model_id: String,
    /// How a CAV is found.
    pub method: CavMethod,
    /// Share of each label's examples kept for the statistics.
    pub held_out: f64,
    /// Trainings on permuted labels; 0 or at least 20.
    pub null_trials: u32,
    /// Seed of everything random.
    pub seed: u64,
    /// What the client knows of the data.
    pub source: CavDataSource,
}

/// How a CAV is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CavMethod {
    /// L2-regularised squared hinge.
    Svm,
    /// Difference of means.
    MeanDifference,
    /// L2-regularised logistic loss.
    Logistic,
}

/// What a client knows of labelled activations.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CavDataSource {
    /// The file's name.
    pub origin: String,
    /// SHA-256 (hex) of texts and labels.
    pub data_digest: String,
    /// Digest of the model.
    pub model_digest: String,
    /// Texts were cut to this many tokens; 0 = the whole context.
    pub max_tokens: u32,
    /// Leading tokens left out of the mean.
    pub skip_tokens: u32,
    /// Texts read.
    pub text_count: u64,
    /// Texts that gave no activations.
    pub dropped_count: u64,
}

/// One example.
#[derive(Debug, Clone, PartialEq)]
pub struct LabelledActivation {
    /// Its label.
    pub label: String,
    /// The activation.
    pub values: Vec<f32>,
}

impl CavMethod {
    /// The wire's value.
    pub fn to_wire(self) -> v1::CavMethod {
        match self {
            Self::Svm => v1::CavMethod::Svm,
            Self::MeanDifference => v1::CavMethod::MeanDifference,
            Self::Logistic => v1::CavMethod::Logistic,
        }
    }

    /// The wire's value, checked.
    pub fn from_wire(value: i32, field: &str) -> Result<Self, Invalid> {
        let allowed = "CAV_METHOD_SVM, CAV_METHOD_MEAN_DIFFERENCE or CAV_METHOD_LOGISTIC is needed";
        match v1::CavMethod::try_from(value) {
            Ok(v1::CavMethod::Svm) => Ok(Self::Svm),
            Ok(v1::CavMethod::MeanDifference) => Ok(Self::MeanDifference),
            Ok(v1::CavMethod::Logistic) => Ok(Self::Logistic),
            Ok(v1::CavMethod::Unspecified) => {
                Err(Invalid::field(field, format!("is required: {allowed}")))
            }
            Err(_) => Err(Invalid::field(
                field,
                format!("is {value}, which is no method; {allowed}"),
            )),
        }
    }
}

impl TryFrom<v1::CavTrainingConfig> for CavTrainingConfig {
    type Error = Invalid;

    fn try_from(wire: v1::CavTrainingConfig) -> Result<Self, Invalid> {
        let v1::CavTrainingConfig {
            hook_name,
            model_id,
            method,
            held_out,
            null_trials,
            seed,
            source,
        } = wire;
        let hook = hook_name.parse()?;
        if model_id.is_empty() {
            return Err(Invalid::field("model_id", "is required"));
        }
        let held_out = held_out.unwrap_or(HELD_OUT);
        if !(HELD_OUT_MIN..=HELD_OUT_MAX).contains(&held_out) {
            let text = format!("is {held_out}; {HELD_OUT_MIN} to {HELD_OUT_MAX} is allowed");
            return Err(Invalid::field("held_out", text));
        }
        let null_trials = null_trials.unwrap_or(NULL_TRIALS);
        if null_trials != 0 && !(NULL_TRIALS_MIN..=NULL_TRIALS_MAX).contains(&null_trials) {
            let text = format!(
                "is {null_trials}; 0 or {NULL_TRIALS_MIN} to {NULL_TRIALS_MAX} are allowed: fewer \
                 cannot tell a concept from noise"
            );
            return Err(Invalid::field("null_trials", text));
        }
        Ok(Self {
            hook,
            model_id,
            method: CavMethod::from_wire(method, "method")?,
            held_out,
            null_trials,
            seed: seed.unwrap_or(0),
            source: source
                .map(CavDataSource::try_from)
                .transpose()
                .map_err(|invalid| invalid.within("source"))?
                .unwrap_or_default(),
        })
    }
}

impl TryFrom<v1::CavDataSource> for CavDataSource {
    type Error = Invalid;

    fn try_from(wire: v1::CavDataSource) -> Result<Self, Invalid> {
        let v1::CavDataSource {
            origin,
            data_digest,
            model_digest,
            max_tokens,
            skip_tokens,
            text_count,
            dropped_count,
        } = wire;
        short(&origin, "origin", TEXT_LEN_MAX)?;
        short(&data_digest, "data_digest", DIGEST_LEN_MAX)?;
        short(&model_digest, "model_digest", DIGEST_LEN_MAX)?;
        Ok(Self {
            origin,
            data_digest,
            model_digest,
            max_tokens,
            skip_tokens,
            text_count,
            dropped_count,
        })
    }
}

impl TryFrom<v1::LabelledActivation> for LabelledActivation {
    type Error = Invalid;

    fn try_from(wire: v1::LabelledActivation) -> Result<Self, Invalid> {
        let v1::LabelledActivation { label, values } = wire;
        let label = required((!label.is_empty()).then_some(label), "label")?;
        Ok(Self {
            label,
            values: finite_vector(values, "values")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> v1::CavTrainingConfig {
        v1::CavTrainingConfig {
            hook_name: "blocks.1.hook_resid_post".to_owned(),
            model_id: "m".to_owned(),
            method: v1::CavMethod::Svm.into(),
            ..v1::CavTrainingConfig::default()
        }
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let parsed = CavTrainingConfig::try_from(config()).expect("valid");
        assert_eq!(
            (parsed.held_out, parsed.null_trials, parsed.seed),
            (0.2, 20, 0)
        );
        assert_eq!(parsed.source, CavDataSource::default());
    }

    #[test]
    fn bad_configurations_are_refused_by_field() {
        type Change = fn(&mut v1::CavTrainingConfig);
        let cases: [(&str, Change); 8] = [
            ("hook_name", |c| c.hook_name.clear()),
            ("model_id", |c| c.model_id.clear()),
            ("method", |c| c.method = 0),
            ("method", |c| c.method = 77),
            ("held_out", |c| c.held_out = Some(f64::NAN)),
            ("held_out", |c| c.held_out = Some(0.9)),
            ("null_trials", |c| c.null_trials = Some(5)),
            ("source.origin", |c| {
                c.source = Some(v1::CavDataSource {
                    origin: "x".repeat(501),
                    ..v1::CavDataSource::default()
                });
            }),
        ];
        for (field, spoil) in cases {
            let mut wire = config();
            spoil(&mut wire);
            let error = CavTrainingConfig::try_from(wire).expect_err(field);
            assert_eq!(error.violations[0].field, field, "{error}");
        }
    }
}
