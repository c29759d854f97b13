//! Scoring a given continuation.

use std::{sync::Arc, time::Instant};

use steering_proto::{
    Invalid,
    generate::{Telemetry, Variant},
    score::Score,
};

use super::{Worker, compile};
use crate::{
    engine::{Job, Outcome, Task, link},
    error::RequestError,
    steering::Program,
};

/// A request to score that the engine has taken.
pub(crate) struct Scoring {
    pub(crate) prompt: Arc<[u32]>,
    pub(crate) continuation: Arc<[u32]>,
    pub(crate) variants: Vec<Variant>,
    pub(crate) programs: Vec<Arc<Program>>,
    pub(crate) warnings: Vec<String>,
    pub(crate) outcome: Outcome,
}

impl Worker {
    /// Checks a request to score and hands it to the engine.
    pub(crate) fn accept_score(
        &self,
        request: Score,
        deadline: Option<Instant>,
    ) -> Result<Scoring, RequestError> {
        let Score {
            prompt,
            continuation,
            variants,
            priority,
        } = request;
        let warnings = self.check_payloads(&variants, &[])?;
        let prompt: Arc<[u32]> = self.prompt_ids(&prompt)?.ids.into();
        let continuation: Arc<[u32]> = self.continuation_ids(&continuation)?.into();
        let total = prompt.len() + continuation.len();
        let limits = &self.limits;
        let limited = limits.max_prompt_tokens + limits.max_new_tokens;
        let most = self.context_length.min(limited as usize);
        if total > most {
            let text = format!("prompt and continuation have {total} tokens; at most {most}");
            return Err(Invalid::field("continuation", text).into());
        }
        let programs = compile(&variants, &[], Telemetry::default())?;
        let task = Task::Score {
            continuation: continuation.clone(),
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
        Ok(Scoring {
            prompt,
            continuation,
            variants,
            programs,
            warnings,
            outcome,
        })
    }
}
