//! Directions in an object store: written once under their digest, read by range.
//!
//! An object becomes visible by one rename of a complete, synced file, so a
//! reader never sees half of one. Unfinished files live under `staging/`, which
//! is emptied at start.

use std::{
    ops::Range,
    path::{Path as FsPath, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{
    ObjectStore, ObjectStoreExt, WriteMultipart, local::LocalFileSystem, path::Path,
};
use sha2::{Digest, Sha256};
use steering_proto::payload::hex;
use tokio::task::JoinHandle;

use crate::{
    canonical::{FeatureNumbers, Layout},
    error::{Error, Result},
};

/// Bytes of one part of an upload; S3 wants equal parts of at least 5 MiB.
const PART_LEN: usize = 8 << 20;
/// Bytes after which a local object is flushed while more are on their way, so
/// that the last flush, which everybody waits for, is a short one.
const FLUSH_LEN: usize = 64 << 20;
/// Parts that may wait for the store.
const PARTS_WAITING_MAX: usize = 3;

/// The object store.
#[derive(Debug, Clone)]
pub struct Vectors {
    objects: Arc<dyn ObjectStore>,
    /// Where objects are, if in a folder of this machine.
    folder: Option<PathBuf>,
}

/// An object being written; invisible until [`Vectors::publish`].
#[derive(Debug)]
pub struct ObjectWriter {
    path: Path,
    upload: WriteMultipart,
    hasher: Sha256,
    flusher: Option<Flusher>,
}

/// A complete object that is not visible yet.
#[derive(Debug)]
pub struct StagedObject {
    path: Path,
    /// SHA-256 (hex) of its bytes.
    pub digest: String,
}

impl Vectors {
    /// Objects in a local folder, which is created if need be. Leftovers of
    /// interrupted writes are removed.
    pub fn local(folder: &FsPath) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let staging = folder.join("staging");
        match std::fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let objects = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
        Ok(Self {
            objects: Arc::new(objects),
            folder: Some(folder.to_owned()),
        })
    }

    /// Starts an object under a temporary name.
    pub async fn writer(&self) -> Result<ObjectWriter> {
        let path = Path::from(format!("staging/{}", unique_name()));
        let upload = self.objects.put_multipart(&path).await?;
        // The name under which the folder's store keeps an unfinished object.
        // If that should change, flushing early just does nothing.
        let flusher = self.folder.as_ref().map(|folder| Flusher {
            path: folder.join(format!("{path}#1")),
            written: 0,
            running: None,
        });
        Ok(ObjectWriter {
            flusher,
            path,
            upload: WriteMultipart::new_with_chunk_size(upload, PART_LEN),
            hasher: Sha256::new(),
        })
    }

    /// Makes an object visible under its digest. If one is there already, it
    /// is the same: the new copy is dropped.
    pub async fn publish(&self, staged: &StagedObject) -> Result<()> {
        let target = object_path(&staged.digest);
        match self
            .objects
            .rename_if_not_exists(&staged.path, &target)
            .await
        {
            Err(object_store::Error::AlreadyExists { .. }) => self.discard(staged).await,
            result => Ok(result?),
        }
    }

    /// Drops a complete object that is not wanted after all.
    pub async fn discard(&self, staged: &StagedObject) -> Result<()> {
        Ok(self.objects.delete(&staged.path).await?)
    }

    /// Digests of all visible objects.
    pub async fn digests(&self) -> Result<Vec<String>> {
        let objects: Vec<_> = self
            .objects
            .list(Some(&Path::from("saes")))
            .try_collect()
            .await?;
        Ok(objects
            .iter()
            .filter_map(|object| object.location.filename()?.strip_suffix(".safetensors"))
            .map(str::to_owned)
            .collect())
    }

    /// Removes an object; one that is not there is no error.
    pub async fn delete(&self, digest: &str) -> Result<()> {
        match self.objects.delete(&object_path(digest)).await {
            Err(object_store::Error::NotFound { .. }) => Ok(()),
            result => Ok(result?),
        }
    }

    /// A visible object's file on this machine, to be read as a whole.
    pub fn open(&self, digest: &str) -> Result<std::fs::File> {
        let Some(folder) = &self.folder else {
            let text = "whole SAEs can only be read from a folder of this machine";
            return Err(Error::NotAllowed(text.to_owned()));
        };
        let path = folder.join(object_path(digest).as_ref());
        std::fs::File::open(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::DataLoss(format!("object {digest} is missing")),
            _ => error.into(),
        })
    }

    /// Bytes of one object.
    pub async fn read_bytes(&self, digest: &str, bytes: Range<u64>) -> Result<Bytes> {
        Ok(self.objects.get_range(&object_path(digest), bytes).await?)
    }

    /// Features of one object, in the order asked for. Indices must be below `layout.d_sae`.
    pub async fn read(
        &self,
        digest: &str,
        layout: &Layout,
        indices: &[u32],
    ) -> Result<Vec<FeatureNumbers>> {
        let ranges: Vec<_> = indices
            .iter()
            .flat_map(|&index| layout.feature_ranges(index))
            .collect();
        let parts = self
            .objects
            .get_ranges(&object_path(digest), &ranges)
            .await?;
        let (features, _) = parts.as_chunks::<3>();
        features
            .iter()
            .map(|[decoder, encoder, scalars]| {
                layout
                    .decode_feature(decoder, encoder, scalars)
                    .ok_or_else(|| {
                        Error::DataLoss(format!("object {digest} is shorter than it was written"))
                    })
            })
            .collect()
    }
}

