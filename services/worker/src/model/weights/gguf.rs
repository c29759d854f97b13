//! GGUF files.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::Path,
    sync::{Arc, Mutex},
};

use candle_core::{
    Device,
    quantized::{
        GgmlDType,
        gguf_file::{Content, TensorInfo},
    },
};

use super::{Source, Stored, WeightsError, elements};
use crate::model::{
    kernels::Mapped,
    matrix::{Bytes, Packed},
};

/// An opened GGUF file.
pub(in crate::model) struct GgufFile {
    pub(in crate::model) content: Content,
    path: String,
    file: Mutex<File>,
    map: Option<Arc<Mapped>>,
}

impl GgufFile {
    /// `map`: whether matrices are used where they are in the file.
    pub(in crate::model) fn open(
        path: &Path,
        content: Content,
        map: bool,
    ) -> Result<Self, WeightsError> {
        let path = path.display().to_string();
        let open = || {
            let file = File::open(&path)?;
            let map = map.then(|| Mapped::new(&file)).transpose()?;
            Ok((Mutex::new(file), map.map(Arc::new)))
        };
        let (file, map) = open().map_err(|e| problem(&path, &e))?;
        Ok(Self {
            content,
            path,
            file,
            map,
        })
    }

    /// A matrix for the CPU.
    fn packed(&self, file: &mut File, info: &TensorInfo) -> Result<Packed, WeightsError> {
        let from = self.content.tensor_data_offset.saturating_add(info.offset);
        let dims = info.shape.dims();
        let bytes = match &self.map {
            Some(map) => Bytes::Mapped(map.clone(), from as usize),
            None => {
                let len = Packed::size(info.ggml_dtype, dims);
                Bytes::Read(read(file, from, len).map_err(|e| problem(&self.path, &e))?)
            }
        };
        Ok(Packed::new(info.ggml_dtype, bytes, dims)?)
    }
}

/// Up to `len` bytes. Memory is asked for no further than the file goes.
fn read(file: &mut File, from: u64, len: usize) -> std::io::Result<Vec<u8>> {
    let there = file.metadata()?.len().saturating_sub(from);
    let mut bytes = Vec::with_capacity(len.min(there as usize));
    file.seek(SeekFrom::Start(from))?;
    file.take(len as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn problem(file: &str, problem: &std::io::Error) -> WeightsError {
    WeightsError::File {
        file: file.to_owned(),
        problem: problem.to_string(),
    }
}

impl Source for GgufFile {
    fn load(&self, name: &str, device: &Device) -> Result<Option<Stored>, WeightsError> {
        let Some(info) = self.content.tensor_infos.get(name) else {
            return Ok(None);
        };
        let mut file = self.file.lock().map_err(|_| WeightsError::File {
            file: self.path.clone(),
            problem: "an earlier read failed".to_owned(),
        })?;
        if device.is_cpu() && Packed::supports(info.ggml_dtype) {
            return Ok(Some(Stored::Packed(self.packed(&mut file, info)?)));
        }
        let tensor = self.content.tensor(&mut *file, name, device)?;
        let floats = [GgmlDType::F32, GgmlDType::F16, GgmlDType::BF16];
        if floats.contains(&info.ggml_dtype) {
            return Ok(Some(Stored::Dense(tensor.dequantize(device)?)));
        }
        Ok(Some(Stored::Quantized(tensor)))
    }

    fn elements(&self) -> usize {
        let infos = self.content.tensor_infos.values();
        elements(infos.map(|info| info.shape.dims()))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.content.tensor_infos.keys().cloned().collect();
        names.sort_unstable();
        names
    }
}
