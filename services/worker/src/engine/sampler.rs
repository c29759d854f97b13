//! Choosing a token from logits: processors and warpers in transformers' order
//! (repetition penalty, temperature, top-k, top-p, min-p), then one draw.

use std::cmp::Ordering;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{SamplingPlan, Strategy};
use crate::model::{argmax, at_least_kth, log_sum_exp};

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The token.
    pub token_id: u32,
    /// ln p under the model, before penalties, temperature and truncation.
    pub logprob: f32,
    /// The most likely tokens and their ln p, best first, if asked for.
    pub top: Vec<(u32, f32)>,
}

/// A sequence's source of randomness: its own, so that its tokens do not
/// depend on what else is in the batch.
#[derive(Debug)]
pub(super) struct Sampler {
    rng: ChaCha8Rng,
}

impl Sampler {
    pub(super) fn new(plan: &SamplingPlan) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(plan.seed),
        }
    }

    /// Chooses the token that follows `seen` (prompt and generated).
    pub(super) fn choose(&mut self, logits: &[f32], seen: &[u32], plan: &SamplingPlan) -> Choice {
        let normalizer = log_sum_exp(logits);
        let token_id = self.pick(logits, seen, plan);
        let top = most_likely(logits, plan.top_logprobs)
            .into_iter()
            .map(|id| (id, logits[id as usize] - normalizer))
            .collect();
        Choice {
            token_id,
            logprob: logits[token_id as usize] - normalizer,
            top,
        }
    }

    fn pick(&mut self, logits: &[f32], seen: &[u32], plan: &SamplingPlan) -> u32 {
        let penalized = (plan.repetition_penalty != 1.0)
            .then(|| penalize(logits, seen, plan.repetition_penalty));
        let logits = penalized.as_deref().unwrap_or(logits);
        match plan.strategy {
            Strategy::Greedy => argmax(logits),
            Strategy::Sample {
                temperature,
                top_k,
                top_p,
                min_p,
            } => {
                let mut candidates = warm(logits, temperature, top_k);
                keep_top_p(&mut candidates, top_p);
                keep_min_p(&mut candidates, min_p);
                draw(&candidates, self.rng.random::<f64>())
            }
        }
    }
}

/// Divides positive and multiplies negative logits of tokens seen, once each.
fn penalize(logits: &[f32], seen: &[u32], penalty: f32) -> Vec<f32> {
    let mut out = logits.to_vec();
    for &id in seen {
        let Some(&logit) = logits.get(id as usize) else {
            continue;
        };
        out[id as usize] = if logit < 0.0 {
            logit * penalty
        } else {
            logit / penalty
        };
    }
    out
}

fn by_logit(a: &(u32, f32), b: &(u32, f32)) -> Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}

/// Ids of the `n` largest logits, best first.
fn most_likely(logits: &[f32], n: usize) -> Vec<u32> {
    if n == 0 {
        return Vec::new();
    }
    let mut best = at_least_kth(logits, n);
    best.sort_unstable_by(by_logit);
    best.truncate(n);
    best.into_iter().map(|(id, _)| id).collect()
}

/// Tokens and their unnormalised probabilities at a temperature, best first.
/// As transformers, top-k keeps all tokens that tie with the k-th.
fn warm(logits: &[f32], temperature: f32, top_k: u32) -> Vec<(u32, f64)> {
    let mut all = at_least_kth(logits, top_k as usize);
    all.sort_unstable_by(by_logit);
    let max = all.first().map_or(0.0, |(_, logit)| *logit);
    all.into_iter()
        .map(|(id, logit)| (id, (f64::from(logit - max) / f64::from(temperature)).exp()))
        .collect()
}

/// Keeps the smallest set of likeliest tokens with at least this probability.
fn keep_top_p(candidates: &mut Vec<(u32, f64)>, top_p: f32) {
    if top_p >= 1.0 {
        return;
    }
    let target = f64::from(top_p) * candidates.iter().map(|(_, p)| p).sum::<f64>();
    let mut mass = 0.0;
    let kept = candidates
        .iter()
        .take_while(|(_, p)| {
            let wanted = mass < target;
            mass += p;
            wanted
        })
        .count();
    candidates.truncate(kept.max(1));
}

