//! Hugging Face `config.json`, as transformers 4 and 5 write it.

use super::{
    Activation, ConfigError, LayerConfig, ModelConfig, RopeConfig, RopePairing, RopeScaling,
    fields::Fields,
};

/// Fields with no effect on inference, of every family.
const INERT: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "_sliding_window_pattern", // Gemma 3's default for layer_types; see layer_types()
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "dtype",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "pad_token_id",
    "pretraining_tp", // changes the order of sums in training-parallel checkpoints only
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Gemma2,
    Gemma3,
    Llama,
    Qwen2,
    Qwen3,
}

pub(super) fn parse(json: &str) -> Result<ModelConfig, ConfigError> {
    let mut fields = Fields::parse("", json)?;
    let model_type = fields
        .text("model_type")?
        .ok_or_else(|| ConfigError::invalid("model_type", "is required"))?;
    let family = match model_type.as_str() {
        "gemma2" => Family::Gemma2,
        "gemma3_text" => Family::Gemma3,
        "llama" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        other => {
            let text =
                format!("is {other:?}; supported are gemma2, gemma3_text, llama, qwen2 and qwen3");
            return Err(ConfigError::invalid("model_type", text));
        }
    };
    refuse_set(
        &mut fields,
        "quantization_config",
        "is set; use unquantised weights with --quantize, or a GGUF file",
    )?;
    let config = read(&mut fields, family, model_type)?;
    fields.ignore(INERT);
    fields.finish()?;
    Ok(config)
}

fn refuse_set(fields: &mut Fields, key: &str, problem: &str) -> Result<(), ConfigError> {
    match fields.take(key) {
        None => Ok(()),
        Some(_) => Err(ConfigError::invalid(key, problem)),
    }
}

fn read(
    fields: &mut Fields,
    family: Family,
    model_type: String,
) -> Result<ModelConfig, ConfigError> {
    let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    let d_model = fields.required_size("hidden_size")?;
    let n_layers = fields.required_size("num_hidden_layers")?;
    let n_heads = fields.required_size("num_attention_heads")?;
    let default_head_dim = match family {
        Family::Gemma2 | Family::Gemma3 => Some(256),
        Family::Qwen3 => Some(128),
        Family::Llama | Family::Qwen2 => d_model.checked_div(n_heads),
    };
    let head_dim = fields.size("head_dim")?.or(default_head_dim).unwrap_or(0);
    let attention_bias = fields.flag("attention_bias")?.unwrap_or(false);
    if attention_bias && gemma {
        return Err(ConfigError::invalid(
            "attention_bias",
            "is true; not supported for this family",
        ));
    }
    let (softcap, final_softcap, query_scalar) = if gemma {
        let softcap = fields.number("attn_logit_softcapping")?;
        if family == Family::Gemma3 && softcap.is_some() {
            let text = "is set; transformers ignores it for gemma3, so what is meant is unclear";
            return Err(ConfigError::invalid("attn_logit_softcapping", text));
        }
        (
            softcap,
            fields.number("final_logit_softcapping")?,
            fields.number("query_pre_attn_scalar")?.unwrap_or(256.0),
        )
    } else {
        (None, None, head_dim as f64)
    };
    let layer_types = layer_types(fields, family, n_layers)?;
    let (ropes, rope_of) = ropes(fields, family)?;
    let layers = layer_types
        .into_iter()
        .map(|window| LayerConfig {
            window,
            rope: rope_of(window.is_some()),
        })
        .collect();
    Ok(ModelConfig {
        family: model_type,
        d_model,
        d_mlp: fields.required_size("intermediate_size")?,
        n_heads,
        n_kv_heads: fields.size("num_key_value_heads")?.unwrap_or(n_heads),
        head_dim,
        vocab_size: fields.required_size("vocab_size")?,
        context_length: fields.size("max_position_embeddings")?.unwrap_or(8192),
        layers,
        ropes,
        norm_eps: fields.number("rms_norm_eps")?.unwrap_or(1e-6),
        norm_weight_offset: gemma,
        sandwich_norms: gemma,
        qk_norm: matches!(family, Family::Gemma3 | Family::Qwen3),
        qkv_bias: attention_bias || family == Family::Qwen2,
        o_bias: attention_bias && family != Family::Qwen2,
        mlp_bias: fields.flag("mlp_bias")?.unwrap_or(false),
        activation: activation(fields, gemma)?,
        scale_embeddings: gemma,
        attention_scale: query_scalar.sqrt().recip(),
        attention_softcap: softcap,
        final_softcap,
        tied_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(gemma),
        eos_token_ids: fields.token_ids("eos_token_id")?,
    })
}

