//! A registry in a folder of files, and back, through the real `steer` binary.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::{Value, json};
use steering_client::v1;
use steering_e2e::{
    Fixture, Services, WorkerOptions,
    binaries::{binary, steer},
    fixture::{MODEL, SAE, path_text},
    services::start_registry,
};
use tempfile::TempDir;
use tokio::process::Command;

/// Everything that a registry can hold: labels with evidence and candidates, names that two
/// features share, trained CAVs, versions, statistics of two corpora.
async fn fill(services: &Services, folder: &Path) {
    let json = async |args: &[&str]| {
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        steer(services, &args).await
    };
    let labels = folder.join("labels.jsonl");
    let rows = "{\"index\": 3, \"label\": \"a \\\"b\\\"\\n☃\", \"source\": \"x\", \"score\": 0.1, \
                \"strength\": 1e-7, \"max_activation\": 3.3, \"evidence\": {\"z\": 0.5, \"a\": \"t\"}}\n\
                {\"index\": 3, \"label\": \"failed\", \"passed\": false}\n";
    fs::write(&labels, rows).expect("labels");
    json(&["labels", "import", &path_text(&labels)]).await;
    let shared = "{\"index\": \"5\", \"description\": \"the same\"}\n{\"index\": \"6\", \"description\": \"the same\"}\n";
    fs::write(&labels, shared).expect("labels");
    json(&["labels", "import", &path_text(&labels), "--source", "np"]).await;

    let texts = folder.join("texts.jsonl");
    let line = |i: usize| {
        let label = ["sport", "space"][i % 2];
        let text = format!("{label} {i} goal moon {}", "game star ".repeat(i % 5 + 3));
        json!({"text": text, "label_text": label}).to_string() + "\n"
    };
    fs::write(&texts, (0..24).map(line).collect::<String>()).expect("texts");
    let file = path_text(&texts);
    json(&["features", "stats", &file, "--limit", "5"]).await;
    json(&["features", "stats", &file, "--max-tokens", "16"]).await;
    let train = [
        "cavs",
        "train",
        &file,
        "--hook",
        "blocks.1.hook_resid_post",
        "--skip-tokens",
        "3",
        "--max-tokens",
        "24",
    ];
    json(&train).await;
    json(&[&train[..], &["--method", "mean-difference"]].concat()).await;
}

/// Another SAE under the same name, and then the first again.
async fn add_version(services: &Services, first: &Fixture) {
    let second = Fixture::load("gemma3");
    for fixture in [&second, first] {
        let sae = &fixture.cases.sae;
        let file = fixture.file(&sae.path);
        let import = ["saes", "import", &file, "--name", SAE, "--new-version"];
        let place = ["--hook", &first.cases.sae.hook, "--model", MODEL];
        json(&services.registry.url, &[&import[..], &place].concat()).await;
    }
}

async fn run(registry: &str, args: &[&str]) -> Output {
    let mut command = Command::new(binary("steer"));
    command.args(args).args(["--json", "--registry", registry]);
    command.output().await.expect("steer runs")
}

async fn json(registry: &str, args: &[&str]) -> Value {
    let output = run(registry, args).await;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    serde_json::from_slice(&output.stdout).expect("one document")
}

