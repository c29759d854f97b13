//! The program itself: command line, signals, the hub's cache, sudden death.

use std::process::Command;

use steering_proto::v1;
use tonic::Code;

use crate::{
    harness::{Client, by_index, import_with, options},
    process::Process,
    sources::{D_SAE, value, write_npz},
};

#[tokio::test]
async fn sigterm_ends_it_with_success_and_nothing_is_lost() {
    let data = tempfile::tempdir().expect("folder");
    let path = write_npz(data.path(), "a.npz", 0);
    let process = Process::start(data.path(), &[], &[]);
    let mut client = process.client().await;
    import_with(&mut client, &path, options("a"))
        .await
        .expect("import");
    assert!(process.terminate().await.success());
    let process = Process::start(data.path(), &[], &[]);
    let request = v1::GetFeaturesRequest {
        features: vec![by_index("a", 3)],
        ..Default::default()
    };
    let found = process
        .client()
        .await
        .get_features(request)
        .await
        .expect("features")
        .into_inner();
    assert_eq!(found.features[0].encoder[1], value(1, 3, 1));
}

#[test]
fn a_wrong_command_line_says_so() {
    let run = |arguments: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_steer-registry"))
            .args(arguments)
            .output()
            .expect("run")
    };
    let data = tempfile::tempdir().expect("folder");
    let data = data.path().display().to_string();
    for (arguments, expected) in [
        (&["--nonsense"][..], "--nonsense"),
        (
            &["--data", &data, "--listen", "nowhere"],
            "cannot listen on nowhere",
        ),
        (
            &[
                "--data",
                &data,
                "--listen",
                "127.0.0.1:0",
                "--import-root",
                "/no/such/folder",
            ],
            "--import-root: /no/such/folder: No such file",
        ),
        (&["--data", &data, "--log", "=="], "--log"),
    ] {
        let output = run(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && text.contains(expected),
            "{arguments:?}: {text}"
        );
    }
    assert!(String::from_utf8_lossy(&run(&["--help"]).stdout).contains("STEER_REGISTRY_DATA"));
}

async fn import_hub(client: &mut Client, path: &str) -> Result<v1::Sae, tonic::Status> {
    let hub = v1::HubSource {
        repo_id: "google/gemma-scope-2b-pt-res".to_owned(),
        path: path.to_owned(),
        revision: String::new(),
    };
    let request = v1::ImportSaeRequest {
        source: Some(v1::import_sae_request::Source::Hub(hub)),
        options: Some(v1::SaeImportOptions {
            sae_id: "hub".to_owned(),
            ..Default::default()
        }),
    };
    let mut events = client.import_sae(request).await?.into_inner();
    while let Some(event) = events.message().await? {
        if let Some(v1::import_sae_response::Event::Sae(sae)) = event.event {
            return Ok(sae);
        }
    }
    panic!("the stream ended without an SAE");
}

#[tokio::test]
async fn the_hubs_cache_is_used_without_a_network() {
    let data = tempfile::tempdir().expect("folder");
    let cache = tempfile::tempdir().expect("folder");
    let repo = cache.path().join("models--google--gemma-scope-2b-pt-res");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = repo
        .join("snapshots")
        .join(commit)
        .join("layer_5/width_1k/average_l0_9");
    for folder in [&snapshot, &repo.join("refs"), &repo.join("blobs")] {
        std::fs::create_dir_all(folder).expect("folder");
    }
    std::fs::write(repo.join("refs/main"), commit).expect("ref");
    let blob = write_npz(&repo.join("blobs"), "abcd", 0);
    std::os::unix::fs::symlink(blob, snapshot.join("params.npz")).expect("link");

    let cache = cache.path().display().to_string();
    let environment = [("HF_HUB_CACHE", cache.as_str()), ("HF_HUB_OFFLINE", "1")];
    let process = Process::start(data.path(), &environment, &[]);
    let mut client = process.client().await;
    let missing = import_hub(&mut client, "layer_6")
        .await
        .expect_err("not in the cache");
    assert_eq!(missing.code(), Code::NotFound, "{missing:?}");
    assert!(
        missing.message().contains("HF_HUB_OFFLINE"),
        "{}",
        missing.message()
    );
    let sae = import_hub(&mut client, "layer_5/width_1k/average_l0_9")
        .await
        .expect("import");
    assert_eq!(sae.hook_name, "blocks.5.hook_resid_post");
    assert_eq!(sae.d_sae as usize, D_SAE);
    assert!(
        sae.origin
            .starts_with("hf://google/gemma-scope-2b-pt-res@main/"),
        "{}",
        sae.origin
    );
}

#[tokio::test]
async fn an_unreachable_hub_is_told_as_such() {
    let data = tempfile::tempdir().expect("folder");
    let cache = data.path().join("cache").display().to_string();
    let environment = [
        ("HF_ENDPOINT", "http://127.0.0.1:9"),
        ("HF_HUB_CACHE", cache.as_str()),
    ];
    let process = Process::start(data.path(), &environment, &[]);
    let status = import_hub(&mut process.client().await, "layer_5")
        .await
        .expect_err("no hub");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(
        status.message().contains("cannot be reached"),
        "{}",
        status.message()
    );
}
