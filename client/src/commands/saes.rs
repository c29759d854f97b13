//! `steer saes`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use steering_client::{Client, FileSet, ImportEvent, ImportStream, Listing, v1};

use super::features::cap;
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
  steer saes rm gemma-scope-l21-65k")]
pub(crate) struct SaesArgs {
    #[command(subcommand)]
    command: SaesCommand,
}

#[derive(Debug, Subcommand)]
enum SaesCommand {
    /// All SAEs by name.
    #[command(after_help = "Examples:\n  steer saes list\n  steer saes list --json")]
    List {
        /// Most SAEs to show; 0 = all.
        #[arg(long, value_name = "N", default_value_t = 0)]
        limit: usize,
    },
    /// One SAE.
    #[command(after_help = "Examples:\n  steer saes show gemma-scope-l21-65k")]
    Show {
        /// Its name.
        name: String,
    },
    Import(ImportArgs),
    /// Remove an SAE with its labels and directions.
    #[command(after_help = "Examples:\n  steer saes rm gemma-scope-l21-65k")]
    Rm {
        /// Its name.
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
}

pub(crate) async fn run(args: SaesArgs, globals: &Globals) -> anyhow::Result<()> {
    let client = globals.client()?;
    match args.command {
        SaesCommand::List { limit } => list(&client, limit, globals.json).await,
        SaesCommand::Show { name } => print_sae(client.get_sae(&name).await?, globals.json),
        SaesCommand::Import(args) => {
            let mut import = start_import(&client, args).await?;
            print_sae(follow(&mut import).await?, globals.json)
        }
        SaesCommand::Rm { name } => {
            client.delete_sae(&name).await?;
            if globals.json {
                return output::json(&RemovedDocument { removed: name });
            }
            Ok(output::line(format_args!("{name} removed"))?)
        }
    }
}

async fn list(client: &Client, limit: usize, json: bool) -> anyhow::Result<()> {
    let Listing { items, truncated } = client.list_saes(cap(limit)).await?;
    if json {
        return output::json(&ListDocument {
            saes: items.into_iter().map(Into::into).collect(),
            truncated,
        });
    }
    let mut table = Table::new(&["name", "hook", "model", "d_in", "d_sae", "kind", "labels"]);
    let shown = items.len();
    for sae in items {
        table.row([
            sae.sae_id,
            sae.hook_name,
            sae.model_id,
            sae.d_in.to_string(),
            sae.d_sae.to_string(),
            sae.architecture,
            sae.label_count.to_string(),
        ]);
    }
    table.print("no SAEs; import one with `steer saes import`")?;
    output::note_truncated(truncated, shown);
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
