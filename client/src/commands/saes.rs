//! `steer saes`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use steering_client::{Client, FileSet, ImportEvent, ImportStream, Listing, v1};

use super::{
    features::cap,
    versions::{VersionArgs, print_removed, print_restored},
};
use crate::{
    cli::Globals,
    failure::hinted,
    output, progress,
    table::{Table, print_card},
    views::SaeView,
};

/// Manage sparse autoencoders (SAEs).
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer saes list
  steer saes import google/gemma-scope-2b-pt-res/layer_21/width_65k/average_l0_20 \\
      --name gemma-scope-l21-65k --hook blocks.21.hook_resid_post --model google/gemma-2-2b
  steer saes show gemma-scope-l21-65k
  steer saes rm gemma-scope-l21-65k
  steer saes undelete gemma-scope-l21-65k

An SAE's name finds its newest version; NAME@DIGEST (8 digits will do) finds one, wherever a
name is asked for.")]
pub(crate) struct SaesArgs {
    #[command(subcommand)]
    command: SaesCommand,
}

#[derive(Debug, Subcommand)]
enum SaesCommand {
    /// All SAEs by name, the newest version of each.
    #[command(after_help = "\
Examples:
  steer saes list
  steer saes list --all-versions
  steer saes list --deleted --json")]
    List {
        #[command(flatten)]
        versions: VersionArgs,
        /// Most SAEs to show; 0 = all.
        #[arg(long, value_name = "N", default_value_t = 0)]
        limit: usize,
    },
    /// One SAE.
    #[command(after_help = "Examples:\n  steer saes show gemma-scope-l21-65k")]
    Show {
        /// Its name, or NAME@DIGEST.
        name: String,
    },
    Import(ImportArgs),
    /// Delete an SAE with its labels and statistics: one version, or all of a name.
    ///
    /// `steer saes undelete` brings it back, until the registry purges it (after 30 days, or as
    /// it was told by --keep-deleted-days).
    #[command(visible_alias = "delete")]
    #[command(after_help = "\
Examples:
  steer saes rm gemma-scope-l21-65k
  steer saes rm gemma-scope-l21-65k@1f8a09c2 --purge")]
    Rm {
        /// NAME (all versions) or NAME@DIGEST (one).
        name: String,
        /// Remove it for good, now, whether it was deleted before or not.
        #[arg(long)]
        purge: bool,
    },
    /// Bring a deleted SAE back: one version, or all of a name.
    #[command(after_help = "Examples:\n  steer saes undelete gemma-scope-l21-65k")]
    Undelete {
        /// NAME (all deleted versions) or NAME@DIGEST (one).
        name: String,
    },
}

/// Import an SAE; the format is detected.
///
/// The registry reads the path or the hub repository itself. With --upload, the files are
/// sent from here.
#[derive(Debug, Args)]
#[command(after_help = "\
Formats: Gemma Scope params.npz, Gemma Scope 2, SAELens, dictionary_learning.

Examples:
  steer saes import ./params.npz --name my-sae --hook blocks.21.hook_resid_post \\
      --model google/gemma-2-2b
  steer saes import google/gemma-scope-2b-pt-res/layer_21/width_65k/average_l0_20 \\
      --name gemma-scope-l21-65k --hook blocks.21.hook_resid_post --model google/gemma-2-2b
  steer saes import ./sae-folder --name my-sae --upload")]
struct ImportArgs {
    /// A file or folder, or OWNER/REPO[/FOLDER…] on the hub where there is no such file.
    #[arg(value_name = "PATH|HUB_ID")]
    source: String,
    /// Name to give it: letters, digits, `.`, `_`, `-`, `/`.
    #[arg(long)]
    name: String,
    /// Hook point, unless the files name it, e.g. blocks.21.hook_resid_post.
    #[arg(long, value_name = "HOOK")]
    hook: Option<String>,
    /// Model it was trained on, unless the files name it.
    #[arg(long, value_name = "ID")]
    model: Option<String>,
    /// Factor for SAEs trained on scaled activations, which are refused without it.
    #[arg(long, value_name = "X")]
    scale: Option<f32>,
    /// Branch, tag or commit on the hub [default: main].
    #[arg(long, value_name = "REVISION", conflicts_with = "upload")]
    revision: Option<String>,
    /// Send the files from here instead of letting the registry read them.
    #[arg(long)]
    upload: bool,
    /// Store a new version where the name is another content's, which NAME@DIGEST then finds.
    #[arg(long)]
    new_version: bool,
}