fn activation(fields: &mut Fields, gemma: bool) -> Result<Activation, ConfigError> {
    let hidden_act = fields.text("hidden_act")?;
    // Gemma's `hidden_act: "gelu"` in old files means the tanh form: transformers
    // reads `hidden_activation`, whose default is gelu_pytorch_tanh.
    let name = if gemma {
        fields
            .text("hidden_activation")?
            .unwrap_or_else(|| "gelu_pytorch_tanh".to_owned())
    } else {
        hidden_act.unwrap_or_else(|| "silu".to_owned())
    };
    match name.as_str() {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::GeluErf),
        other => {
            let text = format!("is {other:?}; supported are silu, gelu, gelu_pytorch_tanh");
            Err(ConfigError::invalid("hidden_act", text))
        }
    }
}

/// The window of every layer: from `layer_types` where written, else by the
/// family's rule.
fn layer_types(
    fields: &mut Fields,
    family: Family,
    n_layers: usize,
) -> Result<Vec<Option<usize>>, ConfigError> {
    if n_layers > 1 << 10 {
        return Err(ConfigError::invalid(
            "num_hidden_layers",
            format!("is {n_layers}; at most 1024"),
        ));
    }
    let window = fields.size("sliding_window")?;
    let old_pattern = fields.size("sliding_window_pattern")?;
    let newer_pattern = fields.size("_sliding_window_pattern")?;
    let written = fields.texts("layer_types")?;
    let qwen_window = match family {
        Family::Qwen2 | Family::Qwen3 => {
            let first = fields.size("max_window_layers")?.unwrap_or(28);
            let enabled = fields.flag("use_sliding_window")?.unwrap_or(false);
            enabled.then_some(first)
        }
        _ => None,
    };
    if fields.flag("use_bidirectional_attention")? == Some(true) {
        let text = "is true; only causal attention is supported";
        return Err(ConfigError::invalid("use_bidirectional_attention", text));
    }
    let slides = |layer: usize| match family {
        Family::Gemma2 => layer.is_multiple_of(2),
        Family::Gemma3 => {
            let pattern = old_pattern.or(newer_pattern).unwrap_or(6).max(1);
            !(layer + 1).is_multiple_of(pattern)
        }
        Family::Llama => false,
        Family::Qwen2 | Family::Qwen3 => qwen_window.is_some_and(|first| layer >= first),
    };
    let sliding: Vec<bool> = match written {
        None => (0..n_layers).map(slides).collect(),
        Some(types) => read_layer_types(&types, n_layers)?,
    };
    if family == Family::Llama && (window.is_some() || sliding.contains(&true)) {
        let text = "is set; llama models have no sliding window in transformers";
        return Err(ConfigError::invalid("sliding_window", text));
    }
    let window = window.or(match family {
        Family::Gemma2 | Family::Gemma3 => Some(4096),
        _ => None,
    });
    if sliding.contains(&true) && window.is_none_or(|w| w == 0) {
        return Err(ConfigError::invalid(
            "sliding_window",
            "is needed by the layers that slide",
        ));
    }
    Ok(sliding
        .into_iter()
        .map(|slides| window.filter(|_| slides))
        .collect())
}

fn read_layer_types(types: &[String], n_layers: usize) -> Result<Vec<bool>, ConfigError> {
    if types.len() != n_layers {
        let text = format!("has {} entries for {n_layers} layers", types.len());
        return Err(ConfigError::invalid("layer_types", text));
    }
    types
        .iter()
        .map(|name| match name.as_str() {
            "sliding_attention" => Ok(true),
            "full_attention" => Ok(false),
            other => Err(ConfigError::invalid(
                "layer_types",
                format!("has {other:?}; known are full_attention and sliding_attention"),
            )),
        })
        .collect()
}

