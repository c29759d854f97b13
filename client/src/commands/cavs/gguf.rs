//! GGUF control vectors of llama.cpp and repeng: one CAV, a tensor `direction.N` for the output of
//! layer N.

use anyhow::Context;
use steering_proto::{HookPoint, Site};

use crate::failure::hinted;

/// What numbers begin at a multiple of.
const ALIGNMENT: usize = 32;
/// Types of metadata.
const UINT32: u32 = 4;
const STRING: u32 = 8;
/// Type of a tensor's numbers.
const F32: u32 = 0;

/// N of `direction.N`. Only outputs of layers have one, and llama.cpp takes none for layer 0.
pub(in crate::commands) fn layer(hook_name: &str) -> Option<u32> {
    let hook: HookPoint = hook_name.parse().ok()?;
    (hook.site == Site::ResidPost && hook.layer > 0).then(|| u32::try_from(hook.layer).ok())?
}

/// The file of a CAV's vectors: hook point and numbers of each. They are in it by layer, so a CAV
/// that has them in another order comes back in this one, with another digest.
pub(in crate::commands) fn to_gguf(
    name: &str,
    model_id: &str,
    vectors: &[(&str, &[f32])],
) -> anyhow::Result<Vec<u8>> {
    let mut layers = Vec::with_capacity(vectors.len());
    for (hook_name, values) in vectors {
        let Some(layer) = layer(hook_name) else {
            return Err(hinted(
                format!(
                    "CAV {name:?} is at {hook_name}; a control vector is at the output of a layer from 1 on"
                ),
                "choose another format, or one of its hook points with --hook",
            ));
        };
        layers.push((layer, *values));
    }
    layers.sort_unstable_by_key(|(layer, _)| *layer);
    let last = layers.last().context("a CAV without vectors")?.0;
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((layers.len() as u64).to_le_bytes());
    file.extend(4_u64.to_le_bytes());
    for (key, value) in [
        ("general.architecture", "controlvector"),
        ("general.name", name),
        ("controlvector.model_hint", model_id),
    ] {
        string(&mut file, key);
        file.extend(STRING.to_le_bytes());
        string(&mut file, value);
    }
    string(&mut file, "controlvector.layer_count");
    file.extend(UINT32.to_le_bytes());
    file.extend(last.to_le_bytes());
    let mut data = Vec::new();
    for (layer, values) in layers {
        string(&mut file, &format!("direction.{layer}"));
        file.extend(1_u32.to_le_bytes()); // axes
        file.extend((values.len() as u64).to_le_bytes());
        file.extend(F32.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
    }
    file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
    file.extend(data);
    Ok(file)
}

fn string(file: &mut Vec<u8>, text: &str) {
    file.extend((text.len() as u64).to_le_bytes());
    file.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_outputs_of_layers_have_a_direction() {
        assert_eq!(layer("blocks.21.hook_resid_post"), Some(21));
        for none in ["blocks.0.hook_resid_post", "blocks.3.hook_mlp_out", "h", ""] {
            assert_eq!(layer(none), None, "{none}");
            assert!(to_gguf("a", "m", &[(none, &[1.0])]).is_err());
        }
    }
}
