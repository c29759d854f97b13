//! `ImportSae` and `UploadSae`: names, hooks, folders, limits of access.

use std::path::Path;

use futures::StreamExt;
use steering_proto::v1;
use tonic::{Code, Status};

use crate::{
    harness::{Client, Data, MODEL, Server, by_index, field, import_with, options},
    sources::{D_IN, D_SAE, gemma_scope, npz, safetensors, value, write_npz},
};

/// A SAELens folder of a ReLU SAE with these configuration keys added.
fn saelens(folder: &Path, more: &serde_json::Value) {
    std::fs::create_dir_all(folder).expect("folder");
    let mut config = serde_json::json!({
        "architecture": "standard", "d_in": D_IN, "d_sae": D_SAE, "apply_b_dec_to_input": true,
        "metadata": {"hook_name": "blocks.3.hook_resid_pre", "model_name": "gpt2", "sae_lens_version": "6.1.0"},
    });
    for (key, value) in more.as_object().expect("object") {
        config[key] = value.clone();
    }
    std::fs::write(folder.join("cfg.json"), config.to_string()).expect("write");
    let arrays: Vec<_> = gemma_scope(0)
        .into_iter()
        .filter(|(name, _, _)| *name != "threshold")
        .collect();
    std::fs::write(folder.join("sae_weights.safetensors"), safetensors(&arrays)).expect("write");
}

#[tokio::test]
async fn names_and_numbers_of_the_request_are_checked_first() {
    let mut server = Server::start().await;
    let path = write_npz(server.data.path(), "a.npz", 0);
    type Spoil = fn(&mut v1::SaeImportOptions);
    let cases: [(&str, Spoil); 6] = [
        ("options.sae_id", |o| o.sae_id.clear()),
        ("options.sae_id", |o| o.sae_id = "a b".to_owned()),
        ("options.hook_name", |o| o.hook_name = "blocks.1".to_owned()),
        ("options.hook_name", |o| o.hook_name.clear()),
        ("options.model_id", |o| o.model_id.clear()),
        ("options.activation_scale", |o| {
            o.activation_scale = Some(2.0);
        }),
    ];
    for (expected, spoil) in cases {
        let mut options = options("a");
        spoil(&mut options);
        let status = import_with(&mut server.client, &path, options)
            .await
            .expect_err(expected);
        assert_eq!(
            (status.code(), field(&status).as_str()),
            (Code::InvalidArgument, expected)
        );
    }
    let relative = import_with(&mut server.client, Path::new("a.npz"), options("a")).await;
    assert_eq!(field(&relative.expect_err("relative")), "path");
    let status = import_with(&mut server.client, Path::new("/no/such/file"), options("a")).await;
    assert_eq!(status.expect_err("missing").code(), Code::NotFound);
    let status = server
        .client
        .import_sae(v1::ImportSaeRequest::default())
        .await
        .expect_err("empty");
    assert_eq!(field(&status), "options");
    server.import(&path, "a").await.expect("import");
    let status = server.import(&path, "a").await.expect_err("taken");
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("delete"), "{}", status.message());
    assert_eq!(server.files().len(), 1);
}

#[tokio::test]
async fn files_and_request_must_agree_on_the_hook() {
    let mut server = Server::start().await;
    let folder = server.data.path().join("sae");
    saelens(&folder, &serde_json::json!({}));
    let status = server.import(&folder, "a").await.expect_err("another hook");
    assert_eq!(field(&status), "options.hook_name");
    assert!(
        status.message().contains("blocks.3.hook_resid_pre"),
        "{}",
        status.message()
    );
    let mut options = options("a");
    options.hook_name = "blocks.3.hook_resid_pre".to_owned();
    let sae = import_with(&mut server.client, &folder, options)
        .await
        .expect("import");
    // The request's model wins: SAEs of a sibling are used on purpose.
    assert_eq!(
        (sae.model_id.as_str(), sae.architecture.as_str()),
        (MODEL, "relu")
    );
}

