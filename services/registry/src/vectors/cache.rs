//! What was read of a bucket's objects, on this machine's disk.
//!
//! An object's file here is as long as the object and has holes where nothing was read yet.
//! Every read is checked against the object's checksums anyway, so a hole, a block that a crash
//! left half written, and a damaged one are the same thing: not here, to be fetched. Nothing
//! else is kept about blocks, and nothing need be synced.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Write},
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::{
    Locks, Opened, Shared,
    bucket::Bucket,
    folder::{files, read_sums, remove, remove_all},
    object::{Object, is_damage},
    sums::{BLOCK_LEN, Sums},
    writer::{StagedObject, new_file},
};
use crate::{
    blocking::blocking,
    error::{Error, Result},
};

/// Least bytes fetched at once: neighbours of a feature come with it.
const FETCH_MIN: u64 = 256 << 10;
/// Most bytes fetched at once; also what one reader fetches for all others.
const FETCH_MAX: u64 = 8 << 20;
/// Fetches at once for one reader.
const FETCHES: usize = 4;
/// Files at most, however small.
const FILES_MAX: usize = 4096;

/// A bucket's objects, as far as they were read, in a folder.
#[derive(Debug)]
pub struct Cache {
    bucket: Bucket,
    folder: PathBuf,
    limit: u64,
    used: Mutex<Used>,
    opened: Opened,
    fetching: Locks,
}

#[derive(Debug, Default)]
struct Used {
    /// Counts uses; orders them.
    clock: u64,
    files: HashMap<String, Use>,
}

#[derive(Debug, Default)]
struct Use {
    /// On disk.
    bytes: u64,
    last: u64,
    /// Nothing is known to be missing.
    complete: bool,
}

impl Cache {
    /// The cache in `folder`, of at most `limit` bytes.
    pub fn open(bucket: Bucket, folder: &Path, limit: u64) -> Result<Self> {
        let cache = Self {
            bucket,
            folder: folder.to_owned(),
            limit,
            used: Mutex::default(),
            opened: Opened::default(),
            fetching: Locks::default(),
        };
        remove_all(&cache.staging())?;
        fs::create_dir_all(cache.staging())?;
        let mut found = Vec::new();
        for (digest, path) in files(folder, ".data")? {
            let about = fs::metadata(path)?;
            found.push((about.modified()?, digest, about.blocks() * 512));
        }
        found.sort();
        for (_, digest, bytes) in found {
            cache.count(&digest, bytes);
        }
        cache.make_room("")?;
        Ok(cache)
    }

    /// The bucket.
    pub fn bucket(&self) -> &Bucket {
        &self.bucket
    }

    pub(super) fn staging(&self) -> PathBuf {
        self.folder.join("staging")
    }

    fn data_path(&self, digest: &str) -> PathBuf {
        self.folder.join(format!("{digest}.data"))
    }

