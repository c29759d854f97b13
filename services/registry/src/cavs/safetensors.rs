//! safetensors: one matrix `[n, width]`, and `labels` (a JSON list) in the metadata.

use std::sync::Arc;

use steering_proto::{HookPoint, Invalid};

use super::{CavEntry, CavFile};
use crate::format::{FormatError, SourceFile, malformed, safetensors::read_safetensors};

pub(super) fn read(source: &Arc<SourceFile>) -> Result<CavFile, FormatError> {
    let file = read_safetensors(source)?;
    let mut tensors: Vec<_> = file.tensors.into_values().collect();
    let (Some(tensor), true) = (tensors.pop(), tensors.is_empty()) else {
        return Err(malformed("must hold one tensor, the CAVs"));
    };
    let cavs = match file.metadata.get("labels") {
        Some(labels) => {
            let labels: Vec<String> = serde_json::from_str(labels).map_err(|error| {
                malformed(format!(
                    "its \"labels\" are not a JSON list of text: {error}"
                ))
            })?;
            let [_, width] = tensor.shape_2d()?;
            CavFile::from_rows(&tensor.values()?, width, labels)?.cavs
        }
        // One vector can go by the file's name.
        None if tensor.shape_2d().map_or(1, |[rows, _]| rows) == 1 => vec![CavEntry {
            name: None,
            directions: vec![(None, tensor.values()?)],
        }],
        None => {
            return Err(malformed("has no \"labels\" (a JSON list) in its metadata"));
        }
    };
    let mut file_of_cavs = CavFile {
        cavs,
        model_id: file.metadata.get("model_id").cloned(),
    };
    // Ours say the hook point too, so that an export comes back by itself.
    if let Some(name) = file.metadata.get("hook_name") {
        let hook: HookPoint = name
            .parse()
            .map_err(|error: Invalid| malformed(format!("metadata: {error}")))?;
        for cav in &mut file_of_cavs.cavs {
            for (at, _) in &mut cav.directions {
                *at = Some(hook);
            }
        }
    }
    Ok(file_of_cavs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::testing::source;

    fn file(metadata: &serde_json::Value, shape: &[usize]) -> Result<CavFile, String> {
        let data: Vec<u8> = (0..shape.iter().product())
            .flat_map(|i: usize| (i as f32 + 1.0).to_le_bytes())
            .collect();
        let header = serde_json::json!({
            "__metadata__": metadata,
            "cavs": {"dtype": "F32", "shape": shape, "data_offsets": [0, data.len()]},
        });
        let header = header.to_string();
        let len = (header.len() as u64).to_le_bytes();
        let bytes = [&len[..], header.as_bytes(), &data].concat();
        read(&source(&bytes)).map_err(|error| error.to_string())
    }

    #[test]
    fn metadata_count_with_and_without_labels() {
        let hook: HookPoint = "blocks.2.hook_resid_post".parse().expect("hook");
        let place = serde_json::json!({"hook_name": hook.to_string(), "model_id": "m"});
        let mut labelled = place.clone();
        labelled["labels"] = "[\"a\"]".into();
        for (metadata, name, shape) in [
            (&place, None, &[2][..]),
            (&place, None, &[1, 2]),
            (&labelled, Some("a".to_owned()), &[1, 2]),
        ] {
            let read = file(metadata, shape).expect("CAVs");
            assert_eq!(read.model_id.as_deref(), Some("m"));
            assert_eq!(read.cavs[0].name, name);
            assert_eq!(read.cavs[0].directions, [(Some(hook), vec![1.0, 2.0])]);
        }
        let nowhere = serde_json::json!({"hook_name": "layer 2"});
        let error = file(&nowhere, &[2]).expect_err("no hook point");
        assert!(error.contains("metadata"), "{error}");
        let bare = file(&serde_json::json!({}), &[2]).expect("CAV");
        assert_eq!((bare.cavs[0].directions[0].0, bare.model_id), (None, None));
        assert!(file(&serde_json::json!({}), &[2, 2]).is_err());
    }
}
