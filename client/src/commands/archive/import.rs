//! `steer import`.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, ensure};
use clap::Args;
use futures::{StreamExt, stream};
use prost::Message;
use safetensors::SafeTensors;
use serde::Serialize;
use steering_client::{
    Client, Error, FileSet, ImportEvent, files::OnBytes, statistics::ImportedStatistics, v1,
};

use super::{
    files::{FileEntry, unhex},
    manifest::{CavEntry, Manifest, SaeEntry, StatisticsEntry, time},
    rows::StatisticsRow,
};
use crate::{cli::Globals, failure::hinted, output, progress};

/// Longest line read.
const LINE_LEN_MAX: u64 = 1 << 20;

/// Bring back what `steer export` wrote.
///
/// Every file is checked first against the SHA-256 in the manifest; nothing is sent if one was
/// changed. What is there already with the same digest stays, so that an import that was
/// interrupted can be run again. A name that is that of an SAE which the export lacks is an
/// error.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  steer import registry-2026-11
  steer import registry-2026-11 --sae gemma-scope-l21-65k --registry http://127.0.0.1:50062

JSON, --json: `sae_count`, `label_count` (candidates too), `statistics_count`, `cav_count`")]
pub(crate) struct ImportArgs {
    /// The folder that `steer export` wrote.
    folder: PathBuf,
}

#[derive(Debug, Default, Serialize)]
struct ImportDocument {
    sae_count: usize,
    label_count: u64,
    statistics_count: usize,
    cav_count: usize,
}

pub(crate) async fn run(args: ImportArgs, globals: &Globals) -> anyhow::Result<()> {
    let client = globals.client()?;
    let folder = args.folder;
    let mut manifest = Manifest::read(&folder)?;
    if let Some(only) = &globals.sae {
        manifest.saes.retain(|sae| sae.sae_id == *only);
        manifest.cavs.clear();
        ensure!(!manifest.saes.is_empty(), "the export has no SAE {only:?}");
    }
    let files = manifest.files();
    let bar = progress::bytes(files.iter().map(|file| file.bytes).sum(), "checking");
    for file in files {
        file.verify(&folder, &progress::on_bytes(&bar))?;
    }
    bar.finish_and_clear();
    let mut document = ImportDocument::default();
    for sae in &manifest.saes {
        let versions = manifest.saes.iter();
        let versions = versions.filter(|version| version.sae_id == sae.sae_id);
        let versions: Vec<&str> = versions.map(|version| version.digest.as_str()).collect();
        if is_wanted(&client, sae, &versions).await? {
            import_sae(&client, &folder, sae).await?;
        }
        document.sae_count += 1;
        if let Some(labels) = &sae.labels {
            document.label_count += import_labels(&client, &folder, sae, labels).await?;
        }
        for version in &sae.statistics {
            import_statistics(&client, &folder, sae, version).await?;
            document.statistics_count += 1;
        }
    }
    for cav in &manifest.cavs {
        import_cav(&client, &folder, cav).await?;
        document.cav_count += 1;
    }
    if globals.json {
        return output::json(&document);
    }
    let ImportDocument {
        sae_count,
        label_count,
        statistics_count,
        cav_count,
    } = document;
    Ok(output::line(format_args!(
        "{sae_count} versions of SAEs, {label_count} labels, {statistics_count} versions of \
         statistics, {cav_count} versions of CAVs"
    ))?)
}

/// Whether a version, one of those of its name in the export, is to be sent. The last of them
/// must become what the name finds.
async fn is_wanted(client: &Client, sae: &SaeEntry, versions: &[&str]) -> anyhow::Result<bool> {
    let Some(newest) = held(client, &sae.sae_id).await? else {
        return Ok(true);
    };
    if !versions.contains(&newest.as_str()) {
        return Err(hinted(
            format!(
                "the registry has another SAE {:?}, of digest {newest}",
                sae.sae_id
            ),
            "delete it with `steer saes rm`, or import the others with --sae NAME",
        ));
    }
    let is_last = versions.last() == Some(&sae.digest.as_str());
    Ok(newest != sae.digest && (is_last || held(client, &sae.address()).await?.is_none()))
}

