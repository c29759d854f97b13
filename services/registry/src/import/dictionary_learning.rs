//! dictionary_learning and SAEBench: `config.json` and `ae.pt`, a state_dict of
//! `encoder.weight [w, d]`, `decoder.weight [d, w]` or `W_enc [d, w]`,
//! `W_dec [w, d]`. The class in `trainer.dict_class` decides the maths
//! (`dictionary_learning/dictionary.py`, `trainers/*.py`). Weights are taken as
//! they are stored; the library's optional renormalisation on load is not done.

use std::{collections::BTreeMap, path::Path};

use steering_proto::{HookPoint, Site, payload::InputNormalization};

use super::{
    ActivationSource, HookHint, SaeSource, config_file::ConfigFile, detect::Found, saelens,
    tensors::TensorSet,
};
use crate::{
    format::{
        FormatError,
        features::{FeatureAxis, Matrix},
        malformed,
        pickle::Node,
        torch::TorchFile,
        unservable,
    },
    progress::Progress,
};

/// Hyperparameters of training.
const HARMLESS_TRAINER: &str = "\
    anneal_end anneal_start auxk_alpha bandwidth decay_start device group_fractions \
    group_sizes group_weights k k_anneal_steps l1_penalty lr n_sparsity_updates norm_factor \
    p_end p_start resample_steps seed sparsity_function sparsity_penalty sparsity_queue_length \
    sparsity_warmup_steps steps target_l0 threshold_beta threshold_start_step top_k_aux \
    trainer_class wandb_name warmup_steps";
const HARMLESS_BUFFER: &str = "\
    add_special_tokens ctx_len d_submodule device n_ctxs out_batch_size refresh_batch_size \
    remove_bos remove_high_norm";

struct Config {
    dict_class: String,
    hook: Option<HookHint>,
    model_id: Option<String>,
    activation_dim: Option<usize>,
    dict_size: Option<usize>,
}

/// Reads an SAE.
pub fn read(found: &Found, scratch: &Path, progress: &Progress) -> Result<SaeSource, FormatError> {
    let config = read_config(ConfigFile::read(found.config()?)?)?;
    let subtracts_b_dec = match config.dict_class.as_str() {
        "AutoEncoder" | "BatchTopKSAE" | "MatryoshkaBatchTopKSAE" | "GatedAutoEncoder" => true,
        "AutoEncoderNew" | "JumpReluAutoEncoder" => false,
        "AutoEncoderTopK" => {
            return Err(unservable(
                "TopK: whether a feature fires depends on all the others",
            ));
        }
        other => {
            return Err(unservable(format!(
                "dict_class {other:?} is not known here"
            )));
        }
    };
    let mut tensors = read_state_dict(found, scratch, progress)?;
    let (encoder, decoder) = matrices(&mut tensors)?;
    let (d_in, d_sae) = (encoder.width(), encoder.features());
    for (key, stated, actual) in [
        ("activation_dim", config.activation_dim, d_in),
        ("dict_size", config.dict_size, d_sae),
    ] {
        if stated.is_some_and(|stated| stated != actual) {
            return Err(malformed(format!(
                "config.json: {key} is not the {actual} that the tensors have"
            )));
        }
    }
    let b_dec = tensors
        .take_any(&["b_dec", "bias", "decoder_bias", "decoder.bias"])?
        .vector(d_in)?;
    let activation = read_activation(&config.dict_class, &mut tensors, d_sae)?;
    // k and the group sizes matter in training only, once there is a threshold.
    let _ = (
        tensors.take_optional("k"),
        tensors.take_optional("group_sizes"),
    );
    tensors.finish()?;
    Ok(SaeSource {
        format: "dictionary-learning",
        hook: config.hook,
        model_id: config.model_id,
        encoder,
        decoder,
        activation,
        b_dec,
        subtracts_b_dec,
        normalization: InputNormalization::None,
        expects_average_norm: false,
        rescales_by_decoder_norm: false,
    })
}

