//! A look at a GGUF file's header before anything is allocated for it.
//!
//! candle checks the header's lengths one by one against the file. What it
//! does not bound is what they grow to in memory (an array of bytes takes
//! thirty times its size), nor does it check alignment and tensor sizes until
//! they are used. This does, reading the header once and keeping nothing.

use std::{
    fs::File,
    io::{BufReader, Read, Seek, SeekFrom},
    path::Path,
};

/// Entries of metadata, and tensors. Real files have tens and hundreds.
const MAX_ENTRIES: u64 = 1 << 16;
/// Elements in all arrays together. Gemma 3 has under a million.
const MAX_ELEMENTS: u64 = 1 << 22;
/// Bytes of all strings together.
const MAX_STRING_BYTES: u64 = 1 << 28;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;

/// Why a GGUF file is not loaded.
#[derive(Debug, thiserror::Error)]
#[error("not a usable GGUF file: {0}")]
pub struct GgufCheckError(String);

impl From<std::io::Error> for GgufCheckError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::UnexpectedEof => Self("the header is cut short".to_owned()),
            _ => Self(error.to_string()),
        }
    }
}

fn refuse<T>(problem: impl Into<String>) -> Result<T, GgufCheckError> {
    Err(GgufCheckError(problem.into()))
}

/// Checks that a file's header is sound and its tensors lie within it.
pub fn check_gguf(path: &Path) -> Result<(), GgufCheckError> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    Header {
        reader: BufReader::new(file),
        size,
        position: 0,
        is_v1: false,
        elements: 0,
        string_bytes: 0,
        alignment: DEFAULT_ALIGNMENT,
    }
    .check()
}

struct Header<R> {
    reader: R,
    size: u64,
    position: u64,
    is_v1: bool,
    elements: u64,
    string_bytes: u64,
    alignment: u64,
}

impl<R: Read + Seek> Header<R> {
    fn check(mut self) -> Result<(), GgufCheckError> {
        if &self.bytes::<4>()? != b"GGUF" {
            return refuse("it does not begin with GGUF");
        }
        match self.u32()? {
            1 => self.is_v1 = true,
            2 | 3 => {}
            other => return refuse(format!("version {other} is not known")),
        }
        let tensors = self.count("tensors", MAX_ENTRIES)?;
        let entries = self.count("metadata entries", MAX_ENTRIES)?;
        for _ in 0..entries {
            let key = self.key()?;
            let kind = self.u32()?;
            self.value(&key, kind, 0)?;
        }
        let mut infos = Vec::new();
        for _ in 0..tensors {
            infos.push(self.tensor()?);
        }
        let start = self.position.next_multiple_of(self.alignment);
        for (name, bytes, offset) in infos {
            let end = start
                .checked_add(offset)
                .and_then(|at| at.checked_add(bytes));
            if end.is_none_or(|end| end > self.size) {
                return refuse(format!(
                    "tensor {name:?} needs {bytes} bytes at offset {offset}, beyond the end of the file"
                ));
            }
        }
        Ok(())
    }

    fn value(&mut self, key: &str, kind: u32, depth: u32) -> Result<(), GgufCheckError> {
        match kind {
            8 => self.string().map(drop),
            9 => {
                if depth > 0 {
                    return refuse(format!("metadata {key:?} is an array of arrays"));
                }
                let kind = self.u32()?;
                let count = self.length()?;
                self.elements = self.elements.saturating_add(count);
                if self.elements > MAX_ELEMENTS {
                    return refuse(format!("metadata {key:?} has {count} elements, too many"));
                }
                if kind == 8 {
                    return (0..count).try_for_each(|_| self.string().map(drop));
                }
                if kind == 7 {
                    return (0..count).try_for_each(|_| self.boolean(key));
                }
                match scalar_size(kind) {
                    Some(size) => self.skip(size * count),
                    None => self.value(key, kind, depth + 1),
                }
            }
            7 => self.boolean(key),
            4 if key == "general.alignment" => {
                self.alignment = u64::from(self.u32()?);
                if self.alignment.is_power_of_two() && self.alignment <= MAX_ALIGNMENT {
                    Ok(())
                } else {
                    refuse(format!("general.alignment is {}", self.alignment))
                }
            }
            _ if key == "general.alignment" => refuse("general.alignment is not a u32"),
            _ => match scalar_size(kind) {
                Some(size) => self.skip(size),
                None => refuse(format!("metadata {key:?} has the unknown type {kind}")),
            },
        }
    }

