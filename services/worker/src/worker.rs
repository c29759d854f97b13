//! A loaded worker: what is served, and how a request becomes a job.

mod capture;
mod checks;
mod prompt;
mod score;

use std::{sync::Arc, time::Instant};

use steering_proto::{
    HookPoint, Invalid, Site,
    generate::{Generate, Telemetry, Variant},
    readout::Probe,
    v1,
};
use steering_service::Queue;

use crate::{
    engine::{
        EngineHandle, GenerationDefaults, Job, Outcome, SamplingPlan, SubmitError, Task, link,
    },
    error::{QUEUE_FULL, RequestError},
    model::Model,
    steering::{Program, ProgramSpec},
    text::TextCodec,
};

pub(crate) use capture::Capturing;
pub(crate) use score::Scoring;

/// Calls that are one job in the engine's queue, or are refused. Texts of a capture wait
/// outside.
const QUEUED_CALLS: [&str; 2] = [
    "/steering.v1.ModelWorkerService/Generate",
    "/steering.v1.ModelWorkerService/ScoreText",
];

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
    pub(crate) programs: Vec<Arc<Program>>,
    pub(crate) probes: Vec<Probe>,
    pub(crate) sampling: Arc<SamplingPlan>,
    pub(crate) warnings: Vec<String>,
    pub(crate) outcome: Outcome,
}

impl Accepted {
    /// Hook points that any variant edits, in the order in which the model
    /// reaches them.
    pub(crate) fn edited(&self) -> Vec<HookPoint> {
        let mut points: Vec<_> = self.programs.iter().flat_map(|p| p.edited()).collect();
        points.sort_unstable();
        points.dedup();
        points
    }
}

impl Worker {
    /// The engine's queue, for the door to know when it is full.
    pub(crate) fn queue(&self) -> Queue {
        let (waiting, most) = self.engine.queue();
        let refusal = RequestError::from(SubmitError::Full { waiting: most });
        Queue::new(&QUEUED_CALLS, waiting, most, QUEUE_FULL, refusal.into())
    }

    /// Checks a request and hands it to the engine.
    pub(crate) fn accept(
        &self,
        request: Generate,
        deadline: Option<Instant>,
    ) -> Result<Accepted, RequestError> {
        let Generate {
            prompt,
            variants,
            sampling,
            probes,
            telemetry,
            priority,
        } = request;
        let warnings = self.check_payloads(&variants, &probes)?;
        if let Some(n) = sampling.max_new_tokens
            && n > self.limits.max_new_tokens
        {
            let text = format!("is {n}; at most {}", self.limits.max_new_tokens);
            return Err(Invalid::field("sampling.max_new_tokens", text).into());
        }
        let prompt: Arc<[u32]> = self.prompt_ids(&prompt)?.ids.into();
        let sampling = {
            let defaults = &self.defaults;
            let mut plan = defaults.resolve(sampling, &self.eos_token_ids, rand::random());
            let most = self.limits.max_new_tokens as usize;
            plan.max_new_tokens = plan.max_new_tokens.min(most); // a default may be more
            Arc::new(plan)
        };
        let programs = compile(&variants, &probes, telemetry)?;
        self.check_readings(prompt.len(), telemetry, probes.len(), &programs)?;
        let task = Task::Generate {
            sampling: sampling.clone(),
            kl_divergence: telemetry.kl_divergence,
        };
        self.check_memory(prompt.len(), &task, &programs)?;
        let (link, outcome) = link(programs.len(), deadline);
        self.engine.submit(Job {
            prompt: prompt.clone(),
            task,
            variants: programs.clone(),
            priority,
            link,
        })?;
        Ok(Accepted {
            prompt,
            variants,
            programs,
            probes,
            sampling,
            warnings,
            outcome,
        })
    }

    /// Refuses what could never start: one variant must fit by itself.
    fn check_memory(
        &self,
        prompt_len: usize,
        task: &Task,
        programs: &[Arc<Program>],
    ) -> Result<(), Invalid> {
        let has_twin = programs.iter().any(|program| task.needs_twin(program));
        let lanes = 1 + usize::from(has_twin);
        if lanes > self.limits.max_sequences as usize {
            let text = "needs two sequences per variant; this worker decodes one at a time";
            return Err(Invalid::field("telemetry.kl_divergence", text));
        }
        let tokens = (prompt_len + task.max_new_tokens()).min(self.context_length);
        let (needed, has) = (
            (lanes * self.model.kv_bytes(tokens)) as u64,
            self.limits.kv_cache_bytes,
        );
        if needed <= has {
            return Ok(());
        }
        let text = format!(
            "with {tokens} tokens, a variant needs {needed} bytes of keys and values; this worker \
             has {has}: shorten the prompt, or lower max_new_tokens"
        );
        Err(Invalid::field("prompt", text))
    }

    /// The model card.
    pub(crate) fn describe(&self) -> v1::GetModelResponse {
        let config = self.model.config();
        let load = self.engine.load();
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
            load: Some(v1::Load {
                running_sequences: load.running_sequences as u32,
                waiting_requests: load.waiting_requests as u32,
                kv_cache_bytes_reserved: load.kv_bytes_reserved as u64,
                prefix_cache_bytes: load.prefix_bytes as u64,
                prefix_cache_tokens: load.prefix_tokens as u64,
            }),
        }
    }
}

/// One program per variant.
fn compile(
    variants: &[Variant],
    probes: &[Probe],
    telemetry: Telemetry,
) -> Result<Vec<Arc<Program>>, Invalid> {
    let programs = variants.iter().enumerate().map(|(v, variant)| {
        let spec = ProgramSpec {
            interventions: &variant.interventions,
            stop_when: &variant.stop_when,
            probes,
            telemetry,
        };
        let program = Program::compile(&spec).map_err(|e| e.within(&format!("variants[{v}]")))?;
        Ok(Arc::new(program))
    });
    programs.collect()
}
