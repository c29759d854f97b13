//! A request against the model: do its layers and widths exist?

use std::sync::Arc;

use steering_proto::{
    HookPoint, Invalid,
    generate::{Telemetry, Variant},
    intervention::{Edit, Intervention, Positions},
    readout::{Probe, Readout, Source},
};

use super::Worker;
use crate::{error::RequestError, steering::Program};

/// Most bytes of a reading in a message, of each value in it, and of each edit's norm.
const READING_BYTES: usize = 32;
const VALUE_BYTES: usize = 4;
const EDIT_NORM_BYTES: usize = 13;

/// Bytes of a message that numbers may take: an eighth is left to everything else.
pub(super) fn room_for_numbers(response_bytes: u64) -> usize {
    response_bytes as usize / 8 * 7
}

/// A payload at a hook point, and the fields to blame if it does not fit.
struct Use<'a> {
    hook: HookPoint,
    width: usize,
    name: String,
    /// The model that the payload's SAE was trained on, if known.
    trained_on: Option<&'a str>,
    hook_field: &'static str,
    payload_field: &'static str,
}

impl<'a> Use<'a> {
    fn of_edit(intervention: &'a Intervention) -> Self {
        // A feature brings its hook point with it.
        let (hook_field, payload_field, trained_on) = match &intervention.edit {
            Edit::Feature { feature, .. } => (
                "feature.feature",
                "feature.feature",
                Some(feature.model_id.as_str()),
            ),
            Edit::Add { .. } => ("vector_add.hook_name", "vector_add.vector", None),
            Edit::Ablate { .. } => (
                "direction_ablate.hook_name",
                "direction_ablate.vector",
                None,
            ),
            Edit::ClampProjection { .. } => (
                "projection_clamp.hook_name",
                "projection_clamp.vector",
                None,
            ),
        };
        Self {
            hook: intervention.hook,
            width: intervention.width(),
            name: intervention.payload_name(),
            trained_on,
            hook_field,
            payload_field,
        }
    }

    fn of_readout(readout: &'a Readout) -> Self {
        let (hook_field, payload_field, trained_on) = match &readout.source {
            Source::Feature(feature) => ("feature", "feature", Some(feature.model_id.as_str())),
            Source::Direction { .. } => ("direction.hook_name", "direction.vector", None),
        };
        Self {
            hook: readout.hook,
            width: readout.width(),
            name: readout.payload_name(),
            trained_on,
            hook_field,
            payload_field,
        }
    }
}

impl Worker {
    /// Checks variants and probes. Returns things to know that are not errors.
    pub(super) fn check_payloads(
        &self,
        variants: &[Variant],
        probes: &[Probe],
    ) -> Result<Vec<String>, RequestError> {
        let mut warnings = Vec::new();
        self.check_counts(variants, probes)?;
        for (v, variant) in variants.iter().enumerate() {
            for (i, intervention) in variant.interventions.iter().enumerate() {
                let path = format!("variants[{v}].interventions[{i}]");
                self.check_use(&Use::of_edit(intervention), &path, &mut warnings)?;
                self.check_positions(&intervention.positions, &path)?;
                if let Some(gate) = &intervention.gate {
                    let path = format!("{path}.gate.condition.readout");
                    let read = Use::of_readout(&gate.condition.readout);
                    self.check_use(&read, &path, &mut warnings)?;
                }
            }
            for (i, condition) in variant.stop_when.iter().enumerate() {
                let path = format!("variants[{v}].stop_when[{i}].readout");
                self.check_use(&Use::of_readout(&condition.readout), &path, &mut warnings)?;
            }
        }
        for (i, probe) in probes.iter().enumerate() {
            let path = format!("probes[{i}].readout");
            self.check_use(&Use::of_readout(&probe.readout), &path, &mut warnings)?;
        }
        Ok(warnings)
    }

    fn check_counts(&self, variants: &[Variant], probes: &[Probe]) -> Result<(), Invalid> {
        let limits = &self.limits;
        let bounded = |field: String, n: usize, most: u32| {
            if n <= most as usize {
                return Ok(());
            }
            Err(Invalid::field(
                field,
                format!("has {n} entries; at most {most}"),
            ))
        };
        bounded("variants".to_owned(), variants.len(), limits.max_variants)?;
        bounded("probes".to_owned(), probes.len(), limits.max_probes)?;
        for (v, variant) in variants.iter().enumerate() {
            let (interventions, stops) = (variant.interventions.len(), variant.stop_when.len());
            let field = format!("variants[{v}].interventions");
            bounded(field, interventions, limits.max_interventions)?;
            let field = format!("variants[{v}].stop_when");
            bounded(field, stops, limits.max_stop_conditions)?;
        }
        Ok(())
    }