/// All files below a folder, by relative path.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).expect("folder") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let bytes = fs::read(&path).expect("file");
                found.insert(path.strip_prefix(folder).expect("below").to_owned(), bytes);
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_exported_comes_back_identical() {
    let fixture = Fixture::load("gemma2");
    let services = Services::with_imports(&fixture, WorkerOptions::default()).await;
    let folder = tempfile::tempdir().expect("folder");
    fill(&services, folder.path()).await;
    add_version(&services, &fixture).await;
    let exported = folder.path().join("export");
    let export = ["export", &path_text(&exported)];
    let document = json(&services.registry.url, &export).await;
    assert_eq!(document["sae_count"], 2, "versions");
    // The fixture's own, and two trainings of two labels.
    let cavs = fixture.cases.cavs.labels.len() + 4;
    assert_eq!(document["cav_count"], json!(cavs));

    let data = TempDir::new().expect("folder");
    let other = start_registry(&data).await;
    let import = ["import", &path_text(&exported)];
    let imported = json(&other.url, &import).await;
    assert_eq!(imported["statistics_count"], 2);
    assert_eq!(imported["cav_count"], json!(cavs));
    // What it holds now is exported to the same files, byte for byte: SAE, digests, times,
    // labels in their order, versions in theirs.
    let again = folder.path().join("again");
    json(&other.url, &["export", &path_text(&again)]).await;
    let (first, second) = (files(&exported), files(&again));
    assert!(first.len() > 8, "{:?}", first.keys());
    assert!(first.keys().eq(second.keys()));
    for (path, bytes) in &first {
        assert!(second[path] == *bytes, "{} differs", path.display());
    }
    // And it answers the same.
    let features: Vec<v1::FeatureRef> = Vec::from_iter((0..8).map(|index| v1::FeatureRef {
        sae_id: String::new(),
        feature: Some(v1::feature_ref::Feature::FeatureIndex(index)),
    }));
    let endpoints = steering_client::Endpoints {
        worker: services.worker.url.clone(),
        registry: other.url.clone(),
    };
    let client = steering_client::Client::connect(&endpoints).expect("URLs");
    let own = services
        .client
        .get_features_with_statistics(features.clone())
        .await;
    let others = client.get_features_with_statistics(features).await;
    assert_eq!(own.expect("features"), others.expect("features"));
    let show = ["cavs", "show", "space", "--vectors"];
    assert_eq!(
        json(&services.registry.url, &show).await,
        json(&other.url, &show).await
    );

    // Once more changes nothing.
    json(&other.url, &import).await;
    let third = folder.path().join("third");
    json(&other.url, &["export", &path_text(&third)]).await;
    assert!(files(&third) == first);
    other.stop().await;
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cavs_for_other_programs_have_the_same_bits() {
    let fixture = Fixture::load("gemma2");
    let services = Services::with_imports(&fixture, WorkerOptions::default()).await;
    let direction = |layer: usize| v1::CavDirection {
        hook_name: format!("blocks.{layer}.hook_resid_post"),
        vector: Some(v1::Vector {
            name: String::new(),
            values: vec![1e-40, -0.0, 0.1, layer as f32 * -1e12, f32::MIN_POSITIVE],
        }),
        ..v1::CavDirection::default()
    };
    let request = |name: &str, layers: &[usize]| v1::CreateCavRequest {
        name: name.to_owned(),
        model_id: MODEL.to_owned(),
        directions: layers.iter().map(|layer| direction(*layer)).collect(),
        ..v1::CreateCavRequest::default()
    };
    let (several, first) = (request("sev\u{e9}ral", &[1, 2, 12]), request("first", &[0]));
    services.client.create_cav(several).await.expect("stored");
    services.client.create_cav(first).await.expect("stored");
    let folder = tempfile::tempdir().expect("folder");
    let exported = folder.path().join("export");
    json(&services.registry.url, &["export", &path_text(&exported)]).await;
    let manifest = fs::read(exported.join("manifest.json")).expect("manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");

    let data = TempDir::new().expect("folder");
    let other = start_registry(&data).await;
    let (mut torch, mut gguf) = (0, 0);
    for cav in manifest["cavs"].as_array().expect("CAVs") {
        let directions = cav["directions"].as_array().expect("directions");
        let (files, one) = (
            cav["copies"].as_array().expect("files"),
            directions.len() == 1,
        );
        let vectors = files.split_at(directions.len());
        for (file, direction) in vectors.0.iter().zip(directions) {
            let path = path_text(&exported.join(file["path"].as_str().expect("path")));
            let place = ["--hook", direction["hook_name"].as_str().expect("hook")];
            let import = [&["cavs", "import", &path, "--model", MODEL][..], &place].concat();
            let imported = json(&other.url, &import).await["cavs"][0].clone();
            assert!(
                path.ends_with(".pt") && imported["name"] == cav["name"],
                "{imported}"
            );
            assert!(
                !one || imported["digest"] == cav["digest"],
                "{imported} {cav}"
            );
            torch += 1;
        }
        for file in vectors.1 {
            let path = path_text(&exported.join(file["path"].as_str().expect("path")));
            let imported = json(&other.url, &["cavs", "import", &path]).await["cavs"][0].clone();
            assert_eq!(imported["digest"], cav["digest"], "{imported} {cav}");
            assert_eq!(imported["model_id"], cav["model_id"]);
            gguf += 1;
        }
    }
    let cavs = fixture.cases.cavs.labels.len();
    // llama.cpp takes no direction of layer 0.
    assert_eq!((torch, gguf), (cavs + 4, cavs + 1));

    // Several in one file, and what is refused.
    let labels: Vec<&str> = fixture
        .cases
        .cavs
        .labels
        .iter()
        .map(String::as_str)
        .collect();
    let out = path_text(&folder.path().join("all.pt"));
    let export = [
        &["cavs", "export", "--format", "pt", "--out", &out][..],
        &labels,
    ]
    .concat();
    let document = json(&services.registry.url, &export).await;
    assert_eq!(document["labels"], json!(labels));
    let place = ["--hook", document["hook_name"].as_str().expect("hook")];
    let import = [&["cavs", "import", &out, "--model", MODEL][..], &place].concat();
    let imported = json(&other.url, &import).await;
    for (imported, name) in imported["cavs"]
        .as_array()
        .expect("CAVs")
        .iter()
        .zip(&labels)
    {
        let own = json(&services.registry.url, &["cavs", "show", name]).await;
        assert_eq!(imported["digest"], own["cav"]["digest"], "{name}");
    }
    for (names, what) in [(&labels[..2], "is one CAV"), (&["first"], "from 1 on")] {
        let out = path_text(&folder.path().join("all.gguf"));
        let export = ["cavs", "export", "--out", &out];
        let output = run(&services.registry.url, &[&export[..], names].concat()).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && stderr.contains(what),
            "{stderr}"
        );
    }
    other.stop().await;
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_changed_or_is_not_whole_is_refused() {
    let fixture = Fixture::load("gemma2");
    let services = Services::with_imports(&fixture, WorkerOptions::default()).await;
    let folder = tempfile::tempdir().expect("folder");
    let exported = folder.path().join("export");
    let path = path_text(&exported);
    json(&services.registry.url, &["export", &path]).await;
    let full = run(&services.registry.url, &["export", &path]).await;
    assert!(String::from_utf8_lossy(&full.stderr).contains("is not empty"));

    let data = TempDir::new().expect("folder");
    let other = start_registry(&data).await;
    let refused = async |what: &str| {
        let output = run(&other.url, &["import", &path]).await;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{what}");
        assert!(stderr.contains(what), "{stderr}");
        let saes = json(&other.url, &["saes", "list"]).await;
        assert_eq!(saes["saes"], json!([]), "nothing was imported");
    };
    let whole = files(&exported);
    for (name, bytes) in &whole {
        let file = exported.join(name);
        if name.ends_with("manifest.json") {
            fs::remove_file(&file).expect("removed");
            refused("has no manifest.json").await;
        } else if name.ends_with("steer_sae.safetensors") || name.ends_with("labels.jsonl") {
            let mut changed = bytes.clone();
            let last = changed.len() - 3;
            changed[last] ^= 1;
            fs::write(&file, changed).expect("changed");
            refused("was changed").await;
        }
        fs::write(&file, bytes).expect("as before");
    }
    // A manifest that was changed with the file does not get past the registry.
    let manifest = exported.join("manifest.json");
    let text = fs::read_to_string(&manifest).expect("manifest");
    let parsed: Value = serde_json::from_str(&text).expect("JSON");
    let digest = parsed["saes"][0]["digest"].as_str().expect("a digest");
    let forged = text.replacen(digest, &"0".repeat(64), 1);
    fs::write(&manifest, forged).expect("forged");
    refused("they were changed").await;
    fs::write(&manifest, text).expect("as before");
    json(&other.url, &["import", &path]).await;
    other.stop().await;
    services.stop().await;
}
