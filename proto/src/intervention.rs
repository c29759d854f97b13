//! Validated interventions: what to change, where, at which tokens.

mod positions;

use std::sync::Arc;

use crate::{
    HookPoint, Invalid,
    invalid::{finite, required},
    payload::{SaeFeature, Vector},
    readout::Gate,
    v1,
};

pub use positions::{Positions, Scope, Token};

/// One edit at one hook point.
#[derive(Debug, Clone, PartialEq)]
pub struct Intervention {
    /// Where.
    pub hook: HookPoint,
    /// What.
    pub edit: Edit,
    /// At which tokens.
    pub positions: Positions,
    /// Among these, only where it is open; none = everywhere.
    pub gate: Option<Gate>,
}

/// What an intervention does to the activation `x`.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// Changes an SAE feature's activation.
    Feature {
        /// The feature.
        feature: Arc<SaeFeature>,
        /// How its activation changes.
        operation: FeatureOperation,
    },
    /// `x + strength · v` (times `‖x‖` if relative).
    Add {
        /// The vector `v`, used as given.
        vector: Arc<Vector>,
        /// The factor.
        strength: f32,
        /// What the factor is relative to.
        unit: StrengthUnit,
    },
    /// `x − (x · v̂) v̂`.
    Ablate {
        /// The direction; not zero.
        vector: Arc<Vector>,
    },
    /// `x + (clamp(x · v̂, lower, upper) − x · v̂) v̂`.
    ClampProjection {
        /// The direction; not zero.
        vector: Arc<Vector>,
        /// Lower bound; −∞ = none.
        lower: f32,
        /// Upper bound; ∞ = none.
        upper: f32,
    },
}

/// How a feature's activation `f` becomes `f'`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FeatureOperation {
    /// `f' = v`.
    Set(f32),
    /// `f' = max(f, v)`.
    Min(f32),
    /// `f' = min(f, v)`.
    Max(f32),
    /// `f' = v · f`.
    Scale(f32),
    /// `f' = f + v`.
    Add(f32),
}

/// What a strength is relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrengthUnit {
    /// Nothing.
    Raw,
    /// `‖x‖` at the token.
    FractionOfNorm,
}

/// The payload tables of a request.
#[derive(Debug, Default)]
pub struct Payloads {
    /// Features, by row.
    pub features: Vec<Arc<SaeFeature>>,
    /// Vectors, by row.
    pub vectors: Vec<Arc<Vector>>,
}

impl Payloads {
    /// Parses the tables of a request.
    pub fn parse(features: Vec<v1::SaeFeature>, vectors: Vec<v1::Vector>) -> Result<Self, Invalid> {
        let features = features
            .into_iter()
            .enumerate()
            .map(|(i, wire)| {
                let feature = SaeFeature::try_from(wire);
                feature
                    .map(Arc::new)
                    .map_err(|e| e.within(&format!("features[{i}]")))
            })
            .collect::<Result<_, _>>()?;
        let vectors = vectors
            .into_iter()
            .enumerate()
            .map(|(i, wire)| {
                let vector = Vector::try_from(wire);
                vector
                    .map(Arc::new)
                    .map_err(|e| e.within(&format!("vectors[{i}]")))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { features, vectors })
    }

    pub(crate) fn feature(&self, row: u32) -> Result<Arc<SaeFeature>, Invalid> {
        lookup(&self.features, row, "feature", "features")
    }

    fn vector(&self, row: u32) -> Result<Arc<Vector>, Invalid> {
        lookup(&self.vectors, row, "vector", "vectors")
    }

    pub(crate) fn direction(&self, row: u32) -> Result<Arc<Vector>, Invalid> {
        let vector = self.vector(row)?;
        if vector.norm() > 0.0 {
            Ok(vector)
        } else {
            Err(Invalid::field(
                "vector",
                "is the zero vector; a direction is needed",
            ))
        }
    }
}

fn lookup<T>(table: &[Arc<T>], row: u32, field: &str, name: &str) -> Result<Arc<T>, Invalid> {
    table.get(row as usize).cloned().ok_or_else(|| {
        Invalid::field(
            field,
            format!("row {row} does not exist; {name} has {} rows", table.len()),
        )
    })
}

impl Intervention {
    /// Parses one intervention against the request's payload tables.
    pub fn parse(wire: v1::Intervention, payloads: &Payloads) -> Result<Self, Invalid> {
        let v1::Intervention {
            edit,
            positions,
            gate,
        } = wire;
        let (hook, edit) = parse_edit(required(edit, "edit")?, payloads)?;
        let positions = match positions {
            None => Positions::all(),
            Some(wire) => Positions::try_from(wire).map_err(|e| e.within("positions"))?,
        };
        let gate = gate
            .map(|wire| Gate::parse(wire, payloads, hook).map_err(|e| e.within("gate")))
            .transpose()?;
        Ok(Self {
            hook,
            edit,
            positions,
            gate,
        })
    }

    /// What a report calls the payload.
    pub fn payload_name(&self) -> String {
        match &self.edit {
            Edit::Feature { feature, .. } => feature.display_name(),
            Edit::Add { vector, .. }
            | Edit::Ablate { vector }
            | Edit::ClampProjection { vector, .. } => vector.name.clone(),
        }
    }

