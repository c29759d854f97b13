//! A variant's interventions, compiled.

use std::collections::BTreeMap;

use steering_proto::{
    HookPoint, Invalid,
    intervention::{Edit, Intervention, Positions},
};

use super::apply::Row;

/// The interventions of one variant, compiled to table rows by hook point.
/// Immutable; what was done is counted in a [`Tally`].
#[derive(Debug, Default)]
pub struct Program {
    rows: BTreeMap<HookPoint, Vec<Entry>>,
    /// For each intervention, the earlier identical one it was merged into.
    merged_into: Vec<Option<usize>>,
}

/// One table row and where it applies.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) intervention: usize,
    pub(super) positions: Positions,
    pub(super) row: Row,
}

/// What one intervention has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Tally {
    /// Tokens it was applied to.
    pub positions_touched: u64,
    /// Of these, tokens whose activation it changed.
    pub positions_changed: u64,
    /// Sum of ‖Δ‖ / ‖x‖ over the tokens touched.
    pub relative_delta_sum: f64,
}

impl Tally {
    /// Mean of ‖Δ‖ / ‖x‖ over the tokens touched; 0 if none.
    pub fn mean_relative_delta(&self) -> f32 {
        if self.positions_touched == 0 {
            return 0.0;
        }
        (self.relative_delta_sum / self.positions_touched as f64) as f32
    }
}

impl Program {
    /// Compiles interventions. The same edit of the same feature counts once,
    /// as in the notebook, whose mask of features is a set; a different edit of
    /// it at the same tokens is an error.
    pub fn compile(interventions: &[Intervention]) -> Result<Self, Invalid> {
        let mut program = Self::default();
        for (index, intervention) in interventions.iter().enumerate() {
            let merged = earlier_same(&interventions[..index], intervention)
                .map_err(|e| e.within(&format!("interventions[{index}]")))?;
            program.merged_into.push(merged);
            if merged.is_none() {
                let entry = Entry {
                    intervention: index,
                    positions: intervention.positions.clone(),
                    row: Row::new(&intervention.edit),
                };
                program
                    .rows
                    .entry(intervention.hook)
                    .or_default()
                    .push(entry);
            }
        }
        Ok(program)
    }

    /// Whether there is anything to do at a hook point.
    pub fn touches(&self, point: HookPoint) -> bool {
        self.rows.contains_key(&point)
    }

    /// An empty tally per intervention.
    pub fn new_tallies(&self) -> Vec<Tally> {
        vec![Tally::default(); self.merged_into.len()]
    }

    /// The earlier, identical intervention that one was merged into.
    pub fn merged_into(&self, intervention: usize) -> Option<usize> {
        self.merged_into[intervention]
    }

    pub(super) fn entries(&self, point: HookPoint) -> &[Entry] {
        self.rows.get(&point).map_or(&[], Vec::as_slice)
    }
}

/// Finds an earlier, identical edit of the same feature.
fn earlier_same(
    earlier: &[Intervention],
    intervention: &Intervention,
) -> Result<Option<usize>, Invalid> {
    let Edit::Feature { feature, operation } = &intervention.edit else {
        return Ok(None);
    };
    let digest = feature.digest();
    for (index, other) in earlier.iter().enumerate() {
        let Edit::Feature {
            feature: other_feature,
            operation: other_operation,
        } = &other.edit
        else {
            continue;
        };
        if other_feature.digest() != digest {
            continue;
        }
        if operation == other_operation && intervention.positions == other.positions {
            return Ok(Some(index));
        }
        if !intervention.positions.disjoint(&other.positions) {
            let text = format!(
                "{} ({}) is the feature of interventions[{index}], {} ({}), at the same tokens; \
                 one feature takes one edit per token",
                feature.display_name(),
                intervention.describe(),
                other_feature.display_name(),
                other.describe(),
            );
            return Err(Invalid::field("feature", text));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use steering_proto::{
        Site,
        intervention::{FeatureOperation, Scope},
        payload::{Activation, InputNormalization, SaeFeature},
    };

    fn set(label: &str, value: f32, scope: Scope) -> Intervention {
        let hook = HookPoint {
            layer: 1,
            site: Site::ResidPost,
        };
        let feature = SaeFeature {
            sae_id: String::new(),
            feature_index: 20175,
            label: label.to_owned(),
            model_id: String::new(),
            hook,
            encoder: vec![1.0],
            encoder_bias: 0.0,
            decoder: vec![1.0],
            activation: Activation::Relu,
            input_normalization: InputNormalization::None,
        };
        Intervention {
            hook,
            edit: Edit::Feature {
                feature: Arc::new(feature),
                operation: FeatureOperation::Set(value),
            },
            positions: Positions {
                scope,
                ..Positions::all()
            },
            gate: None,
        }
    }

    #[test]
    fn one_feature_under_two_labels_counts_once() {
        let twice = [
            set("nba", 5.0, Scope::All),
            set("basketball", 5.0, Scope::All),
        ];
        let program = Program::compile(&twice).expect("compiles");
        assert_eq!(program.merged_into(1), Some(0));
        assert_eq!(program.entries(twice[0].hook).len(), 1);
    }

    #[test]
    fn two_values_for_one_feature_are_an_error() {
        let twice = [
            set("nba", 5.0, Scope::All),
            set("basketball", 6.0, Scope::All),
        ];
        let err = Program::compile(&twice).expect_err("refused");
        assert_eq!(err.violations[0].field, "interventions[1].feature");
        let apart = [
            set("nba", 5.0, Scope::Prompt),
            set("nba", 6.0, Scope::Generated),
        ];
        assert!(Program::compile(&apart).is_ok());
    }
}
