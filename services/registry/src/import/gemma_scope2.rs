//! Gemma Scope 2: `config.json` and `params.safetensors` with `w_enc [d, w]`,
//! `w_dec [w, d]`, `b_enc`, `b_dec`, `threshold`. JumpReLU, b_dec not
//! subtracted, no normalisation. Transcoders and affine connections share the
//! file names and are refused.

use steering_proto::{HookPoint, Site, payload::InputNormalization};

use super::{
    ActivationSource, HookHint, SaeSource, config_file::ConfigFile, detect::Found,
    tensors::TensorSet,
};
use crate::format::{
    FormatError,
    features::{FeatureAxis, Matrix},
    malformed, safetensors, unservable,
};

/// Keys that describe, but change nothing; shapes come from the tensors.
const HARMLESS: &str = "\
    dtype l0 l0_target width";

/// Reads an SAE.
pub fn read(found: &Found) -> Result<SaeSource, FormatError> {
    let mut config = ConfigFile::read(found.config()?)?;
    match config.text("architecture")?.as_deref() {
        Some("jump_relu" | "jumprelu") => {}
        Some(other) => {
            return Err(unservable(format!(
                "architecture {other:?} is not one of Gemma Scope 2 SAEs (jump_relu)"
            )));
        }
        None => return Err(malformed("config.json names no architecture")),
    }
    if let Some(kind) = config.text("type")?.filter(|kind| kind != "sae") {
        return Err(unservable(format!(
            "is a {kind}: it does not write where it reads, so clamping a feature is not an edit at one hook point"
        )));
    }
    if config.flag("affine_connection")? == Some(true) {
        return Err(unservable("has an affine skip connection"));
    }
    let hook_in = config.text("hf_hook_point_in")?;
    let hook_out = config.text("hf_hook_point_out")?;
    if hook_out.is_some() && hook_out != hook_in {
        return Err(unservable(
            "reads one site and writes another (a transcoder)",
        ));
    }
    let model_id = config.text("model_name")?.map(|name| model_id(&name));
    config.finish(HARMLESS)?;

    let mut tensors = TensorSet::new(safetensors::read_safetensors(&found.weights)?.tensors);
    let encoder = Matrix::new(tensors.take_any(&["w_enc", "W_enc"])?, FeatureAxis::Last)?;
    let decoder = Matrix::new(tensors.take_any(&["w_dec", "W_dec"])?, FeatureAxis::First)?;
    let (d_in, d_sae) = (encoder.width(), encoder.features());
    let b_enc = tensors.take("b_enc")?.vector(d_sae)?;
    let threshold = tensors.take("threshold")?.vector_or_scalar(d_sae)?;
    let b_dec = tensors.take("b_dec")?.vector(d_in)?;
    if tensors.take_optional("affine_skip_connection").is_some() {
        return Err(unservable("has an affine skip connection"));
    }
    tensors.finish()?;
    Ok(SaeSource {
        format: "gemma-scope-2",
        hook: hook_in.map(|name| match hook_point(&name) {
            Some(hook) => HookHint::Stated(hook),
            None => HookHint::Unknown(name),
        }),
        model_id,
        encoder,
        decoder,
        activation: ActivationSource::JumpRelu { b_enc, threshold },
        b_dec,
        subtracts_b_dec: false,
        normalization: InputNormalization::None,
        expects_average_norm: false,
        rescales_by_decoder_norm: false,
    })
}

/// The hook point behind a module path of transformers.
fn hook_point(name: &str) -> Option<HookPoint> {
    if let Ok(hook) = name.parse() {
        return Some(hook);
    }
    let (_, rest) = name.split_once("layers.")?;
    let (layer, site) = rest.split_once('.')?;
    let site = match site {
        "output" => Site::ResidPost,
        "post_feedforward_layernorm.output" => Site::MlpOut,
        "post_attention_layernorm.output" => Site::AttnOut,
        "self_attn.o_proj.input" => Site::Z,
        "input" => Site::ResidPre,
        _ => return None,
    };
    Some(HookPoint {
        layer: layer.parse().ok()?,
        site,
    })
}

/// The hub's name of the model, as SAELens spells it: with the owner, and
/// without `-pt` where the hub has none.
fn model_id(name: &str) -> String {
    let name = name.replace("-v3", "-3");
    let name = if name.contains('/') {
        name
    } else {
        format!("google/{name}")
    };
    if name.contains("270m") {
        name.replace("-pt", "")
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_paths_become_hook_points() {
        for (name, expected) in [
            ("model.layers.12.output", "blocks.12.hook_resid_post"),
            (
                "model.layers.0.post_feedforward_layernorm.output",
                "blocks.0.hook_mlp_out",
            ),
            (
                "model.layers.7.self_attn.o_proj.input",
                "blocks.7.attn.hook_z",
            ),
            (
                "model.language_model.layers.3.output",
                "blocks.3.hook_resid_post",
            ),
            ("blocks.3.hook_mlp_out", "blocks.3.hook_mlp_out"),
        ] {
            assert_eq!(hook_point(name).expect(name).to_string(), expected);
        }
        assert_eq!(
            hook_point("model.layers.0.pre_feedforward_layernorm.output"),
            None
        );
        assert_eq!(model_id("gemma-v3-270m-pt"), "google/gemma-3-270m");
        assert_eq!(model_id("google/gemma-3-1b-it"), "google/gemma-3-1b-it");
    }
}
