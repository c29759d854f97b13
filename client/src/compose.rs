//! Composes a `Generate` request: payloads from the registry go into the request's
//! tables as they are, each once, and interventions refer to their rows.

use crate::{
    Amount, CavEdit, CavOperation, Client, Error, FeatureEdit, FeatureOperation, Gate, Lookup,
    Service, v1,
};

/// Most features in one `GetFeatures` call.
const FEATURES_PER_CALL: usize = 256;

/// Builds a [`v1::GenerateRequest`].
#[derive(Debug, Clone, Default)]
pub struct GenerationBuilder {
    request: v1::GenerateRequest,
    stop_when: Vec<v1::Condition>,
}

impl GenerationBuilder {
    /// Starts with a prompt; see [`crate::prompt`].
    pub fn new(prompt: v1::Prompt) -> Self {
        Self {
            request: v1::GenerateRequest {
                prompt: Some(prompt),
                ..v1::GenerateRequest::default()
            },
            stop_when: Vec::new(),
        }
    }

    /// Sets how tokens are chosen.
    pub fn sampling(&mut self, sampling: v1::Sampling) -> &mut Self {
        self.request.sampling = Some(sampling);
        self
    }

    /// The row of a feature, which is added unless it is there.
    pub fn feature(&mut self, feature: v1::SaeFeature) -> u32 {
        row(&mut self.request.features, feature)
    }

    /// The row of a vector, which is added unless it is there.
    pub fn vector(&mut self, vector: v1::Vector) -> u32 {
        row(&mut self.request.vectors, vector)
    }

    /// Reports a readout with every token.
    pub fn probe(&mut self, name: impl Into<String>, readout: v1::Readout) -> &mut Self {
        let name = name.into();
        self.request.probes.push(v1::Probe {
            name,
            readout: Some(readout),
        });
        self
    }

    /// Sets what else is reported.
    pub fn telemetry(&mut self, telemetry: v1::Telemetry) -> &mut Self {
        self.request.telemetry = Some(telemetry);
        self
    }

    /// Sets the place in the queue.
    pub fn priority(&mut self, priority: v1::Priority) -> &mut Self {
        self.request.priority = Some(priority.into());
        self
    }

    /// Adds a variant; without any, the worker decodes one unsteered "baseline".
    pub fn variant(
        &mut self,
        name: impl Into<String>,
        interventions: Vec<v1::Intervention>,
    ) -> &mut Self {
        self.request.variants.push(v1::Variant {
            name: name.into(),
            interventions,
            stop_when: Vec::new(),
        });
        self
    }

    /// Ends every variant where one of these conditions fires.
    pub fn stop_when(&mut self, conditions: Vec<v1::Condition>) -> &mut Self {
        self.stop_when = conditions;
        self
    }

    /// The request.
    pub fn build(mut self) -> v1::GenerateRequest {
        for variant in &mut self.request.variants {
            variant.stop_when.clone_from(&self.stop_when);
        }
        self.request
    }

    /// A request that scores a continuation instead of generating one. Sampling,
    /// probes and telemetry have no meaning there and are left out.
    pub fn build_score(
        self,
        continuation: v1::score_text_request::Continuation,
    ) -> v1::ScoreTextRequest {
        let v1::GenerateRequest {
            prompt,
            features,
            vectors,
            variants,
            sampling: _,
            probes: _,
            telemetry: _,
            priority,
        } = self.request;
        v1::ScoreTextRequest {
            prompt,
            continuation: Some(continuation),
            features,
            vectors,
            variants,
            priority,
        }
    }
}

fn row<T: PartialEq>(table: &mut Vec<T>, payload: T) -> u32 {
    let row = table.iter().position(|other| *other == payload);
    let row = row.unwrap_or_else(|| {
        table.push(payload);
        table.len() - 1
    });
    u32::try_from(row).unwrap_or(u32::MAX)
}

