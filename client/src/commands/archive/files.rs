//! Files of an export, with their digests.

use std::{
    fs::File,
    io::{BufReader, BufWriter, IntoInnerError, Read, Write},
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use steering_client::files::OnBytes;

const BUFFER_LEN: usize = 1 << 20;

/// A file as the manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntry {
    /// Path in the export's folder, with slashes.
    pub(super) path: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// A file being written.
pub(super) struct Writing {
    name: String,
    file: BufWriter<File>,
    hasher: Sha256,
    bytes: u64,
}

impl Writing {
    /// Begins a file that is not there yet.
    pub(super) fn create(folder: &Path, name: String) -> anyhow::Result<Self> {
        let path = folder.join(&name);
        let cannot = || format!("cannot write {}", path.display());
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(cannot)?;
        }
        let file = File::create_new(&path).with_context(cannot)?;
        Ok(Self {
            name,
            file: BufWriter::new(file),
            hasher: Sha256::new(),
            bytes: 0,
        })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        let written = self.file.write_all(bytes);
        written.with_context(|| format!("cannot write {}", self.name))
    }

    /// Writes a JSON object and a line break.
    pub(super) fn line(&mut self, row: &impl Serialize) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(row)?;
        line.push(b'\n');
        self.write(&line)
    }

    /// Completes the file; it is on the disk when this returns.
    pub(super) fn finish(self) -> anyhow::Result<FileEntry> {
        let cannot = || format!("cannot write {}", self.name);
        let file = self.file.into_inner().map_err(IntoInnerError::into_error);
        file.and_then(|file| file.sync_all()).with_context(cannot)?;
        Ok(FileEntry {
            bytes: self.bytes,
            sha256: hex(&self.hasher.finalize()),
            path: self.name,
        })
    }
}

impl FileEntry {
    /// Where it is, below the export's folder.
    pub(super) fn locate(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let path = Path::new(&self.path);
        let plain = |component| matches!(component, Component::Normal(_));
        ensure!(
            path.components().all(plain) && path.file_name().is_some(),
            "the manifest's path {:?} leads out of the export",
            self.path
        );
        Ok(folder.join(path))
    }

    /// Reads the file once, and refuses it if it is another than was written.
    pub(super) fn verify(&self, folder: &Path, on_bytes: &OnBytes) -> anyhow::Result<()> {
        let path = self.locate(folder)?;
        let cannot = || format!("cannot read {}", path.display());
        let mut file = BufReader::new(File::open(&path).with_context(cannot)?);
        let (mut hasher, mut bytes) = (Sha256::new(), 0);
        let mut buffer = vec![0; BUFFER_LEN];
        loop {
            let read = file.read(&mut buffer).with_context(cannot)?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            bytes += read as u64;
            on_bytes(read as u64);
        }
        let digest = hex(&hasher.finalize());
        ensure!(
            (bytes, &digest) == (self.bytes, &self.sha256),
            "{} was changed: {bytes} bytes of SHA-256 {digest}; the manifest says {} of {}",
            path.display(),
            self.bytes,
            self.sha256
        );
        Ok(())
    }
}

/// A name that any file system takes; different names stay apart by their numbers.
pub(super) fn file_name(number: usize, name: &str) -> String {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) {
            c
        } else {
            '_'
        }
    };
    let name: String = name.chars().take(80).map(plain).collect();
    format!("{number:04}-{name}")
}

/// Bytes in hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes from hex.
pub(super) fn unhex(text: &str) -> anyhow::Result<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let bytes = pairs.iter().map(|&[high, low]| {
        let byte = digit(high)? << 4 | digit(low)?;
        u8::try_from(byte).ok()
    });
    let bytes: Option<Vec<u8>> = bytes.collect();
    bytes
        .filter(|_| rest.is_empty())
        .context("the manifest has hex that is none")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_file_that_was_changed_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let mut file = Writing::create(folder.path(), "a/b.txt".to_owned()).expect("created");
        file.write(b"abc").expect("written");
        let entry = file.finish().expect("finished");
        let silent: OnBytes = Arc::new(|_| {});
        entry.verify(folder.path(), &silent).expect("as written");
        std::fs::write(folder.path().join("a/b.txt"), b"abd").expect("changed");
        let error = entry.verify(folder.path(), &silent).expect_err("changed");
        assert!(error.to_string().contains("was changed"), "{error}");
        assert!(Writing::create(folder.path(), "a/b.txt".to_owned()).is_err());
    }

    #[test]
    fn paths_stay_in_the_export() {
        for path in ["../a", "/etc/passwd", "a/../../b", "", "./a"] {
            let entry = FileEntry {
                path: path.to_owned(),
                bytes: 0,
                sha256: String::new(),
            };
            let located = entry.locate(Path::new("/export"));
            assert!(located.is_err(), "{path}: {located:?}");
        }
    }

    #[test]
    fn hex_comes_back() {
        assert_eq!(unhex(&hex(&[0, 15, 255])).expect("hex"), [0, 15, 255]);
        assert!(unhex("abc").is_err() && unhex("zz").is_err() && unhex("é").is_err());
        assert_eq!(file_name(7, "a/b c"), "0007-a_b_c");
    }
}
