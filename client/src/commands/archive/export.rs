//! `steer export`.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::Args;
use futures::StreamExt;
use prost::Message;
use serde::Serialize;
use steering_client::{Client, v1};

use super::{
    files::{FileEntry, Writing, file_name, hex},
    manifest::{CavEntry, DirectionEntry, FORMAT, Manifest, NAME, SaeEntry, StatisticsEntry},
    rows::{LabelRow, StatisticsRow},
};
use crate::{
    cli::Globals,
    commands::cavs::{
        export::{Export, to_safetensors},
        gguf::{layer, to_gguf},
        torch::to_torch,
    },
    failure::hinted,
    output, progress,
};

/// Entries of one page.
const PAGE_SIZE: u32 = 1000;

/// Write everything that the registry holds to a folder of plain files.
///
/// SAEs as safetensors, their labels and feature statistics as JSON lines, CAVs as safetensors and,
/// for other programs, as .pt files and (where they are at outputs of layers) GGUF control vectors,
/// every version of each that was not deleted, and a manifest with the SHA-256 of each file.
/// Nothing is held in memory but the manifest. With `--sae NAME` it is that SAE's newest version
/// only, without CAVs.
#[derive(Debug, Args)]
#[command(after_help = "\
`steer import` brings it back: the same digests, labels, statistics and versions. The files
can be read by themselves too: labels.jsonl by `steer labels import`, CAVs by `steer cavs
import`, steer_sae.safetensors by `steer saes import`.

Examples:
  steer export registry-2026-11
  steer export hockey --sae gemma-scope-l21-65k

JSON, --json: `folder`, `sae_count` and `cav_count` (versions), `file_count`, `bytes`")]
pub(crate) struct ExportArgs {
    /// The folder: new, or empty.
    folder: PathBuf,
}

#[derive(Serialize)]
struct ExportDocument {
    folder: PathBuf,
    sae_count: usize,
    cav_count: usize,
    file_count: usize,
    bytes: u64,
}

pub(crate) async fn run(args: ExportArgs, globals: &Globals) -> anyhow::Result<()> {
    let client = globals.client()?;
    let saes = match &globals.sae {
        Some(sae) => vec![client.get_sae(sae).await?],
        None => client.list_sae_versions(false, None).await?.items,
    };
    let folder = args.folder;
    std::fs::create_dir_all(&folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let mut entries = std::fs::read_dir(&folder)?;
    if entries.next().is_some() {
        return Err(hinted(
            format!("{} is not empty", folder.display()),
            "name a new folder; what an interrupted export left can be deleted",
        ));
    }
    let mut manifest = Manifest {
        format: FORMAT.to_owned(),
        saes: Vec::new(),
        cavs: Vec::new(),
    };
    for (number, sae) in saes.into_iter().enumerate() {
        let place = format!("saes/{}", file_name(number, &sae.sae_id));
        manifest
            .saes
            .push(export_sae(&client, &folder, &place, sae).await?);
    }
    if globals.sae.is_none() {
        export_cavs(&client, &folder, &mut manifest.cavs).await?;
    }
    // Under its name once it is whole: an export without it is none.
    let mut writing = Writing::create(&folder, format!("{NAME}.partial"))?;
    writing.write(&serde_json::to_vec_pretty(&manifest)?)?;
    writing.finish()?;
    std::fs::rename(folder.join(format!("{NAME}.partial")), folder.join(NAME))?;
    let files = manifest.files();
    let document = ExportDocument {
        sae_count: manifest.saes.len(),
        cav_count: manifest.cavs.len(),
        file_count: files.len(),
        bytes: files.iter().map(|file| file.bytes).sum(),
        folder,
    };
    if globals.json {
        return output::json(&document);
    }
    Ok(output::line(format_args!(
        "{} versions of SAEs and {} of CAVs in {}: {} files, {} bytes",
        document.sae_count,
        document.cav_count,
        document.folder.display(),
        document.file_count,
        document.bytes
    ))?)
}

async fn export_sae(
    client: &Client,
    folder: &Path,
    place: &str,
    sae: v1::Sae,
) -> anyhow::Result<SaeEntry> {
    let address = format!("{}@{}", sae.sae_id, sae.digest);
    let directions = directions(client, folder, place, &sae, &address).await?;
    let labels = labels(client, folder, place, &address).await?;
    let versions = client.list_feature_statistics_versions(&address, None);
    let mut statistics = Vec::new();
    // Oldest first, so that the newest is stored last again.
    for version in versions.await?.items.into_iter().rev() {
        let features = features(client, folder, place, &address, &version.digest).await?;
        statistics.push(StatisticsEntry::new(version, features));
    }
    let v1::Sae {
        sae_id,
        digest,
        hook_name,
        model_id,
        format,
        origin,
        created_at,
        ..
    } = sae;
    Ok(SaeEntry {
        sae_id,
        digest,
        hook_name,
        model_id,
        format,
        origin,
        created_at: created_at.map(|time| time.to_string()),
        directions,
        labels,
        statistics,
    })
}

async fn directions(
    client: &Client,
    folder: &Path,
    place: &str,
    sae: &v1::Sae,
    address: &str,
) -> anyhow::Result<FileEntry> {
    // Two matrices and little more.
    let bytes = 8 * u64::from(sae.d_sae) * u64::from(sae.d_in);
    let bar = progress::bytes(bytes, "directions");
    let mut file = Writing::create(folder, format!("{place}/steer_sae.safetensors"))?;
    let mut chunks = client.download_sae(address).await?;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        file.write(&chunk)?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    let entry = file.finish()?;
    ensure!(
        entry.sha256 == sae.digest,
        "the registry's copy of SAE {:?} is damaged: it has SHA-256 {}, not {}",
        sae.sae_id,
        entry.sha256,
        sae.digest
    );
    Ok(entry)
}

async fn labels(
    client: &Client,
    folder: &Path,
    place: &str,
    address: &str,
) -> anyhow::Result<Option<FileEntry>> {
    let mut request = v1::ListFeaturesRequest {
        sae_id: address.to_owned(),
        include_candidates: true,
        page_size: PAGE_SIZE,
        ..v1::ListFeaturesRequest::default()
    };
    let mut file: Option<Writing> = None;
    loop {
        let page = client.list_features_page(request.clone()).await?;
        for label in page.features {
            let file = match &mut file {
                Some(file) => file,
                None => file.insert(Writing::create(folder, format!("{place}/labels.jsonl"))?),
            };
            file.line(&LabelRow::from(label))?;
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return file.map(Writing::finish).transpose();
        }
    }
}

async fn features(
    client: &Client,
    folder: &Path,
    place: &str,
    address: &str,
    digest: &str,
) -> anyhow::Result<FileEntry> {
    let mut file = Writing::create(folder, format!("{place}/statistics-{digest}.jsonl"))?;
    let mut request = v1::ListFeatureStatisticsRequest {
        sae_id: address.to_owned(),
        digest: digest.to_owned(),
        page_size: PAGE_SIZE,
        ..v1::ListFeatureStatisticsRequest::default()
    };
    loop {
        let page = client.list_feature_statistics(request.clone()).await?;
        for statistics in page.statistics {
            file.line(&StatisticsRow::from(statistics))?;
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return file.finish();
        }
    }
}

async fn export_cavs(
    client: &Client,
    folder: &Path,
    entries: &mut Vec<CavEntry>,
) -> anyhow::Result<()> {
    let mut request = v1::ListCavsRequest {
        page_size: PAGE_SIZE,
        all_versions: true,
        ..v1::ListCavsRequest::default()
    };
    loop {
        let page = client.list_cavs_page(request.clone()).await?;
        for listed in page.cavs {
            let address = format!("{}@{}", listed.name, listed.digest);
            let cav = client.get_cav(&address).await?;
            entries.push(export_cav(folder, entries.len(), cav)?);
        }
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok(());
        }
    }
}

