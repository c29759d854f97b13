//! Reading a given continuation: how likely was it?

use super::{
    Event, Failure, Scored,
    sequence::{Sequence, Work},
};
use crate::model::log_sum_exp;

/// Tokens scored in one step, at most: each needs a row of logits.
pub(super) const MAX_LOGIT_ROWS: usize = 64;

/// What a sequence that scores needs beyond its tokens.
#[derive(Debug, Default)]
pub(super) struct Scoring {
    /// ln p of each continuation token so far.
    logprobs: Vec<f32>,
}

impl Sequence {
    /// Takes the next rows of logits; each scores the token behind it.
    pub(super) fn score(&mut self, logits: &[&[f32]]) {
        let Work::Score(scoring) = &mut self.work else {
            return;
        };
        for row in logits {
            let next = self.tokens[self.prompt_len + scoring.logprobs.len()];
            let normalizer = log_sum_exp(row);
            if !normalizer.is_finite() {
                return self.link.fail(Failure::NotFinite(self.variant));
            }
            scoring.logprobs.push(row[next as usize] - normalizer);
        }
        if self.prompt_len + scoring.logprobs.len() == self.tokens.len() {
            let lane = &self.lanes[0];
            let scored = Scored {
                variant: self.variant,
                logprobs: std::mem::take(&mut scoring.logprobs),
                tallies: lane.state.tallies(&lane.program),
            };
            self.end(Event::Scored(scored));
        }
    }
}
