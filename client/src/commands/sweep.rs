//! `steer sweep`.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{ArgGroup, Args};
use steering_client::{
    CavEdit, CavOperation, Client, FeatureEdit, FeatureOperation, FeatureSelector,
    GenerationBuilder, Readout, Steering, Transcript, generation::Event, v1,
};

use super::options::{ObserveOptions, PlaceOptions, PromptOptions, SamplingOptions};
use crate::{cli::Globals, failure::hinted, output, progress};

mod chart;
mod measure;
mod plan;
mod plot;
mod report;

use plan::Range;

/// Try one edit at many strengths, as one batch, and measure what it does.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("edits").required(true))]
#[command(group = ArgGroup::new("named").multiple(true))]
#[command(group = ArgGroup::new("readings").multiple(true))]
#[command(after_long_help = LONG_HELP, after_help = EXAMPLES)]
pub(crate) struct SweepArgs {
    /// What the model reads: one user message for its chat template; `-` = standard input.
    prompt: String,
    #[command(flatten)]
    prompt_options: PromptOptions,
    /// Feature to set to every strength: LABEL, #INDEX or SAE::LABEL.
    #[arg(long, value_name = "LABEL", groups = ["edits", "named"], help_heading = "Sweep")]
    feature: Option<FeatureSelector>,
    /// CAV to add with every strength.
    #[arg(long, value_name = "NAME", groups = ["edits", "named"], help_heading = "Sweep")]
    cav: Option<String>,
    #[command(flatten)]
    range: Range,
    /// Write a dose-response chart, one HTML file that needs no other.
    #[arg(long, value_name = "FILE", help_heading = "Sweep")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    place: PlaceOptions,
    #[command(flatten)]
    observe: ObserveOptions,
    #[command(flatten)]
    sampling: SamplingOptions,
}

const EXAMPLES: &str = "\
Examples:
  steer sweep 'Write a haiku.' --feature baseball --greedy
  steer sweep 'Write a haiku.' --feature baseball --to 600 --step 50 --plot out.html
  steer sweep 'I would like to tell you about' --raw --cav rec.autos --to 40 --step 5
  steer sweep 'Write a haiku.' --feature baseball --probe hockey --json";

const LONG_HELP: &str = "\
Examples:
  steer sweep 'Write a haiku.' --feature baseball --greedy
  steer sweep 'Write a haiku.' --feature baseball --to 600 --step 50 --plot out.html
  steer sweep 'I would like to tell you about' --raw --cav rec.autos --to 40 --step 5
  steer sweep 'Write a haiku.' --feature baseball --probe hockey --json

One request decodes the unsteered baseline and every strength with the same seed; more
strengths than the worker takes at once become several requests.

Measured for every text:
  probes      mean over the generated tokens, read before the edits: how much of the
              concept the model itself goes on with. Without --probe, the swept feature
              or CAV.
  perplexity  of the generated tokens after the prompt, under the unsteered model
  repetition  share of the 3-grams of generated tokens that occurred before in the text:
              1 - distinct / all

