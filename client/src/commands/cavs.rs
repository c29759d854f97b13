//! `steer cavs`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use steering_client::{Client, Listing, v1};

use super::{
    features::cap,
    saes::{file_bytes, require_file},
    versions::{VersionArgs, print_removed, print_restored},
};
use crate::{
    cli::Globals,
    failure::of_file,
    output, progress,
    table::{Table, print_card},
    views::CavView,
};

pub(super) mod export;
pub(super) mod gguf;
pub(super) mod torch;
mod train;

/// Manage concept activation vectors (CAVs).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer cavs import cavs.pt --hook blocks.21.hook_resid_post --model google/gemma-2-2b-it
  steer cavs train posts.jsonl.gz --hook blocks.21.hook_resid_post
  steer cavs list
  steer cavs export rec.sport.baseball --out baseball.safetensors
  steer cavs rm rec.sport.baseball
  steer cavs undelete rec.sport.baseball")]
pub(crate) struct CavsArgs {
    #[command(subcommand)]
    command: CavsCommand,
}

#[derive(Debug, Subcommand)]
enum CavsCommand {
    /// CAVs by name, the newest version of each.
    #[command(after_help = "\
Examples:
  steer cavs list
  steer cavs list --prefix rec. --json
  steer cavs list --deleted")]
    List {
        #[command(flatten)]
        versions: VersionArgs,
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
    /// Delete a CAV: one version, or all of a name.
    ///
    /// `steer cavs undelete` brings it back, until the registry purges it (after 30 days, or as
    /// it was told by --keep-deleted-days).
    #[command(visible_alias = "delete")]
    #[command(after_help = "\
Examples:
  steer cavs rm rec.sport.baseball
  steer cavs rm rec.sport.baseball@1f8a09c2 --purge")]
    Rm {
        /// NAME (all versions) or NAME@DIGEST (one).
        name: String,
        /// Remove it for good, now, whether it was deleted before or not.
        #[arg(long)]
        purge: bool,
    },
    /// Bring a deleted CAV back: one version, or all of a name.
    #[command(after_help = "\
Examples:
  steer cavs undelete rec.sport.baseball
  steer cavs undelete rec.sport.baseball@1f8a09c2")]
    Undelete {
        /// NAME (all deleted versions) or NAME@DIGEST (one).
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
    purge_time: Option<String>,
}

pub(crate) async fn run(args: CavsArgs, globals: &Globals) -> anyhow::Result<()> {
    let client = globals.client()?;
    let json = globals.json;
    match args.command {
        CavsCommand::List {
            versions,
            prefix,
            limit,
        } => {
            let prefix = prefix.unwrap_or_default();
            list(&client, &versions, &prefix, limit, json).await
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
        CavsCommand::Rm { name, purge } => {
            let removed = client.delete_cav(&name, purge).await?;
            let document = RemovedDocument {
                removed_count: removed.removed_count,
                purge_time: removed.purge_time.map(|time| time.to_string()),
            };
            if json {
                return output::json(&document);
            }
            let purge_time = document.purge_time.as_deref();
            print_removed("cavs", &name, document.removed_count, purge_time)
        }
        CavsCommand::Undelete { name } => {
            print_restored(&name, client.undelete_cav(&name).await?, json)
        }
    }
}

async fn list(
    client: &Client,
    versions: &VersionArgs,
    prefix: &str,
    limit: usize,
    json: bool,
) -> anyhow::Result<()> {
    let &VersionArgs {
        all_versions,
        deleted,
    } = versions;
    let Listing { items, truncated } = match all_versions || deleted {
        true => {
            let listed = client.list_cav_versions(prefix, deleted, cap(limit));
            listed.await?
        }
        false => client.list_cavs(prefix, cap(limit)).await?,
    };
    let mut cavs: Vec<CavView> = views(items);
    if deleted {
        cavs.retain(|cav| cav.delete_time.is_some());
    }
    if json {
        return output::json(&ListDocument { cavs, truncated });
    }
    if all_versions || deleted {
        let mut table = Table::new(&["name", "digest", "stored", "deleted"]);
        for cav in &cavs {
            table.row(cav.version_cells());
        }
        table.print("no such versions")?;
    } else {
        print_table(&cavs)?;
    }
    output::note_truncated(truncated, cavs.len());
    Ok(())
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
