use serde_json::json;
use tempfile::TempDir;

use super::*;

fn folder(files: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for file in files {
        fs::write(dir.path().join(file), "{}").expect("can write");
    }
    dir
}

fn index(dir: &TempDir, shards: &[&str]) {
    let map: serde_json::Map<String, serde_json::Value> = shards
        .iter()
        .enumerate()
        .map(|(i, file)| (format!("layer.{i}"), json!(file)))
        .collect();
    let text = json!({ "weight_map": map }).to_string();
    fs::write(dir.path().join(INDEX), text).expect("can write");
}

fn refusal(path: &Path) -> String {
    resolve(path).expect_err("refused").to_string()
}

fn weight_names(model: &ResolvedModel) -> Vec<String> {
    match &model.files {
        ModelFiles::HfFolder { weights, .. } => {
            weights.iter().map(|path| file_name(path)).collect()
        }
        ModelFiles::Gguf { .. } => panic!("a folder was meant"),
    }
}

const SMALL: [&str; 2] = ["config.json", "tokenizer.json"];

#[test]
fn a_folder_with_one_file_of_weights() {
    let dir = folder(&[
        SMALL[0],
        SMALL[1],
        "weights.safetensors",
        "generation_config.json",
    ]);
    let model = resolve(dir.path()).expect("resolves");
    assert_eq!(weight_names(&model), ["weights.safetensors"]);
    assert_eq!(model.model_id, file_name(dir.path()));
    let ModelFiles::HfFolder {
        generation_config,
        config,
        ..
    } = model.files
    else {
        panic!("a folder was meant");
    };
    assert!(config.is_file());
    assert!(generation_config.is_some_and(|path| path.is_file()));
    // The usual name goes before others.
    fs::write(dir.path().join(SINGLE), "").expect("can write");
    let model = resolve(dir.path()).expect("resolves");
    assert_eq!(weight_names(&model), [SINGLE]);
}

#[test]
fn a_folder_with_shards() {
    let dir = folder(&[
        SMALL[0],
        SMALL[1],
        "b.safetensors",
        "a.safetensors",
        "spare.safetensors",
    ]);
    assert!(refusal(dir.path()).contains(INDEX));
    index(&dir, &["b.safetensors", "a.safetensors", "b.safetensors"]);
    let model = resolve(dir.path()).expect("resolves");
    assert_eq!(weight_names(&model), ["a.safetensors", "b.safetensors"]);
    index(&dir, &["a.safetensors", "c.safetensors"]);
    assert!(refusal(dir.path()).contains("c.safetensors"));
}

#[test]
fn an_index_stays_in_its_folder() {
    let dir = folder(&SMALL);
    for name in [
        "../other.safetensors",
        "/etc/x.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "..",
        "",
        "x.bin",
    ] {
        index(&dir, &[name]);
        assert!(refusal(dir.path()).contains("beside it"), "{name}");
    }
    index(&dir, &[]);
    assert!(refusal(dir.path()).contains("empty"));
    fs::write(dir.path().join(INDEX), "[").expect("can write");
    assert!(refusal(dir.path()).contains(INDEX));
}

#[test]
fn incomplete_folders_say_what_is_missing() {
    assert!(refusal(folder(&[]).path()).contains("config.json"));
    assert!(refusal(folder(&["config.json"]).path()).contains("tokenizer.json"));
    let sentencepiece = folder(&["config.json", "tokenizer.model"]);
    assert!(refusal(sentencepiece.path()).contains("save_pretrained"));
    assert!(refusal(folder(&SMALL).path()).contains(".safetensors"));
    let pickle = folder(&[SMALL[0], SMALL[1], "pytorch_model.bin"]);
    assert!(refusal(pickle.path()).contains("pickle"));
}

#[test]
fn gguf_files_and_folders_with_one() {
    let dir = folder(&["model.Q4_K_M.gguf", "README.md"]);
    let file = dir.path().join("model.Q4_K_M.gguf");
    let model = resolve(&file).expect("resolves");
    assert_eq!(model.model_id, "model.Q4_K_M.gguf");
    assert_eq!(model.files, ModelFiles::Gguf { path: file });
    let model = resolve(dir.path()).expect("resolves");
    assert!(matches!(model.files, ModelFiles::Gguf { .. }));
    assert!(refusal(&dir.path().join("README.md")).contains(".gguf"));
    fs::write(dir.path().join("other.gguf"), "").expect("can write");
    assert!(refusal(dir.path()).contains("other.gguf"));
    let split = folder(&["model-00001-of-00003.gguf"]);
    assert!(refusal(split.path()).contains("3 parts"));
}
