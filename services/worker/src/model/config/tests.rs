use super::*;
use serde_json::{Value, json};

fn llama() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 100, "max_position_embeddings": 64, "torch_dtype": "bfloat16"
    })
}

fn gemma2() -> Value {
    json!({
        "model_type": "gemma2", "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 24, "vocab_size": 100, "max_position_embeddings": 64,
        "query_pre_attn_scalar": 40, "sliding_window": 8, "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh"
    })
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

fn refused(config: &Value) -> String {
    ModelConfig::from_hf(&config.to_string())
        .expect_err("refused")
        .to_string()
}

#[test]
fn gemma_2_slides_on_every_other_layer_and_scales_by_its_own_scalar() {
    let config = ModelConfig::from_hf(&gemma2().to_string()).expect("parses");
    let windows: Vec<_> = config.layers.iter().map(|layer| layer.window).collect();
    assert_eq!(windows, [Some(8), None, Some(8), None]);
    assert_eq!(config.attention_scale, 40f64.sqrt().recip());
    assert!(config.tied_embeddings && config.sandwich_norms && config.norm_weight_offset);
}

#[test]
fn layer_types_override_the_rule() {
    let types = json!([
        "full_attention",
        "full_attention",
        "full_attention",
        "sliding_attention"
    ]);
    let config = with(gemma2(), "layer_types", types);
    let config = ModelConfig::from_hf(&config.to_string()).expect("parses");
    let windows: Vec<_> = config.layers.iter().map(|layer| layer.window).collect();
    assert_eq!(windows, [None, None, None, Some(8)]);
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    for (key, value) in [
        ("moe_router_topk", json!(2)),
        ("quantization_config", json!({"bits": 4})),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 4.0})),
        ("hidden_act", json!("relu6")),
        ("sliding_window", json!(16)),
        ("num_attention_heads", json!(0)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("vocab_size", json!(-1)),
        ("head_dim", json!(15)),
        ("num_key_value_heads", json!(3)),
    ] {
        let message = refused(&with(llama(), key, value));
        let named = key.trim_start_matches("rope_").trim_start_matches("num_");
        let named = named.split('_').next().unwrap_or(key);
        assert!(
            message.to_lowercase().contains(named) || message.contains("type"),
            "{key}: {message}"
        );
    }
    assert!(refused(&json!({"model_type": "mamba"})).contains("supported are"));
    assert!(refused(&json!([])).contains("JSON object"));
}

#[test]
fn features_switched_off_are_harmless() {
    let config = with(
        with(llama(), "some_new_flag", json!(false)),
        "another",
        Value::Null,
    );
    assert!(ModelConfig::from_hf(&config.to_string()).is_ok());
}

#[test]
fn rope_scaling_is_that_of_transformers() {
    let rope = |scaling| RopeConfig {
        theta: 10_000.0,
        scaling,
        pairing: RopePairing::Halves,
    };
    let plain = rope(RopeScaling::None).inverse_frequencies(8);
    assert!((plain[1] - 0.1).abs() < 1e-7);
    let linear = rope(RopeScaling::Linear { factor: 4.0 }).inverse_frequencies(8);
    assert_eq!(linear[1], plain[1] / 4.0);
    let llama3 = rope(RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 64.0,
    })
    .inverse_frequencies(8);
    assert_eq!(llama3[0], plain[0], "high frequencies are kept");
    assert_eq!(llama3[3], plain[3] / 8.0, "low ones divided");
}
