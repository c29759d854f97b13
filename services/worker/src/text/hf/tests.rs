use std::path::PathBuf;

use serde_json::json;
use steering_proto::generate::Message;
use tempfile::TempDir;

use super::*;

/// A copy of a golden tokenizer that can be changed.
fn folder(family: &str) -> TempDir {
    let from = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/fixtures")
        .join(family)
        .join("model");
    let dir = tempfile::tempdir().expect("a folder");
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(from.join(name), dir.path().join(name)).expect("the fixture is there");
    }
    dir
}

fn change(dir: &TempDir, file: &str, with: impl FnOnce(&mut Value)) {
    let path = dir.path().join(file);
    let mut json = fs::read_to_string(&path).map_or(json!({}), |text| {
        serde_json::from_str(&text).expect("the file parses")
    });
    with(&mut json);
    fs::write(path, json.to_string()).expect("can write");
}

fn load(dir: &TempDir) -> Result<TextCodec, TextError> {
    TextCodec::from_hf_folder(dir.path())
}

fn rendered(dir: &TempDir) -> Result<String, TextError> {
    let message = Message {
        role: "user".to_owned(),
        content: "hi".to_owned(),
    };
    load(dir).expect("loads").render_chat(&[message], false)
}

#[test]
fn templates_come_from_files_configs_and_lists() {
    let dir = folder("qwen2");
    let config = "tokenizer_config.json";
    change(&dir, config, |json| {
        json["chat_template"] = json!("config {{ eos_token }}");
    });
    assert_eq!(rendered(&dir).expect("renders"), "config <|im_end|>");
    change(&dir, config, |json| {
        json["chat_template"] = json!([
            {"name": "tool_use", "template": "tools"},
            {"name": "default", "template": "default"},
        ]);
    });
    assert_eq!(rendered(&dir).expect("renders"), "default");
    change(&dir, config, |json| {
        json["chat_template"] = json!([{"name": "tool_use", "template": "tools"}]);
    });
    let error = rendered(&dir).expect_err("no default").to_string();
    assert!(error.contains("tool_use"), "{error}");
    change(&dir, config, |json| json["chat_template"] = Value::Null);
    assert!(matches!(rendered(&dir), Err(TextError::NoChatTemplate)));
    change(&dir, "chat_template.json", |json| {
        json["chat_template"] = json!("json");
    });
    assert_eq!(rendered(&dir).expect("renders"), "json");
    fs::write(dir.path().join("chat_template.jinja"), "file").expect("can write");
    assert_eq!(rendered(&dir).expect("renders"), "file");
}

#[test]
fn a_broken_template_leaves_raw_prompts_alone() {
    let dir = folder("qwen2");
    fs::write(dir.path().join("chat_template.jinja"), "{% for %}").expect("can write");
    let codec = load(&dir).expect("loads");
    assert!(!codec.has_chat_template());
    assert!(codec.encode("text").is_ok());
    assert!(matches!(rendered(&dir), Err(TextError::Template(_))));
}

#[test]
fn add_bos_token_does_not_overrule_tokenizer_json() {
    let dir = folder("gemma2");
    let ids = load(&dir).expect("loads").encode("a").expect("encodes");
    assert_eq!(ids[0], 2);
    change(&dir, "tokenizer_config.json", |json| {
        json["add_bos_token"] = json!(false);
    });
    assert_eq!(
        load(&dir).expect("loads").encode("a").expect("encodes"),
        ids
    );
    change(&dir, "tokenizer.json", |json| {
        json["post_processor"] = Value::Null;
    });
    change(&dir, "tokenizer_config.json", |json| {
        json["add_bos_token"] = json!(true);
    });
    assert_eq!(
        load(&dir).expect("loads").encode("a").expect("encodes"),
        ids[1..]
    );
}

