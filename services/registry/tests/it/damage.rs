//! Damage on disk: told, not served; and what `check` and `backup` make of it.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

use steering_proto::v1;
use tonic::{Code, Status};

use crate::{
    deletion::{delete_cav, undelete},
    harness::{Client, HOOK, MODEL, by_index, delete, import_with, options},
    process::{Process, check, task},
    sources::{value, write_npz},
};

pub(crate) async fn decoder(
    client: &mut Client,
    name: &str,
    index: u32,
) -> Result<Vec<f32>, Status> {
    let request = v1::GetFeaturesRequest {
        features: vec![by_index(name, index)],
        ..Default::default()
    };
    let found = client.get_features(request).await?.into_inner();
    Ok(found.features[0].decoder.clone())
}

pub(crate) async fn create_cav(
    client: &mut Client,
    name: &str,
    values: Vec<f32>,
) -> Result<v1::Cav, Status> {
    let direction = v1::CavDirection {
        hook_name: HOOK.to_owned(),
        vector: Some(v1::Vector {
            name: String::new(),
            values,
        }),
        ..Default::default()
    };
    let request = v1::CreateCavRequest {
        name: name.to_owned(),
        model_id: MODEL.to_owned(),
        directions: vec![direction],
        ..Default::default()
    };
    let created = client.create_cav(request).await?.into_inner();
    Ok(created.cav.expect("CAV"))
}

fn object_path(data: &Path, sae: &v1::Sae) -> PathBuf {
    data.join(format!("objects/saes/{}.safetensors", sae.digest))
}

#[tokio::test]
async fn damaged_directions_are_told_and_not_served() {
    let data = tempfile::tempdir().expect("folder");
    let process = Process::start(data.path(), &[], &[]);
    let mut client = process.client().await;
    let good = write_npz(data.path(), "good.npz", 0);
    let bad = write_npz(data.path(), "bad.npz", 1);
    import_with(&mut client, &good, options("good"))
        .await
        .expect("import");
    let sae = import_with(&mut client, &bad, options("bad"))
        .await
        .expect("import");
    decoder(&mut client, "bad", 3).await.expect("sound");
    let path = object_path(data.path(), &sae);
    let sound = fs::read(&path).expect("object");
    let mut damaged = sound.clone();
    damaged[600] ^= 1;
    fs::write(&path, &damaged).expect("damage");

    let status = decoder(&mut client, "bad", 3).await.expect_err("damaged");
    assert_eq!(status.code(), Code::DataLoss, "{status:?}");
    for part in ["\"bad\"", &sae.digest, "steer-registry check"] {
        assert!(status.message().contains(part), "{part}: {status:?}");
    }
    let whole = v1::EncodeActivationsRequest {
        sae_id: "bad".to_owned(),
        values: vec![1.0; 6],
        top_k: 3,
    };
    let status = client.encode_activations(whole).await.expect_err("damaged");
    assert_eq!(status.code(), Code::DataLoss, "{status:?}");
    decoder(&mut client, "good", 3)
        .await
        .expect("others are served");

    let (sound_now, report) = check(data.path(), &[], &[]);
    assert!(!sound_now);
    assert_eq!(report["saes"], 2);
    assert_eq!(
        report["problems"].as_array().expect("list").len(),
        1,
        "{report}"
    );
    assert_eq!(report["problems"][0]["name"], "bad");
    let to = data.path().join("copy");
    let refused = task(data.path(), &[], &["backup", &to.display().to_string()]);
    assert!(!refused.status.success() && !to.exists(), "{refused:?}");

    for problem in [None, Some(&sound[..700])] {
        match problem {
            None => fs::remove_file(&path).expect("remove"),
            Some(cut) => fs::write(&path, cut).expect("write"),
        }
        assert!(
            !check(data.path(), &[], &[]).0,
            "{:?}",
            problem.map(<[u8]>::len)
        );
    }
    // The same numbers under another name put both right.
    import_with(&mut client, &bad, options("again"))
        .await
        .expect("import");
    assert_eq!(
        decoder(&mut client, "bad", 3).await.expect("mended")[0],
        value(3, 3, 0)
    );
    let (sound_now, report) = check(data.path(), &[], &[]);
    assert!(sound_now, "{report}");
}

