//! Edits as a user names them: by label and by CAV name, before the registry has
//! turned them into payloads. [`FeatureEdit`] and [`CavEdit`] parse from text.

use std::fmt;

use crate::v1;

/// Names one feature of an SAE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureSelector {
    /// The SAE; none = the default one.
    pub sae: Option<String>,
    /// Which of its features.
    pub key: FeatureKey,
}

/// How a feature is named within its SAE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FeatureKey {
    /// By its index.
    Index(u32),
    /// By its label, exactly.
    Label(String),
}

impl FeatureSelector {
    /// The registry's reference, with the SAE to use where none is named.
    pub fn to_ref(&self, default_sae: Option<&str>) -> v1::FeatureRef {
        use v1::feature_ref::Feature;
        v1::FeatureRef {
            sae_id: self
                .sae
                .as_deref()
                .or(default_sae)
                .unwrap_or_default()
                .to_owned(),
            feature: Some(match &self.key {
                FeatureKey::Index(index) => Feature::FeatureIndex(*index),
                FeatureKey::Label(label) => Feature::Label(label.clone()),
            }),
        }
    }
}

impl fmt::Display for FeatureSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(sae) = &self.sae {
            write!(f, "{sae}::")?;
        }
        match &self.key {
            FeatureKey::Index(index) => write!(f, "#{index}"),
            FeatureKey::Label(label) => f.write_str(label),
        }
    }
}

/// An edit of one SAE feature.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureEdit {
    /// The feature.
    pub feature: FeatureSelector,
    /// How its activation changes.
    pub operation: FeatureOperation,
}

/// How a feature's activation `f` changes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FeatureOperation {
    /// To this value, whatever it was.
    Set(Amount),
    /// To at least this value.
    Min(Amount),
    /// To at most this value.
    Max(Amount),
    /// By this much.
    Add(Amount),
    /// To this factor of itself.
    Scale(f32),
}

impl fmt::Display for FeatureEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { feature, operation } = self;
        match operation {
            FeatureOperation::Set(amount) => write!(f, "{feature}:set={amount}"),
            FeatureOperation::Min(amount) => write!(f, "{feature}:min={amount}"),
            FeatureOperation::Max(amount) => write!(f, "{feature}:max={amount}"),
            FeatureOperation::Add(amount) => write!(f, "{feature}:add={amount}"),
            FeatureOperation::Scale(factor) => write!(f, "{feature}:scale={factor}"),
        }
    }
}

/// An amount of feature activation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Amount {
    /// In units of the activation.
    Raw(f32),
    /// A fraction of the largest activation the registry knows.
    OfMax(f32),
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw(value) => value.fmt(f),
            Self::OfMax(fraction) => write!(f, "{fraction}max"),
        }
    }
}

impl Amount {
    /// The amount in units of the activation; none if the maximum is needed and
    /// not known.
    pub fn resolve(self, max_activation: Option<f32>) -> Option<f32> {
        match self {
            Self::Raw(value) => Some(value),
            Self::OfMax(fraction) => max_activation.map(|max| fraction * max),
        }
    }
}

/// An edit with a concept activation vector.
#[derive(Debug, Clone, PartialEq)]
pub struct CavEdit {
    /// `name` (its newest version) or `name@digest`.
    pub cav: String,
    /// What to do with its vector.
    pub operation: CavOperation,
}

/// What to do with a vector `v` at an activation `x`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CavOperation {
    /// `x + strength · v`.
    Add(f32),
    /// `x + fraction · ‖x‖ · v`.
    AddOfNorm(f32),
    /// Project the direction out.
    Ablate,
    /// Keep the projection on the direction within bounds, at least one given.
    Clamp {
        /// Lower bound.
        lower: Option<f32>,
        /// Upper bound.
        upper: Option<f32>,
    },
}

impl fmt::Display for CavEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = |bound: &Option<f32>| bound.map_or(String::new(), |bound| bound.to_string());
        let Self { cav, operation } = self;
        match operation {
            CavOperation::Add(strength) => write!(f, "{cav}:add={strength}"),
            CavOperation::AddOfNorm(fraction) => write!(f, "{cav}:add={fraction}norm"),
            CavOperation::Ablate => write!(f, "{cav}:ablate"),
            CavOperation::Clamp { lower, upper } => {
                write!(f, "{cav}:clamp={}..{}", bound(lower), bound(upper))
            }
        }
    }
}

/// A scalar that is read at every token, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readout {
    /// Activation of an SAE feature.
    Feature(FeatureSelector),
    /// `x · v` with a CAV's vector, at the CAV's hook point.
    Cav(String),
}

impl fmt::Display for Readout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Feature(feature) => feature.fmt(f),
            Self::Cav(cav) => write!(f, "cav:{cav}"),
        }
    }
}

/// Fires at a token where a readout is beyond a threshold.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    /// What is compared.
    pub readout: Readout,
    /// With what, and on which side.
    pub comparison: Comparison,
}

/// When a readout is beyond its threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Comparison {
    /// Where it is greater.
    Above(Amount),
    /// Where it is less.
    Below(Amount),
}

/// Opens edits where, or from where, a condition fires.
#[derive(Debug, Clone, PartialEq)]
pub struct Gate {
    /// What opens it.
    pub condition: Condition,
    /// How long it stays open.
    pub mode: GateMode,
}

/// How long a gate stays open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateMode {
    /// At the tokens where the condition fires.
    While,
    /// From the first such token on.
    Once,
    /// For this many tokens, the one that fired included.
    For(u32),
}
