//! GGUF metadata, as llama.cpp's converter writes it.

use candle_core::quantized::gguf_file::{Content, Value};

use super::{
    Activation, ConfigError, LayerConfig, ModelConfig, RopeConfig, RopePairing, RopeScaling,
};

/// `{arch}.*` keys with no effect on inference.
const INERT: &[&str] = &["vocab_size", "attention.causal", "pooling_type"];

struct Metadata<'a> {
    content: &'a Content,
    arch: &'a str,
    read: Vec<String>,
}

impl Metadata<'_> {
    fn value(&mut self, key: &str) -> Option<&Value> {
        let key = format!("{}.{key}", self.arch);
        let value = self.content.metadata.get(&key);
        self.read.push(key);
        value
    }

    fn size(&mut self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.value(key)
            .map(|v| {
                v.to_u64()
                    .ok()
                    .and_then(|n| usize::try_from(n).ok())
                    .ok_or_else(|| ConfigError::invalid(key, "must be a whole number"))
            })
            .transpose()
    }

    fn required_size(&mut self, key: &str) -> Result<usize, ConfigError> {
        self.size(key)?
            .ok_or_else(|| ConfigError::invalid(format!("{}.{key}", self.arch), "is required"))
    }

    fn number(&mut self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.value(key)
            .map(|v| match v {
                Value::F32(n) => Ok(f64::from(*n)),
                Value::F64(n) => Ok(*n),
                _ => Err(ConfigError::invalid(key, "must be a number")),
            })
            .transpose()
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, ConfigError> {
        self.value(key)
            .map(|v| match v {
                Value::String(text) => Ok(text.clone()),
                _ => Err(ConfigError::invalid(key, "must be a string")),
            })
            .transpose()
    }

    /// Refuses whatever nobody has read.
    fn finish(self) -> Result<(), ConfigError> {
        let prefix = format!("{}.", self.arch);
        let inert = |key: &str| INERT.contains(&&key[prefix.len()..]);
        let mut unread: Vec<&str> = self
            .content
            .metadata
            .keys()
            .map(String::as_str)
            .filter(|key| key.starts_with(&prefix))
            .filter(|key| !inert(key) && !self.read.iter().any(|read| read == key))
            .collect();
        unread.sort_unstable();
        if unread.is_empty() {
            return Ok(());
        }
        Err(ConfigError::invalid(
            unread.join(", "),
            "is not known to this version; refusing to serve a model whose metadata is not fully \
             understood",
        ))
    }
}

pub(super) fn parse(content: &Content) -> Result<ModelConfig, ConfigError> {
    let arch = match content.metadata.get("general.architecture") {
        Some(Value::String(arch)) => arch.as_str(),
        _ => return Err(ConfigError::invalid("general.architecture", "is required")),
    };
    let family = match arch {
        "gemma2" | "llama" | "qwen2" | "qwen3" => arch,
        "gemma3" => "gemma3_text",
        other => {
            let text = format!("is {other:?}; supported are gemma2, gemma3, llama, qwen2, qwen3");
            return Err(ConfigError::invalid("general.architecture", text));
        }
    };
    let mut metadata = Metadata {
        content,
        arch,
        read: Vec::new(),
    };
    let config = read(&mut metadata, family)?;
    metadata.finish()?;
    Ok(config)
}

