//! SAELens: `cfg.json` and `sae_weights.safetensors`, `W_enc [d, w]`,
//! `W_dec [w, d]`. From version 6 on the architecture's keys are at the top and
//! model and hook point under `metadata`; before, everything is flat and
//! `apply_b_dec_to_input` defaults to true. Semantics: `sae_lens/saes/*.py`,
//! `sae_lens/loading/pretrained_sae_loaders.py` of SAELens 6.54.

use serde_json::Value;
use steering_proto::{HookPoint, Site, payload::InputNormalization};

use super::{
    ActivationSource, HookHint, SaeSource, config_file::ConfigFile, detect::Found, gemma_scope,
    tensors::TensorSet,
};
use crate::format::{
    FormatError,
    features::{FeatureAxis, Matrix},
    malformed, safetensors,
    tensor::Tensor,
    unservable,
};

/// Keys of all versions that say how the SAE was trained or where its data
/// came from, and do not change what it computes.
const HARMLESS: &str = "\
    act_store_device activations_mixing_fraction adam_beta1 adam_beta2 autocast autocast_lm \
    aux_loss_coefficient b_dec_init_method cached_activations_path checkpoint_path compile_llm \
    compile_sae context_size d_head dataset_path dataset_trust_remote_code \
    dead_feature_estimation_method dead_feature_threshold dead_feature_window \
    decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm \
    decoder_orthogonal_init device disable_concat_sequences dtype eval_batch_size_prompts \
    eval_every_n_wandb_logs exclude_special_tokens expansion_factor feature_reinit_scale \
    feature_sampling_method feature_sampling_window finetuning_method finetuning_tokens \
    from_pretrained_path hf_hook_name hook_eval hook_layer hook_point_eval hook_point_layer \
    init_encoder_as_decoder_transpose is_dataset_tokenized jumprelu_bandwidth \
    jumprelu_init_threshold jumprelu_sparsity_loss_mode jumprelu_ste_to_input \
    jumprelu_tanh_scale k l0_coefficient l0_lambda l0_warm_up_steps l1_coefficient \
    l1_warm_up_steps llm_batch_size llm_compilation_mode llm_device \
    log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb logger lp_norm lr \
    lr_decay_steps lr_end lr_scheduler lr_scheduler_name lr_warm_up_steps matryoshka_widths \
    model_class_name model_from_pretrained_kwargs model_kwargs mse_loss_fn \
    mse_loss_normalization n_batches_for_norm_estimate n_batches_in_buffer n_checkpoints \
    n_dead_feature_samples n_eval_batches n_restart_cycles neuronpedia_id noise_scale \
    normalize_sae_decoder output_path pre_act_loss_coefficient prefetch_llm_batches \
    prepend_bos resample_batches resume resume_from_checkpoint run_name sae_compilation_mode \
    sae_lens_training_version sae_lens_version sae_name save_final_checkpoint \
    scale_sparsity_penalty_by_decoder_norm seed seqpos_slice sequence_separator_token \
    sparsity_log_frequency store_batch_size store_batch_size_prompts streaming target_l0 \
    tokens_per_buffer topk_threshold_lr total_training_tokens train_batch_size \
    train_batch_size_tokens training_tokens use_cached_activations use_chat_formatting \
    use_ghost_grads use_matryoshka_aux_loss use_sparse_activations verbose wandb_entity \
    wandb_id wandb_log_frequency wandb_project";

/// What the configuration says about the maths.
struct Config {
    architecture: String,
    applies_b_dec: bool,
    normalization: InputNormalization,
    expects_average_norm: bool,
    rescales_by_decoder_norm: bool,
    hook: Option<HookHint>,
    model_id: Option<String>,
}