#[derive(Serialize)]
struct ListDocument {
    saes: Vec<SaeView>,
    truncated: bool,
}

#[derive(Serialize)]
struct SaeDocument {
    sae: SaeView,
}

#[derive(Serialize)]
struct RemovedDocument {
    removed: String,
    removed_count: u32,
    purge_time: Option<String>,
}

pub(crate) async fn run(args: SaesArgs, globals: &Globals) -> anyhow::Result<()> {
    let client = globals.client()?;
    match args.command {
        SaesCommand::List { versions, limit } => {
            list(&client, &versions, limit, globals.json).await
        }
        SaesCommand::Show { name } => print_sae(client.get_sae(&name).await?, globals.json),
        SaesCommand::Import(args) => {
            let mut import = start_import(&client, args).await?;
            print_sae(follow(&mut import).await?, globals.json)
        }
        SaesCommand::Rm { name, purge } => {
            let removed = client.delete_sae(&name, purge).await?;
            let document = RemovedDocument {
                removed: name,
                removed_count: removed.removed_count,
                purge_time: removed.purge_time.map(|time| time.to_string()),
            };
            if globals.json {
                return output::json(&document);
            }
            let RemovedDocument {
                removed: name,
                purge_time,
                ..
            } = &document;
            print_removed("saes", name, document.removed_count, purge_time.as_deref())
        }
        SaesCommand::Undelete { name } => {
            let restored = client.undelete_sae(&name).await?;
            print_restored(&name, restored, globals.json)
        }
    }
}

async fn list(
    client: &Client,
    versions: &VersionArgs,
    limit: usize,
    json: bool,
) -> anyhow::Result<()> {
    let &VersionArgs {
        all_versions,
        deleted,
    } = versions;
    let Listing { items, truncated } = match all_versions || deleted {
        true => client.list_sae_versions(deleted, cap(limit)).await?,
        false => client.list_saes(cap(limit)).await?,
    };
    let mut saes: Vec<SaeView> = items.into_iter().map(Into::into).collect();
    if deleted {
        saes.retain(|sae| sae.delete_time.is_some());
    }
    if json {
        return output::json(&ListDocument { saes, truncated });
    }
    if all_versions || deleted {
        let mut table = Table::new(&["name", "digest", "stored", "deleted", "labels"]);
        for sae in &saes {
            table.row(sae.version_cells());
        }
        table.print("no such versions")?;
    } else {
        let mut table = Table::new(&["name", "hook", "model", "d_in", "d_sae", "kind", "labels"]);
        for sae in &saes {
            table.row(sae.cells());
        }
        table.print("no SAEs; import one with `steer saes import`")?;
    }
    output::note_truncated(truncated, saes.len());
    Ok(())
}

fn print_sae(sae: v1::Sae, json: bool) -> anyhow::Result<()> {
    let sae = SaeView::from(sae);
    if json {
        output::json(&SaeDocument { sae })
    } else {
        Ok(print_card(&sae.card())?)
    }
}

async fn start_import(client: &Client, args: ImportArgs) -> anyhow::Result<ImportStream> {
    let options = v1::SaeImportOptions {
        sae_id: args.name,
        hook_name: args.hook.unwrap_or_default(),
        model_id: args.model.unwrap_or_default(),
        activation_scale: args.scale,
        provenance: None,
        new_version: args.new_version,
    };
    if args.upload {
        let files = FileSet::scan(Path::new(&args.source))?;
        let bar = progress::bytes(files.total_bytes, "upload");
        let total = files.total_bytes;
        let counted = bar.clone();
        let on_bytes = std::sync::Arc::new(move |bytes| {
            counted.inc(bytes);
            if counted.position() >= total {
                counted.finish_and_clear();
            }
        });
        return Ok(client.upload_sae(options, files, on_bytes).await?);
    }
    let request = v1::ImportSaeRequest {
        source: Some(source(&args.source, args.revision)?),
        options: Some(options),
    };
    Ok(client.import_sae(request).await?)
}