    /// SHA-256 (hex) of the payload's numbers.
    pub fn payload_digest(&self) -> String {
        match &self.edit {
            Edit::Feature { feature, .. } => feature.digest(),
            Edit::Add { vector, .. }
            | Edit::Ablate { vector }
            | Edit::ClampProjection { vector, .. } => vector.digest(),
        }
    }

    /// Number of components of the payload.
    pub fn width(&self) -> usize {
        match &self.edit {
            Edit::Feature { feature, .. } => feature.encoder.len(),
            Edit::Add { vector, .. }
            | Edit::Ablate { vector }
            | Edit::ClampProjection { vector, .. } => vector.values.len(),
        }
    }

    /// The edit in words, e.g. `set 525`.
    pub fn describe(&self) -> String {
        match &self.edit {
            Edit::Feature { operation, .. } => match operation {
                FeatureOperation::Set(v) => format!("set {v}"),
                FeatureOperation::Min(v) => format!("min {v}"),
                FeatureOperation::Max(v) => format!("max {v}"),
                FeatureOperation::Scale(v) => format!("scale {v}"),
                FeatureOperation::Add(v) => format!("add {v}"),
            },
            Edit::Add {
                strength,
                unit: StrengthUnit::Raw,
                ..
            } => format!("add {strength}"),
            Edit::Add { strength, .. } => format!("add {strength} of norm"),
            Edit::Ablate { .. } => "ablate".to_owned(),
            Edit::ClampProjection { lower, upper, .. } => {
                format!("clamp projection to [{lower}, {upper}]")
            }
        }
    }
}

fn parse_edit(
    wire: v1::intervention::Edit,
    payloads: &Payloads,
) -> Result<(HookPoint, Edit), Invalid> {
    match wire {
        v1::intervention::Edit::Feature(wire) => {
            parse_feature_edit(wire, payloads).map_err(|e| e.within("feature"))
        }
        v1::intervention::Edit::VectorAdd(wire) => {
            parse_vector_add(wire, payloads).map_err(|e| e.within("vector_add"))
        }
        v1::intervention::Edit::DirectionAblate(wire) => {
            let v1::DirectionAblate { vector, hook_name } = wire;
            let parse = || {
                let vector = payloads.direction(vector)?;
                Ok((hook_name.parse()?, Edit::Ablate { vector }))
            };
            parse().map_err(|e: Invalid| e.within("direction_ablate"))
        }
        v1::intervention::Edit::ProjectionClamp(wire) => {
            parse_projection_clamp(wire, payloads).map_err(|e| e.within("projection_clamp"))
        }
    }
}

fn parse_feature_edit(
    wire: v1::FeatureEdit,
    payloads: &Payloads,
) -> Result<(HookPoint, Edit), Invalid> {
    use v1::feature_edit::Operation;
    let v1::FeatureEdit { feature, operation } = wire;
    let feature = payloads.feature(feature)?;
    let operation = match required(operation, "operation")? {
        Operation::Set(v) => FeatureOperation::Set(finite(v, "set")?),
        Operation::Min(v) => FeatureOperation::Min(finite(v, "min")?),
        Operation::Max(v) => FeatureOperation::Max(finite(v, "max")?),
        Operation::Scale(v) => FeatureOperation::Scale(finite(v, "scale")?),
        Operation::Add(v) => FeatureOperation::Add(finite(v, "add")?),
    };
    Ok((feature.hook, Edit::Feature { feature, operation }))
}

fn parse_vector_add(
    wire: v1::VectorAdd,
    payloads: &Payloads,
) -> Result<(HookPoint, Edit), Invalid> {
    let v1::VectorAdd {
        vector,
        hook_name,
        strength,
        unit,
    } = wire;
    let unit = match v1::StrengthUnit::try_from(unit) {
        Ok(v1::StrengthUnit::Raw) => StrengthUnit::Raw,
        Ok(v1::StrengthUnit::FractionOfNorm) => StrengthUnit::FractionOfNorm,
        Ok(v1::StrengthUnit::Unspecified) | Err(_) => {
            return Err(Invalid::field(
                "unit",
                format!("is {unit}; must be RAW or FRACTION_OF_NORM"),
            ));
        }
    };
    let edit = Edit::Add {
        vector: payloads.vector(vector)?,
        strength: finite(strength, "strength")?,
        unit,
    };
    Ok((hook_name.parse()?, edit))
}

fn parse_projection_clamp(
    wire: v1::ProjectionClamp,
    payloads: &Payloads,
) -> Result<(HookPoint, Edit), Invalid> {
    let v1::ProjectionClamp {
        vector,
        hook_name,
        lower,
        upper,
    } = wire;
    if lower.is_none() && upper.is_none() {
        return Err(Invalid::field("lower", "lower or upper is required"));
    }
    let lower = lower.map_or(Ok(f32::NEG_INFINITY), |v| finite(v, "lower"))?;
    let upper = upper.map_or(Ok(f32::INFINITY), |v| finite(v, "upper"))?;
    if lower > upper {
        return Err(Invalid::field(
            "lower",
            format!("is {lower}, above upper {upper}"),
        ));
    }
    let edit = Edit::ClampProjection {
        vector: payloads.direction(vector)?,
        lower,
        upper,
    };
    Ok((hook_name.parse()?, edit))
}

#[cfg(test)]
mod tests;