impl ObjectWriter {
    /// Appends bytes. Waits while too many parts are on their way, so memory
    /// stays bounded.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        // Hash on another thread while the store takes the parts before.
        let mut hasher = std::mem::take(&mut self.hasher);
        let hashed = bytes.clone();
        let hash = tokio::task::spawn_blocking(move || {
            hasher.update(&hashed);
            hasher
        });
        self.upload.wait_for_capacity(PARTS_WAITING_MAX).await?;
        if let Some(flusher) = &mut self.flusher {
            flusher.wrote(bytes.len());
        }
        self.upload.put(bytes);
        self.hasher = hash
            .await
            .map_err(|error| Error::Storage(Box::new(error)))?;
        Ok(())
    }

    /// Completes the object; it is durable when this returns.
    pub async fn finish(self) -> Result<StagedObject> {
        self.upload.finish().await?;
        Ok(StagedObject {
            path: self.path,
            digest: hex(&self.hasher.finalize()),
        })
    }

    /// Drops everything written.
    pub async fn abort(self) {
        if let Err(error) = self.upload.abort().await {
            tracing::warn!(%error, "an unfinished object could not be removed");
        }
    }
}

/// Begins to bring a growing file to disk before it is complete.
#[derive(Debug)]
struct Flusher {
    path: PathBuf,
    /// Bytes since the last flush began.
    written: usize,
    running: Option<JoinHandle<()>>,
}

impl Flusher {
    fn wrote(&mut self, len: usize) {
        self.written += len;
        let idle = self.running.as_ref().is_none_or(JoinHandle::is_finished);
        if self.written < FLUSH_LEN || !idle {
            return;
        }
        self.written = 0;
        let path = self.path.clone();
        self.running = Some(tokio::task::spawn_blocking(move || {
            // Only to be early: errors show when the object is completed.
            let _ = std::fs::File::open(path).and_then(|file| file.sync_data());
        }));
    }
}

fn object_path(digest: &str) -> Path {
    Path::from(format!("saes/{digest}.safetensors"))
}

/// A name that no other writer of this or another process uses.
fn unique_name() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_nanos());
    let count = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("{nanos:x}-{:x}-{count:x}", std::process::id())
}

#[cfg(test)]
mod tests {
    use steering_proto::payload::{Activation, InputNormalization};

    use super::*;
    use crate::canonical::Architecture;

    fn files(folder: &FsPath) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![folder.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).expect("folder") {
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
        found
    }

    async fn stage(vectors: &Vectors) -> (StagedObject, Layout) {
        let (layout, header) = Layout::new(Architecture::Relu, InputNormalization::None, 2, 3);
        let mut writer = vectors.writer().await.expect("writer");
        writer.write(header.into()).await.expect("header");
        let body: Vec<u8> = (0_u8..17)
            .flat_map(|i| f32::from(i).to_le_bytes())
            .collect();
        writer.write(body.into()).await.expect("body");
        (writer.finish().await.expect("finish"), layout)
    }

    #[tokio::test]
    async fn objects_are_invisible_until_published_and_read_by_feature() {
        let folder = tempfile::tempdir().expect("folder");
        let vectors = Vectors::local(folder.path()).expect("store");
        let (staged, layout) = stage(&vectors).await;
        assert!(vectors.read(&staged.digest, &layout, &[0]).await.is_err());
        vectors.publish(&staged).await.expect("publish");
        let features = vectors
            .read(&staged.digest, &layout, &[2, 0])
            .await
            .expect("read");
        assert_eq!(features[0].decoder, [4.0, 5.0]);
        assert_eq!(features[0].encoder, [10.0, 11.0]);
        assert_eq!(
            (features[0].encoder_bias, features[0].activation),
            (14.0, Activation::Relu)
        );
        assert_eq!(features[1].decoder, [0.0, 1.0]);

        let (again, _) = stage(&vectors).await;
        assert_eq!(again.digest, staged.digest);
        vectors
            .publish(&again)
            .await
            .expect("publish the same again");
        assert_eq!(
            files(folder.path()),
            [format!("{}.safetensors", staged.digest)]
        );
        vectors.delete(&staged.digest).await.expect("delete");
        vectors.delete(&staged.digest).await.expect("delete again");
        assert!(files(folder.path()).is_empty());
    }

    #[tokio::test]
    async fn abandoned_writes_leave_nothing() {
        let folder = tempfile::tempdir().expect("folder");
        let vectors = Vectors::local(folder.path()).expect("store");
        let mut writer = vectors.writer().await.expect("writer");
        writer
            .write(vec![1; PART_LEN + 1].into())
            .await
            .expect("write");
        writer.abort().await;
        assert!(files(folder.path()).is_empty());

        std::fs::create_dir_all(folder.path().join("staging")).expect("folder");
        std::fs::write(folder.path().join("staging/left#1"), b"x").expect("leftover");
        Vectors::local(folder.path()).expect("restart");
        assert!(files(folder.path()).is_empty());
    }
}
