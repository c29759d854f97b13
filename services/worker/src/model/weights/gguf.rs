//! GGUF files.

use std::{fs::File, io::BufReader, path::Path, sync::Mutex};

use candle_core::{
    Device,
    quantized::{GgmlDType, gguf_file::Content},
};

use super::{Source, Stored, WeightsError};

/// An opened GGUF file.
pub(in crate::model) struct GgufFile {
    pub(in crate::model) content: Content,
    file: Mutex<BufReader<File>>,
}

impl GgufFile {
    pub(in crate::model) fn open(path: &Path, content: Content) -> Result<Self, WeightsError> {
        let file = File::open(path).map_err(|e| WeightsError::File {
            file: path.display().to_string(),
            problem: e.to_string(),
        })?;
        Ok(Self {
            content,
            file: Mutex::new(BufReader::new(file)),
        })
    }
}

impl Source for GgufFile {
    fn load(&self, name: &str, device: &Device) -> Result<Option<Stored>, WeightsError> {
        if !self.content.tensor_infos.contains_key(name) {
            return Ok(None);
        }
        let mut file = self.file.lock().map_err(|_| WeightsError::File {
            file: "GGUF".to_owned(),
            problem: "an earlier read failed".to_owned(),
        })?;
        let tensor = self.content.tensor(&mut *file, name, device)?;
        let dense = matches!(
            tensor.dtype(),
            GgmlDType::F32 | GgmlDType::F16 | GgmlDType::BF16
        );
        if dense {
            return Ok(Some(Stored::Dense(tensor.dequantize(device)?)));
        }
        Ok(Some(Stored::Quantized(tensor)))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.content.tensor_infos.keys().cloned().collect();
        names.sort_unstable();
        names
    }
}
