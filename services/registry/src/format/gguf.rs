//! GGUF files, as far as control vectors need them: metadata strings and
//! float tensors. <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

use std::{collections::BTreeMap, io::Read, sync::Arc};

use super::{
    FormatError, SourceFile, SourceRange, malformed,
    tensor::{Dtype, Order, Tensor},
};

const STRING_LEN_MAX: u64 = 1 << 20;
const HEADER_LEN_MAX: u64 = 256 << 20;
const ITEMS_MAX: u64 = 1 << 20;
const AXES_MAX: u32 = 4;

/// Metadata and tensors of a file.
#[derive(Debug)]
pub struct GgufFile {
    /// Metadata entries that are strings.
    pub strings: BTreeMap<String, String>,
    /// Tensors by name, in the file's (ggml's) order of axes.
    pub tensors: BTreeMap<String, Tensor>,
}

/// Reads the header; every tensor is checked to lie within the file. Tensors
/// of quantised types are refused.
pub fn read_gguf(source: &Arc<SourceFile>) -> Result<GgufFile, FormatError> {
    let mut reader = Reader::new(source)?;
    if &reader.array::<4>()? != b"GGUF" {
        return Err(malformed("is not a GGUF file"));
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(malformed(format!(
            "is GGUF version {version}; 2 and 3 are read"
        )));
    }
    let tensor_count = reader.count("tensors")?;
    let metadata_count = reader.count("metadata entries")?;
    let mut strings = BTreeMap::new();
    let mut alignment = 32;
    for _ in 0..metadata_count {
        let key = reader.string()?;
        match reader.value()? {
            Value::String(text) => {
                strings.insert(key, text);
            }
            Value::U32(value) if key == "general.alignment" => alignment = u64::from(value),
            Value::U32(_) | Value::Other => {}
        }
    }
    if !alignment.is_power_of_two() || alignment > 1 << 20 {
        return Err(malformed(format!("has general.alignment {alignment}")));
    }
    let mut infos = Vec::new();
    for _ in 0..tensor_count {
        infos.push(reader.tensor_info()?);
    }
    let data_start = reader.consumed.next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for TensorInfo {
        name,
        shape,
        dtype,
        offset,
    } in infos
    {
        let offset = data_start
            .checked_add(offset)
            .ok_or_else(|| malformed(format!("{name}: offset overflows")))?;
        let tensor = Tensor::new(
            Arc::clone(source),
            &name,
            offset,
            dtype,
            &shape,
            Order::RowMajor,
        )?;
        tensors.insert(name, tensor);
    }
    Ok(GgufFile { strings, tensors })
}

enum Value {
    String(String),
    U32(u32),
    Other,
}

struct TensorInfo {
    name: String,
    shape: Vec<u64>,
    dtype: Dtype,
    offset: u64,
}

struct Reader<'a> {
    inner: std::io::BufReader<SourceRange<'a>>,
    consumed: u64,
}