/// Digest of the SAE at an address, if the registry has it.
async fn held(client: &Client, address: &str) -> anyhow::Result<Option<String>> {
    match client.get_sae(address).await {
        Ok(sae) => Ok(Some(sae.digest)),
        Err(Error::Rpc { status, .. }) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn import_sae(client: &Client, folder: &Path, sae: &SaeEntry) -> anyhow::Result<()> {
    let options = v1::SaeImportOptions {
        sae_id: sae.sae_id.clone(),
        hook_name: sae.hook_name.clone(),
        model_id: sae.model_id.clone(),
        activation_scale: None,
        provenance: Some(v1::SaeProvenance {
            digest: sae.digest.clone(),
            format: sae.format.clone(),
            origin: sae.origin.clone(),
            created_at: time(sae.created_at.as_deref())?,
        }),
        new_version: true,
    };
    let files = FileSet::scan(&sae.directions.locate(folder)?)?;
    let bar = progress::bytes(files.total_bytes, "directions");
    let mut import = client
        .upload_sae(options, files, progress::on_bytes(&bar))
        .await?;
    let mut done = false;
    while let Some(event) = import.next().await? {
        done |= matches!(event, ImportEvent::Done(_));
    }
    bar.finish_and_clear();
    ensure!(done, "the import of SAE {:?} ended without it", sae.sae_id);
    Ok(())
}

async fn import_labels(
    client: &Client,
    folder: &Path,
    sae: &SaeEntry,
    labels: &FileEntry,
) -> anyhow::Result<u64> {
    let header = v1::LabelImportHeader {
        sae_id: sae.address(),
        source: String::new(),
        // They were let in once, from files in which names may be shared.
        shared_names: true,
    };
    let bar = progress::bytes(labels.bytes, "labels");
    let on_bytes: OnBytes = progress::on_bytes(&bar);
    let imported = client
        .import_labels(header, &labels.locate(folder)?, on_bytes)
        .await;
    bar.finish_and_clear();
    let imported = imported?;
    Ok(imported.label_count + imported.candidate_count)
}

async fn import_statistics(
    client: &Client,
    folder: &Path,
    sae: &SaeEntry,
    version: &StatisticsEntry,
) -> anyhow::Result<()> {
    let path = version.features.locate(folder)?;
    let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut lines = BufReader::new(file);
    // A line that cannot be read ends the stream early; the registry then misses the rest.
    let failed = Arc::new(Mutex::new(None));
    let failure = failed.clone();
    let rows = std::iter::from_fn(move || match read_row(&mut lines) {
        Ok(row) => row.map(|row| ImportedStatistics::Statistics(row.into_wire())),
        Err(error) => {
            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            None
        }
    });
    let first = ImportedStatistics::Version(version.to_wire(sae)?);
    let messages = stream::iter([first]).chain(stream::iter(rows));
    let imported = client.import_feature_statistics(messages).await;
    if let Some(error) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error.context(format!("cannot read {}", path.display())));
    }
    imported?;
    Ok(())
}

fn read_row(lines: &mut impl BufRead) -> anyhow::Result<Option<StatisticsRow>> {
    let mut line = String::new();
    let read = std::io::Read::take(lines, LINE_LEN_MAX).read_line(&mut line)?;
    if read == 0 {
        return Ok(None);
    }
    Ok(Some(serde_json::from_str(&line)?))
}

async fn import_cav(client: &Client, folder: &Path, cav: &CavEntry) -> anyhow::Result<()> {
    let mut directions = Vec::new();
    for direction in &cav.directions {
        let path = direction.vector.locate(folder)?;
        let values =
            read_vector(&path).with_context(|| format!("cannot read {}", path.display()))?;
        directions.push(v1::CavDirection {
            hook_name: direction.hook_name.clone(),
            vector: Some(v1::Vector {
                name: cav.name.clone(),
                values,
            }),
            ..v1::CavDirection::default()
        });
    }
    let training = cav.training.as_deref().map(unhex).transpose()?;
    let training = training.map(|bytes| v1::CavTraining::decode(bytes.as_slice()));
    let request = v1::CreateCavRequest {
        name: cav.name.clone(),
        model_id: cav.model_id.clone(),
        directions,
        origin: cav.origin.clone(),
        training: training.transpose()?,
        created_at: time(cav.created_at.as_deref())?,
    };
    let stored = client.create_cav(request).await?;
    ensure!(
        stored.digest == cav.digest,
        "CAV {:?} came back with digest {}, not {}",
        cav.name,
        stored.digest,
        cav.digest
    );
    Ok(())
}

fn read_vector(path: &Path) -> anyhow::Result<Vec<f32>> {
    let bytes = std::fs::read(path)?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let (cells, _) = tensors.tensor("cavs")?.data().as_chunks::<4>();
    Ok(cells.iter().map(|cell| f32::from_le_bytes(*cell)).collect())
}
