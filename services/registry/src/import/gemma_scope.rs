//! Gemma Scope: `params.npz` with `W_enc [d, w]`, `W_dec [w, d]`, `b_enc`,
//! `b_dec`, `threshold`. JumpReLU, b_dec not subtracted, no normalisation.
//! There is no configuration: model and site are in the names of repository
//! and folders, `gemma-scope-2b-pt-res/layer_21/width_65k/average_l0_20`.

use std::path::Path;

use steering_proto::{HookPoint, Site, payload::InputNormalization};

use super::{ActivationSource, HookHint, SaeSource, detect::Found, tensors::TensorSet};
use crate::{
    format::{
        FormatError,
        features::{FeatureAxis, Matrix},
        malformed, npy, unservable,
    },
    progress::Progress,
};

/// Reads an archive.
pub fn read(found: &Found, scratch: &Path, progress: &Progress) -> Result<SaeSource, FormatError> {
    if found.hint.contains("/embedding/") {
        return Err(unservable("SAEs on the embedding have no hook point here"));
    }
    let arrays = npy::read_npz(found.weights.clone(), scratch, &mut |done, total| {
        progress.report("reading", done, total)
    })?;
    let mut named = std::collections::BTreeMap::new();
    for (name, tensor) in arrays {
        // w_enc in some releases, W_enc in others.
        let lower = name.to_lowercase();
        if named.insert(lower, tensor).is_some() {
            return Err(malformed(format!(
                "holds {name} twice, in upper and lower case"
            )));
        }
    }
    let mut tensors = TensorSet::new(named);
    let encoder = Matrix::new(tensors.take("w_enc")?, FeatureAxis::Last)?;
    let decoder = Matrix::new(tensors.take("w_dec")?, FeatureAxis::First)?;
    let (d_in, d_sae) = (encoder.width(), encoder.features());
    let b_enc = tensors.take("b_enc")?.vector(d_sae)?;
    let threshold = tensors.take("threshold")?.vector_or_scalar(d_sae)?;
    let b_dec = tensors.take("b_dec")?.vector(d_in)?;
    refuse_scaling(&mut tensors)?;
    tensors.finish()?;
    let (model_id, hook) = names(&found.hint);
    Ok(SaeSource {
        format: "gemma-scope-npz",
        hook: hook.map(HookHint::Implied),
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

/// A finetuning factor per feature changes the reconstruction unless it is one.
pub(super) fn refuse_scaling(tensors: &mut TensorSet) -> Result<(), FormatError> {
    match tensors.take_optional("scaling_factor") {
        Some(factors) if factors.values()?.iter().any(|&factor| factor != 1.0) => Err(unservable(
            "has a scaling_factor other than 1 (finetuned magnitudes)",
        )),
        _ => Ok(()),
    }
}

/// Model and hook point from a path such as
/// `…gemma-scope-2b-pt-res/layer_21/…` (also as the hub's cache spells it).
fn names(path: &str) -> (Option<String>, Option<HookPoint>) {
    let Some((_, rest)) = path.split_once("gemma-scope-") else {
        return (None, None);
    };
    let repo = rest.split('/').next().unwrap_or_default();
    let mut parts = repo.splitn(3, '-');
    let (Some(size), Some(variant), Some(site)) = (parts.next(), parts.next(), parts.next()) else {
        return (None, None);
    };
    let site = match site.split('-').next().unwrap_or_default() {
        "res" => Site::ResidPost,
        "mlp" => Site::MlpOut,
        "att" => Site::Z,
        _ => return (None, None),
    };
    let model = match variant {
        "pt" => format!("google/gemma-2-{size}"),
        _ => format!("google/gemma-2-{size}-{variant}"),
    };
    let layer = path
        .split('/')
        .find_map(|part| part.strip_prefix("layer_"))
        .and_then(|layer| layer.parse().ok());
    (Some(model), layer.map(|layer| HookPoint { layer, site }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_and_site_come_from_the_names() {
        let hook = |layer, site| Some(HookPoint { layer, site });
        for (path, model, expected) in [
            (
                "/data/gemma-scope-2b-pt-res/layer_21/width_65k/average_l0_20/params.npz",
                Some("google/gemma-2-2b"),
                hook(21, Site::ResidPost),
            ),
            (
                "/hub/models--google--gemma-scope-9b-it-res/snapshots/abc/layer_9/width_16k/params.npz",
                Some("google/gemma-2-9b-it"),
                hook(9, Site::ResidPost),
            ),
            (
                "gemma-scope-2b-pt-att/layer_0/x",
                Some("google/gemma-2-2b"),
                hook(0, Site::Z),
            ),
            (
                "gemma-scope-27b-pt-mlp/width_1m",
                Some("google/gemma-2-27b"),
                None,
            ),
            ("gemma-scope-2b-pt-transcoders/layer_3", None, None),
            ("/data/layer_3/params.npz", None, None),
        ] {
            assert_eq!(names(path), (model.map(str::to_owned), expected), "{path}");
        }
    }
}
