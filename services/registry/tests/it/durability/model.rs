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
    harness::{Client, HOOK, MODEL, by_index, import_with, options},
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
    saes: BTreeMap<String, BTreeSet<u32>>,
    cavs: BTreeMap<String, u32>,
}

/// One write.
#[derive(Debug, Clone)]
pub(super) enum Step {
    ImportSae { name: String },
    DeleteSae { name: String },
    ImportLabels { sae: String, version: u32 },
    ImportCavs { names: Vec<String>, seed: u32 },
    DeleteCav { name: String },
}

impl State {
    pub(super) fn apply(&mut self, step: &Step) {
        match step {
            Step::ImportSae { name } => drop(self.saes.insert(name.clone(), BTreeSet::new())),
            Step::DeleteSae { name } => drop(self.saes.remove(name)),
            Step::ImportLabels { sae, version } => {
                let versions = self.saes.get_mut(sae).expect("an SAE that is there");
                versions.insert(*version);
            }
            Step::ImportCavs { names, seed } => {
                let named = names.iter().map(|name| (name.clone(), *seed));
                self.cavs.extend(named);
            }
            Step::DeleteCav { name } => drop(self.cavs.remove(name)),
        }
    }
}

/// Something to do; names are a client's own.
pub(super) fn next(state: &State, writer: usize, rng: &mut StdRng) -> Step {
    let number: u32 = rng.random_range(0..1_000_000);
    let sae = state.saes.keys().choose(rng).cloned();
    let cav = state.cavs.keys().choose(rng).cloned();
    match (rng.random_range(0..10), sae, cav) {
        (0..3, Some(sae), _) => Step::ImportLabels {
            sae,
            version: number,
        },
        (3..5, Some(name), _) => Step::DeleteSae { name },
        (_, Some(name), _) if state.saes.len() > MANY => Step::DeleteSae { name },
        (5, _, Some(name)) => Step::DeleteCav { name },
        (_, _, Some(name)) if state.cavs.len() > CAVS * MANY => Step::DeleteCav { name },
        (0..7, ..) => {
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
            Self::DeleteSae { name } => {
                let request = v1::DeleteSaeRequest { sae_id: name };
                client.delete_sae(request).await?;
            }
            Self::ImportLabels { sae, version } => import_labels(client, sae, version).await?,
            Self::ImportCavs { names, seed } => import_cavs(client, &names, seed).await?,
            Self::DeleteCav { name } => {
                client.delete_cav(v1::DeleteCavRequest { name }).await?;
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
    let saes = list_saes(client).await.expect("list");
    for sae in saes
        .into_iter()
        .filter(|sae| sae.sae_id.starts_with(&prefix))
    {
        check_features(client, &sae.sae_id).await.expect("features");
        let versions = label_versions(client, &sae).await;
        state.saes.insert(sae.sae_id, versions);
    }
    let request = v1::ListCavsRequest {
        prefix,
        page_size: 1000,
        page_token: String::new(),
    };
    let cavs = client.list_cavs(request).await.expect("list").into_inner();
    for cav in cavs.cavs {
        let request = v1::GetCavRequest {
            name: cav.name.clone(),
        };
        let found = client.get_cav(request).await.expect("CAV").into_inner();
        let vector = found.cav.expect("CAV").directions.remove(0).vector;
        let seed = cav.name.split('-').nth(1).expect("a name");
        let seed = seed.parse().expect("a seed");
        let values = vector.expect("vector").values;
        assert_eq!(values, cav_values(&cav.name, seed), "{}", cav.name);
        state.cavs.insert(cav.name, seed);
    }
    state
}

async fn list_saes(client: &mut Client) -> Result<Vec<v1::Sae>, Status> {
    let request = v1::ListSaesRequest {
        page_size: 1000,
        page_token: String::new(),
    };
    Ok(client.list_saes(request).await?.into_inner().saes)
}

async fn check_features(client: &mut Client, name: &str) -> Result<(), Status> {
    let all = (0..D_SAE).map(|i| by_index(name, i as u32)).collect();
    let request = v1::GetFeaturesRequest { features: all };
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
        for sae in list_saes(client).await? {
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
