//! Readers of the field's file formats.
//!
//! None of them trusts a number it reads: every length is checked against the
//! file before anything is allocated or read, every nesting is bounded, and
//! nothing is ever executed. Tensors stay on disk ([`tensor::Tensor`] is a
//! place in a file); callers read the parts they need.

pub mod features;
pub mod gguf;
pub mod npy;
pub mod pickle;
pub mod safetensors;
pub mod tensor;
pub mod torch;
pub mod zip;

use std::{fs::File, io, os::unix::fs::FileExt};

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The file breaks its own format, or is not what it was taken for.
    #[error("{0}")]
    Malformed(String),
    /// The file is sound, but holds something that cannot be served exactly.
    #[error("{0}")]
    Unservable(String),
    /// The file could not be read, or a temporary one not be written.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Nobody waits for the result any more.
    #[error("cancelled")]
    Cancelled,
}

impl FormatError {
    /// The same error, with the name of what it is about in front.
    #[must_use]
    pub fn within(self, context: &str) -> Self {
        match self {
            Self::Malformed(message) => Self::Malformed(format!("{context}: {message}")),
            Self::Unservable(message) => Self::Unservable(format!("{context}: {message}")),
            Self::Io(_) | Self::Cancelled => self,
        }
    }
}

/// A [`FormatError::Malformed`].
pub fn malformed(message: impl Into<String>) -> FormatError {
    FormatError::Malformed(message.into())
}

/// A [`FormatError::Unservable`].
pub fn unservable(message: impl Into<String>) -> FormatError {
    FormatError::Unservable(message.into())
}

/// A file open for reading at any offset.
#[derive(Debug)]
pub struct SourceFile {
    file: File,
    len: u64,
    name: String,
}

impl SourceFile {
    /// Wraps an open file; `name` is what errors call it.
    pub fn new(file: File, name: impl Into<String>) -> io::Result<Self> {
        let len = file.metadata()?.len();
        Ok(Self {
            file,
            len,
            name: name.into(),
        })
    }

    /// Length in bytes when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the file has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What errors call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Fills `buffer` from `offset`; a file that ends before is malformed.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<(), FormatError> {
        self.file.read_exact_at(buffer, offset).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                malformed(format!(
                    "the file is truncated: it has {} bytes and {} more are needed at offset {offset}",
                    self.len,
                    buffer.len()
                ))
            } else {
                FormatError::Io(error)
            }
        })
    }

    /// Reads `len` bytes from `offset`. The range is checked before memory is
    /// taken, so a declared length costs nothing unless the file has it.
    pub fn read_vec(&self, offset: u64, len: u64) -> Result<Vec<u8>, FormatError> {
        self.check_range(offset, len)?;
        let len =
            usize::try_from(len).map_err(|_| malformed(format!("{len} bytes is too long")))?;
        let mut buffer = vec![0; len];
        self.read_at(&mut buffer, offset)?;
        Ok(buffer)
    }

    /// Requires that `len` bytes at `offset` lie within the file.
    pub fn check_range(&self, offset: u64, len: u64) -> Result<(), FormatError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(malformed(format!(
                "the file is truncated or its header is wrong: {len} bytes are declared at offset \
                 {offset}, the file has {} bytes",
                self.len
            ))),
        }
    }
}

/// A sequential reader over part of a [`SourceFile`].
#[derive(Debug)]
pub struct SourceRange<'a> {
    source: &'a SourceFile,
    offset: u64,
    end: u64,
}

impl<'a> SourceRange<'a> {
    /// Reads `len` bytes from `offset` on; the range must lie within the file.
    pub fn new(source: &'a SourceFile, offset: u64, len: u64) -> Result<Self, FormatError> {
        source.check_range(offset, len)?;
        Ok(Self {
            source,
            offset,
            end: offset + len,
        })
    }
}

impl io::Read for SourceRange<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX);
        let len = buffer.len().min(left);
        let read = self.source.file.read_at(&mut buffer[..len], self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use std::{io::Write, sync::Arc};

    use super::SourceFile;

    /// A temporary file with these bytes.
    pub(crate) fn source(bytes: &[u8]) -> Arc<SourceFile> {
        let mut file = tempfile::tempfile().expect("temporary file");
        file.write_all(bytes).expect("write");
        Arc::new(SourceFile::new(file, "test").expect("open"))
    }
}
