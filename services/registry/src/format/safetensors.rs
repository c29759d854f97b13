//! safetensors files: the header is read by the `safetensors` crate, tensors
//! stay in the file.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use safetensors::tensor::{Dtype as StDtype, Metadata};

use super::{
    FormatError, SourceFile, malformed,
    tensor::{Dtype, Order, Tensor},
};

const HEADER_LEN_MAX: u64 = 4 << 20;

/// A file's tensors and its `__metadata__`.
#[derive(Debug)]
pub struct SafetensorsFile {
    /// Tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Text entries of `__metadata__`.
    pub metadata: HashMap<String, String>,
}

/// Reads the header; every tensor is checked to lie within the file.
pub fn read_safetensors(source: &Arc<SourceFile>) -> Result<SafetensorsFile, FormatError> {
    let mut length = [0; 8];
    source.read_at(&mut length, 0)?;
    let header_len = u64::from_le_bytes(length);
    if header_len > HEADER_LEN_MAX {
        return Err(malformed(format!(
            "is not a safetensors file: its header would have {header_len} bytes"
        )));
    }
    let header = source.read_vec(8, header_len)?;
    // Deserialising checks that offsets and shapes agree and leave no gaps.
    let header: Metadata = serde_json::from_slice(&header)
        .map_err(|error| malformed(format!("is not a valid safetensors file: {error}")))?;
    if source.len() - 8 - header_len != header.data_len() as u64 {
        return Err(malformed(format!(
            "is truncated or has trailing bytes: its header declares {} bytes of data, {} are there",
            header.data_len(),
            source.len() - 8 - header_len
        )));
    }
    let mut tensors = BTreeMap::new();
    for (name, info) in header.tensors() {
        let dtype = dtype(info.dtype).ok_or_else(|| {
            malformed(format!(
                "{name} has dtype {:?}; F16, BF16, F32 and F64 are read",
                info.dtype
            ))
        })?;
        let shape: Vec<u64> = info.shape.iter().map(|&axis| axis as u64).collect();
        let offset = 8 + header_len + info.data_offsets.0 as u64;
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
    Ok(SafetensorsFile {
        tensors,
        metadata: header.metadata().clone().unwrap_or_default(),
    })
}

fn dtype(dtype: StDtype) -> Option<Dtype> {
    Some(match dtype {
        StDtype::F16 => Dtype::F16,
        StDtype::BF16 => Dtype::Bf16,
        StDtype::F32 => Dtype::F32,
        StDtype::F64 => Dtype::F64,
        StDtype::I32 => Dtype::I32,
        StDtype::I64 => Dtype::I64,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing::source;

    fn file(header: &str, body_len: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(vec![0; body_len]);
        bytes
    }

    #[test]
    fn reads_tensors_and_metadata() {
        let header = r#"{"__metadata__":{"labels":"[]"},"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;
        let read = read_safetensors(&source(&file(header, 24))).expect("safetensors");
        assert_eq!(read.metadata["labels"], "[]");
        assert_eq!(read.tensors["w"].shape(), [2, 3]);
    }

    #[test]
    fn hostile_headers_are_refused() {
        let truncated = r#"{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}"#;
        let mut huge = u64::MAX.to_le_bytes().to_vec();
        huge.extend([0; 32]);
        let cases = [
            file(truncated, 23),
            file(
                r#"{"w":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,24]}}"#,
                24,
            ),
            file(
                r#"{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,24]}}"#,
                24,
            ),
            file(
                r#"{"w":{"dtype":"U8","shape":[24],"data_offsets":[0,24]}}"#,
                24,
            ),
            file("not json", 0),
            huge,
            vec![],
            vec![1, 2, 3],
        ];
        for bytes in cases {
            assert!(read_safetensors(&source(&bytes)).is_err());
        }
    }
}
