//! `steer-registry backup`: a consistent copy, also while a registry serves.
//!
//! Objects go first, then the database in one read, then objects that came in between. An SAE's
//! row goes before its object does, so what the copied rows name was there when they were read;
//! where an SAE came and went since, the database is copied anew.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{
    check::{Contents, Report, check},
    error::{Error, Result},
    store::sqlite::SqliteStore,
    vectors::{Folder, Source, sync_folder},
};

/// How often the database is copied, at most.
const ATTEMPTS: usize = 10;

/// Copies everything into `to`, a new folder that a registry can serve, and verifies the copy.
/// Nothing is there if that fails.
pub async fn backup(
    contents: &Contents,
    to: &Path,
    say: &(dyn Fn(String) + Sync),
) -> Result<Report> {
    if to.exists() {
        let text = format!("{} exists; a backup goes into a new folder", to.display());
        return Err(Error::NotAllowed(text));
    }
    let parent = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent)?;
    let half = tempfile::Builder::new()
        .prefix(".steer-backup-")
        .permissions(fs::Permissions::from_mode(0o777))
        .tempdir_in(parent)?;
    let database = half.path().join("registry.sqlite");
    let objects = Folder::create(&half.path().join("objects"))?;
    copy(contents, &objects, &database, say).await?;
    say("verifying the copy".to_owned());
    let copied = open(&database, half.path()).await?;
    let report = check(&copied, say).await;
    copied.store.close().await;
    let report = report?;
    if !report.problems.is_empty() {
        return Ok(report);
    }
    sync_folder(half.path())?;
    // Only this name makes it a backup.
    fs::rename(half.keep(), to)?;
    sync_folder(parent)?;
    Ok(report)
}

async fn open(database: &Path, folder: &Path) -> Result<Contents> {
    Ok(Contents {
        store: Box::new(SqliteStore::open_read_only(database).await?),
        objects: Source::folder(&folder.join("objects")),
    })
}

async fn copy(
    contents: &Contents,
    objects: &Folder,
    database: &Path,
    say: &(dyn Fn(String) + Sync),
) -> Result<()> {
    let mut copied = HashSet::new();
    for _ in 0..ATTEMPTS {
        let there = contents.objects.list().await?;
        let digests = there.into_iter().map(|object| object.digest).collect();
        copy_objects(contents, digests, objects, &mut copied, say).await?;
        say("copying the database".to_owned());
        remove_database(database)?;
        contents.store.copy_to(database).await?;
        let snapshot = open(database, database).await?;
        let saes = snapshot.saes().await;
        snapshot.store.close().await;
        let wanted: HashSet<String> = saes?.into_iter().map(|sae| sae.digest).collect();
        let late = wanted.difference(&copied).cloned().collect();
        copy_objects(contents, late, objects, &mut copied, say).await?;
        if wanted.is_subset(&copied) {
            for digest in copied.difference(&wanted) {
                objects.delete(digest)?;
            }
            return Ok(());
        }
    }
    Err(Error::Busy(
        "SAEs come and go faster than they can be copied, or an object is missing: see \
         `steer-registry check`"
            .to_owned(),
    ))
}

async fn copy_objects(
    contents: &Contents,
    digests: Vec<String>,
    objects: &Folder,
    copied: &mut HashSet<String>,
    say: &(dyn Fn(String) + Sync),
) -> Result<()> {
    let count = digests.len();
    for (i, digest) in digests.into_iter().enumerate() {
        if copied.contains(&digest) {
            continue;
        }
        say(format!("object {} of {count}: {digest}", i + 1));
        if contents.objects.copy(&digest, objects).await? {
            copied.insert(digest);
        }
    }
    Ok(())
}

fn remove_database(path: &Path) -> Result<()> {
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs::remove_file(PathBuf::from(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}
