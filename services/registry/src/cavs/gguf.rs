//! Control vectors of llama.cpp and repeng: tensors `direction.N`, added to
//! the output of layer N, that is `blocks.N.hook_resid_post`.

use std::sync::Arc;

use steering_proto::{HookPoint, Site};

use super::{CavEntry, CavFile};
use crate::format::{FormatError, SourceFile, gguf::read_gguf, malformed};

pub(super) fn read(source: &Arc<SourceFile>) -> Result<CavFile, FormatError> {
    let file = read_gguf(source)?;
    match file.strings.get("general.architecture").map(String::as_str) {
        Some("controlvector") => {}
        other => {
            return Err(malformed(format!(
                "is a GGUF file of architecture {other:?}; \"controlvector\" is needed"
            )));
        }
    }
    let mut directions = Vec::with_capacity(file.tensors.len());
    for (name, tensor) in &file.tensors {
        let layer = name
            .strip_prefix("direction.")
            .and_then(|layer| layer.parse().ok())
            .ok_or_else(|| {
                malformed(format!(
                    "holds {name:?}; a control vector has direction.N only"
                ))
            })?;
        let &[width] = tensor.shape() else {
            return Err(malformed(format!(
                "{name} has shape {:?}; [width] is needed",
                tensor.shape()
            )));
        };
        directions.push((layer, tensor.vector(width)?));
    }
    directions.sort_by_key(|&(layer, _)| layer);
    if directions.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return Err(malformed("names one layer twice"));
    }
    let directions = directions
        .into_iter()
        .map(|(layer, values)| {
            (
                Some(HookPoint {
                    layer,
                    site: Site::ResidPost,
                }),
                values,
            )
        })
        .collect();
    Ok(CavFile {
        cavs: vec![CavEntry {
            name: None,
            directions,
        }],
        model_id: file.strings.get("controlvector.model_hint").cloned(),
    })
}
