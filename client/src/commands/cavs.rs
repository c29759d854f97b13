//! `steer cavs`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use steering_client::{Client, Listing, v1};

use super::{
    features::cap,
    saes::{file_bytes, require_file},
};
use crate::{
    cli::Globals,
    failure::of_file,
    output, progress,
    table::{Table, print_card},
    views::CavView,
};

pub(super) mod export;
mod train;

/// Manage concept activation vectors (CAVs).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer cavs import cavs.pt --hook blocks.21.hook_resid_post --model google/gemma-2-2b-it
  steer cavs train posts.jsonl.gz --hook blocks.21.hook_resid_post
  steer cavs list
  steer cavs export rec.sport.baseball --out baseball.safetensors
  steer cavs rm rec.sport.baseball")]
pub(crate) struct CavsArgs {
    #[command(subcommand)]
    command: CavsCommand,
}

#[derive(Debug, Subcommand)]
enum CavsCommand {
    /// CAVs by name, the newest version of each.
    #[command(after_help = "Examples:\n  steer cavs list\n  steer cavs list --prefix rec. --json")]
    List {
        /// Only names that start with this.
        #[arg(long, value_name = "TEXT")]
        prefix: Option<String>,
        /// Most CAVs to show; 0 = all.
        #[arg(long, value_name = "N", default_value_t = 0)]
        limit: usize,
    },
    /// One CAV.
    #[command(after_help = "\
Examples:
  steer cavs show rec.sport.baseball
  steer cavs show rec.sport.baseball@1f8a09c2 --vectors --json")]
    Show {
        /// Its name, or NAME@DIGEST.
        name: String,
        /// With --json: include the vectors.
        #[arg(long)]
        vectors: bool,
    },
    /// Import CAVs from a file, all or nothing.
    #[command(after_help = "\
Formats, detected: the notebook's .pt {\"cavs\", \"labels\"}; safetensors with a `labels`
metadata entry; GGUF control vectors; a JSON list of {\"label\", \"cav\"}.

Examples:
  steer cavs import cavs.pt --hook blocks.21.hook_resid_post --model google/gemma-2-2b-it
  steer cavs import happy.gguf --model mistralai/Mistral-7B-Instruct-v0.1")]
    Import {
        /// The file.
        file: PathBuf,
        /// Hook point, unless the file names it, e.g. blocks.21.hook_resid_post.
        #[arg(long, value_name = "HOOK")]
        hook: Option<String>,
        /// Model they were made for, unless the file names it.
        #[arg(long, value_name = "ID")]
        model: Option<String>,
    },
    Train(train::TrainArgs),
    Export(export::ExportArgs),
    /// Remove a CAV: one version, or all of a name.
    #[command(after_help = "\
Examples:
  steer cavs rm rec.sport.baseball
  steer cavs rm rec.sport.baseball@1f8a09c2")]
    Rm {
        /// NAME (all versions) or NAME@DIGEST (one).
        name: String,
    },
}

#[derive(Serialize)]
struct ListDocument {
    cavs: Vec<CavView>,
    truncated: bool,
}

#[derive(Serialize)]
struct ImportDocument {
    cavs: Vec<CavView>,
}

#[derive(Serialize)]
struct CavDocument {
    cav: CavView,
}

#[derive(Serialize)]
struct RemovedDocument {
    removed_count: u32,
}

pub(crate) async fn run(args: CavsArgs, globals: &Globals) -> anyhow::Result<()> {
    let client = globals.client()?;
    let json = globals.json;
    match args.command {
        CavsCommand::List { prefix, limit } => {
            let prefix = prefix.unwrap_or_default();
            let Listing { items, truncated } = client.list_cavs(&prefix, cap(limit)).await?;
            let cavs: Vec<CavView> = views(items);
            if json {
                return output::json(&ListDocument { cavs, truncated });
            }
            print_table(&cavs)?;
            output::note_truncated(truncated, cavs.len());
            Ok(())
        }
        CavsCommand::Show { name, vectors } => {
            let cav = CavView::new(client.get_cav(&name).await?, vectors);
            if json {
                return output::json(&CavDocument { cav });
            }
            Ok(print_card(&cav.card())?)
        }
        CavsCommand::Import { file, hook, model } => import(&client, file, hook, model, json).await,
        CavsCommand::Train(args) => train::run(args, &client, json).await,
        CavsCommand::Export(args) => export::run(args, &client, json).await,
        CavsCommand::Rm { name } => {
            let removed_count = client.delete_cav(&name).await?;
            if json {
                return output::json(&RemovedDocument { removed_count });
            }
            Ok(output::line(format_args!("{removed_count} removed"))?)
        }
    }
}

async fn import(
    client: &Client,
    file: PathBuf,
    hook: Option<String>,
    model: Option<String>,
    json: bool,
) -> anyhow::Result<()> {
    require_file(&file)?;
    let file_name = file.file_name().unwrap_or_default().to_string_lossy();
    let header = v1::CavImportHeader {
        hook_name: hook.unwrap_or_default(),
        model_id: model.unwrap_or_default(),
        file_name: file_name.into_owned(),
    };
    let bar = progress::bytes(file_bytes(&file), "CAVs");
    let imported = client
        .import_cavs(header, &file, progress::on_bytes(&bar))
        .await;
    bar.finish_and_clear();
    let cavs = views(imported.map_err(|error| of_file(&error, &file))?);
    if json {
        return output::json(&ImportDocument { cavs });
    }
    Ok(print_table(&cavs)?)
}

fn views(cavs: Vec<v1::Cav>) -> Vec<CavView> {
    cavs.into_iter()
        .map(|cav| CavView::new(cav, false))
        .collect()
}

fn print_table(cavs: &[CavView]) -> std::io::Result<()> {
    let mut table = Table::new(&["name", "hook", "width", "norm", "model", "digest"]);
    for cav in cavs {
        table.row(cav.cells());
    }
    table.print("no CAVs; import some with `steer cavs import`")
}
