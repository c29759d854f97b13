//! Reading texts for their activations.

use std::{sync::Arc, time::Instant};

use steering_proto::{
    Invalid,
    capture::{CaptureConfig, CaptureText, Pooling},
    generate::{Priority, Prompt},
};

use super::{Worker, checks::room_for_numbers, prompt::MAX_BYTES_PER_TOKEN};
use crate::{
    engine::{Job, Outcome, SubmitError, Task, link},
    error::RequestError,
    steering::Program,
};

/// A text that the engine reads.
pub(crate) struct Capturing {
    pub(crate) id: u64,
    pub(crate) tokens: Arc<[u32]>,
    pub(crate) outcome: Outcome,
}

/// Tokens of one text whose activations, `width` wide, fit one message.
fn max_captured_tokens(width: usize, response_bytes: u64) -> usize {
    room_for_numbers(response_bytes) / (4 * width)
}

impl Worker {
    /// Checks what is to be captured. Returns the width of the activations.
    pub(crate) fn check_capture(&self, config: &CaptureConfig) -> Result<usize, Invalid> {
        self.check_layer(config.hook, "config.hook_name")?;
        let width = self.model.width(config.hook.site);
        let most = self.max_tokens_read();
        let read = config.max_tokens.unwrap_or(most);
        if read > most {
            let text = format!("is {read}; at most {most}");
            return Err(Invalid::field("config.max_tokens", text));
        }
        if let Pooling::Mean { skip_tokens } = config.pooling
            && skip_tokens >= read
        {
            let text = format!("is {skip_tokens}; no token is left of the {read} that are read");
            return Err(Invalid::field("config.mean.skip_tokens", text));
        }
        let most = max_captured_tokens(width, self.limits.max_response_bytes);
        if config.pooling == Pooling::PerToken && read > most {
            let text = format!(
                "is {read}; {most} activations {width} wide fit one message: lower it, or \
                 take means"
            );
            return Err(Invalid::field("config.max_tokens", text));
        }
        Ok(width)
    }

    /// Token ids of a text, cut as configured, and the job to read them.
    pub(crate) fn prepare_capture(
        &self,
        config: &CaptureConfig,
        text: CaptureText,
        deadline: Option<Instant>,
    ) -> Result<(Capturing, Job), RequestError> {
        let CaptureText { id, mut prompt } = text;
        let read = config.max_tokens.unwrap_or(self.max_tokens_read());
        if let Prompt::Text(text) = &mut prompt {
            // What lies far behind the cut need not be tokenized.
            text.truncate(text.floor_char_boundary(MAX_BYTES_PER_TOKEN * read));
        }
        let mut ids = self.tokenize(&prompt)?.ids;
        ids.truncate(read);
        let tokens: Arc<[u32]> = ids.into();
        let begins_with_bos = self.codec.bos_token_id() == Some(tokens[0]);
        let pooling = match config.pooling {
            Pooling::PerToken => Pooling::PerToken,
            Pooling::Mean { skip_tokens } => Pooling::Mean {
                skip_tokens: skip_tokens + usize::from(begins_with_bos),
            },
        };
        let (link, outcome) = link(1, deadline);
        let program = Arc::new(Program::capture(config.hook, pooling));
        self.check_memory(tokens.len(), &Task::Capture, &[])?;
        let job = Job {
            prompt: tokens.clone(),
            task: Task::Capture,
            variants: vec![program],
            priority: Priority::Batch,
            link,
        };
        let capturing = Capturing {
            id,
            tokens,
            outcome,
        };
        Ok((capturing, job))
    }

    /// Hands a job to the engine.
    pub(crate) fn submit(&self, job: Job) -> Result<(), SubmitError> {
        self.engine.submit(job)
    }
}
