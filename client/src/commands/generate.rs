//! `steer generate`.

use clap::{ArgGroup, Args};
use steering_client::{
    CavEdit, FeatureEdit, GenerationBuilder, GenerationStream, Readout, Steering, Transcript,
};

use super::options::{ObserveOptions, PlaceOptions, PromptOptions, SamplingOptions};
use crate::{cli::Globals, output, report, series};

mod view;

use view::View;

/// Generate text, steered or not, as it comes.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("edits").multiple(true))]
#[command(group = ArgGroup::new("named").multiple(true))]
#[command(group = ArgGroup::new("readings").multiple(true))]
#[command(after_long_help = LONG_HELP, after_help = EXAMPLES)]
pub(crate) struct GenerateArgs {
    /// What the model reads: one user message for its chat template; `-` = standard input.
    prompt: String,
    #[command(flatten)]
    prompt_options: PromptOptions,
    #[command(flatten)]
    edits: EditOptions,
    /// Decode without the edits too, in the same batch, and show both.
    #[arg(long, requires = "edits", help_heading = "Steering")]
    compare: bool,
    #[command(flatten)]
    observe: ObserveOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
}

/// Edits, and where they apply.
#[derive(Debug, Args)]
#[command(next_help_heading = "Steering")]
pub(crate) struct EditOptions {
    /// Edit an SAE feature; may be repeated. `steer generate --help` has all forms.
    #[arg(long = "feature", value_name = "LABEL=VALUE", groups = ["edits", "named"])]
    features: Vec<FeatureEdit>,
    /// Edit with a concept activation vector; may be repeated.
    #[arg(long = "cav", value_name = "NAME=STRENGTH", groups = ["edits", "named"])]
    cavs: Vec<CavEdit>,
    #[command(flatten)]
    place: PlaceOptions,
}

impl EditOptions {
    /// Refuses a hook point for CAVs where none is added or read.
    pub(crate) fn check_hook<'a>(
        &'a self,
        observed: impl IntoIterator<Item = &'a Readout>,
    ) -> anyhow::Result<()> {
        self.place.check_hook(!self.cavs.is_empty(), observed)
    }

    /// The edits by name, features of no SAE being those of `default_sae`.
    pub(crate) fn steering(self, default_sae: Option<String>) -> Steering {
        Steering {
            positions: self.place.positions(),
            features: self.features,
            cavs: self.cavs,
            default_sae,
            cav_hook: self.place.hook,
            gate: self.place.when,
        }
    }
}

const EXAMPLES: &str = "\
Examples:
  steer generate 'Write a haiku.' --feature baseball=525
  steer generate 'Write a haiku.' --feature baseball=525 --compare --seed 7
  steer generate 'I would like to tell you about' --raw --cav rec.sport.baseball=1000
  steer generate 'Tell me a story.' --feature '#33641:scale=0.5' --cav space:ablate
  steer generate 'Tell me a story.' --feature baseball=300 --when 'hockey>5' --probe hockey
  echo 'Write a haiku.' | steer generate - --json";

const LONG_HELP: &str = "\
Examples:
  steer generate 'Write a haiku.' --feature baseball=525
  steer generate 'Write a haiku.' --feature baseball=525 --compare --seed 7
  steer generate 'I would like to tell you about' --raw --cav rec.sport.baseball=1000
  steer generate 'Tell me a story.' --feature '#33641:scale=0.5' --cav space:ablate
  steer generate 'Tell me a story.' --feature baseball=300 --when 'hockey>5:for=8' --probe hockey
  steer generate 'Tell me a story.' --feature baseball=300 --stop-when 'cav:rec.autos>3' --kl
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

Readouts, --when, --stop-when and --probe, read before the edits of their hook point:
  LABEL, #INDEX, SAE::LABEL  activation of a feature
  cav:NAME                   x . v with the CAV's vector, at its hook point or --hook
  READOUT>VALUE, READOUT<VALUE compare strictly; VALUE may be 0.5max for a feature.
  --when gates every edit: READOUT>VALUE[:while] where it holds, :once from the first
  token where it does, :for=N at that token and on, N in all. With --stop-when the token
  that fired is still part of the text.

JSON, --json: one object
  {\"model\", \"prompt_token_ids\", \"seed\", \"probes\": [name], \"variants\": [{\"name\",
  \"token_ids\", \"logprobs\", \"text\", \"finish_reason\": \"eos\" | \"stop\" |
  \"max_new_tokens\" | \"context_length\" | \"condition\" | \"not_finite\", \"stop_condition\",
  \"interventions\": [{\"hook_name\", \"payload_name\", \"payload_digest\", \"edit\",
  \"positions_touched\", \"positions_changed\", \"mean_relative_delta\", \"merged_into\",
  \"gate_firings\"}], \"usage\", \"readings\": [{\"position\", \"token_id\", \"before\":
  [value per probe], \"after\", \"edit_norms\": [{\"hook_name\", \"relative_norm\"}]}],
  \"kl_divergence\": [value per token]}], \"warnings\"}";

pub(crate) async fn run(args: GenerateArgs, globals: &Globals) -> anyhow::Result<()> {
    args.edits.check_hook(args.observe.readouts())?;
    let client = globals.client()?;
    let mut builder = GenerationBuilder::new(args.prompt_options.prompt(&args.prompt)?);
    let steering = args.edits.steering(globals.sae.clone());
    let edits = client.resolve(&steering, &mut builder).await?;
    if args.compare || edits.is_empty() {
        builder.variant("baseline", Vec::new());
    }
    if !edits.is_empty() {
        builder.variant("steered", edits);
    }
    builder.sampling(args.sampling.into());
    let lookup = steering.lookup();
    args.observe.apply(&client, lookup, &mut builder).await?;
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
    series::print(transcript)?;
    for line in report::lines(transcript) {
        output::dim(output::printable(&line));
    }
    Ok(())
}
