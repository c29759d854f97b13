//! An object on its way in: hashed and written to a file that nobody else sees.

use std::{
    fs::{File, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use steering_proto::payload::hex;
use tempfile::{NamedTempFile, TempPath};
use tokio::task::JoinHandle;

use super::sums::{Sums, SumsBuilder};
use crate::{blocking::blocking, error::Result};

/// Bytes after which the file is flushed while more are on their way, so that the last flush,
/// which everybody waits for, is a short one.
const FLUSH_LEN: usize = 64 << 20;

/// An object being written. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct ObjectWriter {
    file: Arc<File>,
    path: TempPath,
    hasher: Sha256,
    sums: SumsBuilder,
    /// Bytes since the last flush began.
    unflushed: usize,
    flush: Option<JoinHandle<()>>,
}

/// A complete object that is not visible yet. Dropped, it leaves nothing.
#[derive(Debug)]
pub struct StagedObject {
    pub(super) path: TempPath,
    pub(super) sums: Sums,
    /// SHA-256 (hex) of its bytes.
    pub digest: String,
}

impl ObjectWriter {
    pub(super) fn new(staging: &Path) -> Result<Self> {
        let (file, path) = new_file(staging)?.into_parts();
        Ok(Self {
            file: Arc::new(file),
            path,
            hasher: Sha256::new(),
            sums: SumsBuilder::default(),
            unflushed: 0,
            flush: None,
        })
    }

    /// Appends bytes.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        self.start_flush(bytes.len());
        // SHA-256 takes longer than the rest, which another thread does meanwhile.
        let (mut hasher, hashed) = (std::mem::take(&mut self.hasher), bytes.clone());
        let hashing = blocking(move || {
            hasher.update(&hashed);
            Ok(hasher)
        });
        let (mut sums, file) = (std::mem::take(&mut self.sums), Arc::clone(&self.file));
        let storing = blocking(move || {
            sums.update(&bytes);
            (&*file).write_all(&bytes)?;
            Ok(sums)
        });
        let (hasher, sums) = tokio::join!(hashing, storing);
        (self.hasher, self.sums) = (hasher?, sums?);
        Ok(())
    }

    /// Completes the object; its bytes are durable when this returns.
    pub async fn finish(self) -> Result<StagedObject> {
        let file = self.file;
        blocking(move || Ok(file.sync_all()?)).await?;
        Ok(StagedObject {
            path: self.path,
            sums: self.sums.finish(),
            digest: hex(&self.hasher.finalize()),
        })
    }

    fn start_flush(&mut self, len: usize) {
        self.unflushed += len;
        let idle = self.flush.as_ref().is_none_or(JoinHandle::is_finished);
        if self.unflushed < FLUSH_LEN || !idle {
            return;
        }
        self.unflushed = 0;
        let file = Arc::clone(&self.file);
        self.flush = Some(tokio::task::spawn_blocking(move || {
            // Only to be early: errors show when the object is completed.
            let _ = file.sync_data();
        }));
    }
}

/// A new file under a name of its own, with the rights that any new file has.
pub(super) fn new_file(folder: &Path) -> io::Result<NamedTempFile> {
    tempfile::Builder::new()
        .prefix("half-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
}
