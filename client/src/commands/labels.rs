//! `steer labels`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use steering_client::v1;

use super::saes::{file_bytes, require_file};
use crate::{cli::Globals, failure::of_file, output, progress};

/// Manage labels of SAE features.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer labels import sae_feature_labels.json --sae gemma-scope-l21-65k")]
pub(crate) struct LabelsArgs {
    #[command(subcommand)]
    command: LabelsCommand,
}

#[derive(Debug, Subcommand)]
enum LabelsCommand {
    /// Import labels from a file, all or nothing.
    #[command(after_help = "\
Formats, detected: JSON {\"label\": feature_index}; Neuronpedia explanations (JSON or JSON
lines with index and description); JSON lines {\"index\", \"label\", \"source\", \"score\"},
where \"passed\": false makes a candidate (kept, but no name), and \"strength\",
\"max_activation\" and \"evidence\" (an object of numbers and texts) are kept too.

Examples:
  steer labels import sae_feature_labels.json --sae gemma-scope-l21-65k
  steer labels import explanations.jsonl --sae gemma-scope-l21-65k --source auto")]
    Import {
        /// The file.
        file: PathBuf,
        /// Source to record for labels that name none.
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
    },
}

#[derive(Serialize)]
struct ImportDocument {
    sae_id: String,
    label_count: u64,
    feature_count: u64,
    candidate_count: u64,
}

pub(crate) async fn run(args: LabelsArgs, globals: &Globals) -> anyhow::Result<()> {
    let LabelsCommand::Import { file, source } = args.command;
    require_file(&file)?;
    let client = globals.client()?;
    let sae_id = globals.sae(&client).await?;
    let header = v1::LabelImportHeader {
        sae_id: sae_id.clone(),
        source: source.unwrap_or_default(),
        shared_names: false,
    };
    let bar = progress::bytes(file_bytes(&file), "labels");
    let imported = client
        .import_labels(header, &file, progress::on_bytes(&bar))
        .await;
    bar.finish_and_clear();
    let v1::ImportFeatureLabelsResponse {
        label_count,
        feature_count,
        candidate_count,
    } = imported.map_err(|error| of_file(&error, &file))?;
    if globals.json {
        return output::json(&ImportDocument {
            sae_id,
            label_count,
            feature_count,
            candidate_count,
        });
    }
    let mut text =
        format!("{label_count} labels of {feature_count} features imported into {sae_id}");
    if candidate_count > 0 {
        text +=
            &format!("; {candidate_count} kept as candidates: they failed their source's checks");
    }
    Ok(output::line(text)?)
}