/// Edits by name, to be resolved by the registry.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Steering {
    /// Edits of SAE features.
    pub features: Vec<FeatureEdit>,
    /// Edits with CAVs.
    pub cavs: Vec<CavEdit>,
    /// SAE of features that name none; none = the registry's only one.
    pub default_sae: Option<String>,
    /// Hook point for CAVs instead of their own: picks one direction of a CAV that
    /// has several, moves the direction of one that has one.
    pub cav_hook: Option<String>,
    /// Tokens that every edit applies to; none = all.
    pub positions: Option<v1::Positions>,
    /// Where, among these, every edit applies; none = everywhere.
    pub gate: Option<Gate>,
}

impl Steering {
    /// Whether there is no edit.
    pub fn is_empty(&self) -> bool {
        self.features.is_empty() && self.cavs.is_empty()
    }

    /// Where names are looked up.
    pub fn lookup(&self) -> Lookup<'_> {
        Lookup {
            default_sae: self.default_sae.as_deref(),
            cav_hook: self.cav_hook.as_deref(),
        }
    }
}

impl Client {
    /// Fetches what the edits need, puts it into the builder's tables and returns
    /// the interventions: features first, then CAVs, each in the order given.
    ///
    /// # Errors
    /// If the registry does not know a name, or a strength cannot be resolved.
    pub async fn resolve(
        &self,
        steering: &Steering,
        builder: &mut GenerationBuilder,
    ) -> Result<Vec<v1::Intervention>, Error> {
        let mut edits = Vec::new();
        for batch in steering.features.chunks(FEATURES_PER_CALL) {
            let default_sae = steering.default_sae.as_deref();
            let refs = batch.iter().map(|edit| edit.feature.to_ref(default_sae));
            let features = self.get_features(refs.collect()).await?;
            for (edit, feature) in batch.iter().zip(features) {
                edits.push(feature_edit(edit, feature, builder)?);
            }
        }
        let names = steering.cavs.iter().map(|edit| self.get_cav(&edit.cav));
        let cavs = futures::future::try_join_all(names).await?;
        for (edit, cav) in steering.cavs.iter().zip(cavs) {
            for (hook_name, vector) in directions(cav, steering.cav_hook.as_deref())? {
                let vector = builder.vector(vector);
                edits.push(vector_edit(edit.operation, vector, hook_name));
            }
        }
        let gate = match &steering.gate {
            Some(gate) if !edits.is_empty() => {
                Some(self.resolve_gate(gate, steering.lookup(), builder).await?)
            }
            _ => None,
        };
        let intervention = |edit| v1::Intervention {
            edit: Some(edit),
            positions: steering.positions.clone(),
            gate: gate.clone(),
        };
        Ok(edits.into_iter().map(intervention).collect())
    }
}

fn feature_edit(
    edit: &FeatureEdit,
    feature: v1::SaeFeature,
    builder: &mut GenerationBuilder,
) -> Result<v1::intervention::Edit, Error> {
    use v1::feature_edit::Operation;
    let resolve = |amount| activation(amount, &feature);
    let operation = match edit.operation {
        FeatureOperation::Set(amount) => Operation::Set(resolve(amount)?),
        FeatureOperation::Min(amount) => Operation::Min(resolve(amount)?),
        FeatureOperation::Max(amount) => Operation::Max(resolve(amount)?),
        FeatureOperation::Add(amount) => Operation::Add(resolve(amount)?),
        FeatureOperation::Scale(factor) => Operation::Scale(factor),
    };
    Ok(v1::intervention::Edit::Feature(v1::FeatureEdit {
        feature: builder.feature(feature),
        operation: Some(operation),
    }))
}

/// An amount of a feature's activation.
pub(crate) fn activation(amount: Amount, feature: &v1::SaeFeature) -> Result<f32, Error> {
    let resolved = amount.resolve(feature.max_activation);
    resolved.ok_or_else(|| {
        let name = format!("{}#{}", feature.sae_id, feature.feature_index);
        Error::NoMaxActivation {
            feature: match feature.label.as_str() {
                "" => name,
                label => format!("{name} ({label:?})"),
            },
        }
    })
}

