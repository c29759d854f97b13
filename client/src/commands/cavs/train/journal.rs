//! Activations as they come, in a file of JSON lines, so that nothing is read twice.
//!
//! The first line says what the activations are of; every other line has the digest of a
//! text and its activation, or why it has none. A line that was cut off is written again.

use std::{
    collections::HashMap,
    fs::{File, TryLockError},
    io::{BufRead, BufReader, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::{commands::dataset::in_line, failure::hinted};

/// What all activations of a file have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    pub(super) hook_name: String,
    pub(super) model_digest: String,
    pub(super) max_tokens: u32,
    pub(super) skip_tokens: u32,
}

/// What became of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Capture {
    Values(Vec<f32>),
    TooShort,
    NotFinite,
}

#[derive(Serialize, Deserialize)]
struct Line {
    text_sha256: String,
    capture: Capture,
}

/// The file, and what is in it.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    captures: HashMap<[u8; 32], Capture>,
}

impl Journal {
    /// Opens a file, or begins one. One of other activations is refused, and one that another
    /// command has open: two that write would each tear the other's lines.
    pub(super) fn open(path: &Path, header: &Header) -> anyhow::Result<Self> {
        let cannot = || format!("cannot keep activations in {}", path.display());
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path).with_context(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(in_use(path)),
            Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
        }
        let mut journal = Self {
            path: path.to_owned(),
            file,
            captures: HashMap::new(),
        };
        let whole = journal.load(header)?;
        journal.file.set_len(whole).with_context(cannot)?;
        journal.file.seek(SeekFrom::End(0)).with_context(cannot)?;
        if whole == 0 {
            journal.write(header)?;
        }
        Ok(journal)
    }

    /// Reads whole lines; returns how many bytes they have.
    fn load(&mut self, header: &Header) -> anyhow::Result<u64> {
        let mut lines = BufReader::new(self.file.try_clone()?);
        let mut whole = 0;
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = lines.read_until(b'\n', &mut line);
            let read = read.with_context(|| format!("cannot read {}", self.path.display()))?;
            if !line.ends_with(b"\n") {
                break;
            }
            if number == 1 {
                self.check(serde_json::from_slice(&line).ok().as_ref(), header)?;
            } else {
                let Some((digest, capture)) = parse(&line) else {
                    let hint = "it is no work file of this command, or damaged: delete it";
                    return Err(in_line(&self.path, number, "is not an activation", hint));
                };
                self.captures.insert(digest, capture);
            }
            whole += read as u64;
        }
        Ok(whole)
    }

    fn check(&self, found: Option<&Header>, wanted: &Header) -> anyhow::Result<()> {
        if found == Some(wanted) {
            return Ok(());
        }
        Err(hinted(
            format!(
                "{} has activations of another model, hook point or choice of tokens",
                self.path.display()
            ),
            "delete it, or name another with --work FILE",
        ))
    }

    /// Whether a text was read.
    pub(super) fn has(&self, digest: &[u8; 32]) -> bool {
        self.captures.contains_key(digest)
    }

    /// A text's activation, if it was read and has one.
    pub(super) fn activation(&self, digest: &[u8; 32]) -> Option<&[f32]> {
        match self.captures.get(digest)? {
            Capture::Values(values) => Some(values),
            Capture::TooShort | Capture::NotFinite => None,
        }
    }

    /// Keeps what became of a text.
    pub(super) fn add(&mut self, digest: [u8; 32], capture: Capture) -> anyhow::Result<()> {
        self.write(&Line {
            text_sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
            capture: capture.clone(),
        })?;
        self.captures.insert(digest, capture);
        Ok(())
    }

    fn write(&mut self, line: &impl Serialize) -> anyhow::Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        let written = self.file.write_all(&bytes);
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

fn in_use(path: &Path) -> anyhow::Error {
    hinted(
        format!("{} is in use by another command", path.display()),
        "wait for it, or name another file with --work FILE",
    )
}

fn parse(line: &[u8]) -> Option<([u8; 32], Capture)> {
    let Line {
        text_sha256,
        capture,
    } = serde_json::from_slice(line).ok()?;
    let (pairs, rest) = text_sha256.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Vec<u8> = pairs.iter().map(byte).collect::<Option<_>>()?;
    let digest = bytes.try_into().ok()?;
    rest.is_empty().then_some((digest, capture))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(skip_tokens: u32) -> Header {
        Header {
            hook_name: "blocks.1.hook_resid_post".to_owned(),
            model_digest: "d".to_owned(),
            max_tokens: 128,
            skip_tokens,
        }
    }

    #[test]
    fn a_journal_goes_on_where_it_was_cut_off() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("work");
        let values = vec![0.1_f32, -3.5e-8, f32::MAX];
        let mut journal = Journal::open(&path, &header(64)).expect("new");
        journal
            .add([1; 32], Capture::Values(values.clone()))
            .expect("add");
        journal.add([2; 32], Capture::TooShort).expect("add");
        drop(journal);
        let mut torn = std::fs::read(&path).expect("file");
        let whole = torn.len();
        torn.extend_from_slice(b"{\"text_sha256\": \"03");
        std::fs::write(&path, &torn).expect("file");

        let mut journal = Journal::open(&path, &header(64)).expect("again");
        assert_eq!(journal.activation(&[1; 32]), Some(values.as_slice()));
        assert!(journal.has(&[2; 32]) && journal.activation(&[2; 32]).is_none());
        assert_eq!(std::fs::metadata(&path).expect("file").len(), whole as u64);
        journal.add([3; 32], Capture::NotFinite).expect("add");
        drop(journal);
        assert!(
            Journal::open(&path, &header(64))
                .expect("third")
                .has(&[3; 32])
        );
    }

    #[test]
    fn one_command_at_a_time_has_the_file() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("work");
        let mut first = Journal::open(&path, &header(64)).expect("new");
        let error = Journal::open(&path, &header(64)).expect_err("in use");
        assert!(error.to_string().contains("work is in use"), "{error}");
        first.add([1; 32], Capture::TooShort).expect("add");
        drop(first);
        let again = Journal::open(&path, &header(64)).expect("free");
        assert!(again.has(&[1; 32]));
    }

    #[test]
    fn other_activations_and_other_files_are_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("work");
        drop(Journal::open(&path, &header(64)).expect("new"));
        let error = Journal::open(&path, &header(0)).expect_err("other tokens");
        assert!(error.to_string().contains("another model"), "{error}");
        std::fs::write(&path, "some notes\n").expect("file");
        assert!(Journal::open(&path, &header(64)).is_err());
    }
}
