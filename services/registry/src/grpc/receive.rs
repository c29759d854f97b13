//! Files that arrive in chunks.

use std::path::{Component, Path, PathBuf};

use steering_proto::Invalid;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

use crate::error::Result;

/// Largest chunk; clients send at most 1 MiB.
const CHUNK_LEN_MAX: usize = 4 << 20;
const FILES_MAX: usize = 64;
const FILE_NAME_LEN_MAX: usize = 500;

/// One unnamed file; gone when dropped.
pub(super) struct ReceivedFile {
    file: tokio::fs::File,
    left: u64,
    len_max: u64,
}

impl ReceivedFile {
    pub(super) fn create(folder: &Path, len_max: u64) -> Result<Self> {
        let file = tokio::fs::File::from_std(tempfile::tempfile_in(folder)?);
        Ok(Self {
            file,
            left: len_max,
            len_max,
        })
    }

    pub(super) async fn append(&mut self, chunk: Vec<u8>) -> Result<()> {
        self.left = spend(self.left, &chunk, self.len_max)?;
        self.file.write_all(&chunk).await?;
        Ok(())
    }

    pub(super) async fn finish(mut self) -> Result<std::fs::File> {
        self.file.flush().await?;
        Ok(self.file.into_std().await)
    }
}

/// A folder of named files; gone when dropped.
pub(super) struct ReceivedFolder {
    folder: TempDir,
    current: Option<tokio::fs::File>,
    files: usize,
    left: u64,
    len_max: u64,
}

impl ReceivedFolder {
    pub(super) fn create(within: &Path, len_max: u64) -> Result<Self> {
        let folder = TempDir::with_prefix_in("upload-", within)?;
        Ok(Self {
            folder,
            current: None,
            files: 0,
            left: len_max,
            len_max,
        })
    }

    /// Starts a file.
    pub(super) async fn start(&mut self, name: &str) -> Result<()> {
        let relative = confined(name)?;
        if self.files == FILES_MAX {
            return Err(Invalid::field(
                "file_name",
                format!("is the {}th; at most {FILES_MAX}", FILES_MAX + 1),
            )
            .into());
        }
        self.finish_current().await?;
        let path = self.folder.path().join(relative);
        if let Some(parent) = path.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
        let created = tokio::fs::File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .await;
        let file = created.map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Invalid::field("file_name", format!("{name:?} is there twice")).into()
            }
            _ => crate::error::Error::from(error),
        })?;
        self.current = Some(file);
        self.files += 1;
        Ok(())
    }

    /// Appends to the file started last.
    pub(super) async fn append(&mut self, chunk: Vec<u8>) -> Result<()> {
        let file = self
            .current
            .as_mut()
            .ok_or_else(|| Invalid::field("chunk", "comes before any file_name"))?;
        self.left = spend(self.left, &chunk, self.len_max)?;
        file.write_all(&chunk).await?;
        Ok(())
    }

    /// Bytes received.
    pub(super) fn len(&self) -> u64 {
        self.len_max - self.left
    }

    pub(super) async fn finish(mut self) -> Result<TempDir> {
        if self.files == 0 {
            return Err(Invalid::field("file_name", "is required: no file was sent").into());
        }
        self.finish_current().await?;
        Ok(self.folder)
    }

    async fn finish_current(&mut self) -> Result<()> {
        if let Some(mut file) = self.current.take() {
            file.flush().await?;
        }
        Ok(())
    }
}

fn spend(left: u64, chunk: &[u8], len_max: u64) -> Result<u64, Invalid> {
    if chunk.len() > CHUNK_LEN_MAX {
        return Err(Invalid::field(
            "chunk",
            format!("has {} bytes; at most {CHUNK_LEN_MAX}", chunk.len()),
        ));
    }
    left.checked_sub(chunk.len() as u64).ok_or_else(|| {
        Invalid::field(
            "chunk",
            format!("exceeds the limit of {len_max} bytes in all"),
        )
    })
}

/// A path that stays below where it is joined.
fn confined(name: &str) -> Result<PathBuf, Invalid> {
    let path = Path::new(name);
    let plain = |component: Component<'_>| matches!(component, Component::Normal(_));
    let fits = !name.is_empty() && name.len() <= FILE_NAME_LEN_MAX && !name.contains(['\\', '\0']);
    if fits && path.components().all(plain) && path.file_name().is_some() && !name.ends_with('/') {
        return Ok(path.to_owned());
    }
    Err(Invalid::field(
        "file_name",
        format!("is {name:?}; must be a relative path without \"..\""),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_folder() {
        for name in ["params.npz", "sae/cfg.json", "a/b/c.npz"] {
            assert!(confined(name).is_ok(), "{name}");
        }
        for name in [
            "",
            "/etc/passwd",
            "../x",
            "a/../../x",
            "./x",
            "a/",
            "a\\b",
            "a\0b",
            "..",
        ] {
            assert!(confined(name).is_err(), "{name:?}");
        }
    }
}
