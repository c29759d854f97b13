//! What tensors are called in each kind of file.

/// A tensor of the model, by its part in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum Part {
    Embedding,
    FinalNorm,
    Head,
    /// A tensor of a layer: Hugging Face's name, GGUF's name.
    Layer(usize, LayerPart),
}

/// A tensor of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum LayerPart {
    AttentionNorm,
    AttentionPostNorm,
    MlpNorm,
    MlpPostNorm,
    Q,
    QBias,
    QNorm,
    K,
    KBias,
    KNorm,
    V,
    VBias,
    O,
    OBias,
    Gate,
    GateBias,
    Up,
    UpBias,
    Down,
    DownBias,
}

/// A naming scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::model) enum Scheme {
    /// transformers' checkpoints. With sandwich norms, the name
    /// `post_attention_layernorm` means the norm *after* attention, else the
    /// one in front of the MLP.
    HuggingFace {
        sandwich_norms: bool,
    },
    Gguf,
}

impl Scheme {
    pub(in crate::model) fn name(self, part: Part) -> String {
        match (self, part) {
            (Self::HuggingFace { .. }, Part::Embedding) => "model.embed_tokens.weight".to_owned(),
            (Self::HuggingFace { .. }, Part::FinalNorm) => "model.norm.weight".to_owned(),
            (Self::HuggingFace { .. }, Part::Head) => "lm_head.weight".to_owned(),
            (Self::HuggingFace { sandwich_norms }, Part::Layer(layer, part)) => {
                format!(
                    "model.layers.{layer}.{}",
                    hugging_face(part, sandwich_norms)
                )
            }
            (Self::Gguf, Part::Embedding) => "token_embd.weight".to_owned(),
            (Self::Gguf, Part::FinalNorm) => "output_norm.weight".to_owned(),
            (Self::Gguf, Part::Head) => "output.weight".to_owned(),
            (Self::Gguf, Part::Layer(layer, part)) => format!("blk.{layer}.{}", gguf(part)),
        }
    }

    /// Tensors that repeat what is known anyway.
    pub(in crate::model) fn is_redundant(self, name: &str) -> bool {
        // A tied checkpoint may repeat the embedding as its head; old ones store
        // rotary frequencies.
        name == "lm_head.weight" || name.ends_with(".rotary_emb.inv_freq")
    }
}

fn hugging_face(part: LayerPart, sandwich_norms: bool) -> &'static str {
    match part {
        LayerPart::AttentionNorm => "input_layernorm.weight",
        LayerPart::AttentionPostNorm => "post_attention_layernorm.weight",
        LayerPart::MlpNorm if sandwich_norms => "pre_feedforward_layernorm.weight",
        LayerPart::MlpNorm => "post_attention_layernorm.weight",
        LayerPart::MlpPostNorm => "post_feedforward_layernorm.weight",
        LayerPart::Q => "self_attn.q_proj.weight",
        LayerPart::QBias => "self_attn.q_proj.bias",
        LayerPart::QNorm => "self_attn.q_norm.weight",
        LayerPart::K => "self_attn.k_proj.weight",
        LayerPart::KBias => "self_attn.k_proj.bias",
        LayerPart::KNorm => "self_attn.k_norm.weight",
        LayerPart::V => "self_attn.v_proj.weight",
        LayerPart::VBias => "self_attn.v_proj.bias",
        LayerPart::O => "self_attn.o_proj.weight",
        LayerPart::OBias => "self_attn.o_proj.bias",
        LayerPart::Gate => "mlp.gate_proj.weight",
        LayerPart::GateBias => "mlp.gate_proj.bias",
        LayerPart::Up => "mlp.up_proj.weight",
        LayerPart::UpBias => "mlp.up_proj.bias",
        LayerPart::Down => "mlp.down_proj.weight",
        LayerPart::DownBias => "mlp.down_proj.bias",
    }
}

fn gguf(part: LayerPart) -> &'static str {
    match part {
        LayerPart::AttentionNorm => "attn_norm.weight",
        LayerPart::AttentionPostNorm => "post_attention_norm.weight",
        LayerPart::MlpNorm => "ffn_norm.weight",
        LayerPart::MlpPostNorm => "post_ffw_norm.weight",
        LayerPart::Q => "attn_q.weight",
        LayerPart::QBias => "attn_q.bias",
        LayerPart::QNorm => "attn_q_norm.weight",
        LayerPart::K => "attn_k.weight",
        LayerPart::KBias => "attn_k.bias",
        LayerPart::KNorm => "attn_k_norm.weight",
        LayerPart::V => "attn_v.weight",
        LayerPart::VBias => "attn_v.bias",
        LayerPart::O => "attn_output.weight",
        LayerPart::OBias => "attn_output.bias",
        LayerPart::Gate => "ffn_gate.weight",
        LayerPart::GateBias => "ffn_gate.bias",
        LayerPart::Up => "ffn_up.weight",
        LayerPart::UpBias => "ffn_up.bias",
        LayerPart::Down => "ffn_down.weight",
        LayerPart::DownBias => "ffn_down.bias",
    }
}
