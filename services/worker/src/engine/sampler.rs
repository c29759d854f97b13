//! Choosing a token from logits: processors and warpers in transformers' order
//! (repetition penalty, temperature, top-k, top-p, min-p), then one draw.

use std::cmp::Ordering;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{SamplingPlan, Strategy};
use crate::model::{Top, argmax, at_least_kth, log_sum_exp};

/// What the model says of the next token.
#[derive(Debug, Clone, Copy)]
pub(super) enum Next<'a> {
    /// All logits.
    Logits(&'a [f32]),
    /// As many of the greatest as the plan [needs](SamplingPlan::top_needed).
    Top(&'a Top),
}

impl Next<'_> {
    pub(super) fn log_sum_exp(self) -> f32 {
        match self {
            Self::Logits(logits) => log_sum_exp(logits),
            Self::Top(top) => top.log_sum_exp,
        }
    }

    fn logit(self, token_id: u32) -> f32 {
        match self {
            Self::Logits(logits) => logits[token_id as usize],
            Self::Top(top) => {
                let found = top.candidates.iter().find(|(id, _)| *id == token_id);
                found.map_or(f32::NEG_INFINITY, |(_, logit)| *logit)
            }
        }
    }

    /// Of the greatest, the one that comes first.
    fn argmax(self) -> u32 {
        match self {
            Self::Logits(logits) => argmax(logits),
            Self::Top(top) => {
                let first = top.candidates.iter().min_by(|a, b| by_logit(a, b));
                first.map_or(0, |(id, _)| *id)
            }
        }
    }

    /// Ids and logits that are at least as large as the `k`th largest, the largest
    /// first; with 0, all.
    fn at_least_kth(self, k: usize) -> Vec<(u32, f32)> {
        let mut all = match self {
            Self::Logits(logits) => at_least_kth(logits, k),
            Self::Top(top) => top.candidates.clone(),
        };
        all.sort_unstable_by(by_logit);
        // The model gives more than were asked for.
        if let (Self::Top(_), Some(&(_, least))) = (self, all.get(k.wrapping_sub(1))) {
            all.retain(|(_, logit)| *logit >= least);
        }
        all
    }
}

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
    pub(super) fn choose(&mut self, next: Next<'_>, seen: &[u32], plan: &SamplingPlan) -> Choice {
        let normalizer = next.log_sum_exp();
        let token_id = self.pick(next, seen, plan);
        let top = most_likely(next, plan.top_logprobs)
            .into_iter()
            .map(|(id, logit)| (id, logit - normalizer))
            .collect();
        Choice {
            token_id,
            logprob: next.logit(token_id) - normalizer,
            top,
        }
    }

    fn pick(&mut self, next: Next<'_>, seen: &[u32], plan: &SamplingPlan) -> u32 {
        let penalized = match next {
            Next::Logits(logits) if plan.repetition_penalty != 1.0 => {
                Some(penalize(logits, seen, plan.repetition_penalty))
            }
            Next::Logits(_) | Next::Top(_) => None,
        };
        let next = penalized.as_deref().map_or(next, Next::Logits);
        match plan.strategy {
            Strategy::Greedy => next.argmax(),
            Strategy::Sample {
                temperature,
                top_k,
                top_p,
                min_p,
            } => {
                let mut candidates = warm(next, temperature, top_k);
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

/// The `n` largest logits and their ids, best first.
fn most_likely(next: Next<'_>, n: usize) -> Vec<(u32, f32)> {
    if n == 0 {
        return Vec::new();
    }
    let mut best = next.at_least_kth(n);
    best.truncate(n);
    best
}

/// Tokens and their unnormalised probabilities at a temperature, best first.
/// As transformers, top-k keeps all tokens that tie with the k-th.
fn warm(next: Next<'_>, temperature: f32, top_k: u32) -> Vec<(u32, f64)> {
    let all = next.at_least_kth(top_k as usize);
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
    const ALL: Next<'_> = Next::Logits(&LOGITS);

    #[test]
    fn the_greatest_logits_do_where_the_plan_needs_no_more() {
        let strategies = [
            Strategy::Greedy,
            Strategy::Sample {
                temperature: 0.7,
                top_k: 3,
                top_p: 0.9,
                min_p: 0.05,
            },
        ];
        for strategy in strategies {
            let plan = plan(strategy);
            let needed = plan.top_needed().expect("bounded");
            // One more than that, in any order.
            let mut candidates = at_least_kth(&LOGITS, needed as usize + 1);
            candidates.reverse();
            let top = Top {
                candidates,
                log_sum_exp: log_sum_exp(&LOGITS),
            };
            let (mut of_all, mut of_top) = (Sampler::new(&plan), Sampler::new(&plan));
            for _ in 0..50 {
                let expected = of_all.choose(ALL, &[], &plan);
                assert_eq!(of_top.choose(Next::Top(&top), &[], &plan), expected);
            }
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_best_and_reports_raw_logprobs() {
        let choice =
            Sampler::new(&plan(Strategy::Greedy)).choose(ALL, &[], &plan(Strategy::Greedy));
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
        assert_eq!(warm(ALL, 1.0, 1).len(), 2);
        let mut nucleus = warm(ALL, 1.0, 0);
        keep_top_p(&mut nucleus, 0.5);
        assert_eq!(nucleus.iter().map(|c| c.0).collect::<Vec<_>>(), [1, 3]);
        let mut likely = warm(ALL, 1.0, 0);
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
            counts[sampler.choose(ALL, &[], &plan).token_id as usize] += 1;
        }
        let total: f32 = LOGITS.iter().map(|l| l.exp()).sum();
        for (count, logit) in counts.iter().zip(LOGITS) {
            let expected = logit.exp() / total;
            assert!((*count as f32 / 20_000.0 - expected).abs() < 0.015);
        }
    }
}