#[tokio::test]
async fn a_damaged_database_is_told() {
    let data = tempfile::tempdir().expect("folder");
    let process = Process::start(data.path(), &[], &[]);
    let mut client = process.client().await;
    let values: Vec<f32> = (1..2000).map(|i| i as f32).collect();
    let cav = create_cav(&mut client, "concept", values)
        .await
        .expect("CAV");
    assert!(process.terminate().await.success());
    // A number of the vector, where SQLite has no checksum.
    let database = data.path().join("registry.sqlite");
    let mut bytes = fs::read(&database).expect("database");
    let needle: Vec<u8> = (100..110).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let at = bytes
        .windows(needle.len())
        .position(|window| window == needle);
    bytes[at.expect("the vector")] ^= 1;
    fs::write(&database, &bytes).expect("damage");

    let process = Process::start(data.path(), &[], &[]);
    let request = v1::GetCavRequest {
        name: "concept".to_owned(),
    };
    let status = process
        .client()
        .await
        .get_cav(request)
        .await
        .expect_err("damaged");
    assert_eq!(status.code(), Code::DataLoss, "{status:?}");
    assert!(status.message().contains(&cav.digest), "{status:?}");
    let (sound, report) = check(data.path(), &[], &[]);
    assert!(!sound);
    assert_eq!(report["problems"][0]["kind"], "cav", "{report}");
    assert!(process.terminate().await.success());

    // A page of an index.
    let file = fs::File::options()
        .write(true)
        .open(&database)
        .expect("open");
    for page in 3..bytes.len() / 4096 {
        file.write_all_at(&[0xff; 16], page as u64 * 4096)
            .expect("damage");
    }
    let output = task(data.path(), &[], &["check"]);
    assert!(!output.status.success(), "{output:?}");
    let said = format!("{output:?}");
    assert!(
        said.contains("database") || said.contains("malformed"),
        "{said}"
    );
}

#[tokio::test]
async fn backups_are_made_while_others_write_and_can_be_served() {
    let data = tempfile::tempdir().expect("folder");
    let copies = tempfile::tempdir().expect("folder");
    let process = Process::start(data.path(), &[], &[]);
    let mut client = process.client().await;
    let paths: Vec<PathBuf> = (0..3)
        .map(|i| write_npz(data.path(), &format!("{i}.npz"), i))
        .collect();
    let kept = import_with(&mut client, &paths[0], options("kept"))
        .await
        .expect("import");
    create_cav(&mut client, "concept", vec![1.0, 2.0])
        .await
        .expect("CAV");
    // SAEs that come and go until all backups are made.
    let mut other = process.client().await;
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let writing = tokio::spawn(async move {
        let mut rounds = 0;
        while stopped.try_recv().is_err() {
            for (name, path) in [("a", &paths[1]), ("b", &paths[2])] {
                import_with(&mut other, path, options(name))
                    .await
                    .expect("import");
                let delete = delete(name, true);
                other.delete_sae(delete).await.expect("delete");
            }
            rounds += 1;
        }
        rounds
    });
    for i in 0..4 {
        let to = copies.path().join(i.to_string());
        let data = data.path().to_owned();
        let made = tokio::task::spawn_blocking(move || {
            task(&data, &[], &["backup", &to.display().to_string()])
        });
        let made = made.await.expect("task");
        assert!(made.status.success(), "{made:?}");
    }
    stop.send(()).expect("running");
    assert!(writing.await.expect("writer") > 0);
    drop(process);

    let inode = |path: PathBuf| fs::metadata(path).expect("object").ino();
    for i in 0..4 {
        let copy = copies.path().join(i.to_string());
        assert_eq!(
            inode(object_path(&copy, &kept)),
            inode(object_path(data.path(), &kept)),
            "one file on one disk"
        );
        assert!(check(&copy, &[], &[]).0);
        let served = Process::start(&copy, &[], &[]);
        let mut client = served.client().await;
        assert_eq!(
            decoder(&mut client, "kept", 9).await.expect("feature")[5],
            value(2, 9, 5)
        );
        let request = v1::GetCavRequest {
            name: "concept".to_owned(),
        };
        client.get_cav(request).await.expect("CAV");
    }
    assert_eq!(
        fs::read_dir(copies.path()).expect("folder").count(),
        4,
        "nothing half"
    );
    let again = task(
        data.path(),
        &[],
        &["backup", &copies.path().join("0").display().to_string()],
    );
    assert!(
        !again.status.success() && format!("{again:?}").contains("exists"),
        "{again:?}"
    );
    let nothing = task(copies.path(), &[], &["check"]);
    assert!(
        !nothing.status.success() && format!("{nothing:?}").contains("no registry"),
        "{nothing:?}"
    );
}

