//! A loaded worker: what is served, and how a request becomes a job.

use std::sync::Arc;

use steering_proto::{
    HookPoint, Invalid, Site,
    generate::{Generate, Prompt, Variant},
    intervention::{Edit, Intervention},
    v1,
};
use tokio::sync::mpsc;

use crate::{
    engine::{EngineHandle, Event, GenerationDefaults, Job, SamplingPlan, VariantJob},
    error::RequestError,
    model::Model,
    steering::Program,
    text::TextCodec,
};

/// Everything a request is checked against.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) model_id: String,
    pub(crate) model: Arc<Model>,
    pub(crate) codec: Arc<TextCodec>,
    pub(crate) defaults: GenerationDefaults,
    pub(crate) eos_token_ids: Vec<u32>,
    pub(crate) context_length: usize,
    pub(crate) device_name: String,
    pub(crate) limits: v1::Limits,
    pub(crate) engine: EngineHandle,
}

/// A request that the engine has taken.
pub(crate) struct Accepted {
    pub(crate) prompt: Arc<[u32]>,
    pub(crate) variants: Vec<Variant>,
    /// For each variant and intervention, the earlier one it was merged into.
    pub(crate) merged_into: Vec<Vec<Option<usize>>>,
    pub(crate) sampling: Arc<SamplingPlan>,
    pub(crate) warnings: Vec<String>,
    pub(crate) events: mpsc::Receiver<Event>,
}

/// No tokenizer packs ordinary text more tightly than this.
const MAX_BYTES_PER_TOKEN: usize = 64;
/// Events buffered per variant before a slow reader parks its request.
const EVENTS_PER_VARIANT: usize = 16;

impl Worker {
    /// Checks a request and hands it to the engine.
    pub(crate) fn accept(&self, request: Generate) -> Result<Accepted, RequestError> {
        let Generate {
            prompt,
            variants,
            sampling,
            ..
        } = request;
        self.check_counts(&variants)?;
        let mut warnings = Vec::new();
        for (v, variant) in variants.iter().enumerate() {
            for (i, intervention) in variant.interventions.iter().enumerate() {
                self.check_intervention(intervention, &mut warnings)
                    .map_err(|e| within(e, &format!("variants[{v}].interventions[{i}]")))?;
            }
        }
        if let Some(n) = sampling.max_new_tokens
            && n > self.limits.max_new_tokens
        {
            let text = format!("is {n}; at most {}", self.limits.max_new_tokens);
            return Err(Invalid::field("sampling.max_new_tokens", text).into());
        }
        let prompt: Arc<[u32]> = self.prompt_ids(&prompt)?.ids.into();
        let sampling = self
            .defaults
            .resolve(sampling, &self.eos_token_ids, rand::random());
        let sampling = Arc::new(sampling);
        let (programs, merged_into) = compile(&variants)?;
        let (sender, events) = mpsc::channel(EVENTS_PER_VARIANT * variants.len());
        self.engine.submit(Job {
            prompt: prompt.clone(),
            variants: programs,
            sampling: sampling.clone(),
            events: sender,
        })?;
        Ok(Accepted {
            prompt,
            variants,
            merged_into,
            sampling,
            warnings,
            events,
        })
    }

    fn check_counts(&self, variants: &[Variant]) -> Result<(), Invalid> {
        let most = self.limits.max_variants.min(self.limits.max_sequences) as usize;
        if variants.len() > most {
            let text = format!("has {} entries; at most {most}", variants.len());
            return Err(Invalid::field("variants", text));
        }
        let most = self.limits.max_interventions as usize;
        let over = variants.iter().position(|v| v.interventions.len() > most);
        over.map_or(Ok(()), |v| {
            let n = variants[v].interventions.len();
            let field = format!("variants[{v}].interventions");
            Err(Invalid::field(
                field,
                format!("has {n} entries; at most {most}"),
            ))
        })
    }

    /// Checks an intervention against the model's layers and widths.
    fn check_intervention(
        &self,
        intervention: &Intervention,
        warnings: &mut Vec<String>,
    ) -> Result<(), RequestError> {
        let config = self.model.config();
        let HookPoint { layer, site } = intervention.hook;
        // Fields to blame: a feature brings its hook point with it.
        let (edit, payload_field, hook_field) = match &intervention.edit {
            Edit::Feature { .. } => ("feature", "feature", "feature"),
            Edit::Add { .. } => ("vector_add", "vector", "hook_name"),
            Edit::Ablate { .. } => ("direction_ablate", "vector", "hook_name"),
            Edit::ClampProjection { .. } => ("projection_clamp", "vector", "hook_name"),
        };
        if layer >= config.layers.len() {
            let text = format!(
                "{} does not exist; {} has layers 0 to {}",
                intervention.hook,
                self.model_id,
                config.layers.len() - 1
            );
            return Err(Invalid::field(format!("{edit}.{hook_field}"), text).into());
        }
        let width = self.model.width(site);
        let trained_on = match &intervention.edit {
            Edit::Feature { feature, .. } => Some(&feature.model_id),
            _ => None,
        };
        let other_model = trained_on.filter(|id| !related(id, &self.model_id));
        if intervention.width() != width {
            let text = format!(
                "{} has {} components; {} of {} is {width} wide",
                intervention.payload_name(),
                intervention.width(),
                intervention.hook,
                self.model_id
            );
            return Err(match other_model {
                None => Invalid::field(format!("{edit}.{payload_field}"), text).into(),
                Some(other) => RequestError::Precondition {
                    reason: "WRONG_MODEL",
                    message: format!("{text}: the SAE was trained on {other}"),
                },
            });
        }
        if let Some(other) = other_model {
            let text = format!(
                "{} comes from an SAE of {other}; this model is {}",
                intervention.payload_name(),
                self.model_id
            );
            if !warnings.contains(&text) {
                warnings.push(text);
            }
        }
        Ok(())
    }

