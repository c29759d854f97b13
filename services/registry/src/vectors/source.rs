//! Objects as they are, to be verified or copied: nothing is created, cached or mended.

use std::{fs, io::Write, path::Path};

use futures::TryStreamExt;

use super::{
    Bucket, Folder, Stored,
    folder::{read_sums, sync_folder},
    sums::Sums,
    writer::{ObjectWriter, new_file},
};
use crate::{
    blocking::blocking,
    error::{Error, Result},
};

/// Where objects are.
#[derive(Debug)]
pub enum Source {
    /// In a folder of this machine.
    Folder(Folder),
    /// In a bucket.
    Bucket(Bucket),
}

impl Source {
    /// Objects in a folder.
    pub fn folder(path: &Path) -> Self {
        Self::Folder(Folder::at(path))
    }

    /// Visible objects.
    pub async fn list(&self) -> Result<Vec<Stored>> {
        match self {
            Self::Folder(folder) => folder.list(),
            Self::Bucket(bucket) => bucket.list().await,
        }
    }

    /// What is wrong with an object of that length; nothing, if nothing is.
    pub async fn problem(&self, digest: &str, len: u64) -> Result<Option<String>> {
        let examined = match self {
            Self::Folder(folder) => {
                let (folder, digest) = (Folder::at(folder.path()), digest.to_owned());
                blocking(move || folder.examine(&digest)).await
            }
            Self::Bucket(bucket) => bucket.examine(digest).await,
        };
        let (found, sums) = match examined {
            Ok(examined) => examined,
            // Missing, or the disk cannot read it.
            Err(error @ (Error::DataLoss(_) | Error::Storage(_))) => {
                return Ok(Some(match error {
                    Error::DataLoss(text) => text,
                    other => other.to_string(),
                }));
            }
            Err(error) => return Err(error),
        };
        if sums.object_len() != len {
            let has = sums.object_len();
            return Ok(Some(format!(
                "object has {has} bytes and should have {len}"
            )));
        }
        if found != digest {
            return Ok(Some(format!("object's numbers have digest {found}")));
        }
        Ok(match self.sums(digest).await? {
            Kept::Good(kept) if kept == sums => None,
            // Made when they are next needed.
            Kept::None => None,
            _ => Some("checksums are damaged".to_owned()),
        })
    }

    async fn sums(&self, digest: &str) -> Result<Kept> {
        let kept = match self {
            Self::Folder(folder) => {
                let path = folder.sums_path(digest);
                if !path.exists() {
                    return Ok(Kept::None);
                }
                read_sums(&path, digest)?
            }
            Self::Bucket(bucket) => bucket.kept_sums(digest).await?,
        };
        Ok(kept.map_or(Kept::Damaged, Kept::Good))
    }

    /// Puts an object into a folder that nobody uses yet: a second name for the same file if it
    /// is on the same disk, else a copy. Not verified. False if it is not there any more.
    pub async fn copy(&self, digest: &str, to: &Folder) -> Result<bool> {
        match self {
            Self::Folder(folder) => {
                let (from, target) = (folder.object_path(digest), to.object_path(digest));
                let (sums, sums_target) = (folder.sums_path(digest), to.sums_path(digest));
                let staging = to.staging();
                blocking(move || {
                    // Checksums that are not there are made by whoever needs them.
                    link_or_copy(&sums, &sums_target, &staging)?;
                    link_or_copy(&from, &target, &staging)
                })
                .await
            }
            Self::Bucket(bucket) => {
                let mut writer = ObjectWriter::new(&to.staging())?;
                let mut stream = match bucket.stream(digest).await {
                    Err(Error::DataLoss(_)) => return Ok(false),
                    stream => stream?,
                };
                while let Some(bytes) = stream.try_next().await? {
                    writer.write(bytes).await?;
                }
                let staged = writer.finish().await?;
                if staged.digest != digest {
                    let text = format!("object {digest} is damaged in the object store");
                    return Err(Error::DataLoss(text));
                }
                to.publish(staged).map(|()| true)
            }
        }
    }
}

enum Kept {
    None,
    Damaged,
    Good(Sums),
}

fn link_or_copy(from: &Path, to: &Path, staging: &Path) -> Result<bool> {
    let linked = fs::hard_link(from, to);
    let copied = linked.or_else(|_| {
        let mut file = new_file(staging)?;
        std::io::copy(&mut fs::File::open(from)?, file.as_file_mut())?;
        file.flush()?;
        file.as_file().sync_all()?;
        file.persist(to).map(drop).map_err(|error| error.error)
    });
    match copied {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        copied => {
            copied?;
            to.parent().map_or(Ok(()), sync_folder)?;
            Ok(true)
        }
    }
}
