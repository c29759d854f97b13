//! Commands of the registry: what they send and print.

use std::{fs, path::Path};

use serde_json::json;
use steering_client::v1::{self, import_sae_request::Source};

use crate::{
    mock::{Mock, lock},
    mock_registry::{BASEBALL, Upload},
};

#[tokio::test(flavor = "multi_thread")]
async fn lists_follow_pages_up_to_the_limit() {
    let mock = Mock::start().await;
    let count = async |args: &[&str]| {
        let document = mock.steer(args).await.json();
        let labels = document["features"].as_array().expect("a list").len();
        (labels, document["truncated"].as_bool().expect("a flag"))
    };
    assert_eq!(count(&["features", "list", "--json"]).await, (5, false));
    assert_eq!(
        count(&["features", "list", "--json", "--limit", "0"]).await,
        (5, false)
    );
    assert_eq!(
        count(&["features", "list", "--json", "--limit", "3"]).await,
        (3, true)
    );
    assert_eq!(
        count(&["features", "search", "ball", "--json"]).await,
        (1, false)
    );
    let cut = ["features", "search", "o"];
    assert_eq!(
        count(&[&cut[..], &["--json"]].concat()).await,
        (3, true),
        "the registry did not look at all"
    );
    let run = mock.steer(&cut).await;
    assert!(run.stderr.contains("stand for too many"), "{run:?}");
    let run = mock.steer(&["features", "list", "--limit", "1"]).await;
    assert!(run.stderr.contains("more with --limit"), "{run:?}");
    assert_eq!(
        run.ok(),
        "index  label     source  sae\n20175  baseball  manual  l1\n"
    );
    let cavs = mock.steer(&["cavs", "list", "--json"]).await.json();
    assert_eq!(cavs["cavs"].as_array().map(Vec::len), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_feature_is_shown_with_vectors_where_asked_for() {
    let mock = Mock::start().await;
    let shown = mock
        .steer(&["features", "show", "baseball", "--json"])
        .await
        .json();
    let feature = &shown["feature"];
    assert_eq!(feature["feature_index"], BASEBALL);
    assert_eq!(feature["d_in"], 4);
    assert_eq!(
        feature["activation"],
        json!({"kind": "jump_relu", "threshold": 0.5})
    );
    assert_eq!(feature["input_normalization"], "none");
    assert_eq!(feature["max_activation"], 1000.0);
    assert_eq!(feature.get("encoder"), None);
    let args = ["features", "show", "l1::#20175", "--vectors", "--json"];
    let shown = mock.steer(&args).await.json();
    assert_eq!(shown["feature"]["decoder"], json!([1.0, 2.0, 3.0, 4.0]));
    let card = mock.steer(&["features", "show", "baseball"]).await;
    assert!(card.ok().contains("jump_relu, threshold 0.5"), "{card:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_sent_in_bounded_chunks() {
    let mock = Mock::start().await;
    let folder = tempfile::tempdir().expect("tempdir");
    let file = folder.path().join("labels.json");
    let bytes: Vec<u8> = (0..(2 << 20) + 17)
        .map(|i: u32| i.to_le_bytes()[1])
        .collect();
    fs::write(&file, &bytes).expect("write");
    let file = file.to_str().expect("UTF-8");
    let args = [
        "labels", "import", file, "--sae", "l1", "--source", "auto", "--json",
    ];
    let imported = mock.steer(&args).await.json();
    let expected =
        json!({"sae_id": "l1", "label_count": 64, "feature_count": 62, "candidate_count": 0});
    assert_eq!(imported, expected);
    let uploads = lock(&mock.registry.uploaded).clone();
    assert_eq!(uploads.len(), 1);
    assert_eq!(uploads[0].header, "l1 auto");
    assert!(uploads[0].bytes == bytes, "the bytes differ");
    assert!(uploads[0].chunk_bytes_max <= 1 << 20);
    let run = mock.steer(&["labels", "import", file]).await;
    assert_eq!(run.ok(), "64 labels of 62 features imported into l1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_files_fail_before_anything_is_sent() {
    let mock = Mock::start().await;
    let run = mock.steer(&["labels", "import", "/absent.json"]).await;
    run.fails(1, &["cannot read /absent.json"]);
    mock.steer(&["cavs", "import", "/"])
        .await
        .fails(1, &["is a folder"]);
    let args = ["saes", "import", "/absent", "--name", "x", "--upload"];
    mock.steer(&args).await.fails(1, &["cannot read /absent"]);
    assert!(lock(&mock.registry.uploaded).is_empty());
}

async fn imported(mock: &Mock, args: &[&str]) -> v1::ImportSaeRequest {
    let document = mock.steer(args).await.json();
    assert_eq!(document["sae"]["d_sae"], 65536);
    lock(&mock.registry.import).clone().expect("an import")
}

#[tokio::test(flavor = "multi_thread")]
async fn saes_are_imported_by_path_or_hub_id() {
    let mock = Mock::start().await;
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().to_str().expect("UTF-8");
    let args = [
        "saes", "import", path, "--name", "l1", "--hook", "h", "--model", "m", "--scale", "2.5",
        "--json",
    ];
    let request = imported(&mock, &args).await;
    let canonical = folder.path().canonicalize().expect("it exists");
    let expected = Source::Path(canonical.to_str().expect("UTF-8").to_owned());
    assert_eq!(request.source, Some(expected));
    let options = v1::SaeImportOptions {
        sae_id: "l1".to_owned(),
        hook_name: "h".to_owned(),
        model_id: "m".to_owned(),
        activation_scale: Some(2.5),
        provenance: None,
        new_version: false,
    };
    assert_eq!(request.options, Some(options));
    let id = "google/gemma-scope-2b-pt-res/layer_21/width_65k";
    let args = [
        "saes",
        "import",
        id,
        "--name",
        "l1",
        "--revision",
        "v1",
        "--json",
    ];
    let expected = Source::Hub(v1::HubSource {
        repo_id: "google/gemma-scope-2b-pt-res".to_owned(),
        path: "layer_21/width_65k".to_owned(),
        revision: "v1".to_owned(),
    });
    assert_eq!(imported(&mock, &args).await.source, Some(expected));
    let run = mock
        .steer(&["saes", "import", "absent.npz", "--name", "l1"])
        .await;
    run.fails(1, &["neither a file here nor a hub id", "OWNER/REPO"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn saes_are_uploaded_file_by_file() {
    let mock = Mock::start().await;
    let folder = tempfile::tempdir().expect("tempdir");
    fs::write(folder.path().join("cfg.json"), "{}").expect("write");
    fs::write(
        folder.path().join("sae_weights.safetensors"),
        vec![7; 600_000],
    )
    .expect("write");
    let path = folder.path().to_str().expect("UTF-8");
    let args = ["saes", "import", path, "--name", "l1", "--upload"];
    let run = mock.steer(&args).await;
    assert!(run.ok().contains("65536"), "{run:?}");
    let uploads: Vec<(String, usize)> = lock(&mock.registry.uploaded)
        .iter()
        .map(|Upload { header, bytes, .. }| (header.clone(), bytes.len()))
        .collect();
    let expected = [
        ("options l1", 0),
        ("cfg.json", 2),
        ("sae_weights.safetensors", 600_000),
    ];
    assert_eq!(
        uploads,
        expected.map(|(name, bytes)| (name.to_owned(), bytes))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn saes_and_cavs_are_shown_and_removed() {
    let mock = Mock::start().await;
    let table = mock.steer(&["saes", "list"]).await;
    assert!(
        table
            .ok()
            .contains("l1    blocks.1.hook_resid_post  mock-model  4     65536  jumprelu"),
        "{table:?}"
    );
    let shown = mock.steer(&["saes", "show", "l1", "--json"]).await.json();
    assert_eq!(shown["sae"]["input_normalization"], "none");
    mock.steer(&["saes", "show", "l2"])
        .await
        .fails(1, &["no SAE is named \"l2\""]);
    let removed = mock.steer(&["saes", "rm", "l1", "--json"]).await.json();
    let until = "2026-12-26T00:00:00Z";
    assert_eq!(
        removed,
        json!({"removed": "l1", "removed_count": 1, "purge_time": until})
    );
    let removed = mock
        .steer(&["cavs", "rm", "one@01234567", "--json"])
        .await
        .json();
    assert_eq!(removed, json!({"removed_count": 2, "purge_time": until}));
    // People are told how it comes back; nothing brings back what is purged.
    let run = mock.steer(&["saes", "delete", "l1"]).await;
    assert!(run.ok().contains("`steer saes undelete l1`"), "{run:?}");
    let run = mock.steer(&["cavs", "rm", "one", "--purge"]).await;
    assert_eq!(run.ok(), "2 versions of one purged\n");
    let run = mock.steer(&["saes", "undelete", "l1"]).await;
    assert_eq!(run.ok(), "1 version of l1 is back\n");
    let restored = mock.steer(&["cavs", "undelete", "one", "--json"]).await;
    assert_eq!(restored.json(), json!({"restored_count": 2}));
    assert_eq!(
        *lock(&mock.registry.deleted),
        [
            "l1",
            "one@01234567",
            "l1",
            "one purged",
            "l1 back",
            "one back"
        ]
    );
    let shown = mock
        .steer(&["cavs", "show", "one", "--vectors", "--json"])
        .await
        .json();
    assert_eq!(
        shown["cav"]["directions"][0]["values"],
        json!([0.0, 0.0, 0.25, 1.0])
    );
}

async fn export(mock: &Mock, out: &Path, args: &[&str]) -> serde_json::Value {
    let out = out.to_str().expect("UTF-8");
    let args: Vec<&str> = ["cavs", "export", "one", "--out", out, "--json"]
        .iter()
        .chain(args)
        .copied()
        .collect();
    mock.steer(&args).await.json()
}

#[tokio::test(flavor = "multi_thread")]
async fn cavs_are_imported_and_exported() {
    let mock = Mock::start().await;
    let folder = tempfile::tempdir().expect("tempdir");
    let out = folder.path().join("one.safetensors");
    let document = export(&mock, &out, &[]).await;
    assert_eq!(document["labels"], json!(["one"]));
    assert_eq!(document["hook_name"], "blocks.1.hook_resid_post");
    let bytes = fs::read(&out).expect("written");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    assert_eq!(tensors.tensor("cavs").expect("cavs").shape(), [1, 4]);

    let out_text = out.to_str().expect("UTF-8");
    let run = mock
        .steer(&["cavs", "import", out_text, "--hook", "h", "--model", "m"])
        .await;
    assert!(
        run.ok().contains("one   blocks.1.hook_resid_post"),
        "{run:?}"
    );
    let uploads = lock(&mock.registry.uploaded).clone();
    assert_eq!(uploads[0].header, "h m one.safetensors");
    assert_eq!(uploads[0].bytes, bytes);

    let out = folder.path().join("one.json");
    let document = export(&mock, &out, &[]).await;
    assert_eq!(document["format"], "json", "as the file's name says");
    let rows: serde_json::Value =
        serde_json::from_slice(&fs::read(&out).expect("written")).expect("JSON");
    assert_eq!(rows[0]["cav"], json!([0.0, 0.0, 0.25, 1.0]));
    let run = mock
        .steer(&["cavs", "export", "two", "--out", out_text])
        .await;
    run.fails(1, &["has directions at 2 hook points", "--hook"]);
}