#[tokio::test]
async fn a_scale_is_folded_exactly_or_asked_for() {
    let mut server = Server::start().await;
    let folder = server.data.path().join("sae");
    saelens(
        &folder,
        &serde_json::json!({"normalize_activations": "expected_average_only_in"}),
    );
    let mut options = options("a");
    options.hook_name.clear();
    let status = import_with(&mut server.client, &folder, options.clone())
        .await
        .expect_err("no scale");
    assert_eq!(field(&status), "options.activation_scale");
    options.activation_scale = Some(2.0);
    import_with(&mut server.client, &folder, options)
        .await
        .expect("import");
    let feature = server.feature(by_index("a", 4)).await;
    let dot: f32 = (0..D_IN).map(|c| value(1, 4, c) * value(4, 0, c)).sum();
    assert_eq!(feature.encoder[3], 2.0 * value(1, 4, 3));
    assert_eq!(feature.decoder[3], value(2, 4, 3) / 2.0);
    assert!((feature.encoder_bias - (value(3, 4, 0) - dot)).abs() <= 1e-6 * dot.abs());
}

#[tokio::test]
async fn unknown_keys_are_refused_and_harmless_ones_pass() {
    let mut server = Server::start().await;
    let folder = server.data.path().join("sae");
    for (more, code) in [
        (
            serde_json::json!({"new_scaling": 3}),
            Code::FailedPrecondition,
        ),
        (
            serde_json::json!({"architecture": "crosscoder"}),
            Code::FailedPrecondition,
        ),
        (
            serde_json::json!({"activation_fn_str": "tanh-relu"}),
            Code::FailedPrecondition,
        ),
        (
            serde_json::json!({"reshape_activations": "hook_z"}),
            Code::FailedPrecondition,
        ),
        (
            serde_json::json!({"normalize_activations": "covariance_whitening"}),
            Code::FailedPrecondition,
        ),
        (
            serde_json::json!({"finetuning_scaling_factor": true}),
            Code::FailedPrecondition,
        ),
        (
            serde_json::json!({"rescale_acts_by_decoder_norm": true}),
            Code::FailedPrecondition,
        ),
        (
            serde_json::json!({"hook_head_index": 2}),
            Code::FailedPrecondition,
        ),
        (serde_json::json!({"d_sae": 11}), Code::InvalidArgument),
        (
            serde_json::json!({"apply_b_dec_to_input": "yes"}),
            Code::InvalidArgument,
        ),
        (
            serde_json::json!({"architecture": "gated"}),
            Code::InvalidArgument,
        ),
    ] {
        saelens(&folder, &more);
        let mut options = options("a");
        options.hook_name.clear();
        let status = import_with(&mut server.client, &folder, options)
            .await
            .expect_err("refused");
        assert_eq!(status.code(), code, "{more}: {status:?}");
    }
    saelens(
        &folder,
        &serde_json::json!({"new_scaling": null, "dtype": "float32", "lr": 0.1, "device": "cpu"}),
    );
    let mut options = options("a");
    options.hook_name.clear();
    import_with(&mut server.client, &folder, options)
        .await
        .expect("import");
    assert_eq!(
        server
            .files()
            .iter()
            .filter(|path| path.extension().is_some())
            .count(),
        1
    );
}

#[tokio::test]
async fn a_folder_must_hold_one_sae() {
    let mut server = Server::start().await;
    let root = server.data.path().join("repo");
    std::fs::create_dir_all(root.join("layer_1/width_1k")).expect("folder");
    std::fs::create_dir_all(root.join("layer_2/width_1k")).expect("folder");
    let status = server.import(&root, "a").await.expect_err("none");
    assert!(
        status.message().contains("holds no SAE"),
        "{}",
        status.message()
    );
    write_npz(&root.join("layer_1/width_1k"), "params.npz", 0);
    server.import(&root, "a").await.expect("exactly one below");
    write_npz(&root.join("layer_2/width_1k"), "params.npz", 0);
    let status = server.import(&root, "b").await.expect_err("two");
    assert_eq!(status.code(), Code::InvalidArgument);
    for path in ["layer_1/width_1k/params.npz", "layer_2/width_1k/params.npz"] {
        assert!(status.message().contains(path), "{}", status.message());
    }
    server
        .import(&root.join("layer_2"), "b")
        .await
        .expect("the folder of one");
}