#[test]
fn special_tokens_of_the_config_are_special() {
    let dir = folder("smollm2");
    change(&dir, "tokenizer_config.json", |json| {
        json["pad_token"] = json!({"content": "<pad>", "lstrip": false});
        json["image_token"] = json!("<image>");
        json["additional_special_tokens"] = json!(["<extra>", {"content": "<more>"}]);
    });
    let codec = load(&dir).expect("loads");
    let ids = codec
        .encode("a<pad><image><extra><more>b")
        .expect("encodes");
    assert_eq!(codec.decode(&ids, true).expect("decodes"), "ab");
    assert_eq!(ids.iter().filter(|&&id| codec.is_special(id)).count(), 4);
    // Without added_tokens_decoder the older files speak.
    change(&dir, "special_tokens_map.json", |json| {
        json["eos_token"] = json!("<end>");
    });
    change(&dir, "added_tokens.json", |json| {
        json["<end>"] = json!(1000);
        json["<word>"] = json!(1001);
    });
    let codec = load(&dir).expect("loads");
    let end = codec.eos_token_id().expect("an end token");
    assert_eq!(codec.piece(end).as_deref(), Some("<end>"));
    assert!(codec.is_special(end));
    let ids = codec.encode("<word>").expect("encodes");
    assert_eq!(ids.len(), 1);
    assert!(!codec.is_special(ids[0]));
}

#[test]
fn padding_and_truncation_are_not_for_prompts() {
    let dir = folder("smollm2");
    let before = load(&dir)
        .expect("loads")
        .encode("one two three")
        .expect("encodes");
    change(&dir, "tokenizer.json", |json| {
        json["truncation"] = json!({
            "direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0
        });
        json["padding"] = json!({
            "strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "<|endoftext|>"
        });
    });
    assert_eq!(
        load(&dir)
            .expect("loads")
            .encode("one two three")
            .expect("encodes"),
        before
    );
}

#[test]
fn what_cannot_be_honoured_is_refused() {
    let dir = folder("smollm2");
    change(&dir, "tokenizer.json", |json| {
        json["model"]["dropout"] = json!(0.1);
    });
    assert!(
        load(&dir)
            .expect_err("dropout")
            .to_string()
            .contains("dropout")
    );
    let dir = folder("smollm2");
    change(&dir, "tokenizer.json", |json| {
        json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    });
    assert!(
        load(&dir)
            .expect_err("decoder")
            .to_string()
            .contains("WordPiece")
    );
    let dir = folder("llama");
    change(&dir, "tokenizer.json", |json| {
        json["decoder"]["decoders"][3]["stop"] = json!(1);
    });
    assert!(
        load(&dir)
            .expect_err("decoder")
            .to_string()
            .contains("Strip")
    );
    let dir = folder("smollm2");
    fs::write(dir.path().join("tokenizer.json"), "{").expect("can write");
    assert!(
        load(&dir)
            .expect_err("JSON")
            .to_string()
            .contains("tokenizer.json")
    );
    fs::remove_file(dir.path().join("tokenizer.json")).expect("was there");
    assert!(matches!(load(&dir), Err(TextError::Io { .. })));
}

#[test]
fn metaspace_decoders_stream_exactly() {
    let dir = folder("llama");
    for decoder in [
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false}),
        json!({"type": "Sequence", "decoders": [
            {"type": "ByteFallback"},
            {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": false},
        ]}),
        Value::Null,
    ] {
        change(&dir, "tokenizer.json", |json| json["decoder"] = decoder);
        let codec = load(&dir).expect("loads");
        let library = Tokenizer::from_file(dir.path().join("tokenizer.json")).expect("loads");
        for text in ["▁a▁▁b", "🙂 a 🙂", "", "a"] {
            let ids = codec.encode(text).expect("encodes");
            let want = library.decode(&ids, true).expect("decodes");
            assert_eq!(codec.decode(&ids, true).expect("decodes"), want, "{text:?}");
        }
    }
}
