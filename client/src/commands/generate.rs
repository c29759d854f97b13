//! `steer generate`.

use std::io::Read;

use clap::{ArgGroup, Args, ValueEnum};
use steering_client::{
    CavEdit, FeatureEdit, GenerationBuilder, GenerationStream, Steering, Transcript, prompt, v1,
};

use crate::{cli::Globals, failure::hinted, output, report};

mod view;

use view::View;

/// Generate text, steered or not, as it comes.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("edits").multiple(true))]
#[command(after_long_help = FEATURE_HELP, after_help = EXAMPLES)]
pub(crate) struct GenerateArgs {
    /// What the model reads: one user message for its chat template; `-` = standard input.
    prompt: String,
    #[command(flatten)]
    prompt_options: PromptOptions,
    #[command(flatten)]
    edits: EditOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
}

const EXAMPLES: &str = "\
Examples:
  steer generate 'Write a haiku.' --feature baseball=525
  steer generate 'Write a haiku.' --feature baseball=525 --compare --seed 7
  steer generate 'I would like to tell you about' --raw --cav rec.sport.baseball=1000
  steer generate 'Tell me a story.' --feature '#33641:scale=0.5' --cav space:ablate
  echo 'Write a haiku.' | steer generate - --json";

const FEATURE_HELP: &str = "\
Examples:
  steer generate 'Write a haiku.' --feature baseball=525
  steer generate 'Write a haiku.' --feature baseball=525 --compare --seed 7
  steer generate 'I would like to tell you about' --raw --cav rec.sport.baseball=1000
  steer generate 'Tell me a story.' --feature '#33641:scale=0.5' --cav space:ablate
  echo 'Write a haiku.' | steer generate - --json

