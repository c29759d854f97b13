//! The canonical file itself, as `DownloadSae` gives it: `steer_sae.safetensors`. It is
//! stored as it is, so that its digest stays the same.

use super::{ActivationSource, SaeSource, detect::Found, tensors::TensorSet};
use crate::{
    canonical::{Architecture, FORMAT, parse_normalization},
    format::{
        FormatError,
        features::{FeatureAxis, Matrix},
        malformed, safetensors,
    },
};

/// Reads a canonical file.
pub fn read(found: &Found) -> Result<SaeSource, FormatError> {
    let file = safetensors::read_safetensors(&found.weights)?;
    let said = |key: &str| file.metadata.get(key).map_or("", String::as_str);
    if said("format") != FORMAT {
        return Err(malformed(format!(
            "says that its format is {:?}; {FORMAT:?} is needed",
            said("format")
        )));
    }
    let unknown = |key: &str| malformed(format!("has an unknown {key}: {:?}", said(key)));
    let architecture = Architecture::parse(said("architecture"));
    let architecture = architecture.ok_or_else(|| unknown("architecture"))?;
    let normalization = parse_normalization(said("input_normalization"));
    let normalization = normalization.ok_or_else(|| unknown("input_normalization"))?;
    let mut tensors = TensorSet::new(file.tensors);
    let encoder = Matrix::new(tensors.take("encoder")?, FeatureAxis::First)?;
    let decoder = Matrix::new(tensors.take("decoder")?, FeatureAxis::First)?;
    let scalars = tensors.take("scalars")?;
    let expected = [encoder.features(), architecture.scalar_count()];
    if scalars.shape_2d()? != expected {
        return Err(malformed(format!(
            "scalars has another shape than {expected:?}"
        )));
    }
    let b_dec = tensors.take("b_dec")?.vector(encoder.width())?;
    tensors.finish()?;
    Ok(SaeSource {
        format: "steer",
        hook: None,
        model_id: None,
        encoder,
        decoder,
        activation: ActivationSource::Stored {
            architecture,
            scalars: scalars.values()?,
        },
        b_dec,
        subtracts_b_dec: false,
        normalization,
        expects_average_norm: false,
        rescales_by_decoder_norm: false,
    })
}
