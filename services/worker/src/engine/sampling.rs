//! Sampling parameters with every default resolved, as `transformers` does it.

use serde::Deserialize;
use serde_json::{Map, Value};
use steering_proto::{generate::Sampling, v1};

/// `top_k` of transformers' `GenerationConfig` where nothing else is said.
const DEFAULT_TOP_K: u32 = 50;
/// Tokens generated where nothing else is said. (transformers' default, a total
/// length of 20, serves nobody.)
const DEFAULT_MAX_NEW_TOKENS: u32 = 128;

/// How a variant's tokens are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingPlan {
    /// Most tokens to generate.
    pub max_new_tokens: usize,
    /// Greedy or sampled.
    pub strategy: Strategy,
    /// 1 = off.
    pub repetition_penalty: f32,
    /// Seed of every variant's sampler.
    pub seed: u64,
    /// Stop strings.
    pub stop: Vec<String>,
    /// Alternatives to report with every token.
    pub top_logprobs: usize,
    /// Go on after an end-of-sequence token.
    pub ignore_eos: bool,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
}

/// Greedy or sampled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Strategy {
    /// The most likely token.
    Greedy,
    /// A random token, after truncation in this order.
    Sample {
        /// Divides the logits.
        temperature: f32,
        /// 0 = all.
        top_k: u32,
        /// 1 = all.
        top_p: f32,
        /// 0 = all.
        min_p: f32,
    },
}

/// A model's `generation_config.json`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct GenerationDefaults {
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
    max_new_tokens: Option<u32>,
    eos_token_id: Option<TokenIds>,
    /// What this version does not apply; see [`GenerationDefaults::parse`].
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl GenerationDefaults {
    /// Parses the file. Settings that would change what is generated and that
    /// this version does not apply are named in a warning.
    pub fn parse(json: &str) -> Result<Self, serde_json::Error> {
        const INERT: &[&str] = &[
            "_from_model_config",
            "bos_token_id",
            "cache_implementation",
            "max_length",
            "pad_token_id",
            "transformers_version",
            "use_cache",
        ];
        let defaults: Self = serde_json::from_str(json)?;
        let unapplied: Vec<&str> = defaults
            .rest
            .iter()
            .filter(|(key, value)| {
                let off = matches!(value, Value::Null | Value::Bool(false));
                !off && !INERT.contains(&key.as_str())
            })
            .map(|(key, _)| key.as_str())
            .collect();
        if !unapplied.is_empty() {
            tracing::warn!(
                "generation_config.json: not applied: {}",
                unapplied.join(", ")
            );
        }
        Ok(defaults)
    }

    /// Tokens that end a sequence.
    pub fn eos_token_ids(&self) -> Vec<u32> {
        match &self.eos_token_id {
            None => Vec::new(),
            Some(TokenIds::One(id)) => vec![*id],
            Some(TokenIds::Many(ids)) => ids.clone(),
        }
    }

    /// A request's sampling with every default filled in. `seed` is used where
    /// the request has none.
    pub fn resolve(&self, request: Sampling, eos_token_ids: &[u32], seed: u64) -> SamplingPlan {
        let Sampling {
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            seed: requested_seed,
            stop,
            do_sample,
            top_logprobs,
            ignore_eos,
        } = request;
        let wants_sampling = temperature.map(|t| t > 0.0);
        let do_sample = do_sample
            .or(wants_sampling)
            .or(self.do_sample)
            .unwrap_or(false);
        let temperature = temperature.or(self.temperature).unwrap_or(1.0);
        let strategy = if do_sample && temperature > 0.0 {
            Strategy::Sample {
                temperature,
                top_k: top_k.or(self.top_k).unwrap_or(DEFAULT_TOP_K),
                top_p: top_p.or(self.top_p).unwrap_or(1.0),
                min_p: min_p.or(self.min_p).unwrap_or(0.0),
            }
        } else {
            Strategy::Greedy
        };
        SamplingPlan {
            max_new_tokens: max_new_tokens
                .or(self.max_new_tokens)
                .unwrap_or(DEFAULT_MAX_NEW_TOKENS) as usize,
            strategy,
            repetition_penalty: repetition_penalty
                .or(self.repetition_penalty)
                .unwrap_or(1.0),
            seed: requested_seed.unwrap_or(seed),
            stop,
            top_logprobs: top_logprobs as usize,
            ignore_eos,
            eos_token_ids: eos_token_ids.to_vec(),
        }
    }
}

impl SamplingPlan {
    /// How many of the greatest logits are enough to choose the next token and to report
    /// what is asked for; none if all are needed.
    pub(super) fn top_needed(&self) -> Option<u32> {
        let to_choose = match self.strategy {
            Strategy::Greedy => 1,
            // What ties with the greatest is a candidate too.
            Strategy::Sample { top_k: 1, .. } => 2,
            Strategy::Sample { top_k, .. } => top_k,
        };
        let bounded = self.repetition_penalty == 1.0 && to_choose > 0;
        bounded.then(|| to_choose.max(self.top_logprobs as u32))
    }

    /// Every value in effect, as the wire has it.
    pub fn to_wire(&self) -> v1::Sampling {
        let (do_sample, temperature, top_k, top_p, min_p) = match self.strategy {
            Strategy::Greedy => (false, 0.0, 0, 1.0, 0.0),
            Strategy::Sample {
                temperature,
                top_k,
                top_p,
                min_p,
            } => (true, temperature, top_k, top_p, min_p),
        };
        v1::Sampling {
            max_new_tokens: Some(self.max_new_tokens as u32),
            temperature: Some(temperature),
            top_k: Some(top_k),
            top_p: Some(top_p),
            min_p: Some(min_p),
            repetition_penalty: Some(self.repetition_penalty),
            seed: Some(self.seed),
            stop: self.stop.clone(),
            do_sample: Some(do_sample),
            top_logprobs: self.top_logprobs as u32,
            ignore_eos: self.ignore_eos,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_follow_transformers() {
        let none = GenerationDefaults::default();
        let greedy = none.resolve(Sampling::default(), &[1], 7);
        assert_eq!(greedy.strategy, Strategy::Greedy);
        let warm = Sampling {
            temperature: Some(0.7),
            ..Sampling::default()
        };
        let sampled = none.resolve(warm, &[1], 7);
        assert!(matches!(
            sampled.strategy,
            Strategy::Sample { top_k: 50, .. }
        ));
        assert_eq!(sampled.seed, 7);
    }

    #[test]
    fn the_models_own_defaults_apply_until_overridden() {
        let json = r#"{"do_sample": true, "temperature": 0.8, "top_k": 20, "top_p": 0.9,
            "repetition_penalty": 1.1, "eos_token_id": [1, 107]}"#;
        let defaults = GenerationDefaults::parse(json).expect("parses");
        assert_eq!(defaults.eos_token_ids(), [1, 107]);
        let plan = defaults.resolve(Sampling::default(), &[1], 0);
        assert_eq!(plan.repetition_penalty, 1.1);
        assert!(matches!(plan.strategy, Strategy::Sample { top_k: 20, .. }));
        let greedy = Sampling {
            temperature: Some(0.0),
            ..Sampling::default()
        };
        assert_eq!(defaults.resolve(greedy, &[1], 0).strategy, Strategy::Greedy);
    }
}