fn vector_edit(operation: CavOperation, vector: u32, hook_name: String) -> v1::intervention::Edit {
    use v1::intervention::Edit;
    let add = |strength, unit: v1::StrengthUnit, hook_name| {
        Edit::VectorAdd(v1::VectorAdd {
            vector,
            hook_name,
            strength,
            unit: unit.into(),
        })
    };
    match operation {
        CavOperation::Add(strength) => add(strength, v1::StrengthUnit::Raw, hook_name),
        CavOperation::AddOfNorm(fraction) => {
            add(fraction, v1::StrengthUnit::FractionOfNorm, hook_name)
        }
        CavOperation::Ablate => Edit::DirectionAblate(v1::DirectionAblate { vector, hook_name }),
        CavOperation::Clamp { lower, upper } => Edit::ProjectionClamp(v1::ProjectionClamp {
            vector,
            hook_name,
            lower,
            upper,
        }),
    }
}

/// The hook points and vectors of a CAV to use.
pub(crate) fn directions(
    cav: v1::Cav,
    hook: Option<&str>,
) -> Result<Vec<(String, v1::Vector)>, Error> {
    let v1::Cav {
        name, directions, ..
    } = cav;
    let available: Vec<String> = directions.iter().map(|d| d.hook_name.clone()).collect();
    let mut chosen = Vec::new();
    let only = directions.len() == 1;
    for direction in directions {
        let hook_name = match hook {
            None => direction.hook_name,
            Some(hook) if only || direction.hook_name == hook => hook.to_owned(),
            Some(_) => continue,
        };
        let vector = direction.vector.ok_or_else(|| {
            let what = format!("GetCav({name:?}) left out the vector at {hook_name}");
            Error::contract(Service::Registry, what)
        })?;
        chosen.push((hook_name, vector));
    }
    match (chosen.is_empty(), hook) {
        (false, _) => Ok(chosen),
        (true, Some(hook)) => Err(Error::NoDirectionAtHook {
            cav: name,
            hook: hook.to_owned(),
            available,
        }),
        (true, None) => {
            let what = format!("GetCav({name:?}) has no direction");
            Err(Error::contract(Service::Registry, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cav(hooks: &[&str]) -> v1::Cav {
        let direction = |(i, hook): (usize, &&str)| v1::CavDirection {
            hook_name: (*hook).to_owned(),
            vector: Some(v1::Vector {
                name: "concept".to_owned(),
                values: vec![i as f32],
            }),
            ..v1::CavDirection::default()
        };
        v1::Cav {
            name: "concept".to_owned(),
            directions: hooks.iter().enumerate().map(direction).collect(),
            ..v1::Cav::default()
        }
    }

    fn hooks(chosen: &[(String, v1::Vector)]) -> Vec<(&str, f32)> {
        chosen
            .iter()
            .map(|(hook, vector)| (hook.as_str(), vector.values[0]))
            .collect()
    }

    #[test]
    fn every_payload_has_one_row() {
        let mut builder = GenerationBuilder::new(crate::prompt::text("a"));
        let vector = |value| v1::Vector {
            name: String::new(),
            values: vec![value],
        };
        assert_eq!(builder.vector(vector(1.0)), 0);
        assert_eq!(builder.vector(vector(2.0)), 1);
        assert_eq!(builder.vector(vector(1.0)), 0);
        assert_eq!(builder.build().vectors.len(), 2);
    }

    #[test]
    fn a_cav_acts_at_each_of_its_hook_points() {
        let chosen = directions(cav(&["a", "b"]), None).expect("both");
        assert_eq!(hooks(&chosen), [("a", 0.0), ("b", 1.0)]);
    }

    #[test]
    fn a_hook_point_selects_or_moves() {
        let selected = directions(cav(&["a", "b"]), Some("b")).expect("one");
        assert_eq!(hooks(&selected), [("b", 1.0)]);
        let moved = directions(cav(&["a"]), Some("z")).expect("moved");
        assert_eq!(hooks(&moved), [("z", 0.0)]);
        let err = directions(cav(&["a", "b"]), Some("z")).expect_err("ambiguous");
        assert!(err.to_string().contains("a, b"), "{err}");
    }

    #[test]
    fn a_cav_without_vectors_breaks_the_contract() {
        let mut cav = cav(&["a"]);
        cav.directions[0].vector = None;
        assert!(matches!(directions(cav, None), Err(Error::Contract { .. })));
    }
}