/// Reads an SAE.
pub fn read(found: &Found) -> Result<SaeSource, FormatError> {
    let mut file = ConfigFile::read(found.config()?)?;
    let mut tensors = TensorSet::new(safetensors::read_safetensors(&found.weights)?.tensors);
    gemma_scope::refuse_scaling(&mut tensors)?;
    let encoder = Matrix::new(tensors.take("W_enc")?, FeatureAxis::Last)?;
    let decoder = Matrix::new(tensors.take("W_dec")?, FeatureAxis::First)?;
    let (d_in, d_sae) = (encoder.width(), encoder.features());
    file.check_size("d_in", d_in)?;
    file.check_size("d_sae", d_sae)?;
    file.check_size("d_out", d_in)?;
    let config = read_config(file)?;
    let activation = read_activation(&config, &mut tensors, d_sae)?;
    let b_dec = tensors.take("b_dec")?.vector(d_in)?;
    tensors.finish()?;
    Ok(SaeSource {
        format: "saelens",
        hook: config.hook,
        model_id: config.model_id,
        encoder,
        decoder,
        activation,
        b_dec,
        subtracts_b_dec: config.applies_b_dec,
        normalization: config.normalization,
        expects_average_norm: config.expects_average_norm,
        rescales_by_decoder_norm: config.rescales_by_decoder_norm,
    })
}

fn read_config(mut file: ConfigFile) -> Result<Config, FormatError> {
    let mut metadata = file.nested("metadata")?;
    let architecture = file
        .text("architecture")?
        .unwrap_or_else(|| "standard".to_owned());
    check_architecture(&architecture)?;
    refuse_other_activations(&mut file)?;
    let mut either = |keys: &[&str]| -> Result<Option<String>, FormatError> {
        let mut found = None;
        for key in keys {
            for place in [&mut file, &mut metadata] {
                found = found.or(place.text(key)?);
            }
        }
        Ok(found)
    };
    let hook_name = either(&["hook_name", "hook_point"])?;
    let hook_out = either(&["hook_name_out"])?;
    let model_id = either(&["model_name"])?;
    if hook_out.is_some() && hook_out != hook_name {
        return Err(unservable(
            "reads one hook point and writes another (a transcoder)",
        ));
    }
    for key in [
        "hook_head_index",
        "hook_point_head_index",
        "hook_head_index_out",
    ] {
        if file.take(key).or(metadata.take(key)).is_some() {
            return Err(unservable(format!("reads one attention head only ({key})")));
        }
    }
    let (normalization, expects_average_norm) = normalization(&mut file)?;
    let hook = hook_name.map(|name| match name.parse() {
        Ok(hook) => HookHint::Stated(hook),
        Err(_) => HookHint::Unknown(name),
    });
    check_reshape(&mut file, hook.as_ref())?;
    if file.flag("finetuning_scaling_factor")? == Some(true) {
        return Err(unservable(
            "was finetuned with a scaling factor per feature",
        ));
    }
    let rescales = file.flag("rescale_acts_by_decoder_norm")?.unwrap_or(false);
    if rescales && !architecture.ends_with("batchtopk") {
        return Err(unservable(format!(
            "rescale_acts_by_decoder_norm has no defined meaning for architecture {architecture:?}"
        )));
    }
    let config = Config {
        architecture,
        applies_b_dec: file.flag("apply_b_dec_to_input")?.unwrap_or(true),
        normalization,
        expects_average_norm,
        rescales_by_decoder_norm: rescales,
        hook,
        model_id,
    };
    file.finish(HARMLESS)?;
    Ok(config)
}

fn check_architecture(architecture: &str) -> Result<(), FormatError> {
    let reason = match architecture {
        "standard" | "jumprelu" | "gated" | "batchtopk" | "matryoshka_batchtopk" => return Ok(()),
        "topk" | "abstopk" => "whether a feature fires depends on all the others",
        "temporal" => "a feature depends on earlier tokens",
        "matching_pursuit" => "features are chosen one after the other",
        name if name.contains("transcoder") => "it reads one site and writes another",
        name if name.contains("crosscoder") => "it reads or writes several sites",
        _ => "is not known here; standard, jumprelu, gated and batchtopk are",
    };
    Err(unservable(format!(
        "architecture {architecture:?}: {reason}"
    )))
}

/// Before version 6 TopK was an activation function of "standard".
fn refuse_other_activations(file: &mut ConfigFile) -> Result<(), FormatError> {
    for key in ["activation_fn", "activation_fn_str"] {
        match file.text(key)?.as_deref() {
            None | Some("relu") => {}
            Some("topk") => {
                return Err(unservable(
                    "TopK: whether a feature fires depends on all the others",
                ));
            }
            Some(other) => {
                return Err(unservable(format!(
                    "activation function {other:?} is not ReLU"
                )));
            }
        }
    }
    match file.take("activation_fn_kwargs") {
        None => Ok(()),
        Some(Value::Object(kwargs)) if kwargs.values().all(Value::is_null) => Ok(()),
        Some(kwargs) => Err(unservable(format!(
            "activation_fn_kwargs {kwargs} have no meaning for ReLU"
        ))),
    }
}