    fn sums_path(&self, digest: &str) -> PathBuf {
        self.folder.join(format!("{digest}.sums"))
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object, with whatever of it is here.
    pub(super) async fn object(&self, digest: &str) -> Result<Shared> {
        if let Some(object) = self.opened.get(digest) {
            self.touch(digest);
            return Ok(object);
        }
        let _only = self.fetching.lock(digest).await;
        if let Some(object) = self.opened.get(digest) {
            return Ok(object);
        }
        let sums = match read_sums(&self.sums_path(digest), digest)? {
            Some(sums) => sums,
            None => {
                let sums = self.bucket.sums(digest).await?;
                self.keep_sums(&sums, digest)?;
                sums
            }
        };
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(self.data_path(digest))?;
        file.set_len(sums.object_len())?;
        // For the order of use after a restart.
        file.set_modified(SystemTime::now())?;
        self.count(digest, file.metadata()?.blocks() * 512);
        Ok(self.opened.put(Object::new(digest.to_owned(), file, sums)))
    }

    fn keep_sums(&self, sums: &Sums, digest: &str) -> Result<()> {
        let mut file = new_file(&self.staging())?;
        file.write_all(&sums.encode(digest))?;
        file.persist(self.sums_path(digest))
            .map_err(|error| error.error)?;
        Ok(())
    }

    /// Uploads an object, and keeps it here.
    pub(super) async fn publish(&self, staged: StagedObject) -> Result<()> {
        self.bucket.upload(&staged).await?;
        let StagedObject { path, sums, digest } = staged;
        self.forget(&digest)?;
        if sums.object_len() > self.limit {
            return Ok(());
        }
        self.keep_sums(&sums, &digest)?;
        path.persist(self.data_path(&digest))
            .map_err(|error| error.error)?;
        self.count(&digest, sums.object_len());
        self.make_room(&digest)
    }

    /// Brings all of an object here, so that its file can be read as it is.
    pub(super) async fn fetch_all(&self, object: &Shared) -> Result<()> {
        if object.len() > self.limit {
            return Err(Error::CacheTooSmall {
                digest: object.digest().to_owned(),
                len: object.len(),
                limit: self.limit,
            });
        }
        let complete = |used: &Used| {
            used.files
                .get(object.digest())
                .is_some_and(|it| it.complete)
        };
        if complete(&self.used()) {
            return Ok(());
        }
        let all = 0..object.len();
        self.fetch(object, std::slice::from_ref(&all)).await?;
        if let Some(file) = self.used().files.get_mut(object.digest()) {
            file.complete = true;
        }
        Ok(())
    }

    /// Brings the parts of an object here that are not.
    pub(super) async fn fetch(&self, object: &Shared, ranges: &[Range<u64>]) -> Result<()> {
        futures::stream::iter(pieces(ranges, object.len()))
            .map(|piece| self.fetch_piece(object, piece))
            .buffer_unordered(FETCHES)
            .try_collect::<()>()
            .await?;
        self.count(object.digest(), object.file().metadata()?.blocks() * 512);
        self.make_room(object.digest())
    }

    async fn fetch_piece(&self, object: &Shared, piece: Range<u64>) -> Result<()> {
        // Whoever comes second finds the piece here.
        let key = (object.digest(), piece.start / FETCH_MAX);
        let _only = self.fetching.lock(key).await;
        let looked = Shared::clone(object);
        let Some(missing) = blocking(move || Ok(missing(&looked, piece)?)).await? else {
            return Ok(());
        };
        let bytes = self.get_checked(object, missing.clone()).await?;
        let written = write(object, bytes.clone(), missing.start).await;
        if !matches!(written, Err(Error::DiskFull)) {
            return written;
        }
        for digest in self.others(object.digest()) {
            self.forget(&digest)?;
        }
        write(object, bytes, missing.start).await
    }

    /// Bytes from the bucket that are what was written there.
    async fn get_checked(&self, object: &Object, range: Range<u64>) -> Result<Bytes> {
        let mut wrong = 0;
        // What was damaged on its way comes right the second time.
        for _ in 0..2 {
            let bytes = self.bucket.get(object.digest(), range.clone()).await?;
            match object.sums().first_wrong(range.start / BLOCK_LEN, &bytes) {
                None if bytes.len() as u64 == range.end - range.start => return Ok(bytes),
                block => wrong = block.map_or(range.start, |block| block * BLOCK_LEN),
            }
        }
        Err(Error::DataLoss(format!(
            "object {} is damaged at byte {wrong}, in the object store",
            object.digest()
        )))
    }

    fn touch(&self, digest: &str) {
        let mut used = self.used();
        used.clock += 1;
        let now = used.clock;
        if let Some(file) = used.files.get_mut(digest) {
            file.last = now;
        }
    }

    fn count(&self, digest: &str, bytes: u64) {
        let mut used = self.used();
        used.clock += 1;
        let now = used.clock;
        let file = used.files.entry(digest.to_owned()).or_default();
        (file.bytes, file.last) = (bytes, now);
    }

    fn others(&self, digest: &str) -> Vec<String> {
        let used = self.used();
        let others = used.files.keys().filter(|other| *other != digest);
        others.cloned().collect()
    }

    /// Removes what was not used for longest until the rest fits; `keep` goes last.
    fn make_room(&self, keep: &str) -> Result<()> {
        loop {
            let oldest = {
                let used = self.used();
                let total: u64 = used.files.values().map(|file| file.bytes).sum();
                if total <= self.limit && used.files.len() <= FILES_MAX {
                    return Ok(());
                }
                let order = |(digest, file): &(&String, &Use)| (*digest == keep, file.last);
                used.files
                    .iter()
                    .min_by_key(order)
                    .map(|(digest, _)| digest.clone())
            };
            let Some(digest) = oldest else {
                return Ok(());
            };
            self.forget(&digest)?;
        }
    }

    /// Removes what is here of an object. Who reads it still can.
    pub(super) fn forget(&self, digest: &str) -> Result<()> {
        self.opened.remove(digest);
        self.used().files.remove(digest);
        remove(&self.data_path(digest))?;
        Ok(remove(&self.sums_path(digest))?)
    }
}

/// `ranges` widened to what is worth a request, cut to what one may bring, without repetitions.
fn pieces(ranges: &[Range<u64>], len: u64) -> Vec<Range<u64>> {
    let mut pieces: Vec<Range<u64>> = Vec::new();
    let mut steps: Vec<u64> = ranges
        .iter()
        .flat_map(|range| range.start / FETCH_MIN..range.end.min(len).div_ceil(FETCH_MIN))
        .collect();
    steps.sort_unstable();
    steps.dedup();
    for step in steps {
        let (start, end) = (step * FETCH_MIN, len.min((step + 1) * FETCH_MIN));
        match pieces.last_mut() {
            Some(last) if last.end == start && !start.is_multiple_of(FETCH_MAX) => last.end = end,
            _ => pieces.push(start..end),
        }
    }
    pieces
}

/// From the first block of `piece` that is not here to the last.
fn missing(object: &Object, piece: Range<u64>) -> io::Result<Option<Range<u64>>> {
    let mut missing: Option<Range<u64>> = None;
    let mut buffer = Vec::new();
    for start in piece.clone().step_by(BLOCK_LEN as usize) {
        let block = start..piece.end.min(start + BLOCK_LEN);
        match object.read(&block, &mut buffer) {
            Ok(_) => {}
            Err(error) if is_damage(&error) => {
                missing.get_or_insert_with(|| block.clone()).end = block.end;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(missing)
}

async fn write(object: &Shared, bytes: Bytes, at: u64) -> Result<()> {
    let object = Shared::clone(object);
    blocking(move || Ok(object.file().write_all_at(&bytes, at)?)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_worth_a_request_and_not_too_long() {
        let len = 3 * FETCH_MAX + 5;
        assert_eq!(pieces(&[10..20, 30..40], len), vec![0..FETCH_MIN; 1]);
        assert_eq!(
            pieces(&[FETCH_MIN - 1..FETCH_MIN + 1, len - 1..len], len),
            [0..2 * FETCH_MIN, 3 * FETCH_MAX..len]
        );
        assert_eq!(
            pieces(std::slice::from_ref(&(0..len)), len),
            [
                0..FETCH_MAX,
                FETCH_MAX..2 * FETCH_MAX,
                2 * FETCH_MAX..3 * FETCH_MAX,
                3 * FETCH_MAX..len
            ]
        );
        assert!(pieces(&[], len).is_empty());
    }
}
