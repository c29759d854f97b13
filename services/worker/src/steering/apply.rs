//! One edit on one activation vector, in f32.

use steering_proto::{
    intervention::{Edit, FeatureOperation, StrengthUnit},
    payload::SaeFeature,
};

use super::{
    device::OnDevice,
    feature::{Activated, activate},
    math::{dot, norm, norm_f64, unit},
};

/// An edit with its directions prepared.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) rule: Rule,
    /// Direction the delta is written along, shape `[width]`.
    pub(super) write: Vec<f32>,
    /// `‖write‖`.
    pub(super) write_norm: f64,
    pub(super) device_copy: OnDevice,
}

#[derive(Debug)]
pub(super) enum Rule {
    Feature {
        feature: std::sync::Arc<SaeFeature>,
        operation: FeatureOperation,
    },
    Add {
        strength: f32,
        unit: StrengthUnit,
    },
    /// Projection on `write`, a unit vector, kept within bounds.
    Project {
        lower: f32,
        upper: f32,
    },
}

impl Row {
    pub(super) fn new(edit: &Edit) -> Self {
        let (rule, write) = match edit {
            Edit::Feature { feature, operation } => {
                let rule = Rule::Feature {
                    feature: feature.clone(),
                    operation: *operation,
                };
                (rule, feature.decoder.clone())
            }
            Edit::Add {
                vector,
                strength,
                unit,
            } => {
                let rule = Rule::Add {
                    strength: *strength,
                    unit: *unit,
                };
                (rule, vector.values.clone())
            }
            Edit::Ablate { vector } => {
                let rule = Rule::Project {
                    lower: 0.0,
                    upper: 0.0,
                };
                (rule, unit(&vector.values))
            }
            Edit::ClampProjection {
                vector,
                lower,
                upper,
            } => {
                let rule = Rule::Project {
                    lower: *lower,
                    upper: *upper,
                };
                (rule, unit(&vector.values))
            }
        };
        let write_norm = norm_f64(&write);
        Self {
            rule,
            write,
            write_norm,
            device_copy: OnDevice::default(),
        }
    }

    /// Adds this edit's delta for the activation `x` to `delta`. Returns the
    /// delta's norm if it is not zero.
    pub(super) fn add_delta(&self, x: &[f32], delta: &mut [f32]) -> Option<f64> {
        let phi = self.phi(x);
        if phi == 0.0 {
            return None;
        }
        for (d, w) in delta.iter_mut().zip(&self.write) {
            *d += phi * w;
        }
        Some(f64::from(phi.abs()) * self.write_norm)
    }

    /// The factor φ on the written direction.
    fn phi(&self, x: &[f32]) -> f32 {
        match &self.rule {
            Rule::Feature { feature, operation } => feature_phi(feature, *operation, x),
            Rule::Add {
                strength,
                unit: StrengthUnit::Raw,
            } => *strength,
            Rule::Add {
                strength,
                unit: StrengthUnit::FractionOfNorm,
            } => strength * norm(x),
            Rule::Project { lower, upper } => {
                let p = dot(x, &self.write);
                p.clamp(*lower, *upper) - p
            }
        }
    }
}

/// `(f' − f)`, times what undoes the input normalisation.
fn feature_phi(feature: &SaeFeature, operation: FeatureOperation, x: &[f32]) -> f32 {
    let Activated { f, undo } = activate(feature, x);
    let edited = match operation {
        FeatureOperation::Set(v) => v,
        FeatureOperation::Min(v) => f.max(v),
        FeatureOperation::Max(v) => f.min(v),
        FeatureOperation::Scale(v) => v * f,
        FeatureOperation::Add(v) => f + v,
    };
    undo.map_or(0.0, |undo| (edited - f) * undo)
}

#[cfg(test)]
mod tests;
