//! GGUF files against the reference. The fixtures' weights are written as
//! llama.cpp's converter writes them (Llama's query and key rows permuted for
//! interleaved rotary pairs), with candle's GGUF writer.

mod support;

use std::{collections::HashMap, fs::File, path::Path};

use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Content, Value},
    },
    safetensors,
};
use serde_json::Value as Json;
use steering_worker::model::{LoadOptions, Model};
use support::{Fixture, decode::decode_alone, f32_on_cpu};

/// Families whose fixture a GGUF file can express.
const FAMILIES: [&str; 4] = ["llama", "llama_rope3", "smollm2", "qwen3"];

const LAYER_NAMES: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

fn gguf_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".to_owned(),
        "model.norm.weight" => return "output_norm.weight".to_owned(),
        "lm_head.weight" => return "output.weight".to_owned(),
        _ => {}
    }
    let rest = name
        .strip_prefix("model.layers.")
        .expect("a layer's tensor");
    let (layer, part) = rest.split_once('.').expect("layer number");
    let (part, kind) = part.rsplit_once('.').expect("weight or bias");
    let (_, part) = LAYER_NAMES
        .iter()
        .find(|(hf, _)| *hf == part)
        .expect("known part");
    format!("blk.{layer}.{part}.{kind}")
}

/// Rows of each head from `(i, i + half)` pairs to `(2i, 2i + 1)` pairs.
fn interleaved(tensor: &Tensor, head_dim: usize) -> Tensor {
    let rows = tensor.dim(0).expect("rows");
    let half = head_dim / 2;
    let order: Vec<u32> = (0..rows / head_dim)
        .flat_map(|head| (0..half).flat_map(move |i| [0, half].map(|at| head * head_dim + at + i)))
        .map(|row| row as u32)
        .collect();
    let order = Tensor::from_vec(order, rows, &Device::Cpu).expect("order");
    tensor.index_select(&order, 0).expect("rows")
}

fn metadata(arch: &str, config: &Json, head_dim: usize) -> Vec<(String, Value)> {
    let size = |key: &str| Value::U32(config[key].as_u64().expect(key) as u32);
    let number = |value: &Json| Value::F32(value.as_f64().expect("number") as f32);
    let theta = match &config["rope_theta"] {
        Json::Null => &config["rope_parameters"]["rope_theta"],
        theta => theta,
    };
    [
        ("embedding_length", size("hidden_size")),
        ("feed_forward_length", size("intermediate_size")),
        ("block_count", size("num_hidden_layers")),
        ("context_length", size("max_position_embeddings")),
        ("attention.head_count", size("num_attention_heads")),
        ("attention.head_count_kv", size("num_key_value_heads")),
        ("attention.key_length", Value::U32(head_dim as u32)),
        ("attention.value_length", Value::U32(head_dim as u32)),
        ("rope.dimension_count", Value::U32(head_dim as u32)),
        (
            "attention.layer_norm_rms_epsilon",
            number(&config["rms_norm_eps"]),
        ),
        ("rope.freq_base", number(theta)),
    ]
    .into_iter()
    .map(|(key, value)| (format!("{arch}.{key}"), value))
    .chain([(
        "general.architecture".to_owned(),
        Value::String(arch.to_owned()),
    )])
    .collect()
}