JSON, --json: one object
  {\"model\", \"prompt_token_ids\", \"seed\", \"swept\", \"probes\": [name], \"points\":
  [{\"strength\" (null: the baseline), \"probe_means\": [value per probe], \"perplexity\",
  \"repetition\", and everything of a variant of `steer generate --json`}], \"warnings\"}";

/// What is swept.
enum Swept {
    Feature(FeatureSelector),
    Cav(String),
}

impl Swept {
    fn readout(&self) -> Readout {
        match self {
            Self::Feature(feature) => Readout::Feature(feature.clone()),
            Self::Cav(cav) => Readout::Cav(cav.clone()),
        }
    }

    /// Its edit by name, of strength 0.
    fn steering(&self, place: PlaceOptions, default_sae: Option<String>) -> Steering {
        let mut steering = Steering {
            default_sae,
            positions: place.positions(),
            cav_hook: place.hook,
            gate: place.when,
            ..Steering::default()
        };
        match self {
            Self::Feature(feature) => steering.features.push(FeatureEdit {
                feature: feature.clone(),
                operation: FeatureOperation::Set(steering_client::Amount::Raw(0.0)),
            }),
            Self::Cav(cav) => steering.cavs.push(CavEdit {
                cav: cav.clone(),
                operation: CavOperation::Add(0.0),
            }),
        }
        steering
    }
}

pub(crate) async fn run(mut args: SweepArgs, globals: &Globals) -> anyhow::Result<()> {
    let swept = match (args.feature, args.cav) {
        (Some(feature), _) => Swept::Feature(feature),
        (None, Some(cav)) => Swept::Cav(cav),
        (None, None) => return Err(hinted("nothing to sweep", "give --feature or --cav")),
    };
    let adds_cav = matches!(swept, Swept::Cav(_));
    args.place.check_hook(adds_cav, args.observe.readouts())?;
    let strengths = args.range.strengths()?;
    if let Some(path) = &args.plot {
        require_folder(path)?;
    }
    let client = globals.client()?;
    let prompt = args.prompt_options.prompt(&args.prompt)?;
    let mut builder = GenerationBuilder::new(prompt);
    let steering = swept.steering(args.place, globals.sae.clone());
    let edits = client.resolve(&steering, &mut builder).await?;
    if args.observe.probes.is_empty() {
        args.observe.probes.push(swept.readout());
    }
    let lookup = steering.lookup();
    args.observe.apply(&client, lookup, &mut builder).await?;
    let sampling = args.sampling.into();
    let transcripts = decode(&client, &builder, &edits, &strengths, sampling).await?;
    let mut warnings = warnings(&transcripts);
    let priority = args.observe.priority.map(v1::Priority::from);
    let points = measure::points(&client, &strengths, &transcripts, priority, &mut warnings).await;
    for warning in &warnings {
        output::warning(warning);
    }
    let sweep = report::Sweep {
        swept: swept.readout().to_string(),
        transcripts: &transcripts,
        points: &points,
        warnings: &warnings,
    };
    if globals.json {
        output::json(&sweep.document())?;
    } else {
        sweep.print()?;
    }
    match &args.plot {
        Some(path) => write_plot(path, &sweep, &args.prompt),
        None => Ok(()),
    }
}

/// The baseline and every strength, in as few requests as the worker's limits allow.
async fn decode(
    client: &Client,
    builder: &GenerationBuilder,
    edits: &[v1::Intervention],
    strengths: &[f32],
    mut sampling: v1::Sampling,
) -> anyhow::Result<Vec<Transcript>> {
    let limits = client.get_model().await?.limits.unwrap_or_default();
    let variants = plan::variants(edits, strengths);
    let batches = plan::batches(&variants, &limits);
    if batches.len() > 1 {
        output::dim(format_args!(
            "{} variants, at most {} a request: {} requests",
            variants.len(),
            batches[0].len(),
            batches.len()
        ));
    }
    let bar = progress::tokens("sweep");
    let mut transcripts: Vec<Transcript> = Vec::new();
    for batch in batches {
        // One seed for all, so that differences come from the strength alone.
        sampling.seed = transcripts.first().map(|t| t.seed).or(sampling.seed);
        let mut builder = builder.clone();
        builder.sampling(sampling.clone());
        for (name, edits) in batch {
            builder.variant(name, edits.clone());
        }
        let mut stream = client.generate(builder.build()).await?;
        let mut transcript = Transcript::default();
        while let Some(event) = stream.next().await? {
            transcript.apply(&event);
            match event {
                Event::Started(_) => bar.set_length(tokens_at_most(&transcript, variants.len())),
                Event::Token(_) => bar.inc(1),
                Event::Finished(_) => {}
            }
        }
        transcripts.push(transcript);
    }
    bar.finish_and_clear();
    Ok(transcripts)
}

fn tokens_at_most(transcript: &Transcript, variants: usize) -> u64 {
    let each = transcript.effective_sampling.max_new_tokens.unwrap_or(0);
    u64::from(each) * variants as u64
}

/// Each warning once.
fn warnings(transcripts: &[Transcript]) -> Vec<String> {
    let mut warnings: Vec<String> = Vec::new();
    for warning in transcripts.iter().flat_map(|t| &t.warnings) {
        if !warnings.contains(warning) {
            warnings.push(warning.clone());
        }
    }
    warnings
}

/// Fails before the work rather than after it.
fn require_folder(path: &Path) -> anyhow::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        Some(folder) if !folder.is_dir() => Err(hinted(
            format!("cannot write {}: its folder does not exist", path.display()),
            format!("make it with `mkdir -p {}`", folder.display()),
        )),
        _ => Ok(()),
    }
}

fn write_plot(path: &Path, sweep: &report::Sweep<'_>, prompt: &str) -> anyhow::Result<()> {
    std::fs::write(path, plot::html(sweep, prompt))
        .with_context(|| format!("cannot write {}", path.display()))?;
    output::dim(format_args!("chart written to {}", path.display()));
    Ok(())
}
