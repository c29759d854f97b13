//! Safetensors files, read tensor by tensor.

use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use candle_core::{DType, Device, Tensor, quantized::GgmlDType};
use serde::Deserialize;

use super::{Source, Stored, WeightsError, elements};
use crate::model::{
    kernels::Mapped,
    matrix::{Bytes, Packed},
};

/// Longest header accepted; real ones have a few hundred kilobytes.
const MAX_HEADER_BYTES: u64 = 64 << 20;

/// One or more safetensors files, opened.
#[derive(Debug)]
pub(in crate::model) struct SafetensorsFiles {
    files: Vec<(PathBuf, Mutex<File>)>,
    /// The files in memory, where matrices are used where they are.
    maps: Option<Vec<Arc<Mapped>>>,
    entries: HashMap<String, Entry>,
    /// Headers, for the model's digest.
    pub(in crate::model) headers: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: String,
    shape: Vec<usize>,
    offset: u64,
    len: usize,
}

#[derive(Deserialize)]
struct HeaderEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

impl SafetensorsFiles {
    /// `map`: whether matrices are used where they are in the files.
    pub(in crate::model) fn open(paths: &[PathBuf], map: bool) -> Result<Self, WeightsError> {
        let mut all = Self {
            files: Vec::new(),
            maps: map.then(Vec::new),
            entries: HashMap::new(),
            headers: Vec::new(),
        };
        for path in paths {
            all.add(path)?;
        }
        Ok(all)
    }

    fn add(&mut self, path: &Path) -> Result<(), WeightsError> {
        let fail = |problem: String| WeightsError::File {
            file: path.display().to_string(),
            problem,
        };
        let io = |e: std::io::Error| fail(e.to_string());
        let mut file = File::open(path).map_err(io)?;
        let file_len = file.metadata().map_err(io)?.len();
        let mut len = [0; 8];
        file.read_exact(&mut len).map_err(io)?;
        let header_len = u64::from_le_bytes(len);
        if header_len > MAX_HEADER_BYTES || header_len + 8 > file_len {
            let text = format!("header of {header_len} bytes in a file of {file_len}");
            return Err(fail(text));
        }
        let mut header = vec![0; header_len as usize];
        file.read_exact(&mut header).map_err(io)?;
        let entries: HashMap<String, serde_json::Value> =
            serde_json::from_slice(&header).map_err(|e| fail(format!("header: {e}")))?;
        let data = 8 + header_len;
        for (name, value) in entries {
            if name == "__metadata__" {
                continue;
            }
            let entry: HeaderEntry =
                serde_json::from_value(value).map_err(|e| fail(format!("{name}: {e}")))?;
            let (start, end) = entry.data_offsets;
            let inside = start <= end && end.checked_add(data).is_some_and(|e| e <= file_len);
            if !inside {
                return Err(fail(format!("{name}: data lies outside the file")));
            }
            let entry = Entry {
                file: self.files.len(),
                dtype: entry.dtype,
                shape: entry.shape,
                offset: data + start,
                len: (end - start) as usize,
            };
            if self.entries.insert(name.clone(), entry).is_some() {
                return Err(fail(format!("{name} is in more than one file")));
            }
        }
        if let Some(maps) = &mut self.maps {
            maps.push(Arc::new(Mapped::new(&file).map_err(io)?));
        }
        self.files.push((path.to_owned(), Mutex::new(file)));
        self.headers.push(header);
        Ok(())
    }
}

impl Source for SafetensorsFiles {
    fn load(&self, name: &str, device: &Device) -> Result<Option<Stored>, WeightsError> {
        let Some(entry) = self.entries.get(name) else {
            return Ok(None);
        };
        let dtype = match entry.dtype.as_str() {
            "F32" => DType::F32,
            "F16" => DType::F16,
            "BF16" => DType::BF16,
            "F64" => DType::F64,
            other => {
                return Err(WeightsError::DType {
                    name: name.to_owned(),
                    dtype: other.to_owned(),
                });
            }
        };
        let (path, file) = &self.files[entry.file];
        let fail = |problem: String| WeightsError::File {
            file: path.display().to_string(),
            problem: format!("{name}: {problem}"),
        };
        let elements = entry
            .shape
            .iter()
            .try_fold(1usize, |n, &dim| n.checked_mul(dim));
        let expected = elements.and_then(|n| n.checked_mul(dtype.size_in_bytes()));
        if expected != Some(entry.len) {
            let text = format!("{} bytes for shape {:?}", entry.len, entry.shape);
            return Err(fail(text));
        }
        if let (Some(maps), [_, _]) = (&self.maps, &entry.shape[..])
            && let Some(format) = as_in_gguf(dtype)
        {
            let bytes = Bytes::Mapped(maps[entry.file].clone(), entry.offset as usize);
            return Ok(Some(Stored::Packed(Packed::new(
                format,
                bytes,
                &entry.shape,
            )?)));
        }
        let mut bytes = vec![0; entry.len];
        let mut file = file
            .lock()
            .map_err(|_| fail("an earlier read failed".to_owned()))?;
        file.seek(SeekFrom::Start(entry.offset))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|e| fail(e.to_string()))?;
        let tensor = Tensor::from_raw_buffer(&bytes, dtype, &entry.shape, device)?;
        Ok(Some(Stored::Dense(tensor)))
    }

    fn elements(&self) -> usize {
        elements(self.entries.values().map(|entry| &entry.shape[..]))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.entries.keys().cloned().collect();
        names.sort_unstable();
        names
    }
}

/// The name that the kernels know a type of floats by.
fn as_in_gguf(dtype: DType) -> Option<GgmlDType> {
    Some(match dtype {
        DType::F32 => GgmlDType::F32,
        DType::F16 => GgmlDType::F16,
        DType::BF16 => GgmlDType::BF16,
        _ => return None,
    })
}