/// Rotary embeddings, and which one a layer uses given whether it slides.
type Ropes = (Vec<RopeConfig>, fn(bool) -> usize);

/// All rotary embeddings, and which one a layer uses given whether it slides.
fn ropes(fields: &mut Fields, family: Family) -> Result<Ropes, ConfigError> {
    let default_theta = match family {
        Family::Gemma3 => 1e6,
        _ => 1e4,
    };
    let old_theta = fields.number("rope_theta")?;
    let old_scaling = fields.object("rope_scaling")?;
    let local_theta = fields.number("rope_local_base_freq")?;
    let parameters = fields.object("rope_parameters")?;
    if parameters.is_some() && old_scaling.is_some() {
        let text = "is given beside rope_parameters; only one can be meant";
        return Err(ConfigError::invalid("rope_scaling", text));
    }
    if family != Family::Gemma3 {
        if local_theta.is_some() {
            return Err(ConfigError::invalid(
                "rope_local_base_freq",
                "is for gemma3 only",
            ));
        }
        let theta = old_theta.unwrap_or(default_theta);
        let rope = match parameters.or(old_scaling) {
            None => plain_rope(theta),
            Some(rope) => read_rope(rope, theta)?,
        };
        return Ok((vec![rope], |_| 0));
    }
    let mut global = None;
    let mut local = None;
    if let Some(mut parameters) = parameters {
        let full = parameters.object("full_attention")?;
        let sliding = parameters.object("sliding_attention")?;
        global = full
            .map(|rope| read_rope(rope, default_theta))
            .transpose()?;
        local = sliding.map(|rope| read_rope(rope, 1e4)).transpose()?;
        if global.is_some() || local.is_some() {
            parameters.finish()?;
        } else {
            global = Some(read_rope(parameters, default_theta)?);
        }
    }
    let old_theta = old_theta.unwrap_or(default_theta);
    let global = match (global, old_scaling) {
        (Some(rope), _) => rope,
        (None, Some(scaling)) => read_rope(scaling, old_theta)?,
        (None, None) => plain_rope(old_theta),
    };
    let local = local.unwrap_or_else(|| plain_rope(local_theta.unwrap_or(1e4)));
    Ok((vec![global, local], usize::from))
}

fn plain_rope(theta: f64) -> RopeConfig {
    RopeConfig {
        theta,
        scaling: RopeScaling::None,
        pairing: RopePairing::Halves,
    }
}

fn read_rope(mut fields: Fields, default_theta: f64) -> Result<RopeConfig, ConfigError> {
    let theta = fields.number("rope_theta")?.unwrap_or(default_theta);
    if !(theta.is_finite() && theta > 0.0) {
        return Err(ConfigError::invalid(
            "rope_theta",
            format!("is {theta}; must be above 0"),
        ));
    }
    let old_name = fields.text("type")?;
    let kind = fields.text("rope_type")?.or(old_name);
    let scaling = match kind.as_deref() {
        None | Some("default") => RopeScaling::None,
        Some("linear") => RopeScaling::Linear {
            factor: fields.required_number("factor")?,
        },
        Some("llama3") => RopeScaling::Llama3 {
            factor: fields.required_number("factor")?,
            low_freq_factor: fields.required_number("low_freq_factor")?,
            high_freq_factor: fields.required_number("high_freq_factor")?,
            original_context: fields.required_number("original_max_position_embeddings")?,
        },
        Some(other) => {
            let text = format!("is {other:?}; supported are default, linear and llama3");
            return Err(ConfigError::invalid("rope_type", text));
        }
    };
    if fields
        .number("partial_rotary_factor")?
        .is_some_and(|v| v != 1.0)
    {
        return Err(ConfigError::invalid("partial_rotary_factor", "must be 1"));
    }
    fields.finish()?;
    Ok(RopeConfig {
        theta,
        scaling,
        pairing: RopePairing::Halves,
    })
}
