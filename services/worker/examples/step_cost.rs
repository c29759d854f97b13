//! The same step of a small random model again and again, for a counter of
//! instructions: the difference of two runs is what the steps between them cost.
//!
//! `cargo run --release --example step_cost -- FORMAT PROMPT|ROWS TIMES`
//!
//! FORMAT is `f32` or a quantisation such as `q8_0`; `p64` is a prompt of 64 tokens,
//! `16` a step of 16 sequences. [`benches/instructions.py`] counts.
//!
//! [`benches/instructions.py`]: ../benches/instructions.py

use std::{collections::HashMap, path::Path};

use candle_core::{Device, Error, Result, Tensor, safetensors};
use steering_worker::model::{
    Batch, Chunk, LoadOptions, Logits, Model, NoHook, Precision, Scores, compute_on_this_thread,
};

/// Widths that every format's blocks divide.
const WIDTH: usize = 256;
const FEED_FORWARD: usize = 512;
const VOCABULARY: usize = 1024;
const LAYERS: usize = 2;

fn main() -> Result<()> {
    compute_on_this_thread();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [format, work, times] = &arguments[..] else {
        return Err(Error::Msg("give FORMAT, PROMPT or ROWS, TIMES".to_owned()));
    };
    let model = model(format)?;
    let (sequences, tokens) = match work.strip_prefix('p') {
        Some(tokens) => (1, tokens.parse().map_err(Error::wrap)?),
        None => (work.parse().map_err(Error::wrap)?, 1),
    };
    for _ in 0..times.parse::<usize>().map_err(Error::wrap)? {
        let mut cache = model.new_cache(sequences);
        let chunk = |slot| Chunk {
            slot,
            start: 0,
            tokens: (0..tokens).map(|i| 10 + 7 * i).collect(),
            logits: Logits::Last,
            shared: None,
        };
        let batch = Batch {
            chunks: (0..sequences).map(chunk).collect(),
        };
        model.forward(&batch, &mut cache, &mut NoHook, &mut Scores::default())?;
    }
    Ok(())
}

/// A Llama of random weights, by way of its files.
fn model(format: &str) -> Result<Model> {
    let folder = tempfile::tempdir()?;
    let config = folder.path().join("config.json");
    let json = format!(
        r#"{{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": {WIDTH},
        "intermediate_size": {FEED_FORWARD}, "num_hidden_layers": {LAYERS}, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": {VOCABULARY}, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": true}}"#
    );
    std::fs::write(&config, json)?;
    let weights = folder.path().join("model.safetensors");
    save(&weights)?;
    let options = LoadOptions {
        precision: Precision::F32,
        quantize: match format {
            "f32" => None,
            name => Some(name.parse().map_err(Error::Msg)?),
        },
        dequantize: false,
        map: true,
        device: Device::Cpu,
    };
    Model::load_hf(&config, &[weights], &options).map_err(Error::wrap)
}

fn save(path: &Path) -> Result<()> {
    let mut tensors = HashMap::new();
    let mut add = |name: String, shape: &[usize]| -> Result<()> {
        let n: usize = shape.iter().product();
        let values: Vec<f32> = (0..n)
            .map(|i| ((i * 31) % 97) as f32 / 97.0 - 0.5)
            .collect();
        tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        Ok(())
    };
    add("model.embed_tokens.weight".to_owned(), &[VOCABULARY, WIDTH])?;
    add("model.norm.weight".to_owned(), &[WIDTH])?;
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("input_layernorm", &[WIDTH][..]),
            ("post_attention_layernorm", &[WIDTH]),
            ("self_attn.q_proj", &[WIDTH, WIDTH]),
            ("self_attn.k_proj", &[WIDTH / 2, WIDTH]),
            ("self_attn.v_proj", &[WIDTH / 2, WIDTH]),
            ("self_attn.o_proj", &[WIDTH, WIDTH]),
            ("mlp.gate_proj", &[FEED_FORWARD, WIDTH]),
            ("mlp.up_proj", &[FEED_FORWARD, WIDTH]),
            ("mlp.down_proj", &[WIDTH, FEED_FORWARD]),
        ] {
            add(format!("model.layers.{layer}.{name}.weight"), shape)?;
        }
    }
    safetensors::save(&tensors, path)
}
