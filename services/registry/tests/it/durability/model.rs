//! What clients write, what must then be there, and how it is read back.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use rand::{RngExt, rngs::StdRng, seq::IteratorRandom};
use steering_proto::v1;
use tonic::{Code, Status};

use crate::{
    harness::{Client, HOOK, MODEL, by_index, delete, import_with, options},
    sources::{D_IN, D_SAE, value},
};

/// SAEs of different numbers: clients often import the same ones.
pub(super) const SEEDS: usize = 4;
/// Labels of one file: more than the registry stores at once.
const LABELS: usize = 40;
/// CAVs of one file.
const CAVS: usize = 3;
/// Things of a client that make it delete rather than add.
const MANY: usize = 6;

/// What a client has stored: SAEs with the numbers of their label files, and files of CAVs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    live: Things,
    /// Deleted, and not purged.
    deleted: Things,
}

#[derive(Debug, Clone, Default, Eq)]
struct Things {
    saes: BTreeMap<String, BTreeSet<u32>>,
    cavs: BTreeMap<String, u32>,
    /// Whether labels can be read; else an SAE has as many files of them as it says.
    hidden: bool,
}

impl PartialEq for Things {
    fn eq(&self, other: &Self) -> bool {
        let files = |things: &Self| {
            let saes = things.saes.iter();
            saes.map(|(name, files)| (name.clone(), files.len()))
                .collect::<Vec<_>>()
        };
        let same = match self.hidden || other.hidden {
            true => files(self) == files(other),
            false => self.saes == other.saes,
        };
        same && self.cavs == other.cavs
    }
}

/// One write.
#[derive(Debug, Clone)]
pub(super) enum Step {
    ImportSae { name: String },
    DeleteSae { name: String, purge: bool },
    UndeleteSae { name: String },
    ImportLabels { sae: String, version: u32 },
    ImportCavs { names: Vec<String>, seed: u32 },
    DeleteCav { name: String, purge: bool },
    UndeleteCav { name: String },
}

impl State {
    pub(super) fn apply(&mut self, step: &Step) {
        let (live, deleted) = (&mut self.live, &mut self.deleted);
        match step {
            Step::ImportSae { name } => drop(live.saes.insert(name.clone(), BTreeSet::new())),
            Step::DeleteSae { name, purge } => {
                let files = live.saes.remove(name).or(deleted.saes.remove(name));
                if !purge {
                    let files = files.expect("an SAE that is there");
                    deleted.saes.insert(name.clone(), files);
                }
            }
            Step::UndeleteSae { name } => {
                let files = deleted.saes.remove(name).expect("a deleted SAE");
                live.saes.insert(name.clone(), files);
            }
            Step::ImportLabels { sae, version } => {
                let versions = live.saes.get_mut(sae).expect("an SAE that is there");
                versions.insert(*version);
            }
            Step::ImportCavs { names, seed } => {
                let named = names.iter().map(|name| (name.clone(), *seed));
                live.cavs.extend(named);
            }
            Step::DeleteCav { name, purge } => {
                let seed = live.cavs.remove(name).or(deleted.cavs.remove(name));
                if !purge {
                    deleted
                        .cavs
                        .insert(name.clone(), seed.expect("a CAV that is there"));
                }
            }
            Step::UndeleteCav { name } => {
                let seed = deleted.cavs.remove(name).expect("a deleted CAV");
                live.cavs.insert(name.clone(), seed);
            }
        }
    }
}

