//! The golden tokenizers, written as GGUF metadata: what comes out must be
//! what `tokenizers` makes of the originals.

use std::{fs, path::PathBuf};

use serde_json::Value as Json;
use steering_proto::generate::Message;

use super::*;

fn fixture(family: &str, file: &str) -> Json {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/fixtures")
        .join(family)
        .join(file);
    let text = fs::read_to_string(path).expect("the fixture is there");
    serde_json::from_str(&text).expect("the fixture parses")
}

fn strings(items: impl IntoIterator<Item = String>) -> Value {
    Value::Array(items.into_iter().map(Value::String).collect())
}

/// `tokenizer.json` as a converter to GGUF would write it.
fn metadata(family: &str, model: &str, pre: &str) -> GgufMetadata {
    let json = fixture(family, "model/tokenizer.json");
    let vocab = json["model"]["vocab"].as_object().expect("a vocabulary");
    let mut tokens: Vec<(u64, String, i32)> = vocab
        .iter()
        .map(|(text, id)| (id.as_u64().expect("an id"), text.clone(), 1))
        .collect();
    for token in json["added_tokens"].as_array().expect("added tokens") {
        let id = token["id"].as_u64().expect("an id");
        let text = token["content"].as_str().expect("text").to_owned();
        tokens.retain(|(other, ..)| *other != id);
        tokens.push((id, text, if token["special"] == true { 3 } else { 4 }));
    }
    tokens.sort();
    let merges: Vec<(String, String)> = json["model"]["merges"]
        .as_array()
        .expect("merges")
        .iter()
        .map(|pair| {
            let side = |i: usize| pair[i].as_str().expect("text").to_owned();
            (side(0), side(1))
        })
        .collect();
    let score = |text: &str| {
        let rank = merges.iter().position(|(a, b)| format!("{a}{b}") == text);
        -(rank.unwrap_or(merges.len()) as f32)
    };
    let kind = |text: &str, kind: i32| match text {
        "<unk>" => 2,
        _ if model == "llama" && text.starts_with("<0x") => 6,
        _ => kind,
    };
    let mut metadata = GgufMetadata::new();
    let mut set = |key: &str, value| metadata.insert(format!("tokenizer.{key}"), value);
    set("ggml.model", Value::String(model.to_owned()));
    set("ggml.pre", Value::String(pre.to_owned()));
    set(
        "ggml.scores",
        Value::Array(tokens.iter().map(|t| Value::F32(score(&t.1))).collect()),
    );
    set(
        "ggml.token_type",
        Value::Array(tokens.iter().map(|t| Value::I32(kind(&t.1, t.2))).collect()),
    );
    set(
        "ggml.merges",
        strings(merges.iter().map(|(a, b)| format!("{a} {b}"))),
    );
    let config = fixture(family, "model/tokenizer_config.json");
    for name in ["bos", "eos"] {
        let token = &config[format!("{name}_token")];
        let text = token.get("content").unwrap_or(token).as_str();
        let found = tokens.iter().find(|token| Some(token.1.as_str()) == text);
        if let Some((id, ..)) = found {
            set(&format!("ggml.{name}_token_id"), Value::U32(*id as u32));
        }
    }
    let template = config["chat_template"].as_str().expect("a template");
    set("chat_template", Value::String(template.to_owned()));
    set(
        "ggml.tokens",
        strings(tokens.into_iter().map(|token| token.1)),
    );
    metadata
}

fn agrees(family: &str, metadata: &GgufMetadata, except: &[&str]) {
    let codec = TextCodec::from_gguf(metadata).expect("loads");
    for case in fixture(family, "tokenizer_cases.json")
        .as_array()
        .expect("cases")
    {
        let text = case["text"].as_str().expect("text");
        if except.iter().any(|part| text.contains(part)) {
            continue;
        }
        let ids = codec.encode(text).expect("encodes");
        assert_eq!(serde_json::json!(ids), case["ids"], "{family}: {text:?}");
        let ids = codec.encode_bare(text).expect("encodes");
        assert_eq!(
            serde_json::json!(ids),
            case["ids_without_special"],
            "{family}: {text:?}"
        );
        let decoded = codec.decode(&ids, true).expect("decodes");
        assert_eq!(
            case["decoded"].as_str(),
            Some(decoded.as_str()),
            "{family}: {text:?}"
        );
    }
}

