//! Disks that are full, or take no writes.

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::{
    damage::{create_cav, decoder},
    harness::{import_with, options},
    process::{Process, check, task},
    sources::{gemma_scope, npz, value, write_npz},
};

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info();
    info.unwrap_or_else(|| panic!("{status:?}")).reason
}

/// A small disk of its own, unmounted when dropped.
struct Disk(TempDir);

impl Disk {
    /// None where mounting is not allowed; says so.
    fn new(options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "steer-test"])
            .arg(folder.path())
            .output();
        if !mounted.is_ok_and(|output| output.status.success()) {
            println!("not run: a small disk cannot be mounted here");
            return None;
        }
        Some(Self(folder))
    }

    fn remount(&self, options: &str) {
        let status = Command::new("mount")
            .args(["-o", &format!("remount,{options}")])
            .arg(self.0.path())
            .status();
        assert!(status.expect("mount").success(), "{options}");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// An SAE of 2 MB.
fn large(folder: &Path, seed: usize) -> PathBuf {
    let (d_in, d_sae) = (64, 4000);
    let arrays = [
        ("W_enc", vec![d_in, d_sae], vec![seed as f32; d_in * d_sae]),
        ("W_dec", vec![d_sae, d_in], vec![0.5; d_in * d_sae]),
        ("b_enc", vec![d_sae], vec![0.5; d_sae]),
        ("b_dec", vec![d_in], vec![0.5; d_in]),
        ("threshold", vec![d_sae], vec![0.5; d_sae]),
    ];
    let path = folder.join(format!("large-{seed}.npz"));
    fs::write(&path, npz(&arrays, false)).expect("write");
    path
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_serves_reads() {
    let files = tempfile::tempdir().expect("folder");
    let Some(disk) = Disk::new("size=8m") else {
        return;
    };
    let process = Process::start(disk.0.path(), &[], &[]);
    let mut client = process.client().await;
    let small = write_npz(files.path(), "small.npz", 0);
    import_with(&mut client, &small, options("small"))
        .await
        .expect("import");
    // A reserve that is given back later.
    fs::write(disk.0.path().join("reserve"), vec![1; 1 << 20]).expect("reserve");
    let mut stored = 0;
    let refused = loop {
        let path = large(files.path(), stored);
        match import_with(&mut client, &path, options(&format!("large-{stored}"))).await {
            Ok(_) => stored += 1,
            Err(status) => break status,
        }
        assert!(stored < 10, "8 MB hold no more");
    };
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::ResourceExhausted, "DISK_FULL"),
        "{refused:?}"
    );
    // To the last byte, so that the database has no room either.
    let filler = fs::File::create(disk.0.path().join("filler")).expect("filler");
    let mut at = 0;
    while filler.write_all_at(&[1; 4096], at).is_ok() {
        at += 4096;
    }
    let mut names = 0;
    let refused = loop {
        match create_cav(&mut client, &format!("cav-{names}"), vec![1.0; 3000]).await {
            Ok(_) => names += 1,
            Err(status) => break status,
        }
        assert!(names < 1000, "never full");
    };
    assert_eq!(
        (refused.code(), reason(&refused).as_str()),
        (Code::ResourceExhausted, "DISK_FULL"),
        "{refused:?}"
    );
    assert_eq!(
        decoder(&mut client, "small", 9).await.expect("reads go on")[5],
        value(2, 9, 5)
    );
    drop(filler);
    for given_back in ["filler", "reserve"] {
        fs::remove_file(disk.0.path().join(given_back)).expect("room");
    }
    create_cav(&mut client, "after", vec![1.0; 3000])
        .await
        .expect("there is room again");
    let small = write_npz(files.path(), "other.npz", 1);
    import_with(&mut client, &small, options("after"))
        .await
        .expect("there is room again");
    let (sound, report) = check(disk.0.path(), &[], &[]);
    assert!(
        sound && report["saes"] == stored + 2 && report["cavs"] == names + 1,
        "{report}"
    );
    assert!(process.terminate().await.success());
}

#[tokio::test]
async fn a_read_only_disk_is_told_at_the_start() {
    let Some(disk) = Disk::new("size=8m") else {
        return;
    };
    let files = tempfile::tempdir().expect("folder");
    let path = files.path().join("a.npz");
    fs::write(&path, npz(&gemma_scope(0), false)).expect("write");
    let process = Process::start(disk.0.path(), &[], &[]);
    import_with(&mut process.client().await, &path, options("a"))
        .await
        .expect("import");
    assert!(process.terminate().await.success());
    disk.remount("ro");
    let output = task(disk.0.path(), &[], &["--listen", "127.0.0.1:0"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && said.contains("read-only"),
        "{said}"
    );
    disk.remount("rw");
    let process = Process::start(disk.0.path(), &[], &[]);
    let mut client = process.client().await;
    decoder(&mut client, "a", 9).await.expect("feature");
    assert!(process.terminate().await.success());
}