    /// Token ids of a prompt, and the rendered template of a chat.
    pub(crate) fn prompt_ids(&self, prompt: &Prompt) -> Result<PromptIds, RequestError> {
        self.check_prompt_bytes(prompt)?;
        let (ids, rendered) = match prompt {
            Prompt::Text(text) => (self.codec.encode(text)?, String::new()),
            Prompt::Chat {
                messages,
                add_generation_prompt,
            } => {
                let rendered = self.codec.render_chat(messages, *add_generation_prompt)?;
                (self.codec.encode_chat(&rendered)?, rendered)
            }
            Prompt::TokenIds(ids) => (ids.clone(), String::new()),
        };
        let vocab_size = self.model.config().vocab_size;
        if let Some(i) = ids.iter().position(|&id| id as usize >= vocab_size) {
            let text = format!("is {}; token ids are below {vocab_size}", ids[i]);
            return Err(Invalid::field(format!("prompt.token_ids.ids[{i}]"), text).into());
        }
        if ids.is_empty() {
            return Err(Invalid::field("prompt", "has no tokens").into());
        }
        if ids.len() >= self.context_length {
            let text = format!(
                "has {} tokens; at most {} leave room for one generated token",
                ids.len(),
                self.context_length - 1
            );
            return Err(Invalid::field("prompt", text).into());
        }
        Ok(PromptIds { ids, rendered })
    }

    /// Refuses text that cannot fit the context before time is spent on it.
    fn check_prompt_bytes(&self, prompt: &Prompt) -> Result<(), Invalid> {
        let bytes = match prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Chat { messages, .. } => messages.iter().map(|m| m.content.len()).sum(),
            Prompt::TokenIds(_) => 0,
        };
        let most = MAX_BYTES_PER_TOKEN * self.context_length;
        if bytes <= most {
            return Ok(());
        }
        let text = format!(
            "has {bytes} bytes; at most {most}, the context of {} tokens being full before",
            self.context_length
        );
        Err(Invalid::field("prompt", text))
    }

    /// The model card.
    pub(crate) fn describe(&self) -> v1::GetModelResponse {
        let config = self.model.config();
        v1::GetModelResponse {
            model_id: self.model_id.clone(),
            model_digest: self.model.digest().to_owned(),
            family: config.family.clone(),
            d_model: config.d_model as u32,
            n_layers: config.layers.len() as u32,
            vocab_size: config.vocab_size as u32,
            context_length: self.context_length as u32,
            dtype: self.model.dtype().as_str().to_owned(),
            quantization: self.model.quantization().to_owned(),
            device: self.device_name.clone(),
            hook_points: Site::ALL
                .into_iter()
                .map(|site| v1::HookPointInfo {
                    name_pattern: format!("blocks.{{L}}.{}", site.suffix()),
                    width: self.model.width(site) as u32,
                })
                .collect(),
            has_chat_template: self.codec.has_chat_template(),
            limits: Some(self.limits),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..Default::default()
        }
    }
}

/// A tokenized prompt.
pub(crate) struct PromptIds {
    pub(crate) ids: Vec<u32>,
    /// What the chat template rendered; empty for other prompts.
    pub(crate) rendered: String,
}

type Compiled = (Vec<VariantJob>, Vec<Vec<Option<usize>>>);

fn compile(variants: &[Variant]) -> Result<Compiled, Invalid> {
    let mut jobs = Vec::with_capacity(variants.len());
    let mut merged = Vec::with_capacity(variants.len());
    for (v, variant) in variants.iter().enumerate() {
        let program = Program::compile(&variant.interventions)
            .map_err(|e| e.within(&format!("variants[{v}]")))?;
        let of = (0..variant.interventions.len()).map(|i| program.merged_into(i));
        merged.push(of.collect());
        jobs.push(VariantJob { program });
    }
    Ok((jobs, merged))
}

fn within(error: RequestError, prefix: &str) -> RequestError {
    match error {
        RequestError::Invalid(invalid) => invalid.within(prefix).into(),
        RequestError::Precondition { reason, message } => RequestError::Precondition {
            reason,
            message: format!("{prefix}: {message}"),
        },
        other => other,
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
