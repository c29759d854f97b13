//! From a prompt to token ids.

use steering_proto::{Invalid, generate::Prompt, score::Continuation};

use super::Worker;
use crate::error::RequestError;

/// No tokenizer packs ordinary text more tightly than this.
pub(super) const MAX_BYTES_PER_TOKEN: usize = 64;

/// A tokenized prompt.
pub(crate) struct PromptIds {
    pub(crate) ids: Vec<u32>,
    /// What the chat template rendered; empty for other prompts.
    pub(crate) rendered: String,
}

impl Worker {
    /// Token ids of a prompt, and the rendered template of a chat. Leaves room
    /// for one token.
    pub(crate) fn prompt_ids(&self, prompt: &Prompt) -> Result<PromptIds, RequestError> {
        let tokenized = self.tokenize(prompt)?;
        let n = tokenized.ids.len();
        let most = self.limits.max_prompt_tokens as usize;
        if n > most {
            let why = if most + 1 == self.context_length {
                " leave room for one generated token"
            } else {
                ""
            };
            let text = format!("has {n} tokens; at most {most}{why}");
            return Err(Invalid::field("prompt", text).into());
        }
        Ok(tokenized)
    }

    /// Most tokens of a text that is read and not written on: the whole context, unless
    /// prompts are limited further.
    pub(super) fn max_tokens_read(&self) -> usize {
        match self.limits.max_prompt_tokens as usize {
            most if most + 1 == self.context_length => self.context_length,
            most => most,
        }
    }

    /// As [`Worker::prompt_ids`], for a prompt that may be cut.
    pub(super) fn tokenize(&self, prompt: &Prompt) -> Result<PromptIds, RequestError> {
        self.check_prompt_bytes(prompt)?;
        let (ids, rendered) = match prompt {
            Prompt::Text(text) => (self.codec.encode(text)?, String::new()),
            Prompt::Chat {
                messages,
                add_generation_prompt,
            } => {
                let rendered = self.codec.render_chat(messages, *add_generation_prompt)?;
                (self.codec.encode_bare(&rendered)?, rendered)
            }
            Prompt::TokenIds(ids) => (ids.clone(), String::new()),
        };
        self.check_ids(&ids, "prompt.token_ids.ids")?;
        if ids.is_empty() {
            return Err(Invalid::field("prompt", "has no tokens").into());
        }
        Ok(PromptIds { ids, rendered })
    }

    /// Token ids of a continuation, which brings no special tokens of its own.
    pub(super) fn continuation_ids(
        &self,
        continuation: &Continuation,
    ) -> Result<Vec<u32>, RequestError> {
        let ids = match continuation {
            Continuation::TokenIds(ids) => ids.clone(),
            Continuation::Text(text) => {
                self.check_bytes(text.len(), "text")?;
                self.codec.encode_bare(text)?
            }
        };
        self.check_ids(&ids, "token_ids.ids")?;
        if ids.is_empty() {
            return Err(Invalid::field("text", "has no tokens").into());
        }
        Ok(ids)
    }

    fn check_ids(&self, ids: &[u32], field: &str) -> Result<(), Invalid> {
        let vocab_size = self.model.config().vocab_size;
        match ids.iter().position(|&id| id as usize >= vocab_size) {
            None => Ok(()),
            Some(i) => {
                let text = format!("is {}; token ids are below {vocab_size}", ids[i]);
                Err(Invalid::field(format!("{field}[{i}]"), text))
            }
        }
    }

    /// Refuses text that cannot fit the context before time is spent on it.
    fn check_prompt_bytes(&self, prompt: &Prompt) -> Result<(), Invalid> {
        let bytes = match prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Chat { messages, .. } => messages.iter().map(|m| m.content.len()).sum(),
            Prompt::TokenIds(_) => 0,
        };
        self.check_bytes(bytes, "prompt")
    }

    fn check_bytes(&self, bytes: usize, field: &str) -> Result<(), Invalid> {
        let most = MAX_BYTES_PER_TOKEN * self.context_length;
        if bytes <= most {
            return Ok(());
        }
        let text = format!(
            "has {bytes} bytes; at most {most}, the context of {} tokens being full before",
            self.context_length
        );
        Err(Invalid::field(field, text))
    }
}