fn export_cav(folder: &Path, number: usize, cav: v1::Cav) -> anyhow::Result<CavEntry> {
    let v1::Cav {
        name,
        digest,
        model_id,
        directions,
        origin,
        created_at,
        training,
        delete_time: _, // those are not exported
    } = cav;
    let place = format!("cavs/{}", file_name(number, &name));
    let write = |path: String, bytes: &[u8]| {
        let mut file = Writing::create(folder, path)?;
        file.write(bytes)?;
        file.finish()
    };
    let (mut written, mut copies) = (Vec::new(), Vec::new());
    let mut vectors: Vec<(String, Vec<f32>)> = Vec::new();
    for direction in directions {
        let hook_name = direction.hook_name;
        let mut export = Export {
            hook_name: hook_name.clone(),
            model_id: model_id.clone(),
            labels: vec![name.clone()],
            rows: vec![direction.vector.unwrap_or_default().values],
        };
        let path = format!("{place}.{hook_name}.safetensors");
        let vector = write(path, &to_safetensors(&export)?)?;
        copies.push(write(
            format!("{place}.{hook_name}.pt"),
            &to_torch(&export)?,
        )?);
        vectors.extend(export.rows.pop().map(|values| (hook_name.clone(), values)));
        written.push(DirectionEntry { hook_name, vector });
    }
    if vectors
        .iter()
        .all(|(hook_name, _)| layer(hook_name).is_some())
    {
        let vectors = vectors
            .iter()
            .map(|(hook, values)| (hook.as_str(), values.as_slice()));
        let vectors: Vec<(&str, &[f32])> = vectors.collect();
        copies.push(write(
            format!("{place}.gguf"),
            &to_gguf(&name, &model_id, &vectors)?,
        )?);
    }
    Ok(CavEntry {
        name,
        digest,
        model_id,
        origin,
        created_at: created_at.map(|time| time.to_string()),
        training: training.map(|training| hex(&training.encode_to_vec())),
        directions: written,
        copies,
    })
}