/// The hub's cache links names to files that are named by their digest.
#[tokio::test]
async fn links_keep_their_names() {
    let mut server = Server::start().await;
    let repo = server
        .data
        .path()
        .join("models--google--gemma-scope-2b-pt-res");
    let snapshot = repo.join("snapshots/abc/layer_7/width_1k");
    std::fs::create_dir_all(&snapshot).expect("folder");
    std::fs::create_dir_all(repo.join("blobs")).expect("folder");
    write_npz(&repo.join("blobs"), "0123", 0);
    std::os::unix::fs::symlink("../../../../blobs/0123", snapshot.join("params.npz"))
        .expect("link");
    let options = v1::SaeImportOptions {
        sae_id: "a".to_owned(),
        ..Default::default()
    };
    let sae = import_with(&mut server.client, &snapshot, options)
        .await
        .expect("import");
    assert_eq!(sae.hook_name, "blocks.7.hook_resid_post");
    assert_eq!(sae.model_id, "google/gemma-2-2b");
}

#[tokio::test]
async fn paths_outside_the_roots_are_refused() {
    let outside = tempfile::tempdir().expect("folder");
    let root = tempfile::tempdir().expect("folder");
    let path = write_npz(outside.path(), "a.npz", 0);
    let inside = write_npz(root.path(), "a.npz", 0);
    std::os::unix::fs::symlink(&path, root.path().join("link.npz")).expect("link");
    let data = Data::new().await;
    let mut server = Server::start_with(data, vec![root.path().to_owned()]).await;
    let sneaky = root
        .path()
        .join("..")
        .join(outside.path().file_name().expect("name"))
        .join("a.npz");
    for refused in [path, root.path().join("link.npz"), sneaky] {
        let status = server.import(&refused, "a").await.expect_err("outside");
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(
            status.message().contains("outside the folders"),
            "{}",
            status.message()
        );
    }
    server.import(&inside, "a").await.expect("inside");
}

async fn upload(client: &mut Client, files: &[(&str, &[u8])]) -> Result<v1::Sae, Status> {
    use v1::upload_sae_request::Content;
    let mut contents = vec![Content::Options(options("up"))];
    for (name, bytes) in files {
        contents.push(Content::FileName((*name).to_owned()));
        contents.extend(
            bytes
                .chunks(512)
                .map(|chunk| Content::Chunk(chunk.to_vec())),
        );
    }
    let messages: Vec<_> = contents
        .into_iter()
        .map(|content| v1::UploadSaeRequest {
            content: Some(content),
        })
        .collect();
    let mut events = client
        .upload_sae(tokio_stream::iter(messages))
        .await?
        .into_inner();
    while let Some(event) = events.next().await {
        if let Some(v1::upload_sae_response::Event::Sae(sae)) = event?.event {
            return Ok(sae);
        }
    }
    panic!("the stream ended without an SAE");
}

#[tokio::test]
async fn uploads_are_imported_and_cannot_escape() {
    let mut server = Server::start().await;
    let file = npz(&gemma_scope(0), true);
    for name in ["../x.npz", "/tmp/x.npz", "a/../../x.npz", ""] {
        let status = upload(&mut server.client, &[(name, &file)])
            .await
            .expect_err(name);
        assert_eq!(field(&status), "file_name", "{name}");
    }
    let status = upload(&mut server.client, &[]).await.expect_err("no file");
    assert_eq!(field(&status), "file_name");
    let status = upload(
        &mut server.client,
        &[("params.npz", &file), ("params.npz", &file)],
    )
    .await;
    assert_eq!(field(&status.expect_err("twice")), "file_name");
    let status = upload(&mut server.client, &[("params.npz", &file[..100])])
        .await
        .expect_err("truncated");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(server.files().is_empty(), "{:?}", server.files());
    let sae = upload(&mut server.client, &[("deep/folder/params.npz", &file)])
        .await
        .expect("upload");
    assert_eq!((sae.sae_id.as_str(), sae.d_sae as usize), ("up", D_SAE));
    let feature = server.feature(by_index("up", 7)).await;
    assert_eq!(feature.encoder[2], value(1, 7, 2));
    assert_eq!(server.files().len(), 1);
}
