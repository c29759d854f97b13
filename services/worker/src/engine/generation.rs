//! Writing on: from logits to tokens, text and their events.

use std::sync::Arc;

use super::{
    Event, Finish, FinishReason, SamplingPlan, TokenEvent,
    sampler::{Next, Sampler, kl_divergence},
    sequence::{Sequence, Work},
};
use crate::{
    model::{Logits, Top},
    text::{IncrementalDecoder, StopMatcher, TextCodec},
};

/// What a sequence that writes needs beyond its tokens.
#[derive(Debug)]
pub(super) struct Generation {
    sampling: Arc<SamplingPlan>,
    sampler: Sampler,
    decoder: IncrementalDecoder,
    stops: StopMatcher,
    /// Most tokens, prompt included.
    context_length: usize,
    /// Report the divergence from the unsteered model.
    kl_divergence: bool,
    /// Whether the model is better asked for the greatest logits than for all.
    takes_top: bool,
}

impl Generation {
    pub(super) fn new(
        sampling: Arc<SamplingPlan>,
        kl_divergence: bool,
        takes_top: bool,
        codec: &Arc<TextCodec>,
        context_length: usize,
    ) -> Self {
        Self {
            sampler: Sampler::new(&sampling),
            decoder: IncrementalDecoder::new(codec.clone()),
            stops: StopMatcher::new(sampling.stop.iter().cloned()),
            sampling,
            context_length,
            kl_divergence,
            takes_top,
        }
    }

    /// What the next token is chosen by. Of a twin only all logits will do.
    pub(super) fn logits(&self, lanes: usize) -> Logits {
        match self.sampling.top_needed() {
            Some(n) if self.takes_top && lanes == 1 => Logits::Top(n),
            _ => Logits::Last,
        }
    }

    fn end_after(&self, id: u32, len: usize, prompt_len: usize) -> Option<FinishReason> {
        if !self.sampling.ignore_eos && self.sampling.eos_token_ids.contains(&id) {
            Some(FinishReason::Eos)
        } else if len - prompt_len >= self.sampling.max_new_tokens {
            Some(FinishReason::MaxNewTokens)
        } else if len >= self.context_length {
            Some(FinishReason::ContextLength)
        } else {
            None
        }
    }

    /// Text held back until the end.
    fn rest(&mut self, reason: FinishReason) -> String {
        if reason == FinishReason::Stop {
            return String::new();
        }
        let tail = self.decoder.finish().unwrap_or_default();
        let mut text = self.stops.push(&tail).text;
        text.push_str(&self.stops.finish());
        text
    }
}

impl Sequence {
    /// Chooses the next token from the logits of the last one, and those of the
    /// unsteered twin if there is one; or ends, if a stop condition fired or there is
    /// nothing to choose by.
    pub(super) fn write(&mut self, logits: &[&[f32]], top: Option<&Top>) -> Result<(), String> {
        let Work::Generate(generation) = &mut self.work else {
            return Ok(());
        };
        let lane = &mut self.lanes[0];
        if let Some(condition) = lane.state.stopped() {
            self.finish(FinishReason::Condition(condition));
            return Ok(());
        }
        let next = top.map_or_else(|| Next::Logits(logits[0]), Next::Top);
        if !next.log_sum_exp().is_finite() {
            self.finish(FinishReason::NotFinite);
            return Ok(());
        }
        let divergence = generation.kl_divergence.then(|| match logits {
            [steered, unsteered] => kl_divergence(steered, unsteered),
            _ => 0.0, // without interventions there is no twin, and no difference
        });
        let choice = generation
            .sampler
            .choose(next, &self.tokens, &generation.sampling);
        let id = choice.token_id;
        self.tokens.push(id);
        let mut reason = generation.end_after(id, self.tokens.len(), self.prompt_len);
        let decoded = generation.decoder.push(id).map_err(|e| e.to_string())?;
        let emitted = generation.stops.push(&decoded);
        if emitted.stopped {
            reason = Some(FinishReason::Stop);
        }
        self.link.send(Event::Token(TokenEvent {
            variant: self.variant,
            choice,
            text: emitted.text,
            readings: lane.state.take_readings(),
            kl_divergence: divergence,
        }));
        if let Some(reason) = reason {
            self.finish(reason);
        }
        Ok(())
    }

    fn finish(&mut self, reason: FinishReason) {
        let text = match &mut self.work {
            Work::Generate(generation) => generation.rest(reason),
            Work::Score(_) | Work::Capture => String::new(),
        };
        let lane = &mut self.lanes[0];
        let finish = Finish {
            variant: self.variant,
            reason,
            text,
            generated: self.tokens.len() - self.prompt_len,
            shared_prompt_tokens: self.shared_tokens,
            tallies: lane.state.tallies(&lane.program),
            readings: lane.state.take_readings(),
        };
        self.end(Event::Finished(finish));
    }
}
