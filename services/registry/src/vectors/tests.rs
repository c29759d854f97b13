use std::fs;

use steering_proto::payload::{Activation, InputNormalization};

use super::*;
use crate::canonical::Architecture;

fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("folder") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push(
                    path.file_name()
                        .expect("name")
                        .to_string_lossy()
                        .into_owned(),
                );
            }
        }
    }
    found.sort();
    found
}

/// Two features of 5,000 components: rows of more than one block.
async fn stage(vectors: &Vectors) -> (StagedObject, Layout) {
    let (layout, header) = Layout::new(Architecture::Relu, InputNormalization::None, 5000, 2);
    let mut writer = vectors.writer().expect("writer");
    writer.write(header.into()).await.expect("header");
    let body: Vec<u8> = (0_u16..25_002)
        .flat_map(|i| f32::from(i).to_le_bytes())
        .collect();
    for part in body.chunks(999) {
        writer.write(part.to_vec().into()).await.expect("body");
    }
    (writer.finish().await.expect("finish"), layout)
}

async fn published(vectors: &Vectors) -> (String, Layout) {
    let (staged, layout) = stage(vectors).await;
    let digest = staged.digest.clone();
    vectors.publish(staged).await.expect("publish");
    (digest, layout)
}

#[tokio::test]
async fn objects_are_invisible_until_published_and_read_by_feature() {
    let folder = tempfile::tempdir().expect("folder");
    let vectors = Vectors::local(folder.path()).expect("store");
    let (staged, layout) = stage(&vectors).await;
    let digest = staged.digest.clone();
    assert!(vectors.read(&digest, &layout, &[0]).await.is_err());
    assert!(vectors.list().await.expect("list").is_empty());
    vectors.publish(staged).await.expect("publish");
    let features = vectors.read(&digest, &layout, &[1, 0]).await.expect("read");
    assert_eq!(features[0].decoder[..2], [5000.0, 5001.0]);
    assert_eq!(features[0].encoder[4999], 19_999.0);
    assert_eq!(
        (features[0].encoder_bias, features[0].activation),
        (20_001.0, Activation::Relu)
    );
    assert_eq!(features[1].decoder[..2], [0.0, 1.0]);

    assert_eq!(published(&vectors).await.0, digest, "the same again");
    assert_eq!(
        files(folder.path()),
        [format!("{digest}.safetensors"), format!("{digest}.sums")]
    );
    vectors.delete(&digest).await.expect("delete");
    vectors.delete(&digest).await.expect("delete again");
    assert!(files(folder.path()).is_empty());
    let missing = vectors.read(&digest, &layout, &[0]).await;
    assert!(matches!(missing, Err(Error::DataLoss(_))));
}

#[tokio::test]
async fn abandoned_writes_leave_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let vectors = Vectors::local(folder.path()).expect("store");
    let mut writer = vectors.writer().expect("writer");
    writer.write(vec![1; 100].into()).await.expect("write");
    assert_eq!(files(folder.path()).len(), 1);
    drop(writer);
    drop(stage(&vectors).await);
    assert!(files(folder.path()).is_empty());

    // A process that ended before it could make the object visible.
    fs::write(folder.path().join("staging/half-x"), b"x").expect("leftover");
    fs::write(folder.path().join("sums/abc.sums"), b"x").expect("leftover");
    Vectors::local(folder.path()).expect("restart");
    assert!(files(folder.path()).is_empty());
}

#[tokio::test]
async fn no_damaged_byte_is_served() {
    let folder = tempfile::tempdir().expect("folder");
    let vectors = Vectors::local(folder.path()).expect("store");
    let (digest, layout) = published(&vectors).await;
    let path = folder.path().join(format!("saes/{digest}.safetensors"));
    let good = fs::read(&path).expect("object");
    let [decoder, encoder, scalars] = layout.feature_ranges(1);
    for at in [decoder.start, decoder.end - 1, encoder.start, scalars.start] {
        let mut damaged = good.clone();
        damaged[usize::try_from(at).expect("small")] ^= 1;
        fs::write(&path, &damaged).expect("damage");
        let read = vectors.read(&digest, &layout, &[1]).await;
        let error = read.expect_err("damaged").to_string();
        assert!(
            error.contains("damaged at byte") && error.contains(&digest),
            "{error}"
        );
    }
    // Within the scalars.
    let scalars = usize::try_from(scalars.start).expect("small");
    fs::write(&path, &good[..scalars]).expect("cut off");
    let cut = vectors.read(&digest, &layout, &[1]).await;
    assert!(matches!(cut, Err(Error::DataLoss(_))));
    // Whoever imports it again puts it right.
    published(&vectors).await;
    vectors
        .read(&digest, &layout, &[0, 1])
        .await
        .expect("whole");
}

#[tokio::test]
async fn checksums_are_made_where_there_are_none() {
    let folder = tempfile::tempdir().expect("folder");
    let (digest, layout) = published(&Vectors::local(folder.path()).expect("store")).await;
    let path = folder.path().join(format!("sums/{digest}.sums"));
    let good = fs::read(&path).expect("checksums");
    let damaged = [b"damaged", &good[7..]].concat();
    for before in [None, Some(damaged)] {
        match before {
            None => fs::remove_file(&path).expect("remove"),
            Some(bytes) => fs::write(&path, bytes).expect("damage"),
        }
        let vectors = Vectors::local(folder.path()).expect("restart");
        vectors.read(&digest, &layout, &[1]).await.expect("read");
        assert_eq!(fs::read(&path).expect("made again"), good);
    }
    // Not for an object that is damaged already.
    fs::remove_file(&path).expect("remove");
    let object = folder.path().join(format!("saes/{digest}.safetensors"));
    let mut bytes = fs::read(&object).expect("object");
    bytes[700] ^= 1;
    fs::write(&object, bytes).expect("damage");
    let vectors = Vectors::local(folder.path()).expect("restart");
    assert!(vectors.read(&digest, &layout, &[1]).await.is_err());
    assert!(!path.exists());
}

#[test]
fn a_bounded_number_of_objects_stays_open() {
    let opened = Opened::default();
    for i in 0..OPEN_MAX + 9 {
        let file = tempfile::tempfile().expect("file");
        opened.put(Object::new(
            i.to_string(),
            file,
            sums::SumsBuilder::default().finish(),
        ));
        opened.get("0").expect("used all the time");
    }
    assert_eq!(opened.lock().objects.len(), OPEN_MAX);
    assert!(opened.get("1").is_none() && opened.get(&(OPEN_MAX + 8).to_string()).is_some());
}