#[test]
fn byte_level_tokenizers_are_those_of_the_original() {
    agrees(
        "llama_rope3",
        &metadata("llama_rope3", "gpt2", "llama-bpe"),
        &[],
    );
    agrees("qwen2", &metadata("qwen2", "gpt2", "qwen2"), &[]);
    let mut smollm2 = metadata("smollm2", "gpt2", "smollm");
    smollm2.insert(
        "tokenizer.ggml.add_bos_token".to_owned(),
        Value::Bool(false),
    );
    agrees("smollm2", &smollm2, &[]);
}

#[test]
fn scored_tokenizers_are_those_of_the_original() {
    let mut gemma = metadata("gemma2", "llama", "default");
    gemma.insert(
        "tokenizer.ggml.add_space_prefix".to_owned(),
        Value::Bool(false),
    );
    agrees("gemma2", &gemma, &[]);
    // With a space prefix llama.cpp puts one after a special token too, and
    // one before an empty text it does not.
    agrees(
        "llama",
        &metadata("llama", "llama", "default"),
        &["<s>", "<unk>"],
    );
}

#[test]
fn the_end_of_a_turn_is_an_end() {
    let codec = TextCodec::from_gguf(&metadata("gemma2", "llama", "default")).expect("loads");
    let ends: Vec<_> = codec
        .end_token_ids()
        .iter()
        .map(|&id| codec.piece(id))
        .collect();
    assert!(ends.contains(&Some("<eos>".to_owned())));
    assert!(ends.contains(&Some("<end_of_turn>".to_owned())));
    assert!(codec.end_token_ids().iter().all(|&id| codec.is_special(id)));
}

#[test]
fn the_template_sees_the_special_tokens() {
    let codec = TextCodec::from_gguf(&metadata("gemma2", "llama", "default")).expect("loads");
    let message = Message {
        role: "user".to_owned(),
        content: "Hi".to_owned(),
    };
    let rendered = codec.render_chat(&[message], true).expect("renders");
    assert_eq!(
        rendered,
        "<bos><start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\n"
    );
    let ids = codec.encode_bare(&rendered).expect("encodes");
    assert_eq!(
        ids.iter()
            .filter(|&&id| Some(id) == codec.bos_token_id())
            .count(),
        1
    );
    let mut without = metadata("gemma2", "llama", "default");
    without.remove("tokenizer.chat_template");
    let codec = TextCodec::from_gguf(&without).expect("loads");
    assert!(!codec.has_chat_template());
    assert!(matches!(
        codec.render_chat(&[], true),
        Err(TextError::NoChatTemplate)
    ));
}

#[test]
fn bad_metadata_is_named() {
    let good = metadata("smollm2", "gpt2", "smollm");
    let fails = |key: &str, value: Option<Value>| {
        let mut metadata = good.clone();
        let key = format!("tokenizer.ggml.{key}");
        match value {
            None => metadata.remove(&key),
            Some(value) => metadata.insert(key.clone(), value),
        };
        let error = TextCodec::from_gguf(&metadata)
            .expect_err("refused")
            .to_string();
        assert!(error.contains(&key), "{error}");
        error
    };
    fails("model", None);
    fails("model", Some(Value::String("bert".to_owned())));
    assert!(fails("pre", Some(Value::String("tekken".to_owned()))).contains("llama-bpe"));
    fails("tokens", None);
    fails("token_type", Some(Value::Array(vec![Value::I32(1)])));
    fails("merges", None);
    fails("merges", Some(strings(["nospace".to_owned()])));
    fails("merges", Some(strings(["never seen".to_owned()])));
    fails("eos_token_id", Some(Value::String("x".to_owned())));
    fails("add_bos_token", Some(Value::U32(1)));
    let count = match &good["tokenizer.ggml.tokens"] {
        Value::Array(tokens) => tokens.len(),
        _ => 0,
    };
    fails("token_type", Some(Value::Array(vec![Value::I32(9); count])));
    fails("tokens", Some(Value::Array(vec![Value::Bool(true); count])));
}
