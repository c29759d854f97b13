//! Directions, written once under their digest, read by range, every byte checked.
//!
//! They are in a folder of this machine, or in an S3-compatible store with a cache on this
//! machine's disk. A digest is the SHA-256 of a whole object; so that a part can be trusted
//! too, an object has [checksums](sums) of its blocks beside it.

mod bucket;
mod cache;
mod folder;
mod mapped;
mod object;
mod source;
pub mod sums;
mod writer;

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::{
    blocking::blocking,
    canonical::{FeatureNumbers, Layout},
    error::{Error, Result},
};

pub use bucket::Bucket;
pub use cache::Cache;
pub use folder::Folder;
pub(crate) use folder::sync_folder;
pub use object::{Damaged, Object, examine, is_damage};
pub use source::Source;
pub use writer::{ObjectWriter, StagedObject};

/// Objects kept open; each holds a file, and for a large one some MB about its blocks.
const OPEN_MAX: usize = 64;
/// Things that can be locked at once without getting in each other's way.
const LOCKS: usize = 64;
/// An object of a bucket that is younger is not removed: another registry may have put it
/// there and be about to name it. So may one that puts the same there again, which makes it young.
pub(crate) const YOUNG: Duration = Duration::from_secs(24 * 60 * 60);

/// An open object in the hands of several.
pub type Shared = Arc<Object>;

/// Where objects are.
#[derive(Debug)]
pub enum Vectors {
    /// In a folder of this machine.
    Folder(Arc<Folder>),
    /// In a bucket.
    Bucket(Arc<Cache>),
}

/// An object that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// SHA-256 (hex) of what it should be.
    pub digest: String,
    /// Its length in bytes.
    pub len: u64,
    /// How long it has been there.
    pub age: Duration,
}

impl Vectors {
    /// Objects in a local folder, which is created if need be.
    pub fn local(folder: &Path) -> Result<Self> {
        Ok(Self::Folder(Arc::new(Folder::create(folder)?)))
    }

    /// Objects in a bucket, through a cache.
    pub fn remote(cache: Cache) -> Self {
        Self::Bucket(Arc::new(cache))
    }

    /// Starts an object that nobody sees.
    pub fn writer(&self) -> Result<ObjectWriter> {
        match self {
            Self::Folder(folder) => ObjectWriter::new(&folder.staging()),
            Self::Bucket(cache) => ObjectWriter::new(&cache.staging()),
        }
    }

    /// Makes an object visible under its digest; durable when this returns.
    pub async fn publish(&self, staged: StagedObject) -> Result<()> {
        match self {
            Self::Folder(folder) => {
                let folder = Arc::clone(folder);
                blocking(move || folder.publish(staged)).await
            }
            Self::Bucket(cache) => cache.publish(staged).await,
        }
    }

    /// Visible objects.
    pub async fn list(&self) -> Result<Vec<Stored>> {
        match self {
            Self::Folder(folder) => folder.list(),
            Self::Bucket(cache) => cache.bucket().list().await,
        }
    }

    /// Removes an object that no SAE has; one that is not there is no error. In a bucket, a
    /// young one stays for a later sweep.
    pub async fn delete(&self, digest: &str) -> Result<()> {
        match self {
            Self::Folder(folder) => folder.delete(digest),
            Self::Bucket(cache) => {
                cache.forget(digest)?;
                match cache.bucket().age(digest).await? {
                    Some(age) if age >= YOUNG => cache.bucket().delete(digest).await,
                    _ => Ok(()),
                }
            }
        }
    }

    /// Whether an object that no SAE has is safe for a while.
    pub fn keeps_unnamed(&self) -> bool {
        matches!(self, Self::Bucket(_))
    }

    async fn open(&self, digest: &str) -> Result<Shared> {
        match self {
            Self::Folder(folder) => {
                let (folder, digest) = (Arc::clone(folder), digest.to_owned());
                blocking(move || folder.object(&digest)).await
            }
            Self::Bucket(cache) => cache.object(digest).await,
        }
    }

    /// An object of that layout to be read as a whole, on this machine.
    pub async fn whole(&self, digest: &str, layout: &Layout) -> Result<Shared> {
        let object = self.open(digest).await?;
        check_len(&object, layout)?;
        if let Self::Bucket(cache) = self {
            cache.fetch_all(&object).await?;
        }
        Ok(object)
    }

