//! Objects as files of a folder: `saes/DIGEST.safetensors` and `sums/DIGEST.sums`.
//!
//! An object becomes visible by one rename of a complete, synced file, so a reader never sees
//! half of one. Its checksums are there before it is.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tempfile::PersistError;

use super::{
    Opened, Shared, Stored,
    object::{Object, examine},
    sums::Sums,
    writer::{StagedObject, new_file},
};
use crate::error::{Error, Result};

/// Objects in a folder of this machine.
#[derive(Debug, Default)]
pub struct Folder {
    path: PathBuf,
    opened: Opened,
    /// Held while an object is opened, so that its checksums are made once.
    opening: Mutex<()>,
}

impl Folder {
    /// The folder, which is created if need be. Leftovers of interrupted writes are removed.
    pub fn create(path: &Path) -> Result<Self> {
        let folder = Self::at(path);
        remove_all(&folder.staging())?;
        for part in [folder.staging(), path.join("saes"), path.join("sums")] {
            fs::create_dir_all(part)?;
        }
        let digests: HashSet<String> = folder.list()?.into_iter().map(|it| it.digest).collect();
        for (digest, path) in files(&path.join("sums"), ".sums")? {
            if !digests.contains(&digest) {
                remove(&path)?;
            }
        }
        Ok(folder)
    }

    /// A folder to read, as it is.
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            ..Self::default()
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.path.join("staging")
    }

    /// An object's file.
    pub fn object_path(&self, digest: &str) -> PathBuf {
        self.path.join(format!("saes/{digest}.safetensors"))
    }

    /// The file of an object's checksums.
    pub fn sums_path(&self, digest: &str) -> PathBuf {
        self.path.join(format!("sums/{digest}.sums"))
    }

    /// A visible object. Checksums that are not there are made.
    pub(super) fn object(&self, digest: &str) -> Result<Shared> {
        if let Some(object) = self.opened.get(digest) {
            return Ok(object);
        }
        let _only = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(object) = self.opened.get(digest) {
            return Ok(object);
        }
        let file = open(&self.object_path(digest), digest)?;
        let sums = match read_sums(&self.sums_path(digest), digest)? {
            Some(sums) => sums,
            None => self.make_sums(&file, digest)?,
        };
        Ok(self.opened.put(Object::new(digest.to_owned(), file, sums)))
    }

    /// SHA-256 (hex) and block checksums of an object as it is there.
    pub fn examine(&self, digest: &str) -> Result<(String, Sums)> {
        Ok(examine(open(&self.object_path(digest), digest)?)?)
    }

    /// For objects of versions that kept no checksums, and where these are damaged.
    fn make_sums(&self, file: &File, digest: &str) -> Result<Sums> {
        tracing::info!(digest, "reading directions once, for their checksums");
        let (found, sums) = examine(file)?;
        if found != digest {
            return Err(Error::DataLoss(format!("object {digest} is damaged")));
        }
        // They serve without a file as well: the disk may be full, or not ours to write.
        if let Err(error) = self.write_sums(&sums, digest) {
            tracing::warn!(digest, %error, "checksums could not be kept");
        }
        Ok(sums)
    }

    fn write_sums(&self, sums: &Sums, digest: &str) -> io::Result<()> {
        let mut file = new_file(&self.staging())?;
        file.write_all(&sums.encode(digest))?;
        file.as_file().sync_all()?;
        file.persist(self.sums_path(digest))
            .map_err(|PersistError { error, .. }| error)?;
        sync_folder(&self.path.join("sums"))
    }

    /// Makes an object visible under its digest; durable when this returns. One that is there
    /// already is replaced: it is the same, or damaged.
    pub fn publish(&self, staged: StagedObject) -> Result<()> {
        let StagedObject { path, sums, digest } = staged;
        self.write_sums(&sums, &digest)?;
        path.persist(self.object_path(&digest))
            .map_err(|error| error.error)?;
        self.opened.remove(&digest);
        Ok(sync_folder(&self.path.join("saes"))?)
    }

    /// Visible objects.
    pub fn list(&self) -> Result<Vec<Stored>> {
        let mut found = Vec::new();
        for (digest, path) in files(&self.path.join("saes"), ".safetensors")? {
            match fs::metadata(&path) {
                // Removed a moment ago.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
                Ok(about) => found.push(Stored {
                    digest,
                    len: about.len(),
                    age: about
                        .modified()
                        .ok()
                        .and_then(|time| time.elapsed().ok())
                        .unwrap_or(Duration::ZERO),
                }),
            }
        }
        Ok(found)
    }

    /// Removes an object; one that is not there is no error.
    pub fn delete(&self, digest: &str) -> Result<()> {
        self.opened.remove(digest);
        remove(&self.object_path(digest))?;
        Ok(remove(&self.sums_path(digest))?)
    }
}

/// Opens an object's file.
fn open(path: &Path, digest: &str) -> Result<File> {
    File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::DataLoss(format!("object {digest} is missing")),
        _ => error.into(),
    })
}

/// An object's checksums; None if they are not there, or damaged.
pub(super) fn read_sums(path: &Path, digest: &str) -> Result<Option<Sums>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Sums::decode(&bytes, digest)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Files of a folder whose names end so, and their names without it.
pub(super) fn files(folder: &Path, suffix: &str) -> Result<Vec<(String, PathBuf)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        if let Some(stem) = name.and_then(|name| name.strip_suffix(suffix)) {
            found.push((stem.to_owned(), path.clone()));
        }
    }
    Ok(found)
}

/// Removes a file, if it is there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a folder, if it is there.
pub(super) fn remove_all(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes renames in a folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