async fn follow(import: &mut ImportStream) -> anyhow::Result<v1::Sae> {
    let mut stages = progress::Stages::start();
    let mut sae = None;
    while let Some(event) = import.next().await? {
        match event {
            ImportEvent::Progress(progress) => stages.update(&progress),
            ImportEvent::Done(done) => sae = Some(done),
        }
    }
    stages.finish();
    sae.ok_or_else(|| anyhow::anyhow!("the import ended without an SAE"))
}

/// An existing path, else a hub id. Absolute paths may exist where the registry is.
fn source(text: &str, revision: Option<String>) -> anyhow::Result<v1::import_sae_request::Source> {
    use v1::import_sae_request::Source;
    let path = Path::new(text);
    if revision.is_none() {
        if let Ok(path) = path.canonicalize() {
            return Ok(Source::Path(path_text(path)?));
        }
        if path.is_absolute() {
            return Ok(Source::Path(text.to_owned()));
        }
    }
    match hub_source(text, revision) {
        Some(hub) => Ok(Source::Hub(hub)),
        None => Err(hinted(
            format!("{text:?} is neither a file here nor a hub id"),
            "a hub id is OWNER/REPO or OWNER/REPO/FOLDER",
        )),
    }
}

fn path_text(path: PathBuf) -> anyhow::Result<String> {
    path.into_os_string()
        .into_string()
        .map_err(|path| anyhow::anyhow!("{} is not valid UTF-8", path.display()))
}

fn hub_source(text: &str, revision: Option<String>) -> Option<v1::HubSource> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let mut parts = text.splitn(3, '/');
    let mut id_part = || {
        parts
            .next()
            .filter(|part| part.starts_with(|c: char| c.is_ascii_alphanumeric()))
            .filter(|part| part.chars().all(allowed))
    };
    let (owner, name) = (id_part()?, id_part()?);
    let path = parts.next().unwrap_or_default().trim_end_matches('/');
    Some(v1::HubSource {
        repo_id: format!("{owner}/{name}"),
        path: path.to_owned(),
        revision: revision.unwrap_or_default(),
    })
}

/// Fails early, and better than halfway, where a file cannot be sent.
pub(crate) fn require_file(path: &Path) -> anyhow::Result<()> {
    let metadata = std::fs::metadata(path)
        .map_err(|error| anyhow::anyhow!("cannot read {}: {error}", path.display()))?;
    if metadata.is_dir() {
        return Err(hinted(
            format!("{} is a folder", path.display()),
            "name the file in it",
        ));
    }
    Ok(())
}

/// Size of a file; 0 where it has none (a pipe).
pub(crate) fn file_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::import_sae_request::Source;

    #[test]
    fn hub_ids_have_an_owner_and_a_name() {
        let hub = hub_source("google/gemma-scope/layer_21/l0_20", None).expect("hub id");
        assert_eq!(hub.repo_id, "google/gemma-scope");
        assert_eq!(hub.path, "layer_21/l0_20");
        assert_eq!(hub_source("owner/repo", None).expect("hub id").path, "");
        for text in ["repo", "./owner/repo", "../a/b", "a b/c", "owner/", "/a/b"] {
            assert_eq!(hub_source(text, None), None, "{text}");
        }
    }

    #[test]
    fn existing_paths_win_and_become_absolute() {
        let Source::Path(path) = source("src", None).expect("path") else {
            panic!("not a path");
        };
        assert!(Path::new(&path).is_absolute());
        let elsewhere = source("/nowhere/here", None).expect("path");
        assert_eq!(elsewhere, Source::Path("/nowhere/here".to_owned()));
        assert!(source("./absent", None).is_err());
    }
}
