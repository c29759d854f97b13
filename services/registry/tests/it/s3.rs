//! Directions in an S3-compatible store: a real server (`tests/backends/with.sh`), through a wire
//! that counts, lies and is cut.

mod cache;
mod server;
mod wire;

use std::{
    fs,
    path::{Path, PathBuf},
};

use object_store::{ObjectStoreExt, aws::AmazonS3Builder, path::Path as Key};
use steering_proto::v1;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    harness::{Client, by_index, delete, import_with, options},
    process::{Process, check, task},
    s3::{server::S3Server, wire::Wire},
    sources::{npz, value, write_npz},
};

const D_IN: usize = 512;
const D_SAE: usize = 4000;

/// A place in the shared server's bucket, at the end of a wire.
struct Place {
    url: String,
    wire: Wire,
}

impl Place {
    async fn new(name: &str) -> Option<Self> {
        let Ok(bucket) = std::env::var("STEER_TEST_S3") else {
            println!("not run: STEER_TEST_S3 names no bucket (tests/backends/with.sh does)");
            return None;
        };
        let endpoint = std::env::var("AWS_ENDPOINT_URL").expect("AWS_ENDPOINT_URL");
        let server = endpoint.strip_prefix("http://").expect("http");
        Some(Self {
            url: format!("{bucket}/{name}-{}", std::process::id()),
            wire: Wire::to(server).await,
        })
    }

    fn start(&self, data: &Path, arguments: &[&str]) -> Process {
        start(data, &self.url, &self.wire.address, arguments)
    }

    fn check(&self, data: &Path) -> (bool, serde_json::Value) {
        let endpoint = format!("http://{}", self.wire.address);
        check(
            data,
            &[("AWS_ENDPOINT_URL", &endpoint)],
            &["--objects", &self.url],
        )
    }

    /// Where an SAE's object is, for a client that is not ours.
    fn object(&self, sae: &v1::Sae) -> (object_store::aws::AmazonS3, Key) {
        let place = self.url.strip_prefix("s3://").expect("s3");
        let (bucket, prefix) = place.split_once('/').expect("prefix");
        let store = AmazonS3Builder::from_env().with_bucket_name(bucket);
        let key = Key::from(format!("{prefix}/saes/{}.safetensors", sae.digest));
        (store.build().expect("store"), key)
    }
}