/// The normalisation, and whether a fixed scale is expected to be folded in.
fn normalization(file: &mut ConfigFile) -> Result<(InputNormalization, bool), FormatError> {
    let key = "normalize_activations";
    Ok(match file.take(key) {
        None | Some(Value::Bool(false)) => (InputNormalization::None, false),
        Some(Value::Bool(true)) => (InputNormalization::None, true),
        Some(Value::String(name)) => match name.as_str() {
            "none" => (InputNormalization::None, false),
            "expected_average_only_in" => (InputNormalization::None, true),
            "constant_norm_rescale" => (InputNormalization::ConstantNormRescale, false),
            "layer_norm" => (InputNormalization::LayerNorm, false),
            "covariance_whitening" => {
                return Err(unservable(
                    "covariance_whitening is not folded in, and its statistics are not in the files",
                ));
            }
            other => return Err(unservable(format!("{key} {other:?} is not known"))),
        },
        Some(other) => return Err(file.bad(key, &other, "the name of a normalisation")),
    })
}

/// hook_z is flattened over heads here as there; any other reshaping is not known.
fn check_reshape(file: &mut ConfigFile, hook: Option<&HookHint>) -> Result<(), FormatError> {
    let at_z = matches!(
        hook,
        None | Some(HookHint::Stated(HookPoint { site: Site::Z, .. }))
    );
    match file.text("reshape_activations")?.as_deref() {
        None | Some("none") => Ok(()),
        Some("hook_z") if at_z => Ok(()),
        Some(other) => Err(unservable(format!(
            "reshape_activations {other:?} does not fit its hook point"
        ))),
    }
}

fn read_activation(
    config: &Config,
    tensors: &mut TensorSet,
    d_sae: usize,
) -> Result<ActivationSource, FormatError> {
    if config.architecture == "gated" {
        return Ok(ActivationSource::Gated {
            b_gate: tensors.take("b_gate")?.vector(d_sae)?,
            r_mag: tensors.take("r_mag")?.vector(d_sae)?,
            b_mag: tensors.take("b_mag")?.vector(d_sae)?,
        });
    }
    let b_enc = tensors.take("b_enc")?.vector(d_sae)?;
    match config.architecture.as_str() {
        "standard" => Ok(ActivationSource::Relu { b_enc }),
        "jumprelu" => {
            let threshold = match tensors.take_optional("threshold") {
                Some(threshold) => threshold.vector(d_sae)?,
                // Checkpoints of training from before thresholds were kept as they are.
                None => tensors
                    .take_any(&["log_threshold", "threshold"])?
                    .vector(d_sae)?
                    .into_iter()
                    .map(f32::exp)
                    .collect(),
            };
            Ok(ActivationSource::JumpRelu { b_enc, threshold })
        }
        // A training checkpoint: SAELens itself turns it into JumpReLU like this.
        _ => match tensors
            .take_optional("topk_threshold")
            .or_else(|| tensors.take_optional("threshold"))
        {
            Some(threshold) => {
                let threshold = batch_topk_threshold(&threshold, d_sae)?;
                Ok(ActivationSource::JumpRelu { b_enc, threshold })
            }
            None => Err(unservable(
                "BatchTopK without a threshold: whether a feature fires depends on the rest of the batch",
            )),
        },
    }
}

/// The threshold that BatchTopK learns; a negative one was never learnt.
pub(super) fn batch_topk_threshold(tensor: &Tensor, d_sae: usize) -> Result<Vec<f32>, FormatError> {
    let threshold = tensor.vector_or_scalar(d_sae)?;
    match threshold.iter().find(|&&threshold| threshold < 0.0) {
        Some(negative) => Err(unservable(format!(
            "BatchTopK with threshold {negative}: whether a feature fires depends on the rest of the batch"
        ))),
        None if threshold.is_empty() => Err(malformed("has no threshold")),
        None => Ok(threshold),
    }
}
