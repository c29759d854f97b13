//! What a registry keeps of a bucket on its own disk.

use std::fs;

use tonic::Code;

use super::{D_IN, D_SAE, Place, assert_unavailable, decoder, encode, large};
use crate::{
    harness::{import_with, options},
    sources::{value, write_npz},
};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_is_kept_and_the_rest_is_not_fetched() {
    let Some(place) = Place::new("cache").await else {
        return;
    };
    let data = tempfile::tempdir().expect("folder");
    let path = large(data.path());
    let process = place.start(data.path(), &[]);
    import_with(&mut process.client().await, &path, options("a"))
        .await
        .expect("import");
    process.kill();
    let cache = data.path().join("cache");
    fs::remove_dir_all(&cache).expect("cache");

    let process = place.start(data.path(), &[]);
    let mut client = process.client().await;
    let before = place.wire.bytes();
    let found = decoder(&mut client, "a", 1234).await.expect("feature");
    assert_eq!(found[511], 1234.0 + 511.0 / 1024.0);
    let one = place.wire.bytes() - before;
    assert!(one < 1 << 20, "{one} bytes for one feature of 16 MB");
    decoder(&mut client, "a", 1235)
        .await
        .expect("its neighbour");
    assert_eq!(place.wire.bytes() - before, one, "came with it");

    // Two readers of everything at once: it comes once.
    let (mut first, mut second) = (client.clone(), client.clone());
    let (first, second) = tokio::join!(
        encode(&mut first, "a", D_IN),
        encode(&mut second, "a", D_IN)
    );
    assert_eq!(
        (first.expect("whole"), second.expect("whole")),
        (D_SAE as u32, D_SAE as u32)
    );
    let all = place.wire.bytes() - before;
    assert!((16 << 20..18 << 20).contains(&all), "{all} bytes for 16 MB");
    process.kill();

    // After a restart, without the server: everything is here.
    place.wire.cut(true);
    let process = place.start(data.path(), &[]);
    let mut client = process.client().await;
    decoder(&mut client, "a", 7).await.expect("kept");
    encode(&mut client, "a", D_IN).await.expect("kept");
    // Damaged here, it is fetched again, which needs the server.
    let kept = fs::read_dir(&cache)
        .expect("cache")
        .map(|entry| entry.expect("entry").path());
    let kept = kept.filter(|path| path.extension().is_some_and(|it| it == "data"));
    for path in kept {
        let mut bytes = fs::read(&path).expect("data");
        bytes[20_000..30_000].fill(7);
        fs::write(&path, bytes).expect("damage");
    }
    assert_unavailable(&decoder(&mut client, "a", 9).await.expect_err("damaged"));
    place.wire.cut(false);
    assert_eq!(
        decoder(&mut client, "a", 9).await.expect("fetched again")[0],
        9.0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_stays_below_its_bound() {
    let Some(place) = Place::new("bound").await else {
        return;
    };
    let data = tempfile::tempdir().expect("folder");
    let bound = ["--object-cache-bytes", "200000"];
    let process = place.start(data.path(), &bound);
    let mut client = process.client().await;
    for seed in 0..30 {
        let path = write_npz(data.path(), "small.npz", seed);
        import_with(&mut client, &path, options(&format!("s{seed}")))
            .await
            .expect("import");
    }
    let path = large(data.path());
    import_with(&mut client, &path, options("large"))
        .await
        .expect("import");
    for round in 0..60 {
        let name = format!("s{}", round % 30);
        let found = decoder(&mut client, &name, 3).await.expect("feature");
        assert_eq!(found[0], value(round % 30 + 2, 3, 0));
        decoder(&mut client, "large", round as u32 * 60)
            .await
            .expect("feature");
    }
    let files = fs::read_dir(data.path().join("cache")).expect("cache");
    let blocks = |entry: std::io::Result<fs::DirEntry>| {
        use std::os::unix::fs::MetadataExt;
        let about = entry.expect("entry").metadata().expect("metadata");
        if about.is_file() {
            about.blocks() * 512
        } else {
            0
        }
    };
    let used: u64 = files.map(blocks).sum();
    // Checksums of 8 bytes for 16 KiB are not counted.
    assert!(used <= 200_000 + 32 * 4096, "{used} bytes");
    let status = encode(&mut client, "large", D_IN)
        .await
        .expect_err("does not fit");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(
        status.message().contains("--object-cache-bytes"),
        "{status:?}"
    );
}