impl<'a> Reader<'a> {
    fn new(source: &'a SourceFile) -> Result<Self, FormatError> {
        let range = SourceRange::new(source, 0, source.len().min(HEADER_LEN_MAX))?;
        Ok(Self {
            inner: std::io::BufReader::new(range),
            consumed: 0,
        })
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), FormatError> {
        self.inner
            .read_exact(buffer)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => malformed("the GGUF header ends early"),
                _ => FormatError::Io(error),
            })?;
        self.consumed += buffer.len() as u64;
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, FormatError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, FormatError> {
        self.array().map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &str) -> Result<u64, FormatError> {
        let count = self.u64()?;
        if count > ITEMS_MAX {
            return Err(malformed(format!("declares {count} {what}")));
        }
        Ok(count)
    }

    fn string(&mut self) -> Result<String, FormatError> {
        let len = self.u64()?;
        if len > STRING_LEN_MAX {
            return Err(malformed(format!("declares a string of {len} bytes")));
        }
        // At most STRING_LEN_MAX, so the conversion is exact.
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| malformed("holds a string that is not UTF-8"))
    }

    fn skip(&mut self, len: u64) -> Result<(), FormatError> {
        let skipped = std::io::copy(&mut self.inner.by_ref().take(len), &mut std::io::sink())?;
        if skipped < len {
            return Err(malformed("the GGUF header ends early"));
        }
        self.consumed += len;
        Ok(())
    }

    fn value(&mut self) -> Result<Value, FormatError> {
        let kind = self.u32()?;
        Ok(match kind {
            4 => Value::U32(self.u32()?),
            8 => Value::String(self.string()?),
            9 => {
                let element = self.u32()?;
                let count = self.u64()?;
                if element == 8 {
                    if count > HEADER_LEN_MAX {
                        return Err(malformed(format!("declares an array of {count} strings")));
                    }
                    for _ in 0..count {
                        self.string()?;
                    }
                } else {
                    let len = scalar_len(element)?.checked_mul(count).ok_or_else(|| {
                        malformed(format!("declares an array of {count} numbers"))
                    })?;
                    self.skip(len)?;
                }
                Value::Other
            }
            kind => {
                self.skip(scalar_len(kind)?)?;
                Value::Other
            }
        })
    }

    fn tensor_info(&mut self) -> Result<TensorInfo, FormatError> {
        let name = self.string()?;
        let axes = self.u32()?;
        if axes > AXES_MAX {
            return Err(malformed(format!("{name} has {axes} axes")));
        }
        let mut shape = (0..axes)
            .map(|_| self.u64())
            .collect::<Result<Vec<_>, _>>()?;
        // ggml lists the contiguous axis first.
        shape.reverse();
        let dtype = match self.u32()? {
            0 => Dtype::F32,
            1 => Dtype::F16,
            28 => Dtype::F64,
            30 => Dtype::Bf16,
            other => {
                return Err(malformed(format!(
                    "{name} has ggml type {other}; F32, F16, BF16 and F64 are read"
                )));
            }
        };
        let offset = self.u64()?;
        Ok(TensorInfo {
            name,
            shape,
            dtype,
            offset,
        })
    }
}

fn scalar_len(kind: u32) -> Result<u64, FormatError> {
    Ok(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => {
            return Err(malformed(format!(
                "holds a metadata value of unknown type {kind}"
            )));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing::source;

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    fn header(tensors: u64, entries: u64) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(entries.to_le_bytes());
        bytes
    }

    #[test]
    fn reads_strings_skips_arrays_finds_tensors() {
        let mut bytes = header(1, 3);
        bytes.extend(
            [
                string("general.architecture"),
                8_u32.to_le_bytes().to_vec(),
                string("controlvector"),
            ]
            .concat(),
        );
        bytes.extend(
            [
                string("list"),
                9_u32.to_le_bytes().to_vec(),
                5_u32.to_le_bytes().to_vec(),
            ]
            .concat(),
        );
        bytes.extend([&2_u64.to_le_bytes()[..], &[0; 8]].concat());
        bytes.extend([string("flag"), 7_u32.to_le_bytes().to_vec(), vec![1]].concat());
        bytes.extend(
            [
                string("direction.4"),
                1_u32.to_le_bytes().to_vec(),
                2_u64.to_le_bytes().to_vec(),
            ]
            .concat(),
        );
        bytes.extend([&0_u32.to_le_bytes()[..], &0_u64.to_le_bytes()].concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend([1.0_f32.to_le_bytes(), 2.0_f32.to_le_bytes()].concat());
        let file = read_gguf(&source(&bytes)).expect("gguf");
        assert_eq!(file.strings["general.architecture"], "controlvector");
        assert_eq!(
            file.tensors["direction.4"].vector(2).expect("values"),
            [1.0, 2.0]
        );
        for len in 0..bytes.len() {
            assert!(read_gguf(&source(&bytes[..len])).is_err(), "{len}");
        }
    }

    #[test]
    fn huge_counts_are_refused() {
        for (tensors, entries) in [(1 << 60, 0), (0, 1 << 60), (u64::MAX, u64::MAX)] {
            assert!(read_gguf(&source(&header(tensors, entries))).is_err());
        }
        let mut bytes = header(0, 1);
        bytes.extend(u64::MAX.to_le_bytes());
        assert!(read_gguf(&source(&bytes)).is_err());
    }
}