/// Drops tokens below this fraction of the likeliest one's probability.
fn keep_min_p(candidates: &mut Vec<(u32, f64)>, min_p: f32) {
    let best = candidates.first().map_or(0.0, |(_, p)| *p);
    candidates.retain(|(_, p)| *p >= f64::from(min_p) * best);
}

/// The token at `u` in [0, 1) of the candidates' total probability.
fn draw(candidates: &[(u32, f64)], u: f64) -> u32 {
    let total: f64 = candidates.iter().map(|(_, p)| p).sum();
    let mut left = u * total;
    for (id, p) in candidates {
        left -= p;
        if left < 0.0 {
            return *id;
        }
    }
    candidates.last().map_or(0, |(id, _)| *id)
}

/// KL(p ‖ q) in nats of two next-token distributions.
pub(super) fn kl_divergence(p: &[f32], q: &[f32]) -> f32 {
    let (p_norm, q_norm) = (log_sum_exp(p), log_sum_exp(q));
    let terms = p.iter().zip(q).map(|(p, q)| {
        let (ln_p, ln_q) = (f64::from(p - p_norm), f64::from(q - q_norm));
        ln_p.exp() * (ln_p - ln_q)
    });
    // Rounding can take the divergence of equal distributions below 0.
    terms.sum::<f64>().max(0.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(strategy: Strategy) -> SamplingPlan {
        SamplingPlan {
            max_new_tokens: 1,
            strategy,
            repetition_penalty: 1.0,
            seed: 3,
            stop: Vec::new(),
            top_logprobs: 2,
            ignore_eos: false,
            eos_token_ids: Vec::new(),
        }
    }

    const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, 2.0, -1.0];

    #[test]
    fn greedy_takes_the_first_of_the_best_and_reports_raw_logprobs() {
        let choice =
            Sampler::new(&plan(Strategy::Greedy)).choose(&LOGITS, &[], &plan(Strategy::Greedy));
        assert_eq!(choice.token_id, 1);
        let total: f32 = LOGITS.iter().map(|l| l.exp()).sum();
        assert!((choice.logprob - (2.0 - total.ln())).abs() < 1e-6);
        assert_eq!(choice.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn the_penalty_counts_a_token_once_and_pushes_both_signs_down() {
        let out = penalize(&LOGITS, &[1, 1, 4], 2.0);
        assert_eq!(out, [0.0, 1.0, 1.0, 2.0, -2.0]);
    }

    #[test]
    fn truncations_keep_what_transformers_keeps() {
        // top-k 1 keeps the tie.
        assert_eq!(warm(&LOGITS, 1.0, 1).len(), 2);
        let mut nucleus = warm(&LOGITS, 1.0, 0);
        keep_top_p(&mut nucleus, 0.5);
        assert_eq!(nucleus.iter().map(|c| c.0).collect::<Vec<_>>(), [1, 3]);
        let mut likely = warm(&LOGITS, 1.0, 0);
        keep_min_p(&mut likely, 0.3);
        assert_eq!(likely.iter().map(|c| c.0).collect::<Vec<_>>(), [1, 3, 2]);
    }

    #[test]
    fn divergence_is_zero_only_between_equals() {
        assert_eq!(kl_divergence(&LOGITS, &LOGITS), 0.0);
        // p = (1/2, 1/2), q = (1/4, 3/4): ½ ln 2 + ½ ln ⅔.
        let expected = 0.5 * (2.0f32.ln() + (2.0f32 / 3.0).ln());
        let got = kl_divergence(&[0.0, 0.0], &[0.0, 3.0f32.ln()]);
        assert!((got - expected).abs() < 1e-6);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let plan = plan(Strategy::Sample {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        });
        let mut sampler = Sampler::new(&plan);
        let mut counts = [0u32; 5];
        for _ in 0..20_000 {
            counts[sampler.choose(&LOGITS, &[], &plan).token_id as usize] += 1;
        }
        let total: f32 = LOGITS.iter().map(|l| l.exp()).sum();
        for (count, logit) in counts.iter().zip(LOGITS) {
            let expected = logit.exp() / total;
            assert!((*count as f32 / 20_000.0 - expected).abs() < 0.015);
        }
    }
}