/// Llama 3.1's factors, as the converter computes them.
fn rope_factors(rope: &Json, head_dim: usize) -> Vec<f32> {
    let number = |key: &str| rope[key].as_f64().expect(key);
    let (factor, low, high) = (
        number("factor"),
        number("low_freq_factor"),
        number("high_freq_factor"),
    );
    let context = number("original_max_position_embeddings");
    (0..head_dim / 2)
        .map(|i| {
            let exponent = 2.0 * i as f64 / head_dim as f64;
            let wavelength = 2.0 * std::f64::consts::PI * number("rope_theta").powf(exponent);
            if wavelength < context / high {
                1.0
            } else if wavelength > context / low {
                factor as f32
            } else {
                let smooth = (context / wavelength - low) / (high - low);
                (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
            }
        })
        .collect()
}

/// Writes a fixture's model as GGUF, matrices in `dtype` where its blocks fit.
fn write_gguf(fixture: &Fixture, path: &Path, dtype: GgmlDType) {
    let json = std::fs::read_to_string(fixture.dir.join("model/config.json")).expect("config");
    let config: Json = serde_json::from_str(&json).expect("config");
    let arch = config["model_type"].as_str().expect("model_type");
    let heads = config["num_attention_heads"].as_u64().expect("heads");
    let default = config["hidden_size"].as_u64().expect("width") / heads;
    let head_dim = config["head_dim"].as_u64().unwrap_or(default) as usize;
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for file in fixture.weights() {
        tensors.extend(safetensors::load(file, &Device::Cpu).expect("weights"));
    }
    let mut converted: Vec<(String, QTensor)> = tensors
        .iter()
        .map(|(name, tensor)| {
            let name = gguf_name(name);
            let rotated = name.contains("attn_q.") || name.contains("attn_k.");
            let tensor = if arch == "llama" && rotated {
                interleaved(tensor, head_dim)
            } else {
                tensor.clone()
            };
            let fits =
                tensor.rank() == 2 && tensor.dim(1).is_ok_and(|w| w % dtype.block_size() == 0);
            let dtype = if fits { dtype } else { GgmlDType::F32 };
            (name, QTensor::quantize(&tensor, dtype).expect("quantise"))
        })
        .collect();
    if config["rope_parameters"]["rope_type"] == "llama3" {
        let factors = rope_factors(&config["rope_parameters"], head_dim);
        let factors = Tensor::from_vec(factors, head_dim / 2, &Device::Cpu).expect("factors");
        let factors = QTensor::quantize(&factors, GgmlDType::F32).expect("f32");
        converted.push(("rope_freqs.weight".to_owned(), factors));
    }
    let metadata = metadata(arch, &config, head_dim);
    let metadata: Vec<(&str, &Value)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let converted: Vec<(&str, &QTensor)> = converted.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let mut file = File::create(path).expect("file");
    gguf_file::write(&mut file, &metadata, &converted).expect("written");
}

fn load(path: &Path, dequantize: bool) -> Model {
    let content = Content::read(&mut File::open(path).expect("file")).expect("header");
    let options = LoadOptions {
        dequantize,
        ..f32_on_cpu()
    };
    Model::load_gguf(path, content, &options).expect("loads")
}

#[test]
fn an_unquantised_file_matches_the_reference() {
    let folder = tempfile::tempdir().expect("folder");
    for family in FAMILIES {
        let fixture = Fixture::load(family);
        let path = folder.path().join(family);
        write_gguf(&fixture, &path, GgmlDType::F32);
        let model = load(&path, false);
        for case in &fixture.cases.cases {
            let run = decode_alone(&model, &fixture, case);
            let expected = fixture.logits[&case.name].to_vec2::<f32>().expect("f32");
            let error = run.difference(&expected);
            assert!(error <= 1e-4, "{family}/{}: {error}", case.name);
            assert_eq!(run.greedy(), case.token_ids, "{family}/{}", case.name);
        }
    }
}

#[test]
fn a_quantised_file_is_near_its_dequantised_self() {
    let folder = tempfile::tempdir().expect("folder");
    let fixture = Fixture::load("qwen3");
    let path = folder.path().join("model.gguf");
    for dtype in [GgmlDType::Q8_0, GgmlDType::Q5_0, GgmlDType::Q4_1] {
        write_gguf(&fixture, &path, dtype);
        let case = fixture.case("two_layers");
        let quantised = decode_alone(&load(&path, false), &fixture, case);
        let expanded = decode_alone(&load(&path, true), &fixture, case);
        // They differ by the rounding of activations to 8 bits alone.
        let error = quantised.relative_error(&expanded.logits);
        assert!(error > 0.0 && error <= 0.03, "{dtype:?}: {error}");
    }
}

#[test]
fn a_mapped_file_is_the_same_as_a_copy() {
    let folder = tempfile::tempdir().expect("folder");
    let fixture = Fixture::load("qwen3");
    let path = folder.path().join("model.gguf");
    write_gguf(&fixture, &path, GgmlDType::Q5_0);
    let header = || Content::read(&mut File::open(&path).expect("file")).expect("header");
    let load = |map| {
        let options = LoadOptions {
            map,
            ..f32_on_cpu()
        };
        Model::load_gguf(&path, header(), &options)
    };
    let case = fixture.case("two_layers");
    let mapped = decode_alone(&load(true).expect("loads"), &fixture, case);
    let copied = decode_alone(&load(false).expect("loads"), &fixture, case);
    assert_eq!(mapped.logits, copied.logits);
    let file = File::options().write(true).open(&path).expect("file");
    let cut = header().tensor_data_offset + 100;
    file.set_len(cut).expect("is cut");
    for map in [true, false] {
        let error = load(map).expect_err("the tensors are not there");
        assert!(!error.to_string().is_empty(), "{error}");
    }
}

#[test]
fn metadata_that_is_not_understood_is_refused() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("model.gguf");
    let fixture = Fixture::load("smollm2");
    write_gguf(&fixture, &path, GgmlDType::F32);
    let mut content = Content::read(&mut File::open(&path).expect("file")).expect("header");
    content
        .metadata
        .insert("llama.expert_count".to_owned(), Value::U32(8));
    let error = Model::load_gguf(&path, content, &f32_on_cpu()).expect_err("refused");
    assert!(error.to_string().contains("llama.expert_count"), "{error}");
}