fn start(data: &Path, url: &str, address: &str, arguments: &[&str]) -> Process {
    let endpoint = format!("http://{address}");
    let environment = [
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_ACCESS_KEY_ID", "steer"),
        ("AWS_SECRET_ACCESS_KEY", "not-secret"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ALLOW_HTTP", "true"),
    ];
    Process::start(
        data,
        &environment,
        &[&["--objects", url], arguments].concat(),
    )
}

/// An SAE of 16 MB whose decoder rows say which they are.
fn large(folder: &Path) -> PathBuf {
    let rows = (0..D_SAE * D_IN).map(|i| (i / D_IN) as f32 + (i % D_IN) as f32 / 1024.0);
    let arrays = [
        ("W_enc", vec![D_IN, D_SAE], vec![0.5; D_IN * D_SAE]),
        ("W_dec", vec![D_SAE, D_IN], rows.collect()),
        ("b_enc", vec![D_SAE], vec![0.5; D_SAE]),
        ("b_dec", vec![D_IN], vec![0.5; D_IN]),
        ("threshold", vec![D_SAE], vec![0.5; D_SAE]),
    ];
    let path = folder.join("large.npz");
    fs::write(&path, npz(&arrays, false)).expect("write");
    path
}

async fn decoder(client: &mut Client, name: &str, index: u32) -> Result<Vec<f32>, Status> {
    let request = v1::GetFeaturesRequest {
        features: vec![by_index(name, index)],
        ..Default::default()
    };
    let found = client.get_features(request).await?.into_inner();
    Ok(found.features[0].decoder.clone())
}

async fn encode(client: &mut Client, name: &str, width: usize) -> Result<u32, Status> {
    let request = v1::EncodeActivationsRequest {
        sae_id: name.to_owned(),
        values: vec![1.0; width],
        top_k: 3,
    };
    let encoded = client.encode_activations(request).await?.into_inner();
    Ok(encoded.rows[0].active_count)
}

fn assert_unavailable(status: &Status) {
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.get_details_retry_info().is_some(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_lives_on_a_bucket() {
    let Some(place) = Place::new("lives").await else {
        return;
    };
    let data = tempfile::tempdir().expect("folder");
    let paths: Vec<PathBuf> = (0..2)
        .map(|seed| write_npz(data.path(), &format!("{seed}.npz"), seed))
        .collect();
    let process = place.start(data.path(), &[]);
    let mut client = process.client().await;
    for (i, name) in ["a", "b"].into_iter().enumerate() {
        import_with(&mut client, &paths[i], options(name))
            .await
            .expect("import");
        let found = decoder(&mut client, name, 9).await.expect("feature");
        assert_eq!(found[5], value(i + 2, 9, 5));
        encode(&mut client, name, 6).await.expect("whole");
    }
    assert!(!data.path().join("objects").exists());
    let delete = delete("b", true);
    client.delete_sae(delete).await.expect("delete");
    let (sound, report) = place.check(data.path());
    assert!(sound && report["saes"] == 1, "{report}");
    process.kill();

    // A copy in a folder needs no bucket.
    let endpoint = format!("http://{}", place.wire.address);
    let to = data.path().join("copy");
    let arguments = ["--objects", &place.url, "backup", &to.display().to_string()];
    let made = task(data.path(), &[("AWS_ENDPOINT_URL", &endpoint)], &arguments);
    assert!(made.status.success(), "{made:?}");
    let process = Process::start(&to, &[], &[]);
    let found = decoder(&mut process.client().await, "a", 9)
        .await
        .expect("feature");
    assert_eq!(found[5], value(2, 9, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_damaged_comes_through_and_a_cut_wire_is_told() {
    let Some(place) = Place::new("wire").await else {
        return;
    };
    let data = tempfile::tempdir().expect("folder");
    let path = large(data.path());
    let process = place.start(data.path(), &["--object-cache-bytes", "1"]);
    let mut client = process.client().await;
    let sae = import_with(&mut client, &path, options("a"))
        .await
        .expect("import");
    decoder(&mut client, "a", 1).await.expect("feature");
    place.wire.lie_once();
    assert_eq!(
        decoder(&mut client, "a", 2)
            .await
            .expect("the second answer")[0],
        2.0
    );

    place.wire.cut(true);
    assert_unavailable(&decoder(&mut client, "a", 3).await.expect_err("cut"));
    let status = import_with(&mut client, &path, options("b"))
        .await
        .expect_err("cut");
    assert_unavailable(&status);
    place.wire.cut(false);
    assert_eq!(
        decoder(&mut client, "a", 3).await.expect("back again")[0],
        3.0
    );

    let (store, key) = place.object(&sae);
    let mut bytes = store
        .get(&key)
        .await
        .expect("get")
        .bytes()
        .await
        .expect("bytes")
        .to_vec();
    bytes[10_000] ^= 1;
    store.put(&key, bytes.into()).await.expect("put");
    let status = decoder(&mut client, "a", 4).await.expect_err("damaged");
    assert_eq!(status.code(), Code::DataLoss, "{status:?}");
    assert!(status.message().contains(&sae.digest), "{status:?}");
    let (sound, report) = place.check(data.path());
    assert!(!sound && report["problems"][0]["name"] == "a", "{report}");
    import_with(&mut client, &path, options("again"))
        .await
        .expect("puts it right");
    decoder(&mut client, "a", 4).await.expect("whole");
    assert!(place.check(data.path()).0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_registries_share_a_bucket() {
    let Some(place) = Place::new("shared").await else {
        return;
    };
    let folders = [(); 2].map(|()| tempfile::tempdir().expect("folder"));
    let path = write_npz(folders[0].path(), "a.npz", 0);
    let processes = folders.each_ref().map(|data| place.start(data.path(), &[]));
    let mut clients = Vec::new();
    for process in &processes {
        clients.push(process.client().await);
    }
    for client in &mut clients {
        import_with(client, &path, options("a"))
            .await
            .expect("import");
    }
    let delete = delete("a", true);
    clients[0].delete_sae(delete).await.expect("delete");
    // What the one has no use for any more, the other may have just named.
    drop(processes);
    fs::remove_dir_all(folders[1].path().join("cache")).expect("cache");
    let _first = place.start(folders[0].path(), &[]);
    let second = place.start(folders[1].path(), &[]);
    let found = decoder(&mut second.client().await, "a", 9)
        .await
        .expect("feature");
    assert_eq!(found[5], value(2, 9, 5));
    assert!(folders.iter().all(|data| place.check(data.path()).0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_during_imports_loses_none() {
    let Some(mut server) = S3Server::start() else {
        return;
    };
    let data = tempfile::tempdir().expect("folder");
    let path = large(data.path());
    let address = server.address();
    let process = start(
        data.path(),
        "s3://test/kills",
        &address,
        &["--object-cache-bytes", "1"],
    );
    let mut client = process.client().await;
    let mut stored = Vec::new();
    for trial in 0..4_u64 {
        let name = format!("sae-{trial}");
        let mut importing = client.clone();
        let (source, wanted) = (path.clone(), options(&name));
        let import =
            tokio::spawn(async move { import_with(&mut importing, &source, wanted).await });
        tokio::time::sleep(std::time::Duration::from_millis(60 * trial)).await;
        server.kill();
        // Within the time of the retries, and beyond it.
        if trial == 3 {
            tokio::time::sleep(std::time::Duration::from_secs(25)).await;
        }
        server.restart();
        match import.await.expect("import") {
            Ok(_) => stored.push(name),
            Err(status) => assert_unavailable(&status),
        }
    }
    for name in &stored {
        assert_eq!(
            decoder(&mut client, name, 9).await.expect("acknowledged")[0],
            9.0
        );
    }
    import_with(&mut client, &path, options("last"))
        .await
        .expect("goes on");
    let saes = client
        .list_saes(v1::ListSaesRequest::default())
        .await
        .expect("list");
    assert_eq!(saes.into_inner().saes.len(), stored.len() + 1);
}

#[test]
fn addresses_without_sense_are_refused() {
    let data = tempfile::tempdir().expect("folder");
    for url in ["http://bucket", "s3://key:secret@bucket"] {
        let output = task(
            data.path(),
            &[],
            &["--objects", url, "--listen", "127.0.0.1:0"],
        );
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains("--objects"),
            "{url}: {said}"
        );
        assert!(!said.contains("secret@"), "{said}");
    }
}
