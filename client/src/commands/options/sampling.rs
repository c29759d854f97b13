//! How tokens are chosen.

use clap::Args;
use steering_client::v1;

/// Options left out are the model's own defaults (generation_config.json).
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sampling (default: the model's generation_config.json)")]
pub(crate) struct SamplingOptions {
    /// Seed of the sampler; drawn and reported when left out.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Divides the logits; 0 = greedy.
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    temperature: Option<f32>,
    /// Keep the K most likely tokens; 0 = all.
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Keep the smallest set of tokens with this probability.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Drop tokens below this fraction of the best one's probability.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Make tokens seen before less likely; 1 = off.
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,
    /// Sample, with the model's own temperature unless one is given.
    #[arg(long, conflicts_with = "greedy")]
    do_sample: bool,
    /// Take the most likely token.
    #[arg(long, conflicts_with = "temperature")]
    greedy: bool,
    /// End where this text appears; may be repeated.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Most tokens to generate.
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<u32>,
    /// Do not end at an end-of-sequence token.
    #[arg(long)]
    ignore_eos: bool,
}

impl From<SamplingOptions> for v1::Sampling {
    fn from(options: SamplingOptions) -> Self {
        let SamplingOptions {
            seed,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            do_sample,
            greedy,
            stop,
            max_new_tokens,
            ignore_eos,
        } = options;
        Self {
            max_new_tokens,
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            seed,
            stop,
            do_sample: match (do_sample, greedy) {
                (true, _) => Some(true),
                (_, true) => Some(false),
                _ => None,
            },
            top_logprobs: 0,
            ignore_eos,
        }
    }
}
