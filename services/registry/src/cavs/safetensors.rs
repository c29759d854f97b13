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
    let Some(labels) = file.metadata.get("labels") else {
        // One vector can go by the file's name.
        let (1, values) = (
            tensor.shape_2d().map_or(1, |[rows, _]| rows),
            tensor.values()?,
        ) else {
            return Err(malformed("has no \"labels\" (a JSON list) in its metadata"));
        };
        let directions = vec![(None, values)];
        return Ok(CavFile {
            cavs: vec![CavEntry {
                name: None,
                directions,
            }],
            model_id: None,
        });
    };
    let labels: Vec<String> = serde_json::from_str(labels).map_err(|error| {
        malformed(format!(
            "its \"labels\" are not a JSON list of text: {error}"
        ))
    })?;
    let [_, width] = tensor.shape_2d()?;
    let mut file_of_cavs = CavFile::from_rows(&tensor.values()?, width, labels)?;
    file_of_cavs.model_id = file.metadata.get("model_id").cloned();
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