/// Something to do; names are a client's own.
pub(super) fn next(state: &State, writer: usize, rng: &mut StdRng) -> Step {
    // Of so many that no name comes twice: what is stored again is not deleted any more.
    let number: u32 = rng.random_range(0..1 << 31);
    let State { live, deleted } = state;
    let sae = live.saes.keys().choose(rng).cloned();
    let cav = live.cavs.keys().choose(rng).cloned();
    let deleted_sae = deleted.saes.keys().choose(rng).cloned();
    let deleted_cav = deleted.cavs.keys().choose(rng).cloned();
    let many = [&deleted.saes.len(), &deleted.cavs.len()].map(|&count| count > MANY);
    let purge = rng.random_ratio(1, 3);
    match (rng.random_range(0..12), sae, cav, deleted_sae, deleted_cav) {
        (0, _, _, Some(name), _) => Step::UndeleteSae { name },
        (1, _, _, _, Some(name)) => Step::UndeleteCav { name },
        (2, _, _, Some(name), _) if many[0] => Step::DeleteSae { name, purge: true },
        (2, _, _, _, Some(name)) if many[1] => Step::DeleteCav { name, purge: true },
        (0..5, Some(sae), ..) => Step::ImportLabels {
            sae,
            version: number,
        },
        (5..7, Some(name), ..) => Step::DeleteSae { name, purge },
        (_, Some(name), ..) if live.saes.len() > MANY => Step::DeleteSae { name, purge },
        (7, _, Some(name), ..) => Step::DeleteCav { name, purge },
        (_, _, Some(name), ..) if live.cavs.len() > CAVS * MANY => Step::DeleteCav { name, purge },
        (0..9, ..) => {
            let seed = number as usize % SEEDS;
            let name = format!("w{writer}-{number}-{seed}");
            Step::ImportSae { name }
        }
        _ => Step::ImportCavs {
            names: (0..CAVS)
                .map(|i| format!("w{writer}-{number}-{i}"))
                .collect(),
            seed: number,
        },
    }
}

fn cav_values(name: &str, seed: u32) -> Vec<f32> {
    let kind = name.bytes().last().map_or(0, u32::from);
    (1..1000).map(|i| (seed + kind * i) as f32).collect()
}

impl Step {
    pub(super) async fn perform(&self, client: &mut Client, files: &Path) -> Result<(), Status> {
        match self.clone() {
            Self::ImportSae { name } => {
                let path = files.join(format!("{}.npz", seed_of(&name)));
                import_with(client, &path, options(&name)).await?;
            }
            Self::DeleteSae { name, purge } => {
                client.delete_sae(delete(&name, purge)).await?;
            }
            Self::UndeleteSae { name } => {
                let request = v1::UndeleteSaeRequest { sae_id: name };
                client.undelete_sae(request).await?;
            }
            Self::ImportLabels { sae, version } => import_labels(client, sae, version).await?,
            Self::ImportCavs { names, seed } => import_cavs(client, &names, seed).await?,
            Self::DeleteCav { name, purge } => {
                let request = v1::DeleteCavRequest { name, purge };
                client.delete_cav(request).await?;
            }
            Self::UndeleteCav { name } => {
                client.undelete_cav(v1::UndeleteCavRequest { name }).await?;
            }
        }
        Ok(())
    }
}

fn seed_of(name: &str) -> usize {
    let seed = name.rsplit('-').next().expect("a name");
    seed.parse().expect("a seed")
}

async fn import_labels(client: &mut Client, sae_id: String, version: u32) -> Result<(), Status> {
    use v1::import_feature_labels_request::Content;
    let rows: String = (0..LABELS)
        .map(|i| {
            format!(
                "{{\"index\": {}, \"label\": \"{version} {i}\"}}\n",
                i % D_SAE
            )
        })
        .collect();
    let header = v1::LabelImportHeader {
        sae_id,
        source: format!("v{version}"),
        ..Default::default()
    };
    let contents = [Content::Header(header), Content::Chunk(rows.into_bytes())];
    let messages = contents.map(|content| v1::ImportFeatureLabelsRequest {
        content: Some(content),
    });
    client
        .import_feature_labels(tokio_stream::iter(messages))
        .await?;
    Ok(())
}

async fn import_cavs(client: &mut Client, names: &[String], seed: u32) -> Result<(), Status> {
    use v1::import_cavs_request::Content;
    let cavs: Vec<serde_json::Value> = names
        .iter()
        .map(|name| serde_json::json!({"label": name, "cav": cav_values(name, seed)}))
        .collect();
    let header = v1::CavImportHeader {
        hook_name: HOOK.to_owned(),
        model_id: MODEL.to_owned(),
        file_name: "cavs.json".to_owned(),
    };
    let bytes = serde_json::to_vec(&cavs).expect("JSON");
    let contents = [Content::Header(header), Content::Chunk(bytes)];
    let messages = contents.map(|content| v1::ImportCavsRequest {
        content: Some(content),
    });
    client.import_cavs(tokio_stream::iter(messages)).await?;
    Ok(())
}