fn read_config(mut file: ConfigFile) -> Result<Config, FormatError> {
    let mut trainer = file.nested("trainer")?;
    let mut buffer = file.nested("buffer")?;
    file.finish("")?;
    let dict_class = trainer.text("dict_class")?.ok_or_else(|| {
        malformed("config.json has no trainer.dict_class, which decides the maths")
    })?;
    let layer = trainer.size("layer")?;
    let submodule = trainer.text("submodule_name")?;
    let io = buffer.text("io")?;
    if io.as_deref() == Some("in_and_out") {
        return Err(unservable(
            "reads a submodule's input and writes its output (a transcoder)",
        ));
    }
    let config = Config {
        dict_class,
        hook: hook(layer, submodule.as_deref(), io.as_deref()),
        model_id: trainer.text("lm_name")?,
        activation_dim: trainer.size("activation_dim")?,
        dict_size: trainer.size("dict_size")?,
    };
    trainer.finish(HARMLESS_TRAINER)?;
    buffer.finish(HARMLESS_BUFFER)?;
    Ok(config)
}

/// The output of a layer, where the submodule is named or (as SAELens takes it) nothing is said.
fn hook(layer: Option<usize>, submodule: Option<&str>, io: Option<&str>) -> Option<HookHint> {
    let hook = HookPoint {
        layer: layer?,
        site: Site::ResidPost,
    };
    match (submodule, io) {
        (Some(name), None | Some("out")) if name.starts_with("resid_post") => {
            Some(HookHint::Stated(hook))
        }
        (None, None | Some("out")) => Some(HookHint::Implied(hook)),
        _ => None,
    }
}

fn read_state_dict(
    found: &Found,
    scratch: &Path,
    progress: &Progress,
) -> Result<TensorSet, FormatError> {
    let file = TorchFile::open(found.weights.clone(), scratch)?;
    let total = found.weights.len();
    let mut done = 0;
    let mut tensors = BTreeMap::new();
    for (name, node) in file.pickle.root_entries()? {
        let Node::Tensor(node) = node else {
            return Err(malformed(format!(
                "{name} is not a tensor; a state_dict is needed"
            )));
        };
        let tensor = file.tensor(name, node, scratch, &mut |bytes| {
            done += bytes;
            progress.report("reading", done, total)
        })?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok(TensorSet::new(tensors))
}

fn matrices(tensors: &mut TensorSet) -> Result<(Matrix, Matrix), FormatError> {
    let encoder = match tensors.take_optional("encoder.weight") {
        Some(weight) => Matrix::new(weight, FeatureAxis::First)?,
        None => Matrix::new(
            tensors.take_any(&["W_enc", "encoder.weight"])?,
            FeatureAxis::Last,
        )?,
    };
    let decoder = match tensors.take_optional("decoder.weight") {
        Some(weight) => Matrix::new(weight, FeatureAxis::Last)?,
        None => Matrix::new(
            tensors.take_any(&["W_dec", "decoder.weight"])?,
            FeatureAxis::First,
        )?,
    };
    Ok((encoder, decoder))
}

fn read_activation(
    dict_class: &str,
    tensors: &mut TensorSet,
    d_sae: usize,
) -> Result<ActivationSource, FormatError> {
    if dict_class == "GatedAutoEncoder" {
        return Ok(ActivationSource::Gated {
            b_gate: tensors.take("gate_bias")?.vector(d_sae)?,
            r_mag: tensors.take("r_mag")?.vector(d_sae)?,
            b_mag: tensors.take("mag_bias")?.vector(d_sae)?,
        });
    }
    let b_enc = tensors
        .take_any(&["encoder.bias", "b_enc"])?
        .vector(d_sae)?;
    Ok(match dict_class {
        "AutoEncoder" | "AutoEncoderNew" => ActivationSource::Relu { b_enc },
        "JumpReluAutoEncoder" => ActivationSource::JumpRelu {
            b_enc,
            threshold: tensors.take("threshold")?.vector_or_scalar(d_sae)?,
        },
        _ => match tensors.take_optional("threshold") {
            Some(threshold) => ActivationSource::JumpRelu {
                b_enc,
                threshold: saelens::batch_topk_threshold(&threshold, d_sae)?,
            },
            None => {
                return Err(unservable(
                    "BatchTopK without a threshold: whether a feature fires depends on the rest of the batch",
                ));
            }
        },
    })
}
