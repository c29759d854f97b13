//! One variant being decoded.

use std::sync::Arc;

use steering_proto::intervention::Token;
use tokio::sync::mpsc::Sender;

use super::{
    Event, Finish, FinishReason, Job, SamplingPlan, TokenEvent, job::VariantJob, sampler::Sampler,
    scheduler::View,
};
use crate::{
    model::{Chunk, Logits},
    steering::{Program, Tally},
    text::{IncrementalDecoder, StopMatcher, TextCodec},
};

/// One variant being decoded.
pub(super) struct Sequence {
    slot: usize,
    variant: usize,
    /// Variants of the same job, which share its event channel.
    siblings: usize,
    program: Program,
    tallies: Vec<Tally>,
    /// Prompt, then generated.
    tokens: Vec<u32>,
    prompt_len: usize,
    /// Tokens the model has read.
    read: usize,
    /// Most tokens, prompt included.
    context_length: usize,
    sampling: Arc<SamplingPlan>,
    sampler: Sampler,
    decoder: IncrementalDecoder,
    stops: StopMatcher,
    events: Sender<Event>,
    finished: bool,
}

impl Sequence {
    /// The sequences of a job, one per variant and slot.
    pub(super) fn of_job(
        job: Job,
        slots: Vec<usize>,
        codec: &Arc<TextCodec>,
        context_length: usize,
    ) -> Vec<Self> {
        let Job {
            prompt,
            variants,
            sampling,
            events,
        } = job;
        let siblings = variants.len();
        variants
            .into_iter()
            .zip(slots)
            .enumerate()
            .map(|(variant, (VariantJob { program }, slot))| Self {
                slot,
                variant,
                siblings,
                tallies: program.new_tallies(),
                program,
                tokens: prompt.to_vec(),
                prompt_len: prompt.len(),
                read: 0,
                context_length,
                sampler: Sampler::new(&sampling),
                decoder: IncrementalDecoder::new(codec.clone()),
                stops: StopMatcher::new(sampling.stop.iter().cloned()),
                sampling: sampling.clone(),
                events: events.clone(),
                finished: false,
            })
            .collect()
    }

    pub(super) fn slot(&self) -> usize {
        self.slot
    }

    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether nobody reads its events any more.
    pub(super) fn is_abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Whether its reader has room for a step: each sibling may send a token
    /// and its end.
    pub(super) fn is_runnable(&self) -> bool {
        self.events.capacity() >= 2 * self.siblings
    }

    pub(super) fn view(&self) -> View {
        View {
            unread: self.tokens.len() - self.read,
            runnable: self.is_runnable(),
        }
    }

    pub(super) fn steering(&mut self) -> (&Program, &mut [Tally]) {
        (&self.program, &mut self.tallies)
    }

    /// The next `n` unread tokens, for the model and for the steering.
    pub(super) fn chunk(&self, n: usize, codec: &TextCodec) -> (Chunk, Vec<Token>) {
        let end = self.read + n;
        let ids = &self.tokens[self.read..end];
        let tokens = ids
            .iter()
            .zip(self.read..)
            .map(|(&id, position)| Token {
                id,
                position: position as u32,
                generated: position >= self.prompt_len,
                special: codec.is_special(id),
            })
            .collect();
        let chunk = Chunk {
            slot: self.slot,
            start: self.read,
            tokens: ids.to_vec(),
            logits: if end == self.tokens.len() {
                Logits::Last
            } else {
                Logits::None
            },
            shared: None,
        };
        (chunk, tokens)
    }

    /// Notes that `n` more tokens were read. Returns whether the next token is
    /// to be chosen.
    pub(super) fn advance(&mut self, n: usize) -> bool {
        self.read += n;
        self.read == self.tokens.len()
    }

    /// Chooses the next token from the logits of the last one.
    pub(super) fn choose(&mut self, logits: &[f32]) {
        let choice = self.sampler.choose(logits, &self.tokens, &self.sampling);
        let id = choice.token_id;
        self.tokens.push(id);
        let mut reason = self.end_after(id);
        let decoded = match self.decoder.push(id) {
            Ok(text) => text,
            Err(e) => return self.fail(&e.to_string()),
        };
        let emitted = self.stops.push(&decoded);
        if emitted.stopped {
            reason = Some(FinishReason::Stop);
        }
        self.send(Event::Token(TokenEvent {
            variant: self.variant,
            choice,
            text: emitted.text,
        }));
        if let Some(reason) = reason {
            self.finish(reason);
        }
    }

    fn end_after(&self, id: u32) -> Option<FinishReason> {
        if !self.sampling.ignore_eos && self.sampling.eos_token_ids.contains(&id) {
            Some(FinishReason::Eos)
        } else if self.tokens.len() - self.prompt_len >= self.sampling.max_new_tokens {
            Some(FinishReason::MaxNewTokens)
        } else if self.tokens.len() >= self.context_length {
            Some(FinishReason::ContextLength)
        } else {
            None
        }
    }

    fn finish(&mut self, reason: FinishReason) {
        let text = if reason == FinishReason::Stop {
            String::new()
        } else {
            let tail = self.decoder.finish().unwrap_or_default();
            let mut text = self.stops.push(&tail).text;
            text.push_str(&self.stops.finish());
            text
        };
        self.finished = true;
        self.send(Event::Finished(Finish {
            variant: self.variant,
            reason,
            text,
            generated: self.tokens.len() - self.prompt_len,
            tallies: self.tallies.clone(),
        }));
    }

    /// Ends the sequence because of an internal error.
    pub(super) fn fail(&mut self, problem: &str) {
        self.finished = true;
        self.send(Event::Failed(problem.to_owned()));
    }

    fn send(&self, event: Event) {
        // Room was checked before the step. An error means that the reader has
        // gone; the sequence is dropped before the next step.
        let _ = self.events.try_send(event);
    }
}