Features, --feature:
  LABEL=VALUE        set the activation to VALUE at every token (the notebook's clamp)
  LABEL:min=VALUE    at least VALUE
  LABEL:max=VALUE    at most VALUE
  LABEL:add=VALUE    VALUE more than it was
  LABEL:scale=FACTOR FACTOR times what it was
  LABEL:ablate       set to 0
  VALUE is a number; 0.5max is half of the feature's largest known activation.
  #1234 instead of LABEL names a feature by its index; SAE::LABEL and SAE::#1234 name
  the SAE too. Labels may contain anything: the value follows the last `=`; a label
  that ends in `:max` (or another operation) is written LABEL:set=VALUE, one that
  contains `::` is written ::LABEL=VALUE.

Concept activation vectors, --cav:
  NAME=STRENGTH      add STRENGTH times the vector
  NAME=FRACTIONnorm  add FRACTION of the activation's norm times the vector (0.1norm)
  NAME:ablate        project the direction out
  NAME:clamp=LO..HI  keep the projection within bounds (LO.. and ..HI: one bound)
  NAME@DIGEST names one version. A CAV with several directions acts at each of them.

JSON, --json: one object
  {\"model\", \"prompt_token_ids\", \"seed\", \"variants\": [{\"name\", \"token_ids\",
  \"logprobs\", \"text\", \"finish_reason\": \"eos\" | \"stop\" | \"max_new_tokens\" |
  \"context_length\", \"interventions\": [{\"hook_name\", \"payload_name\",
  \"payload_digest\", \"edit\", \"positions_touched\", \"positions_changed\",
  \"mean_relative_delta\", \"merged_into\"}], \"usage\"}], \"warnings\"}";

/// How a text becomes a prompt.
#[derive(Debug, Args)]
#[command(next_help_heading = "Prompt")]
pub(crate) struct PromptOptions {
    /// Send the text without the chat template (the tokenizer still adds BOS).
    #[arg(long, conflicts_with_all = ["system", "add_generation_prompt"])]
    raw: bool,
    /// Append the template's opening of the assistant's turn.
    #[arg(long)]
    add_generation_prompt: bool,
    /// A system message in front, where the template has one.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
}

impl PromptOptions {
    /// The prompt; `-` is read from standard input, its final line break left out.
    pub(crate) fn prompt(&self, text: &str) -> anyhow::Result<v1::Prompt> {
        let text = if text == "-" {
            let mut text = std::io::read_to_string(std::io::stdin().lock().by_ref())?;
            text.truncate(text.strip_suffix('\n').unwrap_or(&text).len());
            text
        } else {
            text.to_owned()
        };
        if text.is_empty() {
            return Err(hinted(
                "the prompt is empty",
                "give the model a text to go on from",
            ));
        }
        if self.raw {
            return Ok(prompt::text(text));
        }
        let system = self.system.as_deref();
        let system = system.map(|content| prompt::message("system", content));
        let messages = system.into_iter().chain([prompt::message("user", text)]);
        Ok(prompt::chat(messages.collect(), self.add_generation_prompt))
    }
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Steering")]
struct EditOptions {
    /// Edit an SAE feature; may be repeated. See the long help for all forms.
    #[arg(long = "feature", value_name = "LABEL=VALUE", group = "edits")]
    features: Vec<FeatureEdit>,
    /// Edit with a concept activation vector; may be repeated.
    #[arg(long = "cav", value_name = "NAME=STRENGTH", group = "edits")]
    cavs: Vec<CavEdit>,
    /// Hook point for the CAVs instead of their own.
    #[arg(long, value_name = "NAME", requires = "cavs")]
    hook: Option<String>,
    /// Decode without the edits too, in the same batch, and show both.
    #[arg(long, requires = "edits")]
    compare: bool,
    /// Tokens that are edited [default: all].
    #[arg(long, value_enum, requires = "edits")]
    positions: Option<Scope>,
    /// Edit only positions START to END - 1, counted from BOS = 0; either may be left out.
    #[arg(long, value_name = "START:END", requires = "edits", value_parser = parse_window)]
    window: Option<v1::PositionWindow>,
    /// Leave BOS, EOS, turn markers and other special tokens as they are.
    #[arg(long, requires = "edits")]
    skip_special_tokens: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scope {
    /// Prompt and generated tokens.
    All,
    /// Prompt tokens only.
    Prompt,
    /// Generated tokens only.
    Generated,
}

impl EditOptions {
    fn positions(&self) -> Option<v1::Positions> {
        let scope = match self.positions {
            None if self.window.is_none() && !self.skip_special_tokens => return None,
            None | Some(Scope::All) => v1::PositionScope::All,
            Some(Scope::Prompt) => v1::PositionScope::Prompt,
            Some(Scope::Generated) => v1::PositionScope::Generated,
        };
        Some(v1::Positions {
            scope: scope.into(),
            window: self.window,
            skip_special_tokens: self.skip_special_tokens,
            token_ids: Vec::new(),
        })
    }
}

fn parse_window(text: &str) -> Result<v1::PositionWindow, String> {
    let parse = |bound: &str| match bound {
        "" => Ok(None),
        bound => bound
            .parse()
            .map(Some)
            .map_err(|_| format!("{bound:?} is not a position")),
    };
    let (start, end) = text
        .split_once(':')
        .ok_or("write START:END, START: or :END")?;
    let (start, end) = (parse(start)?.unwrap_or(0), parse(end)?);
    if end.is_some_and(|end: u32| end <= start) {
        return Err("END must be above START: the window is half-open and not empty".to_owned());
    }
    Ok(v1::PositionWindow { start, end })
}

/// Options left out are the model's own defaults (generation_config.json).
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling (default: the model's generation_config.json)")]
struct SamplingOptions {
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

pub(crate) async fn run(args: GenerateArgs, globals: &Globals) -> anyhow::Result<()> {
    let client = globals.client()?;
    let mut builder = GenerationBuilder::new(args.prompt_options.prompt(&args.prompt)?);
    let steering = Steering {
        positions: args.edits.positions(),
        features: args.edits.features,
        cavs: args.edits.cavs,
        default_sae: globals.sae.clone(),
        cav_hook: args.edits.hook,
    };
    let edits = client.resolve(&steering, &mut builder).await?;
    if args.edits.compare || edits.is_empty() {
        builder.variant("baseline", Vec::new());
    }
    if !edits.is_empty() {
        builder.variant("steered", edits);
    }
    builder.sampling(args.sampling.into());
    let request = builder.build();
    let view = View::for_run(globals.json, request.variants.len() > 1);
    tokio::select! {
        transcript = async { follow(client.generate(request).await?, view).await } => {
            finish(&transcript?, globals.json)
        }
        signal = tokio::signal::ctrl_c() => {
            signal?;
            if !globals.json && output::is_terminal() {
                output::line("")?;
            }
            Err(anyhow::anyhow!("interrupted"))
        }
    }
}

async fn follow(mut stream: GenerationStream, mut view: View) -> anyhow::Result<Transcript> {
    let mut transcript = Transcript::default();
    while let Some(event) = stream.next().await? {
        transcript.apply(&event);
        view.show(&event, &transcript)?;
    }
    view.finish(&transcript)?;
    Ok(transcript)
}

fn finish(transcript: &Transcript, json: bool) -> anyhow::Result<()> {
    for warning in &transcript.warnings {
        output::warning(warning);
    }
    if json {
        return output::json(&report::Document::from(transcript));
    }
    for line in report::lines(transcript) {
        output::dim(output::printable(&line));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_half_open() {
        let window = |start, end| Ok(v1::PositionWindow { start, end });
        assert_eq!(parse_window("2:5"), window(2, Some(5)));
        assert_eq!(parse_window(":5"), window(0, Some(5)));
        assert_eq!(parse_window("2:"), window(2, None));
        for text in ["5", "5:5", "5:2", "a:b", "-1:2"] {
            assert!(parse_window(text).is_err(), "{text}");
        }
    }
}