    /// Checks that a hook point exists.
    pub(super) fn check_layer(&self, hook: HookPoint, field: &str) -> Result<(), Invalid> {
        let n_layers = self.model.config().layers.len();
        if hook.layer < n_layers {
            return Ok(());
        }
        let text = format!(
            "{hook} does not exist; {} has layers 0 to {}",
            self.model_id,
            n_layers - 1
        );
        Err(Invalid::field(field, text))
    }

    /// Checks that the tokens that an edit is for exist.
    fn check_positions(&self, positions: &Positions, path: &str) -> Result<(), Invalid> {
        let vocab_size = self.model.config().vocab_size;
        // They are sorted.
        match positions.token_ids.last() {
            Some(&id) if id as usize >= vocab_size => {
                let text = format!("has {id}; token ids are below {vocab_size}");
                Err(Invalid::field(format!("{path}.positions.token_ids"), text))
            }
            _ => Ok(()),
        }
    }

    /// Refuses readings of a prompt that do not fit the message of the first token.
    pub(super) fn check_readings(
        &self,
        prompt_len: usize,
        telemetry: Telemetry,
        probes: usize,
        programs: &[Arc<Program>],
    ) -> Result<(), Invalid> {
        if !programs.iter().any(|program| program.reports_prompt()) {
            return Ok(());
        }
        let edited = programs.iter().map(|program| program.edited().count());
        let norms = match telemetry.edit_norms {
            true => edited.max().unwrap_or(0),
            false => 0,
        };
        let of_token = READING_BYTES + 2 * VALUE_BYTES * probes + EDIT_NORM_BYTES * norms;
        let most = room_for_numbers(self.limits.max_response_bytes) / of_token;
        if prompt_len <= most {
            return Ok(());
        }
        let text = format!(
            "the prompt has {prompt_len} tokens; readings of {most} fit one message of {} bytes: \
             take fewer probes, or a shorter prompt",
            self.limits.max_response_bytes
        );
        Err(Invalid::field("telemetry.prompt_readings", text))
    }

    fn check_use(
        &self,
        payload: &Use<'_>,
        path: &str,
        warnings: &mut Vec<String>,
    ) -> Result<(), RequestError> {
        let Use {
            hook,
            width: has,
            name,
            trained_on,
            hook_field,
            payload_field,
        } = payload;
        self.check_layer(*hook, &format!("{path}.{hook_field}"))?;
        let width = self.model.width(hook.site);
        let other_model = trained_on.filter(|id| !related(id, &self.model_id));
        if *has != width {
            let text = format!(
                "{name} has {has} components; {hook} of {} is {width} wide",
                self.model_id
            );
            return Err(match other_model {
                None => Invalid::field(format!("{path}.{payload_field}"), text).into(),
                Some(other) => RequestError::Precondition {
                    reason: "WRONG_MODEL",
                    message: format!("{path}: {text}: the SAE was trained on {other}"),
                },
            });
        }
        if let Some(other) = other_model {
            let text = format!(
                "{name} comes from an SAE of {other}; this model is {}",
                self.model_id
            );
            if !warnings.contains(&text) {
                warnings.push(text);
            }
        }
        Ok(())
    }
}

/// Whether two model ids name the same model or siblings, as
/// `google/gemma-2-2b` and `gemma-2-2b-it`: an SAE of one is used on the other.
fn related(a: &str, b: &str) -> bool {
    let stem = |id: &str| {
        let name = id.rsplit('/').next().unwrap_or(id);
        let name = name.split('@').next().unwrap_or(name).to_ascii_lowercase();
        name.replace('_', "-")
    };
    let (a, b) = (stem(a), stem(b));
    a.is_empty() || a.starts_with(&b) || b.starts_with(&a)
}

#[cfg(test)]
mod tests {
    use super::related;

    #[test]
    fn siblings_are_related_and_strangers_are_not() {
        assert!(related("google/gemma-2-2b", "gemma-2-2b-it"));
        assert!(related("", "anything"));
        assert!(related("gemma-3-270m", "gemma-3-270m-Q4_K_M"));
        assert!(!related("gemma-2-9b", "gemma-2-2b-it"));
    }
}