    /// A tensor's name, bytes and offset.
    fn tensor(&mut self) -> Result<(String, u64, u64), GgufCheckError> {
        let name = self.key()?;
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            return refuse(format!("tensor {name:?} has {dimensions} dimensions"));
        }
        let mut elements = Some(1u64);
        for _ in 0..dimensions {
            let dimension = self.length()?;
            elements = elements.and_then(|n| n.checked_mul(dimension));
        }
        let kind = self.u32()?;
        let offset = self.u64()?;
        let Some((block, block_bytes)) = block_size(kind) else {
            return refuse(format!("tensor {name:?} has the unsupported type {kind}"));
        };
        let Some(elements) = elements.filter(|n| n % block == 0) else {
            return refuse(format!("tensor {name:?} has an impossible shape"));
        };
        match (elements / block).checked_mul(block_bytes) {
            Some(bytes) => Ok((name, bytes, offset)),
            None => refuse(format!("tensor {name:?} has an impossible shape")),
        }
    }

    fn key(&mut self) -> Result<String, GgufCheckError> {
        let length = self.string_length()?;
        if length > 65_535 {
            return refuse(format!("a name is {length} bytes long"));
        }
        let mut text = vec![0; length as usize];
        self.reader.read_exact(&mut text)?;
        self.position += length;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn string(&mut self) -> Result<u64, GgufCheckError> {
        let length = self.string_length()?;
        self.skip(length)?;
        Ok(length)
    }

    fn string_length(&mut self) -> Result<u64, GgufCheckError> {
        let length = self.length()?;
        self.string_bytes = self.string_bytes.saturating_add(length);
        if length > self.remaining() || self.string_bytes > MAX_STRING_BYTES {
            return refuse(format!("a string of {length} bytes does not fit"));
        }
        Ok(length)
    }

    fn boolean(&mut self, key: &str) -> Result<(), GgufCheckError> {
        match self.bytes::<1>()? {
            [0 | 1] => Ok(()),
            [other] => refuse(format!("metadata {key:?} has {other} for a boolean")),
        }
    }

    fn count(&mut self, what: &str, max: u64) -> Result<u64, GgufCheckError> {
        match self.length()? {
            count if count <= max => Ok(count),
            count => refuse(format!("{count} {what}; at most {max}")),
        }
    }

    fn length(&mut self) -> Result<u64, GgufCheckError> {
        if self.is_v1 {
            self.u32().map(u64::from)
        } else {
            self.u64()
        }
    }

    fn skip(&mut self, bytes: u64) -> Result<(), GgufCheckError> {
        if bytes > self.remaining() {
            return refuse("the header is cut short");
        }
        // Small steps stay inside the buffer; seeking would empty it.
        if bytes <= 4096 {
            std::io::copy(&mut self.reader.by_ref().take(bytes), &mut std::io::sink())?;
        } else {
            self.reader.seek(SeekFrom::Start(self.position + bytes))?;
        }
        self.position += bytes;
        Ok(())
    }

    fn remaining(&self) -> u64 {
        self.size.saturating_sub(self.position)
    }

    fn u32(&mut self) -> Result<u32, GgufCheckError> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, GgufCheckError> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufCheckError> {
        let mut bytes = [0; N];
        self.reader.read_exact(&mut bytes)?;
        self.position += N as u64;
        Ok(bytes)
    }
}

/// Bytes of a metadata value of fixed size.
fn scalar_size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Elements and bytes of a block of a tensor type, for those candle reads.
fn block_size(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 => (1, 4),
        1 | 30 => (1, 2),
        2 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        9 => (32, 36),
        10 => (256, 84),
        11 => (256, 110),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        15 => (256, 292),
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