#[tokio::test]
async fn what_an_older_version_stored_is_read_and_served() {
    let data = tempfile::tempdir().expect("folder");
    let process = Process::start(data.path(), &[], &[]);
    let path = write_npz(data.path(), "a.npz", 0);
    import_with(&mut process.client().await, &path, options("a"))
        .await
        .expect("import");
    drop(process);
    fs::remove_dir_all(data.path().join("objects/sums")).expect("checksums");
    assert!(check(data.path(), &[], &[]).0, "they are no loss");
    let process = Process::start(data.path(), &[], &[]);
    let found = decoder(&mut process.client().await, "a", 9)
        .await
        .expect("feature");
    assert_eq!(found[5], value(2, 9, 5));
    assert_eq!(
        fs::read_dir(data.path().join("objects/sums"))
            .expect("made")
            .count(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn check_and_backup_know_of_what_is_deleted() {
    let data = tempfile::tempdir().expect("folder");
    let process = Process::start(data.path(), &[], &[]);
    let mut client = process.client().await;
    let path = write_npz(data.path(), "a.npz", 0);
    import_with(&mut client, &path, options("a"))
        .await
        .expect("import");
    create_cav(&mut client, "c", vec![1.0]).await.expect("CAV");
    client.delete_sae(delete("a", false)).await.expect("delete");
    let done = client.delete_cav(delete_cav("c", false)).await;
    done.expect("delete");
    let (sound, report) = check(data.path(), &[], &[]);
    assert!(sound, "{report}");
    assert_eq!((&report["saes"], &report["cavs"]), (&1.into(), &1.into()));
    let copy = data.path().join("copy");
    let made = task(data.path(), &[], &["backup", &copy.display().to_string()]);
    assert!(made.status.success(), "{made:?}");
    process.kill();

    let process = Process::start(&copy, &[], &[]);
    let mut client = process.client().await;
    client.undelete_sae(undelete("a")).await.expect("undelete");
    let found = decoder(&mut client, "a", 9).await.expect("feature");
    assert_eq!(found[5], value(2, 9, 5));
    client.delete_sae(delete("a", false)).await.expect("delete");
    process.kill();
    // Damage of what is deleted is found as well.
    let objects = fs::read_dir(copy.join("objects/saes")).expect("objects");
    let mut objects = objects.map(|entry| entry.expect("entry").path());
    let object = objects.next().expect("an object");
    let mut bytes = fs::read(&object).expect("object");
    let last = bytes.len() - 3;
    bytes[last] ^= 1;
    fs::write(&object, bytes).expect("damage");
    let (sound, report) = check(&copy, &[], &[]);
    assert!(!sound, "{report}");
    assert_eq!(report["problems"][0]["name"], "a");
}