/// All that a client has stored. Everything must be whole: every feature's numbers, all labels
/// of a file or none, every number of a CAV.
pub(super) async fn read(client: &mut Client, writer: usize) -> State {
    let prefix = format!("w{writer}-");
    let mut state = State::default();
    state.deleted.hidden = true;
    let saes = list_saes(client, true).await.expect("list");
    for sae in saes
        .into_iter()
        .filter(|sae| sae.sae_id.starts_with(&prefix))
    {
        if sae.delete_time.is_some() {
            let files = sae.label_count as usize / LABELS;
            let files = (0..files).map(|i| i as u32).collect();
            state.deleted.saes.insert(sae.sae_id, files);
            continue;
        }
        check_features(client, &sae.sae_id).await.expect("features");
        let versions = label_versions(client, &sae).await;
        state.live.saes.insert(sae.sae_id, versions);
    }
    for cav in list_cavs(client, prefix).await {
        let seed = cav.name.split('-').nth(1).expect("a name");
        let seed = seed.parse().expect("a seed");
        if cav.delete_time.is_some() {
            state.deleted.cavs.insert(cav.name, seed);
            continue;
        }
        let request = v1::GetCavRequest {
            name: cav.name.clone(),
        };
        let found = client.get_cav(request).await.expect("CAV").into_inner();
        let vector = found.cav.expect("CAV").directions.remove(0).vector;
        let values = vector.expect("vector").values;
        assert_eq!(values, cav_values(&cav.name, seed), "{}", cav.name);
        state.live.cavs.insert(cav.name, seed);
    }
    state
}

async fn list_cavs(client: &mut Client, prefix: String) -> Vec<v1::Cav> {
    let mut request = v1::ListCavsRequest {
        prefix,
        page_size: 1000,
        show_deleted: true,
        ..Default::default()
    };
    let mut found = Vec::new();
    loop {
        let page = client.list_cavs(request.clone()).await.expect("list");
        let page = page.into_inner();
        found.extend(page.cavs);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return found;
        }
    }
}

async fn list_saes(client: &mut Client, show_deleted: bool) -> Result<Vec<v1::Sae>, Status> {
    let mut request = v1::ListSaesRequest {
        page_size: 1000,
        show_deleted,
        ..Default::default()
    };
    let mut found = Vec::new();
    loop {
        let page = client.list_saes(request.clone()).await?.into_inner();
        found.extend(page.saes);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return Ok(found);
        }
    }
}

async fn check_features(client: &mut Client, name: &str) -> Result<(), Status> {
    let all = (0..D_SAE).map(|i| by_index(name, i as u32)).collect();
    let request = v1::GetFeaturesRequest {
        features: all,
        ..Default::default()
    };
    let features = client.get_features(request).await?.into_inner().features;
    let seed = seed_of(name);
    for (i, feature) in features.iter().enumerate() {
        let row = |tensor: usize| (0..D_IN).map(move |c| value(seed + tensor, i, c));
        assert!(
            row(1).eq(feature.encoder.iter().copied()),
            "{name} {i}: {feature:?}"
        );
        assert!(
            row(2).eq(feature.decoder.iter().copied()),
            "{name} {i}: {feature:?}"
        );
    }
    Ok(())
}

async fn label_versions(client: &mut Client, sae: &v1::Sae) -> BTreeSet<u32> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListFeaturesRequest {
            sae_id: sae.sae_id.clone(),
            page_size: 1000,
            page_token,
            ..Default::default()
        };
        let page = client
            .list_features(request)
            .await
            .expect("labels")
            .into_inner();
        for label in page.features {
            let (version, _) = label.label.split_once(' ').expect("a label");
            *counts
                .entry(version.parse().expect("a version"))
                .or_default() += 1;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert!(
        counts.values().all(|&count| count == LABELS),
        "half a file: {counts:?}"
    );
    assert_eq!(sae.label_count as usize, LABELS * counts.len(), "{sae:?}");
    counts.into_keys().collect()
}

/// Reads an SAE of any client while they write. False when the registry is dead.
pub(super) async fn read_any(client: &mut Client, dead: &AtomicBool) -> bool {
    let read = async {
        for sae in list_saes(client, false).await? {
            check_features(client, &sae.sae_id).await?;
        }
        Ok::<(), Status>(())
    };
    match read.await {
        Ok(()) => true,
        // Deleted since it was listed.
        Err(status) if status.code() == Code::NotFound => true,
        Err(status) => {
            assert!(dead.load(Ordering::SeqCst), "while it lives: {status:?}");
            false
        }
    }
}