    /// Forgets what of an object is on this machine only, where it is damaged. Says whether
    /// there is something to be had instead.
    pub fn refetch(&self, digest: &str) -> Result<bool> {
        match self {
            Self::Folder(_) => Ok(false),
            Self::Bucket(cache) => cache.forget(digest).map(|()| true),
        }
    }

    /// Features of one object, in the order asked for. Indices must be below `layout.d_sae`.
    pub async fn read(
        &self,
        digest: &str,
        layout: &Layout,
        indices: &[u32],
    ) -> Result<Vec<FeatureNumbers>> {
        let object = self.open(digest).await?;
        check_len(&object, layout)?;
        let (layout, indices) = (*layout, indices.to_vec());
        let ranges: Vec<Range<u64>> = indices
            .iter()
            .flat_map(|&index| layout.feature_ranges(index))
            .collect();
        let read = |object: Shared| {
            let indices = indices.clone();
            blocking(move || Ok(read_features(&object, &layout, &indices)))
        };
        match (self, read(Shared::clone(&object)).await?) {
            (Self::Bucket(cache), Err(error)) if is_damage(&error) => {
                cache.fetch(&object, &ranges).await?;
                Ok(read(object).await??)
            }
            (_, numbers) => Ok(numbers?),
        }
    }
}

fn check_len(object: &Object, layout: &Layout) -> Result<()> {
    let (len, expected) = (object.len(), layout.file_len());
    if len == expected {
        return Ok(());
    }
    let digest = object.digest();
    Err(Error::DataLoss(format!(
        "object {digest} has {len} bytes and should have {expected}"
    )))
}

fn read_features(
    object: &Object,
    layout: &Layout,
    indices: &[u32],
) -> io::Result<Vec<FeatureNumbers>> {
    let mut buffers = [const { Vec::new() }; 3];
    let feature = |index: &u32| {
        let [decoder, encoder, scalars] = &mut buffers;
        let ranges = layout.feature_ranges(*index);
        let numbers = layout.decode_feature(
            object.read(&ranges[0], decoder)?,
            object.read(&ranges[1], encoder)?,
            object.read(&ranges[2], scalars)?,
        );
        numbers.ok_or_else(|| io::ErrorKind::InvalidData.into())
    };
    indices.iter().map(feature).collect()
}

/// Objects that were used last, open.
#[derive(Debug, Default)]
struct Opened(Mutex<ByUse>);

#[derive(Debug, Default)]
struct ByUse {
    /// Counts uses; orders them.
    clock: u64,
    objects: HashMap<String, (u64, Shared)>,
}

impl Opened {
    fn lock(&self) -> MutexGuard<'_, ByUse> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, digest: &str) -> Option<Shared> {
        let ByUse { clock, objects } = &mut *self.lock();
        let (last, object) = objects.get_mut(digest)?;
        *clock += 1;
        *last = *clock;
        Some(Shared::clone(object))
    }

    fn put(&self, object: Object) -> Shared {
        let ByUse { clock, objects } = &mut *self.lock();
        *clock += 1;
        let object = Shared::new(object);
        let digest = object.digest().to_owned();
        objects.insert(digest, (*clock, Shared::clone(&object)));
        if objects.len() > OPEN_MAX {
            let oldest = objects.iter().min_by_key(|(_, (last, _))| *last);
            let oldest = oldest.map(|(digest, _)| digest.clone());
            oldest.and_then(|digest| objects.remove(&digest));
        }
        object
    }

    fn remove(&self, digest: &str) {
        self.lock().objects.remove(digest);
    }
}

/// Locks for any number of things; two may share one.
#[derive(Debug)]
struct Locks([tokio::sync::Mutex<()>; LOCKS]);

impl Default for Locks {
    fn default() -> Self {
        Self(std::array::from_fn(|_| tokio::sync::Mutex::new(())))
    }
}

impl Locks {
    async fn lock(&self, thing: impl Hash) -> tokio::sync::MutexGuard<'_, ()> {
        let mut hasher = DefaultHasher::new();
        thing.hash(&mut hasher);
        let index = hasher.finish() % LOCKS as u64;
        self.0[usize::try_from(index).unwrap_or(0)].lock().await
    }
}

#[cfg(test)]
mod tests;
