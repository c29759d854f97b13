//! An open object: no byte leaves it unchecked.

use std::{
    fs::File,
    io::{self, Read},
    ops::Range,
    os::unix::fs::FileExt,
};

use sha2::{Digest, Sha256};
use steering_proto::payload::hex;

use super::sums::{BLOCK_LEN, Sums, SumsBuilder};

/// Bytes read at once where an object is read from end to end.
const STEP: usize = 1 << 20;

/// An object on this machine, and the checksums of its blocks.
#[derive(Debug)]
pub struct Object {
    digest: String,
    file: File,
    sums: Sums,
}

/// Stored bytes that are not what was written.
#[derive(Debug, thiserror::Error)]
#[error("object {digest} is damaged at byte {at}")]
pub struct Damaged {
    digest: String,
    /// Where the first damaged block begins.
    pub at: u64,
}

impl Object {
    /// An object's file with its checksums.
    pub fn new(digest: String, file: File, sums: Sums) -> Self {
        Self { digest, file, sums }
    }

    /// SHA-256 (hex) of its bytes.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Its file.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Its checksums.
    pub(super) fn sums(&self) -> &Sums {
        &self.sums
    }

    /// Its length in bytes.
    pub fn len(&self) -> u64 {
        self.sums.object_len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of the whole blocks that `range` touches.
    pub fn blocks(&self, range: &Range<u64>) -> Range<u64> {
        let end = range.end.next_multiple_of(BLOCK_LEN).min(self.len());
        range.start / BLOCK_LEN * BLOCK_LEN..end
    }

    /// Fills `buffer` from `start`, where a block begins, to where one ends.
    pub fn read_blocks(&self, start: u64, buffer: &mut [u8]) -> io::Result<()> {
        let first = start / BLOCK_LEN;
        let wrong = match self.file.read_exact_at(buffer, start) {
            // Cut off behind what its checksums are for.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Some(first),
            Err(error) => return Err(error),
            Ok(()) => self.sums.first_wrong(first, buffer),
        };
        match wrong {
            None => Ok(()),
            Some(block) => Err(io::Error::other(Damaged {
                digest: self.digest.clone(),
                at: block * BLOCK_LEN,
            })),
        }
    }

    /// The bytes of `range`, by way of a buffer for the blocks around it.
    pub fn read<'a>(&self, range: &Range<u64>, buffer: &'a mut Vec<u8>) -> io::Result<&'a [u8]> {
        let blocks = self.blocks(range);
        let narrow = |len: u64| usize::try_from(len).map_err(io::Error::other);
        buffer.resize(narrow(blocks.end.saturating_sub(blocks.start))?, 0);
        self.read_blocks(blocks.start, buffer)?;
        let start = narrow(range.start - blocks.start)?;
        let len = narrow(range.end - range.start)?;
        buffer
            .get(start..start + len)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// SHA-256 (hex) and block checksums of everything that a reader gives.
pub fn examine(mut reader: impl Read) -> io::Result<(String, Sums)> {
    let (mut hasher, mut sums) = (Sha256::new(), SumsBuilder::default());
    let mut buffer = vec![0; STEP];
    loop {
        let len = match reader.read(&mut buffer) {
            Ok(0) => return Ok((hex(&hasher.finalize()), sums.finish())),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..len]);
        sums.update(&buffer[..len]);
    }
}

/// Whether an error says that stored bytes are damaged.
pub fn is_damage(error: &io::Error) -> bool {
    let inner = error.get_ref();
    inner.is_some_and(|inner| inner.downcast_ref::<Damaged>().is_some())
}
