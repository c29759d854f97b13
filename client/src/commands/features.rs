//! `steer features`.

use clap::{Args, Subcommand};
use console::style;
use serde::Serialize;
use steering_client::{Client, FeatureSelector, Listing, v1};

use super::project::Token;
use crate::{
    cli::Globals,
    output,
    table::{Table, print_card},
    views::{FeatureLabelView, FeatureView},
};

mod similar;

/// Tokens shown at each end of a feature's logits.
const LOGITS_SHOWN: u32 = 8;

/// Find features of SAEs by their labels.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer features search hockey
  steer features show baseball
  steer features show '#20175' --sae gemma-scope-l21-65k
  steer features similar baseball
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
    /// One feature: where it acts, how it activates, what its labels rest on.
    #[command(after_help = "\
Examples:
  steer features show baseball
  steer features show '#20175' --vectors --json
  steer features show 'gemma-scope-l21-65k::baseball'")]
    Show {
        /// Its label, or `#INDEX`; `SAE::` in front names the SAE.
        #[arg(value_name = "LABEL|#INDEX")]
        feature: FeatureSelector,
        /// With --json: include the encoder and decoder vectors.
        #[arg(long)]
        vectors: bool,
    },
    Similar(similar::SimilarArgs),
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

#[derive(Serialize)]
struct ShowDocument {
    feature: FeatureView,
    labels: Vec<FeatureLabelView>,
    /// What the decoder row makes most and least likely; none without a worker that has a
    /// model of its width.
    logits: Option<LogitsView>,
}

#[derive(Serialize)]
struct LogitsView {
    model: String,
    top: Vec<Token>,
    bottom: Vec<Token>,
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
            print_labels(found, globals.json)
        }
        FeaturesCommand::Similar(args) => similar::run(args, &client, globals).await,
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
            print_labels(listed, globals.json)
        }
        FeaturesCommand::Show { feature, vectors } => {
            let default_sae = globals.sae.as_deref();
            let mut found = client
                .get_features(vec![feature.to_ref(default_sae)])
                .await?;
            // The library has checked that there are as many as asked for.
            let feature = found.swap_remove(0);
            let logits = logits(&client, &feature).await;
            let request = v1::ListFeaturesRequest {
                sae_id: feature.sae_id.clone(),
                feature_index: Some(feature.feature_index),
                include_candidates: true,
                ..v1::ListFeaturesRequest::default()
            };
            let labels = client.list_features(request, cap(0)).await?.items;
            let document = ShowDocument {
                feature: FeatureView::new(feature, vectors),
                labels: labels.into_iter().map(Into::into).collect(),
                logits,
            };
            if globals.json {
                output::json(&document)
            } else {
                print_feature(&document)
            }
        }
    }
}

/// The feature is shown all the same where no worker can say anything of it.
async fn logits(client: &Client, feature: &v1::SaeFeature) -> Option<LogitsView> {
    let vector = v1::Vector {
        name: String::new(),
        values: feature.decoder.clone(),
    };
    let model = client.get_model().await.ok()?;
    let projected = client.project_direction(vector, LOGITS_SHOWN).await.ok()?;
    let v1::ProjectDirectionResponse { top, bottom } = projected;
    Some(LogitsView {
        model: model.model_id,
        top: top.into_iter().map(Token::from).collect(),
        bottom: bottom.into_iter().map(Token::from).collect(),
    })
}

fn print_feature(document: &ShowDocument) -> anyhow::Result<()> {
    print_card(&document.feature.card())?;
    if let Some(LogitsView { model, top, bottom }) = &document.logits {
        let list = |tokens: &[Token]| {
            let texts: Vec<String> = tokens
                .iter()
                .map(|token| format!("{:?}", token.text))
                .collect();
            texts.join(" ")
        };
        let heading = format!("decoder row at the output head of {model}");
        output::line(format_args!(
            "\n{}",
            style(output::printable(&heading)).bold()
        ))?;
        print_card(&[("more likely", list(top)), ("less likely", list(bottom))])?;
    }
    for label in &document.labels {
        let (heading, evidence) = label.evidence();
        output::line(format_args!(
            "\n{}",
            style(output::printable(&heading)).bold()
        ))?;
        print_card(&evidence)?;
    }
    Ok(())
}

/// `--limit 0` means all.
pub(crate) fn cap(limit: usize) -> Option<usize> {
    (limit > 0).then_some(limit)
}

fn print_labels(listing: Listing<v1::FeatureLabel>, json: bool) -> anyhow::Result<()> {
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
    output::note_truncated(truncated, features.len());
    Ok(())
}