fn read(metadata: &mut Metadata<'_>, family: &str) -> Result<ModelConfig, ConfigError> {
    let gemma = family.starts_with("gemma");
    let content = metadata.content;
    let d_model = metadata.required_size("embedding_length")?;
    let n_heads = metadata.required_size("attention.head_count")?;
    let n_layers = metadata.required_size("block_count")?;
    let key_length = metadata.size("attention.key_length")?;
    let head_dim = key_length.or(d_model.checked_div(n_heads)).unwrap_or(0);
    for key in ["attention.value_length", "rope.dimension_count"] {
        if metadata.size(key)?.is_some_and(|width| width != head_dim) {
            let text = format!("differs from the head dimension {head_dim}; not supported");
            return Err(ConfigError::invalid(key, text));
        }
    }
    let embedding = content
        .tensor_infos
        .get("token_embd.weight")
        .ok_or_else(|| ConfigError::invalid("token_embd.weight", "is missing from the file"))?;
    let rope = rope(metadata, family)?;
    let (ropes, layers) = layers(metadata, family, n_layers, rope)?;
    let has = |name: &str| content.tensor_infos.contains_key(name);
    // llama.cpp: the two 27B Gemmas scale by d_model / n_heads, all others by head_dim.
    let wide_gemma =
        (family == "gemma2" && n_layers == 46) || (family == "gemma3_text" && n_layers == 62);
    let query_scalar = if wide_gemma {
        d_model / n_heads.max(1)
    } else {
        head_dim
    };
    Ok(ModelConfig {
        family: family.to_owned(),
        d_model,
        d_mlp: metadata.required_size("feed_forward_length")?,
        n_heads,
        n_kv_heads: metadata.size("attention.head_count_kv")?.unwrap_or(n_heads),
        head_dim,
        vocab_size: embedding.shape.dims().first().copied().unwrap_or(0),
        context_length: metadata.required_size("context_length")?,
        layers,
        ropes,
        norm_eps: metadata
            .number("attention.layer_norm_rms_epsilon")?
            .unwrap_or(1e-6),
        norm_weight_offset: false, // the converter has added the 1
        sandwich_norms: gemma,
        qk_norm: has("blk.0.attn_q_norm.weight"),
        qkv_bias: has("blk.0.attn_q.bias"),
        o_bias: has("blk.0.attn_output.bias"),
        mlp_bias: has("blk.0.ffn_gate.bias"),
        activation: if gemma {
            Activation::GeluTanh
        } else {
            Activation::Silu
        },
        scale_embeddings: gemma,
        attention_scale: (query_scalar as f64).sqrt().recip(),
        attention_softcap: metadata.number("attn_logit_softcapping")?,
        final_softcap: metadata.number("final_logit_softcapping")?,
        tied_embeddings: !has("output.weight"),
        eos_token_ids: Vec::new(), // the tokenizer knows them
    })
}

fn rope(metadata: &mut Metadata<'_>, family: &str) -> Result<RopeConfig, ConfigError> {
    let theta = metadata.number("rope.freq_base")?;
    let kind = metadata.text("rope.scaling.type")?;
    let factor = metadata.number("rope.scaling.factor")?;
    let scaling = match (kind.as_deref(), factor) {
        (None | Some("none"), None) => RopeScaling::None,
        (None | Some("linear"), Some(factor)) if factor > 0.0 => RopeScaling::Linear { factor },
        (kind, factor) => {
            let text = format!("is {kind:?} with factor {factor:?}; supported is linear");
            return Err(ConfigError::invalid("rope.scaling.type", text));
        }
    };
    Ok(RopeConfig {
        theta: theta.unwrap_or(if family == "gemma3_text" { 1e6 } else { 1e4 }),
        scaling,
        pairing: if family == "llama" {
            RopePairing::Interleaved
        } else {
            RopePairing::Halves
        },
    })
}

/// Windows by llama.cpp's rule: every other layer of Gemma 2, five of six of Gemma 3.
fn layers(
    metadata: &mut Metadata<'_>,
    family: &str,
    n_layers: usize,
    rope: RopeConfig,
) -> Result<(Vec<RopeConfig>, Vec<LayerConfig>), ConfigError> {
    let window = metadata
        .size("attention.sliding_window")?
        .filter(|&w| w > 0);
    if n_layers > 1 << 10 {
        return Err(ConfigError::invalid(
            "block_count",
            format!("is {n_layers}; at most 1024"),
        ));
    }
    let pattern = match (family, window) {
        (_, None) => None,
        ("gemma2", Some(_)) => Some(2),
        ("gemma3_text", Some(_)) => Some(6),
        (_, Some(w)) => {
            let text = format!("is {w}; not supported for this family in GGUF");
            return Err(ConfigError::invalid("attention.sliding_window", text));
        }
    };
    let slides = |layer: usize| pattern.is_some_and(|n| layer % n != n - 1);
    let local = RopeConfig {
        theta: metadata.number("rope.freq_base_swa")?.unwrap_or(1e4),
        scaling: RopeScaling::None,
        pairing: rope.pairing,
    };
    let own_local_rope = family == "gemma3_text";
    let layers = (0..n_layers)
        .map(|layer| LayerConfig {
            window: window.filter(|_| slides(layer)),
            rope: usize::from(own_local_rope && slides(layer)),
        })
        .collect();
    Ok((vec![rope, local], layers))
}
