//! `steer features`.

use clap::{Args, Subcommand};
use serde::Serialize;
use steering_client::{FeatureSelector, Listing, v1};

use crate::{cli::Globals, output, table::Table, views::FeatureLabelView};

mod show;
mod similar;
mod stats;

/// Find features of SAEs by their labels, and what they do on texts.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer features search hockey
  steer features show baseball
  steer features show '#20175' --sae gemma-scope-l21-65k
  steer features similar baseball
  steer features stats posts.jsonl.gz
  steer features list --limit 20 --json")]
pub(crate) struct FeaturesArgs {
    #[command(subcommand)]
    command: FeaturesCommand,
}

#[derive(Debug, Subcommand)]
enum FeaturesCommand {
    /// Labels that match a text, best first: exact, beginning, words, parts of words;
    /// where nothing does, labels whose words are a typing error away.
    #[command(after_help = "\
Examples:
  steer features search hockey
  steer features search 'ice ho' --sae gemma-scope-l21-65k --json
  steer features search hockey --model google/gemma-2-2b --hook blocks.21.hook_resid_post")]
    Search {
        /// Words or the beginnings of words.
        query: String,
        /// Only SAEs of this model.
        #[arg(long, value_name = "ID")]
        model: Option<String>,
        /// Only SAEs at this hook point.
        #[arg(long, value_name = "HOOK")]
        hook: Option<String>,
        /// Only labels of this source.
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
        /// Most labels to show; 0 = all.
        #[arg(long, value_name = "N", default_value_t = 20)]
        limit: usize,
    },
    /// One feature: where it acts, how it activates, what it does on texts, what its labels
    /// rest on.
    #[command(after_help = "\
Examples:
  steer features show baseball
  steer features show '#20175' --vectors --json
  steer features show 'gemma-scope-l21-65k::baseball'
  steer features show 'gemma-scope-l21-65k@1f8a09c2::baseball'")]
    Show {
        /// Its label, or `#INDEX`; `SAE::` or `SAE@DIGEST::` in front names the SAE.
        #[arg(value_name = "LABEL|#INDEX")]
        feature: FeatureSelector,
        /// With --json: include the encoder and decoder vectors.
        #[arg(long)]
        vectors: bool,
    },
    Similar(similar::SimilarArgs),
    Stats(stats::StatsArgs),
    /// Labelled features of an SAE in order of index.
    #[command(after_help = "\
Examples:
  steer features list
  steer features list --sae gemma-scope-l21-65k --source manual --limit 0 --json
  steer features list --candidates")]
    List {
        /// Only labels of this source.
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
        /// Most labels to show; 0 = all.
        #[arg(long, value_name = "N", default_value_t = 1000)]
        limit: usize,
        /// Candidates too: labels that failed their source's checks.
        #[arg(long)]
        candidates: bool,
    },
}

#[derive(Serialize)]
struct ListDocument {
    features: Vec<FeatureLabelView>,
    truncated: bool,
}

pub(crate) async fn run(args: FeaturesArgs, globals: &Globals) -> anyhow::Result<()> {
    let client = globals.client()?;
    match args.command {
        FeaturesCommand::Search {
            query,
            model,
            hook,
            source,
            limit,
        } => {
            let request = v1::SearchFeaturesRequest {
                query,
                sae_id: globals.sae.clone().unwrap_or_default(),
                model_id: model.unwrap_or_default(),
                hook_name: hook.unwrap_or_default(),
                source: source.unwrap_or_default(),
                ..v1::SearchFeaturesRequest::default()
            };
            let found = client.search_features(request, cap(limit)).await?;
            print_labels(found, limit, globals.json)
        }
        FeaturesCommand::Similar(args) => similar::run(args, &client, globals).await,
        FeaturesCommand::Stats(args) => stats::run(args, &client, globals).await,
        FeaturesCommand::List {
            source,
            limit,
            candidates,
        } => {
            let sae = globals.sae(&client).await?;
            let request = v1::ListFeaturesRequest {
                sae_id: sae,
                source: source.unwrap_or_default(),
                include_candidates: candidates,
                ..v1::ListFeaturesRequest::default()
            };
            let listed = client.list_features(request, cap(limit)).await?;
            print_labels(listed, limit, globals.json)
        }
        FeaturesCommand::Show { feature, vectors } => {
            show::run(feature, vectors, &client, globals).await
        }
    }
}

/// `--limit 0` means all.
pub(crate) fn cap(limit: usize) -> Option<usize> {
    (limit > 0).then_some(limit)
}

fn print_labels(
    listing: Listing<v1::FeatureLabel>,
    limit: usize,
    json: bool,
) -> anyhow::Result<()> {
    let Listing { items, truncated } = listing;
    let features: Vec<FeatureLabelView> = items.into_iter().map(Into::into).collect();
    if json {
        return output::json(&ListDocument {
            features,
            truncated,
        });
    }
    let mut table = Table::new(&[
        "index", "label", "status", "source", "score", "strength", "sae",
    ]);
    for label in &features {
        table.row(label.cells());
    }
    table.print("no labels")?;
    if truncated && cap(limit).is_none_or(|limit| features.len() < limit) {
        output::dim("there may be more: the words of the query stand for too many; add another");
    } else {
        output::note_truncated(truncated, features.len());
    }
    Ok(())
}
