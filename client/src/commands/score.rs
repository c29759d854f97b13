//! `steer score`.

use clap::{ArgGroup, Args};
use serde::Serialize;
use steering_client::{Client, GenerationBuilder, prompt, v1};

use super::{generate::EditOptions, options::PromptOptions};
use crate::{
    cli::Globals,
    output,
    report::{self, InterventionDocument},
    series::number,
    table::Table,
};

/// How likely a continuation is, token by token, unsteered and steered.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("edits").multiple(true))]
#[command(group = ArgGroup::new("named").multiple(true))]
#[command(after_help = "\
Examples:
  steer score 'My favourite sport is' ' baseball.' --raw
  steer score 'My favourite sport is' ' baseball.' --raw --feature baseball=300
  steer score 'Write a haiku.' 'Ball flies high' --add-generation-prompt --json

JSON, --json: one object
  {\"prompt_token_ids\", \"token_ids\", \"pieces\", \"variants\": [{\"name\", \"logprobs\",
  \"perplexity\", \"interventions\"}], \"warnings\"}")]
pub(crate) struct ScoreArgs {
    /// What comes before: one user message for the chat template; `-` = standard input.
    prompt: String,
    /// What is scored, without special tokens; mind the space in front.
    #[arg(allow_hyphen_values = true)]
    continuation: String,
    #[command(flatten)]
    prompt_options: PromptOptions,
    #[command(flatten)]
    edits: EditOptions,
}

#[derive(Serialize)]
struct Document<'a> {
    prompt_token_ids: &'a [u32],
    token_ids: &'a [u32],
    pieces: &'a [String],
    variants: Vec<VariantDocument<'a>>,
    warnings: &'a [String],
}

#[derive(Serialize)]
struct VariantDocument<'a> {
    name: &'a str,
    logprobs: &'a [f32],
    perplexity: f64,
    interventions: Vec<InterventionDocument<'a>>,
}

pub(crate) async fn run(args: ScoreArgs, globals: &Globals) -> anyhow::Result<()> {
    args.edits.check_hook([])?;
    let client = globals.client()?;
    let mut builder = GenerationBuilder::new(args.prompt_options.prompt(&args.prompt)?);
    let steering = args.edits.steering(globals.sae.clone());
    let edits = client.resolve(&steering, &mut builder).await?;
    builder.variant("baseline", Vec::new());
    if !edits.is_empty() {
        builder.variant("steered", edits);
    }
    let continuation = v1::score_text_request::Continuation::Text(args.continuation);
    let response = client.score_text(builder.build_score(continuation)).await?;
    let pieces = pieces(&client, &response.token_ids).await?;
    for warning in &response.warnings {
        output::warning(warning);
    }
    if globals.json {
        output::json(&Document::new(&response, &pieces))
    } else {
        Ok(print(&response, &pieces)?)
    }
}

/// The vocabulary's pieces of tokens.
async fn pieces(client: &Client, ids: &[u32]) -> anyhow::Result<Vec<String>> {
    let tokens = client
        .tokenize(prompt::token_ids(ids.to_vec()))
        .await?
        .tokens;
    Ok(tokens.into_iter().map(|token| token.piece).collect())
}

impl<'a> Document<'a> {
    fn new(response: &'a v1::ScoreTextResponse, pieces: &'a [String]) -> Self {
        let v1::ScoreTextResponse {
            prompt_token_ids,
            token_ids,
            scores,
            warnings,
        } = response;
        let variant = |score: &'a v1::VariantScore| VariantDocument {
            name: &score.name,
            logprobs: &score.logprobs,
            perplexity: score.perplexity,
            interventions: score.interventions.iter().map(Into::into).collect(),
        };
        Self {
            prompt_token_ids,
            token_ids,
            pieces,
            variants: scores.iter().map(variant).collect(),
            warnings,
        }
    }
}

fn print(response: &v1::ScoreTextResponse, pieces: &[String]) -> std::io::Result<()> {
    let names = response.scores.iter().map(|score| score.name.as_str());
    let headings: Vec<&str> = ["token", "piece"].into_iter().chain(names).collect();
    let mut table = Table::new(&headings);
    for (i, id) in response.token_ids.iter().enumerate() {
        let piece = pieces.get(i).map_or("", String::as_str);
        let logprobs = response.scores.iter().map(|score| score.logprobs.get(i));
        let logprobs = logprobs.map(|ln| ln.map_or(String::new(), |ln| number(f64::from(*ln))));
        let cells = [id.to_string(), piece.escape_debug().to_string()];
        table.row(cells.into_iter().chain(logprobs));
    }
    let perplexities = response.scores.iter().map(|score| number(score.perplexity));
    let cells = ["perplexity".to_owned(), String::new()];
    table.row(cells.into_iter().chain(perplexities));
    table.print("no tokens")?;
    for score in &response.scores {
        for intervention in &score.interventions {
            let line = report::intervention_line(&score.name, intervention);
            output::dim(output::printable(&line));
        }
    }
    Ok(())
}
